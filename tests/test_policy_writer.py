"""The policy as writer and judge: whole rows of real questions from a small model, and a file in MMLU-Pro's schema."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import tokenizer

from firesteel.config import Config
from firesteel.environments.question_rows import Question
from firesteel.errors import AnswerInvalid, ConfigError
from firesteel.judges import PastStep, Situation
from firesteel.models import build_tiny_model
from firesteel.offline import import_trees
from firesteel.policy import load_policy
from firesteel.policy_writer import PolicyWriter
from firesteel.tools import COT, make_tools
from firesteel.trajectories import TrajectorySettings, read_trajectories
from firesteel.trajectory_jobs import TrajectoryJob, compare_job, run_job

QUESTION = Question("q1", "which desk", ("mug", "desk", "shelf"), "B", 1, "things")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the toy tokenizer, with room for 900 tokens."""
    place = tmp_path_factory.mktemp("policy") / "model"
    build_tiny_model(tokenizer(), hidden=32, layers=1, heads=2, kv_heads=1, max_context=1200).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def layer(model: Path) -> dict[str, Any]:
    return {"model": {"path": str(model), "device": "cpu"}, "context": {"prompts": "compact"}}


@pytest.mark.parametrize("mode", ["full", "window"])
def test_one_query_for_each_action_and_the_seed_decides(model: Path, mode: str) -> None:
    policy = load_policy(Config.build(layer(model), {"context": {"mode": mode}}))
    writer = PolicyWriter(policy, max_tokens=8)
    tools = make_tools(["dates", "units"])
    situation = Situation.start(QUESTION).after(PastStep("go on", "dates", "left", "you did left"))
    first = writer.write(situation, tools, seed=1)
    assert set(first.queries) == {"dates", "units", COT} and first.thought
    assert "which desk" in first.prompt and "you did left" in first.prompt and "dates: left" in first.prompt
    assert not any(tag in text for text in first.queries.values() for tag in ("<action>", "</action>", "<think>"))
    assert first == writer.write(situation, tools, seed=1) != writer.write(situation, tools, seed=2)
    assert writer.answer(situation, seed=1) in (None, "A", "B", "C")


def test_a_situation_that_does_not_fit_is_noted_as_a_failure(model: Path) -> None:
    writer = PolicyWriter(load_policy(Config.build(layer(model))), max_tokens=8)
    long = Situation.start(replace(QUESTION, question="which desk " * 700))
    with pytest.raises(AnswerInvalid, match="the model's context holds 1200"):
        writer.write(long, make_tools(["dates"]), seed=0)


def test_rows_of_mmlu_pro_played_by_a_small_model_can_be_trained_on(model: Path, tmp_path: Path) -> None:
    """Every row of the file, judged by rules and by the policy itself, in MMLU-Pro's schema."""
    file = tmp_path / "questions.jsonl"
    fixed = {"answer": "B", "answer_index": 1, "category": "other", "src": "x", "cot_content": ""}
    records = [
        {"question_id": n, "question": f"Which desk is {n}?", "options": ["mug", "desk", "shelf", str(n)]} | fixed
        for n in range(6)
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    job = TrajectoryJob(
        environment="mmlu_pro", environment_options={"path": str(file), "tools": ["dates"]}, split="all",
        writer="policy", policy=layer(model), settings=TrajectorySettings(steps=2, connections=2),
    )  # fmt: skip
    summary = run_job(job, tmp_path / "rules")
    assert (summary.trajectories, summary.rows, summary.failed) == (6, 12, 0)
    run_job(replace(job, judge="policy"), tmp_path / "policy")
    for judge in ("rules", "policy"):
        rows = [row for each in read_trajectories(tmp_path / judge / "rows.jsonl") for row in each]
        assert {(row["writer"], row["judge"]) for row in rows} == {("policy", judge)}
        assert all(0 <= row["chosen_score"] <= row["best_score"] <= 10 for row in rows)
    config = Config.build(
        layer(model),
        {"learner": {"kind": "ppo"}, "data": [str(tmp_path / "policy" / "rows.jsonl")], "ppo": {"rho": 0.5}},
    )
    policy = load_policy(config)
    trees, counts = import_trees(config, policy.context, max_context=policy.generator.max_context)
    assert counts["offline/steps"] == 12 and len(trees) == 6
    assert compare_job(job, tmp_path / "rules", "policy", steps=4).n == 4


def test_a_policy_that_is_not_there_is_named() -> None:
    asked = {"count": 1, "environment_options": {"tools": ["calculator"]}}
    with pytest.raises(ConfigError, match="writer 'policy' needs a model in this process"):
        run_job(TrajectoryJob(**asked, writer="policy"), "unused")
    with pytest.raises(ConfigError, match="judge 'policy' needs mean_logprobs"):
        run_job(TrajectoryJob(**asked, judge="policy"), "unused")
