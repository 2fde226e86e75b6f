"""The one contract of all environments: reset, step, fork, close."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from firesteel.errors import CannotFork
from firesteel.types import ExpertStep, Observation, StepResult, Task

FORK_RUNGS = ("native", "snapshot", "replay", "none")


class Environment(ABC):
    """A text environment, written as plain synchronous code.

    After `reset`, `goal` is the one-sentence instruction of the task. `fork_rung` says how `fork`
    works: "native" (copy), "snapshot" (save and restore), "replay" (a fresh environment is reset with the
    same task and seed and the same actions are played again, every observation checked), or "none".
    """

    fork_rung: ClassVar[str] = "none"
    goal: str = ""

    @classmethod
    @abstractmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The tasks of a split, in a fixed order; an unknown split raises `TaskError` naming the known ones."""

    @abstractmethod
    def reset(self, task: Task, *, seed: int) -> Observation:
        """Starts an episode."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Plays one action. An action that is not understood is a normal step, not an error."""

    def fork(self) -> Environment:
        """An independent environment in the same state. Both can be stepped and closed on their own."""
        raise CannotFork(
            f"{type(self).__name__} cannot fork (fork_rung is 'none'); implement fork(), "
            "or use the criterion 'chain', which never branches"
        )

    def expert(self) -> ExpertStep | None:
        """The expert's next step from the current state, or None where there is no expert or nothing left to do."""
        return None

    def close(self) -> None:  # noqa: B027 (most environments hold nothing)
        """Frees what the environment holds. Calling it twice is fine."""


def observation_hash(observation: Observation) -> str:
    """A short stable hash of what was seen; replays compare it step by step."""
    text = (
        observation.text if observation.admissible is None else "\0".join((observation.text, *observation.admissible))
    )
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
