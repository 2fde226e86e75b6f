"""Keys and values within a budget of memory: what cannot fit is named, what is evicted comes back the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_torch_generator import NEVER, assert_same
from tiny_models import build, prompt, request

from firesteel.errors import ConfigError
from firesteel.generators.kv import Arena, KVBuffer
from firesteel.generators.torch import CACHE_PARTS, TorchGenerator


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build()


@pytest.fixture
def generator(model: torch.nn.Module) -> TorchGenerator:
    """Never stops by itself, so that lengths are known."""
    return TorchGenerator(model, end_token_ids=NEVER)


def test_a_request_that_cannot_fit_is_named(model: torch.nn.Module) -> None:
    # 2 layers, 2 heads, 8 dimensions, keys and values in float32: 256 bytes a token.
    generator = TorchGenerator(model, end_token_ids=NEVER, max_cache_bytes=CACHE_PARTS * 256 * 20)
    with pytest.raises(ConfigError, match=r"request 1: 15 context tokens and max_new_tokens 6 need 21504 bytes"):
        generator.generate([request(prompt(3), 0, 2), request(prompt(15), 0, 6)])
    assert len(generator.generate([request(prompt(14), 0, 6)])[0].token_ids) == 6


def test_little_memory_changes_no_token(model: torch.nn.Module, generator: TorchGenerator) -> None:
    tight = TorchGenerator(model, end_token_ids=NEVER, max_cache_bytes=CACHE_PARTS * 256 * 90)
    contexts = [prompt(10 + row, row) for row in range(6)]
    caches: dict[TorchGenerator, list[Any]] = {tight: [None] * 6, generator: [None] * 6}
    for turn in range(4):
        results = {}
        for owner, kept in caches.items():
            requests = [request(ids, turn, 5, cache=kept[row]) for row, ids in enumerate(contexts)]
            results[owner] = owner.generate(requests)
            caches[owner] = [each.cache for each in results[owner]]
            if owner is tight:
                assert owner._store.num_bytes <= 256 * 90
        assert_same(results[tight], results[generator])
        contexts = [[*ids, *done.token_ids, 3] for ids, done in zip(contexts, results[tight], strict=True)]
    # Six contexts of up to 33 tokens are more than 90: some were dropped and computed again.
    assert tight.stats["evicted_tokens"] > 0 and generator.stats["evicted_tokens"] == 0
    assert tight.stats["prefilled_tokens"] > generator.stats["prefilled_tokens"]
    # At most two rows of 33 and 5 fit into a part: the batch was smaller.
    assert tight.stats["steps"] > generator.stats["steps"]


@pytest.fixture
def held_bytes() -> Iterator[Callable[[], int]]:
    """What all keys and values that are referred to take, while nothing collects garbage."""

    def measure() -> int:
        tensors: list[torch.Tensor] = []
        for each in gc.get_objects():
            if type(each) is KVBuffer:
                tensors += (each.keys, each.values)
            elif type(each) is Arena:
                tensors.append(each._memory)
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    gc.collect()
    gc.disable()
    yield measure
    gc.enable()


@pytest.mark.parametrize(("cells", "max_batch"), [(200, 2), (600, 16), (600, 4), (2000, 4)])
def test_the_budget_bounds_what_is_held_at_any_time(
    cells: int, max_batch: int, held_bytes: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = CACHE_PARTS * 256 * cells
    before = held_bytes()
    tight = TorchGenerator(
        build(max_position_embeddings=4096), end_token_ids=NEVER, max_batch=max_batch, max_cache_bytes=budget
    )
    seen = []
    take = Arena.take

    def watched(arena: Arena, num_rows: int, num_columns: int) -> KVBuffer:
        buffer = take(arena, num_rows, num_columns)
        seen.append(held_bytes() - before)
        return buffer

    monkeypatch.setattr(Arena, "take", watched)
    shared = prompt(cells // 3)
    contexts = [[*shared, *prompt(3 + 7 * row % (cells // 4), row)] for row in range(8)]
    caches: list[Any] = [None] * 8
    for turn in range(4):
        done = tight.generate(
            [request(ids, turn, 1 + 5 * row % 19, cache=caches[row]) for row, ids in enumerate(contexts)]
        )
        caches = [each.cache for each in done]
        contexts = [[*ids, *each.token_ids, 3] for ids, each in zip(contexts, done, strict=True)]
        # Branches.
        contexts[:4], caches[:4] = [contexts[0]] * 4, [caches[0]] * 4
        seen.append(held_bytes() - before)
    assert max(seen) <= budget
    assert max(seen) > budget / 3
    assert tight.stats["evicted_tokens"] > 0
