"""What `check_environment` and `firesteel check` say of environments that raise, exit, hang or are not whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import user_mistakes
from test_guard import Mute
from typer.testing import CliRunner
from user_mistakes import Fine, LeaveInit, NeedsSize

from firesteel.cli import app
from firesteel.environments.blame import blamed
from firesteel.environments.check import check_environment, check_named
from firesteel.environments.check_process import check_in_process
from firesteel.environments.pool import EnvironmentPool
from firesteel.environments.tool_questions import ToolQuestions
from firesteel.errors import ConfigError, EnvironmentFailed, FiresteelError, StepTimeout, TaskError

FILE = str(Path(user_mistakes.__file__))
FAILED = r"raised JSONDecodeError: Expecting .* \(" + FILE + r", line \d+, in fail\); mend it there$"
LEFT = r"raised SystemExit: 0 \(" + FILE + r", line \d+, in leave\); mend it there$"
TASKS = "check 'contract' failed at tasks\\('train'\\): wanted a list of Task \\(return list\\(...\\)\\), got "

MISTAKES = {
    "LeaveInit": "its constructor " + LEFT,
    "LeaveTasks": "tasks\\('train'\\) " + LEFT,
    "LeaveReset": "reset of task 'train-0' " + LEFT,
    "LeaveStep": "step\\('go'\\) " + LEFT,
    "LeaveFork": "fork at step \\d " + LEFT,
    "LeaveExpert": "expert at step 0 " + LEFT,
    "LeaveClose": "close " + LEFT,
    "FailInit": "its constructor " + FAILED,
    "FailTasks": "tasks\\('train'\\) " + FAILED,
    "FailStep": "step\\('go'\\) " + FAILED,
    # what went wrong first is told, not what that led to
    "FailResetAndClose": "reset of task 'train-0' " + FAILED,
    "NoTasks": TASKS + "NoneType None",
    "DrawnTasks": TASKS + "generator ",
    "NamedTasks": TASKS + "dict ",
    "PlainTasks": "tasks\\('train'\\) raised TypeError: .*'count'; let it take \\(split, \\*, count=None, seed=0, ",
    "NoSnapshot": "check 'fork' .* since fork_rung is 'snapshot', .* has no snapshot\\(\\); implement snap",
    "Half": "check 'contract' failed at the class: wanted .*, got no step\\(\\), tasks\\(\\); write what is missing",
    "NeedsSize": "its constructor raised TypeError: .* 'size'; give the options that it takes as key=value ",
    "TupleStep": "check 'contract' failed at step\\('go'\\): wanted a StepResult, got tuple ",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_the_call_and_the_line(name: str) -> None:
    with pytest.raises(EnvironmentFailed, match=f"^{name}: {MISTAKES[name]}"):
        check_environment(getattr(user_mistakes, name))


@pytest.mark.parametrize("body", ["import sys\nsys.exit(0)\n", "import nothing_like_it\n", "1 / 0\n"])
def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (tmp_path / "unfinished.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    line = body.count("\n")
    message = rf"^environment 'unfinished:X': its import raised .* \(.*unfinished.py, line {line}, in <module>\); mend"
    with pytest.raises(EnvironmentFailed, match=message):
        check_named("unfinished:X", {})


def test_tools_lack_what_their_class_promises() -> None:
    for name, message in (
        (
            "ToolsWithoutSnapshot",
            "fork_rung is 'snapshot', and the class has no snapshot\\(\\) and no restore\\(\\); w",
        ),
        ("ToolsWithoutTasks", "tasks\\('train'\\) must return a list of Tasks or mappings, got None"),
    ):
        with pytest.raises(FiresteelError, match=f"^{name}.*{message}"):
            check_named(f"user_mistakes:{name}", {})


def test_an_interrupt_is_no_mistake_of_the_environment() -> None:
    with pytest.raises(KeyboardInterrupt), blamed("step"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [StopIteration, Mute])
@pytest.mark.parametrize("method", ["__init__", "reset", "step", "fork", "expert", "close"])
def test_odd_errors_are_named_too(error: type[Exception], method: str) -> None:
    def fail(*arguments: object, **options: object) -> object:
        raise error

    with pytest.raises(EnvironmentFailed, match=rf"raised {error.__name__}.*line \d+, in fail\); mend it there$"):
        check_environment(type("Odd", (Fine,), {method: fail}))


def test_errors_of_firesteel_pass_as_they_are() -> None:
    with pytest.raises(TaskError, match="^no such split$"), blamed("tasks"):
        raise TaskError("no such split")


def test_tasks_are_listed_with_the_options_of_the_environment() -> None:
    report = check_environment(lambda: NeedsSize(size=3), split="validation")
    assert report.num_episodes == 3
    assert check_named("user_mistakes:NeedsSize", {"size": 3}).environment == "NeedsSize"


def test_every_call_is_announced_before_it_is_made() -> None:
    calls: list[str] = []

    class Seen(Fine):
        def step(self, action: str):  # type: ignore[no-untyped-def]
            assert calls[-1] == "step('go')"
            return super().step(action)

        def close(self) -> None:
            assert calls[-1] == "close"

    check_environment(Seen, episodes=1, steps=3, announce=calls.append)
    kinds = {call.partition(" ")[0].partition("(")[0] for call in calls}
    assert kinds == {"its", "tasks", "reset", "expert", "step", "fork", "close"}


# in a process of its own


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("HangInit", "its constructor"),
        ("HangTasks", "tasks\\('train'\\)"),
        ("HangReset", "reset of task 'train-0'"),
        ("HangStep", "step\\('go'\\)"),
        ("HangFork", "fork at step \\d"),
    ],
)
def test_native_code_that_hangs_is_stopped(
    name: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "pid"
    monkeypatch.setenv("MARK", str(mark))
    message = f"^environment 'user_mistakes:{name}': {call} did not end within 1 s and was stopped; mend .*--timeout-s"
    with pytest.raises(StepTimeout, match=message):
        check_in_process(f"user_mistakes:{name}", {}, timeout_s=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_process_that_dies_is_told_with_the_call() -> None:
    with pytest.raises(EnvironmentFailed, match="DieStep': step\\('go'\\) ended the whole process \\(exit code 3\\)"):
        check_in_process("user_mistakes:DieStep", {}, timeout_s=60.0)


def test_reports_and_errors_come_back_from_the_process() -> None:
    report = check_in_process("user_mistakes:NeedsSize", {"size": 3}, timeout_s=60.0, episodes=1, steps=4)
    assert (report.num_episodes, report.fork_rung) == (1, "native")
    with pytest.raises(EnvironmentFailed, match="^LeaveStep: step\\('go'\\) raised SystemExit"):
        check_in_process("user_mistakes:LeaveStep", {}, timeout_s=60.0)
    with pytest.raises(TaskError, match="^household has no split 'trian'"):
        check_in_process("household", {}, timeout_s=60.0, split="trian")


def test_a_constructor_that_exits_is_told_by_a_pool() -> None:
    with EnvironmentPool(LeaveInit, workers=1) as pool, pytest.raises(ConfigError, match="pool: SystemExit: 0"):
        pool.make().reset(Fine.tasks("train")[0], seed=0)


# on the command line


def test_the_command_line_stops_what_hangs_and_names_its_own_options() -> None:
    for arguments, message in (
        (["HangStep", "--timeout-s", "1"], "step('go') did not end within 1 s"),
        (["Unlisted"], "give actions to draw from, each by a --action 'TEXT'"),
        (["LeaveStep", "--timeout-s", "0"], "step('go') raised SystemExit: 0"),
    ):
        result = CliRunner().invoke(app, ["check", f"user_mistakes:{arguments[0]}", *arguments[1:]])
        assert isinstance(result.exception, FiresteelError) and message in str(result.exception), result
    assert CliRunner().invoke(app, ["check", "user_mistakes:Unlisted", "--action", "go"]).exit_code == 0


def test_what_an_environment_prints_stays_out_of_the_json() -> None:
    command = [sys.executable, "-m", "firesteel", "check", "user_mistakes:Chatty", "--json"]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    result = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300)
    assert json.loads(result.stdout)["environment"] == "Chatty", result.stderr
    assert "a word of the environment" in result.stderr and "Chatty: passed" in result.stderr


def test_questions_are_checked_without_being_given_actions(tmp_path: Path) -> None:
    assert check_named("tool_questions", {"tools": ["calculator", "dictionary"]}).fork_rung == "native"
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(task.data) + "\n" for task in ToolQuestions.tasks("train", count=60)))
    assert check_named("mmlu_pro", {"path": str(path), "tools": ["calculator"]}).num_steps > 0
