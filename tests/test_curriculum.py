"""Which tasks a step holds."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_trees import sample

from firesteel.curriculum import CURRICULA, Uniform, make_curriculum
from firesteel.errors import ConfigError, TaskError
from firesteel.types import Task


def tasks(count: int) -> list[Task]:
    return [Task(f"t{index}") for index in range(count)]


def ids(sampled: list[Task]) -> list[str]:
    return [task.id for task in sampled]


@given(st.integers(1, 12), st.lists(st.integers(0, 15), max_size=12), st.integers(0, 5))
def test_passes_are_even_and_steps_repeat_nothing_without_need(num_tasks: int, counts: list[int], seed: int) -> None:
    curriculum = Uniform(tasks(num_tasks), seed=seed)
    drawn: list[str] = []
    for count in counts:
        step = ids(curriculum.sample(count))
        assert len(step) == count
        assert max(Counter(step).values(), default=0) <= -(-count // num_tasks)
        drawn += step
    for start in range(0, len(drawn) - num_tasks + 1, num_tasks):
        assert len(set(drawn[start : start + num_tasks])) == num_tasks


def test_a_step_that_crosses_into_a_new_pass_puts_its_own_tasks_last() -> None:
    for seed in range(20):
        curriculum = Uniform(tasks(3), seed=seed)
        first, second, third = (ids(curriculum.sample(2)) for _ in range(3))
        assert len(set(first)) == len(set(second)) == len(set(third)) == 2
        assert set(first) | {second[0]} == {second[1]} | set(third) == {"t0", "t1", "t2"}


def test_passes_have_different_orders_and_seeds_decide_them() -> None:
    curriculum = Uniform(tasks(20), seed=1)
    orders = [ids(curriculum.sample(20)) for _ in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    again, other = Uniform(tasks(20), seed=1), Uniform(tasks(20), seed=2)
    assert ids(again.sample(20)) == orders[0] != ids(other.sample(20))


@pytest.mark.parametrize("name", CURRICULA)
def test_a_restored_curriculum_goes_on_as_if_nothing_had_happened(name: str) -> None:
    some = [sample(f"t{index}", "tool", value=index) for index in range(7)]
    curriculum = make_curriculum(name, some, seed=3, options={})
    for count in (3, 3, 3):
        curriculum.sample(count)
        curriculum.observe([])
    state = json.loads(json.dumps(curriculum.state_dict()))
    again = make_curriculum(name, some, seed=3, options={})
    again.load_state_dict(state)
    assert [ids(again.sample(4)) for _ in range(5)] == [ids(curriculum.sample(4)) for _ in range(5)]


def test_no_tasks_are_refused() -> None:
    with pytest.raises(TaskError, match="the training split has no tasks"):
        Uniform([], seed=0)


class Hardest(Uniform):
    def __init__(self, tasks: list[Task], *, seed: int, rate: float) -> None:
        super().__init__(tasks, seed=seed)
        self.rate = rate


def test_a_curriculum_of_ones_own() -> None:
    curriculum: Any = make_curriculum("test_curriculum:Hardest", tasks(2), seed=0, options={"rate": 0.5})
    assert curriculum.rate == 0.5
    with pytest.raises(ConfigError, match=r"curriculum 'uniform' does not take the options \['rate'\]"):
        make_curriculum("uniform", tasks(2), seed=0, options={"rate": 0.5})
    with pytest.raises(ConfigError, match=r"unknown curriculum 'unifrom' \(did you mean 'uniform'\?\)"):
        make_curriculum("unifrom", tasks(2), seed=0, options={})
    with pytest.raises(
        ConfigError, match=r"cannot be made with the options \[\]: missing a required .*argument: 'rate'"
    ):
        make_curriculum("test_curriculum:Hardest", tasks(2), seed=0, options={})


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    message = (
        r"curriculum 'hard_sampling' does not take the options \['steps_per_rond'\] "
        r"\(did you mean 'steps_per_round'\?\); known: mode, .*, read$"
    )
    with pytest.raises(ConfigError, match=message):
        make_curriculum("hard_sampling", [sample("a", "f")], seed=0, options={"steps_per_rond": 5})
    for name in ("seed", "tasks"):
        with pytest.raises(ConfigError, match=f"'{name}'"):
            make_curriculum("hard_sampling", [sample("a", "f")], seed=0, options={name: 5})


class Broken(Uniform):
    def __init__(self, tasks: list[Task], *, seed: int, **options: Any) -> None:
        super().__init__(tasks, seed=seed)
        raise TypeError("a mistake of its own")


def test_a_mistake_within_a_curriculum_is_not_called_one_of_its_options() -> None:
    with pytest.raises(TypeError, match="^a mistake of its own$"):
        make_curriculum("test_curriculum:Broken", tasks(2), seed=0, options={"rate": 0.5})
