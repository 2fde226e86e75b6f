"""Kills real runs of the command line with SIGKILL at random instants, resumes them, and says what came out different.

`python killed_runs.py MODEL FOLDER KILLS` does it in forks of one interpreter, which has loaded torch already; with a
further argument every start is an interpreter of its own, as when a user types the command.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml
from crash_training import in_child
from small_runs import differing_files, small_config

from firesteel.cli import main as command_line

Start = Callable[[list[str], Path, float | None], bool]
"""Runs the command line with arguments, kills it after so many seconds of work in a run's directory, and returns
whether it came to its end."""

SETTINGS = {
    "steps": 10,
    "save_every": 2,
    "evaluation": {"every": 5, "num_tasks": 2, "test_split": "l0", "test_tasks": 2},
}


def in_fork(arguments: list[str], run: Path, kill_after_s: float | None) -> bool:
    """Starts in a fork of this process, which is at work at once."""
    del run

    def work() -> None:
        sys.argv = ["firesteel", *arguments]
        try:
            command_line()
        except SystemExit as exit:
            if exit.code:
                raise

    return in_child(work, kill_after_s=kill_after_s)


def in_interpreter(arguments: list[str], run: Path, kill_after_s: float | None) -> bool:
    """Starts in an interpreter of its own, which is at work once it holds the run's lock."""
    process = subprocess.Popen([sys.executable, "-m", "firesteel", *arguments])
    lock = run / "lock"
    while process.poll() is None and not (lock.exists() and f"process {process.pid} " in lock.read_text()):
        time.sleep(0.005)
    try:
        status = process.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    if status:
        raise SystemExit(f"firesteel {' '.join(arguments)} failed, see above")
    return True


def arguments_for(settings: Path, run: Path) -> list[str]:
    """What a user would type next: start the run, or go on with it."""
    if (run / "config.yaml").exists():
        return ["train", "--resume", str(run)]
    return ["train", str(settings), f"runs_dir={run.parent}"]


def kill_and_resume(
    start: Start, settings: Path, folder: Path, num_kills: int, delay: Callable[[], float]
) -> list[Path]:
    """Makes runs in `folder` until `num_kills` kills have hit one; the last is brought to its end. Returns all runs."""
    runs: list[Path] = []
    kills = 0
    while kills < num_kills:
        run = folder / str(len(runs)) / "small"
        is_done = False
        while not is_done and kills < num_kills:
            is_done = start(arguments_for(settings, run), run, delay())
            kills += not is_done
        if not is_done:
            start(arguments_for(settings, run), run, None)
        runs.append(run)
    return runs


def main() -> None:
    """Prints the number of runs and the files in which a killed run differs from the undisturbed one."""
    model, folder, num_kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    start: Start = in_interpreter if sys.argv[4:] else in_fork
    draws = random.Random(num_kills)
    torch.set_num_threads(1)
    # The first optimizer imports the compiler of torch, which takes seconds: once here, not once in every fork.
    torch.optim.AdamW([torch.zeros(1)])
    settings = folder / "crash.yaml"
    config = small_config(model, folder / "reference", SETTINGS)
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    reference = folder / "reference" / "small"
    start(arguments_for(settings, reference), reference, None)
    # The configuration is the first file of a run.
    duration_s = time.time() - (reference / "config.yaml").stat().st_mtime
    runs = kill_and_resume(start, settings, folder / "killed", num_kills, partial(draws.uniform, 0.0, duration_s))
    differing = [f"{run.parent.name}: {name}" for run in runs for name in differing_files(reference, run)]
    print(json.dumps({"runs": len(runs), "differing": differing, "duration_s": duration_s}))


if __name__ == "__main__":
    main()
