"""Growing trees in several processes, each the trees of some of the tasks.

The other processes are forks of this one: they have its model, its environments' data and its weights of this moment
without a copy being made, grow their trees on one core each, send them back and end. A tree depends on names and seeds
alone (`rollout`), so that it matters little who grows it: only rounding may differ, since batches are others.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import torch

from firesteel.branching import BranchCriterion
from firesteel.config import Config
from firesteel.environments import environment_class
from firesteel.tree import Tree
from firesteel.types import Task

if TYPE_CHECKING:
    from firesteel.rollout import Grower

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)

Named = Sequence[tuple[str, Task]]
"""Tasks with what their trees are called in seeds."""


def num_processes(config: Config, criterion: BranchCriterion, device: torch.device) -> int:
    """In how many processes trees are grown: `rollout.processes` on Linux without an accelerator, elsewhere one.

    One, too, with a warning, where trees of this environment or with this criterion cannot be grown apart.
    """
    wanted = config.rollout.processes
    if wanted == 1 or sys.platform != "linux" or device.type != "cpu":
        return 1
    name, reason = config.environment.name, ""
    if config.environment.pool.workers:
        reason = "environment.pool.workers already plays the episodes in other processes"
    elif not environment_class(name).is_self_contained:
        reason = f"environment '{name}' holds other processes or connections, which a fork would share"
    elif criterion.state_dict():
        reason = f"criterion '{config.rollout.criterion}' counts over all trees"
    if not reason:
        return wanted
    warnings.warn(f"rollout.processes is {wanted}, but {reason}: one it is", RuntimeWarning, stacklevel=2)
    return 1


def grow_apart(grower: Grower, named: Named, processes: int, grow: Callable[[Grower, Named], list[Tree]]) -> list[Tree]:
    """The trees of all tasks in their order, of which this process grows the first part.

    A part whose process fails or is killed is grown again here, so that nothing is lost, and a mistake is raised here.
    """
    parts = split(named, processes)
    with one_thread():
        others = [Fork(partial(_grow_part, grower, part, grow)) for part in parts[1:]]
        try:
            trees = grow(grower, parts[0])
            for part, other in zip(parts[1:], others, strict=True):
                result = other.result()
                if result is None:
                    warnings.warn("a process that grew trees ended early; its part is grown again", stacklevel=2)
                    trees += grow(grower, part)
                    continue
                grown, counts = result
                trees += grown
                for name, count in counts.items():
                    setattr(grower.stats, name, getattr(grower.stats, name) + count)
        finally:
            for other in others:
                other.end()
    return trees


def split(named: Named, parts: int) -> list[Named]:
    """Neighbouring tasks in parts of sizes that differ by one at most, none of them empty."""
    parts = max(1, min(parts, len(named)))
    ends = [round(len(named) * part / parts) for part in range(parts + 1)]
    return [named[start:end] for start, end in itertools.pairwise(ends)]


def _grow_part(
    grower: Grower, part: Named, grow: Callable[[Grower, Named], list[Tree]]
) -> tuple[list[Tree], dict[str, float]]:
    """In the other process: the trees of a part, and what growing them counted."""
    grower.stats = type(grower.stats)()
    return grow(grower, part), dataclasses.asdict(grower.stats)


class Fork:
    """A copy of this process that does some work and sends back what comes out of it.

    It has a process group of its own: whatever the work has started ends with it.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._receiver, sender = Pipe(duplex=False)
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 warns where other threads run, as the one that draws progress bars: the copy needs none.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            _do_and_exit(work, sender, parent)
        sender.close()
        with suppress(OSError):  # whoever is first, the copy or we
            os.setpgid(self._pid, self._pid)
        self._is_over = False

    def result(self) -> Any:
        """What the work returned, as soon as it is done; None if it did not come to its end."""
        ended = os.pidfd_open(self._pid)
        try:
            # What the work has started may hold the pipe open after it: the end of the process counts, too.
            wait([self._receiver, ended])
            return pickle.loads(self._receiver.recv_bytes()) if self._receiver.poll() else None
        except Exception:  # boundary: it was killed while it sent, or an object of the user's cannot be read back
            return None
        finally:
            os.close(ended)
            self.end()

    def end(self) -> None:
        """Stops it, and what it has started. Calling it twice is fine."""
        if not self._is_over:
            with suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._receiver.close()
            self._is_over = True


def _do_and_exit(work: Callable[[], Any], sender: Connection, parent: int) -> None:
    """What the copy does. It never returns, and ends with its parent: nothing else may hold the run's lock."""
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() == parent:
            sender.send_bytes(pickle.dumps(work(), protocol=pickle.HIGHEST_PROTOCOL))
    finally:
        os._exit(0)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's a process; as many as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
