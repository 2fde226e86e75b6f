"""Which samples are shown as examples: none whose question is missing, none that gives the answer away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tool_trees import sample

from firesteel.environments.tool_calls import ToolCalls
from firesteel.environments.tool_calls.tasks import Call, ToolTask, demonstrations_of, tool_task
from firesteel.errors import ConfigError
from firesteel.fewshot import ExampleIndex
from firesteel.types import Task


def drawn_ids(tasks: list[Task], own: Task, attempts: int = 20, **options: Any) -> set[str]:
    index = ExampleIndex(tasks, seed=0, per_tool=9, max_examples=9, **options)
    return {tasks[place].id for attempt in range(attempts) for place in index.draw(own, attempt)}


def after_a_result(name: str, value: int) -> Task:
    """A sample of `sample` whose conversation went on after the question."""
    task = sample(name, "f", value=value)
    said = [*task.data["messages"], {"role": "assistant", "content": ""}, {"role": "tool", "content": "3"}]
    return Task(name, data={**task.data, "messages": said})


def test_a_sample_that_does_not_end_with_the_user_is_no_example():
    tasks = [sample("a", "f", value=1), after_a_result("b", 2), sample("c", "f", value=3), after_a_result("d", 4)]
    assert drawn_ids(tasks, tasks[0]) == {"c"}
    assert drawn_ids(tasks, tasks[1]) == {"a", "c"}
    index = ExampleIndex(tasks, seed=0)
    shown = [demonstrations_of(index.guide(task, index.draw(task, 0))) for task in tasks]
    assert all(entry.query.startswith("do ") for entries in shown for entry in entries)


def test_examples_from_api_bank_have_their_questions(tmp_path: Path):
    def turn(value: int) -> list[dict[str, Any]]:
        call = {"role": "API", "api_name": "Add", "param_dict": {"x": str(value)}, "result": {"output": value}}
        return [{"role": "User", "text": f"add {value}"}, call, {**call, "param_dict": {"x": str(value + 100)}}]

    for number in range(6):
        (tmp_path / f"Add-level-1-{number}.jsonl").write_text("\n".join(map(json.dumps, turn(number))))
    tasks = ToolCalls.tasks("level-1", source="api_bank", path=str(tmp_path))
    assert sum(tool_task(task).query == "Go on." for task in tasks) == 6
    index = ExampleIndex(tasks, seed=0)
    shown = [entry for task in tasks for entry in demonstrations_of(index.guide(task, index.draw(task, 0)))]
    assert len(shown) == 24 and {entry.query for entry in shown} == {f"add {number}" for number in range(6)}


def test_draws_of_generated_tasks_stay_what_they_were():
    tasks = ToolCalls.tasks("train", count=60, num_tools=8)
    index = ExampleIndex(tasks, seed=0)
    assert [index.draw(task, attempt) for task in tasks[:12] for attempt in range(2)] == EXPECTED


EXPECTED: list[Any] = [
    (13, 6),
    (36, 14),
    (42, 38),
    (42, 15),
    (6, 14),
    (19, 36),
    (42, 15, 4, 45),
    (15, 8, 45, 12),
    (40, 43, 32, 12),
    (27, 48, 34, 53),
    (34, 25),
    (39, 35),
    (2, 13),
    (19, 0),
    (22, 44),
    (15, 28),
    (38, 15),
    (38, 42),
    (35, 25),
    (39, 25),
    (46, 30, 47, 33),
    (40, 27, 24, 49),
    (47, 10),
    (59, 55),
]


# BFCL's rules


def bfcl_task(name: str, category: str, possible: Any, *calls: Call) -> Task:
    """A task about `area(base, height, unit)` under BFCL's rules."""
    kinds = {"base": "integer", "height": "integer", "unit": "string"}
    properties = {key: {"type": kind, "description": ""} for key, kind in kinds.items()}
    functions = [
        {"name": tool, "description": "",
         "parameters": {"type": "dict", "properties": properties, "required": ["base", "height"]}}
        for tool in ("area", "other")
    ]  # fmt: skip
    tools = tuple({**function, "parameters": {**function["parameters"], "type": "object"}} for function in functions)
    checks = {"category": category, "functions": functions, "possible": possible}
    messages = ({"role": "user", "content": f"do {name}"},)
    return ToolTask(name, messages, tools, (calls,) if calls else (), category, category, checks).to_task()


def area(base: int, height: int, **more: Any) -> Call:
    return Call("area", {"base": base, "height": height, **more})


def test_an_answer_that_bfcls_rules_accept_is_not_shown():
    pytest.importorskip("bfcl_eval")
    truth = [{"area": {"base": [10], "height": [5], "unit": ["units", "cm", ""]}}]
    own = bfcl_task("own", "simple_python", truth, area(10, 5, unit="units"))
    others = {
        "left_out": (area(10, 5),),
        "alternative": (area(10, 5, unit="CM"),),
        "within": (Call("other", {"base": 1, "height": 1}), area(10, 5)),
        "another_value": (area(10, 6),),
        "another_unit": (area(10, 5, unit="miles"),),
    }
    tasks = [own, *(bfcl_task(name, "parallel", [{}], *calls) for name, calls in others.items())]
    assert drawn_ids(tasks, own) == {"another_value", "another_unit"}
    # each of several wanted calls is guarded
    several = bfcl_task("own", "parallel", [{"area": {"base": [1], "height": [1]}}, *truth], area(1, 1), area(10, 5))
    assert drawn_ids([several, *tasks[1:]], several) == {"another_value", "another_unit"}
    # any call is right for "live_relevance", none for "irrelevance"
    anything = bfcl_task("own", "live_relevance", None)
    assert drawn_ids([anything, *tasks[1:]], anything, tools_of="listed") == set()
    nothing = bfcl_task("own", "irrelevance", None)
    assert drawn_ids([nothing, *tasks[1:]], nothing, tools_of="listed") == set(others)


def test_no_example_of_bfcl_is_right_for_the_task_that_is_shown_it():
    pytest.importorskip("bfcl_eval")
    from firesteel.environments.bfcl.single_turn import check_calls

    tasks = ToolCalls.tasks("simple_python", source="bfcl")
    index = ExampleIndex(tasks, seed=0, per_tool=9, max_examples=9)
    num_shown = 0
    for task in tasks:
        for shown in index.demonstrations(index.draw(task, 0)):
            num_shown += 1
            assert not check_calls(shown.calls, tool_task(task)).correct, (task.id, shown.source)
    assert num_shown > 50


# options


@pytest.mark.parametrize(
    ("option", "values", "wanted"),
    [
        ("per_tool", [1.5, float("nan"), "2", 0, True], "a whole number from 1 on"),
        ("max_examples", [2.5, -1, None], "a whole number from 1 on"),
        ("tools_of", ["all", None, ["called"]], "one of called, listed"),
        ("read", [5, None], "a function or 'package.module:function'"),
    ],
)
def test_values_without_sense_are_refused(option: str, values: list[Any], wanted: str):
    for value in values:
        with pytest.raises(ConfigError) as caught:
            ExampleIndex([sample("a", "f")], seed=0, **{option: value})
        assert str(caught.value) == f"few-shot examples: {option} must be {wanted}; got {value!r}"
