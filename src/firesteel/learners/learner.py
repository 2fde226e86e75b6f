"""One update: rows to mini-batches to passes of the model, global denominators, clipped gradients, AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from firesteel.config import LearnerConfig, LossConfig
from firesteel.errors import ModelError, TreeError
from firesteel.learners.passes import Head, Passes, TokenBatch
from firesteel.learners.reference import Reference
from firesteel.packing import Batch, Row, denominator

PER_DENOMINATOR = ("losses/policy", "losses/sft")
"""Reports that are divided by D, as the loss is; all others are means per token by weight."""


class Objective(Protocol):
    """What is minimised: a sum over tokens, and sums to report. Division by D is the learner's.

    Unless it `needs_every_row`, rows whose advantages are all zero have no gradient: `skip_dead_rows` leaves them out.
    With `needs_old_logprobs` it compares with the log-probabilities at which tokens were sampled.
    """

    needs_reference: bool
    needs_every_row: bool
    needs_old_logprobs: bool

    def __call__(self, logits_TV: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]: ...


class Learner:
    """Trains a stock causal language model on packed trees.

    `reference` is the frozen policy of the KL term, wanted only if the objective needs it.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        config: LearnerConfig,
        loss: LossConfig,
        *,
        total_steps: int,
        reference: Reference | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.objective = objective
        self.config = config
        self.loss = loss
        self.total_steps = total_steps
        self.reference = reference
        self.seed = seed
        self.updates = 0
        self.passes = Passes(model, config.packing, config.micro_batch_tokens)
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trainable:
            raise ModelError("the model has no trainable parameters; with LoRA, load the adapter with trainable=True")
        if config.gradient_checkpointing:
            # renamed within transformers 5, and the old name warns where there is a new one
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )

    @property
    def device(self) -> torch.device:
        return self.trainable[0].device

    def learning_rate(self, progress: float = 0.0) -> float:
        """The rate of the next update: linear warm-up, then the configured shape.

        The shape goes by the steps done, or by `progress` (what share of the run is over, 0 to 1) where that is more.
        """
        config = self.config
        if self.updates < config.warmup_steps:
            return config.lr * (self.updates + 1) / config.warmup_steps
        span = max(1, self.total_steps - config.warmup_steps)
        progress = min(1.0, max(progress, (self.updates - config.warmup_steps) / span))
        if config.schedule == "linear":
            return config.lr * (1.0 - progress)
        if config.schedule == "cosine":
            return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.lr

    def update(self, batch: Batch, *, rate_factor: float = 1.0, progress: float = 0.0) -> dict[str, float]:
        """One or more optimiser steps on a rollout's rows; returns metrics averaged over them.

        `rate_factor` multiplies the learning rate of this update, `progress` is that of `learning_rate`.
        """
        rate = self.learning_rate(progress) * rate_factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = [row for row in batch.rows if row.loss_mask.any()]
        if self.objective.needs_old_logprobs:
            _check_old_logprobs(rows)
        rng = np.random.default_rng([self.seed, self.updates])
        reports: list[dict[str, float]] = []
        references = self._reference_logprobs(rows)
        self.model.train()
        for _ in range(self.config.epochs_per_rollout if rows else 0):
            for part in self._minibatches(rows, rng):
                chosen = [references[index] for index in part] if references else []
                reports.append(self._optimise([rows[index] for index in part], chosen))
        self.model.eval()
        self.updates += 1
        metrics = {key: float(np.mean([report[key] for report in reports])) for key in (reports[0] if reports else {})}
        return {**metrics, "learner/lr": rate, "learner/optimizer_steps": float(len(reports)), **batch.stats}

    def _minibatches(self, rows: Sequence[Row], rng: np.random.Generator) -> list[np.ndarray]:
        """Row numbers of each optimiser step, in equal parts of a random order of rows or of whole trees."""
        count, parts = len(rows), self.config.minibatches
        if self.config.minibatch_rows is not None:
            parts = math.ceil(count / self.config.minibatch_rows)
        if parts == 1:
            order = np.arange(count)
        elif self.config.deal == "rows":
            order = rng.permutation(count)
        else:
            trees_B = np.array([row.tree for row in rows])
            place_of_tree = rng.permutation(trees_B.max() + 1)
            order = np.argsort(place_of_tree[trees_B], kind="stable")
        return [np.sort(part) for part in np.array_split(order, min(parts, count))]

    def _optimise(self, rows: Sequence[Row], references: Sequence[np.ndarray]) -> dict[str, float]:
        """One optimiser step, skipped where the gradient is not finite.

        D is known before the first backward; passes only split the sum. It counts the rows that are left out.
        """
        total = denominator(rows, self.loss.aggregation, constant=self.loss.constant)
        if self.config.skip_dead_rows and not self.objective.needs_every_row:
            rows = [row for row in rows if row.positive.any() or row.negative.any()] or rows
        weight = sum(float(row.weight.sum(dtype=np.float64)) for row in rows)
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        passes, packed = self.passes.plan(rows)
        for each in passes:
            chosen = [rows[index] for index in each.rows]
            tokens = self.passes.tokens(chosen)
            if references:
                reference = np.concatenate([references[index] for index in each.rows])
                tokens.reference_logprobs_T = torch.from_numpy(reference).to(self.device)
            with self.passes.attention(each):
                self._accumulate(*self.passes.states(each, chosen), tokens, total, sums)
        norm = nn.utils.clip_grad_norm_(self.trainable, self.config.max_grad_norm)
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            self.optimizer.step()
        per_token = {key: value for key, value in sums.items() if key not in PER_DENOMINATOR}
        return {
            **{key: float(value) / weight for key, value in per_token.items()},
            **{key: float(value) / total for key, value in sums.items() if key in PER_DENOMINATOR},
            "learner/grad_norm": float(norm),
            "learner/denominator": total,
            "learner/skipped_steps": float(not is_finite),
            **packed,
        }

    def _accumulate(
        self, states_TD: Tensor, head: Head, tokens: TokenBatch, total: float, sums: dict[str, Tensor]
    ) -> None:
        """Adds the gradient of one pass, and its reports to `sums`. The logits exist for one chunk at a time."""
        gradients = []
        for chunk in self.passes.chunks(len(states_TD)):
            states = states_TD[chunk].detach().requires_grad_(states_TD.requires_grad)
            loss, report = self.objective(head(states), tokens.part(chunk))
            (loss / total).backward()
            gradients.append(states.grad)
            for key, value in report.items():
                sums[key] = sums[key] + value.double() if key in sums else value.double()
        if states_TD.requires_grad:
            states_TD.backward(torch.cat([gradient for gradient in gradients if gradient is not None]))

    def _reference_logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        if not self.objective.needs_reference:
            return []
        if self.reference is None:
            raise ModelError("loss.kl_coef > 0 needs a reference model; pass one to the learner")
        with self.reference.active():
            return self.logprobs(rows)

    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Raw log-probabilities of every row's trained tokens under the current weights, without dropout."""
        self.model.eval()
        result: dict[int, np.ndarray] = {}
        for each in self.passes.plan(rows)[0] if rows else ():
            chosen = [rows[index] for index in each.rows]
            ends = np.cumsum([int(row.loss_mask.sum()) for row in chosen])
            parts = np.split(self.passes.logprobs(each, chosen), ends[:-1])
            result.update(zip(each.rows, parts, strict=True))
        return [result[index] for index in range(len(rows))]

    def weights(self) -> Mapping[str, Tensor]:
        """The model's tensors by name, sharing storage with the model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def _check_old_logprobs(rows: Sequence[Row]) -> None:
    for row in rows:
        if np.isnan(row.old_logprobs).any():
            raise TreeError(
                f"tree {row.tree} of the update holds a response without sampling_logprobs, which policy gradients "
                "compare with; sample it by a generator that returns them, or train on it with learner.kind=sft"
            )
