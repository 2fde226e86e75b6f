"""What a careful but not infallible writer would ask each tool about a question of `tool_questions`.

A query is written from what the question says, never from its answer. With a probability that differs from tool to
tool (`SLIPS`) it holds a slip: a digit, a letter or a word is wrong. So several tools can answer many questions, and
none of them always.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from firesteel.environments.question_rows import Question
from firesteel.environments.tool_questions.generate import SOURCE

SLIPS: dict[str, float] = {
    "calculator": 0.15, "dates": 0.15, "dictionary": 0.1, "logic": 0.25, "python": 0.2, "reference": 0.15,
    "search": 0.2, "units": 0.15,
}  # fmt: skip
DEFAULT_SLIP = 0.2

Parameters = Mapping[str, Any]


def write_query(
    question: Question, tool: str, rng: random.Random, *, seen: Sequence[str] = (), slips: bool = True
) -> str:
    """The query for one tool: the category's own, or else a plain one that seldom helps; perhaps with a slip.

    `seen` are the observations so far: what one tool found, another may compute with.
    """
    own = WRITERS.get(question.category, {}) if question.src == SOURCE else {}
    writer = own.get(tool)
    parameters = {**question.parameters, "seen": list(seen)}
    query = (writer(parameters) if writer is not None else None) or plain_query(question, tool)
    return slip(query, rng) if slips and rng.random() < SLIPS.get(tool, DEFAULT_SLIP) else query


def plain_query(question: Question, tool: str) -> str:
    """A query from the question's text alone, for any question and tool."""
    text = question.question
    if tool == "dictionary":
        longest = max(re.findall(r"[A-Za-z]+", text) or ["question"], key=len)
        return longest.lower()
    if tool in ("calculator", "python"):
        numbers = re.findall(r"\d+(?:\.\d+)?", text)[:3]
        joined = " + ".join(numbers) or "0"
        return f"print({joined})" if tool == "python" else joined
    return " ".join(text.split())[:120]


def slip(query: str, rng: random.Random) -> str:
    """The query with one mistake: another digit, or two letters swapped, or a word less."""
    digits = [match.start() for match in re.finditer(r"\d", query)]
    if digits:
        place = rng.choice(digits)
        other = str((int(query[place]) + rng.randrange(1, 9)) % 10 or 1)
        return query[:place] + other + query[place + 1 :]
    names = query.split()
    if len(names) > 1:
        del names[rng.randrange(len(names))]
        return " ".join(names)
    place = rng.randrange(max(1, len(query) - 1))
    return query[:place] + query[place : place + 2][::-1] + query[place + 2 :]


def _rounded(p: Parameters) -> str:
    """A conversion with a factor from memory: two significant digits."""
    return f"{p['amount']} * {p['factor']:.1e}"


def _rough_mass(p: Parameters) -> str:
    """A molar mass with whole atomic masses."""
    whole = {"C": 12, "H": 1, "O": 16, "N": 14, "S": 32, "Cl": 35.5}
    return " + ".join(f"{count}*{whole[symbol]}" for symbol, count in p["counts"].items())


def _clues(p: Parameters, join: str) -> str:
    return join.join(f"{first} < {second}" for first, second in p["links"])


def _race(p: Parameters) -> str:
    places = "; ".join(f"{name} >= 1; {name} <= {len(p['names'])}" for name in p["names"])
    return f"answer = {p['asked']}; {_clues(p, '; ')}; {places}"


def _permutations(p: Parameters) -> str:
    names = ", ".join(p["names"])
    return (
        f"from itertools import permutations\nfor {names} in permutations(range(1, {len(p['names']) + 1})):\n"
        f"    if {_clues(p, ' and ')}: print({p['asked']})"
    )


def _days(p: Parameters) -> str:
    return f"weekday of {p['day']}" if p["kind"] == "weekday" else f"days between {p['day']} and {p['last']}"


def _days_in_python(p: Parameters) -> str:
    if p["kind"] == "weekday":
        return f"import datetime\ndatetime.date.fromisoformat('{p['day']}').strftime('%A')"
    return f"from datetime import date\n(date.fromisoformat('{p['last']}') - date.fromisoformat('{p['day']}')).days"


def _zones_in_python(p: Parameters) -> str:
    return (
        "from datetime import datetime\nfrom zoneinfo import ZoneInfo\n"
        f"print(datetime.fromisoformat('{p['moment']}').replace(tzinfo=ZoneInfo('{p['source']}'))"
        f".astimezone(ZoneInfo('{p['target']}')).strftime('%Y-%m-%d %H:%M'))"
    )


def _divisor(p: Parameters, python: bool) -> str:
    numbers = ", ".join(map(str, p["numbers"]))
    if python:
        return f"pow({numbers})" if p["kind"] == "powmod" else f"import math\nmath.gcd({numbers})"
    return f"{p['kind']}({numbers})"


def _sample(p: Parameters, python: bool) -> str:
    function = "stdev" if p["kind"].endswith("deviation") else p["kind"]
    return f"import statistics\nstatistics.{function}({p['values']})" if python else f"{function}({p['values']})"


def _look_up(p: Parameters) -> str:
    return f"{p['town']} {p['what']}"


def _multiple(p: Parameters) -> str | None:
    """A multiple of a constant, once its value has been looked up."""
    found = [re.search(rf"{re.escape(p['name'])}: (\S+)", text) for text in p["seen"]]
    values = [match[1] for match in found if match is not None]
    return f"{p['factor']} * {values[-1]}" if values else None


def _word(p: Parameters) -> str:
    return str(p.get("word") or p["definition"])


Writer = Callable[[Parameters], "str | None"]
WRITERS: dict[str, dict[str, Writer]] = {
    "algebra": {
        "calculator": lambda p: f"solve({p['a']}*x + {p['b']} = {p['c']}, x)",
        "logic": lambda p: f"{p['a']}*x + {p['b']} = {p['c']}",
        "python": lambda p: f"({p['c']} - {p['b']}) / {p['a']}",
    },
    "arithmetic": {
        "calculator": lambda p: f"{p['a']}*{p['b']} {p['sign']} {p['c']}",
        "logic": lambda p: f"x = {p['a']}*{p['b']} {p['sign']} {p['c']}",
        "python": lambda p: f"{p['a']} * {p['b']} {p['sign']} {p['c']}",
    },
    "calendar": {"dates": _days, "python": _days_in_python},
    "chemistry": {
        "reference": lambda p: f"molar mass of {p['formula']}",
        "calculator": _rough_mass,
        "python": _rough_mass,
    },
    "commerce": {
        "calculator": lambda p: f"{p['price']} * (1 - {p['discount']}/100) * (1 + {p['tax']}/100)",
        "python": lambda p: f"{p['price']} * (100 - {p['discount']}) / 100 * (100 + {p['tax']}) / 100",
    },
    "geography": {"search": _look_up, "dictionary": lambda p: p["town"]},
    "history": {"search": _look_up, "dictionary": lambda p: p["town"]},
    "measurement": {
        "units": lambda p: f"{p['amount']} {p['source']} to {p['target']}",
        "calculator": _rounded,
        "python": _rounded,
    },
    "number_theory": {"calculator": lambda p: _divisor(p, False), "python": lambda p: _divisor(p, True)},
    "ordering": {"logic": _race, "python": _permutations},
    "physics": {"reference": lambda p: p["name"], "calculator": _multiple, "python": _multiple},
    "statistics": {"calculator": lambda p: _sample(p, False), "python": lambda p: _sample(p, True)},
    "time_zones": {
        "dates": lambda p: f"{p['moment']} {p['source']} to {p['target']}",
        "python": _zones_in_python,
    },
    "vocabulary": {"dictionary": lambda p: p.get("word"), "search": _word},
}
