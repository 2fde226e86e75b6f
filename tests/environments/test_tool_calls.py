"""Tool-calling tasks: schemas, the environment by hand, and what the generator promises."""

from __future__ import annotations

import collections
import json
from dataclasses import replace

import pytest

from firesteel.annotate import collect_expert_episodes
from firesteel.environments.check import check_environment
from firesteel.environments.tool_calls import ToolCalls
from firesteel.environments.tool_calls.checkers import exact
from firesteel.environments.tool_calls.examples import read_examples
from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.generate import SPLITS, TASK_KINDS, catalogue, tool_names
from firesteel.environments.tool_calls.prompts import TOOL_CALLS, read_whole_response, write_whole_response
from firesteel.environments.tool_calls.rewards import (
    ToolZeroReward,
    general_reward,
    progress_weight,
    strict_reward,
)
from firesteel.environments.tool_calls.schema import argument_flaws, json_schema, schema_flaw, task_flaws, tool_of
from firesteel.environments.tool_calls.tasks import Call, Demonstration, ToolTask, Verdict, demonstrations_of, tool_task
from firesteel.errors import ConfigError, EnvironmentFailed, TaskError
from firesteel.tree import Episode, Step
from firesteel.types import ExpertStep, Task

ADD = tool_of(
    {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "dict",
            "properties": {"x": {"type": "integer"}, "y": {"type": "float"}},
            "required": ["x"],
        },
    }
)
NEG = tool_of({"name": "negate", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}})


SAY = tool_of({"name": "say", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}})


def make(*answer: Call, tools=(ADD, NEG), **fields) -> ToolTask:
    return ToolTask("t", ({"role": "user", "content": "add 1 and 2"},), tuple(tools), (answer,), **fields)


# schemas


def test_dialects_of_types_become_json_schema():
    assert json_schema({"type": "dict", "properties": {"a": {"type": "tuple", "items": {"type": "float"}}}}) == {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "number"}}},
    }
    assert json_schema({"type": "List[int]"}) == {"type": "array", "items": {"type": "integer"}}
    assert json_schema({"type": "str, optional"}) == {"type": "string"}
    assert json_schema({"type": "any"}) == {}
    assert json_schema({"type": ["string", "null"]}) == {"type": ["string", "null"]}
    with pytest.raises(TaskError, match="unknown type 'strnig'"):
        json_schema({"type": "strnig"})


def test_xlam_parameters_have_no_wrapper_and_defaults_make_optional():
    tool = tool_of({"name": "f", "parameters": {"a": {"type": "int"}, "b": {"type": "str", "default": "x"}}})
    assert tool["parameters"] == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string", "default": "x"}},
        "required": ["a"],
    }
    assert tool_of({"type": "function", "function": {"name": "f"}})["parameters"] == {
        "type": "object",
        "properties": {},
        "required": [],
    }


@pytest.mark.parametrize("record", [None, "f", {}, {"name": ""}, {"name": "f", "parameters": [1]}])
def test_what_is_no_tool_is_refused(record):
    with pytest.raises(TaskError):
        tool_of(record)


def test_invalid_schemas_are_named():
    assert schema_flaw({"type": "object", "properties": {"a": {"type": "string"}}}) is None
    assert "properties/a/enum" in schema_flaw({"type": "object", "properties": {"a": {"enum": 3}}})
    assert "not JSON" in schema_flaw({"default": {1, 2}})


def test_flaws_of_tasks_by_hand():
    assert task_flaws(make(Call("add", {"x": 1, "y": 2}))) == []
    assert task_flaws(make(Call("add", {"x": 1}), tools=(ADD, ADD))) == ["tool 'add' is given 2 times"]
    assert task_flaws(make(Call("mul", {"x": 1}))) == ["an accepted call names the unknown tool 'mul'"]
    (flaw,) = task_flaws(make(Call("add", {"x": "1"})))
    assert flaw == "an accepted call fails its schema: add.x: '1' is not of type 'integer'"
    (flaw,) = task_flaws(make(Call("add", {"y": 1.5})))
    assert "'x' is a required property" in flaw
    (flaw,) = task_flaws(make(Call("negate", {"z": 1})))
    assert flaw == "an accepted call fails its schema: negate: unknown argument 'z'"
    bad = {"name": "bad", "description": "", "parameters": {"type": "object", "required": "x"}}
    (flaw,) = task_flaws(make(Call("negate", {"x": 1}), tools=(NEG, bad)))
    assert flaw.startswith("tool 'bad': invalid JSON schema at 'required'")
    broken = {"name": "add", "description": "", "parameters": {"type": "object", "$ref": "#/nowhere"}}
    assert "cannot be applied" in task_flaws(make(Call("add", {}), tools=(broken,)))[0]


def test_no_schema_fetches_a_url(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: asked.append(args))
    local = {"x": {"$ref": "#/$defs/number"}}
    parameters = {"type": "object", "properties": local, "$defs": {"number": {"type": "integer"}}}
    assert argument_flaws(Call("f", {"x": 1}), parameters) == []
    assert argument_flaws(Call("f", {"x": "1"}), parameters) == ["f.x: '1' is not of type 'integer'"]
    for url in ("http://127.0.0.1:9/a.json", "other.json", "#/nowhere"):
        (flaw,) = argument_flaws(Call("f", {"x": 1}), parameters | {"properties": {"x": {"$ref": url}}})
        assert flaw.startswith("f: its schema cannot be applied: ")
    assert "cannot be applied" in argument_flaws(Call("f", {}), {"type": "object", "$ref": "#"})[0]
    assert asked == []


def test_regular_expressions_of_schemas_are_not_applied():
    slow, text = "^(a+)+$", "a" * 18 + "b"
    dialect = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "string", "pattern": slow}
    parameters = {
        "type": "object",
        "properties": {"x": {"type": "string", "pattern": slow}, "y": dialect, "pattern": {"type": "integer"}},
        "patternProperties": {slow: {}},
        "additionalProperties": False,
    }
    assert argument_flaws(Call("f", {"x": text, "y": text, "pattern": 1}), parameters) == []
    assert argument_flaws(Call("f", {"pattern": text}), parameters) == [f"f.pattern: '{text}' is not of type 'integer'"]
    assert argument_flaws(Call("f", {text: 1}), parameters) == [f"f: unknown argument '{text}'"]
    inner = {"type": "object", "additionalProperties": False, "properties": {"b": {}}}
    (flaw,) = argument_flaws(Call("f", {"a": {"c": 1}}), {"type": "object", "properties": {"a": inner}})
    assert flaw.startswith("f.a: Additional properties are not allowed")


def test_tasks_survive_their_record():
    task = make(Call("add", {"x": 1}), kind="simple", split="train", checks={"a": [1]})
    assert tool_task(task.to_task()) == task
    assert json.loads(json.dumps(task.to_task().data)) == task.to_task().data
    with pytest.raises(TaskError, match="is not a tool-calling task"):
        tool_task(Task("x"))


# checking and playing


def test_the_exact_checker_by_hand():
    task = make(Call("add", {"x": 1, "y": 2.0}), Call("negate", {"x": 3}))
    right = [Call("negate", {"x": 3}), Call("add", {"y": 2, "x": 1})]
    assert exact(right, task).correct
    assert exact(right[:1], task).problem == "1 calls, 2 are right"
    assert exact([right[0], Call("sub", {"x": 1})], task).problem == "another tool is right"
    assert exact([right[0], Call("add", {"x": True, "y": 2})], task).problem == "an argument is wrong"
    assert exact([right[0], Call("add", {"x": 1})], task).problem == "an argument is wrong"
    assert not exact([right[1], right[1]], task).correct


def play(text: str, task: ToolTask, **options):
    environment = ToolCalls(**options)
    environment.reset(task.to_task(), seed=0)
    return environment.step(text)


ONE = '<tool_call>{"name": "add", "arguments": {"x": 1}}</tool_call>'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terse": "no"}, "terse must be true or false; got 'no'"),
        ({"exemplify": 1}, "exemplify must be true or false; got 1"),
        ({"format": 5}, "format must be template or one of hermes, llama3, python; got 5"),
        ({"checker": 5}, "checker must be one of exact, bfcl; got 5"),
        ({"source": None}, "source must be text; got None"),
        ({"source": "xlam", "path": 5}, "path must be text; got 5"),
    ],
)
def test_options_of_a_wrong_type_are_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        ToolCalls(**options)


def test_success_needs_the_right_calls_and_nothing_around_them():
    task = make(Call("add", {"x": 1}))
    assert play(ONE, task).reward == 1.0
    around = play(f"Sure. {ONE}", task)
    assert (around.reward, around.terminated) == (0.0, True)
    assert (around.info["correct"], around.info["valid"], around.info["success"]) == (True, False, False)
    assert play(f"<think>hm</think>{ONE}", task).reward == 0.0
    assert play(f"<think>hm</think>{ONE}", task, reasoning="allowed").reward == 1.0
    assert play(f"<think>hm</think>so {ONE}", task, reasoning="allowed").reward == 0.0
    text = make(Call("say", {"text": "Paris"}), tools=(SAY,))
    said = "[say(text='{}')]"
    for inner, reward in (("Paris", 1.0), ("Par<think>zz</think>is", 0.0)):
        assert play(said.format(inner), text, format="python", reasoning="allowed").reward == reward
    broken = play("<tool_call>{", task)
    assert (broken.info["valid"], broken.info["correct"]) == (False, False)
    assert play("[add(x=1)]", task, format="python").reward == 1.0


def test_a_task_on_which_no_tool_fits_wants_no_call():
    task = make()
    assert play("None of the tools fits.", task).reward == 1.0
    assert play(ONE, task).reward == 0.0


def test_the_prompt_shows_tools_help_and_the_past_and_never_the_query():
    task = ToolTask(
        "t",
        ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"},
         {"role": "user", "content": "add 1"}),
        (NEG,), ((Call("negate", {"x": 1}),),),
    )  # fmt: skip
    shown = Demonstration("negate 5", (Call("negate", {"x": 5}),), "other")
    guided = Task("t", data={**task.to_task().data, "hint": "Think twice."}, demonstrations=(shown.to_dict(),))
    environment = ToolCalls(schemas="signature", terse=True)
    assert environment.reset(guided, seed=0).text.splitlines() == [
        "Tools:",
        "negate(x?: integer)",
        "Example: negate 5",
        '<tool_call>{"name": "negate", "arguments": {"x": 5}}</tool_call>',
        "Think twice.",
        "user: hello",
        "assistant: hi",
    ]
    assert environment.goal == "add 1"
    assert demonstrations_of(guided) == (shown,)
    assert FORMATS["hermes"].rule in ToolCalls().reset(guided, seed=0).text
    opening = TOOL_CALLS.opening(goal="add 1", observation="Tools: none", admissible=None)
    assert opening == "Tools: none\nQuery: add 1"


def test_misuse_is_named():
    environment = ToolCalls()
    with pytest.raises(EnvironmentFailed, match="before its first reset"):
        environment.step("x")
    environment.reset(make(Call("add", {"x": 1})).to_task(), seed=0)
    environment.step("x")
    assert environment.expert() is None
    with pytest.raises(EnvironmentFailed, match="after its episode had ended"):
        environment.step("x")
    with pytest.raises(ConfigError, match="unknown call format 'herms' .did you mean 'hermes'"):
        ToolCalls(format="herms")
    with pytest.raises(ConfigError, match="no option 'formt' .did you mean 'format'"):
        ToolCalls(formt="x")
    with pytest.raises(ConfigError, match="schemas must be one of"):
        ToolCalls(schemas="xml")
    with pytest.raises(TaskError, match="no split 'trian' .did you mean 'train'"):
        ToolCalls.tasks("trian")
    with pytest.raises(TaskError, match="count must be at least 0"):
        ToolCalls.tasks("train", count=-1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_contract_holds(name):
    report = check_environment(lambda: ToolCalls(format=name), ToolCalls.tasks("cold_start", count=4), episodes=4)
    assert report.fork_rung == "native"


# the generator


@pytest.mark.parametrize("split", SPLITS)
def test_the_expert_solves_every_generated_task_in_every_format(split):
    tasks = ToolCalls.tasks(split, count=40)
    assert [task_flaws(tool_task(task)) for task in tasks] == [[]] * 40
    for name in FORMATS:
        episodes = collect_expert_episodes(ToolCalls, tasks, {"format": name})
        assert len(episodes) == 40, episodes.report()


def test_fewer_tasks_are_a_prefix_and_seeds_differ():
    many = ToolCalls.tasks("train", count=30)
    assert list(ToolCalls.tasks("train", count=10)) == list(many[:10])
    assert len({task.id for task in many}) == 30
    other = ToolCalls.tasks("train", count=30, seed=1)
    assert {tool_task(task).query for task in other}.isdisjoint({tool_task(task).query for task in many[:5]})
    assert collections.Counter(task.kind for task in many[:28]) == dict.fromkeys(TASK_KINDS, 7)


def test_tool_sets_are_disjoint_and_held_out_queries_are_not_in_training():
    sets = {name: set(tool_names(name)) for name in ("known", "unknown", "cold_start")}
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) == 960
    assert min(map(len, sets.values())) > 100

    def tools(split: str) -> set[str]:
        return {tool["name"] for task in ToolCalls.tasks(split, count=100) for tool in tool_task(task).tools}

    known = {tool.name for tool in catalogue("known", 40, 0.5, 0)}
    assert len(known) == 40
    assert tools("train") | tools("validation") | tools("test_tasks") == known
    assert tools("train").isdisjoint(tools("test_tools") | tools("cold_start"))
    assert tools("test_tools").isdisjoint(tools("cold_start"))
    train = {tool_task(task).query for task in ToolCalls.tasks("train", count=400)}
    for split in ("validation", "test_tasks"):
        assert train.isdisjoint({tool_task(task).query for task in ToolCalls.tasks(split, count=100)})


def test_a_tool_is_the_same_in_every_task_but_those_of_the_cold_start():
    def definitions(split: str) -> dict[str, set[str]]:
        seen: dict[str, set[str]] = {}
        for task in ToolCalls.tasks(split, count=300):
            for tool in tool_task(task).tools:
                seen.setdefault(tool["name"], set()).add(json.dumps(tool["parameters"], sort_keys=True))
        return seen

    assert {len(texts) for texts in definitions("train").values()} == {1}
    assert max(len(texts) for texts in definitions("cold_start").values()) > 3


def test_kinds_are_what_they_say():
    for task in ToolCalls.tasks("train", count=80):
        record = tool_task(task)
        several_calls, several_tools = len(record.answers[0]) > 1, len(record.tools) > 1
        assert (several_calls, several_tools) == {
            "simple": (False, False),
            "multiple": (False, True),
            "parallel": (True, False),
            "parallel_multiple": (True, True),
        }[task.kind]


def test_the_share_of_documented_tools_can_be_set():
    for share in (0.0, 1.0):
        tasks = ToolCalls.tasks("train", count=20, documented=share)
        notes = {
            "description" in entry
            for task in tasks
            for tool in tool_task(task).tools
            for entry in tool["parameters"]["properties"].values()
        }
        assert notes == {bool(share)}


def test_cold_start_episodes_have_zero_to_four_demonstrations_that_do_not_hold_the_answer():
    tasks = ToolCalls.tasks("cold_start", count=300, self_exemplifying=0.3)
    shown = collections.Counter(len(task.demonstrations) for task in tasks)
    assert set(shown) == {0, 1, 2, 3, 4}
    assert min(shown.values()) > 300 / 5 / 2
    for task in tasks:
        record = tool_task(task)
        keys = {call.key() for call in record.answers[0]}
        for demonstration in demonstrations_of(task):
            assert {call.name for call in demonstration.calls} <= set(record.called_tools())
            assert keys.isdisjoint(call.key() for call in demonstration.calls)


def test_a_share_of_the_cold_start_teaches_the_examples_form():
    tasks = ToolCalls.tasks("cold_start", count=200, self_exemplifying=0.3)
    marked = [task for task in tasks if task.data.get("self_exemplifying")]
    assert 40 <= len(marked) <= 80
    episodes = collect_expert_episodes(ToolCalls, tasks)
    assert len(episodes) == 200
    enough = [read_examples(episode.steps[0].action).is_enough for episode in episodes]
    assert enough == [bool(task.data.get("self_exemplifying")) for task in tasks]


# responses without tags


def test_whole_responses_are_actions():
    parsed = read_whole_response(f"  {ONE}\n{ONE} ")
    assert (parsed.action, parsed.valid, parsed.explore) == (f"{ONE}\n{ONE}", True, False)
    tagged = read_whole_response(f"<explore>which tool</explore>{ONE}")
    assert (tagged.explore, tagged.tag, tagged.reasoning) == (True, "explore", "which tool")
    assert (read_whole_response(" ").valid, read_whole_response(" ").action) == (False, None)
    assert write_whole_response(ExpertStep(ONE, False, "r")) == ONE


# Tool Zero


def test_tool_zero_by_hand():
    assert progress_weight(25) == 0.5
    assert progress_weight(35) == pytest.approx(1 / (1 + 2.718281828459045**-1))
    # reference tokens {f, x, 1, y}; the text has {f, x, 2}: 2 of 4
    assert general_reward("f(x=2)", "f(x=1,y=1)") == 0.0
    assert general_reward("f(x=1,y=1)", "f(x=1,y=1)") == 0.5
    assert general_reward("", "f()") == -0.5
    both = make(Call("add", {"x": 1}), Call("negate", {"x": 2}))
    assert strict_reward([Call("negate", {"x": 2}), Call("add", {"x": 1})], both) == 1.3
    assert strict_reward([Call("add", {"x": 1})], make(Call("add", {"x": 1}))) == 1.0
    assert strict_reward([Call("add", {"x": "one"})], both) == -0.3
    assert strict_reward([Call("unknown", {"x": "one"})], both) == 0.0


def test_tool_zero_goes_from_overlap_to_exactness():
    task = make(Call("add", {"x": 1})).to_task()
    wrong = '<tool_call>{"name": "add", "arguments": {"x": 2}}</tool_call>'

    def reward(text: str, step: int) -> float:
        steps = [Step(text, text, None, False, True)]
        return ToolZeroReward(step=step)(Episode(task, "", steps, "finished", False, 0.0, 1))

    # strict 0 and general 0.5 - 1/|Y*|, where Y* = {<tool_call>{, name, add, arguments, {, x, 1}}</tool_call>}
    assert reward(wrong, 25) == pytest.approx(1 + 0.5 * (0.5 - 1 / 7))
    assert reward(ONE, 25) == pytest.approx(1 + 0.5 + 0.25)
    assert reward("<tool_call>{", 10_000) == pytest.approx(0.0, abs=1e-6)
    assert reward(ONE, 10_000) == pytest.approx(2.0)


@pytest.mark.parametrize("name", FORMATS)
def test_tool_zero_reads_the_format_that_the_environment_asks_for(name):
    task = make(Call("add", {"x": 1})).to_task()
    text = FORMATS[name].write([Call("add", {"x": 1})])
    for form in (name, FORMATS[name]):
        reward = ToolZeroReward(step=25, call_format=form)
        steps = [Step(text, text, None, False, True)]
        assert reward(Episode(task, "", steps, "finished", True, 1.0, 1)) == pytest.approx(1 + 0.5 + 0.25)


def test_tool_zero_is_zero_without_an_accepted_answer():
    task = ToolTask("t", ({"role": "user", "content": "q"},), (ADD,), ()).to_task()
    episode = Episode(task, "", [Step(ONE, ONE, None, False, True)], "finished", True, 1.0, 1)
    assert ToolZeroReward(step=25)(episode) == 0.0


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("num_tools", 3, "a whole number from 4 on"),
        ("num_tools", -5, "a whole number from 4 on"),
        ("num_tools", True, "a whole number from 4 on"),
        ("max_demonstrations", -1, "a whole number from 0 on"),
        ("documented", "x", "a share from 0 to 1"),
        ("documented", 7, "a share from 0 to 1"),
        ("self_exemplifying", None, "a share from 0 to 1"),
    ],
)
def test_values_of_options_are_checked(option, value, wanted):
    for use in (
        lambda: ToolCalls.tasks("cold_start", count=1, **{option: value}),
        lambda: ToolCalls(**{option: value}),
    ):
        with pytest.raises(ConfigError, match=f"tool_calls: {option} must be {wanted}; got {value!r}"):
            use()


def test_extreme_options_are_taken():
    assert len(ToolCalls.tasks("train", count=8, num_tools=4, documented=0)) == 8
    assert len(ToolCalls.tasks("cold_start", count=8, max_demonstrations=0, self_exemplifying=1)) == 8


def test_where_no_answer_is_known_the_checker_decides_what_the_expert_calls():
    task = ToolTask("t", ({"role": "user", "content": "q"},), ({"name": "f", "description": "", "parameters": {}},), ())
    environment = ToolCalls(checker=lambda calls, task: Verdict(bool(calls)))
    environment.reset(task.to_task(), seed=0)
    step = environment.expert()
    assert step.action == '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert environment.step(step.action).info["success"]
    for checker, tools in (("exact", task.tools), (lambda calls, task: Verdict(True), ())):
        environment = ToolCalls(checker=checker)
        environment.reset(replace(task, tools=tools).to_task(), seed=0)
        assert environment.expert() is None


def test_a_parameter_may_be_called_properties_in_xlam_notation() -> None:
    entries = {"properties": {"type": "str, optional", "description": "which"}, "type": {"type": "int"}}
    parameters = tool_of({"name": "f", "parameters": entries})["parameters"]
    assert list(parameters["properties"]) == ["properties", "type"] and parameters["required"] == ["type"]
    schema = {"properties": {"type": {"type": "integer"}}}
    assert list(tool_of({"name": "f", "parameters": schema})["parameters"]["properties"]) == ["type"]
