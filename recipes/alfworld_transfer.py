"""Household and ALFWorld policies in each other's environment. Needs the extra alfworld and the package alfworld.

Games are generated and won by the planner before they are written; expert and random episodes of 300 of them, tagged by
rules, fine-tune a model; then it and the one it started from play held-out games of both environments. `model.path` is
the start, by default the household cold start that comes with the recipes. No reinforcement learning: what is measured
is whether the two environments are the same to a policy. Needs `pip install 'firesteel[alfworld]'` and
`pip install --no-deps 'alfworld>=0.4.2,<0.5'` (docs, Environments).
"""

from pathlib import Path

from firesteel.coldstart import collect_episodes
from firesteel.config import Config
from firesteel.environments.alfworld.generate import check_installed, write_games
from firesteel.evaluate import evaluate
from firesteel.files import write_json_atomic

NUM_GAMES = {"train": 300, "validation": 60, "test": 60}
HOUSEHOLD = {"environment": {"name": "household", "options": {"size": "small", "admissible": False}}}
TESTS = {"household l0": ("l0", 200), "alfworld seen": ("validation", None), "alfworld unseen": ("test", None)}


def config():
    """Supervised fine-tuning on ALFWorld's episodes; `run` adds the games and the data."""
    return Config.build(
        {
            "name": "alfworld_transfer",
            "steps": 400,
            "tasks_per_step": 4,
            "save_every": 0,
            "model": {"path": str(Path(__file__).parent / "models" / "household")},
            "environment": {"name": "alfworld", "options": {"admissible": False}},
            "context": {"mode": "full", "prompts": "goal_last"},
            "rollout": {"max_turns": 16, "max_response_tokens": 24},
            "advantage": {"weighting": "node"},
            "learner": {
                "kind": "sft", "lr": 3e-4, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.01,
                "micro_batch_tokens": 8192,
            },
            "evaluation": {"every": 0, "temperature": 1.0},
        }
    )  # fmt: skip


def run(config, session):
    """Games, episodes, fine-tuning, and six evaluations."""
    folder = Path(config.runs_dir) / config.name
    is_collected = (folder / "random.jsonl").exists()
    if not is_collected:
        check_installed()
    folder.mkdir(parents=True, exist_ok=True)

    def say(text):
        session.listen("note", {"text": text})

    games = folder / "games"
    if not is_collected:
        for split, count in NUM_GAMES.items():
            say(f"writing {count} games of {split}")
            write_games(games, count=count, splits=[split], seed=config.seed, size="small")
    config = config.updated({"environment": {"options": {"games": str(games)}}})
    expert, random = folder / "expert.jsonl", folder / "random.jsonl"
    if not expert.exists():
        collect_episodes(config, expert, count=NUM_GAMES["train"], say=say)
    if not random.exists():
        collect_episodes(config, random, count=NUM_GAMES["train"], policy="random", max_steps=12, narrate=True,
                         stale_share=0.2, say=say)  # fmt: skip
    data = [str(random), *[str(expert)] * 2]
    trained = session.train(config.updated({"name": f"{config.name}/expert", "data": data}))
    return measured(config, {"start": config.model.path, "fine-tuned on alfworld": trained["model"]}, folder)


def measured(config, models, folder):
    """The table: every model in every test."""
    results, lines = {}, [f"| model | {' | '.join(TESTS)} |", f"| --- {'| --: ' * len(TESTS)}|"]
    for name, path in models.items():
        results[name] = {}
        for test, (split, count) in TESTS.items():
            there = config.updated({"model": {"path": path}, "evaluation": {"num_tasks": count}})
            if test.startswith("household"):
                there = there.model_copy(update={"environment": Config.build(HOUSEHOLD).environment})
            results[name][test] = evaluate(there, split=split).summary()
        cells = [f"{r['success']:.1%} ({r['low']:.1%} to {r['high']:.1%})" for r in results[name].values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_json_atomic(folder / "transfer.json", results)
    return {"text": "\n".join(lines), "written": str(folder / "transfer.json")}
