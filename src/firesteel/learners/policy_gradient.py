"""The GRPO family: clipped surrogate over trees, optional KL to a reference, optional entropy bonus."""

from __future__ import annotations

import torch
from torch import Tensor

from firesteel.config import LossConfig
from firesteel.learners.learner import TokenBatch
from firesteel.losses import clipped_objective, kl_estimate, selected_logprobs, token_entropies


class PolicyGradientObjective:
    """loss = (1/D) sum_t [ -surrogate_t + kl_coef * w_t * KL_t - entropy_coef * w_t * H_t ].

    The ratio is between distributions at the sampling temperature; the KL and the entropy are of the raw ones.
    """

    needs_old_logprobs = True

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.needs_reference = config.kl_coef > 0

    @property
    def needs_every_row(self) -> bool:
        """Whether rows without an advantage change the loss, or the KL that is reported."""
        return self.needs_reference or self.config.entropy_coef != 0

    def __call__(self, logits_TV: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over T tokens (not yet divided by D), and sums to report, each weighted by w."""
        config = self.config
        is_raw = bool((batch.temperature_T == 1.0).all())
        logprobs_T = selected_logprobs(logits_TV, batch.token_ids_T, None if is_raw else batch.temperature_T)
        surrogate_T, clipped_T = clipped_objective(
            logprobs_T, batch.old_logprobs_T, batch.positive_T, batch.negative_T,
            clip_low=config.clip_low, clip_high=config.clip_high, dual_clip=config.dual_clip,
        )  # fmt: skip
        loss = -surrogate_T.sum()
        with torch.set_grad_enabled(config.entropy_coef != 0):
            entropy = (batch.weight_T * token_entropies(logits_TV)).sum()
        difference_T = (logprobs_T - batch.old_logprobs_T).detach()
        report = {
            "losses/policy": loss.detach(),
            "losses/entropy": entropy.detach(),
            "losses/clip_fraction": (batch.weight_T * clipped_T).sum(),
            "losses/approx_kl": (batch.weight_T * (torch.exp(difference_T) - 1 - difference_T)).sum(),
        }
        if config.entropy_coef != 0:
            loss = loss - config.entropy_coef * entropy
        if batch.reference_logprobs_T is not None:
            with torch.set_grad_enabled(config.kl_coef != 0):
                raw_T = logprobs_T if is_raw else selected_logprobs(logits_TV, batch.token_ids_T)
                kl = (batch.weight_T * kl_estimate(raw_T, batch.reference_logprobs_T, kind=config.kl)).sum()
            report["losses/kl"] = kl.detach()
            if config.kl_coef != 0:  # k3 may overflow, and 0 times infinity is not a number
                loss = loss + config.kl_coef * kl
        return loss, report
