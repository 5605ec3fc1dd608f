"""A lock that is not obtained in time names its holder, and the server soon drops the lock of a lost client."""

from __future__ import annotations

import re

import psycopg
import pytest
from pydantic import SecretStr

from ovia_backup_dagster.core.errors import AdvisoryLockHeldError, CopyError
from ovia_backup_dagster.postgres.advisory_lock import AdvisoryLock
from ovia_backup_dagster.postgres.programs import KEEPALIVES, Connection
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof import target
from ovia_backup_dagster.restoration import swap
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, admin, execute

LOCK = AdvisoryLock("ovia-backup test's", "the test")


def ended_by(fix: str, server: PortCluster) -> None:
    found = re.search(r"SELECT pg_terminate_backend\(\d+\)", fix)
    assert found
    execute(server.connection(), found[0])


def test_a_held_lock_names_its_holder_which_can_be_ended(server: PortCluster) -> None:
    with admin(server) as other, connect(server.connection()) as session:
        other.execute("SET application_name = 'left by a migration'")
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [LOCK.name])
        pid = other.info.backend_pid
        session.execute("SET lock_timeout = '50ms'")
        for take in (LOCK.take, LOCK.take_at_once, LOCK.wait_until_free):
            with pytest.raises(AdvisoryLockHeldError, match="the test waits for another one") as caught:
                take(session)
            assert f"process {pid}, role postgres, left by a migration, idle, connected since 2" in caught.value.why
            assert "migration, VACUUM FULL" not in str(caught.value)
        ended_by(caught.value.fix, server)
        session.execute("SET lock_timeout = '20s'")
        LOCK.take(session)
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63), 2**31, -(2**32) + 5])
def test_every_key_is_found_in_pg_locks(server: PortCluster, key: int) -> None:
    """Keys are signed, of 64 bits; pg_locks shows two unsigned halves."""
    with admin(server) as session:
        session.execute("SELECT pg_advisory_lock(%s)", [key])
        found = session.execute(
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
            " AND classid::bigint = (%s::bigint >> 32) & 4294967295 AND objid::bigint = %s::bigint & 4294967295",
            [key, key],
        )
        assert found.fetchall()


def test_a_swap_that_waits_for_another_names_it(server: PortCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_PATIENCE", "SET lock_timeout = '50ms'")
    with admin(server) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('ovia-backup swap', 0))")
        pid = other.info.backend_pid
        with pytest.raises(AdvisoryLockHeldError, match="the renaming of databases by a restore") as caught:
            swap.names_by_oid(server.connection("ovia"), [1])
    assert f"process {pid}, role postgres" in caught.value.why


def test_a_drill_that_waits_for_another_names_it(server: PortCluster) -> None:
    name = target.scratch_name("shop")
    with admin(server) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"{target.MARK} {name}"])
        with pytest.raises(CopyError, match="is in use") as caught:
            target.drop_kept(server.connection(), "shop")
        assert f"process {other.info.backend_pid}" in caught.value.why
    with admin(server) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"ovia-backup makes {name}"])
        with (
            connect(server.connection(), options="-c lock_timeout=50ms") as session,
            pytest.raises(AdvisoryLockHeldError, match=f"the making of database {name}"),
        ):
            target._drop(session, name)


def test_the_server_soon_notices_a_lost_client(server: PortCluster) -> None:
    """Over TCP; the kernel itself closes a Unix socket."""
    with connect(Connection("127.0.0.1", server.port, "postgres", "postgres", SecretStr(PASSWORD))) as session:
        query = "SELECT name, setting FROM pg_settings WHERE name LIKE 'tcp_keepalives_%'"
        shown = {row["name"]: int(row["setting"]) for row in session.execute(query)}
    assert shown == {f"tcp_{name}": KEEPALIVES[name] for name in KEEPALIVES if name.startswith("keepalives_")}
