"""The ScienceWorld simulator: one Java process for all the worlds of this process.

The simulator keeps its random generator, its counter of object ids and its simplifications in globals
(Scala objects). Two worlds in one Java process would disturb each other through them: a bee in one world
draws from the random stream of the other, a task loaded with other simplifications changes the actions of
all. `World` therefore keeps its own copy and puts it in place whenever the turn passes to another world, so
that every world runs exactly as if it were alone.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from typing import Any, NamedTuple

from firesteel.environments.scienceworld.java import JavaProcess, Reference
from firesteel.errors import EnvironmentFailed

GOLD_TIMEOUT_S = 900.0
"""Generating a gold path takes up to 20 s of computing; the limit leaves room for a busy machine."""

MAX_IDLE_WORLDS = 8
"""Closed worlds kept for reuse, since a new one costs memory (10-20 MB) until Java collects the old."""


_SEED_SCRAMBLE = 0x5DEECE66D
"""java.util.Random.setSeed(s) sets the state to s xor this (its documented behaviour)."""


class _Globals(NamedTuple):
    """The simulator's global state that belongs to the world whose turn it is."""

    random_state: int
    last_object_id: int
    simplifications: str


class Simulator:
    """A Java process and what is needed to share it among worlds."""

    def __init__(self, heap_mb: int) -> None:
        self.process = JavaProcess(heap_mb)
        self.lock = threading.RLock()
        self.turn: weakref.ref[World] | None = None
        self._idle: deque[Reference] = deque()
        self._random = self._read_static_random()
        self._random_state = self._open_random_state()

    def _read_static_random(self) -> Reference:
        """The java.util.Random behind the simulator's global random generator."""
        holder = self.process.call("z:java.lang.Class", "forName", "scala.util.Random$")
        module = self.process.call(self.process.call(holder, "getField", "MODULE$"), "get", None)
        return self.process.call(module, "self")

    def _open_random_state(self) -> Reference:
        """The private field of java.util.Random that holds its whole state: 48 bits."""
        holder = self.process.call("z:java.lang.Class", "forName", "java.util.Random")
        field = self.process.call(holder, "getDeclaredField", "seed")
        self.process.call(field, "setAccessible", True)
        return field

    def take_idle(self) -> Reference:
        """An interface of a closed world, or a new one."""
        while len(self._idle) > MAX_IDLE_WORLDS:
            self.process.drop(self._idle.popleft())
        try:
            return self._idle.pop()
        except IndexError:
            return self.process.construct("scienceworld.runtime.pythonapi.PythonInterface")

    def give_back(self, interface: Reference) -> None:
        """Keeps the interface of a closed world for reuse; safe from finalizers."""
        self._idle.append(interface)

    def read_globals(self) -> _Globals:
        return _Globals(
            self.process.call(self._random_state, "get", self._random),
            self.process.call("z:util.UniqueIdentifier", "count"),
            self.process.call("z:main.scala.scienceworld.runtime.SimplifierProcessor", "getSimplificationsUsed"),
        )

    def write_globals(self, wanted: _Globals, present: _Globals | None) -> None:
        self.process.call(self._random, "setSeed", wanted.random_state ^ _SEED_SCRAMBLE)
        self.process.call("z:util.UniqueIdentifier", "count_$eq", wanted.last_object_id)
        if present is None or present.simplifications != wanted.simplifications:
            processor = "z:main.scala.scienceworld.runtime.SimplifierProcessor"
            self.process.drop(self.process.call(processor, "parseSimplificationStr", wanted.simplifications))


class World:
    """One simulated world. Every method raises `StepTimeout` or `EnvironmentFailed` as `JavaProcess.call` does."""

    def __init__(self, simulator: Simulator, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._simulator = simulator
        with simulator.lock:
            self._interface = simulator.take_idle()
        self._close = weakref.finalize(self, simulator.give_back, self._interface)
        self._close.atexit = False
        self._globals: _Globals | None = None

    @property
    def is_alive(self) -> bool:
        return self._close.alive and self._simulator.process.is_alive

    def load(self, task: str, variation: int, simplifications: str, *, with_gold: bool = False) -> None:
        """Builds the world anew. The simulator keeps the old score until the first `step`."""
        timeout_s = GOLD_TIMEOUT_S if with_gold else self.timeout_s
        with self._simulator.lock:
            self._take_turn()
            complaint = self._call("load", task, variation, simplifications, with_gold, timeout_s=timeout_s)
        if complaint:
            raise EnvironmentFailed(f"the ScienceWorld simulator refused '{task}' variation {variation}: {complaint}")

    def step(self, action: str) -> str:
        """Plays one action and returns what the simulator says."""
        return self._in_turn("step", action)

    def progress(self) -> tuple[float, bool]:
        """The score (-1 after a failure, else from 0 to 1) and whether every goal is met, as of the last step."""
        with self._simulator.lock:
            return self._call("getScore"), self._call("getCompleted")

    def crash(self) -> str:
        """What the simulator raised while it played an action, or ""."""
        with self._simulator.lock:
            option = self._call("agentInterface")
            agent = self._simulator.process.call(option, "get")
            message = self._simulator.process.call(agent, "getErrorStateMessage")
            self._simulator.process.drop(option)
            self._simulator.process.drop(agent)
        return message

    def task_description(self) -> str:
        with self._simulator.lock:
            return self._call("getTaskDescription")

    def valid_actions(self) -> list[str]:
        """Every combination of a verb and visible things that does something, sorted; slow (20-80 ms)."""
        with self._simulator.lock:
            self._take_turn()
            # Naming things uniquely draws random numbers; looking must not change what happens next.
            before = self._simulator.read_globals()
            actions = self._lines("getValidActionObjectCombinations")
            self._simulator.write_globals(before, before)
        return actions

    def gold_actions(self) -> list[str]:
        """The actions that solve the task, after a `load` with `with_gold`."""
        return self._lines("getGoldActionSequence")

    def max_variations(self, task: str) -> int:
        with self._simulator.lock:
            return self._call("getTaskMaxVariations", task)

    def close(self) -> None:
        """Gives the world back for reuse. Calling it twice is fine."""
        self._close()

    def _lines(self, method: str) -> list[str]:
        with self._simulator.lock:
            strings = self._in_turn(method)
            joined = self._simulator.process.call("z:java.lang.String", "join", "\n", strings)
            self._simulator.process.drop(strings)
        return joined.split("\n") if joined else []

    def _in_turn(self, method: str, *arguments: Any) -> Any:
        with self._simulator.lock:
            self._take_turn()
            return self._call(method, *arguments)

    def _call(self, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        if not self._close.alive:
            raise EnvironmentFailed("this ScienceWorld world is closed; reset the environment to get another")
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return self._simulator.process.call(self._interface, method, *arguments, timeout_s=timeout_s)

    def _take_turn(self) -> None:
        """Puts this world's globals in place of those of the world that ran last."""
        last = self._simulator.turn() if self._simulator.turn is not None else None
        if last is self:
            return
        present = None
        if last is not None:
            present = last._globals = self._simulator.read_globals()
        if self._globals is not None:
            self._simulator.write_globals(self._globals, present)
        self._simulator.turn = weakref.ref(self)


_simulators: dict[int, Simulator] = {}
_simulators_lock = threading.Lock()


def shared_simulator(heap_mb: int) -> Simulator:
    """The simulator of this process with that heap (MB); started at the first call and again after its death."""
    with _simulators_lock:
        simulator = _simulators.get(heap_mb)
        if simulator is None or not simulator.process.is_alive:
            simulator = _simulators[heap_mb] = Simulator(heap_mb)
        return simulator


def end_simulators() -> None:
    """Ends the Java processes that this process started; they also end by themselves with their owner."""
    with _simulators_lock:
        for simulator in _simulators.values():
            simulator.process.kill()
        _simulators.clear()


def _abandon_inherited() -> None:
    """A forked child must neither talk on its parent's connection nor keep its parent's Java alive."""
    global _simulators_lock
    _simulators_lock = threading.Lock()
    for simulator in _simulators.values():
        simulator.process.abandon()
    _simulators.clear()


atexit.register(end_simulators)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_inherited)
