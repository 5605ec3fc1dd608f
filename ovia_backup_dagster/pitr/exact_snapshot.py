"""Takes a snapshot for a dump, and finds the commit that it ends with, so that dump and recovery can prove each other.

A position that is read alongside a snapshot is not reliably exact: a backend writes its commit record before other
sessions see its rows. So the commits in the received WAL are compared with what the snapshot sees. The snapshot ends
with a commit exactly if every commit up to it, in the order of the WAL, is seen, and none after it. If not, another
snapshot is taken; under writers every second to tenth one fits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.manifest import WalPoint
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.beacons import returned
from ovia_backup_dagster.pitr.transaction_ends import TransactionEnd, read_ends
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.pitr.wal_range import newest_range
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.pitr.wal_source import WalSource
from ovia_backup_dagster.postgres.computed_values import Session
from ovia_backup_dagster.postgres.programs import Programs

#: How long a dump may wait for an exact snapshot.
_SECONDS = 30.0
_POLL_SECONDS = 0.05
#: A commit that was written longer ago is seen by every snapshot: between writing it and showing it to other sessions,
#: a server waits only for its disk, and for a synchronous receiver.
_LOOK_BACK = timedelta(minutes=2)
_XIDS = 1 << 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a snapshot sees, as ``pg_current_snapshot()`` prints it: ``xmin:xmax:xip, …``, with 64-bit numbers."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read PostgreSQL's text.

        Raises:
            ValueError: it is not a snapshot.
        """
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid))

    def sees(self, xid: int) -> bool:
        """Whether it sees a committed transaction.

        Args:
            xid: the lower 32 bits of its number, as the WAL has it.
        """
        whole = self.xmax - ((self.xmax - xid + _XIDS // 2) % _XIDS - _XIDS // 2)
        return whole < self.xmin or (whole < self.xmax and whole not in self.running)


def last_seen(snapshot: Snapshot, commits: Iterable[TransactionEnd]) -> tuple[TransactionEnd | None, bool]:
    """The last commit that a snapshot sees, and whether the snapshot ends with it exactly.

    Args:
        snapshot: the snapshot.
        commits: in the order of the WAL; they include all that were written shortly before it.
    """
    last, unseen_before, exact = None, False, True
    for commit in commits:
        if snapshot.sees(commit.xid):
            last, exact = commit, not unseen_before
        else:
            unseen_before = True
    return last, exact


@dataclass(frozen=True, slots=True)
class ExactSnapshots:
    """Takes snapshots for dumps of one server.

    Attributes:
        source: the server, as the role that receives WAL.
        programs: the client programs.
        archive: the files of its cluster.
    """

    source: WalSource
    programs: Programs
    archive: ClusterArchive

    def take(self, session: Session, begin: str) -> WalPoint:
        """As ``SnapshotAnchor``: after half a minute without an exact snapshot, the dump goes on with any."""
        deadline, why = time.monotonic() + _SECONDS, ""
        timelines = None
        while True:
            session.execute(begin.encode())
            row = session.execute("SELECT pg_current_snapshot()::text AS snapshot").fetchone()
            assert row is not None
            try:
                timelines = timelines or self._timeline()
                point = self._point(Snapshot.parse(row["snapshot"]), timelines, deadline)
            except BackupError as error:
                return WalPoint(why=error.account)
            if point is not None:
                return point
            why = "commits became visible in a different order than they were written, in each snapshot of 30 s"
            if time.monotonic() >= deadline:
                return WalPoint(why=why)
            session.execute("ROLLBACK")

    def _timeline(self) -> Timeline:
        identity = self.source.identify()
        return self.archive.timelines().get(identity.timeline, Timeline(identity.timeline))

    def _point(self, snapshot: Snapshot, timeline: Timeline, deadline: float) -> WalPoint | None:
        """The commit that the snapshot ends with; ``None`` if another snapshot has to be taken.

        Raises:
            WalError: the WAL does not arrive.
            BackupError: the server or the volume does not answer.
        """
        reader = WalReader(self.archive, self.programs, scratch=self.archive.folder)
        # Once a message that was committed after the snapshot has arrived, everything before it has.
        beacon = self.source.send_beacon(self.archive.system_identifier)
        while (end := returned(reader, timeline, beacon)) is None:
            if time.monotonic() >= deadline:
                return WalPoint(why="the WAL up to the snapshot did not arrive within 30 s")
            time.sleep(_POLL_SECONDS)
        start = newest_range(self.archive, timeline).before(datetime.now(UTC) - _LOOK_BACK)
        with contextlib.closing(read_ends(reader, timeline, start, Lsn.parse(end))) as ends:
            commit, exact = last_seen(snapshot, (each for each in ends if each.committed))
        if commit is None:
            return WalPoint(why="no commit was written in the last two minutes")
        if not exact:
            return None
        return WalPoint(
            system_identifier=self.archive.system_identifier,
            timeline=timeline.number,
            lsn=str(commit.lsn),
            xid=commit.xid,
            committed_at=commit.time,
        )
