"""Decides whether the newest dump that is not known to be bad is recent enough. Pure.

An unverified dump counts, and is called unverified: alerts about a dump that exists would teach people to ignore
alerts. ``condition`` decides how severe it is, and whether anyone is notified.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import chain

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, Backup, State
from ovia_backup_dagster.core.errors import ClockError, NotFreshError
from ovia_backup_dagster.core.human_text import duration
from ovia_backup_dagster.core.sidecars import MANIFEST

#: The command that makes a new backup and verifies it.
AGAIN = "launch daily_backup_job in the Dagster UI, or run: ovia-backup dump && ovia-backup verify latest"


class FreshnessLevel(StrEnum):
    """The answer about freshness, in a word."""

    FRESH = "fresh"
    STALE = "stale"
    UNVERIFIED = "not verified"
    MISSING = "missing"
    FUTURE = "dated in the future"

    @property
    def former(self) -> str:
        """The word of 0.1.0, which readers of the JSON may still expect."""
        return "not proven" if self is FreshnessLevel.UNVERIFIED else self.value


@dataclass(frozen=True, slots=True)
class Freshness:
    """Whether the newest backup is fresh.

    Attributes:
        level: every level but ``FRESH`` deserves an alert.
        newest: the newest dump that is not bad; ``None`` if there is none.
        age: of ``newest``, since its dump began; negative in the future.
        max_age: the limit that was applied.
        verified: whether ``newest`` is verified.
        proven: whether ``newest`` is proven.
        rejected: dumps newer than ``newest`` that are bad, newest first.
    """

    level: FreshnessLevel
    newest: Backup | None
    age: timedelta | None
    max_age: timedelta
    verified: bool
    proven: bool
    rejected: tuple[Backup, ...] = ()

    @property
    def text(self) -> str:
        """One sentence for a person."""
        bad = "" if not self.rejected else "1 bad one" if len(self.rejected) == 1 else f"{len(self.rejected)} bad ones"
        if self.newest is None or self.age is None:
            return f"there is no backup but {bad}" if bad else "there is no backup"
        newer = f"; newer than it: {bad}" if bad else ""
        kind = "proven" if self.proven else "verified" if self.verified else "not verified yet"
        if self.level is FreshnessLevel.UNVERIFIED:
            kind = "not verified, like all recent ones"
        if self.level is FreshnessLevel.FUTURE:
            return f"the newest backup, {self.newest}, is dated {duration(-self.age)} in the future: a clock is wrong"
        if self.newest.changed:
            kind = "changed since it was verified"
        late = f", {duration(self.age - self.max_age)} too old" if self.level is FreshnessLevel.STALE else ""
        return f"the newest backup, {self.newest}, is {duration(self.age)} old{late} ({kind}){newer}"

    @property
    def trouble(self) -> NotFreshError | None:
        """The error to report, with its likely cause and the next step; ``None`` while the newest is fresh."""
        if self.level is FreshnessLevel.FRESH:
            return None
        if self.level is FreshnessLevel.FUTURE:
            return ClockError(
                self.text,
                why="the clock here is wrong, or that of the machine that made it was",
                fix=f"compare the clocks: date -u; if they are right, move {self.newest} out of the folder",
            )
        if self.level is FreshnessLevel.UNVERIFIED:
            return NotFreshError(self.text, why="verification fails, or does not run", fix=AGAIN)
        if self.newest is not None or self.rejected:
            why = "daily_backup_job fails or does not run: is its schedule on, and the Dagster daemon alive?"
            return NotFreshError(self.text, why=why, fix=AGAIN)
        return NotFreshError(
            self.text,
            why="none was made yet, or the volume is not mounted",
            fix=f"findmnt -T $BACKUP_DIR; then {AGAIN}",
        )


def judge_freshness(backups: Iterable[Backup], max_age: timedelta, now: datetime) -> Freshness:
    """Judge the newest backup.

    Reads sidecars from the newest backup on, and stops at the first that counts.

    Args:
        backups: newest first, as ``Catalog.newest_first`` finds them.
        max_age: older than this is stale.
        now: the present (UTC).
    """
    rejected: list[Backup] = []
    # A file that anyone may have put there must not hide that backups have stopped.
    backups = (backup for backup in backups if backup.is_vouched)
    for backup in backups:
        state = backup.state(now)
        if state is State.BAD:
            rejected.append(backup)
        elif state is not State.BEING_WRITTEN:
            age = now - backup.started_at
            level = _level(age, max_age)
            if (
                level is FreshnessLevel.FRESH
                and not state.is_verified
                and _unverified_too_long(chain([backup], backups), max_age, now)
            ):
                level = FreshnessLevel.UNVERIFIED
            verified = state.is_verified
            proven = verified and backup.drilled
            return Freshness(level, backup, age, max_age, verified, proven, tuple(rejected))
    return Freshness(FreshnessLevel.MISSING, None, None, max_age, False, False, tuple(rejected))


def _level(age: timedelta, max_age: timedelta) -> FreshnessLevel:
    if age < -CLOCK_TOLERANCE:
        return FreshnessLevel.FUTURE
    return FreshnessLevel.STALE if age > max_age else FreshnessLevel.FRESH


def _unverified_too_long(backups: Iterable[Backup], max_age: timedelta, now: datetime) -> bool:
    """Whether dumps are made, but verification has stopped, which must be reported as well.

    The old script's dumps may have waited for weeks for their first verification; they alone are not a reason.
    """
    ours_waits = False
    for backup in backups:
        if backup.state(now).is_verified:
            return now - backup.started_at > 2 * max_age
        ours_waits = ours_waits or (now - backup.started_at > max_age and backup.sidecar(MANIFEST).exists())
    return ours_waits
