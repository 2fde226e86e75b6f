"""Keys and values: batch buffers, the opaque cache of a completion, and the view that the model writes through.

A context lies right-aligned in its row: its last token is in the same column as that of every other row, and
unused columns are on the left. So one decoding step writes one column for all rows.

Letters: `L` layers, `B` rows, `H` key/value heads, `C` columns, `D` head dimension.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


class KVBuffer:
    """The keys [L, B, H, C, D] and values [L, B, H, C, D] of one batch; unused columns hold zeros."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values

    @classmethod
    def zeros(cls, shape: KVShape, num_rows: int, num_columns: int) -> KVBuffer:
        """Zeros and not unset memory: a masked column has weight 0, and 0 * NaN would be NaN."""
        lead, dtype, device = (shape.num_layers, num_rows), shape.dtype, shape.device
        return cls(
            torch.zeros((*lead, shape.key_heads, num_columns, shape.key_dim), dtype=dtype, device=device),
            torch.zeros((*lead, shape.value_heads, num_columns, shape.value_dim), dtype=dtype, device=device),
        )

    @property
    def num_columns(self) -> int:
        return self.keys.shape[3]

    def part(self, rows: slice, columns: slice) -> KVBuffer:
        """A view of some rows and columns; what is written to it is written to this buffer."""
        return KVBuffer(self.keys[:, rows, :, columns], self.values[:, rows, :, columns])

    def write(self, source: KVBuffer) -> None:
        """Copies a buffer of the same number of columns; a source of one row is copied to all rows."""
        self.keys.copy_(source.keys)
        self.values.copy_(source.values)

    def rows(self, rows: Sequence[int], columns: slice, num_columns: int) -> KVBuffer:
        """A new buffer of `num_columns` that begins with these columns of these rows."""
        index = torch.tensor(rows, device=self.keys.device)

        def copy(tensor: Tensor) -> Tensor:
            layers, _, heads, _, dim = tensor.shape
            chosen = tensor[:, :, :, columns]
            new = tensor.new_zeros((layers, len(rows), heads, num_columns, dim))
            new[:, :, :, : chosen.shape[3]] = chosen.index_select(1, index)
            return new

        return KVBuffer(copy(self.keys), copy(self.values))

    def free(self) -> None:
        """Gives the memory back, whoever still refers to this buffer."""
        self.keys = self.keys.new_empty(0)
        self.values = self.values.new_empty(0)


class Epoch:
    """The time during which a generator's cached keys and values are valid: one generator, one policy version."""

    def __init__(self) -> None:
        self._buffers: weakref.WeakSet[KVBuffer] = weakref.WeakSet()

    def register(self, buffer: KVBuffer) -> None:
        """Remembers a buffer, without keeping it alive, so that `end` can free it."""
        self._buffers.add(buffer)

    def end(self) -> None:
        """Frees every buffer that is still referred to."""
        for buffer in list(self._buffers):
            buffer.free()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CachedContext:
    """Where the keys and values of a context lie. Opaque to callers, immutable, and free to be shared by branches.

    Token i of `token_ids` is in column `start + i` of row `row`. The last token of a completion was sampled
    and never fed to the model, so it is not part of `token_ids`.
    """

    epoch: Epoch
    policy_version: int
    token_ids: tuple[int, ...]
    buffer: KVBuffer
    row: int
    start: int

    def __repr__(self) -> str:
        return f"CachedContext({len(self.token_ids)} tokens, policy version {self.policy_version})"

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        # A stored or copied completion does not carry device memory along: its cache becomes None.
        return (type(None), ())

    def shared_length(self, token_ids: tuple[int, ...]) -> int:
        """How many tokens at the start of `token_ids` this context covers."""
        own = self.token_ids
        if token_ids[: len(own)] == own:
            return len(own)
        pairs = zip(own, token_ids, strict=False)
        return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(own), len(token_ids)))

    def columns(self, length: int) -> KVBuffer:
        """A view of the first `length` tokens, as a buffer of one row."""
        return self.buffer.part(slice(self.row, self.row + 1), slice(self.start, self.start + length))


class BatchCache(Cache):
    """The `past_key_values` of a forward pass: writes new columns into a `KVBuffer` and returns views of it.

    `column` is the first column that the next forward pass writes. It moves on only when `advance` is called,
    because every layer of a pass writes the same columns.
    """

    def __init__(self, buffer: KVBuffer, column: int) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(buffer.keys.shape[0])])
        self._keys = buffer.keys.unbind(0)
        self._values = buffer.values.unbind(0)
        self.column = column

    def advance(self, num_columns: int) -> None:
        """Counts the columns of the pass that just ended as past."""
        self.column += num_columns

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes [B, H, S, D] at the current column; returns all columns up to there, [B, H, column + S, D]."""
        end = self.column + key_states.shape[2]
        keys, values = self._keys[layer_idx][:, :, :end], self._values[layer_idx][:, :, :end]
        keys[:, :, self.column :] = key_states
        values[:, :, self.column :] = value_states
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.column

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.column + query_length, 0
