"""The doctor's observations of restore drills."""

from __future__ import annotations

import fcntl
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ovia_backup_dagster.doctor.drill_area import drills
from ovia_backup_dagster.doctor.report import Area, Observation, Severity
from ovia_backup_dagster.drill.drill_report import drill_page
from ovia_backup_dagster.drill.throwaway_cluster import PREFIX
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import quiet
from ovia_backup_dagster_tests.doctor.support import new_role, system_of, the
from ovia_backup_dagster_tests.support.evidence import evidence, failed
from ovia_backup_dagster_tests.support.factories import DAY


@pytest.fixture
def here(database: Connection, volume: Path, bin_dir: Path, tmp_path: Path) -> BackupSystem:
    """A system with a backup, whose drills run in /tmp."""
    folder = tmp_path / "d"
    folder.mkdir()
    made = system_of(database, volume, bin_dir, DRILL_DIR="/tmp")
    made.dumper.dump(log=quiet)
    return made


def lines(system: BackupSystem) -> list[Observation]:
    found = list(drills(system))
    assert {line.area for line in found} == {Area.DRILLS}
    return found


def client_programs(bin_dir: Path, tmp_path: Path) -> Path:
    """A folder without server programs, as client packages install it."""
    folder = tmp_path / "client" / "bin"
    folder.mkdir(parents=True)
    for program in ("pg_dump", "pg_restore", "pg_dumpall", "psql"):
        (folder / program).symlink_to(bin_dir / program)
    return folder


def test_a_system_that_can_drill_is_ok(here: BackupSystem) -> None:
    found = lines(here)

    assert the(found, "throwaway clusters are made in /tmp").level is Severity.OK
    assert the(found, "room for a copy").level is Severity.OK
    assert the(found, "no restore drill has passed yet; one is due by").level is Severity.OK


def test_a_failed_or_overdue_drill_is_a_warning(here: BackupSystem) -> None:
    now, database = datetime.now(UTC), here.settings.postgres_db
    old = evidence(started_at=now - 40 * DAY, database=database)
    here.drills.write(old, drill_page(old))
    line = the(lines(here), "the last restore drill that passed is 40 d")
    assert (line.level, "ovia-backup drill" in line.fix) == (Severity.WARN, True)

    good = evidence(started_at=now - 2 * DAY, database=database)
    here.drills.write(good, drill_page(good))
    assert the(lines(here), "the last restore drill that passed was 2 d ago").level is Severity.OK

    bad = failed(started_at=now - DAY, database=database)
    here.drills.write(bad, drill_page(bad))
    assert the(lines(here), "table public.people differs").level is Severity.WARN


def test_without_server_programs_a_scratch_database_is_offered(
    here: BackupSystem, database: Connection, volume: Path, bin_dir: Path, tmp_path: Path
) -> None:
    bare = client_programs(bin_dir, tmp_path)
    line = the(lines(system_of(database, volume, bare)), "initdb was not found")
    assert line.level is Severity.FAIL
    assert "--where database" in line.fix

    named = system_of(
        database, volume, bare, RESTORE_POSTGRES_HOST=database.host, RESTORE_POSTGRES_PORT=str(database.port)
    )
    assert the(lines(named), "scratch databases are made on").level is Severity.OK


def test_a_role_without_createdb_is_a_failure(
    here: BackupSystem, database: Connection, volume: Path, bin_dir: Path
) -> None:
    role = new_role(database)
    system = system_of(database, volume, bin_dir, DRILL_WHERE="database", RESTORE_POSTGRES_USER=role.user)

    line = the(lines(system), "may not create a scratch database")

    assert line.level is Severity.FAIL
    assert line.sql == (f'ALTER ROLE "{role.user}" CREATEDB',)


def test_an_unreachable_server_is_a_failure(
    here: BackupSystem, database: Connection, volume: Path, bin_dir: Path
) -> None:
    system = system_of(
        database, volume, bin_dir, DRILL_WHERE="database", RESTORE_POSTGRES_HOST="127.0.0.1", RESTORE_POSTGRES_PORT="1"
    )
    assert the(lines(system), "no connection to").level is Severity.FAIL


def test_a_missing_folder_is_a_failure(here: BackupSystem, database: Connection, volume: Path, bin_dir: Path) -> None:
    line = the(lines(system_of(database, volume, bin_dir, DRILL_DIR="/nowhere")), "/nowhere is not a folder")
    assert (line.level, "DRILL_DIR" in line.fix) == (Severity.FAIL, True)


def test_too_little_room_is_a_failure(
    here: BackupSystem, database: Connection, volume: Path, bin_dir: Path, tmp_path: Path
) -> None:
    small = tmp_path / "s"
    small.mkdir()
    if len(os.fsencode(small)) > 60:
        small = Path("/tmp") / f"ovia-small-{os.getpid()}"
        small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], check=True)
    try:
        line = the(lines(system_of(database, volume, bin_dir, DRILL_DIR=str(small))), "too little room for a copy")
        assert line.level is Severity.FAIL
    finally:
        subprocess.run(["umount", str(small)], check=True)
        small.rmdir()


def test_copies_of_killed_drills_are_a_warning(
    here: BackupSystem, database: Connection, volume: Path, bin_dir: Path
) -> None:
    folder = Path("/tmp") / f"ovia-left-{os.getpid()}"
    place = folder / f"{PREFIX}abc"
    place.mkdir(parents=True)
    system = system_of(database, volume, bin_dir, DRILL_DIR=str(folder))
    try:
        line = the(lines(system), "left by killed drills")
        assert (line.level, "--remove-copy" in line.fix) == (Severity.WARN, True)
        # A copy in use is not reported.
        with open(place / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert not [line for line in lines(system) if "killed drills" in line.text]
    finally:
        (place / "lock").unlink()
        place.rmdir()
        folder.rmdir()
