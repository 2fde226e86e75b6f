"""Tables and curves of compared arms, by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from firesteel.compare import compare, curve, markdown_table, plot_curves, point_before
from firesteel.config import Config
from firesteel.errors import ConfigError, FiresteelError, MissingDependency, TaskError
from firesteel.recipes import RecipeSession


def _run(before: float, after: float, tokens: int = 1000, leaves: int = 10) -> dict:
    return {
        "before": {"success": before}, "after": {"success": after}, "generated_tokens": tokens, "leaves": leaves,
        "tokens_per_leaf": tokens / leaves, "curve": [[100.0, before], [900.0, after]],
    }  # fmt: skip


def test_the_table_holds_gains_with_t_intervals():
    # gains 10, 20, 30 points: mean 20, sample std 10, t(.975, 2) = 4.3027: 20 +- 4.3027 * 10 / sqrt(3) = 24.84
    # differences to the reference's afters (.5, .5, .5): 0, 10, 20: mean 10, the same half width
    runs = {"a": [_run(0.4, 0.5), _run(0.4, 0.6), _run(0.4, 0.7)], "b": [_run(0.4, 0.5)] * 3}
    lines = markdown_table(runs, "b").splitlines()
    assert lines[2] == (
        "| a | 3 | 40.0% | 60.0% | +20.0 (-4.8 to +44.8) | 1,000 | 10 | 100.0 | +10.0 (-14.8 to +34.8) |"
    )
    assert lines[3].startswith("| b | 3 | 40.0% | 50.0% | +10.0 (+10.0 to +10.0)")


def test_a_single_seed_has_no_interval():
    assert "| +10.0 |" in markdown_table({"a": [_run(0.4, 0.5)]})


def test_curves_come_from_evaluated_steps_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 0, "rollout/total_generated_tokens": 10.0},
        {"step": 1, "rollout/total_generated_tokens": 20.0, "eval/success": 0.25},
    ]
    lines.append({"step": 2, "rollout/total_generated_tokens": 30.0, "eval/success": None})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert curve(path) == [[20.0, 0.25]]


def test_a_curve_starts_with_what_the_same_split_showed_before_training():
    row, other = {"split": "validation", "success": 0.25}, {"split": "l0", "success": 0.5}
    assert point_before({"validation_before": row, "before": other}, "validation") == [[0.0, 0.25]]
    assert point_before({"before": row}, "validation") == [[0.0, 0.25]]
    assert point_before({"before": other}, "validation") == []
    assert point_before({"validation_before": row | {"success": None}, "before": other}, "validation") == []


def test_the_plot_is_a_drawing_with_every_arm(tmp_path):
    plot_curves({"first arm": [_run(0.1, 0.5)] * 2, "second arm": [_run(0.1, 0.2)]}, tmp_path / "c.svg", title="t")
    drawing = (tmp_path / "c.svg").read_text()
    assert drawing.count("<!-- first arm (2) -->") == 1 and "<!-- second arm (1) -->" in drawing


def test_arms_and_seeds_become_runs(tmp_path, monkeypatch):
    trained = []

    def record(self, config):
        trained.append((config.name, config.seed, config.rollout.criterion))
        folder = tmp_path / config.name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(
            json.dumps({"step": 0, "rollout/total_generated_tokens": 5.0, "eval/success": 0.5}) + "\n"
        )
        return _run(0.2, 0.4) | {"validation_before": {"split": "validation", "success": 0.25}}

    monkeypatch.setattr(RecipeSession, "train", record)
    config = Config.build({"name": "x", "runs_dir": str(tmp_path), "evaluation": {"test_split": "l0"}})
    arms = {"chain": {"rollout": {"criterion": "chain"}}, "explore": {}}
    result = compare(config, RecipeSession(False, lambda event, facts: None), arms, [3, 4], reference="chain")
    assert trained == [
        ("x/chain-seed3", 3, "chain"), ("x/explore-seed3", 3, "explore_tag"),
        ("x/chain-seed4", 4, "chain"), ("x/explore-seed4", 4, "explore_tag"),
    ]  # fmt: skip
    assert (tmp_path / "x" / "table.md").read_text() == result["text"]
    stored = json.loads((tmp_path / "x" / "results.json").read_text())["chain"]
    assert [run["curve"] for run in stored] == [[[0.0, 0.25], [5.0, 0.5]]] * 2


def test_a_failed_arm_is_told_after_the_others_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(self, config):
        trained.append(config.name)
        if "bad" in config.name:
            raise TaskError("no task is left")
        return _run(0.2, 0.4)

    monkeypatch.setattr(RecipeSession, "train", train)
    config = Config.build({"name": "x", "runs_dir": str(tmp_path), "evaluation": {"test_split": "test"}})
    session = RecipeSession(False, lambda event, facts: None)
    with pytest.raises(FiresteelError, match=r"1 of 2 arms failed, 'bad' with: no task is left.*--continue"):
        compare(config, session, {"bad": {}, "good": {}}, [0, 1], reference="bad")
    assert trained == ["x/bad-seed0", "x/good-seed0", "x/bad-seed1", "x/good-seed1"]
    table = (tmp_path / "x" / "table.md").read_text()
    assert "| good | 2 |" in table and "bad" not in table

    def refuse(self, config):
        raise ConfigError("the run exists")

    monkeypatch.setattr(RecipeSession, "train", refuse)
    with pytest.raises(ConfigError, match="the run exists"):
        compare(config, session, {"bad": {}, "good": {}}, [0])
    with pytest.raises(ConfigError, match="a comparison needs evaluation.test_split"):
        compare(config.updated({"evaluation": {"test_split": None}}), session, {"bad": {}}, [0])


def test_what_draws_is_missed_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    config = Config.build({"name": "arms", "runs_dir": str(tmp_path)})
    with pytest.raises(MissingDependency, match=r"firesteel\[plot\]"):
        compare(config, RecipeSession(False, lambda event, facts: pytest.fail(event)), {"one": {}}, [0])
