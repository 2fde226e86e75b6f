"""A tool-calling task: a conversation, tools with JSON schemas, and the calls that are accepted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from firesteel.errors import TaskError
from firesteel.types import Task

LONGEST_REASON = 300
ROLES = ("system", "user", "assistant", "tool")
"""Of messages, as chat templates know them."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: a tool's name and its arguments, which are JSON values."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """`{"name", "arguments"}`; `call_of` gives back an equal call."""
        return {"name": self.name, "arguments": dict(self.arguments)}

    def key(self) -> str:
        """Text that two calls share exactly when they are equal (`canonical`)."""
        return canonical([self.name, dict(self.arguments)])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether calls are right, and if not, why."""

    correct: bool
    problem: str | None = None


def calls_made(message: Mapping[str, Any]) -> tuple[Call, ...]:
    """The calls that a message of the assistant made; none for any other."""
    return tuple(map(call_of, message.get("calls", ())))


def call_of(record: Any) -> Call:
    """Reads `{"name": text, "arguments": object}`; anything else raises `TaskError`."""
    if not isinstance(record, Mapping) or not isinstance(record.get("name"), str) or not record["name"]:
        raise TaskError(f"a call must be an object with a name and arguments, got {shortened(record)}")
    arguments = record.get("arguments", {})
    if not isinstance(arguments, Mapping):
        raise TaskError(f"the arguments of '{record['name']}' must be an object, got {shortened(arguments)}")
    return Call(record["name"], dict(arguments))


def canonical(value: Any) -> str:
    """JSON text that two values share exactly when they are equal and of the same types.

    The order of keys does not count, the order of lists does. True is not 1 and "1" is not 1, but 2.0 is 2: JSON has
    one kind of number.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def same_calls(left: Iterable[Call], right: Iterable[Call]) -> bool:
    """Whether two sets of calls are equal, whatever their order; a call made twice counts twice."""
    return sorted(call.key() for call in left) == sorted(call.key() for call in right)


@dataclass(frozen=True, slots=True)
class ToolTask:
    """What one tool-calling episode is about.

    `messages` are `{"role", "content"}`, oldest first, with a role of `ROLES`; an assistant's may also hold the "calls"
    that it made, as `Call.to_dict` writes them; messages of the role "tool" after it say what came of them. `tools` are
    `{"name", "description", "parameters"}` with a JSON schema of type "object"; `answers` are alternatives, each of
    them a set of calls (an empty one: no call is right). `checks` is what another checker than `exact` needs, such as
    BFCL's possible answers.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    answers: tuple[tuple[Call, ...], ...]
    kind: str = ""
    split: str = ""
    checks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """What is to be done now: the last message's text, or "Go on." where it is not the user's."""
        return str(self.messages[-1]["content"]) if self._ends_with_user else "Go on."

    @property
    def past(self) -> tuple[Mapping[str, Any], ...]:
        """The messages before the query."""
        return self.messages[:-1] if self._ends_with_user else self.messages

    @property
    def _ends_with_user(self) -> bool:
        return self.messages[-1]["role"] == "user"

    @property
    def reference(self) -> tuple[Call, ...]:
        """The calls of the first accepted answer; none where no call is right or no answer is known."""
        return self.answers[0] if self.answers else ()

    def called_tools(self) -> tuple[str, ...]:
        """The names that the first accepted answer calls, each once, in its order."""
        return tuple(dict.fromkeys(call.name for call in self.reference))

    def to_task(self) -> Task:
        """The record that environments are reset with."""
        data = {
            "messages": [dict(message) for message in self.messages],
            "tools": [dict(tool) for tool in self.tools],
            "answers": [[call.to_dict() for call in answer] for answer in self.answers],
            "checks": dict(self.checks),
        }
        return Task(self.id, kind=self.kind, split=self.split, data=data)


def tool_task(task: Task) -> ToolTask:
    """The inverse of `ToolTask.to_task`; another environment's task raises `TaskError`."""
    try:
        return ToolTask(
            id=task.id,
            messages=tuple(task.data["messages"]),
            tools=tuple(task.data["tools"]),
            answers=tuple(tuple(call_of(call) for call in answer) for answer in task.data["answers"]),
            kind=task.kind,
            split=task.split,
            checks=task.data.get("checks", {}),
        )
    except KeyError as error:
        raise TaskError(
            f"task '{task.id}' is not a tool-calling task (no {error}); make tasks by ToolCalls.tasks"
        ) from error


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A solved query that a prompt shows. `source` is the id of the sample that it comes from."""

    query: str
    calls: tuple[Call, ...]
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """What `Task.demonstrations` holds; `demonstration_of` gives back an equal one."""
        return {"query": self.query, "calls": [call.to_dict() for call in self.calls], "source": self.source}


def demonstration_of(record: Mapping[str, Any]) -> Demonstration:
    """Reads a record of `Demonstration.to_dict`."""
    return Demonstration(record["query"], tuple(map(call_of, record["calls"])), record.get("source", ""))


def demonstrations_of(task: Task) -> tuple[Demonstration, ...]:
    """The demonstrations that a task's prompt shows."""
    return tuple(map(demonstration_of, task.demonstrations))


def shortened(value: Any, limit: int = 80) -> str:
    """The `repr` of a value, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def joined(reasons: Sequence[str]) -> str:
    """Several reasons as one line of at most `LONGEST_REASON` characters."""
    text = "; ".join(reasons)
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."
