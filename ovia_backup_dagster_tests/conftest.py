"""Fixtures that several test modules need: servers, databases, volumes.

A server is started once per worker; each test gets its own database, copied from a template. Everything is in short
folders under /tmp, because a Unix socket's path must be short, and is removed afterwards.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings
from psycopg import sql

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.settings.model import PREFIXES
from ovia_backup_dagster_tests.support import exhaustive

REPOSITORY = Path(__file__).parents[1]
FULL_BIN = REPOSITORY / ".cache" / "postgresql-16" / "bin"
TEMPLATE = "demo_template"
SCALE = 0.02
PASSWORD = "s3cret-of-the-tests"
DROP_ALL_TABLES = """
    DO $$ DECLARE found regclass; BEGIN
        LOOP
            -- One at a time: others may go with it.
            SELECT oid INTO found FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384 LIMIT 1;
            EXIT WHEN found IS NULL;
            EXECUTE format('DROP TABLE %s CASCADE', found);
        END LOOP;
    END $$
"""

_numbers = count(1)

# A busy machine may take any time for an example.
hypothesis_settings.register_profile("tests", deadline=None)
hypothesis_settings.register_profile(exhaustive.LINES, deadline=None, max_examples=20)
hypothesis_settings.load_profile("tests")

# A process in a shell's background ignores SIGINT, and so would all programs that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Likewise, nohup ignores SIGHUP.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


#: Seconds after which a test is ended, so that one that hangs does not stop the others. 60 s are long for a daily test.
_TEST_SECONDS = 180
_EXHAUSTIVE_SECONDS = 1200


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the exhaustive tests that are not this run's, and give each test a time limit."""
    rounds = [item for item in items if item.get_closest_marker(exhaustive.MARK)]
    run = set(map(id, exhaustive.chosen(rounds, exhaustive.choice(), exhaustive.seed())))
    left_out = [item for item in rounds if id(item) not in run]
    if left_out:
        out = set(map(id, left_out))
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if id(item) not in out]
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.faults)
        if not item.get_closest_marker("timeout"):
            seconds = _EXHAUSTIVE_SECONDS if id(item) in run else _TEST_SECONDS
            item.add_marker(pytest.mark.timeout(seconds))


def pytest_report_header() -> str:
    which = exhaustive.choice() or "none"
    return f"exhaustive tests: {which}, FAULTS_SEED={exhaustive.seed()}"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the outer environment that are settings."""
    for name in list(os.environ):
        if name.startswith((*PREFIXES, "PG", "DAGSTER_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def bin_dir() -> Path:
    """The embedded PostgreSQL 16: no zstd, no TLS."""
    return embedded_server.bin_dir()


@pytest.fixture(scope="session")
def full_bin_dir() -> Path:
    """A whole PostgreSQL 16, with zstd, lz4 and TLS. `make test` fetches it."""
    if not (FULL_BIN / "postgres").exists():
        message = "the full PostgreSQL build is missing: make test fetches it into .cache"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return FULL_BIN


@pytest.fixture(scope="session")
def server(bin_dir: Path) -> Iterator[PortCluster]:
    """A running embedded server, with the sample database as a template. TCP requires a password."""
    with running_cluster(bin_dir) as cluster:
        embedded_server.create_database(cluster.connection(), bin_dir, TEMPLATE, SCALE)
        yield cluster


@pytest.fixture(scope="session")
def full_server(full_bin_dir: Path) -> Iterator[PortCluster]:
    """The same with the whole PostgreSQL; TCP requires a password and TLS."""
    with running_cluster(full_bin_dir, tls=True) as cluster:
        embedded_server.create_database(cluster.connection(), full_bin_dir, TEMPLATE, SCALE)
        yield cluster


class running_cluster:  # noqa: N801 - used like a function
    """A separate cluster, for tests that stop, kill or break it."""

    def __init__(self, bin_dir: Path, *, tls: bool = False, superuser: str = "postgres", **settings: str) -> None:
        self.port = free_port()
        folder = Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp"))
        # The socket's name contains the port, so both use one number.
        settings = {"port": str(self.port), "listen_addresses": "127.0.0.1", "max_connections": "40", **settings}
        if tls:
            settings |= {"ssl": "on", "ssl_cert_file": f"{folder}/server.crt", "ssl_key_file": f"{folder}/server.key"}
        self.tls = tls
        self.cluster = PortCluster(bin_dir, folder, superuser, settings=settings, port=self.port)

    def __enter__(self) -> PortCluster:
        cluster = self.cluster
        cluster.create()
        kind = "hostssl" if self.tls else "host"
        (cluster.data / "pg_hba.conf").write_text(
            f"local all all trust\n{kind} all all 127.0.0.1/32 scram-sha-256\n", encoding="utf-8"
        )
        if self.tls:
            files = cluster.folder / "server.key", cluster.folder / "server.crt"
            make_certificate(*files)
            owner = cluster.data.stat()
            for path in files:
                path.chmod(0o600)
                os.chown(path, owner.st_uid, owner.st_gid)
        cluster.start()
        with admin(cluster) as session:
            command = sql.SQL("ALTER ROLE {} PASSWORD {}")
            session.execute(command.format(sql.Identifier(cluster.superuser), sql.Literal(PASSWORD)))
        return cluster

    def __exit__(self, *_: object) -> None:
        self.cluster.remove()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Random:
    """Random numbers of this test alone. A failure shows the seed that repeats them."""
    print(f"FAULTS_SEED={exhaustive.seed()}")
    return Random(f"{exhaustive.seed()}/{request.node.name}")


@dataclass(frozen=True)
class PortCluster(Cluster):
    """A cluster that also listens on a TCP port of 127.0.0.1."""

    port: int = 5432

    def connection(self, database: str = "postgres", user: str | None = None) -> Connection:
        return Connection(host=str(self.folder), port=self.port, database=database, user=user or self.superuser)


def admin(cluster: Cluster, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
    """A superuser's autocommit session."""
    to = cluster.connection(database)
    return psycopg.connect(host=to.host, port=to.port, dbname=to.database, user=to.user, autocommit=True)


def make_certificate(key: Path, certificate: Path) -> None:
    """A self-signed certificate for 127.0.0.1."""
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    command = [*request.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)


def free_port() -> int:
    """A TCP port that no process listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NewDatabase = Callable[..., Connection]


def _databases(cluster: PortCluster) -> Iterator[NewDatabase]:
    made: list[str] = []

    def new(name: str | None = None, template: str = TEMPLATE) -> Connection:
        name = name or f"db{os.getpid()}_{next(_numbers)}"
        with admin(cluster) as session:
            command = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy OWNER ovia")
            session.execute(command.format(sql.Identifier(name), sql.Identifier(template)))
            # CREATE DATABASE copies no database-level settings.
            for setting in ("timezone = 'America/New_York'", "bytea_output = 'escape'"):
                session.execute(sql.SQL("ALTER DATABASE {} SET " + setting).format(sql.Identifier(name)))
        made.append(name)
        return cluster.connection(name)

    try:
        yield new
    finally:
        if cluster.running:
            with admin(cluster) as session:
                for name in made:
                    session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def new_database(server: PortCluster) -> Iterator[NewDatabase]:
    """Makes copies of the sample database on the embedded server."""
    yield from _databases(server)


@pytest.fixture
def new_full_database(full_server: PortCluster) -> Iterator[NewDatabase]:
    """Makes copies of the sample database on the whole PostgreSQL."""
    yield from _databases(full_server)


@pytest.fixture
def database(new_database: NewDatabase) -> Connection:
    """A new sample database; the connection is a superuser's."""
    return new_database()


@pytest.fixture
def programs(bin_dir: Path) -> Programs:
    return Programs(bin_dir)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """The backup folder; it does not exist yet."""
    return tmp_path / "backups"


@pytest.fixture
def catalog(volume: Path, database: Connection) -> Catalog:
    return Catalog(volume, database.database, lock_wait_seconds=0)


@pytest.fixture
def dumper(catalog: Catalog, database: Connection, programs: Programs) -> Dumper:
    return Dumper(catalog, database, programs, lock_wait_timeout_seconds=1)


@pytest.fixture
def verifier(catalog: Catalog, programs: Programs) -> Verifier:
    return Verifier(catalog, programs, Expectations(("people", "identities", "person_identity_links"), True))


def execute(connection: Connection, *statements: str) -> None:
    """Run SQL as given, autocommitted."""
    with psycopg.connect(
        host=connection.host,
        port=connection.port,
        dbname=connection.database,
        user=connection.user,
        password=connection.password.get_secret_value() if connection.password else None,
        client_encoding="UTF8",
        autocommit=True,
    ) as session:
        for statement in statements:
            session.execute(statement.encode())


@contextmanager
def dump_that_waits(database: Connection) -> Iterator[Callable[[], bool]]:
    """Lock a table, so that pg_dump waits while the block runs; yields a function that says whether a session waits."""
    to = {"host": database.host, "port": database.port, "dbname": database.database, "user": database.user}
    with psycopg.connect(**to) as other, psycopg.connect(**to, autocommit=True) as watcher:  # type: ignore[arg-type]
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        yield lambda: bool(watcher.execute(waiting).fetchall())


def quiet(_: str) -> None:
    """A log that discards its lines."""


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files below a folder with inode and content, to see that nothing changed."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in files}
