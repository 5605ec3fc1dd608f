"""What a plan says that a restore will not be able to make, beside what it then cannot: on real servers.

An obstacle that is none would stop people on the day, and one that is missed is found out in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core.catalog import Backup, Catalog
from ovia_backup_dagster.core.needs import unmet
from ovia_backup_dagster.postgres import archive, needs, offers, places
from ovia_backup_dagster.postgres.client import Connection, Programs, capture
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, quiet, running_cluster

OWNER, RESTORES, OTHER = "ovia_owner", "ovia_restores", "ovia_other"
#: What only a superuser may make -> words of the obstacle, and the statement that a restore fails at.
ONLY_SUPERUSERS = {
    "CREATE EXTENSION pg_stat_statements": ("extension pg_stat_statements", "CREATE EXTENSION"),
    "CREATE EXTENSION plpython3u": ("plpython3u", "plpython3u"),
    "CREATE FUNCTION c_level() RETURNS trigger LANGUAGE c AS '$libdir/refint', 'check_primary_key'": (
        "function in the language c public.c_level",
        "FUNCTION public.c_level",
    ),
    "CREATE FUNCTION inside(int) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'int4abs'": (
        "function in the language internal … public.inside",
        "FUNCTION public.inside",
    ),
    "CREATE FUNCTION snake() RETURNS int LANGUAGE plpython3u AS 'return 1'": (
        "function in the language plpython3u public.snake",
        "FUNCTION public.snake",
    ),
    "CREATE FUNCTION tight(int) RETURNS int LANGUAGE sql IMMUTABLE LEAKPROOF AS 'SELECT $1'": (
        "LEAKPROOF function public.tight",
        "FUNCTION public.tight",
    ),
    "CREATE FUNCTION helped(int) RETURNS SETOF int LANGUAGE sql SUPPORT generate_series_int4_support AS 'SELECT 1'": (
        "function with a SUPPORT function public.helped",
        "FUNCTION public.helped",
    ),
    "CREATE FUNCTION hush() RETURNS int LANGUAGE sql SET log_min_messages TO 'panic' AS 'SELECT 1'": (
        "public.hush, which sets log_min_messages",
        "FUNCTION public.hush",
    ),
    "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
    "CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION watch()": (
        "event trigger watching",
        "EVENT TRIGGER watching",
    ),
    "CREATE FOREIGN DATA WRAPPER bare": ("foreign data wrapper bare", "WRAPPER bare"),
    "CREATE PUBLICATION everything FOR ALL TABLES": (
        "publication FOR ALL TABLES everything",
        "PUBLICATION everything",
    ),
    "CREATE SCHEMA sold; CREATE PUBLICATION part FOR TABLES IN SCHEMA sold": (
        "publication of a schema part",
        "PUBLICATION part",
    ),
    "CREATE TYPE cents; CREATE FUNCTION cents_in(cstring) RETURNS cents LANGUAGE internal IMMUTABLE STRICT AS 'int4in';"
    "CREATE FUNCTION cents_out(cents) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out';"
    "CREATE TYPE cents (INPUT = cents_in, OUTPUT = cents_out, LIKE = int4)": (
        "base type public.cents",
        "TYPE public.cents (",
    ),
    "CREATE OPERATOR FAMILY fam USING btree": ("operator family … public.fam", "FAMILY public.fam"),
    "CREATE FUNCTION cmp(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $2 - $1';"
    "CREATE OPERATOR CLASS backwards FOR TYPE int USING btree AS OPERATOR 1 <, FUNCTION 1 cmp(int, int)": (
        "operator class public.backwards",
        "CLASS public.backwards",
    ),
    "CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler": ("access method heap2", "METHOD heap2"),
    "CREATE CAST (json AS bytea) WITHOUT FUNCTION": ("cast json AS bytea", "CAST (json AS bytea)"),
    "CREATE FUNCTION b(text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';"
    "CREATE CAST (text AS bool) WITH FUNCTION b(text)": ("text AS boolean", "CAST (text AS boolean)"),
    "CREATE TEXT SEARCH TEMPLATE plain (LEXIZE = dsimple_lexize)": (
        "text search template public.plain",
        "TEMPLATE public.plain",
    ),
    "CREATE TEXT SEARCH PARSER words (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, "
    "LEXTYPES = prsd_lextype)": ("text search parser public.words", "PARSER public.words"),
    "CREATE AGGREGATE total(numeric) (SFUNC = numeric_avg_accum, STYPE = internal, FINALFUNC = numeric_avg)": (
        "aggregate with the internal type public.total",
        "AGGREGATE public.total",
    ),
    f"CREATE TABLE lent (a int); ALTER TABLE lent OWNER TO {OWNER}; GRANT SELECT ON lent TO {OTHER} WITH GRANT OPTION;"
    f"SET ROLE {OTHER}; GRANT SELECT ON lent TO PUBLIC; RESET ROLE": (
        f"privileges that others than an owner granted, such as {OTHER}",
        "permission denied to set session authorization",
    ),
    f"CREATE TABLE theirs (a int); ALTER TABLE theirs OWNER TO {OTHER}": (
        f"to its owner {OTHER}",
        f"TABLE public.theirs OWNER TO {OTHER}",
    ),
    "CREATE TABLE bosses (a int)": ("to its owner postgres", "TABLE public.bosses OWNER TO postgres"),
    f"CREATE SCHEMA s AUTHORIZATION {OTHER}; CREATE TABLE s.mixed (a int); ALTER TABLE s.mixed OWNER TO {OWNER}": (
        f"{OWNER} in a schema of {OTHER}",
        "s.mixed",
    ),
}
#: What looks like it, and is nothing of the kind.
HARMLESS = """
    CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION pgcrypto;
    CREATE FUNCTION loud() RETURNS int LANGUAGE sql SET work_mem TO '1MB' AS 'SELECT 1';
    CREATE TABLE one (a int); CREATE PUBLICATION single FOR TABLE one; GRANT SELECT ON one TO PUBLIC;
    CREATE TYPE pair AS (a int, b int); CREATE TYPE mood AS ENUM ('ok'); CREATE TYPE span AS RANGE (SUBTYPE = int4);
    CREATE FUNCTION b(pair) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';
    CREATE CAST (pair AS bool) WITH FUNCTION b(pair);
    CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int);
    CREATE SCHEMA s; CREATE TABLE s.t (a int);
    CREATE FUNCTION said() RETURNS text LANGUAGE sql AS $$ SELECT '
CREATE EVENT TRIGGER x;
    LANGUAGE c AS ''$libdir/x'', ''y'';
'::text $$;
    CREATE TABLE doc (a text DEFAULT 'x COLLATE pg_catalog."nowhere"', b text COLLATE "C");
    COMMENT ON TABLE doc IS 'CREATE EXTENSION z;'
"""


@pytest.fixture(scope="module")
def contrib(full_bin_dir: Path) -> Iterator[PortCluster]:
    """A server with roles of its own."""
    with running_cluster(full_bin_dir, max_connections="20") as cluster:
        with admin(cluster) as session:
            session.execute(f"CREATE ROLE {OWNER}; CREATE ROLE {OTHER}; CREATE ROLE {RESTORES} LOGIN CREATEDB")
            session.execute(f"GRANT {OWNER} TO {RESTORES} WITH INHERIT TRUE, SET TRUE")
        yield cluster


@contextmanager
def backup_of(cluster: PortCluster, programs: Programs, folder: Path, *made: str) -> Iterator[Backup]:
    """A backup of a database with that in it; the database is gone afterwards."""
    name = "source"
    with admin(cluster) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy OWNER {OWNER}")
    try:
        execute(cluster.connection(name), *made)
        yield Dumper(Catalog(folder, name), cluster.connection(name), programs).dump(log=quiet)
    finally:
        with admin(cluster) as session:
            session.execute(f"DROP DATABASE {name} WITH (FORCE)")


def errors(server: Connection, programs: Programs, path: Path) -> str:
    """All that pg_restore meets, with the commands that it met it at."""
    copy = replace(places.beside(server, "ovia_copy", "a copy"), owner=OWNER)
    copy.create(archive.database_text(programs, path))
    try:
        to = copy.connection
        command = (programs.path("pg_restore"), "--no-password", f"--dbname={to.conninfo()}", str(path))
        _, _, stderr = capture(command, variables=to.environment())
        return stderr
    finally:
        copy.drop()


def told(server: Connection, programs: Programs, backup: Backup, jobs: int = 2) -> tuple[list[str], list[str]]:
    """Obstacles and warnings."""
    found = needs.of_backup(programs, backup)
    obstacles, warnings = unmet(found, offers.of_server(server, found, OWNER), jobs)
    return list(map(str, obstacles)), warnings


def test_what_only_a_superuser_may_make_is_told_and_is_what_fails(
    contrib: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    programs, boss = Programs(full_bin_dir), contrib.connection("postgres")
    server = replace(boss, user=RESTORES)
    with backup_of(contrib, programs, tmp_path, *ONLY_SUPERUSERS) as backup:
        obstacles, _ = told(server, programs, backup)
        failed = errors(server, programs, backup.path)
        for words, statement in ONLY_SUPERUSERS.values():
            assert any(all(word in each for word in words.split(" … ")) for each in obstacles), (words, obstacles)
            assert statement in failed, (statement, failed)
        assert told(boss, programs, backup) == ([], [])
        assert errors(boss, programs, backup.path) == ""


def test_what_any_role_may_make_is_no_obstacle(contrib: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    programs = Programs(full_bin_dir)
    server = replace(contrib.connection("postgres"), user=RESTORES)
    with backup_of(contrib, programs, tmp_path, f"SET ROLE {OWNER}; {HARMLESS}") as backup:
        assert told(server, programs, backup) == ([], [])
        assert errors(server, programs, backup.path) == ""
