"""The source's settings in a copy: which are in effect, which one wins, and which are never taken from an archive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ovia_backup_dagster.core.manifest import DatabaseFacts, Manifest
from ovia_backup_dagster.postgres import dump as dumping
from ovia_backup_dagster.postgres import globals_file as saved_globals
from ovia_backup_dagster.postgres.session import connect, effective_settings
from ovia_backup_dagster.postgres.session_settings import DECIDING, SESSION_OPTIONS
from ovia_backup_dagster.proof.source_settings import InEffect, Setting, put_in_effect, take_out, wanted
from ovia_backup_dagster.proof.target import Copy, live_copy
from ovia_backup_dagster_tests.conftest import PortCluster, execute, free_port
from ovia_backup_dagster_tests.support.drilling import Drilling, as_role, assert_passed, database

SECRET = "s3cret-tenant"
#: The session options that earlier versions recorded.
OLD_OPTIONS = "-c timezone=UTC -c bytea_output=hex -c lc_monetary=C"
SCRIPT = rb"""
--
-- PostgreSQL database dump
--

SET client_encoding = 'UTF8';
CREATE DATABASE d WITH TEMPLATE = template0 ENCODING = 'UTF8';


ALTER DATABASE d OWNER TO "the Owner";

\connect d

ALTER DATABASE d SET "TimeZone" TO 'Asia/Kolkata';
ALTER DATABASE d SET "app.t" TO E'a\\b''c; ALTER ROLE x SUPERUSER';
ALTER DATABASE d SET search_path TO 'a', 'b c';
ALTER DATABASE d SET session_preload_libraries TO 'evil';
ALTER DATABASE d SET "plperl.on_plperl_init" TO 'system(1)';
ALTER DATABASE d SET role TO 'postgres';
ALTER DATABASE d SET "x -c session_preload_libraries=evil" TO '1';
ALTER DATABASE d SET statement_timeout TO '1';
ALTER DATABASE d SET bytea_output TO 'escape';
ALTER DATABASE d SET xmlbinary TO 'hex';
ALTER ROLE "the Owner" IN DATABASE d SET "IntervalStyle" TO 'iso_8601';
ALTER ROLE writes IN DATABASE d SET lc_time TO 'C';
ALTER ROLE writes IN DATABASE d SET "app.mine" TO 'one';
ALTER ROLE reads IN DATABASE d SET "DateStyle" TO 'German';
ALTER ROLE reads IN DATABASE d SET "app.mine" TO 'two';
ALTER ROLE reads IN DATABASE d SET "app.theirs" TO 'three';
ALTER ROLE reads IN DATABASE d SET "TimeZone" TO 'UTC';
"""
GLOBALS = rb"""
SET client_encoding = 'UTF8';
CREATE ROLE "the Owner";
ALTER ROLE "the Owner" SET "TimeZone" TO 'Asia/Tokyo';
ALTER ROLE "the Owner" SET "IntervalStyle" TO 'sql_standard';
CREATE ROLE other;
ALTER ROLE other SET "DateStyle" TO 'German';
"""
ENTRIES = ("TABLE public t the Owner", "TABLE public u writes")


def manifest_of(**facts: object) -> Manifest:
    now = datetime.now(UTC)
    values = {
        "name": "d", "server_version": "16.1", "server_version_num": 160001, "system_identifier": None,
        "bootstrap_superuser": "postgres", "owner": "the Owner", "encoding": "UTF8", "collate": "C", "ctype": "C",
        "locale_provider": "libc",
    }  # fmt: skip
    return Manifest(
        database=DatabaseFacts.model_validate({**values, **facts}), started_at=now, finished_at=now, seconds=1.0,
        size_bytes=1, sha256="0" * 64, compression="none", options=(), session_options=OLD_OPTIONS,
        client_version="16.1", made_by="a test",
    )  # fmt: skip


def said(found: list[Setting]) -> dict[str, str]:
    names = [setting.name.lower() for setting in found]
    assert len(names) == len(set(names))
    return {setting.name: setting.value for setting in found}


def test_the_owners_setting_outranks_all_others() -> None:
    alone = said(wanted(SCRIPT, entries=ENTRIES))
    assert alone == {
        "TimeZone": "Asia/Kolkata",
        "app.t": "a\\b'c; ALTER ROLE x SUPERUSER",
        "bytea_output": "escape",
        "xmlbinary": "hex",
        "IntervalStyle": "iso_8601",
        # A setting of a role that owns objects. A role that owns none counts only if no other role has the setting.
        "lc_time": "C",
        "app.mine": "one",
        "app.theirs": "three",
    }
    with_roles = said(wanted(SCRIPT, globals_sql=GLOBALS, entries=ENTRIES))
    # Like in a session of the owner, a role's setting outranks the database's.
    assert with_roles == {**alone, "TimeZone": "Asia/Tokyo"}
    effective = {"timezone": "UTC", "datestyle": "SQL, DMY", "extra_float_digits": "0"}
    known = wanted(SCRIPT, manifest_of(effective=effective), GLOBALS, ENTRIES)
    # The dump's options decide how the archive writes money.
    more = {"datestyle": "SQL, DMY", "extra_float_digits": "0", "lc_monetary": "C"}
    assert said(known) == {**with_roles, **more}
    # A setting that is not set for this database leaves no note.
    assert {setting.name for setting in known if not setting.said} == set(more)


def test_the_manifest_replaces_settings_the_archive_lacks() -> None:
    """If a database's name contains a line feed, pg_restore prints none of its settings."""
    settings = {"": ("TimeZone=Asia/Kolkata", "app.t=********"), "the Owner": ("DateStyle=German",), "x": ("a.b=1",)}
    found = said(wanted(b"", manifest_of(settings=settings)))
    assert found == {"TimeZone": "Asia/Kolkata", "DateStyle": "German", "a.b": "1", "lc_monetary": "C"}


@pytest.fixture
def copy(server: PortCluster) -> Iterator[Copy]:
    name = f"copy{os.getpid()}_{free_port()}"
    with database(server, name) as made:
        yield live_copy(made, name, f"database {name}")


def shown(copy: Copy, name: str, effect: InEffect) -> object:
    with connect(copy.connection, options=effect.options) as session:
        row = session.execute("SELECT current_setting(%s, true) AS one", [name]).fetchone()
    assert row is not None
    return row["one"]


def test_source_settings_are_in_effect_until_removed(copy: Copy, server: PortCluster) -> None:
    # The copy's server and the restoring role have other settings.
    execute(server.connection(), "ALTER ROLE postgres SET timezone = 'America/New_York'")
    try:
        settings = [
            Setting("TimeZone", "Asia/Kolkata"),
            Setting("app.t", f"{SECRET} 'of' \\ a\nline"),
            Setting("lc_time", f"xx_{SECRET}"),
            Setting("lc_numeric", "xx_XX", said=False),
            Setting("not_known_here", SECRET),
            Setting("plpgsql.no such", SECRET),
            Setting("shared_buffers", "128MB"),
        ]
        effect = put_in_effect(copy, settings)
        assert effect.names == ("TimeZone", "app.t")
        assert shown(copy, "timezone", effect) == "Asia/Kolkata"
        assert shown(copy, "app.t", effect) == f"{SECRET} 'of' \\ a\nline"
        for name, value in {"array_nulls": "on", "idle_session_timeout": "0", "statement_timeout": "0"}.items():
            assert shown(copy, name, effect) == value
        told = "\n".join(effect.notes)
        assert SECRET not in told
        assert [note.split()[3] for note in effect.notes] == [
            "lc_time", "not_known_here", "plpgsql.no", "shared_buffers"
        ]  # fmt: skip
        assert "the server does not take its value" in effect.notes[0]
        assert "the server does not know it" in effect.notes[1]
        assert len(effect.quietly) == 1
        take_out(copy)
        assert shown(copy, "timezone", InEffect()) == "America/New_York"
        assert shown(copy, "app.t", InEffect()) in (None, "")
    finally:
        execute(server.connection(), "ALTER ROLE postgres RESET timezone")


def test_a_role_without_superuser_passes_settings_as_options(copy: Copy, server: PortCluster) -> None:
    """The role may pass an application's setting only as a session option, and no setting that needs a superuser."""
    role = f"restores{os.getpid()}"
    execute(server.connection(), f"CREATE ROLE {role} LOGIN CREATEDB")
    try:
        weak = Copy(as_role(copy.connection, role), as_role(copy.server, role), copy.name, copy.kind, "")
        settings = [
            Setting("TimeZone", "Asia/Kolkata"),
            Setting("app.t", "a b\\c"),
            Setting("lo_compat_privileges", "on"),
        ]
        effect = put_in_effect(weak, settings)
        assert effect.names == ("TimeZone", "app.t")
        assert [note.rpartition(": ")[2] for note in effect.notes] == ["the role that restores may not set it"]
        assert shown(weak, "app.t", effect) == "a b\\c"
        assert shown(weak, "timezone", effect) == "Asia/Kolkata"
        take_out(weak)
        assert shown(weak, "timezone", InEffect()) != "Asia/Kolkata"
    finally:
        execute(copy.server, f"DROP ROLE {role}")


def test_a_dump_records_what_values_depend_on(new_database, server: PortCluster) -> None:  # type: ignore[no-untyped-def]
    found = effective_settings(new_database())
    assert set(DECIDING) - {"plpgsql.variable_conflict"} == set(found)
    assert (found["timezone"], found["bytea_output"]) == ("America/New_York", "escape")


@pytest.mark.parametrize("options", [SESSION_OPTIONS, OLD_OPTIONS])
def test_literals_with_backslashes_are_restored(
    options: str, server: PortCluster, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With standard_conforming_strings off and quoted names, in dumps of this version and of earlier ones."""
    monkeypatch.setattr(dumping, "SESSION_OPTIONS", options)
    with database(server, f"scs{os.getpid()}_{free_port()}") as source:
        execute(
            source,
            r"CREATE TYPE path_sep AS ENUM ('/', '\')",
            r"CREATE TABLE t (id int PRIMARY KEY, s path_sep DEFAULT '\', n text[], c money)",
            r"INSERT INTO t VALUES (1, '\', '{NULL,\"NULL\"}', 1234.5), (2, '/', NULL, -1)",
            "CREATE VIEW v AS SELECT id FROM t",
            *(
                f"ALTER DATABASE {source.database} SET {setting}"
                for setting in ("standard_conforming_strings = off", "quote_all_identifiers = on", "array_nulls = off")
            ),
        )
        assert_passed(Drilling(source, bin_dir, tmp_path).dump_and_drill())


def test_money_is_read_as_it_was_written(
    server: PortCluster, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options recorded with the dump decide, not the restoring role."""
    found = said(wanted(SCRIPT.replace(b"lc_time", b"lc_monetary"), manifest_of(), None, ENTRIES))
    assert found["lc_monetary"] == "C"
    # The old script's dumps were written with the database's settings.
    assert said(wanted(b"ALTER DATABASE d SET lc_monetary TO 'de_DE';"))["lc_monetary"] == "de_DE"


@pytest.mark.parametrize(
    ("was", "now", "odd"),
    [
        ("2027-01-02 05:30:00+05:30", "2027-01-02 00:00:00+00", []),
        ("2027-01-02 05:30:00+05:30", "2027-01-02 05:30:00+00", ["role r has a different end of its password"]),
        ("infinity", "infinity", []),
        ("infinity", "2027-01-02 00:00:00+00", ["role r has a different end of its password"]),
    ],
)
def test_a_passwords_expiry_is_compared_as_a_point_in_time(was: str, now: str, odd: list[str]) -> None:
    """Roles are saved in UTC; older versions saved them in the server's time zone."""
    saved, made = (
        saved_globals.parse_globals(f"CREATE ROLE r;\nALTER ROLE r WITH LOGIN VALID UNTIL '{until}';\n".encode())
        for until in (was, now)
    )
    assert saved_globals.role_differences(saved, made, "postgres") == ([], odd)
