"""The doctor's observations of point-in-time recovery: each prerequisite is taken away in turn, on a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ovia_backup_dagster.core.pitr_errors import ReceiverStoppedError
from ovia_backup_dagster.doctor import examination, pitr_area
from ovia_backup_dagster.doctor.report import Area, Observation, Severity
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import PASSWORD, admin
from ovia_backup_dagster_tests.defs.support import load
from ovia_backup_dagster_tests.doctor.support import executable, the
from ovia_backup_dagster_tests.faults.disks import tmpfs
from ovia_backup_dagster_tests.pitr.ground import WAL_PASSWORD, WAL_ROLE, Ground, ground_on, replication_session
from ovia_backup_dagster_tests.pitr.receiving import receiver, switch


@pytest.fixture(scope="module")
def ground(full_bin_dir: Path) -> Iterator[Ground]:
    """A server that is ready, with as few senders and slots as will do."""
    with ground_on(
        full_bin_dir,
        wal_level="logical",
        max_wal_senders="2",
        max_replication_slots="2",
        max_slot_wal_keep_size="64MB",
    ) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir(mode=0o700)
    return made


def system_on(ground: Ground, folder: Path, **more: str) -> BackupSystem:
    return BackupSystem(load(ground.settings(folder, PGPASSWORD=PASSWORD, **more)))


def look(ground: Ground, folder: Path, **more: str) -> list[Observation]:
    lines = list(pitr_area.recovery(system_on(ground, folder, **more)))
    assert {line.area for line in lines} == {Area.PITR}
    assert all(WAL_PASSWORD not in repr(line) and "\n" not in line.text + line.fix for line in lines)
    assert all(line.fix for line in lines if line.level is not Severity.OK)
    return lines


@contextmanager
def changed(ground: Ground, *statements: str, back: str) -> Iterator[None]:
    """A change on the server, taken back at the end of the block."""
    ground.execute(*statements)
    try:
        yield
    finally:
        ground.execute(*back.split("; "))


@contextmanager
def configured(ground: Ground, name: str, value: str) -> Iterator[None]:
    ground.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    ground.reload()
    try:
        yield
    finally:
        ground.execute(f"ALTER SYSTEM RESET {name}")
        ground.reload()


def wrong(lines: list[Observation]) -> list[Observation]:
    """What is not as it should, but for the receiver, which does not run."""
    return [line for line in lines if line.level is not Severity.OK and "no WAL receiver ever ran" not in line.text]


# ------------------------------------------------------------------------------------------------ off, and all well


def test_one_line_says_that_recovery_is_off(ground: Ground, folder: Path) -> None:
    [line] = look(ground, folder, PITR_ENABLED="false")
    assert line.level is Severity.OK
    assert "off; to switch it on: deploy/wal-role.sql, then PITR_ENABLED=true ovia-backup doctor" in line.text


def test_a_server_that_is_ready_lacks_only_the_receiver(ground: Ground, folder: Path) -> None:
    lines = look(ground, folder)
    assert wrong(lines) == []
    the(lines, f"role {WAL_ROLE} may log in, and replicate from here")
    the(lines, "wal_level is logical")
    the(lines, "the server keeps at most 67.1 MB of WAL for a receiver that is down")
    the(lines, "2 of 2 WAL senders are free")
    the(lines, "the receiver will create slot ovia_backup: 0 of 2 slots are in use")
    the(lines, "commits do not wait for the receiver")
    the(lines, "pg_receivewal 16.15, pg_basebackup 16.15, pg_waldump 16.15")
    room = the(lines, "a window of 7 d needs up to")
    assert room.text.endswith("a base backup, an unknown amount of WAL)")
    # Not a failure: the doctor runs before the receiver is started.
    line = the(lines, "no WAL receiver ever ran on this volume")
    assert (line.level, "ovia-backup wal receive" in line.fix) == (Severity.WARN, True)


def test_a_running_receiver_and_a_base_backup_are_all_well(ground: Ground, folder: Path) -> None:
    with receiver(ground, folder) as running:
        running.until(lambda status: status.confirmed_at)
        ground.base_backup(folder)
        switch(ground)
        running.until_safe()
        lines = look(ground, folder)
        running.end()
    try:
        assert [line for line in lines if line.level is not Severity.OK] == []
        the(lines, "slot ovia_backup is reserved, and in use")
        the(lines, "1 of 2 WAL senders are free")
        the(lines, "any instant from ")
        after = the(
            look(ground, folder), "slot ovia_backup is reserved, and not in use, so the server keeps WAL for it"
        )
        assert after.level is Severity.OK
    finally:
        ground.execute("SELECT pg_drop_replication_slot('ovia_backup')")


def test_a_receiver_that_stopped_is_a_failure(ground: Ground, folder: Path) -> None:
    """With a base backup, the same answer as in alerts, at its own level."""
    ground.base_backup(folder)
    with receiver(ground, folder) as running:
        status = running.until(lambda status: status.confirmed_at)
        running.end()
    ground.execute("SELECT pg_drop_replication_slot('ovia_backup')")
    path = folder / "pitr" / "status.json"
    old = status.written_at.replace(year=2025)
    path.write_text(status.model_copy(update={"written_at": old}).model_dump_json(), "utf-8")
    system = system_on(ground, folder)
    line = the(look(ground, folder), "the WAL receiver does not report")
    error = system.pitr.standing(status.written_at).troubles[0]
    assert isinstance(error, ReceiverStoppedError)
    assert (line.level, line.fix) == (Severity.FAIL, error.fix)


# ------------------------------------------------------------------------------------------------ the role


def test_a_missing_role_is_named_once(ground: Ground, folder: Path) -> None:
    [line] = wrong(look(ground, folder, WAL_POSTGRES_USER="absent"))
    assert line.text == "the server has no role absent, which is to receive WAL"
    assert "deploy/wal-role.sql" in line.fix


@pytest.mark.parametrize("attribute", ["LOGIN", "REPLICATION"])
def test_a_role_without_an_attribute_is_cured_by_the_sql(ground: Ground, folder: Path, attribute: str) -> None:
    with changed(ground, f"ALTER ROLE {WAL_ROLE} NO{attribute}", back=f"ALTER ROLE {WAL_ROLE} {attribute}"):
        [line] = wrong(look(ground, folder))
        assert (line.level, line.text) == (Severity.FAIL, f"role {WAL_ROLE} does not have {attribute}")
        ground.execute(*line.sql)
        assert wrong(look(ground, folder)) == []


def test_a_wrong_password_is_told_from_a_missing_hba_line(ground: Ground, folder: Path) -> None:
    [line] = wrong(look(ground, folder, WAL_POSTGRES_PASSWORD="another"))
    assert line.level is Severity.FAIL
    assert "password" in line.text
    assert "WAL_POSTGRES_PASSWORD" in line.fix


def test_a_missing_hba_line_is_told_with_the_line(ground: Ground, folder: Path) -> None:
    """The role gets into the database all the while."""
    with ground.without_replication_line():
        [line] = wrong(look(ground, folder))
    assert line.level is Severity.FAIL
    assert "pg_hba.conf does not let this role replicate from here" in line.text
    assert f"host replication {WAL_ROLE} all scram-sha-256" in line.fix


def test_a_role_that_may_not_identify_the_cluster_is_told(ground: Ground, folder: Path) -> None:
    function = "pg_catalog.pg_control_system()"
    back = f"REVOKE EXECUTE ON FUNCTION {function} FROM {WAL_ROLE}; GRANT EXECUTE ON FUNCTION {function} TO PUBLIC"
    with changed(ground, f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC", back=back):
        [line] = wrong(look(ground, folder))
        assert "may not call pg_control_system()" in line.text
        ground.execute(*line.sql)
        assert wrong(look(ground, folder)) == []


def test_a_superuser_as_the_role_is_a_warning(ground: Ground, folder: Path) -> None:
    with changed(ground, f"ALTER ROLE {WAL_ROLE} SUPERUSER", back=f"ALTER ROLE {WAL_ROLE} NOSUPERUSER"):
        [line] = wrong(look(ground, folder))
    assert (line.level, line.text.startswith(f"role {WAL_ROLE} is a superuser")) == (Severity.WARN, True)


# ------------------------------------------------------------------------------------------------ the server


def test_a_slot_without_a_limit_is_a_warning_with_the_cure(ground: Ground, folder: Path) -> None:
    with configured(ground, "max_slot_wal_keep_size", "-1"):
        [line] = wrong(look(ground, folder))
        assert line.level is Severity.WARN
        assert "fills the disk of the database" in line.text
        ground.execute(*line.sql[:1])
        ground.reload()
        assert wrong(look(ground, folder)) == []


def test_senders_in_use_are_a_warning_then_a_failure(ground: Ground, folder: Path) -> None:
    with closing(replication_session(ground.connection)) as first:
        first.execute("IDENTIFY_SYSTEM")
        [line] = wrong(look(ground, folder))
        assert (line.level, "max_wal_senders is 2, and 1 are in use" in line.text) == (Severity.WARN, True)
        with closing(replication_session(ground.connection)) as second:
            second.execute("IDENTIFY_SYSTEM")
            lines = wrong(look(ground, folder))
    assert the(lines, "max_wal_senders is 2, and 2 are in use").level is Severity.FAIL
    # And so the attempt to replicate is refused.
    assert the(lines, "all of the server's max_wal_senders are in use").level is Severity.FAIL


def test_slots_in_use_are_a_failure(ground: Ground, folder: Path) -> None:
    make = [f"SELECT pg_create_physical_replication_slot('other{number}')" for number in range(2)]
    drop = "; ".join(f"SELECT pg_drop_replication_slot('other{number}')" for number in range(2))
    with changed(ground, *make, back=drop):
        [line] = wrong(look(ground, folder))
    assert (line.level, "slot ovia_backup cannot be created" in line.text) == (Severity.FAIL, True)
    assert line.sql == ("ALTER SYSTEM SET max_replication_slots = 12;",)


def test_a_logical_slot_of_the_same_name_is_a_failure(ground: Ground, folder: Path) -> None:
    make = "SELECT pg_create_logical_replication_slot('ovia_backup', 'pgoutput')"
    with changed(ground, make, back="SELECT pg_drop_replication_slot('ovia_backup')"):
        [line] = wrong(look(ground, folder))
    assert (line.level, line.fix) == (Severity.FAIL, "set WAL_SLOT to another name")


def test_a_slot_that_lost_its_wal_is_a_failure(ground: Ground, folder: Path) -> None:
    make = "SELECT pg_create_physical_replication_slot('ovia_backup', true)"
    with changed(ground, make, back="SELECT pg_drop_replication_slot('ovia_backup')"):
        for _ in range(8):
            switch(ground)
        ground.execute("CHECKPOINT")
        [line] = wrong(look(ground, folder))
    assert line.level is Severity.FAIL
    assert "slot ovia_backup has lost its WAL" in line.text


def test_commits_that_wait_are_told_with_their_price(ground: Ground, folder: Path) -> None:
    with configured(ground, "synchronous_standby_names", WAL_ROLE):
        line = the(look(ground, folder), "commits wait for the receiver (synchronous_standby_names = ovia_wal)")
    assert line.level is Severity.OK


def test_wal_level_minimal_is_a_failure(full_bin_dir: Path, folder: Path) -> None:
    with ground_on(full_bin_dir, wal_level="minimal", max_wal_senders="0", max_replication_slots="0") as ground:
        lines = look(ground, folder)
    assert the(lines, "wal_level is minimal").sql[0] == "ALTER SYSTEM SET wal_level = 'replica';"
    assert the(lines, "max_wal_senders is 0, and 0 are in use").level is Severity.FAIL
    assert the(lines, "max_replication_slots is 0, and all are in use").level is Severity.FAIL


# ------------------------------------------------------------------------------------------------ this host


def test_a_missing_program_is_named(ground: Ground, folder: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pg_receivewal", "pg_basebackup"):
        (programs / name).symlink_to(ground.bin_dir / name)
    [line] = wrong(look(ground, folder, PG_BIN_DIR=str(programs)))
    assert (line.level, line.text.startswith("pg_waldump was not found in PG_BIN_DIR")) == (Severity.FAIL, True)


def test_programs_of_another_major_are_a_failure(ground: Ground, folder: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    shutil.copytree(ground.bin_dir, programs, symlinks=True, ignore=lambda *_: ["pg_waldump"])
    executable(programs / "pg_waldump", 'echo "pg_waldump (PostgreSQL) 15.19"')
    [line] = wrong(look(ground, folder, PG_BIN_DIR=str(programs)))
    assert "only its own programs read its WAL: pg_receivewal 16.15, pg_basebackup 16.15, pg_waldump 15.19" in line.text
    assert line.fix.startswith("install the programs of PostgreSQL 16")


def test_a_volume_without_room_for_a_base_backup_fails(ground: Ground, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", 4_000_000):
        line = the(look(ground, tmp_path / "small"), "no room for a base backup")
    assert line.level is Severity.FAIL


def test_a_volume_without_room_for_the_window_is_a_warning(ground: Ground, tmp_path: Path) -> None:
    """Beside a base backup within it, there is one before it, and one that is being made."""
    with admin(ground.cluster) as session:
        row = session.execute("SELECT sum(pg_database_size(oid))::bigint FROM pg_database").fetchone()
    assert row is not None
    with tmpfs(tmp_path / "small", int(str(row[0])) * 3 // 4):
        line = the(look(ground, tmp_path / "small"), "will become full within the recovery window")
    assert line.level is Severity.WARN


def test_a_server_that_is_down_leaves_this_hosts_part(ground: Ground, folder: Path) -> None:
    lines = look(ground, folder, POSTGRES_PORT="1")
    assert wrong(lines) == []
    the(lines, "pg_receivewal 16.15, pg_basebackup 16.15, pg_waldump 16.15")


def test_the_whole_examination_has_the_area(ground: Ground, folder: Path) -> None:
    lines = [line for line in examination.everything(system_on(ground, folder)) if line.area is Area.PITR]
    the(lines, f"role {WAL_ROLE} may log in, and replicate from here")
