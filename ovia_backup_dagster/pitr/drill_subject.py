"""Which dump and which base backup a drill of point-in-time recovery compares."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import NotVerifiedError
from ovia_backup_dagster.core.manifest import Manifest, WalPoint
from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.core.verdict import Witness
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.bases import BaseBackup, read_base
from ovia_backup_dagster.pitr.recovery_windows import read_states
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline

#: Between the server's clock and ours; a backup's name has whole seconds.
_CLOCKS = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class DrillSubject:
    """The two witnesses.

    Attributes:
        dump: a verified dump whose last commit is known.
        manifest, witness: the dump's.
        point: that commit.
        base: the base backup to recover.
        timeline: the timeline to follow.
    """

    dump: Backup
    manifest: Manifest
    witness: Witness
    point: WalPoint
    base: BaseBackup
    timeline: Timeline

    @classmethod
    def of(cls, dump: Backup, base: BaseBackup, timeline: Timeline) -> DrillSubject:
        """The subject of a drill.

        Raises:
            NotVerifiedError: the dump is not verified, or does not say which commit it ends with.
        """
        manifest, witness = dump.manifest, dump.witness
        if manifest is None or witness is None or not dump.state(datetime.now(UTC)).is_verified:
            raise NotVerifiedError(f"{dump} is not verified", fix=f"ovia-backup verify {dump}")
        point = manifest.wal_point
        if point is None or not point.lsn:
            raise _pointless(dump, point)
        return cls(dump, manifest, witness, point, base, timeline)


def find_subject(catalog: Catalog, wanted: str) -> tuple[DrillSubject, ClusterArchive]:
    """The dump that a person means, with the newest base backup from which its last commit can be recovered.

    Args:
        wanted: a backup's name; ``latest`` is the newest verified one that says which commit it ends with.

    Raises:
        NotVerifiedError: there is no such dump, or it is not verified.
        RecoveryTargetError: no base backup and WAL reach its commit.
        BackupNotFoundError: there is no backup of this name.
        VolumeError: the volume cannot be read.
    """
    now = datetime.now(UTC)
    dump = _newest(catalog, now) if wanted == "latest" else catalog.find(wanted, now)
    manifest = dump.manifest
    point = manifest.wal_point if manifest else None
    states = {state.archive.system_identifier: state for state in read_states(catalog.root)}
    if point is None or not point.lsn or (state := states.get(point.system_identifier)) is None:
        if point is not None and point.lsn:
            raise RecoveryTargetError(
                f"the cluster that {dump} is of has no WAL here",
                why=f"its system identifier is {point.system_identifier}",
                fix="ovia-backup recovery-window",
            )
        # Says why.
        raise _pointless(dump, point)
    window = state.catalog.window_for(Lsn.parse(point.lsn), point.timeline)
    timeline = next(each for each in state.catalog.all_timelines if each.number == point.timeline)
    base = read_base(state.archive.base / window.base.name)
    return DrillSubject.of(dump, base, timeline), state.archive


def _newest(catalog: Catalog, now: datetime) -> Backup:
    newest = None
    for backup in catalog.newest_first():
        if not backup.state(now).is_verified or backup.manifest is None:
            continue
        newest = newest or backup
        if backup.manifest.wal_point is not None and backup.manifest.wal_point.lsn:
            return backup
    if newest is not None and newest.manifest is not None:
        raise _pointless(newest, newest.manifest.wal_point)
    raise NotVerifiedError("there is no verified dump", fix="ovia-backup dump && ovia-backup verify latest")


def _pointless(dump: Backup, point: WalPoint | None) -> NotVerifiedError:
    return NotVerifiedError(
        f"{dump} does not say which commit it ends with",
        why=point.why if point and point.why else "it was made without point-in-time recovery",
        fix="ovia-backup dump && ovia-backup verify latest",
    )


def why_no_drill_is_due(catalog: Catalog, most: timedelta, now: datetime) -> str:
    """Why no drill of point-in-time recovery is due; empty if one is.

    One is due if the newest base backup has not passed a drill for ``most``, and a verified dump ends after it.

    Raises:
        VolumeError: the volume cannot be read.
    """
    states = read_states(catalog.root)
    if not states or not (bases := states[0].catalog.good_bases):
        return "there is no base backup yet"
    newest = bases[-1]
    if newest.drilled_at is not None and now - newest.drilled_at < most:
        return f"base backup {newest.name} passed a drill on {newest.drilled_at:%Y-%m-%d}"
    for backup in catalog.newest_first():
        point = backup.manifest.wal_point if backup.manifest else None
        if backup.started_at < newest.started_at - _CLOCKS:
            break
        if point is not None and point.lsn and Lsn.parse(point.lsn) >= newest.end and backup.state(now).is_verified:
            return ""
    return f"no verified dump ends after base backup {newest.name} yet"
