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
from firesteel.generators.decode import Forward
from firesteel.generators.kv import BatchCache, KVBuffer, KVShape
from firesteel.generators.llama_step import LlamaStep, is_stock
from firesteel.generators.prefill import Job, block_inputs
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
        self._is_step_exact = False
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

    def forward(self, tokens: Tensor, positions: Tensor, attention: Tensor | None, cache: BatchCache) -> Tensor:
        """The logits [B, V] of the last column.

        Args:
            tokens: [B, S] ids of the new columns.
            positions: [B, S], from 0 at the start of each row's context.
            attention: [B, 1, S, C], added to the attention scores; None where plain causal attention is the same.
            cache: Takes the keys and values of the new columns; the caller advances it.
        """
        output = self.inner(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=attention,
            past_key_values=cache,
            use_cache=True,
            **self._last_logits,
        )
        return output.logits[:, -1]

    def decoding_forward(self, num_columns: int) -> Forward:
        """What computes one new column per pass in a buffer of `num_columns`: `forward`, or the same but faster.

        Good for the current call only, because weights and modules may change between calls.
        """
        return LlamaStep(self.inner, num_columns) if self._is_step_exact and is_stock(self.inner) else self.forward

    def fill(self, jobs: Sequence[Job], buffer: KVBuffer) -> Tensor:
        """Fills a buffer as wide as the longest context, one job a row; returns the next-token logits, [B, V]."""
        for row, job in enumerate(jobs):
            if job.cached is not None:
                start = buffer.num_columns - len(job.token_ids)
                target = buffer.part(slice(row, row + 1), slice(start, start + job.num_cached))
                target.write(job.cached.columns(job.num_cached))
        num_new = max(job.num_uncached for job in jobs)
        inputs = block_inputs([job.token_ids for job in jobs], num_new, self.shape.dtype, self.device)
        cache = BatchCache(buffer, buffer.num_columns - num_new)
        return self.forward(inputs.tokens, inputs.positions, inputs.attention, cache)

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
            fast = self._cached_logits(contexts, width, LlamaStep(self.inner, width))
            self._is_step_exact = float((fast - logits).abs().max()) <= allowed / 10

    def _cached_logits(self, contexts: Sequence[tuple[int, ...]], width: int, decode: Forward) -> Tensor:
        """The logits behind contexts of at most `width` tokens, whose last two tokens are decoded one by one."""
        buffer = KVBuffer.zeros(self.shape, len(contexts), width)
        logits = self.fill([Job(ids[:-2]) for ids in contexts], buffer.part(slice(None), slice(0, width - 2)))
        cache = BatchCache(buffer, width - 2)
        for missing in (1, 0):
            inputs = block_inputs([ids[: len(ids) - missing] for ids in contexts], 1, self.shape.dtype, self.device)
            logits = decode(inputs.tokens, inputs.positions, inputs.attention, cache)
            cache.advance(1)
        return logits
