"""SPARK's branching, SPaRK's rare tools and hard sampling in one run on BFCL. Needs the extra bfcl and bfcl-eval.

Episodes of its multi-turn tasks are forked, backends and all, after steps in which the model explores; at every step
three responses are sampled and the rarest sound one is executed; tasks that no rollout solves are shown with other
tasks' solved turns (ToolExpander). Needs a model that can call tools. It loads and its parts act (tests); it was not
run.
"""

from firesteel.config import Config


def config():
    """Each method is one group of settings, and can be switched off by itself."""
    return Config.build(
        {
            "name": "composition",
            "steps": 100,
            "tasks_per_step": 8,
            "model": {"path": "Qwen/Qwen2.5-1.5B-Instruct", "dtype": "bfloat16", "lora": {"rank": 32, "alpha": 64}},
            "environment": {"name": "bfcl", "split": "train", "options": {"schemas": "signature"}},
            "context": {"mode": "full", "prompts": "tool_calls_explore"},
            "rollout": {
                # SPARK
                "criterion": "explore_tag", "num_leaves": 8, "num_roots": 4, "width": 2,
                # SPaRK
                "candidates": 3, "selector": "rarity_first", "selector_options": {"threshold": 6.0},
                "max_turns": 24, "max_response_tokens": 384,
            },
            # ToolExpander
            "curriculum": {
                "name": "hard_sampling",
                "options": {
                    "steps_per_round": 25, "rollouts": 10, "per_tool": 1, "max_examples": 3,
                    "read": "firesteel.environments.bfcl.multi_turn:first_turn",
                },
            },
            "reward": {"name": "score", "invalid_penalty": 0.01},
            "advantage": {"weighting": "path", "baseline": "leave_one_root_out"},
            "loss": {"kl_coef": 0.001},
            "learner": {"lr": 1e-5, "minibatches": 2, "gradient_checkpointing": True},
            "evaluation": {"every": 10, "split": "validation", "num_tasks": 40, "test_split": "test", "test_tasks": 40},
        }
    )  # fmt: skip
