"""Plans a recovery to an instant: which commit is the last, which base backup it begins with, and what that means.

A plan changes nothing. ``extraction`` and ``cluster_recovery`` carry it out; how an extract replaces the live database
is planned by ``restoration``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ovia_backup_dagster.core.errors import BackupError, VolumeError
from ovia_backup_dagster.core.files import as_volume_error, read_small
from ovia_backup_dagster.core.human_text import duration, human_bytes
from ovia_backup_dagster.core.manifest import RecoveredTo, parse_sidecar
from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.bases import BaseBackup, read_base
from ovia_backup_dagster.pitr.receiver_status import ReceiverState, read_status
from ovia_backup_dagster.pitr.recovered_cluster import RecoveryOrder
from ovia_backup_dagster.pitr.recovery_catalog import RecoveryCatalog
from ovia_backup_dagster.pitr.recovery_evidence import DRILLS, RecoveryEvidence
from ovia_backup_dagster.pitr.recovery_target import parse_target
from ovia_backup_dagster.pitr.recovery_windows import read_states
from ovia_backup_dagster.pitr.relation_names import RelationNames, RelationRecord, recorded_names
from ovia_backup_dagster.pitr.target_resolution import ResolvedTarget, resolve
from ovia_backup_dagster.pitr.transaction_ends import read_ends
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.pitr.wal_range import newest_range
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.postgres.programs import Programs

#: The last commit that was received.
LATEST = "latest"
_EVIDENCE_SHOWN = 20
_MOST_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.2
#: Reading goes back by so many segments at first, then by four times as many.
_STEP = 2


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What a recovery will do.

    Attributes:
        order: for ``recovered_cluster``.
        resolved: the commit that is kept last, and the first that is lost.
        now: when the plan was made (UTC).
        evidence: the newest drill that passed, which says how long it may take; ``None`` if there is none.
    """

    order: RecoveryOrder
    resolved: ResolvedTarget
    now: datetime
    evidence: RecoveryEvidence | None = None

    @property
    def recovered_to(self) -> RecoveredTo:
        """For the manifest of what is dumped from the recovered cluster."""
        return RecoveredTo(
            wanted=self.resolved.target.text,
            base=self.order.base.folder.name,
            timeline=self.resolved.timeline,
            lsn=str(self.resolved.lsn),
            committed_at=self.resolved.commit_time,
        )

    @property
    def expected_seconds(self) -> float | None:
        """How long the recovery may take, by the last drill; ``None`` if no drill has passed."""
        if self.evidence is None:
            return None
        unpack = self.evidence.phases.get("unpack", 0.0)
        rate = self.evidence.replay_seconds_per_gigabyte
        replay = self.evidence.phases.get("replay", 0.0) if rate is None else rate * self.order.wal_bytes / 1e9
        return unpack + replay

    def lines(self) -> Iterator[str]:
        """For people."""
        yield from self.resolved.lines
        base, order = self.order.base, self.order
        size, wal = human_bytes(base.manifest.data_bytes), human_bytes(order.wal_bytes)
        verified = {True: "verified", False: "bad", None: "not verified"}[base.verified]
        yield f"recover: base backup {base} ({size}, {verified}), and {wal} of WAL, timeline {self.resolved.timeline}"
        if (expected := self.expected_seconds) is not None and self.evidence is not None:
            at = f"{self.evidence.started_at:%Y-%m-%d}"
            yield f"time: about {duration(timedelta(seconds=expected))}, as the recovery drill of {at} suggests"
        else:
            yield "time: unknown: no recovery drill has passed yet (ovia-backup pitr-drill)"
        yield f"age: {duration(self.now - self.resolved.commit_time)}; whatever was committed since is not in it"

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        lost = self.resolved.next_commit
        return {
            "target": self.resolved.target.text,
            "kept": {
                "lsn": str(self.resolved.lsn),
                "xid": self.resolved.xid,
                "committed_at": self.resolved.commit_time.isoformat(),
            },
            "first_lost": lost
            and {"lsn": str(lost.lsn), "xid": lost.xid, "committed_at": lost.time.isoformat(), "text": lost.text},
            "notes": list(self.resolved.notes),
            "base": self.order.base.folder.name,
            "timeline": self.resolved.timeline,
            "wal_bytes": self.order.wal_bytes,
            "expected_seconds": self.expected_seconds,
        }


@dataclass(frozen=True, slots=True)
class RecoveryPlanner:
    """Everything that a plan depends on.

    Attributes:
        root: the backup volume.
        programs: the client programs.
        timezone: of times that are given without a zone.
        live_names: asks the live server what its tables are called; ``None`` without one.
        folder: for decompressed WAL, while it is read.
    """

    root: Path
    programs: Programs
    timezone: tzinfo = UTC
    live_names: Callable[[], RelationRecord | None] = field(default=lambda: None)
    folder: Path | None = None

    def plan(
        self,
        wanted: str,
        now: datetime,
        *,
        database: str | None,
        cluster: str | None = None,
        timeline: int | None = None,
    ) -> RecoveryPlan:
        """Plan a recovery to what a person wrote.

        Args:
            wanted: see ``recovery_target``.
            now: the present (UTC).
            database: the database that is restored, whose drops count; ``None`` for all.
            cluster: a system identifier; ``None`` for the cluster whose WAL was received last.
            timeline: the timeline to follow; ``None`` for the newest.

        Raises:
            RecoveryTargetError: the target is not an instant that can be recovered.
            WalGapError, SegmentDamagedError, VolumeError: the WAL cannot be read.
        """
        archive, catalog = self._cluster(cluster)
        follow = self._timeline(catalog, timeline)
        reader = WalReader(archive, self.programs, scratch=self.folder)
        if wanted.strip().lower() == LATEST:
            target = replace(parse_target(str(last_commit(reader, follow)), now), text=LATEST)
        else:
            target = parse_target(wanted, now, self.timezone)
        if target.time is not None:
            self._wait_until_received(target.time)
        names = self._names(archive)
        ends = [base.end for base in catalog.good_bases if catalog.usable(base)]
        if not ends:
            raise RecoveryTargetError(
                f"{wanted!r} cannot be recovered",
                why="there is no base backup that can be used",
                fix="ovia-backup base-backup; ovia-backup recovery-window",
            )
        resolved = resolve(
            target,
            reader,
            timeline=follow,
            database=names.databases.get(database) if database is not None else None,
            names=names,
            earliest=min(ends),
        )
        window = catalog.window_for(resolved.lsn, follow.number)
        base = self._base(archive, window.base.name)
        return RecoveryPlan(RecoveryOrder(archive, base, follow, resolved.lsn), resolved, now, newest_evidence(archive))

    def _wait_until_received(self, time: datetime) -> None:
        """Wait for a beacon that was sent after an instant (UTC), if a receiver works: its WAL is on its way."""
        deadline = monotonic() + _MOST_WAIT_SECONDS
        while monotonic() < deadline:
            status = read_status(self.root)
            working = status is not None and status.state is ReceiverState.RECEIVING and not status.troubles
            if status is None or not working or status.is_stale(datetime.now(UTC)):
                return
            if status.confirmed_at is not None and status.confirmed_at > time:
                return
            sleep(_POLL_SECONDS)

    def _cluster(self, wanted: str | None) -> tuple[ClusterArchive, RecoveryCatalog]:
        states = read_states(self.root)
        if not states:
            raise RecoveryTargetError(
                "nothing can be recovered to an instant",
                why="no WAL was ever received on this volume",
                fix="ovia-backup doctor says what point-in-time recovery needs",
            )
        found = [state for state in states if wanted in (None, state.archive.system_identifier)]
        if not found:
            there = ", ".join(state.archive.system_identifier for state in states)
            raise RecoveryTargetError(
                f"there is no WAL of cluster {wanted}",
                why=f"there is that of {there}",
                fix="ovia-backup recovery-window",
            )
        return found[0].archive, found[0].catalog

    @staticmethod
    def _timeline(catalog: RecoveryCatalog, wanted: int | None) -> Timeline:
        if wanted is None:
            return catalog.newest
        found = next((each for each in catalog.all_timelines if each.number == wanted), None)
        if found is None:
            there = ", ".join(str(each.number) for each in catalog.all_timelines)
            raise RecoveryTargetError(
                f"there is no timeline {wanted}", why=f"there is {there}", fix="ovia-backup recovery-window"
            )
        return found

    def _names(self, archive: ClusterArchive) -> RelationNames:
        names = RelationNames.of(recorded_names(archive))
        # Without the server, or without its database, the recorded ones must do.
        with contextlib.suppress(BackupError):
            if (live := self.live_names()) is not None:
                names = names.and_those_of(live)
        return names

    @staticmethod
    def _base(archive: ClusterArchive, name: str) -> BaseBackup:
        try:
            return read_base(archive.base / name)
        except FileNotFoundError:
            raise VolumeError(
                f"base backup {name} is gone", why="it was removed in the meantime", fix="ovia-backup recovery-window"
            ) from None


def last_commit(reader: WalReader, timeline: Timeline) -> Lsn:
    """Where the last commit that was received begins.

    Raises:
        RecoveryTargetError: the WAL that is here has no commit.
        WalGapError, SegmentDamagedError, VolumeError: the WAL cannot be read.
    """
    wal = newest_range(reader.archive, timeline)
    start, segments = wal.last_start, _STEP
    while True:
        last = None
        for end in read_ends(reader, timeline, start):
            last = end.lsn if end.committed else last
        if last is not None:
            return last
        if start == wal.start:
            raise RecoveryTargetError(
                "no commit can be recovered", why="the WAL that is here has none", fix="ovia-backup wal status"
            )
        start, segments = wal.earlier(start, segments), 4 * segments


def newest_evidence(archive: ClusterArchive) -> RecoveryEvidence | None:
    """The newest recovery drill that passed; ``None`` if there is none."""
    return next((each for each in recovery_evidence(archive) if each.passed), None)


def recovery_evidence(archive: ClusterArchive) -> Iterator[RecoveryEvidence]:
    """The recovery drills of a cluster, newest first. A file that cannot be read is left out."""
    folder = archive.folder / DRILLS
    for path in sorted(folder.glob("*.json"), reverse=True)[:_EVIDENCE_SHOWN] if folder.is_dir() else ():
        with contextlib.suppress(VolumeError), as_volume_error(f"cannot read {path}"):
            yield parse_sidecar(RecoveryEvidence, read_small(path), str(path))
