"""Databases whose names and rows are in other encodings than UTF-8, or in none: backed up, proven and restored.

Nothing is converted on the way: the server gets bytes, as from an application in that encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.drill.placement import Where
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.database_settings import properties
from ovia_backup_dagster_tests.conftest import PortCluster, running_cluster
from ovia_backup_dagster_tests.support.command_line import Cli
from ovia_backup_dagster_tests.support.drilling import Drilling, assert_passed, by_check, database
from ovia_backup_dagster_tests.support.exhaustive import thinned

#: Encoding -> a word in it; for SQL_ASCII, text in no encoding.
WORDS = {
    "SQL_ASCII": b"M\xfcller \xe9\x80 \xe6\x97",
    "EUC_JP": "日本語、ﾃｽﾄ".encode("euc_jp"),
    "LATIN1": "Größe ÿ".encode("latin-1"),
    "KOI8R": "Привет".encode("koi8-r"),
}
#: Names, rows, values and comments of every kind; each table's first row is not UTF-8.
SCHEMA = b"""
CREATE TABLE t (a text PRIMARY KEY);
INSERT INTO t VALUES ('%(w)s'), ('x%(w)s');
CREATE TYPE "k%(w)s" AS ENUM ('%(w)s', 'plain');
CREATE SCHEMA "s%(w)s";
CREATE TABLE "s%(w)s"."T%(w)s" ("c%(w)s" text DEFAULT '%(w)s' CHECK ("c%(w)s" <> 'no%(w)s'), e "k%(w)s", n int);
INSERT INTO "s%(w)s"."T%(w)s" VALUES ('%(w)s', '%(w)s', 1), (E'tab\\tline\\n%(w)s\\\\', 'plain', 2);
CREATE INDEX "i%(w)s" ON "s%(w)s"."T%(w)s" ("c%(w)s");
CREATE SEQUENCE "q%(w)s"; SELECT setval('"q%(w)s"', 42);
CREATE VIEW "v%(w)s" AS SELECT * FROM "s%(w)s"."T%(w)s" WHERE "c%(w)s" = '%(w)s';
CREATE MATERIALIZED VIEW "m%(w)s" AS SELECT a FROM t;
CREATE FUNCTION "f%(w)s"() RETURNS text LANGUAGE sql AS $$ SELECT '%(w)s'::text $$;
COMMENT ON TABLE t IS 'of %(w)s';
CREATE TABLE "p%(w)s" (k text) PARTITION BY LIST (k);
CREATE TABLE "p1%(w)s" PARTITION OF "p%(w)s" FOR VALUES IN ('%(w)s');
INSERT INTO "p%(w)s" VALUES ('%(w)s');
SELECT lo_from_bytea(4711, '\\x00ff'); COMMENT ON LARGE OBJECT 4711 IS '%(w)s';
ALTER TABLE t OWNER TO %(role)s;
"""


@pytest.fixture(scope="module")
def boss(full_bin_dir: Path) -> Iterator[PortCluster]:
    """A separate server: one database's role has a name that other databases cannot read."""
    with running_cluster(full_bin_dir) as cluster:
        yield cluster


@contextmanager
def filled(boss: PortCluster, encoding: str) -> Iterator[Connection]:
    with database(boss, f"enc_{encoding.lower()}", f"ENCODING '{encoding}' LOCALE 'C'") as source:
        role = f"role_{encoding.lower()}".encode()
        # SQL_ASCII: no conversion, whatever the database's encoding.
        with psycopg.connect(
            host=source.host, port=source.port, dbname=source.database, user=source.user, autocommit=True
        ) as session:
            session.execute("SET client_encoding = 'SQL_ASCII'")
            session.execute(b"CREATE ROLE %s" % role)
            session.execute(SCHEMA % {b"w": WORDS[encoding], b"role": role})
        yield source


@pytest.mark.exhaustive
@pytest.mark.parametrize("encoding", thinned(WORDS))
def test_names_and_rows_of_any_encoding_are_restored(
    encoding: str, boss: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    with filled(boss, encoding) as source:
        drilling = Drilling(source, full_bin_dir, tmp_path / "backups")
        evidence = drilling.dump_and_drill()
        assert_passed(evidence)
        assert by_check(evidence)[Check.CONTROL].text.startswith("the deletion of a row in ")
        if encoding in ("SQL_ASCII", "EUC_JP"):
            assert_passed(drilling.drill(Where.DATABASE))
        cli = Cli(
            {
                "POSTGRES_HOST": source.host,
                "POSTGRES_PORT": str(source.port),
                "POSTGRES_DB": source.database,
                "POSTGRES_USER": source.user,
                "BACKUP_DIR": str(tmp_path / "backups"),
                "PG_BIN_DIR": str(full_bin_dir),
            }
        )
        before = content(source)
        with psycopg.connect(host=source.host, port=source.port, dbname=source.database, user=source.user) as session:
            session.execute("TRUNCATE t")
        done = cli("restore", "latest", "--yes-destroy", source.database)
        assert done.returncode == 0, done.stdout + done.stderr
        assert content(source) == before


ROLES = """
CREATE ROLE "Größe"; CREATE ROLE "Größe 2" IN ROLE "Größe"; ALTER ROLE "Größe" SET app.x = 'ß';
CREATE TABLE t (a text); INSERT INTO t VALUES ('ß'); ALTER TABLE t OWNER TO "Größe";
CREATE POLICY p ON t TO "Größe 2", "Größe" USING (a = 'ß'); GRANT SELECT ON t TO "Größe 2";
COMMENT ON DATABASE named IS 'ß'; ALTER DATABASE named SET app.x = 'ß'; ALTER DATABASE named OWNER TO "Größe";
ALTER ROLE "Größe" IN DATABASE named SET search_path = 'ß';
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("encoding", thinned(["LATIN1", "SQL_ASCII"]))
def test_role_names_of_any_encoding_are_restored(encoding: str, full_bin_dir: Path, tmp_path: Path) -> None:
    """All databases of the server have the encoding, as after initdb with it. For SQL_ASCII, the test sends UTF-8."""
    running = running_cluster(full_bin_dir)
    running.cluster = replace(running.cluster, encoding=encoding)
    with running as cluster:
        place: dict[str, Any] = {"host": str(cluster.folder), "port": cluster.port, "user": "postgres"}
        with psycopg.connect(**place, dbname="postgres", autocommit=True) as session:
            session.execute("CREATE DATABASE named")
        with psycopg.connect(**place, dbname="named", autocommit=True) as session:
            session.execute(f"SET client_encoding = '{'UTF8' if encoding == 'LATIN1' else encoding}'")
            session.execute(ROLES.encode())
        source = cluster.connection("named")
        drilling = Drilling(source, full_bin_dir, tmp_path / "backups")
        assert_passed(drilling.dump_and_drill())
        before = properties(source, "named")
        cli = Cli(
            {
                "POSTGRES_HOST": source.host,
                "POSTGRES_PORT": str(source.port),
                "POSTGRES_DB": "named",
                "POSTGRES_USER": source.user,
                "BACKUP_DIR": str(tmp_path / "backups"),
                "PG_BIN_DIR": str(full_bin_dir),
            }
        )
        done = cli("restore", "latest", "--yes-destroy", "named")
        assert done.returncode == 0, done.stdout + done.stderr
        assert properties(source, "named") == before
        assert (before.owner, before.comment) == ("Größe", "ß")


def content(source: Connection) -> list[tuple[bytes, ...]]:
    """The rows and names of the database, as bytes in its encoding."""
    with psycopg.connect(host=source.host, port=source.port, dbname=source.database, user=source.user) as session:
        session.execute("SET client_encoding = 'SQL_ASCII'")
        rows = "SELECT convert_to(a, getdatabaseencoding()) FROM t ORDER BY a"
        names = "SELECT convert_to(relname::text, getdatabaseencoding()) FROM pg_class WHERE oid >= 16384"
        found = session.execute(rows.encode()).fetchall()
        return found + session.execute(f"{names} AND relname !~ '^pg_toast' ORDER BY 1".encode()).fetchall()
