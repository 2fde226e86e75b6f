"""Adapters: what they start as, what merging computes, and what comes back from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from firesteel.errors import ModelError
from firesteel.learners.lora import adapter_tensors, add_lora, load_adapter, merge_adapter, save_adapter
from firesteel.models import build_tiny_model, train_tokenizer

TOKENIZER = train_tokenizer(["go to desk 1"] * 3, vocab_size=300)
TOKEN_IDS = torch.tensor([[1, 2, 3, 4, 5]])
PREFIX = "base_model.model.model.layers.0"


def tiny(*, hidden: int = 16, layers: int = 1, seed: int = 0) -> Any:
    return build_tiny_model(TOKENIZER, hidden=hidden, layers=layers, heads=2, kv_heads=1, intermediate=32, seed=seed)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(TOKEN_IDS).logits
    return result


def trained(model: Any) -> Any:
    """An adapter whose B is no longer zero."""
    wrapped = add_lora(model, rank=2, alpha=6, seed=5)
    with torch.no_grad():
        for name, tensor in adapter_tensors(wrapped).items():
            if "lora_B" in name:
                tensor.fill_(0.1)
    return wrapped


def test_a_new_adapter_changes_nothing_and_freezes_the_base() -> None:
    before = logits(tiny())
    wrapped = add_lora(tiny())
    assert torch.equal(logits(wrapped), before)
    assert all(("lora_" in name) is parameter.requires_grad for name, parameter in wrapped.named_parameters())


def test_adapter_tensors_counted_by_hand() -> None:
    tensors = adapter_tensors(add_lora(tiny(layers=3), rank=4))
    # q, k, v, o, gate, up, down in 3 layers, two matrices each; embedding and output layer have none
    assert len(tensors) == 3 * 7 * 2
    assert list(tensors) == sorted(tensors)
    assert tensors[f"{PREFIX}.self_attn.k_proj.lora_A.weight"].shape == (4, 16)
    assert tensors[f"{PREFIX}.self_attn.k_proj.lora_B.weight"].shape == (8, 4)
    only = adapter_tensors(add_lora(tiny(), target_modules=["q_proj"]))
    assert list(only) == [f"{PREFIX}.self_attn.q_proj.lora_{matrix}.weight" for matrix in "AB"]


def test_adapter_tensors_are_the_parameters_themselves() -> None:
    wrapped = trained(tiny())
    assert not torch.equal(logits(wrapped), logits(tiny()))
    assert not any(tensor.requires_grad for tensor in adapter_tensors(wrapped).values())


def test_the_seed_alone_decides_the_adapter() -> None:
    before = torch.get_rng_state()
    first = adapter_tensors(add_lora(tiny(), seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second = adapter_tensors(add_lora(tiny(), seed=1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = adapter_tensors(add_lora(tiny(), seed=2))
    assert all(torch.equal(first[name], other[name]) is ("lora_B" in name) for name in first)


def test_a_is_uniform_with_the_bound_of_a_linear_layer() -> None:
    # kaiming with a = sqrt(5): bound = sqrt(6 / ((1 + 5) * fan_in)) = 1 / sqrt(16) = 0.25
    drawn = adapter_tensors(add_lora(tiny(), rank=64))[f"{PREFIX}.self_attn.q_proj.lora_A.weight"]
    assert 0.24 < drawn.abs().max() <= 0.25


def test_merging_adds_alpha_over_rank_times_b_a() -> None:
    base = tiny()
    weight = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    wrapped = add_lora(base, rank=2, alpha=6, target_modules=["q_proj"])
    tensors = adapter_tensors(wrapped)
    tensors[f"{PREFIX}.self_attn.q_proj.lora_A.weight"].fill_(0.5)
    tensors[f"{PREFIX}.self_attn.q_proj.lora_B.weight"].fill_(0.25)
    wanted = logits(wrapped)
    merged = merge_adapter(wrapped)
    # every entry gains 6/2 * (2 ranks * 0.25 * 0.5) = 0.75
    assert torch.allclose(merged.model.layers[0].self_attn.q_proj.weight, weight + 0.75, atol=1e-6)
    assert torch.allclose(logits(merged), wanted, atol=1e-5)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    add_lora(merged)


def test_an_adapter_comes_back_from_disk(tmp_path: Path) -> None:
    wrapped = trained(tiny())
    save_adapter(wrapped, tmp_path / "adapter")
    before = torch.get_rng_state()
    again = load_adapter(tiny(), tmp_path / "adapter")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(again), logits(wrapped))
    loaded, saved = adapter_tensors(again), adapter_tensors(wrapped)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_the_names_in_an_adapters_settings_are_in_order(tmp_path: Path) -> None:
    save_adapter(trained(tiny()), tmp_path)
    names = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(names) > 3 and names == sorted(names)


def test_a_loaded_adapter_can_go_on_training_or_not(tmp_path: Path) -> None:
    save_adapter(trained(tiny()), tmp_path)
    frozen = load_adapter(tiny(), tmp_path, trainable=False)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    going_on = load_adapter(tiny(), tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in going_on.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in going_on.parameters() if parameter.requires_grad], lr=1.0)
    going_on(TOKEN_IDS, labels=TOKEN_IDS).loss.backward()
    optimizer.step()
    changed = {name for name, parameter in going_on.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"layers": 2}, "has 14 tensors that this model has no place for, such as .*layers.2"),
        ({"layers": 4}, "lacks 14 tensors that this model needs, such as .*layers.3"),
        ({"layers": 3, "hidden": 8}, r"mlp.down_proj.lora_B.weight has shape \(16, 2\), this model needs \(8, 2\)"),
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path: Path, other: dict[str, int], problem: str) -> None:
    save_adapter(trained(tiny(layers=3)), tmp_path)
    model = tiny(**other)
    before = logits(model)
    with pytest.raises(ModelError, match=f"belongs to another base model: .*{problem}"):
        load_adapter(model, tmp_path)
    assert torch.equal(logits(model), before)
    add_lora(model)


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        load_adapter(tiny(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        load_adapter(tiny(), tmp_path)
    with pytest.raises(ModelError, match=r"target_modules=.*qproj.*its linear layers are named .*q_proj"):
        add_lora(tiny(), target_modules=["qproj"])
    with pytest.raises(ModelError, match="already has an adapter"):
        add_lora(add_lora(tiny()))  # type: ignore[arg-type]
    for helper in (merge_adapter, adapter_tensors):
        with pytest.raises(ModelError, match="LlamaForCausalLM has no adapter"):
            helper(tiny())
    with pytest.raises(ModelError, match="LlamaForCausalLM has no adapter"):
        save_adapter(tiny(), tmp_path)
