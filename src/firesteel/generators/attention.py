"""Attention of a batch whose rows share prefixes: the prefix once for all its rows, merged by log-sum-exp.

softmax over two ranges of keys is a weighted mean of the softmax over each, with weights exp(lse) of each range. So
all queries of a group attend to their shared prefix in one product, its keys and values being read once, and each row
attends to its own columns.

Letters: `B` rows, `H` key/value heads, `Q` queries a row and head, `C` columns, `D` head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from firesteel.generators.kv import KVBuffer

_flash_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """What some rows of a batch have in common: keys and values [1, H, P, D] of their first P tokens, layer by layer.

    `rows` are their places in the batch: a slice where they are neighbours, else [K] indices.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rows: slice | Tensor

    @classmethod
    def of(cls, stored: KVBuffer, rows: Sequence[int]) -> SharedPrefix:
        """A prefix for these rows, in ascending order."""
        first, end = rows[0], rows[-1] + 1
        is_range = end - first == len(rows)
        places = slice(first, end) if is_range else torch.tensor(rows, device=stored.keys.device)
        return cls(stored.keys.unbind(0), stored.values.unbind(0), places)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The attention output [B, H, Q, D] and the log-sum-exp of its scores, float32 [B, H, Q].

    Args:
        queries: [B, H, Q, D].
        keys: [B, H, C, D].
        values: [B, H, C, D].
        mask: Added to the scores, broadcast to [B, H, Q, C]; every query sees at least one column.
        scale: Multiplies the scores.
    """
    if queries.device.type == "cpu":
        out, lse = _flash_on_cpu(queries, keys, values, 0.0, False, attn_mask=mask, scale=scale)
        return out, lse
    scores = (queries @ keys.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse


def attend_shared(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    prefixes: Sequence[SharedPrefix],
    layer: int,
) -> Tensor:
    """Attention to the rows' own columns, as `attend`, and to the prefixes that some of them share: [B, H, Q, D]."""
    if not prefixes:
        return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    out, own_lse = attend(queries, keys, values, mask, scale)
    for prefix in prefixes:
        rows = prefix.rows
        part = queries[rows].transpose(0, 1)
        heads, members, count, _ = part.shape
        shared = part.reshape(1, heads, members * count, -1)
        mixed, lse = attend(shared, prefix.keys[layer], prefix.values[layer], None, scale)
        weights = torch.sigmoid(lse.view(heads, members, count).transpose(0, 1) - own_lse[rows])[..., None]
        mixed = mixed.reshape(heads, members, count, -1).transpose(0, 1)
        if isinstance(rows, slice) and out.dtype == torch.float32:
            out[rows].lerp_(mixed, weights)
        else:
            # In half precision the sum of two ranges is rounded once, as the whole range's is.
            out[rows] = torch.lerp(out[rows].float(), mixed.float(), weights).to(out.dtype)
    return out
