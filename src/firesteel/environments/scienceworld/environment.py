"""ScienceWorld as a firesteel environment: the real simulator, forked by verified replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from firesteel.environments.base import Environment, observation_hash
from firesteel.environments.scienceworld.catalogue import (
    VARIATIONS,
    check_simplifications,
    check_solvable,
    check_task_types,
    select,
)
from firesteel.environments.scienceworld.expert import explain
from firesteel.environments.scienceworld.gold import gold_path
from firesteel.environments.scienceworld.simulator import World, shared_simulator
from firesteel.errors import CannotFork, ConfigError, EnvironmentFailed, ForkDiverged, TaskError
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

_OPTIONS = ("task_types", "simplifications", "admissible", "java_heap_mb", "step_timeout_s")


class ScienceWorld(Environment):
    """The 30 science tasks of ScienceWorld (Wang et al., 2022) in its own simulator, which runs on Java.

    Options:
        task_types: which of the 30 task types `tasks` draws from; None for all.
        simplifications: "easy" (teleporting, open doors, self-watering pots, and no electrical actions except in
            the electrical tasks), "" for none, or the simulator's own names joined by commas.
        admissible: whether observations list the valid actions (100 to 450 of them, 20 to 80 ms a step).
        java_heap_mb: the memory of the Java process, which all environments of one process share; an open
            environment takes 10 to 20 MB of it.
        step_timeout_s: the longest wait for one answer of the simulator, in seconds.

    The score is the simulator's, from 0 to 1, and rewards are its changes, so that the rewards of an episode add up
    to its score. Focusing on a wrong thing fails the task: the episode ends with score 0. There is no step limit.
    `reset task` is an action of the simulator that gives the score back. An ambiguous action is answered with a
    numbered list; the next action is then taken as the number.

    A variation starts the same way every time, and all that follows depends on the actions only: `reset`'s seed
    changes nothing, and environments that share the Java process do not disturb each other (see `simulator`).
    """

    fork_rung: ClassVar[str] = "replay"

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
        self._java_heap_mb = _positive("java_heap_mb", java_heap_mb)
        self._step_timeout_s = _positive("step_timeout_s", step_timeout_s)
        self._world: World | None = None
        self._task: Task | None = None
        self._forget_episode()

    def _forget_episode(self) -> None:
        self._actions: list[str] = []
        self._texts: list[str] = []
        self._last_seen = ""
        self._score = 0.0
        self._is_over = False
        self._gold: tuple[str, ...] | None = None

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
        name, variation = _parse(task)
        check_solvable(name, self._simplifications)
        self._forget_episode()
        self._task = task
        if self._world is None or not self._world.is_alive:
            self._world = World(shared_simulator(self._java_heap_mb), self._step_timeout_s)
        self._world.load(name, variation, self._simplifications)
        self.goal = " ".join(self._world.task_description().split())
        return self._observe(self._world, self._world.step("look around"))

    def step(self, action: str) -> StepResult:
        """Plays one action; one that the simulator does not understand has `valid` False and changes no score."""
        world = self._running()
        text = world.step(action)
        raw_score, is_complete = world.progress()
        if raw_score < 0 and (crash := world.crash()):
            raise EnvironmentFailed(f"{self._name()}: the simulator failed inside ({crash}); reset the environment")
        score = max(0.0, round(raw_score, 2))
        reward, self._score = score - self._score, score
        self._is_over = is_complete or raw_score < 0
        self._actions.append(action)
        is_valid = not text.startswith(NOT_UNDERSTOOD)
        return StepResult(
            observation=self._observe(world, text),
            reward=reward,
            terminated=self._is_over,
            info={"success": is_complete and score == 1.0, "score": score, "valid": is_valid},
        )

    def fork(self) -> ScienceWorld:
        """A second world that plays the same actions again; every observation must be the parent's.

        Costs about as much as the steps so far. Raises `ForkDiverged` with the first step that differs.
        """
        if self._task is None:
            raise CannotFork("scienceworld cannot fork before its first reset; call reset(task, seed=...) first")
        child = ScienceWorld(
            task_types=self._task_types,
            simplifications=self._simplifications,
            admissible=False,
            java_heap_mb=self._java_heap_mb,
            step_timeout_s=self._step_timeout_s,
        )
        try:
            self._replay(child)
        except EnvironmentFailed:
            child.close()
            raise
        return child

    def _replay(self, child: ScienceWorld) -> None:
        assert self._task is not None
        child.reset(self._task, seed=self._task.seed)
        self._check_replay(child, 0)
        for number, action in enumerate(self._actions, start=1):
            child.step(action)
            self._check_replay(child, number)
        child._gold = self._gold
        # Listing the actions changes nothing in the world, so only the last list is made and compared.
        child._admissible = self._admissible
        assert child._world is not None
        last_seen = observation_hash(child._observe(child._world, child._texts.pop()))
        self._compare(len(self._actions), self._last_seen, last_seen)

    def _check_replay(self, child: ScienceWorld, number: int) -> None:
        expected, got = Observation(self._texts[number]), Observation(child._texts[number])
        self._compare(number, observation_hash(expected), observation_hash(got))

    def _compare(self, number: int, expected: str, got: str) -> None:
        if expected != got:
            action = repr(self._actions[number - 1]) if number else "reset"
            raise ForkDiverged(
                f"{self._name()}: the replay differs at step {number} of {len(self._actions)} ({action}): "
                f"wanted an observation with the hash {expected}, got {got}"
            )

    def expert(self) -> ExpertStep | None:
        """The next action of the simulator's gold path while exactly that path has been followed, else None."""
        world = self._running_or_none()
        if world is None:
            return None
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
            world = World(shared_simulator(self._java_heap_mb), self._step_timeout_s)
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

    def _observe(self, world: World, text: str) -> Observation:
        self._texts.append(text)
        observation = Observation(text, tuple(world.valid_actions()) if self._admissible else None)
        self._last_seen = observation_hash(observation)
        return observation

    def _name(self) -> str:
        return f"scienceworld task '{self._task.id}'" if self._task else "scienceworld"

    def _running(self) -> World:
        if self._world is None:
            raise EnvironmentFailed("scienceworld was stepped before its first reset; call reset(task, seed=...) first")
        if self._is_over:
            raise EnvironmentFailed(f"{self._name()} was stepped after its episode had ended; call reset first")
        return self._world
