"""Measures WebShop's generated shop on one core and checks its promises: python benchmarks/webshop.py [--quick].

Prints one JSON line. Times are CPU times of this process. A step includes the observation and its list of admissible
actions; actions are drawn uniformly from that list, and episodes are reset when they end. Two promises are checked,
and the exit code is 1 where one is broken: the expert earns the whole reward on every goal, and after a fork at a
random step parent and child see the same while they play the same 10 actions, one after the other or in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable

from _run import run

from firesteel.environments.webshop import WebShop
from firesteel.environments.webshop.environment import open_catalogue
from firesteel.environments.webshop.generate import NUM_PRODUCTS, SPLITS
from firesteel.types import Observation, StepResult, Task

FORK_ACTIONS = 10
BUY = "click[buy now]"


def seconds(call: Callable[[], object], num_calls: int) -> float:
    """CPU seconds of one call."""
    begin = time.process_time()
    for _ in range(num_calls):
        call()
    return (time.process_time() - begin) / num_calls


def random_steps(pages: str, tasks: list[Task], num_steps: int) -> tuple[float, float]:
    """CPU seconds of a random step, resets and draws excluded, and the mean length of its text in characters."""
    environment, rng = WebShop(pages=pages), random.Random(0)
    total_s, num_characters, done = 0.0, 0, 0
    while done < num_steps:
        observation = environment.reset(rng.choice(tasks), seed=0)
        for _ in range(30):
            action = rng.choice(observation.admissible or ("",))
            begin = time.process_time()
            result = environment.step(action)
            total_s += time.process_time() - begin
            observation, done = result.observation, done + 1
            num_characters += len(observation.text)
            if result.terminated:
                break
    return total_s / done, num_characters / done


def oracle(tasks: list[Task]) -> tuple[int, float]:
    """How many goals the expert earns the whole reward for, and its mean number of steps."""
    environment = WebShop(pages="compact", admissible=False)
    num_whole, num_steps, reward = 0, 0, 0.0
    for task in tasks:
        environment.reset(task, seed=0)
        while (step := environment.expert()) is not None:
            reward = environment.step(step.action).reward
            num_steps += 1
        num_whole += environment.purchase is not None and reward == 1.0
    return num_whole, num_steps / len(tasks)


def draw(observation: Observation, rng: random.Random, *, may_buy: bool) -> str:
    """A listed action, now and then a search of its own; a purchase, which ends the episode, only where it may."""
    listed = [action for action in observation.admissible or () if may_buy or action != BUY]
    return rng.choice([*listed, "search[red]"])


def fork_trial(task: Task, rng: random.Random) -> bool:
    """Whether parent and child of a fork at a random step saw the same."""
    parent = WebShop(pages=rng.choice(("rich", "compact")))
    observation = parent.reset(task, seed=0)
    for _ in range(rng.randrange(12)):
        observation = parent.step(draw(observation, rng, may_buy=False)).observation
    child = parent.fork()
    is_in_turn = rng.random() < 0.5
    actions: list[str] = []
    seen: list[StepResult] = []
    also: list[StepResult] = []
    for number in range(1, FORK_ACTIONS + 1):
        actions.append(draw(observation, rng, may_buy=number == FORK_ACTIONS))
        seen.append(parent.step(actions[-1]))
        observation = seen[-1].observation
        if is_in_turn:
            also.append(child.step(actions[-1]))
    if not is_in_turn:
        also = [child.step(action) for action in actions]
    return seen == also and child.goal == parent.goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps and trials, 500 goals")
    arguments = parser.parse_args()
    part = 10 if arguments.quick else 1
    begin = time.process_time()
    _, index, _ = open_catalogue(None, None, 0)
    open_s = time.process_time() - begin
    rng = random.Random(0)
    tasks = [task for split in SPLITS for task in WebShop.tasks(split)]
    rng.shuffle(tasks)
    played = tasks[:500] if arguments.quick else tasks
    step_s = {pages: random_steps(pages, tasks, 50_000 // part) for pages in ("rich", "compact")}
    num_whole, expert_length = oracle(played)
    trials = 1000 // part
    identical = sum(fork_trial(rng.choice(tasks), rng) for _ in range(trials))
    environment, queries = WebShop(), iter(range(10**9))
    environment.reset(tasks[0], seed=0)
    environment.step("search[red]")
    report = {
        "benchmark": "webshop",
        "products": NUM_PRODUCTS,
        **{f"steps_per_s_{pages}": round(1 / cost) for pages, (cost, _) in step_s.items()},
        **{f"characters_{pages}": round(length) for pages, (_, length) in step_s.items()},
        "fork_us": round(seconds(environment.fork, 20_000 // part) * 1e6, 2),
        "reset_us": round(seconds(lambda: environment.reset(tasks[0], seed=0), 20_000 // part) * 1e6, 2),
        "new_search_us": round(seconds(lambda: index.top(f"red kettle {next(queries)}", 50), 2000 // part) * 1e6, 1),
        "open_s": round(open_s, 2),
        "oracle_whole_reward": f"{num_whole}/{len(played)}",
        "expert_length": round(expert_length, 2),
        "forks_identical": f"{identical}/{trials}",
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(report))
    sys.exit(num_whole < len(played) or identical < trials)


if __name__ == "__main__":
    run(__file__, main)
