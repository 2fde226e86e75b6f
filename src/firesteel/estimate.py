"""What a training would cost, without training: tokens, and memory from the model's shapes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from firesteel.config import Config

BYTES = {"float32": 4, "bfloat16": 2}
NF4_BYTES = 0.55
"""Of a weight in four bits: half a byte, and the scales of its blocks."""
DISTRIBUTIONS = 4
"""Of a pass of offline PPO: logits and log-probabilities over the vocabulary, of the policy and of the old one."""
_LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
}
"""Llama shapes of models whose files the Hub shows only after a licence is accepted."""
ASSUMED_PROMPT_TOKENS = 2048
"""What an episode's prompts count where `context.max_prompt_tokens` is not set."""


def estimate(config: Config) -> dict[str, Any]:
    """Bounds for a configuration; `text` is for people.

    Tokens assume that every leaf plays all turns and uses all response tokens, for each of `rollout.candidates`;
    evaluations are not counted, and learning from stored episodes generates nothing else. Probes of a hard-sampling
    curriculum are counted as if no rollout of them solved anything, where `environment.num_tasks` says how many tasks
    there are. Memory counts weights, gradients and AdamW moments of what is trained, and in `full` contexts the KV
    cache of one step's leaves; activations come on top. Offline PPO adds its critic (a second model, with adapters,
    head and moments for every fold) and the distributions of one pass; it and supervised learning count the tokens
    that they read. Nothing is downloaded for the models of `KNOWN_SHAPES`.

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
    if not grows:
        result["trained_tokens_at_most"] = config.steps * config.tasks_per_step * _longest(config)
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
    from firesteel.models import build_shape_only

    shape = _shape(config)
    sizes, width = build_shape_only(shape, config.model.lora), BYTES[config.model.dtype]
    kv_per_token = 2 * shape.num_hidden_layers * _kv_width(shape) * width
    context = min(int(getattr(shape, "max_position_embeddings", 4096)), _longest(config))
    weights = int(sizes["parameters"] * (NF4_BYTES if config.model.quantization == "nf4" else width))
    sizes |= {
        "weights_bytes": weights,
        "training_bytes": sizes["trainable"] * (width + 2 * width),
        "kv_cache_bytes": leaves * context * kv_per_token,
    }
    return sizes | _offline_ppo(config, shape, weights) if config.learner.kind == "ppo" else sizes


def _shape(config: Config) -> Any:
    """The configuration of the model that `model.path` names."""
    from transformers import LlamaConfig

    from firesteel.models import load_model_config

    path = config.model.path
    assert path is not None
    if path in KNOWN_SHAPES and not Path(path).exists():
        return LlamaConfig(**KNOWN_SHAPES[path])
    return load_model_config(path, trust_remote_code=config.model.trust_remote_code)


def _offline_ppo(config: Config, shape: Any, weights: int) -> dict[str, int]:
    """Bytes that only offline PPO needs; critics are kept in float32."""
    from firesteel.config import LoraConfig
    from firesteel.models import build_shape_only

    critic = config.critic
    adapters = build_shape_only(shape, LoraConfig(rank=critic.rank))["trainable"]
    head = (shape.hidden_size + 1) * critic.hidden + critic.hidden + 1
    per_fold = 3 * BYTES["float32"] * (adapters + head)  # the values and two moments
    return {
        "critic_bytes": weights + critic.folds * per_fold if critic.folds else 0,
        "distributions_of_a_pass_bytes": (
            DISTRIBUTIONS * BYTES["float32"] * config.learner.micro_batch_tokens * shape.vocab_size
        ),
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
