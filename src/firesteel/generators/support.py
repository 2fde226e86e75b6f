"""What a model must be for the in-process generator, asked of its config before anything is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from firesteel.errors import ModelError

ADVICE = "use a decoder-only model with full attention in every layer, or another kind of generator"


def inner_model(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a PEFT wrapper (its layers hold the adapters), or the model itself."""
    if not hasattr(model, "peft_config"):
        return model
    configs = model.peft_config.values() if isinstance(model.peft_config, dict) else ()
    for config in configs:
        if getattr(config, "is_prompt_learning", False):
            raise ModelError(
                f"PEFT method {type(config).__name__} puts virtual tokens before the context, which cached contexts "
                "do not hold; use an adapter that changes weights, such as LoRA"
            )
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if callable(get_base_model) else model


def decoder_config(model: nn.Module) -> Any:
    """The config of the text decoder."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ModelError(f"{type(model).__name__} is not a Hugging Face model: it has no config; {ADVICE}")
    return config.get_text_config(decoder=True)


def model_max_context(config: Any) -> int:
    """The largest number of tokens that the model's positions allow; `sys.maxsize` where it names none."""
    limit = getattr(config, "max_position_embeddings", None) or sys.maxsize
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # "longrope" turns all positions differently once a context passes this length, so a cache would be wrong.
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        limit = min(limit, original or limit)
    return limit


def check_supported(model: nn.Module, config: Any, max_context: int) -> None:
    """Raises `ModelError` naming the model type and the reason where keys and values cannot be kept in our cache."""
    name = f"{type(model).__name__} (model type '{getattr(config, 'model_type', '?')}')"
    reason = _reason_against(model, config, max_context)
    if reason:
        raise ModelError(f"{name} cannot be used by TorchGenerator: {reason}; {ADVICE}")


def _reason_against(model: nn.Module, config: Any, max_context: int) -> str:
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    if getattr(model, "_is_stateful", False):
        return "it keeps a recurrent state (state-space or linear attention) instead of keys and values per token"
    can_generate = getattr(model, "can_generate", None)
    if not callable(can_generate) or not can_generate():
        return "it has no causal language-model head"
    other_layers = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if other_layers:
        return f"it has layers of type {', '.join(other_layers)}"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < max_context:
        return (
            f"it attends to a sliding window of {window} tokens, less than the context of {max_context} "
            f"(max_context={window} would make the window harmless)"
        )
    return ""


def known_end_tokens(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a completion: the tokenizer's and those of the model's generation config, sorted.

    Raises:
        ModelError: None is known, so that no completion could ever end by itself.
    """
    known: set[int] = set()
    for source in (tokenizer, getattr(model, "generation_config", None)):
        value = getattr(source, "eos_token_id", None)
        known.update(_as_ids(value))
    if not known:
        owner = f"tokenizer {type(tokenizer).__name__}" if tokenizer is not None else "no tokenizer was given"
        raise ModelError(
            f"no end-of-sequence token is known: {owner}, and the generation config of {type(model).__name__} has no "
            "eos_token_id; set tokenizer.eos_token or model.generation_config.eos_token_id, or pass end_token_ids"
        )
    return tuple(sorted(known))


def _as_ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
