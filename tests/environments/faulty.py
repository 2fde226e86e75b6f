"""An environment that misbehaves on command, importable by the workers of a pool."""

from __future__ import annotations

import os
import random
import re
import signal
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from firesteel.environments.base import Environment
from firesteel.errors import MissingDependency
from firesteel.types import ExpertStep, Observation, StepResult, Task


class Faulty(Environment):
    """Shows the words played so far; a word that is the name of a fault does it. `mark` is a file for faults that
    happen once only: "die-once", and with `slow_start_s` a start that is slow only while the file is there."""

    fork_rung = "native"

    def __init__(self, *, mark: str = "", slow_start_s: float = 0.0, fails: str = "") -> None:
        self.mark = mark
        if slow_start_s and (not mark or Path(mark).exists()):
            time.sleep(slow_start_s)
        if fails == "missing":
            raise MissingDependency("the game's engine is not installed; pip install engine")
        if fails:
            raise OSError(fails)

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(f"{split}-{number}", split=split, seed=seed) for number in range(3 if count is None else count)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.goal = f"talk about {task.id}"
        self.words: list[str] = []
        return self.show()

    def show(self) -> Observation:
        return Observation(f"you said: {' '.join(self.words)}", ("hello", "there"))

    def step(self, action: str) -> StepResult:
        self.words.append(action)
        fault = getattr(self, f"do_{action.replace('-', '_')}", None)
        if fault is not None:
            fault()
        is_over = action == "win"
        info = {"success": is_over, "what": (lambda: 0) if action == "unpicklable" else None}
        return StepResult("text" if action == "text" else self.show(), float(is_over), is_over, info=info)  # type: ignore[arg-type]

    def expert(self) -> ExpertStep | None:
        return ExpertStep("win", False, "say the word")

    def do_raise(self) -> None:
        raise ValueError("no such lever")

    def do_exit(self) -> None:
        raise SystemExit(4)

    def do_die(self) -> None:
        os._exit(3)

    def do_kill(self) -> None:
        print("a last word", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def do_die_once(self) -> None:
        if Path(self.mark).exists():
            Path(self.mark).unlink()
            os._exit(3)

    def do_hang(self) -> None:
        """Native code that neither ends nor lets any other Python code run."""
        re.match(r"(a+)+$", "a" * 64 + "b")

    def do_print(self) -> None:
        for _ in range(20):
            print("noise " * 2000, flush=True)

    def do_garbage(self) -> None:
        """Writes to every socket of the process."""
        for descriptor in range(3, 64):
            try:
                if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.write(descriptor, b"segmentation fault, probably\n")
            except OSError:
                continue

    def close(self) -> None:
        if "close-raise" in getattr(self, "words", ()):
            raise OSError("stuck")


class Stuck(Faulty):
    """Cannot fork, and so cannot be restored."""

    fork_rung = "none"


class Liar(Faulty):
    """Shows which process it runs in."""

    fork_rung = "replay"

    def show(self) -> Observation:
        return Observation(f"process {os.getpid()}")


class Global(Faulty):
    """Draws from the global random generator, and shows a set in the order in which Python keeps it."""

    def show(self) -> Observation:
        return Observation(f"{random.random()} {list({'anna', 'bert', 'carl', 'dora', 'emil'})}")
