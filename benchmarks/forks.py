"""Are forks the same world? Parent and fork play the same 10 actions after a fork at a random step; prints JSON lines.

A trial is a random task, up to 10 actions, a fork, and 10 more actions in both, with every observation, reward, end and
`info` compared, and also with those of an environment that never forked. Actions are admissible ones where the
environment lists them, else the expert's and some that make sense anywhere, in equal shares. Ends with 1 where a trial
differs. ScienceWorld replays, so that its 1,000 trials take about ten minutes.

    python benchmarks/forks.py --trials 1000 household scienceworld
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from contextlib import closing
from typing import Any

from _run import report_missing, run

from firesteel.environments import environment_class
from firesteel.environments.base import Environment
from firesteel.errors import MissingDependency
from firesteel.types import Observation, StepResult, Task

NUM_ACTIONS = 10
OPTIONS: dict[str, dict[str, Any]] = {
    "household": {"size": "small"},
    "scienceworld": {"task_types": ["find-non-living-thing", "use-thermometer", "power-component", "grow-plant"]},
}
ANYWHERE = ("look around", "inventory", "open door to kitchen", "go to kitchen", "go to hallway", "wait1")


def seen(result: Observation | StepResult) -> Any:
    """All that a step shows, in a form that compares."""
    if isinstance(result, Observation):
        return result
    return (result.observation, result.reward, result.terminated, result.truncated, sorted(result.info.items()))


def choose(environment: Environment, observation: Observation, rng: random.Random) -> str:
    if observation.admissible:
        return rng.choice(observation.admissible)
    step = environment.expert() if rng.random() < 0.5 else None
    return rng.choice(ANYWHERE) if step is None else step.action


def play(environment: Environment, actions: list[str]) -> list[Any]:
    """What the actions show, up to the end of the episode."""
    shown = []
    for action in actions:
        result = environment.step(action)
        shown.append(seen(result))
        if result.terminated or result.truncated:
            break
    return shown


def trial(environment: Environment, fresh: Environment, task: Task, rng: random.Random) -> tuple[bool, float]:
    """Whether parent, fork and an environment that did not fork show the same; and the fork's seconds."""
    observation, before = environment.reset(task, seed=0), []
    for _ in range(rng.randrange(NUM_ACTIONS + 1)):
        action = choose(environment, observation, rng)
        result = environment.step(action)
        if result.terminated or result.truncated:
            # The fork is one step earlier: a finished episode is not forked.
            environment.reset(task, seed=0)
            play(environment, before)
            break
        before.append(action)
        observation = result.observation
    begin = time.perf_counter()
    with closing(environment.fork()) as child:
        fork_s = time.perf_counter() - begin
        after: list[str] = []
        parents = []
        for _ in range(NUM_ACTIONS):
            after.append(choose(environment, observation, rng))
            result = environment.step(after[-1])
            parents.append(seen(result))
            observation = result.observation
            if result.terminated or result.truncated:
                break
        children = play(child, after)
    fresh.reset(task, seed=0)
    play(fresh, before)
    return parents == children == play(fresh, after), fork_s


def measure(name: str, num_trials: int) -> bool:
    """Prints an environment's line; whether all its forks were the same."""
    cls, options, rng = environment_class(name), OPTIONS.get(name, {}), random.Random(0)
    begin, identical, forks_s = time.perf_counter(), 0, []
    tasks = list(cls.tasks("train", count=40, **options))
    with closing(cls(**options)) as environment, closing(cls(**options)) as fresh:
        for _ in range(num_trials):
            same, fork_s = trial(environment, fresh, rng.choice(tasks), rng)
            identical += same
            forks_s.append(fork_s)
    report = {
        "benchmark": "forks",
        "environment": name,
        "rung": cls.fork_rung,
        "forks_identical": f"{identical}/{num_trials}",
        "fork_us": round(statistics.median(forks_s) * 1e6, 1),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(report), flush=True)
    return identical == num_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", default=list(OPTIONS))
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    all_same = True
    for name in arguments.environments:
        try:
            all_same &= measure(name, arguments.trials)
        except MissingDependency as error:
            report_missing("forks", error, environment=name)
    sys.exit(not all_same)


if __name__ == "__main__":
    run(__file__, main)
