"""A stock Hugging Face model as the generator uses it: one forward pass that keeps its keys and values here."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from firesteel.errors import ModelError
from firesteel.generators.attention import SharedPrefix
from firesteel.generators.decode import Forward
from firesteel.generators.kv import Arena, BatchCache, KVBuffer, KVShape
from firesteel.generators.llama import LlamaForward, is_stock
from firesteel.generators.prefill import Job, block_inputs, place
from firesteel.generators.probes import Probes
from firesteel.generators.segments import Segment, carve
from firesteel.generators.sharing import Groups, shared_prefixes
from firesteel.generators.support import ADVICE, check_supported, decoder_config, inner_model, model_max_context

MASK_TAKING_ATTENTION = ("sdpa", "eager")
"""Attention implementations that take an additive mask per row; any other is replaced by "sdpa" during a call."""

CHECKED_LENGTHS = (9, 4)
"""Two contexts of different lengths show whether masks per row and positions are honoured."""


class Network:
    """Runs a model without changing it: own cache, a mask per row, absolute positions.

    Args:
        model: A `transformers` model with a language-model head, or a PEFT model around one.
        max_context: An upper limit on the context; None takes the model's.

    Raises:
        ModelError: The model cannot keep its keys and values here.
    """

    def __init__(self, model: nn.Module, max_context: int | None = None) -> None:
        self.outer = model
        self.inner: Any = inner_model(model)
        config = decoder_config(self.inner)
        limit = model_max_context(config)
        self.max_context = limit if max_context is None else min(limit, max_context)
        check_supported(self.inner, config, self.max_context)
        self.vocabulary: int = config.vocab_size
        self.device: torch.device = next(self.inner.parameters()).device
        parameters = inspect.signature(self.inner.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._is_fast_exact = False
        self._fast: LlamaForward | None = None
        self._probes: Probes | None = None
        with self.borrowed():
            self.shape = self._stored_shape()
            self._check_logits()

    @property
    def _refusal(self) -> str:
        return f"{type(self.inner).__name__} cannot be used by TorchGenerator ({ADVICE}):"

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients, with an attention that takes our masks; restored after."""
        training = [module for module in self.outer.modules() if module.training]
        config = self.inner.config
        attention = config._attn_implementation
        is_replaced = attention not in MASK_TAKING_ATTENTION
        try:
            for module in training:
                module.training = False
            if is_replaced:
                config._attn_implementation = "sdpa"
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True
            if is_replaced:
                config._attn_implementation = attention

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: BatchCache,
        prefixes: Sequence[SharedPrefix] = (),
    ) -> Tensor:
        """The logits [B, V] of the last column, by the model's own forward pass.

        Args:
            tokens: [B, S] ids of the new columns.
            positions: [B, S], from 0 at the start of each row's context.
            mask: [B, 1, S, C], added to the attention scores; None where plain causal attention is the same.
            cache: Takes the keys and values of the new columns; the caller advances it.
            prefixes: None: the model's own attention sees nothing but the columns.
        """
        assert not prefixes
        output = self.inner(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **self._last_logits,
        )
        return output.logits[:, -1]

    @property
    def is_sharing(self) -> bool:
        """Whether `best_forward` is the fast one, which takes prefixes that rows share."""
        return self._fast is not None

    def best_forward(self, num_positions: int) -> Forward:
        """The forward pass to use where no position reaches `num_positions`."""
        if self._fast is None:
            return self.forward
        self._fast.prepare(num_positions)
        return self._fast

    def refresh(self) -> bool:
        """Looks at the model as it is now, for modules and weights may change between calls.

        Returns:
            Whether keys and values computed since `forget` still hold, as far as a sample of the weights shows.
        """
        is_fast = self._is_fast_exact and is_stock(self.inner)
        if self._probes is not None:
            is_same = self._probes.is_current(self.inner)
            if is_same and is_fast == (self._fast is not None):
                return True
        is_first = self._probes is None
        self._probes = Probes(self.inner)
        self._fast = LlamaForward(self.inner) if is_fast else None
        return is_first

    def forget(self) -> None:
        """Drops copies of weights: they are about to differ."""
        self._fast = self._probes = None

    def fill(self, jobs: Sequence[Job], arena: Arena) -> Tensor:
        """Computes the missing ends of contexts in one pass, and keeps them; returns the next-token logits, [B, V].

        The memory of the pass, to which `filled` of the jobs refers, is taken from `arena`.
        """
        found: list[Segment | None] = [None] * len(jobs)
        if self.is_sharing:
            found = shared_prefixes([job.last for job in jobs])
        skipped = [0 if prefix is None else prefix.end for prefix in found]
        own = [job.token_ids[first:] for job, first in zip(jobs, skipped, strict=True)]
        buffer = arena.take(len(jobs), max(map(len, own)))
        for row, job in enumerate(jobs):
            place(job, buffer, row, skipped[row])
        num_new = max(job.num_uncached for job in jobs)
        inputs = block_inputs(own, num_new, self.shape.dtype, self.device, skipped)
        cache = BatchCache(buffer, buffer.num_columns - num_new)
        forward = self.best_forward(max(len(job.token_ids) for job in jobs))
        logits = forward(inputs.tokens, inputs.positions, inputs.mask, cache, Groups(self.shape, found, {}).prefixes)
        for row, job in enumerate(jobs):
            job.filled = buffer.cell(row, buffer.num_columns - len(own[row]), buffer.num_columns)
            job.last = carve(job.last, job.token_ids[job.num_cached :], job.filled)
        return logits

    def _stored_shape(self) -> KVShape:
        """What the model stores per token, read from its own cache after a pass over two tokens."""
        tokens = torch.zeros((1, 2), dtype=torch.long, device=self.device)
        cache = self.inner(input_ids=tokens, use_cache=True, past_key_values=DynamicCache()).past_key_values
        layers = [(layer.keys, layer.values) for layer in getattr(cache, "layers", [])]
        is_plain = all(keys is not None and keys.ndim == 4 for keys, _ in layers)
        shape = KVShape.of(layers) if layers and is_plain else None
        if shape is None:
            raise ModelError(f"{self._refusal} its layers do not all store keys and values of one shape")
        return shape

    def _check_logits(self) -> None:
        """Compares cached, ragged, masked logits with those of the model alone; a model that differs is refused."""
        contexts = [tuple((7 * i + 3) % self.vocabulary for i in range(length)) for length in CHECKED_LENGTHS]
        width = max(CHECKED_LENGTHS)
        alone = torch.cat(
            [self.inner(input_ids=torch.tensor([ids], device=self.device)).logits[:, -1] for ids in contexts]
        )
        if bool(alone.isnan().any()):
            raise ModelError(f"{type(self.inner).__name__}: its logits are NaN; the weights diverged: take other ones")
        try:
            logits = self._cached_logits(contexts, width, self.forward)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            raise ModelError(f"{self._refusal} its forward pass with cached keys and values fails: {error}") from error
        difference, scale = float((logits - alone).abs().max()), float(alone.abs().max())
        allowed = (1e-3 if self.shape.dtype == torch.float32 else 0.1) * scale
        if not difference <= allowed:
            raise ModelError(
                f"{self._refusal} with cached keys and values and a mask per row its logits differ by "
                f"{difference:.3g} (allowed {allowed:.3g}) from those of the plain forward pass"
            )
        if is_stock(self.inner):
            fast = LlamaForward(self.inner)
            fast.prepare(width)
            difference = float((self._cached_logits(contexts, width, fast) - logits).abs().max())
            self._is_fast_exact = difference <= allowed / 10

    def _cached_logits(self, contexts: Sequence[tuple[int, ...]], width: int, forward: Forward) -> Tensor:
        """The logits behind contexts of at most `width` tokens, whose last two tokens are decoded one by one."""
        buffer = KVBuffer.zeros(self.shape, len(contexts), width)
        cache, logits = BatchCache(buffer, 0), torch.empty(0)
        for num_new, missing in ((width - 2, 2), (1, 1), (1, 0)):
            present = [ids[: len(ids) - missing] for ids in contexts]
            inputs = block_inputs(present, num_new, self.shape.dtype, self.device)
            logits = forward(inputs.tokens, inputs.positions, inputs.mask, cache)
            cache.advance(num_new)
        return logits
