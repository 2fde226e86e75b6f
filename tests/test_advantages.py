"""Advantages by hand, and the exact enumeration of a small branching task."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from trees import finish, respond, uneven_tree

from firesteel.advantages import (
    baselines,
    estimate_advantages,
    group_advantages,
    group_statistics,
    leaf_weights,
    permute_within_groups,
    spread,
)
from firesteel.config import AdvantageConfig
from firesteel.packing import node_terms
from firesteel.tree import Tree
from firesteel.types import Task


def test_path_weights_are_the_product_of_the_branchings():
    # M = 2 roots; root 0 branches in 2: (1/2)(1/2), (1/2)(1/2), 1/2
    assert list(leaf_weights(uneven_tree(), "path").values()) == [0.25, 0.25, 0.5]
    assert list(leaf_weights(uneven_tree(), "leaf").values()) == [1.0, 1.0, 1.0]


def test_group_mean_contains_the_leaf_itself():
    scores, ones, roots = np.array([1.0, 0.0, 0.0, 1.0]), np.ones(4), np.arange(4)
    assert baselines(scores, ones, roots, kind="group_mean") == pytest.approx([0.5] * 4)


def test_leave_one_root_out_leaves_out_whole_trees():
    # root 0 has leaves 1, 0; root 1 has leaf 1. Others of root 0: [1] -> 1. Others of root 1: weighted (1*.25+0*.25)/.5
    result = baselines(
        np.array([1.0, 0.0, 1.0]), np.array([0.25, 0.25, 0.5]), np.array([0, 0, 1]), kind="leave_one_root_out"
    )
    assert result == pytest.approx([1.0, 1.0, 0.5])


def test_a_single_root_has_no_other_and_gets_zero():
    scores = np.array([1.0, 0.0])
    baseline, scale = group_advantages(scores, np.ones(2), np.zeros(2), baseline="leave_one_root_out")
    assert ((scores - baseline) / scale).tolist() == [0.0, 0.0]


def test_named_standard_deviations():
    # scores 1, 0, 0, 1: mean .5, sum of squares 1; population sqrt(1/4), sample sqrt(1/3)
    scores, ones = np.array([1.0, 0.0, 0.0, 1.0]), np.ones(4)
    assert spread(scores, ones, std="none") == 1.0
    assert spread(scores, ones, std="population") == pytest.approx(0.5)
    assert spread(scores, ones, std="sample") == pytest.approx((1 / 3) ** 0.5)
    assert spread(np.array([3.0]), np.ones(1), std="sample") == 0.0


def test_the_bonus_of_a_solved_group_is_as_strong_as_solving():
    # [1.01, 1, 1, 1, 1]: deviations .008, -.002 x4; sample std sqrt(8e-5/4)=.004472; .008/.004472 = 1.789
    scores = np.array([1.01, 1, 1, 1, 1])
    baseline, scale = group_advantages(scores, np.ones(5), np.arange(5), std="sample", eps=0.0)
    assert (scores - baseline) / scale == pytest.approx([1.789, -0.447, -0.447, -0.447, -0.447], abs=1e-3)
    _, floored = group_advantages(scores, np.ones(5), np.arange(5), std="sample", eps=0.0, std_floor=0.1)
    assert floored == 0.1


def _flat_group(rewards: list[float], steps: list[list[float]]) -> Tree:
    tree = Tree(task=Task("g"), group="g")
    prompt = tree.add(-1, "prompt", 0, [1], restart=True, width=len(rewards))
    for root, (reward, step_rewards) in enumerate(zip(rewards, steps, strict=True)):
        parent = prompt.index
        for turn in range(len(step_rewards)):
            node = respond(tree, parent, turn, [2])
            parent = tree.add(node.index, "prompt", turn + 1, [3]).index if turn + 1 < len(step_rewards) else parent
        finish(tree, node, root, reward, step_rewards)
    return tree


@pytest.mark.parametrize("std", ["none", "population", "sample"])
@pytest.mark.parametrize("over", ["leaf", "step"])
def test_an_all_equal_group_and_a_group_of_one_give_exact_zeros(std, over):
    config = AdvantageConfig(baseline="group_mean", std=std, over=over)
    for tree in (_flat_group([1.0, 1.0], [[0.0], [0.0, 0.0]]), _flat_group([1.0], [[0.0, 0.0]])):
        estimate_advantages([tree], config)
        assert all(value == 0.0 for leaf in tree.leaves for value in leaf.advantages)


def test_spark_normalises_over_step_samples():
    # samples: 10, 10 (leaf 0, two steps), 0, -0.1, 0 (leaf 1, three steps): mean 19.9/5 = 3.98
    # squares about the mean: 2*6.02^2 + 2*3.98^2 + 4.08^2 = 72.4808+31.6808+16.6464 = 120.808; sample std sqrt(30.202)
    tree = _flat_group([10.0, 0.0], [[0.0, 0.0], [0.0, -0.1, 0.0]])
    estimate_advantages([tree], AdvantageConfig(weighting="leaf", baseline="group_mean", over="step", std="sample"))
    scale = 30.202**0.5
    assert tree.leaves[0].advantages == pytest.approx([6.02 / scale] * 2, rel=1e-5)
    assert tree.leaves[1].advantages == pytest.approx([-3.98 / scale, -4.08 / scale, -3.98 / scale], rel=1e-5)


def test_a_step_penalty_sits_on_its_step_alone():
    # leaf scores: 1 and 0 - 0.5/2 = -.25 (mean over steps); group mean .375
    tree = _flat_group([1.0, 0.0], [[0.0], [0.0, -0.5]])
    estimate_advantages([tree], AdvantageConfig(weighting="leaf", baseline="group_mean"))
    assert tree.leaves[0].advantages == pytest.approx([0.625])
    assert tree.leaves[1].advantages == pytest.approx([-0.375, -0.875])


def test_failed_and_masked_leaves_leave_the_baseline():
    tree = _flat_group([1.0, 0.0, 0.0], [[0.0]] * 3)
    tree.leaves[2].status = "failed"
    estimate_advantages([tree], AdvantageConfig(weighting="leaf", baseline="group_mean"))
    assert [leaf.advantages for leaf in tree.leaves] == [[0.5], [-0.5], None]


def test_permuting_keeps_the_rewards_of_a_tree():
    tree = _flat_group([1.0, 0.0, 0.0, 1.0, 0.5], [[0.0]] * 5)
    permute_within_groups([tree], seed=3)
    rewards = [leaf.reward for leaf in tree.leaves]
    assert sorted(rewards) == [0.0, 0.0, 0.5, 1.0, 1.0] and rewards != [1.0, 0.0, 0.0, 1.0, 0.5]


def test_group_statistics_count_dead_groups():
    solved, mixed = _flat_group([1.0, 1.0], [[0.0]] * 2), _flat_group([1.0, 0.0], [[0.0]] * 2)
    mixed.group = "h"
    assert group_statistics([solved, mixed]) == {
        "rollout/dead_groups": 0.5,
        "rollout/solved_groups": 0.5,
        "rollout/failed_groups": 0.0,
    }


# --- exact enumeration ---------------------------------------------------------------------------------------
# M roots; a root emits the tag with probability 1/2; tag -> 2 children, no tag -> 1; a child wins (reward 1) with
# probability g(tag). Gradients for the tag's logit (d log pi = +-1/2) and the winning action's logit (won - g).


def _roots(with_tag: float, without: float):
    for tag in (True, False):
        g = with_tag if tag else without
        for wins in itertools.product((1, 0), repeat=2 if tag else 1):
            yield tag, wins, 0.5 * float(np.prod([g if won else 1 - g for won in wins]))


def _expected_gradient(num_roots: int, weighting: str, baseline: str, with_tag: float, without: float):
    """E[(1/D) sum_n (positive_n + negative_n) * d log pi_n], through the library's own trees and weights."""
    config = AdvantageConfig(weighting=weighting, baseline=baseline)
    total = np.zeros(2)
    for outcome in itertools.combinations_with_replacement(range(6), num_roots):
        roots = [list(_roots(with_tag, without))[index] for index in outcome]
        orders = np.prod(np.arange(1, num_roots + 1)) / np.prod(
            [float(np.prod(np.arange(1, outcome.count(index) + 1))) for index in set(outcome)]
        )
        probability = orders * float(np.prod([root[2] for root in roots]))
        tree, scores = Tree(task=Task("e"), group="e"), {}
        prompt = tree.add(-1, "prompt", 0, [0], restart=True, width=num_roots)
        for number, (tag, wins, _) in enumerate(roots):
            first = respond(tree, prompt.index, 0, [1])
            scores[first.index] = (0, 0.5 if tag else -0.5)
            seen = tree.add(first.index, "prompt", 1, [2], width=len(wins))
            for won in wins:
                last = respond(tree, seen.index, 1, [3])
                scores[last.index] = (1, won - (with_tag if tag else without))
                finish(tree, last, number, float(won))
        estimate_advantages([tree], config)
        terms = node_terms(tree, weighting=weighting)
        denominator = 1.0 if weighting == "path" else sum(term.weight for term in terms.values())
        for index, term in terms.items():
            which, derivative = scores[index]
            total[which] += probability * (term.positive + term.negative) * derivative / denominator
    return total


@pytest.mark.parametrize(
    ("num_roots", "weighting", "baseline", "tag", "action"),
    [
        (2, "path", "leave_one_root_out", 0.0, 0.24),
        (4, "path", "leave_one_root_out", 0.0, 0.24),
        (2, "path", "group_mean", 0.0, 0.15),
        (4, "path", "group_mean", 0.0, 0.195),
        (2, "leaf", "none", 0.0167, None),
        (4, "leaf", "none", 0.0254, None),
        (2, "node", "none", -0.0083, None),
        (4, "node", "none", -0.0041, None),
        (2, "leaf", "group_mean", 0.0, None),
        (2, "node", "group_mean", 0.0, None),
    ],
)
def test_enumerated_gradient_where_branching_does_not_matter(num_roots, weighting, baseline, tag, action):
    gradient = _expected_gradient(num_roots, weighting, baseline, 0.4, 0.4)
    assert gradient[0] == pytest.approx(tag, abs=6e-5)
    if action is not None:
        assert gradient[1] == pytest.approx(action, abs=6e-5)


@pytest.mark.parametrize(
    ("num_roots", "weighting", "factor", "tag"),
    [(2, "path", 1, 0.075), (4, "path", 1, 0.075), (2, "leaf", 2, 0.075), (4, "leaf", 2, 0.0718)],
)
def test_enumerated_gradient_where_branching_helps(num_roots, weighting, factor, tag):
    gradient = _expected_gradient(num_roots, weighting, "leave_one_root_out", 0.6, 0.3)
    assert factor * gradient[0] == pytest.approx(tag, abs=6e-5)
