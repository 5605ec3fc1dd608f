"""Every setting that a database may carry, with two values each: dump, verification, drill and restore pass.

The list is the server's own. One database carries many settings, and its rows, CHECKs, generated columns and views obey
them. If such a database fails, the settings are halved until the one at fault is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql

from ovia_backup_dagster.drill.placement import Where
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session_settings import (
    RULES,
    SESSION_OPTIONS,
    While,
    as_recorded,
    pg_options,
    read_options,
    rule,
    unended,
)
from ovia_backup_dagster_tests.conftest import PortCluster, admin
from ovia_backup_dagster_tests.support.drilling import Drilling, assert_passed, database
from ovia_backup_dagster_tests.support.exhaustive import thinned

#: Settings of the planner and of logging, which change no value.
PLANNER = "Query Tuning / "
LOG = re.compile(r"log_\w+|debug_print_\w+|debug_pretty_print")
#: Why a database cannot carry a setting, or why no session in it would begin.
REASONS = {
    "transaction_isolation": "ALTER DATABASE refuses it",
    "transaction_deferrable": "ALTER DATABASE refuses it",
    "debug_discard_caches": "has one value in a server as it is built for production",
    "local_preload_libraries": "a library in $libdir/plugins, which has none: no session of the source's begins",
    "output_plugin_libraries": "as shared as session_preload_libraries, which stands for it, and not in every minor",
}
#: Values of settings that are texts, or whose extremes a server refuses.
VALUES = {
    "application_name": ("", "ovia-backup"),
    "backtrace_functions": ("", "int4in"),
    "client_encoding": ("LATIN1", "SQL_ASCII"),
    "createrole_self_grant": ("set", "set, inherit"),
    "datestyle": ("German, DMY", "SQL, MDY"),
    "default_table_access_method": ("heap", "own_heap"),
    "default_tablespace": ("pg_default", "nowhere"),
    "default_text_search_config": ("pg_catalog.german", "public.own"),
    "dynamic_library_path": ("$libdir", "/nowhere:$libdir"),
    "lc_messages": ("C", "C.utf8"),
    "lc_monetary": ("C", "C.utf8"),
    "lc_numeric": ("C", "C.utf8"),
    "lc_time": ("C", "C.utf8"),
    "max_stack_depth": ("512kB", "2MB"),
    "plpgsql.extra_errors": ("too_many_rows", "none"),
    "plpgsql.extra_warnings": ("all", "none"),
    "restrict_nonsystem_relation_kind": ("foreign-table", "view, foreign-table"),
    "search_path": ("pg_catalog", 'own, "$user"'),
    "session_preload_libraries": ("$libdir/auto_explain", "auto_explain"),
    "temp_tablespaces": ("", "pg_default"),
    "timezone": ("Asia/Kolkata", "America/St_Johns"),
    "timezone_abbreviations": ("India", "Australia"),
    "wal_consistency_checking": ("", "heap, btree"),
}
#: A database may carry them, though pg_settings does not list them.
UNLISTED = {
    "role": ("settings_owner", "settings_owner"),
    "session_authorization": ("settings_owner", "settings_owner"),
    "seed": ("0.25", "0.5"),
    "app.tenant": ("one", 'o\'ne \\ "two"\n'),
}
SCHEMA = r"""
    CREATE TYPE path_sep AS ENUM ('/', E'\\');
    CREATE FUNCTION told(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT pg_catalog.current_setting($1, true) $$;
    CREATE FUNCTION searched(text) RETURNS tsvector LANGUAGE sql IMMUTABLE AS $$ SELECT pg_catalog.to_tsvector($1) $$;
    CREATE FUNCTION zoned(timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT $1::pg_catalog.text $$;
    CREATE FUNCTION is_none(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN $1 = NULL; END $$;
    CREATE TABLE forms (
        id int PRIMARY KEY, sep path_sep DEFAULT E'\\', at timestamptz, day date, span interval, float float8,
        bytes bytea, names text[], cash money, words text, nothing int,
        document xml,
        at_text text CHECK (at_text = at::text), at_day date CHECK (at_day = at::date),
        day_text text CHECK (day_text = day::text), span_text text CHECK (span_text = span::text),
        float_text text CHECK (float_text = float::text), bytes_text text CHECK (bytes_text = bytes::text),
        cash_text text CHECK (cash_text = cash::text), month text CHECK (month = to_char(at, 'TMMonth D9G999')),
        abbreviated timestamptz CHECK (abbreviated = (at_day::date + '12:00'::time)::text::timestamptz),
        xml_text text CHECK (xml_text = xmlelement(name x, bytes)::text),
        none text CHECK (none = coalesce(is_none(nothing)::text, 'unknown')),
        zone text GENERATED ALWAYS AS (zoned(at)) STORED,
        search tsvector GENERATED ALWAYS AS (searched(words)) STORED,
        tenant text GENERATED ALWAYS AS (told('app.tenant')) STORED,
        double text GENERATED ALWAYS AS (float::text || bytes::text) STORED,
        CHECK (sep <> E'\\' OR words <> E'a''b\\c'), CHECK (day > '2020-02-01'), CHECK (at > '2020-02-01 03:00+05:30'),
        CHECK (float <> 0.1::float8 + 0.2::float8), CHECK (bytes <> E'\\x00ff'), CHECK (span <> '-1 day -2 hours'),
        CHECK (cash <> 1.23::money), CHECK (names <> '{a,"b c"}')
    );
    CREATE INDEX ON forms USING gin (searched(words));
    CREATE INDEX ON forms (zoned(at));
    COMMENT ON TABLE forms IS E'a \\ back''slash';
    CREATE TABLE probes (name text PRIMARY KEY, value text, CHECK (value IS NOT DISTINCT FROM told(name)));
    CREATE VIEW shown AS SELECT id, '-1 year 2 days -03:00'::interval AS i, 1.1::float4 AS f, E'\\x5c'::bytea AS b,
        '2020-02-03 04:05+00'::timestamptz AS t, '{1,NULL}'::int[] AS n, E'\\' AS s, (nothing = NULL::int) AS none
        FROM forms;
    CREATE MATERIALIZED VIEW kept AS SELECT id, at::text AS at, day::text AS day, float::text AS f, sep FROM shown
        JOIN forms USING (id);
    CREATE TABLE parted (at timestamptz, "select" int) PARTITION BY RANGE (at);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01 00:00+05:30') TO ('2027-01-01 00:00+05:30');
    CREATE FUNCTION quoted("select" text DEFAULT E'\\') RETURNS text LANGUAGE sql AS $$ SELECT E'\\' || $1 $$;
    SELECT lo_from_bytea(4711, E'\\x5c00ff');
"""
ROWS = r"""
    INSERT INTO forms (id, sep, at, day, span, float, bytes, names, cash, words, nothing, document)
    SELECT i, (ARRAY['/', E'\\']::path_sep[])[i % 2 + 1], '2026-01-01 20:00+00'::timestamptz + i * '7 hours'::interval,
        date '2026-01-13' + i, i * '-25 hours 1 day 3 mons'::interval, i / 7.0, decode(md5(i::text), 'hex'),
        ARRAY[NULL, 'NULL', E'\\', '"', i::text], i * 1234.56, E'going \\ goes häuser the ' || i, nullif(i, 3),
        xmlelement(name d, i)
    FROM generate_series(1, 40) i;
    UPDATE forms SET at_text = at::text, at_day = at::date, day_text = day::text, span_text = span::text,
        float_text = float::text, bytes_text = bytes::text, cash_text = cash::text,
        month = to_char(at, 'TMMonth D9G999'), abbreviated = (at::date + '12:00'::time)::text::timestamptz,
        xml_text = xmlelement(name x, bytes)::text, none = coalesce(is_none(nothing)::text, 'unknown');
    INSERT INTO parted SELECT at, id FROM forms;
    REFRESH MATERIALIZED VIEW kept
"""

#: pg_restore sets the first as the archive was written; no query returns the second.
NOT_TOLD = ("standard_conforming_strings", "seed")

Values = dict[str, str]
#: Name -> category, and two values, or ``None`` if they are not known.
Listed = dict[str, tuple[str, tuple[str, str] | None]]


@pytest.fixture(scope="module")
def listed(full_server: PortCluster) -> Listed:
    """Each setting that a database may carry."""
    query = """
        SELECT lower(name), category, vartype, enumvals, min_val, max_val FROM pg_settings
        WHERE context IN ('user', 'superuser') ORDER BY 1
    """
    found: Listed = {}
    with admin(full_server) as session:
        session.execute("LOAD 'plpgsql'")
        for name, category, kind, enum, least, most in cast("list[tuple[Any, ...]]", session.execute(query).fetchall()):
            values: tuple[str, str] | None = None
            if name in VALUES:
                values = VALUES[name]
            elif name.endswith("_timeout"):
                values = "1", "2147483647"  # our own sessions have none
            elif kind == "bool":
                values = "off", "on"
            elif kind == "enum":
                values = enum[0], enum[-1]
            elif kind in ("integer", "real"):
                values = least, most
            found[name] = category, values
    assert len(found) > 150
    return found


@contextmanager
def carrying(cluster: PortCluster, values: Values) -> Iterator[Connection]:
    """A database that carries these settings, and whose content obeys them."""
    with database(cluster, "settings", "ENCODING 'UTF8' LOCALE 'C.utf8'") as source:
        with psycopg.connect(
            host=source.host, port=source.port, user=source.user, dbname=source.database, autocommit=True
        ) as session:
            session.execute("CREATE SCHEMA own; CREATE TEXT SEARCH CONFIGURATION own (COPY = french)")
            session.execute("CREATE ACCESS METHOD own_heap TYPE TABLE HANDLER heap_tableam_handler")
        with admin(cluster) as session:
            known = {row[0] for row in session.execute("SELECT lower(name) FROM pg_settings WHERE context = 'user'")}
            for name, value in values.items():
                elements = value.split(", ") if name == "search_path" else [value]
                literals = sql.SQL(", ").join(sql.Literal(each.strip('"')) for each in elements)
                form = sql.SQL("ALTER DATABASE settings SET {} TO {}")
                session.execute(form.format(sql.Identifier(*name.split(".")), literals))
        # This session also sets what a restore pins; all else is as the database has it.
        options = {n: each.pinned for n, each in RULES.items() if each.filling is While.PINNED and n in known}
        servers = {"search_path": "public", "role": "none", "client_encoding": "UTF8"}
        with psycopg.connect(
            host=source.host,
            port=source.port,
            user=source.user,
            dbname=source.database,
            autocommit=True,
            options=pg_options({**options, **servers, "lc_monetary": "C"}),
        ) as session:
            session.execute(SCHEMA.encode())
            session.execute(ROWS.encode())
            # A CHECK compares each of these rows with the setting that is in effect in the copy.
            for name in values:
                if rule(name).filling is While.SOURCES and name not in NOT_TOLD:
                    session.execute("INSERT INTO probes VALUES (%s, current_setting(%s, true))", [name, name])
        yield source


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", thinned([0, 1]))
def test_a_database_with_any_setting_passes(
    number: int,
    listed: Listed,
    full_server: PortCluster,
    full_bin_dir: Path,
    tmp_path: Path,
) -> None:
    carried: Values = {name: each[number] for name, each in UNLISTED.items()}
    unexplained = []
    for name, (category, values) in listed.items():
        if name in REASONS or category.startswith(PLANNER) or LOG.fullmatch(name):
            continue
        if values is None:
            unexplained.append(name)
        else:
            carried[name] = values[number]
    assert not unexplained, f"of these there are neither two values nor a reason: {unexplained}"
    assert len(carried) > 90
    with admin(full_server) as session:
        session.execute("DROP ROLE IF EXISTS settings_owner; CREATE ROLE settings_owner SUPERUSER")
    try:
        wrong = tried(full_server, full_bin_dir, tmp_path / "all", carried)
        if wrong:
            blamed = halved(full_server, full_bin_dir, tmp_path, carried)
            pytest.fail(f"with {blamed}: {tried(full_server, full_bin_dir, tmp_path / 'blamed', blamed) or wrong}")
    finally:
        with admin(full_server) as session:
            session.execute("DROP ROLE settings_owner")


def tried(cluster: PortCluster, bin_dir: Path, volume: Path, values: Values) -> str:
    """Why a database with these settings fails; empty if it passes."""
    with carrying(cluster, values) as source:
        drilling = Drilling(source, bin_dir, volume)
        try:
            drilling.dump()
            assert_passed(drilling.drill())
            assert_passed(drilling.drill(Where.DATABASE))
        except (AssertionError, psycopg.Error) as error:
            return str(error)
    return ""


def halved(cluster: PortCluster, bin_dir: Path, folder: Path, values: Values) -> Values:
    """The smallest set of these settings that fails on its own."""
    names = sorted(values)
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        some = {name: values[name] for name in half}
        if half and len(half) < len(names) and tried(cluster, bin_dir, folder / f"{half[0]}-{len(half)}", some):
            return halved(cluster, bin_dir, folder, some)
    return values


def test_options_are_read_as_they_are_written() -> None:
    settings = {"x": "a\\b c\n\td'", "empty": ""}
    assert read_options(pg_options(settings)) == settings
    old = "-c timezone=UTC -c bytea_output=hex -c lc_monetary=C"
    assert as_recorded(old) == old
    assert as_recorded(SESSION_OPTIONS) == SESSION_OPTIONS
    # A manifest may be forged.
    forged = "-c session_preload_libraries=evil -c role=boss -c TimeZone=UTC -c statement_timeout=1"
    assert as_recorded(forged) == "-c timezone=UTC"


def test_a_server_is_sent_only_timeouts_that_it_knows() -> None:
    told = {version: set(read_options(unended(version * 10000))) for version in (13, 14, 16, 17, 18)}
    assert "idle_session_timeout" not in told[13]
    assert "idle_session_timeout" in told[14]
    assert "transaction_timeout" not in told[16]
    assert "transaction_timeout" in told[17]
    assert {"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} <= told[13]


@pytest.mark.parametrize(
    "name",
    ["session_preload_libraries", "local_preload_libraries", "dynamic_library_path", "oauth_validator_libraries",
     "plperl.on_plperl_init", "plperl.on_init", "pltcl.start_proc", "plv8.start_proc", "role", "session_authorization",
     "Session_Preload_Libraries", "shared_preload_libraries", "extension_control_path"],
)  # fmt: skip
def test_settings_of_code_or_rights_stay_the_servers(name: str) -> None:
    assert rule(name).filling is While.SERVERS
    assert rule(name).why
