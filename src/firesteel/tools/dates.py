"""The tool `dates`: the calendar, spans of time, time zones (standard library, python-dateutil)."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dateutil.easter import easter
from dateutil.relativedelta import relativedelta

from firesteel.errors import ToolFailed
from firesteel.tools.base import Tool

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_DATE = r"(\d{4}-\d{2}-\d{2})"
_ZONE = r"([A-Za-z]+(?:/[A-Za-z_+-]+\d*)*)"


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ToolFailed(f"'{text}' is not a date of the form YYYY-MM-DD") from error


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ToolFailed(f"there is no time zone '{name}'; wanted a name such as Europe/Berlin") from error


def _weekday(day: str) -> str:
    return WEEKDAYS[_date(day).weekday()]


def _between(unit: str, first: str, second: str) -> str:
    start, end = sorted((_date(first), _date(second)))
    days = (end - start).days
    if unit == "days":
        return f"{days} days"
    if unit == "weeks":
        return f"{days // 7} weeks and {days % 7} days"
    span = relativedelta(end, start)
    if unit == "months":
        return f"{span.years * 12 + span.months} months and {span.days} days"
    return f"{span.years} years, {span.months} months and {span.days} days"


def _shifted(day: str, sign: str, count: str, unit: str) -> str:
    amount = int(count) * (1 if sign == "+" else -1)
    try:
        moved = _date(day) + relativedelta(**{f"{unit}s": amount})
    except (OverflowError, ValueError) as error:
        raise ToolFailed("the result lies outside the years 1 to 9999") from error
    return f"{moved.isoformat()}, a {WEEKDAYS[moved.weekday()]}"


def _converted(day: str, clock: str, source: str, target: str) -> str:
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=_zone(source))
    except ValueError as error:
        raise ToolFailed(f"'{day} {clock}' is not a time of the form YYYY-MM-DD HH:MM") from error
    there = moment.astimezone(_zone(target))
    return f"{there:%Y-%m-%d %H:%M} in {target}"


def _day_of_year(day: str) -> str:
    return f"day {_date(day).timetuple().tm_yday}"


def _week(day: str) -> str:
    year, week, _ = _date(day).isocalendar()
    return f"week {week} of {year}"


def _leap(year: str) -> str:
    return f"{year} is {'' if calendar.isleap(int(year)) else 'not '}a leap year"


def _easter(year: str) -> str:
    if not 1583 <= int(year) <= 4099:
        raise ToolFailed("Easter is computed for the years 1583 to 4099")
    return easter(int(year)).isoformat()


def _nth(which: str, weekday: str, year: str, month: str) -> str:
    number = int(month)
    index = [name.lower() for name in WEEKDAYS].index(weekday.lower())
    if not 1 <= number <= 12 or int(year) < 1:
        raise ToolFailed(f"'{year}-{month}' is not a month of the form YYYY-MM")
    start = date(int(year), number, 1)
    first = start + timedelta(days=(index - start.weekday()) % 7)
    last_day = calendar.monthrange(int(year), number)[1]
    days = list(range(first.day, last_day + 1, 7))
    place = -1 if which.lower() == "last" else int(which[0]) - 1
    if place >= len(days):
        raise ToolFailed(f"{year}-{month} has only {len(days)} {weekday}s")
    return start.replace(day=days[place]).isoformat()


_RULES: tuple[tuple[str, Callable[..., str]], ...] = (
    (rf"(?:weekday|day of (?:the )?week) (?:of )?{_DATE}", _weekday),
    (rf"(days|weeks|months|years) (?:between|from) {_DATE} (?:and|to) {_DATE}", _between),
    (rf"{_DATE} ?([+-]) ?(\d{{1,6}}) (day|week|month|year)s?", _shifted),
    (rf"{_DATE} (\d{{2}}:\d{{2}}) {_ZONE} (?:in|to) {_ZONE}", _converted),
    (rf"day of (?:the )?year (?:of )?{_DATE}", _day_of_year),
    (rf"(?:iso )?week (?:number )?(?:of )?{_DATE}", _week),
    (r"(?:is )?leap(?: year)? (\d{4})", _leap),
    (r"easter (?:of |in )?(\d{4})", _easter),
    (rf"(1st|2nd|3rd|4th|5th|last) ({'|'.join(WEEKDAYS)}) (?:of|in) (\d{{4}})-(\d{{2}})", _nth),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), rule) for pattern, rule in _RULES)


class Dates(Tool):
    """Weekdays, spans, shifts, leap years, Easter, and one moment in two time zones."""

    name: ClassVar[str] = "dates"
    description: ClassVar[str] = (
        "Answers 'weekday of DATE', 'days between DATE and DATE' (also weeks, months, years), 'DATE + 3 months', "
        "'day of year DATE', 'week of DATE', 'leap YEAR', 'easter YEAR', 'last Friday of YYYY-MM', "
        "'DATE HH:MM Europe/Berlin to Asia/Tokyo'; a DATE is YYYY-MM-DD"
    )
    example: ClassVar[str] = "days between 2024-02-01 and 2024-03-01"
    example_output: ClassVar[str] = "29 days"
    max_query_characters: ClassVar[int] = 120

    def answer(self, query: str) -> str:
        text = " ".join(query.split()).rstrip("?.")
        for pattern, rule in _COMPILED:
            match = pattern.fullmatch(text)
            if match is not None:
                return rule(*(group.lower() if rule is _between else group for group in match.groups()))
        raise ToolFailed(f"not understood; {self.description}")
