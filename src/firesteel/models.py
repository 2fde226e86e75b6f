"""Models and tokenizers: loading any decoder-only model of the Hub, and making small ones from nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from firesteel.bundled import bundled
from firesteel.errors import ModelError
from firesteel.plugins import nearest
from firesteel.prompts import TAGS

ARCHITECTURES: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PAD, EOS, USER, ASSISTANT, SYSTEM = SPECIAL_TOKENS = ("<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>")

COMPACT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + message['role'] + ' is not one of system, user, assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|eos|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou help the user.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# A word and a number keep the space before them, so that " cabinet" and " 12" are one token each.
_WORDS_AND_NUMBERS = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# How Qwen's tokenizers split: single digits, a newline glued to the punctuation before it.
_SINGLE_DIGITS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Code inside draws from torch's CPU generator as seeded by `seed`; afterwards that generator is as before.

    `torch.manual_seed` would also reseed every GPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


# loading


def load_model(
    path_or_name: str | Path, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A decoder-only model from a local directory or the Hub, in evaluation mode.

    Raises:
        ModelError: it does not exist, is not decoder-only, lacks weights, or `dtype` is unknown.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype '{dtype}'{nearest(dtype, DTYPES)}; known: {', '.join(DTYPES)}")
    source = _resolve(path_or_name, kind="model")
    config = _load_config(source, trust_remote_code)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, output_loading_info=True,
            **_hub_options(source),
        )  # fmt: skip
    except ValueError as error:
        raise ModelError(f"model '{source}' ({config.model_type}) cannot be used for generation: {error}") from error
    except OSError as error:
        raise ModelError(f"the weights of model '{source}' cannot be loaded: {error}") from error
    model, report = loaded
    absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if absent:
        raise ModelError(
            f"model '{source}' lacks weights for {len(absent)} parameters (first: {absent[0]}), which would start "
            "random; its files are incomplete or belong to another architecture"
        )
    return model.to(device)


def load_tokenizer(path_or_name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer that can hold a conversation: it has an EOS token and a chat template.

    Where it has no padding token, EOS becomes that.

    Raises:
        ModelError: it does not exist, or lacks the EOS token or the chat template.
    """
    source = _resolve(path_or_name, kind="tokenizer")
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if Path(source).is_dir() and not any((Path(source) / file).exists() for file in files):
        raise ModelError(f"directory '{source}' holds no tokenizer (none of {', '.join(files)}); save one there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **_hub_options(source))
    except (OSError, ValueError) as error:
        raise ModelError(_unloadable("tokenizer", source, error)) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"tokenizer '{source}' has no EOS token, so no response could end; set tokenizer.eos_token "
            "to the token that closes a turn and save it with save_pretrained"
        )
    if not tokenizer.chat_template:
        raise ModelError(
            f"tokenizer '{source}' has no chat template; put a chat_template.jinja beside its files, or set "
            "tokenizer.chat_template and save it with save_pretrained (instruction-tuned models ship one)"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model_and_tokenizer(
    path_or_name: str | Path, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Both, from one place, known to fit each other. Raises like `load_model` and `check_vocabulary`."""
    tokenizer = load_tokenizer(path_or_name, trust_remote_code=trust_remote_code)
    model = load_model(path_or_name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    check_vocabulary(model, tokenizer)
    return model, tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ModelError` when the tokenizer has ids beyond the model's embedding (fewer ids are fine: padding)."""
    embedding: Any = model.get_input_embeddings()
    _check_rows(embedding.weight.shape[0], tokenizer)


def _check_rows(rows: int, tokenizer: PreTrainedTokenizerBase) -> None:
    num_ids = max(tokenizer.get_vocab().values()) + 1
    if num_ids > rows:
        raise ModelError(
            f"the tokenizer has {num_ids} ids, but the model's embedding has {rows} rows; "
            f"call model.resize_token_embeddings({num_ids}), or use the tokenizer that belongs to the model"
        )


def load_model_config(path_or_name: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The shape of a decoder-only model, without its weights. Raises like `load_model`."""
    return _load_config(_resolve(path_or_name, kind="model"), trust_remote_code)


def _load_config(source: str, trust_remote_code: bool) -> PretrainedConfig:
    directory = Path(source)
    if (directory / "adapter_config.json").exists() and not (directory / "config.json").exists():
        raise ModelError(f"'{source}' is a LoRA adapter, not a model; load its base model, then it with load_adapter")
    if directory.is_dir() and not (directory / "config.json").exists():
        raise ModelError(f"directory '{source}' has no config.json; point at a directory written by save_pretrained")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **_hub_options(source))
    except (OSError, ValueError) as error:
        raise ModelError(_unloadable("model", source, error)) from error
    if config.is_encoder_decoder:
        raise ModelError(
            f"model '{source}' ({config.model_type}) is an encoder-decoder; firesteel trains decoder-only models, "
            "such as Llama or Qwen"
        )
    return config


def _resolve(path_or_name: str | Path, *, kind: str) -> str:
    """The directory as it was given, or of an installed recipe, or a Hub name; what can only be a path must exist."""
    text = str(path_or_name)
    path = bundled(Path(text).expanduser())
    if path.is_dir():
        return str(path)
    if isinstance(path_or_name, Path) or is_path(text):
        raise ModelError(_not_found(kind, text))
    return text


def is_path(text: str) -> bool:
    """Whether text means a local path rather than a Hub name: by its form, or because it or its first folder exists."""
    path = Path(text).expanduser()
    formed = text.startswith((".", "~", "/")) or text.count("/") > 1
    return formed or path.exists() or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())


def _hub_options(source: str) -> dict[str, Any]:
    """What transformers is told about a Hub name: without network only the local cache counts."""
    return {} if Path(source).is_dir() or _hub_answers() else {"local_files_only": True}


def _hub_answers() -> bool:
    """One request to the Hub, with the user's own settings (HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_ETAG_TIMEOUT)."""
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    # A boundary: the user chooses the client, which has errors of its own.
    except Exception:
        return False
    return True


def _unloadable(kind: str, source: str, error: Exception) -> str:
    """The message for what transformers could not load."""
    reason, _, _ = str(error).partition("\n")
    if Path(source).is_dir():
        return f"{kind} '{source}' cannot be loaded; its files are damaged or unknown to transformers: {reason}"
    return f"{_not_found(kind, source)} (transformers: {reason})"


def _not_found(kind: str, text: str) -> str:
    """The message for a name that is neither a directory here nor known to the Hub (or its local cache)."""
    path = Path(text).expanduser()
    parent = next((folder for folder in path.parents if folder.is_dir()), Path())
    siblings = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    there = f"'{parent}' has {', '.join(siblings[:8])}" if siblings else f"'{parent}' has no directories"
    return (
        f"{kind} '{text}': there is no such directory{nearest(path.name, siblings)}; {there}. "
        "A Hub name such as 'Qwen/Qwen2.5-1.5B-Instruct' needs network, or a copy in the local Hub cache"
    )


# small models


def build_tiny_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    architecture: str = "llama",
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int | None = None,
    max_context: int = 2048,
    tied: bool = True,
    initializer_range: float = 0.02,
    seed: int = 0,
    embedding_rows: int | None = None,
) -> PreTrainedModel:
    """A stock architecture with random float32 weights on the CPU. The same arguments give the same weights.

    The global random state is left as it was.

    Args:
        tokenizer: decides the vocabulary, EOS and padding.
        architecture: a key of `ARCHITECTURES`.
        intermediate: width of the MLP; None takes 8/3 of `hidden`, rounded up to a multiple of 16.
        max_context: longest context in tokens.
        tied: whether the output layer shares the embedding.
        initializer_range: standard deviation of the weights.
        embedding_rows: rows of the embedding where it is padded beyond the vocabulary.

    Raises:
        ModelError: an unknown architecture, sizes that do not divide each other, or fewer rows than ids.
    """
    if architecture not in ARCHITECTURES:
        hint = nearest(architecture, ARCHITECTURES)
        raise ModelError(f"unknown architecture '{architecture}'{hint}; known: {', '.join(ARCHITECTURES)}")
    if hidden % heads or heads % kv_heads or hidden // heads % 2:
        raise ModelError(
            f"a model of hidden={hidden}, heads={heads}, kv_heads={kv_heads} cannot be built: heads must divide "
            "hidden into parts of even width, and kv_heads must divide heads"
        )
    rows = embedding_rows or len(tokenizer)
    _check_rows(rows, tokenizer)
    sizes: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": intermediate or -(-8 * hidden // 48) * 16,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": max_context,
        "tie_word_embeddings": tied,
        "initializer_range": initializer_range,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = ARCHITECTURES[architecture](**sizes)
    with seeded(seed):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 1024,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    tags: Sequence[str] = TAGS,
    single_digits: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` ids, with the compact chat template.

    Any text survives encoding and decoding unchanged. Words and numbers (up to three digits) are split from each
    other and keep the space before them, so that frequent ones become single tokens. `special_tokens` vanish in
    `decode(..., skip_special_tokens=True)`; `tags` are single tokens that stay.

    Args:
        texts: what the vocabulary is counted on; words seen once get no token of their own.
        vocab_size: at least 256 bytes plus the special tokens and tags.
        special_tokens: must hold the five of `SPECIAL_TOKENS`, which the template writes.
        tags: further tokens that are never split.
        single_digits: every digit is a token of its own, and without the space before it.

    Raises:
        ModelError: the vocabulary is too small, or one of the five special tokens is missing.
    """
    absent = [token for token in SPECIAL_TOKENS if token not in special_tokens]
    if absent:
        raise ModelError(f"special_tokens lacks {', '.join(absent)}, which the chat template needs; add them")
    pattern = _SINGLE_DIGITS if single_digits else _WORDS_AND_NUMBERS
    backend = _train_bpe(texts, pattern, vocab_size, special_tokens, tags)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens=[token for token in special_tokens if token not in (PAD, EOS)],
        chat_template=COMPACT_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _train_bpe(
    texts: Iterable[str], pattern: str, vocab_size: int, special_tokens: Sequence[str], tags: Sequence[str]
) -> Tokenizer:
    """A trained byte-level BPE whose added tokens come after the learned ones."""
    num_learned = vocab_size - len(special_tokens) - len(tags)
    if num_learned < 256:
        raise ModelError(
            f"vocab_size {vocab_size} is too small: 256 bytes, {len(special_tokens)} special tokens and "
            f"{len(tags)} tags need {vocab_size - num_learned + 256}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_learned,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # transcripts hold the added tokens as text; learning their pieces would waste the vocabulary
    added = re.compile("|".join(re.escape(token) for token in (*special_tokens, *tags)))
    backend.train_from_iterator((piece for text in texts for piece in added.split(text) if piece), trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    return backend


def write_random_hub_model(
    directory: str | Path,
    *,
    texts: Iterable[str] = (),
    vocab_size: int = 2048,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    max_context: int = 4096,
    seed: int = 0,
) -> Path:
    """Writes a model directory shaped like an instruction-tuned Qwen2, with random weights; returns the directory.

    It has what trips loaders up: a ChatML template that adds a system prompt by itself, tags that are several
    tokens each, single-digit tokens, normalised Unicode, tied embeddings with rows beyond the tokenizer's ids,
    and an EOS (`<|im_end|>`) that is not the padding token (`<|endoftext|>`).
    """
    directory = Path(directory)
    backend = _train_bpe(texts, _SINGLE_DIGITS, vocab_size, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ())
    backend.normalizer = normalizers.NFC()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHATML_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    model = build_tiny_model(
        tokenizer,
        architecture="qwen2",
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        max_context=max_context,
        seed=seed,
        embedding_rows=-(-(vocab_size + 1) // 128) * 128,
    )
    tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def build_shape_only(config: PretrainedConfig, lora: Any = None) -> dict[str, int]:
    """Parameter counts of a model that is never filled with weights: all of them, and those that would be trained."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    if lora is None:
        return {"parameters": total, "trainable": total}
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return {"parameters": total, "trainable": sum(lora.rank * (m.in_features + m.out_features) for m in linear)}
