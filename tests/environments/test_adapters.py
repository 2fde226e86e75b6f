"""Classes that were not written for firesteel: their tools, their episodes, and what is refused."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Final

import pytest
from plain_classes import Counter, Echo, Grid, Notes
from test_guard import Mute

from firesteel.environments import environment_class
from firesteel.environments.adapters import adapt
from firesteel.environments.adapters.tools import find_tools, read_call
from firesteel.environments.base import Environment
from firesteel.environments.check import check_environment
from firesteel.environments.household import Household
from firesteel.errors import ConfigError, EnvironmentFailed, StepTimeout, TaskError
from firesteel.guard import guarded
from firesteel.types import Task


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def started(cls: type[Environment], seed: int = 0, **options: Any) -> Environment:
    environment = cls(**options)
    environment.reset(cls.tasks("train", count=1)[0], seed=seed)
    return environment


# tools


def test_tools_are_described_with_their_types_and_words():
    tools = find_tools(Counter)
    assert list(tools) == ["add", "submit"]
    assert tools["add"].signature == "add(amount: int, how: Literal['up', 'down'] = 'up')"
    assert tools["add"].help == "Changes the count. amount: by how much how: in which direction"
    assert tools["submit"].signature == "submit()"


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("go north", 'This is no tool call. Call a tool with {"name": "...", "arguments": {...}}. Tools: add, sub'),
        ('{"name": "add", "arguments": {"amount": 1}', "This is no tool call."),
        ('{"a":' * 100_000 + "}", "This is no tool call."),
        ('{"tool": "add"}', 'The call has no "name".'),
        (call("ad", amount=1), "There is no tool 'ad' (did you mean 'add'?). Tools: add, submit."),
        (call("reset"), "There is no tool 'reset'"),
        ('{"name": "add", "arguments": [1]}', '"arguments" of add must be a JSON object. Usage: add(amount: int,'),
        ('{"name": "add", "arguments": "one"}', '"arguments" of add is no JSON object.'),
        (call("add"), "add: 'amount' is missing. Usage: add(amount: int, how: Literal['up', 'down'] = 'up')."),
        (call("add", amount=1, speed=2), "add: there is no 'speed'. Usage:"),
        (call("add", amount="many"), "add: 'amount': input should be a valid integer, "),
        (call("add", amount=1, how="in"), "add: 'how': input should be 'up' or 'down', got 'in'. Usage:"),
    ],
)  # fmt: skip
def test_a_bad_call_is_answered_with_what_helps(action, answer):
    name, arguments, problem = read_call(action, find_tools(Counter))
    assert (name, arguments) == ("", {}) and problem.startswith(answer)


@pytest.mark.parametrize(
    "action",
    [
        call("add", amount=2),
        '{"name": "add", "arguments": "{\\"amount\\": \\"2\\"}"}',
        '```json\n{"name": "add", "arguments": {"amount": 2.0}}\n```',
    ],
)
def test_a_good_call_has_the_types_that_the_tool_asks_for(action):
    assert read_call(action, find_tools(Counter)) == ("add", {"amount": 2}, "")


def tool(function: Any) -> type:
    return type("Mine", (), {"use": function})


def variadic(self, *names: str):
    """Uses."""


def keywords(self, **names: str):
    """Uses."""


def positional(self, name: str, /):
    """Uses."""


def untyped(self, name):
    """Uses."""


def unknown_type(self, name: "Nowhere"):  # noqa: F821, UP037
    """Uses."""


def no_json(self, name: pytest.Item):
    """Uses."""


def silent(self, name: str): ...


async def waiting(self, name: str):
    """Uses."""


def unfinished_type(self, name: "int["):  # noqa: F722
    """Uses."""


def missing_type(self, name: "json.nope"):  # noqa: UP037
    """Uses."""


def final(self, name: Final[int]):
    """Uses."""


def class_variable(self, name: ClassVar[int]):
    """Uses."""


final.__annotations__["name"] = Final[int]  # as without postponed annotations
class_variable.__annotations__["name"] = ClassVar[int]


def text_final(self, name: Final[int]):
    """Uses."""


def no_self():
    """Uses."""


def named_self(*, self: int):
    """Uses."""


async def drawing(self, name: str):
    """Uses."""
    yield name


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (unfinished_type, "its type hints cannot be read \\(SyntaxError: "),
        (missing_type, "its type hints cannot be read \\(AttributeError: "),
        (final, "parameter 'name' has a type that no parameter can have \\("),
        (class_variable, "parameter 'name' has a type that no parameter can have \\("),
        (text_final, "its type hints cannot be read \\(TypeError: typing.Final"),
        (no_self, "takes no self; write def use\\(self, ...\\), or put @staticmethod before it"),
        (named_self, "takes no self; write def use\\(self, ...\\), or put @staticmethod before it"),
        (drawing, "is async or a generator; write it as a plain method"),
        (variadic, "parameter 'names' takes any number of arguments; name each one"),
        (keywords, "parameter 'names' takes arguments of any name; name each one"),
        (positional, "parameter 'name' is positional only; name each one"),
        (untyped, "parameter 'name' has no type; write name: str, say"),
        (unknown_type, "its type hints cannot be read \\(NameError: name 'Nowhere' is not defined\\)"),
        (no_json, "a parameter has a type that JSON cannot hold \\("),
        (silent, "has no docstring, and the model reads it to know what the tool does"),
        (waiting, "is async or a generator; write it as a plain method"),
        (dict, "is no plain method; begin its name with _ if it is not meant as a tool"),
    ],
)
def test_a_tool_with_an_impossible_signature_is_refused_at_the_start(function, message):
    with pytest.raises(ConfigError, match=f"^Mine cannot be used: tool 'use':? {message}"):
        adapt(tool(function))


def test_a_class_without_tools_and_what_is_no_class_are_refused():
    with pytest.raises(
        ConfigError, match="Empty has no tool: give it a public method with a docstring and typed param"
    ):
        adapt(type("Empty", (), {"_hidden": lambda self: 0, "x": 1}))
    with pytest.raises(ConfigError, match="environment 'text' is no class and makes nothing"):
        adapt("text")
    with pytest.raises(ConfigError, match="Odd.fork_rung is 'copy'; wanted one of native, snapshot, replay, none"):
        adapt(type("Odd", (Counter,), {"fork_rung": "copy"}))


# episodes


def test_a_class_of_tools_is_played_as_it_is():
    cls = environment_class("plain_classes:Counter")
    assert cls is environment_class("plain_classes:Counter") and cls.__name__ == "Counter"
    task = Task("three", data={"target": 3})
    environment = cls()
    assert environment.reset(task, seed=0).text == "Count to 3."
    assert environment.goal.splitlines()[:2] == [
        "Count up to the number that you were told.",
        'Call a tool with {"name": "...", "arguments": {...}}.',
    ]
    assert [line.split("(")[0] for line in environment.goal.splitlines()[2:]] == ["- finish", "- add", "- submit"]
    steps = [environment.step(action) for action in (call("add", amount=4), call("add", amount=-1), call("add"))]
    assert steps[0].observation.text == "The count is 4." and steps[0].info["valid"]
    assert steps[1].observation.text == "add failed: amount must not be negative"
    assert [step.info["valid"] for step in steps] == [True, False, False]
    environment.step(call("add", amount=1, how="down"))
    last = environment.step(call("submit"))
    # 4 - 1 = 3, which is the goal: the reward goes from 0 to 1.
    assert (last.reward, last.terminated, last.info["success"], last.info["score"]) == (1.0, True, True, 1.0)
    assert last.observation.text == "submit: done."
    with pytest.raises(EnvironmentFailed, match="Counter: stepped before a reset or after the end"):
        environment.step(call("submit"))


def test_a_class_without_reset_is_made_anew_and_rewards_are_changes():
    cls = environment_class("plain_classes:Notes")
    (task,) = cls.tasks("train")
    environment = cls(success_reward=1.0)
    assert (task.id, environment.reset(task, seed=0).text) == ("train-notes", "The episode begins.")
    assert environment.goal.startswith("Write three notes.\n")
    rewards = [environment.step(call("write", text=text)).reward for text in ("a", "b")]
    assert rewards == pytest.approx([1 / 3, 1 / 3])
    fork = environment.fork()
    assert fork.step(call("write", text="c")).observation.text == '["a", "b", "c"]'
    ended = environment.step(call("finish"))
    assert (ended.terminated, ended.info["success"], ended.info["score"]) == (True, False, pytest.approx(2 / 3))
    environment.reset(task, seed=0)
    assert environment.step(call("write", text="z")).observation.text == '["z"]'


def test_a_function_may_make_the_object_and_options_go_to_the_constructor():
    made = started(environment_class("plain_classes:make_counter"))
    assert made.step(call("add", amount=2)).observation.text == "The count is 4."
    configured = started(environment_class("plain_classes:Counter"), step=5)
    assert configured.step(call("add", amount=2)).observation.text == "The count is 10."


def test_a_class_may_save_and_restore_its_state():
    class Saving(Counter):
        """Counts."""

        fork_rung = "snapshot"

        def snapshot(self) -> Any:
            return dict(vars(self))

        def restore(self, state: Any) -> None:
            vars(self).update(state)

    cls = adapt(Saving)
    assert list(cls.tools) == ["add", "submit"]
    parent = started(cls, step=2)
    parent.step(call("add", amount=1))
    child = parent.fork()
    assert (child.goal, child.origin.rung) == (parent.goal, "snapshot")
    assert child.step(call("add", amount=1)).observation.text == "The count is 4."
    assert parent.step(call("add", amount=3)).observation.text == "The count is 8."


def test_a_result_that_is_no_json_and_an_error_without_text_are_answers():
    class Odd:
        def cycle(self) -> list[Any]:
            """Returns itself."""
            value: list[Any] = []
            value.append(value)
            return value

        def keys(self) -> dict[Any, int]:
            """Returns odd keys."""
            return {(1, 2): 3}

        def fail(self) -> None:
            """Fails."""
            raise Mute

    environment = started(adapt(Odd))
    for name, error in (("cycle", "ValueError: Circular reference"), ("keys", "TypeError: keys must be")):
        result = environment.step(call(name))
        assert result.observation.text.startswith(f"{name}: its result cannot be written as JSON ({error}")
        assert result.observation.text.endswith("with text as keys") and not result.info["valid"]
    assert environment.step(call("fail")).observation.text.startswith("fail failed: (its __str__ raises")


def test_lone_surrogates_of_a_call_are_replaced():
    tools = find_tools(Notes)
    assert read_call('{"name": "\\ud800"}', tools)[2].startswith("There is no tool '\ufffd'")
    for text, kept in (("\\ud800", "\ufffd"), ("\\ud83d\\ude00", "\U0001f600"), ("\\u00e9", "\u00e9")):
        assert read_call(f'{{"name": "write", "arguments": {{"text": "{text}"}}}}', tools)[1] == {"text": kept}


def test_a_time_limit_inside_a_tool_is_no_answer_of_the_tool():
    class Slow:
        def wait(self) -> None:
            """Waits."""
            while True:
                pass

    environment = started(adapt(Slow))
    with pytest.raises(StepTimeout), guarded("step", 0.1):
        environment.step(call("wait"))


def test_a_reward_that_is_no_number_is_named():
    class Odd(Counter):
        def get_reward(self) -> Any:
            return "much"

    with pytest.raises(EnvironmentFailed, match="Odd: its reward is 'much'; wanted a number"):
        started(adapt(Odd))


def test_a_gymnasium_environment_is_played_as_it_is():
    cls = environment_class("plain_classes:Echo")
    environment = cls()
    first = environment.reset(cls.tasks("train")[0], seed=4)
    word = first.text.removeprefix("The word is ").removesuffix(".")
    assert first.admissible == ("abc", word) and environment.goal == "Say the word."
    wrong = environment.step("zzz")
    assert wrong.observation.text == "That is no action here: wanted 1 to 5 known characters."
    assert wrong.info == {"valid": False}
    fork = environment.fork()
    ends = [one.step(word) for one in (environment, fork)]
    assert ends[0] == ends[1] and (ends[0].reward, ends[0].terminated, ends[0].info["success"]) == (1.0, True, True)
    with pytest.raises(
        ConfigError, match="Grid: its action space is Discrete\\(4\\); wanted gymnasium.spaces.Text. Wrap"
    ):
        adapt(Grid)()


@pytest.mark.parametrize("cls", [Counter, Notes, Echo])
def test_adapted_classes_keep_the_contract(cls):
    actions = [call("add", amount=1), call("add", amount="x"), call("write", text="note"), call("submit")]
    tasks = None if cls is not Notes else adapt(cls).tasks("train")
    report = check_environment(adapt(cls), tasks, actions=actions, episodes=2, steps=6)
    assert report.fork_rung == ("native" if cls is Notes else "replay")


def test_environments_of_firesteel_are_left_alone():
    assert adapt(Household) is Household


# tasks


def test_numbered_tasks_differ_between_splits():
    cls = adapt(Counter)
    seeds = [task.seed for split in ("train", "validation", "test") for task in cls.tasks(split)]
    assert len(set(seeds)) == 300 and len(cls.tasks("train", num_tasks=7)) == 7
    assert {task.seed for task in cls.tasks("train", seed=1)}.isdisjoint(seeds)
    with pytest.raises(TaskError, match="Counter has no split 'dev'; known: train, validation, test"):
        cls.tasks("dev")


def test_rows_of_a_file_are_tasks(tmp_path):
    cls = adapt(Counter)
    (tmp_path / "train.jsonl").write_text('{"target": 2, "goal": "Reach two."}\n\n{"target": 4, "id": "four"}\n')
    (tmp_path / "broken.jsonl").write_text('{"target": 2}\n{"target": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    pattern = str(tmp_path / "{split}.jsonl")
    tasks = cls.tasks("train", tasks=pattern)
    assert [(task.id, task.data["target"]) for task in tasks] == [("Counter-train-0", 2), ("four", 4)]
    environment = cls(tasks=pattern)
    assert environment.reset(tasks[0], seed=0).text == "Count to 2." and environment.goal.startswith("Reach two.\n")
    assert len(cls.tasks("train", count=1, tasks=pattern)) == 1
    with pytest.raises(TaskError, match="Counter: the tasks of split 'test' are not there: '.*test.jsonl' is no file"):
        cls.tasks("test", tasks=pattern)
    with pytest.raises(TaskError, match="Counter has no split 'test': '.*' holds 'train'; name files as in"):
        cls.tasks("test", tasks=str(tmp_path / "train.jsonl"))
    with pytest.raises(TaskError, match="broken.jsonl' line 2 is no JSON"):
        cls.tasks("broken", tasks=pattern)
    with pytest.raises(TaskError, match="list.jsonl' line 1: wanted a JSON object, got list"):
        cls.tasks("list", tasks=pattern)
