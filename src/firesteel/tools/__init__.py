"""Tools by name. A user's own is given as "package.module:Class"."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from firesteel.errors import ConfigError
from firesteel.plugins import load
from firesteel.tools.base import Tool, ToolResult

__all__ = ["COT", "TOOLS", "TOOL_PRESETS", "Tool", "ToolResult", "close_tools", "make_tools", "tool_names"]

COT = "cot"
"""The ninth action: to reason in words. It runs nothing."""

TOOLS: dict[str, str] = {
    "calculator": "firesteel.tools.calculator:Calculator",
    "dates": "firesteel.tools.dates:Dates",
    "dictionary": "firesteel.tools.dictionary:Dictionary",
    "logic": "firesteel.tools.logic:Logic",
    "python": "firesteel.tools.python:Python",
    "reference": "firesteel.tools.reference:Reference",
    "search": "firesteel.tools.search:Search",
    "semantic_scholar": "firesteel.tools.online:SemanticScholar",
    "units": "firesteel.tools.units:Units",
    "wikipedia": "firesteel.tools.online:Wikipedia",
    "wolfram_alpha": "firesteel.tools.online:WolframAlpha",
}

TOOL_PRESETS: dict[str, dict[str, str]] = {
    # what an action is called, and the tool behind it
    "offline": {
        name: name for name in ("calculator", "dates", "dictionary", "logic", "python", "reference", "search", "units")
    },
    # SPaRK's names as its data set lists them; its last name is not known, and this one is our guess.
    "paper": {
        "calculator": "calculator",
        "python_repl": "python",
        "search": "search",
        "semantic_scholar": "semantic_scholar",
        "static_kb": "reference",
        "wikipedia": "wikipedia",
        "wolfram_alpha": "wolfram_alpha",
    },
}


def tool_names(names: str | Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Action names and the tools behind them, from a preset's name, a list of tools, or such a mapping itself."""
    if isinstance(names, str):
        return dict(load(names, TOOL_PRESETS, kind="tool preset"))
    return dict(names) if isinstance(names, Mapping) else {name: name for name in names}


def make_tools(
    names: str | Iterable[str] | Mapping[str, str] = "offline", options: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Tool]:
    """The tools by the names of their actions, sorted.

    `options` gives constructor arguments by action name, such as `{"search": {"corpus": "notes/"}}`.

    Raises:
        ConfigError: an unknown tool, an option of a tool that is not there, or one that it does not take.
    """
    chosen = tool_names(names)
    unknown = set(options or {}) - set(chosen)
    if COT in chosen or unknown:
        named, known = ", ".join(sorted(unknown)) or COT, ", ".join(sorted(chosen))
        raise ConfigError(
            f"tool options name {named}, which is none of the tools {known}"
            + ("; 'cot' is an action of its own and no tool" if COT in chosen else "")
        )
    tools: dict[str, Tool] = {}
    for action, name in sorted(chosen.items()):
        arguments = dict((options or {}).get(action, {}))
        made = load(name, TOOLS, kind="tool")
        for missing in missing_options(made, arguments):
            raise ConfigError(
                f"tool '{action}' needs the option '{missing}', which nothing sets: give it under tool_options, as in "
                f"environment.options.tool_options={{{action}: {{{missing}: ...}}}}, or choose tools without {action}, "
                f"as in environment.options.tools={_written(chosen, without=action)}"
            )
        try:
            tools[action] = made(**arguments)
        except TypeError as error:
            message = f"tool '{action}' cannot be made with the options {sorted(arguments)}: {error}"
            raise ConfigError(message) from error
    return tools


def _written(chosen: Mapping[str, str], *, without: str) -> str:
    """Tools as the option `tools` takes them: a list, or where actions have other names a mapping."""
    kept = {action: name for action, name in sorted(chosen.items()) if action != without}
    if all(action == name for action, name in kept.items()):
        return f"[{', '.join(kept)}]"
    return f"{{{', '.join(f'{action}: {name}' for action, name in kept.items())}}}"


def missing_options(tool: Callable[..., Tool], given: Mapping[str, Any]) -> list[str]:
    """The constructor arguments of a tool that have no default and are not given; none where it does not tell them."""
    try:
        wanted = inspect.signature(tool).parameters.values()
    except (TypeError, ValueError):
        return []
    named = (each for each in wanted if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
    return [each.name for each in named if each.default is each.empty and each.name not in given]


def close_tools(tools: Mapping[str, Tool]) -> None:
    """Closes all of them."""
    for tool in tools.values():
        tool.close()
