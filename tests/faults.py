"""Makes the n-th change to the disk go wrong: the call fails, or everything from it on never happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

DISK_CALLS = ("write", "pwrite", "fsync", "replace", "mkdir", "unlink", "rmdir", "ftruncate")


class Killed(BaseException):
    """Stands for the end of the process; no cleaning up after it reaches the disk."""


@contextmanager
def patched(call: Callable[..., Any]) -> Iterator[None]:
    """Puts `call(name, original, *arguments)` in the place of the functions of `os` that change the disk."""
    originals = {name: getattr(os, name) for name in DISK_CALLS}
    for name, original in originals.items():
        setattr(os, name, partial(call, name, original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


@contextmanager
def without_flushing() -> Iterator[None]:
    """Makes `os.fsync` do nothing: what a killed process wrote lives on in the kernel, and tests end sooner."""
    original = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = original


@contextmanager
def recorded() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Lists the changes to the disk, each as its name and arguments; a flush lists the path of its file."""
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def call(name: str, original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        seen = (os.readlink(f"/proc/self/fd/{arguments[0]}"),) if name == "fsync" else arguments
        calls.append((name, seen))
        return original(*arguments, **keywords)

    with patched(call):
        yield calls


def survives(work: Callable[[], object], *, failing: int) -> bool:
    """Runs `work` with its change to the disk number `failing` (from 0) failing as on a full disk.

    False where the error came out of `work`; True where there were not so many changes.
    """
    count = 0

    def call(name: str, original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        if count - 1 == failing:
            _write_half(name, original, arguments)
            raise OSError(28, f"no space left on device (os.{name})")
        return original(*arguments, **keywords)

    with patched(call):
        try:
            work()
        except OSError:
            return False
    assert count <= failing, "an error of the disk was swallowed"
    return True


def outlives(work: Callable[[], object], *, killed_at: int) -> bool:
    """Runs `work` as if the process were killed in its change to the disk number `killed_at` (from 0).

    That call does nothing (a write: half of its work), and neither do the later ones, those in `finally` included.
    True where there were not so many changes.
    """
    count = 0

    def call(name: str, original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        nonlocal count
        count += 1
        if count - 1 == killed_at:
            _write_half(name, original, arguments)
        if count - 1 >= killed_at:
            raise Killed
        return original(*arguments, **keywords)

    with patched(call):
        try:
            work()
        except Killed:
            return False
    return True


def _write_half(name: str, original: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if name == "write":
        content = bytes(arguments[1])
        original(arguments[0], content[: len(content) // 2])
