"""A broken sidecar does not make its archive bad; an archive that crashes pg_restore is bad."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.compressions import compression_of
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.sidecars import DRILLED, GLOBALS, MANIFEST, VERIFIED, SidecarKind
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs, _empty_archive
from ovia_backup_dagster.postgres.sandbox import Confine, Sandbox
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster_tests.conftest import quiet
from ovia_backup_dagster_tests.doctor.support import executable
from ovia_backup_dagster_tests.support.command_line import Cli
from ovia_backup_dagster_tests.support.exhaustive import thinned

BROKEN = {
    "empty": (b"", "it is empty"),
    "of NUL bytes": (bytes(4096), "it holds nothing but NUL bytes"),
    "torn": (None, "it is not JSON that this program writes"),
    "an empty object": (b"{}\n", "database"),
    "something else": (b"\x80\x81 not text", "it is not JSON that this program writes"),
    "a list": (b"[1, 2]", "Input should be an object"),
    "nested without end": (b"[" * 100_000, "nested too deep"),
    "with a key twice": (b'{"version": 1, "version": 1}', "a key twice"),
}


def break_it(backup: Backup, suffix: SidecarKind[Any] | str, content: bytes | None) -> None:
    path = backup.sidecar(suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)


def now(catalog: Catalog) -> Backup:
    (backup,) = catalog.backups()
    return backup


@pytest.mark.parametrize(("content", "why"), thinned(BROKEN.values()), ids=BROKEN)
def test_a_broken_manifest_is_treated_as_missing(
    dumper: Dumper, verifier: Verifier, content: bytes | None, why: str
) -> None:
    backup = dumper.dump(log=quiet)
    assert verifier.verify(backup, log=quiet).judgement.good
    break_it(backup, MANIFEST, content)

    backup = now(verifier.catalog)
    assert (backup.manifest, backup.state(datetime.now(UTC))) == (
        None,
        State.UNVERIFIED,
    )  # the verdict covered the intact manifest
    verified = verifier.verify(backup, log=quiet)
    assert verified.judgement.good
    (finding,) = (each for each in verified.judgement.findings if each.check is Check.NO_WARNINGS)
    assert finding.text.startswith("its manifest cannot be read (")
    assert why in finding.text
    assert finding.text.endswith("): the backup is treated as one without")
    assert now(verifier.catalog).state(datetime.now(UTC)) is State.VERIFIED


@pytest.mark.exhaustive
def test_a_broken_sidecar_is_reported_and_the_drill_goes_on(
    dumper: Dumper, catalog: Catalog, database: Connection, bin_dir: Path
) -> None:
    break_it(dumper.dump(log=quiet), MANIFEST, b"")
    cli = Cli(
        {
            "POSTGRES_HOST": database.host,
            "POSTGRES_PORT": str(database.port),
            "POSTGRES_DB": database.database,
            "POSTGRES_USER": database.user,
            "BACKUP_DIR": str(catalog.root),
            "PG_BIN_DIR": str(bin_dir),
        }
    )
    said = "its manifest cannot be read (it is empty): the backup is treated as one without"
    assert "verified" in cli("verify").stderr
    assert "verified, manifest unreadable" in cli("list").stdout
    _, (listed,) = cli.json("list")
    assert listed["manifest_problem"] == said
    assert said in cli("status").stdout
    for command in (("drill", "latest"), ("restore", "latest", "--plan")):
        done = cli(*command)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout + done.stderr, command


def test_an_archive_with_anothers_manifest_is_altered(dumper: Dumper, verifier: Verifier) -> None:
    """The manifest can be read, so it counts, and the archive does not."""
    backup = dumper.dump(log=quiet)
    manifest = backup.manifest
    assert manifest is not None
    other = manifest.model_copy(update={"sha256": "0" * 64})
    backup.sidecar(MANIFEST).write_text(other.to_json())
    judgement = verifier.verify(now(verifier.catalog), log=quiet).judgement
    assert not judgement.good
    assert "was altered: its SHA-256 is" in judgement.reasons[0]


def test_a_newer_programs_manifest_gives_no_verdict(dumper: Dumper, verifier: Verifier) -> None:
    """A downgrade must not lose what the newer program recorded."""
    backup = dumper.dump(log=quiet)
    text = backup.sidecar(MANIFEST).read_text()
    backup.sidecar(MANIFEST).write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(errors.VolumeError, match="if a newer ovia-backup wrote it, use that one"):
        verifier.verify(now(verifier.catalog), log=quiet)
    assert now(verifier.catalog).state(datetime.now(UTC)) is State.UNVERIFIED


@pytest.mark.parametrize("content", [None, b"", bytes(512)])
def test_broken_verdicts_are_made_again(dumper: Dumper, verifier: Verifier, content: bytes | None) -> None:
    backup = verifier.verify(dumper.dump(log=quiet), log=quiet).backup
    backup.sidecar(DRILLED).write_bytes(b"{")
    break_it(backup, VERIFIED, content)
    assert now(verifier.catalog).state(datetime.now(UTC)) is State.UNVERIFIED
    assert verifier.verify(now(verifier.catalog), log=quiet).judgement.good
    assert not now(verifier.catalog).drilled


def test_broken_saved_roles_make_the_backup_bad(dumper: Dumper, verifier: Verifier) -> None:
    break_it(dumper.dump(log=quiet), GLOBALS, b"")
    (reason,) = verifier.verify(now(verifier.catalog), log=quiet).judgement.reasons
    assert "globals.sql is 0 bytes long; it was" in reason


# ------------------------------------------------------------------------------------------ an archive that crashes


def crashing(catalog: Catalog) -> Backup:
    """An archive whose contents list has an entry without a catalog id: pg_restore 16 follows a null pointer there."""
    catalog.prepare()
    path = catalog.folder(Tier.DAILY) / BackupName(catalog.database, Tier.DAILY, datetime.now(UTC)).filename
    integer = {1: b"\0\1\0\0\0", 0: b"\0\0\0\0\0", -1: b"\1\1\0\0\0"}
    path.write_bytes(
        _empty_archive(16, compression_of("none"))[:-5] + integer[1] + integer[1] + integer[0] + integer[-1] * 12
    )
    hours_ago = (datetime.now(UTC) - timedelta(hours=2)).timestamp()
    os.utime(path, (hours_ago, hours_ago))
    return now(catalog)


@pytest.fixture
def volume_of_crashes(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "crashes", "ovia")


def test_an_archive_that_crashes_pg_restore_twice_is_bad(volume_of_crashes: Catalog, bin_dir: Path) -> None:
    log: list[str] = []
    verified = Verifier(volume_of_crashes, Programs(bin_dir), Expectations()).verify(
        crashing(volume_of_crashes), log=log.append
    )
    assert not verified.judgement.good
    (reason,) = verified.judgement.reasons
    assert "pg_restore crashed on it twice, and can read other archives (the program crashed (signal 11)" in reason
    assert sum("crashed" in line and line.endswith("trying once more") for line in log) == 1
    assert now(volume_of_crashes).state(datetime.now(UTC)) is State.BAD


@pytest.mark.parametrize(
    ("script", "words"),
    [
        # It crashes on every archive: the fault is in the program.
        ("kill -SEGV $$", "the program crashed (signal 11)"),
        ("kill -ABRT $$", "the program crashed (signal 6)"),
        # As if memory ran out, or a person killed it.
        ("kill -KILL $$", "the program was ended by signal 9"),
        ("kill -TERM $$", "the program was ended by signal 15"),
    ],
)
def test_a_pg_restore_that_is_broken_or_killed_gives_no_verdict(
    dumper: Dumper, verifier: Verifier, bin_dir: Path, tmp_path: Path, script: str, words: str
) -> None:
    backup = dumper.dump(log=quiet)
    for path in bin_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "pg_restore").unlink()
    text = f'#!/bin/sh\ncase "$*" in --version) exec {bin_dir}/pg_restore --version;; *) {script};; esac\n'
    executable(tmp_path / "pg_restore", text)
    broken = Verifier(verifier.catalog, Programs(tmp_path), Expectations())
    with pytest.raises(errors.ProgramError) as raised:
        broken.verify(backup, log=quiet)
    assert words in raised.value.why
    assert now(verifier.catalog).state(datetime.now(UTC)) is State.UNVERIFIED


def test_a_single_crash_condemns_no_archive(dumper: Dumper, verifier: Verifier, bin_dir: Path, tmp_path: Path) -> None:
    backup = dumper.dump(log=quiet)
    for path in bin_dir.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "pg_restore").unlink()
    once = tmp_path / "once"
    once.touch()
    text = f'#!/bin/sh\ncase "$*" in *--data-only*) rm {once} 2>/dev/null && kill -SEGV $$;; esac\n'
    executable(tmp_path / "pg_restore", f'{text}exec {bin_dir}/pg_restore "$@"\n')
    programs = Programs(tmp_path, Sandbox(Confine.OFF))
    judgement = Verifier(verifier.catalog, programs, Expectations()).verify(backup, log=quiet).judgement
    assert judgement.good
