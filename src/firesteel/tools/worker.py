"""A child process that runs one trusted function on untrusted text, within a limit of time and memory.

For libraries that can take for ever or all memory on a short query (symbolic integrals, satisfiability). This is no
sandbox: the function itself must not evaluate what it is given.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from firesteel.errors import ToolFailed

START_TIMEOUT_S = 60.0
_READY = "ready"


class Worker:
    """Calls `target` ("package.module:function", text to text) in a child that is killed and replaced at its limit.

    The child starts with the first call. Calls from several threads take turns.
    """

    def __init__(self, target: str, *, timeout_s: float, memory_mb: int) -> None:
        self.target, self.timeout_s, self.memory_mb = target, timeout_s, memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def call(self, text: str) -> str:
        """The function's answer; `ToolFailed` where it raised, died, or took longer than `timeout_s`."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(text).encode() + b"\n")
                process.stdin.flush()
                answer = json.loads(self._read_line(process, self.timeout_s))
            except TimeoutError as error:
                self._kill()
                raise ToolFailed(f"no answer within {self.timeout_s:g} s") from error
            except (OSError, EOFError) as error:
                self._kill()
                raise ToolFailed("this query needs more memory than the tool has") from error
            except BaseException:
                # Whatever interrupts the wait, such as a time limit's signal: the next answer would be this one's.
                self._kill()
                raise
        if not answer["ok"]:
            raise ToolFailed(answer["text"])
        return str(answer["text"])

    def close(self) -> None:
        """Ends the child; a later call starts a new one."""
        with self._lock:
            self._kill()

    def _start(self) -> subprocess.Popen[bytes]:
        self._kill()
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from firesteel.tools.worker import serve; "
            f"serve({self.target!r}, {self.memory_mb}, {os.getpid()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._buffer = b""
        try:
            line = self._read_line(self._process, START_TIMEOUT_S)
        except (TimeoutError, EOFError) as error:
            self._kill()
            raise ToolFailed(f"the worker of {self.target} does not start; is the extra 'tools' installed?") from error
        assert json.loads(line) == _READY
        return self._process

    def _read_line(self, process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    raise EOFError
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def __del__(self) -> None:
        self._kill()


def serve(target: str, memory_mb: int, parent: int) -> None:
    """The child's side: one JSON text a line in, one JSON object a line out, until the input ends."""
    die_with(parent)
    # Kept for the protocol alone: what a library prints must not end up among the answers.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module_name, _, name = target.partition(":")
    function: Callable[[str], str] = getattr(importlib.import_module(module_name), name)
    _limit_memory(memory_mb)
    print(json.dumps(_READY), file=output, flush=True)
    for line in sys.stdin:
        print(json.dumps(_outcome(function, json.loads(line))), file=output, flush=True)


def _outcome(function: Callable[[str], str], text: str) -> dict[str, object]:
    try:
        return {"ok": True, "text": function(text)}
    except ToolFailed as error:
        return {"ok": False, "text": str(error)}
    except MemoryError:
        return {"ok": False, "text": "this query needs more memory than the tool has"}
    except Exception as error:  # boundary: a library may raise anything on text that a model wrote
        return {"ok": False, "text": f"{type(error).__name__}: {error}"}


def _limit_memory(memory_mb: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))


def die_with(parent: int) -> None:
    """Ends this process soon after its parent, even in the middle of its work.

    The kernel's own signal for this (PR_SET_PDEATHSIG) would come when the *thread* that started the child ends.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
