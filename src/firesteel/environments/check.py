"""One call that tells the author of an environment whether it keeps the contract."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from firesteel.environments import environment_class
from firesteel.environments.base import FORK_RUNGS, Environment
from firesteel.environments.blame import blamed
from firesteel.environments.contract import checked_observation, checked_result, require
from firesteel.errors import CannotFork, ConfigError, EnvironmentFailed, FiresteelError, TaskError
from firesteel.guard import readable, text_of
from firesteel.types import ExpertStep, Observation, Task

IMPORT = "its import"
"""How the import of a class is announced."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check_environment` found; it exists only when every check passed.

    `fork_ms` is the median, over `num_forks` forks, of the wall time in milliseconds, at a depth of
    `mean_fork_depth` steps; None where the environment does not fork. `fork_rung` is the rung that made the forks.
    `num_compared` results were compared with those of another playing of the same actions and were the same.
    `checks` are the checks that ran.
    """

    environment: str
    num_episodes: int
    num_steps: int
    num_compared: int
    checks: tuple[str, ...]
    reset_ms: float
    steps_per_second: float
    fork_rung: str
    num_forks: int
    mean_fork_depth: float | None
    fork_ms: float | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {**dataclasses.asdict(self), "checks": list(self.checks)}

    def __str__(self) -> str:
        fork = "does not fork"
        if self.fork_ms is not None:
            fork = f"{self.fork_ms:.2f} ms by {self.fork_rung} at depth {self.mean_fork_depth:.1f}"
        return "\n".join(
            (
                f"{self.environment}: passed ({', '.join(self.checks)})",
                f"  episodes {self.num_episodes}, steps {self.num_steps}",
                f"  reset    {self.reset_ms:.2f} ms",
                f"  steps    {self.steps_per_second:,.0f} per second",
                f"  fork     {fork}",
                f"  the same {self.num_compared} of {self.num_compared} results of playing the same actions again",
            )
        )


def _silent(call: str) -> None:
    """Tells nobody."""


def check_environment(
    factory: Callable[[], Environment],
    tasks: Sequence[Task] | None = None,
    *,
    split: str = "train",
    episodes: int = 3,
    steps: int = 10,
    seed: int = 0,
    actions: Sequence[str] = (),
    announce: Callable[[str], object] = _silent,
) -> CheckReport:
    """Plays random episodes and raises at the first broken promise of the environment contract.

    Checked are the types of all results (`contract`), that a task and a seed start the same way in fresh
    environments and again in a used one (`reset`), that the same actions give the same results (`step`), and that
    a fork and its parent give the same results without moving each other (`fork`).

    It all runs in this process, where nothing can end a call that hangs; `firesteel check` has a time limit.

    Args:
        factory: an environment class whose constructor needs nothing, or any function that makes environments.
        tasks: what to play, taken in turn; None for the first ones of `split`, which the class lists with the named
            options that the factory gave to it.
        split: the split of the tasks.
        episodes: how many episodes to play.
        steps: the longest episode, in steps.
        seed: decides the actions and where episodes are forked.
        actions: what to draw from where observations list no admissible actions and there is no expert; the class's
            `example_actions` if there are none.
        announce: is told in words which call of the environment's code comes next, for whoever watches the time.

    Returns:
        The measured costs.

    Raises:
        EnvironmentFailed: a check failed; the message names the environment, the check, the step, what was
            wanted and what came. Or the environment's code raised something; the message names the call and the line.
        ConfigError: there is nothing to draw actions from, or a count is below 1.
    """
    if episodes < 1 or steps < 1:
        raise ConfigError(f"check_environment: episodes and steps must be at least 1, not {episodes} and {steps}")
    check = _Check(factory, steps, actions, announce)
    played = check.tasks(tasks, split, episodes, seed)
    for number in range(episodes):
        check.episode(played[number % len(played)], random.Random(f"{seed}:{number}"))
    return check.report(episodes)


def check_named(
    name: str, options: Mapping[str, Any], *, announce: Callable[[str], object] = _silent, **settings: Any
) -> CheckReport:
    """`check_environment` of an environment by its name and options; `settings` are those of `check_environment`."""
    announce(IMPORT)
    with blamed(f"environment '{name}': {IMPORT}"):
        cls = environment_class(name, options)
    return check_environment(partial(cls, **options), announce=announce, **settings)


_FORK_ORDERS = ("fork first", "parent first", "in turn")
_KNOWN_INFO = ("success", "score", "valid")
_RANDOM = "something random: random, time, id() or the order of a set; draw from a generator seeded by reset's seed"
_HINTS = {
    "reset": f"look for {_RANDOM}, and begin anew in reset",
    "step": f"look for {_RANDOM}; or for a state that all objects share, such as a class attribute",
    "fork": "the fork shares state with its parent, or lacks a part of it; copy all of it",
}
_SHOWN = 120
"""How many characters of two different texts a message shows."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """What a step (or a reset) showed, in comparable form."""

    observation: str
    admissible: tuple[str, ...] | None = None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        return self.terminated or self.truncated


@dataclass(slots=True)
class _Episode:
    """A recorded episode: `moments[0]` is the reset, `moments[i]` what `actions[i - 1]` led to."""

    task: Task
    seed: int
    goal: str
    actions: list[str]
    moments: list[_Moment]


class _Check:
    """The checks of one run, and what they measured on the way."""

    def __init__(
        self,
        factory: Callable[[], Environment],
        steps: int,
        actions: Sequence[str],
        announce: Callable[[str], object],
    ) -> None:
        self._factory = factory
        self._steps = steps
        self._actions = list(actions)
        self._announce = announce
        made_by = getattr(factory, "func", factory)
        self._name = getattr(made_by, "__name__", type(factory).__name__)
        self._missing = sorted(getattr(made_by, "__abstractmethods__", ()))
        self._rung = "none"
        self._num_compared = 0
        self._reset_s: list[float] = []
        self._step_s: list[float] = []
        self._fork_s: list[float] = []
        self._fork_depths: list[int] = []

    def tasks(self, tasks: Sequence[Task] | None, split: str, count: int, seed: int) -> Sequence[Task]:
        """Checks what a factory makes, and finds the tasks to play."""
        if self._missing:
            missing = ", ".join(f"{name}()" for name in self._missing)
            self._fail("contract", "the class", "tasks(), reset() and step()", f"no {missing}; write what is missing")
        with self._new() as environment:
            self._name = type(environment).__name__
            self._rung = environment.fork_rung
            self._require("contract", "fork_rung", self._rung in FORK_RUNGS, f"one of {FORK_RUNGS}", self._rung)
            if tasks is None:
                tasks = self._listed(environment, split, count, seed)
                again = self._listed(environment, split, count, seed)
                self._require("contract", "tasks", list(tasks) == list(again), f"the same again: {tasks}", again)
        self._require("contract", "tasks", _is_list(tasks), "a list of Task", tasks)
        if not len(tasks):
            raise TaskError(f"{self._name}: there is no task to check it with; give some as tasks, or name a split")
        for task in tasks:
            self._require("contract", "tasks", isinstance(task, Task), "a Task", task)
        ids = [task.id for task in tasks]
        self._require("contract", "tasks", len(set(ids)) == len(ids), "different ids", ids)
        return tasks

    def _listed(self, environment: Environment, split: str, count: int, seed: int) -> Sequence[Task]:
        """The tasks of a split, by the options that the environment was made with."""
        what, (_, options) = f"tasks('{split}')", environment._made_with
        with self._calling(what, "let it take (split, *, count=None, seed=0, **options)"):
            tasks = type(environment).tasks(split, count=count, seed=seed, **options)
        self._require("contract", what, _is_list(tasks), "a list of Task (return list(...))", tasks)
        return tasks

    def episode(self, task: Task, rng: random.Random) -> None:
        """Plays one task several times over and compares."""
        with self._new() as environment:
            episode = self._record(environment, task, rng)
            _, again = self._reset(environment, task, episode.seed)
            self._compare(episode, 0, "reset", again, "after another episode in the same environment object")
            self._close(environment)
            self._close(environment)
        with self._new() as environment:
            _, first = self._reset(environment, task, episode.seed)
            self._compare(episode, 0, "reset", first, "in a fresh environment")
            self._require("reset", "goal", environment.goal == episode.goal, repr(episode.goal), environment.goal)
            self._replay(environment, episode, range(1, len(episode.moments)), "step", "in a fresh environment")
        if self._rung == "none":
            self._check_refusal(episode)
        else:
            for order in _FORK_ORDERS:
                self._check_fork(episode, rng.randrange(max(1, len(episode.actions))), order)

    def report(self, episodes: int) -> CheckReport:
        forks = self._fork_s
        return CheckReport(
            environment=self._name,
            num_episodes=episodes,
            num_steps=len(self._step_s),
            num_compared=self._num_compared,
            checks=("contract", "reset", "step", "fork") if forks else ("contract", "reset", "step"),
            reset_ms=statistics.median(self._reset_s) * 1000,
            steps_per_second=len(self._step_s) / max(sum(self._step_s), 1e-9),
            fork_rung=self._rung,
            num_forks=len(forks),
            mean_fork_depth=statistics.fmean(self._fork_depths) if forks else None,
            fork_ms=statistics.median(forks) * 1000 if forks else None,
        )

    def _record(self, environment: Environment, task: Task, rng: random.Random) -> _Episode:
        seed = rng.randrange(2**31)
        observation, first = self._reset(environment, task, seed)
        episode = _Episode(task, seed, environment.goal, [], [first])
        is_goal = isinstance(episode.goal, str) and bool(episode.goal.strip())
        self._require("contract", "goal after reset", is_goal, "a sentence", episode.goal)
        self._require_readable("goal after reset", episode.goal)
        while len(episode.actions) < self._steps and not episode.moments[-1].is_last:
            action = self._choose(environment, observation, episode, rng)
            if action is None:
                break
            episode.actions.append(action)
            observation, moment = self._step(environment, action)
            episode.moments.append(moment)
        if not episode.moments[-1].is_last:
            self._expert(environment, len(episode.actions))
        return episode

    def _choose(
        self, environment: Environment, observation: Observation, episode: _Episode, rng: random.Random
    ) -> str | None:
        """A random admissible action, else the expert's, else a random one of those given."""
        expert = self._expert(environment, len(episode.actions))
        if observation.admissible is not None:
            return rng.choice(observation.admissible) if observation.admissible else None
        if expert is not None:
            return expert.action
        actions = self._actions or list(environment.example_actions)
        if not actions and not episode.actions:
            raise ConfigError(
                f"{self._name}: its observations list no admissible actions and it has no expert; give actions to draw "
                "from, each by a --action 'TEXT', in Python by actions=['TEXT', ...], or as its example_actions"
            )
        return rng.choice(actions or episode.actions)

    def _expert(self, environment: Environment, step: int) -> ExpertStep | None:
        where = f"expert at step {step}"
        with self._calling(where):
            expert = environment.expert()
        if expert is not None:
            self._require("contract", where, isinstance(expert, ExpertStep), "an ExpertStep or None", expert)
            is_full = bool(expert.action.strip()) and bool(expert.reason.strip()) and isinstance(expert.explore, bool)
            self._require("contract", where, is_full, "an action, a bool and a reason", expert)
        return expert

    def _replay(
        self, environment: Environment, episode: _Episode, steps: Iterable[int], check: str, where: str
    ) -> None:
        """Plays recorded actions and compares every result with the record."""
        for step in steps:
            _, moment = self._step(environment, episode.actions[step - 1])
            self._compare(episode, step, check, moment, where)

    def _check_refusal(self, episode: _Episode) -> None:
        with self._new() as environment:
            self._reset(environment, episode.task, episode.seed)
            try:
                with self._calling("fork at step 0"):
                    fork = environment.fork()
            except CannotFork:
                return
            self._fail("fork", "step 0", "CannotFork, since fork_rung is 'none'", fork)

    def _check_fork(self, episode: _Episode, depth: int, order: str) -> None:
        """Forks at step `depth`; parent and child then play the same rest, and neither may notice the other."""
        rest = range(depth + 1, len(episode.moments))
        with self._new() as parent:
            self._reset(parent, episode.task, episode.seed)
            for action in episode.actions[:depth]:
                self._step(parent, action)
            with self._closing(self._fork(parent, depth)) as child:
                goal = repr(episode.goal)
                self._require("fork", f"goal at step {depth}", child.goal == episode.goal, goal, child.goal)
                for environment, role, steps in _schedule(order, child, parent, rest):
                    self._replay(environment, episode, steps, "fork", f"in the {role}, forked at {depth}, {order}")
                    if order != "in turn":
                        # The other must go on without it.
                        self._close(environment)

    def _fork(self, parent: Environment, depth: int) -> Environment:
        try:
            with self._calling(f"fork at step {depth}"):
                start = time.perf_counter()
                child = parent.fork()
                self._fork_s.append(time.perf_counter() - start)
        except CannotFork as error:
            raise EnvironmentFailed(
                f"{self._name}: check 'fork' failed at step {depth}: wanted a fork, since fork_rung is "
                f"'{self._rung}', got CannotFork ({text_of(error)})"
            ) from error
        self._fork_depths.append(depth)
        is_new = isinstance(child, Environment) and child is not parent
        self._require("fork", f"step {depth}", is_new, "another Environment", child)
        if child.origin is not None:
            self._rung = child.origin.rung
        return child

    def _reset(self, environment: Environment, task: Task, seed: int) -> tuple[Observation, _Moment]:
        with self._calling(f"reset of task '{task.id}'"):
            start = time.perf_counter()
            observation = environment.reset(task, seed=seed)
            self._reset_s.append(time.perf_counter() - start)
            checked_observation(observation, "reset", self._broken("contract"))
        self._require_readable("text of reset", observation.text, *(observation.admissible or ()))
        return observation, _Moment(observation.text, observation.admissible)

    def _step(self, environment: Environment, action: str) -> tuple[Observation, _Moment]:
        where = f"step({action!r})"
        with self._calling(where):
            start = time.perf_counter()
            result = environment.step(action)
            self._step_s.append(time.perf_counter() - start)
            checked = checked_result(result, where, self._broken("contract"))
        observation: Observation = result.observation
        self._require_readable(f"text of {where}", observation.text, *(observation.admissible or ()))
        known = {key: checked.info[key] for key in _KNOWN_INFO if key in checked.info}
        seen = observation.text, observation.admissible
        return observation, _Moment(*seen, checked.reward, checked.terminated, checked.truncated, known)

    def _compare(self, episode: _Episode, step: int, check: str, got: _Moment, where: str) -> None:
        expected = episode.moments[step]
        self._num_compared += 1
        if got != expected:
            action = f" ({episode.actions[step - 1]!r})" if step else ""
            wanted = ", ".join(_differences(expected, got))
            came = ", ".join(_differences(got, expected))
            place = f"step {step}{action} of task '{episode.task.id}' {where}"
            self._fail(check, place, f"as before {wanted}", f"{came}; {_HINTS[check]}")

    @contextmanager
    def _new(self) -> Iterator[Environment]:
        """An environment that the factory makes, closed at the end."""
        advice = "give the options that it takes as key=value after its name (in Python: a function that makes one)"
        with self._calling("its constructor", advice):
            environment = self._factory()
        self._require("contract", "the factory", isinstance(environment, Environment), "an Environment", environment)
        with self._closing(environment):
            yield environment

    @contextmanager
    def _closing(self, environment: Environment) -> Iterator[Environment]:
        """Closes an environment; what goes wrong before that is told, whatever goes wrong in it."""
        try:
            yield environment
        except BaseException:
            with suppress(FiresteelError):
                self._close(environment)
            raise
        self._close(environment)

    def _close(self, environment: Environment) -> None:
        with self._calling("close"):
            environment.close()

    def _calling(self, what: str, advice: str = "mend it") -> AbstractContextManager[None]:
        """Around every call of the environment's code."""
        self._announce(what)
        return blamed(f"{self._name}: {what}", advice=advice)

    def _require_readable(self, where: str, *texts: str) -> None:
        for text in texts:
            is_readable = readable(text) == text
            self._require("contract", where, is_readable, "text without lone surrogates, which UTF-8 cannot hold", text)

    def _require(self, check: str, where: str, holds: bool, wanted: str, got: object) -> None:
        require(holds, f"{self._broken(check)}{where}", wanted, got)

    def _fail(self, check: str, where: str, wanted: str, got: object) -> None:
        raise EnvironmentFailed(f"{self._broken(check)}{where}: wanted {wanted}, got {got}")

    def _broken(self, check: str) -> str:
        """How the message of a failed check begins."""
        return f"{self._name}: check '{check}' failed at "


def _schedule(
    order: str, child: Environment, parent: Environment, rest: Sequence[int]
) -> list[tuple[Environment, str, Sequence[int]]]:
    """Who plays which steps, one after the other."""
    players = [(child, "fork"), (parent, "parent")]
    if order == "in turn":
        return [(environment, role, (step,)) for step in rest for environment, role in players]
    if order == "parent first":
        players.reverse()
    return [(environment, role, rest) for environment, role in players]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _differences(moment: _Moment, other: _Moment) -> list[str]:
    """The fields of `moment` that differ from the other's, as text."""
    names = (each.name for each in dataclasses.fields(_Moment))
    pairs = ((name, getattr(moment, name), getattr(other, name)) for name in names)
    return [f"{name} {_cut(repr(mine), repr(theirs))}" for name, mine, theirs in pairs if mine != theirs]


def _cut(text: str, other: str) -> str:
    """The text around the place where it begins to differ from another."""
    if len(text) <= _SHOWN:
        return text
    same = (mine == theirs for mine, theirs in zip(text, other, strict=False))
    first = next((place for place, is_same in enumerate(same) if not is_same), min(len(text), len(other)))
    start = max(0, min(first - _SHOWN // 3, len(text) - _SHOWN))
    end = start + _SHOWN
    return f"{'...' * (start > 0)}{text[start:end]}{'...' * (end < len(text))}"
