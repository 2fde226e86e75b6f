"""What a training would cost, without training: tokens, and memory from the model's shapes."""

from __future__ import annotations

from typing import Any

from firesteel.config import Config

BYTES = {"float32": 4, "bfloat16": 2}


def estimate(config: Config) -> dict[str, Any]:
    """Upper bounds for a configuration; `text` is for people.

    Tokens assume that every leaf plays all turns and uses all response tokens. Memory counts weights, gradients
    and AdamW moments of what is trained, and the KV cache of one step's leaves at full context.
    """
    from transformers import AutoConfig

    from firesteel.models import build_shape_only

    rollout = config.rollout
    leaves = config.tasks_per_step * rollout.num_leaves
    tokens_per_step = leaves * rollout.max_turns * rollout.max_response_tokens
    result: dict[str, Any] = {
        "leaves_per_step": leaves,
        "generated_tokens_per_step_at_most": tokens_per_step,
        "generated_tokens_at_most": tokens_per_step * config.steps,
    }
    if config.model.path is not None:
        shape = AutoConfig.from_pretrained(config.model.path)
        sizes = build_shape_only(shape, config.model.lora)
        width = BYTES[config.model.dtype]
        kv_per_token = 2 * shape.num_hidden_layers * _kv_width(shape) * width
        context = min(int(getattr(shape, "max_position_embeddings", 4096)), _longest(config))
        result |= sizes | {
            "weights_bytes": sizes["parameters"] * width,
            "training_bytes": sizes["trainable"] * (width + 2 * width),
            "kv_cache_bytes_at_most": leaves * context * kv_per_token,
        }
    result["text"] = "\n".join(_line(key, value) for key, value in result.items())
    return result


def _longest(config: Config) -> int:
    prompt = config.context.max_prompt_tokens or 2048
    turns = config.rollout.max_turns if config.context.mode == "full" else 1
    return prompt + turns * config.rollout.max_response_tokens


def _kv_width(shape: Any) -> int:
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    return int(heads * (getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads))


def _line(key: str, value: float) -> str:
    words = key.replace("_", " ")
    return f"{words.removesuffix(' bytes')}: {value / 2**30:.2f} GiB" if "bytes" in key else f"{words}: {value:,}"
