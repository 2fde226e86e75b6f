"""Policy gradients: against a plain GRPO written here, against duplicated rows, and at the generator's own tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import Ledger, Toy, builder, grower, tokenizer
from updates import branched, chains, gradient, learner, logprobs_of, off_policy, relative, rolled_out, tiny

from firesteel.advantages import estimate_advantages, leaf_weights
from firesteel.config import AdvantageConfig
from firesteel.generators.torch import TorchGenerator
from firesteel.losses import token_entropies
from firesteel.packing import pack
from firesteel.types import Task


def test_chains_with_group_mean_and_std_are_plain_grpo() -> None:
    model = tiny()
    tree = chains()
    off_policy(tree, model)
    estimate_advantages([tree], AdvantageConfig(weighting="leaf", baseline="group_mean", std="population"))
    training = learner(model, loss={"clip_low": 0.2, "clip_high": 0.28})
    metrics = training.update(pack([tree], weighting="leaf"))
    ours = gradient(model)

    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    advantages = (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-6)
    rows = [tree.stream(leaf.node) for leaf in tree.leaves]
    longest = max(map(len, rows))
    ids, attention, sampled, old = (torch.zeros(4, longest) for _ in range(4))
    for number, (row, leaf) in enumerate(zip(rows, tree.leaves, strict=True)):
        ids[number, : len(row)], attention[number, : len(row)] = torch.tensor(row).float(), 1
        end = 0
        for node in tree.path(leaf.node):
            start, end = end, end + len(node.token_ids)
            if node.role == "response":
                sampled[number, start:end], old[number, start:end] = 1, torch.tensor(node.sampling_logprobs)
    again = tiny()
    logits = again(input_ids=ids.long(), attention_mask=attention.long()).logits[:, :-1]
    new = logits.log_softmax(-1).gather(2, ids[:, 1:, None].long()).squeeze(2)
    ratio, trained = torch.exp(new - old[:, 1:]), sampled[:, 1:]
    surrogate = torch.minimum(ratio * advantages[:, None], ratio.clamp(0.8, 1.28) * advantages[:, None])
    loss = -(surrogate * trained).sum() / trained.sum()
    loss.backward()

    assert metrics["losses/policy"] == pytest.approx(loss.item(), rel=1e-5)
    assert relative(ours, gradient(again)) < 1e-5
    outside = ((advantages[:, None] > 0) & (ratio > 1.28)) | ((advantages[:, None] < 0) & (ratio < 0.8))
    assert metrics["losses/clip_fraction"] == pytest.approx(float((outside * trained).sum() / trained.sum()), rel=1e-6)
    assert 0.1 < metrics["losses/clip_fraction"] < 0.9
    assert metrics["learner/denominator"] == 32.0  # 8 + 4 + 11 + 9 sampled tokens


@pytest.mark.parametrize("mode", ["full", "window"])
@pytest.mark.parametrize("weighting", ["path", "leaf", "node"])
def test_packed_trees_have_the_gradient_of_duplicated_weighted_rows(weighting: str, mode: str) -> None:
    model, again = tiny(), tiny()
    tree = branched(mode)
    off_policy(tree, model)
    estimate_advantages([tree], AdvantageConfig(weighting=weighting))
    batch = pack([tree], weighting=weighting)
    metrics = learner(model).update(batch)

    weights, below = leaf_weights(tree, weighting), tree.leaves_below()
    loss, denominator = torch.zeros(()), 0.0
    for leaf in tree.leaves:
        assert leaf.advantages is not None
        for node, advantage in zip(tree.responses(leaf), leaf.advantages, strict=True):
            weight = weights[leaf.index] / (len(below[node.index]) if weighting == "node" else 1)
            now = logprobs_of(again, tree.stream(node.index))[-len(node.token_ids) :]
            ratio = torch.exp(now - torch.tensor(node.sampling_logprobs))
            terms = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            loss, denominator = loss - weight * terms.sum(), denominator + weight * len(node.token_ids)
    (loss / denominator).backward()
    assert metrics["learner/denominator"] == pytest.approx(denominator, rel=1e-6)
    assert metrics["losses/policy"] == pytest.approx(float(loss.detach()) / denominator, rel=1e-5)
    assert relative(gradient(model), gradient(again)) < 1e-5
    assert metrics["losses/clip_fraction"] > 0


@pytest.mark.parametrize("mode", ["full", "window"])
def test_the_learner_sees_the_log_probabilities_of_the_generator(mode: str) -> None:
    model = tiny()
    batch = pack(rolled_out(model, mode))
    training = learner(model)
    for row, logprobs in zip(batch.rows, training.logprobs(batch.rows), strict=True):
        assert np.abs(logprobs - row.old_logprobs[row.loss_mask]).max() < 1e-5
    metrics = training.update(batch)
    assert metrics["losses/clip_fraction"] == 0.0 and abs(metrics["losses/approx_kl"]) < 1e-9
    assert metrics["losses/entropy"] > 0.5 and metrics["learner/grad_norm"] > 1e-3


def test_the_ratio_is_one_at_another_temperature() -> None:
    model = tiny()
    trees = rolled_out(model, "full", temperature=0.7)
    metrics = learner(model).update(pack(trees))
    assert metrics["losses/clip_fraction"] == 0.0 and abs(metrics["losses/approx_kl"]) < 1e-9
    for tree in trees:
        for node in tree.nodes:
            node.temperature = 1.0
    assert learner(tiny()).update(pack(trees))["losses/approx_kl"] > 1e-3


def test_bfloat16_ratios_stay_within_six_percent() -> None:
    """bfloat16 has 8 bits: a logit near 4 is known to 1/64, and batched products round differently (seen: 0.03)."""
    model = tiny().to(torch.bfloat16)
    batch = pack(rolled_out(model, "full"))
    training = learner(model)
    differences = [
        np.abs(logprobs - row.old_logprobs[row.loss_mask]).max()
        for row, logprobs in zip(batch.rows, training.logprobs(batch.rows), strict=True)
    ]
    assert max(differences) < 0.06
    metrics = training.update(batch)
    assert metrics["losses/clip_fraction"] == 0.0 and metrics["losses/approx_kl"] < 1e-3


def test_minibatches_let_clipping_act() -> None:
    model = tiny()
    batch = pack(rolled_out(model, "full"))
    metrics = learner(model, lr=3e-2, minibatches=2, epochs_per_rollout=2).update(batch)
    assert metrics["learner/optimizer_steps"] == 4.0
    assert metrics["losses/clip_fraction"] > 0.0


def test_the_entropy_bonus_raises_the_entropy_and_enters_the_loss() -> None:
    model = tiny()
    tree = chains()
    for leaf in tree.leaves:
        leaf.advantages = [0.0] * len(tree.responses(leaf))
    training = learner(model, loss={"entropy_coef": 1.0}, lr=1e-3)
    before = training.update(pack([tree], weighting="node"))
    rows = [tree.stream(leaf.node) for leaf in tree.leaves]
    sampled = [np.concatenate([[node.role == "response"] * len(node.token_ids) for node in tree.path(leaf.node)])
               for leaf in tree.leaves]  # fmt: skip
    again = tiny()
    entropies = [token_entropies(again(input_ids=torch.tensor([row])).logits[0, :-1])[torch.tensor(kept[1:])]
                 for row, kept in zip(rows, sampled, strict=True)]  # fmt: skip
    (-torch.cat(entropies).mean()).backward()
    assert before["losses/entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-5)
    assert before["learner/grad_norm"] == pytest.approx(float(gradient(again).norm()), rel=1e-4)
    assert training.update(pack([tree], weighting="node"))["losses/entropy"] > before["losses/entropy"]


def test_real_trees_of_toys_train_too() -> None:
    """A whole round through the toy environment: grow, weigh, update; nothing is lost on the way."""
    model = tiny()
    ledger = Ledger()
    generator = TorchGenerator(model, tokenizer(), end_token_ids=builder().stop_token_ids)
    trees = grower(generator, lambda: Toy(ledger), max_response_tokens=8).grow([Task("a"), Task("b")], seed=0)
    for tree in trees:
        for leaf in tree.leaves:
            leaf.reward, leaf.step_rewards = float(leaf.index), [0.0] * len(tree.responses(leaf))
    estimate_advantages(trees, AdvantageConfig())
    batch = pack(trees, weighting="node")
    assert sum(int(row.loss_mask.sum()) for row in batch.rows) == sum(tree.generated_tokens() for tree in trees)
    assert learner(model).update(batch)["learner/denominator"] == sum(tree.generated_tokens() for tree in trees)
