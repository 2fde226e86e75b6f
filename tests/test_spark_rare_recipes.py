"""The recipes of SPaRK: their settings, and the tables and plots that they make of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_runs import load_recipe_module


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
            {"test": report(0.2), "held_out": report(0.5), "losses/kl": 0.1, "critic/explained_variance": 0.2},
            {"test": report(0.4, 2.0), "held_out": report(0.5), "losses/kl": 0.3, "critic/explained_variance": None},
        ],
        "none": [{"refused": "the reward has no variance over the 3 steps (R = 0): terms; advice"}],
    }
    lines = recipe.markdown_table(results).splitlines()
    assert lines[2] == "| base | test | 10.0 | 0.0 to 20.0 | - | 0.50 to 1.50 | 0.75 | 3.00 | - | - |"
    assert lines[4] == "| SPaRK | test | 30.0 | 20.0 to 40.0 | 1.50 | 0.50 to 1.50 | 0.75 | 3.00 | 0.20 | 0.20 |"
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
