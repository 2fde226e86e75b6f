"""Linear layers as the generator uses them: joined where they share an input, packed where that is faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED_NUMBERS = 2**18
"""Weights with fewer numbers are not packed: the packed product costs some microseconds more to call."""

PACKED_ROWS = range(3, 65)
"""With so many rows oneDNN's product with a packed weight beats MKL's with a plain one (up to twice at 8 rows)."""


class Linear:
    """One or several `nn.Linear` with the same input as one product; their outputs lie side by side.

    On the CPU the weights are copies: packed, or joined and transposed, which MKL multiplies faster with few rows.
    Elsewhere the layers' own weights are used.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._parts = [(layer.weight, layer.bias) for layer in layers]
        self._packed: Tensor | None = None
        self._weight: Tensor | None = None
        self._bias = _joined_bias(layers)
        joined = torch.cat([layer.weight.detach() for layer in layers])
        if joined.device.type != "cpu":
            if len(layers) == 1:
                self._weight = layers[0].weight
        elif joined.dtype != torch.float32:
            self._weight = joined
        elif _CAN_PACK and joined.numel() >= PACKED_NUMBERS:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(joined, PACKED_ROWS.start)
        else:
            self._weight = joined.t().contiguous().t()
        self._can_add = self._weight is not None and self._bias is None and joined.dtype == torch.float32

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [..., N]."""
        if self._weight is not None:
            return F.linear(inputs, self._weight, self._bias)
        if self._packed is not None and inputs.numel() // inputs.shape[-1] in PACKED_ROWS:
            return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self._bias, "none", [], "")
        outputs = [F.linear(inputs, *part) for part in self._parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def added(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """hidden [..., N] plus the product."""
        if self._can_add and self._weight is not None and hidden.ndim == 2:
            return torch.addmm(hidden, inputs, self._weight.t())
        # Half precision rounds the product before the sum, as the models do.
        return hidden + self(inputs)


def _joined_bias(layers: Sequence[nn.Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers]
    )


def _has_packed_linear() -> bool:
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in names)


_CAN_PACK = _has_packed_linear()
