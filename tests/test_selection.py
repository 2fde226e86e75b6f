"""Selectors, by hand."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from firesteel.errors import ConfigError
from firesteel.selection import SELECTORS, make_selector

SCORES = {"calculator": 9.0, "cot": 7.0, "python": 6.5, "search": 6.0, "units": 2.0, "wikipedia": None}


def choose(name: str, scores: dict[str, float | None] = SCORES, usage: dict[str, int] | None = None, **options: object):
    return make_selector(name, options).select(scores, usage or {}, random.Random(0))


def share(name: str, action: str, draws: int = 4000, **options: object) -> float:
    selector = make_selector(name, options)
    chosen = Counter(selector.select(SCORES, {}, random.Random(seed)).action for seed in range(draws))
    return chosen[action] / draws


def test_rarity_first_takes_the_lowest_score_strictly_above_the_threshold() -> None:
    selection = choose("rarity_first")
    assert (selection.action, selection.viable, selection.is_fallback) == (
        "python", ("calculator", "cot", "python"), False,
    )  # fmt: skip


def test_inclusive_lets_the_threshold_itself_pass() -> None:
    assert choose("rarity_first", inclusive=True).action == "search"


@pytest.mark.parametrize(
    ("threshold", "action"), [(5.0, "search"), (6.0, "python"), (7.0, "calculator"), (1.0, "units")]
)
def test_the_threshold_decides(threshold: float, action: str) -> None:
    assert choose("rarity_first", threshold=threshold).action == action


def test_where_only_reasoning_is_viable_it_is_chosen() -> None:
    assert choose("rarity_first", {"cot": 6.5, "search": 3.0}).action == "cot"


@pytest.mark.parametrize("name", SELECTORS)
def test_where_nothing_is_viable_the_best_is_chosen_and_flagged(name: str) -> None:
    selection = choose(name, {"cot": 3.0, "search": 5.0, "units": None})
    assert (selection.action, selection.viable, selection.is_fallback) == ("search", (), True)


@pytest.mark.parametrize("name", SELECTORS)
def test_without_any_score_there_is_nothing_to_choose(name: str) -> None:
    for scores in ({}, {"cot": None}):
        with pytest.raises(ConfigError, match="no candidate action has a score"):
            choose(name, scores)


def test_best_takes_the_highest() -> None:
    assert choose("best").action == "calculator"


def test_usage_rarity_takes_the_least_used_viable_one() -> None:
    assert choose("usage_rarity", usage={"calculator": 2, "cot": 5, "python": 3, "units": 0}).action == "calculator"
    assert choose("usage_rarity", usage={"calculator": 2, "python": 3}).action == "cot"


def test_ties_are_drawn_by_the_seed() -> None:
    tied = {"a": 7.0, "b": 7.0, "c": 9.0}
    selector = make_selector("rarity_first")
    drawn = [selector.select(tied, {}, random.Random(seed)).action for seed in range(200)]
    assert set(drawn) == {"a", "b"} and 60 < drawn.count("a") < 140
    assert drawn == [selector.select(tied, {}, random.Random(seed)).action for seed in range(200)]


def test_uniform_draws_each_viable_action_alike() -> None:
    # 1/3 each; the standard deviation of the share over 4000 draws is 0.0075
    assert share("uniform", "python") == pytest.approx(1 / 3, abs=0.03)
    assert share("uniform", "search") == 0


def test_sample_follows_the_softmax_of_the_viable_scores() -> None:
    # scores 9, 7, 6.5 at temperature 2: weights 1, e^-1, e^-1.25
    weight = math.exp(-1.0) / (1 + math.exp(-1.0) + math.exp(-1.25))
    assert weight == pytest.approx(0.2224, abs=1e-4)
    assert share("sample", "cot", temperature=2.0) == pytest.approx(weight, abs=0.03)


def test_the_order_of_the_candidates_does_not_matter() -> None:
    backwards = dict(reversed(list(SCORES.items())))
    for name in SELECTORS:
        assert choose(name) == choose(name, backwards)


def test_bad_selectors_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown selector 'rarity' "):
        make_selector("rarity")
    with pytest.raises(ConfigError, match="selector 'best' does not take the options \\['temperatur'\\]"):
        make_selector("best", {"temperatur": 1})
    with pytest.raises(ConfigError, match="temperature must be above 0, got 0"):
        make_selector("sample", {"temperature": 0})
