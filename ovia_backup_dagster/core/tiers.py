"""The registry of tiers: the folder, which is also the word in a file's name, and the calendar period of each.

To add a tier, add one line here and a setting ``backup_<tier>_keep`` for how many to keep. A new period needs a member
of :class:`Period` and a case in each function of that class. ``retention`` decides for every tier of this list which
backups are promoted and kept; ``naming`` forms file names.
"""

from __future__ import annotations

from datetime import date, timedelta
from enum import IntEnum, StrEnum
from typing import Self


class Weekday(IntEnum):
    """As ``datetime.date.weekday`` counts."""

    MONDAY = 0
    TUESDAY = 1
    WEDNESDAY = 2
    THURSDAY = 3
    FRIDAY = 4
    SATURDAY = 5
    SUNDAY = 6


class Period(StrEnum):
    """A calendar period, for which a tier keeps one backup."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"

    def first_day(self, day: date, week_begins: Weekday) -> date:
        """The first day of the period that contains a day; a week begins with ``week_begins``."""
        if self is Period.WEEK:
            # Another program's file may be dated at the beginning of the calendar.
            return day - min(timedelta(days=(day.weekday() - week_begins) % 7), day - date.min)
        if self is Period.MONTH:
            return day.replace(day=1)
        return day.replace(month=1, day=1) if self is Period.YEAR else day

    @property
    def least_days(self) -> int:
        """The minimum number of days of a period."""
        return {Period.DAY: 1, Period.WEEK: 7, Period.MONTH: 28, Period.YEAR: 365}[self]

    def shown(self, first_day: date) -> str:
        """The period with this first day, for people: ``week of 2026-06-14``, ``month 2026-06``."""
        if self is Period.WEEK:
            return f"week of {first_day}"
        length = {Period.MONTH: len("2026-06"), Period.YEAR: len("2026")}.get(self)
        return f"{self} {first_day.isoformat()[:length]}"


class Tier(StrEnum):
    """The folder of a backup, which is also the word in its name.

    Attributes:
        period: one backup is kept for each of the newest periods.
        optional: off unless its setting says how many to keep; its folder is created with its first backup.
    """

    period: Period
    optional: bool

    def __new__(cls, word: str, period: Period, optional: bool = False) -> Self:
        """Create a member whose value is its word."""
        tier = str.__new__(cls, word)
        tier._value_ = word
        tier.period = period
        tier.optional = optional
        return tier

    DAILY = "daily", Period.DAY
    WEEKLY = "weekly", Period.WEEK
    MONTHLY = "monthly", Period.MONTH, True
    YEARLY = "yearly", Period.YEAR, True

    @classmethod
    def named(cls, word: str) -> Tier:
        """The tier with this word.

        Raises:
            ValueError: there is no such tier.
        """
        return list(cls)[list(cls).index(word)]  # type: ignore[arg-type]

    @property
    def rank(self) -> int:
        """Its position in this list: of several copies of one backup, messages name the first."""
        return list(Tier).index(self)
