"""What holds of the sandbox without isolation: settings, rungs, messages, and the weak rung by its name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from firesteel.errors import ConfigError, MissingDependency
from firesteel.tools import make_tools
from firesteel.tools.python import Python
from firesteel.tools.sandbox import Sandbox, find_python


def test_an_unknown_rung_is_named() -> None:
    with pytest.raises(ConfigError, match="sandbox rung 'none' does not exist; known: bubblewrap, limits_only"):
        Sandbox(rung="none")
    with pytest.raises(ConfigError, match="at least 1 worker, got 0"):
        Sandbox(rung="limits_only", workers=0)


def test_without_bubblewrap_nothing_weaker_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="apt-get install bubblewrap.*'limits_only'.*isolates nothing"):
        make_tools(["python"])


@pytest.mark.parametrize("program", ["/usr/bin/env", "/nowhere/bwrap"])
def test_a_bubblewrap_that_does_not_work_says_why(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("firesteel.tools.sandbox.find_bubblewrap", lambda: program)
    sandbox = Sandbox(workers=1)
    with pytest.raises(MissingDependency, match="the sandbox does not start: .*(?:unrecognized|No such file)"):
        sandbox.run("1")
    tool = Python(sandbox)
    with pytest.raises(MissingDependency):
        tool.call("1")
    sandbox.close()


def test_the_weak_rung_runs_programs_and_limits_them() -> None:
    sandbox = Sandbox(rung="limits_only", workers=1, wall_s=1.0)
    assert sandbox.run("print('a')\n6 * 7").output == "a\n42\n"
    assert sandbox.run("x = 'x' * (4 * 10**9)").output == "line 1: MemoryError\n"
    assert sandbox.run("while True: pass").status == "timeout"
    assert sandbox.run("while True: print(1)").status == "flood"
    assert sandbox.run("import os; print(os.getuid())").output == f"{65534 if os.getuid() == 0 else os.getuid()}\n"
    assert sandbox.run("1 / 0").output == "line 1: ZeroDivisionError: division by zero\n"
    sandbox.close()


def test_random_numbers_and_hashes_are_the_same_in_every_worker() -> None:
    outputs = set()
    for _ in range(2):
        sandbox = Sandbox(rung="limits_only", workers=1)
        outputs.add(sandbox.run("import random; print(random.random(), hash('abc'))").output)
        sandbox.close()
    assert len(outputs) == 1


def test_the_interpreter_is_one_that_the_user_inside_can_read() -> None:
    path = Path(find_python(as_nobody=True)).resolve()
    assert all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def test_fences_around_code_are_taken_off() -> None:
    sandbox = Sandbox(rung="limits_only", workers=1)
    tool = Python(sandbox)
    assert tool.call("```python\n1 + 1\n```").text == "2"
    tool.close()
    assert tool.call("2 + 2").text == "4"
    sandbox.close()
