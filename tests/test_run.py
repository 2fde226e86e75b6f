"""Tests of firesteel.run: the directory, the logs, resuming, and runs that are killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from crash_training import MIN_KILLS, differing_files, train
from faults import outlives, survives, without_flushing
from trees import uneven_tree

import firesteel
from firesteel.errors import CheckpointError, ConfigError, StoreError
from firesteel.files import read_jsonl
from firesteel.run import Run, config_hash, environment_record, is_run, runs_in

CONFIG: dict[str, Any] = {"seed": 3, "steps": 10, "rollout": {"leaves": 8, "tag": None}, "learning_rate": 1e-5}
ROOT = Path(__file__).resolve().parent.parent


def start(directory: Path, **changes: Any) -> Run:
    return Run.create(directory, CONFIG, **changes)


def save(run: Run, step: int, **changes: Any) -> Path:
    return run.save_checkpoint(step, tensors={"model": {"w": torch.tensor([step])}}, state={"step": step}, **changes)


def work_through(run: Run, steps: range, save_every: int = 2) -> None:
    """Steps that log, store a tree and save a checkpoint now and then."""
    for step in steps:
        run.add_trees(step, [uneven_tree(f"t{step}")])
        run.log(step, {"loss": 1 / (step + 1)}, {"step_s": 0.5})
        if (step + 1) % save_every == 0:
            save(run, step + 1)


# Starting


def test_a_new_run(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "first"
    assert not is_run(directory)
    with start(directory) as run:
        assert is_run(directory)
        assert (run.directory, run.config, run.start_step) == (directory, CONFIG, 0)
        assert run.load_checkpoint() is None
        run.write_summary({"success": 0.5})
    assert (directory / "config.yaml").read_text() == (
        "seed: 3\nsteps: 10\nrollout:\n  leaves: 8\n  tag: null\nlearning_rate: 1.0e-05\n"
    )
    assert yaml.safe_load((directory / "config.yaml").read_text()) == CONFIG
    assert json.loads((directory / "summary.json").read_text()) == {"success": 0.5}
    (only,) = json.loads((directory / "environment.json").read_text())
    assert only == {**environment_record(), "start_step": 0, "changed": []}
    assert sorted(os.listdir(directory)) == ["config.yaml", "environment.json", "lock", "summary.json"]


def test_the_environment_record_names_versions() -> None:
    record = environment_record()
    assert record["torch"] == torch.__version__ or record["torch"] in torch.__version__
    assert record["firesteel"] == firesteel.__version__
    assert record["cpu_threads"] == torch.get_num_threads()
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))


def test_earned_results_are_never_overwritten(tmp_path: Path) -> None:
    start(tmp_path / "a").close()
    with pytest.raises(StoreError, match=r"already holds a run; continue it with --resume .*/a, .*name=OTHER"):
        start(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").touch()
    with pytest.raises(StoreError, match=r"'.*/b' is not empty \(it holds 'notes\.txt'\)"):
        start(tmp_path / "b")
    assert os.listdir(tmp_path / "b") == ["notes.txt"]
    (tmp_path / "c").mkdir()
    start(tmp_path / "c").close()


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    for name in ("missing", "empty"):
        with pytest.raises(StoreError, match="holds no run to resume"):
            start(tmp_path / name, resume=True)
        (tmp_path / "empty").mkdir(exist_ok=True)
    assert os.listdir(tmp_path) == ["empty"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": {"b": float("nan")}}, r"a\.b is nan"),
        ({"a": Path("x")}, "a is a PosixPath"),
        ({"a": {1: 2}}, "a has the key 1"),
    ],
)
def test_a_configuration_that_cannot_be_stored(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Run.create(tmp_path / "a", config)
    assert not (tmp_path / "a").exists()


def test_tuples_in_a_configuration_become_lists(tmp_path: Path) -> None:
    with Run.create(tmp_path / "a", {"betas": (0.9, 0.95)}) as run:
        assert run.config == {"betas": [0.9, 0.95]}
    Run.create(tmp_path / "a", {"betas": (0.9, 0.95)}, resume=True).close()


# One writer


def test_two_writers_exclude_each_other(tmp_path: Path) -> None:
    run = start(tmp_path / "a")
    with pytest.raises(StoreError, match=f"is being written by process {os.getpid()} on .*; wait for it or stop it"):
        start(tmp_path / "a", resume=True)
    run.close()
    run.close()
    start(tmp_path / "a", resume=True).close()


def test_a_lock_lasts_as_long_as_its_process_and_not_as_the_workers_it_forked(tmp_path: Path) -> None:
    # The trainer ends without closing the run; its worker lives until its standard input closes.
    program = (
        "import os, sys; from firesteel.run import Run\n"
        "run = Run.create(sys.argv[1], {})\n"
        "print(os.getpid(), flush=True); sys.stdin.readline()\n"
        "worker = os.fork()\n"
        "if worker == 0: sys.stdin.read()\n"
        "else: print(worker, flush=True)\n"
        "os._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "a")]
    trainer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None and trainer.stdin is not None
    with trainer.stdout, trainer.stdin:
        assert int(trainer.stdout.readline()) == trainer.pid
        with pytest.raises(StoreError, match=f"is being written by process {trainer.pid} on"):
            Run.create(tmp_path / "a", {}, resume=True)
        trainer.stdin.write("\n")
        trainer.stdin.flush()
        worker = int(trainer.stdout.readline())
        assert trainer.wait(timeout=60) == 0
        os.kill(worker, 0)  # raises where the worker is gone
        (tmp_path / "a" / "environment.json").unlink()  # its number of threads may be another than here
        Run.create(tmp_path / "a", {}, resume=True).close()


def test_a_closed_run_writes_nothing(tmp_path: Path) -> None:
    run = start(tmp_path / "a")
    run.close()
    for write in (
        lambda: run.log(0, {}),
        lambda: run.add_trees(0, []),
        lambda: save(run, 0),
        lambda: run.write_summary({}),
    ):
        with pytest.raises(StoreError, match="is closed here"):
            write()
    assert sorted(os.listdir(run.directory)) == ["config.yaml", "environment.json", "lock"]


# Logging


def test_log_lines_are_exact(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        run.log(0, {"z": 0.1 + 0.2, "a": 3, "ok": True, "name": "x\n", "none": None}, {"step_s": 0.25})
        run.log(0, {"b": float("nan"), "a": float("-inf"), "c": np.float64(0.1)})
        run.log(2, {})
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == (
        '{"a": 3, "name": "x\\n", "none": null, "ok": true, "step": 0, "z": 0.30000000000000004}\n'
        '{"a": null, "b": null, "c": 0.1, "nonfinite": ["a", "b"], "step": 0}\n'
        '{"step": 2}\n'
    )
    assert (tmp_path / "a" / "timings.jsonl").read_text() == '{"step": 0, "step_s": 0.25}\n'


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": torch.tensor(1.0)}, "metric 'loss' is a Tensor; give a float, int, str or None"),
        ({"loss": [1.0]}, "metric 'loss' is a list"),
        ({"step": 1}, "cannot be called 'step'"),
        ({"nonfinite": 1}, "cannot be called 'nonfinite'"),
    ],
)
def test_what_is_no_metric_is_refused(tmp_path: Path, metrics: dict[str, Any], message: str) -> None:
    with start(tmp_path / "a") as run, pytest.raises(StoreError, match=message):
        run.log(0, metrics)
    assert not (tmp_path / "a" / "metrics.jsonl").exists()


def test_nothing_is_written_behind_a_checkpoint(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        run.log(1, {})
        with pytest.raises(StoreError, match="step 0 comes after step 1 was logged or saved"):
            run.log(0, {})
        save(run, 2)
        for write in (lambda: run.log(1, {}), lambda: run.add_trees(1, [uneven_tree()]), lambda: save(run, 1)):
            with pytest.raises(StoreError, match="step 1 comes after step 2"):
                write()
        run.log(2, {})


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        run.log(0, {"a": 1}, {"s": 1})
        failing = 0
        while not survives(lambda: run.log(1, {"a": 2}, {"s": 2}), failing=failing):
            for name in ("metrics.jsonl", "timings.jsonl"):
                assert all(line.endswith(b"\n") for line in (tmp_path / "a" / name).read_bytes().splitlines(True))
            failing += 1
        assert failing == 4  # two files, each written and flushed
    assert read_jsonl(tmp_path / "a" / "timings.jsonl") == [{"s": 1, "step": 0}, {"s": 2, "step": 1}]


# Resuming


def test_resuming_goes_back_to_the_newest_checkpoint(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        work_through(run, range(5))
        content = (tmp_path / "a" / "metrics.jsonl").read_bytes()
    with start(tmp_path / "a", resume=True) as run:
        assert run.start_step == 4
        checkpoint = run.load_checkpoint()
        assert checkpoint is not None
        assert (checkpoint.step, checkpoint.state) == (4, {"step": 4})
        assert checkpoint.tensors["model"]["w"].tolist() == [4]
        assert [row["step"] for row in read_jsonl(tmp_path / "a" / "metrics.jsonl")] == [0, 1, 2, 3]
        assert [row["step"] for row in read_jsonl(tmp_path / "a" / "timings.jsonl")] == [0, 1, 2, 3]
        assert content.startswith((tmp_path / "a" / "metrics.jsonl").read_bytes())
        assert run.trees.steps() == [0, 1, 2, 3]
        with pytest.raises(StoreError, match="step 3 comes after step 4"):
            run.log(3, {})
        work_through(run, range(4, 5))
        assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == content
    starts = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert [record["start_step"] for record in starts] == [0, 4]


def test_without_a_checkpoint_a_run_starts_again_at_step_0(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        work_through(run, range(1))
    with start(tmp_path / "a", resume=True) as run:
        assert (run.start_step, run.load_checkpoint(), run.trees.steps()) == (0, None, [])
        assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == b""


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        work_through(run, range(6))
        wanted = (tmp_path / "a" / "metrics.jsonl").read_bytes()
    state = tmp_path / "a" / "checkpoints" / "step-000006" / "state.json"
    state.write_text("{}")
    with (
        pytest.warns(RuntimeWarning, match=r"state\.json is damaged"),
        start(tmp_path / "a", resume=True) as run,
    ):
        assert run.start_step == 4
        work_through(run, range(4, 6))
        assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == wanted
    assert sorted(os.listdir(tmp_path / "a" / "checkpoints")) == ["damaged-step-000006", "step-000004", "step-000006"]


def test_another_configuration_is_refused_with_its_differences(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        work_through(run, range(3))
    before = (tmp_path / "a" / "metrics.jsonl").read_bytes()
    other = {**CONFIG, "steps": 20, "rollout": {"leaves": 9, "roots": 2}}
    with pytest.raises(CheckpointError) as caught:
        Run.create(tmp_path / "a", other, resume=True)
    assert (
        "(rollout.leaves: stored 8, given 9; rollout.roots: stored nothing, given 2; "
        "rollout.tag: stored None, given nothing; steps: stored 10, given 20)"
    ) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"\(rollout\.leaves: .*given nothing\); resume"):
        Run.create(tmp_path / "a", other, resume=True, may_differ=("steps",))
    # A refusal changes nothing.
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == before


def test_named_settings_may_differ(tmp_path: Path) -> None:
    allowed = ("steps", "rollout")
    with start(tmp_path / "a", may_differ=allowed) as run:
        work_through(run, range(2))
    longer = {**CONFIG, "steps": 20, "rollout": {"leaves": 9, "tag": None}}
    with Run.create(tmp_path / "a", longer, resume=True, may_differ=allowed) as run:
        assert run.start_step == 2
        assert run.load_checkpoint() is not None
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text()) == longer
    starts = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert starts[1]["changed"] == ["rollout.leaves: stored 8, given 9", "steps: stored 10, given 20"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        work_through(run, range(2))
    Run.create(tmp_path / "b", {"seed": 4}).close()
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "b" / "checkpoints")
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        Run.create(tmp_path / "b", {"seed": 4}, resume=True)


def test_config_hash_ignores_order_and_what_it_is_told() -> None:
    first, second = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    assert config_hash(first) == config_hash(second)
    assert config_hash(first) != config_hash({"a": 1, "b": {"c": 2, "d": 4}})
    assert config_hash(first) != config_hash({"a": 1.0, "b": {"c": 2, "d": 3}})
    assert config_hash(first, ignore=["b.d"]) == config_hash({"a": 1, "b": {"c": 2, "d": 4}}, ignore=["b.d"])
    assert config_hash(first, ignore=["b"]) == config_hash({"a": 1, "b": {"c": 9}}, ignore=["b"])


def test_another_environment_is_told(tmp_path: Path) -> None:
    start(tmp_path / "a").close()
    path = tmp_path / "a" / "environment.json"
    starts = json.loads(path.read_text())
    starts[0]["torch"] = "1.0"
    path.write_text(json.dumps(starts))
    with pytest.warns(RuntimeWarning, match=r"another environment \(torch 1\.0 -> .*may not end with the same bits"):
        start(tmp_path / "a", resume=True).close()


# Killed runs. `train` uses the generators of Python, NumPy and torch, AdamW, dropout and a curriculum with a memory.


@pytest.fixture
def training_in_process() -> Any:
    """One thread and no flushing; the global generators, which `train` seeds, are put back afterwards."""
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    torch.set_num_threads(1)
    with without_flushing():
        yield
    torch.set_num_threads(threads)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def test_the_undisturbed_run_trains_and_repeats(tmp_path: Path, training_in_process: None) -> None:
    train(tmp_path / "a", 6)
    train(tmp_path / "b", 6)
    assert differing_files(tmp_path / "a", tmp_path / "b") == []
    rows = read_jsonl(tmp_path / "a" / "metrics.jsonl")
    assert len({row["loss"] for row in rows}) == 6 and {row["kind"] for row in rows} == {"easy", "hard"}
    assert sorted(os.listdir(tmp_path / "a" / "checkpoints")) == ["step-000001", "step-000005", "step-000006"]


def test_a_run_killed_in_any_change_to_the_disk_ends_the_same(tmp_path: Path, training_in_process: None) -> None:
    # Six steps: the last checkpoint is the first whose turn deletes an older one.
    train(tmp_path / "reference", 6)
    assert sorted(os.listdir(tmp_path / "reference" / "checkpoints")) == ["step-000001", "step-000005", "step-000006"]
    for killed_at in range(400):
        directory = tmp_path / str(killed_at)
        done = outlives(lambda directory=directory: train(directory, 6), killed_at=killed_at)
        if done:
            break
        train(directory, 6)
        assert differing_files(tmp_path / "reference", directory) == [], f"killed at {killed_at}"
    assert done and killed_at > 80


def test_a_run_killed_again_and_again_ends_the_same(tmp_path: Path, training_in_process: None) -> None:
    train(tmp_path / "reference", 8)
    draws = random.Random(0)
    kills = 0
    while not outlives(lambda: train(tmp_path / "a", 8), killed_at=draws.randrange(90)):
        kills += 1
    train(tmp_path / "a", 8)
    assert kills >= 5
    assert differing_files(tmp_path / "reference", tmp_path / "a") == []


def test_sigkill_at_random_instants_changes_nothing(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "crash_training.py"), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert outcome["differing"] == []
    assert outcome["kills"] >= MIN_KILLS


def test_the_runs_of_a_directory_and_of_its_folders_are_found(tmp_path: Path) -> None:
    for name in ("b", "arms/one-seed0", "a", "too/deep/down"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "other").mkdir()
    assert runs_in(tmp_path) == ["a", "arms/one-seed0", "b"]
    assert runs_in(tmp_path / "nowhere") == []
