"""Steps per second of `ScienceWorld` and of the stock `ScienceWorldEnv.step`, same actions, interleaved; prints JSON.

All play the gold paths of a few tasks, episode by episode in turn: `lean` (text, score, done), `listing` (with the
list of valid actions, which the stock step always makes), `stock`, in a Java process of its own, and `floor`, the
simulator's own step and nothing else. Observations of lean, listing and stock must be equal; for that the stock
simulator gets the Java option that makes ours deterministic. CPU time is that of this process and of the Java process
together. Then: loading, forking by replay, memory.

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
from importlib import metadata
from typing import TYPE_CHECKING

from _run import run

from firesteel.environments.scienceworld import ScienceWorld
from firesteel.environments.scienceworld.java import find_java, find_simulator
from firesteel.environments.scienceworld.simulator import process_ids
from firesteel.types import Task

if TYPE_CHECKING:
    from scienceworld import ScienceWorldEnv as StockEnvironment

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


def deterministic_stock() -> StockEnvironment:
    """The stock environment with one identity hash for all objects: else the order of hash sets decides some steps."""
    from scienceworld import ScienceWorldEnv

    before = os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ["JAVA_TOOL_OPTIONS"] = "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2"
    try:
        return ScienceWorldEnv()
    finally:
        os.environ.pop("JAVA_TOOL_OPTIONS")
        if before is not None:
            os.environ["JAVA_TOOL_OPTIONS"] = before


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
    lean: ScienceWorld, listing: ScienceWorld, stock: StockEnvironment, golds: dict[str, list[str]], repeats: int
) -> dict[str, object]:
    """All play the same episodes in turn; loading is not counted."""
    (lean_pid,) = process_ids()
    stock_pid = stock._gateway.java_process.pid
    floor_world = lean
    plays: dict[str, tuple[int, Callable[[str], object]]] = {
        "lean": (lean_pid, lambda action: lean.step(action).observation.text),
        "listing": (lean_pid, lambda action: listing.step(action).observation.text),
        "stock": (stock_pid, lambda action: stock.step(action)[0]),
        "floor": (lean_pid, lambda action: floor_world._running().step(action)),
    }
    # The first round is not counted: both Java processes compile what they run.
    for repeat in range(repeats + 1):
        if repeat <= 1:
            clocks = {name: Clock(pid) for name, (pid, _) in plays.items()}
        for task, actions in golds.items():
            names = list(plays)
            for name in names if repeat % 2 else reversed(names):
                if name == "stock":
                    stock.load(task, 0, "easy")
                else:
                    (listing if name == "listing" else lean).reset(first_task(task), seed=0)
                clocks[name].play(plays[name][1], actions)
    by_name = {name: clock.summary() for name, clock in clocks.items()}

    def times(name: str, kind: str) -> float:
        return round(getattr(clocks["stock"], kind) / getattr(clocks[name], kind), 2)

    return {
        "steps_each": clocks["lean"].steps,
        **by_name,
        **{
            f"stock_over_{name}_{kind[:-2]}": times(name, kind)
            for name in ("lean", "listing", "floor")
            for kind in ("cpu_s", "wall_s")
        },
    }


def differing(lean: ScienceWorld, listing: ScienceWorld, stock: StockEnvironment, golds: dict[str, list[str]]) -> int:
    """In how many steps text, score or end differ among the three, or the valid actions between the last two."""
    count = 0
    for task, actions in golds.items():
        lean.reset(first_task(task), seed=0)
        listing.reset(first_task(task), seed=0)
        stock.load(task, 0, "easy")
        for action in actions:
            one, two = lean.step(action), listing.step(action)
            text, _, done, info = stock.step(action)
            seen = (one.observation.text, one.terminated, round(one.info["score"] * 100))
            wanted = (text, done, max(info["score"], 0))
            same = seen == wanted and one.observation.text == two.observation.text
            count += not same or sorted(two.observation.admissible or ()) != sorted(set(info["valid"]))
    return count


def median_ms(call: Callable[[], object], times: int) -> float:
    """The median wall time of a call in milliseconds."""
    walls = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        walls.append(time.perf_counter() - start)
    return round(statistics.median(walls) * 1000, 1)


def costs(environment: ScienceWorld, actions: Sequence[str], times: int) -> dict[str, object]:
    """Wall times of a reset and of forks at several depths."""
    task = first_task(FORK_TASK)
    result: dict[str, object] = {"reset_ms": median_ms(lambda: environment.reset(task, seed=0), times)}
    forks = {}
    for depth in FORK_DEPTHS:
        environment.reset(task, seed=0)
        for action in actions[:depth]:
            environment.step(action)
        forks[str(depth)] = median_ms(lambda: environment.fork().close(), times)
    result["fork_ms_at_depth"] = forks
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="rounds over the tasks")
    arguments = parser.parse_args()
    find_java()
    find_simulator()
    with (
        closing(ScienceWorld()) as lean,
        closing(ScienceWorld(admissible=True)) as listing,
        closing(deterministic_stock()) as stock,
    ):
        golds = {name: gold_actions(lean, name) for name in TASKS}
        result = {
            "benchmark": "scienceworld_steps",
            "differing_steps": differing(lean, listing, stock, golds),
            **compare(lean, listing, stock, golds, arguments.repeats),
            **costs(lean, golds[FORK_TASK], 2 * arguments.repeats + 1),
            "java_heap_mb": 512,
            "java": find_java(),
            "scienceworld": metadata.version("scienceworld"),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    run(__file__, main)
