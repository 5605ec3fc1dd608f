"""What the WAL receiver and a drill of point-in-time recovery write down, made without either."""

from __future__ import annotations

from datetime import datetime

from ovia_backup_dagster.pitr.receiver_status import ReceiverState, ReceiverStatus
from ovia_backup_dagster.pitr.recovery_evidence import RecoveryCheck, RecoveryEvidence, RecoveryFinding


def receiver_status(now: datetime, **changes: object) -> ReceiverStatus:
    """The report of a receiver that works, and has not seen a beacon yet."""
    status = ReceiverStatus(
        written_at=now,
        started_at=now,
        state=ReceiverState.RECEIVING,
        pid=1,
        host="here",
        slot="ovia_backup",
        beacon_seconds=10,
    )
    return status.model_copy(update=changes)


def recovery_evidence(now: datetime, *, passed: bool, **changes: object) -> RecoveryEvidence:
    """The evidence of a drill that compared the tables."""
    evidence = RecoveryEvidence(
        started_at=now,
        finished_at=now,
        passed=passed,
        database="ovia",
        base="2026-11-01_103000",
        base_sha256="a",
        dump="ovia_daily_2026-11-02_030000.dump",
        dump_sha256="b",
        timeline=1,
        lsn="0/1",
        committed_at=now,
        wal_bytes=1,
        phases={},
        findings=(RecoveryFinding(check=RecoveryCheck.TABLES, passed=passed, text="public.people differs"),),
        launched_by="a test",
        made_by="a test",
    )
    return evidence.model_copy(update=changes)
