"""Drills and restores of a backup whose rows depend on settings of the database, its owner and the server.

The source's server ends idle sessions, the database has settings that would stop a restore, and the server that it is
restored to has other values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, pg_options
from ovia_backup_dagster_tests.conftest import PortCluster, admin, running_cluster
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import Site

NAME = "obeys"
SECRET = "s3cret of a tenant's"
#: Settings of the source's server.
SERVER = {
    "timezone": "Asia/Kolkata",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "extra_float_digits": "-3",
    "default_text_search_config": "pg_catalog.german",
    "transform_null_equals": "on",
}
#: Rows that are valid under the settings of the server, the database, its owner, and its owner in the database.
SCHEMA = r"""
    CREATE FUNCTION tenant() RETURNS text LANGUAGE sql IMMUTABLE AS
        $$ SELECT pg_catalog.current_setting('app.tenant', true) $$;
    CREATE FUNCTION searched(text) RETURNS tsvector LANGUAGE sql IMMUTABLE AS $$ SELECT pg_catalog.to_tsvector($1) $$;
    CREATE TEXT SEARCH CONFIGURATION public.own (COPY = french);
    CREATE TABLE bookings (
        id int PRIMARY KEY, at timestamptz NOT NULL, day date NOT NULL CHECK (at::date = day),
        at_text text CHECK (at_text = at::text), lasts interval, lasts_text text CHECK (lasts_text = lasts::text),
        part float8, part_text text GENERATED ALWAYS AS (part::text) STORED, bytes bytea,
        bytes_text text GENERATED ALWAYS AS (bytes::text) STORED,
        tenant text GENERATED ALWAYS AS (tenant()) STORED CHECK (tenant = 's3cret of a tenant''s'),
        words text, search tsvector GENERATED ALWAYS AS (searched(words)) STORED
    );
    INSERT INTO bookings (id, at, day, at_text, lasts, lasts_text, part, bytes, words)
    SELECT i, at, at::date, at::text, lasts, lasts::text, i / 7.0, '\x5c00ff', 'les chevaux die Häuser'
    FROM generate_series(1, 50) i, LATERAL (SELECT '2026-01-01 20:00+00'::timestamptz + i * '7 hours'::interval AS at,
        i * '1 day -25 hours'::interval AS lasts);
    CREATE INDEX ON bookings USING gin (searched(words));
    CREATE TABLE big AS SELECT i AS id, md5(i::text) AS a, repeat('x', 100) AS b FROM generate_series(1, 20000) i;
    ALTER TABLE big ADD PRIMARY KEY (id);
    CREATE INDEX ON big (a);
    -- It takes long to load, and every other job of pg_restore waits for it.
    CREATE TABLE slow (id int CHECK (pg_sleep(0.7) IS NOT NULL));
    INSERT INTO slow VALUES (1);
    CREATE INDEX ON slow (id);
    CREATE INDEX ON slow ((id + 1));
    CREATE INDEX ON slow ((id + 2));
    CREATE TABLE small (id int PRIMARY KEY REFERENCES big);
    INSERT INTO small VALUES (1);
    CREATE MATERIALIZED VIEW mv AS SELECT count(*) AS n, min(at)::text AS at FROM bookings;
    CREATE MATERIALIZED VIEW mv2 AS SELECT n, at, tenant() FROM mv
"""
SETTINGS = (
    "ALTER DATABASE {0} SET bytea_output = 'escape'",
    "ALTER DATABASE {0} SET default_text_search_config = 'public.own'",
    "ALTER DATABASE {0} SET \"app.tenant\" = 'another'",
    "ALTER ROLE writer IN DATABASE {0} SET \"app.tenant\" = 's3cret of a tenant''s'",
    "ALTER ROLE reporter IN DATABASE {0} SET timezone = 'UTC'",
    "ALTER ROLE reporter IN DATABASE {0} SET \"app.tenant\" = 'a reporter'",
    "ALTER ROLE writer SET extra_float_digits = 0",
)
#: Settings that would stop a restore.
STOPPING = (
    "ALTER DATABASE {0} SET statement_timeout = 1",
    "ALTER DATABASE {0} SET lock_timeout = 1",
    "ALTER DATABASE {0} SET idle_in_transaction_session_timeout = 1",
    "ALTER DATABASE {0} SET default_transaction_read_only = on",
    "ALTER DATABASE {0} SET default_transaction_isolation = serializable",
    "ALTER DATABASE {0} SET session_replication_role = replica",
    "ALTER DATABASE {0} SET temp_file_limit = '1kB'",
    "ALTER DATABASE {0} SET exit_on_error = on",
    "ALTER DATABASE {0} SET vacuum_cost_delay = '100ms'",
    "ALTER DATABASE {0} SET vacuum_cost_limit = 1",
    "ALTER DATABASE {0} SET role = writer",
    "ALTER ROLE writer IN DATABASE {0} SET statement_timeout = 1",
    "ALTER ROLE postgres IN DATABASE {0} SET idle_session_timeout = 1",
    # From here on, the server ends idle sessions of every role and database.
    "ALTER SYSTEM SET idle_session_timeout = '100ms'",
    "SELECT pg_reload_conf()",
)
#: Settings that would end the tests' own sessions, turned off.
OURS = {
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "temp_file_limit": "-1",
    "exit_on_error": "off",
}
_SETTINGS_OF = """
    SELECT coalesce(string_agg(concat(setrole::regrole, setconfig), ' ' ORDER BY setrole::regrole::text), '')
    FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE datname = '{}'
"""


@pytest.fixture(scope="module")
def harsh(full_bin_dir: Path) -> Iterator[PortCluster]:
    with running_cluster(full_bin_dir, tls=False, **SERVER) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def site(harsh: PortCluster, full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    with admin(harsh) as session:
        for statement in (
            "CREATE ROLE writer",
            "CREATE ROLE reporter",
            f"CREATE DATABASE {NAME} TEMPLATE template0 OWNER writer",
            *(each.format(NAME) for each in SETTINGS[:-1]),
        ):
            session.execute(statement.encode())
    live = harsh.connection(NAME)
    # The settings that the owner's sessions have.
    options = pg_options({"role": "writer", "app.tenant": SECRET, "extra_float_digits": "0"})
    with psycopg.connect(
        host=live.host, port=live.port, dbname=NAME, user=live.user, autocommit=True, options=options
    ) as session:
        for statement in SCHEMA.split(";\n"):
            # This session began before the configuration existed, so the setting must be repeated.
            session.execute(statement.encode())
            if "TEXT SEARCH CONFIGURATION" in statement:
                session.execute("SET default_text_search_config = 'public.own'")
    with admin(harsh) as session:
        for statement in (SETTINGS[-1], *STOPPING):
            session.execute(statement.format(NAME).encode())
    folder = tmp_path_factory.mktemp("obeys")
    place = place_for(live, full_bin_dir, folder / "backups", folder)
    place = replace(place, settings={**place.settings, "BACKUP_EXPECTED_TABLES": "bookings,big,small"})
    found = Site(place, live, full_bin_dir, place.chain(), "", "")
    found.then = held(found.live)
    return found


def held(to: Connection) -> str:
    """A hash of the rows in bookings, big and mv2."""
    query = """
        SELECT md5(concat_ws(' ', (SELECT string_agg(b::text, ' ' ORDER BY id) FROM bookings b),
                             (SELECT md5(string_agg(b::text, ' ' ORDER BY id)) FROM big b),
                             (SELECT string_agg(m::text, ' ') FROM mv2 m)))
    """
    return value(to, query)


def settings_of(to: Connection, name: str) -> str:
    """The settings of a database, and of each role in it."""
    return value(to.to("postgres"), _SETTINGS_OF.format(name))


def value(to: Connection, query: str) -> str:
    options = f"{SESSION_OPTIONS} {pg_options(OURS)}"
    with psycopg.connect(host=to.host, port=to.port, dbname=to.database, user=to.user, options=options) as session:
        row = session.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.exhaustive
def test_drop_and_swap_restore_the_rows_and_settings(site: Site) -> None:
    """Mode drop, which drills first; then mode swap."""
    settings = settings_of(site.live, NAME)
    for arguments in (("--mode", "drop"), ("--mode", "swap")):
        ended = site.restore(*arguments)
        assert ended.code == 0, ended.output
        assert SECRET not in ended.output
        assert held(site.live) == site.then
        assert settings_of(site.live, NAME) == settings


@pytest.mark.exhaustive
@pytest.mark.parametrize("arguments", thinned([("--jobs", "1"), ("--even-if-damaged",)], together=True))
def test_a_new_database_gets_the_rows_and_settings(site: Site, arguments: tuple[str, ...]) -> None:
    made = f"{NAME}_beside{len(arguments)}"
    ended = site.restore("--mode", "new", "--into", made, *arguments, confirm=False)
    assert ended.code == 0, ended.output
    assert "lost:" not in ended.output
    assert held(site.live.to(made)) == site.then
    # The settings used while loading are gone: the database has those of the source.
    settings = settings_of(site.live, NAME)
    assert settings_of(site.live, made) == settings


@pytest.mark.exhaustive
def test_rows_survive_on_a_server_with_other_settings(site: Site, full_server: PortCluster) -> None:
    there = full_server.connection(NAME)
    elsewhere = site.with_settings(POSTGRES_HOST=there.host, POSTGRES_PORT=str(there.port))
    with admin(full_server) as session:
        session.execute("CREATE ROLE writer; CREATE ROLE reporter")
    try:
        ended = elsewhere.place.run("restore", site.backup.path.name, "--new-host")
        assert ended.code == 0, ended.output
        assert held(there) == site.then
        assert SECRET not in ended.output
        assert "not in effect" not in ended.output
        scratch = elsewhere.with_settings(RESTORE_POSTGRES_HOST=there.host, RESTORE_POSTGRES_PORT=str(there.port))
        drilled = scratch.place.run("drill", site.backup.path.name, "--where", "database")
        assert drilled.code == 0, drilled.output
    finally:
        with admin(full_server) as session:
            session.execute(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)".encode())
            session.execute("DROP ROLE writer; DROP ROLE reporter")
