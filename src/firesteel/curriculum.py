"""Which tasks a step trains on. A curriculum remembers what it needs in `state_dict`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from firesteel.errors import TaskError
from firesteel.plugin_options import make_part
from firesteel.plugins import load
from firesteel.tree import Tree
from firesteel.types import Task


class Curriculum(Protocol):
    """Chooses tasks and learns from what became of them.

    What it may also have: `prepare(step, play) -> metrics`, called before `sample`, which may play tasks to see how
    hard they are (`probing.Play`, at `temperature`); `probe_tokens(step)`, what that is known to cost, without which
    `token_budget` ends the run before it; `lr_factor(step)`, which the learning rate is multiplied by;
    `difficulty_of(task)`, a label that rewards are logged by; `ledger`, a `hard_sampling.Ledger` or None.
    """

    def sample(self, count: int) -> list[Task]: ...

    def observe(self, trees: Sequence[Tree]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Uniform:
    """Every task once per pass, in a new seeded order each pass.

    A step never holds a task twice unless it asks for more tasks than there are: where it crosses into a new pass, the
    tasks that it holds already come last in that pass.
    """

    def __init__(self, tasks: Sequence[Task], *, seed: int) -> None:
        if not tasks:
            raise TaskError("the training split has no tasks; check environment.split, num_tasks and options")
        self.tasks = tasks
        self.seed = seed
        self._passes = 0
        self._left: list[int] = []

    def sample(self, count: int) -> list[Task]:
        chosen: list[int] = []
        while len(chosen) < count:
            if not self._left:
                self._left = self._next_pass(Counter(chosen))
            wanted = count - len(chosen)
            chosen += self._left[:wanted]
            self._left = self._left[wanted:]
        return [self.tasks[index] for index in chosen]

    def observe(self, trees: Sequence[Tree]) -> None:
        del trees

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self._passes, "left": list(self._left)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._passes, self._left = int(state["passes"]), list(state["left"])

    def _next_pass(self, held: Counter[int]) -> list[int]:
        order = list(range(len(self.tasks)))
        random.Random(f"{self.seed}/{self._passes}").shuffle(order)
        self._passes += 1
        return sorted(order, key=held.__getitem__)


CURRICULA: dict[str, Any] = {
    "uniform": Uniform,
    "hard_sampling": "firesteel.hard_sampling:HardSampling",
}


def make_curriculum(name: str, tasks: Sequence[Task], *, seed: int, options: dict[str, Any]) -> Curriculum:
    """Builds a curriculum by its name in `CURRICULA` or by "package.module:Class".

    Raises:
        ConfigError: the name or an option is not known, or an option has no sense.
    """
    cls = load(name, CURRICULA, kind="curriculum")
    curriculum: Curriculum = make_part(f"curriculum '{name}'", cls, tasks, options, seed=seed)
    return curriculum
