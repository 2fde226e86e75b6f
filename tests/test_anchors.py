"""Advantages among visits to the same state, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from trees import finish, respond, uneven_tree

from firesteel.advantages import estimate_advantages
from firesteel.anchors import returns_to_go, states
from firesteel.config import AdvantageConfig
from firesteel.tree import Leaf, Tree
from firesteel.types import Task


def seen(tree: Tree, **observations: str) -> Tree:
    """The uneven tree in a room; what the steps `n1`, `n5` and so on saw. "" is a step that was not understood."""
    tree.observation = "room"
    for name, text in observations.items():
        step = tree.nodes[int(name[1:])].step
        assert step is not None
        step.observation, step.understood = text or "Nothing happens.", bool(text)
    return tree


def advantages(tree: Tree, **options: Any) -> list[list[float]]:
    config = {"weighting": "path", "baseline": "group_mean", "anchor_weight": 1.0, "anchor_discount": 0.5, **options}
    estimate_advantages([tree], AdvantageConfig(**config))
    return [leaf.advantages or [] for leaf in tree.leaves]


def test_steps_of_different_pasts_meet_in_a_state() -> None:
    # All first steps in the room, all second ones at the shelf; returns .5 1, 0 0, .5 1 with weights 1/4, 1/4, 1/2.
    # The room's mean is 3/8, the shelf's 3/4, as is that of the episodes.
    tree = seen(uneven_tree(), n1="shelf", n5="shelf")
    assert states(tree, tree.leaves[2]) == ["room", "shelf"]
    expected = [[0.25 + 0.125, 0.25 + 0.25], [-0.75 - 0.375, -0.75 - 0.75], [0.25 + 0.125, 0.25 + 0.25]]
    assert advantages(tree) == [pytest.approx(row) for row in expected]
    assert advantages(tree, anchor_weight=0.0) == [[0.25, 0.25], [-0.75, -0.75], [0.25, 0.25]]


def test_what_is_not_understood_leaves_the_state_as_it_was() -> None:
    # The last leaf is in the room twice: returns .5, 0, .5 and 1 with weights 1/4, 1/4, 1/2, 1/2; mean 7/12.
    tree = seen(uneven_tree(), n1="shelf", n5="")
    assert states(tree, tree.leaves[2]) == ["room", "room"]
    room, shelf = 7 / 12, 1 / 2
    expected = [[0.75 - room, 1.25 - shelf], [-0.75 - room, -0.75 - shelf], [0.75 - room, 1.25 - room]]
    assert advantages(tree) == [pytest.approx(row) for row in expected]


def test_a_state_that_was_visited_once_adds_nothing() -> None:
    tree = seen(uneven_tree(), n1="shelf", n5="fridge")
    assert advantages(tree)[2] == pytest.approx([0.25 + 0.125, 0.25])


def test_an_earlier_success_is_worth_more_though_all_succeed() -> None:
    tree = Tree(task=Task("t"), group="t", observation="room")
    prompt = tree.add(-1, "prompt", 0, [7], restart=True, width=2)
    finish(tree, respond(tree, prompt.index, 0, [1]), 0, 1.0)
    late = tree.add(respond(tree, prompt.index, 0, [2]).index, "prompt", 1, [8])
    finish(tree, respond(tree, late.index, 1, [3]), 1, 1.0)
    seen(tree, n2="shelf")
    assert advantages(tree) == [[0.25], [-0.25, 0.0]]
    # Divided by the population's standard deviation of the two returns, 1/4.
    assert advantages(tree, std="population", eps=0.0) == [[1.0], [-1.0, 0.0]]


def test_returns_to_go_by_hand() -> None:
    leaf = Leaf(0, 3, 0, reward=4.0, step_rewards=[-1.0, 0.0, -2.0])
    assert returns_to_go(leaf, discount=0.5) == [-1.0 + 0.5 * 1.0, 1.0, 2.0]
    assert returns_to_go(Leaf(0, 3, 0, reward=1.0, step_rewards=[]), discount=0.5) == []
