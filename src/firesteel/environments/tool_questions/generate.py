"""Makes questions: what is asked, the right answer by a library, and wrong options that nothing sets apart.

A question depends on its category, its split and its number alone. The right value's rank among the options is drawn
uniformly, so that "the middle one" or "the largest" wins no more often than chance.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from firesteel.environments.question_rows import LETTERS, Question
from firesteel.environments.tool_questions.almanac import Town, Word, towns, words
from firesteel.errors import TaskError
from firesteel.tools.dates import WEEKDAYS

SPLITS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
"""Splits and the number of their first question: the numbers, which are the seeds, never meet."""

SOURCE = "tool_questions"
NUM_OPTIONS = 10
MIN_RESULT = 60
"""Smaller results would leave no room for ten different options."""

_BASIC_UNITS: dict[str, dict[str, float]] = {
    "length": {"inch": 0.0254, "foot": 0.3048, "yard": 0.9144, "mile": 1609.344, "meter": 1.0, "fathom": 1.8288},
    "mass": {"pound": 0.45359237, "ounce": 0.028349523125, "kilogram": 1.0, "gram": 0.001, "carat": 0.0002},
    "time": {"minute": 60.0, "hour": 3600.0, "day": 86400.0, "week": 604800.0, "second": 1.0},
    "energy": {"joule": 1.0, "calorie": 4.184, "watt_hour": 3600.0, "horsepower_hour": 2684519.537696},
}
_CONSTANTS: dict[str, tuple[str, ...]] = {
    "train": ("speed of light in vacuum", "Planck constant", "Boltzmann constant", "electron mass", "Rydberg constant",
              "Faraday constant", "Stefan-Boltzmann constant", "neutron mass", "Bohr magneton", "muon mass"),
    "validation": ("proton mass", "Bohr radius", "Avogadro constant"),
    "test": ("elementary charge", "molar gas constant", "Newtonian constant of gravitation", "Josephson constant"),
}  # fmt: skip
_ZONES = ("Europe/London", "Europe/Berlin", "Asia/Tokyo", "Asia/Kolkata", "America/New_York", "America/Denver",
          "Australia/Sydney", "Africa/Nairobi", "America/Sao_Paulo", "Asia/Dubai", "UTC", "Asia/Shanghai")  # fmt: skip
_NAMES = ("anna", "bela", "carl", "dora", "emil", "fina", "gero")
_MASSES = {"C": 12.011, "H": 1.008, "O": 15.999, "N": 14.007, "S": 32.06, "Cl": 35.45}


@dataclass(frozen=True, slots=True)
class Draft:
    """A question without letters. `options` are in the order in which they were thought of; `right` is one of them."""

    text: str
    options: Sequence[str]
    right: str
    parameters: dict[str, Any]


def number_options(rng: random.Random, value: float, *, decimals: int = 0, step: float = 0.0) -> list[str]:
    """Ten numbers of which `value` is the k-th smallest, k drawn uniformly. `step` is the typical gap.

    By default it is 3 to 7% of the value, so that all options have its sign.
    """
    gap = step or abs(value) * rng.uniform(0.03, 0.07)
    return _ladder(rng, value, gap, lambda position: f"{position:.{decimals}f}")


def _ladder(rng: random.Random, value: float, gap: float, show: Callable[[float], str]) -> list[str]:
    """Ten different texts of numbers around `value`, about `gap` apart."""
    rank = rng.randrange(NUM_OPTIONS)
    shown = {show(value)}
    for direction, count in ((-1, rank), (1, NUM_OPTIONS - 1 - rank)):
        position, wanted = value, len(shown) + count
        while len(shown) < wanted:
            position += direction * gap * rng.uniform(0.5, 1.5)
            shown.add(show(position))
    return sorted(shown, key=float)


def significant_options(rng: random.Random, value: float, digits: int = 5) -> list[str]:
    """Like `number_options`, for values of any size, as `1.2345e-06`."""
    return _ladder(rng, value, abs(value) * rng.uniform(0.03, 0.07), lambda position: f"{position:.{digits - 1}e}")


def _arithmetic(rng: random.Random, split: str) -> Draft:
    a, b, c = rng.randrange(120, 990), rng.randrange(13, 99), rng.randrange(100, 999)
    sign = rng.choice("+-")
    value = a * b + c if sign == "+" else a * b - c
    text = rng.choice(("What is {0} times {1} {3} {2}?", "Work out {0} * {1} {3} {2}."))
    return Draft(text.format(a, b, c, {"+": "plus", "-": "minus"}[sign] if "times" in text else sign),
                 number_options(rng, value), str(value), {"a": a, "b": b, "c": c, "sign": sign})  # fmt: skip


def _commerce(rng: random.Random, split: str) -> Draft:
    price, discount, tax = rng.randrange(2000, 90000) / 100, rng.randrange(5, 60), rng.randrange(3, 25)
    value = price * (1 - discount / 100) * (1 + tax / 100)
    text = (
        f"The price of {price:.2f} is lowered by {discount} percent; then {tax} percent of tax are added. What is due?"
    )
    return Draft(text, number_options(rng, value, decimals=2), f"{value:.2f}",
                 {"price": price, "discount": discount, "tax": tax})  # fmt: skip


def _algebra(rng: random.Random, split: str) -> Draft:
    a, x, b = rng.randrange(3, 60), rng.randrange(40, 900), rng.randrange(11, 999)
    c = a * x + b
    text = rng.choice((f"For which x is {a}*x + {b} = {c}?", f"Solve {a}*x + {b} = {c} for x."))
    return Draft(text, number_options(rng, x), str(x), {"a": a, "b": b, "c": c})


def _measurement(rng: random.Random, split: str) -> Draft:
    units = _BASIC_UNITS[rng.choice(sorted(_BASIC_UNITS))]
    source, target = rng.sample(sorted(units), 2)
    amount = rng.randrange(1050, 99000) / 100
    value = amount * units[source] / units[target]
    text = rng.choice(("How many {2} are {0:.2f} {1}?", "Convert {0:.2f} {1} to {2}."))
    parameters = {"amount": amount, "source": source, "target": target, "factor": units[source] / units[target]}
    return Draft(text.format(amount, source, target), significant_options(rng, value), f"{value:.4e}", parameters)


def _chemistry(rng: random.Random, split: str) -> Draft:
    chosen = sorted(rng.sample(sorted(_MASSES), rng.randrange(2, 5)))
    counts = {symbol: rng.randrange(2, 15) for symbol in chosen}
    formula = "".join(f"{symbol}{count}" for symbol, count in counts.items())
    value = sum(_MASSES[symbol] * count for symbol, count in counts.items())
    text = f"What is the molar mass of {formula} in gram per mole?"
    return Draft(text, number_options(rng, value, decimals=1), f"{value:.1f}", {"formula": formula, "counts": counts})


def _physics(rng: random.Random, split: str) -> Draft:
    from scipy.constants import physical_constants

    name, factor = rng.choice(_CONSTANTS[split]), rng.randrange(2, 90)
    value = physical_constants[name][0] * factor
    text = f"In the international system of units, what is {factor} times the {name}?"
    return Draft(text, significant_options(rng, value), f"{value:.4e}", {"name": name, "factor": factor})


def _day(rng: random.Random) -> date:
    return date(1901, 1, 1) + timedelta(days=rng.randrange(60000))


def _calendar(rng: random.Random, split: str) -> Draft:
    first = _day(rng)
    if rng.random() < 0.4:
        text = f"On which day of the week did or will {first} fall?"
        return Draft(text, WEEKDAYS, WEEKDAYS[first.weekday()], {"kind": "weekday", "day": first.isoformat()})
    days = rng.randrange(500, 9000)
    last = first + timedelta(days=days)
    text = f"How many days lie between {first} and {last}?"
    options = number_options(rng, days, step=rng.choice((1, 7, 30)))
    return Draft(text, options, str(days), {"kind": "days", "day": first.isoformat(), "last": last.isoformat()})


def _time_zones(rng: random.Random, split: str) -> Draft:
    source, target = rng.sample(_ZONES, 2)
    moment = datetime.combine(date(2000, 1, 1) + timedelta(days=rng.randrange(8000)), datetime.min.time())
    moment += timedelta(minutes=15 * rng.randrange(96))
    there = moment.replace(tzinfo=ZoneInfo(source)).astimezone(ZoneInfo(target))
    rank = rng.randrange(NUM_OPTIONS)
    options = [f"{there + timedelta(hours=number - rank):%Y-%m-%d %H:%M}" for number in range(NUM_OPTIONS)]
    text = f"When clocks in {source} show {moment:%Y-%m-%d %H:%M}, what do they show in {target}?"
    parameters = {"source": source, "target": target, "moment": f"{moment:%Y-%m-%d %H:%M}"}
    return Draft(text, options, f"{there:%Y-%m-%d %H:%M}", parameters)


def _number_theory(rng: random.Random, split: str) -> Draft:
    if rng.random() < 0.5:
        value = 0
        while value < MIN_RESULT:
            base, exponent, modulus = rng.randrange(2, 99), rng.randrange(200, 9999), rng.randrange(300, 9999)
            value = pow(base, exponent, modulus)
        text = f"What remains when {base}^{exponent} is divided by {modulus}?"
        parameters: dict[str, Any] = {"kind": "powmod", "numbers": [base, exponent, modulus]}
    else:
        common = rng.randrange(60, 400)
        value = common
        first, second = rng.sample((3, 5, 7, 8, 11, 13, 17, 19, 23), 2)
        text = f"What is the greatest common divisor of {common * first} and {common * second}?"
        parameters = {"kind": "gcd", "numbers": [common * first, common * second]}
    return Draft(text, number_options(rng, value, step=value * 0.05), str(value), parameters)


def _statistics(rng: random.Random, split: str) -> Draft:
    values = [rng.randrange(10, 500) for _ in range(rng.choice((7, 9, 11)))]
    kind = rng.choice(("mean", "sample standard deviation", "median"))
    functions: dict[str, Callable[[list[int]], float]] = {
        "mean": statistics.fmean, "median": statistics.median, "sample standard deviation": statistics.stdev,
    }  # fmt: skip
    value = functions[kind](values)
    text = f"What is the {kind} of {', '.join(map(str, values))}?"
    # The middle one of an odd number of whole numbers is whole: a decimal would give the wrong options away.
    decimals = 0 if kind == "median" else 1
    options = number_options(rng, value, decimals=decimals)
    return Draft(text, options, f"{value:.{decimals}f}", {"kind": kind, "values": values})


def _ordering(rng: random.Random, split: str) -> Draft:
    """Places in a race; the clues leave exactly one order."""
    names = rng.sample(_NAMES, len(_NAMES))
    links = list(pairwise(names))
    clues = [f"{first} came before {second}" for first, second in links]
    rng.shuffle(clues)
    asked = rng.randrange(len(names))
    text = f"{len(names)} people ran a race: {'; '.join(clues)}. In which place did {names[asked]} come?"
    options = [str(place) for place in range(1, len(names) + 1)]
    return Draft(text, options, str(asked + 1), {"links": links, "asked": names[asked], "names": sorted(names)})


def _vocabulary(rng: random.Random, split: str) -> Draft:
    mine = [word for word in words() if word.split == split]
    chosen = rng.sample(mine, NUM_OPTIONS)
    word: Word = chosen[0]
    if rng.random() < 0.5:
        options = [other.definition for other in chosen]
        return Draft(f"What is a {word.word}?", options, word.definition, {"word": word.word})
    text = f"One of these words stands for {word.definition}. Which?"
    options = [other.word for other in chosen]
    return Draft(text, options, word.word, {"definition": word.definition, "words": sorted(options)})


def _history(rng: random.Random, split: str) -> Draft:
    town = _town(rng, split)
    text = rng.choice(("In which year was {0} founded?", "When was the town of {0} founded?")).format(town.name)
    options = number_options(rng, town.founded, step=rng.choice((3, 12, 40)))
    return Draft(text, options, str(town.founded), {"town": town.name, "what": "founded", "river": town.river})


def _geography(rng: random.Random, split: str) -> Draft:
    town = _town(rng, split)
    what = rng.choice(("inhabitants", "river", "trade"))
    text = {
        "inhabitants": f"How many inhabitants has {town.name}?",
        "river": f"On which river does {town.name} lie?",
        "trade": f"What are the people of {town.name} known for?",
    }[what]
    if what == "inhabitants":
        options = number_options(rng, town.inhabitants)
    else:
        known = sorted({str(getattr(other, what)) for other in towns()} - {getattr(town, what)})
        options = [str(getattr(town, what)), *rng.sample(known, NUM_OPTIONS - 1)]
    return Draft(text, options, str(getattr(town, what)), {"town": town.name, "what": what, "river": town.river})


def _town(rng: random.Random, split: str) -> Town:
    return rng.choice([town for town in towns() if town.split == split])


CATEGORIES: dict[str, Callable[[random.Random, str], Draft]] = {
    "algebra": _algebra,
    "arithmetic": _arithmetic,
    "calendar": _calendar,
    "chemistry": _chemistry,
    "commerce": _commerce,
    "geography": _geography,
    "history": _history,
    "measurement": _measurement,
    "number_theory": _number_theory,
    "ordering": _ordering,
    "physics": _physics,
    "statistics": _statistics,
    "time_zones": _time_zones,
    "vocabulary": _vocabulary,
}
HELD_OUT = ("number_theory", "time_zones")
"""Categories that no training split has; the split "held_out" has nothing else."""


def make_question(category: str, split: str, number: int) -> Question:
    """The question of a category with a number; `TaskError` for a category that does not exist."""
    if category not in CATEGORIES:
        raise TaskError(f"tool_questions has no category '{category}'; it has {', '.join(sorted(CATEGORIES))}")
    rng = random.Random(f"tool_questions/{category}/{number}")
    draft = CATEGORIES[category](rng, split)
    options = list(draft.options)
    rng.shuffle(options)
    index = options.index(draft.right)
    return Question(
        f"{category}-{number}", draft.text, tuple(options), LETTERS[index], index, category, SOURCE,
        parameters=draft.parameters,
    )  # fmt: skip
