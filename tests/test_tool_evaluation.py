"""Reports of tool use in played episodes, by hand."""

from __future__ import annotations

import math

from firesteel.environments import environment_class
from firesteel.metrics import EpisodeRecord
from firesteel.tool_evaluation import chosen_actions, report_by_category, tool_report


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


def test_without_a_call_there_is_no_entropy() -> None:
    found = tool_report([record("a", True, "answer: B")], [])
    assert found["entropy"] is None and found["entropy_low"] is None and found["accuracy"] == 1.0
    assert set(report_by_category(RECORDS, ["dates"])) == {"a", "b", "all"}


def test_an_environment_of_questions_says_how_its_tools_were_chosen() -> None:
    tools = {"dates": "dates", "units": "units"}
    found = environment_class("tool_questions").figures(RECORDS, tools=tools)
    assert found["tools/entropy"] == tool_report(RECORDS, list(tools))["entropy"]
    assert (found["tools/coverage"], found["tools/calls"], found["tools/rate/dates"]) == (1.0, 5 / 3, 0.6)
    assert all(name.startswith("tools/") and "accuracy" not in name for name in found)


def test_most_environments_say_nothing_more() -> None:
    assert environment_class("household").figures(RECORDS, size="small") == {}
