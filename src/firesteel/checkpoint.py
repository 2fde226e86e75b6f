"""Checkpoints: everything that a run needs to go on as if it had never stopped.

On-disk format, version 1. `RUN/checkpoints/step-000010/` is the state in which step 10 is the next to be done. It holds

    model.safetensors, optimizer.safetensors, ...   one file per entry of `tensors`
    state.json      the caller's `state`, its order of keys kept: random states, curriculum, criterion, counters,
                    scalars of the optimizer
    manifest.json   written last:
                    {"format_version": 1, "step": 10, "best_step": 5 or null, "keep": 2 or null, "config_hash": "...",
                     "files": {"model.safetensors": {"bytes": ..., "sha256": "...",
                                                     "aliases": {"lm_head.weight": "model.embed_tokens.weight"}}, ...},
                     "manifest_sha256": of the same object without this key, as compact JSON with sorted keys}

Tied tensors are stored once; `aliases` names the others. A checkpoint is written as `.tmp-step-000010`, flushed file by
file, and renamed, so a directory named `step-...` is complete. One without a manifest is ignored and cleaned up on
resume; one whose checksums fail is set aside as `damaged-step-...`. A deleted checkpoint is renamed before it goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from firesteel.errors import CheckpointError, StoreError
from firesteel.files import (
    TEMPORARY_PREFIX,
    exact_json,
    make_directory,
    remove_directory,
    remove_temporaries,
    sha256_of,
    sync_directory,
    sync_file,
    write_atomic,
)

FORMAT_VERSION = 1
DIRECTORY = "checkpoints"
_MANIFEST = "manifest.json"
_STATE = "state.json"
_NAME = re.compile(r"step-(\d{6,})")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_-]+")


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is not what was written; an older one may still be."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint. `step` is the next step to do; all tensors are on the CPU."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    config_hash: str
    best_step: int | None


def save_checkpoint(
    run_directory: Path | str,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    config_hash: str,
    best_step: int | None = None,
    keep: int | None = None,
) -> Path:
    """Writes `RUN/checkpoints/step-...` and returns it; until the call returns, the earlier checkpoints are the newest.

    `tensors` maps file names without ending ("model", "adapter", "optimizer") to named tensors, whose order is not
    kept. `best_step` names the checkpoint that is best on validation so far (it may be this one), which
    `prune_checkpoints` keeps. `keep` is written down for `clean_checkpoints`; nothing is deleted here.

    Raises:
        CheckpointError: this step has a checkpoint already, a name is not a file name, or JSON cannot hold the state.
    """
    parent = Path(run_directory) / DIRECTORY
    final = parent / f"step-{step:06d}"
    if final.exists():
        raise CheckpointError(f"checkpoint '{final}' exists already; a step is saved once, so delete it or go on")
    for name in tensors:
        if not _TENSOR_NAME.fullmatch(name):
            raise CheckpointError(f"checkpoint '{final}': '{name}' is not a file name of letters, digits, '-' and '_'")
    state_text = _state_text(state, final)
    make_directory(parent)
    temporary = parent / f"{TEMPORARY_PREFIX}{final.name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        temporary.mkdir()
        state_path = temporary / _STATE
        write_atomic(state_path, state_text.encode())
        files: dict[str, dict[str, Any]] = {_STATE: _fingerprint(state_path)}
        for name, named_tensors in tensors.items():
            stored, aliases = _untie(named_tensors)
            path = temporary / f"{name}.safetensors"
            safetensors.torch.save_file(stored, path, metadata={"format": "pt"})
            # safetensors makes files that only their owner can read, whatever the umask.
            shutil.copymode(state_path, path)
            sync_file(path)
            files[path.name] = {**_fingerprint(path), "aliases": aliases}
        body: dict[str, Any] = {"format_version": FORMAT_VERSION, "step": step, "best_step": best_step, "keep": keep}
        body |= {"config_hash": config_hash, "files": files}
        manifest = {**body, "manifest_sha256": _manifest_hash(body)}
        write_atomic(temporary / _MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
        os.replace(temporary, final)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    sync_directory(parent)
    return final


def load_checkpoint(
    path: Path | str,
    *,
    names: Collection[str] | None = None,
    config_hash: str | None = None,
    verify: bool = True,
) -> Checkpoint:
    """Reads a checkpoint and checks every byte that it reads against the manifest.

    `names` limits the tensor files, for example to `["model"]` for an evaluation. `verify=False` skips the checksums of
    a checkpoint that has just been verified.

    Raises:
        CheckpointError: it is missing, damaged, of a newer format, or of another configuration than `config_hash`.
    """
    directory = Path(path)
    manifest = _read_manifest(directory)
    if config_hash is not None:
        check_config(directory, config_hash)
    wanted = [name for name in manifest["files"] if name != _STATE]
    if names is not None:
        missing = sorted(set(names) - {Path(name).stem for name in wanted})
        if missing:
            raise CheckpointError(f"checkpoint '{directory}' has no '{missing[0]}'; it has {', '.join(wanted)}")
        wanted = [name for name in wanted if Path(name).stem in names]
    if verify:
        for name in [*wanted, _STATE]:
            _verify_file(directory, name, manifest["files"][name])
    tensors = {Path(name).stem: _read_tensors(directory, name, manifest["files"][name]["aliases"]) for name in wanted}
    return Checkpoint(
        path=directory,
        step=manifest["step"],
        tensors=tensors,
        state=json.loads((directory / _STATE).read_bytes()),
        config_hash=manifest["config_hash"],
        best_step=manifest["best_step"],
    )


def check_config(path: Path | str, config_hash: str) -> int:
    """Returns the step of a checkpoint; raises `CheckpointError` where it carries another hash than `config_hash`."""
    manifest = _read_manifest(Path(path))
    if manifest["config_hash"] != config_hash:
        raise CheckpointError(
            f"checkpoint '{path}' belongs to another configuration: wanted hash {config_hash}, "
            f"got {manifest['config_hash']}; continue its own run, or start a new one under another name"
        )
    step: int = manifest["step"]
    return step


def verify_checkpoint(path: Path | str) -> None:
    """Checks the manifest and the checksum of every file; raises `CheckpointError` as `load_checkpoint` does."""
    directory = Path(path)
    for name, entry in _read_manifest(directory)["files"].items():
        _verify_file(directory, name, entry)


def list_checkpoints(run_directory: Path | str) -> list[Path]:
    """The complete checkpoints of a run, oldest first; their checksums are not looked at."""
    found = []
    for path in (Path(run_directory) / DIRECTORY).glob("step-*"):
        match = _NAME.fullmatch(path.name)
        if match and (path / _MANIFEST).exists():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def latest_checkpoint(run_directory: Path | str) -> Path | None:
    """The newest checkpoint that is whole, or None where the run has none. Nothing on the disk is changed.

    A damaged one is passed over with a `RuntimeWarning`.

    Raises:
        CheckpointError: all are damaged, or the newest is of a newer format (going back would lose its work).
    """
    paths = list_checkpoints(run_directory)
    for path in reversed(paths):
        try:
            verify_checkpoint(path)
        except DamagedCheckpoint as error:
            warnings.warn(f"{error}; going back to an older one", RuntimeWarning, stacklevel=2)
        else:
            return path
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints in '{paths[0].parent}' are damaged; restore one from a copy, "
            "or delete them to start the run again from step 0"
        )
    return None


def prune_checkpoints(run_directory: Path | str, *, keep: int) -> None:
    """Deletes all but the last `keep` checkpoints and those that they name as the best so far."""
    if keep < 1:
        raise CheckpointError(f"keep must be at least 1, got {keep}")
    paths = list_checkpoints(run_directory)
    kept = set(paths[-keep:])
    best = {_best_step(path) for path in kept}
    for path in paths:
        if path not in kept and _step_of(path) not in best:
            remove_directory(path)


def clean_checkpoints(run_directory: Path | str, *, newest: Path | None) -> None:
    """Deletes what interrupted writes left and sets aside what is newer than `newest`, the one to resume from.

    What `newest` was saved with as `keep` is applied again: the writer may have been killed before it could. Only the
    process that holds the run's lock may call this.
    """
    parent = Path(run_directory) / DIRECTORY
    if not parent.is_dir():
        return
    remove_temporaries(parent)
    for path in sorted(parent.iterdir()):
        if not _NAME.fullmatch(path.name):
            continue
        if not (path / _MANIFEST).exists():
            remove_directory(path)
        elif newest is None or _step_of(path) > _step_of(newest):
            os.replace(path, _free_name(parent, f"damaged-{path.name}"))
    sync_directory(parent)
    keep = None if newest is None else _read_manifest(newest).get("keep")
    if keep is not None:
        prune_checkpoints(run_directory, keep=keep)


def _best_step(path: Path) -> int | None:
    """What a checkpoint names as the best; None too where its manifest is damaged, as an older one's may be."""
    try:
        best: int | None = _read_manifest(path)["best_step"]
    except DamagedCheckpoint:
        return None
    return best


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _free_name(parent: Path, name: str) -> Path:
    candidate, number = parent / name, 1
    while candidate.exists():
        number += 1
        candidate = parent / f"{name}-{number}"
    return candidate


def _state_text(state: Mapping[str, Any], path: Path) -> str:
    try:
        return exact_json(dict(state), name=f"the state of checkpoint '{path}'")
    except StoreError as error:
        raise CheckpointError(str(error)) from error


def _untie(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as safetensors wants them (CPU, contiguous, nothing shared), and for each tied one the name it equals."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in storages:
            copy = copy.clone()
        storages.add(copy.untyped_storage().data_ptr())
        stored[name] = copy
    return stored, aliases


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _manifest_hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / _MANIFEST
    if not path.exists():
        raise CheckpointError(f"'{directory}' is not a checkpoint: it has no {_MANIFEST}{_older(directory)}")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedCheckpoint(
            f"checkpoint '{directory}': {_MANIFEST} is damaged: {error}{_older(directory)}"
        ) from error
    body = dict(manifest) if isinstance(manifest, dict) else {}
    version = body.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint '{directory}' has format {version}, but this firesteel reads up to {FORMAT_VERSION}; "
            "upgrade firesteel"
        )
    wanted = body.pop("manifest_sha256", None)
    got = _manifest_hash(body)
    if wanted != got:
        raise DamagedCheckpoint(
            f"checkpoint '{directory}': {_MANIFEST} is damaged: sha256 wanted {wanted}, got {got}{_older(directory)}"
        )
    if _NAME.fullmatch(directory.name) and body["step"] != _step_of(directory):
        raise CheckpointError(
            f"checkpoint '{directory}' was written as step {body['step']}; give the directory its name back"
        )
    return body


def _verify_file(directory: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = directory / name
    if not path.exists():
        raise DamagedCheckpoint(f"checkpoint '{directory}': {name} is missing{_older(directory)}")
    got = _fingerprint(path)
    if got != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
        raise DamagedCheckpoint(
            f"checkpoint '{directory}': {name} is damaged: wanted {entry['bytes']} bytes with sha256 "
            f"{entry['sha256']}, got {got['bytes']} bytes with sha256 {got['sha256']}{_older(directory)}"
        )


def _read_tensors(directory: Path, name: str, aliases: Mapping[str, str]) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(directory / name, device="cpu")
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"checkpoint '{directory}': {name}: {error}{_older(directory)}") from error
    return tensors | {alias: tensors[original] for alias, original in aliases.items()}


def _older(directory: Path) -> str:
    """What to do: names the next older checkpoint, where there is one."""
    if not _NAME.fullmatch(directory.name):
        return "; restore it from a copy"
    older = [path for path in list_checkpoints(directory.parent.parent) if _step_of(path) < _step_of(directory)]
    return f"; restore it from a copy, or use the older '{older[-1]}'" if older else "; restore it from a copy"
