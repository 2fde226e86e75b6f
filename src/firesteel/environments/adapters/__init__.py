"""Classes that were not written for firesteel, played as they are."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from firesteel.environments.adapters.gymnasium_text import GymnasiumText
from firesteel.environments.adapters.openenv import OpenEnvClient
from firesteel.environments.adapters.tool_class import ToolClass
from firesteel.environments.adapters.tools import find_tools
from firesteel.environments.base import FORK_RUNGS, Environment
from firesteel.errors import ConfigError


@lru_cache(maxsize=64)
def adapt(made_by: Any) -> type[Environment]:
    """An environment class for whatever a user names.

    An `Environment` class stays as it is. A Gymnasium environment becomes a `GymnasiumText`, an OpenEnv client an
    `OpenEnvClient`; the public methods of any other class (that of a TRL `environment_factory`, say) are its tools
    (`ToolClass`). A function that makes such an object is called once to see what it makes.

    Raises:
        ConfigError: it is none of these; it has no tool, or one with a signature that no call can be checked against;
            it lacks what its `fork_rung` needs.
    """
    if isinstance(made_by, type) and issubclass(made_by, Environment):
        return made_by
    if not callable(made_by):
        raise ConfigError(f"environment {made_by!r:.100} is no class and makes nothing; name a class or a function")
    cls = made_by if isinstance(made_by, type) else type(made_by())
    members: dict[str, Any] = {
        "made_by": staticmethod(made_by),
        "example_actions": tuple(getattr(cls, "example_actions", ())),
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
    }
    rung = getattr(cls, "fork_rung", "replay")
    if rung not in FORK_RUNGS:
        raise ConfigError(f"{cls.__name__}.fork_rung is {rung!r}; wanted one of {', '.join(FORK_RUNGS)}")
    base: type[Environment]
    if is_a(cls, "gymnasium.core", "Env"):
        base = GymnasiumText
    elif hasattr(cls, "_step_payload") and hasattr(cls, "_parse_result"):
        base = OpenEnvClient
        members["client_class"] = cls
    else:
        base = ToolClass
        missing = [f"{name}()" for name in ("snapshot", "restore") if not hasattr(cls, name)]
        if rung == "snapshot" and missing:
            raise ConfigError(
                f"{cls.__name__}.fork_rung is 'snapshot', and the class has no {' and no '.join(missing)}; write "
                "snapshot() and restore(state), or set fork_rung to 'replay'"
            )
        members["tools"] = find_tools(cls)
    return type(cls.__name__, (base,), members | {"fork_rung": rung})


def is_a(cls: type, module: str, name: str) -> bool:
    """Whether a class derives from one that is named so; its package need not be imported for that."""
    return any((base.__module__, base.__name__) == (module, name) for base in cls.__mro__)
