"""The one boundary between the library and environment code: whatever goes wrong inside becomes `EnvironmentFailed`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from firesteel.errors import (
    CannotFork,
    ConfigError,
    EnvironmentFailed,
    MissingDependency,
    StepTimeout,
    TaskError,
)

SETUP_MISTAKES = (CannotFork, ConfigError, TaskError, MissingDependency)


Kind = TypeVar("Kind")


def checked(kind: type[Kind], value: object, call: str) -> Kind:
    """The value that a call returned; raises `TypeError` where it is of another kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{call} returned {value!r:.100}, wanted {kind.__name__}")
    return value


@contextmanager
def guarded(what: str, timeout_s: float) -> Iterator[None]:
    """Runs environment code: exceptions become `EnvironmentFailed`, too long a time `StepTimeout`, both naming `what`.

    `SystemExit` counts as one, or `sys.exit` in an environment would end the run as if it were done; Ctrl-C does not.
    `SETUP_MISTAKES` pass, since another episode would only repeat them. The time-out interrupts Python code in the
    main thread (by an interval timer); native code that never returns to Python needs a process of its own to be
    stopped.
    """
    armed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")

    def expire(signum: int, frame: FrameType | None) -> None:
        advice = "raise environment.step_timeout_s if it is just slow"
        raise StepTimeout(f"{what}: no answer after {timeout_s:g} s; {advice}")

    previous = signal.signal(signal.SIGALRM, expire) if armed else None
    try:
        if armed:
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
        yield
    except (EnvironmentFailed, *SETUP_MISTAKES):
        raise
    except (Exception, SystemExit) as error:  # boundary: an environment may raise anything, and may call sys.exit
        raise EnvironmentFailed(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        if armed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
