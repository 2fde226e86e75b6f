"""The fork ladder: each rung gives an independent environment in the same state, or says why it cannot."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from itertools import count
from typing import Any, ClassVar

import pytest

from firesteel.environments.base import Environment, observation_hash
from firesteel.environments.check import check_environment
from firesteel.environments.fork import Forked, timed_fork
from firesteel.errors import CannotFork, EnvironmentFailed, ForkDiverged
from firesteel.types import Observation, StepResult, Task

TASK = Task("sum", seed=3)


class Adder(Environment):
    """Adds the numbers that it is given to a start; ends above 100."""

    opened: ClassVar[list[Adder]] = []

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.total = [0]
        self.is_closed = False
        Adder.opened.append(self)

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(f"sum-{number}", seed=seed) for number in range(count or 2)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.goal = "go above 100"
        self.total = [self.start]
        return self.show()

    def step(self, action: str) -> StepResult:
        self.total[0] += int(action)
        return StepResult(self.show(), terminated=self.total[0] > 100)

    def show(self) -> Observation:
        return Observation(f"total {self.total[0]}", ("1", "2"))

    def close(self) -> None:
        self.is_closed = True


class Copied(Adder):
    fork_rung = "native"


class Saved(Adder):
    fork_rung = "snapshot"

    def snapshot(self) -> Any:
        return list(self.total)

    def restore(self, state: Any) -> None:
        self.total = list(state)


class Replayed(Adder):
    fork_rung = "replay"


class SavedAfterAll(Replayed):
    """Derives from a class that is replayed, and is not."""

    fork_rung = "snapshot"
    snapshot = Saved.snapshot
    restore = Saved.restore


def started(cls: type[Adder], *actions: str, **options: Any) -> Adder:
    environment = cls(**options)
    environment.reset(TASK, seed=3)
    for action in actions:
        environment.step(action)
    return environment


@pytest.mark.parametrize("cls", [Copied, Saved, Replayed, SavedAfterAll])
def test_a_rung_is_all_that_a_class_has_to_name(cls):
    parent = started(cls, "5", "7", start=10)
    child = timed_fork(parent)
    assert child is not parent and child.goal == "go above 100" and child.start == 10
    # 10 + 5 + 7 = 22 in both; then each goes its own way, and a fork of a fork goes on from there.
    assert child.step("1").observation.text == "total 23"
    grandchild = timed_fork(child)
    assert parent.step("3").observation.text == "total 25"
    assert grandchild.step("2").observation.text == "total 25"
    replayed = (2, 3) if cls is Replayed else (0, 0)
    assert [one.origin.rung for one in (child, grandchild)] == [cls.fork_rung] * 2
    assert (child.origin.replayed_steps, grandchild.origin.replayed_steps) == replayed
    assert child.origin.seconds > 0 and parent.origin is None
    assert grandchild.origin is not child.origin


@pytest.mark.parametrize("cls", [Copied, Saved, Replayed])
def test_the_public_check_passes_every_rung(cls):
    report = check_environment(cls, steps=5)
    assert (report.fork_rung, "fork" in report.checks) == (cls.fork_rung, True)


def test_a_fork_of_its_own_is_timed_too():
    class Own(Adder):
        fork_rung = "native"

        def fork(self):
            twin = Own(self.start)
            twin.total, twin.goal = list(self.total), self.goal
            return twin

    child = timed_fork(started(Own, "4"))
    assert child.origin.rung == "native" and child.origin.seconds > 0
    assert timed_fork(child).origin.seconds != child.origin.seconds


def test_an_environment_without_a_rung_refuses():
    with pytest.raises(CannotFork, match="Adder cannot fork \\(fork_rung is 'none'\\); set fork_rung to '"):
        started(Adder).fork()


def test_what_a_rung_needs_and_lacks_is_named():
    class Locked(Copied):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    class Unsaved(Adder):
        fork_rung = "snapshot"

    with pytest.raises(CannotFork, match="Locked cannot be copied \\(cannot pickle '_thread.lock' object\\).*'replay'"):
        started(Locked).fork()
    Adder.opened.clear()
    with pytest.raises(CannotFork, match="Unsaved has no snapshot\\(\\); implement snapshot\\(\\) and restore"):
        started(Unsaved).fork()
    assert [one.is_closed for one in Adder.opened] == [False, True]
    with pytest.raises(CannotFork, match="Replayed cannot fork before its first reset; call reset"):
        Replayed().fork()
    with pytest.raises(EnvironmentFailed, match="Replayed was stepped before its first reset"):
        Replayed().step("1")


def test_a_replay_that_differs_names_the_step_and_both_hashes_and_closes_the_fork():
    noise = count()

    class Liar(Replayed):
        def show(self) -> Observation:
            return Observation(f"total {self.total[0]}\nnoise {next(noise) // 4}", ("1", "2"))

    # Shown are 0, 1, 2, 3 (noise 0) by the parent, then 4 (noise 1) at the reset of the fork.
    parent = started(Liar, "1", "1", "1")
    Adder.opened.clear()
    with pytest.raises(ForkDiverged) as caught:
        parent.fork()
    wanted, got = (observation_hash(Observation(f"total 0\nnoise {n}", ("1", "2"))) for n in (0, 1))
    assert str(caught.value) == (
        f"Liar task 'sum': the replay differs at step 0 of 3 (reset): wanted {wanted} 'noise 0', got {got} 'noise 1'"
    )
    assert [one.is_closed for one in Adder.opened] == [True]


def test_a_step_that_differs_is_named_with_its_action():
    noise = count()

    class Drifting(Replayed):
        def step(self, action: str) -> StepResult:
            self.total[0] += next(noise) // 2
            return super().step(action)

    # The parent adds 0 and 0; the fork adds 1 at its first step: 2 + 1 = 3 where 2 was seen.
    parent = started(Drifting, "2", "2")
    with pytest.raises(ForkDiverged, match=r"at step 1 of 2 \('2'\): wanted \w+ 'total 2', got \w+ 'total 3'"):
        parent.fork()


def test_a_replay_that_ends_too_early_is_found():
    class Ending(Replayed):
        ends = False

        def step(self, action: str) -> StepResult:
            return StepResult(super().step(action).observation, terminated=self.ends)

    parent = started(Ending, "1", "1")
    Ending.ends = True
    with pytest.raises(ForkDiverged, match="the replay ended at step 1 of 2 \\('1'\\) and the episode went on"):
        parent.fork()


def test_a_step_that_calls_that_of_its_base_is_recorded_once_and_as_it_was_shown():
    class Twice(Replayed):
        def step(self, action: str) -> StepResult:
            super().step(action)
            return StepResult(Observation(f"twice: {super().step(action).observation.text}"))

    parent = started(Twice, "3")
    assert [one.text for one in parent._recorded.observations] == ["total 0", "twice: total 6"]
    assert (parent._recorded.actions, parent.fork().total) == (["3"], [6])


def test_a_reset_begins_a_new_history():
    parent = started(Replayed, "1", "2")
    parent.reset(Task("other"), seed=9)
    child = parent.fork()
    assert (child._recorded.task.id, child._recorded.seed, child._recorded.actions) == ("other", 9, [])


def test_hashes_tell_text_from_actions_and_take_any_text():
    shown = [
        Observation("a"),
        *(Observation("a", listed) for listed in ((), ("b",))),
        *map(Observation, ("b", "\ud800")),
    ]
    hashes = [observation_hash(one) for one in shown]
    # A list without an action shows nothing that the text alone does not.
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in hashes)


def test_how_a_fork_was_made_survives_copies_as_it_is():
    import copy

    origin = Forked("native", 0.5)
    assert copy.deepcopy([origin])[0] is origin
