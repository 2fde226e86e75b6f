"""Reports of tool use in played episodes, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from firesteel.environments import environment_class
from firesteel.metrics import EpisodeRecord
from firesteel.tool_evaluation import (
    call_outcomes,
    chosen_actions,
    entropy_of_kinds,
    report_by_category,
    tool_report,
)


def record(kind: str, success: bool, *actions: str) -> EpisodeRecord:
    return EpisodeRecord(
        task_id=kind, kind=kind, split="test", success=success, score=float(success), steps=len(actions),
        generated_tokens=1, invalid_actions=0, actions=actions, explore_flags=(False,) * len(actions),
        status="finished", observations=("",) * len(actions),
    )  # fmt: skip


RECORDS = [
    record("a", True, "dates: 1", "cot: go", "answer: B"),
    record("a", False, "dates: 2", "dates: 3", "answer: C"),
    record("b", False, "units: 2", "nonsense", "answer: A"),
]


def test_answers_and_what_is_no_action_do_not_count() -> None:
    assert chosen_actions(RECORDS, ["dates", "units"]) == [["dates", "cot"], ["dates", "dates"], ["units"]]


def test_figures_by_hand() -> None:
    found = tool_report(RECORDS, ["dates", "units", "logic"])
    assert (found["n"], found["accuracy"], found["coverage"]) == (3, 1 / 3, 3 / 4)
    entropy = -(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2))
    assert math.isclose(found["entropy"], entropy)
    assert found["entropy_low"] <= entropy <= found["entropy_high"] and found["entropy_low"] < found["entropy_high"]
    assert (found["rate/dates"], found["rate/logic"], found["calls"]) == (0.6, 0.0, 5 / 3)


def test_calls_that_worked_are_told_by_what_was_seen_next() -> None:
    seen = ("which", "29 days", "error: no date", "error: not a number")
    actions = ("dates: 1", "dates: 2", "units: 3", "dates: 4")
    played = replace(record("a", False, *actions), observations=seen)
    # the last call's result is not on record; a text that only mentions an error is none
    assert call_outcomes([played], ["dates", "units", "logic"]) == {"dates": (1, 2), "logic": (0, 0), "units": (0, 1)}
    found = tool_report([played], ["dates", "units", "logic"])
    assert (found["ok"], found["ok/dates"], found["ok/units"], found["ok/logic"]) == (1 / 3, 0.5, 0.0, None)


def test_the_entropy_of_each_category_by_hand() -> None:
    found = entropy_of_kinds([*RECORDS, record("c", True, "answer: A")], ["dates", "units"])
    assert found["a"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))  # dates 3 times, cot once
    assert (found["b"], found["c"]) == (0.0, None)
    assert entropy_of_kinds(RECORDS[:2], ["dates"]) == {}  # one category is the whole


def test_without_a_call_there_is_no_entropy() -> None:
    found = tool_report([record("a", True, "answer: B")], [])
    assert found["entropy"] is None and found["entropy_low"] is None and found["accuracy"] == 1.0
    assert set(report_by_category(RECORDS, ["dates"])) == {"a", "b", "all"}


def test_an_environment_of_questions_says_how_its_tools_were_chosen() -> None:
    tools = {"dates": "dates", "units": "units"}
    found = environment_class("tool_questions").figures(RECORDS, tools=tools)
    assert found["tools/entropy"] == tool_report(RECORDS, list(tools))["entropy"]
    assert (found["tools/coverage"], found["tools/calls"], found["tools/rate/dates"]) == (1.0, 5 / 3, 0.6)
    assert found["tools/entropy/b"] == 0.0 and found["tools/ok/units"] == 1.0
    assert all(name.startswith("tools/") and "accuracy" not in name for name in found)


def test_most_environments_say_nothing_more() -> None:
    assert environment_class("household").figures(RECORDS, size="small") == {}
