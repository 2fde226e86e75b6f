"""Environments in worker processes: the same results, and every way in which a worker can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faulty import Faulty, Global, Liar, Stuck

from firesteel.config import EnvironmentConfig
from firesteel.environments import environment_class, make_environment
from firesteel.environments.base import Environment
from firesteel.environments.check import check_environment
from firesteel.environments.household import Household
from firesteel.environments.pool import EnvironmentPool, environment_maker
from firesteel.errors import ConfigError, EnvironmentFailed, ForkDiverged, MissingDependency, StepTimeout, TaskError
from firesteel.types import Observation, StepResult

TASKS = Faulty.tasks("train", count=6)
LONG_S = 120.0


def pids(pool: EnvironmentPool) -> list[int]:
    return [place.worker.pid for place in pool._places if place.worker is not None]


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> bool:
    end = time.monotonic() + LONG_S
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_running(pid)


def started(pool: EnvironmentPool, count: int, *words: str) -> list[Environment]:
    environments = [pool.make() for _ in range(count)]
    for environment, task in zip(environments, TASKS, strict=False):
        environment.reset(task, seed=0)
    for word in words:
        pool.step_many([(environment, word) for environment in environments])
    return environments


def said(environment: Environment, word: str) -> str:
    return environment.step(word).observation.text


@pytest.fixture(scope="module")
def shared() -> Iterator[EnvironmentPool]:
    with EnvironmentPool(Faulty, workers=1, step_timeout_s=LONG_S) as pool:
        yield pool


# the same results


def played(make: Callable[[], Environment]) -> list[Any]:
    """What household shows to three random players, of whom one forks."""
    log: list[Any] = []
    environments = [make() for _ in range(3)]
    for environment, task in zip(environments, Household.tasks("train", count=3, size="small"), strict=True):
        log += [environment.reset(task, seed=0), environment.goal, environment.expert()]
    environments.append(environments[0].fork())
    for turn in range(6):
        for number, environment in enumerate(environments):
            expert = environment.expert()
            log.append(environment.step(expert.action if expert is not None and (turn + number) % 2 else "look"))
    for environment in environments:
        environment.close()
    return log


def test_one_and_three_workers_give_what_the_process_itself_gives():
    make = partial(make_environment, "household", {"size": "small"})
    logs = [played(make)]
    for workers in (1, 3):
        with EnvironmentPool(make, workers=workers, step_timeout_s=LONG_S) as pool:
            logs.append(played(pool.make))
    assert logs[0] == logs[1] == logs[2]


def test_what_is_drawn_from_global_generators_and_hashes_depends_on_the_episode_alone():
    shown = []
    for workers in (1, 2):
        with EnvironmentPool(Global, workers=workers, step_timeout_s=LONG_S) as pool:
            environments = started(pool, 2, "one")
            os.kill(pids(pool)[0], signal.SIGKILL)
            shown.append([said(environment, "two") for environment in environments])
    assert shown[0] == shown[1] and shown[0][0] != shown[0][1]


def test_the_public_check_passes_through_a_pool(shared):
    report = check_environment(shared.make, TASKS, episodes=1, steps=4)
    assert (report.fork_rung, "fork" in report.checks) == ("native", True)


# what environments do wrong


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("raise", "step 'raise' of task 'train-0': ValueError: no such lever"),
        ("exit", "step 'exit' of task 'train-0': SystemExit: 4"),
        (
            "text",
            "step 'text' of task 'train-0': TypeError: step returned StepResult.*, wanted a StepResult with an Obs",
        ),
        ("unpicklable", "step 'unpicklable' of task 'train-0': .*pickle"),
    ],
)
def test_an_exception_fails_the_step_and_nothing_else(shared, word, message):
    before = shared.stats.starts
    first, second = started(shared, 2, "hello")
    with pytest.raises(EnvironmentFailed, match=message):
        first.step(word)
    assert said(second, "there") == "you said: hello there"
    assert shared.stats.starts == before


def test_what_an_environment_prints_does_no_harm_and_fills_no_disk(shared):
    (environment,) = started(shared, 1, "print", "print")
    assert said(environment, "hello") == "you said: print print hello"
    # Each of the two printed 20 x 12,000 bytes; the call after them has thrown that away.
    assert os.fstat(shared._places[0].worker._output.fileno()).st_size < 20_000


def test_an_environment_that_was_not_reset_says_so(shared):
    with pytest.raises(EnvironmentFailed, match="step 'hello' of an environment that was never reset: it was"):
        shared.make().step("hello")
    with pytest.raises(TaskError, match="take them from the class that the pool runs"):
        shared.make().tasks("train")


def test_a_close_that_fails_is_told_and_twice_is_fine(shared):
    (environment,) = started(shared, 1, "close-raise")
    with pytest.raises(EnvironmentFailed, match="close of task 'train-0': OSError: stuck"):
        environment.close()
    environment.close()


def test_native_code_that_hangs_is_killed_and_the_other_episodes_go_on():
    with EnvironmentPool(Faulty, workers=1, step_timeout_s=6.0) as pool:
        first, second, third = started(pool, 3, "hello")
        pid = pids(pool)[0]
        results = pool.step_many([(first, "hang"), (second, "there"), (third, "there")])
        assert isinstance(results[0], StepTimeout)
        assert str(results[0]) == (
            "step 'hang' of task 'train-0': no answer after 6 s; raise environment.step_timeout_s if it is just slow"
        )
        assert [one.observation.text for one in results[1:]] == ["you said: hello there"] * 2
        assert not is_running(pid)
        assert (pool.stats.restarts, pool.stats.timeouts, pool.stats.restored) == (1, 1, 2)
        with pytest.raises(EnvironmentFailed, match="no answer after 6 s"):
            first.step("there")
        assert first.reset(TASKS[0], seed=0).text == "you said: "
        assert said(first, "again") == "you said: again"


def test_a_worker_that_dies_is_replaced_and_its_episodes_restored(tmp_path):
    mark = tmp_path / "mark"
    mark.touch()
    with EnvironmentPool(partial(Faulty, mark=str(mark)), workers=1, step_timeout_s=LONG_S) as pool:
        first, second = started(pool, 2, "hello")
        child = first.fork()
        assert child.fresh()._episode.number != child._episode.number
        os.kill(pids(pool)[0], signal.SIGKILL)
        assert said(second, "there") == "you said: hello there"
        assert said(child, "child") == "you said: hello child"
        assert said(first.fork(), "twin") == "you said: hello twin"
        assert (pool.stats.restarts, pool.stats.restored) == (1, 3)
        # A death under a call: it is tried again once, and then answered.
        assert said(first, "die-once") == "you said: hello die-once"
        assert (mark.exists(), pool.stats.restarts) == (False, 2)
        for word, cause in (
            ("die", "the worker exited with code 3 \\(2 times\\)"),
            ("kill", "the worker was killed by SIGKILL \\(it printed last: 'a last word'\\) \\(2 times\\)"),
        ):
            with pytest.raises(EnvironmentFailed, match=f"step '{word}' of task 'train-0': {cause}"):
                first.step(word)
            first.reset(TASKS[0], seed=0)
        with pytest.raises(EnvironmentFailed, match="step 'garbage' of task 'train-0': the worker sent garbage .b'se"):
            first.step("garbage")
        assert said(second, "bye") == "you said: hello there bye"
        first.close()


def test_an_environment_that_lies_about_determinism_cannot_be_restored():
    with EnvironmentPool(Liar, workers=1, step_timeout_s=LONG_S) as pool:
        first, second = started(pool, 2, "hello")
        assert first.fork().origin.rung == "replay"
        os.kill(pids(pool)[0], signal.SIGKILL)
        with pytest.raises(ForkDiverged) as caught:
            second.step("there")
        assert str(caught.value).startswith(
            "step 'there' of task 'train-1', to restore it: the replay differs at step 0 of 1 (reset): wanted "
        )
        with pytest.raises(EnvironmentFailed, match="its worker died, and it cannot be restored: step.*differs"):
            second.step("there")


def test_an_environment_that_cannot_fork_is_not_restored():
    with EnvironmentPool(Stuck, workers=1, step_timeout_s=LONG_S, retries=0) as pool:
        first, second = started(pool, 2)
        assert first.fork_rung == "none"
        with pytest.raises(EnvironmentFailed, match="step 'die' of task 'train-0': the worker exited with code 3$"):
            first.step("die")
        with pytest.raises(EnvironmentFailed, match="task 'train-1': its worker died, and an environment whose fork_r"):
            second.step("hello")


# starting


def test_a_worker_that_starts_slowly_is_given_up_after_three_attempts():
    slow = partial(Faulty, slow_start_s=600.0)
    with EnvironmentPool(slow, workers=1, start_timeout_s=0.2) as pool, pytest.raises(ConfigError) as caught:
        pool.make().reset(TASKS[0], seed=0)
    assert str(caught.value) == (
        "environment pool: 3 workers in a row failed to start; the last one was not ready within 0.2 s "
        "(environment.pool.start_timeout_s)"
    )


def test_an_environment_that_cannot_be_made_says_why():
    with EnvironmentPool(partial(Faulty, fails="no display"), workers=1) as pool:
        with pytest.raises(ConfigError, match="^environment pool: OSError: no display$"):
            pool.make().reset(TASKS[0], seed=0)
        with pytest.raises(EnvironmentFailed, match="the environment pool is closed"):
            pool.make().reset(TASKS[0], seed=0)
    with (
        EnvironmentPool(partial(Faulty, fails="missing"), workers=1) as pool,
        pytest.raises(MissingDependency, match="^the game's engine is not installed; pip install engine$"),
    ):
        pool.make().reset(TASKS[0], seed=0)


def test_what_workers_cannot_import_is_refused():
    with pytest.raises(ConfigError, match="workers cannot import <function .*lambda.*; give a class or function of"):
        EnvironmentPool(lambda: Faulty())
    with pytest.raises(ConfigError, match="workers \\(0\\) and queue_limit \\(1024\\) must be at least 1, retries"):
        EnvironmentPool(Faulty, workers=0)


# back-pressure


def test_a_full_queue_waits_for_room_and_loses_nothing():
    with EnvironmentPool(Faulty, workers=2, step_timeout_s=LONG_S, queue_limit=2) as pool:
        environments = started(pool, 6)
        for environment in environments:
            environment.expect("step", "hello")
        assert {said(environment, "hello") for environment in environments} == {"you said: hello"}
        assert pool.stats.longest_queue == 2
        # What was begun and is not wanted any more has happened, and is cleared away.
        environments[0].expect("step", "there")
        assert said(environments[0], "bye") == "you said: hello there bye"
        environments[1].expect("fork")
        environments[1].close()
        assert [place.num_episodes for place in pool._places] == [3, 2]
        figures = pool.stats.metrics()
        assert figures["pool/steps_per_second"] > 0 and figures["pool/restarts"] == 0.0


# no worker is left


def test_no_worker_is_left_after_close_or_an_exception():
    pool = EnvironmentPool(Faulty, workers=2, step_timeout_s=LONG_S)
    started(pool, 2)
    ended = pids(pool)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="stop"), EnvironmentPool(Faulty, workers=1) as pool:
        (environment,) = started(pool, 1)
        ended += pids(pool)
        environment.expect("step", "hang")
        raise RuntimeError("stop")
    assert not any(is_running(pid) for pid in ended)


OWNER = """
import sys, time
from faulty import Faulty
from firesteel.environments.pool import EnvironmentPool
pool = EnvironmentPool(Faulty, workers=2, step_timeout_s=600.0)
environments = [pool.make(), pool.make()]
for environment, task in zip(environments, Faulty.tasks("train")):
    environment.reset(task, seed=0)
environments[0].expect("step", "hang")
print(*(place.worker.pid for place in pool._places), flush=True)
time.sleep(600)
"""


def test_no_worker_outlives_an_owner_that_is_killed():
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings) as owner:
        assert owner.stdout is not None
        workers = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(workers) == 2 and all(is_running(pid) for pid in workers)
        owner.kill()
    assert all(wait_until_gone(pid) for pid in workers)


# from settings


def test_settings_without_workers_make_the_environment_itself():
    made = environment_maker(EnvironmentConfig(options={"size": "small"}))()
    assert type(made) is environment_class("household")


def test_the_same_settings_share_a_pool_and_household_plays_in_it():
    settings = EnvironmentConfig.model_validate({"options": {"size": "small"}, "pool": {"workers": 1}})
    first, second = environment_maker(settings)(), environment_maker(settings.model_copy())()
    try:
        assert first._pool is second._pool
        task = Household.tasks("train", count=1, size="small")[0]
        assert isinstance(first.reset(task, seed=0), Observation) and isinstance(first.step("look"), StepResult)
    finally:
        first._pool.close()
    assert environment_maker(settings)()._pool is not first._pool
    environment_maker(settings)()._pool.close()
