"""SPaRK's offline PPO at its paper's size: an 8B model, a GPU of 80 GB. Not run here. Needs the extra tools.

Llama-3.1-8B, QLoRA of rank 8; needs `bitsandbytes`. Wants `data`, the rows of 2,500 MMLU-Pro questions in five steps
each. To write them, and with `--dry-run` to see their price: `firesteel trajectories rows --environment mmlu_pro
--count 2500 --writer llm --judge llm`, with `--base-url`. Then an SFT stage: `firesteel train spark_rare_paper
learner.kind=sft name=spark_rare_sft steps=470`, and this with `model.lora.adapter=runs/spark_rare_sft/model`. Numbers
that the paper does not give are ours: rho, the weight of the KL, learning rates, batch, epochs.
"""

from firesteel.config import Config
from firesteel.presets import PRESETS


def config():
    """PPO, three epochs of 2,500 trajectories in batches of 16."""
    return Config.build(
        PRESETS["spark_rare"],
        {
            "name": "spark_rare_paper",
            "steps": 470,
            "tasks_per_step": 16,
            "data": ["rows/rows.jsonl"],
            "model": {
                "path": "meta-llama/Llama-3.1-8B-Instruct", "dtype": "bfloat16", "quantization": "nf4",
                "lora": {"rank": 8, "alpha": 16},
            },
            "environment": {"name": "mmlu_pro", "options": {"tools": "offline"}},
            "context": {"mode": "full", "prompts": "spark"},
            "rollout": {"criterion": "chain", "max_turns": 6, "max_response_tokens": 512},
            "advantage": {"weighting": "node"},
            "learner": {
                "lr": 1e-5, "warmup_steps": 10, "minibatches": 2, "micro_batch_tokens": 4096,
                "gradient_checkpointing": True,
            },
            "ppo": {"rho": 0.5, "filter": "none", "kl_coef": 1.0, "on_target": "stop"},
            "critic": {"folds": 5, "lr": 1e-4, "hidden": 1024},
            "evaluation": {"temperature": 0.0, "num_tasks": 200},
        },
    )  # fmt: skip
