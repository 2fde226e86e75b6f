"""Losses by hand, and against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from firesteel.losses import clipped_objective, kl_estimate, selected_logprobs, token_entropies

LOG = math.log


def _objective(ratio: float, advantages: list[float], **options):
    """The surrogate of one token on several leaves of weight 1, and whether clipping acts."""
    positive = torch.tensor([sum(max(a, 0.0) for a in advantages)])
    negative = torch.tensor([sum(min(a, 0.0) for a in advantages)])
    value, acts = clipped_objective(torch.tensor([LOG(ratio)]), torch.zeros(1), positive, negative, **options)
    return float(value), bool(acts)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "acts"),
    [
        (1.0, 2.0, 2.0, False),
        (1.1, 2.0, 2.2, False),
        (1.5, 2.0, 2.4, True),  # min(3, 1.2 * 2)
        (0.5, 2.0, 1.0, False),  # min(1, .8 * 2)
        (1.5, -2.0, -3.0, False),  # min(-3, -2.4)
        (0.5, -2.0, -1.6, True),  # min(-1, .8 * -2)
    ],
)
def test_the_clipped_surrogate_of_one_leaf(ratio, advantage, value, acts):
    got, clipped = _objective(ratio, [advantage])
    assert got == pytest.approx(value, rel=1e-6)
    assert clipped is acts


def test_clip_higher_moves_only_the_upper_bound():
    assert _objective(1.5, [1.0], clip_high=0.26)[0] == pytest.approx(1.26)
    assert _objective(0.5, [-1.0], clip_high=0.26)[0] == pytest.approx(-0.8)


def test_dual_clip_bounds_the_ratio_of_bad_tokens():
    assert _objective(5.0, [-1.0], dual_clip=3.0) == (pytest.approx(-3.0), True)
    assert _objective(2.0, [-1.0], dual_clip=3.0) == (pytest.approx(-2.0), False)


@pytest.mark.parametrize("ratio", [0.3, 0.9, 1.0, 1.15, 1.9])
def test_two_sums_equal_the_sum_over_leaves(ratio):
    """The per-leaf definition, min(r A, clip(r) A), summed leaf by leaf."""
    advantages = [1.5, -0.7, 0.2, -2.0]
    clipped = min(max(ratio, 0.8), 1.2)
    by_leaf = sum(min(ratio * a, clipped * a) for a in advantages)
    assert _objective(ratio, advantages)[0] == pytest.approx(by_leaf, rel=1e-6)


def test_averaging_advantages_at_a_node_is_something_else():
    # leaves 1 and -1 average to 0; the true sum at r = 1.5 is min(1.5, 1.2) + min(-1.5, -1.2) = -0.3
    assert _objective(1.5, [1.0, -1.0])[0] == pytest.approx(-0.3, rel=1e-6)


def test_kl_estimators():
    # log p = log .5, log q = log .25: d = log 2
    p, q = torch.tensor([LOG(0.5)]), torch.tensor([LOG(0.25)])
    assert float(kl_estimate(p, q, kind="k1")) == pytest.approx(LOG(2))
    assert float(kl_estimate(p, q, kind="k2")) == pytest.approx(LOG(2) ** 2 / 2)
    assert float(kl_estimate(p, q, kind="k3")) == pytest.approx(0.5 - 1 + LOG(2))


def test_k1_and_k3_are_unbiased_on_a_known_pair():
    # p = (.7, .3), q = (.5, .5): KL = .7 log 1.4 + .3 log .6
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])
    exact = float((p * (p / q).log()).sum())
    for kind in ("k1", "k3"):
        assert float((p * kl_estimate(p.log(), q.log(), kind=kind)).sum()) == pytest.approx(exact, rel=1e-5)


def test_selected_logprobs_and_entropies_by_hand():
    logits = torch.tensor([[0.0, LOG(3.0)]])  # probabilities 1/4, 3/4
    assert float(selected_logprobs(logits, torch.tensor([1]))) == pytest.approx(LOG(0.75))
    # temperature 1/2 doubles the logits: 1, 9 -> 9/10
    assert float(selected_logprobs(logits, torch.tensor([1]), torch.tensor([0.5]))) == pytest.approx(LOG(0.9))
    assert float(token_entropies(logits)) == pytest.approx(-(0.25 * LOG(0.25) + 0.75 * LOG(0.75)))


def test_the_gradient_is_the_finite_difference():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 3, 2, 4])
    old = torch.tensor([-1.5, -1.2, -2.0, -0.9], dtype=torch.float64)
    positive = torch.tensor([1.0, 0.0, 0.5, 0.3], dtype=torch.float64)
    negative = torch.tensor([0.0, -1.0, -0.7, -0.2], dtype=torch.float64)

    def loss(values: torch.Tensor) -> torch.Tensor:
        logprobs = values.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        return -clipped_objective(logprobs, old, positive, negative)[0].sum()

    assert torch.autograd.gradcheck(loss, (logits,), eps=1e-7, atol=1e-5)
