"""The words and conventions that embedded tool-calling tasks are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VERBS = (
    "book", "find", "check", "order", "cancel", "rent", "plan", "watch", "send", "track", "save", "open", "start",
    "share", "move", "fix", "call", "list", "price", "rate", "read", "clean", "count", "pack",
)  # fmt: skip
NOUNS = (
    "train", "room", "table", "ticket", "bike", "boat", "taxi", "parcel", "alarm", "lamp", "lesson", "flight", "museum",
    "concert", "garden", "printer", "heater", "camera", "market", "doctor", "repair", "film", "walk", "route", "menu",
    "bill", "letter", "stage", "bench", "ferry", "studio", "truck", "tower", "kettle", "fence", "clock", "river",
    "bridge", "office", "school",
)  # fmt: skip
PLACES = (
    "oslo", "rome", "paris", "lima", "cairo", "tokyo", "delhi", "quito", "turin", "genoa", "porto", "basel", "kyoto",
    "accra", "perth", "miami", "dubai", "seoul", "milan", "vigo", "split", "ghent", "malmo", "turku", "leeds", "derby",
    "essen", "trier", "graz", "linz", "sofia", "varna", "minsk", "kazan", "tunis", "rabat", "dakar", "lagos", "kabul",
    "hanoi",
)  # fmt: skip
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class Convention:
    """How a tool wants a value: `write` turns what a query says into the argument; `note` documents it."""

    note: str
    type: str
    write: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of parameter: possible names, what queries say for a value, and the conventions that tools may have."""

    names: tuple[str, ...]
    phrase: str
    values: tuple[Any, ...]
    conventions: tuple[Convention, ...]


KINDS: dict[str, Kind] = {
    "place": Kind(
        ("city", "place", "town", "spot"),
        "in {}",
        PLACES,
        (
            Convention("as said", "string", lambda value: value),
            Convention("capitals", "string", lambda value: value.upper()),
            Convention("three letters", "string", lambda value: value[:3]),
            Convention("with city:", "string", lambda value: f"city:{value}"),
            Convention("with !", "string", lambda value: f"{value}!"),
        ),
    ),
    "count": Kind(
        ("number", "amount", "size", "seats"),
        "for {}",
        tuple(range(2, 60)),
        (
            Convention("as said", "integer", lambda value: value),
            Convention("as text", "string", str),
            Convention("with a zero", "string", lambda value: f"0{value}"),
            Convention("with x", "string", lambda value: f"x{value}"),
            Convention("in pieces", "string", lambda value: f"{value} pcs"),
        ),
    ),
    "day": Kind(
        ("day", "date", "when", "start"),
        "on {}",
        DAYS,
        (
            Convention("as said", "string", lambda value: value),
            Convention("three letters", "string", lambda value: value[:3]),
            Convention("capitals", "string", lambda value: value.upper()),
            Convention("with day:", "string", lambda value: f"day:{value}"),
            Convention("1 to 7", "integer", lambda value: DAYS.index(value) + 1),
        ),
    ),
    "flag": Kind(
        ("express", "quiet", "insured", "shared"),
        "{}",
        (True, False),
        (
            Convention("true or false", "boolean", bool),
            Convention("yes or no", "string", lambda value: "yes" if value else "no"),
            Convention("on or off", "string", lambda value: "on" if value else "off"),
            Convention("1 or 0", "integer", int),
        ),
    ),
}
"""Every convention but the first of a kind changes the text of the value; types alone do not give it away."""
