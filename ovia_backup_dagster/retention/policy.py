"""What the settings say of retention: how many backups of each tier, and by which calendar they are counted.

What is kept by it is decided in ``plan``, what is promoted in ``promotion``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from ovia_backup_dagster.core.tiers import Weekday


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that retention and promotion follow.

    Attributes:
        daily_keep, weekly_keep: how many days and weeks, at least 1 each.
        weekly_day: the day whose dump is promoted; a week begins with it.
        timezone: in which days and weeks are counted, by the dump's start.
    """

    daily_keep: int
    weekly_keep: int
    weekly_day: Weekday
    timezone: ZoneInfo

    def __post_init__(self) -> None:
        if self.daily_keep < 1 or self.weekly_keep < 1:
            raise ValueError("at least one daily and one weekly backup must be kept")

    def day(self, at: datetime) -> date:
        """The calendar day of an instant."""
        try:
            return at.astimezone(self.timezone).date()
        except OverflowError:  # a stray file may be dated at either end of the calendar
            return at.date()

    def week(self, at: datetime) -> date:
        """The first day, a ``weekly_day``, of the week of an instant."""
        day = self.day(at)
        since = (day.weekday() - self.weekly_day) % 7
        return day - min(timedelta(days=since), day - date.min)
