"""Steps per second of `ScienceWorld` and of the stock `ScienceWorldEnv.step`, same actions, interleaved; prints JSON.

Both play the gold paths of a few tasks, episode by episode in turn, each in a Java process of its own. CPU time is
that of this process and of the Java process together. Then: loading, forking by replay, listing actions, memory.

    python benchmarks/scienceworld_steps.py --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import scienceworld
from scienceworld import ScienceWorldEnv as StockEnvironment

from firesteel.environments.scienceworld import ScienceWorld
from firesteel.environments.scienceworld.java import find_java
from firesteel.environments.scienceworld.simulator import process_ids
from firesteel.types import Task

TASKS = ("find-non-living-thing", "lifespan-longest-lived", "power-component", "use-thermometer")
FORK_TASK = "use-thermometer"
FORK_DEPTHS = (5, 10, 20)


def java_cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, from /proc; 0 where there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> int | None:
    """Resident memory of a process in MB."""
    result = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(result.stdout) // 1024 if result.stdout.strip() else None


class Clock:
    """Wall and CPU seconds spent in one of the two, and the steps played."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.steps = 0
        self.wall_s = 0.0
        self.cpu_s = 0.0

    def play(self, step: Callable[[str], object], actions: Sequence[str]) -> None:
        cpu, wall = time.process_time() + java_cpu_s(self.pid), time.perf_counter()
        for action in actions:
            step(action)
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() + java_cpu_s(self.pid) - cpu
        self.steps += len(actions)

    def summary(self) -> dict[str, float | int | None]:
        return {
            "steps_per_s": round(self.steps / self.wall_s, 1),
            "wall_ms_per_step": round(self.wall_s / self.steps * 1000, 2),
            "cpu_ms_per_step": round(self.cpu_s / self.steps * 1000, 2),
            "java_resident_mb": resident_mb(self.pid),
        }


def first_task(name: str) -> Task:
    return ScienceWorld.tasks("train", task_types=[name])[0]


def gold_actions(environment: ScienceWorld, name: str) -> list[str]:
    """The expert's actions up to the end of the episode."""
    environment.reset(first_task(name), seed=0)
    actions: list[str] = []
    while (step := environment.expert()) is not None:
        actions.append(step.action)
        environment.step(step.action)
    return actions


def compare(
    lean: ScienceWorld, stock: StockEnvironment, golds: dict[str, list[str]], repeats: int
) -> dict[str, object]:
    """Both play the same episodes in turn; loading is not counted."""
    (lean_pid,) = process_ids()
    stock_pid = stock._gateway.java_process.pid
    # The first round is not counted: both Java processes compile what they run.
    for repeat in range(repeats + 1):
        if repeat <= 1:
            clocks = {"lean": Clock(lean_pid), "stock": Clock(stock_pid)}
        for name, actions in golds.items():
            lean.reset(first_task(name), seed=0)
            stock.load(name, 0, "easy")
            plays = [(clocks["lean"], lean.step), (clocks["stock"], stock.step)]
            for clock, step in plays if repeat % 2 else reversed(plays):
                clock.play(step, actions)
    lean_clock, stock_clock = clocks["lean"], clocks["stock"]
    return {
        "steps_each": lean_clock.steps,
        "lean": lean_clock.summary(),
        "stock": stock_clock.summary(),
        "stock_over_lean_cpu": round(stock_clock.cpu_s / lean_clock.cpu_s, 2),
        "stock_over_lean_wall": round(stock_clock.wall_s / lean_clock.wall_s, 2),
    }


def median_ms(call: Callable[[], object], times: int) -> float:
    """The median wall time of a call in milliseconds."""
    walls = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    return round(statistics.median(walls) * 1000, 1)


def costs(environment: ScienceWorld, actions: Sequence[str], times: int) -> dict[str, object]:
    """Wall times of a reset, of forks at several depths, and of a step that also lists the valid actions."""
    task = first_task(FORK_TASK)
    result: dict[str, object] = {"reset_ms": median_ms(lambda: environment.reset(task, seed=0), times)}
    forks = {}
    for depth in FORK_DEPTHS:
        environment.reset(task, seed=0)
        for action in actions[:depth]:
            environment.step(action)
        forks[str(depth)] = median_ms(lambda: environment.fork().close(), times)
    result["fork_ms_at_depth"] = forks
    with closing(ScienceWorld(admissible=True)) as listing:
        listing.reset(task, seed=0)
        result["listing_step_ms"] = median_ms(lambda: listing.step("look around"), times)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds over the tasks")
    arguments = parser.parse_args()
    with closing(ScienceWorld()) as lean, closing(StockEnvironment()) as stock:
        golds = {name: gold_actions(lean, name) for name in TASKS}
        result = {
            **compare(lean, stock, golds, arguments.repeats),
            **costs(lean, golds[FORK_TASK], 2 * arguments.repeats + 1),
            "java_heap_mb": 512,
            "java": find_java(),
            "scienceworld": scienceworld.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
