from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, build, largest_difference, plain_logprobs, prompt, request, with_lora

from firesteel.generators.attention import SharedPrefix
from firesteel.generators.kv import BatchCache, KVBuffer
from firesteel.generators.llama import LlamaForward, is_stock
from firesteel.generators.network import Network
from firesteel.generators.prefill import block_inputs
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
def test_the_pass_equals_the_models_own(
    family: str, sizes: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    model = uneven(family, **sizes).to(dtype)
    network = Network(model)
    fast = LlamaForward(model)
    fast.prepare(25)
    numbers = torch.Generator().manual_seed(6)
    past = KVBuffer.zeros(network.shape, 3, 25)
    past.keys[:, :, :, :19].normal_(generator=numbers)
    past.values[:, :, :, :19].normal_(generator=numbers)
    # Three rows of 20, 17 and 5 columns, of which the last, then the last four, are new; then three new rows.
    contexts = [tuple(range(1, 1 + length)) for length in (20, 17, 5)]
    cases = [(contexts, 1), (contexts, 4), ([ids[:5] for ids in contexts], 5)]
    for rows, num_new in cases:
        inputs = block_inputs(rows, num_new, dtype, network.device)
        width = max(map(len, rows))
        results, buffers = [], []
        with network.borrowed():
            for forward in (network.forward, fast):
                buffer = KVBuffer(past.keys.clone(), past.values.clone())
                cache = BatchCache(buffer, width - num_new)
                results.append(forward(inputs.tokens, inputs.positions, inputs.mask, cache))
                buffers.append(buffer)
        assert float((results[0] - results[1]).abs().max()) <= tolerance
        assert float((buffers[0].keys - buffers[1].keys).abs().max()) <= tolerance
        assert float((buffers[0].values - buffers[1].values).abs().max()) <= tolerance
        assert float(buffers[1].keys[:, :, :, width - 1].abs().min()) > 0
        assert float(results[0].std()) > 0.3


def shared_and_whole(model: torch.nn.Module, num_new: int, is_ragged: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits behind three contexts with a common prefix: from one copy of it by the fast pass, and by the model itself.

    Everything but the new columns is computed by the model; the keys that the fast pass wrote are compared here.
    """
    network = Network(model)
    dtype = network.shape.dtype
    fast = LlamaForward(model)
    fast.prepare(30)
    prefix = (5, 6, 7, 8, 9, 10, 11)
    ends = [(1, 2, 3), (4, 5) if is_ragged else (4, 5, 6), (7, 8, 9)]
    buffer, own = KVBuffer.zeros(network.shape, 3, 10), KVBuffer.zeros(network.shape, 3, 3)
    with network.borrowed():
        inputs = block_inputs([(*prefix, *end) for end in ends], 10, dtype, network.device)
        wanted = network.forward(inputs.tokens, inputs.positions, inputs.mask, BatchCache(buffer, 0))
        own.write(buffer.part(slice(None), slice(7, 10)))
        stored = KVBuffer(buffer.keys[:, :1, :, :7].clone(), buffer.values[:, :1, :, :7].clone())
        known = own.keys.clone()
        own.part(slice(None), slice(3 - num_new, 3)).clear()
        inputs = block_inputs(ends, num_new, dtype, network.device, [7] * 3)
        groups = [SharedPrefix.of(stored, [0, 1, 2])]
        got = fast(inputs.tokens, inputs.positions, inputs.mask, BatchCache(own, 3 - num_new), groups)
    real = slice(1, None) if is_ragged else slice(None)
    assert float((own.keys - known)[:, :, :, real].abs().max()) <= (1e-5 if dtype == torch.float32 else 0.1)
    return got.float(), wanted.float()


@pytest.mark.parametrize("family", STOCK)
@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("is_ragged", [False, True])
def test_a_shared_prefix_equals_a_copy_in_every_row(family: str, num_new: int, is_ragged: bool) -> None:
    got, wanted = shared_and_whole(uneven(family), num_new, is_ragged)
    assert float((got - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("num_new", [1, 3])
def test_a_shared_prefix_in_half_precision_is_as_exact_as_the_model(num_new: int) -> None:
    exact = shared_and_whole(uneven("llama").bfloat16().float(), num_new, True)[1]
    got, own = shared_and_whole(uneven("llama").bfloat16(), num_new, True)
    # Root mean squares over 120 logits: single ones scatter.
    assert float((got - exact).square().mean().sqrt()) < 1.5 * float((own - exact).square().mean().sqrt())


@pytest.mark.parametrize("family", ["gpt_neox", "gemma", "phi"])
def test_other_families_are_not_stock(family: str) -> None:
    assert not is_stock(build(family))


def test_hooks_and_patches_are_not_stock() -> None:
    assert is_stock(build())
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


def adapted(**settings: Any) -> Any:
    """A PEFT model whose adapters do something."""
    model = with_lora(uneven("qwen2"), **settings)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def test_adapters_are_merged_into_the_fast_pass() -> None:
    model = adapted()
    network = Network(model)
    network.refresh()
    assert network.is_sharing
    (completion,) = TorchGenerator(model, end_token_ids=(VOCABULARY,)).generate([request(prompt(6), 0, 10)])
    exact = plain_logprobs(model, prompt(6), completion)
    assert largest_difference(completion.logprobs, exact) < 1e-5
    with model.disable_adapter():
        assert largest_difference(plain_logprobs(model, prompt(6), completion), exact) > 0.01


def test_adapters_that_change_between_calls_count() -> None:
    model = adapted()
    generator = TorchGenerator(model, end_token_ids=(VOCABULARY,))
    generator.generate([request(prompt(6), 0, 10)])

    def scaled() -> None:
        model.base_model.model.model.layers[0].self_attn.q_proj.set_scale("default", 7.0)

    def trained() -> None:
        model.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight.data.mul_(3)

    def disabled() -> None:
        model.base_model.disable_adapter_layers()

    for number, change in enumerate((scaled, trained, disabled)):
        change()
        # other prompts, for cached keys and values are of the old weights
        ids = prompt(7 + number)
        (completion,) = generator.generate([request(ids, 0, 10)])
        assert largest_difference(completion.logprobs, plain_logprobs(model, ids, completion)) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"lora_bias": True, "target_modules": ["q_proj"]},
    ],
)
def test_other_adapters_take_the_models_own_pass(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    assert not is_stock(model.get_base_model())
    (completion,) = TorchGenerator(model, end_token_ids=(VOCABULARY,)).generate([request(prompt(6), 0, 10)])
    assert largest_difference(completion.logprobs, plain_logprobs(model, prompt(6), completion)) < 1e-5


def test_adapters_in_half_precision_are_not_merged() -> None:
    assert not is_stock(adapted().to(torch.bfloat16).get_base_model())


def test_adapters_that_come_after_the_generator_count() -> None:
    model = build()
    generator = TorchGenerator(model, end_token_ids=(VOCABULARY,))
    adapted = with_lora(model)
    (completion,) = generator.generate([request(prompt(6), 0, 10)])
    assert largest_difference(completion.logprobs, plain_logprobs(adapted, prompt(6), completion)) < 1e-5


def test_a_pass_that_differs_from_the_model_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = LlamaForward._rotate
    monkeypatch.setattr(LlamaForward, "_rotate", lambda self, heads, cos, sin: rotate(self, heads, cos, -sin))
    model = build()
    network = Network(model)
    network.refresh()
    assert not network.is_sharing
    assert network.best_forward(10) == network.forward
    (completion,) = TorchGenerator(model, end_token_ids=(VOCABULARY,)).generate([request(prompt(6), 0, 10)])
    assert largest_difference(completion.logprobs, plain_logprobs(model, prompt(6), completion)) < 1e-5
