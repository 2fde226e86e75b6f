"""Few-shot versions of tool-calling tasks: solved queries of other samples that use the same tools."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from firesteel.environments.tool_calls.checkers import bfcl
from firesteel.environments.tool_calls.tasks import Demonstration, ToolTask, tool_task
from firesteel.errors import ConfigError, MissingDependency
from firesteel.plugin_options import require, require_whole
from firesteel.plugins import load
from firesteel.types import Task

Reader = Callable[[Task], ToolTask]
"""Turns a task into the `ToolTask` that it is about."""

TOOLS_OF = ("called", "listed")
EXAMPLE_OPTIONS = ("per_tool", "max_examples", "tools_of", "read")
"""The options of `ExampleIndex`."""
MOST_TRIED = 50
"""How many samples of a tool are looked at for one draw; popular tools have thousands."""


def guided(task: Task, how: str, *, demonstrations: Sequence[Demonstration] = (), hint: str = "") -> Task:
    """The same task with help in its prompt. `how` is kept in `data["guided"]`; id and group stay the raw task's."""
    data: dict[str, Any] = {**task.data, "guided": how}
    if hint:
        data["hint"] = hint
    shown = (*task.demonstrations, *(entry.to_dict() for entry in demonstrations))
    return replace(task, data=data, demonstrations=shown)


def is_guided(task: Task) -> bool:
    """Whether `guided` made the task."""
    return bool(task.data.get("guided"))


def reader_of(read: str | Reader, what: str, otherwise: str = "") -> Reader:
    """The reader, or that of "package.module:function"; a task that it cannot read is refused with what to set.

    `what` names the part that reads in messages, `otherwise` what else can be done.

    Raises:
        ConfigError: there is no such function; from the reader: the task is not one that it reads.
    """
    require(what, "read", read, isinstance(read, str) or callable(read), "a function or 'package.module:function'")
    reader: Reader = load(read, {}, kind="reader") if isinstance(read, str) else read
    name = read if isinstance(read, str) else getattr(read, "__name__", repr(read))
    require(what, "read", read, callable(reader), "a function or 'package.module:function'")

    def read_task(task: Task) -> ToolTask:
        try:
            found = reader(task)
            if not isinstance(found, ToolTask):
                raise TypeError(f"it gave {type(found).__name__} for a ToolTask")
        except MissingDependency:
            raise
        except Exception as error:  # boundary: a reader may be anyone's, and tasks of another environment hold anything
            raise ConfigError(
                f"{what}: task '{task.id}' is not one that {name} reads ({type(error).__name__}: {error}); set the "
                "option read to a function that makes a ToolTask of it, such as "
                f"firesteel.environments.bfcl.multi_turn:first_turn for BFCL's multi-turn tasks{otherwise}"
            ) from error
        return found

    return read_task


def rules_of(own: ToolTask) -> list[ToolTask]:
    """A task under BFCL's rules once for each call that it wants, with that call alone; none under other rules."""
    if not {"category", "functions", "possible"} <= own.checks.keys():
        return []
    possible = own.checks["possible"]
    if possible is None:
        return [own]
    return [replace(own, checks={**own.checks, "possible": [entry]}) for entry in possible]


def gives_away(sample: ToolTask, rules: Sequence[ToolTask]) -> bool:
    """Whether a call of the answer that a sample is shown with is right by one of `rules_of` another task."""
    return any(bfcl([call], rule).correct for rule in rules for call in sample.reference)


class ExampleIndex:
    """Which samples of a data set use which tools; of the samples themselves it keeps only their places.

    `digest` is a hash of all their ids.

    `tools_of` says which of a sample's tools examples are taken for: those that its answer "called" (Section 3.1 of
    ToolExpander: samples "that use this tool"), which tells which tools to call, or all that it "listed".

    `read` turns a task into the `ToolTask` that it is about: a function, or "package.module:function".

    Differs from the paper: how many examples a tool gets is not stated there; `per_tool` says it.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        seed: int,
        per_tool: int = 2,
        max_examples: int = 4,
        tools_of: str = "called",
        read: str | Reader = tool_task,
    ) -> None:
        what = "few-shot examples"
        require(what, "tools_of", tools_of, tools_of in TOOLS_OF, f"one of {', '.join(TOOLS_OF)}")
        require_whole(what, "per_tool", per_tool, 1)
        require_whole(what, "max_examples", max_examples, 1)
        self._tasks = tasks
        self._seed = seed
        self._per_tool = per_tool
        self._max_examples = max_examples
        self._tools_of = tools_of
        self._read = reader_of(read, what)
        self._users: dict[str, array[int]] = {}
        ids = hashlib.blake2b(digest_size=16)
        for place, task in enumerate(tasks):
            ids.update(f"{task.id}\n".encode())
            for name in self._read(task).called_tools():
                self._users.setdefault(name, array("L")).append(place)
        self.digest = ids.hexdigest()

    def draw(self, task: Task, attempt: int) -> tuple[int, ...]:
        """The places of a seeded draw of examples for a task; another `attempt` gives another draw, if there is one.

        Never the sample itself, another with the same query, or one whose answer holds a call of its answer, or one
        that BFCL's rules accept for it. Nor a sample that does not end with the user: what it answers would not be
        shown. Empty where no other sample uses a tool of it.
        """
        own = self._read(task)
        rules = rules_of(own)
        secret = {call.key() for answer in own.answers for call in answer}
        rng = random.Random(f"{self._seed}/examples/{task.id}/{attempt}")
        names = own.called_tools() if self._tools_of == "called" else tuple(tool["name"] for tool in own.tools)
        chosen: list[int] = []
        for name in dict.fromkeys(names):
            users = self._users.get(name, array("L"))
            found = 0
            for offset in rng.sample(range(len(users)), min(len(users), MOST_TRIED)):
                if found == self._per_tool or len(chosen) == self._max_examples:
                    break
                place = users[offset]
                if place not in chosen and self._may_show(self._tasks[place], own, secret, rules):
                    chosen.append(place)
                    found += 1
        return tuple(chosen)

    def _may_show(self, other: Task, own: ToolTask, secret: set[str], rules: Sequence[ToolTask]) -> bool:
        sample = self._read(other)
        calls = {call.key() for answer in sample.answers for call in answer}
        is_other = sample.id != own.id and sample.messages != own.messages and not calls & secret
        return is_other and sample.messages[-1]["role"] == "user" and not gives_away(sample, rules)

    def demonstrations(self, places: Sequence[int]) -> list[Demonstration]:
        """What a prompt shows for some places."""
        samples = [(self._tasks[place].id, self._read(self._tasks[place])) for place in places]
        return [Demonstration(sample.query, sample.answers[0], name) for name, sample in samples]

    def guide(self, task: Task, places: Sequence[int]) -> Task:
        """The few-shot version of a task."""
        return guided(task, "few_shot", demonstrations=self.demonstrations(places))
