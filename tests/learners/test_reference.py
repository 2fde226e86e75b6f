"""The KL reference: the start of the run, bit for bit, and the estimators over it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from updates import chains, learner, tiny

from firesteel.config import LossConfig
from firesteel.errors import ModelError
from firesteel.learners.lora import add_lora
from firesteel.learners.passes import TokenBatch
from firesteel.learners.policy_gradient import PolicyGradientObjective
from firesteel.learners.reference import Reference
from firesteel.packing import pack


@pytest.fixture(params=["full", "lora"])
def any_model(request: pytest.FixtureRequest) -> Iterator[Any]:
    yield add_lora(tiny(), rank=4, seed=2) if request.param == "lora" else tiny()


def test_the_reference_is_the_start_and_leaves_the_weights_alone(any_model: Any) -> None:
    rows = pack([chains()]).rows
    reference = Reference(any_model)
    training = learner(any_model)
    start = training.logprobs(rows)
    with torch.no_grad():
        for parameter in training.trainable:
            parameter.add_(torch.linspace(-0.2, 0.3, parameter.numel()).view_as(parameter))
    moved = {name: value.detach().clone() for name, value in any_model.named_parameters()}
    changed = training.logprobs(rows)
    for _ in range(2):
        with reference.active():
            inside = training.logprobs(rows)
        assert all(np.array_equal(one, two) for one, two in zip(inside, start, strict=True))
        assert not np.array_equal(changed[0], start[0])
        assert all(torch.equal(moved[name], value) for name, value in any_model.named_parameters())


def test_an_error_inside_the_reference_puts_the_weights_back() -> None:
    model = tiny()
    reference = Reference(model)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    moved = model.model.norm.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), reference.active():
        raise RuntimeError("inside")
    assert torch.equal(model.model.norm.weight, moved)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_kl_is_zero_at_the_start_and_by_hand_later(any_model: Any, kind: str) -> None:
    tree = chains()
    for leaf in tree.leaves:
        leaf.advantages = [0.0] * len(tree.responses(leaf))
    batch = pack([tree], weighting="node")
    training = learner(any_model, loss={"kl": kind, "kl_coef": 0.5})
    start = np.concatenate(training.logprobs(batch.rows))
    metrics = training.update(batch)
    assert metrics["losses/kl"] == 0.0
    if kind == "k1":
        assert metrics["learner/grad_norm"] > 0  # E[d] = 0, and yet the estimate has a gradient
    else:
        assert metrics["learner/grad_norm"] < 1e-6
    with torch.no_grad():
        for parameter in training.trainable:
            parameter.add_(torch.linspace(-0.02, 0.03, parameter.numel()).view_as(parameter))
    d = np.concatenate(training.logprobs(batch.rows)).astype(float) - start
    estimates = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}
    assert training.update(batch)["losses/kl"] == pytest.approx(estimates[kind].mean(), rel=1e-4)


def test_the_kl_pulls_the_policy_back() -> None:
    model = tiny()
    tree = chains()
    for leaf in tree.leaves:
        leaf.advantages = [0.0] * len(tree.responses(leaf))
    training = learner(model, loss={"kl_coef": 1.0}, lr=1e-3)
    with torch.no_grad():
        model.lm_head.weight.add_(
            0.05 * torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        )
    values = [training.update(pack([tree]))["losses/kl"] for _ in range(8)]
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_a_kl_that_is_only_reported_leaves_the_gradient_alone(kind: str) -> None:
    # At a log-ratio of -100, exp(100) overflows fp32.
    torch.manual_seed(0)
    start, ids = torch.randn(3, 5), torch.tensor([0, 3, 4])
    old = torch.log_softmax(start, -1)[torch.arange(3), ids]
    ones = torch.ones(3)

    def gradient(reference: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        logits = start.clone().requires_grad_()
        batch = TokenBatch(ids, old, ones, ones / 3, ones, -0.5 * ones, reference)
        loss, report = PolicyGradientObjective(LossConfig(kl=kind, kl_coef=0.0))(logits, batch)
        loss.backward()
        assert logits.grad is not None
        return loss.detach(), logits.grad, report

    loss, wanted, _ = gradient(None)
    for ratio in (0.1, 100.0, -100.0):
        again, found, report = gradient(old - ratio)
        assert torch.equal(again, loss) and torch.equal(found, wanted)
        assert not report["losses/kl"].requires_grad and not report["losses/kl"].isnan()


def test_a_missing_reference_is_named() -> None:
    training = learner(tiny(), loss={"kl_coef": 0.1})
    training.reference = None
    with pytest.raises(ModelError, match="loss.kl_coef > 0 needs a reference"):
        training.update(pack([chains()]))


def test_dropout_is_off_wherever_log_probabilities_are_compared() -> None:
    model = add_lora(tiny(), dropout=0.5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    model.train()
    training = learner(model, loss={"kl_coef": 0.1})
    rows = pack([chains()]).rows
    first, second = training.logprobs(rows), training.logprobs(rows)
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
