"""What runs inside the sandbox: waits for programs and runs each in processes of its own. Standard library only.

The text of this file is given to an interpreter that sees nothing else of firesteel. For every program the waiting
process forks a *keeper*, and the keeper the program. Where it may, the keeper first takes new process, mount and IPC
namespaces: a program then sees no other process, finds an empty folder, and dies with everything that it started.
Privileges are given up before the program's first line; it holds neither end of the line to the host.

Protocol on standard input and output, both ways: a 4-byte big-endian length and that many bytes of JSON.
"""

from __future__ import annotations

import ast
import collections  # noqa: F401  (loaded here once, so that no program waits for them)
import ctypes
import datetime  # noqa: F401
import decimal  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import os
import random
import re  # noqa: F401
import resource
import select
import signal
import statistics  # noqa: F401
import struct
import sys
import time
import traceback
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_NOSUID, MS_NODEV = 2, 4
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, INSTRUCTION_BYTES = 22, 2, 8
CAPABILITY_VERSION_3 = 0x20080522
SETUP_FAILED = 97
READ_BYTES = 65536


def serve(limits: dict[str, Any]) -> None:
    """Answers requests until the input ends. `limits` are the settings of `Sandbox` in bytes and seconds."""
    send({"ready": True})
    while True:
        head = read_exactly(4)
        body = read_exactly(struct.unpack(">I", head)[0]) if head is not None else None
        if body is None:
            return
        code = json.loads(body)["code"]
        keeper = os.fork()
        if keeper == 0:
            keep(code, limits)
        _, status = os.waitpid(keeper, 0)
        if status != 0:
            send({"output": "", "status": "broken"})


def read_exactly(count: int) -> bytes | None:
    """The next bytes of standard input, or None where it ends."""
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            return None
        data += piece
    return data


def send(value: dict[str, Any]) -> None:
    """Writes one message to the host."""
    data = json.dumps(value).encode()
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[os.write(1, data) :]


def keep(code: str, limits: dict[str, Any]) -> NoReturn:
    """Starts the program, reads what it writes, ends it in time, and reports to the host."""
    if limits["namespaces"]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID) != 0:
            os._exit(SETUP_FAILED)
    output, output_end = os.pipe()
    program = os.fork()
    if program == 0:
        os.close(output)
        become_program(code, limits, output_end)
    os.close(output_end)
    text, stopped = collect(output, program, limits)
    kill(program)
    _, status = os.waitpid(program, 0)
    if os.waitstatus_to_exitcode(status) == SETUP_FAILED:
        os._exit(SETUP_FAILED)
    send({"output": text.decode("utf-8", "replace"), "status": stopped or verdict(status)})
    os._exit(0)


def kill(program: int) -> None:
    """Ends the program and its process group. In a namespace of its own that is every process it ever started."""
    for end in (os.killpg, os.kill):
        try:
            end(program, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def verdict(status: int) -> str:
    """How a program ended by itself."""
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return "timeout"
    return "ok" if code == 0 else "error"


def collect(output: int, program: int, limits: dict[str, Any]) -> tuple[bytes, str | None]:
    """What the program wrote, and why reading stopped before it had ended (None: it had)."""
    deadline = time.monotonic() + limits["wall_s"]
    text = b""
    ended = False
    with_end = os.pidfd_open(program)
    while True:
        wait_s = 0.0 if ended else max(0.0, deadline - time.monotonic())
        ready = select.select([output] if ended else [output, with_end], [], [], wait_s)[0]
        if not ready:
            return text, None if ended else "timeout"
        ended = ended or with_end in ready
        if output in ready:
            piece = os.read(output, READ_BYTES)
            if not piece:
                if ended or select.select([with_end], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    return text, None
                return text, "timeout"
            text += piece
        if len(text) > limits["output_bytes"]:
            return text[: limits["output_bytes"]], "flood"


def become_program(code: str, limits: dict[str, Any], output_end: int) -> NoReturn:
    """Gives up everything and runs the program's text; never returns."""
    try:
        os.setsid()
        if limits["namespaces"]:
            fresh_folder(limits)
        drop_capabilities()
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output_end, 1)
        os.dup2(output_end, 2)
        os.closerange(3, 4096)
        set_limits(limits)
        filter_calls(bytes.fromhex(limits["filter"]))
    except (OSError, ValueError):
        os._exit(SETUP_FAILED)
    random.seed(0)
    os._exit(execute(code))


def fresh_folder(limits: dict[str, Any]) -> None:
    """Lays an empty folder of limited size over the place where the program may write."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={limits['disk_bytes']},nr_inodes=1000,mode=700".encode()
    if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV, options) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    os.chdir("/tmp")


def drop_capabilities() -> None:
    """Empties all capability sets of this process for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def filter_calls(program: bytes) -> None:
    """Has the kernel refuse some system calls of this process and of all that it starts."""
    if not program:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))

    described = Filter(len(program) // INSTRUCTION_BYTES, program)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def set_limits(limits: dict[str, Any]) -> None:
    """Sets what the kernel enforces on the program and on all that it starts."""
    for name, value in limits["rlimits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def execute(code: str) -> int:
    """Runs the text as a main program; the value of a last expression is printed. Returns the exit status."""
    try:
        tree = ast.parse(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
        exec(compile(tree, "<program>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<program>", "eval"), names)
            if value is not None:
                print(repr(value))
        return finish(0)
    except SystemExit as error:
        return finish(error.code if isinstance(error.code, int) else int(error.code is not None))
    except BaseException as error:  # boundary: whatever the program raised is its output
        return finish(1, describe(error))


def describe(error: BaseException) -> str:
    """The error's last line, with the line of the program where it arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<program>"]
    place = f"line {lines[-1]}: " if lines else ""
    return place + traceback.format_exception_only(error)[-1].strip()


def finish(status: int, text: str = "") -> int:
    """Flushes the output, and adds a text to it; a program that closed its output has none."""
    try:
        if text:
            print(text)
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return status or 1
    return status
