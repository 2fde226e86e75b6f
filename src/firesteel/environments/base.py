"""The one contract of all environments: reset, step, fork, close."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from firesteel.environments.fork import Forked, History, fork_by_rung, observation_hash, record
from firesteel.errors import CannotFork
from firesteel.types import ExpertStep, Observation, StepResult, Task

if TYPE_CHECKING:
    from firesteel.metrics import EpisodeRecord

__all__ = ["FORK_RUNGS", "Environment", "observation_hash"]

FORK_RUNGS = ("native", "snapshot", "replay", "none")


class Environment(ABC):
    """A text environment, written as plain synchronous code.

    After `reset`, `goal` is the one-sentence instruction of the task. `fork_rung` says how `fork` works, and is
    often all that a class has to say about it:

    - "native": the whole environment is copied (`copy.deepcopy`, or a `fork` of its own);
    - "snapshot": a new environment takes over what `snapshot` returns, by `restore`;
    - "replay": a new environment is reset with the same task and seed and plays the same actions; every
      observation is compared with what this one saw. `reset` and `step` of such a class are recorded for it;
    - "none": it cannot.

    `example_actions` are what `check_environment` plays where observations list no actions and there is no expert.

    `origin` says how a fork was made and what that took; None for an environment that its class made.
    """

    fork_rung: ClassVar[str] = "none"
    example_actions: ClassVar[Sequence[str]] = ()
    is_self_contained: ClassVar[bool] = True
    """Whether it lives in this process alone: no other process, connection or thread, which a copy would share."""
    goal: str = ""
    origin: Forked | None = None
    _made_with: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    _recorded: History | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.fork_rung == "replay" and cls.fork is Environment.fork:
            record(cls)

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Keeps what the constructor is called with, for `fresh`."""
        environment = super().__new__(cls)
        environment._made_with = (arguments, options)
        return environment

    @classmethod
    @abstractmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The tasks of a split, in a fixed order; an unknown split raises `TaskError` naming the known ones."""

    @classmethod
    def figures(cls, records: Sequence[EpisodeRecord], **options: Any) -> dict[str, float | None]:
        """What reports of played episodes say beside success: figures by name, None for what cannot be said.

        `options` are the constructor's. The names stand in `firesteel evaluate` and, with `eval/` before them, in
        `metrics.jsonl`. Most environments have none.
        """
        del records, options
        return {}

    @abstractmethod
    def reset(self, task: Task, *, seed: int) -> Observation:
        """Starts an episode."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Plays one action. An action that is not understood is a normal step, not an error."""

    def fork(self) -> Environment:
        """An independent environment in the same state. Both can be stepped and closed on their own.

        Raises:
            ForkDiverged: a replay saw something else than this environment did.
            CannotFork: `fork_rung` is "none", or what it needs is missing.
        """
        return fork_by_rung(self)

    def snapshot(self) -> Any:
        """The state as a value that later steps do not change; for `fork_rung` "snapshot"."""
        raise CannotFork(f"{type(self).__name__} has no snapshot(); implement snapshot() and restore(state)")

    def restore(self, state: Any) -> None:
        """Takes over a state that `snapshot` of another environment with the same options returned."""
        raise CannotFork(f"{type(self).__name__} has no restore(state); implement snapshot() and restore(state)")

    def fresh(self) -> Environment:
        """A new environment of the same class with the same options, not yet reset."""
        arguments, options = self._made_with
        return type(self)(*arguments, **options)

    def expect(self, call: str, *arguments: Any) -> None:  # noqa: B027 (only environments elsewhere gain by it)
        """Is told the call that comes next, so that an environment in another process can begin with it."""

    def expert(self) -> ExpertStep | None:
        """The expert's next step from the current state, or None where there is no expert or nothing left to do."""
        return None

    def close(self) -> None:  # noqa: B027 (most environments hold nothing)
        """Frees what the environment holds. Calling it twice is fine."""
