"""A server with a database ``shop`` whose WAL pg_receivewal receives; its answers are the truth of the tests.

``conftest.shop`` starts it once; each test makes tables of its own and reads from ``Shop.here()`` on.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.relation_names import RelationNames, read_relation_names
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.pitr.wal_timeline import TimelineQuestion, WalTimeline, read_timeline
from ovia_backup_dagster.postgres.local_cluster import account
from ovia_backup_dagster.postgres.programs import start as start_program
from ovia_backup_dagster_tests.conftest import PortCluster, admin
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.ground import Ground, ground_on

SHOP = "shop"
_SLOT = "shop"
_APPLICATION = "receiver_of_the_shop"
_SETTINGS: dict[str, Any] = {
    "track_commit_timestamp": "on",
    "max_prepared_transactions": "5",
    "autovacuum": "off",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}


@dataclass(frozen=True)
class Committed:
    """A transaction, as the server knows it.

    Attributes:
        xid: its ID.
        time: when it committed (UTC).
        before: a position before its commit record begins; nothing else was written until then.
        after: a position after its commit record.
    """

    xid: int
    time: datetime
    before: Lsn
    after: Lsn

    def has(self, lsn: Lsn) -> bool:
        """Whether the position is that of its commit record."""
        return self.before <= lsn < self.after


@dataclass(frozen=True)
class Shop:
    """The server, a session of the database, and the archive that receives.

    Attributes:
        ground: the server.
        session: a superuser's autocommit session of the shop.
        archive: receives the WAL.
        database: the shop's OID.
    """

    ground: Ground
    session: psycopg.Connection[tuple[object, ...]]
    archive: ClusterArchive
    database: int

    @property
    def reader(self) -> WalReader:
        return WalReader(self.archive, self.ground.programs)

    def value(self, query: str) -> object:
        row = self.session.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.session.execute(statement.encode())

    def here(self) -> Lsn:
        """Where the next record will begin."""
        return Lsn.parse(str(self.value("SELECT pg_current_wal_insert_lsn()")))

    def commit(self, *statements: str) -> Committed:
        """Run statements in one transaction."""
        self.run("BEGIN", *statements)
        xid = int(str(self.value("SELECT pg_current_xact_id()")))
        before = self.here()
        self.run("COMMIT")
        return self.known(xid, before)

    def known(self, xid: int, before: Lsn) -> Committed:
        """A transaction that was just committed."""
        time = self.value(f"SELECT pg_xact_commit_timestamp('{xid}')")
        assert isinstance(time, datetime)
        return Committed(xid, time.astimezone(UTC), before, self.here())

    def names(self) -> RelationNames:
        """What everything is called now."""
        cluster = self.ground.cluster
        to = cluster.connection(SHOP)
        with psycopg.connect(
            host=to.host, port=to.port, dbname=SHOP, user=to.user, autocommit=True, row_factory=dict_row
        ) as session:
            return RelationNames.of([read_relation_names(session, datetime.now(UTC))])

    def receive(self) -> None:
        """Wait until everything that was committed is received."""
        self.run("SELECT pg_logical_emit_message(true, 'test', 'flush')")
        query = (
            f"SELECT coalesce(max(flush_lsn), '0/0') >= '{self.here()}' FROM pg_stat_replication "
            f"WHERE application_name = '{_APPLICATION}'"
        )
        until(lambda: self.value(query) is True)

    def timeline(self, start: Lsn, names: RelationNames | None = None, **question: object) -> WalTimeline:
        """What happened in the shop from a position on."""
        self.receive()
        asked = TimelineQuestion(Timeline(1), start, database=self.database, names=names or RelationNames())
        return read_timeline(self.reader, replace(asked, **question))  # type: ignore[arg-type]


@contextmanager
def shop_on(bin_dir: Path, volume: Path) -> Iterator[Shop]:
    """Start the server, and the program that receives its WAL."""
    with ground_on(bin_dir, **_SETTINGS) as ground:
        ground.execute(f"CREATE DATABASE {SHOP}", f"SELECT pg_create_physical_replication_slot('{_SLOT}', true)")
        archive = ground.archive(volume)
        command = (
            ground.programs.path("pg_receivewal"),
            f"--directory={archive.incoming}",
            f"--slot={_SLOT}",
            "--no-loop",
            "--synchronous",
            f"--dbname={ground.connection.conninfo()}",
        )
        variables = {**ground.connection.environment(), "PGAPPNAME": _APPLICATION}
        with start_program(command, variables=variables), admin(ground.cluster, SHOP) as session:
            row = session.execute("SELECT oid::int FROM pg_database WHERE datname = current_database()").fetchone()
            assert row is not None
            session.execute("CREATE TABLE ledger (id bigserial PRIMARY KEY, note text)")
            session.execute("CREATE TABLE victim (id int)")
            yield Shop(ground, session, archive, int(str(row[0])))


@contextmanager
def recovered(shop: Shop, base: Path, target: Mapping[str, str]) -> Iterator[PortCluster]:
    """A copy of the server, recovered by PostgreSQL to its own target, and paused there.

    Args:
        shop: the server.
        base: a plain base backup.
        target: ``recovery_target_*`` settings.
    """
    folder = Path(tempfile.mkdtemp(prefix="ovia-r-", dir="/tmp"))
    copy = PortCluster(shop.ground.bin_dir, folder, port=5432)
    try:
        shutil.copytree(base, copy.data)
        shutil.copytree(shop.archive.incoming, folder / "wal")
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(folder),
            "hot_standby": "on",
            "max_connections": "40",
            "max_prepared_transactions": "5",
            "track_commit_timestamp": "on",
            "fsync": "off",
            "restore_command": f'cp "{folder}/wal/%f" "%p" 2>/dev/null || cp "{folder}/wal/%f.partial" "%p"',
            "recovery_target_inclusive": "on",
            "recovery_target_action": "pause",
            **target,
        }
        (copy.data / "postgresql.conf").write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
        (copy.data / "postgresql.auto.conf").write_text("")
        (copy.data / "pg_hba.conf").write_text("local all all trust\n")
        (copy.data / "recovery.signal").touch()
        if (owner := account()) is not None:
            for path in (folder, *folder.rglob("*")):
                shutil.chown(path, owner.pw_uid, owner.pw_gid)
        copy.start()
        with admin(copy) as session:
            query = "SELECT pg_get_wal_replay_pause_state()"
            until(lambda: session.execute(query).fetchone() == ("paused",))
        yield copy
    finally:
        copy.remove()
