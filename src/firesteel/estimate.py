"""What a training would cost, without training: tokens, and memory from the model's shapes."""

from __future__ import annotations

import inspect
from typing import Any

from firesteel.config import Config

BYTES = {"float32": 4, "bfloat16": 2}
NF4_BYTES = 0.55
"""Of a weight in four bits: half a byte, and the scales of its blocks."""
ASSUMED_PROMPT_TOKENS = 2048
"""What an episode's prompts count where `context.max_prompt_tokens` is not set."""


def estimate(config: Config) -> dict[str, Any]:
    """Bounds for a configuration; `text` is for people.

    Tokens assume that every leaf plays all turns and uses all response tokens, for each of `rollout.candidates`;
    evaluations are not counted, and learning from stored episodes generates nothing else. Probes of a hard-sampling
    curriculum are counted as if no rollout of them solved anything, where `environment.num_tasks` says how many tasks
    there are. Memory counts weights, gradients and AdamW moments of what is trained, and in `full` contexts the KV
    cache of one step's leaves; activations come on top.

    Raises:
        ModelError: `model.path` is no decoder-only model.
        ConfigError: the curriculum has options that it cannot work with.
    """
    rollout, grows = config.rollout, config.learner.kind == "policy_gradient"
    leaves = config.tasks_per_step * rollout.num_leaves if grows else 0
    tokens_per_step = leaves * rollout.max_turns * rollout.candidates * rollout.max_response_tokens
    result: dict[str, Any] = {
        "leaves_per_step": leaves,
        "generated_tokens_per_step_at_most": tokens_per_step,
        "generated_tokens_at_most": _within_budget(tokens_per_step, config),
    }
    if grows and config.curriculum.name == "hard_sampling":
        result |= _probes(config)
    if config.model.path is not None:
        result |= _memory(config, leaves)
    result["text"] = "\n".join(_line(key, value) for key, value in result.items())
    return result


def _within_budget(tokens_per_step: int, config: Config) -> int:
    """The tokens of all steps, or of those that it takes to spend the budget."""
    every = tokens_per_step * config.steps
    return every if config.token_budget is None else min(every, config.token_budget + tokens_per_step)


def _probes(config: Config) -> dict[str, int]:
    """What a round's probes come to at most: raw rollouts of each task, and as many for every draw of examples."""
    from firesteel.hard_sampling import HardSampling, check_options

    defaults, options = inspect.signature(HardSampling).parameters, config.curriculum.options
    names = ("mode", "steps_per_round", "rollouts", "max_fewshot_attempts")
    mode, steps, rollouts, attempts = (options.get(name, defaults[name].default) for name in names)
    check_options(mode=mode, steps_per_round=steps, rollouts=rollouts, max_fewshot_attempts=attempts)
    each = {"replace": 1 + attempts, "add": 1 + attempts, "drop": 1}.get(mode, 0) * rollouts
    rounds, tasks = -(-config.steps // steps), config.environment.num_tasks
    result = {"probe_rounds": rounds, "probe_rollouts_per_task_and_round_at_most": each}
    if tasks is None:
        return result
    tokens = config.rollout.max_turns * config.rollout.max_response_tokens
    return result | {"probe_tokens_at_most": rounds * tasks * each * tokens}


def _memory(config: Config, leaves: int) -> dict[str, int]:
    """Parameter counts, and bytes."""
    from firesteel.models import build_shape_only, load_model_config

    assert config.model.path is not None
    shape: Any = load_model_config(config.model.path, trust_remote_code=config.model.trust_remote_code)
    sizes, width = build_shape_only(shape, config.model.lora), BYTES[config.model.dtype]
    kv_per_token = 2 * shape.num_hidden_layers * _kv_width(shape) * width
    context = min(int(getattr(shape, "max_position_embeddings", 4096)), _longest(config))
    return sizes | {
        "weights_bytes": int(sizes["parameters"] * (NF4_BYTES if config.model.quantization == "nf4" else width)),
        "training_bytes": sizes["trainable"] * (width + 2 * width),
        "kv_cache_bytes": leaves * context * kv_per_token,
    }


def _longest(config: Config) -> int:
    """Tokens of one episode's context: its prompts and all its responses, or of one step in `window` contexts."""
    turns = config.rollout.max_turns if config.context.mode == "full" else 1
    return (config.context.max_prompt_tokens or ASSUMED_PROMPT_TOKENS) + turns * config.rollout.max_response_tokens


def _kv_width(shape: Any) -> int:
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    return int(heads * (getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads))


def _line(key: str, value: float) -> str:
    words = key.replace("_", " ")
    return f"{words.removesuffix(' bytes')}: {value / 2**30:.2f} GiB" if "bytes" in key else f"{words}: {value:,}"
