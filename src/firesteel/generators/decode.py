"""Decoding: one token per row and forward pass. Rows that end make place for others, in the middle of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from firesteel.errors import ModelError
from firesteel.generators.attention import SharedPrefix
from firesteel.generators.kv import Arena, BatchCache, KVBuffer, KVShape
from firesteel.generators.sampling import Sampler, uniforms
from firesteel.generators.segments import Segment, carve
from firesteel.generators.sharing import Groups, shared_prefixes
from firesteel.types import Request

MIN_ROWS_TO_DROP = 4
"""Batches smaller than this are not made smaller: a smaller batch would not be faster."""

SPARE_COLUMNS = 64
"""Rows that join later find so many columns ready; without spare ones the buffer would move with every one of them."""


class Forward(Protocol):
    """One forward pass.

    Takes tokens and positions [B, S], a mask [B, 1, S, C] or None, the cache, and prefixes that rows share; returns the
    logits of the last column, [B, V].
    """

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: BatchCache,
        prefixes: Sequence[SharedPrefix] = (),
    ) -> Tensor: ...


class StopStrings:
    """Finds the stop strings of one request at the end of what it has generated so far.

    Args:
        tokenizer: Not used where there are no strings.
        strings: What ends the response.
        before: The last token of the context. Some tokenizers drop a space at the beginning of what they decode, and
            the beginning of a response is not one.
    """

    MARGIN_TOKENS = 8

    def __init__(self, tokenizer: Any, strings: Sequence[str], before: int) -> None:
        self._tokenizer = tokenizer
        self._strings = strings
        self._before = before
        self._text_before = self._decoded([before]) if strings else ""
        longest = max((len(string.encode()) for string in strings), default=0)
        self._num_tokens = longest + self.MARGIN_TOKENS

    def are_met(self, generated: Sequence[int]) -> bool:
        """Whether the newest token completed a stop string.

        Only the last tokens are decoded: a string of n bytes ends in the newest token and, as a token that
        prints is at least one byte, begins no more than n such tokens before.
        """
        if not self._strings:
            return False
        text = self._tail(generated)
        return any(string in text for string in self._strings)

    def _tail(self, generated: Sequence[int]) -> str:
        if len(generated) <= self._num_tokens:
            text = self._decoded([self._before, *generated])
            # Bytes of one character may be on both sides.
            if text.startswith(self._text_before):
                return text[len(self._text_before) :]
        return self._decoded(list(generated[-self._num_tokens :]))

    def _decoded(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


@dataclass(slots=True, eq=False)
class Row:
    """One request on its way. `context` is the segment of its last context token.

    `filled` is a view of one row that ends with that token, so that the context need not be put together again.
    """

    number: int
    request: Request
    context: Segment
    filled: KVBuffer | None
    stops: StopStrings
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish_reason: str = ""
    prefix: Segment | None = None
    start: int = 0
    uniforms: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        sampling = self.request.sampling
        count = sampling.max_new_tokens if sampling.temperature > 0 else 0
        self.uniforms = uniforms(self.request.seed, count)

    @property
    def skipped(self) -> int:
        """How many tokens of the context are not in the row's own columns."""
        return 0 if self.prefix is None else self.prefix.end

    @property
    def num_missing(self) -> int:
        """How many columns the row still needs: the last token is never fed."""
        return self.request.sampling.max_new_tokens - max(1, len(self.tokens))

    def next_uniform(self) -> float:
        """What decides the next token; a row that has ended draws on, for nobody."""
        place = len(self.tokens)
        return float(self.uniforms[place]) if place < len(self.uniforms) else 0.0


class Decoder:
    """The rows that are being decoded, each with its own place in one buffer.

    Row i is in slot i. A slot whose row has ended is computed on until another row takes it or the batch is made
    smaller. All rows write the same column; where it reaches the buffer's end, the rows move to a new one.

    Args:
        forward: One forward pass of the model.
        shape: Of its keys and values.
        end_tokens: Ids that end a completion.
        version: The policy version, for error messages.
        is_sharing: Whether `forward` takes prefixes.
        arena: Memory for the buffers.
        max_cells: For how many tokens a buffer is made at most, if it need not be larger; None: no limit.
    """

    def __init__(
        self,
        forward: Callable[[int], Forward],
        shape: KVShape,
        end_tokens: frozenset[int],
        arena: Arena,
        *,
        version: int,
        is_sharing: bool,
        max_cells: int | None = None,
    ) -> None:
        self._forward = forward
        self._shape = shape
        self._end_tokens = end_tokens
        self._arena = arena
        self._version = version
        self._is_sharing = is_sharing
        self._max_cells = max_cells
        self._rows: list[Row] = []
        self._buffer = KVBuffer.empty(shape, 0, 0)
        self._column = self._first = 0
        self._groups = Groups(shape, [], {})
        self._is_stale = True

    @property
    def live(self) -> list[Row]:
        return [row for row in self._rows if not row.finish_reason]

    @property
    def num_slots(self) -> int:
        return len(self._rows)

    def admit(self, rows: Sequence[Row], logits: Tensor) -> list[Row]:
        """Takes in rows with the logits [B, V] behind their contexts; returns those that end with their first token."""
        sampler = Sampler([row.request.sampling for row in rows], self._shape.device)
        ended = self._draw(rows, sampler, logits)
        staying = [row for row in rows if not row.finish_reason]
        if staying:
            self._place(staying)
        return ended

    def step(self) -> list[Row]:
        """One more token for every live row; returns those that end with it."""
        if self._is_stale:
            self._drop_ended_rows()
            self._refresh()
        columns = slice(self._first, self._column + 1)
        tokens = torch.tensor([row.tokens[-1:] for row in self._rows], device=self._shape.device)
        # A row that has ended goes on counting, beyond what the model has positions for.
        positions = (self._position_offsets + self._column).clamp_max(self._last_position)
        mask = None if self._mask is None else self._mask[..., : columns.stop - columns.start]
        logits = self._forward_now(tokens, positions, mask, self._cache, self._groups.prefixes)
        self._cache.advance(1)
        self._column += 1
        ended = self._draw(self._rows, self._sampler, logits)
        if ended and self._is_worth_dropping():
            self._is_stale = True
        return ended

    def keep(self, row: Row) -> Segment:
        """The segment behind which the row's next turn goes on; call it when the row has ended, before the next step.

        It covers all tokens but the last.
        """
        fed = tuple(row.tokens[:-1])
        if not fed:
            return row.context
        return carve(row.context, fed, self._buffer.cell(self._rows.index(row), row.start, self._column))

    # --- drawing --------------------------------------------------------------------------------------------

    def _draw(self, rows: Sequence[Row], sampler: Sampler, logits: Tensor) -> list[Row]:
        draw = sampler.draw(logits, [row.next_uniform() for row in rows])
        tokens = draw.tokens.tolist()
        values = torch.stack((draw.logprobs, draw.sampling_logprobs, draw.entropies), dim=1).tolist()
        ended = []
        for row, token, (logprob, sampling_logprob, entropy) in zip(rows, tokens, values, strict=True):
            if row.finish_reason:
                continue
            if not isfinite(entropy + sampling_logprob):
                raise self._divergence(row)
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.sampling_logprobs.append(sampling_logprob)
            row.entropies.append(entropy)
            if token in self._end_tokens or row.stops.are_met(row.tokens):
                row.finish_reason = "stop"
            elif len(row.tokens) == row.request.sampling.max_new_tokens:
                row.finish_reason = "length"
            if row.finish_reason:
                ended.append(row)
        return ended

    def _divergence(self, row: Row) -> ModelError:
        return ModelError(
            f"request {row.number}: the logits of its token {len(row.tokens)} under policy version {self._version} are "
            "not finite; the weights diverged: go back to a checkpoint and lower the learning rate"
        )

    # --- places ---------------------------------------------------------------------------------------------

    def _place(self, rows: Sequence[Row]) -> None:
        """Copies the contexts of new rows into slots whose rows have ended, and into further ones."""
        self._is_stale = True
        if self._is_sharing:
            found = shared_prefixes([row.context for row in rows], self._groups.stored.keys())
            for row, prefix in zip(rows, found, strict=True):
                row.prefix = prefix
            # The rows of a group are neighbours where possible, which saves copying their queries.
            order = {prefix: place for place, prefix in reversed(list(enumerate(found)))}
            rows = sorted(rows, key=lambda row: order[row.prefix])
        live = self.live
        left = max(row.context.end - row.skipped for row in rows)
        right = max(row.num_missing for row in (*live, *rows))
        slots = [slot for slot, row in enumerate(self._rows) if row.finish_reason][: len(rows)]
        slots += range(len(self._rows), len(self._rows) + len(rows) - len(slots))
        is_fitting = (
            max(slots) < self._buffer.num_rows
            and self._column - left >= self._first
            and self._column + right <= self._buffer.num_columns
        )
        if not is_fitting:
            widest = max([left, *(self._column - row.start for row in live)])
            self._move(live, widest, right, len(live) + len(rows))
            slots = list(range(len(live), len(live) + len(rows)))
        for slot, row in zip(slots, rows, strict=True):
            row.start = self._column - (row.context.end - row.skipped)
            self._buffer.cell(slot, self._first, row.start).clear()
            self._fill(self._buffer.cell(slot, row.start, self._column), row)
            self._rows[slot : slot + 1] = [row]

    def _fill(self, target: KVBuffer, row: Row) -> None:
        if row.filled is not None and row.filled.num_columns >= target.num_columns:
            target.write(row.filled.part(slice(None), slice(row.filled.num_columns - target.num_columns, None)))
        else:
            row.context.copy_to(target, row.skipped)
        row.filled = None

    def _move(self, rows: list[Row], left: int, right: int, num_rows: int) -> None:
        """Moves these rows to the first slots of a new buffer, with `left` columns of past and `right` of future."""
        spare = SPARE_COLUMNS if rows else 0
        if self._max_cells is not None:
            spare = max(0, min(spare, self._max_cells // num_rows - left - right))
        old, shift = self._buffer, left - self._column
        slots = [self._rows.index(row) for row in rows]
        if not rows:
            self._arena.reset()
        self._buffer = self._arena.take(num_rows, left + right + spare)
        for new, (slot, row) in enumerate(zip(slots, rows, strict=True)):
            source = old.cell(slot, row.start, self._column)
            row.start += shift
            self._buffer.cell(new, 0, row.start).clear()
            self._buffer.cell(new, row.start, left).write(source)
        self._rows, self._column, self._first = list(rows), left, 0

    def _is_worth_dropping(self) -> bool:
        num_live = len(self.live)
        return num_live > 0 and len(self._rows) >= MIN_ROWS_TO_DROP and 4 * num_live <= 3 * len(self._rows)

    def _drop_ended_rows(self) -> None:
        """Moves rows from the last slots into those of ended rows, so that the first slots are all live."""
        live = self.live
        count = len(live)
        if len(self._rows) < MIN_ROWS_TO_DROP or count == len(self._rows):
            return
        free = [slot for slot in range(count) if self._rows[slot].finish_reason]
        moving = [slot for slot in range(count, len(self._rows)) if not self._rows[slot].finish_reason]
        for slot, target in zip(moving, free, strict=True):
            row = self._rows[slot]
            source = self._buffer.cell(slot, self._first, self._column)
            self._buffer.cell(target, self._first, self._column).write(source)
            self._rows[target] = row
        del self._rows[count:]

    def _refresh(self) -> None:
        """Prepares what stays the same until the next change of rows."""
        self._is_stale = False
        rows, device = self._rows, self._shape.device
        live = self.live
        self._first = max(self._first, min(row.start for row in live))
        starts = [max(row.start, self._first) for row in rows]
        self._sampler = Sampler([row.request.sampling for row in rows], device)
        self._cache = BatchCache(self._buffer.part(slice(0, len(rows)), slice(None)), self._column, self._first)
        offsets = [row.skipped - row.start for row in rows]
        self._position_offsets = torch.tensor(offsets, device=device)[:, None]
        self._mask = None
        if any(start > self._first for start in starts):
            columns = torch.arange(self._first, self._buffer.num_columns, device=device)
            is_real = columns >= torch.tensor(starts, device=device)[:, None]
            lowest = torch.finfo(self._shape.dtype).min
            self._mask = torch.where(is_real, 0.0, lowest).to(self._shape.dtype)[:, None, None]
        self._groups = Groups(self._shape, [row.prefix for row in rows], self._groups.stored)
        # The last token of a row is never fed.
        self._last_position = max(row.context.end + row.request.sampling.max_new_tokens - 2 for row in live)
        self._forward_now = self._forward(self._last_position + 1)
