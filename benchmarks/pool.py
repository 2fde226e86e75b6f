"""Injects faults into an environment pool: python benchmarks/pool.py [--faults N] [--workers K].

Five kinds in turn: the worker is killed from outside (kill -9), or killed while its replacement starts too slowly; an
episode hangs in native code, raises an exception, or writes garbage to every socket of its process. Every episode is
played to its end, and what it showed is compared with what it must show: after a hang or an exception it has to fail
with that reason, after anything else it has to finish as if nothing had happened. Prints one JSON line; the exit code
is 1 where an episode is missing or wrong, or a worker is left. 1,000 faults take many minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from _run import run

from firesteel.environments import make_environment
from firesteel.environments.base import Environment
from firesteel.environments.pool import EnvironmentPool
from firesteel.environments.pool_worker import LocalWorker
from firesteel.errors import EnvironmentFailed, StepTimeout
from firesteel.types import Observation, StepResult, Task

KINDS = ("kill", "hang", "exception", "garbage", "slow start")
NUM_STEPS = 8
EPISODES_A_WAVE = 24


class Stormy(Environment):
    """Adds numbers for `NUM_STEPS` steps; does the fault of its task at one of them, in any process only once.

    `marks` is a folder in which faults that happened leave a file, and a file "slow" makes the next start slow.
    """

    fork_rung = "native"

    def __init__(self, *, marks: str, slow_start_s: float) -> None:
        self._marks = Path(marks)
        if happens_now(self._marks / "slow"):
            time.sleep(slow_start_s)

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(f"{split}-{number}") for number in range(count or 1)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.goal = "add up"
        self._task, self._total, self._step = task, seed, 0
        return Observation(f"total {self._total}")

    def step(self, action: str) -> StepResult:
        self._step += 1
        self._total = (self._total * 31 + int(action)) % 1_000_003
        if self._step == self._task.data.get("at"):
            self._fail(self._task.data["fault"])
        return StepResult(Observation(f"total {self._total}"), terminated=self._step == NUM_STEPS)

    def _fail(self, kind: str) -> None:
        if kind == "exception":
            raise ValueError("the table has collapsed")
        if kind == "hang":
            re.match(r"(a+)+$", "a" * 64 + "b")
        mark = self._marks / self._task.id
        if kind == "garbage" and not mark.exists():
            mark.touch()
            write_garbage()


def happens_now(mark: Path) -> bool:
    """Takes the mark away; whether it was there."""
    try:
        mark.unlink()
    except FileNotFoundError:
        return False
    return True


def write_garbage() -> None:
    for descriptor in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"garbage\n" * 8)
        except OSError:
            continue


def expected_total(seed: int, actions: Sequence[str]) -> str:
    total = seed
    for action in actions:
        total = (total * 31 + int(action)) % 1_000_003
    return f"total {total}"


class Storm:
    """One run of the benchmark."""

    def __init__(self, pool: EnvironmentPool, marks: Path, rng: random.Random) -> None:
        self.pool, self.marks, self.rng = pool, marks, rng
        self.outcomes: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.surprises: list[str] = []

    def wave(self, number: int, faults: Sequence[str]) -> None:
        """Plays `EPISODES_A_WAVE` episodes at once, with these faults among them."""
        inside = [kind for kind in faults if kind in ("hang", "exception", "garbage")]
        outside = [kind for kind in faults if kind not in inside]
        at = dict(zip(self.rng.sample(range(NUM_STEPS), len(outside)), outside, strict=True))
        tasks = []
        for index in range(EPISODES_A_WAVE):
            kind = inside[index] if index < len(inside) else ""
            data = {"fault": kind, "at": self.rng.randrange(1, NUM_STEPS + 1)} if kind else {}
            tasks.append(Task(f"episode-{number}-{index}", seed=self.rng.randrange(1000), data=data))
            self.injected.update([kind] if kind else [])
        environments = [self.pool.make() for _ in tasks]
        for environment, task in zip(environments, tasks, strict=True):
            environment.expect("reset", task, task.seed)
        for environment, task in zip(environments, tasks, strict=True):
            environment.reset(task, seed=task.seed)
        self.play(list(zip(environments, tasks, strict=True)), at)

    def play(self, playing: list[tuple[Environment, Task]], at: dict[int, str]) -> None:
        actions = [str(self.rng.randrange(1000)) for _ in range(NUM_STEPS)]
        for turn, action in enumerate(actions):
            if turn in at:
                self.strike(at[turn])
            results = self.pool.step_many([(environment, action) for environment, _ in playing])
            going_on = []
            for (environment, task), result in zip(playing, results, strict=True):
                if isinstance(result, EnvironmentFailed):
                    self.note(task, result)
                    environment.close()
                elif result.observation.text != expected_total(task.seed, actions[: turn + 1]):
                    self.outcomes["wrong"] += 1
                else:
                    going_on.append((environment, task))
            playing = going_on
        for environment, task in playing:
            self.outcomes["finished" if task.data.get("fault") in (None, "garbage") else "wrong"] += 1
            environment.close()

    def note(self, task: Task, error: EnvironmentFailed) -> None:
        """An episode has failed: as it had to, or for a reason that nobody gave it."""
        kind = task.data.get("fault", "")
        is_due = isinstance(error, StepTimeout) if kind == "hang" else kind == "exception" and "collapsed" in str(error)
        self.outcomes[f"failed by {kind}" if is_due else "failed unexpectedly"] += 1
        if not is_due:
            self.surprises.append(str(error)[:200])

    def strike(self, kind: str) -> None:
        """Kills a worker with SIGKILL."""
        if kind == "slow start":
            (self.marks / "slow").touch()
        os.kill(self.rng.choice(running(self.pool)), signal.SIGKILL)
        self.injected[kind] += 1


def running(pool: EnvironmentPool) -> list[int]:
    """The process numbers of a pool's workers."""
    return [place.worker.pid for place in pool._places if isinstance(place.worker, LocalWorker)]


def workers_left() -> int:
    """How many worker processes of this process are still there (Linux only)."""
    mine = f", {os.getpid()}, ".encode()
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended since
            program = path.read_bytes()
            count += b"pool_worker" in program and mine in program
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step-timeout-s", type=float, default=2.0)
    parser.add_argument("--start-timeout-s", type=float, default=10.0)
    arguments = parser.parse_args()
    faults = [KINDS[index % len(KINDS)] for index in range(arguments.faults)]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        options = {"marks": folder, "slow_start_s": 3 * arguments.start_timeout_s}
        # By name: the workers import this file as a module, since it is not theirs to run.
        factory = partial(make_environment, f"{Path(__file__).stem}:Stormy", options)
        limits = {"step_timeout_s": arguments.step_timeout_s, "start_timeout_s": arguments.start_timeout_s}
        with EnvironmentPool(factory, workers=arguments.workers, retries=3, **limits) as pool:
            storm = Storm(pool, Path(folder), random.Random(arguments.seed))
            waves = [faults[start : start + len(KINDS)] for start in range(0, len(faults), len(KINDS))]
            for number, wave in enumerate(waves):
                storm.wave(number, wave)
            most = workers_left()
        left = workers_left()
    episodes = EPISODES_A_WAVE * len(waves)
    missing = episodes - sum(storm.outcomes.values())
    result = {
        "benchmark": "pool",
        "faults": dict(storm.injected), "episodes": episodes, "outcomes": dict(storm.outcomes), "missing": missing,
        "surprises": storm.surprises[:5], "workers": arguments.workers, "workers_before_close": most,
        "workers_left": left,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        **{name: round(value, 2) for name, value in pool.stats.metrics().items()},
        "cpus": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip
    print(json.dumps(result))
    sys.exit(bool(missing or left or storm.outcomes["wrong"] or storm.outcomes["failed unexpectedly"]))


if __name__ == "__main__":
    run(__file__, main)
