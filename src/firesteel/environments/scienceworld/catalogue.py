"""What ScienceWorld 1.2.3 holds: task types, their numbers of variations, the official splits, simplifications."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain, zip_longest

from firesteel.errors import ConfigError, TaskError
from firesteel.plugins import nearest
from firesteel.types import Task

VARIATIONS: dict[str, int] = {
    "boil": 30,
    "melt": 30,
    "freeze": 30,
    "change-the-state-of-matter-of": 30,
    "use-thermometer": 540,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "find-animal": 300,
    "grow-plant": 126,
    "grow-fruit": 126,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "lifespan-longest-lived": 125,
    "lifespan-shortest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
    "inclined-plane-determine-angle": 168,
    "inclined-plane-friction-named-surfaces": 1386,
    "inclined-plane-friction-unnamed-surfaces": 162,
    "mendelian-genetics-known-plant": 120,
    "mendelian-genetics-unknown-plant": 480,
}
"""The 30 task types with their numbers of variations, in the official order."""

SHORT_TASKS = (
    "find-non-living-thing",
    "find-living-thing",
    "find-plant",
    "find-animal",
    "lifespan-longest-lived",
    "lifespan-shortest-lived",
    "lifespan-longest-lived-then-shortest-lived",
    "power-component",
    "chemistry-mix-paint-secondary-color",
    "identify-life-stages-2",
)
"""Task types whose gold paths under "easy" reach the goal in at most 15 actions on average over "train"."""

SPLITS = ("train", "validation", "test", "l0", "l1")
"""Splits that `tasks` knows. "l0" holds the variations of "train", "l1" those of "test"."""

SIMPLIFICATIONS = ("teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors", "noElectricalAction")


def variations(task: str, split: str) -> range:
    """The official split of a task type: half, a quarter and the rest of its variations, in order."""
    quarter = VARIATIONS[task] // 4
    if split in ("train", "l0"):
        return range(2 * quarter)
    if split == "validation":
        return range(2 * quarter, 3 * quarter)
    return range(3 * quarter, VARIATIONS[task])


def select(split: str, task_types: Sequence[str], count: int | None, seed: int) -> list[Task]:
    """All tasks of a split in the official order, or a balanced draw of `count` (fewer when there are fewer).

    A draw shuffles the task types and the variations of each by `seed`, then takes one of each type in turn.
    """
    if split not in SPLITS:
        raise TaskError(f"scienceworld has no split '{split}'{nearest(split, SPLITS)}; known: {', '.join(SPLITS)}")
    if count is None:
        return [_task(name, variation, split) for name in task_types for variation in variations(name, split)]
    if count < 0:
        raise TaskError(f"scienceworld split '{split}': count must be at least 0, not {count}")
    names = list(task_types)
    random.Random(f"{seed}:{split}").shuffle(names)
    columns = [_shuffled(name, split, seed) for name in names]
    drawn = [task for task in chain.from_iterable(zip_longest(*columns)) if task is not None]
    return drawn[:count]


def _shuffled(name: str, split: str, seed: int) -> list[Task]:
    numbers = list(variations(name, split))
    random.Random(f"{seed}:{split}:{name}").shuffle(numbers)
    return [_task(name, number, split) for number in numbers]


def _task(name: str, variation: int, split: str) -> Task:
    data = {"task": name, "variation": variation}
    return Task(id=f"{name}-{variation}", kind=name, split=split, data=data)


def check_task_types(task_types: object) -> tuple[str, ...]:
    """The task types that an option asks for, all for None; unknown ones raise `ConfigError`."""
    if task_types is None:
        return tuple(VARIATIONS)
    if isinstance(task_types, str) or not isinstance(task_types, Sequence) or not task_types:
        raise ConfigError(f"scienceworld: task_types must be a list of task types or None, not {task_types!r}")
    for name in task_types:
        if name not in VARIATIONS:
            hint = nearest(str(name), VARIATIONS)
            raise ConfigError(f"scienceworld has no task type {name!r}{hint}; known: {', '.join(VARIATIONS)}")
    return tuple(dict.fromkeys(task_types))


def check_simplifications(simplifications: object) -> str:
    """The simplification string in one spelling: "easy", "" or names of `SIMPLIFICATIONS` joined by commas."""
    if not isinstance(simplifications, str):
        raise ConfigError(f"scienceworld: simplifications must be a string, not {simplifications!r}")
    names = [name.strip() for name in simplifications.split(",") if name.strip()]
    if names == ["easy"]:
        return "easy"
    for name in names:
        if name not in SIMPLIFICATIONS:
            known = ", ".join(SIMPLIFICATIONS)
            raise ConfigError(
                f"scienceworld has no simplification '{name}'{nearest(name, SIMPLIFICATIONS)}; "
                f"give 'easy' alone, '' for none, or some of: {known}, joined by commas"
            )
    return ",".join(name for name in SIMPLIFICATIONS if name in names)


def check_solvable(task: str, simplifications: str) -> None:
    """Raises `ConfigError` for a task about electricity without the actions for it."""
    if "noElectricalAction" in simplifications and ("power-component" in task or "conductivity" in task):
        raise ConfigError(
            f"scienceworld: '{task}' cannot be solved with the simplification noElectricalAction; "
            "remove it, use 'easy' (which keeps electricity where it is needed), or choose other task_types"
        )
