"""Branching, rarity-first choice and hard sampling act together on BFCL's multi-turn tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults import without_flushing

from firesteel.annotate import collect_expert_episodes, save_episodes
from firesteel.candidates import is_rare
from firesteel.config import Config
from firesteel.environments.bfcl.package import HOW_TO_INSTALL
from firesteel.fewshot import ExampleIndex, is_guided
from firesteel.hard_sampling import Ledger
from firesteel.recipes import load_recipe
from firesteel.store import TreeStore
from firesteel.train import train
from firesteel.tree import Tree
from firesteel.types import Observation, Task

needs_bfcl = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None, reason=f"bfcl-eval is not installed: {HOW_TO_INSTALL}"
)
NUM_TASKS = 12


@pytest.fixture(autouse=True)
def fast_disk() -> Iterator[None]:
    with without_flushing():
        yield


def brief_class() -> type[Any]:
    from firesteel.environments.bfcl import Bfcl

    class Brief(Bfcl):
        """BFCL without its list of tools, which alone is ten thousand tokens; everything else is as it is."""

        def reset(self, task: Task, *, seed: int) -> Observation:
            text = super().reset(task, seed=seed).text
            start = text.find("Example: ")
            return Observation(text[start:] if start >= 0 else "Tools: all.")

    return Brief


Brief = brief_class()


def expert_file(folder: Path) -> Path:
    """The expert's first responses, exploring, and beside each the end of the turn, as often.

    A model of a few thousand parameters learns to write either, so that there is something to choose between.
    """
    from firesteel.environments.bfcl.environment import DONE

    shown = []
    for episode in collect_expert_episodes(Brief, Brief.tasks("train", count=NUM_TASKS)):
        first = replace(episode.steps[0], explore=True, reason="so")
        for step in (first, replace(first, action=DONE, explore=False)):
            shown.append(replace(episode, steps=(step,), final_observation=""))
    save_episodes(folder / "expert.jsonl", shown)
    return folder / "expert.jsonl"


def cold_model(folder: Path, config: Config) -> str:
    tiny = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "max_context": 2048, "vocab_size": 768}
    settings: dict[str, Any] = {
        "name": "cold", "steps": 150, "tasks_per_step": 6, "data": [str(expert_file(folder))],
        "model": {"path": None, "lora": None, "dtype": "float32", "tiny": tiny},
        "advantage": {"weighting": "node"}, "loss": {"kl_coef": 0.0},
        "learner": {"kind": "sft", "lr": 1e-2, "minibatches": 1, "schedule": "linear", "gradient_checkpointing": False},
        "evaluation": {"every": 0, "test_split": None},
    }  # fmt: skip
    return str(train(config.updated(settings))["model"])


def has_branched(tree: Tree) -> bool:
    return any(node.width > 1 and node.turn > 0 and node.fork_rung == "native" for node in tree.nodes)


@needs_bfcl
@pytest.mark.slow
def test_it_runs_until_each_of_the_three_has_acted(tmp_path: Path) -> None:
    options = {"curriculum": {"options": {"rollouts": 1, "max_fewshot_attempts": 1, "bold": True}}}
    config = load_recipe("composition").config().updated({"runs_dir": str(tmp_path)}, options)
    small: dict[str, Any] = {
        "steps": 30, "tasks_per_step": 4,
        "model": {"path": cold_model(tmp_path, config), "lora": None, "dtype": "float32"},
        "environment": {"name": f"{__name__}:Brief", "num_tasks": NUM_TASKS},
        "rollout": {"num_leaves": 3, "num_roots": 2, "max_turns": 3, "max_response_tokens": 96},
        "learner": {"gradient_checkpointing": False}, "loss": {"kl_coef": 0.0},
        "evaluation": {"every": 0, "test_split": None}, "save_every": 1,
    }  # fmt: skip
    acted = {"branching": False, "rarity first": False, "hard sampling": False}
    run = tmp_path / "composition"

    class Enough(Exception):
        """Each of the three has acted."""

    def look(event: str, facts: dict[str, Any]) -> None:
        if event != "step":
            return
        for tree in TreeStore(run / "trees").read_trees([facts["step"] - 1]):
            acted["branching"] |= has_branched(tree)
            acted["rarity first"] |= any(is_rare(node.step) for node in tree.nodes if node.step is not None)
            acted["hard sampling"] |= is_guided(tree.task) and "Example: " in tree.observation
        if all(acted.values()):
            raise Enough

    with pytest.raises(Enough):
        train(config.updated(small), listen=look)
    entries = Ledger(run / "hard_samples.jsonl").read()
    assert len(entries) == NUM_TASKS and any(entry["examples"] for entry in entries)


@needs_bfcl
def test_examples_are_other_tasks_turns_with_the_same_tools() -> None:
    from firesteel.environments.bfcl import Bfcl
    from firesteel.environments.bfcl.multi_turn import first_turn

    tasks = Bfcl.tasks("train", count=40)
    index = ExampleIndex(tasks, seed=0, per_tool=1, read=first_turn)
    own = next(task for task in tasks if index.draw(task, 0))
    shown = index.guide(own, index.draw(own, 0))
    environment = Bfcl(schemas="signature")
    text = environment.reset(shown, seed=0).text
    called = {call.name for answer in first_turn(own).answers for call in answer}
    lines = text.splitlines()
    at = [place for place, line in enumerate(lines) if line.startswith("Example: ")]
    assert at and all(any(name in lines[place + 1] for name in called) for place in at)
    assert "Example: " not in environment.reset(own, seed=0).text


@needs_bfcl
def test_responses_are_rated_by_rules() -> None:
    from firesteel.environments.bfcl import Bfcl

    environment = Bfcl(format="python")
    environment.reset(Bfcl.tasks("multi_turn_base", count=1)[0], seed=0)
    assert environment.rate("[ls()]") == ("ls", 8.5)
    assert environment.rate("<explore>so</explore>[ls(), pwd()]") == ("ls+pwd", 7.5)
    assert environment.rate("Done.") == ("answer", 6.5)
    assert environment.rate("[cd(nowhere=3)]") == ("cd", 3.0)
    assert environment.rate("[cd(") == ("unreadable", 1.0)
