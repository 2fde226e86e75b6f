"""Which models TorchGenerator takes, what it leaves unchanged on them, and how it takes new weights."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from tiny_models import (
    SIZES,
    VOCABULARY,
    build,
    character_tokenizer,
    greedy,
    plain_logprobs,
    prompt,
    request,
    with_lora,
    with_peft,
)
from tiny_models import largest_difference as difference
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.bloom import BloomConfig, BloomForCausalLM
from transformers.models.mamba import MambaConfig, MambaForCausalLM
from transformers.models.mistral import MistralConfig, MistralForCausalLM
from transformers.models.t5 import T5Config, T5ForConditionalGeneration

from firesteel.errors import ModelError
from firesteel.generators.torch import TorchGenerator

NEVER = (VOCABULARY,)


# Refusals


def test_a_sliding_window_is_refused_unless_it_is_never_left() -> None:
    model = MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=16, **SIZES))
    with pytest.raises(ModelError, match=r"'mistral'\).*sliding window of 16 tokens, less than the context of 128"):
        TorchGenerator(model)
    assert TorchGenerator(model, max_context=16).max_context == 16


def test_layers_of_another_type_are_refused() -> None:
    model = build("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1)
    with pytest.raises(ModelError, match=r"'qwen2'\).*layers of type sliding_attention"):
        TorchGenerator(model)


def test_a_state_space_model_is_refused() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, eos_token_id=0)
    with pytest.raises(ModelError, match=r"'mamba'\).*recurrent state"):
        TorchGenerator(MambaForCausalLM(config))


def test_an_encoder_decoder_model_is_refused() -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ModelError, match="encoder-decoder"):
        TorchGenerator(T5ForConditionalGeneration(config))


def test_a_model_whose_positions_come_from_a_2d_mask_is_refused() -> None:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2, eos_token_id=0)
    with pytest.raises(ModelError, match="BloomForCausalLM cannot be used"):
        TorchGenerator(BloomForCausalLM(config))


def test_a_model_that_ignores_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build()
    stock = model.model.forward

    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return stock(*args, attention_mask=None, **kwargs)

    monkeypatch.setattr(model.model, "forward", forward)
    with pytest.raises(ModelError, match=r"its logits differ by .* from those of the plain forward pass"):
        TorchGenerator(model)


def test_a_model_without_a_head_or_a_config_is_refused() -> None:
    model: Any = build()
    with pytest.raises(ModelError, match="no causal language-model head"):
        TorchGenerator(model.model)
    with pytest.raises(ModelError, match="Linear is not a Hugging Face model"):
        TorchGenerator(torch.nn.Linear(1, 1))


def test_an_unknown_end_token_is_an_error() -> None:
    model = build(eos_token_id=None)
    with pytest.raises(ModelError, match="no end-of-sequence token is known: no tokenizer was given"):
        TorchGenerator(model)
    with pytest.raises(ModelError, match=r"tokenizer PreTrainedTokenizerFast|tokenizer TokenizersBackend"):
        TorchGenerator(model, character_tokenizer(end=None))


# Where the end token comes from


def test_end_tokens_of_the_tokenizer_and_of_the_generation_config_count() -> None:
    model: Any = build()
    free = TorchGenerator(model, end_token_ids=NEVER)
    tokens = [free.generate([greedy(prompt(5, salt), 1)])[0].token_ids[0] for salt in range(3)]
    assert len(set(tokens)) == 3
    model.generation_config.eos_token_id = tokens[:2]
    tokenizer = character_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokens[2])
    completions = TorchGenerator(model, tokenizer).generate([greedy(prompt(5, salt), 9) for salt in range(3)])
    assert [completion.token_ids for completion in completions] == [[token] for token in tokens]


# What stays unchanged


def test_training_flags_are_restored_one_by_one() -> None:
    model: Any = build(attention_dropout=0.5).train()
    model.model.norm.eval()
    before = {name: module.training for name, module in model.named_modules()}
    generator = TorchGenerator(model, end_token_ids=NEVER)
    (completion,) = generator.generate([request(prompt(5), 0, 8)])
    assert {name: module.training for name, module in model.named_modules()} == before
    # Dropout was off during the call.
    assert difference(completion.logprobs, plain_logprobs(model.eval(), prompt(5), completion)) < 1e-5


def test_training_flags_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build().train()
    generator = TorchGenerator(model, end_token_ids=NEVER)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(model.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        generator.generate([request(prompt(5))])
    assert all(module.training for module in model.modules())
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("attention", ["eager", "other_attention"])
def test_the_attention_implementation_is_restored(attention: str) -> None:
    AttentionInterface.register("other_attention", sdpa_attention_forward)
    model: Any = build()
    wanted = TorchGenerator(model, end_token_ids=NEVER).generate([request(prompt(n), 0, 8) for n in (5, 9)])
    model.config._attn_implementation = attention
    completions = TorchGenerator(model, end_token_ids=NEVER).generate([request(prompt(n), 0, 8) for n in (5, 9)])
    assert model.config._attn_implementation == attention
    for one, other in zip(wanted, completions, strict=True):
        assert one.token_ids == other.token_ids
        assert difference(one.logprobs, other.logprobs) < 1e-5


# PEFT


def test_an_adapter_counts() -> None:
    model = build()
    base = TorchGenerator(model, end_token_ids=NEVER).generate([request(prompt(6), 0, 10)])[0]
    adapted = with_lora(model)
    (completion,) = TorchGenerator(adapted, end_token_ids=NEVER).generate([request(prompt(6), 0, 10)])
    assert difference(completion.logprobs, plain_logprobs(adapted, prompt(6), completion)) < 1e-5
    assert completion.logprobs[0] != pytest.approx(base.logprobs[0], abs=1e-3)


def test_virtual_tokens_are_refused() -> None:
    model = with_peft(build(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match="PromptTuningConfig puts virtual tokens before the context"):
        TorchGenerator(model)


def test_an_adapter_alone_can_be_loaded() -> None:
    generator = TorchGenerator(with_lora(build()), end_token_ids=NEVER)
    adapters = {name: 0.5 * each.detach() for name, each in generator.model.named_parameters() if each.requires_grad}
    generator.load_weights(adapters, version=1)
    (completion,) = generator.generate([request(prompt(6), 0, 10)])
    assert difference(completion.logprobs, plain_logprobs(generator.model, prompt(6), completion)) < 1e-5
    assert all(torch.equal(value, dict(generator.model.named_parameters())[name]) for name, value in adapters.items())
    name, *others = adapters
    with pytest.raises(ModelError, match=f"1 missing parameters: {name}"):
        generator.load_weights({other: adapters[other] for other in others}, version=2)


# Weights


@pytest.mark.parametrize("is_tied", [False, True])
def test_new_weights_are_copied_and_drop_every_cache(is_tied: bool) -> None:
    model, source = build(tie_word_embeddings=is_tied), build(seed=1, tie_word_embeddings=is_tied)
    generator = TorchGenerator(model, end_token_ids=NEVER)
    (old,) = generator.generate([request(prompt(10), 0, 6)])
    generator.load_weights(dict(source.named_parameters()), version=7)
    assert old.cache.last.stored is None
    (new,) = generator.generate([request(prompt(10), 0, 6, cache=old.cache)])
    assert (old.policy_version, new.policy_version, generator.version) == (0, 7, 7)
    assert generator.stats["reused_tokens"] == 0
    (wanted,) = TorchGenerator(source, end_token_ids=NEVER).generate([request(prompt(10), 0, 6)])
    assert new.token_ids == wanted.token_ids
    assert new.logprobs == wanted.logprobs
    assert new.logprobs != old.logprobs
    # The weights are copies: the source can go on being trained.
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_weights_shared_with_the_learner_are_not_copied() -> None:
    model = build()
    generator = TorchGenerator(model, end_token_ids=NEVER)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    (old,) = generator.generate([request(prompt(10), 0, 6)])
    generator.load_weights(weights, version=1)
    # Autograd counts every write to a tensor.
    assert {name: parameter._version for name, parameter in model.named_parameters()} == versions
    (new,) = generator.generate([request(prompt(10), 0, 6, cache=old.cache)])
    assert (new.token_ids, new.policy_version, generator.stats["reused_tokens"]) == (old.token_ids, 1, 0)


def test_weights_that_do_not_fit_change_nothing() -> None:
    model = build()
    generator = TorchGenerator(model, end_token_ids=NEVER)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    other = {name: value + 1 for name, value in before.items()}
    name = "model.norm.weight"
    cases = {
        "1 unknown names: model.nrom.weight": {**other, "model.nrom.weight": other[name]},
        f"1 missing parameters: {name}": {each: value for each, value in other.items() if each != name},
        rf"1 wrong shapes: {name} is \(32,\), got \(3,\)": {**other, name: torch.zeros(3)},
    }
    for message, weights in cases.items():
        with pytest.raises(ModelError, match=f"weights do not fit LlamaForCausalLM: {message}"):
            generator.load_weights(weights, version=1)
    assert generator.version == 0
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
