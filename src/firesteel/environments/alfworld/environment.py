"""ALFWorld as a firesteel environment: its own games and rules, forked by sharing states."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import ClassVar

from firesteel.environments.alfworld.engine import Engine, Position, close_engine, open_engine
from firesteel.environments.alfworld.expert import explain, things_in
from firesteel.environments.alfworld.games import (
    FOLDERS,
    KINDS,
    choose,
    data_folder,
    find_games,
    kind_of,
    read_game,
)
from firesteel.environments.base import Environment
from firesteel.errors import CannotFork, ConfigError, EnvironmentFailed, TaskError
from firesteel.plugins import nearest
from firesteel.types import ExpertStep, Observation, StepResult, Task

WELCOME = "-= Welcome to TextWorld, ALFRED! =-"
YOUR_TASK = "Your task is to: "

_OPTIONS = ("games", "task_types", "admissible")


class AlfWorld(Environment):
    """ALFWorld (Shridhar et al., 2021): household tasks by text, in its own rules and with the planner under it.

    Options:
        games: the folder of the games, as `firesteel games alfworld --out` writes it; None for ALFWORLD_DATA.
        task_types: which of the six task types `tasks` takes; None for all.
        admissible: whether observations list the commands that would do something.

    Texts and commands are those of TextWorld's `PddlEnv` with ALFWorld's names, but for the first text: the welcome is
    left out, and the task is in `goal`. Reaching the goal ends the episode with reward 1.0; every other reward is 0.
    There is no step limit. Nothing is random: `reset`'s seed changes nothing.

    A fork shares the planner with its parent and takes over its state, whatever its depth. Environments of one process
    that play the same game share a planner, too; they must not be stepped from several threads at once.

    The expert is the planner, which knows where everything is.
    """

    fork_rung: ClassVar[str] = "native"

    def __init__(
        self, *, games: str | Path | None = None, task_types: Sequence[str] | None = None, admissible: bool = True
    ) -> None:
        _check_task_types(task_types)
        self._games = games
        self._admissible = admissible
        self._name = "alfworld"
        self._engine: Engine | None = None
        self._position: Position | None = None
        self._plan: tuple[str, ...] | None = None
        self._seen: frozenset[str] = frozenset()

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The games of "train", "validation" (valid_seen) or "test" (valid_unseen); "l0" and "l1" are the latter two.

        Without `count`, all in the order of their folders' names; with it, at most `count`, shuffled by `seed`, task
        types in turn. Games that say that they cannot be won are left out, as ALFWorld does. For "l2" (unseen task
        types) evaluate with `task_types` that were left out of training. `options` are the constructor's.
        """
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(
                    f"alfworld has no option '{name}'{nearest(name, _OPTIONS)}; known: {', '.join(_OPTIONS)}"
                )
        if split not in FOLDERS:
            raise TaskError(f"alfworld has no split '{split}'{nearest(split, FOLDERS)}; known: {', '.join(FOLDERS)}")
        if count is not None and count < 0:
            raise TaskError(f"alfworld split '{split}': count must be at least 0, not {count}")
        kinds = _check_task_types(options.get("task_types"))
        games = options.get("games")
        folder = data_folder(games if isinstance(games, (str, Path)) else None)
        found = find_games(folder, split)
        if count is not None:
            found = _mixed(found, f"alfworld/{split}/{seed}")
        chosen = islice(choose(found, kinds), count)
        return [_task(path, folder, kind, split, seed) for path, kind in chosen]

    def reset(self, task: Task, *, seed: int) -> Observation:
        """Starts the task's game; the same task always starts the same way."""
        folder = task.data.get("game")
        if not isinstance(folder, str):
            raise TaskError(f"task '{task.id}' is not an alfworld task (no 'game'); make tasks by AlfWorld.tasks")
        game = read_game(folder)
        self.close()
        self._name = f"alfworld task '{task.id}'"
        self._engine = open_engine(game)
        self._position = self._engine.start
        self._plan = game.walkthrough or None
        introduction = self._engine.introduction()
        room, _, sentence = introduction.removeprefix(WELCOME).partition(YOUR_TASK)
        if not sentence:
            raise TaskError(f"{game.name} does not say what its task is ({introduction!r:.200}); get it again")
        self.goal = sentence.strip()
        return self._observe(room.strip())

    def step(self, action: str) -> StepResult:
        """Plays one command; any other text is answered "Nothing happens."."""
        engine, position = self._running()
        after, text = engine.play(position, action)
        is_understood = after is not position
        self._position = after
        if is_understood:
            is_planned = self._plan is not None and self._plan[:1] == (action.strip(),)
            self._plan = self._plan[1:] if is_planned and self._plan else None
        won = after.is_won
        return StepResult(
            observation=self._observe(text),
            reward=float(won),
            terminated=won,
            info={"success": won, "score": float(won), "valid": is_understood},
        )

    def fork(self) -> AlfWorld:
        """An environment at the same place; it shares all that does not change, and costs microseconds."""
        if self._engine is None:
            raise CannotFork("alfworld cannot fork before its first reset; call reset(task, seed=...) first")
        twin = AlfWorld(games=self._games, admissible=self._admissible)
        self._engine.users += 1
        twin._engine, twin._position = self._engine, self._position
        twin._name, twin._plan, twin._seen, twin.goal = self._name, self._plan, self._seen, self.goal
        return twin

    def expert(self) -> ExpertStep | None:
        """The next step of the planner's way to the goal; None when it is reached or cannot be any more.

        As long as its steps are taken, a plan is kept; after another one a new plan is asked for (some 50 ms).
        """
        if self._position is not None and self._position.is_won:
            return None
        engine, position = self._running()
        if self._plan is None or (self._plan and self._plan[0] not in position.operators):
            self._plan = engine.plan(position) or ()
        return explain(engine.game, self._plan, self._seen) if self._plan else None

    def close(self) -> None:
        """Leaves the planner to others."""
        if self._engine is not None:
            close_engine(self._engine)
        self._engine = self._position = self._plan = None
        self._seen = frozenset()

    def _observe(self, text: str) -> Observation:
        self._seen |= things_in(text)
        position = self._position
        return Observation(text, position.commands if self._admissible and position is not None else None)

    def _running(self) -> tuple[Engine, Position]:
        if self._engine is None or self._position is None:
            raise EnvironmentFailed("alfworld was used before its first reset; call reset(task, seed=...) first")
        if self._position.is_won:
            raise EnvironmentFailed(f"{self._name} was stepped after its episode had ended; call reset first")
        return self._engine, self._position


def _check_task_types(task_types: object) -> tuple[str, ...]:
    """The task types that an option asks for, all for None; unknown ones raise `ConfigError`."""
    if task_types is None:
        return KINDS
    if isinstance(task_types, str) or not isinstance(task_types, Sequence) or not task_types:
        raise ConfigError(f"alfworld: task_types must be a list of task types or None, not {task_types!r}")
    for name in task_types:
        if name not in KINDS:
            raise ConfigError(
                f"alfworld has no task type {name!r}{nearest(str(name), KINDS)}; known: {', '.join(KINDS)}"
            )
    return tuple(dict.fromkeys(task_types))


def _mixed(folders: Sequence[Path], name: str) -> list[Path]:
    """Games in a shuffled order, task types in turn."""
    shuffled = random.Random(name).sample(folders, len(folders))
    by_kind: dict[str, list[Path]] = {}
    for folder in shuffled:
        by_kind.setdefault(kind_of(folder), []).append(folder)
    rounds = zip_longest(*by_kind.values())
    return [folder for folder in chain.from_iterable(rounds) if folder is not None]


def _task(folder: Path, root: Path, kind: str, split: str, seed: int) -> Task:
    name = folder.relative_to(root / FOLDERS[split]).as_posix()
    return Task(id=f"alfworld-{split}-{name}", kind=kind, split=split, seed=seed, data={"game": str(folder)})
