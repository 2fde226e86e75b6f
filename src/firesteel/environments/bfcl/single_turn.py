"""BFCL v4's single-turn categories as tool-calling tasks, and its own AST checker."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from firesteel.annotate import Rejection
from firesteel.environments.bfcl.package import ast_checker_module, entries, language
from firesteel.environments.tool_calls.schema import tool_of
from firesteel.environments.tool_calls.tasks import Call, ToolTask, Verdict, shortened
from firesteel.errors import TaskError

_SOURCE_TEXT = {"simple_java": "Java", "simple_javascript": "JavaScript"}


def single_turn_tasks(category: str) -> Iterator[ToolTask | Rejection]:
    """The tasks of a category; a record that cannot be read is rejected by its id.

    A task's one accepted answer takes the first of each argument's possible values; what else is right only the
    checker `bfcl` knows. In "live_relevance", where any call is right, there is none.
    """
    for row in entries(category):
        try:
            yield _task(row, category)
        except (TaskError, KeyError, TypeError, IndexError) as error:
            yield Rejection(str(row.get("id")), f"{type(error).__name__}: {shortened(str(error), 200)}")


def _task(row: Mapping[str, Any], category: str) -> ToolTask:
    truth = row["ground_truth"]
    functions = row["function"]
    answers: tuple[tuple[Call, ...], ...] = ((),)
    if truth is not None:
        answers = (reference_calls(truth, functions, category),)
    elif category == "live_relevance":
        answers = ()
    return ToolTask(
        id=row["id"],
        messages=tuple(row["question"][0]),
        tools=tuple(tool_of(_shown(function, category)) for function in functions),
        answers=answers,
        kind=category,
        split=category,
        checks={"category": category, "functions": functions, "possible": truth},
    )


def _shown(function: Mapping[str, Any], category: str) -> Mapping[str, Any]:
    """A function as a model sees it: in Java and JavaScript, every argument is the source text of a value."""
    if category not in _SOURCE_TEXT:
        return function
    name = _SOURCE_TEXT[category]
    changed = dict(copy.deepcopy(function))
    for entry in changed["parameters"]["properties"].values():
        inner = f" of {entry['items']['type']}" if entry.get("items") else ""
        note = f"The source text of a {name} value of type {entry['type']}{inner}."
        description = f"{entry.get('description', '')} {note}".strip()
        entry.clear()
        entry |= {"type": "string", "description": description}
    return changed


def reference_calls(truth: Sequence[Mapping[str, Any]], functions: Sequence[Any], category: str) -> tuple[Call, ...]:
    """One call for each of BFCL's possible answers: the first value of every argument that is not "left out".

    The empty text stands for leaving an argument out, and is itself the value where the argument is required.
    """
    parameters = {function["name"]: function["parameters"] for function in functions}
    calls = []
    for answer in truth:
        ((name, possible),) = answer.items()
        arguments = {}
        for key, values in possible.items():
            shown = parameters.get(name, {})
            given = [value for value in values if value != ""]
            if "" in values and key in shown.get("required", ()):
                given.append("")
            if not given:
                continue
            chosen, kind = given[0], shown.get("properties", {}).get(key, {})
            arguments[key] = _plain(chosen) if category not in _SOURCE_TEXT else source_text(chosen, kind, category)
        calls.append(Call(name, arguments))
    return tuple(calls)


def _plain(value: Any) -> Any:
    """A possible value as an argument: in objects, each entry is a list of alternatives in turn."""
    if isinstance(value, Mapping):
        return {key: _first(entry) for key, entry in value.items() if not _is_left_out(entry)}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value


def _is_left_out(alternatives: Any) -> bool:
    return isinstance(alternatives, list) and bool(alternatives) and all(entry == "" for entry in alternatives)


def _first(alternatives: Any) -> Any:
    if not isinstance(alternatives, list) or not alternatives:
        return alternatives
    return next((entry for entry in alternatives if entry != ""), alternatives[0])


def source_text(value: Any, kind: Mapping[str, Any], category: str) -> str:
    """A possible value as Java or JavaScript source, in the forms that BFCL's converters read."""
    type_name = kind.get("type", "any")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if category == "simple_java":
        inner = kind.get("items", {}).get("type", "")
        return _java(value, type_name, inner)
    return json.dumps(_plain(value))


def _java(value: Any, type_name: str, inner: str) -> str:
    if isinstance(value, list):
        texts = [_java_item(entry, inner) for entry in value]
        if type_name == "ArrayList":
            return f"new ArrayList<>(Arrays.asList({', '.join(texts)}))"
        return f"new {inner or 'Object'}[]{{{', '.join(texts)}}}"
    if isinstance(value, Mapping):
        puts = " ".join(f'put("{key}", {_java_item(_first(entry), "")});' for key, entry in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    suffix = {"long": "L", "float": "f"}.get(type_name, "")
    return f"{value}{suffix}"


def _java_item(value: Any, inner: str) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, Mapping)):
        return _java(value, "Array" if isinstance(value, list) else "HashMap", inner)
    return _java(value, inner, "") if not isinstance(value, bool) else str(value).lower()


def check_calls(calls: Sequence[Call], task: ToolTask) -> Verdict:
    """BFCL's verdict on a task of `single_turn_tasks`; another task raises `TaskError`.

    Irrelevance wants no call, relevance any call; everything else goes through `ast_checker`.
    """
    if "category" not in task.checks:
        raise TaskError(f"task '{task.id}' is not a BFCL task; use checker=exact, or source=bfcl")
    category = task.checks["category"]
    if task.checks["possible"] is None:
        is_right = bool(calls) == (category == "live_relevance")
        return Verdict(is_right, None if is_right else f"{len(calls)} calls")
    module = ast_checker_module()
    output = [{call.name: dict(call.arguments)} for call in calls]
    functions, possible = copy.deepcopy(task.checks["functions"]), copy.deepcopy(task.checks["possible"])
    try:
        found = module.ast_checker(functions, output, possible, language(category), category, "any")
    except Exception as error:  # boundary: the benchmark's checker indexes into whatever a model wrote
        return Verdict(False, f"the checker failed: {type(error).__name__}: {shortened(str(error))}")
    return Verdict(bool(found["valid"]), None if found["valid"] else f"{found['error_type']}: {found['error']}"[:300])


def label_errors(category: str) -> list[tuple[str, str]]:
    """The tasks of a category whose own ground truth BFCL's checker refuses, with the checker's reason."""
    found: list[tuple[str, str]] = []
    for task in single_turn_tasks(category):
        if isinstance(task, Rejection):
            found.append((task.task_id, task.reason))
        elif task.answers and not (verdict := check_calls(task.answers[0], task)).correct:
            found.append((task.id, verdict.problem or ""))
    return found
