"""Restores without a live database, in mode drop or on a new host.

The new database has a temporary name until it is complete and checked. Once it is live, it is never dropped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import psycopg
import pytest

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.preflight import Preflight
from ovia_backup_dagster.restoration.steps import name_database
from ovia_backup_dagster.restoration.swap import give_name
from ovia_backup_dagster_tests.conftest import execute
from ovia_backup_dagster_tests.support.drilling import one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import Site, admin_of, drop_live, ended_as, failed, sql_in_server

WAYS = pytest.mark.parametrize(
    "options", thinned([("--mode", "drop"), ("--new-host",)], together=True), ids=["drop", "new host"]
)


def gone(site: Site, options: tuple[str, ...]) -> None:
    """Drop the live database if the restore is for a new host."""
    if options == ("--new-host",):
        drop_live(site)


@contextmanager
def writers(live: Connection) -> Iterator[None]:
    """Run clients in a loop until the block ends: each connects, writes a row and disconnects, and ignores errors."""
    end = threading.Event()

    def write(first: int) -> None:
        row = first
        while not end.is_set():
            try:
                with psycopg.connect(live.conninfo(), host=live.host, port=live.port, user=live.user) as session:
                    session.execute("INSERT INTO people (id, name) VALUES (%s, 'client')", [row])
                row += 1
            except psycopg.Error:
                end.wait(0.005)

    clients = [threading.Thread(target=write, args=(number * 100_000,)) for number in (1, 2)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        end.set()
        for client in clients:
            client.join()


@pytest.mark.exhaustive
@WAYS
def test_no_client_writes_into_an_incomplete_database(site: Site, options: tuple[str, ...]) -> None:
    gone(site, options)
    with writers(site.live):
        ended = site.restore(*options)
        assert ended.code == 0, ended.output
        written = "SELECT count(*) FROM people WHERE name = 'client'"
        deadline = time.monotonic() + 10
        while not (seen := one(site.live, written)):
            assert time.monotonic() < deadline, "no client could write afterwards"
    assert seen
    execute(site.live, "DELETE FROM people WHERE name = 'client'")
    ended_as(site, "new")


@pytest.mark.exhaustive
@WAYS
@pytest.mark.parametrize("verb", thinned(["--resume", "--abort"]))
def test_an_unrecorded_live_database_is_not_dropped(site: Site, options: tuple[str, ...], verb: str) -> None:
    """Killed after the rename and before its journal entry; then users write to the database."""
    gone(site, options)

    def killing(server: Connection, database: str, name: str, *, oid: int) -> None:
        give_name(server, database, name, oid=oid)
        os.killpg(0, signal.SIGKILL)

    with mock.patch.object(name_database, "give_name", killing):
        assert site.restore(*options).killed
    execute(site.live, "INSERT INTO people (id, name) VALUES (7000, 'since')")
    if verb == "--abort":
        for words in ((), ("--yes-destroy", site.live.database)):
            line = site.place.run("restore", "--abort", *words).refused()
            assert "it is live, and may have been written to" in line
            assert "--resume" in line
    ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    assert f"{site.live.database} is restored" in ended.output
    assert one(site.live, "SELECT count(*) FROM people WHERE id = 7000") == 1
    assert site.databases == [site.live.database]
    assert RestoreFolder(site.place.catalog).unfinished() is None


@pytest.mark.exhaustive
def test_a_role_that_cannot_restore_drops_nothing(site: Site) -> None:
    """The role owns the database and may create others, but one table is a superuser's, which no drill notices.

    The plan notices it. Without the plan's check, the restore tries it before it drops anything.
    """
    role = f"owner_{site.live.database}"
    sql_in_server(site, "CREATE ROLE {} LOGIN CREATEDB", role)
    try:
        for what in ("TABLE people", "TABLE identities", "TABLE person_identity_links", "MATERIALIZED VIEW counted"):
            execute(site.live, f"ALTER {what} OWNER TO {role}")
        execute(site.live, "CREATE TABLE a_superusers (a int)", f"GRANT SELECT ON a_superusers TO {role}")
        sql_in_server(site, "ALTER DATABASE {} OWNER TO {}", site.live.database, role)
        site.backup, site.now = site.place.chain(), site.content()
        site.then = site.now
        weak = site.with_settings(RESTORE_POSTGRES_USER=role)
        line = weak.restore("--mode", "drop").refused()
        assert f"role {role} may not give what is in {site.backup} to its owner postgres: that is a superuser" in line
        assert not site.records
        with mock.patch.object(Preflight, "contents"):
            error = failed(site, ended := weak.restore("--mode", "drop"))
        assert "must be able to SET ROLE" in ended.output
        assert "restore into the database" in error
        assert "nothing was dropped; let a superuser restore it" in ended.output
        ended_as(site, "old")
        assert site.databases == [site.live.database]
        assert site.restore("--mode", "drop").code == 0
        ended_as(site, "old")  # the backup has the same content
    finally:
        with admin_of(site) as session:
            for name in site.databases:
                session.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            session.execute(f"DROP ROLE {role}")
