"""A worker of the pool: a process that plays episodes for its owner and dies with it.

The owner and a worker exchange frames over a socket of their own: a mark, the length and the checksum of what
follows, and a pickled tuple. Whatever environments print goes to a file; whatever else arrives on the socket is found
out by the mark or the checksum, and the worker is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Protocol

from firesteel.environments.base import Environment
from firesteel.environments.fork import History, timed_fork
from firesteel.errors import EnvironmentFailed, FiresteelError
from firesteel.types import Observation, StepResult, Task

Factory = Callable[[], Environment]

_MARK = b"FSW1"
_HEADER = struct.Struct(">4sII")
_LONGEST_FRAME = 256 * 2**20
_KEPT_OUTPUT = 64 * 2**10
_OWNER_CHECK_S = 0.5
_GRACE_S = 2.0


class WorkerLost(EnvironmentFailed):
    """A worker died, closed its connection, or sent something that is no answer."""


class Worker(Protocol):
    """A process that answers messages in their order, on this machine or elsewhere."""

    def send(self, message: Any) -> None:
        """Hands over one message; raises `WorkerLost`."""
        ...

    def receive(self) -> list[Any]:
        """The messages that have arrived, without waiting; raises `WorkerLost`."""
        ...

    def kill(self) -> None:
        """Ends the process and all that it started, whatever they do; it is gone on return. Twice is fine."""
        ...

    def leave(self) -> None:
        """Lets an idle worker close its environments, then kills it."""
        ...


class Backend(Protocol):
    """Where workers run. Another one (a cluster's actors) has to answer to this and to `Worker`, to nothing else."""

    def start(self, factory: bytes) -> Worker:
        """Starts a worker without waiting for it; `factory` is the pickled function that makes environments."""
        ...

    def wait(self, workers: Sequence[Worker], timeout_s: float) -> None:
        """Returns when one of the workers may have something to receive, or after so many seconds."""
        ...


class LocalBackend:
    """Workers as processes of this machine, each a fresh interpreter that imports nothing but what it needs."""

    def start(self, factory: bytes) -> Worker:
        worker = LocalWorker()
        with contextlib.suppress(WorkerLost):  # found again, and reported, by the first receive
            worker.send(factory)
        return worker

    def wait(self, workers: Sequence[Worker], timeout_s: float) -> None:
        sockets = [worker.channel.socket for worker in workers if isinstance(worker, LocalWorker)]
        connection.wait(sockets, timeout_s)


class Channel:
    """Frames over a socket. Sending waits at most `timeout_s` (None: for ever) for the other side to take them."""

    def __init__(self, end: socket.socket, timeout_s: float | None) -> None:
        self.socket = end
        self.socket.settimeout(timeout_s)
        self._buffer = bytearray()
        self._messages: deque[Any] = deque()

    def send(self, message: Any) -> None:
        """Pickles and sends; what cannot be pickled raises as `pickle` does, and nothing is sent."""
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self.socket.sendall(_HEADER.pack(_MARK, len(payload), zlib.crc32(payload)) + payload)
        except OSError as error:  # a time-out is one, too
            raise WorkerLost(f"takes no message ({error})") from error

    def receive(self) -> list[Any]:
        """What has arrived, without waiting. Raises `WorkerLost` at the end of the stream and for what is no frame."""
        while not self._messages and connection.wait([self.socket], 0):
            self._read()
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def take(self) -> Any:
        """The next message, however long it takes to arrive. Raises `WorkerLost` as `receive` does."""
        while not self._messages:
            self._read()
        return self._messages.popleft()

    def _read(self) -> None:
        try:
            part = self.socket.recv(2**20)
        except OSError as error:
            raise WorkerLost(f"cannot be reached ({error})") from error
        if not part:
            raise WorkerLost("")
        self._buffer += part
        while len(self._buffer) >= _HEADER.size:
            mark, length, checksum = _HEADER.unpack_from(self._buffer)
            if mark != _MARK or length > _LONGEST_FRAME:
                raise WorkerLost(f"sent garbage ({bytes(self._buffer[:16])!r}...)")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            if zlib.crc32(payload) != checksum:
                raise WorkerLost(f"sent garbage ({payload[:16]!r}... with a wrong checksum)")
            self._messages.append(_unpickled(payload))


def _unpickled(payload: bytes) -> Any:
    try:
        return pickle.loads(payload)
    except Exception as error:  # boundary: what an environment puts into `info` may fail in any way to be read
        raise WorkerLost(f"sent what cannot be read ({type(error).__name__}: {error})") from error


class LocalWorker:
    """A worker process on this machine, leader of a process group of its own."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours, timeout_s=10.0)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed by kill)
        # A new interpreter, not a fork: threads, locks and devices of the owner stay out of it.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from firesteel.environments.pool_worker import main; "
            f"main({theirs.fileno()}, {os.getpid()}, {threading.current_thread() is threading.main_thread()})"
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=self._output, stderr=self._output, start_new_session=True, env=_surroundings(),
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        self.channel.send(message)

    def receive(self) -> list[Any]:
        try:
            return self.channel.receive()
        except WorkerLost as error:
            raise WorkerLost(str(error) or self._epitaph()) from error

    def _epitaph(self) -> str:
        """Why a worker whose connection has ended is gone, with the last line that it printed."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        self._output.seek(max(0, os.fstat(self._output.fileno()).st_size - 2000))
        lines = self._output.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{cause} (it printed last: {last[:300]!r})" if last else cause

    def kill(self) -> None:
        if self._output.closed:
            return
        # Before the process is waited for: until then its number, which is the group's, is not given to another.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.channel.socket.close()
        self._output.close()

    def leave(self) -> None:
        with contextlib.suppress(WorkerLost, subprocess.TimeoutExpired):
            self.channel.send(None)
            self._process.wait(_GRACE_S)
        self.kill()


def _surroundings() -> dict[str, str]:
    """The owner's variables, with one seed for the order of sets, so that an episode looks alike in every worker."""
    seed = os.environ.get("PYTHONHASHSEED", "random")
    return {**os.environ, "PYTHONHASHSEED": "0" if seed == "random" else seed}


# --- what runs in the worker ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Episode:
    """An environment in the worker. The global random generators are seeded before every call, from the episode
    alone, so that what an environment draws from them does not depend on what else the worker plays."""

    environment: Environment
    task: Task | None = None
    seed: int = 0
    num_steps: int = 0

    def reset(self, task: Task, *, seed: int) -> Observation:
        self.task, self.seed, self.num_steps = task, seed, 0
        self._seed()
        observation = self.environment.reset(task, seed=seed)
        if not isinstance(observation, Observation):
            raise TypeError(f"reset returned {observation!r:.100}, wanted an Observation")
        return observation

    def step(self, action: str) -> StepResult:
        self.num_steps += 1
        self._seed()
        result = self.environment.step(action)
        if not isinstance(result, StepResult) or not isinstance(result.observation, Observation):
            raise TypeError(f"step returned {result!r:.100}, wanted a StepResult with an Observation")
        return result

    def _seed(self) -> None:
        name = f"{self.task.id if self.task else ''}/{self.seed}/{self.num_steps}"
        seed = zlib.crc32(name.encode(errors="surrogatepass"))
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)


class _Server:
    """Plays what the owner asks for. One method a kind of call."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._spare: Environment | None = factory()
        self.facts = (type(self._spare).__name__, self._spare.fork_rung)
        self._episodes: dict[int, _Episode] = {}

    def _open(self, number: int) -> _Episode:
        if number not in self._episodes:
            self._episodes[number] = _Episode(self._spare or self._factory())
            self._spare = None
        return self._episodes[number]

    def reset(self, number: int, task: Task, seed: int) -> Any:
        episode = self._open(number)
        return episode.reset(task, seed=seed), episode.environment.goal

    def restore(self, number: int, history: History, name: str) -> Any:
        episode = self._open(number)
        history.replay_in(episode, name)  # type: ignore[arg-type]  # it needs reset and step

    def step(self, number: int, action: str) -> Any:
        return self._episodes[number].step(action)

    def fork(self, number: int, child: int) -> Any:
        parent = self._episodes[number]
        environment = timed_fork(parent.environment)
        self._episodes[child] = _Episode(environment, parent.task, parent.seed, parent.num_steps)
        return environment.origin

    def expert(self, number: int) -> Any:
        return self._episodes[number].environment.expert()

    def close(self, number: int) -> Any:
        if number in self._episodes:
            self._episodes.pop(number).environment.close()

    def close_all(self) -> None:
        for number in list(self._episodes):
            self.close(number)
        if self._spare is not None:
            self._spare.close()


def main(descriptor: int, owner: int, is_main_thread: bool) -> None:
    """The whole life of a worker."""
    die_with(owner, is_main_thread)
    channel = Channel(socket.socket(fileno=descriptor), timeout_s=None)
    with contextlib.suppress(WorkerLost):  # the owner has gone, or wants no more
        factory = channel.take()
        try:
            server = _Server(pickle.loads(factory))
        except (Exception, SystemExit) as error:  # boundary: whatever keeps an environment from being made is told
            channel.send(("failed", *_told(error)))
            return
        channel.send(("ready", *server.facts))
        while (message := channel.take()) is not None:
            _limit_output()
            answer = _answered(server, *message)
            try:
                channel.send(answer)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                channel.send((*answer[:2], False, _told(error)))
        server.close_all()


def _answered(server: _Server, ticket: int, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """(ticket, seconds, whether it went well, the value or the error)."""
    begin = time.perf_counter()
    try:
        value, is_fine = getattr(server, method)(*arguments), True
    except (Exception, SystemExit) as error:  # boundary: an environment may raise anything; the episode fails
        value, is_fine = _told(error), False
    return ticket, time.perf_counter() - begin, is_fine, value


def _told(error: BaseException) -> tuple[str, str]:
    """The name of an error's class and its message; those that are not firesteel's carry the name in the message."""
    name = type(error).__name__
    return (name, str(error)) if isinstance(error, FiresteelError) else ("", f"{name}: {error}")


def _limit_output() -> None:
    """What environments print is kept for the last words of a worker, and must not fill the disk."""
    with contextlib.suppress(OSError):  # an environment may have closed it
        if os.fstat(2).st_size > _KEPT_OUTPUT:
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)


def die_with(owner: int, is_main_thread: bool) -> None:
    """Makes this process and its group end when the owner does, however that ends."""
    if sys.platform == "linux" and is_main_thread:
        # Also ends native code that never lets Python run. It follows the thread that started the process, which
        # must therefore be the one that lives as long as the owner.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(_OWNER_CHECK_S)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
