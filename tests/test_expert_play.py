"""The environment's expert in the place of a model: what it is worth, and what it leaves unsolved."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from firesteel.config import Config
from firesteel.environments.bfcl.environment import GROUPS
from firesteel.environments.bfcl.single_turn import label_errors
from firesteel.environments.tool_calls import ToolCalls
from firesteel.errors import EnvironmentFailed
from firesteel.expert_play import evaluate_expert, unsolved_text
from firesteel.policy import load_tasks
from firesteel.types import ExpertStep

HAS_BFCL = importlib.util.find_spec("bfcl_eval") is not None


def config(**environment: Any) -> Config:
    return Config.build({"environment": environment, "rollout": {"max_turns": 30}})


def test_accepted_answers_are_right_by_every_format() -> None:
    for form in ("hermes", "llama3", "python", "template_hermes"):
        settings = config(name="tool_calls", options={"format": form})
        evaluation, unsolved = evaluate_expert(settings, load_tasks(settings, "test_tools", 12), split="test_tools")
        assert (evaluation.overall.success, evaluation.overall.n, evaluation.overall.invalid) == (1.0, 12, 0.0)
        assert unsolved == [] and unsolved_text(unsolved) == ""


def test_episodes_of_several_steps_are_played_to_their_end() -> None:
    settings = config(name="household", options={"size": "small"})
    tasks = load_tasks(settings, "train", 4)
    evaluation, unsolved = evaluate_expert(settings, tasks)
    assert evaluation.overall.success == 1.0 and evaluation.overall.steps > 2
    evaluation, unsolved = evaluate_expert(settings.updated({"rollout": {"max_turns": 1}}), tasks)
    assert evaluation.overall.success == 0.0
    assert {one.reason for one in unsolved} == {"not done in 1 steps"}


class Clumsy(ToolCalls):
    """Its expert is wrong, absent or broken, by the number of the task."""

    def expert(self) -> ExpertStep | None:
        number = int(self._running().id.rpartition("-")[2]) % 4
        if number == 3:
            raise EnvironmentFailed("the expert broke")
        step = super().expert()
        return (step, ExpertStep("nonsense(", False, ""), None)[number]


def test_what_is_unsolved_is_told_by_id_and_reason() -> None:
    settings = config(name=f"{__name__}:Clumsy", options={"format": "python"})
    tasks = [task for task in load_tasks(settings, "train", 8)]
    evaluation, unsolved = evaluate_expert(settings, tasks)
    assert [record.status for record in evaluation.records] == ["finished", "finished", "truncated", "failed"] * 2
    assert [record.success for record in evaluation.records] == [True, False, False, False] * 2
    assert [one.task_id for one in unsolved] == [task.id for place, task in enumerate(tasks) if place % 4]
    assert [one.reason for one in unsolved[1:3]] == ["there is no expert", "the expert broke"]
    lines = unsolved_text(unsolved).splitlines()
    assert lines[0] == "the expert does not solve 6 tasks:" and lines[2] == f"  {tasks[2].id}: there is no expert"


def test_a_user_can_play_ground_truths(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from firesteel.cli import app

    answers = [{"name": "f", "arguments": {"x": 1}}]
    tool = {"name": "f", "description": "", "parameters": {"x": {"type": "int", "description": ""}}}
    rows = [
        {"id": n, "query": f"do {n}", "tools": json.dumps([tool]), "answers": json.dumps(answers)} for n in range(3)
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    source = [
        "environment=tool_calls",
        "environment.options.source=xlam",
        f"environment.options.path={tmp_path}/x.json",
    ]
    result = CliRunner().invoke(app, ["evaluate", "expert", "--split", "all", "--json", *source])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["all"]["success"], found["all"]["n"], found["unsolved"]) == (1.0, 3, {})


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BFCL, reason="bfcl-eval is not installed")
def test_bfcls_ground_truths_are_right_but_for_its_label_errors() -> None:
    settings = config(name="bfcl").updated({"rollout": {"max_turns": 100}})
    evaluation, unsolved = evaluate_expert(settings, load_tasks(settings, "all", None), split="all")
    known = {name for category in GROUPS["single_turn"] for name, _ in label_errors(category)}
    assert {one.task_id for one in unsolved} == known and 0 < len(known) < 20
    assert evaluation.overall.n > 4000
    figures = evaluation.figures
    assert figures["multi_turn"] == 1.0 and set(GROUPS["all"]) <= figures.keys()
    assert all(
        figures[name] is not None and figures[name] > 0.98 for name in ("non_live_ast", "live_ast", "overall_ast")
    )
