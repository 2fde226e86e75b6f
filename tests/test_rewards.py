"""Rewards by hand, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tool_trees import sample, tool_tree
from trees import uneven_tree

from firesteel.advantages import leaf_weights
from firesteel.config import Config, RewardConfig
from firesteel.errors import ConfigError
from firesteel.fresh_trees import grow_scored
from firesteel.rewards import EpisodeReward, invalid_penalties, outcome, overlong_rule, pad_groups, score, score_trees
from firesteel.tree import Episode, Step, Tree
from firesteel.types import Task


def step(*, valid: bool = True, understood: bool = True, cut: bool = False) -> Step:
    return Step("", "look", "think", False, valid, understood=understood, truncated_response=cut)


def episode(
    steps: Sequence[Step], *, success: bool = False, progress: float = 0.0, status: str = "finished"
) -> Episode:
    return Episode(Task("t"), "", list(steps), status, success, progress, 0)


STEPS = [step(), step(valid=False), step(understood=False), step(valid=False, understood=False)]


def test_spark_rewards_by_hand() -> None:
    spark = RewardConfig(success=10.0, invalid_penalty=0.1)
    assert outcome(episode(STEPS, success=True), spark) == EpisodeReward(10.0, [0.0, -0.1, 0.0, -0.1])
    assert outcome(episode(STEPS), spark).outcome == 0.0


def test_score_is_the_progress_times_success() -> None:
    value = score(episode(STEPS, progress=0.25), RewardConfig(success=4.0, invalid_penalty=0.5))
    assert value == EpisodeReward(1.0, [0.0, -0.5, 0.0, -0.5])


def test_of_two_successes_the_shorter_is_worth_more_under_a_discount() -> None:
    config = RewardConfig(success=8.0, discount=0.5, invalid_penalty=0.0)
    assert [outcome(episode(STEPS[:length], success=True), config).outcome for length in (1, 2, 4)] == [8.0, 4.0, 1.0]
    assert outcome(episode(STEPS), config).outcome == 0.0
    assert outcome(episode([], success=True), config).outcome == 8.0
    assert score(episode(STEPS[:3], progress=0.5), config).outcome == 1.0


@pytest.mark.parametrize("discount", [0.0, 1.1])
def test_a_discount_lies_above_0_and_up_to_1(discount: float) -> None:
    with pytest.raises(ValueError, match="discount"):
        RewardConfig(discount=discount)


def test_either_also_takes_off_what_was_not_understood() -> None:
    config = RewardConfig(invalid_penalty=0.5, invalid_when="either")
    assert invalid_penalties(episode(STEPS), config) == [0.0, -0.5, -0.5, -0.5]


@pytest.mark.parametrize(
    ("status", "cut", "settings", "rule"),
    [
        ("finished", False, {"truncated_response": "mask", "overflow": "mask"}, "as_is"),
        ("finished", True, {"truncated_response": "mask"}, "mask"),
        ("truncated", True, {"truncated_response": "zero"}, "zero"),
        ("truncated", False, {"truncated_response": "zero", "overflow": "zero"}, "as_is"),
        ("overflow", False, {"overflow": "mask"}, "mask"),
        ("overflow", True, {"overflow": "zero", "truncated_response": "mask"}, "zero"),
    ],
)
def test_which_rule_applies(status: str, cut: bool, settings: dict[str, Any], rule: str) -> None:
    assert overlong_rule(episode([step(), step(cut=cut)], status=status), RewardConfig(**settings)) == rule


def scored(config: RewardConfig, *, statuses: Sequence[str] = ("finished",) * 3) -> Tree:
    """The uneven tree (successes 1, 0, 1) whose first step, shared by leaves 0 and 1, was invalid."""
    tree = uneven_tree()
    assert tree.nodes[1].step is not None
    tree.nodes[1].step.valid = False
    for leaf, status in zip(tree.leaves, statuses, strict=True):
        leaf.status, leaf.reward, leaf.step_rewards = status, None, None
    score_trees([tree], config)
    return tree


def test_scores_are_written_onto_leaves() -> None:
    tree = scored(RewardConfig(success=2.0, invalid_penalty=0.1))
    assert [leaf.reward for leaf in tree.leaves] == [2.0, 0.0, 2.0]
    assert [leaf.step_rewards for leaf in tree.leaves] == [[-0.1, 0.0], [-0.1, 0.0], [0.0, 0.0]]
    assert not any(leaf.masked for leaf in tree.leaves)


def test_failed_leaves_get_nothing() -> None:
    tree = scored(RewardConfig(), statuses=("failed", "finished", "active"))
    assert [leaf.reward for leaf in tree.leaves] == [None, 0.0, None]


def test_zero_takes_the_outcome_and_keeps_the_penalty_and_mask_takes_the_leaf() -> None:
    tree = scored(RewardConfig(overflow="zero", invalid_penalty=0.1), statuses=("overflow", "finished", "finished"))
    assert (tree.leaves[0].reward, tree.leaves[0].step_rewards) == (0.0, [-0.1, 0.0])
    tree = scored(RewardConfig(overflow="mask"), statuses=("overflow", "finished", "finished"))
    assert [leaf.counts for leaf in tree.leaves] == [False, True, True]
    score_trees([tree], RewardConfig(overflow="as_is"))
    assert [leaf.counts for leaf in tree.leaves] == [True] * 3


# rewards of one's own, given as "test_rewards:name"


def shorter_is_better(episode: Episode) -> float:
    return -float(len(episode.steps))


def per_step(episode: Episode) -> EpisodeReward:
    return EpisodeReward(np.float32(0.5), np.arange(len(episode.steps)))


def forgets_to_return(episode: Episode) -> None:
    del episode


def too_many(episode: Episode) -> EpisodeReward:
    return EpisodeReward(1.0, [0.0] * 5)


def not_a_number(episode: Episode) -> float:
    return math.nan


def infinite_step(episode: Episode) -> EpisodeReward:
    return EpisodeReward(1.0, [math.inf, 0.0])


def test_any_function_of_an_episode_is_a_reward() -> None:
    assert [leaf.reward for leaf in scored(RewardConfig(name="test_rewards:shorter_is_better")).leaves] == [-2.0] * 3
    leaf = scored(RewardConfig(name="test_rewards:per_step")).leaves[2]
    assert (leaf.reward, leaf.step_rewards) == (0.5, [0.0, 1.0])
    assert all(type(value) is float for value in (leaf.reward, *(leaf.step_rewards or ())))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_rewards:forgets_to_return", "gave None for an episode of task 't'; return a number"),
        ("test_rewards:too_many", "gave 5 step rewards for 2 steps of task 't'; give one per step or none"),
        ("test_rewards:not_a_number", "gave nan for an episode of task 't'; it must be finite"),
        ("test_rewards:infinite_step", "it must be finite"),
        ("outcomes", r"unknown reward 'outcomes' \(did you mean 'outcome'\?\)"),
    ],
)
def test_rewards_that_cannot_be_used_are_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scored(RewardConfig(name=name))


# padding


def test_padding_fills_short_groups_with_copies_of_their_own() -> None:
    tree = uneven_tree()
    pad_groups([tree], 8, seed=1)
    copies = [leaf.multiplicity for leaf in tree.leaves]
    assert sum(copies) == 8 and min(copies) >= 1
    assert list(leaf_weights(tree, "leaf").values()) == [float(count) for count in copies]
    assert list(leaf_weights(tree, "path").values()) == [0.25, 0.25, 0.5]
    again = uneven_tree()
    pad_groups([again], 8, seed=1)
    assert [leaf.multiplicity for leaf in again.leaves] == copies
    pad_groups([tree], 3, seed=1)
    assert [leaf.multiplicity for leaf in tree.leaves] == [1, 1, 1]


def test_padding_copies_no_leaf_that_does_not_count() -> None:
    tree, dead = uneven_tree(), uneven_tree()
    tree.leaves[0].status = "failed"
    tree.leaves[1].masked = True
    for leaf in dead.leaves:
        leaf.status = "failed"
    pad_groups([tree, dead], 5, seed=0)
    assert [leaf.multiplicity for leaf in tree.leaves] == [1, 1, 5]
    assert [leaf.multiplicity for leaf in dead.leaves] == [1, 1, 1]


class StepCounting:
    """A reward that changes with training: worth the number of the step."""

    def __init__(self, *, step: int) -> None:
        self.step = step

    def __call__(self, episode: Episode) -> float:
        return float(self.step)


def test_a_reward_that_is_a_class_is_told_the_step() -> None:
    tree = tool_tree(sample("a", "f", value=1), True, False)
    for step in (0, 7):
        score_trees([tree], RewardConfig(name=f"{__name__}:StepCounting"), step=step)
        assert [leaf.reward for leaf in tree.leaves] == [step, step]


def test_a_reward_that_reads_calls_is_told_their_format() -> None:
    tree = tool_tree(sample("a", "f", value=1), True, text="[f(x=1)]")
    score_trees([tree], RewardConfig(name="tool_zero"), step=25, call_format="python")
    assert tree.leaves[0].reward == pytest.approx(1 + 0.5 * 1 + 0.5 * 0.5)
    score_trees([tree], RewardConfig(name="tool_zero"), step=25)
    assert tree.leaves[0].reward < 0.5
    # a class without such a parameter is not given it
    score_trees([tree], RewardConfig(name=f"{__name__}:StepCounting"), step=7, call_format="python")
    assert tree.leaves[0].reward == 7.0


def test_training_tells_rewards_the_format_of_its_environment() -> None:
    tree = tool_tree(sample("a", "f", value=1), True, text="[f(x=1)]")
    config = Config.model_validate(
        {"environment": {"name": "tool_calls", "options": {"format": "python"}}, "reward": {"name": "tool_zero"}}
    )
    grower = SimpleNamespace(grow=lambda *_, **__: [tree], stats=SimpleNamespace(outvoted_tokens=0))
    session = SimpleNamespace(grower=grower, config=config, generated_tokens=0, leaves=0)
    assert grow_scored(session, [tree.task], 25) == [tree]  # type: ignore[arg-type]  # the parts that it needs
    assert tree.leaves[0].reward == pytest.approx(1 + 0.5 * 1 + 0.5 * 0.5)


def test_the_tool_rewards_have_names() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    tree = tool_tree(sample("a", "f", value=1), True, text=text)
    score_trees([tree], RewardConfig(name="self_exemplifying"))
    assert tree.leaves[0].reward == 1.0
    # at its middle, step 25: format 1, half of strict 1, half of general 0.5
    score_trees([tree], RewardConfig(name="tool_zero"), step=25)
    assert tree.leaves[0].reward == pytest.approx(1 + 0.5 * 1 + 0.5 * 0.5)
