"""The metrics of a step's trees, by hand on the uneven tree."""

from __future__ import annotations

import math

import pytest
from trees import uneven_tree

from firesteel.report import mean, rollout_metrics
from firesteel.tree import Tree
from firesteel.types import Task


def marked() -> Tree:
    """The uneven tree with five distinct steps: one explores, one is invalid, one not understood, one cut off."""
    tree = uneven_tree()
    steps = [node.step for node in tree.nodes if node.step is not None]
    steps[0].explore, steps[1].valid, steps[2].understood, steps[3].truncated_response = True, False, False, True
    for step, entropy in zip(steps, (1.0, 2.0, 3.0, 4.0, None), strict=True):
        step.entropy = entropy
    steps[1].action = "go"
    for leaf, score in zip(tree.leaves, (1.0, 0.25, 1.0), strict=True):
        leaf.score = score
    return tree


def test_every_metric_by_hand() -> None:
    metrics = rollout_metrics([marked()], total_generated_tokens=100)
    # three leaves of two steps; successes 1, 0, 1; scores 1, .25, 1; sampled tokens 2 + 1 + 3 + 2 + 1
    assert metrics == {
        "rollout/success": pytest.approx(2 / 3),
        "rollout/score": pytest.approx(0.75),
        "rollout/reward": pytest.approx(2 / 3),
        "rollout/episode_steps": 2.0,
        "rollout/leaves": 3.0,
        "rollout/failed_leaves": 0.0,
        "rollout/masked_leaves": 0.0,
        "rollout/overflow": 0.0,
        "rollout/generated_tokens": 9.0,
        "rollout/total_generated_tokens": 100.0,
        "rollout/tokens_per_leaf": 3.0,
        "rollout/response_tokens": 1.8,
        # shares of the five distinct steps: the shared first step counts once
        "rollout/invalid_format": 0.2,
        "rollout/not_understood": 0.2,
        "rollout/truncated_responses": 0.2,
        "explore/ratio": 0.2,
        "explore/branchings": 1.0,
        "explore/branch_turn": 1.0,
        "explore/entropy": 2.5,
        # actions look, go / look, look / look, look
        "explore/repetition": pytest.approx(1 / 3),
        "rollout/dead_groups": 0.0,
        "rollout/solved_groups": 0.0,
        "rollout/failed_groups": 0.0,
    }


def test_failed_leaves_are_counted_apart() -> None:
    tree = marked()
    tree.leaves[1].status = "failed"
    tree.leaves[1].reward = None
    tree.leaves[2].status = "overflow"
    tree.leaves[2].masked = True
    metrics = rollout_metrics([tree], 0)
    assert metrics["rollout/failed_leaves"] == 1.0 and metrics["rollout/masked_leaves"] == 1.0
    assert (metrics["rollout/success"], metrics["rollout/score"], metrics["rollout/overflow"]) == (1.0, 1.0, 0.5)
    assert metrics["rollout/tokens_per_leaf"] == 3.0  # what the failed one cost was spent


def test_trees_are_pooled() -> None:
    other = uneven_tree("other")
    for leaf in other.leaves:
        leaf.success, leaf.reward = True, 1.0
    metrics = rollout_metrics([marked(), other], 0)
    assert metrics["rollout/success"] == pytest.approx(5 / 6)
    assert (metrics["rollout/dead_groups"], metrics["rollout/solved_groups"]) == (0.5, 0.5)
    assert metrics["explore/ratio"] == 0.1


def test_nothing_to_count_is_nan_and_never_zero() -> None:
    metrics = rollout_metrics([Tree(task=Task("t"))], 0)
    assert math.isnan(metrics["rollout/success"]) and math.isnan(metrics["explore/ratio"])
    assert (metrics["rollout/leaves"], metrics["rollout/tokens_per_leaf"]) == (0.0, 0.0)
    assert metrics["rollout/dead_groups"] == 1.0
    assert set(metrics) == set(rollout_metrics([marked()], 0))


def test_the_mean_of_nothing_is_nan() -> None:
    assert math.isnan(mean([])) and mean([True, False]) == 0.5 and mean([1.0, 2.0]) == 1.5
