"""Weights that change without `load_weights`: what was computed with the old ones is not used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, build, greedy, largest_difference, plain_logprobs, prompt, request, with_lora

from firesteel.generators.probes import Probes
from firesteel.generators.torch import TorchGenerator


def test_changed_weights_are_seen_however_they_were_changed() -> None:
    def fused_step(model: Any) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    def by_data(model: Any) -> None:
        model.model.layers[1].mlp.up_proj.weight.data.add_(0.1)

    def by_copy(model: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].self_attn.k_proj.weight[3, 4] += 1

    def by_replacement(model: Any) -> None:
        layer = model.model.layers[0].mlp
        layer.gate_proj = copy.deepcopy(layer.gate_proj)

    for change in (fused_step, by_data, by_copy, by_replacement):
        model = build()
        probes = Probes(model)
        assert probes.is_current(model)
        change(model)
        assert not probes.is_current(model)


def test_weights_that_change_between_calls_count() -> None:
    model: Any = build()
    generator = TorchGenerator(model, end_token_ids=(VOCABULARY,))
    generator.generate([request(prompt(6), 0, 10)])
    model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    (completion,) = generator.generate([request(prompt(6), 0, 10)])
    assert largest_difference(completion.logprobs, plain_logprobs(model, prompt(6), completion)) < 1e-5


def train(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = torch.tensor([prompt(20)])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def disable(model: Any) -> None:
    model.base_model.disable_adapter_layers()


@pytest.mark.parametrize(
    ("family", "change"), [("llama", train), ("gpt_neox", train), ("llama", disable), ("gpt_neox", disable)]
)
def test_keys_and_values_of_changed_weights_are_not_used(family: str, change: Callable[[Any], None]) -> None:
    model: Any = build(family)
    if change is disable:
        targets = ["q_proj", "v_proj"] if family == "llama" else ["query_key_value"]
        model = with_lora(model, target_modules=targets)
    generator = TorchGenerator(model, end_token_ids=(VOCABULARY,))
    (first,) = generator.generate([greedy(prompt(30), 6)])
    change(model)
    ids = [*prompt(30), *first.token_ids, 9]
    (completion,) = generator.generate([greedy(ids, 6, cache=first.cache)])
    assert largest_difference(completion.logprobs, plain_logprobs(model, ids, completion)) < 1e-4
    assert generator.stats["reused_tokens"] == 0


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_caches_of_unchanged_weights_are_kept(family: str) -> None:
    generator = TorchGenerator(build(family), end_token_ids=(VOCABULARY,))
    (first,) = generator.generate([greedy(prompt(30), 6)])
    generator.generate([greedy([*prompt(30), *first.token_ids, 9], 6, cache=first.cache)])
    assert generator.stats["reused_tokens"] == 35


def test_weights_without_memory_of_their_own_have_no_numbers() -> None:
    model = torch.nn.Linear(4, 4, device="meta", dtype=torch.bfloat16)
    assert Probes(model).is_current(model)


def test_a_transposed_parameter_and_nan_are_compared() -> None:
    model = torch.nn.Linear(3, 5)
    model.weight = torch.nn.Parameter(torch.full((3, 5), torch.nan).t())
    probes = Probes(model)
    assert probes.is_current(model)
    model.weight.data[0, 0] = 1.0
    assert not probes.is_current(model)
