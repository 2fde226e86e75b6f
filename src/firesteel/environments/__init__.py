"""Environments by name. A user's own is given as "package.module:Class"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from firesteel.environments.base import Environment
from firesteel.errors import ConfigError
from firesteel.plugins import load

ENVIRONMENTS: dict[str, str] = {
    "household": "firesteel.environments.household:Household",
    "scienceworld": "firesteel.environments.scienceworld:ScienceWorld",
    "alfworld": "firesteel.environments.alfworld:AlfWorld",
    "webshop": "firesteel.environments.webshop:WebShop",
    "tool_calls": "firesteel.environments.tool_calls:ToolCalls",
    "bfcl": "firesteel.environments.bfcl:Bfcl",
    "tool_questions": "firesteel.environments.tool_questions:ToolQuestions",
    "mmlu_pro": "firesteel.environments.mmlu_pro:MmluPro",
}


def environment_class(name: str, options: Mapping[str, Any] | None = None) -> type[Environment]:
    """The class behind a name of `ENVIRONMENTS` or a "package.module:Class" path.

    A class that was not written for firesteel is adapted (`firesteel.environments.adapters.adapt`). `options` of one
    of `ENVIRONMENTS` must have the types of its constructor's annotations; else this is a `ConfigError`.
    """
    found = load(name, ENVIRONMENTS, kind="environment")
    if name in ENVIRONMENTS:
        _check_types(name, found, options or {})
    if isinstance(found, type) and issubclass(found, Environment):
        return found
    from firesteel.environments.adapters import adapt

    return adapt(found)


def make_environment(name: str, options: Mapping[str, Any]) -> Environment:
    """A new environment by name; importable by worker processes."""
    return environment_class(name, options)(**options)


def _check_types(name: str, cls: type[Environment], options: Mapping[str, Any]) -> None:
    """Options that the constructor does not know are left to it."""
    annotations = get_type_hints(cls.__init__)
    for option in sorted(options.keys() & annotations.keys()):
        known = TypeAdapter(annotations[option], config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        try:
            known.validate_python(options[option])
        except ValidationError as error:
            wanted = cls.__init__.__annotations__[option]
            raise ConfigError(f"{name}: option '{option}' must be {wanted}, got {options[option]!r}") from error
