"""Decides whether a verified daily backup is promoted to another tier, with a reason. Pure.

Each period of a tier has one backup: its first verified one. A week begins with the weekly day, so its backup is that
day's, or if that was missed, the next verified one. ``promote_and_prune`` carries the decision out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.tiers import Period, Tier
from ovia_backup_dagster.retention.policy import Policy


@dataclass(frozen=True, slots=True)
class Promotion:
    """Whether to promote, and why, in words for a person."""

    promote: bool
    reason: str


def decide_promotion(backup: Backup, tier: Tier, there: Iterable[Backup], policy: Policy, now: datetime) -> Promotion:
    """Decide about one backup and one tier.

    Args:
        backup: the backup that was just verified.
        tier: the tier to promote it to; not ``daily``.
        there: the tier's backups.
        policy: has the weekly day and the time zone.
        now: the present (UTC), for the states.
    """
    if backup.tier is not Tier.DAILY:
        return Promotion(False, f"{backup} is a {backup.tier} backup already")
    state = backup.state(now)
    if not state.is_verified:
        return Promotion(False, f"{backup} is {state}; only a verified backup is promoted")
    period = policy.period(tier, backup.started_at)
    same = [b for b in there if policy.period(tier, b.started_at) == period and b.state(now) is not State.BAD]
    if same:
        return Promotion(False, f"the {_named(tier, period, policy)} has its {tier} backup, {same[0]}")
    if tier.period is not Period.WEEK:
        return Promotion(True, f"the first verified dump of the {_named(tier, period, policy)}")
    day = policy.weekly_day.name.capitalize()
    if policy.day(backup.started_at) == period:
        return Promotion(True, f"{day}'s first verified dump")
    return Promotion(True, f"{day} {period} left no weekly backup: the next verified dump takes its place")


def _named(tier: Tier, period: date, policy: Policy) -> str:
    if tier.period is Period.WEEK:
        return f"week of {policy.weekly_day.name.capitalize()} {period}"
    return tier.period.shown(period)
