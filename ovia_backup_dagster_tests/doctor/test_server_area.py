"""The doctor's observations of the server: connection, version, health, and what it refuses."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.doctor import examination
from ovia_backup_dagster.doctor import server_area as doctor
from ovia_backup_dagster.doctor.report import Area, Observation, Severity
from ovia_backup_dagster.postgres import programs
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import (
    PASSWORD,
    NewDatabase,
    PortCluster,
    admin,
    execute,
    free_port,
    running_cluster,
)
from ovia_backup_dagster_tests.defs.support import frozen
from ovia_backup_dagster_tests.doctor.support import as_it_should, new_role, system_of, the
from ovia_backup_dagster_tests.support.factories import make_catalog, publish


def server_of(connection: Connection, volume: Path, bin_dir: Path, **more: str) -> list[Observation]:
    return list(doctor.server(system_of(connection, volume, bin_dir, **more)))


@pytest.fixture
def tcp(database: Connection, server: PortCluster) -> Connection:
    return replace(database, host="127.0.0.1", port=server.port)


# ------------------------------------------------------------------------------------------ the connection


@pytest.fixture
def repaired_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the tests' server for the newest release: no registry has a newer one yet."""
    monkeypatch.setattr(doctor, "newest_minor", lambda major: 15)


@pytest.mark.usefixtures("repaired_server")
def test_all_is_well_for_a_superuser(new_full_database: NewDatabase, full_bin_dir: Path, volume: Path) -> None:
    to = new_full_database()
    lines = server_of(to, volume, full_bin_dir)
    assert as_it_should(lines)
    the(lines, f"connected to database {to.database} at {to.host}:{to.port} as postgres, by a Unix socket")
    the(lines, "PostgreSQL 16.15, as the client programs")
    the(lines, "page checksums are off; with them (pg_checksums --enable) a failing disk is noticed")
    the(lines, "the expected tables are there: people, identities, person_identity_links")
    right = the(lines, "role postgres may read all that a dump holds")
    assert right.area is Area.RIGHTS


def test_private_tcp_and_tls_are_ok(
    tcp: Connection, bin_dir: Path, new_full_database: NewDatabase, full_server: PortCluster, volume: Path
) -> None:
    lines = server_of(tcp, volume, bin_dir, PGPASSWORD=PASSWORD)
    assert the(lines, "by plain TCP").level is Severity.OK
    encrypted = replace(new_full_database(), host="127.0.0.1", port=full_server.port)
    lines = server_of(encrypted, volume, bin_dir, PGPASSWORD=PASSWORD, PGSSLMODE="require")
    assert the(lines, "by TLS").level is Severity.OK


def test_plain_tcp_outside_a_private_network_is_a_warning(
    tcp: Connection, bin_dir: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PRIVATE", ["10.0.0.0/8"])
    line = the(server_of(tcp, volume, bin_dir, PGPASSWORD=PASSWORD), "outside a private network")
    assert (line.level, "PGSSLMODE=verify-full" in line.fix) == (Severity.WARN, True)


@pytest.mark.parametrize(("ahead", "way"), [(20, "behind"), (-20, "ahead of")])
def test_clocks_that_differ_are_a_warning(
    database: Connection, bin_dir: Path, volume: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, way: str
) -> None:
    monkeypatch.setattr(
        doctor, "datetime", frozen(datetime.now(UTC) + timedelta(minutes=ahead, seconds=30 * ahead / 20))
    )
    line = the(server_of(database, volume, bin_dir), "the server's clock is ")
    assert (line.level, f"20 min {way} the one here" in line.text) == (Severity.WARN, True)
    assert line.fix.startswith("date -u on both")


@pytest.mark.parametrize(
    ("until", "words"),
    [(timedelta(days=9), "expires on"), (timedelta(days=-9), "has expired on"), (timedelta(days=90), None)],
)
def test_a_password_that_expires_soon_is_a_warning(
    database: Connection, bin_dir: Path, volume: Path, until: timedelta, words: str | None
) -> None:
    day = datetime.now(UTC) + until
    to = new_role(database, f"SUPERUSER VALID UNTIL '{day:%Y-%m-%d} UTC'", f'exp "{until.days}')
    lines = server_of(to, volume, bin_dir)
    the(lines, "may read all that a dump holds")
    if words is None:
        assert not [line for line in lines if "password" in line.text]
        return
    line = the(lines, f"the password of role {to.user} {words} {day:%Y-%m-%d}")
    assert (line.level, line.sql) == (Severity.WARN, (f'ALTER ROLE "exp ""{until.days}" VALID UNTIL \'infinity\';',))
    execute(database, *line.sql)
    # After the pasted SQL, the warning is gone.
    lines = server_of(to, volume, bin_dir)
    assert not [line for line in lines if "password" in line.text]
    the(lines, "may read all that a dump holds")


def test_sql_is_pasted_into_psql_of_the_superuser(database: Connection, bin_dir: Path, volume: Path) -> None:
    line = the(server_of(new_role(database), volume, bin_dir), "hidden by row security")
    assert line.fix == (
        f"as a superuser: psql -h {database.host} -p {database.port} -d {database.database} -U postgres"
    )


# ------------------------------------------------------------------------------------------ refusals


def refusal(connection: Connection, volume: Path, bin_dir: Path, **more: str) -> Observation:
    (line,) = server_of(connection, volume, bin_dir, **more)
    assert (line.area, line.level) == (Area.SERVER, Severity.FAIL)
    return line


def test_refusals_have_the_words_of_a_dumps_error(
    database: Connection, tcp: Connection, bin_dir: Path, volume: Path
) -> None:
    nowhere = replace(tcp, port=free_port())
    assert "Connection refused" in refusal(nowhere, volume, bin_dir).text
    line = refusal(tcp, volume, bin_dir, PGPASSWORD=PASSWORD[:-1])
    assert "password authentication failed" in line.text
    assert PASSWORD[:-1] not in repr(line)
    assert "no password supplied" in refusal(tcp, volume, bin_dir).text
    line = refusal(tcp, volume, bin_dir, POSTGRES_PASSWORD_FILE="/no/such/file")
    assert "POSTGRES_PASSWORD_FILE=/no/such/file cannot be read" in line.text
    assert line.fix == "ls -l /no/such/file"
    line = refusal(replace(database, user="no one"), volume, bin_dir)
    assert "CREATE ROLE \"no one\" LOGIN PASSWORD '...'" in line.fix
    line = refusal(replace(database, database="no_such_database"), volume, bin_dir)
    assert 'database "no_such_database" does not exist' in line.text


def test_a_connection_limit_of_zero_is_reported_with_its_fix(database: Connection, bin_dir: Path, volume: Path) -> None:
    to = new_role(database, "CONNECTION LIMIT 0")
    line = refusal(to, volume, bin_dir)
    assert "too many connections for role" in line.text
    assert f'ALTER ROLE "{to.user}" CONNECTION LIMIT 5' in line.fix


def test_a_role_with_one_connection_can_dump(database: Connection, bin_dir: Path, volume: Path) -> None:
    to = new_role(database, "CONNECTION LIMIT 1 BYPASSRLS IN ROLE pg_read_all_data")
    assert the(server_of(to, volume, bin_dir), "connected to ").level is Severity.OK


def test_a_server_that_hangs_is_given_up(volume: Path, bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process listens and never answers."""
    monkeypatch.setattr(programs, "CONNECT_TIMEOUT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silence = Connection("127.0.0.1", silent.getsockname()[1], "ovia", "ovia")
        began = datetime.now(UTC)
        line = refusal(silence, volume, bin_dir)
    assert datetime.now(UTC) - began < timedelta(seconds=8)
    assert "nothing answers there" in line.text
    assert line.fix.startswith("pg_isready -h 127.0.0.1")


def test_settings_of_the_role_change_no_observation(database: Connection, bin_dir: Path, volume: Path) -> None:
    to = new_role(database, "SUPERUSER")
    for setting in ("datestyle = 'German, DMY'", "statement_timeout = 1", "timezone = 'Asia/Kathmandu'"):
        execute(database, f'ALTER ROLE "{to.user}" SET {setting}')
    execute(database, f"ALTER ROLE \"{to.user}\" VALID UNTIL '{datetime.now(UTC) + timedelta(days=9):%Y-%m-%d} UTC'")
    lines = server_of(to, volume, bin_dir)
    assert the(lines, "expires on").level is Severity.WARN
    assert the(lines, "may read all that a dump holds").level is Severity.OK


# ------------------------------------------------------------------------------------------ its version


def test_a_server_without_the_newest_fixes_is_a_warning(database: Connection, bin_dir: Path, volume: Path) -> None:
    """The embedded server is such; this test fails when it no longer is."""
    line = the(server_of(database, volume, bin_dir), "the server is PostgreSQL 16.14; 16.16 fixes vulnerabilities")
    assert (line.level, line.fix) == (Severity.WARN, "install PostgreSQL 16.16 on the server; restart it")


def test_a_server_of_another_major_version_is_a_failure(volume: Path, bin_dir: Path) -> None:
    with running_cluster(embedded_server.bin_dir(18)) as newer:
        lines = server_of(newer.connection(), volume, bin_dir, BACKUP_EXPECTED_TABLES="")
        line = the(lines, "the server is PostgreSQL 18.")
        assert (line.level, line.text.endswith(", pg_dump is 16")) == (Severity.FAIL, True)
        assert "use PostgreSQL 18's client programs: set PG_BIN_DIR" in line.fix
        # The other checks still work.
        assert the(lines, "may read all that a dump holds").level is Severity.OK
        assert the(lines, "page checksums are on, no damaged page was found").level is Severity.OK


@pytest.mark.usefixtures("repaired_server")
def test_without_client_programs_the_server_is_checked(
    new_full_database: NewDatabase, volume: Path, tmp_path: Path
) -> None:
    lines = server_of(new_full_database(), volume, tmp_path)
    assert as_it_should(lines)
    assert the(lines, "PostgreSQL 16.15").text == "PostgreSQL 16.15"


# ------------------------------------------------------------------------------------------ its health


def test_a_damaged_page_is_a_failure_a_standby_a_warning(bin_dir: Path, volume: Path) -> None:
    """On its own server, because the test damages it."""
    with running_cluster(bin_dir) as cluster:
        cluster.stop()
        done = cluster._call("pg_checksums", "--enable", "--no-sync", f"--pgdata={cluster.data}")
        assert done.returncode == 0, done.stdout
        cluster.start()
        to = cluster.connection()
        assert (
            the(server_of(to, volume, bin_dir), "page checksums are on, no damaged page was found").level is Severity.OK
        )

        standby = replace(cluster, folder=Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp")), port=free_port())
        try:
            folder = standby.folder
            shutil.chown(folder, cluster.data.stat().st_uid, cluster.data.stat().st_gid)
            with open(cluster.data / "pg_hba.conf", "a") as rules:
                rules.write("local replication all trust\n")
            execute(to, "SELECT pg_reload_conf()")
            copy = ("-h", str(cluster.folder), "-p", str(cluster.port), "-U", "postgres", "-D", str(standby.data))
            done = cluster._call("pg_basebackup", *copy, "-R", "-c", "fast", "--no-sync")
            assert done.returncode == 0, done.stdout
            with open(standby.data / "postgresql.conf", "a") as file:
                file.write(f"port = {standby.port}\nunix_socket_directories = '{folder}'\n")
            standby.start()
            line = the(server_of(standby.connection(), volume, bin_dir), "this is a standby")
            assert line.level is Severity.WARN
            assert line.fix.endswith(f"psql -h {folder} -p {standby.port} -d postgres -U postgres")
            execute(standby.connection(), *line.sql)
            with admin(standby) as session:
                row = session.execute("SHOW max_standby_streaming_delay").fetchone()
                assert row == ("1h",)
        finally:
            standby.remove()

        execute(to, "CREATE TABLE doomed AS SELECT generate_series(1, 1000) AS x", "CHECKPOINT")
        with admin(cluster) as session:
            row = session.execute("SELECT pg_relation_filepath('doomed')").fetchone()
            assert row is not None
            page = cluster.data / str(row[0])
        cluster.stop()
        with open(page, "r+b") as table:
            table.seek(4000)
            table.write(b"\xff" * 16)
        cluster.start()
        with pytest.raises(psycopg.errors.DataCorrupted):
            execute(to, "SELECT sum(x) FROM doomed")
        line = the(server_of(to, volume, bin_dir), "the server has found 1 damaged page")
        assert (line.level, "it is losing data" in line.text) == (Severity.FAIL, True)
        assert line.fix.startswith("keep all existing backups")


def test_subscriptions_and_unlogged_tables_are_reported(database: Connection, bin_dir: Path, volume: Path) -> None:
    to = new_role(database, "BYPASSRLS IN ROLE pg_read_all_data")
    execute(
        database,
        "CREATE SUBSCRIPTION doctors CONNECTION 'host=127.0.0.1 dbname=x' PUBLICATION p WITH (connect = false)",
        "ALTER SUBSCRIPTION doctors SET (slot_name = NONE)",
        "CREATE UNLOGGED TABLE quick (x int)",
    )
    try:
        lines = server_of(to, volume, bin_dir)
    finally:
        execute(database, "DROP SUBSCRIPTION doctors")
    line = the(lines, "pg_dump dumps subscriptions only for a superuser, and the database has some (1)")
    assert (line.level, line.fix.startswith("write down their CREATE SUBSCRIPTION")) == (Severity.WARN, True)
    assert the(lines, "unlogged tables (2) are in the dump, but empty after a crash").level is Severity.OK


# ------------------------------------------------------------------------------------------ is it the right server?


def test_missing_expected_tables_are_a_failure(database: Connection, bin_dir: Path, volume: Path) -> None:
    lines = server_of(database, volume, bin_dir, BACKUP_EXPECTED_TABLES="people,public.people,pg_class,nope,x.people")
    line = the(lines, "tables that a dump must hold are not in the database: pg_class, nope, x.people")
    assert (line.level, "is POSTGRES_DB the right one?" in line.fix) == (Severity.FAIL, True)


def test_no_expected_table_is_a_warning(database: Connection, bin_dir: Path, volume: Path) -> None:
    line = the(server_of(database, volume, bin_dir, BACKUP_EXPECTED_TABLES=","), "no table is expected")
    assert (line.level, "set BACKUP_EXPECTED_TABLES" in line.fix) == (Severity.WARN, True)


def test_another_server_than_the_last_dumps_is_a_warning(database: Connection, bin_dir: Path, volume: Path) -> None:
    system = system_of(database, volume, bin_dir)
    system.dumper.dump(log=lambda _: None)
    assert not [line for line in doctor.server(system) if "not the server" in line.text]
    publish(make_catalog(volume, database.database), datetime.now(UTC) + timedelta(minutes=1))
    line = the(doctor.server(system), "this is not the server of the last dump")
    told = "expected after a restore; after a move, the first dump is bad until: ovia-backup accept latest; "
    assert (line.level, line.fix) == (Severity.WARN, told + "else check POSTGRES_HOST")
    for path in (volume / Tier.DAILY.value).glob("*.json"):
        path.write_text("{")
    assert not [line for line in doctor.server(system) if "not the server" in line.text]


# ------------------------------------------------------------------------------------------ nothing is changed


def contents(database: Connection, bin_dir: Path) -> str:
    """The whole database as text, roles included."""
    command = (str(bin_dir / "pg_dumpall"), "--no-password", f"--database={database.database}")
    variables = {key: value for key, value in database.environment().items() if key != "PGDATABASE"}
    done = subprocess.run(command, env={**variables, "LC_ALL": "C"}, capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stdout.splitlines() if "restrict" not in line)


@contextmanager
def without_autovacuum(session: psycopg.Connection[tuple[int]]) -> Iterator[None]:
    """Stop autovacuum, whose workers write too: none runs in the block."""
    session.execute("ALTER SYSTEM SET autovacuum = off")
    session.execute("SELECT pg_reload_conf()")
    try:
        while session.execute("SELECT 1 FROM pg_stat_activity WHERE backend_type ~ '^autovacuum'").fetchone():
            time.sleep(0.05)
        yield
    finally:
        session.execute("ALTER SYSTEM RESET autovacuum")
        session.execute("SELECT pg_reload_conf()")


def test_the_doctor_changes_nothing_in_the_database(database: Connection, bin_dir: Path, volume: Path) -> None:
    to = new_role(database)
    before = contents(database, bin_dir)
    with admin_of(database) as session, without_autovacuum(session):
        began = session.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        lines = list(examination.everything(system_of(to, volume, bin_dir)))
        ended = session.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
    the(lines, "cannot be read (new ones will need the same grant")
    # No transaction in between wrote anything.
    assert began is not None
    assert ended == (began[0] + 1,)
    assert contents(database, bin_dir) == before
    assert not volume.exists()


def admin_of(database: Connection) -> psycopg.Connection[tuple[int]]:
    return psycopg.connect(
        host=database.host, port=database.port, dbname=database.database, user=database.user, autocommit=True
    )


def test_no_password_is_shown(tcp: Connection, bin_dir: Path, volume: Path) -> None:
    for password in (PASSWORD, "wr0ng-" + PASSWORD):
        lines = list(examination.everything(system_of(tcp, volume, bin_dir, PGPASSWORD=password)))
        text = json.dumps([line.as_dict() for line in lines]) + repr(lines)
        assert PASSWORD not in text
