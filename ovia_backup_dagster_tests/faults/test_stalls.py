"""A stalled program is ended with an error that says why, and leaves nothing; a slow one is left alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.sandbox import Confine, Sandbox
from ovia_backup_dagster.postgres.session import be_patient, connect
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, execute, free_port, quiet, running_cluster
from ovia_backup_dagster_tests.defs.support import Location, environment, failure, load, retries
from ovia_backup_dagster_tests.doctor.support import executable
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Place, ended_by_then, files, leftovers, paused, stopped, until
from ovia_backup_dagster_tests.faults.proxy import Proxy

STALL = 1.5


@pytest.fixture(scope="module")
def cluster(bin_dir: Path) -> Iterator[PortCluster]:
    """A server for these tests alone, which they stop; its database is larger than any buffer on the way."""
    with running_cluster(bin_dir) as cluster:
        execute(cluster.connection(), "CREATE DATABASE ovia")
        execute(
            cluster.connection("ovia"),
            "CREATE SEQUENCE lonely",
            "CREATE TABLE people (id serial PRIMARY KEY, name text)",
            "CREATE TABLE big AS SELECT g AS id, repeat(md5(g::text), 20) AS text FROM generate_series(1, 60000) g",
            "INSERT INTO people (name) SELECT 'person ' || g FROM generate_series(1, 100) g",
        )
        yield cluster


@pytest.fixture
def source(cluster: PortCluster) -> Connection:
    return cluster.connection("ovia")


def through(proxy: Proxy, connection: Connection) -> Connection:
    return replace(connection, host="127.0.0.1", port=proxy.port, password=SecretStr(PASSWORD))


def dumper_of(connection: Connection, bin_dir: Path, root: Path, stall: float = STALL, lock: float = 60) -> Dumper:
    # Without compression, a dump of the database is 30 MB and takes hardly any time.
    catalog = Catalog(root, connection.database, lock_wait_seconds=0)
    return Dumper(catalog, connection, Programs(bin_dir, stall_seconds=stall), "none", lock_wait_timeout_seconds=lock)


def refused(act: Callable[[], object], root: Path | None = None) -> BackupError:
    """Return the error that the action raises; assert that nothing is left under ``root``."""
    with pytest.raises(BackupError) as caught:
        act()
    if root is not None:
        assert leftovers(root) == []
        assert not [name for name in files(root) if name.endswith(".dump")]
    return caught.value


def sessions(cluster: PortCluster) -> list[tuple[int, str, str]]:
    """Process id, state and application name of the client programs' sessions."""
    with psycopg.connect(host=str(cluster.folder), port=cluster.port, user="postgres", dbname="postgres") as session:
        query = "SELECT pid, state, application_name FROM pg_stat_activity WHERE application_name LIKE 'ovia-backup %'"
        return session.execute(query).fetchall()


@contextmanager
def stopped_process(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    stopped(pid)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)


# --------------------------------------------------------------------------------------------- dumps


@pytest.mark.exhaustive
def test_a_dump_that_receives_nothing_is_ended(source: Connection, bin_dir: Path, tmp_path: Path) -> None:
    """The proxy swallows the rows: the server still answers others, and waits for this client to read."""
    with Proxy(to=source.port, swallow_after=1_000_000) as proxy:
        began = time.monotonic()
        dumper = dumper_of(through(proxy, source), bin_dir, tmp_path)
        error = refused(lambda: dumper.dump(log=quiet), tmp_path)
        assert time.monotonic() - began < STALL + 15
    assert type(error) is errors.StalledError
    assert "made no progress for" in error.what
    assert "COPY of public.big (" in error.why
    assert "Client/ClientWrite" in error.why
    assert "ovia-backup dump" in error.fix
    assert PASSWORD not in str(error)
    assert not error.transient
    dumper_of(source, bin_dir, tmp_path).dump(log=quiet)


def test_a_dump_whose_backend_stands_still_is_ended(
    cluster: PortCluster, source: Connection, bin_dir: Path, tmp_path: Path
) -> None:
    """Only pg_dump's backend is stopped: the server answers other sessions."""
    place = place_with_stall(source, bin_dir, tmp_path)
    with psycopg.connect(host=source.host, port=source.port, user="postgres", dbname="ovia") as other:
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        with ended_by_then(place.start("dump")) as running:
            until(lambda: sessions(cluster))
            with stopped_process(sessions(cluster)[0][0]):
                other.rollback()
                line = running.wait(60).refused()
    assert "pg_dump of database ovia" in line
    assert "made no progress for" in line
    assert ": process " in line
    assert leftovers(place.root) == []


@pytest.mark.exhaustive
def test_a_dump_whose_server_stands_still_is_ended(
    cluster: PortCluster, source: Connection, bin_dir: Path, tmp_path: Path
) -> None:
    """The whole server is stopped, so it cannot be asked why the dump stalls."""
    place = place_with_stall(source, bin_dir, tmp_path)
    with psycopg.connect(host=source.host, port=source.port, user="postgres", dbname="ovia") as other:
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        with ended_by_then(place.start("dump")) as running:
            until(lambda: sessions(cluster))
            with paused(cluster):
                line = running.wait(60).refused()
    assert "the server could not be asked" in line
    assert leftovers(place.root) == []


def place_with_stall(source: Connection, bin_dir: Path, folder: Path) -> Place:
    place = place_for(source, bin_dir, folder / "backups", folder)
    return replace(place, settings={**place.settings, "BACKUP_STALL_MINUTES": str(STALL / 60)})


@pytest.mark.parametrize("program", ["pg_dump", "pg_dumpall"])
def test_a_client_program_that_hangs_is_ended(source: Connection, bin_dir: Path, tmp_path: Path, program: str) -> None:
    stuck = tmp_path / "bin"
    stuck.mkdir()
    for path in bin_dir.iterdir():
        (stuck / path.name).symlink_to(path)
    (stuck / program).unlink()
    says = f'case "$*" in *--version*|*probe*) exec {bin_dir}/{program} "$@";; esac; exec sleep 1000'
    executable(stuck / program, says).chmod(0o755)
    root = tmp_path / "backups"
    dumper = dumper_of(source, stuck, root)
    if program == "pg_dumpall":
        # A dump without saved roles is still a good dump.
        (warning,) = dumper.dump(log=quiet).manifest.warnings  # type: ignore[union-attr]
        assert "made no progress" in warning
    else:
        error = refused(lambda: dumper.dump(log=quiet), root)
        assert "the server has no session of it" in error.why


@pytest.mark.exhaustive
def test_a_slow_dump_is_left_alone(source: Connection, bin_dir: Path, tmp_path: Path) -> None:
    """The rows arrive slowly, for several times the stall limit."""
    with Proxy(to=source.port, pause=0.012) as proxy:
        began = time.monotonic()
        dumper_of(through(proxy, source), bin_dir, tmp_path).dump(log=quiet)
        assert time.monotonic() - began > 3 * STALL


@pytest.mark.exhaustive
def test_a_huge_row_is_left_alone(source: Connection, bin_dir: Path, tmp_path: Path) -> None:
    """While pg_dump compresses the row, the server waits for it to read and reports no progress."""
    letters = "translate(md5(g::text), '0123456789abcdef', 'aaaabbbbccccdddd')"  # so few are slow to compress
    execute(source, f"CREATE TABLE huge AS SELECT string_agg({letters}, '') FROM generate_series(1, 250000) g")
    try:
        began = time.monotonic()
        replace(dumper_of(source, bin_dir, tmp_path), compression="gzip:9").dump(log=quiet)
        assert time.monotonic() - began > 2 * STALL
    finally:
        execute(source, "DROP TABLE huge")


@contextmanager
def held(source: Connection, statement: str) -> Iterator[str]:
    """Hold a lock in an open transaction; yield the words that describe its session."""
    to = {"host": source.host, "port": source.port, "user": "postgres", "dbname": source.database}
    with psycopg.connect(**to, application_name="the night shift") as other:  # type: ignore[arg-type]
        other.execute(statement.encode())
        yield f"process {other.info.backend_pid} (the night shift, postgres, idle in transaction) holds"
        other.rollback()


@pytest.mark.exhaustive
def test_the_error_names_the_lock_and_its_holder(source: Connection, bin_dir: Path, tmp_path: Path) -> None:
    """pg_dump times out on a table's lock but waits forever for a sequence's. Both errors read alike."""
    for statement, name, lock, kind in (
        ("LOCK TABLE people IN ACCESS EXCLUSIVE MODE", "people", 3, errors.LockTimeoutError),
        ("DROP SEQUENCE lonely", "lonely", 60, errors.LockStalledError),
    ):
        with held(source, statement) as holder:
            dumper = dumper_of(source, bin_dir, tmp_path, STALL if lock > 10 else 4, lock)
            error = refused(lambda dumper=dumper: dumper.dump(log=quiet), tmp_path)  # type: ignore[misc]
        assert type(error) is kind
        assert f"it waited in vain for a lock on public.{name}, which {holder}" in error.why
        assert "pg_terminate_backend" in error.fix
        assert error.transient is (kind is errors.LockTimeoutError)


@pytest.mark.exhaustive
def test_a_stalled_run_is_not_retried(source: Connection, bin_dir: Path, tmp_path: Path) -> None:
    """Each retry would hold the volume's lock for as long again, and delay the alert."""
    with Proxy(to=source.port, swallow_after=1_000_000) as proxy, dg.DagsterInstance.ephemeral() as instance:
        to = through(proxy, source)
        more = {"PGPASSWORD": PASSWORD, "BACKUP_STALL_MINUTES": str(STALL / 60), "BACKUP_COMPRESSION": "none"}
        location = Location(load(environment(to, tmp_path / "volume", bin_dir, **more)), instance)
        result = location.materialize("daily_dump")
    assert "made no progress for" in failure(result)
    assert retries(result) == 0
    assert leftovers(tmp_path / "volume") == []


# --------------------------------------------------------------------------------------------- questions


def test_an_unanswered_query_is_ended(cluster: PortCluster, source: Connection) -> None:
    def ask() -> None:
        with (
            connect(source, answer_seconds=1) as session,
            stopped_process(session.info.backend_pid),
            session.transaction(),
        ):
            session.execute("SELECT 1")

    began = time.monotonic()
    error = refused(ask)
    assert time.monotonic() - began < 6
    assert type(error) is errors.ServerSilentError
    assert "no answer from the server for 1 s" in error.said
    assert "pg_isready" in error.fix
    assert error.transient


@pytest.mark.exhaustive
def test_a_session_behind_a_silent_proxy_ends(source: Connection) -> None:
    def ask(swallow_after: int) -> None:
        with (
            Proxy(to=source.port, swallow_after=swallow_after) as proxy,
            connect(through(proxy, source), answer_seconds=1) as session,
        ):
            session.execute("SELECT repeat('x', 1000000)").fetchall()

    assert type(refused(lambda: ask(2_000))) is errors.ServerSilentError
    assert type(refused(lambda: ask(0))) is errors.ServerUnreachableError


@pytest.mark.exhaustive
def test_slowly_arriving_rows_count_as_an_answer(source: Connection) -> None:
    with Proxy(to=source.port, pause=0.1) as proxy, connect(through(proxy, source), answer_seconds=1) as session:
        began = time.monotonic()
        session.execute("SELECT repeat('x', 1000000)").fetchall()
        assert time.monotonic() - began > 1


def test_a_longer_stall_limit_waits_longer(source: Connection) -> None:
    with connect(source, answer_seconds=0.5) as session:
        be_patient(session, 5)
        session.execute("SELECT pg_sleep(1)")


# --------------------------------------------------------------------------------------------- restores


@pytest.fixture(scope="module")
def archive(cluster: PortCluster, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dumper_of(cluster.connection("ovia"), bin_dir, tmp_path_factory.mktemp("volume")).dump(log=quiet).path


@pytest.fixture
def target(cluster: PortCluster) -> Iterator[Connection]:
    name = f"copy{free_port()}"
    execute(cluster.connection(), f"CREATE DATABASE {name}")
    yield cluster.connection(name)
    execute(cluster.connection(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.exhaustive
def test_a_restore_whose_rows_go_nowhere_is_ended(target: Connection, archive: Path, bin_dir: Path) -> None:
    programs = Programs(bin_dir, stall_seconds=STALL)
    with Proxy(to=target.port, stop_reading_after=4_000_000) as proxy:
        restorer = Restorer(programs, through(proxy, target), "copy", 2)
        listing = archives.contents_list(programs, archive)
        error = refused(lambda: restorer.restore(archive, listing, None, quiet))
    assert type(error) is errors.StalledError
    assert "COPY of public.big (" in error.why
    assert "Client/ClientRead" in error.why


@pytest.mark.exhaustive
def test_a_restore_that_works_in_silence_is_left_alone(
    source: Connection, target: Connection, bin_dir: Path, tmp_path: Path
) -> None:
    """An index, a foreign key or a view may take hours, and PostgreSQL's progress views do not cover all of them."""
    execute(
        target,
        "CREATE TABLE t AS SELECT 1 AS id",
        """CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
           $$ BEGIN PERFORM pg_catalog.pg_sleep(4); RETURN $1; END $$""",
        "CREATE INDEX ON t (slow(id))",
    )
    programs = Programs(bin_dir, stall_seconds=STALL)
    made = dumper_of(target, bin_dir, tmp_path).dump(log=quiet).path
    execute(target, "DROP TABLE t; DROP FUNCTION slow")
    restorer = Restorer(programs, target, "copy", 1)
    restorer.restore(made, archives.contents_list(programs, made), None, quiet)


def test_a_hanging_read_of_an_archive_is_no_verdict(archive: Path, bin_dir: Path, tmp_path: Path) -> None:
    """A program that hangs on a silent disk is ended, and the error says nothing about the archive."""
    # Opening a FIFO hangs in the same way. The archive itself cannot be a FIFO: that is refused earlier.
    os.mkfifo(tmp_path / "hung")
    bin_here = tmp_path / "bin"
    bin_here.mkdir()
    hung = bin_here / "pg_restore"
    hung.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || read -r line < {tmp_path}/hung\nexec {bin_dir}/pg_restore "$@"\n'
    )
    hung.chmod(0o755)
    programs = Programs(bin_here, Sandbox(Confine.OFF), stall_seconds=0.5)
    error = refused(lambda: archives.contents_list(programs, archive))
    assert type(error) is errors.StalledError
    assert "a disk, or the network to it, may hang" in error.why


def test_watching_threads_end_with_their_program(archive: Path, bin_dir: Path) -> None:
    archives.contents_list(Programs(bin_dir), archive)
    until(lambda: not any(thread.name.startswith("watch ") for thread in threading.enumerate()))
