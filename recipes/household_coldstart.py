"""The small household model that quickstart starts from: language from random play, then 300 expert episodes.

Stage 1 learns the language of random play, each action with what the expert would think there, and of the expert's
episodes. Of 26,000 games of 12 random actions those are kept in which a wanted object comes into sight (a little more
than half), because the model must learn to see it; one action in five was possible earlier and need not be now, so
that the text shows failing actions too. Stage 2 fine-tunes on the responses of 300 expert episodes tagged by rules;
the best of its evaluations on validation tasks counts. The result lies in `runs/household_coldstart/expert/model`; the
one that comes with the recipes, `recipes/models/household`, is of an earlier state of this recipe (29.5% on validation
games; see the lab book).
"""

from pathlib import Path

from firesteel.annotate import load_episodes, save_episodes
from firesteel.coldstart import collect_episodes
from firesteel.config import Config


def config():
    """Stage 2; stage 1 differs in the fields that `run` replaces."""
    return Config.build(
        {
            "name": "household_coldstart",
            "steps": 800,
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
        play, everything = config.updated({"seed": 2}), folder / "play.jsonl"
        collect_episodes(
            play, everything, count=26_000, policy="random", max_steps=12, narrate=True, stale_share=0.2, say=say
        )
        save_episodes(random, [episode for episode in load_episodes(everything) if comes_into_sight(episode)])
    first = config.updated(
        {
            "name": f"{config.name}/language",
            "steps": 6000,
            "data": [str(random), str(expert)],
            "model": {"tiny": {"hidden": 128, "layers": 3, "max_context": 1024}},
            "learner": {"lr": 2e-3, "warmup_steps": 50, "prompt_weight": 1.0},
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


def comes_into_sight(episode):
    """Whether some thought of the episode is that the wanted object is here."""
    return any(step.reason.endswith(" is here") for step in episode.steps)
