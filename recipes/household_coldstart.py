"""The small household model that quickstart starts from: language from random play, then 300 expert episodes.

Two stages. `language` learns every token of random play, each drawn action with what the expert would think there, and
of the expert's episodes. Of the games of 12 random actions those are kept in which a wanted object comes into sight (a
little more than half); one action in five was possible earlier and need not be now, to show failing actions too.
`expert` fine-tunes on responses alone: the 300 expert episodes, tagged by rules, and fewer random games, whose drawn
actions are not imitated; with the expert's episodes alone the model forgets how to read. The best of its evaluations on
validation tasks counts. The result lies in `runs/household_coldstart/expert/model`; it comes with the recipes as
`recipes/models/household`.
"""

from pathlib import Path

from firesteel.annotate import load_episodes, save_episodes
from firesteel.coldstart import collect_episodes
from firesteel.config import Config

RANDOM_GAMES = 16_000


def config():
    """The last stage; the others differ in the fields that `run` replaces."""
    return Config.build(
        {
            "name": "household_coldstart",
            "steps": 1000,
            "tasks_per_step": 4,
            "save_every": 0,
            "environment": {"name": "household", "options": {"size": "small", "admissible": False}},
            "context": {"mode": "full", "prompts": "goal_last"},
            "rollout": {"max_turns": 16, "max_response_tokens": 24},
            "advantage": {"weighting": "node"},
            "learner": {
                "kind": "sft", "lr": 5e-4, "schedule": "cosine", "warmup_steps": 20,
                "weight_decay": 0.01, "micro_batch_tokens": 8192,
            },
            "evaluation": {"every": 100, "num_tasks": 100, "temperature": 1.0},
            "data": ["expert.jsonl"],
        }
    )  # fmt: skip


def run(config, session):
    """Collects the episodes, then trains the two stages."""
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    expert, random = str(folder / "expert.jsonl"), str(folder / "random.jsonl")
    collect(config, folder, lambda text: session.listen("note", {"text": text}))
    tiny = {"hidden": 128, "layers": 3, "max_context": 1024, "initializer_range": 0.05}
    language = {
        "name": f"{config.name}/language", "steps": 5000, "data": [random, *[expert] * 10], "model": {"tiny": tiny},
        "learner": {"lr": 2e-3, "warmup_steps": 50, "prompt_weight": 1.0}, "evaluation": {"every": 0},
    }  # fmt: skip
    model = session.train(config.updated(language))["model"]
    last = {"name": f"{config.name}/expert", "data": [random, *[expert] * 40], "model": {"path": model}}
    return session.train(config.updated(last))


def collect(config, folder, say):
    """Writes the files of episodes that are not there yet."""
    if not (folder / "expert.jsonl").exists():
        collect_episodes(config.updated({"seed": 1}), folder / "expert.jsonl", count=300, say=say)
    if not (folder / "random.jsonl").exists():
        play = folder / "play.jsonl"
        collect_episodes(config.updated({"seed": 2}), play, count=RANDOM_GAMES, policy="random", max_steps=12,
                         narrate=True, stale_share=0.2, say=say)  # fmt: skip
        save_episodes(
            folder / "random.jsonl", [episode for episode in load_episodes(play) if comes_into_sight(episode)]
        )


def comes_into_sight(episode):
    """Whether some thought of the episode is that the wanted object is here."""
    return any(step.reason.endswith(" is here") for step in episode.steps)
