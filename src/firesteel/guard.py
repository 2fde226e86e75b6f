"""The one boundary between the library and environment code: whatever goes wrong inside becomes `EnvironmentFailed`."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from firesteel.errors import (
    CannotFork,
    ConfigError,
    EnvironmentFailed,
    MissingDependency,
    StepTimeout,
    TaskError,
)

SETUP_MISTAKES = (CannotFork, ConfigError, TaskError, MissingDependency)

_AGAIN_S = 1.0
"""How long after a time-out that the environment caught the next one comes."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Late(BaseException):
    """A second time-out, which `except Exception` does not catch."""


def readable(text: str) -> str:
    """The text with every lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def text_of(error: BaseException) -> str:
    """The text of an error, even of one whose `__str__` raises."""
    try:
        return readable(str(error))
    except (Exception, SystemExit):  # boundary: a user's class may raise anything
        return "(its __str__ raises, so its text cannot be shown)"


def told(error: BaseException) -> str:
    """An error as "Type: text", or "Type" where it has no text."""
    return ": ".join(filter(None, (type(error).__name__, text_of(error))))


def shown(value: object, width: int = 200) -> str:
    """The beginning of a value's `repr`, even of one that cannot be shown."""
    try:
        return readable(repr(value))[:width]
    except (Exception, SystemExit):  # boundary: as in `text_of`
        return "(its __repr__ raises)"


def cause(error: BaseException) -> BaseException | None:
    """What to raise another error from: not a `StopIteration`, which contextlib then raises in that error's place."""
    return None if isinstance(error, StopIteration) else error


@contextmanager
def guarded(what: str, timeout_s: float) -> Iterator[None]:
    """Runs environment code: exceptions become `EnvironmentFailed`, too long a time `StepTimeout`, both naming `what`.

    `SystemExit` counts as one, or `sys.exit` in an environment would end the run as if it were done; Ctrl-C does not.
    `SETUP_MISTAKES` pass, since another episode would only repeat them. The time-out interrupts Python code in the
    main thread (by an interval timer), and comes again where the environment catches it; a call that was late has
    failed even if it returns. Native code that never returns to Python needs a process of its own to be stopped.
    """
    armed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    late = f"{what}: no answer after {timeout_s:g} s; raise environment.step_timeout_s if it is just slow"
    num_expired, inside = 0, True

    def expire(signum: int, frame: FrameType | None) -> None:
        nonlocal num_expired
        num_expired += 1
        if inside:
            raise StepTimeout(late) if num_expired == 1 else _Late

    previous = signal.signal(signal.SIGALRM, expire) if armed else None
    try:
        if armed:
            signal.setitimer(signal.ITIMER_REAL, timeout_s, min(timeout_s, _AGAIN_S))
        yield
        inside = False
        if num_expired:
            raise StepTimeout(late)
    except _Late:
        raise StepTimeout(late) from None
    except EnvironmentFailed:
        raise
    except SETUP_MISTAKES as error:
        inside = False
        if num_expired:
            raise StepTimeout(late) from error
        raise
    except (Exception, SystemExit) as error:  # boundary: an environment may raise anything, and may call sys.exit
        inside = False
        raise EnvironmentFailed(f"{what}: {told(error)}") from cause(error)
    finally:
        inside = False
        if armed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
