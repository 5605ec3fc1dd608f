"""The facts, the limits and the troubles of point-in-time recovery, as values. Pure; judgement is in ``standing``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.pitr.receiver_status import ReceiverStatus
from ovia_backup_dagster.pitr.recovery_catalog import RecoveryCatalog
from ovia_backup_dagster.pitr.recovery_evidence import RecoveryEvidence


class PitrPart(StrEnum):
    """What a trouble is about. Troubles of one part share an alert."""

    ROOM = "room"
    RECEIVING = "receiving"
    CHAIN = "chain"
    BASES = "bases"


@dataclass(frozen=True, slots=True)
class PitrTrouble:
    """One trouble.

    Attributes:
        part: what it is about.
        error: the error to report.
        urgent: whether recent changes, or all instants, cannot be recovered now. Otherwise there is time left.
    """

    part: PitrPart
    error: BackupError
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class PitrLimits:
    """What the settings allow.

    Attributes:
        rpo: the age that the newest safe change may have.
        window: how far back any instant is to be recoverable.
        base_period: the longest time between two base backups by their schedule.
        drill_age: the age that the last drill of a base backup may have.
    """

    rpo: timedelta
    window: timedelta
    base_period: timedelta
    drill_age: timedelta


@dataclass(frozen=True, slots=True)
class PitrFacts:
    """What the backup volume says.

    Attributes:
        status: the receiver's report; ``None`` if no receiver ever ran.
        free_bytes: the volume's free space.
        system_identifier: of the cluster that WAL is received from; ``None`` before the first.
        catalog: what can be recovered of this cluster; ``None`` before its first WAL or base backup.
        began_at: when its archive was begun (UTC).
        unusable: base backups that cannot be read: name and reason.
        others: other clusters that have base backups.
        wal_bytes_per_day: how much the archive grows; 0 if unknown.
        stored_bytes: what its WAL and base backups take now.
        last_drill: the evidence of the newest drill of a base backup; ``None`` before the first.
    """

    status: ReceiverStatus | None
    free_bytes: int
    system_identifier: str | None = None
    catalog: RecoveryCatalog | None = None
    began_at: datetime | None = None
    unusable: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()
    wal_bytes_per_day: float = 0.0
    stored_bytes: int = 0
    last_drill: RecoveryEvidence | None = None
