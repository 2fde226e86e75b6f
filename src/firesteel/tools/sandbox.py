"""Runs Python that a model wrote, without trusting it.

The rung `bubblewrap` isolates by namespaces of the Linux kernel: no network, no files but the interpreter's
(read-only) and an empty folder in memory, no sight of other processes, no user namespaces to climb in, no privileges.
System calls that namespaces and limits do not cover are refused (`syscall_filter`). Processor time, memory, processes,
files and output are limited, and a program ends together with all that it started. Workers stay warm, and each program
gets processes and namespaces of its own. It is as strong as the kernel is. For code by an adversary use a virtual
machine.

The rung `limits_only` isolates nothing: it limits resources. It must be chosen by name.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import selectors
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firesteel.errors import ConfigError, MissingDependency, ToolFailed
from firesteel.tools.syscall_filter import filter_program

RUNGS = ("bubblewrap", "limits_only")
NOBODY = 65534
START_TIMEOUT_S = 30.0
GRACE_S = 5.0
_LIBRARY_FOLDERS = ("/lib", "/lib64", "/lib32")


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """What a program wrote, and how it ended.

    `status` is "ok", "error" (it raised, or exited with another status than 0), "timeout" (processor or wall time),
    or "flood" (it wrote more than is kept).
    """

    output: str
    status: str


class Sandbox:
    """Warm workers that run Python programs.

    Args:
        rung: How programs are isolated: one of `RUNGS`.
        workers: Programs that may run at the same time.
        wall_s: Longest time of one program.
        cpu_s: Most processor time of one of its processes, in whole seconds.
        memory_mb: Most memory of one of its processes.
        processes: Most processes of the sandbox, its own three included. At worst they take `processes` times
            `memory_mb`.
        file_mb: Largest file.
        disk_mb: Everything in the program's folder together (`bubblewrap` only).
        open_files: Open files of a process.
        output_bytes: How much output is kept; more ends the program.
        python: The interpreter inside. None: this one, or the system's where user "nobody" cannot read this one.

    Raises:
        MissingDependency: the rung `bubblewrap` cannot work here; the message says what is missing.
    """

    def __init__(
        self,
        *,
        rung: str = "bubblewrap",
        workers: int = 2,
        wall_s: float = 5.0,
        cpu_s: int = 3,
        memory_mb: int = 256,
        processes: int = 12,
        file_mb: int = 8,
        disk_mb: int = 16,
        open_files: int = 32,
        output_bytes: int = 8000,
        python: str | None = None,
    ) -> None:
        if rung not in RUNGS:
            raise ConfigError(f"sandbox rung '{rung}' does not exist; known: {', '.join(RUNGS)}")
        if workers < 1:
            raise ConfigError(f"a sandbox needs at least 1 worker, got {workers}")
        self.rung, self.wall_s = rung, wall_s
        self._limits: dict[str, Any] = {
            "namespaces": rung == "bubblewrap",
            "wall_s": wall_s,
            "disk_bytes": disk_mb * 2**20,
            "output_bytes": output_bytes,
            "filter": _filter(rung).hex(),
            "rlimits": {
                "RLIMIT_CPU": cpu_s,
                "RLIMIT_AS": memory_mb * 2**20,
                "RLIMIT_NPROC": processes,
                "RLIMIT_FSIZE": file_mb * 2**20,
                "RLIMIT_NOFILE": open_files,
                "RLIMIT_CORE": 0,
            },
        }
        if rung == "limits_only":
            # Without a user namespace this would count every process of the user on the machine.
            del self._limits["rlimits"]["RLIMIT_NPROC"]
        self._python = python or find_python(as_nobody=os.getuid() == 0)
        self._bubblewrap = find_bubblewrap() if rung == "bubblewrap" else ""
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._workers = workers
        # A worker dies with the thread that started it (bwrap's --die-with-parent), so one thread starts them all.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="firesteel-sandbox")

    def run(self, code: str) -> SandboxResult:
        """Runs one program and waits for it. Safe to call from several threads.

        Raises:
            ToolFailed: the sandbox itself did not work; the worker is replaced.
        """
        worker = self._idle.get()
        try:
            if worker is None:
                worker = self._starter.submit(self._start).result()
            return worker.run(code, self.wall_s + GRACE_S)
        except BaseException as error:
            # Whatever interrupts the wait, also a time limit's signal: the worker's next answer would be this one's.
            if worker is not None:
                worker.kill()
                worker = None
            if not isinstance(error, (OSError, EOFError)):
                raise
            raise ToolFailed(f"the sandbox died ({error or type(error).__name__}); the program was ended") from error
        finally:
            self._idle.put(worker)

    def warm_up(self) -> None:
        """Starts all workers now."""
        taken = [self._idle.get() for _ in range(self._workers)]
        for worker in taken:
            self._idle.put(worker or self._starter.submit(self._start).result())

    def close(self) -> None:
        """Ends all workers, and with them whatever still runs. A later `run` starts new ones."""
        for worker in [self._idle.get() for _ in range(self._workers)]:
            if worker is not None:
                worker.kill()
            self._idle.put(None)

    def _start(self) -> _Worker:
        source = Path(__file__).with_name("sandbox_zygote.py").read_text(encoding="utf-8")
        program = f"{source}\nserve(json.loads({json.dumps(json.dumps(self._limits))}))\n"
        interpreter = [str(Path(self._python).resolve()), "-s", "-S", "-B", "-c", program]
        command = interpreter if self.rung == "limits_only" else [*self._isolation(), *interpreter]
        return _Worker(command, folder=tempfile.mkdtemp(prefix="firesteel-") if self.rung == "limits_only" else None)

    def _isolation(self) -> list[str]:
        """The command line of bubblewrap, up to the program that it starts."""
        folders = ["--ro-bind", "/usr", "/usr"]
        for name in _LIBRARY_FOLDERS:
            path = Path(name)
            if path.is_symlink():
                folders += ["--symlink", os.readlink(path), name]
            elif path.is_dir():
                folders += ["--ro-bind", name, name]
        folders += interpreter_binds(self._python)
        for device in ("null", "zero", "urandom"):
            folders += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        return [
            self._bubblewrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent",
            "--new-session", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox",
            # The keeper needs this one to give each program namespaces of its own; programs lose it.
            "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN",
            *folders, "--dir", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv",
            "--setenv", "HOME", "/tmp", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LANG", "C.UTF-8", "--",
        ]  # fmt: skip


class _Worker:
    """One running zygote and the line to it."""

    def __init__(self, command: Sequence[str], *, folder: str | None) -> None:
        is_root = os.getuid() == 0
        if folder is not None and is_root:
            os.chown(folder, NOBODY, NOBODY)
        self._folder = folder
        environment = {"HOME": folder or "/", "PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
        # A uid of root is exempt from the limit on processes, so it is given up before anything else.
        identity: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if is_root else {}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd=folder or "/", env=environment, start_new_session=True, close_fds=True, **identity,
            )  # fmt: skip
        except OSError as error:
            raise _cannot_start(str(error)) from error
        try:
            self._receive(START_TIMEOUT_S)
        except (OSError, EOFError) as error:
            assert self._process.stderr is not None
            self._process.kill()
            said = self._process.stderr.read(2000).decode(errors="replace").strip()
            self.kill()
            raise _cannot_start(said) from error

    def run(self, code: str, timeout_s: float) -> SandboxResult:
        data = json.dumps({"code": code}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack(">I", len(data)) + data)
        self._process.stdin.flush()
        answer = self._receive(timeout_s)
        if answer["status"] == "broken":
            raise EOFError("it cannot start programs")
        return SandboxResult(answer["output"], answer["status"])

    def kill(self) -> None:
        """Ends the worker and everything inside."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        size = struct.unpack(">I", self._read(4, deadline))[0]
        answer: dict[str, Any] = json.loads(self._read(size, deadline))
        return answer

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while len(data) < count:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError("no answer in time")
                piece = os.read(self._process.stdout.fileno(), count - len(data))
                if not piece:
                    raise EOFError
                data += piece
        return data


def _cannot_start(reason: str) -> MissingDependency:
    return MissingDependency(
        f"the sandbox does not start: {reason or 'no answer'}; it needs bubblewrap 0.8 or newer and a kernel that "
        "allows unprivileged user namespaces, or sandbox rung 'limits_only', which isolates nothing"
    )


def find_bubblewrap() -> str:
    """The path of `bwrap`; `MissingDependency` where there is none."""
    path = shutil.which("bwrap")
    if path is None:
        raise MissingDependency(
            "running a model's Python needs bubblewrap: sudo apt-get install bubblewrap (Linux only); "
            "sandbox rung 'limits_only' runs without it and isolates nothing"
        )
    return path


def find_python(*, as_nobody: bool) -> str:
    """An interpreter of 3.11 or newer that the sandbox's user may run: this one, or else the system's."""
    candidates = [os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"]
    for path in candidates:
        if os.access(path, os.X_OK) and (not as_nobody or _is_open_to_all(Path(path).resolve())):
            return path
    raise MissingDependency(
        f"the sandbox gives up root, and user 'nobody' cannot read the interpreter {candidates[0]}; install one for "
        "everybody (sudo apt-get install python3), name it by the setting 'python', or run as an ordinary user"
    )


def interpreter_binds(python: str) -> list[str]:
    """What bubblewrap must show of an interpreter outside /usr: the program and its libraries, nothing beside them.

    An interpreter in `~/bin` must not make the whole home readable.
    """
    program = Path(python).resolve()
    if program.is_relative_to("/usr"):
        return []
    shown = [program, *(program.parent.parent / name for name in ("lib", "lib64"))]
    return [part for path in shown if path.exists() for part in ("--ro-bind", str(path), str(path))]


def _filter(rung: str) -> bytes:
    """The filter of system calls; the weak rung goes without on machines whose calls are not known."""
    machine = platform.machine()
    program = filter_program(machine)
    if program is None and rung == "bubblewrap":
        raise MissingDependency(
            f"the sandbox knows no system calls of '{machine}' machines to refuse; run it on x86_64 or aarch64, or "
            "take sandbox rung 'limits_only', which isolates nothing"
        )
    return program or b""


def _is_open_to_all(path: Path) -> bool:
    """Whether any user may reach and run a program."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))
