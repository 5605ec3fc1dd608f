"""Title and body of the alert, and of the all-clear, from the condition.

They must fit a phone's screen. ``notifications`` delivers them; ``defs.sensors`` decides when.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import (
    BackupError,
    DiskFullError,
    DrillError,
    DrillOverdueError,
    JournalError,
    StalledVolumeError,
)
from ovia_backup_dagster.core.pitr_errors import (
    BaseBackupError,
    BaseBackupOverdueError,
    ReceiverStoppedError,
    RecoveryPointError,
    ServerReplacedError,
    SlotLostError,
    WalGapError,
)
from ovia_backup_dagster.health.condition import Answer, Condition, Question
from ovia_backup_dagster.health.freshness import FreshnessLevel

_HEADLINES = {
    Question.VOLUME: "the backup volume cannot be read",
    Question.UNDAMAGED: "the newest backup is bad",
    Question.VERIFIED: "backups are made, but none is verified",
    Question.PROVEN: "the restore drill failed",
    Question.COPIES: "copies on a remote are missing, old or damaged",
    Question.PITR: "WAL is not received",
    Question.RESTORES: "a restore is unfinished",
    Question.REPLACED: "kept_databases_job failed",
    Question.RUNS: "the daily backup failed",
    Question.SETTINGS: "the backup settings are not usable",
}
#: Troubles of point-in-time recovery that have a headline of their own.
_PITR: tuple[tuple[type[BackupError], str], ...] = (
    (ReceiverStoppedError, "the WAL receiver has stopped"),
    (RecoveryPointError, "recent changes are not safe"),
    (ServerReplacedError, "the server was replaced, and has no base backup"),
    (SlotLostError, "the server loses WAL that was not received"),
    (WalGapError, "WAL is missing"),
    (BaseBackupOverdueError, "a base backup is missing, old or not proven"),
    (BaseBackupError, "a base backup is bad"),
    (DrillError, "the drill of point-in-time recovery failed"),
    (DiskFullError, "the backup volume is full, or will be"),
)
_NOT_FRESH = {
    FreshnessLevel.STALE: "the newest backup is too old",
    FreshnessLevel.MISSING: "there is no backup",
    FreshnessLevel.FUTURE: "the newest backup is dated in the future",
}


@dataclass(frozen=True, slots=True)
class Sender:
    """The database that a message is about.

    Attributes:
        label: the database, and the prefix if it adds something.
        database, host, port: the source.
        backup_dir: the backup folder.
        public_url: of the Dagster UI; empty if unknown.
    """

    label: str
    database: str
    host: str
    port: int
    backup_dir: Path
    public_url: str = ""


def alert(sender: Sender, state: Condition) -> tuple[str, str]:
    """Title and body of an alert, for a person who reads it on a phone.

    Args:
        sender: the database.
        state: the condition of its backups, which has at least one trouble.
    """
    failed, rejected = state.failed, state.found.rejected if state.found else ()
    # A failed run or a bad dump explains more than a guess.
    guess = "" if failed or rejected or not (state.found and state.found.trouble) else state.found.trouble.why
    link = f"{sender.public_url}/runs/{failed.run_id}" if sender.public_url and failed else ""
    lines = [
        f"What: {state.trouble}.",
        f"Where: {sender.database} at {sender.host}:{sender.port}; backups in {sender.backup_dir}.",
        f"Likely cause: {guess}" if guess else None,
        f"Last verified backup: {state.newest_verified or 'none'}.",
        f"Last failed run: {failed.run_id} at {failed.at:%Y-%m-%d %H:%M} UTC. {link}" if failed else None,
        f"Why it failed: {failed.reason}" if failed else None,
        f"Why newer ones are bad: {'; '.join(_reasons(rejected))}." if rejected else None,
        *(f"Next: {answer.fix}" for answer in state.told),
    ]
    title = f"[{sender.label}] {_headline(state.told[0], state)}"
    return title, "\n".join(line.rstrip() for line in lines if line)


def all_clear(sender: Sender, state: Condition, now: datetime, *, since: str = "") -> tuple[str, str]:
    """Title and body of the message that all is well again.

    Args:
        sender: the database.
        state: the condition of its backups; all is well.
        now: the present (UTC).
        since: when the trouble began (ISO 8601), if known.
    """
    lines = [
        f"{_sentence(state.found.text)}." if state.found else None,
        f"{_sentence(state.drills.text(now))}." if state.drills else None,
        f"{_sentence(state.pitr.text)}." if state.pitr else None,
        f"The trouble began {_minute(since)}." if since else None,
    ]
    return f"[{sender.label}] all is well with the backups again", "\n".join(line for line in lines if line)


def _headline(first: Answer, state: Condition) -> str:
    """The headline of the most urgent trouble."""
    if first.question is Question.FRESH and state.found:
        return _NOT_FRESH[state.found.level]
    if isinstance(first.trouble, JournalError):
        return "cannot tell whether a restore is unfinished"
    if isinstance(first.trouble, StalledVolumeError):
        return "the backup volume does not answer"
    if isinstance(first.trouble, DrillOverdueError):
        return "no restore drill has passed for a long time"
    if first.question is Question.PITR:
        return next((words for kind, words in _PITR if isinstance(first.trouble, kind)), _HEADLINES[Question.PITR])
    return _HEADLINES[first.question]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _minute(instant: str) -> str:
    try:
        return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:  # a person typed it in the launchpad
        return instant


def _reasons(rejected: Iterable[Backup]) -> Iterable[str]:
    for backup in rejected:
        yield f"{backup}: {backup.problem.why}" if backup.problem else f"{backup}"
