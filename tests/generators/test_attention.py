from __future__ import annotations

import pytest
import torch
from torch import Tensor

from firesteel.generators.attention import SharedPrefix, attend, attend_shared
from firesteel.generators.kv import KVBuffer

MIN = torch.finfo(torch.float32).min
SCALE = 0.3


def plain(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k' * scale + mask) v, as it is written."""
    scores = queries @ keys.transpose(-1, -2) * SCALE
    return (scores if mask is None else scores + mask).softmax(-1) @ values


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_log_sum_exp_by_hand() -> None:
    # Scores 0 and log 3: weights 1/4 and 3/4, and the sum of exponentials is 4.
    queries = torch.ones(1, 1, 1, 2)
    keys = torch.tensor([[0.0, 0.0], [torch.log(torch.tensor(3.0)) / SCALE, 0.0]]).view(1, 1, 2, 2)
    values = torch.tensor([[4.0, 0.0], [8.0, 1.0]]).view(1, 1, 2, 2)
    out, lse = attend(queries, keys, values, None, SCALE)
    assert out.flatten().tolist() == pytest.approx([7.0, 0.75])
    assert float(lse.exp()) == pytest.approx(4.0)


class OnAnotherDevice(Tensor):
    """A tensor on the CPU that says that it is not."""

    device = torch.device("meta")  # type: ignore[assignment]


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_cpu_kernel_and_the_plain_formula_agree(is_masked: bool) -> None:
    queries, keys, values = (random(3, 2, size, 8, seed=size) for size in (4, 9, 9))
    mask = torch.zeros(3, 1, 1, 9)
    mask[1, ..., :5] = MIN
    used = mask if is_masked else None
    fast, fast_lse = attend(queries, keys, values, used, SCALE)
    slow, slow_lse = attend(queries.as_subclass(OnAnotherDevice), keys, values, used, SCALE)
    assert torch.allclose(fast, plain(queries, keys, values, used), atol=1e-5)
    assert torch.allclose(fast, slow.as_subclass(Tensor), atol=1e-5)
    assert torch.allclose(fast_lse, slow_lse.as_subclass(Tensor), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_attention_to_shared_prefixes_equals_attention_to_copies_of_them(count: int) -> None:
    # Five rows with own columns of 6; rows 1 and 2 share a prefix of 4, rows 0 and 4 one of 7, row 3 none.
    queries, own = random(5, 2, count, 8, seed=1), [random(5, 2, 6, 8, seed=seed) for seed in (2, 3)]
    mask = torch.zeros(5, 1, 1, 6)
    mask[0, ..., :2] = mask[4, ..., :5] = MIN
    stored = [KVBuffer(random(2, 1, 2, size, 8, seed=size), random(2, 1, 2, size, 8, seed=9)) for size in (4, 7)]
    members = ([1, 2], [0, 4])
    prefixes = [SharedPrefix.of(each, rows) for each, rows in zip(stored, members, strict=True)]
    assert isinstance(prefixes[0].rows, slice) and isinstance(prefixes[1].rows, Tensor)
    out = attend_shared(queries, *own, mask, SCALE, prefixes, layer=1)
    for row in range(5):
        beginning = next((each for each, rows in zip(stored, members, strict=True) if row in rows), None)
        keys, values = (each[row : row + 1] for each in own)
        width = 0
        if beginning is not None:
            width = beginning.num_columns
            keys, values = torch.cat((beginning.keys[1], keys), 2), torch.cat((beginning.values[1], values), 2)
        whole = torch.cat((torch.zeros(1, 1, 1, width), mask[row : row + 1]), -1)
        assert torch.allclose(out[row : row + 1], plain(queries[row : row + 1], keys, values, whole), atol=1e-5)


def test_without_prefixes_it_is_plain_attention() -> None:
    queries, keys, values = (random(2, 2, size, 8, seed=size) for size in (1, 5, 5))
    assert torch.allclose(
        attend_shared(queries, keys, values, None, SCALE, [], 0), plain(queries, keys, values, None), atol=1e-5
    )
