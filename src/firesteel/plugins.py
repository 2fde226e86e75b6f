"""How a name in a config becomes an object: one visible dict per kind, or "package.module:object"."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from firesteel.errors import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as " (did you mean 'chain'?)", or "" when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def load(name: str, table: Mapping[str, Any], *, kind: str) -> Any:
    """Looks `name` up in `table`, whose values are objects or "module:object" strings, or imports it."""
    target = table.get(name, name)
    if not isinstance(target, str):
        return target
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise ConfigError(
            f"unknown {kind} '{name}'{nearest(name, table)}; known: {', '.join(sorted(table))}; "
            f"or give your own as 'package.module:object'"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        message = f"{kind} '{name}': module '{module_name}' cannot be imported; is it on PYTHONPATH?"
        raise ConfigError(message) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ConfigError(f"{kind} '{name}': module '{module_name}' has no '{attribute}'") from error
