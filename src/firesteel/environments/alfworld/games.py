"""ALFWorld's game files: finding those of a split, and reading one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from firesteel.errors import TaskError

KINDS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""ALFWorld's six task types."""

GAME_FILE, TASK_FILE = "game.tw-pddl", "traj_data.json"
"""What the folder of a game holds: the game, and what it is about."""

RELEASE = "json_2.1.1"
"""The folder of ALFWorld's data that holds the splits."""

FOLDERS = {
    "train": "train",
    "validation": "valid_seen",
    "test": "valid_unseen",
    "l0": "valid_seen",
    "l1": "valid_unseen",
}
"""The folder of each split. "l0" has rooms that are in "train", "l1" others."""

_LEFT_OUT = re.compile("movable|Sliced")

_HOW_TO_GET = (
    "download ALFWorld's games (`alfworld-download`) and set ALFWORLD_DATA, or make some with "
    "`firesteel games alfworld --out DIR` and give games=DIR"
)


@dataclass(frozen=True, eq=False)
class Game:
    """A game as its files hold it. `target` and `destination` are types ("mug", "desk"), "" where there is none."""

    name: str
    domain: str
    grammar: str
    problem: str
    kind: str
    target: str
    destination: str
    walkthrough: tuple[str, ...]


def data_folder(games: str | Path | None) -> Path:
    """The folder above the splits: of `games`, else of ALFWORLD_DATA.

    Both may name the folder of the splits itself or one that holds it as "json_2.1.1".
    """
    place = str(games) if games is not None else os.environ.get("ALFWORLD_DATA", "")
    if not place:
        raise TaskError(f"alfworld has no games: ALFWORLD_DATA is not set and no games=DIR is given; {_HOW_TO_GET}")
    root = Path(place).expanduser()
    named = "games" if games is not None else "ALFWORLD_DATA"
    if not root.is_dir():
        raise TaskError(f"alfworld: {named} is '{root}', which is no folder; {_HOW_TO_GET}")
    for folder in (root / RELEASE, root):
        if any((folder / name).is_dir() for name in FOLDERS.values()):
            return folder
    wanted = ", ".join(dict.fromkeys(FOLDERS.values()))
    raise TaskError(
        f"alfworld: {named} is '{root}', which has none of the folders {wanted} (nor has '{RELEASE}' in it); "
        f"{_HOW_TO_GET}"
    )


def find_games(folder: Path, split: str) -> list[Path]:
    """The folders of all games of a split, in the order of their names.

    Those with sliced or movable things are left out, as ALFWorld does. A split without any raises `TaskError`.
    """
    root = folder / FOLDERS[split]
    found = sorted(path.parent for path in root.rglob(TASK_FILE))
    found = [path for path in found if not _LEFT_OUT.search(str(path.relative_to(root)))]
    if not found:
        raise TaskError(f"alfworld split '{split}': no game lies in '{root}'; {_HOW_TO_GET}")
    return found


def kind_of(folder: Path) -> str:
    """The task type of a game: what its folder's name begins with, else what its task file says."""
    begin = folder.parent.name.partition("-")[0]
    return begin if begin in KINDS else _task_of(folder)["task_type"]


def is_playable(folder: Path) -> bool:
    """Whether a game can be won, as its file says; folders without a game cannot. Raises `TaskError` for damage."""
    path = folder / GAME_FILE
    return path.exists() and bool(_read_json(path).get("solvable"))


def choose(folders: Sequence[Path], kinds: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The playable games of some task types, each with its type."""
    for folder in folders:
        kind = kind_of(folder)
        if kind in kinds and is_playable(folder):
            yield folder, kind


def read_game(folder: str | Path) -> Game:
    """Reads a game. Raises `TaskError`, which names the file and says what is wrong with it."""
    folder = Path(folder)
    path = folder / GAME_FILE
    try:
        stamp = path.stat()
    except OSError as error:
        raise TaskError(f"alfworld game '{path}' is missing; {_HOW_TO_GET}") from error
    return _read_game(folder, stamp.st_mtime_ns, stamp.st_size)


@lru_cache(maxsize=64)
def _read_game(folder: Path, mtime_ns: int, size: int) -> Game:
    del mtime_ns, size  # a changed file is read again
    content, task = _read_json(folder / GAME_FILE), _task_of(folder)
    name = f"alfworld game '{folder / GAME_FILE}'"
    texts = {key: content.get(key) for key in ("pddl_domain", "grammar", "pddl_problem")}
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise TaskError(f"{name} has no text '{key}'; get it again, it is damaged or of another format")
    walkthrough = content.get("walkthrough") or ()
    if not all(isinstance(command, str) for command in walkthrough):
        raise TaskError(f"{name}: its walkthrough must be a list of commands, not {walkthrough!r:.80}")
    parameters = task.get("pddl_params") or {}
    return Game(
        name=name,
        domain=str(texts["pddl_domain"]),
        grammar=str(texts["grammar"]),
        problem=str(texts["pddl_problem"]),
        kind=task["task_type"],
        target=str(parameters.get("object_target") or "").lower(),
        destination=str(parameters.get("parent_target") or "").lower(),
        walkthrough=tuple(walkthrough),
    )


def _task_of(folder: Path) -> dict[str, Any]:
    path = folder / TASK_FILE
    content = _read_json(path)
    if not isinstance(content.get("task_type"), str) or not isinstance(content.get("pddl_params"), dict):
        raise TaskError(f"'{path}' has no 'task_type' and 'pddl_params'; get the game again, it is damaged")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"'{path}' cannot be read ({error.strerror}); get the game again") from error
    except ValueError as error:
        raise TaskError(f"'{path}' is not complete JSON ({error!s:.120}); get the game again") from error
    if not isinstance(content, dict):
        raise TaskError(f"'{path}' must hold a JSON object, got {type(content).__name__}; get the game again")
    return content
