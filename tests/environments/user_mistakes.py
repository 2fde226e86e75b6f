"""Environments with the mistakes that users make; a class each, importable by the process of a check."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firesteel.environments.base import Environment
from firesteel.types import Observation, StepResult, Task


class Fine(Environment):
    """Counts steps."""

    fork_rung = "native"

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(f"{split}-{number}", split=split) for number in range(count or 3)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.goal, self.count = "count", 0
        return self.show()

    def show(self) -> Observation:
        return Observation(f"at {self.count}", ("go",))

    def step(self, action: str) -> StepResult:
        self.count += 1
        return StepResult(self.show())


def hang(*arguments: Any, **options: Any) -> Any:
    """Native code that neither ends nor lets any other Python code run."""
    if os.environ.get("MARK"):
        Path(os.environ["MARK"]).write_text(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 64 + "b")


def leave(*arguments: Any, **options: Any) -> Any:
    sys.exit(0)


def fail(*arguments: Any, **options: Any) -> Any:
    return json.loads("{")


def mistaken(name: str, **members: Any) -> type[Fine]:
    return type(name, (Fine,), {"__module__": __name__, **members})


def tasks_that(do: Any) -> dict[str, Any]:
    return {"tasks": classmethod(lambda cls, *arguments, **options: do(*arguments, **options))}


HangInit = mistaken("HangInit", __init__=hang)
HangTasks = mistaken("HangTasks", **tasks_that(hang))
HangReset = mistaken("HangReset", reset=hang)
HangStep = mistaken("HangStep", step=hang)
HangFork = mistaken("HangFork", fork=hang)
DieStep = mistaken("DieStep", step=lambda self, action: os._exit(3))

LeaveInit = mistaken("LeaveInit", __init__=leave)
LeaveTasks = mistaken("LeaveTasks", **tasks_that(leave))
LeaveReset = mistaken("LeaveReset", reset=leave)
LeaveStep = mistaken("LeaveStep", step=leave)
LeaveFork = mistaken("LeaveFork", fork=leave)
LeaveExpert = mistaken("LeaveExpert", expert=leave)
LeaveClose = mistaken("LeaveClose", close=leave)

FailInit = mistaken("FailInit", __init__=fail)
FailTasks = mistaken("FailTasks", **tasks_that(fail))
FailStep = mistaken("FailStep", step=fail)

NoTasks = mistaken("NoTasks", **tasks_that(lambda *arguments, **options: None))
DrawnTasks = mistaken("DrawnTasks", **tasks_that(lambda *arguments, **options: (task for task in [Task("one")])))
NamedTasks = mistaken("NamedTasks", **tasks_that(lambda *arguments, **options: {"one": Task("one")}))
PlainTasks = mistaken("PlainTasks", tasks=classmethod(lambda cls, split: [Task("one")]))
NoSnapshot = mistaken("NoSnapshot", fork_rung="snapshot")
Unlisted = mistaken("Unlisted", show=lambda self: Observation(f"at {self.count}"))
TupleStep = mistaken("TupleStep", step=lambda self, action: ("at 1", 0.0, False))
TextReset = mistaken("TextReset", reset=lambda self, task, seed: "at 0")


class Half(Environment):
    """Lacks two methods."""

    def reset(self, task: Task, *, seed: int) -> Observation:
        return Observation("")


class NeedsSize(Fine):
    """Has an option without a default."""

    def __init__(self, size: int) -> None:
        self.size = size

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(f"size-{options['size']}", split=split)]


class FailResetAndClose(Fine):
    """Cannot be closed after a reset that failed."""

    has_begun = False

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.has_begun = True
        return fail()

    def close(self) -> None:
        if self.has_begun:
            leave()


class Chatty(Fine):
    """Prints."""

    def step(self, action: str) -> StepResult:
        print("a word of the environment")
        return super().step(action)


class ToolsWithoutSnapshot:
    """Tools of a class that promises snapshots."""

    fork_rung = "snapshot"

    def press(self, number: int) -> str:
        """Presses a button."""
        return str(number)


class ToolsWithoutTasks(ToolsWithoutSnapshot):
    fork_rung = "replay"

    @staticmethod
    def tasks(split: str) -> None:
        """Forgets to return them."""
