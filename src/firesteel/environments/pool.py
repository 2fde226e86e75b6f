"""Environments in worker processes, with time limits that hold whatever the environment does.

An `EnvironmentPool` has a number of workers, each with several episodes. A worker is given one call at a time. One
that gives no answer in time, dies, or answers garbage is killed and replaced; its episodes are restored by checked
replay when they are next used, or fail with the reason. A pool belongs to one thread.
"""

from __future__ import annotations

import atexit
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from firesteel import errors
from firesteel.config import EnvironmentConfig
from firesteel.environments import environment_class, make_environment
from firesteel.environments.base import Environment
from firesteel.environments.fork import History
from firesteel.environments.pool_remote import Call, Episode, Place, RemoteEnvironment
from firesteel.environments.pool_worker import Backend, Factory, LocalBackend, WorkerLost
from firesteel.errors import ConfigError, EnvironmentFailed, StepTimeout
from firesteel.guard import SETUP_MISTAKES
from firesteel.types import StepResult

START_ATTEMPTS = 3
"""So many workers in a row may fail to start in one place before the pool gives up."""

_LONGEST_WAIT_S = 1.0


@dataclass(slots=True)
class PoolStats:
    """What a pool went through. Seconds are wall time; those of steps and forks are measured in the workers."""

    steps: int = 0
    step_s: float = 0.0
    forks: int = 0
    fork_s: float = 0.0
    waited_s: float = 0.0
    calls: int = 0
    queued: int = 0
    longest_queue: int = 0
    starts: int = 0
    restarts: int = 0
    timeouts: int = 0
    restored: int = 0
    failed: int = 0

    def metrics(self) -> dict[str, float]:
        """Figures for a log; wall-clock ones belong into `timings.jsonl`."""
        return {
            "pool/steps_per_second": self.steps / max(self.waited_s, 1e-9),
            "pool/step_ms": 1000 * self.step_s / max(self.steps, 1),
            "pool/fork_ms": 1000 * self.fork_s / max(self.forks, 1),
            "pool/queue": self.queued / max(self.calls, 1),
            "pool/longest_queue": float(self.longest_queue),
            "pool/restarts": float(self.restarts),
            "pool/timeouts": float(self.timeouts),
            "pool/restored": float(self.restored),
            "pool/failed": float(self.failed),
        }


class EnvironmentPool:
    """Worker processes that play episodes.

    Args:
        factory: makes one environment; importable by the workers (a class or function of a module, or a
            `functools.partial` of one), not defined in the script that is being run.
        workers: how many processes.
        step_timeout_s: the longest time for one reset, step or fork; then the worker is killed.
        start_timeout_s: the longest time until a new worker has made its first environment.
        queue_limit: calls that may wait at once; `expect` waits until there is room.
        retries: how often one call is tried again after a worker died under it (a time-out is never tried again).
        backend: where the workers run.

    An episode gives the same results in any worker: all have the same order of sets, and the global random generators
    are seeded before every call from the task, the seed and the number of the step.

    Raises:
        ConfigError: a number that makes no sense, a factory that workers cannot import, or workers that do not start
            (at the first call).
    """

    def __init__(
        self,
        factory: Factory,
        *,
        workers: int = 2,
        step_timeout_s: float = 60.0,
        start_timeout_s: float = 120.0,
        queue_limit: int = 1024,
        retries: int = 1,
        backend: Backend | None = None,
    ) -> None:
        if workers < 1 or queue_limit < 1 or retries < 0:
            raise ConfigError(
                f"environment pool: workers ({workers}) and queue_limit ({queue_limit}) must be at least 1, "
                f"retries ({retries}) at least 0"
            )
        self.stats = PoolStats()
        self._factory = _pickled(factory)
        self._step_timeout_s, self._start_timeout_s = step_timeout_s, start_timeout_s
        self._queue_limit, self._retries = queue_limit, retries
        self._backend = backend or LocalBackend()
        self._owner = os.getpid()
        self.is_open = True
        self._num_episodes = 0
        self._num_waiting = 0
        self._rung: str | None = None
        self._places = [Place(index) for index in range(workers)]
        atexit.register(self.close)
        for place in self._places:
            self._start(place)

    def make(self) -> RemoteEnvironment:
        """An environment in the worker with the fewest episodes (the first of them)."""
        return RemoteEnvironment(self)

    def step_many(self, steps: Sequence[tuple[Environment, str]]) -> list[StepResult | EnvironmentFailed]:
        """Plays one action in each of several environments at once; a failed one has its error in its place."""
        for environment, action in steps:
            environment.expect("step", action)
        results: list[StepResult | EnvironmentFailed] = []
        for environment, action in steps:
            try:
                results.append(environment.step(action))
            except EnvironmentFailed as error:
                results.append(error)
        return results

    def close(self) -> None:
        """Closes all environments and ends all workers. Calling it twice is fine."""
        if os.getpid() != self._owner or not self.is_open:
            return
        self.is_open = False
        atexit.unregister(self.close)
        for place in self._places:
            if place.worker is not None and (place.current is not None or not place.is_ready):
                place.worker.kill()
        for place in self._places:
            if place.worker is not None:
                place.worker.leave()
            place.worker = None

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def fork_rung(self) -> str:
        """The rung of the pool's environments; the first use waits for a worker to say it."""
        while self._rung is None:
            self._pump()
        return self._rung

    # --- calls ------------------------------------------------------------------------------------------------

    def open_episode(self, place: Place | None = None) -> Episode:
        if place is None:
            place = min(self._places, key=lambda each: each.num_episodes)
        place.num_episodes += 1
        self._num_episodes += 1
        return Episode(self._num_episodes, place)

    def submit(self, call: Call) -> Call:
        """Puts a call in its worker's queue; waits where too many wait already."""
        if not self.is_open or os.getpid() != self._owner:
            raise EnvironmentFailed(f"{call.what}: the environment pool is closed or belongs to another process")
        while self._num_waiting >= self._queue_limit:
            self._pump()
        self._num_waiting += 1
        self.stats.calls += 1
        self.stats.queued += self._num_waiting
        self.stats.longest_queue = max(self.stats.longest_queue, self._num_waiting)
        call.episode.place.queue.append(call)
        self._feed(call.episode.place)
        return call

    def wait(self, call: Call) -> Any:
        """The value of a call; raises its error."""
        begin = time.perf_counter()
        while not call.is_done:
            self._pump()
        self.stats.waited_s += time.perf_counter() - begin
        if call.error is not None:
            raise call.error
        return call.value

    def _finish(self, call: Call, *, value: Any = None, error: Exception | None = None) -> None:
        call.value, call.error, call.is_done = value, error, True
        self._num_waiting -= 1
        self.stats.failed += error is not None
        if call.method == "close" or (call.method == "fork" and error is not None):
            call.episode.place.num_episodes -= 1

    # --- workers ----------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Lets everything go on by one event: an answer, a death, or a deadline."""
        if not self.is_open:
            raise EnvironmentFailed("the environment pool is closed")
        for place in self._places:
            self._feed(place)
        busy = [place for place in self._places if place.worker is not None and (place.current or not place.is_ready)]
        until = min((place.deadline for place in busy), default=0.0) - time.monotonic()
        workers = [place.worker for place in busy if place.worker is not None]
        self._backend.wait(workers, min(max(until, 0.0), _LONGEST_WAIT_S))
        for place in busy:
            self._listen(place)

    def _listen(self, place: Place) -> None:
        """Takes what a worker has said; one that is late is killed."""
        worker = place.worker
        assert worker is not None
        try:
            messages = worker.receive()
        except WorkerLost as error:
            self._lose(place, str(error))
            return
        for message in messages:
            if place.worker is worker:
                self._take(place, message)
        if not messages and time.monotonic() >= place.deadline:
            self._expire(place)
        elif place.worker is worker:
            self._feed(place)

    def _start(self, place: Place) -> None:
        place.start += 1
        place.is_ready = False
        place.worker = self._backend.start(self._factory)
        place.deadline = time.monotonic() + self._start_timeout_s
        self.stats.starts += 1
        self.stats.restarts += place.start > 1

    def _feed(self, place: Place) -> None:
        """Gives an idle worker its next call; one whose episode is not there is restored first."""
        if place.worker is None:
            self._start(place)
        while place.is_ready and place.current is None and place.queue:
            call = place.queue.popleft()
            refusal = self._refusal(call)
            if refusal:
                self._finish(call, error=EnvironmentFailed(f"{call.what}: {refusal}"))
            elif call.method == "close" and call.episode.start != place.start:
                self._finish(call)
            else:
                self._send(place, call)

    def _refusal(self, call: Call) -> str:
        """Why a call cannot be made at all, or ""."""
        episode = call.episode
        if call.method in ("reset", "close"):
            return ""
        if episode.history is None:
            return episode.broken or "it was not reset; call reset first"
        if episode.start != episode.place.start and not episode.broken and self._rung == "none":
            episode.broken = "its worker died, and an environment whose fork_rung is 'none' cannot be restored"
        return episode.broken

    def _send(self, place: Place, call: Call) -> None:
        episode, history = call.episode, call.episode.history
        call.is_restoring = call.method not in ("reset", "close") and episode.start != place.start
        limit_s = self._step_timeout_s
        message: tuple[Any, ...] = (episode.number, call.method, (episode.number, *call.arguments))
        if call.is_restoring:
            assert history is not None
            limit_s *= 1 + len(history.actions)
            message = (episode.number, "restore", (episode.number, history, f"{call.what}, to restore it"))
        place.current, place.deadline = call, time.monotonic() + limit_s
        assert place.worker is not None
        try:
            place.worker.send(message)
        except WorkerLost as error:
            self._lose(place, str(error))

    def _take(self, place: Place, message: Any) -> None:
        """One message of a worker: that it is ready, that it cannot be, or an answer."""
        call = place.current
        if not place.is_ready and message[0] == "ready":
            place.is_ready, place.failures = True, 0
            _, _, self._rung = message
        elif not place.is_ready and message[0] == "failed":
            self._give_up(*message[1:])
        elif call is not None and message[0] == call.episode.number:
            place.current = None
            self._answer(place, call, *message[1:])
        else:
            self._lose(place, f"answered what nobody asked ({message!r:.100})")

    def _answer(self, place: Place, call: Call, seconds: float, is_fine: bool, value: Any) -> None:
        episode = call.episode
        if not is_fine:
            if call.is_restoring:
                episode.broken = f"its worker died, and it cannot be restored: {value[1]}"
            self._finish(call, error=_error(value[0], value[1], call.what))
        elif call.is_restoring:
            episode.start = place.start
            self.stats.restored += 1
            self._send(place, call)
        else:
            self._note(place, call, seconds, value)
            self._finish(call, value=value)

    def _note(self, place: Place, call: Call, seconds: float, value: Any) -> None:
        """Keeps what an answer changes: where the episode is, and its history."""
        episode = call.episode
        if call.method == "reset":
            episode.start, episode.broken = place.start, ""
            episode.history = History(call.arguments[0], call.arguments[1], [], [value[0]])
        elif call.method == "step":
            assert episode.history is not None
            episode.history.add(call.arguments[0], value.observation)
            self.stats.steps += 1
            self.stats.step_s += seconds
        elif call.method == "fork":
            assert episode.history is not None and call.child is not None
            call.child.start, call.child.history = place.start, episode.history.copy()
            self.stats.forks += 1
            self.stats.fork_s += value.seconds

    def _expire(self, place: Place) -> None:
        """A worker that is late: it may be busy in native code, so nothing short of killing it helps."""
        self.stats.timeouts += 1
        call, place.current = place.current, None
        if call is None:
            self._lose(place, f"was not ready within {self._start_timeout_s:g} s (environment.pool.start_timeout_s)")
            return
        reason = f"no answer after {self._step_timeout_s:g} s; raise environment.step_timeout_s if it is just slow"
        if call.is_restoring:
            call.episode.broken = f"its worker died, and restoring it gave {reason}"
        elif call.method in ("reset", "step"):
            call.episode.broken = reason
        self._lose(place, "")
        self._finish(call, error=StepTimeout(f"{call.what}: {reason}"))

    def _lose(self, place: Place, reason: str) -> None:
        """Ends a worker. The call it was given is tried again in the next one, or fails; the other episodes that it
        held are restored when they are used."""
        assert place.worker is not None
        place.worker.kill()
        place.worker = None
        call, place.current = place.current, None
        if not place.is_ready:
            place.failures += 1
            if place.failures >= START_ATTEMPTS:
                self._give_up("", f"{START_ATTEMPTS} workers in a row failed to start; the last one {reason}")
        place.is_ready = False
        if call is None:
            return
        call.num_lost += 1
        if call.method != "close" and call.num_lost <= self._retries:
            place.queue.appendleft(call)
            return
        call.episode.broken = call.episode.broken or f"its worker {reason}"
        times = "" if call.num_lost == 1 else f" ({call.num_lost} times)"
        self._finish(call, error=EnvironmentFailed(f"{call.what}: the worker {reason}{times}"))

    def _give_up(self, kind: str, text: str) -> None:
        """No worker can be started: a mistake in the setup, which no other episode would escape."""
        self.close()
        cls = getattr(errors, kind, ConfigError) if kind else ConfigError
        raise cls(text) if issubclass(cls, SETUP_MISTAKES) and kind else ConfigError(f"environment pool: {text}")


def _pickled(factory: Factory) -> bytes:
    """The factory as bytes; raises `ConfigError` where a worker could not import it."""
    try:
        content = pickle.dumps(factory)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"environment pool: workers cannot import {factory!r} ({error}); give a class or function of a module"
        ) from error
    if b"__main__" in content:
        raise ConfigError(
            f"environment pool: {factory!r} is defined in the script that is being run, which workers do not run; "
            "put it into a module of its own"
        )
    return content


def _error(kind: str, text: str, what: str) -> Exception:
    """The error of a worker: of the same class where it is one of firesteel's, else an `EnvironmentFailed`."""
    cls = getattr(errors, kind, None) if kind else None
    return EnvironmentFailed(f"{what}: {text}") if cls is None else cls(text)


_shared: dict[str, EnvironmentPool] = {}


def environment_maker(config: EnvironmentConfig) -> Callable[[], Environment]:
    """What makes the configured environment: its class, or a pool of `pool.workers` that lives as long as the process.

    The same settings give the same pool, so that training and evaluation share its workers.
    """
    settings = config.pool
    if not settings.workers:
        cls = environment_class(config.name, config.options)
        return lambda: cls(**config.options)
    key = config.model_dump_json(include={"name", "options", "step_timeout_s", "pool"})
    pool = _shared.get(key)
    if pool is None or not pool.is_open:
        pool = _shared[key] = EnvironmentPool(
            partial(make_environment, config.name, dict(config.options)), workers=settings.workers,
            step_timeout_s=config.step_timeout_s, start_timeout_s=settings.start_timeout_s,
            queue_limit=settings.queue_limit, retries=settings.retries,
        )  # fmt: skip
    return pool.make


def pool_metrics() -> dict[str, float]:
    """The figures of the pools that `environment_maker` opened; with several, of the one opened last."""
    return next((pool.stats.metrics() for pool in reversed(_shared.values()) if pool.is_open), {})
