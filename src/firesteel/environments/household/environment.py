"""The default environment: household tasks in text, with nothing to install."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from firesteel.environments.base import Environment
from firesteel.environments.household.expert import next_step
from firesteel.environments.household.generate import SPLITS, make_game
from firesteel.environments.household.vocabulary import KINDS, ROOMS
from firesteel.environments.household.world import Game, World
from firesteel.errors import ConfigError, EnvironmentFailed, TaskError
from firesteel.plugins import nearest
from firesteel.types import ExpertStep, Observation, StepResult, Task

NOTHING_HAPPENS = "Nothing happens."

_OPTIONS = ("size", "admissible")


class Household(Environment):
    """ALFWorld's six task types in generated rooms, with ALFWorld's commands and wording of observations.

    `size` "full" has 12 to 30 receptacles and 15 to 40 objects, as ALFWorld's rooms do; "small" has 6 to 10 and
    6 to 12, for prompts that a tiny model can hold. `admissible` says whether observations list the commands
    that would do something.

    The first observation describes only the room; the task is in `goal`. Reaching it ends the episode with reward
    1.0, every other reward is 0. `info` always holds `success`, `score` (see `World.progress`) and `valid`. There is
    no step limit, and nothing is random after `tasks`: `reset`'s seed changes nothing.

    Differs from ALFWorld: no slicing and no `help`; every receptacle has its own location; `look` before the first
    `go to` shows the room again instead of "nothing".
    """

    fork_rung: ClassVar[str] = "native"

    def __init__(self, *, size: str = "full", admissible: bool = True) -> None:
        _check_size(size)
        self._size = size
        self._admissible = admissible
        self._world: World | None = None
        self._is_over = False

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The first `count` tasks of "train", "validation", "l0", "l1" or "l2"; fewer are a prefix of more.

        "l0" has rooms and task types of "train" with other objects and goals, "l1" rooms that are in no other
        split, and "l2" such rooms and the one task type that is in no other split. Task types come in shuffled
        rounds, so that all are equally frequent. `options` are the constructor's; only `size` matters here.
        """
        if split not in SPLITS:
            raise TaskError(f"household has no split '{split}'{nearest(split, SPLITS)}; known: {', '.join(SPLITS)}")
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"household has no option '{name}'{nearest(name, _OPTIONS)}; known: size, admissible")
        size = options.get("size", "full")
        _check_size(size)
        count = SPLITS[split].count if count is None else count
        if count < 0:
            raise TaskError(f"household split '{split}': count must be at least 0, not {count}")
        return [_task(split, size, seed, index, kind) for index, kind in enumerate(_kinds(split, size, seed, count))]

    def reset(self, task: Task, *, seed: int) -> Observation:
        """Starts the task's game; the same task always starts the same game, whatever `seed` is."""
        game = game_of(task)
        if task.data["size"] != self._size:
            raise TaskError(
                f"task '{task.id}' has size '{task.data['size']}', this Household '{self._size}'; "
                "give the same size to Household and to tasks"
            )
        self._world = World(game)
        self._is_over = False
        self.goal = game.goal.sentence
        return self._observe(game.layout.overview)

    def step(self, action: str) -> StepResult:
        """Plays one command; one that is unknown or cannot be done now is answered "Nothing happens."."""
        world = self._running()
        text = world.act(action.strip().lower())
        score = world.progress()
        success = score == 1.0
        self._is_over = success
        return StepResult(
            observation=self._observe(NOTHING_HAPPENS if text is None else text),
            reward=float(success),
            terminated=success,
            info={"success": success, "score": score, "valid": text is not None},
        )

    def fork(self) -> Household:
        """A copy that shares the game and has its own state."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._world = None if self._world is None else self._world.copy()
        return twin

    def expert(self) -> ExpertStep | None:
        """The expert's next step from what has been shown since `reset`, or None when the goal is reached."""
        return None if self._is_over else next_step(self._running())

    @property
    def game(self) -> Game | None:
        """The game of the current episode, as it was at its start; None before the first `reset`."""
        return None if self._world is None else self._world.game

    def _observe(self, text: str) -> Observation:
        return Observation(text, self._world.commands() if self._admissible and self._world else None)

    def _running(self) -> World:
        if self._world is None:
            raise EnvironmentFailed("household was stepped before its first reset; call reset(task, seed=...) first")
        if self._is_over:
            raise EnvironmentFailed("household was stepped after its episode had ended; call reset first")
        return self._world


def game_of(task: Task) -> Game:
    """The game that a task stands for; games are kept for the next reset. A foreign task raises `TaskError`."""
    try:
        size, split, seed, index = (task.data[key] for key in ("size", "split", "seed", "index"))
    except KeyError as error:
        raise TaskError(
            f"task '{task.id}' is not a household task (no {error}); make tasks by Household.tasks"
        ) from error
    if size not in ROOMS or split not in SPLITS or task.kind not in SPLITS[split].kinds:
        raise TaskError(
            f"task '{task.id}': no household game of size '{size}', split '{split}' and kind '{task.kind}'; "
            "make tasks by Household.tasks"
        )
    return make_game(size, split, seed, index, task.kind)


def _check_size(size: object) -> None:
    if size not in ROOMS:
        raise ConfigError(f"household size must be {' or '.join(map(repr, ROOMS))}, not {size!r}")


def _kinds(split: str, size: object, seed: int, count: int) -> list[str]:
    """Task types in shuffled rounds, each of which holds every type of the split once."""
    kinds = [kind for kind in KINDS if kind in SPLITS[split].kinds]
    rng = random.Random(f"household/kinds/{size}/{split}/{seed}")
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += rng.sample(kinds, len(kinds))
    return drawn[:count]


def _task(split: str, size: object, seed: int, index: int, kind: str) -> Task:
    return Task(
        id=f"household-{size}-{split}-{seed}-{index}",
        kind=kind,
        split=split,
        seed=seed,
        data={"size": size, "split": split, "seed": seed, "index": index},
    )
