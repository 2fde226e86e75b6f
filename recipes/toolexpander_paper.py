"""ToolExpander at the paper's scale, Qwen2.5-1.5B or 7B on 62,687 samples: loads and dry-runs, was never run.

It wants `environment.options.path`, a file of xLAM's or ToolACE's samples (`environment.options.source` says which),
and GPUs: the paper used eight with 80 GB. `firesteel train toolexpander_paper --dry-run` prints what it would cost.
`model.path=Qwen/Qwen2.5-7B-Instruct` is the larger model.
"""

from firesteel.config import PRESETS, Config

SAMPLES, BATCH, EPOCHS = 62_687, 1024, 10
STEPS_PER_EPOCH = SAMPLES // BATCH


def config():
    """The preset `toolexpander` and the paper's sizes; a round is an epoch, which the paper does not say."""
    return Config.build(
        PRESETS["toolexpander"],
        {
            "name": "toolexpander_paper",
            "steps": EPOCHS * STEPS_PER_EPOCH,
            "tasks_per_step": BATCH,
            "model": {"path": "Qwen/Qwen2.5-1.5B-Instruct", "dtype": "bfloat16"},
            "environment": {
                "name": "tool_calls", "split": "all", "num_tasks": SAMPLES,
                "options": {"source": "xlam", "path": "xlam_function_calling_60k.json"},
            },
            "curriculum": {"options": {"steps_per_round": STEPS_PER_EPOCH}},
            "learner": {"gradient_checkpointing": True},
            "save_every": STEPS_PER_EPOCH,
        },
    )  # fmt: skip
