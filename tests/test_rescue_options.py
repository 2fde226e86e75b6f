"""What a rescue is told to do: which format hints are written in, what is refused, and which tasks can be helped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tool_runs import random_model
from tool_trees import sample, tool_tree

from firesteel.config import Config
from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.tasks import Call, ToolTask, tool_task
from firesteel.errors import ConfigError, TaskError
from firesteel.rescue import RESCUE_PRESETS, TIERS, RescueContext, hint_rungs, make_rescue, prefix_rungs
from firesteel.train import open_session
from firesteel.types import Task

TASKS = [sample("a", "f", value=1), sample("b", "f", value=2)]
BEGINNING = "The answer begins: "


def shown_hints(rescue: Any, task: Task) -> list[str]:
    """The hints of a failed group, from the first rung to the last."""
    seen: list[str] = []

    def regrow(tasks, name):
        seen.extend(task.data["hint"] for task in tasks)
        return [tool_tree(task, False) for task in tasks]

    rescue([tool_tree(task, False, False)], RescueContext(100, regrow))
    return seen


# the format of hints


def begun(environments: Any, **options: Any) -> str:
    rescue = make_rescue("hints", TASKS, seed=0, options={"fractions": [1], **options}, call_format=environments)
    (hint,) = shown_hints(rescue, TASKS[1])
    return hint.removeprefix(BEGINNING)


def test_hints_are_written_in_the_environments_format():
    hermes, python = '<tool_call>{"name": "f", "arguments": {"x": 2}}</tool_call>', "[f(x=2)]"
    assert begun(None) == begun("hermes") == hermes
    assert begun("python") == begun(FORMATS["python"]) == begun("template_python") == python
    assert begun("template_hermes") == begun("template_hermes", format="template") == hermes
    assert begun("hermes", format="python") == begun("no format", format="python") == python
    assert begun("python", format=FORMATS["hermes"]) == hermes


@pytest.mark.parametrize("preset", ["scaf_grpo", "ghpo"])
def test_the_presets_of_hints_take_the_environments_format(preset: str):
    settings = RESCUE_PRESETS[preset]
    rescue = make_rescue(settings["name"], TASKS, seed=0, options=settings["options"], call_format="python")
    assert shown_hints(rescue, TASKS[1])[-1].splitlines()[-1] == f"{BEGINNING}[f(x=2"


def test_a_run_writes_hints_in_its_environments_format(tmp_path: Path):
    config = Config.build(
        {
            "model": {"path": str(random_model(tmp_path / "model"))},
            "environment": {"name": "tool_calls", "options": {"format": "python", "num_tools": 6}, "num_tasks": 2},
            "context": {"prompts": "tool_calls"}, "rescue": {"name": "hints", "options": {"fractions": [1]}},
        }
    )  # fmt: skip
    session = open_session(config)
    (task,) = session.source.sample(1)
    (hint,) = shown_hints(session.rescue, task)
    assert hint == BEGINNING + FORMATS["python"].write(tool_task(task).reference)


def test_formats_that_hints_cannot_be_written_in_are_refused():
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ("hermes", {"format": 5}, "format must be none .* or the name of a call format .*; got 5"),
        ("hermes", {"format": "hermez"}, "unknown call format 'hermez' .did you mean 'hermes'"),
        ("python", {"format": "template"}, "the environment writes calls as 'python'; leave the format of hints out"),
        ("no format", {}, "unknown call format 'no format'.*unless their option format is set"),
        ({"a": 1}, {}, "format must be .*got {'a': 1}.*unless their option format is set"),
        ("firesteel.rescue:TIERS", {}, "the environment's format must be a call format"),
    ]
    for environments, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            begun(environments, **options)


def test_an_answer_that_the_format_cannot_hold_has_no_beginnings():
    task = sample("a", "not a name", value=1)
    hints = [version.data["hint"] for version in hint_rungs(task, FORMATS["python"], TIERS)]
    assert hints[-1].splitlines()[-1] == "Set these parameters: not a name(x)."
    assert prefix_rungs(task, FORMATS["python"], (0.5,)) == []


class Own:
    """A rescue of one's own that wants to know how calls are written."""

    def __init__(self, tasks, *, seed: int, call_format: str = "hermes") -> None:
        self.call_format = call_format


def own_without(tasks, *, seed: int, share: float) -> float:
    return share


def test_a_rescue_of_ones_own_gets_the_format_where_it_has_a_parameter_for_it():
    name = f"{__name__}:Own"
    rescue: Any = make_rescue(name, TASKS, seed=0, options={}, call_format="python")
    assert rescue.call_format == "python"
    rescue = make_rescue(name, TASKS, seed=0, options={})
    assert rescue.call_format == "hermes"
    assert make_rescue(f"{__name__}:own_without", TASKS, seed=0, options={"share": 0.5}, call_format="python") == 0.5


# options


@pytest.mark.parametrize(
    ("name", "option", "values", "wanted"),
    [
        ("few_shot", "attempts", ["3", 1.5, 0, -1, True, None], "a whole number from 1 on"),
        ("few_shot", "start_step", [-1, float("nan"), 0.0], "a whole number from 0 on"),
        ("few_shot", "join", ["both", None, ["one"]], "one of replace, add, one"),
        ("hints", "start_step", [-1, float("nan"), "0"], "a whole number from 0 on"),
        ("hints", "join", ["both"], "one of replace, add, one"),
        ("hints", "tiers", [[], "knowledge", None, 3], "a list of some of knowledge, planning, solution"),
        ("hints", "fractions", [0.5, [0], [1.5], ["0.5"], [float("nan")], [True], "0.5", None],
         "a list of numbers above 0 and at most 1"),
        ("hints", "read", [5, None], "a function or 'package.module:function'"),
        ("resample", "max_rounds", [1.5, 0, "3"], "a whole number from 1 on"),
    ],
)  # fmt: skip
def test_values_without_sense_are_refused(name: str, option: str, values: list[Any], wanted: str):
    for value in values:
        with pytest.raises(ConfigError) as caught:
            make_rescue(name, TASKS, seed=0, options={option: value})
        assert str(caught.value) == f"rescue '{name}': {option} must be {wanted}; got {value!r}"


def test_unknown_options_are_refused_with_the_nearest_name():
    cases = {
        ("few_shot", "atempts"): "'atempts'.*did you mean 'attempts'.*known: attempts, .*, read$",
        ("few_shot", "per_tol"): "did you mean 'per_tool'",
        ("hints", "fraction"): "did you mean 'fractions'.*; known: tiers, fractions, format, read, join, start_step$",
        ("hints", "call_format"): "does not take the options .'call_format'",
        ("few_shot", "call_format"): "does not take the options .'call_format'",
        ("none", "seed"): "does not take the options .'seed'.; known: none",
    }
    for (name, option), message in cases.items():
        with pytest.raises(ConfigError, match=message):
            make_rescue(name, TASKS, seed=0, options={option: 1})
    with pytest.raises(ConfigError, match="unknown tiers .'planing'. .did you mean 'planning'"):
        make_rescue("hints", TASKS, seed=0, options={"tiers": ["planing"]})


# tasks


def with_hints(hints: Any, name: str = "b") -> Task:
    return Task(name, data={**TASKS[1].data, "hints": hints})


def test_a_text_is_one_hint():
    rungs = hint_rungs(
        with_hints({"planning": "use f", "knowledge": None, "solution": ["s", "t"]}), FORMATS["hermes"], TIERS
    )
    assert [task.data["hint"] for task in rungs] == ["use f", "use f\ns", "use f\ns\nt"]


@pytest.mark.parametrize(
    ("hints", "problem"),
    [
        ("use f", "must hold .*, got 'use f'"),
        (["use f"], "must hold .*, got \\['use f'\\]"),
        ({"planning": 3}, "got 3 for 'planning'"),
        ({"planning": ["use f", 3]}, "for 'planning'"),
        ({"planning": [""]}, "for 'planning'"),
        ({"planing": ["use f"]}, "unknown tier 'planing' .did you mean 'planning'"),
    ],
)
def test_other_hints_of_a_task_are_refused_by_its_id(hints: Any, problem: str):
    with pytest.raises(TaskError, match=f"task 'bad': data\\['hints'\\] .*{problem}"):
        make_rescue("hints", [*TASKS, with_hints(hints, "bad")], seed=0, options={})


def game(name: str, **data: Any) -> Task:
    return Task(name, data={"world": 1, **data})


def read_game(task: Task) -> ToolTask:
    """What a game is about, for one who has made up calls for it."""
    return replace(tool_task(TASKS[0]), id=task.id, answers=((Call("f", {"x": task.data["world"]}),),))


def test_tasks_of_which_no_hints_can_be_made_are_refused_before_anything_is_played():
    message = r"rescue 'hints': task 'g' is not one that tool_task reads .*set the option read .*first_turn"
    with pytest.raises(ConfigError, match=f"{message}.*, or give the task hints of its own"):
        make_rescue("hints", [*TASKS, game("g")], seed=0, options={})
    with pytest.raises(ConfigError, match=message):
        make_rescue("hints", [game("g", hints={"planning": "look"})], seed=0, options={"fractions": [0.5]})
    with pytest.raises(ConfigError, match="task 'a' is not one that .*first_turn reads .KeyError: 'entry'"):
        read = "firesteel.environments.bfcl.multi_turn:first_turn"
        make_rescue("hints", TASKS, seed=0, options={"read": read})
    with pytest.raises(ConfigError, match="few-shot examples: task 'g' is not one that tool_task reads"):
        make_rescue("few_shot", [game("g")], seed=0, options={})
    with pytest.raises(ConfigError, match="it gave str for a ToolTask"):
        make_rescue("hints", TASKS, seed=0, options={"read": f"{__name__}:begun_wrongly"})


def begun_wrongly(task: Task) -> str:
    return task.id


def test_a_tasks_own_hints_and_readers_of_ones_own_help_other_tasks():
    own = game("g", hints={"planning": "look"})
    assert shown_hints(make_rescue("hints", [own], seed=0, options={}), own) == ["look"]
    for read in (read_game, f"{__name__}:read_game"):
        rescue = make_rescue(
            "hints", [game("g")], seed=0, options={"read": read, "fractions": [1]}, call_format="python"
        )
        assert shown_hints(rescue, game("g")) == [f"{BEGINNING}[f(x=1)]"]


def test_hints_for_bfcls_multi_turn_tasks():
    pytest.importorskip("bfcl_eval")
    from firesteel.environments.bfcl import Bfcl
    from firesteel.environments.bfcl.multi_turn import first_turn

    tasks = Bfcl.tasks("multi_turn_base", count=3)
    with pytest.raises(
        ConfigError, match="rescue 'hints': task 'multi_turn_base_0' .*first_turn for BFCL's multi-turn"
    ):
        make_rescue("hints", tasks, seed=0, options={})
    options = {"read": "firesteel.environments.bfcl.multi_turn:first_turn", "fractions": [1]}
    rescue = make_rescue("hints", tasks, seed=0, options=options, call_format="python")
    (hint,) = shown_hints(rescue, tasks[0])
    assert hint == BEGINNING + FORMATS["python"].write(first_turn(tasks[0]).reference)
