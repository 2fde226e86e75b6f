"""Loading models and tokenizers, and making small ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, T5Config

from firesteel.errors import ModelError
from firesteel.models import (
    SPECIAL_TOKENS,
    build_tiny_model,
    check_vocabulary,
    is_path,
    load_model,
    load_model_and_tokenizer,
    load_model_config,
    load_tokenizer,
    seeded,
    train_tokenizer,
    write_random_hub_model,
)
from firesteel.prompts import TAGS

TEXTS = ["You see a cabinet 12 and a desk 1.", "<think>take it</think><action>go to cabinet 12</action>"] * 4
SMALL: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 32}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=400)


@pytest.fixture(scope="module")
def hub_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "random-qwen"
    return write_random_hub_model(directory, texts=TEXTS, vocab_size=400, hidden=16, heads=2, kv_heads=1)


def saved(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """A model and a tokenizer as `save_pretrained` leaves them."""
    tokenizer.save_pretrained(directory)
    build_tiny_model(tokenizer, **SMALL).save_pretrained(directory)


# the trained tokenizer


def test_frequent_words_and_numbers_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("You see a cabinet 12") == ["You", "Ġsee", "Ġa", "Ġcabinet", "Ġ12"]


def test_numbers_never_join_words_and_are_cut_after_three_digits() -> None:
    tokenizer = train_tokenizer(["desk12 98765"] * 9, vocab_size=600)
    assert tokenizer.tokenize("desk12 98765") == ["desk", "12", "Ġ987", "65"]
    single = train_tokenizer(["desk12 98765"] * 9, vocab_size=600, single_digits=True)
    assert single.tokenize("desk12 98765") == ["desk", "1", "2", "Ġ", "9", "8", "7", "6", "5"]


def test_tags_and_roles_are_one_token_each_and_only_roles_vanish(tokenizer: PreTrainedTokenizerFast) -> None:
    for token in (*SPECIAL_TOKENS, *TAGS):
        assert len(tokenizer.encode(f"a{token}b", add_special_tokens=False)) == 3
    text = "<|user|>go<|assistant|><explore>look around</explore><action>go</action><|eos|><|pad|>"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(token_ids) == text
    assert (
        tokenizer.decode(token_ids, skip_special_tokens=True) == "go<explore>look around</explore><action>go</action>"
    )


def test_reloading_keeps_tags_template_and_ids(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|user|>You see <think>é</think>\n\n 12<|eos|>"
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
    assert again.decode(again.encode("<think>x</think><|eos|>"), skip_special_tokens=True) == "<think>x</think>"
    assert (again.eos_token, again.pad_token) == ("<|eos|>", "<|pad|>")
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert again.apply_chat_template(messages, tokenize=False) == "<|user|>u<|assistant|>a<|eos|>"


def test_the_compact_template_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": " s "},
        {"role": "user", "content": "u\n"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|> s <|user|>u\n<|assistant|>a<|eos|><|user|>v<|assistant|>"


@given(text=st.text())
@settings(max_examples=50, deadline=None)
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_training_twice_gives_the_same_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    assert train_tokenizer(TEXTS, vocab_size=400).get_vocab() == tokenizer.get_vocab()


def test_the_vocabulary_size_is_a_total() -> None:
    # 256 bytes + 5 special tokens + 6 tags = 267, so 270 leaves room for exactly 3 merges
    tokenizer = train_tokenizer(["abcdefgh abcdefgh abcdefgh"], vocab_size=270)
    assert len(tokenizer) == 270
    with pytest.raises(ModelError, match=r"266 is too small.*need 267"):
        train_tokenizer(TEXTS, vocab_size=266)


def test_tags_in_the_training_text_cost_no_vocabulary() -> None:
    tokenizer = train_tokenizer(["<think></think><|user|>"] * 99, vocab_size=400)
    assert len(tokenizer) == 267


def test_further_tags_and_special_tokens() -> None:
    tokenizer = train_tokenizer(TEXTS, special_tokens=(*SPECIAL_TOKENS, "<|tool|>"), tags=(*TAGS, "<tool_call>"))
    token_ids = tokenizer.encode("<|tool|><tool_call>", add_special_tokens=False)
    assert len(token_ids) == 2
    assert tokenizer.decode(token_ids, skip_special_tokens=True) == "<tool_call>"
    with pytest.raises(ModelError, match=r"lacks <\|pad\|>"):
        train_tokenizer(TEXTS, special_tokens=SPECIAL_TOKENS[1:])


# the tiny model


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [
        ("llama", 0),
        ("qwen2", 16 + 8 + 8),  # biases of q, k, v
        ("qwen3", 8 + 8),  # norms of q and k over one head
    ],
)
def test_parameters_counted_by_hand(tokenizer: PreTrainedTokenizerFast, architecture: str, extra: int) -> None:
    # q, o: 16*16; k, v: one head of 8: 16*8; MLP: 3 * 16*32; norms: 3 * 16
    layers = 2 * 256 + 2 * 128 + 1536 + 48 + extra
    embedding = len(tokenizer) * 16
    assert build_tiny_model(tokenizer, architecture=architecture, **SMALL).num_parameters() == layers + embedding
    untied = build_tiny_model(tokenizer, architecture=architecture, tied=False, **SMALL)
    assert untied.num_parameters() == layers + 2 * embedding


def test_default_sizes(tokenizer: PreTrainedTokenizerFast) -> None:
    config = build_tiny_model(tokenizer).config
    assert config.intermediate_size == 352  # 8/3 * 128 = 341.3, up to a multiple of 16
    assert (config.max_position_embeddings, config.vocab_size) == (2048, len(tokenizer))
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_the_seed_alone_decides_the_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    before = torch.get_rng_state()
    first = build_tiny_model(tokenizer, seed=3, **SMALL).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second = build_tiny_model(tokenizer, seed=3, **SMALL).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_tiny_model(tokenizer, seed=4, **SMALL).state_dict()
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_seeded_restores_the_generator_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1):
        torch.rand(3)
        _ = 1 / 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tied", [True, False])
def test_saving_and_loading_keeps_weights_and_ties(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, tied: bool
) -> None:
    model: Any = build_tiny_model(tokenizer, architecture="qwen3", tied=tied, **SMALL)
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    again: Any = load_model(tmp_path)
    assert not again.training
    embedding, output = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (embedding.data_ptr() == output.data_ptr()) is tied
    token_ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(model(token_ids).logits, again(token_ids).logits)


def test_impossible_sizes_and_architectures_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match=r"unknown architecture 'lama'.*did you mean 'llama'"):
        build_tiny_model(tokenizer, architecture="lama")
    for sizes in ({"hidden": 10, "heads": 4}, {"heads": 4, "kv_heads": 3}, {"hidden": 12, "heads": 4}):
        with pytest.raises(ModelError, match="cannot be built"):
            build_tiny_model(tokenizer, **sizes)


# loading


def test_the_random_hub_model_is_shaped_like_qwen(hub_directory: Path) -> None:
    model: Any
    model, tokenizer = load_model_and_tokenizer(str(hub_directory))
    assert model.config.model_type == "qwen2"
    assert model.get_input_embeddings().weight.shape[0] % 128 == 0
    assert model.get_input_embeddings().weight.shape[0] > len(tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer.encode("<think>", add_special_tokens=False)) > 1
    assert tokenizer.tokenize(" 12") == ["Ġ", "1", "2"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "u"}], tokenize=False, add_generation_prompt=True)
    system = "<|im_start|>system\nYou help the user.<|im_end|>\n"
    assert text == f"{system}<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"


def test_dtype(hub_directory: Path) -> None:
    assert load_model(hub_directory, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelError, match=r"unknown dtype 'float23' \(did you mean 'float32'\?\)"):
        load_model(hub_directory, dtype="float23")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_missing_directory_names_its_neighbours(load: object, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-100").mkdir()
    assert callable(load)
    with pytest.raises(ModelError) as caught:
        load(str(tmp_path / "chekpoint-100"))
    message = str(caught.value)
    assert "there is no such directory (did you mean 'checkpoint-100'?)" in message
    assert f"'{tmp_path}' has checkpoint-100" in message
    assert "needs network" in message


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_an_unknown_hub_name_without_network(load: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some-model").mkdir()
    assert callable(load)
    with pytest.raises(ModelError, match=r"some-modell': there is no such directory .did you mean 'some-model'"):
        load("some-modell")


@pytest.mark.parametrize("is_there", [True, False])
def test_the_hub_is_asked_once_and_without_an_answer_only_its_cache_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    asked: list[tuple[str, Any]] = []
    told: list[dict[str, Any]] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append((url, timeout))
            if not is_there:
                raise RuntimeError("name or service not known")

    def from_pretrained(source: str, **options: Any) -> None:
        told.append(options)
        raise OSError("not in the cache")

    monkeypatch.setattr("firesteel.models.get_session", Session)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 3)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://mirror.example")
    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="needs network, or a copy in the local Hub cache"):
        load_model_config("some/model")
    assert asked == [("https://mirror.example", 3)]
    assert told == [{"trust_remote_code": False} | ({} if is_there else {"local_files_only": True})]


def test_what_is_a_path_and_what_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert all(map(is_path, ("./a", "/a", "~/a", "a/b/c", "folder", "folder/a")))
    assert not any(map(is_path, ("gpt2", "Qwen/Qwen3-0.6B")))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=8).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(t5\) is an encoder-decoder"):
        load_model(tmp_path)


def test_directories_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a LoRA adapter, not a model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows"}')
    with pytest.raises(ModelError, match=r"cannot be loaded; its files are damaged or unknown.*nobody-knows"):
        load_model(tmp_path)
    for name, load in {"config.json": load_model, "tokenizer_config.json": load_tokenizer}.items():
        (tmp_path / name).write_text("{")
        with pytest.raises(ModelError, match="cannot be loaded; its files are damaged"):
            load(tmp_path)


def test_lacking_weights_are_an_error_not_random_numbers(hub_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(hub_directory, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights for 1 parameters \(first: model\.layers\.1\.mlp\.up_proj"):
        load_model(tmp_path / "copy")
    file.unlink()
    with pytest.raises(ModelError, match=r"the weights of model .* cannot be loaded"):
        load_model(tmp_path / "copy")


def test_a_tokenizer_needs_eos_and_template(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    backend = tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"has no EOS token.*set tokenizer.eos_token"):
        load_tokenizer(tmp_path / "bare")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>").save_pretrained(tmp_path / "eos")
    with pytest.raises(ModelError, match=r"has no chat template; put a chat_template\.jinja"):
        load_tokenizer(tmp_path / "eos")
    (tmp_path / "eos" / "chat_template.jinja").write_text("{{ messages }}")
    assert load_tokenizer(tmp_path / "eos").pad_token == "<|eos|>"


def test_a_tokenizer_beyond_the_embedding_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    saved(tokenizer, tmp_path)
    model = load_model(tmp_path)
    check_vocabulary(model, tokenizer)
    num_ids = len(tokenizer)
    bigger = load_tokenizer(tmp_path)
    bigger.add_tokens(["<new>"])
    bigger.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"has {num_ids + 1} ids, but the model's embedding has {num_ids} rows"):
        load_model_and_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="embedding has 200 rows"):
        build_tiny_model(tokenizer, embedding_rows=200, **SMALL)


@pytest.mark.parametrize("name", ["household", "questions", "tool_calls"])
def test_models_of_the_recipes_are_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as for an installed package: no `recipes` here
    assert len(load_tokenizer(f"recipes/models/{name}")) > 256
    with pytest.raises(ModelError, match="there is no such directory"):
        load_tokenizer("recipes/models/none")
