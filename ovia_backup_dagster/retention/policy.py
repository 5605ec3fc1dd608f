"""The retention policy of the settings: how many backups of each tier, and by which calendar they are counted.

``plan`` decides which backups are kept, ``promotion`` which are promoted; ``core.tiers`` lists the tiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from zoneinfo import ZoneInfo

from ovia_backup_dagster.core.tiers import Tier, Weekday


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that retention and promotion follow.

    Attributes:
        keep: tier -> for how many periods it keeps a backup, at least 1; 0 or no entry turns an optional tier off.
        weekly_day: the day whose dump becomes the weekly backup; a week begins with it.
        timezone: the time zone that decides on which day a dump began.
    """

    keep: Mapping[Tier, int]
    weekly_day: Weekday
    timezone: ZoneInfo

    def __post_init__(self) -> None:
        for tier in Tier:
            if self.count(tier) < (0 if tier.optional else 1):
                raise ValueError(f"{self.count(tier)} {tier} backups are too few to keep")

    def count(self, tier: Tier) -> int:
        """For how many periods the tier keeps a backup; 0 if it is off."""
        return self.keep.get(tier, 0)

    @property
    def promoted_to(self) -> tuple[Tier, ...]:
        """The tiers that a daily backup may be promoted to."""
        return tuple(tier for tier in Tier if tier is not Tier.DAILY and self.count(tier))

    def day(self, at: datetime) -> date:
        """The calendar day of an instant."""
        try:
            return at.astimezone(self.timezone).date()
        except OverflowError:  # another program's file may be dated at either end of the calendar
            return at.date()

    def period(self, tier: Tier, at: datetime) -> date:
        """The first day of the tier's period that contains an instant."""
        return tier.period.first_day(self.day(at), self.weekly_day)
