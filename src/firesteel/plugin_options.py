"""Options that a config hands to a part: unknown ones, and values without sense, are refused by name before anything
is played."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from firesteel.errors import ConfigError
from firesteel.plugins import nearest

HANDED = ("seed", "call_format")
"""What a part is given beside its tasks; no option has such a name."""


def make_part(what: str, factory: Callable[..., Any], tasks: Any, options: Mapping[str, Any], **handed: Any) -> Any:
    """`factory(tasks, **handed, **options)`; a "call_format" is handed where it is known and the factory has it.

    A factory that takes any name (`**more`) has to refuse unknown ones itself (`refuse_unknown`). `what` names the part
    in messages.

    Raises:
        ConfigError: an option is unknown (with the nearest name) or missing.
    """
    if not callable(factory):
        raise ConfigError(f"{what} must be a class or a function, got {type(factory).__name__}")
    signature = inspect.signature(factory)
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    known = option_names(factory)
    refuse_unknown(what, [name for name in options if name in HANDED or not is_open], known)
    if "call_format" not in signature.parameters or handed.get("call_format") is None:
        handed.pop("call_format", None)
    try:
        signature.bind(tasks, **handed, **options)
    except TypeError as error:
        raise ConfigError(f"{what} cannot be made with the options {sorted(options)}: {error}") from error
    return factory(tasks, **handed, **options)


def option_names(factory: Callable[..., Any]) -> list[str]:
    """The options that a factory names: its parameters without the first, which takes the tasks, and `HANDED`."""
    parameters = list(inspect.signature(factory).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [entry.name for entry in parameters if entry.kind in named and entry.name not in HANDED]


def refuse_unknown(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raises `ConfigError` where something given is not known, with the nearest name."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        near = nearest(unknown[0], known)
        raise ConfigError(f"{what} does not take the options {unknown}{near}; known: {', '.join(known) or 'none'}")


def require(what: str, name: str, value: Any, fits: bool, wanted: str) -> None:
    """Raises `ConfigError` unless an option's value fits."""
    if not fits:
        raise ConfigError(f"{what}: {name} must be {wanted}; got {value!r}")


def require_whole(what: str, name: str, value: Any, least: int) -> None:
    """Raises `ConfigError` unless an option's value is a whole number from `least` on; true and 1.0 are none."""
    require(what, name, value, type(value) is int and value >= least, f"a whole number from {least} on")
