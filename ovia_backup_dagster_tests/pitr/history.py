"""A server with a history to recover: its WAL is received, it has a base backup, and its commits are known by name."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_backup import BaseBackupMaker
from ovia_backup_dagster.pitr.bases import BaseBackup
from ovia_backup_dagster.pitr.recovered_cluster import RecoveredCluster, RecoveryOrder, recovered
from ovia_backup_dagster.pitr.transaction_ends import TransactionEnd, read_ends
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster_tests.conftest import admin
from ovia_backup_dagster_tests.pitr.ground import Ground
from ovia_backup_dagster_tests.pitr.receiving import Receiver, receiver


@dataclass
class History:
    """The server, its volume, and its running receiver.

    Attributes:
        commits: name -> the transaction that a test made under this name.
    """

    ground: Ground
    volume: Path
    running: Receiver
    commits: dict[str, int] = field(default_factory=dict)

    @property
    def archive(self) -> ClusterArchive:
        return self.ground.archive(self.volume)

    def base_backup(self) -> BaseBackup:
        ground = self.ground
        maker = BaseBackupMaker(self.archive, ground.connection, ground.programs)
        return maker.make(datetime.now(UTC), log=lambda line: None)

    def commit(self, name: str, *statements: str, database: str = "postgres") -> None:
        """Run statements in one transaction, and remember it."""
        with admin(self.ground.cluster, database) as session, session.transaction():
            for statement in statements:
                session.execute(statement.encode())
            row = session.execute("SELECT pg_current_xact_id()::text").fetchone()
            assert row is not None
            self.commits[name] = int(str(row[0]))

    def end_of(self, name: str, timeline: Timeline | None = None, start: Lsn | None = None) -> TransactionEnd:
        """The commit record of a remembered transaction, read from what was received."""
        timeline = timeline or self.timeline
        first = min(self.archive.archived_segments() or self.archive.received())
        reader = WalReader(self.archive, self.ground.programs)
        with contextlib.closing(read_ends(reader, timeline, start or first.start(), None)) as ends:
            found = [end for end in ends if end.xid == self.commits[name]]
        assert len(found) == 1, (name, found)
        return found[0]

    @property
    def timeline(self) -> Timeline:
        timelines = self.archive.timelines()
        return timelines[max(timelines)]

    def order(self, base: BaseBackup, name: str) -> RecoveryOrder:
        return RecoveryOrder(self.archive, base, self.timeline, self.end_of(name).lsn)

    @contextmanager
    def recovered(self, base: BaseBackup, name: str) -> Iterator[RecoveredCluster]:
        """The cluster right after a remembered commit."""
        with (
            short_folder() as folder,
            recovered(self.ground.programs, folder, self.order(base, name), hours=0.05, log=lambda line: None) as found,
        ):
            yield found


@contextmanager
def history_on(ground: Ground, volume: Path, **settings: str) -> Iterator[History]:
    """Begin to receive the server's WAL on a volume."""
    volume.mkdir(mode=0o700, exist_ok=True)
    with receiver(ground, volume, **settings) as running:
        running.until_safe()
        yield History(ground, volume, running)
        running.end()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for throwaway clusters, which every account may enter."""
    with tempfile.TemporaryDirectory(prefix="ovia-p-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def query(cluster: RecoveredCluster, text: str, database: str = "postgres") -> list[Any]:
    """The first column of a query's rows in a recovered cluster."""
    with connect(cluster.connection(database)) as session:
        return [next(iter(row.values())) for row in session.execute(text.encode())]
