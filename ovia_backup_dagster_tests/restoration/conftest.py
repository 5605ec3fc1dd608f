"""A live database with a proven backup, and what it takes to say afterwards which of both is live."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from psycopg import sql

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, free_port
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Place

SCHEMA = """
    CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, seen timestamptz NOT NULL DEFAULT now());
    CREATE INDEX ON people (seen);
    INSERT INTO people (id, name) SELECT g, 'person ' || g FROM generate_series(1, 500) g;
    CREATE TABLE identities (id bigserial PRIMARY KEY, person int NOT NULL REFERENCES people, key text UNIQUE);
    INSERT INTO identities (person, key) SELECT id, md5(id::text) FROM people;
    -- A crash of the server forgets where a sequence stands, and goes on from a later number.
    SELECT setval('identities_id_seq', 500);
    CREATE TABLE person_identity_links (person int REFERENCES people, at date DEFAULT '2026-01-01');
    INSERT INTO person_identity_links (person) SELECT id FROM people WHERE id % 3 = 0;
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM people
"""
#: What happens between the backup and the disaster, and the disaster.
SINCE = "INSERT INTO people (id, name) VALUES (1000, 'since the backup'); DELETE FROM identities WHERE person < 100"
_VOLATILE = re.compile(rb"^(\\(un)?restrict .*|-- Dumped .*)\n", re.MULTILINE)


@dataclass
class Site:
    """A live database on a server, its volume, and what it held."""

    place: Place
    live: Connection
    bin_dir: Path
    backup: Backup
    then: str
    now: str

    def content(self, database: str = "") -> str:
        """A digest of all that a database holds, schema and data."""
        connection = self.live.to(database or self.live.database)
        dumped = subprocess.run(
            (self.bin_dir / "pg_dump", "--no-password", f"--dbname={connection.conninfo()}"),
            env={**os.environ, **connection.environment()},
            capture_output=True,
            check=True,
        )
        return hashlib.sha256(_VOLATILE.sub(b"", dumped.stdout)).hexdigest()

    @property
    def databases(self) -> list[str]:
        """Those of the server that belong to this site."""
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1"
        with admin_of(self) as session:
            return [row[0] for row in session.execute(query, [self.live.database])]

    @property
    def records(self) -> list[Record]:
        return list(RestoreFolder(self.place.catalog).newest_first())

    def restore(self, *arguments: str, confirm: bool = True):  # type: ignore[no-untyped-def]
        """``ovia-backup restore`` of the backup, confirmed."""
        yes = ("--yes-destroy", self.live.database) if confirm else ()
        return self.place.run("restore", self.place.catalog.word(self.backup), *yes, *arguments)

    def undo(self, *arguments: str):  # type: ignore[no-untyped-def]
        return self.place.run("undo-restore", "--yes-destroy", self.live.database, *arguments)

    def with_settings(self, **settings: str) -> Site:
        return replace(self, place=replace(self.place, settings={**self.place.settings, **settings}))


def admin_of(site: Site):  # type: ignore[no-untyped-def]
    import psycopg

    live = site.live
    return psycopg.connect(host=live.host, port=live.port, user=live.user, dbname="postgres", autocommit=True)


@pytest.fixture
def site(server: PortCluster, bin_dir: Path, tmp_path: Path) -> Iterator[Site]:
    with site_on(server, bin_dir, tmp_path) as found:
        yield found


@contextmanager
def site_on(server: PortCluster, bin_dir: Path, tmp_path: Path, name: str = "") -> Iterator[Site]:
    name = name or f"live{os.getpid()}_{free_port()}"
    with admin(server) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    live = server.connection(name)
    try:
        execute(live, SCHEMA)
        place = place_for(live, bin_dir, tmp_path / "backups", tmp_path)
        found = Site(place, live, bin_dir, place.chain(), "", "")
        found.then = found.content()
        execute(live, SINCE)
        found.now = found.content()
        assert found.now != found.then
        yield found
    finally:
        with admin(server) as session:
            rows = session.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name]).fetchall()
            for row in rows:
                session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(row[0]))))
