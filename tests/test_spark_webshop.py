"""The recipe `spark_webshop`: all its stages, much smaller than they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import without_flushing
from small_runs import load_recipe_module

from firesteel.annotate import load_episodes
from firesteel.recipes import RecipeSession


@pytest.fixture(autouse=True)
def fast_disk() -> Iterator[None]:
    with without_flushing():
        yield


def test_every_stage_runs_and_leaves_what_the_next_one_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe_module("spark_webshop")
    sizes = {"NUM_EXPERT": 24, "NUM_RANDOM": 4, "LANGUAGE_STEPS": 2, "EXPERT_STEPS": 2}
    tiny = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "max_context": 3072, "vocab_size": 520}
    for name, value in {**sizes, "TINY": tiny}.items():
        monkeypatch.setattr(recipe, name, value)
    config = recipe.config().updated(
        {
            "runs_dir": str(tmp_path), "steps": 1, "tasks_per_step": 1,
            "environment": {"options": {"num_products": 144}},
            "rollout": {"num_leaves": 2, "num_roots": 2, "max_turns": 2, "max_response_tokens": 8},
            "evaluation": {"every": 0, "test_tasks": 2},
        }
    )  # fmt: skip
    done: list[str] = []

    def listen(event: str, facts: dict[str, Any]) -> None:
        done.extend([facts["summary"]["name"]] if event == "done" else [])

    summary = recipe.run(config, RecipeSession(False, listen))
    assert done == ["spark_webshop/language", "spark_webshop/expert", "spark_webshop/spark"]
    assert (summary["steps"], summary["before"]["n"], summary["after"]["n"]) == (1, 2, 2)
    assert (Path(summary["model"]) / "adapter_config.json").is_file()
    expert, random = (load_episodes(tmp_path / "spark_webshop" / f"{name}.jsonl") for name in ("expert", "random"))
    assert len(random) == 4 and all(episode.success for episode in expert)
    assert {step.drawn for episode in random for step in episode.steps} == {True}
