"""BFCL v4's multi-turn tasks: what a record holds, and its ground truth as calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from firesteel.annotate import Rejection
from firesteel.environments.bfcl.package import entries, function_docs
from firesteel.environments.tool_calls.parsers import read_python
from firesteel.environments.tool_calls.schema import tool_of
from firesteel.environments.tool_calls.tasks import Call, ToolTask, shortened
from firesteel.errors import TaskError
from firesteel.types import Task

_KEPT = ("question", "initial_config", "involved_classes", "missed_function", "ground_truth")


def multi_turn_tasks(category: str) -> Iterator[Task | Rejection]:
    """The tasks of a multi-turn category; a record whose ground truth cannot be read is rejected by its id."""
    for row in entries(category):
        try:
            ground_truth(row["ground_truth"], row["involved_classes"])
            if len(row["question"]) != len(row["ground_truth"]):
                raise TaskError(f"{len(row['question'])} turns and {len(row['ground_truth'])} ground truths")
            data = {"entry": {key: row[key] for key in _KEPT if key in row}}
            yield Task(row["id"], kind=category, split=category, data=data)
        except (TaskError, KeyError, TypeError) as error:
            yield Rejection(str(row.get("id")), f"{type(error).__name__}: {shortened(str(error), 200)}")


def first_turn(task: Task) -> ToolTask:
    """What the first turn that wants calls is about: its query, the tools that it calls, and its ground truth.

    A task none of whose turns wants a call has no tools and the empty answer. For few-shot examples
    (`fewshot.ExampleIndex`).
    """
    entry = task.data["entry"]
    turns = ground_truth(entry["ground_truth"], entry["involved_classes"])
    turn = next((number for number, calls in enumerate(turns) if calls), 0)
    names = {call.name for call in turns[turn]}
    known = [tool_of(doc) for name in entry["involved_classes"] for doc in function_docs(name)]
    tools = tuple(tool for tool in known if tool["name"] in names)
    message = {"role": "user", "content": user_text(entry["question"][turn])}
    return ToolTask(task.id, (message,), tools, (tuple(turns[turn]),), task.kind, task.split)


def offered_tools(entry: Mapping[str, Any], turn: int) -> list[dict[str, Any]]:
    """The tools on offer from the start, or those that a later turn adds (the category "miss_func" holds some back)."""
    documented = [tool_of(doc) for name in entry["involved_classes"] for doc in function_docs(name)]
    held_back = {int(number): names for number, names in entry.get("missed_function", {}).items()}
    if turn:
        return [tool for tool in documented if tool["name"] in held_back.get(turn, ())]
    late = {name for names in held_back.values() for name in names}
    return [tool for tool in documented if tool["name"] not in late]


def ground_truth(turns: Sequence[Sequence[str]], classes: Sequence[str]) -> list[list[Call]]:
    """The calls of every turn; arguments without a name get those of the documentation, in order.

    Raises:
        TaskError: a call cannot be read.
    """
    tools = [tool_of(doc) for name in classes for doc in function_docs(name)]
    result: list[list[Call]] = []
    for texts in turns:
        calls: list[Call] = []
        for text in texts:
            parsed = read_python(f"[{text}]", tools)
            if parsed.problem is not None:
                raise TaskError(f"the ground truth {shortened(text)} cannot be read: {parsed.problem}")
            calls += parsed.calls
        result.append(calls)
    return result


def user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the user says in a turn."""
    return "\n".join(str(message["content"]) for message in messages)


def shown_result(call: Call, result: str) -> str:
    """A call's result as the model sees it, on one line."""
    return json.dumps({"name": call.name, "result": result}, ensure_ascii=False)
