"""BFCL: its figures by hand, and with the package a few tasks of each kind, forks, and hostile calls."""

from __future__ import annotations

import decimal
import importlib
import importlib.util
import json
import sys
from itertools import islice

import pytest

from firesteel.environments.bfcl import Bfcl
from firesteel.environments.bfcl.backends import LARGEST_PRECISION, Backends, _excess
from firesteel.environments.bfcl.environment import GROUPS, MAX_STEPS_PER_TURN, PARTS, _part
from firesteel.environments.bfcl.multi_turn import ground_truth
from firesteel.environments.bfcl.package import HOW_TO_INSTALL, MULTI_TURN, SINGLE_TURN, package_directory
from firesteel.environments.bfcl.report import bfcl_counts, bfcl_summary
from firesteel.environments.bfcl.single_turn import check_calls, reference_calls, source_text
from firesteel.environments.check import check_environment
from firesteel.environments.tool_calls import ToolCalls
from firesteel.environments.tool_calls.tasks import Call, ToolTask
from firesteel.errors import ConfigError, EnvironmentFailed, MissingDependency, TaskError
from firesteel.metrics import EpisodeRecord

HAS_BFCL = importlib.util.find_spec("bfcl_eval") is not None
needs_bfcl = pytest.mark.skipif(not HAS_BFCL, reason=f"bfcl-eval is not installed: {HOW_TO_INSTALL}")


# without the package


def test_the_figures_by_hand():
    counts = dict.fromkeys(GROUPS["all"], (1, 2)) | {
        "simple_java": (0, 10), "multiple": (2, 2), "live_simple": (6, 8), "multi_turn_base": (3, 4),
    }  # fmt: skip
    summary = bfcl_summary(counts)
    # simple = (1/2 + 0 + 1/2) / 3 = 1/3; (1/3 + 1 + 1/2 + 1/2) / 4 = 7/12
    assert summary["non_live_ast"] == pytest.approx(7 / 12)
    assert summary["live_ast"] == pytest.approx((6 + 1 + 1 + 1) / (8 + 2 + 2 + 2))
    # non-live: 1 + 0 + 1 + 2 + 1 + 1 of 2 + 10 + 2 + 2 + 2 + 2
    assert summary["overall_ast"] == pytest.approx((6 + 9) / (20 + 14))
    assert summary["multi_turn"] == pytest.approx((0.75 + 0.5 * 3) / 4)
    assert summary["simple_java"] == 0.0
    assert list(summary)[:4] == ["non_live_ast", "live_ast", "overall_ast", "multi_turn"]


def test_episodes_are_counted_by_category():
    def record(kind, success, status="finished"):
        return EpisodeRecord("t", kind, "all", success, float(success), 1, 5, 0, ("x",), (), status)

    records = [record("multiple", True), record("multiple", False), record("live_simple", True),
               record("multiple", True, "failed")]  # fmt: skip
    assert bfcl_counts(records) == {"multiple": (1, 3), "live_simple": (1, 1)}


def test_a_figure_whose_categories_were_not_all_played_is_none():
    summary = bfcl_summary({"live_simple": (1, 1), "multi_turn_base": (0, 0)})
    assert summary == {"non_live_ast": None, "live_ast": None, "overall_ast": None, "multi_turn": None,
                       "live_simple": 1.0}  # fmt: skip


def test_the_reference_takes_first_values_and_leaves_out_what_may_be():
    functions = [{"name": "f", "parameters": {"required": ["a", "e"], "properties": {}}}]
    truth = [{"f": {"a": [2, 3], "b": ["", 5], "c": [""], "d": [{"x": ["", "y"], "z": [""]}], "e": [""], "g": []}}]
    (call,) = reference_calls(truth, functions, "simple_python")
    assert call == Call("f", {"a": 2, "b": 5, "d": {"x": "y"}, "e": ""})


def test_values_as_source_text():
    assert source_text(5, {"type": "long"}, "simple_java") == "5L"
    assert source_text(5.5, {"type": "float"}, "simple_java") == "5.5f"
    assert source_text(True, {"type": "boolean"}, "simple_java") == "true"
    array = {"type": "Array", "items": {"type": "int"}}
    assert source_text([1, 2], array, "simple_java") == "new int[]{1, 2}"
    listed = {"type": "ArrayList", "items": {"type": "String"}}
    assert source_text(["a"], listed, "simple_java") == 'new ArrayList<>(Arrays.asList("a"))'
    assert source_text({"k": [1, ""]}, {"type": "HashMap"}, "simple_java") == (
        'new HashMap<String, Object>() {{ put("k", 1); }}'
    )
    assert source_text([1, True], {"type": "array"}, "simple_javascript") == "[1, true]"


def test_scenarios_are_in_the_same_part_in_all_categories():
    for number in range(20):
        assert len({_part(f"{category}_{number}") for category in MULTI_TURN}) == 1
    shares = [_part(f"multi_turn_base_{number}") for number in range(200)]
    assert all(shares.count(name) > 20 for name in PARTS)


def test_misuse_is_named():
    with pytest.raises(TaskError, match="no split 'multi_trun' .did you mean 'multi_turn'"):
        Bfcl.tasks("multi_trun")
    with pytest.raises(ConfigError, match="no option 'formt'"):
        Bfcl.tasks("train", formt="x")
    with pytest.raises(ConfigError, match="category must be one of multi_turn_base"):
        Bfcl(category="base")
    with pytest.raises(EnvironmentFailed, match="before its first reset"):
        Bfcl().step("x")
    other = ToolTask("t", ({"role": "user", "content": "q"},), (), ((),))
    with pytest.raises(TaskError, match="is not a BFCL task"):
        check_calls([], other)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    with pytest.raises(MissingDependency, match="pip install --no-deps bfcl-eval"):
        package_directory()
    with pytest.raises(MissingDependency, match="BFCL needs the package bfcl-eval"):
        Bfcl.tasks("train")


BROKEN = {"hermes": "<tool_call>{broken</tool_call>", "python": "[1] I cannot do that.", "llama3": "{broken"}


@pytest.mark.parametrize("name", BROKEN)
def test_calls_that_cannot_be_read_are_none_by_bfcls_rules(name):
    def play(checker: str, checks: dict) -> dict:
        task = ToolTask("t", ({"role": "user", "content": "q"},), (), ((),), checks=checks).to_task()
        environment = ToolCalls(checker=checker, format=name)
        environment.reset(task, seed=0)
        return environment.step(BROKEN[name]).info

    found = play("bfcl", {"category": "irrelevance", "functions": [], "possible": None})
    assert (found["success"], found["valid"], found["problem"]) == (True, True, None)
    assert play("exact", {})["success"] is False


def test_text_around_calls_is_passed_over_unless_it_is_refused():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    task = ToolTask(
        "t", ({"role": "user", "content": "q"},), (), (),
        checks={"category": "live_relevance", "functions": [], "possible": None},
    ).to_task()  # fmt: skip
    for before in ("", "<think>the user wants f</think>\n", "Sure. "):
        for reasoning in ("allowed", "refused"):
            environment = Bfcl(reasoning=reasoning)
            environment.reset(task, seed=0)
            assert environment.step(before + call).info["success"] is (reasoning == "allowed" or not before)
    assert Bfcl()._reasoning == "allowed"
    with pytest.raises(ConfigError, match="bfcl: reasoning must be one of"):
        Bfcl(reasoning="some")


# with the package


def first(split: str, number: int = 0):
    return Bfcl.tasks(split, count=number + 1)[number]


def play_expert(environment: Bfcl) -> list:
    results = []
    while (step := environment.expert()) is not None:
        results.append(environment.step(step.action))
    return results


@needs_bfcl
@pytest.mark.parametrize("category", MULTI_TURN)
def test_ground_truths_of_multi_turn_tasks_succeed(category):
    environment = Bfcl(format="python")
    for task in Bfcl.tasks(category, count=8):
        environment.reset(task, seed=0)
        last = play_expert(environment)[-1]
        assert (last.terminated, last.info["success"], last.info["score"]) == (True, True, 1.0), last.info


@needs_bfcl
@pytest.mark.parametrize("category", SINGLE_TURN)
def test_single_turn_tasks_are_played_under_the_own_checker(category):
    environment = Bfcl()
    for task in Bfcl.tasks(category, count=4):
        environment.reset(task, seed=0)
        if category == "live_relevance":
            tool = task.data["tools"][0]["name"]
            result = environment.step(f'<tool_call>{{"name": "{tool}", "arguments": {{}}}}</tool_call>')
        else:
            result = environment.step(environment.expert().action)
        assert result.info["success"], (task.id, result.info)
        environment.reset(task, seed=0)
        wrong = environment.step('<tool_call>{"name": "no_such_tool", "arguments": {}}</tool_call>')
        assert wrong.info["success"] is (category == "live_relevance")


@needs_bfcl
def test_a_conversation_by_hand():
    environment = Bfcl(format="python", schemas="signature")
    observation = environment.reset(first("multi_turn_base"), seed=0)
    assert "mkdir(dir_name: string" in observation.text
    assert environment.goal.startswith("Move 'final_report.pdf'")
    seen = environment.step("[cd(folder='document'), mkdir(dir_name='temp')]")
    lines = [json.loads(line) for line in seen.observation.text.splitlines()]
    assert [line["name"] for line in lines] == ["cd", "mkdir"]
    assert json.loads(lines[0]["result"]) == {"current_working_directory": "document"}
    environment.step("mv(source='final_report.pdf', destination='temp')")
    asked = environment.step("That is done.")
    assert asked.observation.text.startswith("Query: Perform a detailed search using grep")
    assert (asked.terminated, asked.info["score"]) == (False, 0.25)
    lost = environment.step("I will not.")
    assert (lost.terminated, lost.reward, lost.info["score"]) == (True, 0.0, 0.25)
    assert lost.info["problem"] == "turn 1: no call in a turn that wants some"


@needs_bfcl
def test_an_unneeded_change_of_state_is_a_failure():
    environment = Bfcl(format="python", end_on_failure=False)
    environment.reset(first("multi_turn_base"), seed=0)
    environment.step("[mkdir(dir_name='other')]")
    results = []
    while (step := environment.expert()) is not None:
        results.append(environment.step(environment._format.write(environment._truth_calls[environment._turn])))
        results.append(environment.step(step.action if step.action == "Done." else "Done."))
    assert results[-1].info["success"] is False
    assert "GorillaFileSystem.root" in results[-1].info["problem"]
    assert results[-1].info["score"] == 0.0


@needs_bfcl
def test_held_back_tools_are_announced_in_their_turn():
    environment = Bfcl(format="python", schemas="signature")
    opening = environment.reset(first("multi_turn_miss_func"), seed=0)
    assert "sort(" not in opening.text
    results = play_expert(environment)
    added = [result for result in results if result.observation.text.startswith("These tools can be called now")]
    assert len(added) == 1
    assert "sort(file_name: string" in added[0].observation.text
    assert results[-1].info["success"]


@needs_bfcl
def test_too_many_steps_lose_the_episode():
    environment = Bfcl(format="python")
    environment.reset(first("multi_turn_base"), seed=0)
    for _ in range(MAX_STEPS_PER_TURN):
        assert not environment.step("[ls()]").terminated
    last = environment.step("[ls()]")
    assert (last.terminated, last.info["success"]) == (True, False)
    with pytest.raises(EnvironmentFailed, match="after its episode had ended"):
        environment.step("[ls()]")


@needs_bfcl
@pytest.mark.parametrize(
    "text",
    [
        "[__init__()]", "[_load_scenario(scenario={})]", "[no_such()]", "[cd()]", "[cd(x=1)]", "[cd(folder=[1])]",
        "[cd.__class__()]", "[ls(a=__import__('os').system('ls'))]", "[mv(source=None, destination={'a': 1})]",
        "[tail(file_name='final_report.pdf', lines='x')]",
    ],
)  # fmt: skip
def test_hostile_calls_change_nothing_and_crash_nothing(text):
    environment = Bfcl(format="python")
    environment.reset(first("multi_turn_base"), seed=0)
    before = environment._model.state()
    result = environment.step(text)
    assert environment._model.state() == before
    assert result.info["success"] is False


@needs_bfcl
@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("square_root", {"number": 2, "precision": 10**18}, "precision must be at most 1000"),
        ("square_root", {"number": 2, "precision": 16**5000}, "precision must be at most 1000"),
        ("logarithm", {"value": 2, "base": 3, "precision": "900000000"}, "precision must be at most 1000"),
        ("logarithm", {"value": 2, "base": 3, "precision": 1e9}, "precision must be at most 1000"),
        ("round_number", {"number": 5, "decimal_places": -(10**9)}, "decimal_places must be at least -1000"),
        ("power", {"base": 9, "exponent": 10**10}, "too many digits"),
    ],
)
def test_arithmetic_without_an_end_is_not_begun(name, arguments, problem):
    answer = Backends.load({}, ["MathAPI"], long_context=False).call(Call(name, arguments))
    assert answer.startswith("Error during execution: ")
    assert problem in answer


@needs_bfcl
def test_arithmetic_within_the_limits_is_done():
    math = Backends.load({}, ["MathAPI"], long_context=False)
    root = math.call(Call("square_root", {"number": 2, "precision": LARGEST_PRECISION}))
    assert len(root) > LARGEST_PRECISION
    assert math.call(Call("power", {"base": 2, "exponent": 10})) == '{"result": 1024}'
    assert math.call(Call("power", {"base": -1, "exponent": 10**10})) == '{"result": 1}'
    assert math.call(Call("round_number", {"number": 1234, "decimal_places": -2})) == '{"result": 1200}'


@needs_bfcl
def test_no_ground_truth_is_beyond_the_limits():
    wanted = []
    for task in Bfcl.tasks("multi_turn"):
        for turn in ground_truth(task.data["entry"]["ground_truth"], task.data["entry"]["involved_classes"]):
            assert all(_excess(call) is None for call in turn)
            wanted += [call.arguments["precision"] for call in turn if "precision" in call.arguments]
    assert max(wanted) == 10


@needs_bfcl
def test_arithmetic_leaves_the_precision_of_the_process_alone():
    mpmath = importlib.import_module("mpmath")
    before = (decimal.getcontext().prec, mpmath.mp.dps)
    backends = Backends.load({}, ["MathAPI"], long_context=False)
    root = backends.call(Call("square_root", {"number": 2, "precision": 50}))
    assert str(decimal.Context(prec=50).sqrt(decimal.Decimal(2))) in root
    assert "result" in backends.call(Call("logarithm", {"value": 2, "base": 10, "precision": 60}))
    backends.call(Call("square_root", {"number": -1, "precision": 7}))
    assert (decimal.getcontext().prec, mpmath.mp.dps) == before


@needs_bfcl
def test_forks_are_independent_and_copied():
    environment = Bfcl(format="python")
    environment.reset(first("multi_turn_base"), seed=0)
    environment.step("[cd(folder='document')]")
    twin = environment.fork()
    environment.step("[mkdir(dir_name='temp')]")
    assert "temp" not in twin.step("[ls()]").observation.text
    assert "temp" in environment.step("[ls()]").observation.text
    twin.step("[mkdir(dir_name='temp'), mv(source='final_report.pdf', destination='temp')]")
    assert twin.step("Done.").info["score"] == 0.25
    assert environment.step("Done.").info["problem"] is not None


@needs_bfcl
def test_the_contract_holds():
    multi = [first(category, 3) for category in MULTI_TURN]
    assert check_environment(Bfcl, [*multi, first("parallel")], episodes=5).fork_rung == "native"


@needs_bfcl
def test_tool_calls_reads_bfcl_too():
    tasks = ToolCalls.tasks("simple_python", count=3, source="bfcl")
    environment = ToolCalls(source="bfcl", checker="bfcl", format="python")
    for task in tasks:
        environment.reset(task, seed=0)
        assert environment.step(environment.expert().action).info["success"]


@needs_bfcl
def test_parts_are_disjoint_and_make_up_the_category():
    parts = {split: {task.id for task in Bfcl.tasks(split)} for split in PARTS}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 200
    assert [task.id for task in islice(Bfcl.tasks("multi_turn"), 0, 800, 200)] == [f"{name}_0" for name in MULTI_TURN]
