"""Pairs of server and client majors, with the real programs of the majors that are installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.doctor import server_area
from ovia_backup_dagster.doctor.report import Severity
from ovia_backup_dagster.postgres import versions
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.versions import MAJORS, PROMISED, may_dump
from ovia_backup_dagster_tests.conftest import execute, free_port, quiet, running_cluster, snapshot
from ovia_backup_dagster_tests.doctor.support import system_of
from ovia_backup_dagster_tests.support.drilling import Drilling
from ovia_backup_dagster_tests.support.exhaustive import thinned

DEBIANS = Path("/usr/lib/postgresql/15/bin")
PROGRAMS = {15: DEBIANS, 16: embedded_server.bin_dir(16), 18: embedded_server.bin_dir(18)}


def bin_of(major: int) -> Path:
    found = PROGRAMS[major]
    if not (found / "postgres").exists() and not os.environ.get("CI"):
        pytest.skip("Debian's PostgreSQL 15 is not installed, which .ci/run does: apt-get install postgresql-15")
    return found


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[int, Connection]]:
    """One server for each major, started on first use."""
    running: list[running_cluster] = []

    class Servers(dict[int, Connection]):
        def __missing__(self, major: int) -> Connection:
            cluster = running_cluster(bin_of(major))
            running.append(cluster)
            self[major] = cluster.__enter__().connection()
            return self[major]

    try:
        yield Servers()
    finally:
        for cluster in running:
            cluster.__exit__(None, None, None)


def a_database(servers: dict[int, Connection], major: int) -> Connection:
    name = f"pair_{free_port()}"
    execute(servers[major], f"CREATE DATABASE {name}")
    database = servers[major].to(name)
    execute(
        database,
        "CREATE TABLE people (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, twice text "
        "GENERATED ALWAYS AS (name || name) STORED)",
        "INSERT INTO people (name) SELECT md5(n::text) FROM generate_series(1, 1000) n",
        "CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM people",
        "SELECT lo_from_bytea(0, 'a large object')",
    )
    return database


@pytest.mark.exhaustive
@pytest.mark.parametrize(("server", "client"), thinned([(15, 15), (18, 18)]))
def test_a_database_of_an_equal_major_passes_its_drill(
    servers: dict[int, Connection], tmp_path: Path, server: int, client: int
) -> None:
    """The drill's throwaway cluster is of the client's major."""
    there = Drilling(a_database(servers, server), bin_of(client), tmp_path / "backups")

    backup = there.dump()

    manifest = backup.manifest
    assert manifest is not None
    assert manifest.database.server_version.startswith(f"{server}.")
    assert manifest.client_version.startswith(f"{client}.")
    assert manifest.warnings == ()
    assert backup.verification is not None
    assert backup.verification.judgements[-1].findings == ()
    evidence = there.drill()
    assert evidence.passed, evidence.failures
    assert evidence.versions["source"].startswith(f"{server}.")
    assert evidence.versions["copy"].startswith(f"{client}.")


@pytest.mark.parametrize(("server", "client"), [(16, 15), (15, 16), (18, 16), (16, 18)])
def test_a_server_of_another_major_is_refused(
    servers: dict[int, Connection], tmp_path: Path, server: int, client: int
) -> None:
    there = Drilling(servers[server], bin_of(client), tmp_path / "backups")
    dumper = Dumper(there.catalog, there.source, there.programs)

    with pytest.raises(errors.VersionMismatchError) as refused:
        dumper.dump(log=quiet)

    assert refused.value.what.startswith(f"pg_dump {client} is the wrong version for database postgres at ")
    assert f"the server is PostgreSQL {server} ({server}." in refused.value.why
    assert f"use PostgreSQL {server}'s client programs" in refused.value.fix
    assert there.catalog.backups() == []
    assert [path for path in snapshot(tmp_path) if str(path).endswith(".dump")] == []


def test_the_doctor_fails_on_unequal_majors(servers: dict[int, Connection], tmp_path: Path) -> None:
    def said(server: int, client: int) -> list[tuple[Severity, str]]:
        lines = server_area.server(system_of(servers[server], tmp_path, bin_of(client)))
        return [(line.level, line.text) for line in lines if "PostgreSQL" in line.text]

    ((level, text),) = said(16, 15)
    assert level is Severity.FAIL
    assert text.startswith("the server is PostgreSQL 16.")
    assert text.endswith(", pg_dump is 15")
    ((level, text),) = said(15, 16)
    assert (level, text.endswith(", pg_dump is 16")) == (Severity.FAIL, True)
    assert not [text for _, text in said(15, 15) if "pg_dump" in text]


def test_the_doctor_warns_of_a_major_without_further_releases(
    servers: dict[int, Connection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> list[str]:
        lines = server_area.server(system_of(servers[15], tmp_path, bin_of(15)))
        return [line.text for line in lines if line.level is Severity.WARN and "last release" in line.text]

    assert said() == []
    monkeypatch.setitem(versions.MAJORS, 15, replace(MAJORS[15], last_release=date(2026, 1, 1)))
    assert said() == ["PostgreSQL 15 had its last release on 2026-01-01: vulnerabilities found since then stay"]


# ------------------------------------------------------------------------------------------ the table


def test_only_equal_majors_may_dump() -> None:
    assert list(MAJORS) == [13, 14, 15, 16, 17, 18]
    assert PROMISED in MAJORS
    for client in (*MAJORS, 19):
        for server in (12, *MAJORS):
            assert may_dump(client, server) is (client == server)


# ------------------------------------------------------------------------------------------ compressions


@pytest.mark.parametrize(
    ("wanted", "chosen", "option"),
    thinned(
        [
            ("auto", "gzip:1", "--compress=1"),
            ("gzip:9", "gzip:9", "--compress=9"),
            ("gzip:level=4", "gzip:level=4", "--compress=4"),
            ("gzip", "gzip", "--compress=6"),
            ("3", "3", "--compress=3"),
            ("none", "none", "--compress=0"),
            ("0", "0", "--compress=0"),
        ]
    ),
)
def test_pg_dump_15_gets_a_compression_in_its_own_spelling(
    servers: dict[int, Connection], tmp_path: Path, wanted: str, chosen: str, option: str
) -> None:
    """And accepts it. Its rejection of ``gzip:1`` once made a dump fail."""
    there = Drilling(a_database(servers, 15), bin_of(15), tmp_path / "backups")

    backup = Dumper(there.catalog, there.source, there.programs, wanted).dump(log=quiet)

    assert backup.manifest is not None
    assert (backup.manifest.compression, backup.manifest.options[1]) == (chosen, option)
    verified = there.driller.verifier.verify(backup, log=quiet)
    assert verified.judgement.good, verified.judgement.reasons


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("zstd:3", "pg_dump 15 has no zstd: PostgreSQL 16 is the first"),
        ("lz4", "pg_dump 15 has no lz4: PostgreSQL 16 is the first"),
        ("gzip:1,long", "pg_dump 15 takes a level of gzip alone, and not '1,long'"),
    ],
)
def test_a_compression_that_pg_dump_15_lacks_is_refused(wanted: str, why: str) -> None:
    with pytest.raises(errors.CompressionUnsupportedError) as refused:
        Programs(bin_of(15)).choose_compression(wanted)
    assert (refused.value.what, refused.value.why) == (f"compression {wanted} is not available here", why)


def test_pg_restore_15_reads_a_test_archive_of_its_own_format() -> None:
    """A crash on an archive counts against the archive only if pg_restore can read another one."""
    assert Programs(bin_of(15)).reads_an_archive()
    assert Programs(bin_of(18)).reads_an_archive()
