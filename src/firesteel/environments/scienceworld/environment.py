"""ScienceWorld as a firesteel environment: the real simulator, forked by verified replay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from firesteel.environments.base import Environment
from firesteel.environments.fork import Forked, require_same
from firesteel.environments.scienceworld.catalogue import (
    VARIATIONS,
    check_simplifications,
    check_solvable,
    check_task_types,
    select,
)
from firesteel.environments.scienceworld.expert import explain
from firesteel.environments.scienceworld.gold import gold_path
from firesteel.environments.scienceworld.simulator import World, open_world
from firesteel.errors import CannotFork, ConfigError, EnvironmentFailed, StepTimeout, TaskError
from firesteel.plugins import nearest
from firesteel.types import ExpertStep, Observation, StepResult, Task

NOT_UNDERSTOOD = (
    "No known action matches that input.",
    "Unknown action.",
    "Ambiguous request:",
    "Error Encountered",
)
"""How the simulator's answers begin when it played nothing. An answer to an ambiguous request that is not
one of its numbers cancels the request with "Unknown action."."""

Answer = TypeVar("Answer")

_OPTIONS = ("task_types", "simplifications", "admissible", "java_heap_mb", "step_timeout_s")


class ScienceWorld(Environment):
    """The 30 science tasks of ScienceWorld (Wang et al., 2022) in its own simulator, which runs on Java.

    Options:
        task_types: which of the 30 task types `tasks` draws from; None for all.
        simplifications: "easy" (teleporting, open doors, self-watering pots, and no electrical actions except in
            the electrical tasks), "" for none, or the simulator's own names joined by commas.
        admissible: whether observations list the valid actions (100 to 450 of them, 20 to 80 ms a step).
        java_heap_mb: the heap of the Java process that the environments of a process share: one for every 16 MB.
            When more are open, another Java process is started.
        step_timeout_s: the longest wait for one answer of the simulator, in seconds.

    The score is the simulator's, from 0 to 1, and rewards are its changes, so that the rewards of an episode add up
    to its score. Focusing on a wrong thing fails the task: the episode ends with score 0. There is no step limit.
    `reset task` is an action of the simulator that gives the score back. An ambiguous action is answered with a
    numbered list; the next action is then taken as the number.

    A variation starts the same way every time, and all that follows depends on the actions only: `reset`'s seed
    changes nothing, and environments that share the Java process do not disturb each other (see `simulator`).
    """

    fork_rung: ClassVar[str] = "replay"
    is_self_contained: ClassVar[bool] = False

    def __init__(
        self,
        *,
        task_types: Sequence[str] | None = None,
        simplifications: str = "easy",
        admissible: bool = False,
        java_heap_mb: int = 512,
        step_timeout_s: float = 60.0,
    ) -> None:
        self._task_types = check_task_types(task_types)
        self._simplifications = check_simplifications(simplifications)
        self._admissible = admissible
        self._java_heap_mb = _positive("java_heap_mb", java_heap_mb, int)
        self._step_timeout_s = _positive("step_timeout_s", step_timeout_s, (int, float))
        self._world: World | None = None
        self._task: Task | None = None
        self._forget_episode()

    def _forget_episode(self) -> None:
        self._actions: list[str] = []
        self._texts: list[str] = []
        self._seen = Observation("")
        self._score = 0.0
        self._is_over = False
        self._gold: tuple[str, ...] | None = None
        self._can_restore = True

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The variations of a split: the official "train", "validation" (dev) and "test", or "l0" and "l1".

        "l0" (seen variations) are those of "train", "l1" (unseen variations of seen task types) those of "test".
        For "l2" (unseen task types) evaluate on "test" with `task_types` that were left out of training. Without
        `count`, all in the official order; with it, at most `count`, shuffled by `seed`, task types in turn.
        `options` are the constructor's.

        Differs from the paper: SPARK's own draw of its 1661 (L0), 1684 (L1) and 549 (L2) variations is not public.
        """
        for name in options:
            if name not in _OPTIONS:
                hint = nearest(name, _OPTIONS)
                raise ConfigError(f"scienceworld has no option '{name}'{hint}; known: {', '.join(_OPTIONS)}")
        task_types = check_task_types(options.get("task_types"))
        simplifications = check_simplifications(options.get("simplifications", "easy"))
        for task_type in task_types:
            check_solvable(task_type, simplifications)
        return select(split, task_types, count, seed)

    def reset(self, task: Task, *, seed: int) -> Observation:
        """Loads the task's variation and looks around; a Java process that has died is started again."""
        name, _ = _parse(task)
        check_solvable(name, self._simplifications)
        self._forget_episode()
        self._task = task
        try:
            text = self._begin()
        except StepTimeout:
            raise
        except EnvironmentFailed:
            if self._world is not None and self._world.is_alive:
                raise
            # Java may have died just now, of something else; a second one that dies says why.
            text = self._begin()
        return self._observe(text)

    def _begin(self) -> str:
        """Loads the task into this environment's world, or a new one where Java has died, and looks around."""
        assert self._task is not None
        name, variation = _parse(self._task)
        if self._world is None or not self._world.is_alive:
            self._world = open_world(self._java_heap_mb, self._step_timeout_s)
        self._world.load(name, variation, self._simplifications)
        self.goal = " ".join(self._world.task_description().split())
        # The simulator keeps the score of the last episode until something is played.
        return self._world.step("look around")

    def step(self, action: str) -> StepResult:
        """Plays one action; one that the simulator does not understand has `valid` False in `info`.

        Where Java has died, whatever killed it, another one is started and the episode is played again in it, every
        observation compared (`ForkDiverged` at the first difference); a call that takes too long fails the episode.
        """
        self._running()
        text, raw_score, is_complete = self._surely(lambda world: (world.step(action), *world.progress()))
        if raw_score < 0 and (crash := self._running().crash()):
            raise EnvironmentFailed(f"{self._name()}: the simulator failed inside ({crash}); reset the environment")
        score = max(0.0, round(raw_score, 2))
        reward, self._score = round(score - self._score, 2), score
        self._is_over = is_complete or raw_score < 0
        self._actions.append(action)
        return StepResult(
            observation=self._observe(text),
            reward=reward,
            terminated=self._is_over,
            info={"success": score == 1.0, "score": score, "valid": not text.startswith(NOT_UNDERSTOOD)},
        )

    def _surely(self, call: Callable[[World], Answer]) -> Answer:
        """What a call to the world gives; where Java dies or has died, what it gives in the episode played again."""
        world = self._world
        assert world is not None
        try:
            return call(world)
        except StepTimeout:
            self._can_restore = False
            raise
        except EnvironmentFailed:
            if world.is_alive or not self._can_restore:
                raise
        return call(self._restored())

    def _restored(self) -> World:
        """The episode so far in a new world, after its Java process has died."""
        warnings.warn(
            f"{self._name()}: Java has died; another one plays its {len(self._actions)} actions again",
            RuntimeWarning,
            stacklevel=4,
        )
        self._compare(0, Observation(self._texts[0]), Observation(self._begin()))
        world = self._world
        assert world is not None
        for number, action in enumerate(self._actions, start=1):
            self._compare(number, Observation(self._texts[number]), Observation(world.step(action)))
        return world

    def fork(self) -> ScienceWorld:
        """A second world in which the same actions are played again; what it shows must be what was seen here.

        Costs as much as the reset and all steps so far. Raises `ForkDiverged` at the first difference.
        """
        if self._task is None:
            raise CannotFork("scienceworld cannot fork before its first reset; call reset(task, seed=...) first")
        child = ScienceWorld(
            task_types=self._task_types,
            simplifications=self._simplifications,
            java_heap_mb=self._java_heap_mb,
            step_timeout_s=self._step_timeout_s,
        )
        try:
            self._replay_in(child, self._task)
        except EnvironmentFailed:
            child.close()
            raise
        child.origin = Forked("replay", replayed_steps=len(self._actions))
        return child

    def _replay_in(self, child: ScienceWorld, task: Task) -> None:
        self._compare(0, Observation(self._texts[0]), child.reset(task, seed=task.seed))
        for number, action in enumerate(self._actions, start=1):
            self._compare(number, Observation(self._texts[number]), child.step(action).observation)
        child._gold = self._gold
        if self._admissible and child._world is not None:
            # Listing actions changes nothing in a world, so the last list stands for all of them.
            child._admissible = True
            child._seen = Observation(child._seen.text, tuple(child._world.valid_actions()))
            self._compare(len(self._actions), self._seen, child._seen)

    def _compare(self, number: int, expected: Observation, got: Observation) -> None:
        require_same(expected, got, number, self._actions, self._name())

    def expert(self) -> ExpertStep | None:
        """The next action of the simulator's gold path as long as exactly that path was followed, else None.

        The path is generated by the simulator at the first call for a variation (0.2 to 20 s) and then kept on disk.
        """
        if self._is_over:
            return None
        self._running()
        if self._gold is None:
            self._gold = self._find_gold()
        done = len(self._actions)
        if done >= len(self._gold) or tuple(self._actions) != self._gold[:done]:
            return None
        return explain(self.goal, self._texts, self._actions, self._gold[done])

    def _find_gold(self) -> tuple[str, ...]:
        assert self._task is not None
        name, variation = _parse(self._task)

        def generate() -> list[str]:
            world = open_world(self._java_heap_mb, self._step_timeout_s)
            try:
                world.load(name, variation, self._simplifications, with_gold=True)
                return world.gold_actions()
            finally:
                world.close()

        return gold_path(name, variation, self._simplifications, generate)

    def close(self) -> None:
        """Gives the world back for the next environment of this process."""
        if self._world is not None:
            self._world.close()
        self._world = self._task = None
        self._forget_episode()

    def _observe(self, text: str) -> Observation:
        self._texts.append(text)
        listed = tuple(self._surely(World.valid_actions)) if self._admissible else None
        self._seen = Observation(text, listed)
        return self._seen

    def _name(self) -> str:
        return f"scienceworld task '{self._task.id}'" if self._task else "scienceworld"

    def _running(self) -> World:
        if self._world is None:
            raise EnvironmentFailed("scienceworld was used before its first reset; call reset(task, seed=...) first")
        if self._is_over:
            raise EnvironmentFailed(f"{self._name()} was stepped after its episode had ended; call reset first")
        return self._world


def _parse(task: Task) -> tuple[str, int]:
    """The task type and the variation of a task; a task that is not ScienceWorld's raises `TaskError`."""
    name, variation = task.data.get("task"), task.data.get("variation")
    if name not in VARIATIONS or not isinstance(variation, int) or not 0 <= variation < VARIATIONS[name]:
        raise TaskError(
            f"task '{task.id}' is not one of ScienceWorld's: wanted data with a known 'task' and a 'variation' of it, "
            f"got {name!r} and {variation!r}; take tasks from ScienceWorld.tasks"
        )
    return name, variation


def _positive(option: str, value: Any, kinds: type | tuple[type, ...]) -> Any:
    """A number above 0 that an option gives."""
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not value > 0:
        whole = "whole " if kinds is int else ""
        raise ConfigError(f"scienceworld: {option} must be a {whole}number above 0, not {value!r}")
    return value
