"""The WAL receiver, as a process, on a real server: what arrives, what is measured, and each way in which it fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import psycopg
import pytest

from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.receiver_status import ReceiverState, ReceiverStatus
from ovia_backup_dagster.pitr.segment_archiving import SegmentArchiver
from ovia_backup_dagster.pitr.segment_files import read_header
from ovia_backup_dagster.pitr.segment_repair import SET_ASIDE
from ovia_backup_dagster.pitr.wal_position import Segment
from ovia_backup_dagster_tests.conftest import admin, free_port
from ovia_backup_dagster_tests.faults.disks import filled, tmpfs
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.ground import Ground, create_wal_role, ground_on
from ovia_backup_dagster_tests.pitr.receiving import receiver, require_no_gap, server_segment, switch
from ovia_backup_dagster_tests.support.command_line import InProcessCli
from ovia_backup_dagster_tests.support.exhaustive import thinned

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def ground(full_bin_dir: Path) -> Iterator[Ground]:
    with ground_on(full_bin_dir, wal_keep_size="2GB", max_wal_size="2GB") as made:
        yield made


@pytest.fixture
def volume(tmp_path: Path, ground: Ground) -> Iterator[Path]:
    """A volume; afterwards the server has no slot, whichever server it then is."""
    folder = tmp_path / "volume"
    folder.mkdir(mode=0o700)
    yield folder
    with admin(ground.cluster) as session:
        active = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL"
        session.execute(active)
        query = "SELECT count(*) FROM pg_replication_slots WHERE active_pid IS NOT NULL"
        until(lambda: (session.execute(query).fetchone() or (1,))[0] == 0)
        session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


def troubled(error: str) -> Callable[[ReceiverStatus], object]:
    """A condition: the report has a trouble of this class."""

    def condition(status: ReceiverStatus) -> bool:
        return any(trouble.error == error for trouble in status.troubles)

    return condition


def receiving(status: ReceiverStatus) -> bool:
    return status.state is ReceiverState.RECEIVING and not status.troubles


# ------------------------------------------------------------------------------------------------------- all is well


def test_the_receiver_archives_what_the_server_wrote(ground: Ground, volume: Path) -> None:
    with receiver(ground, volume) as running:
        running.until(receiving)
        names = [switch(ground) for _ in range(3)]
        running.until(lambda status: status.archived == names[-1])
        status = running.until_safe()
        archive = ground.archive(volume)
        assert names == [archive.name(segment) for segment in require_no_gap(ground, archive)[-3:]]
        assert status.slot_status == "reserved"
        assert (status.slot_safe_bytes, status.slot_limit_bytes) == (None, None), "there is no max_slot_wal_keep_size"
        assert status.worst_rpo_seconds is not None
        assert status.worst_rpo_seconds < 10
        # One finished segment waits for its successor, besides the one that is being written.
        assert len(list(archive.incoming.glob("*"))) == 2
        assert {path.stat().st_mode & 0o777 for path in archive.wal.iterdir()} == {0o600}
        cli = InProcessCli(ground.settings(volume))
        said = cli("wal", "status")
        assert said.returncode == 0, said.stderr
        assert f"newest segment in the archive: {names[-1]}" in said.stdout
        code, report = cli.json("wal", "status")
        assert (code, report["state"]) == (0, "receiving")
        assert report["rpo_seconds"] < 10
        assert running.end() == 143
    assert running.status is not None
    assert running.status.state is ReceiverState.STOPPED
    until(lambda: not running.children)


@pytest.mark.exhaustive
def test_no_secret_is_in_an_argument_or_a_file(ground: Ground, volume: Path) -> None:
    secret = ground.settings(volume)["WAL_POSTGRES_PASSWORD"].encode()
    with receiver(ground, volume) as running:
        running.until_safe()
        assert running.children
        for pid in (running.process.pid, *running.children):
            assert secret not in Path(f"/proc/{pid}/cmdline").read_bytes()
    for path in (running.log, *volume.rglob("*")):
        assert path.is_dir() or secret not in path.read_bytes()


def test_a_second_receiver_is_refused(ground: Ground, volume: Path) -> None:
    with receiver(ground, volume) as running:
        running.until(receiving)
        second = InProcessCli(ground.settings(volume))("wal", "receive")
        assert second.returncode == 1
        assert "another WAL receiver works on this volume: receiving WAL (process" in second.stderr


def test_the_receiver_is_off_by_default(ground: Ground, volume: Path) -> None:
    said = InProcessCli(ground.settings(volume, PITR_ENABLED=""))("wal", "receive")
    assert said.returncode == 1
    assert "point-in-time recovery is off: PITR_ENABLED is not true" in said.stderr


# ------------------------------------------------------------------------------------------------ kills, and restarts


def _kill_while_writing(ground: Ground, volume: Path, random: Random, rounds: int) -> None:
    """Kill the receiver or its pg_receivewal at random moments under writers; nothing is lost or there twice."""
    stop = threading.Event()

    def write() -> None:
        with admin(ground.cluster) as session:
            session.execute("CREATE TABLE IF NOT EXISTS written (a int, b text)")
            # Not as fast as it can: everything that it writes is received, archived and compared.
            while not stop.wait(0.02):
                session.execute("INSERT INTO written SELECT n, repeat('y', 500) FROM generate_series(1, 2000) n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(rounds):
            with receiver(ground, volume) as running:
                running.until(receiving)
                stop.wait(random.uniform(0, 1.5))
                if number % 3 == 2 and running.children:
                    for pid in running.children:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    running.until(receiving)
                running.end(signal.SIGKILL)
            # Its pg_receivewal ends with it: the next receiver needs the slot.
    finally:
        stop.set()
        writer.join()
    with receiver(ground, volume) as running:
        name = switch(ground)
        running.until(lambda status: status.archived == name)
    segments = require_no_gap(ground, ground.archive(volume))
    assert len(segments) >= rounds // 4


def test_a_killed_receiver_leaves_no_gap(ground: Ground, volume: Path, rng: Random) -> None:
    _kill_while_writing(ground, volume, rng, rounds=1)


@pytest.mark.exhaustive
@pytest.mark.many_rounds
def test_a_receiver_killed_100_times_leaves_no_gap(ground: Ground, volume: Path, rng: Random) -> None:
    _kill_while_writing(ground, volume, rng, rounds=100)


@pytest.mark.exhaustive
def test_the_time_without_a_receiver_counts(ground: Ground, volume: Path) -> None:
    with receiver(ground, volume) as running:
        running.until_safe()
        running.end(signal.SIGKILL)
    before = running.status
    assert before is not None
    assert before.confirmed_at is not None
    with receiver(ground, volume) as running:
        status = running.until(lambda status: True)
        assert status.confirmed_at == before.confirmed_at
        assert status.worst == before.worst or status.worst_rpo_seconds


@pytest.mark.exhaustive
def test_a_killed_server_is_waited_for(ground: Ground, volume: Path) -> None:
    with receiver(ground, volume) as running:
        running.until_safe()
        ground.cluster.stop("immediate")
        running.until(troubled("ServerUnreachableError"))
        ground.cluster.start()
        name = switch(ground)
        running.until(lambda status: receiving(status) and status.archived == name)
        running.until_safe()
    require_no_gap(ground, ground.archive(volume))


# ------------------------------------------------------------------------------------------------------------- disks


@pytest.mark.exhaustive
def test_a_full_disk_is_reported_and_then_forgotten(ground: Ground, tmp_path: Path, volume: Path) -> None:
    disk = tmp_path / "disk"
    with tmpfs(disk, 160 * MEGABYTE), receiver(ground, disk) as running:
        running.until_safe()
        with filled(disk, 20 * MEGABYTE):
            names = [switch(ground) for _ in range(3)]
            running.until(troubled("DiskFullError"))
        running.until(lambda status: receiving(status) and status.archived == names[-1])
        running.until_safe()
        require_no_gap(ground, ground.archive(disk))
        running.end()


@pytest.mark.parametrize("size", thinned([8192, 1, 16 * MEGABYTE - 1]))
def test_a_partial_of_a_wrong_size_is_replaced(ground: Ground, volume: Path, size: int) -> None:
    with receiver(ground, volume) as running:
        running.until_safe()
        running.end()
    archive = ground.archive(volume)
    [partial] = archive.incoming.glob("*.partial")
    os.truncate(partial, size)
    with receiver(ground, volume) as running:
        name = switch(ground)
        running.until(lambda status: receiving(status) and status.archived == name)
    require_no_gap(ground, archive)


# ----------------------------------------------------------------------------------------------------- damaged segments


@contextmanager
def _unarchived(ground: Ground, volume: Path) -> Iterator[tuple[ClusterArchive, Path]]:
    """A finished segment that is not archived yet, as when the receiver was killed between the two."""
    with receiver(ground, volume) as running:
        running.until_safe()
        name = switch(ground)
        running.until(lambda status: status.archived == name)
        running.until_safe()
        running.end()
    archive = ground.archive(volume)
    archive.archived(max(archive.archived_segments())).unlink()
    yield archive, archive.incoming / name


def _flip(path: Path, offset: int, mask: int = 0x10) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def _damage_in_records(path: Path, random: Random) -> None:
    """Flip a bit in a row. No checksum covers the zeros at the end, nor the few bytes between two records."""
    rows = list(re.finditer(rb"x{20,}", path.read_bytes()))
    _flip(path, random.randrange(*random.choice(rows).span()), 1 << random.randrange(8))


def _of_a_later_timeline(path: Path, random: Random) -> None:
    """In the last page that is used, so that no page follows that is of the right timeline."""
    used = len(path.read_bytes().rstrip(b"\0"))
    _flip(path, used // 8192 * 8192 + 5)


def _of_another_cluster(path: Path, random: Random) -> None:
    _flip(path, 24)


def _cut_off(path: Path, random: Random) -> None:
    os.truncate(path, 8 * MEGABYTE)


def _at_another_address(path: Path, random: Random) -> None:
    _flip(path, 10)


@pytest.mark.parametrize(
    "damage", thinned([_damage_in_records, _of_another_cluster, _cut_off, _at_another_address, _of_a_later_timeline])
)
def test_a_damaged_segment_is_received_again(ground: Ground, volume: Path, rng: Random, damage: object) -> None:
    with _unarchived(ground, volume) as (archive, path):
        assert callable(damage)
        damage(path, rng)
        with receiver(ground, volume) as running:
            name = switch(ground)
            running.until(lambda status: receiving(status) and status.archived == name)
        names = [archive.name(segment) for segment in require_no_gap(ground, archive)]
        assert path.name in names, running.log.read_text()
        assert len(list((archive.folder / SET_ASIDE).rglob(path.name))) == 1
        assert f"the server sent {path.name} again, whole" in running.log.read_text()


def test_the_segment_before_may_be_the_damaged_one(ground: Ground, volume: Path) -> None:
    """A record that ends in the next segment is checked with that one, when the first is archived already."""
    with receiver(ground, volume) as running:
        running.until_safe()
        switch(ground)
        ground.execute("INSERT INTO filled SELECT n, repeat('x', 100) FROM generate_series(1, 150000) n")
        running.until_safe()
        running.end()
    archive = ground.archive(volume)
    first = max(archive.archived_segments())
    archive.archived(first).unlink()
    path = archive.incoming / archive.name(first)
    _flip(path, path.read_bytes().rindex(b"x"))
    with receiver(ground, volume) as running:
        name = switch(ground)
        running.until(lambda status: receiving(status) and status.archived == name)
    assert first in require_no_gap(ground, archive)
    assert len(list((archive.folder / SET_ASIDE).rglob(path.name))) >= 1


@pytest.mark.exhaustive
def test_a_segment_that_cannot_be_replaced_is_set_aside(ground: Ground, volume: Path, rng: Random) -> None:
    with _unarchived(ground, volume) as (archive, path):
        _damage_in_records(path, rng)
        theirs = ground.cluster.data / "pg_wal" / path.name
        theirs.rename(theirs.with_suffix(".hidden"))
        try:
            with receiver(ground, volume) as running:
                name = switch(ground)
                running.until(lambda status: receiving(status) and status.archived == name)
        finally:
            theirs.with_suffix(".hidden").rename(theirs)
        names = [archive.name(segment) for segment in archive.archived_segments()]
        assert path.name not in names
        assert name in names
        assert len(list((archive.folder / SET_ASIDE).rglob(path.name))) == 1
        assert f"{path.name} was set aside, and is missing in the archive" in running.log.read_text()


# ---------------------------------------------------------------------------------------------------------- the slot


@pytest.mark.exhaustive
def test_a_dropped_slot_is_made_again(ground: Ground, volume: Path) -> None:
    with receiver(ground, volume) as running:
        running.until_safe()
        ground.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL",
        )
        until(lambda: _drop_slot(ground))
        name = switch(ground)
        running.until(lambda status: receiving(status) and status.archived == name)
        running.until_safe()
    require_no_gap(ground, ground.archive(volume))


def _drop_slot(ground: Ground) -> bool:
    with suppress(psycopg.errors.ObjectInUse), admin(ground.cluster) as session:
        session.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        return True
    return False


@pytest.fixture
def forgetful(ground: Ground) -> Iterator[None]:
    """The server keeps little WAL, even for a slot."""
    ground.execute(
        "ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'",
        "ALTER SYSTEM SET wal_keep_size = 0",
        "ALTER SYSTEM SET max_wal_size = '32MB'",
        "ALTER SYSTEM SET min_wal_size = '32MB'",
    )
    ground.reload()
    yield
    ground.execute("ALTER SYSTEM RESET ALL")
    ground.reload()


def test_a_lost_slot_leaves_a_hole_and_goes_on(ground: Ground, forgetful: None, volume: Path) -> None:
    with receiver(ground, volume) as running:
        running.until_safe()
        running.end()
    archive = ground.archive(volume)
    before = max(archive.received())
    for _ in range(6):
        switch(ground)
        ground.execute("CHECKPOINT")
    with admin(ground.cluster) as session:
        assert session.execute("SELECT wal_status FROM pg_replication_slots").fetchone() == ("lost",)
    remade = "slot ovia_backup has lost its WAL: it is dropped and created again"
    with receiver(ground, volume) as running:
        # Before that, it may seem to receive for a moment.
        running.until(lambda status: receiving(status) and remade in running.log.read_text())
        name = switch(ground)
        running.until(lambda status: receiving(status) and status.archived == name)
        running.until_safe()
    numbers = [segment.number for segment in archive.archived_segments()]
    assert before.number not in numbers or before.number + 1 not in numbers
    # What had arrived of the last segment is kept.
    assert [path.name for path in archive.wal.glob("*.partial.zst")] == [f"{archive.name(before)}.partial.zst"]


# ------------------------------------------------------------------------------------------------ rights and passwords


@pytest.mark.exhaustive
def test_a_lost_hba_line_is_named(ground: Ground, volume: Path) -> None:
    with ground.without_replication_line(), receiver(ground, volume) as running:
        status = running.until(troubled("AccessRefusedError"))
        [trouble] = status.troubles
        assert "host replication ovia_wal all scram-sha-256" in trouble.fix
        # Each attempt lives for a moment, which does not end the trouble: alerts count how long it lasts.
        until(lambda: running.log.read_text().count("receiving WAL of cluster") > 2)
        [later] = running.until(troubled("AccessRefusedError")).troubles
        assert later.since == trouble.since
    with receiver(ground, volume) as running:
        running.until(receiving)


@pytest.mark.exhaustive
def test_a_changed_password_is_named(ground: Ground, volume: Path) -> None:
    with receiver(ground, volume, WAL_POSTGRES_PASSWORD="wrong") as running:
        status = running.until(troubled("AuthenticationError"))
        assert "WAL_POSTGRES_PASSWORD" in status.troubles[0].account + status.troubles[0].fix


def test_a_role_without_replication_is_named(ground: Ground, volume: Path) -> None:
    ground.execute("ALTER ROLE ovia_wal NOREPLICATION")
    try:
        with receiver(ground, volume) as running:
            status = running.until(lambda status: status.troubles)
            assert "REPLICATION" in status.troubles[0].account + status.troubles[0].fix
    finally:
        ground.execute("ALTER ROLE ovia_wal REPLICATION")


@pytest.mark.exhaustive
def test_an_unreachable_server_is_waited_for(ground: Ground, volume: Path) -> None:
    with receiver(ground, volume, POSTGRES_PORT=str(free_port())) as running:
        running.until(troubled("ServerUnreachableError"))
        said = InProcessCli(ground.settings(volume))("wal", "status")
        assert said.returncode == 1
        assert "waiting" in said.stdout


# ----------------------------------------------------------------------------------------- another server, another past


@pytest.fixture
def own(full_bin_dir: Path) -> Iterator[Ground]:
    """A server of its own, for tests that change its history."""
    with ground_on(full_bin_dir, wal_keep_size="1GB") as made:
        yield made


@pytest.mark.exhaustive
def test_another_cluster_gets_a_folder_of_its_own(own: Ground, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    with receiver(own, volume) as running:
        running.until_safe()
        first = own.archive(volume)
        name = switch(own)
        running.until(lambda status: status.archived == name)
        cluster = own.cluster
        hba = (cluster.data / "pg_hba.conf").read_text()
        cluster.stop()
        cluster.data.rename(cluster.folder / "old")
        cluster.create()
        (cluster.data / "pg_hba.conf").write_text(hba)
        cluster.start()
        create_wal_role(cluster)
        status = running.until(lambda s: receiving(s) and s.system_identifier != first.system_identifier)
        running.until_safe()
        second = ClusterArchive(volume, str(status.system_identifier))
        assert second.received()
        assert [first.name(each) for each in first.archived_segments()][-1] == name
        assert "another cluster answers" in running.log.read_text()


def _promoted(ground: Ground) -> None:
    """Restart the server on a new timeline."""
    cluster = ground.cluster
    cluster.stop()
    signal_file = cluster.data / "standby.signal"
    signal_file.touch()
    shutil.chown(signal_file, cluster.data.owner(), cluster.data.group())
    cluster.start()
    ground.execute("SELECT pg_promote()")


@pytest.mark.exhaustive
def test_a_new_timeline_is_followed(own: Ground, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    with receiver(own, volume) as running:
        running.until_safe()
        switch(own)
        own.execute("CREATE TABLE before_the_switch ()")
        _promoted(own)
        running.until(lambda status: receiving(status) and status.timeline == 2)
        name = switch(own)
        running.until(lambda status: status.archived == name)
        running.until_safe()
    archive = own.archive(volume)
    timelines = archive.timelines()
    assert timelines[2].ancestors[0].timeline == 1
    at = timelines[2].ancestors[0].at
    assert Segment(2, at.bytes // archive.facts.segment_bytes) in archive.archived_segments()
    assert (archive.wal / "00000002.history").exists()
    assert list(archive.wal.glob("00000001*.partial.zst"))


@pytest.mark.exhaustive
def test_a_server_put_back_begins_a_history_again(own: Ground, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    cluster, kept = own.cluster, own.cluster.folder / "kept"
    with receiver(own, volume) as running:
        running.until_safe()
        cluster.stop()
        shutil.copytree(cluster.data, kept, symlinks=True)
        cluster.start()
        lost = [switch(own) for _ in range(3)]
        running.until(lambda status: status.archived == lost[-1])
        running.until_safe()
        cluster.stop()
        shutil.rmtree(cluster.data)
        kept.rename(cluster.data)
        for path in (cluster.data, *cluster.data.rglob("*")):
            shutil.chown(path, "postgres", "postgres")
        cluster.start()
        running.until(troubled("ServerReplacedError"))
        running.until(receiving)
        names = [switch(own, rows=10) for _ in range(2)]
        running.until(lambda status: status.archived == names[-1])
        running.until_safe()
    archive = own.archive(volume)
    for segment in archive.archived_segments():
        if (cluster.data / "pg_wal" / archive.name(segment)).exists():
            assert server_segment(own, archive.name(segment))
    require_no_gap(own, archive)
    assert list((archive.folder / SET_ASIDE).rglob(f"{lost[-1]}.zst"))


@pytest.mark.exhaustive
def test_a_standby_is_refused_by_name(own: Ground, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    own.cluster.stop()
    (own.cluster.data / "standby.signal").touch()
    shutil.chown(own.cluster.data / "standby.signal", "postgres", "postgres")
    own.cluster.start()
    with receiver(own, volume) as running:
        status = running.until(troubled("WalError"))
        assert "it is a standby" in status.troubles[0].account


@pytest.mark.exhaustive
def test_wal_level_minimal_is_refused_by_name(own: Ground, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    own.execute("ALTER SYSTEM SET wal_level = minimal", "ALTER SYSTEM SET max_wal_senders = 0")
    own.cluster.stop()
    own.cluster.start()
    with receiver(own, volume) as running:
        status = running.until(troubled("WalError"))
        assert "wal_level is minimal" in status.troubles[0].account


@pytest.mark.exhaustive
def test_a_record_of_many_segments_is_archived(ground: Ground, volume: Path) -> None:
    """It begins at a segment's start, so that the segment has no whole record."""
    with receiver(ground, volume) as running:
        running.until_safe()
        switch(ground)
        with admin(ground.cluster) as session:
            session.execute("SELECT pg_switch_wal()")
            session.execute("SELECT pg_logical_emit_message(false, 'large', repeat('x', 40 * 1024 * 1024))")
        name = switch(ground)
        running.until(lambda status: status.archived == name)
        running.until_safe()
        log = running.log.read_text()
    archive = ground.archive(volume)
    require_no_gap(ground, archive)
    assert not (archive.folder / SET_ASIDE).exists(), log


@pytest.mark.exhaustive
def test_a_damaged_first_record_is_noticed(ground: Ground, volume: Path) -> None:
    with _unarchived(ground, volume) as (archive, path):
        _flip(path, read_header(path).first_record + 10)
        for other in archive.incoming.glob("*"):
            if other != path:
                other.unlink()
        segment = Segment.parse(path.name)
        assert segment is not None
        with pytest.raises(SegmentDamagedError, match="checksum"):
            SegmentArchiver(archive, ground.programs).check(segment)
