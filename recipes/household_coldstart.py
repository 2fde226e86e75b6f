"""The small household model that quickstart starts from: language from random play, then 300 expert episodes.

Stage 1 learns to predict the text of random play (1,500 episodes of 12 steps) together with the expert's;
stage 2 fine-tunes on 300 expert episodes tagged by rules, up to the best of its evaluations on validation tasks.
The result is `recipes/models/household` (copy it there from the run's `model` folder).
"""

from pathlib import Path

from firesteel.coldstart import collect_episodes
from firesteel.config import Config


def config():
    """Stage 2; stage 1 differs in the fields that `run` replaces."""
    return Config.build(
        {
            "name": "household_coldstart",
            "steps": 150,
            "tasks_per_step": 16,
            "environment": {"name": "household", "options": {"size": "full", "admissible": False}},
            "context": {"mode": "full", "prompts": "compact"},
            "rollout": {"max_turns": 30, "max_response_tokens": 24},
            "advantage": {"weighting": "node"},
            "learner": {
                "kind": "sft", "lr": 1e-3, "schedule": "cosine", "warmup_steps": 20,
                "weight_decay": 0.01, "micro_batch_tokens": 8192,
            },
            "evaluation": {"every": 25, "num_tasks": 200, "temperature": 1.0},
            "data": ["expert.jsonl"],
        }
    )  # fmt: skip


def run(config, session):
    """Collects both sets of episodes, then trains the two stages."""
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    expert, random = folder / "expert.jsonl", folder / "random.jsonl"
    say = lambda text: session.listen("note", {"text": text})  # noqa: E731
    if not expert.exists():
        collect_episodes(config.updated({"seed": 1}), expert, count=300, say=say)
    if not random.exists():
        collect_episodes(config.updated({"seed": 2}), random, count=1500, policy="random", max_steps=12, say=say)
    first = config.updated(
        {
            "name": f"{config.name}/language",
            "steps": 200,
            "data": [str(random), str(expert)],
            "model": {"tiny": {"hidden": 96, "layers": 3, "max_context": 1536}},
            "learner": {"lr": 3e-3, "train_prompts": True},
            "evaluation": {"every": 0},
        }
    )
    language = session.train(first)
    second = {"name": f"{config.name}/expert", "data": [str(expert)], "model": {"path": language["model"], "tiny": None}}
    return session.train(config.updated(second))
