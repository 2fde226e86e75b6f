"""Trajectories: rows by hand, resumption, order, failures, the published schema, and what their metrics say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from judge_server import judge_server

from firesteel import tool_metrics
from firesteel.environments.question_rows import Question, question_of
from firesteel.environments.tool_questions import ToolQuestions
from firesteel.errors import AnswerInvalid, BudgetSpent, ConfigError, StoreError
from firesteel.judges import PastStep, Situation, ToolRunner
from firesteel.judges.llm import LlmJudge
from firesteel.judges.rules import RulesJudge
from firesteel.openai_client import ChatClient, Ledger
from firesteel.selection import make_selector
from firesteel.tools import COT, Tool, make_tools
from firesteel.trajectories import (
    COLUMN_KINDS,
    OWN_COLUMNS,
    PUBLISHED_COLUMNS,
    Parts,
    TrajectorySettings,
    cases,
    estimate,
    generate_trajectories,
    make_trajectory,
    read_trajectories,
    repair,
)
from firesteel.writers import Candidates, TemplateWriter, check_queries


class Table:
    """A judge that looks its scores up by the query; "bad" queries are unsound, "lost" ones have no score."""

    name, sees_key, ledger = "table", False, Ledger()

    def score(self, situation: Situation, thought: str, candidates: Mapping[str, str]) -> dict[str, float]:
        if any(query == "lost" for query in candidates.values()):
            raise AnswerInvalid("no score")
        return {action: float(query.split()[0]) for action, query in candidates.items()}

    def process_ok(self, situation: Situation, step: PastStep) -> bool:
        return "bad" not in step.query


class Scripted:
    """A writer whose queries are given by step; the answer is the letter of the last observation."""

    name, ledger = "scripted", Ledger()

    def __init__(self, *steps: dict[str, str]) -> None:
        self.steps = steps

    def write(self, situation: Situation, tools: Mapping[str, Tool], *, seed: int) -> Candidates:
        index = len(situation.steps)
        queries = self.steps[index % len(self.steps)]
        if situation.question.question == "lost":
            queries = {"tool": "lost"}
        return Candidates(f"thought {index}", queries, "prompt", "raw")

    def answer(self, situation: Situation, *, seed: int) -> str | None:
        return situation.steps[-1].observation[-1].upper()


class Echo(Tool):
    name, description, example, example_output = "tool", "repeats", "x", "x"

    def answer(self, query: str) -> str:
        if "fail" in query:
            raise ValueError("broken")
        return f"saw {query}"


def question(number: int, text: str = "Which?") -> Question:
    return Question(f"q{number}", text, ("red", "green", "blue"), "B", 1, "colours")


def parts(*steps: dict[str, str], selector: str = "rarity_first", judge: Any = None) -> Parts:
    tools = {"tool": Echo(), "other": Echo()}
    writer = Scripted(*(steps or ({"tool": "9 a", "other": "7 b", COT: "2 c"},)))
    return Parts(tools, writer, judge or Table(), make_selector(selector), ToolRunner(tools))


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [row for rows in read_trajectories(directory / "rows.jsonl") for row in rows]


# One trajectory, by hand


def test_rows_of_one_trajectory() -> None:
    steps = {"tool": "9 a", "other": "7 b", COT: "2 c"}, {"tool": "8 fail", "other": "3 bad", COT: "5 b"}
    first, second = make_trajectory(question(1), parts(*steps), TrajectorySettings(steps=2), split="train")
    assert (first["tool_name"], first["observation"], first["viable"]) == ("other", "saw 7 b", ["other", "tool"])
    assert (first["best_score"], first["chosen_score"], first["reward_raw"]) == (9.0, 7.0, 2.0)
    assert (first["process_ok"], first["tool_ok"], first["is_fallback"]) == (True, True, False)
    assert first["state_context"] == ""
    assert first["state_text"] == "Which?\nA. red\nB. green\nC. blue"
    assert first["action_text"] == "other: 7 b"
    assert second["tool_name"] == "tool" and not second["tool_ok"]
    assert second["observation"] == "error: ValueError: broken"
    assert second["state_context"] == "Thought: thought 0\nAction: other: 7 b\nObservation: saw 7 b"
    assert [row["step_idx"] for row in (first, second)] == [0, 1]
    assert [row["row_id"] for row in (first, second)] == ["q1/0/0", "q1/0/1"]
    assert [row["answer_letter"] for row in (first, second)] == ["N", "N"] and not first["is_correct"]
    assert (first["correct_answer_letter"], first["mcq_options"]) == ("B", ["red", "green", "blue"])


def test_rows_have_the_published_columns_first() -> None:
    row = make_trajectory(question(1), parts(), TrajectorySettings())[0]
    assert tuple(row) == PUBLISHED_COLUMNS + OWN_COLUMNS
    assert row["num_steps"] == 5


def test_an_answer_is_checked() -> None:
    steps = {"tool": "9 x", "other": "7 b"}
    rows = make_trajectory(question(1), parts(steps), TrajectorySettings(steps=1))
    assert rows[0]["answer_letter"] == "B" and rows[0]["is_correct"]


def test_nothing_viable_is_flagged() -> None:
    row = make_trajectory(question(1), parts({"tool": "3 a", "other": "5 b"}), TrajectorySettings(steps=1))[0]
    assert (row["tool_name"], row["viable"], row["is_fallback"], row["reward_raw"]) == ("other", [], True, 0.0)


# Many, on disk


def test_the_file_does_not_depend_on_connections(tmp_path: Path) -> None:
    questions = [question(number) for number in range(30)]
    contents = []
    for connections in (1, 7):
        folder = tmp_path / str(connections)
        settings = TrajectorySettings(steps=2, samples=2, connections=connections)
        summary = generate_trajectories(questions, parts(), folder, settings)
        assert (summary.trajectories, summary.rows, summary.correct) == (60, 120, 60)
        contents.append((folder / "rows.jsonl").read_bytes())
    assert contents[0] == contents[1]


def test_usage_rarity_is_the_same_for_any_number_of_connections(tmp_path: Path) -> None:
    questions = [question(number) for number in range(40)]
    chosen = []
    for connections in (1, 6):
        settings = TrajectorySettings(steps=3, connections=connections, usage_lag=5)
        generate_trajectories(questions, parts(selector="usage_rarity"), tmp_path / str(connections), settings)
        chosen.append([row["tool_name"] for row in rows_of(tmp_path / str(connections))])
    assert chosen[0] == chosen[1]
    assert abs(chosen[0].count("tool") - chosen[0].count("other")) <= 10


@pytest.mark.parametrize("cut", [1, 37, 300, 1500])
def test_an_interrupted_file_is_continued_to_the_same_bytes(tmp_path: Path, cut: int) -> None:
    questions = [question(number) for number in range(12)]
    settings = TrajectorySettings(steps=3, connections=2, usage_lag=4)
    generate_trajectories(questions, parts(selector="usage_rarity"), tmp_path / "whole", settings)
    generate_trajectories(questions[:5], parts(selector="usage_rarity"), tmp_path / "cut", settings)
    whole, path = (tmp_path / "whole" / "rows.jsonl").read_bytes(), tmp_path / "cut" / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    summary = generate_trajectories(questions, parts(selector="usage_rarity"), tmp_path / "cut", settings)
    assert path.read_bytes() == whole
    assert summary.skipped < 5 and summary.skipped + summary.trajectories == 12


def test_a_finished_directory_is_left_alone(tmp_path: Path) -> None:
    generate_trajectories([question(1)], parts(), tmp_path)
    before = (tmp_path / "rows.jsonl").read_bytes()
    summary = generate_trajectories([question(1)], parts(), tmp_path)
    assert (summary.skipped, summary.trajectories) == (1, 0)
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


def test_another_setting_for_the_same_directory_is_refused(tmp_path: Path) -> None:
    generate_trajectories([question(1)], parts(), tmp_path, TrajectorySettings(steps=2))
    with pytest.raises(ConfigError, match="begun with other settings: steps was 2 and is 3"):
        generate_trajectories([question(1)], parts(), tmp_path, TrajectorySettings(steps=3))
    with pytest.raises(ConfigError, match="selector was"):
        generate_trajectories([question(1)], parts(selector="best"), tmp_path, TrajectorySettings(steps=2))


def test_a_question_that_fails_is_noted_and_tried_again(tmp_path: Path) -> None:
    questions = [question(1), question(2, "lost"), question(3)]
    summary = generate_trajectories(questions, parts(), tmp_path)
    assert (summary.trajectories, summary.failed) == (2, 1)
    note = json.loads((tmp_path / "failures.jsonl").read_text())
    assert note == {"trajectory_id": "q2/0", "error": "AnswerInvalid: no score"}
    again = generate_trajectories([question(1), question(2), question(3)], parts(), tmp_path)
    assert (again.skipped, again.trajectories, again.failed) == (2, 1, 0)
    assert [rows[0]["qid"] for rows in read_trajectories(tmp_path / "rows.jsonl")] == ["q1", "q3", "q2"]


def test_many_failures_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(AnswerInvalid):
        generate_trajectories([question(number, "lost") for number in range(30)], parts(), tmp_path)
    assert len((tmp_path / "failures.jsonl").read_text().splitlines()) == 10


@pytest.mark.parametrize("name", ["steps", "samples", "connections", "usage_lag"])
def test_settings_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        TrajectorySettings(**{name: 0})


# Reading


def test_rows_of_another_schema_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"qid": "1"}\n')
    with pytest.raises(StoreError, match="line 1: not a trajectory row: sub_step_idx, step_idx"):
        list(read_trajectories(path))
    row = make_trajectory(question(1), parts(), TrajectorySettings(steps=1))[0]
    path.write_text(json.dumps(row | {"format_version": 99}) + "\n")
    with pytest.raises(StoreError, match="row format 99"):
        list(read_trajectories(path))
    path.write_text(json.dumps(row | {"step_idx": 1}) + "\n")
    with pytest.raises(StoreError, match="does not follow the one before it"):
        list(read_trajectories(path))


@pytest.mark.parametrize("column", [column for columns in COLUMN_KINDS.values() for column in columns])
def test_a_column_that_holds_something_else_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "rows.jsonl"
    row = make_trajectory(question(1), parts(), TrajectorySettings(steps=1))[0]
    for wrong in (None, [1], float("nan")):
        path.write_text(json.dumps(row | {column: wrong}) + "\n")
        with pytest.raises(StoreError, match=f"line 1: wanted .* under '{column}', got"):
            list(read_trajectories(path))


def test_repair_of_nothing_and_of_a_whole_file_changes_nothing(tmp_path: Path) -> None:
    repair(tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
    generate_trajectories([question(1)], parts(), tmp_path)
    before = (tmp_path / "rows.jsonl").read_bytes()
    repair(tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_stored_rows_give_judges_the_same_situations(tmp_path: Path) -> None:
    generate_trajectories([question(1), question(2)], parts(), tmp_path, TrajectorySettings(steps=3))
    rows = rows_of(tmp_path)
    found = list(cases(read_trajectories(tmp_path / "rows.jsonl")))
    assert [case.situation.text for case in found] == [row["state_text"] for row in rows]
    assert [case.step.observation for case in found] == [row["observation"] for row in rows]
    assert all(case.situation.question.answer == "" for case in found)


def test_estimate_counts_calls_and_tokens() -> None:
    settings = TrajectorySettings(steps=5, samples=2)
    found = estimate([question(n) for n in range(10)], {"tool": Echo()}, settings, prompt_price=1e6)
    assert (found["trajectories"], found["rows"], found["judge_calls"]) == (20, 100, 200)
    assert found["judge_prompt_tokens"] > 100 * 200 and found["judge_cost"] == pytest.approx(
        found["judge_prompt_tokens"], abs=1
    )


# With real tools and questions, and with a server in another process


def test_the_rules_judge_plays_generated_questions(tmp_path: Path) -> None:
    names = ("calculator", "dates", "dictionary", "search", "units")
    tools = ToolQuestions(tools=names).tools
    questions = [question_of(task) for task in ToolQuestions.tasks("train", count=24)]
    runner = ToolRunner(tools)
    for selector in ("rarity_first", "best"):
        made = Parts(tools, TemplateWriter(), RulesJudge(runner), make_selector(selector), runner)
        summary = generate_trajectories(questions, made, tmp_path / selector, TrajectorySettings(connections=2))
        assert summary.correct > 12
    best, rare = rows_of(tmp_path / "best"), rows_of(tmp_path / "rarity_first")
    assert {row["reward_raw"] for row in best} == {0.0} != {row["reward_raw"] for row in rare}
    assert {row["process_ok"] for row in rare} == {True, False}
    assert all(row["chosen_score"] > 6 or row["is_fallback"] for row in rare)
    assert all(set(row["candidate_actions"]) == {*names, COT} for row in rare)


def test_a_judge_behind_a_server_that_misbehaves_gives_whole_rows(tmp_path: Path) -> None:
    tools = make_tools(["dates"])
    runner = ToolRunner(tools)
    questions = [question(number, f"Which one, number {number}?") for number in range(8)]
    with (
        judge_server("429,500,malformed,truncated,wrong") as url,
        ChatClient(url, "judge", "", backoff_s=0.01, max_attempts=8, timeout_s=5) as chat,
    ):
        made = Parts(tools, TemplateWriter(), LlmJudge(chat), make_selector("rarity_first"), runner)
        summary = generate_trajectories(questions, made, tmp_path, TrajectorySettings(steps=2, connections=4))
    assert (summary.trajectories, summary.rows, summary.failed) == (8, 16, 0)
    spent = json.loads((tmp_path / "ledger.jsonl").read_text())["ledgers"]["judge"]
    assert spent["calls_sent"] > 32 and spent["prompt_tokens"] >= 3200
    assert all(0 <= row["chosen_score"] <= 10 for row in rows_of(tmp_path))


def test_a_spent_budget_keeps_what_was_finished(tmp_path: Path) -> None:
    tools = make_tools(["dates"])
    runner = ToolRunner(tools)
    questions = [question(number, f"Which one, number {number}?") for number in range(8)]
    # 110 tokens a call, two calls a step: the budget lasts for three questions of two steps
    with judge_server() as url, ChatClient(url, "judge", "", budget_tokens=3 * 4 * 110) as chat:
        made = Parts(tools, TemplateWriter(), LlmJudge(chat), make_selector("best"), runner)
        with pytest.raises(BudgetSpent):
            generate_trajectories(questions, made, tmp_path, TrajectorySettings(steps=2, connections=1))
    assert len(rows_of(tmp_path)) == 6
    assert json.loads((tmp_path / "ledger.jsonl").read_text())["trajectories"] == 3


def test_queries_of_a_model_must_be_complete() -> None:
    assert check_queries({"thought": "t", "queries": {"b": "1", "a": "2"}}, ["a", "b"]) == ("t", {"a": "2", "b": "1"})
    for queries in ({"a": "1"}, {"a": "1", "b": 2}, {"a": "1", "b": "2", "c": "3"}, "x"):
        with pytest.raises(ValueError, match="quer"):
            check_queries({"thought": "t", "queries": queries}, ["a", "b"])


# Metrics


def row(action: str, *, category: str = "x", ok: bool = True, sound: bool = True, gap: float = 0.0) -> dict[str, Any]:
    return {
        "tool_name": action, "category": category, "tool_ok": ok, "process_ok": sound, "is_fallback": gap < 0,
        "best_score": 9.0, "chosen_score": 9.0 - gap, "is_correct": ok,
        "candidate_actions": {"a": "", "b": "", "c": "", "d": ""}, "scores": {"a": 9.0 - gap, "b": None},
    }  # fmt: skip


def test_tool_metrics_by_hand() -> None:
    rows = [row("a"), row("a", ok=False), row("b", category="y", gap=2.0), row("c", category="y", sound=False)]
    chosen = [found["tool_name"] for found in rows]
    # shares 1/2, 1/4, 1/4: entropy 1.5 ln 2
    assert tool_metrics.selection_entropy(chosen) == pytest.approx(1.5 * math.log(2))
    assert tool_metrics.normalised_entropy(chosen, 4) == pytest.approx(0.75)
    assert tool_metrics.tool_coverage(chosen, ["a", "b", "c", "d"]) == 0.75
    assert tool_metrics.entropy_by_category(rows) == pytest.approx({"x": 0.0, "y": math.log(2)})
    first, _, _, unused = tool_metrics.tool_use(rows)
    assert (first.calls, first.rate, first.ok_rate, first.process_ok_rate, first.mean_score) == (2, 0.5, 0.5, 1.0, 8.5)
    assert unused.calls == 0 and math.isnan(unused.ok_rate) and math.isnan(unused.mean_score)
    summary = tool_metrics.tool_summary(rows)
    assert (summary["tools/ok"], summary["tools/process_ok"], summary["tools/score_gap"]) == (0.75, 0.75, 0.5)
    assert summary["tools/rate/d"] == 0.0 and tool_metrics.tool_summary([])["explore/tool_entropy"] is None
    accuracy = tool_metrics.accuracy_by_category([rows[:2], rows[1:3]])
    assert accuracy["x"][:2] == (2, 0.5) == accuracy["all"][:2]
    assert accuracy["x"][2] < 0.5 < accuracy["x"][3]
    assert math.isnan(tool_metrics.selection_entropy([])) and math.isnan(tool_metrics.normalised_entropy(["a"], 1))


def test_the_writer_without_slips_makes_none() -> None:
    asked = question_of(ToolQuestions.tasks("train", count=1, categories=["arithmetic"])[0])
    tools = make_tools(["calculator"])
    queries = {
        TemplateWriter(slips=False).write(Situation.start(asked), tools, seed=s).queries["calculator"] for s in range(9)
    }
    slipped = {
        TemplateWriter().write(Situation.start(asked), tools, seed=seed).queries["calculator"] for seed in range(40)
    }
    assert len(queries) == 1 and len(slipped) > 1
