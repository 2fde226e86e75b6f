"""Trees that grow by themselves are those that grow in common turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from toys import builder, grower, script, tokenizer

from firesteel.environments.base import Environment
from firesteel.environments.household import Household
from firesteel.errors import ConfigError
from firesteel.generators.torch import TorchGenerator
from firesteel.models import build_tiny_model
from firesteel.tree import Tree
from firesteel.types import Observation, StepResult, Task

TASKS = Household.tasks("train", count=4, size="small")


@pytest.fixture(scope="module")
def generator() -> TorchGenerator:
    model = build_tiny_model(tokenizer(), hidden=32, layers=2, heads=2, kv_heads=1, max_context=1024, seed=3)
    return TorchGenerator(model, tokenizer(), end_token_ids=builder().stop_token_ids)


class Watched(Household):
    """Notes how many decoding steps there were when it was told its action, and when it was asked for the result."""

    generator: TorchGenerator
    waited: list[int]

    def expect(self, call: str, *arguments: Any) -> None:
        self._told = self.generator.stats["steps"]

    def step(self, action: str) -> StepResult:
        self.waited.append(self.generator.stats["steps"] - self._told)
        return super().step(action)


def grown(generator: TorchGenerator, make: Any, tasks: Sequence[Task] = TASKS, **options: Any) -> list[Tree]:
    settings = {
        "criterion": "fixed_probability", "criterion_options": {"probability": 0.7}, "num_leaves": 4, "max_turns": 4,
        "max_response_tokens": 10,
    }  # fmt: skip
    return grower(generator, make, **{**settings, **options}).grow(tasks, seed=4, iteration=2)


def household() -> Environment:
    return Household(size="small", admissible=False)


def shape(trees: Sequence[Tree]) -> list[Any]:
    """Everything but numbers that are equal to rounding only."""
    for tree in trees:
        for node in tree.nodes:
            if node.step is not None:
                node.step.entropy = None
    return [
        [(node.parent, node.width, node.token_ids, node.step) for node in tree.nodes] + list(tree.leaves)
        for tree in trees
    ]


@pytest.mark.parametrize("mode", ["full", "window"])
@pytest.mark.parametrize("options", [{}, {"fill_with_roots": True}, {"vote": True}])
def test_the_trees_are_those_of_common_turns(generator: TorchGenerator, mode: str, options: dict[str, Any]) -> None:
    common = grown(generator, household, mode=mode, **options)
    alone = grown(generator, household, mode=mode, overlap=True, **options)
    assert shape(alone) == shape(common)
    for one, other in zip(alone, common, strict=True):
        for node, twin in zip(one.nodes, other.nodes, strict=True):
            assert node.logprobs == pytest.approx(twin.logprobs, abs=1e-5)


def test_the_same_seed_gives_the_same_bits(generator: TorchGenerator) -> None:
    first, second = (grown(generator, household, overlap=True) for _ in range(2))
    assert [tree.to_dict() for tree in first] == [tree.to_dict() for tree in second]


def test_others_decode_while_environments_step(generator: TorchGenerator) -> None:
    Watched.generator, Watched.waited = generator, []
    grown(generator, lambda: Watched(size="small", admissible=False), overlap=True)
    waited, Watched.waited = Watched.waited, []
    grown(generator, lambda: Watched(size="small", admissible=False))
    assert set(Watched.waited) == {0}
    assert len(waited) == len(Watched.waited)
    assert sum(steps > 0 for steps in waited) > len(waited) / 2


class Raising(Household):
    """Its world breaks at the second action of every other house."""

    def reset(self, task: Task, *, seed: int) -> Observation:
        self._number, self._breaks = 0, TASKS.index(task) % 2 == 0
        return super().reset(task, seed=seed)

    def step(self, action: str) -> StepResult:
        self._number += 1
        if self._breaks and self._number == 2:
            raise RuntimeError("the roof fell in")
        return super().step(action)


def test_a_world_that_breaks_fails_its_own_leaves_only(generator: TorchGenerator) -> None:
    make = lambda: Raising(size="small", admissible=False)  # noqa: E731
    common, alone = grown(generator, make), grown(generator, make, overlap=True)
    assert shape(alone) == shape(common)
    for number, tree in enumerate(alone):
        assert {leaf.status == "failed" for leaf in tree.leaves} == {number % 2 == 0}


def test_a_generator_without_a_stream_is_named() -> None:
    with pytest.raises(ConfigError, match="rollout.overlap needs a generator .* MockGenerator has none"):
        grown(script({}, TASKS), household, overlap=True)  # type: ignore[arg-type]
