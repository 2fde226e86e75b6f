"""Linear layers as the generator uses them: joined where they share an input, packed where that is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED_NUMBERS = 2**18
"""Weights with fewer numbers are not packed: the packed product costs some microseconds more to call."""

PACKED_ROWS = range(3, 65)
"""With so many rows oneDNN's product with a packed weight beats MKL's with a plain one (up to twice at 8 rows)."""


class Linear:
    """One or several linear layers with the same input as one product; their outputs lie side by side.

    On the CPU the weights are copies: packed, or joined and transposed, which MKL multiplies faster with few rows.
    Elsewhere the layers' own weights are used. Adapters are merged into the copies (`is_linear`).
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._parts = [(merged_weight(layer), layer.bias) for layer in layers]
        self._packed: Tensor | None = None
        self._weight: Tensor | None = None
        self._bias = _joined_bias(layers)
        joined = torch.cat([weight.detach() for weight, _ in self._parts])
        if joined.device.type != "cpu":
            if len(layers) == 1:
                self._weight = layers[0].weight
        elif joined.dtype != torch.float32:
            self._weight = joined
        elif _CAN_PACK and joined.numel() >= PACKED_NUMBERS:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(joined, PACKED_ROWS.start)
        else:
            self._weight = joined.t().contiguous().t()
        # A view, kept because taking it costs microseconds; half precision rounds before it adds, as the models do.
        self._transposed: Tensor | None = None
        if self._bias is None and joined.dtype == torch.float32:
            plain = self._parts[0][0] if self._packed is not None and len(layers) == 1 else self._weight
            self._transposed = None if plain is None else plain.detach().t()

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs [..., K] -> [..., N]."""
        if self._is_packed_for(inputs):
            return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self._bias, "none", [], "")
        if self._transposed is not None and inputs.ndim == 2:
            return torch.mm(inputs, self._transposed)
        if self._weight is not None:
            return F.linear(inputs, self._weight, self._bias)
        if len(self._parts) == 1:
            return F.linear(inputs, *self._parts[0])
        if self._packed is None:
            return torch.cat([F.linear(inputs, *part) for part in self._parts], dim=-1)
        return self._side_by_side(inputs)

    def added(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """hidden [..., N] plus the product."""
        if self._transposed is None or self._is_packed_for(inputs):
            return hidden + self(inputs)
        if hidden.ndim == 2:
            return torch.addmm(hidden, inputs, self._transposed)
        return self.added(hidden.flatten(0, -2), inputs.flatten(0, -2)).view(hidden.shape)

    def _is_packed_for(self, inputs: Tensor) -> bool:
        return self._packed is not None and inputs.numel() // inputs.shape[-1] in PACKED_ROWS

    def _side_by_side(self, inputs: Tensor) -> Tensor:
        """The products of all layers, each written where it belongs: copying them there takes half as long again."""
        outputs = inputs.new_empty((*inputs.shape[:-1], sum(len(weight) for weight, _ in self._parts)))
        rows, first = inputs.flatten(0, -2), 0
        for weight, bias in self._parts:
            place = outputs.flatten(0, -2).narrow(1, first, len(weight))
            torch.mm(rows, weight.t(), out=place)
            if bias is not None:
                place += bias
            first += len(weight)
        return outputs


def is_linear(layer: Any) -> bool:
    """Whether `Linear` computes what the layer does: a plain one, or in float32 on the CPU one with LoRA adapters.

    Elsewhere a merged copy of a large model would be dear, and half precision would round it.
    """
    if type(layer) is nn.Linear:
        return True
    if not _has_lora(layer):
        return False
    base = layer.base_layer
    weights = [base.weight, *(each.weight for part in (layer.lora_A, layer.lora_B) for each in part.values())]
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        return False
    is_changed = layer.lora_variant or any(layer.lora_bias.values()) or layer.merged or layer.disable_adapters
    return type(base) is nn.Linear and not is_changed and not layer.fan_in_fan_out


def adapters_of(layer: Any) -> tuple[tuple[str, float], ...]:
    """The adapters of a layer that count, with their scalings; none for a plain one."""
    if not _has_lora(layer):
        return ()
    return tuple((name, layer.scaling[name]) for name in layer.active_adapters if name in layer.lora_A)


def merged_weight(layer: Any) -> Tensor:
    """The weight of a layer for which `is_linear` holds, with its adapters added; W + sum of scaling * B A."""
    weight: Tensor = layer.base_layer.weight.detach() if _has_lora(layer) else layer.weight
    for name, scaling in adapters_of(layer):
        weight = torch.addmm(
            weight, layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach(), alpha=scaling
        )
    return weight


def _has_lora(layer: Any) -> bool:
    # By name: importing peft takes longer than all else here.
    return (type(layer).__module__, type(layer).__name__) == ("peft.tuners.lora.layer", "Linear")


def _joined_bias(layers: Sequence[Any]) -> Tensor | None:
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
