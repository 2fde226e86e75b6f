"""Runs at the same time: the bits of runs one after the other, errors as they are, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from small_runs import differing_files, small_config

from firesteel.compare import compare
from firesteel.errors import ConfigError, FiresteelError
from firesteel.recipes import RecipeSession

PLAYED = {"test_split": "l0", "num_tasks": 2, "test_tasks": 2}


def silent(event: str, facts: dict) -> None:
    del event, facts


def test_arms_side_by_side_are_the_same_runs_as_one_after_the_other(tiny_model: Path, tmp_path: Path) -> None:
    # the first of two is the longer one, and its summary the first all the same
    arms = {"long": {"steps": 4}, "short": {"steps": 1}}
    told: list[str] = []
    results = {}
    for name, jobs in (("one", 1), ("two", 2)):
        config = small_config(tiny_model, tmp_path / name, {"name": "arms", "evaluation": PLAYED})
        session = RecipeSession(False, lambda event, facts: told.append(facts.get("text", "")), jobs)
        results[name] = compare(config, session, arms, [0])["text"]
    assert results["one"] == results["two"]
    for run in ("long-seed0", "short-seed0"):
        assert differing_files(tmp_path / "one" / "arms" / run, tmp_path / "two" / "arms" / run) == []
        assert any(line.startswith(f"[arms/{run}] done, success ") for line in told)


def test_finished_runs_are_kept_and_an_error_lets_what_is_under_way_finish(tiny_model: Path, tmp_path: Path) -> None:
    first = small_config(tiny_model, tmp_path, {"name": "first", "steps": 1})
    other = small_config(tiny_model, tmp_path, {"name": "other", "steps": 1})
    (summary,) = RecipeSession(False, silent, 2).try_each([first])
    changed = first.updated({"learner": {"lr": 0.5}})
    refused, done = RecipeSession(True, silent, 2).try_each([changed, other])
    assert isinstance(refused, ConfigError) and "first' is finished and had other settings" in str(refused)
    assert isinstance(done, dict) and done["name"] == "other"
    assert (tmp_path / "other" / "summary.json").exists()
    written = (tmp_path / "first" / "summary.json").stat().st_mtime_ns
    assert next(RecipeSession(True, silent, 2).try_each([first, other])) == summary
    assert (tmp_path / "first" / "summary.json").stat().st_mtime_ns == written


def test_a_killed_run_is_an_error_that_says_how_to_go_on(tiny_model: Path, tmp_path: Path) -> None:
    configs = [small_config(tiny_model, tmp_path, {"name": name, "steps": 5000}) for name in ("one", "two")]

    def kill() -> None:
        while not (tmp_path / "one" / "metrics.jsonl").exists():
            time.sleep(0.05)
        max(active_children(), key=lambda child: child.pid or 0).kill()  # the one that was started last

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(FiresteelError, match=r"was killed.*--continue, with fewer --jobs"):
        list(RecipeSession(False, silent, 2).try_each(configs))
    killer.join()
    assert active_children() == []


def test_runs_end_with_whoever_started_them(tiny_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "arms.py"
    recipe.write_text(
        RECIPE.format(model=str(tiny_model), runs_dir=str(tmp_path), tests=str(Path(__file__).parent), played=PLAYED)
    )
    command = [sys.executable, "-m", "firesteel", "train", str(recipe), "--jobs", "2"]
    main = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = [tmp_path / "arms" / f"{name}-seed0" / "metrics.jsonl" for name in ("a", "b")]
    wait_for(lambda: all(path.exists() for path in metrics), main)
    main.send_signal(signal.SIGKILL)
    main.wait()
    time.sleep(3.0)
    sizes = [path.stat().st_size for path in metrics]
    time.sleep(2.0)
    assert [path.stat().st_size for path in metrics] == sizes


RECIPE = '''"""Two long arms."""

import sys

from firesteel.compare import compare

sys.path.insert(0, {tests!r})


def config():
    from small_runs import small_config

    return small_config({model!r}, {runs_dir!r}, {{"name": "arms", "steps": 5000, "evaluation": {played}}})


def run(config, session):
    return compare(config, session, {{"a": {{}}, "b": {{"learner": {{"lr": 1e-4}}}}}}, [0])
'''


def wait_for(condition, process: subprocess.Popen) -> None:
    """Waits until something holds; fails where the process ends or two minutes pass before."""
    start = time.monotonic()
    while not condition():
        assert process.poll() is None
        assert time.monotonic() - start < 120.0
        time.sleep(0.1)
