"""Tiny models with random but decided weights, and a tokenizer of one character per token."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma import GemmaConfig, GemmaForCausalLM
from transformers.models.gpt_neox import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.llama import LlamaConfig, LlamaForCausalLM
from transformers.models.phi import PhiConfig, PhiForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen3 import Qwen3Config, Qwen3ForCausalLM

from firesteel.types import Completion, Request, SamplingParams

VOCABULARY = 40
END = 0
CHARACTERS = "$abcdefghijklmnopqrstuvwxyz0123456789 <>"
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    # Larger than the default, so that distributions are not flat.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": END,
    "pad_token_id": 2,
}
FAMILIES: dict[str, Callable[..., torch.nn.Module]] = {
    "llama": lambda **sizes: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **sizes)),
    "qwen2": lambda **sizes: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **sizes)),
    "qwen3": lambda **sizes: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, head_dim=16, **sizes)),
    "gpt_neox": lambda **sizes: GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)),
    "gemma": lambda **sizes: GemmaForCausalLM(GemmaConfig(num_key_value_heads=1, head_dim=8, **sizes)),
    "phi": lambda **sizes: PhiForCausalLM(PhiConfig(**sizes)),
}


def build(family: str = "llama", *, seed: int = 0, **sizes: Any) -> torch.nn.Module:
    """A model of a family in evaluation mode; `sizes` replace single entries of `SIZES`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FAMILIES[family](**{**SIZES, **sizes}).eval()


def with_peft(model: Any, config: peft.PeftConfig) -> Any:
    """The model with an adapter; `model` itself is changed by it."""
    with warnings.catch_warnings():
        # peft reads an attribute that newer transformers deprecate.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return peft.get_peft_model(model, config)


def with_lora(model: Any, **settings: Any) -> Any:
    """The model with a LoRA adapter that is not zero."""
    settings = {"target_modules": ["q_proj", "v_proj", "up_proj"], **settings}
    config = peft.LoraConfig(r=4, init_lora_weights=False, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return with_peft(model, config)


def character_tokenizer(end: str | None = "$") -> PreTrainedTokenizerFast:
    """Token i is character i of `CHARACTERS`."""
    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="$"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)


def prompt(length: int, salt: int = 0) -> list[int]:
    """A prompt without the end token; different salts differ from the first token on."""
    return [1 + (salt + 5 * index + index * index) % (VOCABULARY - 1) for index in range(length)]


def request(token_ids: Sequence[int], seed: int = 0, new: int = 12, *, cache: Any = None, **sampling: Any) -> Request:
    return Request(token_ids, seed, SamplingParams(new, **sampling), cache)


def greedy(token_ids: Sequence[int], new: int = 12, *, cache: Any = None) -> Request:
    return request(token_ids, 0, new, cache=cache, temperature=0.0)


def plain_logprobs(model: torch.nn.Module, token_ids: Sequence[int], completion: Completion) -> list[float]:
    """What the model's own forward pass over one unpadded row gives for the tokens of a completion."""
    row = [*token_ids, *completion.token_ids]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([row])).logits[0].float().log_softmax(-1)
    first = len(token_ids) - 1
    return [float(logprobs[first + index, token]) for index, token in enumerate(completion.token_ids)]


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
