"""Obstacles that a plan predicts from the archive, compared with the errors of pg_restore on real servers.

A false obstacle would block a restore; a missed one would make the restore fail midway.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import LockTableFullError
from ovia_backup_dagster.doctor.report import Severity
from ovia_backup_dagster.doctor.server_area import server as server_lines
from ovia_backup_dagster.postgres import archive
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.proof import target
from ovia_backup_dagster.restoration import archive_requirements, server_offers
from ovia_backup_dagster.restoration.requirements import Definition, Locale, Needs, unmet
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, quiet, running_cluster
from ovia_backup_dagster_tests.doctor.support import system_of, the

OWNER, RESTORES, OTHER = "ovia_owner", "ovia_restores", "ovia_other"
#: Objects that only a superuser may create -> words of the obstacle, and of the statement that pg_restore fails at.
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
        f"privileges granted by roles other than the owner, such as {OTHER}",
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
#: Similar objects that any role may create.
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
    """A server with contrib and with roles for these tests."""
    with running_cluster(full_bin_dir, max_connections="20") as cluster:
        with admin(cluster) as session:
            session.execute(f"CREATE ROLE {OWNER}; CREATE ROLE {OTHER}; CREATE ROLE {RESTORES} LOGIN CREATEDB")
            session.execute(f"GRANT {OWNER} TO {RESTORES} WITH INHERIT TRUE, SET TRUE")
        yield cluster


@contextmanager
def backup_of(
    cluster: PortCluster, programs: Programs, folder: Path, *made: str, locale: str = "C"
) -> Iterator[Backup]:
    """A backup of a database in which the statements were run; the database is dropped afterwards."""
    name = "source"
    with admin(cluster) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE template0 LOCALE '{locale}' OWNER {OWNER}")
    try:
        execute(cluster.connection(name), *made)
        yield Dumper(Catalog(folder, name), cluster.connection(name), programs).dump(log=quiet)
    finally:
        with admin(cluster) as session:
            session.execute(f"DROP DATABASE {name} WITH (FORCE)")


def errors(server: Connection, programs: Programs, path: Path) -> str:
    """All errors of pg_restore, with the statements that failed."""
    copy = replace(target.live_copy(server, "ovia_copy", "a copy"), owner=OWNER)
    copy.create(archive.database_text(programs, path))
    try:
        to = copy.connection
        command = (programs.path("pg_restore"), "--no-password", f"--dbname={to.conninfo()}", str(path))
        _, _, stderr = capture(command, variables=to.environment())
        return stderr
    finally:
        copy.drop()


def told(server: Connection, programs: Programs, backup: Backup, jobs: int = 2) -> tuple[list[str], list[str]]:
    """The obstacles, and the warnings."""
    found = archive_requirements.requirements_of(programs, backup)
    obstacles, warnings = unmet(found, server_offers.offers_of(server, found, OWNER), jobs)
    return list(map(str, obstacles)), warnings


def test_each_superuser_obstacle_matches_a_restore_error(
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


def test_objects_that_any_role_may_create_are_no_obstacle(
    contrib: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    programs = Programs(full_bin_dir)
    server = replace(contrib.connection("postgres"), user=RESTORES)
    with backup_of(contrib, programs, tmp_path, f"SET ROLE {OWNER}; {HARMLESS}") as backup:
        assert told(server, programs, backup) == ([], [])
        assert errors(server, programs, backup.path) == ""


# ------------------------------------------------------------------------------- needs outside of the database


#: A collation like those that initdb creates from the system's locales.
SYSTEM_COLLATION = (
    "SET allow_system_table_mods = on",
    "CREATE COLLATION pg_catalog.\"de_DE.utf8\" (locale = 'de_DE.UTF-8')",
)


@contextmanager
def with_german(bin_dir: Path) -> Iterator[PortCluster]:
    """A server with the locale de_DE.UTF-8, which no other server here has."""
    folder = tempfile.mkdtemp(prefix="ovia-l-", dir="/tmp")
    os.chmod(folder, 0o755)
    found = vars(Cluster)["environment"].fget
    localized = property(lambda cluster: {**found(cluster), "LOCPATH": folder})
    try:
        subprocess.run(("localedef", "-i", "de_DE", "-f", "UTF-8", f"{folder}/de_DE.UTF-8"), check=True)
        with mock.patch.object(Cluster, "environment", localized), running_cluster(bin_dir) as cluster:
            with admin(cluster) as session:
                session.execute(f"CREATE ROLE {OWNER}; CREATE ROLE {OTHER}; CREATE ROLE {RESTORES} LOGIN CREATEDB")
                session.execute(f"GRANT {OWNER} TO {RESTORES} WITH INHERIT TRUE, SET TRUE")
            execute(cluster.connection("postgres"), *SYSTEM_COLLATION)
            yield cluster
    finally:
        shutil.rmtree(folder)


@contextmanager
def files_of_the_source(bin_dir: Path) -> Iterator[str]:
    """Add files to those of PostgreSQL for the duration of the block; yield their name."""
    name = f"ovia_{os.getpid()}"
    share = bin_dir.parent / "share"
    words = next(share.rglob("tsearch_data"))
    libraries = next(path.parent for path in (bin_dir.parent / "lib").rglob("refint.so"))
    made = [words / f"{name}.syn", words / f"{name}.rules", libraries / f"{name}.so"]
    made[0].write_text("postgres pgsql\n", encoding="utf-8")
    made[1].write_text("Ä\tA\n", encoding="utf-8")
    shutil.copyfile(libraries / "refint.so", made[2])
    try:
        yield name
    finally:
        for path in made:
            path.unlink()


@pytest.mark.exhaustive
def test_files_missing_on_the_server_are_obstacles(contrib: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    """Locales, collations, dictionary files and libraries belong to the server, not to the database."""
    programs = Programs(full_bin_dir)
    with with_german(full_bin_dir) as german:
        with (
            files_of_the_source(full_bin_dir) as name,
            backup_of(
                german,
                programs,
                tmp_path,
                *SYSTEM_COLLATION,
                "CREATE COLLATION german (locale = 'de_DE.UTF-8')",
                f"CREATE TEXT SEARCH DICTIONARY same (TEMPLATE = synonym, SYNONYMS = {name})",
                "CREATE TEXT SEARCH DICTIONARY sound (TEMPLATE = snowball, LANGUAGE = german, STOPWORDS = german)",
                "CREATE EXTENSION unaccent",
                f"CREATE TEXT SEARCH DICTIONARY bare (TEMPLATE = unaccent, RULES = '{name}')",
                f"CREATE FUNCTION c() RETURNS trigger LANGUAGE c AS '$libdir/{name}', 'check_primary_key'",
                'CREATE TABLE t (a text COLLATE german, b text COLLATE pg_catalog."de_DE.utf8", c text)',
                locale="de_DE.UTF-8",
            ) as backup,
        ):
            at_home = german.connection("postgres")
            assert told(at_home, programs, backup) == ([], [])
            # If the manifest has another collation version than the server, the plan warns.
            assert backup.manifest is not None
            versions = backup.manifest.database.collation_versions
            assert set(versions) == {"default", 'pg_catalog."de_DE.utf8"', "public.german"}
            found = replace(
                archive_requirements.requirements_of(programs, backup), versions=dict.fromkeys(versions, "2.12")
            )
            [warning] = unmet(found, server_offers.offers_of(at_home, found, OWNER), 2)[1]
            assert "text sorts by another version at " in warning
            assert "(default 2.12, here 2." in warning
            assert 'pg_catalog."de_DE.utf8" 2.12, here 2.' in warning
            # The doctor warns of an index of the source that an older version has sorted.
            with admin(german, "source") as session:
                session.execute("SET allow_system_table_mods = on")
                session.execute("UPDATE pg_database SET datcollversion = '2.12' WHERE datname = 'source'")
            lines = list(server_lines(system_of(german.connection("source"), tmp_path, full_bin_dir)))
            line = the(lines, "indexes on text may be wrong: collation default was of version 2.12")
            assert (line.level, line.sql[0]) == (Severity.WARN, 'REINDEX DATABASE "source";')
            with admin(german, "source") as session:
                for statement in line.sql:
                    session.execute(statement.encode())
            again = server_lines(system_of(german.connection("source"), tmp_path, full_bin_dir))
            assert not any("may be wrong" in each.text for each in again)
        everything = {
            "lacks the locale of the database that ": True,
            "lacks what collation public.german needs: ": True,
            "lacks collations that columns or indexes use: de_DE.utf8: ": True,
            "lacks a file of the text search dictionary public.same: ": True,
            "lacks a file of the text search dictionary public.bare: ": False,
            f"lacks libraries of functions in C: $libdir/{name}: ": False,
        }
        for user in ("postgres", RESTORES):
            obstacles, _ = told(replace(contrib.connection("postgres"), user=user), programs, backup)
            for words, anyone in everything.items():
                # Some files only a superuser may look at.
                wanted = anyone or user == "postgres"
                assert sum(words in each for each in obstacles) == wanted, (user, words, obstacles)
            assert sum(" lacks " in each for each in obstacles) == (6 if user == "postgres" else 4)


@pytest.mark.exhaustive
def test_a_too_small_lock_table_is_an_obstacle(contrib: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    """A dump holds a lock on each table and sequence, and so does reading a copy back."""
    programs = Programs(full_bin_dir)
    step = "EXECUTE format('CREATE TABLE t%s (a serial)', i); IF i % 50 = 0 THEN COMMIT; END IF"
    make = "DO $$ BEGIN FOR i IN {}..{} LOOP " + step + "; END LOOP; END $$"
    with (
        running_cluster(full_bin_dir, max_locks_per_transaction="10", max_connections="10") as small,
        backup_of(contrib, programs, tmp_path, make.format(1, 400)) as backup,
    ):
        assert archive_requirements.requirements_of(programs, backup).relations == 800
        assert told(contrib.connection("postgres"), programs, backup) == ([], [])
        [obstacle], _ = told(small.connection("postgres"), programs, backup)
        assert "has too small a lock table to read " in obstacle
        assert "a lock on each of 800 tables and sequences, and there is room for 320 of all sessions" in obstacle
        assert "ALTER SYSTEM SET max_locks_per_transaction = 64; then restart the server" in obstacle
        system = system_of(small.connection("postgres"), tmp_path / "small", full_bin_dir)
        for last, level in ((100, None), (200, Severity.WARN), (400, Severity.FAIL)):
            execute(small.connection("postgres"), make.format(max(1, last // 2 + 1), last))
            found = [line for line in server_lines(system) if "lock table" in line.text]
            assert [line.level for line in found] == ([level] if level else [])
        # The doctor is right: a dump fails.
        with pytest.raises(LockTableFullError):
            system.dumper.dump(log=quiet)


def test_too_few_sessions_are_an_obstacle(contrib: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    programs = Programs(full_bin_dir)
    server = replace(contrib.connection("postgres"), user=RESTORES)
    with backup_of(contrib, programs, tmp_path, f"SET ROLE {OWNER}; CREATE TABLE t (a int)") as backup:
        [obstacle], _ = told(server, programs, backup, jobs=64)
        assert "allows 17 sessions at a time: a restore with 64 jobs needs 69" in obstacle
        _, [warning] = told(server, programs, backup, jobs=12)
        assert re.search(r"has \d+ sessions free at the moment, and a restore with 12 jobs needs 17", warning)
        execute(contrib.connection("postgres"), f"ALTER ROLE {RESTORES} CONNECTION LIMIT 4")
        try:
            [obstacle], _ = told(server, programs, backup, jobs=2)
            assert f"role {RESTORES} may have 4 sessions at a time: a restore with 2 jobs needs 7" in obstacle
            assert f'ALTER ROLE "{RESTORES}" CONNECTION LIMIT -1' in obstacle
        finally:
            execute(contrib.connection("postgres"), f"ALTER ROLE {RESTORES} CONNECTION LIMIT -1")


def test_icu_collations_without_icu_are_obstacles(contrib: PortCluster) -> None:
    """The tests' PostgreSQL has no ICU, so the needs are made up instead of read from an archive."""
    with_icu = Needs(
        "a backup",
        collations=(Definition("public.de", {"provider": "icu", "locale": "de-DE"}),),
        locale=Locale(provider="icu", icu="de-DE"),
    )
    obstacles, _ = unmet(with_icu, server_offers.offers_of(contrib.connection("postgres"), with_icu), 2)
    assert [str(each).count("this PostgreSQL was built without ICU") for each in obstacles] == [1, 1]
