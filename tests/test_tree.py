"""The tree's own contract."""

from __future__ import annotations

import json

import pytest
from trees import uneven_tree

from firesteel.errors import TreeError
from firesteel.tree import Tree


def test_paths_streams_and_tokens():
    tree = uneven_tree()
    first, second, third = tree.leaves
    assert tree.stream(first.node) == [7, 8, 1, 2, 9, 3]
    assert tree.stream(second.node) == [7, 8, 1, 2, 9, 4, 5, 6]
    assert tree.stream(third.node) == [7, 8, 2, 1, 9, 9, 3]
    assert tree.generated_tokens() == 2 + 1 + 3 + 2 + 1
    assert tree.episode(second).generated_tokens == 5
    assert sum(tree.path_weight(leaf) for leaf in tree.leaves) == 1.0


def test_a_restart_begins_the_stream_anew():
    tree = uneven_tree()
    tree.nodes[2].restart = True
    assert tree.stream(tree.leaves[0].node) == [9, 3]


def test_leaves_below_count_by_identity():
    tree = uneven_tree()
    below = {index: [leaf.index for leaf in leaves] for index, leaves in tree.leaves_below().items()}
    assert below == {0: [0, 1, 2], 1: [0, 1], 2: [0, 1], 3: [0], 4: [1], 5: [2], 6: [2], 7: [2]}


def test_json_round_trip_is_exact():
    tree = uneven_tree()
    tree.nodes[1].logprobs = [-0.1 - 1e-17, -1 / 3]
    assert Tree.from_dict(json.loads(json.dumps(tree.to_dict()))) == tree


def test_a_record_of_another_version_is_refused():
    with pytest.raises(TreeError, match="format version 99"):
        Tree.from_dict({"format_version": 99})


def test_missing_logprobs_are_named():
    tree = uneven_tree()
    tree.nodes[1].logprobs = [-1.0]
    with pytest.raises(TreeError, match="node 1 of tree 't': 1 logprobs for 2 tokens"):
        tree.validate()
