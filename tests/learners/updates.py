"""Small trees and models whose gradients are worth comparing, and learners that leave them as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from toys import builder, grower, tokenizer
from trees import finish, respond

from firesteel.advantages import estimate_advantages
from firesteel.config import AdvantageConfig, LearnerConfig, LossConfig
from firesteel.environments.household import Household
from firesteel.generators.torch import TorchGenerator
from firesteel.learners.learner import Learner
from firesteel.learners.policy_gradient import PolicyGradientObjective
from firesteel.learners.reference import Reference
from firesteel.learners.sft import SupervisedObjective
from firesteel.models import build_tiny_model
from firesteel.packing import Row
from firesteel.tree import Node, Tree
from firesteel.types import Task

V = 320


def tiny(**sizes: Any) -> Any:
    """Weights larger than usual, so that distributions are not flat and gradients not tiny."""
    defaults = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "max_context": 1024, "seed": 1}
    model = build_tiny_model(tokenizer(), **defaults | sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def learner(
    model: Any,
    *,
    kind: str = "policy_gradient",
    loss: dict[str, Any] | None = None,
    total_steps: int = 10,
    **settings: Any,
) -> Learner:
    """A learner that runs rows one by one and leaves gradients as they are unless told otherwise."""
    losses = LossConfig(**loss or {})
    objective = (SupervisedObjective if kind == "sft" else PolicyGradientObjective)(losses)
    config = LearnerConfig(**{"lr": 1e-4, "max_grad_norm": 1e9, "packing": "rows"} | settings)
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


def sft_row(ids: list[int], trained: list[int], weights: list[float]) -> Row:
    """A row of which some tokens are trained, with weights."""
    row = Row(np.array(ids), np.zeros(len(ids), bool), *(np.zeros(len(ids), np.float32) for _ in range(5)))
    row.loss_mask[trained], row.weight[trained], row.temperature[:] = True, weights, 1.0
    return row
