"""JSON schemas of tools: dialects brought into one form, and what is wrong with a task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry

from firesteel.environments.tool_calls.parsers import Unreadable, checked
from firesteel.environments.tool_calls.tasks import ROLES, Call, ToolTask, shortened
from firesteel.errors import TaskError

_TYPES: dict[str, str | None] = {
    "dict": "object", "object": "object", "hashmap": "object", "hashtable": "object",
    "array": "array", "list": "array", "tuple": "array", "set": "array", "arraylist": "array", "queue": "array",
    "stack": "array",
    "float": "number", "double": "number", "number": "number",
    "integer": "integer", "int": "integer", "long": "integer", "short": "integer", "byte": "integer",
    "bigint": "integer",
    "string": "string", "str": "string", "char": "string",
    "boolean": "boolean", "bool": "boolean",
    "null": "null", "none": "null",
    "any": None,
}  # fmt: skip
"""Type names of data sets (in lower case) and JSON schema's; None allows any type."""


def json_schema(schema: Any) -> dict[str, Any]:
    """A parameter's schema with JSON schema's type names, at every depth.

    Reads BFCL's "dict", "float", "tuple" and "any", and xLAM's Python notation ("List[int]", "str, optional").

    Raises:
        TaskError: it is not an object, or a type's name is not known.
    """
    if not isinstance(schema, Mapping):
        raise TaskError(f"a schema must be an object, got {shortened(schema)}")
    result = {key: value for key, value in schema.items() if key not in ("type", "optional")}
    if isinstance(result.get("required"), bool):
        del result["required"]
    if "type" in schema:
        result = _typed(schema["type"]) | result
    if isinstance(result.get("properties"), Mapping):
        result["properties"] = {name: json_schema(entry) for name, entry in result["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), Mapping):
            result[key] = json_schema(result[key])
    return result


def _typed(name: Any) -> dict[str, Any]:
    """The schema that a type's name stands for; lists of names are alternatives."""
    if isinstance(name, list):
        known = [_typed(entry).get("type") for entry in name]
        return {"type": known} if all(known) else {}
    if not isinstance(name, str):
        raise TaskError(f"a type must be a name, got {shortened(name)}")
    text = name.split(",")[0].strip() if "[" not in name else name.removesuffix(", optional").strip()
    outer, bracket, inner = text.partition("[")
    outer = outer.strip().lower()
    if outer in ("optional", "union", "callable"):
        return {}
    if outer not in _TYPES:
        raise TaskError(f"unknown type '{name}'; known: {', '.join(sorted(_TYPES))}")
    kind = _TYPES[outer]
    result: dict[str, Any] = {} if kind is None else {"type": kind}
    if kind == "array" and bracket and outer != "tuple" and "," not in inner:
        result["items"] = _typed(inner.removesuffix("]"))
    return result


def tool_of(record: Any) -> dict[str, Any]:
    """A tool as `{"name", "description", "parameters"}`, from OpenAI's, BFCL's, ToolACE's or xLAM's notation.

    Raises:
        TaskError: there is no name, the description is no text, or the parameters are no schema.
    """
    if isinstance(record, Mapping) and isinstance(record.get("function"), Mapping):
        record = record["function"]
    if not isinstance(record, Mapping) or not isinstance(record.get("name"), str) or not record["name"]:
        raise TaskError(f"a tool must be an object with a name, got {shortened(record)}")
    given = record.get("parameters", record.get("arguments")) or {}
    if not isinstance(given, Mapping):
        raise TaskError(f"tool '{record['name']}': parameters must be an object, got {shortened(given)}")
    if _is_schema(given):
        parameters = {"type": "object", "properties": {}} | json_schema(given)
        if parameters.get("required") is None:
            parameters.pop("required", None)
    else:
        parameters = {"type": "object", "properties": {name: json_schema(entry) for name, entry in given.items()}}
        parameters["required"] = [name for name, entry in given.items() if not _is_optional(entry)]
    description = "" if record.get("description") is None else record["description"]
    if not isinstance(description, str):
        raise TaskError(f"tool '{record['name']}': a description must be text, got {shortened(description)}")
    return {"name": record["name"], "description": description, "parameters": parameters}


def _is_schema(given: Mapping[str, Any]) -> bool:
    """Whether parameters are a JSON schema, and not entries by name (xLAM), of which one may be "properties"."""
    properties = given.get("properties")
    is_entry = isinstance(properties, Mapping) and isinstance(properties.get("type"), str)
    return given.get("type") in ("object", "dict") or ("properties" in given and not is_entry)


def _is_optional(entry: Any) -> bool:
    return isinstance(entry, Mapping) and (
        "default" in entry or "optional" in str(entry.get("type", "")).lower() or entry.get("required") is False
    )


def _ignored(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    del validator, value, instance, schema
    yield from ()


def _additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """`additionalProperties`; beside `patternProperties`, which are not applied, nothing is additional."""
    if "patternProperties" not in schema:
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, value, instance, schema)


# A data set's regular expression may take exponential time on a model's text.
_WithoutPatterns = validators.extend(
    Draft202012Validator,
    {"pattern": _ignored, "patternProperties": _ignored, "unevaluatedProperties": _ignored,
     "additionalProperties": _additional},
)  # fmt: skip


@lru_cache(maxsize=4096)
def _validator(text: str) -> Any:
    """Applies a schema. It fetches nothing: a `$ref` to another document cannot be resolved."""
    Draft202012Validator.check_schema(json.loads(text))
    return _WithoutPatterns(json.loads(text, object_hook=_without_dialect), registry=Registry())


def _without_dialect(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$schema`, which would have jsonschema apply it by another class than `_WithoutPatterns`."""
    return {key: value for key, value in schema.items() if key != "$schema" or not isinstance(value, str)}


def schema_flaw(parameters: Any) -> str | None:
    """What is wrong with a tool's parameters as a JSON schema, or None."""
    try:
        _validator(json.dumps(parameters, allow_nan=False))
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path))
        return f"invalid JSON schema at '{where}': {error.message[:120]}"
    except (TypeError, ValueError, RecursionError) as error:
        return f"the schema is not JSON: {error}"
    return None


def argument_flaws(call: Call, parameters: Mapping[str, Any]) -> list[str]:
    """What is wrong with a call's arguments under a schema; unknown arguments are wrong too.

    `pattern`, `patternProperties` and `unevaluatedProperties` are not applied: a regular expression can take
    exponential time. A schema that cannot be applied, such as one with a `$ref` to a URL, is a flaw itself.
    """
    flaws = []
    try:
        for error in _validator(json.dumps(parameters)).iter_errors(dict(call.arguments)):
            where = ".".join(map(str, error.absolute_path))
            flaws.append(f"{call.name}{'.' if where else ''}{where}: {error.message[:120]}")
    except Exception as error:  # boundary: a foreign schema's `$ref` fails in classes of several libraries
        return [f"{call.name}: its schema cannot be applied: {type(error).__name__}: {shortened(str(error))}"]
    known = parameters.get("properties", {})
    if not parameters.get("additionalProperties"):
        flaws += [f"{call.name}: unknown argument '{name}'" for name in call.arguments if name not in known]
    return flaws


def task_flaws(task: ToolTask) -> list[str]:
    """Everything that is wrong with a task: its tools, its schemas, its accepted calls. Empty for a good one."""
    flaws = [f"tool '{name}' is given {count} times" for name, count in _names(task).items() if count > 1]
    parameters: dict[str, Mapping[str, Any]] = {}
    for tool in task.tools:
        flaw = schema_flaw(tool["parameters"])
        if flaw is None:
            parameters[tool["name"]] = tool["parameters"]
        else:
            flaws.append(f"tool '{tool['name']}': {flaw}")
    if not task.messages or not task.query.strip():
        flaws.append("there is no query")
    flaws += [f"'{role}' is no role of a message; known: {', '.join(ROLES)}" for role in _foreign_roles(task)]
    if not task.answers:
        flaws.append("there is no accepted answer")
    try:
        json.dumps([task.messages, task.checks], allow_nan=False, default=dict)
    except (TypeError, ValueError) as error:
        flaws.append(f"its messages or checks are not JSON: {error}")
    names = _names(task)
    for call in _all_calls(task):
        if call.name not in names:
            flaws.append(f"an accepted call names the unknown tool '{call.name}'")
            continue
        try:
            checked(dict(call.arguments))
        except Unreadable as error:
            flaws.append(f"an accepted call of '{call.name}' cannot be written: {error}")
            continue
        if call.name in parameters:
            flaws += [
                f"an accepted call fails its schema: {flaw}" for flaw in argument_flaws(call, parameters[call.name])
            ]
    return list(dict.fromkeys(flaws))


def _foreign_roles(task: ToolTask) -> list[str]:
    return list(dict.fromkeys(str(message["role"]) for message in task.messages if message["role"] not in ROLES))


def _names(task: ToolTask) -> Counter[str]:
    return Counter(tool["name"] for tool in task.tools)


def _all_calls(task: ToolTask) -> Iterable[Call]:
    return (call for answer in task.answers for call in answer)
