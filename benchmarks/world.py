"""What the benchmarks measure on: a server, databases of a given size, volumes, and Dagster's home.

The server is the full PostgreSQL build. It does not protect data from a power cut, which hardly matters to programs
that only read. For all sides, the data is in the server's memory or the kernel's.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

from benchmarks.measure import REPOSITORY, run, say
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.programs import Connection

BIN = REPOSITORY / ".cache" / "postgresql-16" / "bin"
PYTHON = sys.executable
DAGSTER = (PYTHON, "-W", "ignore", "-m", "dagster")
DAGSTER_DAEMON = Path(sys.executable).with_name("dagster-daemon")
OVIA_BACKUP = Path(sys.executable).with_name("ovia-backup")
DEFINITIONS = "ovia_backup_dagster.definitions"

_SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}
_OURS = ("POSTGRES_", "BACKUP_", "PG", "DAGSTER_", "PYTHON")
#: Bytes of an empty database, of the demo's data at scale 1, and of a message. Half of a database is demo data, half
#: messages; above 1 GB only messages grow, because they are made faster.
_EMPTY, _SCALE, _MESSAGE = 7.5e6, 96.5e6, 608.0
_LARGEST_SCALE = 5.2
_COMPOSED = 900_000


@dataclass
class World:
    """A server and a folder, made on first use.

    Attributes:
        folder: contains everything.
    """

    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _sizes: dict[int, str] = field(default_factory=dict)
    _cluster: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        """The server, running."""
        if self._cluster is None:
            cluster = Cluster(BIN, self.folder / "server", settings=_SETTINGS)
            cluster.create()
            cluster.start()
            self._cluster = cluster
        return self._cluster

    def database(self, megabytes: int) -> Connection:
        """A database of about that size, made on first use."""
        if megabytes not in self._sizes:
            name = f"bench_{megabytes}"
            say(f"making a database of {megabytes:,} MB")
            self._make(name, megabytes)
            self._sizes[megabytes] = name
        return self.cluster.connection(self._sizes[megabytes])

    def size_bytes(self, database: Connection) -> int:
        """``pg_database_size``."""
        with psycopg.connect(host=database.host, dbname=database.database, user=database.user) as session:
            row = session.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])

    def path(self, name: str) -> Path:
        """A new path in the folder."""
        return self.folder / f"{name}-{next(self._numbers)}"

    def environment(self, database: Connection | None, **more: str) -> dict[str, str]:
        """A child's environment: no settings from outside, its own volume and Dagster home."""
        home = self.path("dagster")
        home.mkdir()
        shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return {
            **kept,
            "DAGSTER_HOME": str(home),
            "POSTGRES_HOST": database.host if database else "nowhere",
            "POSTGRES_DB": database.database if database else "ovia",
            "POSTGRES_USER": database.user if database else "ovia",
            "BACKUP_DIR": str(self.path("backups")),
            "BACKUP_EXPECTED_TABLES": "people,identities,person_identity_links",
            "BACKUP_REQUIRE_ROWS": "true",
            "PG_BIN_DIR": str(BIN),
            **more,
        }

    def remove(self) -> None:
        """Remove the server and the folder."""
        if self._cluster is not None:
            self._cluster.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self, name: str, megabytes: int) -> None:
        scale = min(megabytes * 1e6 / 2 / _SCALE, _LARGEST_SCALE)
        messages = max(1, int((megabytes * 1e6 - _EMPTY - scale * _SCALE) / _MESSAGE))
        repeats = -(-messages // _COMPOSED)
        embedded_server.create_database(self.cluster.connection(), BIN, name, scale)
        database = self.cluster.connection(name)
        command = (BIN / "psql", "--no-psqlrc", f"--set=messages={messages // repeats}", f"--set=repeats={repeats}")
        run((*command, f"--file={Path(__file__).with_name('data.sql')}"), libpq(database))
        say(f"  it is {self.size_bytes(database) / 1e6:,.0f} MB")


def libpq(database: Connection) -> dict[str, str]:
    """The environment of a client program."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", **database.environment()}


@contextmanager
def world() -> Iterator[World]:
    """A world that is always removed afterwards. Its folder's path is short, because of the socket's path."""
    made = World(Path(tempfile.mkdtemp(prefix="ovia-bench-")))
    try:
        made.folder.chmod(0o711)  # the server's account must enter it
        yield made
    finally:
        say("removing what was made")
        made.remove()
