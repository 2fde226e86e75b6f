"""Gold paths of ScienceWorld tasks, kept on disk because one takes 0.2 to 20 seconds to generate."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from firesteel.files import make_directory, write_json_atomic


def cache_directory() -> Path:
    """Where generated files are kept: FIRESTEEL_CACHE, else firesteel under XDG_CACHE_HOME or ~/.cache."""
    if directory := os.environ.get("FIRESTEEL_CACHE"):
        return Path(directory)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firesteel"


def gold_path(task: str, variation: int, simplifications: str, generate: Callable[[], list[str]]) -> tuple[str, ...]:
    """The gold actions of one variation, generated once per simulator version and simplification string."""
    from scienceworld import __version__

    parts = ("scienceworld", __version__, simplifications or "none", task, f"{variation}.json")
    path = cache_directory().joinpath(*parts)
    with contextlib.suppress(OSError, ValueError):
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    actions = generate()
    # Without a writable cache everything works, only slower.
    with contextlib.suppress(OSError):
        make_directory(path.parent)
        write_json_atomic(path, actions)
    return tuple(actions)
