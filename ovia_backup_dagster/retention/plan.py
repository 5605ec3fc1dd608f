"""Decides which backups to keep and which to remove, each with a reason. Pure.

The rules, for one database (all tiers are one list here):

* nothing is removed unless the newest dump is verified;
* only verified and bad dumps are removed; unverified ones, those being written, and those dated in the future stay, and
  do not count;
* daily: the newest verified dump of each of the last N days that have one; other tiers likewise, by week, month, year;
* a backup in a tier that is off stays until a person removes it;
* a bad dump whose archive is intact, and only lacks what the settings expect, is removed once N newer periods have
  verified dumps;
* everything younger than 24 hours stays, so that seven launches in one afternoon evict nothing;
* regardless of the counts, these stay: the newest verified dump, the newest proven one, the newest whose cluster is
  known (the next dump is compared with it), and dumps on hold;
* the two newest damaged dumps stay, for study.

``core.publication`` removes files; the caller has the lock and the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, Backup, State
from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.retention.policy import Policy

YOUNG = timedelta(hours=24)
BAD_KEEP = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """The facts about a backup that retention needs.

    Attributes:
        key: identifies the backup: ``daily/<file>``.
        started_at: when the dump began (UTC).
        held_until: the end of a hold, if there is one and it was not released.
        hold_reason: the hold's reason.
        intact: whether a bad backup's archive is undamaged, and only lacks what is expected.
        identified: whether its cluster is known.
    """

    key: str
    tier: Tier
    started_at: datetime
    state: State
    drilled: bool = False
    held_until: datetime | None = None
    hold_reason: str = ""
    intact: bool = False
    identified: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to keep a backup, and why."""

    candidate: Candidate
    keep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """A decision for every candidate, newest first.

    Attributes:
        decisions: one for each candidate.
        held: why nothing may be removed now; empty if pruning may proceed.
    """

    decisions: tuple[Decision, ...]
    held: str

    @property
    def removals(self) -> tuple[Decision, ...]:
        """The backups to remove, oldest first."""
        return tuple(d for d in reversed(self.decisions) if not d.keep)


def candidate(backup: Backup, now: datetime) -> Candidate:
    """The facts about a backup on the volume that retention needs.

    A hold that cannot be read counts, because a removal cannot be undone.
    """
    held_until, reason = None, ""
    try:
        hold = backup.hold
    except VolumeError as error:
        held_until, reason = datetime.max.replace(tzinfo=now.tzinfo), str(error)
    else:
        if hold is not None and hold.released_at is None:
            held_until, reason = hold.until, hold.reason
    return Candidate(
        key=f"{backup.tier}/{backup}",
        tier=backup.tier,
        started_at=backup.started_at,
        state=backup.state(now),
        drilled=backup.drilled,
        intact=backup.judgement is not None and backup.judgement.intact,
        identified=backup.system_identifier is not None,
        held_until=held_until,
        hold_reason=reason,
    )


def plan_retention(backups: Sequence[Candidate], policy: Policy, now: datetime) -> RetentionPlan:
    """Decide about every backup of one database.

    Args:
        backups: in any order; of all tiers.
        policy: from the settings.
        now: the present (UTC).
    """
    ordered = sorted(backups, key=lambda b: (b.started_at, -b.tier.rank, b.key), reverse=True)
    past = [b for b in ordered if b.started_at <= now + CLOCK_TOLERANCE]
    held = _why_held(past)
    reasons = _reasons_to_keep(past, policy, now)
    decisions = []
    for backup in ordered:
        reason = reasons.get(backup.key)
        if reason is None and backup.started_at > now + CLOCK_TOLERANCE:
            reason = "dated in the future: check the clock"
        if reason is None and held:
            reason = "pruning is on hold"
        decisions.append(Decision(backup, reason is not None, reason or _why_removed(backup, policy)))
    return RetentionPlan(tuple(decisions), held)


def _why_held(past: Sequence[Candidate]) -> str:
    """Why nothing may be removed: the newest dump must be verified before older ones go."""
    settled = [b for b in past if b.state is not State.BEING_WRITTEN]
    if not settled:
        return "there is no backup"
    # The newest dump may be in several tiers; one verified copy is enough.
    newest = [b for b in settled if b.started_at == settled[0].started_at]
    if any(b.state.is_verified for b in newest):
        return ""
    return f"the newest backup, {newest[0].key}, is {newest[0].state}"


def _reasons_to_keep(past: Sequence[Candidate], policy: Policy, now: datetime) -> dict[str, str]:
    """Key -> why the backup stays; the strongest reason wins. ``past`` is newest first."""
    reasons: dict[str, str] = {}
    verified = [b for b in past if b.state.is_verified]
    for backup in verified[:1]:
        reasons.setdefault(backup.key, "newest verified")
    for backup in [b for b in verified if b.drilled][:1]:
        reasons.setdefault(backup.key, "newest proven")
    for backup in [b for b in verified if b.identified][:1]:
        reasons.setdefault(backup.key, "newest verified that names its cluster")
    for backup in past:
        if backup.state in (State.UNVERIFIED, State.BEING_WRITTEN):
            reasons.setdefault(backup.key, f"{backup.state}: never removed")
        elif backup.started_at > now - YOUNG:
            reasons.setdefault(backup.key, "younger than 24 hours")
        elif backup.held_until is not None and now < backup.held_until:
            reasons.setdefault(backup.key, f"held: {backup.hold_reason}")
    for tier in Tier:
        _keep_periods(reasons, verified, tier, policy)
    for backup in (b for b in past if not policy.count(b.tier)):
        reasons.setdefault(backup.key, f"{backup.tier} backups are off: existing ones stay")
    bad = [b for b in past if b.state is State.BAD and policy.count(b.tier)]
    for number, backup in enumerate([b for b in bad if not b.intact][:BAD_KEEP], 1):
        reasons.setdefault(backup.key, f"bad, kept for study ({number} of {BAD_KEEP})")
    for backup in (b for b in bad if b.intact):
        tier, count = backup.tier, policy.count(backup.tier)
        newer = {
            policy.period(tier, b.started_at) for b in verified if b.tier is tier and b.started_at > backup.started_at
        }
        if len(newer) < count:
            reasons.setdefault(
                backup.key, f"bad but intact: kept until {count} newer ones are verified ({len(newer)} are)"
            )
    return reasons


def _keep_periods(reasons: dict[str, str], verified: Sequence[Candidate], tier: Tier, policy: Policy) -> None:
    count, kept = policy.count(tier), list[date]()
    for backup in (b for b in verified if b.tier is tier):
        period = policy.period(tier, backup.started_at)
        if period not in kept and len(kept) < count:
            kept.append(period)
            reasons.setdefault(backup.key, f"{tier} {len(kept)} of {count} ({tier.period.shown(period)})")


def _why_removed(backup: Candidate, policy: Policy) -> str:
    if backup.state is State.BAD and not backup.intact:
        return f"bad, and older than the newest {BAD_KEEP} bad ones"
    periods = f"{policy.count(backup.tier)} {backup.tier.period}s"
    return f"not the newest of one of the last {periods} with a verified dump"
