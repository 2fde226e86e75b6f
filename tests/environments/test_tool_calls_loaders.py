"""Data sets by hand: what is read, what is rejected and why, and that nothing is kept in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from firesteel import policy
from firesteel.annotate import Rejection
from firesteel.config import Config
from firesteel.environments.tool_calls import ToolCalls
from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.loaders import (
    FILE_SPLITS,
    declared_apis,
    in_split,
    json_records,
    kind_of,
    load_tasks,
    local_path,
    read_spaced_calls,
)
from firesteel.environments.tool_calls.prompts import show_task
from firesteel.environments.tool_calls.schema import task_flaws, tool_of
from firesteel.environments.tool_calls.task_file import TaskFile
from firesteel.environments.tool_calls.tasks import Call, ToolTask, tool_task
from firesteel.environments.tool_calls.template import template_messages
from firesteel.errors import ConfigError, EnvironmentFailed, TaskError

WEATHER = {
    "name": "weather",
    "description": "w",
    "parameters": {"city": {"type": "str"}, "days": {"type": "int", "default": 1}},
}


def write(path: Path, records: list, *, as_list: bool = False) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text(f"[{','.join(texts)}]" if as_list else "\n".join(texts))
    return str(path)


def xlam(number: int, answers: object, **fields: object) -> dict:
    return {"id": number, "query": "q", "tools": json.dumps([WEATHER]), "answers": json.dumps(answers)} | fields


@pytest.mark.parametrize("as_list", [True, False])
def test_records_are_read_through_a_small_window(tmp_path: Path, as_list: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("firesteel.environments.tool_calls.loaders._READ_CHARACTERS", 7)
    records = [{"text": "x" * size, "n": [size, {"é]": "}{\n"}]} for size in range(30)]
    path = Path(write(tmp_path / "f.json", records, as_list=as_list))
    assert list(json_records(path)) == records


def test_records_may_share_a_line_and_a_bad_line_spoils_itself_alone(tmp_path: Path):
    path = Path(write(tmp_path / "f.jsonl", ['{"a": 1}{"a": 2}', '{"a": ', '{"a": 3}', "", '{"a": 4}']))
    read = list(json_records(path))
    assert [record if isinstance(record, dict) else type(record) for record in read] == [
        {"a": 1}, {"a": 2}, ValueError, {"a": 3}, {"a": 4}
    ]  # fmt: skip
    broken = Path(write(tmp_path / "g.json", ['{"a": 1}', '{"a": '], as_list=True))
    assert [isinstance(record, ValueError) for record in json_records(broken)] == [False, True]
    assert list(json_records(Path(write(tmp_path / "h.json", [])))) == []


@pytest.mark.parametrize("window", [1, 7, 64, 1 << 16])
def test_records_over_several_lines_cross_the_edges_of_windows(
    tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("firesteel.environments.tool_calls.loaders._READ_CHARACTERS", window)
    records = [{"id": number, "text": "é\U0001f600" * 40, "more": [-1.5e-7, True, None, {"a": 1}]}
               for number in range(500 if window > 64 else 30)]  # fmt: skip
    path = tmp_path / "p.json"
    path.write_text("\n".join(json.dumps(record, indent=2) for record in records))
    assert list(json_records(path)) == records


def test_what_cannot_be_decoded_is_one_mistake_even_if_nested_too_deeply_or_longer_than_a_window(tmp_path: Path):
    path = Path(
        write(tmp_path / "d.json", ['{"a": 1}', '{"a":' + "[" * 100_000, "{]" + "x" * 200_000, "]", '{"a": 2}'])
    )
    assert [record if isinstance(record, dict) else type(record) for record in json_records(path)] == [
        {"a": 1}, ValueError, ValueError, ValueError, {"a": 2}
    ]  # fmt: skip


def test_splits_of_a_file_are_disjoint_and_cover_it():
    names = [f"xlam-{number}" for number in range(400)]
    parts = {split: {name for name in names if in_split(name, split)} for split in FILE_SPLITS}
    assert parts["all"] == set(names)
    assert sum(len(parts[split]) for split in ("train", "validation", "test")) == 400
    assert 8 < len(parts["test"]) < 40
    with pytest.raises(TaskError, match="no split 'tset'; known: train, validation, test, all"):
        in_split("a", "tset")


def test_xlam_by_hand(tmp_path: Path):
    records = [
        xlam(0, [{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}]),
        xlam(1, [{"name": "weather", "arguments": {"days": 2}}]),
        xlam(2, [{"name": "whether", "arguments": {}}]),
        xlam(3, [{"name": "weather", "arguments": {"city": "Oslo", "days": "2"}}]),
        xlam(4, [], tools=json.dumps([WEATHER, WEATHER])),
        xlam(5, [], tools="[{"),
        xlam(6, [], tools=json.dumps([{"name": "f", "parameters": {"x": {"type": "strnig"}}}])),
        xlam(
            7, [], tools=json.dumps([{"name": "f", "parameters": {"type": "object", "properties": {"x": {"enum": 1}}}}])
        ),
        {"id": 8, "query": "q"},
        "[1, 2]",
        xlam(9, [{"name": "weather", "arguments": {"city": "Rome"}}], query=" "),
        xlam(0, [{"name": "weather", "arguments": {"city": "Rome"}}]),
        xlam(10, []),
    ]
    found = load_tasks("xlam", write(tmp_path / "x.json", records, as_list=True), "all", None)
    assert [task.id for task in found] == ["xlam-0", "xlam-10"]
    first = tool_task(found[0])
    assert (first.query, first.kind, first.answers) == (
        "q", "simple", ((Call("weather", {"city": "Oslo", "days": 2}),),)
    )  # fmt: skip
    assert tool_task(found[1]).kind == "irrelevance"
    reasons = {rejection.task_id: rejection.reason for rejection in found.rejected}
    assert found.num_rejected == len(found.rejected) == 11
    for name, reason in {
        "xlam-1": "'city' is a required property",
        "xlam-2": "unknown tool 'whether'",
        "xlam-3": "'2' is not of type 'integer'",
        "xlam-4": "tool 'weather' is given 2 times",
        "xlam-5": "a part of the record is not JSON",
        "xlam-6": "unknown type 'strnig'",
        "xlam-7": "invalid JSON schema",
        "xlam-8": "a record or a part of it has no 'tools'",
        "xlam-9": "there is no query",
        "xlam-0": "its id was there before",
    }.items():
        assert reason in reasons[name], (name, reasons[name])
    assert found.report().startswith("2 of 13 tasks kept\n  xlam-1: ")


OSLO = [{"name": "weather", "arguments": {"city": "Oslo"}}]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"query": None}, "query must be text, got None"),
        ({"query": ["a", "b"]}, "query must be text, got ['a', 'b']"),
        ({"answers": "{}"}, "answers must be a list, got {}"),
        ({"answers": None}, "answers must be a list, got None"),
        ({"answers": "[]", "tools": "{}"}, "tools must be a list, got {}"),
        ({"tools": json.dumps([WEATHER | {"description": 5}])}, "a description must be text, got 5"),
        ({"answers": '[{"name": "weather", "arguments": {"city": NaN}}]'}, "cannot be written: a number is not finite"),
        ({"answers": json.dumps([{"name": "weather", "arguments": {"city": "\ud800"}}])}, "half of a surrogate pair"),
    ],
)
def test_wrong_types_are_rejected(tmp_path: Path, fields: dict, reason: str):
    found = load_tasks("xlam", write(tmp_path / "x.json", [xlam(0, OSLO) | fields, xlam("\ud800", OSLO)]), "all", None)
    assert [task.id for task in found] == ["xlam-\ud800"]
    assert [left.task_id for left in found.rejected] == ["xlam-0"]
    assert reason in found.rejected[0].reason


def test_a_null_description_is_none(tmp_path: Path):
    tools = json.dumps([WEATHER | {"description": None}])
    (task,) = load_tasks("xlam", write(tmp_path / "x.json", [xlam(0, OSLO, tools=tools)]), "all", None)
    assert tool_task(task).tools[0]["description"] == ""


def test_toolace_by_hand(tmp_path: Path):
    tools = [{"name": "Market Trends API", "description": "m",
              "parameters": {"type": "dict", "properties": {"kind": {"type": "string"}, "n": {"type": "int"}},
                             "required": ["kind"]}}]  # fmt: skip
    record = {
        "system": f"You are an expert. Tools [sic]:\n{json.dumps(tools)}\nUse them.",
        "conversations": [
            {"from": "user", "value": "trends?"},
            {"from": "assistant", "value": "Which kind?"},
            {"from": "user", "value": "gainers"},
            {"from": "assistant", "value": "[Market Trends API(kind=\"GAINERS\", n=3), Market Trends API(kind='X')]"},
            {"from": "tool", "value": "[]"},
        ],
    }
    silent = record | {"conversations": record["conversations"][:2]}
    null = record | {"conversations": [{"from": "user", "value": None}, *record["conversations"]]}
    unread = record | {"conversations": [{"from": "assistant", "value": "[Market Trends API(kind=]"}]}
    found = load_tasks(
        "toolace", write(tmp_path / "t.json", [record, silent, unread, {"system": ""}, null]), "all", None
    )
    (task,) = map(tool_task, found)
    assert task.answers[0] == (
        Call("Market Trends API", {"kind": "GAINERS", "n": 3}), Call("Market Trends API", {"kind": "X"})
    )  # fmt: skip
    assert (task.query, len(task.past), task.kind) == ("gainers", 2, "parallel")
    assert [rejection.task_id for rejection in found.rejected] == [f"toolace-{number}" for number in range(1, 5)]
    assert "the value of a turn must be text, got None" in found.rejected[3].reason


def test_names_with_blanks_are_read_longest_first():
    tools = [tool_of({"name": name}) for name in ("get", "get list", "a/b-c")]
    calls = read_spaced_calls("[get list(), get(), a/b-c()]", tools)
    assert [call.name for call in calls] == ["get list", "get", "a/b-c"]


def test_names_within_texts_are_left_alone():
    tools = [tool_of({"name": name}) for name in ("A b", "B", "Driver's API", 'say "x')]
    text = r"""[A b(x='please B (now) \' A b(', y="it's B(1)"), Driver's API (x='B (2)'), B(z=["B ("])]"""
    assert read_spaced_calls(text, tools) == (
        Call("A b", {"x": "please B (now) ' A b(", "y": "it's B(1)"}),
        Call("Driver's API", {"x": "B (2)"}),
        Call("B", {"z": ["B ("]}),
    )


def test_names_like_stand_ins_are_names():
    tools = [tool_of({"name": name}) for name in ("x", "tool_10", "y", "tool_1")]
    calls = read_spaced_calls("[tool_10(a=1), tool_1(a=2), x(), tool_2(), tool__0()]", tools)
    assert [call.name for call in calls] == ["tool_10", "tool_1", "x", "tool_2", "tool__0"]
    with pytest.raises(TaskError, match="the calls cannot be read"):
        read_spaced_calls("none", [])


def test_openai_by_hand(tmp_path: Path):
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    }

    def call(arguments: str) -> dict:
        return {"role": "assistant", "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}]}  # fmt: skip

    user = {"role": "user", "content": "go"}
    twice = {"messages": [user, call('{"x": 1}'), {"role": "tool", "content": "1"}, call('{"x": 2}')], "tools": [tool]}
    never = {"messages": [user, {"role": "assistant", "content": "hi"}], "tools": [tool]}
    bad = {"messages": [user, call("{x}")], "tools": [tool]}
    found = load_tasks("openai", write(tmp_path / "o.jsonl", [twice, never, bad, '{"messages": 3}']), "all", None)
    tasks = [tool_task(task) for task in found]
    assert [task.id for task in tasks] == ["openai-0", "openai-0-1"]
    assert [task.answers[0][0].arguments["x"] for task in tasks] == [1, 2]
    assert (tasks[1].query, len(tasks[1].past)) == ("Go on.", 3)
    assert found.num_rejected == 3


def test_contents_of_openai_messages_are_texts_or_parts(tmp_path: Path):
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]
    contents = [parts, None, 5, [{"type": "image_url"}], [{"type": "text", "text": None}], ["hi"]]
    records = [{"messages": [{"role": "user", "content": content}, call, call], "tools": [tool]}
               for content in contents]  # fmt: skip
    records += [{"messages": [{"role": None, "content": "hi"}, call], "tools": [tool]}]
    found = load_tasks("openai", write(tmp_path / "o.jsonl", records), "all", None)
    first, second = map(tool_task, found)
    assert (first.query, second.past[0]["content"]) == ("hi there", "hi there")
    assert (second.past[1]["content"], second.past[1]["calls"]) == ("", [{"name": "f", "arguments": {}}])
    assert [left.task_id for left in found.rejected] == [f"openai-{number}" for number in range(1, 7)]
    assert "the content of a message must be text, got None" in found.rejected[0].reason


def test_text_beside_calls_and_what_came_of_them_stay_in_the_context(tmp_path: Path):
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}
    called = [{"function": {"name": "f", "arguments": json.dumps({"x": number})}} for number in (1, 2)]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": called[:1]},
        {"role": "function", "name": "f", "content": "5"},
        {"role": "assistant", "content": None, "tool_calls": called[1:]},
    ]
    wizard = [{"role": "wizard", "content": "hm"}, *messages]
    records = [{"messages": messages, "tools": [tool]}, {"messages": wizard, "tools": [tool]}]
    found = load_tasks("openai", write(tmp_path / "o.jsonl", records), "all", None)
    later = tool_task(found[1])
    assert [message["role"] for message in later.messages] == ["system", "user", "assistant", "tool"]
    shown = show_task(later, FORMATS["hermes"])
    assert 'assistant: Let me look.\n[{"name": "f", "arguments": {"x": 1}}]\ntool: 5' in shown
    asked, called_turn, result = template_messages(later, hint="HINT")[1:]
    assert (asked["content"], result["content"]) == ("HINT\ngo", "5")
    assert called_turn["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert "'wizard' is no role of a message; known: system, user, assistant, tool" in found.rejected[0].reason


def test_what_is_not_finite_is_rejected_wherever_it_stands(tmp_path: Path):
    tool = {"name": "f", "description": "", "parameters": {"x": {"type": "int", "default": float("nan")}}}
    bad = xlam(0, []) | {"tools": json.dumps([tool]), "answers": json.dumps([{"name": "f", "arguments": {"x": 1}}])}
    found = load_tasks("xlam", write(tmp_path / "x.json", [bad], as_list=True), "all", None)
    assert len(found) == 0 and "not JSON: Out of range float values" in found.rejected[0].reason
    task = ToolTask("t", ({"role": "user", "content": "q"},), (tool_of(WEATHER),), ((Call("weather", {"city": "o"}),),))
    assert task_flaws(task) == []
    assert "its messages or checks are not JSON" in task_flaws(replace(task, checks={"x": float("inf")}))[0]


def test_a_number_too_long_to_write_rejects_its_row_alone(tmp_path: Path):
    system = f"Tools: {json.dumps([WEATHER])}"
    rows = [{"system": system, "conversations": [
        {"from": "user", "value": "q"}, {"from": "assistant", "value": f"[weather(city='o', days={days})]"}
    ]} for days in ("1", "0x" + "F" * 5000, "2")]  # fmt: skip
    found = load_tasks("toolace", write(tmp_path / "t.json", rows, as_list=True), "all", None)
    assert [task.id for task in found] == ["toolace-0", "toolace-2"]
    assert "a whole number has more than" in found.rejected[0].reason


def test_acebench_by_hand(tmp_path: Path):
    function = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    atom = {"id": "normal_atom_1", "question": "user: a\nsystem: b: c\nuser: d\ne\n", "function": [function]}
    double = {"id": "normal_par_1", "question": "user: a\n", "function": [{**function, "arguments": None}]}
    write(tmp_path / "data_normal_atom.json", [atom])
    write(tmp_path / "data_normal_par.json", [double, double | {"id": "normal_par_2"}])
    write(
        tmp_path / "possible_answer/data_normal_atom.json", [{"id": "normal_atom_1", "ground_truth": {"f": {"x": 1}}}]
    )
    write(tmp_path / "possible_answer/data_normal_par.json",
          [{"id": "normal_par_1", "ground_truth": [{"f_1": {"x": 1}, "f_2": {"x": 2}}, {"f": {"x": 3}}]}])  # fmt: skip
    found = load_tasks("acebench", str(tmp_path), "normal", None)
    first, second = map(tool_task, found)
    assert [dict(message) for message in first.messages] == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b: c"}, {"role": "user", "content": "d\ne"}
    ]  # fmt: skip
    assert second.answers == ((Call("f", {"x": 1}), Call("f", {"x": 2})), (Call("f", {"x": 3}),))
    (left,) = found.rejected
    assert (left.task_id, "no readable ground_truth with this id" in left.reason) == ("normal_par_2", True)
    assert [task.id for task in load_tasks("acebench", str(tmp_path), "normal_atom", None)] == ["normal_atom_1"]
    with pytest.raises(TaskError, match="no split 'special'.*known: normal, normal_atom, normal_par"):
        load_tasks("acebench", str(tmp_path), "special", None)


def test_bad_answers_of_acebench_are_rejected(tmp_path: Path):
    function = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    record = {"question": "user: a\n", "function": [function]}
    write(tmp_path / "data_normal_a.json", [record | {"id": f"n{number}"} for number in range(5)] + [record])
    with pytest.raises(TaskError, match="possible_answer/data_normal_a.json' does not exist; copy"):
        load_tasks("acebench", str(tmp_path), "normal", None)
    truths = [{"ground_truth": {"f": {"x": 1}}}, {}, {"ground_truth": None}, {"ground_truth": {}}]
    answers = [{"id": f"n{number}"} | truth for number, truth in enumerate(truths)]
    write(tmp_path / "possible_answer/data_normal_a.json", [*answers, '{"id": ', {"id": ["n"], "ground_truth": 1}])
    found = load_tasks("acebench", str(tmp_path), "normal", None)
    assert [task.id for task in found] == ["n0"]
    assert [left.task_id for left in found.rejected] == ["n1", "n2", "n3", "n4", "normal_a-5"]


API = """
class AddAlarm(API):
    description = "Sets an alarm."
    input_parameters = {"token": {"type": "str", "description": "t"}, "time": {"type": "str"}}

    def call(self):
        raise SystemExit
"""


def test_api_bank_by_hand(tmp_path: Path):
    folder = tmp_path / "level-1"
    token = {"role": "API", "api_name": "GetToken", "param_dict": {"user": "foo"}, "result": {"output": {"token": "z"}}}
    alarm = {"role": "API", "api_name": "AddAlarm", "param_dict": {"token": "z"}, "result": {"output": "success"}}
    said = [{"role": "User", "text": "wake me"}, {"role": "AI", "text": "when?"}, {"role": "User", "text": "at 8"}]
    write(folder / "a-level-1-1.jsonl", [*said, token, {"role": "AI", "text": "ok"}, alarm])
    write(folder / "b-level-2-1.jsonl", ['{"role": "User", "text": "x"}', '{"role": '])
    found = load_tasks("api_bank", str(folder), "level-1", None)
    first, second = map(tool_task, found)
    assert (first.id, first.query, first.answers[0]) == ("a-level-1-1-0", "at 8", (Call("GetToken", {"user": "foo"}),))
    assert [tool["name"] for tool in first.tools] == ["GetToken", "AddAlarm"]
    assert (second.query, [message["role"] for message in second.past]) == (
        "Go on.", ["user", "assistant", "user", "assistant", "tool", "assistant"]
    )  # fmt: skip
    assert (second.past[3]["calls"], second.past[4]["content"]) == ([first.answers[0][0].to_dict()], '{"token": "z"}')
    assert [(left.task_id, left.reason) for left in found.rejected] == [("b-level-2-1", "a line is not JSON")]
    (tmp_path / "apis").mkdir()
    (tmp_path / "apis" / "alarm.py").write_text(API)
    (tool,) = declared_apis(tmp_path / "apis" / "alarm.py")
    assert tool["parameters"]["properties"] == {
        "token": {"type": "string", "description": "t"},
        "time": {"type": "string"},
    }


def test_apis_that_cannot_be_read_are_rejected_by_their_file(tmp_path: Path):
    folder, apis = tmp_path / "level-1", tmp_path / "apis"
    write(folder / "a-level-1-1.jsonl", [
        {"role": "User", "text": "hi"},
        {"role": "API", "api_name": "AddAlarm", "param_dict": {"token": "x", "time": "8"}},
        {"role": "API", "api_name": "G", "param_dict": {"u": "x"}},
    ])  # fmt: skip
    write(folder / "b-level-1-1.jsonl", [{"role": "User", "text": None}])
    apis.mkdir()
    (apis / "a.py").write_text("class G(:\n")
    (apis / "b.py").write_bytes(b"class G:\n    description = '\xe9'\n")
    (apis / "c.py").write_text("x = 1\nclass G:\n    description = 'a' + str(1)\n    input_parameters = {}\n" + API)
    (apis / "d.py").write_text("class G:\n    input_parameters = {'u': {'type': 'strnig'}}\n")
    found = load_tasks("api_bank", str(folder), "level-1", None)
    first, _ = map(tool_task, found)
    assert [tool["description"] for tool in first.tools] == ["Sets an alarm.", ""]
    assert [(left.task_id, left.reason.split(":")[0]) for left in found.rejected] == [
        ("apis/a.py", "SyntaxError"), ("apis/b.py", "UnicodeDecodeError"), ("apis/c.py:2", "ValueError"),
        ("apis/d.py:1", "TaskError"), ("b-level-1-1", "the text of a turn must be text, got None"),
    ]  # fmt: skip


def test_records_of_another_shape_are_told_in_words(tmp_path: Path):
    lines = [{"messages": "hi"}, [1], '"text"', 7, None, {"tools": []}, {"messages": [], "tools": 5}]
    found = load_tasks("openai", write(tmp_path / "x.jsonl", lines), "all", None)
    assert [left.reason for left in found.rejected] == [
        "messages must be a list, got 'hi'",
        "a record must be an object, got [1]",
        "a record must be an object, got 'text'",
        "a record must be an object, got 7",
        "a record must be an object, got None",
        "a record or a part of it has no 'messages'",
        "tools must be a list, got 5",
    ]
    assert len(found) == 0 and found.num_rejected == 7


def test_an_environment_plays_files(tmp_path: Path):
    answer = [{"name": "weather", "arguments": {"city": "Oslo"}}]
    path = write(tmp_path / "x.json", [xlam(number, answer) for number in range(5)])
    tasks = ToolCalls.tasks("all", count=3, source="xlam", path=path)
    assert len(tasks) == 3
    environment = ToolCalls(source="xlam", path=path)
    for task in tasks:
        environment.reset(task, seed=0)
        assert environment.step(environment.expert().action).info["success"]


def test_what_is_left_out_is_said_once(tmp_path: Path):
    path = write(tmp_path / "x.json", [xlam(number, OSLO if number > 7 else [{}]) for number in range(10)])
    config = Config.build({"environment": {"name": "tool_calls", "options": {"source": "xlam", "path": path}}})
    with pytest.warns(RuntimeWarning) as said:
        assert len(policy.load_tasks(config, "all", None)) == 2
    (message,) = [str(warning.message) for warning in said]
    assert message.startswith("tool_calls: source 'xlam', split 'all': 2 of 10 tasks kept\n  xlam-0: a call must be")
    assert message.endswith("\n  and 3 more")


def test_calls_that_a_format_cannot_hold_are_left_out_and_never_end_a_run(tmp_path: Path):
    records = [
        xlam(0, OSLO),
        xlam(1, [{"name": "Market Trends API", "arguments": {}}], tools='[{"name": "Market Trends API"}]'),
        xlam(2, [{"name": "f", "arguments": {"a b": 1}}], tools='[{"name": "f", "parameters": {"a b": {}}}]'),
        xlam(3, [{"name": "weather", "arguments": {"city": "</tool_call>"}}]),
    ]
    options = {"source": "xlam", "path": write(tmp_path / "x.json", records)}
    with pytest.warns(RuntimeWarning, match="xlam-1: the format 'python' cannot write 'Market Trends API'"):
        tasks = ToolCalls.tasks("all", format="python", **options)
    assert [task.id for task in tasks] == ["xlam-0", "xlam-3"]
    with pytest.warns(RuntimeWarning, match="xlam-3: the format 'hermes' does not give back the accepted answer"):
        tasks = ToolCalls.tasks("all", **options)
    assert [task.id for task in tasks] == ["xlam-0", "xlam-1", "xlam-2"]
    environment = ToolCalls(format="python")
    shown = replace(tasks[0], demonstrations=({"query": "q", "calls": tasks[1].data["answers"][0]},))
    with pytest.raises(EnvironmentFailed, match="'xlam-0' cannot be shown: the format 'python' cannot write 'Market"):
        environment.reset(shown, seed=0)
    environment.reset(tasks[1], seed=0)
    with pytest.raises(EnvironmentFailed, match="'xlam-1' has no expert"):
        environment.expert()


def test_a_task_file_reads_what_it_is_asked_for():
    def stream():
        for number in range(6):
            yield ToolTask(f"t{number}", ({"role": "user", "content": "q"},), (), ((),))
            yield Rejection(f"r{number}", "bad")

    tasks = TaskFile(stream())
    assert (len(tasks), tasks[2].id, tasks[-1].id) == (6, "t2", "t5")
    assert [task.id for task in tasks[1:3]] == ["t1", "t2"]
    assert [task.id for task in tasks] == [f"t{number}" for number in range(6)]
    assert tasks.num_rejected == 6
    assert len(TaskFile(stream(), count=2)) == 2
    with pytest.raises(IndexError):
        tasks[6]
    tasks.close()


def test_kinds_of_tasks():
    kinds = [kind_of([0] * tools, [0] * calls) for tools, calls in ((1, 1), (2, 1), (1, 2), (2, 2), (1, 0))]
    assert kinds == ["simple", "multiple", "parallel", "parallel_multiple", "irrelevance"]


def test_misuse_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="unknown source of tool_calls 'xlm' .did you mean 'xlam'"):
        load_tasks("xlm", "", "all", None)
    with pytest.raises(TaskError, match="set environment.options.path"):
        load_tasks("xlam", "", "all", None)
    with pytest.raises(TaskError, match="is a directory; the source xlam reads one file"):
        load_tasks("xlam", str(tmp_path), "all", None)
    with pytest.raises(TaskError, match="does not exist"):
        load_tasks("xlam", str(tmp_path / "none.json"), "all", None)
    with pytest.raises(TaskError, match="a file of the Hub is hub:OWNER/DATASET/FILE"):
        local_path("hub:a/b")
    with pytest.raises(TaskError, match="holds no dialogue"):
        load_tasks("api_bank", str(tmp_path), "level-1", None)
