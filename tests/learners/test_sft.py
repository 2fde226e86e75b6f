"""Supervised learning by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from toys import tokenizer
from updates import V, chains, gradient, learner, logprobs_of, relative, sft_row, tiny

from firesteel.models import build_tiny_model
from firesteel.packing import Batch, pack


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
