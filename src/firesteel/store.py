"""Scored trees on disk: append-only, crash-safe, plain JSON lines.

On-disk format, version 1. One directory (`RUN/trees/`) holds two files for every training step that stored trees:

    step-000012.jsonl    one tree per line: the JSON object of `Tree.to_dict()`, with its own `format_version`
    step-000012.sha256   two lines:
                         # firesteel trees, format 1, step 12, 32 trees
                         <SHA-256 of step-000012.jsonl, hexadecimal>  step-000012.jsonl

Step numbers have at least six digits. Both files are written aside and moved into place, the `.sha256` first: a shard
exists once its `.jsonl` does, whole and with its checksum; a `.sha256` alone is what an interrupted write left and
counts for nothing. Shards are never changed. Floats are written by `repr` and read back bit for bit.

The `.jsonl` files need no firesteel: `datasets.load_dataset("json", data_files="RUN/trees/*.jsonl")`,
`pandas.read_json(path, lines=True)`, and `sha256sum -c *.sha256` all work on them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from firesteel.errors import StoreError
from firesteel.files import find_inexact, make_directory, write_atomic
from firesteel.tree import FORMAT_VERSION as TREE_FORMAT_VERSION
from firesteel.tree import Tree

FORMAT_VERSION = 1
_SHARD_NAME = re.compile(r"step-(\d{6,})\.jsonl")
_SIDECAR = re.compile(r"# firesteel trees, format (\d+)(?:, step \d+, (\d+) trees\n([0-9a-f]{64}) )?")


class Storable(Protocol):
    """Whatever can be written as one JSON object; `Tree` is what the store is for."""

    def to_dict(self) -> dict[str, Any]:
        """The record, with an integer `format_version`."""
        ...


class TreeStore:
    """The trees of one directory, in shards of one training step each. `len` is the number of trees."""

    def __init__(self, directory: Path | str) -> None:
        """Nothing is read or created before it is needed."""
        self.directory = Path(directory)

    def __len__(self) -> int:
        return sum(self._sidecar(step)[0] for step in self.steps())

    def steps(self) -> list[int]:
        """The steps that have a shard, ascending."""
        matches = (_SHARD_NAME.fullmatch(path.name) for path in self.directory.glob("step-*.jsonl"))
        return sorted(int(match[1]) for match in matches if match)

    def append(self, step: int, trees: Iterable[Storable]) -> int:
        """Writes the trees of one step as one shard and returns how many they were; none write nothing.

        Raises:
            StoreError: the step is not later than every stored one, or a tree holds what JSON cannot give back.
        """
        return self._append_records(step, (tree.to_dict() for tree in trees))

    def import_jsonl(self, path: Path | str, *, step: int | None = None) -> int:
        """Stores the tree records of a JSON-lines file as one shard and returns how many they were.

        `step` defaults to the next free one. Every line must be a record that `Tree.from_dict` reads.

        Raises:
            StoreError: a line is not such a record; nothing is stored then.
        """
        source = Path(path)
        records = []
        for number, line in enumerate(source.read_bytes().splitlines(), start=1):
            if line.strip():
                records.append(_parse_tree(line, f"'{source}', line {number}"))
        known = self.steps()
        return self._append_records(step if step is not None else known[-1] + 1 if known else 0, records)

    def read(self, steps: Iterable[int] | None = None) -> Iterator[dict[str, Any]]:
        """The records of the given steps, or of all, in the order in which they were stored.

        Raises:
            StoreError: a step has no shard, or a shard is damaged or of a newer format. A shard is checked whole
                before its first record is given.
        """
        for step in self.steps() if steps is None else steps:
            yield from self._read_shard(step)

    def read_trees(self, steps: Iterable[int] | None = None) -> Iterator[Tree]:
        """Like `read`, as `Tree` objects equal to those that were stored."""
        return (Tree.from_dict(record) for record in self.read(steps))

    def drop_from(self, step: int) -> None:
        """Deletes the shards of `step` and later, the last first; what an interrupted write left goes too."""
        for known in reversed(self.steps()):
            if known >= step:
                self._shard_path(known).unlink()
        for sidecar in sorted(self.directory.glob("step-*.sha256")):
            if not sidecar.with_suffix(".jsonl").exists():
                sidecar.unlink()

    def _append_records(self, step: int, records: Iterable[dict[str, Any]]) -> int:
        known = self.steps()
        if step < 0 or (known and step <= known[-1]):
            raise StoreError(
                f"tree store '{self.directory}': step {step} cannot be added after step {known[-1] if known else -1}; "
                "steps are stored once and in ascending order (drop_from removes the later ones)"
            )
        lines = [_encode(record, index) for index, record in enumerate(records)]
        if not lines:
            return 0
        content = "".join(lines).encode()
        path = self._shard_path(step)
        make_directory(self.directory)
        sidecar = self._sidecar_text(step, len(lines), hashlib.sha256(content).hexdigest())
        # The checksum goes first, so that moving the shard into place is the one moment at which it begins to exist.
        write_atomic(path.with_suffix(".sha256"), sidecar.encode())
        write_atomic(path, content)
        return len(lines)

    def _shard_path(self, step: int) -> Path:
        return self.directory / f"step-{step:06d}.jsonl"

    def _sidecar_text(self, step: int, num_trees: int, checksum: str) -> str:
        head = f"# firesteel trees, format {FORMAT_VERSION}, step {step}, {num_trees} trees"
        return f"{head}\n{checksum}  {self._shard_path(step).name}\n"

    def _sidecar(self, step: int) -> tuple[int, str]:
        """The number of trees and the checksum that were written for a step."""
        path = self._shard_path(step).with_suffix(".sha256")
        if not path.exists():
            raise StoreError(f"'{path}' is missing, so the shard beside it cannot be checked; {self._advice(step)}")
        text = path.read_bytes().decode(errors="replace")
        match = _SIDECAR.match(text)
        if match and int(match[1]) > FORMAT_VERSION:
            raise StoreError(
                f"'{path}': shard format {match[1]}, but this firesteel reads up to {FORMAT_VERSION}; upgrade firesteel"
            )
        if not match or match[2] is None or text != self._sidecar_text(step, int(match[2]), match[3]):
            raise StoreError(f"'{path}' is damaged: not the checksum of step {step}; {self._advice(step)}")
        return int(match[2]), match[3]

    def _read_shard(self, step: int) -> list[dict[str, Any]]:
        path = self._shard_path(step)
        if not path.exists():
            raise StoreError(f"tree store '{self.directory}' has no step {step}; it has {_ranges(self.steps())}")
        num_trees, wanted = self._sidecar(step)
        content = path.read_bytes()
        got = hashlib.sha256(content).hexdigest()
        lines = content.split(b"\n")[:-1]
        if got != wanted or len(lines) != num_trees:
            raise StoreError(
                f"'{path}' is damaged{_first_broken_line(content)}: sha256 wanted {wanted}, got {got}; "
                f"{num_trees} lines wanted, {len(lines)} found; {self._advice(step)}"
            )
        return [_parse_line(line, f"'{path}', line {number}") for number, line in enumerate(lines, start=1)]

    def _advice(self, step: int) -> str:
        return (
            f"restore both files of the step from a copy, read the other steps with read(steps=...), "
            f"or give up step {step} and later with TreeStore('{self.directory}').drop_from({step})"
        )


def _encode(record: dict[str, Any], index: int) -> str:
    """One line; the tree's key order is kept, so that columns read in the order of the classes."""
    _check_version(record, f"tree {index}")
    flaw = find_inexact(record, allow_tuples=True)
    if flaw is not None:
        raise StoreError(f"tree {index} of the step cannot be stored exactly: {flaw}")
    return json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"


def _parse_line(line: bytes, name: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise StoreError(f"{name}: wanted a JSON object, got {line[:40]!r} ({error})") from error
    if not isinstance(record, dict):
        raise StoreError(f"{name}: wanted a JSON object, got {type(record).__name__}")
    _check_version(record, name)
    return record


def _parse_tree(line: bytes, name: str) -> dict[str, Any]:
    """The record of one line, which must be a tree."""
    record = _parse_line(line, name)
    try:
        Tree.from_dict(record).validate()
    except KeyError as error:
        raise StoreError(f"{name}: not a tree record: {error} is missing; write records with Tree.to_dict()") from error
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name}: not a tree record: {error}; write records with Tree.to_dict()") from error
    return record


def _check_version(record: dict[str, Any], name: str) -> None:
    version = record.get("format_version")
    if not isinstance(version, int):
        raise StoreError(f"{name}: wanted an integer 'format_version', got {version!r}; write records with to_dict()")
    if version > TREE_FORMAT_VERSION:
        raise StoreError(
            f"{name}: tree format {version}, but this firesteel reads up to {TREE_FORMAT_VERSION}; upgrade firesteel"
        )


def _first_broken_line(content: bytes) -> str:
    """Where the damage shows, such as " at line 3"; "" where every line is still JSON."""
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        is_end = number == len(lines)
        try:
            if line or not is_end:
                json.loads(line)
        except ValueError:
            return f" at line {number}"
        if is_end and line:
            return f" at line {number}"
    return ""


def _ranges(steps: list[int]) -> str:
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}" if steps else "none"
