"""Which option of a question a tool's output speaks for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

RELATIVE_TOLERANCE = 2e-3

_NUMBER = re.compile(r"(?<![\w.:-])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w:]|-\d|\.\d)")
_ANSWER = re.compile(r"\banswer = (\S+?)(?:,|$)")


def match_option(output: str, options: Sequence[str]) -> int | None:
    """The one option that an output names; None where it names none, or several.

    Numbers agree within 0.2% (whole numbers exactly); other options must stand in the output word for word. A value
    after "answer =" or else after the last "=" counts before the rest.
    """
    if output.startswith("error:"):
        return None
    named = _ANSWER.search(output)
    parts = [named[1]] if named else []
    parts += [output.rpartition("=")[2], output] if "=" in output else [output]
    for part in parts:
        found = [index for index, option in enumerate(options) if _names(part, option)]
        if len(found) == 1:
            return found[0]
    return None


def vote(outputs: Iterable[str], options: Sequence[str]) -> int | None:
    """The option that most outputs name, the earliest-named one among equals; None where none names any."""
    named = [match for match in (match_option(output, options) for output in outputs) if match is not None]
    return Counter(named).most_common(1)[0][0] if named else None


def _names(output: str, option: str) -> bool:
    value = _value(option)
    if value is None:
        return re.search(rf"(?<!\w){re.escape(option.lower())}(?!\w)", output.lower()) is not None
    numbers = (float(text) for text in _NUMBER.findall(output))
    if value.is_integer() and "e" not in option.lower():
        return any(abs(number - value) < 1e-6 for number in numbers)
    return any(math.isclose(number, value, rel_tol=RELATIVE_TOLERANCE) for number in numbers)


def _value(option: str) -> float | None:
    return float(option) if _NUMBER.fullmatch(option) else None
