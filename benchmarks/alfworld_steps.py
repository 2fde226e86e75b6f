"""Steps, resets and forks of `AlfWorld` against TextWorld's `PddlEnv`, same actions, interleaved; prints JSON.

Both play the same random commands of generated games (12 to 30 receptacles), episode by episode in turn, and what they
show is compared: texts and admissible commands must be the same. The stock engine forks by playing the actions again in
a new environment, as it cannot be copied. All times are CPU times of this process. Needs `tools/install_alfworld.sh`.

    python benchmarks/alfworld_steps.py --episodes 12
    python benchmarks/alfworld_steps.py --quick
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from _run import run

from firesteel.environments.alfworld import AlfWorld
from firesteel.environments.alfworld.games import GAME_FILE
from firesteel.environments.alfworld.generate import check_installed, write_games
from firesteel.errors import MissingDependency
from firesteel.types import Task

DEPTHS = (5, 10, 20)


def check_stock() -> None:
    """Raises `MissingDependency` where the planner, ALFWorld or TextWorld is not installed."""
    check_installed()
    if importlib.util.find_spec("textworld") is None:
        raise MissingDependency("TextWorld is not installed: tools/install_alfworld.sh PYTHON")


class Stock:
    """TextWorld's engine with ALFWorld's names, as `AlfredTWEnv` starts it."""

    def __init__(self, task: Task) -> None:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler

        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self.game = textworld.start(str(Path(task.data["game"], GAME_FILE)), infos, wrappers=[AlfredDemangler()])

    def reset(self) -> Any:
        return self.game.reset()

    def step(self, command: str) -> Any:
        return self.game.step(command)[0]


def timed(call: Callable[[], Any], into: list[float]) -> Any:
    """The value of a call, whose CPU seconds are added to `into`."""
    begin = time.process_time()
    value = call()
    into.append(time.process_time() - begin)
    return value


def random_commands(task: Task, num_steps: int, rng: random.Random) -> list[str]:
    """Commands of a random episode that does not reach the goal."""
    environment = AlfWorld()
    shown, commands = environment.reset(task, seed=0), []
    while len(commands) < num_steps:
        command = rng.choice(shown.admissible or ())
        result = environment.step(command)
        commands, shown = [*commands, command], result.observation
        if result.terminated:
            shown, commands = environment.reset(task, seed=0), []
    environment.close()
    return commands


def play(task: Task, commands: list[str], is_ours_first: bool, times: dict[str, list[float]]) -> int:
    """Both play an episode; how many texts and lists of commands were compared, all of them the same."""
    environment, stock = AlfWorld(), timed(partial(Stock, task), times["stock_load"])
    shown: dict[str, list[tuple[str, tuple[str, ...]]]] = {"ours": [], "stock": []}

    def ours() -> None:
        timed(partial(environment.reset, task, seed=0), times["ours_reset"])
        for command in commands:
            result = timed(partial(environment.step, command), times["ours_step"])
            shown["ours"].append((result.observation.text, result.observation.admissible or ()))

    def theirs() -> None:
        timed(stock.reset, times["stock_reset"])
        for command in commands:
            state = timed(partial(stock.step, command), times["stock_step"])
            shown["stock"].append((state.feedback, tuple(state["admissible_commands"])))

    for side in (ours, theirs) if is_ours_first else (theirs, ours):
        side()
    environment.close()
    if shown["ours"] != shown["stock"]:
        raise SystemExit(f"{task.id}: the two do not show the same")
    return len(commands)


def replay(task: Task, commands: list[str]) -> None:
    """A fork of the stock engine: a new environment in which the same actions are played."""
    stock = Stock(task)
    stock.reset()
    for command in commands:
        stock.step(command)


def forks(task: Task, commands: list[str], times: dict[str, list[float]], repeats: int) -> dict[str, float]:
    """How many times a fork at each depth is faster than playing the same actions again on the stock engine."""
    ratios = {}
    for depth in DEPTHS:
        environment = AlfWorld()
        environment.reset(task, seed=0)
        for command in commands[:depth]:
            environment.step(command)
        ours: list[float] = []
        replays: list[float] = []
        for _ in range(repeats):
            begin = time.process_time()
            for _ in range(1000):
                environment.fork().close()
            ours.append((time.process_time() - begin) / 1000)

            timed(partial(replay, task, commands[:depth]), replays)
        environment.close()
        times["fork"] += ours
        ratios[str(depth)] = round(statistics.median(replays) / statistics.median(ours))
        times["stock_replay"] += replays
    return ratios


def in_ms(values: list[float]) -> float:
    return round(statistics.fmean(values) * 1000, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two episodes of ten steps")
    arguments = parser.parse_args()
    check_stock()
    episodes, steps = (2, 10) if arguments.quick else (arguments.episodes, arguments.steps)
    names = ("ours_reset", "ours_step", "stock_load", "stock_reset", "stock_step", "fork", "stock_replay")
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("ALFWORLD_DATA", folder)  # importing alfworld makes this folder
        write_games(Path(folder), count=min(episodes, 6), splits=["train"], seed=arguments.seed)
        tasks = AlfWorld.tasks("train", games=folder, count=6)
        compared = 0
        for number in range(episodes):
            task = tasks[number % len(tasks)]
            commands = random_commands(task, steps, random.Random(f"{arguments.seed}/{number}"))
            compared += play(task, commands, number % 2 == 0, times)
        commands = random_commands(tasks[0], max(DEPTHS), random.Random(arguments.seed))
        ratios = forks(tasks[0], commands, times, 1 if arguments.quick else 3)
    result = {
        "benchmark": "alfworld_steps", "episodes": episodes, "steps_compared_and_the_same": compared,
        "steps_per_s": round(1 / statistics.fmean(times["ours_step"])),
        "stock_steps_per_s": round(1 / statistics.fmean(times["stock_step"]), 1),
        "step_ms": in_ms(times["ours_step"]), "stock_step_ms": in_ms(times["stock_step"]),
        "steps_ratio": round(statistics.fmean(times["stock_step"]) / statistics.fmean(times["ours_step"]), 1),
        "reset_ms": in_ms(times["ours_reset"]), "stock_reset_ms": in_ms(times["stock_reset"]),
        "stock_load_ms": in_ms(times["stock_load"]),
        "fork_us": round(in_ms(times["fork"]) * 1000, 1), "fork_over_stock_replay_at_depth": ratios,
        "textworld": metadata.version("textworld"), "alfworld": metadata.version("alfworld"),
        "python": platform.python_version(), "cpus": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    run(__file__, main)
