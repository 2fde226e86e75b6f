from __future__ import annotations

import pytest
import torch
from torch import nn

from firesteel.generators.linear import PACKED_NUMBERS, PACKED_ROWS, Linear


@pytest.mark.parametrize("biases", [(False, False), (True, True), (False, True)])
def test_layers_with_one_input_are_one_product(biases: tuple[bool, bool]) -> None:
    layers = [nn.Linear(6, size, bias=bias) for size, bias in zip((3, 5), biases, strict=True)]
    inputs = torch.randn(2, 7, 6)
    with torch.inference_mode():
        assert torch.allclose(Linear(layers)(inputs), torch.cat([each(inputs) for each in layers], -1), atol=1e-6)


@pytest.mark.parametrize("rows", [1, PACKED_ROWS.start, PACKED_ROWS.stop - 1, PACKED_ROWS.stop])
@pytest.mark.parametrize("bias", [False, True])
def test_large_weights_give_the_same_for_any_number_of_rows(rows: int, bias: bool) -> None:
    layer = nn.Linear(256, PACKED_NUMBERS // 256, bias=bias)
    inputs = torch.randn(rows, 1, 256)
    with torch.inference_mode():
        assert torch.allclose(Linear([layer])(inputs), layer(inputs), atol=1e-5)


@pytest.mark.parametrize("rows", [1, PACKED_ROWS.start, PACKED_ROWS.stop])
@pytest.mark.parametrize("biases", [(False, False), (False, True)])
def test_large_layers_with_one_input_lie_side_by_side(rows: int, biases: tuple[bool, bool]) -> None:
    sizes = (PACKED_NUMBERS // 256, 8)
    layers = [nn.Linear(256, size, bias=bias) for size, bias in zip(sizes, biases, strict=True)]
    inputs = torch.randn(1, rows, 256)
    with torch.inference_mode():
        wanted = torch.cat([each(inputs) for each in layers], -1)
        assert torch.allclose(Linear(layers)(inputs), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(8,), (2, 4), (2, 40)])
@pytest.mark.parametrize("size", [6, PACKED_NUMBERS // 256])
@pytest.mark.parametrize("bias", [False, True])
def test_added_is_the_sum(shape: tuple[int, ...], size: int, bias: bool) -> None:
    layer = nn.Linear(256, size, bias=bias)
    inputs, hidden = torch.randn(*shape, 256), torch.randn(*shape, size)
    with torch.inference_mode():
        assert torch.allclose(Linear([layer]).added(hidden, inputs), hidden + layer(inputs), atol=1e-5)


def test_half_precision_is_not_packed() -> None:
    layer = nn.Linear(256, PACKED_NUMBERS // 256, bias=False).bfloat16()
    inputs = torch.randn(8, 256).bfloat16()
    with torch.inference_mode():
        assert torch.equal(Linear([layer])(inputs), layer(inputs))
