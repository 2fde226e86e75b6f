"""The small household model that quickstart starts from: language from random play, then 300 expert episodes.

Stage 1 learns every token of random play (3,000 games of 12 random actions, each with what the expert would think
there) and of the expert's episodes. Stage 2 fine-tunes on the responses of 300 expert episodes tagged by rules; the
best of its evaluations on validation tasks counts. The result lies in `runs/household_coldstart/expert/model`; the
one that comes with the recipes is `recipes/models/household`.
"""

from pathlib import Path

from firesteel.coldstart import collect_episodes
from firesteel.config import Config


def config():
    """Stage 2; stage 1 differs in the fields that `run` replaces."""
    return Config.build(
        {
            "name": "household_coldstart",
            "steps": 600,
            "tasks_per_step": 4,
            "save_every": 0,
            "environment": {"name": "household", "options": {"size": "small", "admissible": False}},
            "context": {"mode": "full", "prompts": "compact"},
            "rollout": {"max_turns": 20, "max_response_tokens": 24},
            "advantage": {"weighting": "node"},
            "learner": {
                "kind": "sft", "lr": 5e-4, "schedule": "cosine", "warmup_steps": 20,
                "weight_decay": 0.01, "micro_batch_tokens": 8192,
            },
            "evaluation": {"every": 100, "num_tasks": 200, "temperature": 1.0},
            "data": ["expert.jsonl"],
        }
    )  # fmt: skip


def run(config, session):
    """Collects both sets of episodes, then trains the two stages."""
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    expert, random = folder / "expert.jsonl", folder / "random.jsonl"

    def say(text):
        session.listen("note", {"text": text})

    if not expert.exists():
        collect_episodes(config.updated({"seed": 1}), expert, count=300, say=say)
    if not random.exists():
        play = config.updated({"seed": 2})
        collect_episodes(play, random, count=3000, policy="random", max_steps=12, narrate=True, say=say)
    first = config.updated(
        {
            "name": f"{config.name}/language",
            "steps": 2500,
            "data": [str(random), str(expert)],
            "model": {"tiny": {"hidden": 128, "layers": 3, "max_context": 1024}},
            "learner": {"lr": 2e-3, "warmup_steps": 50, "train_prompts": True},
            "evaluation": {"every": 0},
        }
    )
    language = session.train(first)
    second = {
        "name": f"{config.name}/expert",
        "data": [str(expert)],
        "model": {"path": language["model"], "tiny": None},
    }
    return session.train(config.updated(second))
