"""What holds of the sandbox without isolation: settings, rungs, messages, and the weak rung by its name."""

from __future__ import annotations

import os
import platform
import stat
import struct
from pathlib import Path

import pytest

from firesteel.errors import ConfigError, MissingDependency
from firesteel.tools import make_tools
from firesteel.tools.python import Python
from firesteel.tools.sandbox import Sandbox, find_python, interpreter_binds
from firesteel.tools.syscall_filter import REFUSED, filter_program


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


def test_of_an_interpreter_in_a_home_only_itself_and_its_libraries_are_shown(tmp_path: Path) -> None:
    for name in ("bin", "lib", "documents"):
        (tmp_path / name).mkdir()
    program = tmp_path / "bin" / "python3"
    program.touch()
    (tmp_path / "python").symlink_to(program)
    shown = interpreter_binds(str(tmp_path / "python"))
    assert shown == ["--ro-bind", str(program), str(program), "--ro-bind", *[str(tmp_path / "lib")] * 2]
    assert interpreter_binds("/usr/bin/python3") == []


def run_filter(program: bytes, *, architecture: int, number: int, argument: int = 0) -> int:
    """What the filter says of one call: a small machine for the four instructions that it is made of."""
    data = {0: number, 4: architecture, 16: argument}
    code = list(struct.iter_unpack("=HBBI", program))
    place, loaded = 0, 0
    while True:
        operation, if_true, if_false, value = code[place]
        place += 1
        if operation == 0x20:
            loaded = data[value]
        elif operation == 0x06:
            return value & 0xFFFF if value != 0x7FFF0000 else 0
        else:
            place += if_true if (loaded == value if operation == 0x15 else loaded >= value) else if_false


@pytest.mark.parametrize(("machine", "architecture", "column"), [("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 1)])
def test_the_filter_of_system_calls_on_both_machines(machine: str, architecture: int, column: int) -> None:
    program = filter_program(machine)
    assert program is not None
    refused = {numbers[column] for numbers in REFUSED.values()}
    socket_number = (41, 198)[column]
    for number in range(600):
        found = run_filter(program, architecture=architecture, number=number, argument=2)
        assert found == (1 if number in refused else 0), number  # EPERM
    families = [run_filter(program, architecture=architecture, number=socket_number, argument=n) for n in range(50)]
    assert [n for n, found in enumerate(families) if found == 0] == [1, 2, 10] and set(families) == {0, 97}
    assert run_filter(program, architecture=0x40000003, number=1) == 38  # 32 bits


def test_a_machine_whose_system_calls_are_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(MissingDependency, match="no system calls of 'riscv64' machines.*'limits_only'"):
        Sandbox()
    weak = Sandbox(rung="limits_only", workers=1)
    assert weak.run("print(1)").output == "1\n"
    weak.close()
