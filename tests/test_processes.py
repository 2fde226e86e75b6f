"""Trees grown in several processes are those grown in one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import differing_files, small_config
from toys import builder, grower, tokenizer

from firesteel.branching import make_criterion
from firesteel.config import Config
from firesteel.environments.base import Environment
from firesteel.environments.household import Household
from firesteel.errors import ConfigError
from firesteel.generators.torch import TorchGenerator
from firesteel.models import build_tiny_model
from firesteel.processes import Fork, num_processes, split
from firesteel.rollout import Grower
from firesteel.train import train
from firesteel.tree import Tree
from firesteel.types import Observation, StepResult, Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")

TASKS = Household.tasks("train", count=3, size="small")


@pytest.fixture(scope="module")
def generator() -> TorchGenerator:
    model = build_tiny_model(tokenizer(), hidden=32, layers=2, heads=2, kv_heads=1, max_context=1024, seed=3)
    return TorchGenerator(model, tokenizer(), end_token_ids=builder().stop_token_ids)


def household() -> Environment:
    return Household(size="small", admissible=False)


def growing(generator: TorchGenerator, processes: int, make: Callable[[], Environment] = household) -> Grower:
    settings = {
        "criterion": "fixed_probability", "criterion_options": {"probability": 0.7}, "num_leaves": 4, "max_turns": 4,
        "max_response_tokens": 10,
    }  # fmt: skip
    return grower(generator, make, processes=processes, **settings)


def grown(generator: TorchGenerator, processes: int, make: Callable[[], Environment] = household) -> list[Tree]:
    # The first task comes again, so that its trees are told apart by their number.
    return growing(generator, processes, make).grow([*TASKS, TASKS[0]], seed=4, iteration=2)


def shape(trees: list[Tree]) -> list[Any]:
    """Everything but numbers that are equal to rounding only."""
    return [
        (tree.task, [(node.parent, node.width, node.token_ids) for node in tree.nodes], list(tree.leaves))
        for tree in trees
    ]


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_the_trees_do_not_depend_on_who_grows_them(generator: TorchGenerator, processes: int) -> None:
    one, several = grown(generator, 1), grown(generator, processes)
    assert shape(several) == shape(one)
    for tree, other in zip(several, one, strict=True):
        for node, twin in zip(tree.nodes, other.nodes, strict=True):
            assert node.logprobs == pytest.approx(twin.logprobs, abs=1e-5)


def test_what_growing_counted_is_added_up(generator: TorchGenerator) -> None:
    alone, apart = growing(generator, 1), growing(generator, 2)
    alone.grow(TASKS, seed=1)
    apart.grow(TASKS, seed=1)
    assert apart.stats.environment_steps == alone.stats.environment_steps > 0
    assert apart.stats.forks == alone.stats.forks > 0


class Deadly(Household):
    """Ends every process but the one that it is told."""

    survivor = 0

    def step(self, action: str) -> StepResult:
        if os.getpid() != Deadly.survivor:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Leaving(Deadly):
    """Ends every other process as if all were well."""

    def step(self, action: str) -> StepResult:
        if os.getpid() != Deadly.survivor:
            os._exit(0)
        return super().step(action)


@pytest.mark.parametrize("cls", [Deadly, Leaving])
def test_a_part_whose_process_ends_early_is_grown_again(generator: TorchGenerator, cls: type[Deadly]) -> None:
    Deadly.survivor = os.getpid()
    with pytest.warns(UserWarning, match="ended early; its part is grown again"):
        trees = grown(generator, 2, lambda: cls(size="small", admissible=False))
    assert shape(trees) == shape(grown(generator, 1))


def test_nothing_waits_for_what_the_work_has_started() -> None:
    def work() -> int:
        started = os.fork()
        if started == 0:
            time.sleep(60)
            os._exit(0)
        return started

    begin = time.monotonic()
    started = Fork(work).result()
    assert isinstance(started, int)
    assert time.monotonic() - begin < 30
    assert is_gone(started)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, within some seconds; one that nobody has waited for counts as ended."""
    for _ in range(100):
        try:
            if ") Z" in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


class Mistaken(Household):
    """Cannot play the last task."""

    def reset(self, task: Task, *, seed: int) -> Observation:
        if task == TASKS[2]:
            raise ConfigError("no such house")
        return super().reset(task, seed=seed)


def test_a_mistake_in_another_process_is_raised_here(generator: TorchGenerator) -> None:
    with pytest.warns(UserWarning), pytest.raises(ConfigError, match="no such house"):
        growing(generator, 2, lambda: Mistaken(size="small", admissible=False)).grow(TASKS, seed=0)


def test_another_process_ends_with_what_waits_for_it() -> None:
    fork = Fork(lambda: time.sleep(60))
    fork.end()
    fork.end()
    with pytest.raises(ProcessLookupError):
        os.kill(fork._pid, 0)


def test_more_than_a_pipe_holds_comes_back() -> None:
    assert Fork(lambda: list(range(10**6))).result() == list(range(10**6))


def test_tasks_are_split_evenly_and_in_order() -> None:
    named = [(str(number), Task(str(number))) for number in range(7)]
    assert [len(part) for part in split(named, 3)] == [2, 3, 2]
    assert [each for part in split(named, 3) for each in part] == named
    assert split(named[:2], 5) == [named[:1], named[1:2]]
    assert split([], 2) == [[]]


def test_a_run_is_repeatable_and_threads_are_as_before(tiny_model: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    changes = {"rollout": {"processes": 2}, "tasks_per_step": 3, "threads": 2, "evaluation": {"every": 2}}
    try:
        for name in ("one", "other"):
            train(small_config(tiny_model, tmp_path / name, changes))
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert differing_files(tmp_path / "one" / "small", tmp_path / "other" / "small") == []


class Wandering(Household):
    """Changes the current directory."""

    def reset(self, task: Task, *, seed: int) -> Observation:
        os.chdir("/")
        return super().reset(task, seed=seed)


def test_a_run_stays_where_it_began(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = {"environment": {"name": f"{__name__}:Wandering"}}
    train(small_config(tiny_model, Path("runs"), name, {"steps": 1}))
    assert (tmp_path / "runs" / "small" / "summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": {"pool": {"workers": 1}}}, "already plays the episodes in other processes"),
        ({"environment": {"name": "scienceworld"}}, "'scienceworld' holds other processes or connections"),
        ({"environment": {"name": "tool_questions"}}, "'tool_questions' holds other processes"),
        ({"rollout": {"criterion": "random_tag"}}, "'random_tag' counts over all trees"),
    ],
)
def test_what_cannot_be_grown_apart_is_grown_in_one(changes: dict[str, Any], message: str) -> None:
    config = Config.build({"rollout": {"processes": 2}}, changes)
    criterion = make_criterion(config.rollout.criterion, config.rollout.width, {})
    with pytest.warns(RuntimeWarning, match=f"rollout.processes is 2, but .*{message}"):
        assert num_processes(config, criterion, torch.device("cpu")) == 1


def test_elsewhere_there_is_one() -> None:
    config = Config.build({"rollout": {"processes": 2}})
    criterion = make_criterion("explore_tag", 2, {})
    assert num_processes(config, criterion, torch.device("cpu")) == 2
    assert num_processes(config, criterion, torch.device("meta")) == 1
