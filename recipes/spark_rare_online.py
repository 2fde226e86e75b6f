"""SPaRK online: the same learner on rows that the current model wrote. Needs the extra tools.

The paper trains offline and leaves online PPO open. Here, from the same supervised start: offline SPaRK on the stored
trajectories, and rounds in which the model writes the thoughts and candidates, the judge scores them, rarity decides
what is executed, and PPO learns from these rows alone, its old policy being the model that wrote them. Both do the same
number of updates on as many trajectories each; but the rounds see 96 questions, again and again, and offline SPaRK all
320. `model.path=DIR` is a base, such as that of `spark_rare`.
"""

from dataclasses import replace
from pathlib import Path

from firesteel.errors import ConfigError
from firesteel.files import write_atomic, write_json_atomic
from firesteel.recipes import load_recipe
from firesteel.trajectories import TrajectorySettings

ROUNDS = 4
QUESTIONS = 96
"""The first ones of the training split; what the model does with them is written anew in each round."""


def config():
    """The settings of `spark_rare`."""
    return load_recipe("spark_rare").config().updated({"name": "spark_rare_online"})


def run(config, session, seeds=None):
    """The supervised start, offline SPaRK, and the rounds, for every seed."""
    stages = load_recipe("spark_rare").module
    folder = Path(config.runs_dir) / config.name
    base = stages.base_model(config, session)
    stored = stages.rows(stages.write_trajectories(config, session, "rarity_first", selector="rarity_first"))
    results = {}
    for seed in range(config.seed, config.seed + (seeds or stages.SEEDS)):
        seeded = config.updated({"seed": seed})
        start = session.train(stages.sft_stage(seeded, base, "rarity_first", stored))["model"]
        found = {"SFT": stages.scored(seeded, session, start)}
        found["SPaRK, offline"] = learnt(stages, seeded, session, "offline", start, stored)[1]
        found |= online(stages, seeded, session, start)
        for arm, scores in found.items():
            results.setdefault(arm, []).append(scores)
        write_json_atomic(folder / "results.json", results)
    table = f"{stages.markdown_table(results)}\n{stages.training_table(results)}"
    write_atomic(folder / "table.md", table.encode())
    return {"text": table, "table": str(folder / "table.md"), "results": str(folder / "results.json")}


def online(stages, config, session, model):
    """What the model comes to after each round."""
    found, updates = {}, max(1, config.steps // ROUNDS)
    settings = TrajectorySettings(steps=stages.STEPS_PER_QUESTION, connections=1)
    for number in range(1, ROUNDS + 1):
        job = {
            "writer": "policy", "selector": "rarity_first",
            "policy": {"model": {"path": model}, "context": config.context.model_dump()},
            "settings": replace(settings, seed=1000 * config.seed + number),
        }  # fmt: skip
        name = f"seed{config.seed}-round{number}"
        written = stages.rows(stages.write_trajectories(config, session, name, QUESTIONS, **job))
        short = config.updated({"steps": updates})
        model, found[f"SPaRK, online, round {number}"] = learnt(
            stages, short, session, f"round{number}", model, written
        )
    return found


def learnt(stages, config, session, name, model, rows):
    """PPO from a model on some rows: the new model (the old one where the reward says nothing), and its scores."""
    stage = stages.ppo_stage(config, name, model, rows, config.ppo.rho)
    try:
        model = session.train(stage)["model"]
    except ConfigError as error:
        return model, stages.refused(error)
    return model, stages.scored(config, session, model) | stages.chosen_figures(stage)
