"""Attention over a `Layout` for stock Hugging Face models, through their registered attention function.

On the CPU (`grouped`), each chain attends to itself causally, in strips of queries so that few scores behind the
diagonal are computed, and each part is one dense product between two contiguous ranges of slots; the partial results
of a slot are merged by their log-sum-exp. Nothing is gathered or copied per leaf. The backward pass hands every piece
the merged output and log-sum-exp: with P = exp(S - lse) the gradient of attention is a sum over keys, so the pieces add
up exactly. On CUDA (`flex`), FlexAttention gets a block
mask from the rule that slot i sees slot j if j <= i < subtree_end[j]. `dense` is that rule as a mask: the reference for
tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from firesteel.errors import ModelError
from firesteel.generators.support import decoder_config, inner_model
from firesteel.layout import Layout

NAME = "firesteel_tree"
"""The attention implementation's name in transformers."""

STRIP = 128
"""Most queries of one causal piece. The CPU's kernel computes the scores of 512 keys at a time, those behind the
diagonal too."""

FLEX_MULTIPLE = 128
"""Streams on CUDA are padded to a multiple of this, so that few lengths are compiled."""

POSITION_LIMITED_ROPES = ("dynamic", "longrope")
"""Rotary embeddings that turn every position by the length of the longest row in the same pass."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Piece(NamedTuple):
    """Query slots and the key slots that they see, but for what `mask` adds -inf to."""

    rows: slice
    columns: slice
    mask: Tensor | None = None


class TreeStream:
    """A layout on a device, as it goes through a model: token ids and positions [1, S], and masks where they are used.

    `kernel` is a key of `KERNELS`; None takes `flex` on CUDA and `grouped` elsewhere.
    """

    def __init__(self, layout: Layout, device: torch.device, kernel: str | None = None) -> None:
        self.kernel = kernel or ("flex" if device.type == "cuda" else "grouped")
        self.layout = layout.padded(FLEX_MULTIPLE) if self.kernel == "flex" else layout
        self.device = device
        self.token_ids = torch.from_numpy(self.layout.token_ids_S).to(device)[None]
        self.positions = torch.from_numpy(self.layout.positions_S).to(device)[None]
        self._mask: Any = None
        self._strips: list[Piece] = []
        self._parts = [Piece(slice(part[0], part[1]), slice(part[2], part[3])) for part in self.layout.parts]

    def __deepcopy__(self, memo: dict[int, Any]) -> TreeStream:
        return self

    def pieces(self, repeats: int, dtype: torch.dtype) -> tuple[list[Piece], list[Piece]]:
        """Chains in strips of at most `STRIP` queries, about equally many, which hold every slot once; and the parts.

        Each slot has `repeats` rows in a mask. All layers of a model ask for the same.
        """
        if not self._strips:
            longest = max(STRIP, *(end - start for start, end in self.layout.chains))
            # the last row sees every column, and each above it one less: the lower right corner serves every strip
            mask = torch.full((STRIP, longest), -torch.inf, dtype=dtype, device=self.device).triu(longest - STRIP + 1)
            mask = mask.repeat_interleave(repeats, dim=0)
            for start, end in self.layout.chains:
                count = -(-(end - start) // STRIP)
                bounds = [start + (end - start) * place // count for place in range(count + 1)]
                for first, last in pairwise(bounds):
                    corner = mask[(first - last) * repeats :, start - last :]
                    self._strips.append(Piece(slice(first, last), slice(start, last), corner[None, None]))
        return self._strips, self._parts

    def dense_mask(self) -> Tensor:
        """Which slot (row) sees which (column), bool [S, S]."""
        if self._mask is None:
            ends_S = torch.from_numpy(self.layout.subtree_end_S).to(self.device)
            slots_S = torch.arange(len(ends_S), device=self.device)
            self._mask = (slots_S[None] <= slots_S[:, None]) & (slots_S[:, None] < ends_S[None])
        return self._mask

    def block_mask(self) -> Any:
        """The same for FlexAttention."""
        if self._mask is None:
            from torch.nn.attention.flex_attention import create_block_mask

            ends_S = torch.from_numpy(self.layout.subtree_end_S).to(self.device)

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                del batch, head
                return (key <= query) & (query < ends_S[key])

            size = len(self.layout)
            self._mask = create_block_mask(sees, None, None, size, size, device=self.device)
        return self._mask


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree_stream: TreeStream | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function: query [1, H, S, d], key and value [1, K, S, d], K dividing H; returns [1, S, H, d].

    Raises:
        ModelError: the model does not hand on the stream, or asks for what this attention does not do.
    """
    del attention_mask
    name = type(module).__name__
    if tree_stream is None:
        raise ModelError(f"{name} does not hand the keyword arguments of the model's forward pass to its attention")
    asked = sorted(key for key in ("sliding_window", "softcap", "s_aux", "position_bias") if options.get(key))
    asked += ["dropout"] if dropout else []
    if asked:
        raise ModelError(f"{name} asks its attention for {', '.join(asked)}, which a packed tree does not have")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return KERNELS[tree_stream.kernel](query, key, value, scale, tree_stream), None


def dense(query: Tensor, key: Tensor, value: Tensor, scale: float, stream: TreeStream) -> Tensor:
    """Attention under a dense mask: S * S scores a head. For tests only."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(-1, -2)) * scale
    weights = scores.masked_fill(~stream.dense_mask(), -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous()


def flex(query: Tensor, key: Tensor, value: Tensor, scale: float, stream: TreeStream) -> Tensor:
    """FlexAttention with a block mask; compiled on CUDA."""
    attend = _flex_attention(query.is_cuda)
    result = attend(query, key, value, block_mask=stream.block_mask(), scale=scale, enable_gqa=True)
    return result.transpose(1, 2).contiguous()


@lru_cache(maxsize=2)
def _flex_attention(is_compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    plain: Callable[..., Tensor] = flex_attention
    return torch.compile(plain, dynamic=True) if is_compiled else plain


def grouped(query: Tensor, key: Tensor, value: Tensor, scale: float, stream: TreeStream) -> Tensor:
    """Chains and parts by the CPU's flash kernel, merged."""
    if query.shape[-1] != value.shape[-1]:
        raise ModelError(
            f"keys of width {query.shape[-1]} and values of width {value.shape[-1]} do not go through the CPU's kernel"
        )
    result: Tensor = _Grouped.apply(query, key, value, scale, stream)
    return result


class _Grouped(torch.autograd.Function):
    """Queries of a slot that share keys are rows below each other, [K, 1, S * H / K, d].

    So keys and values are read once for all of them, and their gradients come summed.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, stream: TreeStream) -> Tensor:
        repeats = query.shape[1] // key.shape[1]
        q, k, v = _folded(query, key.shape[1]), key[0].unsqueeze(1), value[0].unsqueeze(1)
        # merging in less than single precision would round once per part
        exact = torch.promote_types(query.dtype, torch.float32)
        out, lse = torch.empty_like(q, dtype=exact), q.new_empty(q.shape[:-1], dtype=exact)
        strips, parts = stream.pieces(repeats, query.dtype)
        for piece in strips:
            rows = _rows(piece, repeats)
            out[:, :, rows], lse[:, :, rows] = _attend(piece, q[:, :, rows], k, v, scale)
        for piece in parts:
            rows = _rows(piece, repeats)
            _merge(out[:, :, rows], lse[:, :, rows], *_attend(piece, q[:, :, rows], k, v, scale))
        result = _unfolded(out.to(query.dtype), repeats).transpose(1, 2).contiguous()
        ctx.save_for_backward(q, k, v, result, lse)
        ctx.scale, ctx.stream = scale, stream
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, result, lse = ctx.saved_tensors
        out, grad = (_folded(each.transpose(1, 2), len(k)) for each in (result, gradients[0]))
        repeats = q.shape[2] // k.shape[2]
        to_q, to_k, to_v = (torch.zeros_like(each, dtype=lse.dtype) for each in (q, k, v))
        for pieces in ctx.stream.pieces(repeats, q.dtype):
            for piece in pieces:
                rows, columns = _rows(piece, repeats), piece.columns
                from_q, from_k, from_v = _backward(
                    grad[:, :, rows], q[:, :, rows], k[:, :, columns], v[:, :, columns], out[:, :, rows],
                    lse[:, :, rows], 0.0, False, attn_mask=piece.mask, scale=ctx.scale,
                )  # fmt: skip
                to_q[:, :, rows] += from_q
                to_k[:, :, columns] += from_k
                to_v[:, :, columns] += from_v
        to_q, to_k, to_v = (each.to(q.dtype) for each in (to_q, to_k, to_v))
        return _unfolded(to_q, repeats), to_k.transpose(0, 1), to_v.transpose(0, 1), None, None


def _folded(query: Tensor, groups: int) -> Tensor:
    """From [1, H, S, d] to [K, 1, S * H / K, d]."""
    return query[0].unflatten(0, (groups, -1)).transpose(1, 2).flatten(1, 2).unsqueeze(1)


def _unfolded(rows: Tensor, repeats: int) -> Tensor:
    """And back."""
    return rows[:, 0].unflatten(1, (-1, repeats)).transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _rows(piece: Piece, repeats: int) -> slice:
    return slice(piece.rows.start * repeats, piece.rows.stop * repeats)


def _attend(piece: Piece, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The output and log-sum-exp of one piece."""
    k, v = k[:, :, piece.columns], v[:, :, piece.columns]
    out, lse = _forward(q, k, v, 0.0, False, attn_mask=piece.mask, scale=scale)
    return out, lse


def _merge(out: Tensor, lse: Tensor, seen: Tensor, seen_lse: Tensor) -> None:
    """Takes further keys into a softmax, in place: their weight is exp(seen_lse - the common lse)."""
    out.lerp_(seen.to(out.dtype), (seen_lse - lse).sigmoid_().unsqueeze(-1))
    torch.logaddexp(lse, seen_lse, out=lse)


Kernel = Callable[[Tensor, Tensor, Tensor, float, TreeStream], Tensor]

KERNELS: dict[str, Kernel] = {"grouped": grouped, "flex": flex, "dense": dense}

AttentionInterface.register(NAME, tree_attention)


@contextmanager
def tree_attention_active(model: nn.Module) -> Iterator[None]:
    """The model attends by `tree_attention` inside. The backward pass belongs inside too: it may recompute."""
    config = decoder_config(inner_model(model))
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout")
"""Config fields of models that drop attention weights in training."""


def reason_against_packing(model: nn.Module) -> str:
    """Why the model's attention cannot run over a packed tree; "" where nothing speaks against it."""
    inner = inner_model(model)
    config = decoder_config(inner)
    window = getattr(config, "sliding_window", None)
    layer_types = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if getattr(inner, "_is_stateful", False):
        return "it keeps a recurrent state (state-space or linear attention), which runs through a row from end to end"
    if layer_types:
        return f"it has layers of type {', '.join(layer_types)}"
    if window is not None and getattr(config, "use_sliding_window", True):
        return f"it attends to a sliding window of {window} tokens"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps attention scores (attn_logit_softcapping)"
    for name in DROPOUTS:
        if getattr(config, name, 0.0):
            return f"it drops attention weights in training ({name} = {getattr(config, name)})"
    if rope.get("rope_type") in POSITION_LIMITED_ROPES:
        return f"its rotary embedding ({rope['rope_type']}) depends on the longest row of a pass"
    if not getattr(inner, "_supports_attention_backend", False):
        return "its attention does not go through transformers' attention interface"
    return ""
