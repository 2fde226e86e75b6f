"""Choosing among sampled responses: labels, ties and counts by hand, and what a grown tree keeps of the choice."""

from __future__ import annotations

from typing import Any

import pytest
from toys import Ledger, Toy, builder, grower, script, think

from firesteel.candidates import Candidates, is_rare, used_labels
from firesteel.config import RolloutConfig
from firesteel.errors import ConfigError
from firesteel.report import rollout_metrics
from firesteel.tree import Step, Tree
from firesteel.types import Task

TASK = Task("t")


class RatedToy(Toy):
    """Rates an action such as "left:7" by its number; its label is the word before."""

    def rate(self, action: str) -> tuple[str, float]:
        label, _, score = action.partition(":")
        return label, float(score or 0)


def tree_of(*labels: str) -> Tree:
    tree = Tree(TASK)
    for label in labels:
        tree.add(-1, "response", 0, [1], step=Step("", "", None, False, True, label=label))
    return tree


def choose(actions: list[str], *used: str, **settings: Any) -> tuple[int, str, dict[str, float]]:
    chooser = Candidates(RolloutConfig(candidates=3, **settings))
    choice = chooser.choose(actions, RatedToy(Ledger()), tree_of(*used), seed=0)
    return choice.number, choice.label, choice.scores


def test_the_lowest_score_above_the_threshold_is_executed() -> None:
    assert choose(["a:9", "b:6.5", "c:6"]) == (1, "b", {"a": 9.0, "b": 6.5, "c": 6.0})
    assert choose(["a:9", "b:2", "c:6"])[1] == "a"  # 6 is not above 6
    assert choose(["a:1", "b:2", "c:3"])[1] == "c"  # none is viable: the best
    assert choose(["a:9", "b:6.5"], selector="best")[1] == "a"


def test_the_first_of_the_same_label_stands_for_all() -> None:
    assert choose(["a:9", "b:8", "b:7"]) == (1, "b", {"a": 9.0, "b": 8.0})


def test_use_is_counted_over_the_tree() -> None:
    assert used_labels(tree_of("a", "b", "a", "")) == {"a": 2, "b": 1}
    assert choose(["a:9", "b:9"], "b", "b", "a", selector="usage_rarity")[1] == "a"
    assert choose(["a:9", "b:9"], "a", "a", "b", selector="usage_rarity")[1] == "b"


def test_a_grown_tree_keeps_what_was_chosen_from_and_counts_what_was_not() -> None:
    lines = {(0, 0, 0): think("a:9"), (0, 0, 0, 1): think("b:7"), (0, 0, 1): think("c:8"), (0, 0, 1, 1): think("d:1")}
    growing = grower(
        script(lines, [TASK]), lambda: RatedToy(Ledger()), criterion="chain", candidates=2, num_leaves=1, num_roots=1,
        max_turns=2,
    )  # fmt: skip
    (tree,) = growing.grow([TASK], seed=0)
    first, second = (step for node in tree.nodes if (step := node.step) is not None)
    assert (first.action, first.label, first.candidates) == ("b:7", "b", {"a": 9.0, "b": 7.0})
    assert (second.action, second.label, second.candidates) == ("c:8", "c", {"c": 8.0, "d": 1.0})
    assert (is_rare(first), is_rare(second)) == (True, False)
    assert rollout_metrics([tree], 0)["explore/rare_choices"] == 0.5
    lost = [builder().encode_response(think(action)) for action in ("a:9", "d:1")]
    assert growing.stats.outvoted_tokens == sum(map(len, lost))
    assert Tree.from_dict(tree.to_dict()) == tree


def test_without_candidates_nothing_is_rated_or_kept() -> None:
    growing = grower(script({}, [TASK]), lambda: Toy(Ledger()), criterion="chain", num_leaves=1, num_roots=1)
    (tree,) = growing.grow([TASK], seed=0)
    assert all(node.step.candidates is None for node in tree.nodes if node.step is not None)
    assert "explore/rare_choices" not in rollout_metrics([tree], 0)


def test_an_environment_that_cannot_rate_is_named() -> None:
    growing = grower(script({}, [TASK]), lambda: Toy(Ledger()), criterion="chain", candidates=2, num_roots=1)
    with pytest.raises(ConfigError, match="candidates is 2, and Toy has no rate"):
        growing.grow([TASK], seed=0)
