"""Whether a proven daily backup is to stand in ``weekly/`` as well: a pure function with a reason.

A week begins with the weekly day, in the policy's time zone, and has one weekly backup: the weekly day's, or,
when that was missed, the next proven dump's. The linking is ``catalog``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.retention.policy import Policy


@dataclass(frozen=True, slots=True)
class Promotion:
    """Whether to promote, and why or why not, in words for a person."""

    promote: bool
    reason: str


def decide_promotion(backup: Backup, weeklies: Iterable[Backup], policy: Policy, now: datetime) -> Promotion:
    """Decide about one backup.

    Args:
        backup: the one that was just proven.
        weeklies: what stands in ``weekly/``.
        policy: day and time zone.
        now: the present (UTC), for the states.
    """
    if backup.tier is Tier.WEEKLY:
        return Promotion(False, f"{backup} is a weekly backup already")
    state = backup.state(now)
    if state is not State.PROVEN:
        return Promotion(False, f"{backup} is {state}; only a proven backup is promoted")
    week = policy.week(backup.started_at)
    there = [w for w in weeklies if policy.week(w.started_at) == week and w.state(now) is not State.BAD]
    day = policy.weekly_day.name.capitalize()
    if there:
        return Promotion(False, f"the week of {day} {week} has its weekly backup, {there[0]}")
    if policy.day(backup.started_at) == week:
        return Promotion(True, f"{day}'s first proven dump")
    return Promotion(True, f"{day} {week} left no weekly backup: the next proven dump takes its place")
