"""One update: rows to mini-batches to micro-batches, global denominators, clipped gradients, AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from firesteel.config import LearnerConfig, LossConfig
from firesteel.errors import ModelError
from firesteel.learners.reference import Reference
from firesteel.losses import selected_logprobs
from firesteel.packing import Batch, Row, denominator

PER_DENOMINATOR = ("losses/policy", "losses/sft")
"""Reports that are divided by D, as the loss is; all others are means per token by weight."""

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Config fields of models that change the logits after the head."""


@dataclass(slots=True)
class TokenBatch:
    """The T trained tokens of one micro-batch, all shape [T]; see `packing.Row` for the weights."""

    token_ids_T: Tensor
    old_logprobs_T: Tensor
    temperature_T: Tensor
    weight_T: Tensor
    positive_T: Tensor
    negative_T: Tensor
    reference_logprobs_T: Tensor | None = None


class Objective(Protocol):
    """What is minimised: a sum over tokens, and sums to report. Division by D is the learner's."""

    needs_reference: bool

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
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trainable:
            raise ModelError("the model has no trainable parameters; with LoRA, load the adapter with trainable=True")
        if config.gradient_checkpointing:
            # renamed within transformers 5, and the old name warns where there is a new one
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )

    @property
    def device(self) -> torch.device:
        return self.trainable[0].device

    def learning_rate(self) -> float:
        """The rate of the next update: linear warm-up, then the configured shape."""
        config = self.config
        if self.updates < config.warmup_steps:
            return config.lr * (self.updates + 1) / config.warmup_steps
        span = max(1, self.total_steps - config.warmup_steps)
        progress = min(1.0, (self.updates - config.warmup_steps) / span)
        if config.schedule == "linear":
            return config.lr * (1.0 - progress)
        if config.schedule == "cosine":
            return config.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.lr

    def update(self, batch: Batch) -> dict[str, float]:
        """One or more optimiser steps on a rollout's rows; returns metrics averaged over them."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = [row for row in batch.rows if row.loss_mask.any()]
        rng = np.random.default_rng([self.seed, self.updates])
        reports: list[dict[str, float]] = []
        references = self._reference_logprobs(rows)
        self.model.train()
        for _ in range(self.config.epochs_per_rollout if rows else 0):
            for part in self._minibatches(len(rows), rng):
                chosen = [references[index] for index in part] if references else []
                reports.append(self._optimise([rows[index] for index in part], chosen))
        self.model.eval()
        self.updates += 1
        metrics = {key: float(np.mean([report[key] for report in reports])) for key in (reports[0] if reports else {})}
        return {**metrics, "learner/lr": rate, "learner/optimizer_steps": float(len(reports)), **batch.stats}

    def _minibatches(self, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        parts = self.config.minibatches
        if self.config.minibatch_rows is not None:
            parts = math.ceil(count / self.config.minibatch_rows)
        order = rng.permutation(count) if parts > 1 else np.arange(count)
        return [np.sort(part) for part in np.array_split(order, min(parts, count))]

    def _optimise(self, rows: Sequence[Row], references: Sequence[np.ndarray]) -> dict[str, float]:
        """One optimiser step, skipped where the gradient is not finite.

        D is known before the first backward; micro-batches only split the sum.
        """
        total = denominator(rows, self.loss.aggregation, constant=self.loss.constant)
        weight = sum(float(row.weight.sum(dtype=np.float64)) for row in rows)
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for micro in micro_batches([len(row) for row in rows], self.config.micro_batch_tokens):
            chosen = [rows[index] for index in micro]
            logits_TV, tokens = self._forward(chosen)
            if references:
                reference = np.concatenate([references[index] for index in micro])
                tokens.reference_logprobs_T = torch.from_numpy(reference).to(self.device)
            loss, report = self.objective(logits_TV, tokens)
            (loss / total).backward()
            for key, value in report.items():
                sums[key] = sums[key] + value.double() if key in sums else value.double()
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
        }

    def _forward(self, rows: Sequence[Row]) -> tuple[Tensor, TokenBatch]:
        """Logits at the positions that predict trained tokens, shape [T, V], and those tokens."""
        device = self.device
        longest = max(len(row) for row in rows)
        ids_BT = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row)] = row.token_ids
        row_T = np.concatenate([np.full(int(row.loss_mask.sum()), number) for number, row in enumerate(rows)])
        column_T = np.concatenate([np.flatnonzero(row.loss_mask) for row in rows])

        def field(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(row, name)[row.loss_mask] for row in rows])).to(device)

        # Rows are padded on the right and attention is causal, so no trained token sees padding: without a mask the
        # fast causal kernel serves.
        logits_TV = logits_at(
            self.model, torch.from_numpy(ids_BT).to(device),
            torch.from_numpy(row_T).to(device), torch.from_numpy(column_T - 1).to(device),
        )  # fmt: skip
        return logits_TV, TokenBatch(
            field("token_ids"), field("old_logprobs"), field("temperature"), field("weight"),
            field("positive"), field("negative"),
        )  # fmt: skip

    def _reference_logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        if not self.objective.needs_reference:
            return []
        if self.reference is None:
            raise ModelError("loss.kl_coef > 0 needs a reference model; pass one to the learner")
        with self.reference.active():
            return self.logprobs(rows)

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Raw log-probabilities of every row's trained tokens under the current weights, without dropout."""
        self.model.eval()
        result: dict[int, np.ndarray] = {}
        for micro in micro_batches([len(row) for row in rows], self.config.micro_batch_tokens):
            logits_TV, tokens = self._forward([rows[index] for index in micro])
            values = selected_logprobs(logits_TV, tokens.token_ids_T).cpu().numpy()
            ends = np.cumsum([int(rows[index].loss_mask.sum()) for index in micro])
            for index, part in zip(micro, np.split(values, ends[:-1]), strict=True):
                result[index] = part
        return [result[index] for index in range(len(rows))]

    def weights(self) -> Mapping[str, Tensor]:
        """The model's tensors by name, sharing storage with the model."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Row indices in groups whose padded size (rows times longest row) stays within `most_tokens`.

    Similar lengths come together; a row longer than `most_tokens` gets a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= most_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def logits_at(model: Any, ids_BT: Tensor, row_T: Tensor, column_T: Tensor) -> Tensor:
    """Logits at chosen positions only: the head never sees the others, which is most of the memory at large V.

    Models that change the logits after the head (soft-capping, scaling) go through their own forward.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = causal.config
    plain = not any(getattr(config, name, None) for name in LOGIT_CHANGES)
    decoder = getattr(causal, getattr(causal, "base_model_prefix", ""), None)
    head = causal.get_output_embeddings()
    if not plain or decoder is None or decoder is causal or head is None:
        return model(input_ids=ids_BT, use_cache=False).logits[row_T, column_T]
    hidden = decoder(input_ids=ids_BT, use_cache=False).last_hidden_state
    return head(hidden[row_T, column_T])
