"""Rescues by hand: what is grown again, what takes whose place, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tool_trees import sample, tool_tree

from firesteel.advantages import estimate_advantages
from firesteel.config import AdvantageConfig
from firesteel.curriculum import Uniform
from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.tasks import Call, tool_task
from firesteel.errors import ConfigError
from firesteel.fewshot import guided, is_guided
from firesteel.rescue import (
    RESCUE_PRESETS,
    RESCUES,
    TIERS,
    RescueContext,
    dead_groups,
    derived_hints,
    draw_others,
    failed_groups,
    guided_share,
    hint_rungs,
    make_rescue,
    merge_one,
    prefix_rungs,
    solution_prefix,
)
from firesteel.tree import Tree
from firesteel.types import Task

TASKS = [sample("a", "f", value=1), sample("b", "f", value=2), sample("c", "f", value=3), sample("d", "g", value=4)]


class Regrow:
    """Grows three leaves a task; the last one succeeds where `solves(task, name)` says so."""

    def __init__(self, solves) -> None:
        self.solves = solves
        self.calls: list[tuple[str, list[Task]]] = []

    def __call__(self, tasks: Sequence[Task], name: str) -> list[Tree]:
        self.calls.append((name, list(tasks)))
        return [tool_tree(task, False, False, self.solves(task, name)) for task in tasks]


def step_trees() -> list[Tree]:
    """a solved once, b and d all failed."""
    return [tool_tree(TASKS[0], True, False), tool_tree(TASKS[1], False, False), tool_tree(TASKS[3], False, False)]


def rescue_with(name: str, solves, *, step: int = 0, trees=None, draw=None, **options):
    rescue = make_rescue(name, TASKS, seed=0, options=options)
    regrow = Regrow(solves)
    result = rescue(step_trees() if trees is None else trees, RescueContext(step, regrow, draw))
    return rescue, regrow, result


def test_which_groups_failed_and_which_are_dead():
    trees = [tool_tree(TASKS[0], True, True), tool_tree(TASKS[1], False, False), tool_tree(TASKS[2], True, False)]
    trees.append(tool_tree(guided(TASKS[1], "hint"), True))  # joins group b
    assert failed_groups(trees[:3]) == ["b"]
    assert failed_groups(trees) == []
    assert dead_groups(trees[:3]) == ["a", "b"]
    assert dead_groups(trees) == ["a"]
    assert guided_share(trees) == 1 / 7
    trees[1].leaves[0].status = trees[1].leaves[1].status = "failed"
    assert failed_groups(trees[:3]) == []  # nothing counts there


def test_none_changes_nothing():
    rescue, regrow, result = rescue_with("none", lambda task, name: True)
    assert [tree.task.id for tree in result] == ["a", "b", "d"]
    assert regrow.calls == []
    assert rescue.metrics == {"rescue/failed_groups": 2 / 3, "rescue/rescued": 0.0, "rescue/guided_leaves": 0.0,
                              "rescue/tokens": 0.0}  # fmt: skip


def test_few_shot_replaces_a_failed_group_by_its_helped_version():
    rescue, regrow, result = rescue_with("few_shot", lambda task, name: name == "few-shot-1", attempts=3)
    # d has no other user of g, so only b is grown again: at attempt 0 in vain, at attempt 1 with success.
    assert [(name, [task.id for task in tasks]) for name, tasks in regrow.calls] == [
        ("few-shot-0", ["b"]),
        ("few-shot-1", ["b"]),
    ]
    assert all(is_guided(task) and task.demonstrations for _, tasks in regrow.calls for task in tasks)
    assert [(tree.task.id, tree.group, is_guided(tree.task), len(tree.leaves)) for tree in result] == [
        ("a", "a", False, 2),
        ("b", "b", True, 3),
        ("d", "d", False, 2),
    ]
    # two attempts of three leaves of three tokens; 3 of 7 leaves are guided
    assert rescue.metrics == {"rescue/failed_groups": 2 / 3, "rescue/rescued": 0.5,
                              "rescue/guided_leaves": 3 / 7, "rescue/tokens": 18.0}  # fmt: skip


def test_a_group_that_no_help_saves_stays_raw():
    rescue, _, result = rescue_with("few_shot", lambda task, name: False, attempts=2)
    assert [is_guided(tree.task) for tree in result] == [False] * 3
    assert rescue.metrics["rescue/rescued"] == 0.0


def test_add_keeps_both_trees_in_one_group():
    _, _, result = rescue_with("few_shot", lambda task, name: True, join="add")
    assert [(tree.group, is_guided(tree.task)) for tree in result] == [
        ("a", False), ("b", False), ("b", True), ("d", False)
    ]  # fmt: skip
    estimate_advantages(result, AdvantageConfig(baseline="group_mean", std="none"))
    # weights: raw leaves 1/2 each, helped leaves 1/3 each; mean of group b = (1/3) / 2 = 1/6
    assert [leaf.advantages for leaf in result[2].leaves] == [
        [pytest.approx(-1 / 6)], [pytest.approx(-1 / 6)], [pytest.approx(5 / 6)]
    ]  # fmt: skip
    assert result[1].leaves[0].advantages == [pytest.approx(-1 / 6)]


def test_one_helped_leaf_takes_the_place_of_one_raw_leaf():
    raw, helped = tool_tree(TASKS[1], False, False, False), tool_tree(guided(TASKS[1], "hint"), False, True, True)
    merge_one(raw, helped)
    assert [leaf.masked for leaf in raw.leaves] == [False, False, True]
    assert [leaf.masked for leaf in helped.leaves] == [True, False, True]
    estimate_advantages([raw, helped], AdvantageConfig(baseline="group_mean", std="population", eps=0.0))
    # rewards 0, 0, 1 with equal weights: mean 1/3, std sqrt(2)/3
    assert helped.leaves[1].advantages == [pytest.approx(2**0.5)]
    assert raw.leaves[0].advantages == [pytest.approx(-(2**-0.5))]


def test_hints_climb_from_the_weakest_until_one_helps():
    rescue, regrow, result = rescue_with(
        "hints",
        lambda task, name: len(task.data["hint"].splitlines()) >= 3,
        join="one",
        tiers=["knowledge", "planning"],
    )
    assert [name for name, _ in regrow.calls] == ["hint-0", "hint-1", "hint-2"]
    assert [tree.group for tree in result] == ["a", "b", "b", "d", "d"]
    assert sum(leaf.counts for tree in result if tree.group == "b" for leaf in tree.leaves) == 2
    assert rescue.metrics["rescue/rescued"] == 1.0
    assert regrow.calls[2][1][0].data["hint"].splitlines() == [
        "1 calls are right.", "These tools are right: f.", "Set these parameters: f(x).",
    ]  # fmt: skip


def test_nothing_happens_before_the_warm_up_is_over():
    for step, calls in ((49, 0), (50, 1)):
        _, regrow, _ = rescue_with("hints", lambda task, name: True, step=step, start_step=50)
        assert len(regrow.calls) == calls


def test_ghpo_shows_longer_and_longer_beginnings():
    assert [solution_prefix("abcdefghij", share) for share in (0.25, 0.5, 0.75, 1.0)] == [
        "ab", "abcde", "abcdefg", "abcdefghij"
    ]  # fmt: skip
    text = FORMATS["python"].write([Call("f", {"x": 2})])
    assert text == "[f(x=2)]"
    rungs = prefix_rungs(TASKS[1], FORMATS["python"], (0.25, 0.5, 0.75))
    assert [task.data["hint"] for task in rungs] == [
        "The answer begins: [f", "The answer begins: [f(x", "The answer begins: [f(x=2"
    ]  # fmt: skip
    _, regrow, result = rescue_with("hints", lambda task, name: name == "hint-1", fractions=[0.25, 0.5, 0.75])
    assert [name for name, _ in regrow.calls] == ["hint-0", "hint-1"]
    assert [is_guided(tree.task) for tree in result] == [False, True, True]


def test_a_tasks_own_hints_go_before_derived_ones():
    own = Task("b", data={**TASKS[1].data, "hints": {"knowledge": ["k1", "k2"], "solution": ["s"]}})
    rungs = hint_rungs(own, FORMATS["hermes"], ("knowledge", "planning", "solution"))
    assert [task.data["hint"] for task in rungs] == ["k1", "k1\nk2", "k1\nk2\ns"]
    assert list(derived_hints(TASKS[1], FORMATS["hermes"])) == ["knowledge", "planning", "solution"]


def test_a_task_without_calls_has_no_hints():
    nothing = Task("n", data={**TASKS[1].data, "answers": [[]]})
    assert hint_rungs(nothing, FORMATS["hermes"], ("knowledge",)) == []
    assert prefix_rungs(nothing, FORMATS["hermes"], (0.5,)) == []


def test_a_group_that_was_guided_already_is_left_alone():
    trees = [tool_tree(guided(TASKS[1], "few_shot"), False)]
    _, regrow, result = rescue_with("hints", lambda task, name: True, trees=trees)
    assert (regrow.calls, result) == ([], trees)


def test_resampling_fills_the_step_with_other_tasks():
    drawn: list[int] = []

    def draw(count: int) -> list[Task]:
        drawn.append(count)
        return [Task(f"new-{len(drawn)}-{number}", data=TASKS[2].data) for number in range(count)]

    rescue, regrow, result = rescue_with(
        "resample", lambda task, name: task.id in ("new-1-1", "new-2-0"), draw=draw, max_rounds=3
    )
    # of a, b and d the last two are dead; the first round gives one live group of two, the second the other
    assert drawn == [2, 1]
    assert [tree.task.id for tree in result] == ["a", "new-1-1", "new-2-0"]
    assert rescue.metrics["rescue/resampled"] == 2.0
    assert [name for name, _ in regrow.calls] == ["resample-0", "resample-1"]


def test_resampling_gives_up_and_keeps_the_size_of_the_step():
    others = iter([sample(f"new-{number}", "f", value=9) for number in range(9)])
    _, regrow, result = rescue_with(
        "resample", lambda task, name: False, draw=lambda count: [next(others) for _ in range(count)], max_rounds=2
    )
    assert len(regrow.calls) == 2
    assert [tree.task.id for tree in result] == ["a", "b", "d"]
    with pytest.raises(ConfigError, match="no curriculum to draw from"):
        rescue_with("resample", lambda task, name: False)


def test_resampling_passes_over_what_the_step_holds():
    pool = [*TASKS, sample("e", "f", value=5)]
    for seed in range(10):  # a, b and d are in the step: of the pass only c and e are others
        rescue, regrow, result = rescue_with("resample", lambda task, name: True, draw=Uniform(pool, seed=seed).sample)
        assert len(regrow.calls) == 1
        assert sorted(tree.group for tree in result) == ["a", "c", "e"]
        assert (rescue.metrics["rescue/resampled"], rescue.metrics["rescue/undrawn"]) == (2.0, 0.0)
        # one that died after it was drawn is not drawn again, and a dead one of the step fills its place
        rescue, regrow, result = rescue_with(
            "resample", lambda task, name: task.id == "e", draw=Uniform(pool, seed=seed).sample
        )
        assert [sorted(task.id for task in tasks) for _, tasks in regrow.calls] == [["c", "e"]]
        assert sorted(tree.group for tree in result) == ["a", "b", "e"]
        assert rescue.metrics["rescue/undrawn"] == 1.0


def test_resampling_stops_where_there_are_no_other_tasks():
    asked: list[int] = []

    def draw(count: int) -> list[Task]:
        asked.append(count)
        return [TASKS[1], TASKS[3]][:count]

    rescue, regrow, result = rescue_with("resample", lambda task, name: True, draw=draw)
    assert regrow.calls == [] and sum(asked) <= 20
    assert [tree.group for tree in result] == ["a", "b", "d"]
    assert (rescue.metrics["rescue/resampled"], rescue.metrics["rescue/undrawn"]) == (0.0, 2.0)
    assert rescue_with("resample", lambda task, name: True, draw=lambda count: [])[2] == result


def test_both_versions_of_a_drawn_task_make_up_one_group():
    raw = sample("new", "f", value=9)
    draws = [raw, guided(raw, "few_shot"), raw]
    assert draw_others(lambda count: draws[:count], 2, {"a"}) == draws[:2]
    assert draw_others(lambda count: draws, 3, {"a"}) == draws[:2]


def test_every_preset_builds():
    assert set(RESCUE_PRESETS) == {"toolexpander", "scaf_grpo", "ghpo", "dapo"}
    for preset in RESCUE_PRESETS.values():
        assert preset["name"] in RESCUES
        make_rescue(preset["name"], TASKS, seed=0, options=preset["options"])


def test_misuse_is_named():
    cases = {
        "unknown rescue 'hint' .did you mean 'hints'": ("hint", {}),
        "does not take the options .'atempts'": ("hints", {"atempts": 3}),
        "unknown tiers .'planing'": ("hints", {"tiers": ["planing"]}),
        "fractions must be a list of numbers above 0 and at most 1": ("hints", {"fractions": [0.0]}),
        "join must be one of": ("few_shot", {"join": "both"}),
        "max_rounds must be a whole number from 1 on": ("resample", {"max_rounds": 0}),
    }
    for message, (name, options) in cases.items():
        with pytest.raises(ConfigError, match=message):
            make_rescue(name, TASKS, seed=0, options=options)


def test_a_task_without_a_known_answer_has_no_hints():
    task = replace(tool_task(sample("a", "f")), answers=()).to_task()
    assert hint_rungs(task, FORMATS["hermes"], TIERS) == prefix_rungs(task, FORMATS["hermes"], (0.5,)) == []
