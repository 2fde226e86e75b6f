"""Offline PPO: exact KL and losses by hand, a first ratio of exactly one, gradients, and what the target does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from updates import gradient, relative, tiny

from firesteel.config import LearnerConfig, LossConfig, PpoConfig
from firesteel.errors import ModelError
from firesteel.learners.passes import TokenBatch
from firesteel.learners.ppo import PpoLearner, PpoObjective, exact_kl, step_means, step_numbers
from firesteel.packing import Batch, Row

V = 320


def row(ids: list[int], steps: list[tuple[int, int, float]]) -> Row:
    """A row whose tokens from a to b are a step with an advantage."""
    floats = [np.zeros(len(ids), np.float32) for _ in range(5)]
    made = Row(np.array(ids), np.zeros(len(ids), bool), *floats)
    made.temperature[:] = 1.0
    for start, end, advantage in steps:
        made.loss_mask[start:end], made.weight[start:end] = True, 1.0
        made.positive[start:end], made.negative[start:end] = max(advantage, 0.0), min(advantage, 0.0)
    return made


def rows() -> list[Row]:
    rng = np.random.default_rng(3)
    ids = [rng.integers(V, size=size).tolist() for size in (14, 9, 11)]
    return [
        row(ids[0], [(3, 6, 0.8), (8, 14, -0.5)]),
        row(ids[1], [(4, 9, 1.2)]),
        row(ids[2], [(2, 3, -1.0), (5, 7, 0.3), (9, 11, 0.1)]),
    ]


def learner(model: Any, *, loss: dict[str, Any] | None = None, **settings: Any) -> PpoLearner:
    ppo = {name: settings.pop(name) for name in list(settings) if name in PpoConfig.model_fields}
    config = LearnerConfig(**{"lr": 1e-3, "max_grad_norm": 1e9, "packing": "rows"} | settings)
    return PpoLearner(model, config, LossConfig(**loss or {}), PpoConfig(**ppo), total_steps=10)


def batch(made: PpoLearner) -> Batch:
    """The rows with the log-probabilities of the policy that the learner began with."""
    chosen = rows()
    assert made.reference is not None
    with made.reference.active():
        stored = made.logprobs(chosen)
    for each, values in zip(chosen, stored, strict=True):
        each.old_logprobs[each.loss_mask] = values
    return Batch(chosen)


# By hand


def test_exact_kl_by_hand() -> None:
    old, new = torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    wanted = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert exact_kl(old.log(), new.log()).tolist() == pytest.approx([wanted, 0.0], abs=1e-6)


def test_means_and_numbers_of_steps() -> None:
    assert step_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist() == [2.0, 5.0]
    numbers, count = step_numbers(rows())
    assert count == 6
    assert numbers.tolist() == [0] * 3 + [1] * 6 + [2] * 5 + [3] + [4] * 2 + [5] * 2


def two_tokens(level: str) -> Any:
    """One step of two tokens over two words: pi_old = 1/2, 1/2; pi = (3/4, 1/4) at the first token, equal after."""
    ones = torch.ones(2)
    tokens = TokenBatch(torch.tensor([0, 0]), torch.zeros(2), ones, ones, 2.0 * ones, 0.0 * ones)
    old, new = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log()
    objective = PpoObjective(LossConfig(), PpoConfig(ratio_level=level))
    return objective.sums(new, old, tokens, torch.tensor([0, 0]), 1)


def test_the_sums_of_one_step_by_hand() -> None:
    found = two_tokens("token")
    # ratios 1.5 and 1; with A = 2 the first counts at 1.2
    assert float(found.surrogate) == pytest.approx(2 * 1.2 + 2 * 1.0)
    assert float(found.clipped) == 1.0
    kl = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) / 2
    assert float(found.kl) == pytest.approx(kl) and float(found.squared_kl) == pytest.approx(kl**2)


def test_an_action_has_one_ratio() -> None:
    found = two_tokens("action")
    assert found.ratio.tolist() == pytest.approx([1.5])
    assert float(found.surrogate) == pytest.approx(2 * 1.2)


# The learner


@pytest.mark.parametrize("level", ["token", "action"])
def test_the_first_ratio_is_exactly_one_and_the_loss_is_minus_the_advantage(level: str) -> None:
    made = learner(tiny(), ratio_level=level, micro_batch_tokens=20)
    metrics = made.update(batch(made))
    assert (metrics["losses/ratio_mean"], metrics["losses/ratio_max"]) == (1.0, 1.0)
    assert (metrics["losses/kl"], metrics["losses/squared_kl"], metrics["losses/clip_fraction"]) == (0.0, 0.0, 0.0)
    # 3 tokens at .8, 6 at -.5, 5 at 1.2, 1 at -1, 2 at .3, 2 at .1 are 5.2 over 19 tokens; 0.9 over 6 actions
    assert metrics["losses/policy"] == pytest.approx(-5.2 / 19 if level == "token" else -0.9 / 6, abs=1e-6)
    assert made.update(batch(made))["losses/ratio_max"] > 1.0


@pytest.mark.parametrize("level", ["token", "action"])
def test_the_gradient_is_that_of_the_written_loss(level: str) -> None:
    """Against autograd over whole rows, after a step away from pi_old, in one pass and in several."""
    model = tiny()
    made = learner(model, ratio_level=level, kl_coef=3.0, on_target="report", lr=3e-3)
    made.update(batch(made))
    made.optimizer.step = lambda: None  # type: ignore[method-assign,assignment]  # gradients alone
    found = []
    for tokens in (10_000, 12):
        made.passes.most_tokens = tokens
        made.update(batch(made))
        found.append(gradient(model))
    model.zero_grad()
    written_loss(made, level, 3.0).backward()
    wanted = gradient(model)
    assert relative(found[0], wanted) < 1e-4 and relative(found[1], wanted) < 1e-4


def written_loss(made: PpoLearner, level: str, kl_coef: float) -> torch.Tensor:
    surrogate, kls, count = torch.tensor(0.0), [], 0
    with torch.no_grad(), made.reference.active():  # type: ignore[union-attr]
        olds = [made.model(input_ids=torch.tensor(each.token_ids)[None]).logits[0].log_softmax(-1) for each in rows()]
    for each, old in zip(rows(), olds, strict=True):
        ids = torch.tensor(each.token_ids)[None]
        new = made.model(input_ids=ids).logits[0].log_softmax(-1)
        begins = [place for place in np.flatnonzero(each.loss_mask) if not each.loss_mask[place - 1]]
        for begin in begins:
            end = begin
            while end < len(each) and each.loss_mask[end]:
                end += 1
            places, tokens = torch.arange(begin - 1, end - 1), ids[0, begin:end]
            difference = new[places, tokens] - old[places, tokens]
            ratio = torch.exp(difference.sum()[None] if level == "action" else difference)
            advantage = float(each.positive[begin] + each.negative[begin])
            surrogate = surrogate + torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
            count += len(ratio)
            kls.append((old[places].exp() * (old[places] - new[places])).sum(-1).mean())
    return -surrogate / count + kl_coef * (torch.stack(kls) ** 2).mean()


def test_the_gradient_agrees_with_finite_differences() -> None:
    """Along the gradient itself: (L(w + h g) - L(w - h g)) / 2h = |g| for the unit vector g."""
    model = tiny()
    made = learner(model, kl_coef=2.0, on_target="report", lr=3e-3)
    made.update(batch(made))
    made.optimizer.step = lambda: None  # type: ignore[method-assign,assignment]  # gradients alone
    made.update(batch(made))
    norm = float(gradient(model).norm())
    directions = [(value, value.grad / norm) for value in model.parameters() if value.grad is not None]
    losses = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for value, direction in directions:
                value += step * direction
            losses.append(float(written_loss(made, "token", 2.0)))
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(norm, rel=2e-2)


def test_above_the_target_no_step_is_taken() -> None:
    model = tiny()
    made = learner(model, lr=5e-3, kl_target=1e-3, minibatches=1)
    assert made.update(batch(made))["learner/stopped_steps"] == 0.0
    before = {name: value.clone() for name, value in made.weights().items()}
    metrics = made.update(batch(made))
    assert metrics["losses/kl"] > 1e-3 and metrics["learner/stopped_steps"] == 1.0
    assert all(torch.equal(before[name], value) for name, value in made.weights().items())


def test_the_weight_of_the_kl_follows_its_target() -> None:
    made = learner(tiny(), lr=5e-3, kl_coef=1.0, kl_target=1e-3, on_target="adapt")
    made.update(batch(made))
    assert made.kl_coef == pytest.approx(1 / 1.5)  # the first KL is 0
    metrics = made.update(batch(made))
    assert metrics["losses/kl"] > 1.5e-3 and made.kl_coef == pytest.approx(1.0)
    assert metrics["learner/kl_coef"] == pytest.approx(1 / 1.5)


def test_log_probabilities_of_another_policy_are_refused() -> None:
    made = learner(tiny())
    wrong = batch(made)
    wrong.rows[0].old_logprobs[3] -= 0.5
    with pytest.raises(ModelError, match="stored old_logprobs differ by 0.5 "):
        made.update(wrong)


def test_the_objective_alone_is_refused() -> None:
    with pytest.raises(ModelError, match="use PpoLearner"):
        PpoObjective(LossConfig(), PpoConfig())(torch.zeros(1, 2), None)  # type: ignore[arg-type]
