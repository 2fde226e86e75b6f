"""Measures the household environment on one core: python benchmarks/household.py [--steps N] [--size full|small].

Prints one JSON line. All times are CPU times of this process. A step includes the observation and its list of
admissible commands; actions are drawn uniformly from that list, and episodes are reset when they end.
"""

from __future__ import annotations

import argparse
import json
import random
import time

from _run import run

from firesteel.environments.household import Household


def random_steps(size: str, num_steps: int) -> tuple[float, float]:
    """CPU seconds of `num_steps` random steps, resets and draws excluded, and the mean number of commands listed."""
    env = Household(size=size)
    rng = random.Random(0)
    tasks = Household.tasks("train", count=50, size=size)
    total_s, num_commands, done = 0.0, 0, 0
    while done < num_steps:
        for task in tasks:
            observation = env.reset(task, seed=0)
            for _ in range(50):
                assert observation.admissible is not None
                action = rng.choice(observation.admissible)
                start = time.process_time()
                result = env.step(action)
                total_s += time.process_time() - start
                observation = result.observation
                num_commands += len(observation.admissible or ())
                done += 1
                if result.terminated:
                    break
    return total_s / done, num_commands / done


def expert_steps(size: str, num_tasks: int) -> tuple[float, float]:
    """CPU seconds per expert decision together with its step, and the mean number of steps to the goal."""
    env = Household(size=size)
    tasks = Household.tasks("train", count=num_tasks, size=size)
    total_s, done = 0.0, 0
    for task in tasks:
        env.reset(task, seed=0)
        start = time.process_time()
        while (step := env.expert()) is not None:
            env.step(step.action)
            done += 1
        total_s += time.process_time() - start
    return total_s / done, done / num_tasks


def repeated(call: object, num_calls: int) -> float:
    """CPU seconds of one call."""
    assert callable(call)
    start = time.process_time()
    for _ in range(num_calls):
        call()
    return (time.process_time() - start) / num_calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    arguments = parser.parse_args()
    fresh = iter(Household.tasks("train", count=200, seed=1, size=arguments.size))
    env = Household(size=arguments.size)
    cold_reset_s = repeated(lambda: env.reset(next(fresh), seed=0), 200)
    task = Household.tasks("train", count=1, size=arguments.size)[0]
    env.reset(task, seed=0)
    step_s, num_commands = random_steps(arguments.size, arguments.steps)
    expert_s, expert_length = expert_steps(arguments.size, 200)
    report = {
        "benchmark": "household",
        "size": arguments.size,
        "steps_per_s": round(1 / step_s),
        "step_us": round(step_s * 1e6, 2),
        "commands_listed": round(num_commands, 1),
        "fork_us": round(repeated(env.fork, 20_000) * 1e6, 2),
        "reset_us": round(repeated(lambda: env.reset(task, seed=0), 5_000) * 1e6, 2),
        "new_game_us": round(cold_reset_s * 1e6, 1),
        "expert_step_us": round(expert_s * 1e6, 2),
        "expert_length": round(expert_length, 2),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    run(__file__, main)
