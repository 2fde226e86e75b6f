"""The leaf budget and the criteria, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firesteel.branching import CRITERIA, Entropy, FinishedStep, LeafBudget, RandomTag, make_criterion
from firesteel.errors import ConfigError


def _step(explore: bool = False, turn: int = 0, now: float = 0.0, first: float = 0.0) -> FinishedStep:
    return FinishedStep(turn, explore, [now] * 30, [first] * 30, math.log(100))


def test_equation_7_hands_out_the_budget_one_grant_at_a_time():
    # N = 8, M = 4, B = 2: N_current 4, 5, 6, 7 -> min(2, 8 - N_current + 1) = 2; at 8: min(2, 1) = 1
    budget = LeafBudget(8, 4)
    assert [budget.grant(2) for _ in range(6)] == [2, 2, 2, 2, 1, 1]
    assert budget.created == 8


def test_a_wide_branch_takes_what_is_left():
    # N = 8, M = 6, B = 5: min(5, 3) = 3
    budget = LeafBudget(8, 6)
    assert [budget.grant(5), budget.grant(5)] == [3, 1]


def test_a_grant_is_at_least_one():
    assert LeafBudget(4, 4).grant(2) == 1


def test_counting_once_per_step_would_overshoot():
    # six tagged leaves at once on N = 8, M = 6: only two of them may branch
    budget = LeafBudget(8, 6)
    assert sum(budget.grant(2) for _ in range(6)) == 8


def test_explore_tag_branches_at_the_tag_only():
    criterion = make_criterion("explore_tag", 3, {})
    rng = np.random.default_rng(0)
    assert [criterion.wanted(_step(explore=flag), rng) for flag in (False, True)] == [1, 3]


def test_chain_never_branches():
    assert make_criterion("chain", 4, {}).wanted(_step(explore=True), np.random.default_rng(0)) == 1


def test_fixed_probability_is_a_rate():
    criterion = make_criterion("fixed_probability", 2, {"probability": 0.3})
    rng = np.random.default_rng(0)
    branched = sum(criterion.wanted(_step(), rng) == 2 for _ in range(4000))
    assert branched / 4000 == pytest.approx(0.3, abs=0.03)  # four standard errors


def test_random_tag_follows_the_rate_of_its_turn():
    criterion = RandomTag(width=2)
    rng = np.random.default_rng(0)
    for _ in range(400):
        criterion.wanted(_step(explore=True, turn=0), rng)
        criterion.wanted(_step(explore=False, turn=5), rng)
    late = sum(criterion.wanted(_step(explore=False, turn=5), rng) == 2 for _ in range(400))
    early = sum(criterion.wanted(_step(explore=True, turn=0), rng) == 2 for _ in range(400))
    assert early > 380 and late < 20
    again = RandomTag(width=2)
    again.load_state_dict(criterion.state_dict())
    assert again.counts == criterion.counts


def test_entropy_probability_by_hand():
    # V = 100: H rises from .1*log V to .6*log V, weight .2: .5 + .2 * .5 = .6; only the first 20 tokens count
    log_vocabulary = math.log(100)
    step = FinishedStep(0, False, [0.6 * log_vocabulary] * 20 + [99.0], [0.1 * log_vocabulary] * 20, log_vocabulary)
    assert Entropy().probability(step) == pytest.approx(0.6)
    assert Entropy(weight=5.0).probability(step) == 1.0


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_wants_between_one_and_its_width(name):
    criterion = make_criterion(name, 3, {})
    rng = np.random.default_rng(1)
    wanted = {criterion.wanted(_step(explore=bool(i % 2), turn=i % 4, now=i % 3), rng) for i in range(300)}
    assert wanted <= {1, 2, 3}
    criterion.load_state_dict(criterion.state_dict())


def test_unknown_criteria_and_options_are_named():
    with pytest.raises(ConfigError, match=r"unknown criterion 'chains' \(did you mean 'chain'\?\)"):
        make_criterion("chains", 2, {})
    with pytest.raises(ConfigError, match="does not take the options"):
        make_criterion("explore_tag", 2, {"probability": 0.5})
    with pytest.raises(ConfigError, match="must lie in"):
        make_criterion("fixed_probability", 2, {"probability": 1.5})
