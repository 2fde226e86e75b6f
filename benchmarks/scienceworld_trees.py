"""A short SPARK run on the ScienceWorld simulator, whose trees `tree_packed.py` trains on: a recipe in a file.

The stages of `recipes/spark_scienceworld.py`, cut down: fewer gold paths, no random play, fewer steps, and two steps
of RL with branching at `<explore>`, nothing evaluated. The model learns to write tags and actions, not to solve tasks;
the observations are the simulator's, and the trees have the shapes that the recipe's budget gives them.

    firesteel train benchmarks/scienceworld_trees.py
"""

from pathlib import Path

from firesteel.coldstart import collect_episodes
from firesteel.recipes import load_recipe

EPISODES = 120
"""Gold paths that are collected, training variations of six task types."""


def config():
    """The recipe's RL stage, two steps of it."""
    return (
        load_recipe("spark_scienceworld")
        .config()
        .updated(
            {
                "name": "scienceworld_trees",
                "steps": 2,
                "token_budget": None,
                "threads": 1,
                "rollout": {"processes": 1},
                "evaluation": {"every": 0, "test_split": None},
                "save_every": 0,
            }
        )
    )


def run(config, session):
    """Collects, teaches, grows."""
    recipe = load_recipe("spark_scienceworld").module
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    expert = folder / "expert.jsonl"
    if not expert.exists():
        collect_episodes(
            config.updated({"seed": 1}), expert, count=EPISODES, max_steps=20,
            say=lambda text: session.listen("note", {"text": text}),
        )  # fmt: skip
    language = recipe.language_stage(config, expert, expert).updated({"steps": 150, "data": [str(expert)]})
    model = session.train(language)["model"]
    stage = recipe.expert_stage(config, expert) | {"steps": 100}
    stage["evaluation"] = {"every": 0, "test_split": None}
    started = session.train(config.updated({"model": {"path": model}}, stage))
    return session.train(
        config.updated({"name": f"{config.name}/explore", "model": recipe.adapted(config, started["model"])})
    )
