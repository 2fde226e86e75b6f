"""The public methods of a class as tools: what can be called, how it is described, and how a call is checked."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Required

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from typing_extensions import TypedDict

from firesteel.errors import ConfigError
from firesteel.guard import readable, told
from firesteel.plugins import nearest

RESERVED = ("reset", "close", "get_reward", "tasks", "snapshot", "restore")
"""Methods of a class that are no tools."""

FORMAT = 'Call a tool with {"name": "...", "arguments": {...}}.'

_REFUSED_KINDS = {
    inspect.Parameter.VAR_POSITIONAL: "takes any number of arguments",
    inspect.Parameter.VAR_KEYWORD: "takes arguments of any name",
    inspect.Parameter.POSITIONAL_ONLY: "is positional only",
}

_SELF_KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Tool:
    """One method that can be called by name with JSON arguments. `signature` and `help` are for the prompt."""

    name: str
    signature: str
    help: str
    arguments: TypeAdapter[Any]

    def check(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The arguments in the types that the method asks for, and what is wrong with them ("" if nothing)."""
        try:
            return self.arguments.validate_python(arguments), ""
        except ValidationError as error:
            return {}, "; ".join(map(_problem, error.errors(include_url=False)))


def _problem(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"'{where}' is missing"
    if error["type"] == "extra_forbidden":
        return f"there is no '{where}'"
    return f"'{where}': {error['msg'][:1].lower()}{error['msg'][1:]}, got {error['input']!r:.60}"


def find_tools(cls: type) -> dict[str, Tool]:
    """The tools of a class by name, in the order of definition.

    A tool is a public method that is not in `RESERVED`. Each parameter has a type that JSON can hold, and the
    docstring says what it does (with an "Args:" section where a parameter needs words).

    Raises:
        ConfigError: there is none, or one cannot be called with named JSON arguments; all problems are in the message.
    """
    tools: dict[str, Tool] = {}
    problems = []
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if name.startswith("_") or name in RESERVED or not callable(getattr(cls, name, None)):
                continue
            try:
                tools[name] = _tool(cls, name, member)
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError(f"{cls.__name__} cannot be used: {'; '.join(problems)}")
    if not tools:
        raise ConfigError(f"{cls.__name__} has no tool: give it a public method with a docstring and typed parameters")
    return tools


def _tool(cls: type, name: str, member: Any) -> Tool:
    where = f"tool '{name}'"
    function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
    if not inspect.isfunction(function):
        raise ConfigError(f"{where} is no plain method; begin its name with _ if it is not meant as a tool")
    is_lazy = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(test(function) for test in is_lazy):
        raise ConfigError(f"{where} is async or a generator; write it as a plain method that returns its result")
    summary = inspect.cleandoc(function.__doc__ or "")
    if not summary:
        raise ConfigError(f"{where} has no docstring, and the model reads it to know what the tool does")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # boundary: hints written as text are code
        raise ConfigError(f"{where}: its type hints cannot be read ({told(error)})") from error
    parameters = list(inspect.signature(function).parameters.values())
    if not isinstance(member, staticmethod):
        if not parameters or parameters[0].kind not in _SELF_KINDS:
            raise ConfigError(f"{where} takes no self; write def {name}(self, ...), or put @staticmethod before it")
        del parameters[0]
    fields = _fields(where, parameters, hints)
    return Tool(name, f"{name}({', '.join(map(_shown, parameters))})", _help(summary), _adapter(where, name, fields))


def _fields(where: str, parameters: Sequence[inspect.Parameter], hints: dict[str, Any]) -> dict[str, Any]:
    """The parameters as fields of a `TypedDict`."""
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in _REFUSED_KINDS:
            raise ConfigError(f"{where}: parameter '{parameter.name}' {_REFUSED_KINDS[parameter.kind]}; name each one")
        if parameter.name not in hints:
            raise ConfigError(f"{where}: parameter '{parameter.name}' has no type; write {parameter.name}: str, say")
        is_needed = parameter.default is inspect.Parameter.empty
        try:
            fields[parameter.name] = (Required if is_needed else NotRequired)[hints[parameter.name]]
        except TypeError as error:
            reason = f"parameter '{parameter.name}' has a type that no parameter can have ({error})"
            raise ConfigError(f"{where}: {reason}; write a plain one, such as int") from error
    return fields


def _adapter(where: str, name: str, fields: dict[str, Any]) -> TypeAdapter[Any]:
    make: Any = TypedDict  # its fields are known at run time only
    form = make(name, fields)
    form.__pydantic_config__ = ConfigDict(extra="forbid")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(form)
        adapter.json_schema()
    except (PydanticUserError, PydanticSchemaGenerationError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{where}: a parameter has a type that JSON cannot hold ({reason})") from error
    return adapter


def _shown(parameter: inspect.Parameter) -> str:
    """`name: type = default`, the type as it was written."""
    hint = parameter.annotation
    text = hint if isinstance(hint, str) else getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {text.replace('typing.', '')}{default}"


def _help(docstring: str) -> str:
    """The docstring's first line and its "Args:" section, on one line."""
    first = docstring.split("\n")[0].strip() or docstring.strip().split("\n")[0]
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    words = " ".join(section.group(1).split()) if section else ""
    return f"{first} {words}".strip()


def describe(tools: dict[str, Tool]) -> str:
    """The tools as a prompt shows them, one a line, after how to call them."""
    return "\n".join((FORMAT, *(f"- {tool.signature}: {tool.help}" for tool in tools.values())))


def _read_json(text: str) -> Any:
    """A JSON value whose texts are readable: an escape such as \\ud800 alone is a character that UTF-8 cannot hold."""
    value = json.loads(readable(text))
    return json.loads(readable(json.dumps(value, ensure_ascii=False))) if "\\u" in text else value


def read_call(action: str, tools: dict[str, Tool]) -> tuple[str, dict[str, Any], str]:
    """(name, arguments, what is wrong): the last is "" exactly where the tool can be called with the arguments.

    What is wrong is said so that the next call can be right.
    """
    begin, end = action.find("{"), action.rfind("}")
    try:
        call = _read_json(action[begin : end + 1])
    except (ValueError, RecursionError):
        return "", {}, f"This is no tool call. {FORMAT} Tools: {', '.join(tools)}."
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return "", {}, f'The call has no "name". {FORMAT} Tools: {", ".join(tools)}.'
    name, arguments = call["name"], call.get("arguments", {})
    if name not in tools:
        return "", {}, f"There is no tool '{name}'{nearest(name, tools)}. Tools: {', '.join(tools)}."
    if isinstance(arguments, str):
        try:
            arguments = _read_json(arguments)
        except (ValueError, RecursionError):
            return "", {}, f'"arguments" of {name} is no JSON object. Usage: {tools[name].signature}.'
    if not isinstance(arguments, dict):
        return "", {}, f'"arguments" of {name} must be a JSON object. Usage: {tools[name].signature}.'
    checked, problem = tools[name].check(arguments)
    return (name, checked, "") if not problem else ("", {}, f"{name}: {problem}. Usage: {tools[name].signature}.")
