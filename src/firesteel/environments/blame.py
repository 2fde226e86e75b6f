"""What a user's code raises outside of episodes, told as a mistake in it, with the line."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firesteel.errors import EnvironmentFailed, FiresteelError
from firesteel.guard import cause, told

_PACKAGE = Path(__file__).parent.parent
_CALLERS = {
    *(str(_PACKAGE / name) for name in ("cli.py", "plugins.py", "policy.py", "rollout.py")),
    *(
        str(_PACKAGE / "environments" / f"{name}.py")
        for name in ("__init__", "base", "blame", "check", "contract", "fork", "pool")
    ),
}
"""Files that call a user's code: a traceback goes through them, whatever is wrong."""

_INSTALLED = tuple(f"{folder}/" for folder in (_PACKAGE, *map(sysconfig.get_path, ("purelib", "platlib"))))
_PYTHON = f"{sysconfig.get_path('stdlib')}/"


@contextmanager
def blamed(
    what: str, *, advice: str = "mend it", error_class: type[FiresteelError] = EnvironmentFailed
) -> Iterator[None]:
    """Whatever is raised inside becomes an `error_class` that says that `what` raised it, and in which line.

    `advice` is for what no line of the user's raised, as when a function does not take its arguments. Errors of
    firesteel pass, since they say what to do, and so does Ctrl-C.
    """
    try:
        yield
    except FiresteelError:
        raise
    except (Exception, SystemExit) as error:  # boundary: a user's code may raise anything, and may call sys.exit
        place = place_of(error)
        end = f" ({place}); mend it there" if place else f"; {advice}"
        raise error_class(f"{what} raised {told(error)}{end}") from cause(error)


def place_of(error: BaseException) -> str:
    """Where a user's code raised an error, or called what raised it: "FILE, line N, in NAME"; "" where nowhere.

    Lines of installed packages count only where there are none of the user's own.
    """
    frames = traceback.extract_tb(error.__traceback__)
    rank = min((_rank(frame.filename) for frame in frames), default=2)
    if rank == 2:
        return ""
    frame = next(frame for frame in reversed(frames) if _rank(frame.filename) == rank)
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}"


def _rank(filename: str) -> int:
    """0 for the user's own files, 1 for installed packages, 2 for what is never at fault."""
    if filename.startswith("<") or filename in _CALLERS:
        return 2
    if filename.startswith(_INSTALLED):
        return 1
    return 2 if filename.startswith(_PYTHON) else 0
