"""Small real runs: a cold-started model of 80,000 parameters, and settings under which a run takes a second."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from firesteel.annotate import load_episodes, save_episodes
from firesteel.coldstart import collect_episodes
from firesteel.config import Config
from firesteel.train import train

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

SURROUNDINGS: dict[str, Any] = {
    "environment": {"name": "household", "options": {"size": "small", "admissible": False}},
    "context": {"mode": "full", "prompts": "compact"},
    "rollout": {"max_turns": 3, "max_response_tokens": 24},
}


def cold_start(folder: Path) -> Path:
    """Trains tokenizer and model on 20 expert episodes until most responses are well-formed; the model's directory.

    Only the first two steps of an episode are kept: they are short to train on, and most first steps explore.
    """
    episodes = folder / "expert.jsonl"
    config = Config.build(
        SURROUNDINGS,
        {
            "name": "cold", "runs_dir": str(folder), "steps": 160, "tasks_per_step": 4, "save_every": 0,
            "data": [str(episodes)],
            "model": {
                "tiny": {
                    "hidden": 48, "layers": 2, "heads": 2, "kv_heads": 1, "vocab_size": 520, "initializer_range": 0.1,
                }
            },
            "learner": {"kind": "sft", "lr": 1e-2, "schedule": "linear", "warmup_steps": 5},
        },
    )  # fmt: skip
    collect_episodes(config, episodes, count=20, say=lambda text: None)
    save_episodes(episodes, [replace(episode, steps=episode.steps[:2]) for episode in load_episodes(episodes)])
    return Path(train(config)["model"])


def small_config(model: Path, runs_dir: Path, *changes: dict[str, Any]) -> Config:
    """Three updates on two tasks each, of two roots and at most four leaves."""
    return Config.build(
        SURROUNDINGS,
        {
            "name": "small", "runs_dir": str(runs_dir), "steps": 3, "tasks_per_step": 2, "save_every": 1,
            "model": {"path": str(model)},
            "rollout": {"num_leaves": 4, "num_roots": 2},
            "learner": {"lr": 1e-3, "minibatches": 2},
        },
        *changes,
    )  # fmt: skip


def differing_files(one: Path, other: Path) -> list[str]:
    """The files in which two runs differ; what tells the time or where a run lies does not count."""
    first, second = _contents(one), _contents(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _contents(run: Path) -> dict[str, bytes]:
    uncompared = {"timings.jsonl", "environment.json", "lock", "config.yaml", "summary.json"}
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in uncompared)
    contents = {path.relative_to(run).as_posix(): path.read_bytes() for path in files}
    summary = json.loads((run / "summary.json").read_text()) | {"seconds": None, "model": None}
    return contents | {"summary.json": json.dumps(summary).encode()}


def load_recipe_module(name: str) -> ModuleType:
    """A file of `recipes/` as a module."""
    specification = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module
