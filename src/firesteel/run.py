"""One training run on disk: its configuration, what it logged, its trees and its checkpoints.

On-disk format, version 1. `runs/NAME/` holds

    config.yaml       the resolved configuration; the first file written: a directory with it is a run
    environment.json  a list with one object for each start: versions, CPU threads, platform, `start_step`, and the
                      settings that were changed (`changed`)
    metrics.jsonl     one JSON object per line, keys sorted: `step`, the metrics, and where a value was NaN or infinite
                      null in its place and its name in the list `nonfinite`. Never a wall-clock figure
    timings.jsonl     the same shape; all wall-clock figures are here
    trees/            the scored trees, see `firesteel.store`
    checkpoints/      see `firesteel.checkpoint`
    summary.json      the final figures of the last session that finished
    lock              locked (flock) by the one process that writes to the run; names it

A checkpoint of step S is the state in which step S is the next to be done. Resuming takes the newest whole one, cuts
metrics and timings back to the lines before step S and drops the trees from step S on; without a checkpoint S is 0.
Training is a function of the restored state, so a run that was killed at any instant and resumed ends with the same
`metrics.jsonl`, trees and weights, byte for byte, as one that was not.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import socket
import warnings
from collections.abc import Collection, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from torch import Tensor

from firesteel import __version__
from firesteel import checkpoint as checkpoints
from firesteel.errors import CheckpointError, ConfigError, StoreError
from firesteel.files import (
    TEMPORARY_PREFIX,
    append_line,
    find_inexact,
    flatten,
    make_directory,
    remove_temporaries,
    truncate_jsonl,
    write_atomic,
    write_json_atomic,
)
from firesteel.store import Storable, TreeStore

Scalar = float | int | str | None
_LOGS = ("metrics.jsonl", "timings.jsonl")
_RESERVED = ("step", "nonfinite")
_VERSIONED_PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")
_held_locks: set[int] = set()


def _drop_locks_in_child() -> None:
    """A forked worker that outlives a killed trainer must not keep the run locked."""
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


class Run:
    """The one writer of a run directory. Made by `Run.create`; a context manager that unlocks the directory."""

    directory: Path
    config: dict[str, Any]
    start_step: int
    trees: TreeStore

    def __init__(self, directory: Path, config: dict[str, Any], config_hash: str, lock: int) -> None:
        """Use `Run.create`."""
        self.directory = directory
        self.config = config
        self.config_hash = config_hash
        self.start_step = 0
        self.trees = TreeStore(directory / "trees")
        self._lock = lock
        self._resumed_from: Path | None = None
        self._next_step_to_log = 0

    @classmethod
    def create(
        cls,
        directory: Path | str,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        may_differ: Collection[str] = (),
    ) -> Run:
        """Starts a run in a new directory, or with `resume` goes on in an old one from its newest whole checkpoint.

        `may_differ` names settings (dotted, a name covers what is below it) that a resumed run may change, such as
        "steps"; pass the same names every time, because they are left out of the hash that checkpoints carry.

        Raises:
            StoreError: without `resume`, the directory is not empty; with it, there is no run; or another process
                writes to it.
            CheckpointError: the stored configuration differs, or no checkpoint is whole.
            ConfigError: the configuration is not made of None, bool, int, finite float, str, list and dict.
        """
        path = Path(directory)
        plain = _plain_config(config)
        _check_directory(path, resume=resume)
        make_directory(path)
        with contextlib.ExitStack() as stack:
            lock = _take_lock(path)
            stack.callback(_release_lock, lock)
            # Another process may have started the run between the first look and the lock.
            _check_directory(path, resume=resume)
            remove_temporaries(path)
            run = cls(path, plain, config_hash(plain, ignore=may_differ), lock)
            changed = run._rewind(may_differ) if resume else []
            if changed or not resume:
                write_atomic(path / "config.yaml", _to_yaml(plain))
            run._record_environment(changed)
            stack.pop_all()
        return run

    def load_checkpoint(self) -> checkpoints.Checkpoint | None:
        """What to restore before the first step: the checkpoint resumed from, or None where the run starts at step 0.

        It is read anew on every call; its checksums were verified when the run was resumed.
        """
        if self._resumed_from is None:
            return None
        return checkpoints.load_checkpoint(self._resumed_from, config_hash=self.config_hash, verify=False)

    def log(self, step: int, metrics: Mapping[str, Scalar], timings: Mapping[str, float] | None = None) -> None:
        """Adds one line to `metrics.jsonl`, and one to `timings.jsonl` where timings are given; both are flushed.

        A step may be logged more than once. Raises `StoreError` where the step lies before an earlier one or before
        the newest checkpoint (on resume its line would be lost or doubled), or where a value is not a scalar.
        """
        self._require_writable(step)
        lines = [_log_line(step, metrics)]
        if timings is not None:
            lines.append(_log_line(step, timings))
        self._next_step_to_log = step
        for name, line in zip(_LOGS, lines, strict=False):
            append_line(self.directory / name, line)

    def add_trees(self, step: int, trees: Iterable[Storable]) -> int:
        """Stores the trees of one step and returns how many they were; see `TreeStore.append`."""
        self._require_writable(step)
        return self.trees.append(step, trees)

    def save_checkpoint(
        self,
        step: int,
        *,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        keep: int = 2,
        best_step: int | None = None,
    ) -> Path:
        """Saves the state in which `step` is the next to do, then deletes all but the last `keep` and the best.

        After step 9 was done and logged, `step` is 10. The checkpoint before the newest is what a run falls back to
        where the newest is damaged: keep 2 or more. Raises `CheckpointError` as `checkpoint.save_checkpoint` does.
        """
        self._require_writable(step)
        path = checkpoints.save_checkpoint(
            self.directory,
            step,
            tensors=tensors,
            state=state,
            config_hash=self.config_hash,
            best_step=best_step,
            keep=keep,
        )
        self._next_step_to_log = step
        checkpoints.prune_checkpoints(self.directory, keep=keep)
        return path

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces `summary.json`; raises `StoreError` where JSON cannot hold it exactly."""
        self._require_writable(self._next_step_to_log)
        write_json_atomic(self.directory / "summary.json", dict(summary))

    def close(self) -> None:
        """Unlocks the directory. Calling it twice is fine; nothing can be written afterwards."""
        _release_lock(self._lock)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_writable(self, step: int) -> None:
        if self._lock not in _held_locks:
            raise StoreError(
                f"run '{self.directory}' is closed here; only the process that created the Run writes to it"
            )
        if step < self._next_step_to_log:
            raise StoreError(
                f"run '{self.directory}': step {step} comes after step {self._next_step_to_log} was logged or saved "
                "in a checkpoint; log a step, then its checkpoint, in ascending order"
            )

    def _rewind(self, may_differ: Collection[str]) -> list[str]:
        """Brings the directory back to its newest whole checkpoint; returns the allowed changes of the configuration.

        Being killed in the middle does no harm: doing it again ends in the same state.
        """
        changed = _compare_configs(self.directory, self.config, may_differ)
        newest = checkpoints.latest_checkpoint(self.directory)
        if newest is not None:
            self.start_step = checkpoints.check_config(newest, self.config_hash)
        checkpoints.clean_checkpoints(self.directory, newest=newest)
        for name in _LOGS:
            truncate_jsonl(self.directory / name, before_step=self.start_step)
        if self.trees.directory.is_dir():
            remove_temporaries(self.trees.directory)
            self.trees.drop_from(self.start_step)
        self._resumed_from = newest
        self._next_step_to_log = self.start_step
        return changed

    def _record_environment(self, changed: list[str]) -> None:
        """Adds this start to `environment.json`; warns where it differs in what can change the bits of a result."""
        path = self.directory / "environment.json"
        starts = json.loads(path.read_bytes()) if path.exists() else []
        record = environment_record()
        if starts:
            before = {key: starts[-1].get(key) for key in record}
            different = [f"{key} {before[key]} -> {record[key]}" for key in record if before[key] != record[key]]
            if different:
                warnings.warn(
                    f"run '{self.directory}' goes on in another environment ({', '.join(different)}): "
                    "it may not end with the same bits",
                    RuntimeWarning,
                    stacklevel=4,
                )
        starts.append({**record, "start_step": self.start_step, "changed": changed})
        write_json_atomic(path, starts)


def is_run(directory: Path | str) -> bool:
    """Whether `directory` holds a run that can be resumed."""
    return (Path(directory) / "config.yaml").exists()


def runs_in(directory: Path | str) -> list[str]:
    """The runs in a directory and in its folders (the arms of a comparison), as paths below it, sorted."""
    found = [file for pattern in ("*/config.yaml", "*/*/config.yaml") for file in Path(directory).glob(pattern)]
    return sorted(file.parent.relative_to(directory).as_posix() for file in found)


def config_hash(config: Mapping[str, Any], *, ignore: Collection[str] = ()) -> str:
    """A hash of the settings, whatever their order; those named in `ignore` do not count."""
    counted = {key: value for key, value in flatten(config).items() if not _is_covered(key, ignore)}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def environment_record() -> dict[str, Any]:
    """What the bits of a result may depend on besides the configuration: versions, threads, platform, devices."""
    versions = {name: _version(name) for name in _VERSIONED_PACKAGES}
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "cuda_devices": devices,
        "firesteel": __version__,
        **versions,
    }


@functools.cache
def _version(package: str) -> str | None:
    """The installed version; None where the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as YAML gives it back."""
    flaw = find_inexact(dict(config), allow_tuples=True)
    if flaw is not None:
        raise ConfigError(f"the configuration cannot be stored: {flaw}")
    plain: dict[str, Any] = json.loads(json.dumps(config))
    if yaml.safe_load(_to_yaml(plain)) != plain:
        raise ConfigError("the configuration does not survive YAML; does a string hold control characters?")
    return plain


def _to_yaml(config: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(config), sort_keys=False).encode()


def _check_directory(directory: Path, *, resume: bool) -> None:
    """Refuses to resume what is no run, and to start a run where anything lies already."""
    if resume and not is_run(directory):
        raise StoreError(f"'{directory}' holds no run to resume (no config.yaml); start it without --resume")
    if resume or not directory.exists():
        return
    if is_run(directory):
        raise StoreError(
            f"'{directory}' already holds a run; continue it with --resume {directory}, give the new one another name "
            "(name=OTHER), or remove the directory"
        )
    # A start that was killed before its config.yaml leaves these two, and nothing that was earned.
    others = [p.name for p in directory.iterdir() if p.name != "lock" and not p.name.startswith(TEMPORARY_PREFIX)]
    if others:
        raise StoreError(
            f"'{directory}' is not empty (it holds '{sorted(others)[0]}'); give the run another name (name=OTHER)"
        )


def _compare_configs(directory: Path, config: dict[str, Any], may_differ: Collection[str]) -> list[str]:
    """The settings that changed and may; raises `CheckpointError` listing all that changed and may not."""
    try:
        stored = yaml.safe_load((directory / "config.yaml").read_bytes())
    except yaml.YAMLError as error:
        raise StoreError(f"'{directory / 'config.yaml'}' is damaged: {error}; restore it from a copy") from error
    if not isinstance(stored, dict):
        raise StoreError(f"'{directory / 'config.yaml'}' is damaged: wanted a mapping; restore it from a copy")
    old, new = flatten(stored), flatten(config)
    allowed: list[str] = []
    refused: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new and old[key] == new[key]:
            continue
        change = f"{key}: stored {_show(old, key)}, given {_show(new, key)}"
        (allowed if _is_covered(key, may_differ) else refused).append(change)
    if refused:
        raise CheckpointError(
            f"run '{directory}' was started with another configuration ({'; '.join(refused)}); "
            "resume it with the stored settings, or start a new run under another name"
        )
    return allowed


def _show(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "nothing"


def _is_covered(key: str, names: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _take_lock(directory: Path) -> int:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise StoreError(f"run '{directory}' is being written by {holder}; wait for it or stop it first") from error
    _held_locks.add(descriptor)
    with contextlib.ExitStack() as stack:
        stack.callback(_release_lock, descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        stack.pop_all()
    return descriptor


def _release_lock(descriptor: int) -> None:
    if descriptor in _held_locks:
        _held_locks.discard(descriptor)
        os.close(descriptor)


def _log_line(step: int, values: Mapping[str, Scalar]) -> str:
    """One line of a log; NaN and infinities become null and are named in `nonfinite`."""
    row: dict[str, Any] = {"step": step}
    nonfinite = []
    for name, value in values.items():
        if name in _RESERVED:
            raise StoreError(f"step {step}: a metric cannot be called '{name}'; the log uses that key")
        if value is not None and not isinstance(value, (bool, int, float, str)):
            raise StoreError(
                f"step {step}: metric '{name}' is a {type(value).__name__}; give a float, int, str or None"
            )
        if isinstance(value, float) and not math.isfinite(value):
            nonfinite.append(name)
            value = None
        row[name] = value
    if nonfinite:
        row["nonfinite"] = sorted(nonfinite)
    return json.dumps(row, allow_nan=False, sort_keys=True)
