"""SPARK on household in a few minutes on a CPU: before and after, on held-out games."""

from pathlib import Path

from firesteel.config import Config


def config():
    """RL with branching at `<explore>` from the committed cold start; 200 held-out L0 games before and after.

    Adapters, although the model is small: in so few episodes the noise of full updates costs most of what they gain. No
    penalty for invalid actions: with it the rows of a group differ even where all are won or all lost, which is half of
    the groups, and these would cost as much of an update as the rest.
    """
    return Config.build(
        {
            "name": "quickstart",
            "steps": 36,
            "tasks_per_step": 16,
            "threads": 2,
            "model": {"path": str(Path(__file__).parent / "models" / "household"), "lora": {"rank": 8}},
            "environment": {"name": "household", "options": {"size": "small", "admissible": False}},
            "context": {"mode": "full", "prompts": "goal_last"},
            "rollout": {
                "criterion": "explore_tag", "num_leaves": 8, "num_roots": 4, "width": 2,
                "max_turns": 16, "max_response_tokens": 24, "processes": 2,
            },
            "reward": {"name": "outcome", "success": 1.0, "invalid_penalty": 0.0},
            "advantage": {"weighting": "path", "baseline": "group_mean"},
            "loss": {"aggregation": "sequence_mean"},
            "learner": {
                "lr": 2e-3, "schedule": "linear", "warmup_steps": 4, "minibatches": 8, "micro_batch_tokens": 8192,
            },
            "evaluation": {"temperature": 1.0, "test_split": "l0", "test_tasks": 200},
            "save_every": 5,
        }
    )  # fmt: skip
