"""The stages of the ToolExpander recipes at the smallest size: that they run and say what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from faults import without_flushing
from small_runs import load_recipe_module
from tool_runs import random_model

from firesteel.annotate import load_episodes
from firesteel.config import PRESETS, Config
from firesteel.environments.tool_calls.rewards import ToolZeroReward
from firesteel.errors import ConfigError
from firesteel.estimate import estimate
from firesteel.few_shot_table import FewShotTable, PassRate
from firesteel.recipes import RecipeSession, load_recipe
from firesteel.train import train

SMALL: dict[str, Any] = {
    "steps": 2, "tasks_per_step": 2,
    "environment": {"num_tasks": 4, "options": {"num_tools": 6}},
    "rollout": {"max_response_tokens": 12, "num_leaves": 3, "num_roots": 3},
    "evaluation": {"every_tokens": 100, "num_tasks": 2, "test_tasks": 2},
}  # fmt: skip
SILENT = RecipeSession(False, lambda event, facts: None)


@pytest.fixture(autouse=True)
def fast_disk() -> Iterator[None]:
    with without_flushing():
        yield


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe with a cold start of seconds."""
    module = load_recipe_module("toolexpander")
    tiny = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "vocab_size": 512}
    sizes = {"episodes": 40, "call_steps": 4, "tasks_per_call_step": 4, "steps": 6, "tasks_per_step": 4, "tiny": tiny}
    monkeypatch.setattr(module, "COLD_START", sizes)
    return module


def test_the_cold_start_and_the_table_come_first_and_may_be_the_end(recipe: ModuleType, tmp_path: Path) -> None:
    config = recipe.config().updated(SMALL, {"runs_dir": str(tmp_path)})
    result = recipe.run(config, SILENT)
    assert "not started" in result["text"]  # six steps teach nobody to use an example
    assert (tmp_path / "toolexpander" / "few_shot.md").read_text() in result["text"]
    episodes = load_episodes(tmp_path / "toolexpander" / "cold_start.jsonl")
    shown = [episode.steps[0].observation.count("Example: ") for episode in episodes]
    assert set(shown) == {0, 1, 2, 3, 4}
    made_up = ["<examples>" in episode.steps[0].action for episode in episodes]
    assert 0.05 < sum(made_up) / len(made_up) < 0.5
    documented = [episode.steps[0].observation for episode in load_episodes(tmp_path / "toolexpander" / "calls.jsonl")]
    assert not any("Example" in text or " (" not in text for text in documented)
    assert not list((tmp_path / "toolexpander").glob("*seed0"))


def test_arms_are_trained_measured_and_told_in_a_table(recipe: ModuleType, tmp_path: Path) -> None:
    model = random_model(tmp_path / "model")
    config = recipe.config().updated(SMALL, {"runs_dir": str(tmp_path), "model": {"path": str(model)}})
    arms = {name: recipe.ARMS[name] for name in ("GRPO, same decay", "self-exemplifying, replace")}
    result = recipe.run_arms(config, SILENT, arms, (1e-3,), seeds=1)
    lines = result["text"].splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "cold start", "GRPO, same decay, lr 0.001", "self-exemplifying, replace, lr 0.001",
    ]  # fmt: skip
    assert "0 of 1" in lines[2] and "4.0 of 4" in lines[2]
    assert recipe.spread([1.0, 2.0, 3.0]) == "2.0 (-0.5 to 4.5)" and recipe.percent([0.25, 0.25]) == "25.0"
    assert Path(result["plot"]).exists()
    measured = json.loads((tmp_path / "toolexpander" / "measured.json").read_text())
    (run,) = measured["self-exemplifying, replace, lr 0.001"]
    assert {"tools", "hard_left", "probed", "after", "collapses"} <= run.keys()
    metrics = (tmp_path / "toolexpander" / "self-exemplifying, replace, lr 0.001-seed0" / "metrics.jsonl").read_text()
    first = json.loads(metrics.splitlines()[0])
    assert {"explore/bonus_only_groups", "hard/probe_tokens", "losses/kl", "losses/clip_fraction"} <= first.keys()


def test_the_best_rate_is_chosen_on_validation(recipe: ModuleType) -> None:
    def runs(*marks: float) -> list[dict[str, Any]]:
        return [{"best": {"success": mark}} for mark in marks]

    results = {"GRPO, lr 1": runs(0.2, 0.4), "GRPO, lr 2": runs(0.5, 0.2), "GRPO, same decay, lr 1": runs(0.9)}
    assert recipe.best_rate(results, "GRPO") == "GRPO, lr 2"
    assert recipe.names_of(results, "GRPO, same decay") == ["GRPO, same decay, lr 1"]


def test_arms_start_only_if_examples_help(recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = (PassRate("raw", 0, 90), PassRate("random few-shot", 40, 90), PassRate("selected few-shot", 60, 90))
    started: list[Any] = []
    monkeypatch.setattr(recipe, "cold_start", lambda config, session: {"model": "somewhere"})
    monkeypatch.setattr(recipe, "first_table", lambda config: FewShotTable(100, (90, 50, 30), rates, 10))
    monkeypatch.setattr(recipe, "run_arms", lambda config, session, *what: started.append((config.model.path, *what)))
    (tmp_path / "toolexpander").mkdir()
    recipe.run(recipe.config().updated({"runs_dir": str(tmp_path)}), SILENT, seeds=5)
    assert started == [("somewhere", recipe.ARMS, recipe.RATES, 5)]


def test_every_arm_can_be_configured(recipe: ModuleType) -> None:
    negative = load_recipe("toolexpander_negative").module
    for name, settings in {**recipe.ARMS, **negative.ARMS}.items():
        config = recipe.config().updated(settings)
        if config.environment.options.get("exemplify"):
            assert (config.loss.clip_high, config.loss.kl_coef) == (0.26, 0.0), name
        assert config.learner.minibatches > 1  # else clipping cannot act
    # nobody decays twice
    for settings in recipe.ARMS.values():
        config = recipe.config().updated(settings)
        assert config.curriculum.name == "uniform" or config.learner.lr_decay == 1.0


def test_the_presets_are_the_papers_values() -> None:
    hard, own = Config.build(PRESETS["toolexpander"]), Config.build(PRESETS["self_exemplifying"])
    for config in (hard, own):
        assert (config.tasks_per_step, config.learner.lr, config.rollout.num_leaves) == (1024, 1e-6, 5)
        assert (config.rollout.temperature, config.rollout.max_response_tokens) == (0.7, 8192)
        assert config.loss.entropy_coef == 0.0
    assert (hard.loss.kl_coef, hard.loss.clip_low, hard.loss.clip_high) == (0.001, 0.2, 0.2)
    assert (own.loss.kl_coef, own.loss.clip_low, own.loss.clip_high) == (0.0, 0.2, 0.26)
    assert (hard.curriculum.options["rollouts"], hard.curriculum.options["lr_decay"]) == (10, 0.8)
    assert own.learner.lr_decay == 0.8
    zero = Config.build(PRESETS["tool_zero"])
    assert (zero.tasks_per_step, zero.learner.lr, zero.learner.schedule) == (128, 5e-7, "cosine")
    assert (zero.rollout.num_leaves, zero.rollout.temperature) == (8, 0.8)
    assert (zero.context.max_prompt_tokens, zero.rollout.max_response_tokens) == (2048, 2048)
    assert (zero.loss.kl_coef, zero.loss.clip_low, zero.loss.clip_high) == (0.0, 0.2, 0.2)
    reward = ToolZeroReward()
    assert (zero.reward.name, reward.k, reward.middle) == ("tool_zero", 0.1, 25.0)


@pytest.mark.parametrize("name", ["toolexpander", "self_exemplifying", "tool_zero"])
def test_presets_train_with_a_clip_that_acts(name: str, tmp_path: Path) -> None:
    small = {
        "runs_dir": str(tmp_path), "steps": 2, "tasks_per_step": 4,
        "model": {"path": str(random_model(tmp_path / "m"))},
        "rollout": {"max_response_tokens": 8}, "context": {"max_prompt_tokens": None},
        "environment": {"name": "tool_runs:Lottery", "num_tasks": 8, "options": {"terse": True, "num_tools": 6}},
        "learner": {"lr": 0.1}, "reward": {"name": "tool_runs:distinct_letters"},
    }  # fmt: skip
    config = Config.build(PRESETS[name], small)
    train(config)
    rows = [json.loads(line) for line in (tmp_path / config.name / "metrics.jsonl").read_text().splitlines()]
    assert [row["learner/optimizer_steps"] for row in rows] == [4.0, 4.0]
    assert all(row["losses/clip_fraction"] > 0 for row in rows)


def test_the_papers_recipe_counts_what_it_would_cost(tmp_path: Path) -> None:
    config = load_recipe("toolexpander_paper").config()
    assert config.steps == 10 * 61  # 62,687 samples in batches of 1,024: 61 whole ones
    assert config.curriculum.options["steps_per_round"] == 61
    assert (config.learner.minibatches, config.learner.minibatch_rows) == (4, None)  # so that clipping can act
    shape = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 1536, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
        "max_position_embeddings": 32768, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    plan = estimate(config.updated({"model": {"path": str(tmp_path)}}))
    assert plan["parameters"] == 1_543_714_304  # what the model's card calls 1.54B
    assert plan["generated_tokens_at_most"] == 610 * 1024 * 5 * 8192
    # ten rounds; 10 rollouts of each sample, and 10 more for each of three draws of examples
    assert plan["probe_rounds"] == 10
    assert plan["probe_tokens_at_most"] == 10 * 62_687 * 40 * 8192
    assert "probe tokens at most" in plan["text"]
    several = config.updated({"model": {"path": str(tmp_path)}, "rollout": {"candidates": 3}})
    assert estimate(several)["generated_tokens_at_most"] == 3 * plan["generated_tokens_at_most"]
    assert estimate(several)["probe_tokens_at_most"] == plan["probe_tokens_at_most"]  # probes play chains
    unknown = config.updated({"environment": {"num_tasks": None}, "curriculum": {"options": {"mode": "drop"}}})
    plan = estimate(unknown.updated({"model": {"path": str(tmp_path)}}))
    assert plan["probe_rollouts_per_task_and_round_at_most"] == 10
    assert "probe_tokens_at_most" not in plan
    for wrong in ({"rollouts": "ten"}, {"rollouts": None}, {"steps_per_round": 0}, {"mode": "nope"}):
        with pytest.raises(ConfigError, match=f"hard_sampling: {next(iter(wrong))} must be "):
            estimate(config.updated({"curriculum": {"options": wrong}}))
