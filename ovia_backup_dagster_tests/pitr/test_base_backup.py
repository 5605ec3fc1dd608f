"""Base backups of real servers: made whole or not at all, and refused with a reason that can be acted on."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.locking import volume_lock
from ovia_backup_dagster.core.pitr_errors import BaseBackupError, ServerReplacedError
from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts, base_name
from ovia_backup_dagster.pitr.base_backup import sweep_unfinished_bases
from ovia_backup_dagster.pitr.base_verification import verify_base
from ovia_backup_dagster.pitr.bases import read_bases
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster_tests.conftest import admin, quiet
from ovia_backup_dagster_tests.faults.conftest import needs_root, rounds
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, tmpfs
from ovia_backup_dagster_tests.faults.harness import Place, Running, until
from ovia_backup_dagster_tests.pitr.ground import (
    REPLICATION_LINE,
    WAL_PASSWORD,
    WAL_ROLE,
    Ground,
    ground_on,
    replication_session,
)
from ovia_backup_dagster_tests.support.command_line import InProcessCli, one_line

#: The smallest cluster has 22 MB: with this limit, a base backup takes about ten seconds.
SLOW = "2M"
SWEPT = (".2026-11-30_031500.tmp", ".2020-01-01_000000.tmp")
NOT_SWEPT = (
    *("2026-11-30_031500", ".2026-11-30_031500", "2026-11-30_031500.tmp", ".tmp", "..tmp", ".2026-11-30.tmp"),
    *(".2026-11-30_031500.tmp.old", "..2026-11-30_031500.tmp", ".base.tmp"),
)


@pytest.fixture(scope="module")
def ground(bin_dir: Path) -> Iterator[Ground]:
    with ground_on(bin_dir) as ground:
        yield ground


@pytest.fixture(scope="module")
def full_ground(full_bin_dir: Path) -> Iterator[Ground]:
    with ground_on(full_bin_dir) as ground:
        yield ground


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "volume"


def left(archive: ClusterArchive) -> list[str]:
    """What is in the folder of base backups, hidden names too."""
    return sorted(os.listdir(archive.base))


def refused(ground: Ground, volume: Path, **changes: object) -> BackupError:
    """The error of a base backup that must fail; it leaves nothing."""
    maker = ground.maker(volume, **changes)
    with pytest.raises(BackupError) as caught:
        maker.make(datetime.now(UTC), log=quiet)
    assert left(maker.archive) == []
    text = str(caught.value)
    assert "Next: " in text
    assert "\n" not in text
    assert WAL_PASSWORD not in text
    return caught.value


# ------------------------------------------------------------------------------------------------------------- made


@pytest.mark.parametrize(("server", "compression"), [("full_ground", "server-zstd:1"), ("ground", "server-gzip:1")])
def test_a_base_backup_is_made_and_verified(
    server: str, compression: str, volume: Path, request: pytest.FixtureRequest
) -> None:
    ground: Ground = request.getfixturevalue(server)
    before = datetime.now(UTC)

    base = ground.base_backup(volume)

    manifest, after = base.manifest, datetime.now(UTC)
    assert base.verified
    assert read_bases(ground.archive(volume)).complete == (base,)
    assert left(ground.archive(volume)) == [base.folder.name] == [base_name(manifest.started_at)]
    assert before <= manifest.started_at <= manifest.finished_at <= after
    assert (manifest.system_identifier, manifest.major) == (ground.facts.system_identifier, 16)
    assert (manifest.timeline, manifest.compression, manifest.warnings) == (1, compression, ())
    assert manifest.start < manifest.end
    assert manifest.data_bytes > 20 * MEGABYTE > 4 * manifest.size_bytes
    on_disk = {path.name: path.stat() for path in base.folder.iterdir()}
    assert on_disk.keys() == manifest.files.keys() | {"base.json", "verified.json"}
    assert all(on_disk[name].st_size == facts.size_bytes for name, facts in manifest.files.items())
    assert {stat.S_IMODE(status.st_mode) for status in on_disk.values()} == {0o600}
    assert stat.S_IMODE(base.folder.stat().st_mode) == 0o700


def test_two_base_backups_in_a_second_have_two_names(full_ground: Ground, volume: Path) -> None:
    first = full_ground.maker(volume).make(datetime.now(UTC), log=quiet)
    os.rename(first.folder, first.folder.with_name(base_name(datetime.now(UTC))))
    for ahead in range(3):
        first.folder.with_name(base_name(datetime.now(UTC) + timedelta(seconds=ahead))).mkdir(exist_ok=True)

    second = full_ground.maker(volume).make(datetime.now(UTC), log=quiet)

    bases = read_bases(full_ground.archive(volume))
    assert [base.manifest.start for base in bases.complete] == sorted((first.manifest.start, second.manifest.start))
    assert {why.why for why in bases.incomplete} == {"it has no base.json"}


def test_a_tablespace_has_a_tar_of_its_own(full_ground: Ground, volume: Path) -> None:
    cluster = full_ground.cluster
    place = cluster.folder / "fast disk"
    place.mkdir()
    owner = cluster.data.stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    full_ground.execute(
        f"CREATE TABLESPACE fast LOCATION '{place}'",
        "CREATE TABLE moved TABLESPACE fast AS SELECT generate_series(1, 1000)",
    )
    try:
        base = full_ground.base_backup(volume)
        (space,) = base.manifest.tablespaces
        assert (space.name, space.location) == ("fast", str(place))
        assert set(base.manifest.files) == {"base.tar.zst", f"{space.oid}.tar.zst", "backup_manifest"}

        (base.folder / f"{space.oid}.tar.zst").unlink()
        with pytest.raises(BaseBackupError, match=rf"{space.oid}\.tar\.zst is missing"):
            verify_base(full_ground.archive(volume), base.folder, now=datetime.now(UTC), log=quiet)
    finally:
        full_ground.execute("DROP TABLE moved", "DROP TABLESPACE fast")


def test_a_dump_may_run_beside_a_base_backup(full_ground: Ground, volume: Path) -> None:
    maker = full_ground.maker(volume)
    with volume_lock(volume, purpose="dumping", now=datetime.now(UTC)):
        assert maker.make(datetime.now(UTC), log=quiet).manifest.files


# ---------------------------------------------------------------------------------------------------------- refused


def test_a_missing_hba_line_is_shown(ground: Ground, volume: Path) -> None:
    with ground.without_replication_line():
        error = refused(ground, volume)

    assert type(error) is errors.AccessRefusedError
    assert REPLICATION_LINE in error.fix


def test_a_wrong_password_names_its_setting(ground: Ground, volume: Path) -> None:
    connection = ground.connection

    error = refused(ground, volume, connection=replace(connection, password=SecretStr("wrong")))

    assert type(error) is errors.AuthenticationError
    assert "WAL_POSTGRES_PASSWORD" in error.fix


def test_a_role_without_replication_is_told_the_grant(ground: Ground, volume: Path) -> None:
    ground.execute(f"ALTER ROLE {WAL_ROLE} NOREPLICATION")
    try:
        error = refused(ground, volume)
    finally:
        ground.execute(f"ALTER ROLE {WAL_ROLE} REPLICATION")

    assert type(error) is errors.PrivilegeError
    assert f"ALTER ROLE {WAL_ROLE} REPLICATION" in error.fix


def test_a_server_without_a_free_sender_is_named(ground: Ground, volume: Path) -> None:
    with ExitStack() as held:
        for _ in range(10):
            session = replication_session(ground.connection)
            held.callback(session.close)
        error = refused(ground, volume)

    assert type(error) is errors.TooManyConnectionsError
    assert error.transient
    assert "max_wal_senders" in error.why


def test_another_cluster_is_not_backed_up(ground: Ground, full_ground: Ground, volume: Path) -> None:
    archive = full_ground.archive(volume)

    error = refused(ground, volume, archive=archive)

    assert type(error) is ServerReplacedError
    assert ground.facts.system_identifier in str(error)
    assert archive.system_identifier in str(error)


def test_a_program_of_another_major_is_refused(ground: Ground, volume: Path, tmp_path: Path) -> None:
    error = refused(ground, volume, programs=wrapped(tmp_path, "echo 'pg_basebackup (PostgreSQL) 15.9'"))

    assert type(error) is errors.VersionMismatchError
    assert "PG_BIN_DIR" in error.fix


def test_an_incomplete_backup_with_code_0_is_refused(ground: Ground, volume: Path, tmp_path: Path) -> None:
    real = ground.bin_dir / "pg_basebackup"
    script = f'{real} "$@" || exit; for a; do case "$a" in --pgdata=*) rm -f "${{a#*=}}"/backup_manifest;; esac; done'

    error = refused(ground, volume, programs=wrapped(tmp_path, script))

    assert type(error) is errors.ProgramError
    assert "wrote no backup_manifest" in error.why


def wrapped(folder: Path, script: str) -> Programs:
    """Programs of which pg_basebackup is a shell script."""
    path = folder / "bin" / "pg_basebackup"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Programs(path.parent)


def test_two_base_backups_never_run_together(ground: Ground, volume: Path) -> None:
    archive = ground.archive(volume)
    with volume_lock(volume / "pitr", purpose="making the first", now=datetime.now(UTC), name=".base.lock"):
        error = refused(ground, volume)

    assert type(error) is errors.LockHeldError
    assert "making the first" in str(error)
    assert left(archive) == []


@needs_root
def test_a_small_volume_is_refused_beforehand(ground: Ground, volume: Path) -> None:
    with tmpfs(volume, 8 * MEGABYTE):
        error = refused(ground, volume)

        assert type(error) is errors.DiskFullError
        assert "half of that must be free" in error.why


@needs_root
def test_a_volume_that_fills_up_keeps_the_last_base(full_ground: Ground, volume: Path) -> None:
    """The volume has room for a second one as large as the first, but the database has grown."""
    with tmpfs(volume, 16 * MEGABYTE):
        first = full_ground.base_backup(volume)
        full_ground.execute(
            "CREATE TABLE bulk AS SELECT sha512(g::text::bytea) || sha512((-g)::text::bytea) AS bytes "
            "FROM generate_series(1, 130000) g"
        )
        try:
            with pytest.raises(errors.DiskFullError) as caught:
                full_ground.maker(volume).make(datetime.now(UTC), log=quiet)
        finally:
            full_ground.execute("DROP TABLE bulk")

        assert "No space left on device" in caught.value.said
        assert left(full_ground.archive(volume)) == [first.folder.name]
        assert read_bases(full_ground.archive(volume)).complete == (first,)
        assert full_ground.base_backup(volume).verified


# ----------------------------------------------------------------------------------------------------------- killed


def slow(ground: Ground, volume: Path, logs: Path) -> Running:
    """``ovia-backup base-backup`` in a process of its own, at a moment when pg_basebackup has begun to write."""
    archive = ground.archive(volume)
    running = Place(ground.settings(volume, BASE_BACKUP_MAX_RATE=SLOW), logs).start("base-backup", "--no-verify")
    until(
        lambda: any(path.stat().st_size for path in archive.base.glob(".*.tmp/base.tar*")) and running.children(),
        on_failure=lambda: print(running.output),
    )
    return running


def test_a_killed_run_publishes_nothing_and_is_swept(ground: Ground, volume: Path, tmp_path: Path) -> None:
    archive = ground.archive(volume)
    running = slow(ground, volume, tmp_path)
    (orphan,) = running.children()

    running.kill(group=False)
    running.wait()

    assert read_bases(archive).complete == ()
    # pg_basebackup still writes, and holds the lock: the folder is not swept under it.
    with pytest.raises(errors.LockHeldError, match=f"left behind: pg_basebackup, process {orphan}"):
        ground.maker(volume).make(datetime.now(UTC), log=quiet)
    (abandoned,) = left(archive)
    assert (archive.base / abandoned / "base.tar.gz").exists()
    os.kill(orphan, signal.SIGKILL)

    told: list[str] = []
    ground.maker(volume, lock_wait_seconds=10).make(datetime.now(UTC), log=told.append)

    assert any(line.startswith("removed a leftover") and abandoned in line for line in told)
    assert left(archive) == [base.folder.name for base in read_bases(archive).complete]


def test_a_killed_pg_basebackup_leaves_nothing(ground: Ground, volume: Path, tmp_path: Path) -> None:
    running = slow(ground, volume, tmp_path)
    (child,) = running.children()

    os.kill(child, signal.SIGKILL)

    assert "signal 9" in running.wait().refused()
    assert left(ground.archive(volume)) == []


@rounds(few=3, many=60)
def test_a_run_killed_at_random_leaves_whole_bases_only(
    times: int, full_ground: Ground, volume: Path, tmp_path: Path, rng: Random
) -> None:
    archive = full_ground.archive(volume)
    place = Place(full_ground.settings(volume, BACKUP_LOCK_WAIT_MINUTES="1"), tmp_path)
    whole = place.start("base-backup", "--no-verify")
    assert whole.wait().code == 0
    took = time.monotonic() - whole.began
    for _ in range(times):
        running = place.start("base-backup", "--no-verify")
        time.sleep(rng.uniform(0, took))
        running.kill()
        running.wait()
        assert not read_bases(archive).incomplete
    assert place.run("base-backup").code == 0
    bases = read_bases(archive).complete
    assert left(archive) == [base.folder.name for base in bases]
    for base in bases:
        verify_base(archive, base.folder, now=datetime.now(UTC), log=quiet)


def test_a_stopped_run_ends_pg_basebackup(ground: Ground, volume: Path, tmp_path: Path) -> None:
    running = slow(ground, volume, tmp_path)
    (child,) = running.children()

    running.send(signal.SIGTERM)

    assert running.wait().code == 128 + signal.SIGTERM
    assert not Path(f"/proc/{child}").exists()
    assert left(ground.archive(volume)) == []


def test_a_server_that_dies_leaves_nothing(ground: Ground, volume: Path, tmp_path: Path) -> None:
    running = slow(ground, volume, tmp_path)
    try:
        ground.cluster.stop("immediate")
        said = running.wait().refused()
    finally:
        ground.cluster.start()

    assert "the server was stopped, restarted or killed" in said
    assert left(ground.archive(volume)) == []


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_makes_and_verifies(full_ground: Ground, volume: Path) -> None:
    code, printed = InProcessCli(full_ground.settings(volume)).json("base-backup")

    (base,) = read_bases(ClusterArchive(volume, full_ground.facts.system_identifier)).complete
    assert code == 0
    assert printed["path"] == str(base.folder)
    assert (printed["verified"], printed["drilled"]) == (True, False)
    assert printed["compression"] == "server-zstd:1"


def test_the_command_without_verification_says_so(full_ground: Ground, volume: Path) -> None:
    result = InProcessCli(full_ground.settings(volume))("base-backup", "--no-verify")

    (base,) = read_bases(ClusterArchive(volume, full_ground.facts.system_identifier)).complete
    assert (result.returncode, result.stdout) == (0, f"{base.folder}\n")
    assert base.verified is None


def test_the_command_refuses_while_pitr_is_off(ground: Ground, volume: Path) -> None:
    result = InProcessCli(ground.settings(volume))("base-backup", PITR_ENABLED="false")

    one_line(result, 1, "PITR_ENABLED is not true", "deploy/wal-role.sql")
    assert not volume.exists()


def test_the_password_may_be_in_a_file(full_ground: Ground, volume: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{WAL_PASSWORD}\n")
    settings = full_ground.settings(volume, WAL_POSTGRES_PASSWORD="", WAL_POSTGRES_PASSWORD_FILE=str(secret))

    assert InProcessCli(settings)("base-backup", "--no-verify").returncode == 0
    secret.write_text("wrong\n")
    one_line(InProcessCli(settings)("base-backup"), 1, "WAL_POSTGRES_PASSWORD_FILE")


@pytest.mark.exhaustive
def test_a_server_that_cannot_archive_its_wal_is_named(full_bin_dir: Path, volume: Path) -> None:
    with ground_on(full_bin_dir, archive_mode="on", archive_command="/bin/false") as ground:
        error = refused(ground, volume, programs=replace(ground.programs, stall_seconds=3))
        ground.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
        ground.reload()
        base = ground.base_backup(volume)

    assert type(error) is BaseBackupError
    assert "pg_stat_archiver" in error.fix
    assert (base.verified, base.manifest.warnings) == (True, ())


@pytest.mark.exhaustive
def test_a_damaged_page_of_the_server_is_named(full_bin_dir: Path, volume: Path) -> None:
    with ground_on(full_bin_dir) as ground:
        cluster = ground.cluster
        ground.execute("CREATE TABLE broken AS SELECT generate_series(1, 1000)")
        cluster.stop()
        cluster._run("pg_checksums", "--enable", f"--pgdata={cluster.data}")
        cluster.start()
        with admin(cluster) as session:
            row = session.execute("SELECT pg_relation_filepath('broken')").fetchone()
        assert row is not None
        cluster.stop()
        with (cluster.data / str(row[0])).open("r+b") as file:
            file.seek(8192 + 4000)
            byte = file.read(1)[0]
            file.seek(8192 + 4000)
            file.write(bytes([byte ^ 1]))
        cluster.start()

        error = refused(ground, volume)

    assert type(error) is errors.ServerDataError
    assert str(row[0]) in error.said


@settings(max_examples=30)
@given(st.sets(st.sampled_from([*SWEPT, *NOT_SWEPT])))
def test_only_unfinished_base_backups_are_swept(names: set[str]) -> None:
    with TemporaryDirectory() as folder:
        archive = ClusterArchive(Path(folder), "42")
        archive.create(ClusterFacts(system_identifier="42", major=16))
        for name in names:
            (archive.base / name).mkdir()
            (archive.base / name / "base.tar").touch()

        swept = sweep_unfinished_bases(archive.root)

        assert {path.name for path in swept} == names & set(SWEPT)
        assert set(left(archive)) == names - set(SWEPT)


def test_a_link_with_the_name_of_a_leftover_is_left(tmp_path: Path) -> None:
    archive = ClusterArchive(tmp_path, "42")
    archive.create(ClusterFacts(system_identifier="42", major=16))
    (tmp_path / "precious").mkdir()
    (archive.base / SWEPT[0]).symlink_to(tmp_path / "precious")

    assert sweep_unfinished_bases(tmp_path) == []
    assert (tmp_path / "precious").exists()
