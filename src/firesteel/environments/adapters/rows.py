"""Tasks for classes that have none of their own: numbered ones, or the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from firesteel.errors import TaskError
from firesteel.types import Task

SPLITS = ("train", "validation", "test")
_APART = 1_000_000
"""Seeds of two splits are so far apart, so that no task is in both."""


def numbered_tasks(kind: str, split: str, count: int | None, seed: int, num_tasks: int = 100) -> list[Task]:
    """`count` (None: `num_tasks`) tasks that differ in their seeds; no seed is in two splits."""
    if split not in SPLITS:
        raise TaskError(f"{kind} has no split '{split}'; known: {', '.join(SPLITS)}")
    first = SPLITS.index(split) * _APART + 10 * _APART * seed
    total = num_tasks if count is None else count
    if not 0 <= total <= _APART:
        raise TaskError(f"{kind}: wanted 0 to {_APART} tasks, not {total}")
    return [Task(f"{kind}-{split}-{seed}-{n}", kind, split, first + n) for n in range(total)]


def file_tasks(kind: str, pattern: str, split: str, count: int | None) -> list[Task]:
    """The tasks of a JSON-lines file, one row each; `{split}` in the path stands for the split's name.

    A row may have `id`, `kind` and `seed`; all of it is given to `reset`. Raises `TaskError` naming file and line.
    """
    if "{split}" not in pattern and split != "train":
        raise TaskError(
            f"{kind} has no split '{split}': '{pattern}' holds 'train'; name files as in data/{{split}}.jsonl"
        )
    path = Path(pattern.replace("{split}", split))
    if not path.is_file():
        raise TaskError(f"{kind}: the tasks of split '{split}' are not there: '{path}' is no file")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return as_tasks(kind, rows[:count], split)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskError(f"'{path}' line {number} is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise TaskError(f"'{path}' line {number}: wanted a JSON object, got {type(row).__name__}")
    return row


def as_tasks(kind: str, rows: Sequence[Task | Mapping[str, Any]], split: str) -> list[Task]:
    """Rows as tasks; what is a task already stays as it is."""
    tasks = []
    for number, row in enumerate(rows):
        if isinstance(row, Task):
            tasks.append(row)
        elif isinstance(row, Mapping):
            seed = row.get("seed", number)
            name, its_kind = str(row.get("id", f"{kind}-{split}-{number}")), str(row.get("kind", kind))
            tasks.append(Task(name, its_kind, split, seed if isinstance(seed, int) else number, dict(row)))
        else:
            raise TaskError(f"{kind}: a task must be a Task or a mapping, got {row!r:.100}")
    return tasks


def class_tasks(
    made_by: Any, kind: str, split: str, count: int | None, seed: int, options: Mapping[str, Any]
) -> Sequence[Task]:
    """The tasks of a class: from its own `tasks(split)`, from the file in the option `tasks`, else numbered ones."""
    if hasattr(made_by, "tasks"):
        rows = made_by.tasks(split)
        if not isinstance(rows, Iterable):
            raise TaskError(f"{kind}: tasks('{split}') must return a list of Tasks or mappings, got {rows!r:.100}")
        return as_tasks(kind, list(rows)[:count], split)
    if options.get("tasks") is not None:
        return file_tasks(kind, str(options["tasks"]), split, count)
    return numbered_tasks(kind, split, count, seed, int(options.get("num_tasks", 100)))
