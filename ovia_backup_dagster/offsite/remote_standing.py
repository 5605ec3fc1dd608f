"""Judges what this host knows of a remote: whether copies are fresh, whole and verified. Pure; asks no remote."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from ovia_backup_dagster.core.errors import BackupError, CopyDamagedError, NotFreshError, RemoteError
from ovia_backup_dagster.core.human_text import duration
from ovia_backup_dagster.offsite.remote_record import RemoteRecord

#: Verification runs weekly: after this time, two runs were missed.
_UNVERIFIED = timedelta(days=16)


@dataclass(frozen=True, slots=True)
class RemoteStanding:
    """The condition of the copies on one remote.

    Attributes:
        name: the remote's name.
        record: what this host knows of it.
        text: how things stand, in a sentence.
        trouble: the error to report; ``None`` if all is well.
    """

    name: str
    record: RemoteRecord
    text: str
    trouble: BackupError | None


def judge_remote(name: str, record: RemoteRecord, max_age: timedelta, now: datetime) -> RemoteStanding:
    """Judge a remote by its record.

    Args:
        max_age: how old the newest copy may be.
        now: the present (UTC).
    """
    trouble = _trouble(name, record, max_age, now)
    if trouble is not None:
        return RemoteStanding(name, record, trouble.account, trouble)
    assert record.newest is not None  # otherwise there is a trouble
    count = f"{len(record.copies)} {'copy' if len(record.copies) == 1 else 'copies'}"
    text = f"{count} on {name}, the newest {duration(now - record.newest)} old"
    return RemoteStanding(name, record, text, None)


def _trouble(name: str, record: RemoteRecord, max_age: timedelta, now: datetime) -> BackupError | None:
    again = f"ovia-backup offsite check {name}; ovia-backup offsite copy {name}"
    if record.findings:
        more = f" and {len(record.findings) - 1} more" if record.findings[1:] else ""
        return CopyDamagedError(
            f"copies on remote {name} are damaged or gone",
            why=f"{record.findings[0]}{more}",
            fix=f"ovia-backup offsite verify {name}",
        )
    if record.failure:
        return RemoteError(f"nothing can be copied to remote {name}", why=record.failure, fix=again)
    if record.newest is None:
        return NotFreshError(f"there is no copy on remote {name}", why="none was made yet", fix=again)
    if now - record.newest > max_age:
        age, most = duration(now - record.newest), duration(max_age)
        return NotFreshError(
            f"the newest copy on remote {name} is too old",
            why=f"it is {age} old, and OFFSITE_MAX_AGE_HOURS allows {most}",
            fix=again,
        )
    if record.verified_at is not None and now - record.verified_at > _UNVERIFIED:
        return NotFreshError(
            f"the copies on remote {name} were not verified for {duration(now - record.verified_at)}",
            why="offsite_verification_job runs weekly",
            fix=f"ovia-backup offsite verify {name}",
        )
    return None
