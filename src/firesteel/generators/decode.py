"""Decoding in lock step: one token per row and forward pass; rows that ended are dropped from time to time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from firesteel.generators.kv import BatchCache, CachedContext, Epoch, KVBuffer
from firesteel.generators.sampling import Draw, Sampler
from firesteel.types import Completion, Request

Forward = Callable[[Tensor, Tensor, Tensor | None, BatchCache], Tensor]
"""(tokens [B, S], positions [B, S], attention [B, 1, S, C] or None, cache) -> logits of the last column, [B, V]."""

MIN_ROWS_TO_DROP = 4
"""Batches smaller than this are not compacted: a smaller batch would not be faster."""


class StopStrings:
    """Finds stop strings at the end of what each row has generated so far."""

    MARGIN_TOKENS = 8

    def __init__(self, tokenizer: Any, stops: Sequence[tuple[str, ...]]) -> None:
        self._tokenizer = tokenizer
        self._stops = {row: strings for row, strings in enumerate(stops) if strings}
        self._generated: dict[int, list[int]] = {row: [] for row in self._stops}

    def __bool__(self) -> bool:
        return bool(self._stops)

    def are_met(self, rows: Sequence[int], tokens: Tensor) -> list[bool]:
        """Takes in one new token per row; True where the row's text now contains one of its stop strings.

        Only the last tokens are decoded: a string of n bytes ends in the newest token and, as a token that
        prints is at least one byte, begins no more than n such tokens before.
        """
        met = []
        for row, token in zip(rows, tokens.tolist(), strict=True):
            strings = self._stops.get(row, ())
            if strings:
                generated = self._generated[row]
                generated.append(token)
                longest = max(len(string.encode()) for string in strings)
                tail = generated[-longest - self.MARGIN_TOKENS :]
                text = self._tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
                met.append(any(string in text for string in strings))
            else:
                met.append(False)
        return met


@dataclass(slots=True)
class Outcome:
    """What became of one row. `buffer`, `row` and `start` say where its keys and values lie."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    is_stopped: bool = False
    buffer: KVBuffer | None = None
    row: int = 0
    start: int = 0


class Decoder:
    """Continues the rows of one buffer until each has ended.

    Args:
        forward: One forward pass of the model.
        buffer: Holds the contexts, right-aligned to `column`, with room for the new tokens.
        starts: The first column of each row's context.
        requests: One request per row.
        end_tokens: [E] ids that end a completion.
        stop_strings: For rows 0, 1, ... as in `requests`.
    """

    def __init__(
        self,
        forward: Forward,
        buffer: KVBuffer,
        column: int,
        starts: Sequence[int],
        requests: Sequence[Request],
        end_tokens: Tensor,
        stop_strings: StopStrings,
    ) -> None:
        self._forward = forward
        self._requests = requests
        self._end_tokens = end_tokens
        self._stop_strings = stop_strings
        self._device = end_tokens.device
        self._outcomes = [Outcome() for _ in requests]
        self._sampler = Sampler([each.sampling for each in requests], [each.seed for each in requests], self._device)
        self._limits = self._tensor([each.sampling.max_new_tokens for each in requests])
        self._is_active = torch.ones_like(self._limits, dtype=torch.bool)
        self._is_stopped = torch.zeros_like(self._is_active)
        self._num_tokens = torch.zeros_like(self._limits)
        self._draws: list[Draw] = []
        self._place(buffer, column, list(starts), list(range(len(requests))))

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self._device)

    def _place(self, buffer: KVBuffer, column: int, starts: list[int], rows: list[int]) -> None:
        """Goes on in this buffer, whose rows are these rows of the requests."""
        self._buffer, self._starts, self._rows = buffer, starts, rows
        self._cache = BatchCache(buffer, column)
        self._start_columns = self._tensor(starts)[:, None]
        self._attention = None
        if any(starts):
            dtype = buffer.keys.dtype
            is_real = torch.arange(buffer.num_columns, device=self._device) >= self._start_columns
            self._attention = torch.where(is_real, 0.0, torch.finfo(dtype).min).to(dtype)[:, None, None]

    def run(self, logits: Tensor) -> list[Outcome]:
        """Decodes from the first logits, [B, V], to the end of the last row; one outcome per request."""
        for step in range(max(each.sampling.max_new_tokens for each in self._requests)):
            draw = self._sampler.draw(logits, step)
            self._draws.append(draw)
            self._end_rows(draw.tokens, step)
            num_active = int(self._is_active.sum())
            if num_active == 0:
                break
            tokens = draw.tokens
            if 2 * num_active <= len(self._rows) >= MIN_ROWS_TO_DROP:
                tokens = self._drop_ended_rows(tokens)
            logits = self._step(tokens)
        self._collect()
        return self._outcomes

    def _step(self, tokens: Tensor) -> Tensor:
        column = self._cache.column
        attention = None if self._attention is None else self._attention[..., : column + 1]
        logits = self._forward(tokens[:, None], column - self._start_columns, attention, self._cache)
        self._cache.advance(1)
        return logits

    def _end_rows(self, tokens: Tensor, step: int) -> None:
        is_end = (tokens[:, None] == self._end_tokens).any(-1)
        if self._stop_strings:
            is_end |= torch.tensor(self._stop_strings.are_met(self._rows, tokens), device=self._device)
        self._num_tokens += self._is_active
        self._is_stopped |= self._is_active & is_end
        self._is_active &= ~is_end & (self._limits > step + 1)

    def _drop_ended_rows(self, tokens: Tensor) -> Tensor:
        """Moves the active rows to a smaller buffer; ended rows keep theirs in the old one. Returns their tokens."""
        self._collect()
        kept = self._is_active.nonzero().squeeze(-1)
        rows = kept.tolist()
        column = self._cache.column
        first = min(self._starts[row] for row in rows)
        num_columns = self._buffer.num_columns - first
        buffer = self._buffer.rows(rows, slice(first, column), num_columns)
        self._sampler.keep(rows)
        self._limits, self._num_tokens = self._limits[kept], self._num_tokens[kept]
        self._is_active, self._is_stopped = self._is_active[kept], self._is_stopped[kept]
        starts = [self._starts[row] - first for row in rows]
        self._place(buffer, column - first, starts, [self._rows[row] for row in rows])
        return tokens[kept]

    def _collect(self) -> None:
        """Moves the draws since the last call to the host, and notes where each row lies now."""
        counts, stopped = self._num_tokens.tolist(), self._is_stopped.tolist()
        columns = [torch.stack(values, dim=1).tolist() for values in zip(*self._draws, strict=True)]
        self._draws.clear()
        for row, (tokens, logprobs, sampling_logprobs, entropies) in enumerate(zip(*columns, strict=True)):
            outcome = self._outcomes[self._rows[row]]
            new = counts[row] - len(outcome.tokens)
            outcome.tokens += tokens[:new]
            outcome.logprobs += logprobs[:new]
            outcome.sampling_logprobs += sampling_logprobs[:new]
            outcome.entropies += entropies[:new]
            outcome.is_stopped = stopped[row]
            outcome.buffer, outcome.row, outcome.start = self._buffer, row, self._starts[row]


def completion(outcome: Outcome, request: Request, epoch: Epoch, policy_version: int) -> Completion:
    """The completion of a row, with a cache that covers all but its last token."""
    assert outcome.buffer is not None
    epoch.register(outcome.buffer)
    covered = (*request.token_ids, *outcome.tokens[:-1])
    return Completion(
        token_ids=outcome.tokens,
        logprobs=outcome.logprobs,
        sampling_logprobs=outcome.sampling_logprobs,
        entropies=outcome.entropies,
        finish_reason="stop" if outcome.is_stopped else "length",
        policy_version=policy_version,
        cache=CachedContext(epoch, policy_version, covered, outcome.buffer, outcome.row, outcome.start),
    )
