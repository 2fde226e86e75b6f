from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, build, largest_difference, plain_logprobs, prompt, request, with_lora

from firesteel.generators.kv import BatchCache, KVBuffer
from firesteel.generators.llama_step import LlamaStep, is_stock
from firesteel.generators.network import Network
from firesteel.generators.torch import TorchGenerator

STOCK = ("llama", "qwen2", "qwen3")


def uneven(family: str, **sizes: Any) -> torch.nn.Module:
    """A model in which no weight is a plain one or zero, so that none can be left out unseen."""
    model = build(family, **sizes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    ("family", "sizes", "dtype", "tolerance"),
    [
        *((family, {}, torch.float32, 1e-5) for family in STOCK),
        ("llama", {"attention_bias": True, "mlp_bias": True}, torch.float32, 1e-5),
        ("qwen3", {"tie_word_embeddings": True, "rms_norm_eps": 0.1}, torch.float32, 1e-5),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
            torch.float32,
            1e-5,
        ),
        # bfloat16 keeps 8 bits: two roundings of a logit of about 10.
        *((family, {}, torch.bfloat16, 0.1) for family in STOCK),
    ],
)
def test_the_step_equals_the_models_forward(
    family: str, sizes: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    model = uneven(family, **sizes).to(dtype)
    network = Network(model)
    numbers = torch.Generator().manual_seed(6)
    # Three rows of 20, 17 and 5 columns; the last column is new.
    starts = torch.tensor([0, 3, 15])
    tokens = torch.tensor([[4], [30], [17]])
    mask = torch.where(torch.arange(20) >= starts[:, None], 0.0, torch.finfo(dtype).min).to(dtype)[:, None, None]
    results, buffers = [], []
    with network.borrowed():
        past = KVBuffer.zeros(network.shape, 3, 25)
        past.keys[:, :, :, :19].normal_(generator=numbers)
        past.values[:, :, :, :19].normal_(generator=numbers)
        for forward in (network.forward, LlamaStep(model, 25)):
            buffer = KVBuffer(past.keys.clone(), past.values.clone())
            results.append(forward(tokens, 19 - starts[:, None], mask, BatchCache(buffer, 19)))
            buffers.append(buffer)
        assert type(network.decoding_forward(25)) is LlamaStep
    assert float((results[0] - results[1]).abs().max()) <= tolerance
    assert float((buffers[0].keys - buffers[1].keys).abs().max()) <= tolerance
    assert float((buffers[0].values - buffers[1].values).abs().max()) <= tolerance
    assert float(buffers[1].keys[:, :, :, 19].abs().min()) > 0
    assert float(results[0].std()) > 0.3


@pytest.mark.parametrize("family", ["gpt_neox", "gemma", "phi"])
def test_other_families_are_not_stock(family: str) -> None:
    assert not is_stock(build(family))


def test_adapters_hooks_and_patches_are_not_stock() -> None:
    assert is_stock(build())
    assert not is_stock(with_lora(build()).get_base_model())
    assert not is_stock(build(hidden_act="gelu"))
    changed: Any = build()
    changed.__class__ = type("Changed", (type(changed),), {})
    assert not is_stock(changed)
    hooked: Any = build()
    hooked.model.layers[1].mlp.register_forward_hook(lambda *arguments: None)
    assert not is_stock(hooked)
    patched: Any = build()
    patched.lm_head.forward = patched.lm_head.forward
    assert not is_stock(patched)


def test_adapters_that_come_after_the_generator_count() -> None:
    model = build()
    generator = TorchGenerator(model, end_token_ids=(VOCABULARY,))
    adapted = with_lora(model)
    (completion,) = generator.generate([request(prompt(6), 0, 10)])
    assert largest_difference(completion.logprobs, plain_logprobs(adapted, prompt(6), completion)) < 1e-5


def test_a_step_that_differs_from_the_model_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = LlamaStep._rotate
    monkeypatch.setattr(LlamaStep, "_rotate", lambda self, heads, cos, sin: rotate(self, heads, cos, -sin))
    model = build()
    network = Network(model)
    with network.borrowed():
        assert network.decoding_forward(10) == network.forward
    (completion,) = TorchGenerator(model, end_token_ids=(VOCABULARY,)).generate([request(prompt(6), 0, 10)])
    assert largest_difference(completion.logprobs, plain_logprobs(model, prompt(6), completion)) < 1e-5
