"""A small real training run; `python crash_training.py DIRECTORY` kills it at random instants until it is done.

The interpreter with torch is started once; every start of the run is a fork of it, ended by SIGKILL. The program prints
as JSON how many kills there were and in which files a killed run differs from the undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from trees import uneven_tree

from firesteel.run import Run, is_run
from firesteel.training_state import capture_rng, join_state, restore_rng, split_state

MIN_KILLS = 20
NUM_STEPS = 24


def train(directory: Path, num_steps: int) -> None:
    """Trains on noise: dropout draws from torch, the rows from NumPy, the curriculum from Python's generator."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    rows = np.random.default_rng(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    # The draw below depends on the order of the keys.
    weights = {"hard": 1.0, "easy": 1.0}
    with Run.create(directory, {"seed": 0, "num_steps": num_steps}, resume=is_run(directory)) as run:
        checkpoint = run.load_checkpoint()
        if checkpoint is not None:
            model.load_state_dict(checkpoint.tensors["model"])
            optimizer.load_state_dict(join_state(checkpoint.tensors["optimizer"], checkpoint.state["optimizer"]))
            weights = checkpoint.state["weights"]
            restore_rng(checkpoint.state["rng"], {"rows": rows})
        for step in range(run.start_step, num_steps):
            started = time.perf_counter()
            kind = random.choices(list(weights), list(weights.values()))[0]
            inputs = torch.tensor(rows.normal(size=(8, 4)), dtype=torch.float32)
            loss = ((model(inputs) - weights[kind]) ** 2).mean() * np.random.uniform(0.5, 1.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            weights[kind] += 0.1 * loss.item()
            tree = uneven_tree(f"{kind}-{step}")
            tree.leaves[0].reward = loss.item()
            run.add_trees(step, [tree])
            run.log(step, {"loss": loss.item(), "kind": kind}, {"wall_s": time.perf_counter() - started})
            if step % 2 == 0 or step + 1 == num_steps:
                moments, scalars = split_state(optimizer.state_dict())
                state = {"optimizer": scalars, "weights": weights, "rng": capture_rng({"rows": rows})}
                tensors = {"model": model.state_dict(), "optimizer": moments}
                run.save_checkpoint(step + 1, tensors=tensors, state=state, keep=2, best_step=1)
        run.write_summary({"weights": weights})


def differing_files(wanted: Path, got: Path) -> list[str]:
    """The names under two run directories whose bytes differ, or that only one has; wall-clock figures do not count."""
    uncompared = {"timings.jsonl", "environment.json", "lock"}

    def contents(root: Path) -> dict[str, bytes]:
        files = (path for path in root.rglob("*") if path.is_file() and path.name not in uncompared)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    first, second = contents(wanted), contents(got)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def in_child(work: Callable[[], None], *, kill_after_s: float | None = None) -> bool:
    """Runs `work` in a fork, killed after a while if it still runs; whether it came to its end.

    An error in the child ends the whole program: only kills are part of the plan.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(status)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status and not os.WIFSIGNALED(status):
        raise SystemExit("the training failed, see above")
    return status == 0


def kill_until_done(directory: Path, draws: random.Random, max_delay_s: float) -> int:
    """Starts the run and kills it, again and again, until it is done; the number of kills.

    The delays grow, for on a machine that has become slower than it was none may be enough for a checkpoint.
    """

    def work() -> None:
        train(directory, NUM_STEPS)

    kills = 0
    while not in_child(work, kill_after_s=draws.uniform(0, max_delay_s * 1.02**kills)):
        kills += 1
    in_child(work)
    return kills


def main() -> None:
    """Kills runs until there were `MIN_KILLS` and prints the counts and the differences."""
    root, draws = Path(sys.argv[1]), random.Random(0)
    torch.set_num_threads(1)
    # The first optimizer imports the compiler of torch, which takes seconds: once here, not once in every fork.
    torch.optim.AdamW([torch.zeros(1)])
    reference = root / "reference"
    started = time.perf_counter()
    in_child(lambda: train(reference, NUM_STEPS))
    duration_s = time.perf_counter() - started
    kills, differing = 0, []
    for number in range(MIN_KILLS):
        kills += kill_until_done(root / str(number), draws, 0.3 * duration_s)
        differing += [f"run {number}: {name}" for name in differing_files(reference, root / str(number))]
        if kills >= MIN_KILLS:
            break
    print(json.dumps({"kills": kills, "differing": differing, "duration_s": duration_s}))


if __name__ == "__main__":
    main()
