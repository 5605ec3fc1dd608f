"""Base backups and WAL are removed from a real volume: with readers, crashes at each step, and files in the way."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import LockHeldError, NotVerifiedError, VolumeError
from ovia_backup_dagster.core.layout import PITR
from ovia_backup_dagster.core.locking import reading, volume_lock
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_manifest import BASE
from ovia_backup_dagster.pitr.recovery_windows import read_state
from ovia_backup_dagster.pitr.wal_position import Segment
from ovia_backup_dagster.pitr.wal_pruning import LOCK, PrunedArchive, preview_pruning, prune_archive
from ovia_backup_dagster_tests.pitr.archives import (
    HOUR,
    archive_on,
    at,
    base,
    forked,
    hour,
    put_base,
    put_empty_segments,
    put_history,
    put_unfinished,
    segments,
)
from ovia_backup_dagster_tests.support.crashes import in_a_child, killed_at_each_step, raised_as_nobody

BASES = [base(number + 0.5, timeline=timeline) for number, timeline in ((0, 1), (2, 2), (4, 2), (6, 2))]
WINDOW = timedelta(hours=2.75)
NOW = hour(8)


def fill(volume: Path) -> ClusterArchive:
    """Four base backups on two timelines; with a window of less than three hours, the last two are kept."""
    archive = archive_on(volume)
    put_empty_segments(archive, *segments(1, 0), *segments(2, *range(1, 8)))
    put_history(archive, forked(2, (1, 1.25)))
    put_unfinished(archive, 1, 1.5, archived=True)
    for each in BASES:
        put_base(archive, each)
    return archive


def prune(archive: ClusterArchive) -> PrunedArchive:
    return prune_archive(archive, WINDOW, NOW)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def archive(tmp_path: Path) -> ClusterArchive:
    return fill(tmp_path / "volume")


def test_what_no_window_needs_goes(archive: ClusterArchive) -> None:
    pruned = prune(archive)

    assert pruned.bases == tuple(each.name for each in BASES[:2])
    assert names(archive.base) == [each.name for each in BASES[2:]]
    kept = [archive.archived(segment).name for segment in sorted(segments(2, *range(4, 8)))]
    assert names(archive.wal) == sorted(["00000002.history", *kept])
    gone = (Segment(1, 0), Segment(1, 1), Segment(2, 1), Segment(2, 2), Segment(2, 3))
    assert pruned.segments == gone, "the second is the unfinished one"
    assert pruned.freed_bytes == 2 * 402 + 4 * 5
    assert pruned.in_use == ()
    assert [stretch.from_lsn for stretch in read_state(archive).catalog.stretches] == [at(4.75)]


def test_pruning_again_finds_nothing(archive: ClusterArchive) -> None:
    prune(archive)
    again = prune(archive)

    assert (again.bases, again.segments, again.freed_bytes) == ((), (), 0)


def test_a_preview_changes_nothing(archive: ClusterArchive) -> None:
    before = names(archive.base), names(archive.wal), names(archive.root / PITR)
    plan = preview_pruning(archive, WINDOW, NOW)

    assert [each.base.name for each in plan.base_removals] == [each.name for each in BASES[:2]]
    assert (names(archive.base), names(archive.wal), names(archive.root / PITR)) == before


def test_a_base_that_is_read_stays_with_all_its_wal(archive: ClusterArchive) -> None:
    folder = archive.base / BASES[1].name
    with reading(folder / BASE):
        pruned = prune(archive)

    assert pruned.in_use == (BASES[1].name,)
    assert pruned.bases == (BASES[0].name,)
    assert names(folder) == ["backup_manifest", "base.json", "base.tar", "verified.json"]
    catalog = read_state(archive).catalog
    (window,) = catalog.windows_of(catalog.bases[0])
    assert (window.base.name, window.to_lsn) == (BASES[1].name, at(8))
    assert prune(archive).bases == (BASES[1].name,), "the next pruning removes it"


def test_a_removed_base_cannot_be_read_any_more(archive: ClusterArchive) -> None:
    """A reader that has opened the file, and then waits for the lock, must not go on with a base that is gone."""
    folder = archive.base / BASES[0].name
    kept = os.open(folder / BASE, os.O_RDONLY)
    prune(archive)

    assert os.fstat(kept).st_nlink == 0
    os.close(kept)
    with pytest.raises(FileNotFoundError), reading(folder / BASE):
        raise AssertionError


def test_another_pruning_is_refused(archive: ClusterArchive) -> None:
    with (
        volume_lock(archive.root / PITR, purpose="pruning", now=NOW, name=LOCK),
        pytest.raises(LockHeldError, match="pruning"),
    ):
        prune(archive)
    assert len(names(archive.base)) == 4
    assert stat.S_IMODE((archive.root / PITR / LOCK).stat().st_mode) == 0o600


def test_without_a_verified_base_nothing_is_removed(archive: ClusterArchive) -> None:
    for folder in archive.base_folders():
        (folder / "verified.json").unlink()

    with pytest.raises(NotVerifiedError, match="no base backup is verified"):
        prune(archive)
    assert len(names(archive.base)) == 4
    assert len(names(archive.wal)) == 10


def test_behind_a_base_that_cannot_be_read_nothing_goes(archive: ClusterArchive) -> None:
    """It may be sound, and need WAL that would go."""
    path = archive.base / BASES[1].name / BASE
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(VolumeError, match=f"{BASES[1].name} cannot be read, so nothing is removed"):
        prune(archive)
    with pytest.raises(VolumeError, match="cannot be read"):
        preview_pruning(archive, WINDOW, NOW)
    assert len(names(archive.base)) == 4


def test_a_file_that_cannot_be_removed_stops_nothing_else(archive: ClusterArchive) -> None:
    stuck = archive.archived_partial(Segment(1, 1))
    shutil.copy2(stuck, archive.archived(Segment(1, 1)))
    stuck.unlink()
    stuck.mkdir()

    with pytest.raises(VolumeError, match="1 files or folders"):
        prune(archive)
    assert names(archive.base) == [each.name for each in BASES[2:]]
    assert names(archive.wal)[:2] == [stuck.name, "00000002.history"]


def test_a_base_that_cannot_be_removed_keeps_its_wal() -> None:
    """Its folder belongs to another user, for example."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's folders are closed to other users
        Path(folder).chmod(0o777)
        archive = fill(Path(folder) / "volume")
        for path in (archive.root, *archive.root.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        archive.base.chmod(0o555)

        error = raised_as_nobody(lambda: prune(archive))
        assert isinstance(error, VolumeError), error
        assert "2 files or folders" in str(error)
        assert len(names(archive.base)) == 4
        assert len(names(archive.wal)) == 10
        archive.base.chmod(0o777)


def test_a_kill_at_any_step_leaves_no_base_without_its_wal(tmp_path: Path) -> None:
    template, volume = tmp_path / "template", tmp_path / "volume"
    # One base and three segments go; each more would repeat the same steps.
    smaller = fill(template)
    shutil.rmtree(smaller.base / BASES[0].name)
    for path in smaller.wal.glob("00000001*"):
        path.unlink()

    def prepare() -> Callable[[], object]:
        shutil.rmtree(volume, ignore_errors=True)
        shutil.copytree(template, volume)
        return lambda: prune(archive_on(volume))

    left = set()
    for _ in killed_at_each_step(prepare):
        archive = archive_on(volume)
        catalog = read_state(archive).catalog
        left.add((len(catalog.bases), len(catalog.segments)))
        for each in catalog.bases:
            assert catalog.windows_of(each)[0].to_lsn == at(8)
        assert {each.name for each in catalog.bases} >= {each.name for each in BASES[2:]}
        prune(archive)
        assert names(archive.base) == [each.name for each in BASES[2:]], "what was left is swept"
        assert len(names(archive.wal)) == 5
    assert left == {(3, 7), *((2, count) for count in range(7, 3, -1))}


def test_a_killed_reader_holds_nothing(archive: ClusterArchive) -> None:
    def read_and_die() -> None:
        with reading(archive.base / BASES[0].name / BASE):
            os.kill(os.getpid(), 9)

    assert in_a_child(read_and_die) == -9
    assert prune(archive).in_use == ()


def test_other_clusters_and_foreign_files_stay(archive: ClusterArchive) -> None:
    other = archive_on(archive.root, "99")
    put_empty_segments(other, *segments(1, 0, 1))
    (archive.wal / "notes.txt").write_text("mine")
    (archive.base / "notes").mkdir()
    prune(archive)

    assert len(names(other.wal)) == 2
    assert (archive.wal / "notes.txt").exists()
    assert (archive.base / "notes").exists()


def test_wal_that_is_being_received_stays(archive: ClusterArchive) -> None:
    """The receiver removes its own files."""
    left = archive.incoming / archive.name(Segment(1, 0))
    left.write_bytes(b"12345")
    put_unfinished(archive, 2, 8.5)
    prune(archive)

    assert names(archive.incoming) == [left.name, f"{archive.name(Segment(2, 8))}.partial"]
    assert prune_archive(archive, WINDOW, NOW + HOUR / 2).segments == ()
