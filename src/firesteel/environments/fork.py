"""The fork ladder: native copy, snapshot and restore, checked replay, or a refusal."""

from __future__ import annotations

import copy
import functools
import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from firesteel.errors import CannotFork, EnvironmentFailed, ForkDiverged
from firesteel.types import Observation, StepResult, Task

if TYPE_CHECKING:
    from firesteel.environments.base import Environment


@dataclass(frozen=True, slots=True)
class Forked:
    """How a fork was made: by which rung, in how many seconds of wall time, with how many steps played again."""

    rung: str
    seconds: float = 0.0
    replayed_steps: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Forked:
        """Itself: a copied environment must not look as if it had been told anew how it was made."""
        return self


@dataclass(slots=True)
class History:
    """What replays an episode: its start, its actions, and what was seen.

    `observations[0]` is what reset showed, `observations[i]` what `actions[i - 1]` led to.
    """

    task: Task
    seed: int
    actions: list[str] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)

    def add(self, action: str, observation: Observation) -> None:
        """One more step."""
        self.actions.append(action)
        self.observations.append(observation)

    def cut(self, num_steps: int) -> None:
        """Forgets all steps after the first `num_steps`."""
        del self.actions[num_steps:]
        del self.observations[num_steps + 1 :]

    def copy(self) -> History:
        """A history that goes its own way from here."""
        return replace(self, actions=list(self.actions), observations=list(self.observations))

    def replay_in(self, environment: Environment, name: str) -> None:
        """Resets `environment` to this episode's start and plays the same actions.

        Raises:
            ForkDiverged: an observation differs; the message names `name`, the step, what was expected and what came.
        """
        self.compare(0, environment.reset(self.task, seed=self.seed), name)
        for number, action in enumerate(self.actions, start=1):
            result = environment.step(action)
            self.compare(number, result.observation, name)
            if (result.terminated or result.truncated) and number < len(self.actions):
                raise ForkDiverged(
                    f"{name}: the replay ended at step {number} of {len(self.actions)} ({action!r}) and the episode "
                    "went on there"
                )

    def compare(self, number: int, got: Observation, name: str) -> None:
        """Raises `ForkDiverged` where step `number` (0: the reset) showed something else than it did at first."""
        require_same(self.observations[number], got, number, self.actions, name)


def require_same(expected: Observation, got: Observation, number: int, actions: list[str], name: str) -> None:
    """Raises `ForkDiverged` where the hashes of two observations differ, with the first line that does."""
    wanted, came = observation_hash(expected), observation_hash(got)
    if wanted == came:
        return
    lines = [[*observation.text.split("\n"), *(observation.admissible or ())] for observation in (expected, got)]
    first = next((pair for pair in zip_longest(*lines, fillvalue="") if pair[0] != pair[1]), ("", ""))
    action = repr(actions[number - 1]) if number else "reset"
    raise ForkDiverged(
        f"{name}: the replay differs at step {number} of {len(actions)} ({action}): wanted "
        f"{wanted} {first[0]!r}, got {came} {first[1]!r}"
    )


def observation_hash(observation: Observation) -> str:
    """A short stable hash of what was seen; replays compare it step by step."""
    text = (
        observation.text if observation.admissible is None else "\0".join((observation.text, *observation.admissible))
    )
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def fork_by_rung(parent: Environment) -> Environment:
    """A fork made by the rung that `parent.fork_rung` names; see `Environment`.

    Raises:
        ForkDiverged: a replay saw something else than the parent did.
        CannotFork: the rung is "none", or the parent lacks what its rung needs.
    """
    name = type(parent).__name__
    make = _RUNGS.get(parent.fork_rung)
    if make is None:
        raise CannotFork(
            f"{name} cannot fork (fork_rung is '{parent.fork_rung}'); set fork_rung to 'native', 'snapshot' or "
            "'replay', implement fork(), or use the criterion 'chain', which never branches"
        )
    child = make(parent, name)
    if child.origin is None or child.origin is parent.origin:
        child.origin = Forked(parent.fork_rung)
    return child


def timed_fork(parent: Environment) -> Environment:
    """`parent.fork()`, with its rung and its wall time in the fork's `origin`."""
    begin = time.perf_counter()
    child = parent.fork()
    seconds = time.perf_counter() - begin
    is_told = child.origin is not None and child.origin is not parent.origin
    origin = child.origin if is_told and child.origin is not None else Forked(parent.fork_rung)
    child.origin = origin if origin.seconds else replace(origin, seconds=seconds)
    return child


def _copied(parent: Environment, name: str) -> Environment:
    try:
        return copy.deepcopy(parent)
    except (TypeError, copy.Error) as error:
        raise CannotFork(
            f"{name} cannot be copied ({error}), which fork_rung 'native' without a fork() of its own does; implement "
            "fork(), or set fork_rung to 'replay'"
        ) from error


def _restored(parent: Environment, name: str) -> Environment:
    with ExitStack() as stack:
        child = parent.fresh()
        stack.callback(child.close)
        child.restore(parent.snapshot())
        child.goal = parent.goal
        stack.pop_all()
    return child


def _replayed(parent: Environment, name: str) -> Environment:
    history = parent._recorded
    if history is None:
        raise CannotFork(f"{name} cannot fork before its first reset; call reset(task, seed=...) first")
    with ExitStack() as stack:
        child = parent.fresh()
        stack.callback(child.close)
        history.replay_in(child, f"{name} task '{history.task.id}'")
        stack.pop_all()
    child.origin = Forked("replay", replayed_steps=len(history.actions))
    return child


_RUNGS: dict[str, Callable[[Environment, str], Environment]] = {
    "native": _copied,
    "snapshot": _restored,
    "replay": _replayed,
}


def record(cls: type[Environment]) -> None:
    """Makes the `reset` and `step` of a class keep a `History` of the episode.

    Where one calls that of a base class, which may be recorded too, the outermost decides: that is what was seen.
    """
    if not hasattr(cls.reset, "_is_recorded"):
        cls.reset = _recorded_reset(cls.reset)  # type: ignore[method-assign]
    if not hasattr(cls.step, "_is_recorded"):
        cls.step = _recorded_step(cls.step)  # type: ignore[method-assign]


def _recorded_reset(reset: Callable[..., Observation]) -> Callable[..., Observation]:
    @functools.wraps(reset)
    def recorded(self: Environment, task: Task, *, seed: int) -> Observation:
        observation = reset(self, task, seed=seed)
        # A class that derives from a replayed one may fork in another way.
        if self.fork_rung == "replay":
            self._recorded = History(task, seed, [], [observation])
        return observation

    recorded._is_recorded = True  # type: ignore[attr-defined]
    return recorded


def _recorded_step(step: Callable[..., StepResult]) -> Callable[..., StepResult]:
    @functools.wraps(step)
    def recorded(self: Environment, action: str) -> StepResult:
        if self.fork_rung != "replay":
            return step(self, action)
        if self._recorded is None:
            raise EnvironmentFailed(f"{type(self).__name__} was stepped before its first reset; call reset first")
        num_steps = len(self._recorded.actions)
        result = step(self, action)
        self._recorded.cut(num_steps)
        self._recorded.add(action, result.observation)
        return result

    recorded._is_recorded = True  # type: ignore[attr-defined]
    return recorded
