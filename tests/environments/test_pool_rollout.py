"""Trees grow in a pool as they do in the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from faulty import Faulty
from toys import explore, grower, script, think

from firesteel.environments.base import Environment
from firesteel.environments.pool import EnvironmentPool

TASKS = Faulty.tasks("train", count=2)
LINES = {(0, 0, 0): explore("hello"), (1, 0, 1): explore("there"), (1, 1, 2): think("win"), (0, 1, 0): think("raise")}


def grown(make: Callable[[], Environment]) -> tuple[list[dict[str, Any]], list[str | None], Any]:
    growing = grower(script(LINES, TASKS), make, step_timeout_s=0)
    trees = [tree.to_dict() for tree in growing.grow(TASKS, seed=0)]
    return trees, [leaf.pop("failure") for tree in trees for leaf in tree["leaves"]], growing.stats


def test_trees_are_the_same_and_a_worker_that_dies_does_not_show() -> None:
    trees, failures, stats = grown(Faulty)
    assert (stats.forks, stats.replayed_steps) == (2, 0) and stats.fork_s > 0
    # Two roots a task and one fork each; the second root of the first task fails.
    assert failures == [
        None, "step 'raise' of task 'train-0' at turn 0: ValueError: no such lever", None, None, None, None
    ]  # fmt: skip
    with EnvironmentPool(Faulty, workers=2, step_timeout_s=120.0) as pool:
        assert grown(pool.make)[0] == trees
        made = 0

        def make() -> Environment:
            """A worker dies before the third environment is made."""
            nonlocal made
            made += 1
            if made == 3:
                os.kill(pool._places[0].worker.pid, signal.SIGKILL)
            return pool.make()

        theirs, their_failures, remote = grown(make)
        assert theirs == trees and (remote.forks, pool.stats.restarts) == (2, 1)
        assert their_failures[1] == "step 'raise' of task 'train-0': ValueError: no such lever"
        assert [place.num_episodes for place in pool._places] == [0, 0]
