"""Updates: against a plain GRPO written here, against duplicated rows, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from toys import Ledger, Toy, builder, grower, tokenizer
from transformers.models.cohere import CohereConfig, CohereForCausalLM
from transformers.models.gpt_neox import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.granite import GraniteConfig, GraniteForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM
from trees import finish, respond

from firesteel.advantages import estimate_advantages, leaf_weights
from firesteel.config import AdvantageConfig, LearnerConfig, LossConfig
from firesteel.environments.household import Household
from firesteel.errors import ModelError
from firesteel.generators.torch import TorchGenerator
from firesteel.learners import OBJECTIVES
from firesteel.learners import learner as learner_module
from firesteel.learners.learner import Learner, logits_at, micro_batches
from firesteel.learners.lora import add_lora
from firesteel.learners.policy_gradient import PolicyGradientObjective
from firesteel.learners.reference import Reference
from firesteel.learners.sft import SupervisedObjective
from firesteel.losses import token_entropies
from firesteel.models import build_tiny_model
from firesteel.packing import Batch, Row, pack
from firesteel.plugins import load
from firesteel.tree import Node, Tree
from firesteel.types import Task

V = 320


def tiny(**sizes: Any) -> Any:
    """Weights larger than usual, so that distributions are not flat and gradients not tiny."""
    defaults = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "max_context": 1024, "seed": 1}
    model = build_tiny_model(tokenizer(), **defaults | sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def learner(
    model: Any, *, kind: str = "policy_gradient", loss: dict[str, Any] | None = None, total_steps: int = 10, **settings: Any
) -> Learner:
    """A learner that leaves gradients as they are unless told otherwise."""
    losses = LossConfig(**loss or {})
    objective = (SupervisedObjective if kind == "sft" else PolicyGradientObjective)(losses)
    config = LearnerConfig(**{"lr": 1e-4, "max_grad_norm": 1e9} | settings)
    reference = Reference(model) if objective.needs_reference else None
    return Learner(model, objective, config, losses, total_steps=total_steps, reference=reference)


def gradient(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def logprobs_of(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities of tokens 1.. of one unpadded row, by the model's own full forward pass."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)


def off_policy(tree: Tree, model: Any, shift: float = 0.3) -> None:
    """Sets the sampled log-probabilities near those of the model, so that ratios lie on both sides of the clip."""
    rng = np.random.default_rng(0)
    for node in tree.nodes:
        if node.role == "response":
            with torch.no_grad():
                now = logprobs_of(model, tree.stream(node.index))[-len(node.token_ids) :].numpy()
            node.sampling_logprobs = [float(value) for value in now + rng.normal(0, shift, len(now))]


def chains() -> Tree:
    """Four episodes without branching: rewards 1, 0, 0, 1; one to three steps of unequal length."""
    rng = np.random.default_rng(5)
    tree = Tree(task=Task("g"), group="g")
    prompt = tree.add(-1, "prompt", 0, rng.integers(V, size=6).tolist(), restart=True, width=4)
    for root, (reward, lengths) in enumerate([(1.0, [3, 5]), (0.0, [4]), (0.0, [2, 6, 3]), (1.0, [7, 2])]):
        last = prompt
        for turn, length in enumerate(lengths):
            if turn:
                last = tree.add(last.index, "prompt", turn, rng.integers(V, size=4).tolist())
            last = respond(tree, last.index, turn, rng.integers(V, size=length).tolist())
        finish(tree, last, root, reward)
    return tree


def branched(mode: str = "full") -> Tree:
    """Two roots; root 0 branches in three after its first step and once more in two."""
    rng = np.random.default_rng(6)

    def prompt(parent: int, turn: int, width: int = 1) -> Node:
        return tree.add(parent, "prompt", turn, rng.integers(V, size=5).tolist(), restart=mode == "window", width=width)

    def step(parent: Node, turn: int) -> Node:
        return respond(tree, parent.index, turn, rng.integers(V, size=int(rng.integers(2, 6))).tolist())

    tree = Tree(task=Task("b"), group="b")
    opening = tree.add(-1, "prompt", 0, rng.integers(V, size=5).tolist(), restart=True, width=2)
    fork = prompt(step(opening, 0).index, 1, width=3)
    again = prompt(step(fork, 1).index, 2, width=2)
    for node, root, reward in [
        (step(again, 2), 0, 1.0),
        (step(again, 2), 0, 0.0),
        (step(fork, 1), 0, 1.0),
        (step(fork, 1), 0, 0.0),
        (step(prompt(step(opening, 0).index, 1), 1), 1, 0.5),
    ]:
        finish(tree, node, root, reward)
    return tree


# identities


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


def test_micro_batches_only_split_the_sum() -> None:
    gradients, reports = [], []
    for most_tokens in (16384, 45, 1):
        model = tiny()
        trees = [chains(), branched()]
        for tree in trees:
            off_policy(tree, model)
            estimate_advantages([tree], AdvantageConfig())
        training = learner(model, loss={"kl_coef": 0.1, "entropy_coef": 0.01}, micro_batch_tokens=most_tokens)
        reports.append(training.update(pack(trees)))
        gradients.append(gradient(model))
    assert relative(gradients[1], gradients[0]) < 1e-6 and relative(gradients[2], gradients[0]) < 1e-6
    assert reports[1] == pytest.approx(reports[0], rel=1e-5) and reports[2] == pytest.approx(reports[0], rel=1e-5)


def test_micro_batches_by_hand() -> None:
    # sorted 7, 5, 3, 3, 2: 7 + 5 would be 2 * 7 > 12; [5, 3] is 10, a third row 15 > 12; [3, 2] is 6
    assert micro_batches([3, 7, 2, 5, 3], 12) == [[1], [3, 0], [4, 2]]
    assert micro_batches([9, 9], 5) == [[0], [1]]
    assert micro_batches([], 5) == []


def test_sequence_mean_and_constant_denominators() -> None:
    model = tiny()
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    # path weights are 1/4 a leaf, spread over its tokens: the sum over everything is 1
    report = learner(model, loss={"aggregation": "sequence_mean"}).update(pack([tree], aggregation="sequence_mean"))
    assert report["learner/denominator"] == pytest.approx(1.0)
    report = learner(model, loss={"aggregation": "constant", "constant": 7.0}).update(pack([tree]))
    assert report["learner/denominator"] == 7.0


# parity with the generator


def rolled_out(model: Any, mode: str, temperature: float = 1.0) -> list[Tree]:
    growing = grower(
        TorchGenerator(model, tokenizer(), end_token_ids=builder().stop_token_ids),
        lambda: Household(size="small", admissible=False), mode=mode, criterion="fixed_probability",
        criterion_options={"probability": 0.8}, max_response_tokens=12, temperature=temperature,
    )  # fmt: skip
    trees = growing.grow(Household.tasks("train", count=2, size="small"), seed=0)
    for tree in trees:
        for leaf in tree.leaves:
            leaf.reward, leaf.step_rewards = float(leaf.index % 2), [0.0] * len(tree.responses(leaf))
    estimate_advantages(trees, AdvantageConfig())
    return trees


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


def test_bfloat16_ratios_stay_within_three_percent() -> None:
    """bfloat16 has 8 bits: a logit near 4 is known to 1/64, and batched products round differently."""
    model = build_tiny_model(tokenizer(), hidden=32, layers=2, heads=2, kv_heads=1, max_context=1024, seed=1)
    model = model.to(torch.bfloat16)
    batch = pack(rolled_out(model, "full"))
    training = learner(model)
    differences = [
        np.abs(logprobs - row.old_logprobs[row.loss_mask]).max()
        for row, logprobs in zip(batch.rows, training.logprobs(batch.rows), strict=True)
    ]
    assert max(differences) < 0.03
    metrics = training.update(batch)
    assert metrics["losses/clip_fraction"] == 0.0 and metrics["losses/approx_kl"] < 1e-3


def test_minibatches_let_clipping_act() -> None:
    model = tiny()
    batch = pack(rolled_out(model, "full"))
    metrics = learner(model, lr=3e-2, minibatches=2, epochs_per_rollout=2).update(batch)
    assert metrics["learner/optimizer_steps"] == 4.0
    assert metrics["losses/clip_fraction"] > 0.0


@pytest.mark.parametrize(("rows", "steps"), [(1, 4), (3, 2), (4, 1), (100, 1)])
def test_minibatch_rows_decide_the_number_of_steps(rows: int, steps: int) -> None:
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    assert learner(tiny(), minibatch_rows=rows).update(pack([tree]))["learner/optimizer_steps"] == steps


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


# reference


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
        model.lm_head.weight.add_(0.05 * torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)))
    values = [training.update(pack([tree]))["losses/kl"] for _ in range(8)]
    assert values[-1] < 0.5 * values[0]


def test_a_missing_reference_is_named() -> None:
    training = learner(tiny(), loss={"kl_coef": 0.1})
    training.reference = None
    with pytest.raises(ModelError, match="loss.kl_coef > 0 needs a reference"):
        training.update(pack([chains()]))


# the pieces of the objective and of the optimiser


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
    assert before["losses/entropy"] == pytest.approx(float(torch.cat(entropies).mean()), rel=1e-5)
    assert before["learner/grad_norm"] == pytest.approx(float(gradient(again).norm()), rel=1e-4)
    assert training.update(pack([tree], weighting="node"))["losses/entropy"] > before["losses/entropy"]


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine", "warmup_steps": 2}, [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_learning_rate_by_hand(settings: dict[str, Any], rates: list[float]) -> None:
    training = learner(tiny(), lr=2e-3, total_steps=6, **settings)
    found = []
    for _ in rates:
        metrics = training.update(Batch([]))
        found.append(metrics["learner/lr"] / 2e-3)
        assert training.optimizer.param_groups[0]["lr"] == metrics["learner/lr"]
    assert found == pytest.approx(rates)


def test_gradients_are_scaled_down_to_the_norm() -> None:
    model = tiny()
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    metrics = learner(model, max_grad_norm=1e-3).update(pack([tree]))
    assert metrics["learner/grad_norm"] > 1e-2
    assert float(gradient(model).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_skips_the_step(broken: float) -> None:
    model = tiny()
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    batch = pack([tree])
    training = learner(model, weight_decay=0.1)
    training.update(batch)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    moments = training.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    good = batch.rows[0].positive.copy()
    batch.rows[0].positive[batch.rows[0].loss_mask] = broken
    assert training.update(batch)["learner/skipped_steps"] == 1.0
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert torch.equal(training.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    batch.rows[0].positive = good
    assert training.update(batch)["learner/skipped_steps"] == 0.0
    assert not torch.equal(before["model.norm.weight"], model.model.norm.weight)


def test_an_update_without_rows_changes_nothing() -> None:
    model = tiny()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    metrics = learner(model, weight_decay=0.1).update(Batch([]))
    assert metrics["learner/optimizer_steps"] == 0.0
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_lora_trains_adapters_alone() -> None:
    model = add_lora(tiny(), rank=4, seed=2)
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    training = learner(model, lr=1e-2)
    assert len(training.trainable) == 2 * 7 * 2
    for _ in range(2):
        training.update(pack([tree]))
    changed = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if "lora_" in name}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameters"):
        learner(model)


def test_gradient_checkpointing_computes_the_same_and_does_act() -> None:
    gradients, passes = [], []
    for checkpointing in (False, True):
        model, calls = tiny(), []
        tree = chains()
        estimate_advantages([tree], AdvantageConfig())
        training = learner(model, gradient_checkpointing=checkpointing)
        model.model.layers[0].mlp.register_forward_hook(lambda *arguments, calls=calls: calls.append(1))
        training.update(pack([tree]))
        passes.append(len(calls))
        gradients.append(gradient(model))
    assert passes == [1, 2]  # recomputed in the backward pass
    assert relative(gradients[1], gradients[0]) < 1e-6


def test_weights_are_the_parameters_themselves() -> None:
    model = tiny()
    weights = learner(model).weights()
    assert weights["model.norm.weight"].data_ptr() == model.model.norm.weight.data_ptr()
    assert not any(value.requires_grad for value in weights.values())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_loads_and_updates(name: str) -> None:
    objective = load(name, OBJECTIVES, kind="learner")(LossConfig())
    training = Learner(tiny(), objective, LearnerConfig(), LossConfig(), total_steps=1)
    assert training.update(pack([chains()]))["learner/optimizer_steps"] == 1.0


# supervised


def sft_row(ids: list[int], trained: list[int], weights: list[float]) -> Row:
    row = Row(np.array(ids), np.zeros(len(ids), bool), *(np.zeros(len(ids), np.float32) for _ in range(5)))
    row.loss_mask[trained], row.weight[trained], row.temperature[:] = True, weights, 1.0
    return row


def test_the_supervised_loss_of_one_row_by_hand() -> None:
    model = tiny()
    ids = [5, 9, 300, 17, 4]
    with torch.no_grad():
        logprobs = logprobs_of(model, ids)  # of tokens 1, 2, 3, 4
    metrics = learner(model, kind="sft").update(Batch([sft_row(ids, [2, 4], [1.0, 3.0])]))
    assert metrics["losses/sft"] == pytest.approx(-(float(logprobs[1]) + 3 * float(logprobs[3])) / 4, rel=1e-6)
    ours = gradient(model)
    again = tiny()
    logits = again(input_ids=torch.tensor([ids])).logits[0]
    losses = cross_entropy(logits[[1, 3]], torch.tensor([300, 4]), reduction="none")
    ((losses * torch.tensor([1.0, 3.0])).sum() / 4).backward()
    assert relative(ours, gradient(again)) < 1e-5


def test_supervised_learning_lowers_the_loss() -> None:
    model = build_tiny_model(tokenizer(), hidden=32, layers=2, heads=2, kv_heads=1)
    training = learner(model, kind="sft", lr=1e-2)
    history = [training.update(pack([chains()], weighting="node")) for _ in range(30)]
    assert history[0]["losses/sft"] == pytest.approx(math.log(V), abs=0.3)
    assert history[-1]["losses/sft"] < 0.5 and history[-1]["losses/token_accuracy"] > 0.9


# logits where they are wanted

SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2,
}  # fmt: skip
PLAIN: dict[str, Callable[[], Any]] = {
    "llama": lambda: build_tiny_model(tokenizer(), hidden=16, layers=2, heads=2, kv_heads=1),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **SMALL)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "lora": lambda: add_lora(build_tiny_model(tokenizer(), hidden=16, layers=2, heads=2, kv_heads=1)),
}
SCALED: dict[str, Callable[[], Any]] = {
    "cohere": lambda: CohereForCausalLM(CohereConfig(num_key_value_heads=1, logit_scale=0.25, **SMALL)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(num_key_value_heads=1, logits_scaling=8.0, **SMALL)),
}


def chosen_and_full(model: Any) -> tuple[Tensor, Tensor]:
    ids = torch.arange(24).reshape(3, 8) % 50
    rows, columns = torch.tensor([0, 0, 2, 1]), torch.tensor([0, 7, 3, 5])
    with torch.no_grad():
        return logits_at(model.eval(), ids, rows, columns), model(input_ids=ids, use_cache=False).logits[rows, columns]


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_logits_at_equal_those_of_the_whole_pass(name: str) -> None:
    model = PLAIN[name]()
    sizes: list[int] = []
    head = (model.get_base_model() if name == "lora" else model).get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[:-1].numel()))
    chosen, full = chosen_and_full(model)
    handle.remove()
    assert torch.allclose(chosen, full, atol=1e-6) and full.abs().max() > 1e-3
    assert sizes == [4, 24]  # the head saw four positions, then all of them


@pytest.mark.parametrize("name", sorted(SCALED))
def test_logits_that_the_model_scales_go_through_its_own_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SCALED[name]()
    chosen, full = chosen_and_full(model)
    assert torch.equal(chosen, full) and full.abs().max() > 1e-4
    monkeypatch.setattr(learner_module, "LOGIT_CHANGES", ())
    assert not torch.allclose(chosen_and_full(model)[0], full, atol=1e-5)


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
