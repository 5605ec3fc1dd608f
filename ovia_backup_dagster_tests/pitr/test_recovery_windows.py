"""A catalog is read from the files of a cluster."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_manifest import BASE
from ovia_backup_dagster.pitr.recovery_windows import read_state, read_states
from ovia_backup_dagster.pitr.wal_chain import Unfinished
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Lsn, Segment, Timeline
from ovia_backup_dagster_tests.conftest import admin
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.archives import (
    SIZE,
    archive_on,
    at,
    base,
    forked,
    hour,
    put_base,
    put_empty_segments,
    put_history,
    put_segment,
    put_unfinished,
    segment_content,
)
from ovia_backup_dagster_tests.pitr.ground import ground_on


@pytest.fixture
def archive(tmp_path: Path) -> ClusterArchive:
    return archive_on(tmp_path / "volume")


def test_a_catalog_says_what_the_files_say(archive: ClusterArchive) -> None:
    first, second = base(2.5, drilled=True), base(4.5, verified=None)
    for each in (second, first):
        put_base(archive, each)
    for number in (2, 3):
        put_segment(archive, Segment(1, number))
    put_unfinished(archive, 1, 4.75)
    state = read_state(archive)

    assert state.catalog.segments == {Segment(1, 2), Segment(1, 3)}
    assert state.catalog.end_of == {Segment(1, 2): hour(3), Segment(1, 3): hour(4)}
    assert state.catalog.unfinished == (Unfinished(Segment(1, 4), at(4.75), hour(4.75)),)
    size = 402
    assert state.catalog.bases == (replace(first, size_bytes=size), replace(second, size_bytes=size))
    assert state.newest == hour(4.75)
    assert state.archived_bytes == sum(path.stat().st_size for path in archive.wal.iterdir())
    assert [stretch.to_lsn for stretch in state.catalog.stretches] == [at(4.75)]


def test_a_finished_segment_counts_before_it_is_archived(archive: ClusterArchive) -> None:
    """And one that is both received and archived, as the receiver leaves it, counts once."""
    put_segment(archive, Segment(1, 2))
    for number in (2, 3):
        (archive.incoming / archive.name(Segment(1, number))).write_bytes(segment_content(Segment(1, number)))
    state = read_state(archive)

    assert state.catalog.segments == {Segment(1, 2), Segment(1, 3)}
    assert state.catalog.end_of[Segment(1, 2)] == hour(3), "the archived file's time"
    assert list(state.archived) == [Segment(1, 2)]


def test_a_segment_that_is_archived_meanwhile_counts(archive: ClusterArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in ``incoming`` when that is listed, and in the archive only after that was listed."""
    received = archive.incoming / archive.name(Segment(1, 2))
    received.write_bytes(segment_content(Segment(1, 2)))
    listed = ClusterArchive.archived_segments

    def archived_after(of: ClusterArchive) -> list[Segment]:
        found = listed(of)
        put_segment(archive, Segment(1, 2))
        return found

    monkeypatch.setattr(ClusterArchive, "archived_segments", archived_after)
    assert read_state(archive).catalog.end_of == {Segment(1, 2): hour(3)}
    assert not received.exists()


def test_a_segment_that_was_only_made_room_for_is_not_there(archive: ClusterArchive) -> None:
    """pg_receivewal fills a new segment with zeros, or is killed before it has."""
    for number, size in ((2, SIZE), (3, 0)):
        (archive.incoming / f"{archive.name(Segment(1, number))}{PARTIAL}").write_bytes(b"\0" * size)

    assert read_state(archive).catalog.unfinished == ()
    assert read_state(archive).newest is None


@pytest.mark.parametrize("written", [8, 40, 8191, 8192, 8193, 500_000, SIZE - 1, SIZE])
def test_the_end_of_what_was_received_is_found(archive: ClusterArchive, written: int) -> None:
    for archived in (False, True):
        path = put_unfinished(archive, 1, 2 + min(written, SIZE - 1) / SIZE, archived=archived)
        if written == SIZE and not archived:
            path.write_bytes(segment_content(Segment(1, 2)))
        (found,) = read_state(archive).catalog.unfinished
        assert found.until.bytes == 2 * SIZE + (written + 7) // 8 * 8
        path.unlink()


def test_the_end_of_what_a_server_sent_is_its_own_position(full_bin_dir: Path, tmp_path: Path) -> None:
    with ground_on(full_bin_dir) as ground, admin(ground.cluster) as session:
        archive, server = ground.archive(tmp_path / "volume"), ground.connection

        def is_exact() -> bool:
            (position,) = session.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone() or ("0/0",)
            parts = read_state(archive).catalog.unfinished
            return [part.until for part in parts] == [Lsn.parse(str(position))]

        command = (
            ground.programs.path("pg_receivewal"),
            f"--directory={archive.incoming}",
            "--synchronous",
            "--no-loop",
        )
        variables = {**os.environ, **server.environment()}
        receiver = subprocess.Popen((*command, f"--dbname={server.conninfo()}"), env=variables)
        try:
            session.execute("CREATE TABLE t AS SELECT 1 AS a")
            for rows in (1, 10, 200, 1000):
                session.execute("INSERT INTO t SELECT generate_series(1, %s)", [rows])
                until(is_exact)
        finally:
            receiver.kill()
            receiver.wait()


def test_the_unfinished_segment_of_an_old_timeline_counts(archive: ClusterArchive) -> None:
    """Which the receiver archives as it is, once the server has changed its timeline."""
    put_base(archive, base(2.5))
    second = forked(2, (1, 3.5))
    put_history(archive, second)
    put_segment(archive, Segment(1, 2))
    put_unfinished(archive, 1, 3.75, archived=True)
    put_unfinished(archive, 2, 3.8)
    state = read_state(archive)

    assert state.catalog.timelines == {1: Timeline(1), 2: second}
    assert [(each.timeline, each.to_lsn.bytes // 8) for each in state.catalog.windows_of(state.catalog.bases[0])] == [
        (2, (at(3.8).bytes + 7) // 8),
        (1, at(3.75).bytes // 8),
    ]


def test_what_is_being_received_counts_before_an_older_copy(archive: ClusterArchive) -> None:
    """A timeline was left, its unfinished segment archived, and the server came back to it."""
    put_unfinished(archive, 1, 3.5, archived=True)
    put_unfinished(archive, 1, 3.75)

    assert [part.until for part in read_state(archive).catalog.unfinished] == [at(3.75)]


def test_a_damaged_unfinished_segment_counts_as_missing(archive: ClusterArchive) -> None:
    path = put_unfinished(archive, 1, 3.75, archived=True)
    path.write_bytes(path.read_bytes()[:-200])

    assert read_state(archive).catalog.unfinished == ()


def test_a_folder_that_is_no_base_backup_is_named(archive: ClusterArchive) -> None:
    put_base(archive, base(2.5))
    (put_base(archive, base(4.5)) / BASE).unlink()
    (archive.base / ".2026-11-01_093000.removing").mkdir()
    state = read_state(archive)

    assert [each.name for each in state.catalog.bases] == [base(2.5).name]
    assert [(each.folder.name, each.why) for each in state.incomplete] == [(base(4.5).name, "it has no base.json")]


def test_a_damaged_history_file_is_named_in_one_line(archive: ClusterArchive) -> None:
    put_history(archive, forked(2, (1, 3.5))).write_text("no history\n")

    with pytest.raises(VolumeError, match=r"00000002\.history is damaged: 'no history' is not a line"):
        read_state(archive)


def test_the_cluster_that_is_received_from_comes_first(tmp_path: Path) -> None:
    old, new, never = (archive_on(tmp_path, identifier) for identifier in ("7", "5", "9"))
    put_empty_segments(old, Segment(1, 5))
    put_empty_segments(new, Segment(1, 7))
    put_unfinished(old, 1, 6.5)

    assert [state.archive for state in read_states(tmp_path)] == [new, old, never]
    assert read_states(tmp_path / "nothing") == []


def test_files_of_other_programs_are_not_wal(archive: ClusterArchive) -> None:
    put_empty_segments(archive, Segment(1, 5))
    for name in ("notes.txt", f".{archive.name(Segment(1, 6))}.zst.tmp", archive.name(Segment(1, 7)), "X.partial.zst"):
        (archive.wal / name).write_bytes(b"x")

    assert read_state(archive).catalog.segments == {Segment(1, 5)}
    os.mkfifo(archive.archived(Segment(1, 8)))
    with pytest.raises(VolumeError, match="FIFO"):
        read_state(archive)
