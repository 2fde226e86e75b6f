"""Files that are either the old version or the new one, whatever happens in between.

Whole files are written beside their target under a name that starts with `.tmp-`, flushed to the disk, moved into
place with one `os.replace`, and the directory is flushed too. Line files (`*.jsonl`) only grow: one line per `write`,
flushed before the call returns; a line counts once it ends in a newline, so a torn one is recognised and dropped.
JSON is plain ASCII, and floats are written by `repr`, which reads back bit for bit; NaN and infinities are refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from firesteel.errors import StoreError

TEMPORARY_PREFIX = ".tmp-"
_CANNOT_SYNC_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP)
_EXACT_KINDS = {bool, int, str, type(None)}


def sync_file(path: Path) -> None:
    """Waits until the content of `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Waits until the entries of `directory` are on the disk; file systems that cannot do this are passed over."""
    try:
        sync_file(directory)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_DIRECTORIES:
            raise


def make_directory(directory: Path) -> None:
    """Creates `directory` and its parents, and flushes the entry; an existing one is left alone."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step: a reader or a crash sees the old bytes or the new ones."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_json_atomic(path: Path, value: object) -> None:
    """Replaces `path` by `value` as indented JSON; raises `StoreError` where JSON cannot hold it."""
    write_atomic(path, exact_json(value, name=f"'{path}'", indent=2).encode() + b"\n")


def exact_json(value: object, *, name: str, indent: int | None = None) -> str:
    """JSON text that reads back equal to `value`, the order of keys included.

    Raises:
        StoreError: `value` holds something that JSON would refuse or change (a NaN, a tuple, a key that is not a
            string, any other object); the message gives `name` and the place.
    """
    flaw = find_inexact(value)
    if flaw is not None:
        raise StoreError(f"{name} cannot be stored exactly: {flaw}")
    return json.dumps(value, allow_nan=False, indent=indent)


def find_inexact(value: object, *, place: str = "", allow_tuples: bool = False) -> str | None:
    """Describes the first thing in `value` that JSON cannot give back, or is None where there is none."""
    where = place or "the value itself"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{where} is {value!r}; store None or a string instead"
    if value is None or isinstance(value, (bool, int, str)):
        return None
    children: Iterator[tuple[str, object]]
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            return f"{where} has the key {wrong[0]!r}; keys must be strings"
        children = ((f"{place}.{key}" if place else key, child) for key, child in value.items())
    elif isinstance(value, list) or (allow_tuples and isinstance(value, tuple)):
        if _is_plain(value):
            return None
        children = ((f"{place}[{index}]", child) for index, child in enumerate(value))
    else:
        return f"{where} is a {type(value).__name__}; use None, bool, int, float, str, list or dict"
    flaws = (find_inexact(child, place=name, allow_tuples=allow_tuples) for name, child in children)
    return next((flaw for flaw in flaws if flaw is not None), None)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, line: str) -> None:
    """Adds one line and waits until it is on the disk; where that fails, the file is cut back to what it was.

    `line` must hold no newline; one is added.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        old_size = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, line.encode() + b"\n")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, old_size)
            raise
    finally:
        os.close(descriptor)
    if old_size == 0:
        sync_directory(path.parent)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a line file; a torn last line is left out, a missing file has none.

    Raises:
        StoreError: a line before the last is not a JSON object.
    """
    return [record for record, _ in _records(path)]


def truncate_jsonl(path: Path, *, before_step: int) -> None:
    """Keeps the lines before the first whose `step` is `before_step` or more, byte for byte, in one atomic step.

    Raises:
        StoreError: a line among those to keep is not a JSON object with a `step`.
    """
    if not path.exists():
        return
    kept = 0
    for number, (record, end) in enumerate(_records(path), start=1):
        if not isinstance(record.get("step"), int):
            raise StoreError(f"'{path}', line {number}: wanted an integer 'step', got {record.get('step')!r}")
        if record["step"] >= before_step:
            break
        kept = end
    content = path.read_bytes()
    if kept != len(content):
        write_atomic(path, content[:kept])


def remove_temporaries(directory: Path) -> None:
    """Deletes what interrupted writes left in `directory`; only the one writer of the directory may call this."""
    for path in sorted(directory.glob(f"{TEMPORARY_PREFIX}*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_directory(directory: Path) -> None:
    """Deletes a directory so that an interruption leaves all of it or nothing under its name."""
    doomed = directory.with_name(f"{TEMPORARY_PREFIX}{directory.name}-{secrets.token_hex(4)}")
    os.replace(directory, doomed)
    shutil.rmtree(doomed)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys: `{"a": {"b": 1}}` becomes `{"a.b": 1}`; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_plain(values: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a sequence holds nothing but exact scalars, without a Python step for each: token lists are long."""
    kinds = set(map(type, values))
    return kinds <= _EXACT_KINDS or (kinds == {float} and all(map(math.isfinite, values)))


def _write_all(descriptor: int, content: bytes) -> None:
    """Writes all of `content`; `os.write` alone may stop early."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a line file, each with the offset at which its line ends.

    The last line is left out where it is torn. A crash of the machine can leave blocks of zeros in it, newline and all.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    end = 0
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise StoreError(
                f"'{path}', line {number}: wanted a JSON object, got {line[:40]!r} ({error}); "
                "the file was changed or damaged: restore it from a copy, or correct or remove that line"
            ) from error
        if not isinstance(record, dict):
            raise StoreError(f"'{path}', line {number}: wanted a JSON object, got {type(record).__name__}")
        yield record, end
