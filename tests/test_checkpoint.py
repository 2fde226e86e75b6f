"""Tests of firesteel.checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import outlives, recorded, survives
from safetensors.torch import load_file
from torch import Tensor

from firesteel.checkpoint import (
    Checkpoint,
    clean_checkpoints,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)
from firesteel.errors import CheckpointError

MODEL = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([0.1, -0.0])}


def save(run: Path, step: int, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "tensors": {"model": MODEL, "optimizer": {"step": torch.tensor(3.0)}},
        "state": {"seen": step, "best": 0.1, "names": ["a", None]},
        "config_hash": "abc",
    }
    return save_checkpoint(run, step, **{**arguments, **changes})


def names(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def damage(path: Path) -> None:
    """Flips the last bit of a file."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal names, dtypes and bits; -0.0 is not 0.0."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and first[name].contiguous().view(torch.uint8).equal(second[name].contiguous().view(torch.uint8))
        if first[name].dim()
        else first[name].equal(second[name])
        for name in first
    )


# Saving and loading


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    path = save(tmp_path, 10, best_step=5)
    assert path == tmp_path / "checkpoints" / "step-000010"
    loaded = load_checkpoint(path)
    assert isinstance(loaded, Checkpoint)
    assert (loaded.path, loaded.step, loaded.best_step, loaded.config_hash) == (path, 10, 5, "abc")
    assert same(loaded.tensors["model"], MODEL)
    assert loaded.tensors["optimizer"]["step"].equal(torch.tensor(3.0))
    assert loaded.state == {"seen": 10, "best": 0.1, "names": ["a", None]}
    assert list(loaded.state) == ["seen", "best", "names"]


def test_the_files_are_exactly_what_the_format_says(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert sorted(os.listdir(path)) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    manifest = json.loads((path / "manifest.json").read_text())
    checksum = manifest.pop("manifest_sha256")
    compact = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert checksum == hashlib.sha256(compact.encode()).hexdigest()
    assert {key: manifest[key] for key in ("format_version", "step", "best_step", "config_hash")} == {
        "format_version": 1,
        "step": 1,
        "best_step": None,
        "config_hash": "abc",
    }
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert sorted(manifest["files"]) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    # Other programs read the tensors as they are.
    assert same(load_file(path / "model.safetensors"), MODEL)
    modes = {(path / name).stat().st_mode for name in os.listdir(path)}
    assert len(modes) == 1


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 1), save(tmp_path / "b", 1)
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_tied_viewed_and_odd_tensors_come_back_equal(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "embedding": base,
        "head": base,
        "transposed": base.t(),
        "row": base[1],
        "column": base[:, 2],
        "expanded": torch.ones(1).expand(4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "other_empty": torch.empty(0, 3),
        "half": torch.tensor([1.0, 3.0], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "not_a_number": torch.tensor([float("inf")]),
    }
    path = save(tmp_path, 0, tensors={"model": tensors})
    loaded = load_checkpoint(path).tensors["model"]
    assert same(loaded, {name: tensor.detach() for name, tensor in tensors.items()})
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["model.safetensors"]["aliases"] == {"head": "embedding"}
    assert save(tmp_path, 1, tensors={"optimizer": {}}).exists()


def test_only_the_named_files_are_read(tmp_path: Path) -> None:
    path = save(tmp_path, 0)
    damage(path / "optimizer.safetensors")
    assert list(load_checkpoint(path, names=["model"]).tensors) == ["model"]
    with pytest.raises(CheckpointError, match=r"has no 'adapter'; it has model\.safetensors, optimizer\.safetensors"):
        load_checkpoint(path, names=["adapter"])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": {"best": float("-inf")}}, "the state of checkpoint .*: best is -inf; store None"),
        ({"state": {"betas": (0.9, 0.99)}}, "betas is a tuple"),
        ({"tensors": {"../model": {}}}, "'../model' is not a file name"),
    ],
)
def test_what_cannot_be_given_back_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 0, **changes)
    assert list_checkpoints(tmp_path) == []


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    save(tmp_path, 3)
    with pytest.raises(CheckpointError, match="exists already"):
        save(tmp_path, 3)


# Damage


def test_every_damaged_file_is_named_with_both_checksums(tmp_path: Path) -> None:
    older, path = save(tmp_path, 1), save(tmp_path, 2)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        content = (path / name).read_bytes()
        wanted = hashlib.sha256(content).hexdigest()
        for position in (0, len(content) // 2, len(content) - 1):
            changed = content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
            (path / name).write_bytes(changed)
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(path)
            for part in (f"step-000002': {name} is damaged", wanted, hashlib.sha256(changed).hexdigest()):
                assert part in str(caught.value)
            assert str(caught.value).endswith(f"restore it from a copy, or use the older '{older}'")
        (path / name).write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=f"{name} is damaged: wanted {len(content)} bytes"):
            verify_checkpoint(path)
        (path / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            load_checkpoint(path)
        (path / name).write_bytes(content)
    load_checkpoint(path)


def test_every_damaged_byte_of_a_manifest_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 2) / "manifest.json"
    content = path.read_bytes()
    wanted = json.loads(content)
    for position in range(0, len(content), 3):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            unchanged = json.loads(path.read_bytes()) == wanted
        except ValueError:
            unchanged = False
        if not unchanged:
            with pytest.raises(CheckpointError, match="step-000002"):
                load_checkpoint(path.parent)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: it has no manifest\.json; restore"):
        load_checkpoint(path.parent)


def rewrite_manifest(path: Path, **changes: Any) -> None:
    """Changes a manifest as another writer would, its own checksum included."""
    manifest = {**json.loads((path / "manifest.json").read_text()), **changes}
    del manifest["manifest_sha256"]
    compact = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["manifest_sha256"] = hashlib.sha256(compact.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_newer_format_asks_for_an_upgrade_and_is_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    rewrite_manifest(path, format_version=2)
    for read in (lambda: load_checkpoint(path), lambda: latest_checkpoint(tmp_path)):
        with pytest.raises(CheckpointError, match="has format 2, but this firesteel reads up to 1; upgrade firesteel"):
            read()


def test_another_configuration_or_step_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert load_checkpoint(path, config_hash="abc").step == 1
    with pytest.raises(CheckpointError, match="another configuration: wanted hash xyz, got abc"):
        load_checkpoint(path, config_hash="xyz")
    moved = path.rename(path.with_name("step-000009"))
    with pytest.raises(CheckpointError, match="was written as step 1"):
        load_checkpoint(moved)
    # A copy under a name of its own is fine.
    assert load_checkpoint(moved.rename(tmp_path / "for_evaluation")).step == 1


# The latest


def test_the_latest_is_the_newest_whole_one(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    paths = [save(tmp_path, step) for step in (9, 10, 1_000_000)]
    assert latest_checkpoint(tmp_path) == paths[2]
    damage(paths[2] / "model.safetensors")
    with pytest.warns(RuntimeWarning, match=r"step-1000000': model\.safetensors is damaged: .*going back"):
        assert latest_checkpoint(tmp_path) == paths[1]
    (paths[1] / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match="step-1000000"):
        assert latest_checkpoint(tmp_path) == paths[0]
    (paths[0] / "manifest.json").write_text("{}")
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="all 2 checkpoints in .* are damaged"):
        latest_checkpoint(tmp_path)
    assert len(names(tmp_path)) == 3


def test_cleaning_deletes_the_unfinished_and_sets_the_newer_aside(tmp_path: Path) -> None:
    clean_checkpoints(tmp_path, newest=None)
    paths = [save(tmp_path, step) for step in (1, 2, 3)]
    (paths[2] / "manifest.json").unlink()
    (tmp_path / "checkpoints" / ".tmp-step-000004").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    clean_checkpoints(tmp_path, newest=paths[0])
    assert names(tmp_path) == ["damaged-step-000002", "notes", "step-000001"]
    save(tmp_path, 2)
    clean_checkpoints(tmp_path, newest=paths[0])
    assert names(tmp_path) == ["damaged-step-000002", "damaged-step-000002-2", "notes", "step-000001"]


def test_pruning_keeps_the_last_and_the_best_that_they_name(tmp_path: Path) -> None:
    for step, best in ((1, None), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4)):
        save(tmp_path, step, best_step=best)
    prune_checkpoints(tmp_path, keep=3)
    assert names(tmp_path) == ["step-000004", "step-000005", "step-000006"]
    save(tmp_path, 7, best_step=4)
    prune_checkpoints(tmp_path, keep=1)
    assert names(tmp_path) == ["step-000004", "step-000007"]
    # The one before the newest may name another best: both stay, so that going back to it finds its own.
    save(tmp_path, 8, best_step=8)
    prune_checkpoints(tmp_path, keep=2)
    assert names(tmp_path) == ["step-000004", "step-000007", "step-000008"]
    with pytest.raises(CheckpointError, match="keep must be at least 1, got 0"):
        prune_checkpoints(tmp_path, keep=0)


def test_cleaning_prunes_as_the_newest_was_saved_with_even_beside_a_damaged_older_one(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, best_step=step, keep=2) for step in (1, 2, 3)]
    (paths[1] / "manifest.json").write_text("{}")
    clean_checkpoints(tmp_path, newest=paths[2])
    assert names(tmp_path) == ["step-000002", "step-000003"]


# Crashes


@pytest.mark.parametrize("disturb", ["fail", "kill"])
def test_saving_is_all_or_nothing_at_every_fault(tmp_path: Path, disturb: str) -> None:
    seen = []
    for at in range(60):
        run = tmp_path / str(at)
        old = save(run, 1)

        def work(run: Path = run) -> None:
            save(run, 2, best_step=2)

        done = survives(work, failing=at) if disturb == "fail" else outlives(work, killed_at=at)
        newest = latest_checkpoint(run)
        assert newest is not None
        seen.append(load_checkpoint(newest).step)
        assert load_checkpoint(old).step == 1
        if done:
            break
        clean_checkpoints(run, newest=newest)
        assert names(run) == ["step-000001", "step-000002"][: seen[-1]]
        if seen[-1] == 1:
            save(run, 2)
        assert load_checkpoint(run / "checkpoints" / "step-000002").step == 2
    # The move of the directory is the last change but one; the flush of its parent and the run without a fault follow.
    assert seen == [1] * (len(seen) - 2) + [2, 2] and len(seen) > 10


def test_pruning_and_cleaning_leave_whole_checkpoints_at_every_fault(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path / "source", step)
    for at in range(60):
        run = tmp_path / str(at)
        shutil.copytree(tmp_path / "source", run)
        (run / "checkpoints" / "step-000004").mkdir()

        def work(run: Path = run) -> None:
            prune_checkpoints(run, keep=1)
            clean_checkpoints(run, newest=latest_checkpoint(run))

        done = outlives(work, killed_at=at)
        assert {path.name for path in list_checkpoints(run)} >= {"step-000003"}
        for path in list_checkpoints(run):
            verify_checkpoint(path)
        if done:
            break
        work()
        assert names(run) == ["step-000003"]
    assert at > 10


def test_every_file_is_flushed_before_the_directory_moves_into_place(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with recorded() as calls:
        path = save(tmp_path, 2)
    temporary = path.with_name(f".tmp-{path.name}")
    moves = [index for index, call in enumerate(calls) if call[0] == "replace" and Path(call[1][1]) == path]
    assert len(moves) == 1
    flushed = [os.fspath(arguments[0]) for name, arguments in calls[: moves[0]] if name == "fsync"]
    # Small files are flushed under a temporary name of their own, and moved before the directory is.
    assert os.fspath(temporary / "model.safetensors") in flushed
    assert os.fspath(temporary / "optimizer.safetensors") in flushed
    for name in ("state.json", "manifest.json"):
        assert any(file.startswith(os.fspath(temporary / f".tmp-{name}-")) for file in flushed)
    assert flushed[-1] == os.fspath(temporary)
    after = [os.fspath(arguments[0]) for name, arguments in calls[moves[0] :] if name == "fsync"]
    assert after == [os.fspath(path.parent)]
