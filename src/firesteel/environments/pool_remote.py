"""An environment that lives in a worker of a pool, and what a pool knows of episodes, calls and workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from firesteel.environments.base import Environment
from firesteel.environments.fork import History
from firesteel.environments.pool_worker import Worker
from firesteel.errors import EnvironmentFailed, TaskError
from firesteel.types import ExpertStep, Observation, StepResult, Task

if TYPE_CHECKING:
    from firesteel.environments.pool import EnvironmentPool


@dataclass(slots=True)
class Place:
    """Where one worker after the other works. `start` counts them; None where none is running."""

    index: int
    worker: Worker | None = None
    start: int = 0
    is_ready: bool = False
    failures: int = 0
    deadline: float = 0.0
    queue: deque[Call] = field(default_factory=deque)
    current: Call | None = None
    num_episodes: int = 0


@dataclass(slots=True)
class Episode:
    """An episode as its owner knows it. It is in the worker whose number is `start`, or in none (-1)."""

    number: int
    place: Place
    start: int = -1
    history: History | None = None
    broken: str = ""


@dataclass(slots=True)
class Call:
    """Something asked of a worker. `what` names it in messages."""

    method: str
    episode: Episode
    arguments: tuple[Any, ...]
    what: str
    child: Episode | None = None
    num_lost: int = 0
    is_restoring: bool = False
    is_done: bool = False
    value: Any = None
    error: Exception | None = None


class RemoteEnvironment(Environment):
    """An environment in a worker of a pool. `expect` lets the worker begin before the result is asked for."""

    def __init__(self, pool: EnvironmentPool, episode: Episode | None = None) -> None:
        self._pool = pool
        self._episode = episode or pool.open_episode()
        self._expected: deque[Call] = deque()
        self._is_open = True
        self._name = "an environment that was never reset"

    @property
    def fork_rung(self) -> str:  # type: ignore[override]  # known only when a worker has said it
        """The rung of the environment in the worker."""
        return self._pool.fork_rung

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """Refuses: take tasks from the class of the environments that the pool makes."""
        raise TaskError("an environment of a pool has no tasks of its own; take them from the class that the pool runs")

    def reset(self, task: Task, *, seed: int) -> Observation:
        observation, self.goal = self._call("reset", task, seed)
        return observation

    def step(self, action: str) -> StepResult:
        return self._call("step", action)

    def fork(self) -> Environment:
        """A fork in the same worker, made by the environment's own rung."""
        child, origin = self._call("fork")
        environment = RemoteEnvironment(self._pool, child)
        environment.goal, environment.origin, environment._name = self.goal, origin, self._name
        return environment

    def fresh(self) -> Environment:
        """Another environment of the same pool."""
        return RemoteEnvironment(self._pool)

    def expert(self) -> ExpertStep | None:
        return self._call("expert")

    def expect(self, call: str, *arguments: Any) -> None:
        """Sends the call now; the same call of the method later takes its result."""
        self._expected.append(self._begin(call, *arguments))

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self._pool.is_open:
            self._call("close")

    def _begin(self, method: str, *arguments: Any) -> Call:
        if method == "reset":
            self._name = f"task '{arguments[0].id}'"
        what = f"{method} {arguments[0]!r:.200}" if method == "step" else method
        call = Call(method, self._episode, arguments, f"{what} of {self._name}")
        if method == "fork":
            call.child = self._pool.open_episode(self._episode.place)
            call.arguments = (call.child.number,)
        return self._pool.submit(call)

    def _call(self, method: str, *arguments: Any) -> Any:
        while self._expected:
            call = self._expected.popleft()
            if call.method == method and (method == "fork" or call.arguments == arguments):
                break
            # Somebody changed their mind. What was begun has happened in the worker, and cannot be undone there.
            with suppress(EnvironmentFailed):
                self._pool.wait(call)
                if call.child is not None:
                    RemoteEnvironment(self._pool, call.child).close()
        else:
            call = self._begin(method, *arguments)
        value = self._pool.wait(call)
        return (call.child, value) if method == "fork" else value
