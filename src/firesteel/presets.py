"""The published settings of papers, as layers of `Config.build`."""

from __future__ import annotations

from typing import Any

_TOOLEXPANDER: dict[str, Any] = {
    "tasks_per_step": 1024,
    "context": {"mode": "full", "prompts": "tool_calls"},
    "rollout": {"criterion": "chain", "num_leaves": 5, "num_roots": 5, "max_turns": 1, "temperature": 0.7,
                "max_response_tokens": 8192},
    "advantage": {"weighting": "path", "baseline": "group_mean", "over": "leaf", "std": "sample", "eps": 1e-6},
    "loss": {"clip_low": 0.2, "entropy_coef": 0.0},
    "learner": {"kind": "policy_gradient", "lr": 1e-6, "minibatches": 4},
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "spark": {
        "steps": 120,
        "tasks_per_step": 16,
        "context": {"mode": "window", "prompts": "spark", "history_length": 5, "history_reasoning": False,
                    "show_admissible": True, "max_prompt_tokens": 2048},
        "rollout": {"criterion": "explore_tag", "num_leaves": 8, "num_roots": 4, "width": 2, "max_turns": 30,
                    "temperature": 1.0, "max_response_tokens": 512, "pad_groups": True},
        "reward": {"name": "outcome", "success": 10.0, "invalid_penalty": 0.1},
        "advantage": {"weighting": "leaf", "baseline": "group_mean", "over": "step", "std": "sample", "eps": 1e-6},
        "loss": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0, "kl": "k3", "kl_coef": 0.01,
                 "entropy_coef": 0.001, "aggregation": "token_mean"},
        "learner": {"kind": "policy_gradient", "lr": 1e-6, "weight_decay": 0.01, "betas": [0.9, 0.999],
                    "max_grad_norm": 1.0, "minibatch_rows": 256},
        "evaluation": {"temperature": 0.4, "seed": 0},
    },
    "spark_rare": {
        "model": {"lora": {"rank": 8}},
        "loss": {"clip_low": 0.2, "clip_high": 0.2},
        "learner": {"kind": "ppo"},
        "ppo": {"reward": "gap", "reward_scale": "raw", "filter": "process_ok_and_correct", "kl_target": 0.2},
        "critic": {"rank": 8},
    },
    "swirl": {
        "loss": {"clip_low": 1.0, "clip_high": 1e6},
        "learner": {"kind": "ppo"},
        "ppo": {"reward": "score", "filter": "all_process_ok", "sft_filter": "all_process_ok", "kl_coef": 0.0,
                "on_target": "report"},
        "critic": {"folds": 0},
    },
    "toolexpander": {
        **_TOOLEXPANDER,
        "environment": {"name": "tool_calls", "options": {"format": "hermes", "checker": "exact"}},
        "reward": {"name": "outcome", "success": 1.0, "invalid_penalty": 0.0},
        "loss": {**_TOOLEXPANDER["loss"], "clip_high": 0.2, "kl": "k3", "kl_coef": 0.001},
        "curriculum": {"name": "hard_sampling", "options": {"mode": "replace", "rollouts": 10, "lr_decay": 0.8}},
    },
    "self_exemplifying": {
        **_TOOLEXPANDER,
        "environment": {"name": "tool_calls", "options": {"format": "hermes", "checker": "exact", "exemplify": True}},
        "reward": {"name": "self_exemplifying"},
        "loss": {**_TOOLEXPANDER["loss"], "clip_high": 0.26, "kl_coef": 0.0},
        "learner": {**_TOOLEXPANDER["learner"], "lr_decay": 0.8},
    },
    "tool_zero": {
        "tasks_per_step": 128,
        "environment": {
            "name": "tool_calls", "options": {"format": "hermes", "checker": "exact", "reasoning": "allowed"},
        },
        "context": {"mode": "full", "prompts": "tool_calls", "max_prompt_tokens": 2048},
        "rollout": {"criterion": "chain", "num_leaves": 8, "num_roots": 8, "max_turns": 1, "temperature": 0.8,
                    "max_response_tokens": 2048},
        "reward": {"name": "tool_zero", "invalid_penalty": 0.0},
        "advantage": {"weighting": "path", "baseline": "group_mean", "over": "leaf", "std": "sample", "eps": 1e-6},
        "loss": {"clip_low": 0.2, "clip_high": 0.2, "kl_coef": 0.0},
        "learner": {"kind": "policy_gradient", "lr": 5e-7, "schedule": "cosine", "minibatches": 4},
    },
}  # fmt: skip
"""Published settings as layers of `Config.build`. `spark`: 2601.20209 and its code; where the two disagree on the
training temperature (0.4 and 1.0), the code's 1.0. `spark_rare`: what 2507.11371 states of its offline PPO; it filters
before it trains. `swirl`: 2504.04736, process filter and step-wise policy gradient, on the logged actions.
`toolexpander` and `self_exemplifying`: the two methods of 2510.07737, its Tables 9-11. Mini-batches are not stated
there; four, as in veRL's defaults (256 of 1,024 tasks), because with one no ratio could be clipped. `tool_zero`:
2511.01934, whose k = 0.1 and m = 25 are those of the reward; its batch of 128 is taken for tasks, with four
mini-batches for the same reason, and its masked names belong to the data."""
