"""A server that WAL is received from and base backups are made of: its replication role, its pg_hba line, an archive.

A module of tests starts one server with ``ground_on`` and shares it; each test makes a volume of its own with
``Ground.archive``. Whatever a test changes on the server, it takes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts
from ovia_backup_dagster.pitr.base_backup import BaseBackupMaker
from ovia_backup_dagster.pitr.base_verification import verify_base
from ovia_backup_dagster.pitr.bases import BaseBackup, read_base
from ovia_backup_dagster.postgres.programs import Connection, Programs, Variables
from ovia_backup_dagster_tests.conftest import PortCluster, admin, quiet, running_cluster
from ovia_backup_dagster_tests.faults.harness import until

WAL_ROLE = "ovia_wal"
WAL_PASSWORD = "wal-s3cret-of-the-tests"
#: What `deploy/wal-role.sql` tells an operator to append to pg_hba.conf.
REPLICATION_LINE = f"host replication {WAL_ROLE} all scram-sha-256"


@dataclass(frozen=True)
class Ground:
    """The server. Its superuser connects through the socket (``conftest.admin``), the WAL role over TCP.

    Attributes:
        cluster: the server; a test that stops it starts it again.
        bin_dir: its programs.
    """

    cluster: PortCluster
    bin_dir: Path

    @property
    def connection(self) -> Connection:
        """As the role that receives WAL, with its password."""
        return Connection(
            host="127.0.0.1",
            port=self.cluster.port,
            database="postgres",
            user=WAL_ROLE,
            password=SecretStr(WAL_PASSWORD),
            variables=Variables(user="WAL_POSTGRES_USER", password="WAL_POSTGRES_PASSWORD"),
        )

    @property
    def programs(self) -> Programs:
        return Programs(self.bin_dir)

    @property
    def facts(self) -> ClusterFacts:
        """The cluster's, asked by the superuser."""
        with admin(self.cluster) as session:
            identifier = session.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
            size = session.execute("SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'").fetchone()
        assert identifier is not None
        assert size is not None
        return ClusterFacts(system_identifier=str(identifier[0]), segment_bytes=int(str(size[0])), major=16)

    def archive(self, volume: Path) -> ClusterArchive:
        """An archive of this cluster on a volume; its folders are made."""
        volume.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = self.facts
        archive = ClusterArchive(volume, facts.system_identifier)
        archive.create(facts)
        return archive

    def maker(self, volume: Path, **changes: Any) -> BaseBackupMaker:
        """What makes base backups of this server on a volume."""
        return replace(BaseBackupMaker(self.archive(volume), self.connection, self.programs), **changes)

    def base_backup(self, volume: Path, **changes: Any) -> BaseBackup:
        """A base backup, made and verified now."""
        maker = self.maker(volume, **changes)
        made = maker.make(datetime.now(UTC), log=quiet)
        verify_base(maker.archive, made.folder, now=datetime.now(UTC), log=quiet)
        return read_base(made.folder)

    def settings(self, volume: Path, **more: str) -> dict[str, str]:
        """The environment of ``ovia-backup`` for this server and volume."""
        return {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.cluster.port),
            "POSTGRES_DB": "postgres",
            "POSTGRES_USER": self.cluster.superuser,
            "BACKUP_DIR": str(volume),
            "BACKUP_LOCK_WAIT_MINUTES": "0",
            "PG_BIN_DIR": str(self.bin_dir),
            "PITR_ENABLED": "true",
            "WAL_POSTGRES_USER": WAL_ROLE,
            "WAL_POSTGRES_PASSWORD": WAL_PASSWORD,
            **more,
        }

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run SQL as the superuser, autocommitted."""
        with admin(self.cluster, database) as session:
            for statement in statements:
                session.execute(statement.encode())

    def reload(self) -> None:
        """Let the server read its configuration and pg_hba.conf again, and wait until new sessions have them."""
        loaded = self._loaded()
        self.execute("SELECT pg_reload_conf()")
        until(lambda: self._loaded() != loaded)

    @contextmanager
    def without_replication_line(self) -> Iterator[None]:
        """While the block runs, pg_hba.conf lets the WAL role connect to databases, but not replicate."""
        hba = self.cluster.data / "pg_hba.conf"
        text = hba.read_text("utf-8")
        hba.write_text(text.replace(REPLICATION_LINE, ""), "utf-8")
        self.reload()
        try:
            yield
        finally:
            hba.write_text(text, "utf-8")
            self.reload()

    def _loaded(self) -> object:
        with admin(self.cluster) as session:
            return session.execute("SELECT pg_conf_load_time()").fetchone()


@contextmanager
def ground_on(bin_dir: Path, *, tls: bool = False, **settings: str) -> Iterator[Ground]:
    """Start a server with the role and the pg_hba line.

    Args:
        bin_dir: the programs of the server and of its clients.
        tls: whether sessions of databases over TCP need TLS.
        settings: further settings of postgresql.conf.
    """
    with running_cluster(bin_dir, tls=tls, **settings) as cluster:
        ground = Ground(cluster, bin_dir)
        create_wal_role(cluster)
        with (cluster.data / "pg_hba.conf").open("a", encoding="utf-8") as file:
            file.write(f"{REPLICATION_LINE}\n")
        ground.reload()
        yield ground


def create_wal_role(cluster: PortCluster) -> None:
    """The role of `deploy/wal-role.sql`: it replicates, and has no other right."""
    with admin(cluster) as session:
        command = sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}")
        session.execute(command.format(sql.Identifier(WAL_ROLE), sql.Literal(WAL_PASSWORD)))


def replication_session(connection: Connection) -> psycopg.Connection[tuple[object, ...]]:
    """A session that speaks the replication protocol; it takes statements without parameters only."""
    return psycopg.Connection.connect(
        host=connection.host,
        port=connection.port,
        user=connection.user,
        password=connection.password.get_secret_value() if connection.password else None,
        replication="true",
        client_encoding="UTF8",
        autocommit=True,
        cursor_factory=psycopg.ClientCursor,
    )
