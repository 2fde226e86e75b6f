"""Rows, weights and denominators by hand, on the uneven tree of `trees.py`."""

from __future__ import annotations

import numpy as np
import pytest
from trees import uneven_tree

from firesteel.advantages import estimate_advantages
from firesteel.config import AdvantageConfig
from firesteel.packing import denominator, node_terms, pack


def _terms(weighting: str, aggregation: str = "token_mean"):
    tree = uneven_tree()
    for leaf, advantage in zip(tree.leaves, (0.6, -0.4, 0.1), strict=True):
        leaf.advantages = [advantage] * 2
    terms = node_terms(tree, weighting=weighting, aggregation=aggregation)
    return {index: (term.weight, term.positive, term.negative) for index, term in terms.items()}


def test_leaf_weighting_is_what_duplicated_rows_compute():
    terms = _terms("leaf")
    assert terms[1] == pytest.approx((2.0, 0.6, -0.4))
    assert terms[3] == pytest.approx((1.0, 0.6, 0.0))
    assert terms[4] == pytest.approx((1.0, 0.0, -0.4))


def test_node_weighting_counts_every_token_once():
    assert _terms("node")[1] == pytest.approx((1.0, 0.3, -0.2))
    assert _terms("node")[5] == pytest.approx((1.0, 0.1, 0.0))


def test_path_weighting():
    # leaves weigh 1/4, 1/4, 1/2
    assert _terms("path")[1] == pytest.approx((0.5, 0.15, -0.1))
    assert _terms("path")[5] == pytest.approx((0.5, 0.05, 0.0))


def test_sequence_mean_divides_by_the_length_of_the_episode():
    # leaf 0 has 3 sampled tokens, leaf 1 has 5: node 1 gets (1/4)/3 + (1/4)/5
    assert _terms("path", "sequence_mean")[1][0] == pytest.approx(0.25 / 3 + 0.25 / 5)


def test_rows_train_every_sampled_node_once():
    batch = pack([uneven_tree()], weighting="node")
    assert [row.token_ids.tolist() for row in batch.rows] == [
        [7, 8, 1, 2, 9, 3],
        [7, 8, 1, 2, 9, 4, 5, 6],
        [7, 8, 2, 1, 9, 9, 3],
    ]
    assert [np.flatnonzero(row.loss_mask).tolist() for row in batch.rows] == [[2, 3, 5], [5, 6, 7], [2, 3, 6]]
    # paths: 6 + 8 + 7 tokens; distinct: 2 + (2+1+1+3) + (2+2+1)
    assert batch.stats["pack/row_tokens"] == 21 and batch.stats["pack/tree_tokens"] == 14
    assert batch.stats["pack/token_ratio"] == 1.5


@pytest.mark.parametrize(
    ("weighting", "expected"),
    # leaf: 3 + 5 + 3 path tokens; node: 9 distinct; path: 3/4 + 5/4 + 3/2
    [("leaf", 11.0), ("node", 9.0), ("path", 3.5)],
)
def test_denominators(weighting, expected):
    rows = pack([uneven_tree()], weighting=weighting).rows
    assert denominator(rows, "token_mean") == pytest.approx(expected)
    assert denominator(rows, "constant", constant=4.0) == 4.0


def test_failed_leaves_carry_no_weight():
    tree = uneven_tree()
    tree.leaves[1].status = "failed"
    rows = pack([tree], weighting="leaf").rows
    assert denominator(rows, "token_mean") == 6.0


def test_copies_of_a_leaf_count_under_leaf_weighting():
    tree = uneven_tree()
    tree.leaves[2].multiplicity = 3
    assert denominator(pack([tree], weighting="leaf").rows, "token_mean") == 17.0
    assert denominator(pack([tree], weighting="node").rows, "token_mean") == 9.0


def test_restarted_contexts_become_rows_of_their_own():
    tree = uneven_tree()
    for index in (2, 6):
        tree.nodes[index].restart = True
    estimate_advantages([tree], AdvantageConfig())
    rows = pack([tree]).rows
    assert sorted(row.token_ids.tolist() for row in rows) == [
        [7, 8, 1, 2], [7, 8, 2, 1], [9, 3], [9, 4, 5, 6], [9, 9, 3],
    ]  # fmt: skip


def test_training_prompts_puts_weight_on_fed_tokens_once():
    batch = pack([uneven_tree()], weighting="node", prompt_weight=1.0)
    # 14 distinct tokens, minus the very first, which nothing predicts
    assert denominator(batch.rows, "token_mean") == 13.0
