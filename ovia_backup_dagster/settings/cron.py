"""Checks a cron expression: five fields, each with valid values, and a date that exists in some year.

The grammar is crontab(5)'s with the extensions of Dagster's parser (``L``, ``5#2``, ``L5``, ranges that wrap around).
Dagster decides when a schedule ticks; this module is for code that must not import Dagster, and also refuses
expressions that never tick. It says how long a schedule may pause, for code that judges whether something is overdue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, timedelta
from itertools import pairwise

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SHORTHANDS = ("@hourly", "@daily", "@weekly", "@monthly", "@midnight")
#: For each field: its name, the smallest and the largest value, and names for values.
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_DAY, _MONTH, _WEEKDAY = 2, 3, 4
_FEBRUARY = 2
#: The most days that each month can have.
_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?P<first>\*|[a-z]+|\d+)(?:-(?P<last>[a-z]+|\d+))?(?:/(?P<step>\d+))?")
_NTH = re.compile(r"(?:[a-z]+|\d+)#[1-5]")
_LAST = re.compile(r"l[0-7]")


def why_not(expression: str) -> str:
    """What is wrong with an expression, in words; empty if nothing is."""
    expression = expression.strip().lower()
    if expression.startswith("@"):
        return "" if expression in _SHORTHANDS else f"of the words with @ only {', '.join(_SHORTHANDS)} are known"
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        return f"it has {len(fields)} fields, and must have five: minute, hour, day, month and day of the week"
    try:
        values = [_values(field, at) for at, field in enumerate(fields)]
    except ValueError as error:
        return str(error)
    return _never(fields, values)


def _values(field: str, at: int) -> frozenset[int]:
    """The values that a field matches; empty if they depend on the month (``L``, ``5#2``).

    Raises:
        ValueError: the field is not valid.
    """
    parts = field.split(",")
    if at == _WEEKDAY and all(_NTH.fullmatch(part) or _LAST.fullmatch(part) for part in parts):
        for part in parts:
            _number(part.partition("#")[0].removeprefix("l"), at)
        return frozenset()
    if at == _DAY:
        parts = [part for part in parts if part != "l"]
    return frozenset(value for part in parts for value in _range(part, at))


def _range(part: str, at: int) -> Sequence[int]:
    name, least, most, _ = _FIELDS[at]
    match = _PART.fullmatch("*" if part == "?" and at in (_DAY, _WEEKDAY) else part)
    if match is None or (match["first"] == "*" and match["last"]):
        raise ValueError(f"{part!r} is not a valid {name}")
    step = int(match["step"] or 1)
    if step < 1:
        raise ValueError(f"{part!r} is not a valid {name}: its step must be 1 or more")
    if match["first"] == "*":
        first, last = least, most
    else:
        first = _number(match["first"], at)
        last = _number(match["last"], at) if match["last"] else most if match["step"] else first
    if first <= last:
        return range(first, last + 1, step)
    around = [*range(first, most + 1), *range(least, last + 1)]  # 22-2
    return around[::step]


def _number(text: str, at: int) -> int:
    name, least, most, names = _FIELDS[at]
    value = names.get(text, int(text) if text.isdigit() else -1)
    if not least <= value <= most:
        raise ValueError(f"{text!r} is not a valid {name}: that is {least} to {most}")
    return value


def _never(fields: Sequence[str], values: Sequence[frozenset[int]]) -> str:
    """Why the date never comes, such as the 30th of February. If a day of the week is also given, either may match.

    February alone is an exception: Dagster's parser refuses such a date even with a day of the week.
    """
    if fields[_DAY][0] in "*?" or "l" in fields[_DAY].split(","):
        return ""
    if fields[_WEEKDAY][0] not in "*?" and values[_MONTH] != {_FEBRUARY}:
        return ""
    if min(values[_DAY]) > max(_LENGTHS[month - 1] for month in values[_MONTH]):
        return "no such date exists in any year"
    return ""


#: From a 29th of February to the next: these days have all months, and each day of the month on several weekdays.
_FIRST_DAY, _DAYS_LOOKED_AT = date(2024, 2, 29), 4 * 365 + 2
_SHORTHAND_DAYS = {"@hourly": 1, "@daily": 1, "@midnight": 1, "@weekly": 7, "@monthly": 31}


def longest_pause_days(expression: str) -> int:
    """The most days from one day on which an expression ticks to the next, e.g. 7 for ``30 1 * * 6``.

    Args:
        expression: one that :func:`why_not` has no objection to.
    """
    expression = expression.strip().lower()
    if expression in _SHORTHAND_DAYS:
        return _SHORTHAND_DAYS[expression]
    fields = expression.split()
    days = (_FIRST_DAY + timedelta(days=number) for number in range(_DAYS_LOOKED_AT))
    ticks = [day for day in days if _ticks_on(day, fields)]
    pauses = [(later - earlier).days for earlier, later in pairwise(ticks)]
    return max(pauses, default=_DAYS_LOOKED_AT)


def _ticks_on(day: date, fields: Sequence[str]) -> bool:
    if day.month not in _values(fields[_MONTH], _MONTH):
        return False
    in_month = day.day in _values(fields[_DAY], _DAY) or ("l" in fields[_DAY].split(",") and _is_last(day, 1))
    in_week = any(_is_weekday(day, part) for part in fields[_WEEKDAY].split(","))
    # If both are restricted, either may match.
    if fields[_DAY][0] not in "*?" and fields[_WEEKDAY][0] not in "*?":
        return in_month or in_week
    return in_month and in_week


def _is_weekday(day: date, part: str) -> bool:
    name, nth, number = part.partition("#")
    wanted = {value % 7 for value in _range(name.removeprefix("l") if _LAST.fullmatch(name) else name, _WEEKDAY)}
    if day.isoweekday() % 7 not in wanted:
        return False
    if nth:
        return (day.day - 1) // 7 + 1 == int(number)
    return not _LAST.fullmatch(name) or _is_last(day, 7)


def _is_last(day: date, days: int) -> bool:
    """Whether the same day ``days`` later is in another month."""
    return (day + timedelta(days=days)).month != day.month
