"""Verification rejects every damaged archive, accepts every healthy one, and says the right words."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.publication import remove_backup
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.postgres import verification
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.retention.promote_and_prune import prune
from ovia_backup_dagster_tests.conftest import NewDatabase, execute, quiet
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, tmpfs
from ovia_backup_dagster_tests.support.archives import restored, rows_in
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import redated


def state(backup: Backup) -> State:
    return backup.state(datetime.now(UTC))


def aged(backup: Backup, catalog: Catalog, by: timedelta = timedelta(hours=1)) -> Backup:
    """The backup as the old script would have left it: no sidecars, last written ``by`` ago."""
    for suffix in (".json", ".globals.sql", ".verified.json"):
        backup.sidecar(suffix).unlink(missing_ok=True)
    then = datetime.now(UTC).timestamp() - by.total_seconds()
    os.utime(backup.path, (then, then))
    return catalog.refresh(backup)


def test_a_healthy_dump_is_verified(dumper: Dumper, verifier: Verifier, database: Connection) -> None:
    verified = verifier.verify(dumper.dump(log=quiet), run_id="run-1", log=quiet)

    assert state(verified.backup) is State.VERIFIED
    assert verified.judgement.findings == ()
    assert verified.judgement.run_id == "run-1"
    witness = verified.backup.witness
    assert witness is not None
    assert {table.name: table.rows for table in witness.tables} == rows_in(database)


# ------------------------------------------------------------------------------------------ damage


@pytest.fixture
def gzip_dump(dumper: Dumper, verifier: Verifier) -> tuple[Backup, Verifier]:
    return dumper.dump(log=quiet), verifier


@pytest.fixture
def zstd_dump(new_full_database: NewDatabase, full_bin_dir: Path, volume: Path) -> tuple[Backup, Verifier]:
    database, programs = new_full_database(), Programs(full_bin_dir)
    catalog = Catalog(volume, database.database)
    backup = Dumper(catalog, database, programs).dump(log=quiet)
    assert backup.manifest is not None
    assert backup.manifest.compression == "zstd:2"
    return backup, Verifier(catalog, programs, Expectations())


@pytest.mark.parametrize("made", thinned(["gzip_dump", "zstd_dump"]))
def test_every_flip_and_every_truncation_is_rejected(made: str, request: pytest.FixtureRequest) -> None:
    backup, verifier = request.getfixturevalue(made)
    content, chance = backup.path.read_bytes(), random.Random(16)
    damaged = []
    for _ in range(100):
        copy = bytearray(content)
        copy[chance.randrange(len(copy))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(copy))
    damaged += [content[: chance.randrange(len(content))] for _ in range(50)]
    for one in damaged:
        backup.path.write_bytes(one)

        verified = verifier.verify(backup, log=quiet)

        assert not verified.judgement.good
        assert verified.judgement.findings[0].check is Check.MATCHES_MANIFEST
        assert state(verified.backup) is State.BAD
        backup.sidecar(".verified.json").unlink()
    backup.path.write_bytes(content)
    assert verifier.verify(backup, log=quiet).judgement.good


def test_no_program_opens_an_altered_file(dumper: Dumper, verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive can carry commands, so one that is not ours must not reach pg_restore."""
    backup = dumper.dump(log=quiet)
    backup.path.write_bytes(backup.path.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(verification, "read_archive", lambda *_: pytest.fail("it was opened"))

    assert not verifier.verify(backup, log=quiet).judgement.good


def test_damage_that_keeps_the_hash_is_found_by_decoding(dumper: Dumper, verifier: Verifier) -> None:
    """As if pg_dump itself had written rubbish: the manifest matches, but the archive does not decode."""
    backup = dumper.dump(log=quiet)
    content = bytearray(backup.path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    backup.path.write_bytes(content)
    manifest = backup.manifest
    assert manifest is not None
    sha256 = hashlib.sha256(content).hexdigest()
    backup.sidecar(".json").write_text(manifest.model_copy(update={"sha256": sha256}).to_json())

    verified = verifier.verify(verifier.catalog.refresh(backup), log=quiet)

    assert [finding.check for finding in verified.judgement.findings] == [Check.DECODES]
    assert "pg_restore" in verified.judgement.reasons[0]


def test_rot_of_a_dump_without_a_manifest_is_found(dumper: Dumper, verifier: Verifier, catalog: Catalog) -> None:
    backup = aged(dumper.dump(log=quiet), catalog)
    assert verifier.verify(backup, log=quiet).judgement.good
    content = bytearray(backup.path.read_bytes())
    content[-1] ^= 1
    backup.path.write_bytes(content)
    os.utime(backup.path, ns=(backup.mtime_ns, backup.mtime_ns))  # rot changes no time stamp

    verified = verifier.verify(catalog.refresh(backup), log=quiet)

    assert "was altered" in verified.judgement.reasons[0]


def test_the_last_good_reading_survives_damage(dumper: Dumper, verifier: Verifier) -> None:
    """The verdict still says what the archive held before it was damaged."""
    backup = verifier.verify(dumper.dump(log=quiet), log=quiet).backup
    backup.path.write_bytes(b"gone")

    bad = verifier.verify(backup, log=quiet).backup

    assert bad.witness is None
    assert bad.verification is not None
    assert [judgement.good for judgement in bad.verification.judgements] == [True, False]
    assert bad.verification.witness is not None
    assert bad.verification.witness.rows > 6000


def test_sidecars_of_a_newer_program_are_read(dumper: Dumper, verifier: Verifier) -> None:
    backup = dumper.dump(log=quiet)
    for suffix in (".json", ".verified.json"):
        path = backup.sidecar(suffix)
        path.write_text(path.read_text().replace("{", '{"a_field_of_tomorrow": 1,', 1))
        newer = verifier.verify(verifier.catalog.refresh(backup), log=quiet).backup

        assert state(newer) is State.VERIFIED


@pytest.mark.parametrize(
    ("version", "message", "code"),
    thinned(
        [
            ("", "error while loading shared libraries: libzstd.so.1", 127),
            ("pg_restore (PostgreSQL) 16.15", "Killed", 137),
            ("pg_restore (PostgreSQL) 16.15", "pg_restore: error: out of memory", 1),
            (
                "pg_restore (PostgreSQL) 16.15",
                "pg_restore: error: could not read from input file: Input/output error",
                1,
            ),
        ]
    ),
)
def test_a_broken_pg_restore_gives_no_verdict(
    version: str, message: str, code: int, dumper: Dumper, verifier: Verifier, tmp_path: Path, catalog: Catalog
) -> None:
    """Otherwise a broken installation would condemn good backups, and pruning would remove them after its repair."""
    backup = aged(dumper.dump(log=quiet), catalog)
    broken = tmp_path / "bin"
    broken.mkdir()
    says = f"[ $1 = --version ] && [ '{version}' ] && echo '{version}' && exit; echo '{message}' >&2; exit {code}"
    (broken / "pg_restore").write_text(f"#!/bin/sh\n{says}\n")
    (broken / "pg_restore").chmod(0o755)
    unlucky = replace(verifier, programs=Programs(broken))

    with pytest.raises((errors.ProgramError, errors.DiskFailingError)):
        unlucky.verify(backup, log=quiet)
    assert unlucky.verify_unverified(log=quiet) == []
    assert state(catalog.refresh(backup)) is State.UNVERIFIED


def test_an_empty_dump_of_the_old_script_is_bad_at_sight(dumper: Dumper, verifier: Verifier, catalog: Catalog) -> None:
    backup = aged(dumper.dump(log=quiet), catalog)
    backup.path.write_bytes(b"")
    os.utime(backup.path, (0, 0))

    assert state(catalog.refresh(backup)) is State.BAD


# ------------------------------------------------------------------------------------------ no verdict


def test_a_dump_that_may_still_be_written_is_left_alone(dumper: Dumper, verifier: Verifier, catalog: Catalog) -> None:
    half = aged(dumper.dump(log=quiet), catalog, by=timedelta(minutes=14))

    with pytest.raises(errors.NotVerifiedError, match="may still be being written"):
        verifier.verify(half, log=quiet)
    assert verifier.verify_unverified(log=quiet) == []
    assert not half.sidecar(".verified.json").exists()


def test_a_file_that_changes_while_it_is_read_gets_no_verdict(dumper: Dumper, verifier: Verifier) -> None:
    backup = aged(dumper.dump(log=quiet), verifier.catalog)

    def touch(line: str) -> None:
        if line.startswith("hashing"):
            os.utime(backup.path)

    with pytest.raises(errors.NotVerifiedError, match="changed while it was read"):
        verifier.verify(backup, log=touch)
    assert not backup.sidecar(".verified.json").exists()


def test_a_missing_pg_restore_gives_no_verdict(dumper: Dumper, verifier: Verifier, tmp_path: Path) -> None:
    backup = dumper.dump(log=quiet)

    with pytest.raises(errors.ProgramError, match="pg_restore was not found"):
        replace(verifier, programs=Programs(tmp_path)).verify(backup, log=quiet)
    assert state(verifier.catalog.refresh(backup)) is State.UNVERIFIED


def test_a_removed_backup_cannot_be_verified(dumper: Dumper, verifier: Verifier, catalog: Catalog) -> None:
    backup = dumper.dump(log=quiet)
    remove_backup(catalog, backup)

    with pytest.raises(errors.BackupNotFoundError):
        verifier.verify(backup, log=quiet)


# ------------------------------------------------------------------------------------------ content


def test_missing_or_empty_expected_tables_are_bad(dumper: Dumper, verifier: Verifier, database: Connection) -> None:
    execute(database, "DROP TABLE person_identity_links CASCADE", "TRUNCATE identities CASCADE")

    judgement = verifier.verify(dumper.dump(log=quiet), log=quiet).judgement

    assert {finding.check for finding in judgement.findings} == {Check.TABLES_PRESENT, Check.TABLES_HOLD_ROWS}
    assert "expected table person_identity_links is not in the dump" in judgement.reasons
    assert "expected table identities holds no rows" in judgement.reasons


def test_an_empty_table_is_good_if_rows_are_not_required(
    dumper: Dumper, verifier: Verifier, database: Connection
) -> None:
    execute(database, "TRUNCATE identities CASCADE")
    lenient = replace(verifier, expectations=replace(verifier.expectations, require_rows=False))

    assert lenient.verify(dumper.dump(log=quiet), log=quiet).judgement.good


def test_lost_rows_are_odd_and_hold_the_dump_before(dumper: Dumper, verifier: Verifier, database: Connection) -> None:
    first = verifier.verify(_yesterday(dumper.dump(log=quiet)), log=quiet).backup
    execute(database, "DELETE FROM kpi_snapshots WHERE id > 10", "DROP TABLE ask_sessions CASCADE")

    second = verifier.verify(dumper.dump(log=quiet), log=quiet)

    assert second.judgement.good
    assert second.judgement.previous == first.path.name
    oddities = "\n".join(second.judgement.oddities)
    assert "table public.kpi_snapshots shrank from 160 to 10 rows" in oddities
    assert "table public.ask_sessions is gone; it held 100 rows" in oddities
    hold = verifier.catalog.refresh(first).hold
    assert hold is not None
    assert "from 160 to 10" in hold.reason
    assert timedelta(days=29) < hold.until - datetime.now(UTC) <= timedelta(days=30)


@pytest.mark.exhaustive
def test_a_table_that_swings_holds_one_dump_at_a_time(dumper: Dumper, verifier: Verifier, database: Connection) -> None:
    execute(database, "CREATE TABLE queue (a int)")
    for day, rows in enumerate([40, 3, 40, 3, 500, 3]):
        execute(database, "TRUNCATE queue", f"INSERT INTO queue SELECT generate_series(1, {rows})")
        verifier.verify(_yesterday(dumper.dump(log=quiet), 20 - day), log=quiet)

    held = [b.hold.tables for b in reversed(verifier.catalog.backups()) if b.hold]

    assert held == [{"public.queue": 40}, {"public.queue": 500}]


def test_expected_tables_of_every_kind_are_found(dumper: Dumper, verifier: Verifier, database: Connection) -> None:
    execute(
        database,
        "CREATE TABLE empty_root (a int) PARTITION BY RANGE (a)",
        'CREATE TABLE "Family" (a int)',
        'CREATE TABLE child (b int) INHERITS ("Family")',
        "CREATE TABLE grandchild () INHERITS (child, notes)",
        "INSERT INTO grandchild (a, id, body, written_at) VALUES (1, 9001, 'x', now())",
        "CREATE FUNCTION trap() RETURNS text LANGUAGE sql AS $$ SELECT '\nALTER TABLE ONLY public.ghost ATTACH "
        "PARTITION public.people FOR VALUES IN (1);\n' $$",
        "SET check_function_bodies = off",
        "CREATE FUNCTION trap2() RETURNS int LANGUAGE sql AS $$\n SELECT 1;\n"
        "ALTER TABLE ONLY public.ghost ATTACH PARTITION public.identities FOR VALUES IN (1);\n$$",
    )
    backup = dumper.dump(log=quiet)

    def findings(*tables: str, rows: bool) -> set[Check]:
        asked = replace(verifier, expectations=Expectations(tables, rows))
        return {finding.check for finding in asked.verify(backup, log=quiet).judgement.findings}

    there = ("people", "public.identities", "audit_events", "audit_events_default", "Family", "child", "notes")
    assert findings(*there, '"Family"', "ask_notes", "sync_batches", rows=True) == set()
    assert findings("empty_root", rows=False) == set()
    assert findings("empty_root", rows=True) == {Check.TABLES_HOLD_ROWS}
    for missing in ("ghost", "other.people", "peopl", "family", "public"):
        assert findings(missing, rows=False) == {Check.TABLES_PRESENT}


@pytest.mark.exhaustive
def test_a_changed_expectation_deletes_nothing(dumper: Dumper, verifier: Verifier, catalog: Catalog) -> None:
    """Six good dumps, judged again under an expectation that only the seventh meets, then pruned."""
    old = [verifier.verify(_yesterday(dumper.dump(log=quiet), days), log=quiet).backup for days in range(6, 0, -1)]
    execute(dumper.connection, "CREATE TABLE newest_table (a int)")
    strict = replace(verifier, expectations=Expectations(("newest_table",)))
    for backup in old:
        assert not strict.verify(backup, log=quiet).judgement.good
    strict.verify(dumper.dump(log=quiet), log=quiet)

    pruned = prune(catalog, Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC")), datetime.now(UTC))

    assert pruned.removed == ()
    assert {b.path for b in catalog.backups()} > {b.path for b in old}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_full_disk_stops_neither_verdict_nor_pruning(
    dumper: Dumper, verifier: Verifier, catalog: Catalog, volume: Path
) -> None:
    """The disk fills after a dump: the verdict is written all the same, and pruning can go on."""
    with tmpfs(volume, 128 * MEGABYTE):
        backup = dumper.dump(log=quiet)
        command = ["dd", "if=/dev/zero", f"of={volume / 'ballast'}", "bs=64k"]
        assert b"No space left" in subprocess.run(command, capture_output=True, check=False).stderr

        assert verifier.verify(backup, log=quiet).judgement.good

        prune(catalog, Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC")), datetime.now(UTC))
        (volume / "ballast").unlink()
        dumper.dump(log=quiet)
        assert (volume / ".reserve").exists()


def test_growth_and_small_losses_give_no_finding(dumper: Dumper, verifier: Verifier, database: Connection) -> None:
    first = verifier.verify(_yesterday(dumper.dump(log=quiet)), log=quiet).backup
    execute(database, "DELETE FROM kpi_snapshots WHERE id > 80", "INSERT INTO notes (id, body) VALUES (9999, 'new')")

    second = verifier.verify(dumper.dump(log=quiet), log=quiet)

    assert second.judgement.findings == ()
    assert verifier.catalog.refresh(first).hold is None


def test_dumps_of_the_old_script_are_verified_on_first_sight(
    dumper: Dumper, verifier: Verifier, catalog: Catalog
) -> None:
    old = [aged(_yesterday(dumper.dump(log=quiet), days), catalog) for days in (3, 2, 1)]
    old[1].path.write_bytes(old[1].path.read_bytes()[:-1000])
    os.utime(old[1].path, (0, 0))

    outcomes = verifier.verify_unverified(log=quiet)

    assert [(o.backup.path, o.judgement.good) for o in outcomes] == [
        (old[0].path, True),
        (old[1].path, False),
        (old[2].path, True),
    ]
    assert verifier.verify_unverified(log=quiet) == []


# ------------------------------------------------------------------------------------------ a foreign database


def test_a_foreign_database_is_dumped_and_verified(
    new_full_database: NewDatabase, full_bin_dir: Path, volume: Path
) -> None:
    """pgbench's database has foreign keys, partitions and a growing history; a plain pg_restore gives the same rows."""
    programs = Programs(full_bin_dir)
    database = new_full_database(template="template0")
    pgbench = (str(full_bin_dir / "pgbench"), "--quiet")
    environment = {**os.environ, **database.environment()}
    initialise = (*pgbench, "--initialize", "--scale=2", "--foreign-keys", "--partitions=5", "--partition-method=hash")
    subprocess.run(initialise, env=environment, check=True, capture_output=True)
    subprocess.run((*pgbench[:1], "--transactions=50", "--client=2"), env=environment, check=True, capture_output=True)
    catalog = Catalog(volume, database.database)

    backup = Dumper(catalog, database, programs).dump(log=quiet)
    verified = Verifier(catalog, programs, Expectations(("pgbench_accounts", "pgbench_history"), True)).verify(
        backup, log=quiet
    )

    assert verified.judgement.findings == ()
    assert verified.witness is not None
    assert verified.witness.rows_by_table()["public.pgbench_accounts"] == 200_000
    copy = restored(database, backup.path, f"{database.database}_copy", programs)
    try:
        again = Dumper(Catalog(volume, copy.database), copy, programs).dump(log=quiet)
        copied = Verifier(Catalog(volume, copy.database), programs, Expectations()).verify(again, log=quiet)
    finally:
        execute(replace(database, database="postgres"), f"DROP DATABASE {copy.database} WITH (FORCE)")
    assert copied.witness is not None
    assert copied.witness.tables == verified.witness.tables


def _yesterday(backup: Backup, days: int = 1) -> Backup:
    """The backup with all its sidecars, made ``days`` earlier."""
    return redated(backup, backup.started_at - timedelta(days=days))
