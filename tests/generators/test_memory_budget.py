"""Keys and values within a budget of memory: what cannot fit is named, what is evicted comes back the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_torch_generator import NEVER, assert_same
from tiny_models import build, prompt, request

from firesteel.errors import ConfigError
from firesteel.generators.torch import TorchGenerator


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build()


@pytest.fixture
def generator(model: torch.nn.Module) -> TorchGenerator:
    """Never stops by itself, so that lengths are known."""
    return TorchGenerator(model, end_token_ids=NEVER)


def test_a_request_that_cannot_fit_is_named(model: torch.nn.Module) -> None:
    # 2 layers, 2 heads, 8 dimensions, keys and values in float32: 256 bytes a token.
    generator = TorchGenerator(model, end_token_ids=NEVER, max_cache_bytes=3 * 256 * 20)
    with pytest.raises(ConfigError, match=r"request 1: 15 context tokens and max_new_tokens 6 need 16128 bytes"):
        generator.generate([request(prompt(3), 0, 2), request(prompt(15), 0, 6)])
    assert len(generator.generate([request(prompt(14), 0, 6)])[0].token_ids) == 6


def test_little_memory_changes_no_token(model: torch.nn.Module, generator: TorchGenerator) -> None:
    tight = TorchGenerator(model, end_token_ids=NEVER, max_cache_bytes=3 * 256 * 90)
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
    # At most two rows of 33 and 5 fit into a third: the batch was smaller.
    assert tight.stats["steps"] > generator.stats["steps"]
