"""Requests that fill the model's context to its last position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import END, VOCABULARY, build, greedy, largest_difference, plain_logprobs, prompt
from transformers import GPT2Config, GPT2LMHeadModel

from firesteel.generators.torch import TorchGenerator

LIMIT = 128
ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 32,
    },
}


def learned_positions() -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LIMIT, "initializer_range": 0.3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, eos_token_id=END, **sizes)).eval()


def test_a_learned_table_of_positions_is_not_left_by_rows_that_have_ended() -> None:
    model = learned_positions()
    generator = TorchGenerator(model, end_token_ids=())
    # The first row ends, at the last position, while the second one goes on.
    requests = [greedy(prompt(100), 28), greedy(prompt(70, 1), 58), greedy(prompt(LIMIT - 1, 2), 1)]
    for wanted, completion in zip(requests, generator.generate(requests), strict=True):
        assert len(completion.token_ids) == wanted.sampling.max_new_tokens
        exact = plain_logprobs(model, wanted.token_ids, completion)
        assert largest_difference(completion.logprobs, exact) < 1e-4


@pytest.mark.parametrize("rope", ROPES)
def test_rotations_that_depend_on_the_length_stay_those_of_the_model(rope: str) -> None:
    parameters = {"rope_theta": 1e4, **ROPES[rope]}
    model, untouched = (build(rope_parameters=parameters) for _ in range(2))
    generator = TorchGenerator(model, end_token_ids=())
    frequencies = model.model.rotary_emb.inv_freq.clone()  # type: ignore[union-attr, operator]
    wanted = greedy(prompt(20), generator.max_context - 20)
    (completion,) = generator.generate([wanted])
    assert generator._network.is_sharing
    assert len(completion.token_ids) == generator.max_context - 20 >= 12
    assert torch.equal(frequencies, model.model.rotary_emb.inv_freq)  # type: ignore[arg-type, union-attr]
    exact = plain_logprobs(untouched, wanted.token_ids, completion)
    assert largest_difference(completion.logprobs, exact) < 1e-5
