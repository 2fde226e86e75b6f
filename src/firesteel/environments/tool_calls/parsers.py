"""Reading calls from a model's text. Whatever the text is, a parser answers; it never raises.

Text without any call is not a mistake: it calls nothing, which is right where no tool fits.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firesteel.environments.tool_calls.tasks import Call
from firesteel.responses import sections, text_outside

LONGEST_TEXT = 100_000
DEEPEST_VALUE = 32
MOST_BITS = 14_000
"""Of a whole number. Python refuses to write one of more than 4,300 decimal digits, and reads hexadecimal ones."""

_SEPARATORS = re.compile(r"[\s;,]*")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a text calls. `problem` is None for well-formed text; with a problem there are no calls.

    `outside` is the text around the calls, stripped.
    """

    calls: tuple[Call, ...] = ()
    outside: str = ""
    problem: str | None = None


class Unreadable(Exception):
    """A text, or a part of it, that is no call; the message says why. Parsers turn it into `Parsed.problem`."""


def without_sections(text: str) -> str:
    """The text without its complete `<think>`, `<explore>` and `<examples>` sections.

    What looks like a section inside of a `<tool_call>`, or inside of a quoted text after the first bracket, is part of
    a call's arguments and stays.
    """
    kept: list[str] = []
    place = looked = 0
    is_in_calls = False
    unclosed: set[str] = set()
    while (found := _PIECES.search(text, looked)) is not None:
        looked = found.end()
        if (tag := found["tag"]) is not None and tag not in unclosed:
            closing = text.find(f"</{tag}>", looked)
            if closing < 0:
                unclosed.add(tag)
                continue
            looked = closing + len(tag) + 3
            if tag != "tool_call":
                kept.append(text[place : found.start()])
                place = looked
        elif (quote := found["quote"]) is not None and is_in_calls and quote not in unclosed:
            literal = _LITERALS[quote].match(text, looked)
            looked = literal.end() if literal else looked
            unclosed |= set() if literal else {quote}
        elif found["bracket"] is not None:
            is_in_calls = True
    return "".join([*kept, text[place:]])


_PIECES = re.compile(r"""<(?P<tag>think|explore|examples|tool_call)>|(?P<quote>["'])|(?P<bracket>[\[{])""")
_LITERALS = {quote: re.compile(rf"(?:[^{quote}\\]|\\.)*+{quote}", re.DOTALL) for quote in "\"'"}


def read_hermes(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> Parsed:
    """Reads `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as often as it stands there."""
    del tools
    if len(text) > LONGEST_TEXT:
        return Parsed(problem=f"longer than {LONGEST_TEXT} characters")
    bodies = [section.body for section in sections(text, "tool_call")]
    outside = text_outside(text, "tool_call").strip()
    if "<tool_call>" in outside or "</tool_call>" in outside or any("<tool_call>" in body for body in bodies):
        return Parsed(outside=outside, problem="a tool_call tag without its counterpart")
    try:
        return Parsed(tuple(_json_call(load_json(body), "arguments") for body in bodies), outside)
    except Unreadable as error:
        return Parsed(outside=outside, problem=str(error))


def read_llama3(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> Parsed:
    """Reads `{"name": ..., "parameters": {...}}`; several are separated by ";", a comma or a newline, or listed.

    Text that does not begin with an object or a list (after `<|python_tag|>`) calls nothing.
    """
    del tools
    if len(text) > LONGEST_TEXT:
        return Parsed(problem=f"longer than {LONGEST_TEXT} characters")
    body = text.strip().removeprefix("<|python_tag|>").removesuffix("<|eom_id|>").strip()
    if not body.startswith(("{", "[")):
        return Parsed(outside=body)
    try:
        return Parsed(tuple(_json_call(entry, "parameters") for entry in _objects(body)))
    except Unreadable as error:
        return Parsed(problem=str(error))


def _objects(body: str) -> list[Any]:
    """The JSON values of a text, one after the other; lists are taken apart."""
    found: list[Any] = []
    place = 0
    while place < len(body):
        value, place = _decode(body, place)
        found += value if isinstance(value, list) else [value]
        separators = _SEPARATORS.match(body, place)
        place = separators.end() if separators else place
    return found


def read_python(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> Parsed:
    """Reads `[name(key=value), ...]` or one bare call. Arguments are literals; nothing is evaluated.

    Arguments without a name are taken in the order of the tool's properties. A bare word as a value is its text (as in
    BFCL). Text that begins with neither "[" nor a call calls nothing.
    """
    if len(text) > LONGEST_TEXT:
        return Parsed(problem=f"longer than {LONGEST_TEXT} characters")
    body = text.strip()
    if not re.match(r"\[|[A-Za-z_][\w.]*\(", body):
        return Parsed(outside=body)
    try:
        tree = _syntax(body).body
        nodes = tree.elts if isinstance(tree, (ast.List, ast.Tuple)) else [tree]
        return Parsed(tuple(_python_call(node, tools) for node in nodes))
    except Unreadable as error:
        return Parsed(problem=str(error))


def _syntax(body: str) -> ast.Expression:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a model's string is its affair
            return ast.parse(body, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(f"not a list of Python calls: {type(error).__name__}") from error


def _python_call(node: ast.expr, tools: Sequence[Mapping[str, Any]]) -> Call:
    if not isinstance(node, ast.Call):
        raise Unreadable("something in the list is not a call")
    name = _dotted(node.func)
    names = next((list(tool["parameters"].get("properties", {})) for tool in tools if tool["name"] == name), [])
    if len(node.args) > len(names):
        raise Unreadable(f"'{name}' has {len(node.args)} arguments without a name and the tool {len(names)} parameters")
    arguments = {key: literal(value) for key, value in zip(names, node.args, strict=False)}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise Unreadable(f"'{name}' is given ** of something")
        if keyword.arg in arguments:
            raise Unreadable(f"'{name}' is given '{keyword.arg}' twice")
        arguments[keyword.arg] = literal(keyword.value)
    return Call(name, arguments)


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise Unreadable("what is called is not a name")
    return ".".join([node.id, *reversed(parts)])


def literal(node: ast.expr, depth: int = 0) -> Any:
    """The JSON value of a Python literal: numbers, text, True, None, lists, tuples (as lists), dicts, bare words.

    Raises:
        Unreadable: it is anything else, nested too deeply, or not finite.
    """
    if depth > DEEPEST_VALUE:
        raise Unreadable(f"a value is nested more than {DEEPEST_VALUE} deep")
    if isinstance(node, ast.Constant):
        return checked(node.value)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [literal(entry, depth + 1) for entry in node.elts]
    if isinstance(node, ast.Dict):
        return _mapping(node, depth)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = literal(node.operand, depth + 1)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, (ast.Name, ast.Attribute)):
        return {"true": True, "false": False, "null": None}.get(name := _dotted(node), name)
    raise Unreadable(f"a value is a {type(node).__name__}, not a literal")


def _mapping(node: ast.Dict, depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        name = None if key is None else literal(key, depth + 1)
        if not isinstance(name, str):
            raise Unreadable("a key of an object is not text")
        if name in result:
            raise Unreadable(f"an object has the key {name!r} twice")
        result[name] = literal(value, depth + 1)
    return result


def _json_call(value: Any, key: str) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise Unreadable("a call is not an object with a name")
    if set(value) - {"name", key}:
        raise Unreadable(f"a call has other keys than name and {key}")
    arguments = value.get(key, {})
    if not isinstance(arguments, dict):
        raise Unreadable(f"{key} of '{value['name']}' is not an object")
    return Call(value["name"], arguments)


def load_json(text: str) -> Any:
    """A JSON value as models may write it: no NaN, no infinity, no key twice, at most `DEEPEST_VALUE` deep.

    Raises:
        Unreadable: it is not one.
    """
    value, end = _decode(text.strip(), 0)
    if end != len(text.strip()):
        raise Unreadable("there is text after the JSON")
    return value


def _decode(text: str, place: int) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {str(error)[:80]}") from error
    return checked(value), end


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has a key twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_refuse_constant)


def checked(value: Any, depth: int = 0) -> Any:
    """The value itself, if JSON can hold it and its text can be written as UTF-8.

    Raises:
        Unreadable: it cannot, or is nested more than `DEEPEST_VALUE` deep.
    """
    if depth > DEEPEST_VALUE:
        raise Unreadable(f"a value is nested more than {DEEPEST_VALUE} deep")
    if isinstance(value, dict):
        for key, entry in value.items():
            checked(key, depth + 1)
            checked(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            checked(entry, depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise Unreadable("a text holds half of a surrogate pair")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Unreadable("a number is not finite")
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise Unreadable(f"a whole number has more than {MOST_BITS} bits")
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise Unreadable(f"a value is a {type(value).__name__}, which JSON cannot hold")
    return value
