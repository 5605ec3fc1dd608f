"""A connection pooler is recognised and refused before anything is read or locked through it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.core.errors import PoolerError
from ovia_backup_dagster.doctor import server_area as doctor
from ovia_backup_dagster.doctor.report import Severity
from ovia_backup_dagster.postgres import connection_pooler
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof.target import drop_kept
from ovia_backup_dagster.restoration.swap import names_by_oid
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, admin, quiet
from ovia_backup_dagster_tests.doctor.support import system_of, the
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.support.pgbouncer import pgbouncer

MODES = ("transaction", "statement", "session")
#: A pooler may run any statement at the start of its sessions.
AS_ASKED = "connect_query='SET ovia_backup.asked = known'"
PLAIN, IGNORING = "extra_float_digits", "extra_float_digits,options"


def refused(connection: Connection) -> str:
    with pytest.raises(PoolerError) as caught, connect(connection) as session:
        session.execute("SELECT 1")
    assert "set POSTGRES_HOST and the port to those of the server itself" in caught.value.fix
    assert not caught.value.transient
    return caught.value.why


@pytest.mark.parametrize("ignored", [PLAIN, IGNORING], ids=["plain", "ignoring"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pooler_in_every_mode_is_refused_and_keeps_no_lock(server: PortCluster, mode: str, ignored: str) -> None:
    with pgbouncer(server.port, mode=mode, ignored=ignored) as connection:
        why = refused(connection)
        assert ("not in effect" in why or "not the one" in why) is (ignored == IGNORING)
        # The lock of a swap would remain in the pooler's session.
        with admin(server) as session:
            assert not session.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory'").fetchall()


@pytest.mark.parametrize("mode", MODES)
def test_a_pooler_that_sets_our_token_is_refused(
    server: PortCluster, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pooler, "new_token", lambda: "known")
    with pgbouncer(server.port, mode=mode, ignored=IGNORING, connect=AS_ASKED) as connection:
        assert "not the one that accepted the session" in refused(connection)


@pytest.fixture
def _unknown_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a proxy that reports no backend process id: only the session's settings can tell."""
    monkeypatch.setattr("psycopg.ConnectionInfo.backend_pid", 0)
    monkeypatch.setattr(connection_pooler, "new_token", lambda: "known")


@pytest.mark.usefixtures("_unknown_process")
def test_a_pooler_that_alternates_sessions_is_refused(server: PortCluster) -> None:
    turns = "server_round_robin = 1"
    with pgbouncer(server.port, mode="statement", ignored=IGNORING, connect=AS_ASKED, more=turns) as connection:
        busy, other = (
            psycopg.connect(connection.url().replace("?host", "?options=&host"), autocommit=True) for _ in range(2)
        )
        with busy, other, ThreadPoolExecutor() as threads:
            sleeping = threads.submit(busy.execute, "SELECT pg_sleep(0.3)")
            with admin(server) as session:
                until(lambda: session.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchall())
            other.execute("SELECT 1")  # in a second session, which the pooler keeps
            sleeping.result()
        assert "different server processes answer" in refused(connection)


@pytest.mark.usefixtures("_unknown_process")
def test_a_pooler_that_resets_settings_is_refused(server: PortCluster) -> None:
    resets = "server_reset_query = RESET ALL\nserver_reset_query_always = 1\ndefault_pool_size = 1"
    with pgbouncer(server.port, mode="statement", ignored=IGNORING, connect=AS_ASKED, more=resets) as connection:
        assert "settings are lost after the transaction" in refused(connection)


def test_the_server_itself_is_not_taken_for_a_pooler(server: PortCluster) -> None:
    with connect(server.connection()) as session:
        assert session.info.backend_pid == session.execute("SELECT pg_backend_pid() AS pid").fetchone()["pid"]  # type: ignore[index]


@pytest.mark.parametrize("ignored", [PLAIN, IGNORING], ids=["plain", "ignoring"])
def test_dump_drill_swap_and_doctor_refuse_a_pooler(
    database: Connection, server: PortCluster, bin_dir: Path, volume: Path, ignored: str
) -> None:
    with pgbouncer(server.port, mode="transaction", ignored=ignored) as pooled:
        through = replace(pooled, database=database.database)
        system = system_of(through, volume, bin_dir, POSTGRES_PASSWORD=PASSWORD, RESTORE_POSTGRES_HOST="127.0.0.1")
        line = the(doctor.server(system), "pooler")
        assert (line.level, line.fix) == (Severity.FAIL, connection_pooler.NEXT.format(by_host="POSTGRES_HOST"))
        with pytest.raises(PoolerError):
            system.dumper.dump(log=quiet)
        with pytest.raises(PoolerError):
            drop_kept(through, database.database)
        with pytest.raises(PoolerError):
            names_by_oid(through, [1])
    assert not [path for path in volume.rglob("*") if path.suffix in (".dump", ".json")]
