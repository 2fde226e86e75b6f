"""The ScienceWorld simulator: one Java process for many worlds of this process.

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
from itertools import chain
from typing import Any, NamedTuple

from firesteel.environments.scienceworld.java import JavaProcess, Reference
from firesteel.errors import EnvironmentFailed

GOLD_TIMEOUT_S = 900.0
"""Generating a gold path takes up to 20 s of computing; the limit leaves room for a busy machine."""

HEAP_PER_WORLD_MB = 16
"""What a world may take of the Java heap; measured are 11 MB at its start."""

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
        self._capacity = max(1, heap_mb // HEAP_PER_WORLD_MB)
        self._num_interfaces = 0
        self._idle: deque[Reference] = deque()
        try:
            self._random = self._read_static_random()
            self._random_state = self._open_random_state()
        except EnvironmentFailed:
            self.process.kill()
            raise

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

    @property
    def has_room(self) -> bool:
        """Whether another world can be opened without risk to the heap."""
        return bool(self._idle) or self._num_interfaces < self._capacity

    def take_interface(self) -> Reference:
        """The interface of a closed world, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            self._num_interfaces += 1
            return self.process.construct("scienceworld.runtime.pythonapi.PythonInterface")

    def give_back(self, interface: Reference) -> None:
        """Keeps the interface of a closed world for the next; safe from finalizers."""
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
            self._interface = simulator.take_interface()
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
        """Puts this world's globals in place of those of the world that ran last.

        An exception half-way (a signal's, say) leaves nobody's turn, with both worlds' globals kept.
        """
        simulator = self._simulator
        last = simulator.turn() if simulator.turn is not None else None
        if last is self:
            return
        present = None
        if last is not None:
            present = last._globals = simulator.read_globals()
        simulator.turn = None
        if self._globals is not None:
            simulator.write_globals(self._globals, present)
        simulator.turn = weakref.ref(self)


_simulators: dict[int, list[Simulator]] = {}
_simulators_lock = threading.Lock()


def open_world(heap_mb: int, timeout_s: float) -> World:
    """A world in a Java process of this process with that heap (MB).

    The first call starts a Java process; so does a call that finds all of them dead or full.
    """
    with _simulators_lock:
        known = _simulators.get(heap_mb, [])
        for dead in (one for one in known if not one.process.is_alive):
            dead.process.kill()  # it died by itself: close what this side holds
        simulators = [one for one in known if one.process.is_alive]
        simulator = next((one for one in simulators if one.has_room), None)
        if simulator is None:
            simulator = Simulator(heap_mb)
            simulators.append(simulator)
        _simulators[heap_mb] = simulators
        return World(simulator, timeout_s)


def process_ids() -> list[int]:
    """The Java processes that this process runs."""
    with _simulators_lock:
        simulators = chain.from_iterable(_simulators.values())
        return [simulator.process.pid for simulator in simulators if simulator.process.is_alive]


def end_simulators() -> None:
    """Ends the Java processes that this process started; they also end by themselves with their owner."""
    with _simulators_lock:
        for simulator in chain.from_iterable(_simulators.values()):
            simulator.process.kill()
        _simulators.clear()


def _abandon_inherited() -> None:
    """A forked child must neither talk on its parent's connection nor keep its parent's Java alive."""
    global _simulators_lock
    _simulators_lock = threading.Lock()
    for simulator in chain.from_iterable(_simulators.values()):
        simulator.process.abandon()
    _simulators.clear()


atexit.register(end_simulators)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_inherited)
