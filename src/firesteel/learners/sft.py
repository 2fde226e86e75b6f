"""Supervised learning: the negative log-likelihood of the tokens that carry weight."""

from __future__ import annotations

import torch
from torch import Tensor

from firesteel.config import LossConfig
from firesteel.learners.learner import TokenBatch
from firesteel.losses import selected_logprobs


class SupervisedObjective:
    """loss = -(1/D) sum_t w_t log p(t)."""

    needs_reference = False
    needs_every_row = True
    needs_old_logprobs = False

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(self, logits_TV: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over T tokens (not yet divided by D), and sums to report."""
        logprobs_T = selected_logprobs(logits_TV, batch.token_ids_T)
        loss = -(batch.weight_T * logprobs_T).sum()
        with torch.no_grad():
            correct = (logits_TV.argmax(-1) == batch.token_ids_T).float()
        return loss, {"losses/sft": loss.detach(), "losses/token_accuracy": (batch.weight_T * correct).sum()}
