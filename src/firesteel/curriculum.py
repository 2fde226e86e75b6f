"""Which tasks a step trains on. A curriculum remembers what it needs in `state_dict`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from firesteel.errors import TaskError
from firesteel.plugins import load
from firesteel.tree import Tree
from firesteel.types import Task


class Curriculum(Protocol):
    """Chooses tasks and learns from what became of them."""

    def sample(self, count: int) -> list[Task]: ...

    def observe(self, trees: Sequence[Tree]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Uniform:
    """Every task once per pass, in a new seeded order each pass; a step never holds a task twice unless it must."""

    def __init__(self, tasks: Sequence[Task], *, seed: int) -> None:
        if not tasks:
            raise TaskError("the training split has no tasks; check environment.split, num_tasks and options")
        self.tasks = list(tasks)
        self.seed = seed
        self.drawn = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def sample(self, count: int) -> list[Task]:
        chosen = [self._at(self.drawn + offset) for offset in range(count)]
        self.drawn += count
        return chosen

    def observe(self, trees: Sequence[Tree]) -> None:
        del trees

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = int(state["drawn"])

    def _at(self, position: int) -> Task:
        turn, place = divmod(position, len(self.tasks))
        if self._order[0] != turn:
            order = list(range(len(self.tasks)))
            random.Random(f"{self.seed}/{turn}").shuffle(order)
            self._order = (turn, order)
        return self.tasks[self._order[1][place]]


CURRICULA: dict[str, Any] = {"uniform": Uniform}


def make_curriculum(name: str, tasks: Sequence[Task], *, seed: int, options: dict[str, Any]) -> Curriculum:
    """Builds a curriculum by its name in `CURRICULA` or by "package.module:Class"."""
    curriculum: Curriculum = load(name, CURRICULA, kind="curriculum")(tasks, seed=seed, **options)
    return curriculum
