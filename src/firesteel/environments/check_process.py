"""`firesteel check` in a process of its own, which is killed when a call of the environment's code takes too long."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from firesteel import errors
from firesteel.environments.check import IMPORT, CheckReport, check_named
from firesteel.environments.pool_worker import Channel, WorkerLost, die_with
from firesteel.errors import EnvironmentFailed, FiresteelError, StepTimeout
from firesteel.guard import text_of

_START_S = 60.0
"""The shortest limit of the start and the import, which may load much."""

_LOOK_S = 0.05
"""How often the owner looks. It does not wait for messages: woken by each, it would disturb what is measured."""


def check_in_process(name: str, options: Mapping[str, Any], *, timeout_s: float, **settings: Any) -> CheckReport:
    """`check_named` in another process, which is killed when one call takes longer than `timeout_s` seconds.

    The import may take 60 seconds if that is longer.
    Unlike a signal, that also ends native code. What the environment prints goes to standard error.

    Raises:
        StepTimeout: a call took too long; the message names it.
        EnvironmentFailed: as `check_named`, or the process died; the message names the call under which it did.
        FiresteelError: whatever else `check_named` raises.
    """
    ours, theirs = socket.socketpair()
    # A new interpreter, not a fork: threads and locks of the owner stay out of it.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from firesteel.environments.check_process import main; "
        f"main({theirs.fileno()}, {os.getpid()})"
    )
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", program], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2,
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        try:
            return _watched(Channel(ours, timeout_s=10.0), process, (name, dict(options), settings), timeout_s)
        finally:
            # Before the process is waited for: until then its number, which is the group's, is not given to another.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watched(channel: Channel, process: subprocess.Popen[bytes], job: tuple[Any, ...], timeout_s: float) -> CheckReport:
    """What the process answers; raises its error, and that it died or was late."""
    call, since, limit_s = "the start of its process", time.monotonic(), max(timeout_s, _START_S)
    try:
        channel.send(job)
        while True:
            time.sleep(_LOOK_S)
            messages = channel.receive()
            for kind, content in messages:
                if kind == "report":
                    return content
                if kind != "call":
                    raise getattr(errors, kind, EnvironmentFailed)(content)
                call, since = content, time.monotonic()
                limit_s = max(timeout_s, _START_S) if call == IMPORT else timeout_s
            if not messages and time.monotonic() - since > limit_s:
                raise StepTimeout(
                    f"environment '{job[0]}': {call} did not end within {limit_s:g} s and was stopped; mend what it "
                    "waits for, or give it more with --timeout-s if it is just slow"
                )
    except WorkerLost as error:
        with suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
        code = process.returncode
        end = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        raise EnvironmentFailed(
            f"environment '{job[0]}': {call} ended the whole process ({end}); mend what it calls (os._exit or native "
            "code), or see it happen with --timeout-s 0"
        ) from error


def main(descriptor: int, owner: int) -> None:
    """The whole life of the process: one check."""
    die_with(owner, True)
    channel = Channel(socket.socket(fileno=descriptor), timeout_s=None)
    name, options, settings = channel.take()
    try:
        report = check_named(name, options, announce=lambda call: channel.send(("call", call)), **settings)
    except FiresteelError as error:
        channel.send((type(error).__name__, text_of(error)))
    else:
        channel.send(("report", report))
