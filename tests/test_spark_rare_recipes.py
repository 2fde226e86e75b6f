"""The recipes of SPaRK: their settings, and the tables and plots that they make of results."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from small_runs import load_recipe_module

from firesteel.config import Config
from firesteel.errors import ConfigError
from firesteel.policy import load_tasks
from firesteel.recipes import RecipeSession


def report(accuracy: float, entropy: float | None = 1.0) -> dict[str, Any]:
    figures = {
        "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "entropy": entropy, "entropy_low": 0.5,
        "entropy_high": 1.5, "coverage": 0.75, "calls": 3.0,
    }  # fmt: skip
    return {"all": figures}


def test_the_table_is_of_means_and_says_what_was_refused() -> None:
    recipe = load_recipe_module("spark_rare")
    results = {
        "base": [{"test": report(0.1, None), "held_out": report(0.2, None)}] * 2,
        "SPaRK": [
            {
                "test": report(0.2),
                "held_out": report(0.5),
                "update": 10,
                "losses/kl": 0.1,
                "critic/explained_variance": 0.2,
                "validation": {"start": 0.3, "last": 0.1, "last KL": 0.2, "start entropy": 1.5, "last entropy": 1.0},
            },
            {
                "test": report(0.4, 2.0),
                "held_out": report(0.5),
                "update": 30,
                "losses/kl": 0.3,
                "critic/explained_variance": None,
                "validation": {"start": 0.3, "last": 0.3, "last KL": 0.4, "start entropy": 1.5, "last entropy": None},
            },
        ],
        "none": [{"refused": "the reward has no variance over the 3 steps (R = 0): terms; advice"}],
    }
    lines = recipe.markdown_table(results).splitlines()
    assert lines[2] == "| base | test | 10.0 | 0.0 to 20.0 | - | 0.50 to 1.50 | 0.75 | 3.00 | - | - | - |"
    assert (
        lines[4] == "| SPaRK | test | 30.0 | 20.0 to 40.0 | 1.50 | 0.50 to 1.50 | 0.75 | 3.00 | 20.00 | 0.20 | 0.20 |"
    )
    lasts = recipe.training_table(results).splitlines()
    assert lasts[2:] == ["| SPaRK | 30.0 | 20.0 | 1.50 | 1.00 | 0.30 | 10, 30 |"]
    assert lines[6].startswith("| none | refused: the reward has no variance over the 3 steps (R = 0): terms |")


def test_arms_are_pairs_with_both_cross_pairs() -> None:
    recipe = load_recipe_module("spark_rare")
    pairs = set(recipe.ARMS.values())
    assert {("best", 0.0), ("best", recipe.RHO), ("rarity_first", 0.0), ("rarity_first", recipe.RHO)} < pairs
    assert recipe.ARMS[recipe.SPARK] == ("rarity_first", recipe.RHO) and recipe.ARMS[recipe.PLAIN] == ("best", 0.0)
    names = {recipe.ppo_stage(recipe.config(), arm, "m", "rows", 0.5).name for arm in recipe.ARMS}
    assert len(names) == len(recipe.ARMS)


def test_the_ablation_has_fifteen_cells_and_draws_them(tmp_path: Path) -> None:
    recipe = load_recipe_module("spark_rare_ablation")
    cells = {f"{threshold:g}/{rho:g}": {"test": report(rho)} for threshold in recipe.THRESHOLDS for rho in recipe.RHOS}
    cells["7/1"] = None
    assert len(cells) == 15
    lines = recipe.markdown_table(cells).splitlines()
    assert lines[4] == "| 7 | 0.0% (1.00) | 25.0% (1.00) | 50.0% (1.00) | 75.0% (1.00) | refused |"
    assert recipe.plot(cells, tmp_path / "plot.svg").read_text().startswith("<?xml")


def test_the_paper_s_size_is_quantised_and_of_rank_8() -> None:
    config = load_recipe_module("spark_rare_paper").config()
    assert config.model.quantization == "nf4" and config.model.lora is not None
    assert (config.model.lora.rank, config.critic.rank, config.loss.clip_low, config.ppo.kl_target) == (8, 8, 0.2, 0.2)


@pytest.fixture(scope="module")
def small_stages() -> ModuleType:
    """The stages of `spark_rare`, few and short."""
    stages = load_recipe_module("spark_rare")
    stages.SEEDS, stages.BASE_QUESTIONS = 1, 60
    stages.COPYING_UPDATES, stages.BASE_UPDATES, stages.SFT_UPDATES = 1, 10, 2
    stages.TINY = {**stages.TINY, "hidden": 48, "layers": 2, "heads": 2, "kv_heads": 1}
    return stages


@pytest.fixture(scope="module")
def small_settings(small_stages: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two updates on 36 questions, from a base that the recipe's own first stage has made."""
    config: Config = small_stages.config().updated(
        {
            "name": "rare", "runs_dir": str(tmp_path_factory.mktemp("rare")), "steps": 2,
            "environment": {"num_tasks": 36}, "critic": {"hidden": 16},
            "evaluation": {"test_tasks": 12, "num_tasks": 6},
        }
    )  # fmt: skip
    base = small_stages.base_model(config, RecipeSession(False, lambda event, fields: None))
    return config.updated({"model": {"path": base}})


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_base_learns_from_questions_of_its_own(small_stages: ModuleType, small_settings: Config) -> None:
    folder = Path(small_settings.runs_dir) / "rare" / "trajectories" / "base"
    drawn = read_lines(folder / "grammar.jsonl")
    later = {task.id for task in load_tasks(small_settings, "train", 36)}
    assert len({row["qid"] for row in drawn}) == 60 and not later & {row["qid"] for row in drawn}
    assert len({row["tool_name"] for row in drawn}) == len(small_stages.TOOLS) + 1
    written = {row["row_id"]: row["answer_letter"] for row in read_lines(folder / "rows.jsonl")}
    kept = [written[row["row_id"]] in (None, row["answer_letter"]) for row in drawn]
    assert all(kept) and all(row["answer_letter"] for row in drawn)


def test_exercises_are_calls_of_every_tool_and_options_to_read(
    small_stages: ModuleType, small_settings: Config
) -> None:
    folder = Path(small_settings.runs_dir) / "rare" / "trajectories" / "base"
    copying, mixed = read_lines(folder / "copying.jsonl"), read_lines(folder / "mixed.jsonl")
    assert {row["tool_name"] for row in copying} == set(small_stages.TOOLS) and len(copying) == 60 * 7
    assert all(row["mcq_options"] == [] and row["answer_letter"] is None for row in copying)
    reading = [row for row in mixed if row["answer_letter"]]
    assert (len(reading), len(mixed)) == (60 * 3, 60 * 5)
    for row in reading:  # what is seen begins with the option that the letter names, whoever was right
        seen = row["observation"].rpartition(" = ")[2]
        assert seen.startswith(row["mcq_options"]["ABCDEFGHIJ".index(row["answer_letter"])])
    assert any(row["answer_letter"] != row["correct_answer_letter"] for row in reading)


def test_a_refused_stage_stops_no_other(small_stages: ModuleType) -> None:
    outcomes = [ConfigError("ppo.sft_filter leaves no row"), {"model": "m"}]
    session = SimpleNamespace(try_each=lambda stages: iter(outcomes))
    results: dict[str, Any] = {}
    assert small_stages.trained(session, {"a": 1, "b": 2}, results, "SFT ({})") == {"b": "m"}
    assert results == {"SFT (a)": {"refused": "ppo.sft_filter leaves no row"}}
    session.try_each = lambda stages: iter([ConfigError("another mistake")])
    with pytest.raises(ConfigError, match="another mistake"):
        small_stages.trained(session, {"a": 1}, {})


def test_the_ablation_runs_to_its_table(
    small_stages: ModuleType, small_settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe_module("spark_rare_ablation")
    monkeypatch.setattr(recipe, "load_recipe", lambda asked: SimpleNamespace(module=small_stages))
    monkeypatch.setattr(recipe, "THRESHOLDS", (6.0,))
    monkeypatch.setattr(recipe, "RHOS", (0.5,))
    config = small_settings.updated({"name": "ablation"})
    result = recipe.run(config, RecipeSession(False, lambda event, fields: None))
    assert result["text"].splitlines()[0] == "| threshold | rho 0.5 |"
    assert result["text"].splitlines()[2].startswith("| 6 | ") and "refused" not in result["text"]
    assert Path(result["plot"]).exists()


@pytest.mark.parametrize("name", ["spark_rare_judges", "spark_rare_online"])
def test_the_open_questions_run_to_their_tables(
    name: str, small_stages: ModuleType, small_settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe_module(name)
    same = SimpleNamespace(module=small_stages, config=small_stages.config)
    monkeypatch.setattr(recipe, "load_recipe", lambda asked: same)
    monkeypatch.setattr(recipe, "ROUNDS", 2, raising=False)
    monkeypatch.setattr(recipe, "QUESTIONS", 4, raising=False)
    config = small_settings.updated({"name": name, "context": recipe.config().context.model_dump()})
    told = recipe.run(config, RecipeSession(False, lambda event, fields: None))["text"]
    arms = recipe.JUDGES if name.endswith("judges") else ("SFT", "SPaRK, offline", "SPaRK, online, round 2")
    assert all(f"| {arm} | test | " in told or f"| {arm} | refused: " in told for arm in arms), told
    assert f"| {arms[0]} | test | " in told  # that one is trained at least
    if name.endswith("judges"):
        written = Path(config.runs_dir) / name / "trajectories" / "policy" / "rows.jsonl"
        assert {row["judge"] for row in read_lines(written)} == {"policy"}
        assert "| rules_with_key | 108 | " in told  # all steps of 36 questions
    else:
        written = Path(config.runs_dir) / name / "trajectories" / "seed0-round2" / "rows.jsonl"
        rows = read_lines(written)
        assert {row["writer"] for row in rows} == {"policy"} and {row["judge"] for row in rows} == {"rules"}
