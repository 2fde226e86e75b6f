"""Keys and values: the buffer of a batch, and the view of it that the model writes through.

A context lies right-aligned in its row: its last token is in the same column as that of every other row, and
unused columns are on the left. So one decoding step writes one column for all rows.

Letters: `L` layers, `B` rows, `H` key/value heads, `C` columns, `D` head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token of one row occupies, the same in every layer."""

    num_layers: int
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, layers: Sequence[tuple[Tensor, Tensor]]) -> KVShape | None:
        """The shape behind each layer's keys and values [B, H, C, D], or None where layers differ."""
        shapes = {
            cls(len(layers), keys.shape[1], keys.shape[3], values.shape[1], values.shape[3], keys.dtype, keys.device)
            for keys, values in layers
        }
        return shapes.pop() if len(shapes) == 1 else None

    @property
    def token_bytes(self) -> int:
        """What one token takes in all layers."""
        numbers = self.key_heads * self.key_dim + self.value_heads * self.value_dim
        return self.num_layers * numbers * self.dtype.itemsize


class KVBuffer:
    """The keys [L, B, H, C, D] and values [L, B, H, C, D] of one batch."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    @classmethod
    def empty(cls, shape: KVShape, num_rows: int, num_columns: int) -> KVBuffer:
        """Unset memory: `clear` what is read before it is written, for 0 * NaN is NaN also behind a mask."""
        lead, dtype, device = (shape.num_layers, num_rows), shape.dtype, shape.device
        return cls(
            torch.empty((*lead, shape.key_heads, num_columns, shape.key_dim), dtype=dtype, device=device),
            torch.empty((*lead, shape.value_heads, num_columns, shape.value_dim), dtype=dtype, device=device),
        )

    @classmethod
    def zeros(cls, shape: KVShape, num_rows: int, num_columns: int) -> KVBuffer:
        """All columns unused."""
        buffer = cls.empty(shape, num_rows, num_columns)
        buffer.clear()
        return buffer

    @property
    def num_rows(self) -> int:
        return self.keys.shape[1]

    @property
    def num_columns(self) -> int:
        return self.keys.shape[3]

    def part(self, rows: slice, columns: slice) -> KVBuffer:
        """A view of some rows and columns; what is written to it is written to this buffer."""
        return KVBuffer(self.keys[:, rows, :, columns], self.values[:, rows, :, columns])

    def cell(self, row: int, first: int, end: int) -> KVBuffer:
        """A view of the columns from `first` to before `end` of one row."""
        keys, values = self.keys[:, row : row + 1, :, first:end], self.values[:, row : row + 1, :, first:end]
        return KVBuffer(keys, values)

    def write(self, source: KVBuffer) -> None:
        """Copies a buffer of the same number of columns; a source of one row is copied to all rows."""
        self.keys.copy_(source.keys)
        self.values.copy_(source.values)

    def clear(self) -> None:
        self.keys.zero_()
        self.values.zero_()


class Arena:
    """Memory for buffers that is used again: new pages from the operating system cost as much as filling them.

    On other devices than the CPU the allocator does the same, so that nothing is held there.

    Args:
        shape: Of keys and values.
        is_tight: Takes no more than is asked for, where memory is counted.
    """

    def __init__(self, shape: KVShape, *, is_tight: bool = False) -> None:
        self._shape = shape
        self._is_tight = is_tight
        self._is_kept = shape.device.type == "cpu"
        self._memory = torch.empty(0, dtype=shape.dtype, device=shape.device)
        self._used = 0

    def reset(self) -> None:
        """Gives all buffers back at once; none may be used any more."""
        self._used = 0

    def take(self, num_rows: int, num_columns: int) -> KVBuffer:
        """An unset buffer that lives until `reset`."""
        shape = self._shape
        if not self._is_kept:
            return KVBuffer.empty(shape, num_rows, num_columns)
        sizes = [
            (shape.num_layers, num_rows, heads, num_columns, dim)
            for heads, dim in ((shape.key_heads, shape.key_dim), (shape.value_heads, shape.value_dim))
        ]
        needed = sum(map(math.prod, sizes))
        if self._used + needed > len(self._memory):
            # Buffers taken before stay where they are until nothing refers to them.
            # Let go of before more is asked for: both together may be too much.
            self._memory = self._memory.new_empty(0)
            self._memory, self._used = self._memory.new_empty(needed if self._is_tight else needed + needed // 4), 0
        keys, values = (
            part.view(size)
            for part, size in zip(
                self._memory[self._used : self._used + needed].split([math.prod(size) for size in sizes]),
                sizes,
                strict=True,
            )
        )
        self._used += needed
        return KVBuffer(keys, values)


class Appended(NamedTuple):
    """Views of one layer: where a new column's keys and values [B, H, D] go, and all columns with it, [B, H, C, D]."""

    new_keys: Tensor
    keys: Tensor
    new_values: Tensor
    values: Tensor


class BatchCache(Cache):
    """The `past_key_values` of a forward pass: writes new columns into a `KVBuffer` and returns views of it.

    `column` is the first column that the next forward pass writes. It moves on only when `advance` is called,
    because every layer of a pass writes the same columns. Columns before `first` are not returned.
    """

    def __init__(self, buffer: KVBuffer, column: int, first: int = 0) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(buffer.keys.shape[0])])
        self._buffer = buffer
        self._keys = buffer.keys.unbind(0)
        self._values = buffer.values.unbind(0)
        self.column = column
        self.first = first

    def advance(self, num_columns: int) -> None:
        """Counts the columns of the pass that just ended as past."""
        self.column += num_columns

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes [B, H, S, D] at the current column; returns the columns up to there, [B, H, C, D]."""
        columns = slice(self.first, self.column + key_states.shape[2])
        keys, values = self._keys[layer_idx][:, :, columns], self._values[layer_idx][:, :, columns]
        new = self.column - self.first
        keys[:, :, new:] = key_states
        values[:, :, new:] = value_states
        return keys, values

    def append(self) -> list[Appended]:
        """Views for a pass of one column, layer by layer."""
        length = self.column + 1 - self.first
        views = [
            view
            for part in (self._buffer.keys, self._buffer.values)
            for view in (part.select(3, self.column).unbind(0), part.narrow(3, self.first, length).unbind(0))
        ]
        return list(map(Appended, *views))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column - self.first

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.column - self.first

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.column - self.first + query_length, 0
