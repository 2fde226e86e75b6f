"""Offline PPO on stored steps: a clipped surrogate whose ratio starts at one, and the square of an exact KL.

    L = -(1/D) sum_t min(r_t A, clip(r_t, 1 - eps, 1 + eps) A) + kl_coef (1/S) sum_s KL_s^2
    KL_s = (1/T_s) sum_{t in s} sum_v pi_old(v) (log pi_old(v) - log pi(v))

over S steps (actions) of T_s tokens each. pi_old is the policy that training starts from: the logged action was chosen
by a judge among candidates written under other prompts, so that no true behaviour probability exists. It runs beside
the policy in the same passes, which gives the exact KL, and a first ratio of exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firesteel.config import LearnerConfig, LossConfig, PpoConfig
from firesteel.errors import ModelError
from firesteel.learners.critic import state_columns
from firesteel.learners.learner import Learner
from firesteel.learners.passes import TokenBatch
from firesteel.learners.reference import Reference
from firesteel.losses import clipped_objective, selected_logprobs
from firesteel.packing import Batch, Row, denominator

ADAPTATION = 1.5
"""Factor by which `on_target: adapt` changes the KL's weight, and by which the KL may miss its target before."""

STORED_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
"""How far stored log-probabilities may be from those of pi_old in other passes; rounding alone stays far below."""


def exact_kl(old_logprobs_TV: Tensor, logprobs_TV: Tensor) -> Tensor:
    """KL(old || policy) over the whole vocabulary for each of T tokens, >= 0, from two log-distributions."""
    return (old_logprobs_TV.exp() * (old_logprobs_TV - logprobs_TV)).sum(-1)


def step_means(values_T: Tensor, step_T: Tensor, num_steps: int) -> Tensor:
    """The mean of a value over the tokens of each step, [S]; every step has a token."""
    sums = values_T.new_zeros(num_steps).index_add(0, step_T, values_T)
    return sums / torch.bincount(step_T, minlength=num_steps).to(values_T.dtype)


def step_numbers(rows: Sequence[Row]) -> tuple[np.ndarray, int]:
    """Of every trained token the number of its step, [T], and the number of steps: runs of trained tokens."""
    counts: list[int] = []
    for row in rows:
        begins = state_columns(row) + 1
        ends = [*begins[1:], len(row)]
        counts += [int(row.loss_mask[start:end].sum()) for start, end in zip(begins, ends, strict=True)]
    return np.repeat(np.arange(len(counts)), counts), len(counts)


@dataclass(slots=True)
class PassLoss:
    """Of one pass: the surrogate summed over tokens (or steps), the sums over steps of KL^2 and KL, and reports."""

    surrogate: Tensor
    squared_kl: Tensor
    kl: Tensor
    clipped: Tensor
    ratio: Tensor


class PpoObjective:
    """The two sums of the loss over one pass; both divisions are the learner's."""

    needs_reference = False
    needs_every_row = True
    needs_old_logprobs = False

    def __init__(self, loss: LossConfig, ppo: PpoConfig) -> None:
        self.loss = loss
        self.ppo = ppo

    def __call__(self, logits_TV: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        raise ModelError("PPO needs the distributions of the old policy; use PpoLearner, not Learner")

    def sums(
        self, logits_TV: Tensor, old_logits_TV: Tensor, batch: TokenBatch, step_T: Tensor, num_steps: int
    ) -> PassLoss:
        """From the logits of T trained tokens under both policies; `step_T` as from `step_numbers`."""
        temperature_T = batch.temperature_T
        logprobs_T = selected_logprobs(logits_TV, batch.token_ids_T, temperature_T)
        old_T = selected_logprobs(old_logits_TV, batch.token_ids_T, temperature_T)
        positive, negative, weight = batch.positive_T, batch.negative_T, batch.weight_T
        if self.ppo.ratio_level == "action":
            size = logprobs_T.new_zeros(num_steps)
            logprobs_T, old_T = size.index_add(0, step_T, logprobs_T), size.index_add(0, step_T, old_T)
            positive, negative, weight = (step_means(each, step_T, num_steps) for each in (positive, negative, weight))
        surrogate, clipped = clipped_objective(
            logprobs_T, old_T, positive, negative, clip_low=self.loss.clip_low, clip_high=self.loss.clip_high,
            dual_clip=self.loss.dual_clip,
        )  # fmt: skip
        kl_T = exact_kl(old_logits_TV.float().log_softmax(-1), logits_TV.float().log_softmax(-1))
        kl_S = step_means(kl_T, step_T, num_steps)
        ratio = torch.exp(logprobs_T - old_T).detach()
        return PassLoss(surrogate.sum(), (kl_S**2).sum(), kl_S.detach().sum(), (weight * clipped).sum(), ratio)


class PpoLearner(Learner):
    """A `Learner` that trains on the steps of stored trees whose advantages are set.

    Args:
        reference: pi_old, made before the first update.
    """

    def __init__(
        self,
        model: Any,
        config: LearnerConfig,
        loss: LossConfig,
        ppo: PpoConfig,
        *,
        total_steps: int,
        reference: Reference | None = None,
        seed: int = 0,
    ) -> None:
        self.ppo_objective = PpoObjective(loss, ppo)
        super().__init__(
            model, self.ppo_objective, config, loss, total_steps=total_steps, seed=seed,
            reference=reference or Reference(model),
        )  # fmt: skip
        self.ppo = ppo
        self.kl_coef = ppo.kl_coef

    def update(self, batch: Batch, *, rate_factor: float = 1.0, progress: float = 0.0) -> dict[str, float]:
        """As `Learner.update`; with `on_target: adapt` the weight of the KL follows."""
        metrics = super().update(batch, rate_factor=rate_factor, progress=progress)
        metrics["learner/kl_coef"] = self.kl_coef
        kl = metrics.get("losses/kl")
        if self.ppo.on_target == "adapt" and kl is not None:
            if kl > ADAPTATION * self.ppo.kl_target:
                self.kl_coef *= ADAPTATION
            elif kl < self.ppo.kl_target / ADAPTATION:
                self.kl_coef /= ADAPTATION
        return metrics

    def _optimise(self, rows: Sequence[Row], references: Sequence[np.ndarray]) -> dict[str, float]:
        """One optimiser step; both denominators are known before the first backward."""
        del references
        _, num_steps = step_numbers(rows)
        total = denominator(rows, self.loss.aggregation, constant=self.loss.constant)
        if self.ppo.ratio_level == "action" and self.loss.aggregation != "constant":
            total = float(sum(float(row.weight[state_columns(row) + 1].sum(dtype=np.float64)) for row in rows))
        weight = total if self.loss.aggregation != "constant" else float(sum(row.weight.sum() for row in rows))
        surrogate = squared = kl = clipped = 0.0
        ratios: list[Tensor] = []
        self.optimizer.zero_grad(set_to_none=True)
        passes, packed = self.passes.plan(rows)
        for each in passes:
            part = self._pass_loss([rows[index] for index in each.rows], each)
            loss = -part.surrogate / total + self.kl_coef * part.squared_kl / num_steps
            with self.passes.attention(each):
                loss.backward()
            surrogate += float(part.surrogate.detach()) / total
            squared += float(part.squared_kl.detach()) / num_steps
            kl += float(part.kl) / num_steps
            clipped += float(part.clipped) / weight
            ratios.append(part.ratio)
        norm = nn.utils.clip_grad_norm_(self.trainable, self.config.max_grad_norm)
        is_finite = bool(torch.isfinite(norm))
        is_stopped = self.ppo.on_target == "stop" and kl > self.ppo.kl_target
        if is_finite and not is_stopped:
            self.optimizer.step()
        ratio = torch.cat(ratios)
        return {
            "losses/policy": -surrogate,
            "losses/squared_kl": squared,
            "losses/kl": kl,
            "losses/clip_fraction": clipped,
            "losses/ratio_mean": float(ratio.mean()),
            "losses/ratio_max": float(ratio.max()),
            "learner/grad_norm": float(norm),
            "learner/denominator": total,
            "learner/skipped_steps": float(not is_finite),
            "learner/stopped_steps": float(is_stopped),
            **packed,
        }

    def _pass_loss(self, rows: Sequence[Row], each: Any) -> PassLoss:
        """The sums of one pass. The old policy runs first: weights must not move between forward and backward."""
        assert self.reference is not None
        tokens = self.passes.tokens(rows)
        numbers, num_steps = step_numbers(rows)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.reference.active(), self.passes.attention(each):
            states_TD, head = self.passes.states(each, rows)
            old_logits_TV = head(states_TD)
        self._require_same_policy(old_logits_TV, tokens)
        self.model.train(was_training)
        with self.passes.attention(each):
            states_TD, head = self.passes.states(each, rows)
            logits_TV = head(states_TD)
        step_T = torch.from_numpy(numbers).to(logits_TV.device)
        return self.ppo_objective.sums(logits_TV, old_logits_TV, tokens, step_T, num_steps)

    def _require_same_policy(self, old_logits_TV: Tensor, tokens: TokenBatch) -> None:
        """Compares pi_old with the stored log-probabilities, which must be its own."""
        difference = selected_logprobs(old_logits_TV, tokens.token_ids_T, tokens.temperature_T) - tokens.old_logprobs_T
        found = float(difference.abs().max())
        if not found <= STORED_TOLERANCE.get(self.trainable[0].dtype, STORED_TOLERANCE[torch.bfloat16]):
            raise ModelError(
                f"the stored old_logprobs differ by {found:.3g} from those of the policy that training starts from; "
                "they were computed with other weights: import the trajectories again with this model"
            )
