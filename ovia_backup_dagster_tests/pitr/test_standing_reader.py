"""The facts about point-in-time recovery, read from the files of a volume."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.pitr.receiver_status import write_status
from ovia_backup_dagster.pitr.recovery_evidence import DRILLS
from ovia_backup_dagster.pitr.recovery_windows import StoredWal
from ovia_backup_dagster.pitr.standing_reader import last_drill, read_facts, wal_bytes_per_day
from ovia_backup_dagster.pitr.wal_arrival import wait_for_wal
from ovia_backup_dagster.pitr.wal_position import Segment
from ovia_backup_dagster_tests.pitr.archives import (
    archive_on,
    base,
    hour,
    put_base,
    put_empty_segments,
    put_segment,
    put_unfinished,
)
from ovia_backup_dagster_tests.support.pitr_reports import receiver_status, recovery_evidence

NOW = hour(48)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
FIRST, SECOND = "7300000000000000001", "7300000000000000002"


def report(volume: Path, identifier: str | None) -> None:
    write_status(volume, receiver_status(NOW, system_identifier=identifier))


def test_an_empty_volume_has_no_facts_but_its_room(tmp_path: Path) -> None:
    found = read_facts(tmp_path, NOW)
    assert (found.status, found.catalog, found.system_identifier, found.others) == (None, None, None, ())
    assert found.free_bytes > 0
    with pytest.raises(VolumeError):
        read_facts(tmp_path / "absent", NOW)


def test_the_receivers_cluster_is_judged_and_others_named(tmp_path: Path) -> None:
    old, new = archive_on(tmp_path, FIRST), archive_on(tmp_path, SECOND)
    made = put_base(old, base(10.5))
    put_empty_segments(old, *(Segment(1, number) for number in range(10, 40)))
    (old.base / "2026-11-02_000000").mkdir()
    report(tmp_path, SECOND)
    found = read_facts(tmp_path, NOW)
    assert (found.system_identifier, found.others, found.unusable) == (SECOND, (FIRST,), ())
    assert found.catalog is not None
    assert found.catalog.bases == ()
    assert found.began_at == new.began_at
    report(tmp_path, FIRST)
    found = read_facts(tmp_path, NOW)
    assert (found.system_identifier, found.others) == (FIRST, ())
    assert [name for name, _ in found.unusable] == ["2026-11-02_000000"]
    assert found.catalog is not None
    assert [each.name for each in found.catalog.bases] == [made.name]
    assert found.stored_bytes == 30 * 5 + found.catalog.bases[0].size_bytes
    assert found.wal_bytes_per_day == pytest.approx(30 * 5 / (37 / 24))
    # Without a report, the cluster that WAL was received from last.
    (tmp_path / "pitr" / "status.json").unlink()
    assert read_facts(tmp_path, NOW).system_identifier == FIRST


def test_a_cluster_without_an_archive_yet_is_known_by_name(tmp_path: Path) -> None:
    archive = archive_on(tmp_path, FIRST)
    put_base(archive, base(10.5))
    report(tmp_path, SECOND)
    found = read_facts(tmp_path, NOW)
    assert (found.system_identifier, found.catalog, found.others) == (SECOND, None, (FIRST,))


def test_the_newest_drill_that_can_be_read_counts(tmp_path: Path) -> None:
    archive = archive_on(tmp_path)
    assert last_drill(archive) is None
    folder = archive.folder / DRILLS
    folder.mkdir()
    for day, passed in ((1, False), (2, True)):
        (folder / f"2026-11-0{day}_000000.json").write_text(recovery_evidence(NOW, passed=passed).to_json(), "utf-8")
    (folder / "2026-11-03_000000.json").write_text("{", "utf-8")
    (folder / ".2026-11-04_000000.json.tmp").write_text("{", "utf-8")
    found = last_drill(archive)
    assert found is not None
    assert found.passed
    assert read_facts(tmp_path, NOW).last_drill == found


def test_a_day_of_wal_is_not_extrapolated_from_an_hour() -> None:
    def stored(age: timedelta, size_bytes: int) -> StoredWal:
        return StoredWal(NOW - age, size_bytes)

    assert wal_bytes_per_day([], NOW) == 0
    assert wal_bytes_per_day([stored(HOUR, 600)], NOW) == 600
    assert wal_bytes_per_day([stored(2 * DAY, 600), stored(HOUR, 600)], NOW) == 600
    # What was long ago, or is dated in the future, does not count.
    assert wal_bytes_per_day([stored(8 * DAY, 10**9), stored(-HOUR, 10**9), stored(HOUR, 600)], NOW) == 600


def test_the_wal_of_a_base_backup_is_waited_for(tmp_path: Path) -> None:
    archive = archive_on(tmp_path)
    made = put_base(archive, base(10.25, 11.25))
    put_segment(archive, Segment(1, 10))
    assert not wait_for_wal(archive, made.name, 0)
    put_unfinished(archive, 1, 11.2)
    assert not wait_for_wal(archive, made.name, 0)
    put_unfinished(archive, 1, 11.5)
    assert wait_for_wal(archive, made.name, 0)
