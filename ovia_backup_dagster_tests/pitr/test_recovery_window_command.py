"""``ovia-backup recovery-window``: what it prints, and when it fails."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_manifest import BASE
from ovia_backup_dagster.pitr.receiver_status import write_status
from ovia_backup_dagster.pitr.recovery_catalog import Base
from ovia_backup_dagster.pitr.room_forecast import forecast_room
from ovia_backup_dagster.pitr.wal_position import Segment
from ovia_backup_dagster_tests.pitr.archives import (
    IDENTIFIER,
    archive_on,
    base,
    catalog_with,
    forked,
    put_base,
    put_empty_segments,
    put_history,
    put_unfinished,
    segments,
)
from ovia_backup_dagster_tests.support.command_line import InProcessCli
from ovia_backup_dagster_tests.support.pitr_reports import receiver_status

DAY = timedelta(days=1)
GIGABYTE = 1_000_000_000


@pytest.fixture
def archive(tmp_path: Path) -> ClusterArchive:
    return archive_on(tmp_path / "volume")


@pytest.fixture
def cli(archive: ClusterArchive) -> InProcessCli:
    return InProcessCli({"BACKUP_DIR": str(archive.root), "RECOVERY_WINDOW_DAYS": "7"})


def test_the_window_and_its_bases_are_printed(archive: ClusterArchive, cli: InProcessCli) -> None:
    put_base(archive, base(2.5, drilled=True))
    put_base(archive, base(4.5, verified=None))
    put_empty_segments(archive, *segments(1, 2, 3, 4, 5))
    put_unfinished(archive, 1, 6.5)
    found = cli("recovery-window")

    assert found.returncode == 0
    lines = found.stdout.splitlines()
    assert lines[0] == f"cluster {IDENTIFIER}, PostgreSQL 16, timeline 1"
    assert lines[1] == (
        "  any instant from 2026-11-01 02:45:00 UTC (0/2C0000) to 2026-11-01 06:30:00 UTC (0/680000), "
        "3 h 45 min: nothing was received since"
    )
    assert lines[2].startswith("  WAL: 4 segments, 20 B")
    assert lines[3].startswith("  room: 824 B are stored, ")
    assert [line.split()[0] for line in lines[5:]] == ["2026-11-01_043000", "2026-11-01_023000"], "newest first"
    assert "402 B  no" in lines[5]
    assert "402 B  yes       2026-11-01 03:45:00 UTC  2026-11-01 06:30:00 UTC (0/680000)" in lines[6]


def test_holes_and_abandoned_timelines_are_printed(archive: ClusterArchive, cli: InProcessCli) -> None:
    put_base(archive, base(1.5))
    put_base(archive, base(5.5, timeline=2))
    put_empty_segments(archive, *segments(1, 1, 3, 4), *segments(2, 4, 5, 6))
    put_history(archive, forked(2, (1, 4.25)))
    put_unfinished(archive, 1, 5.5, archived=True)
    lines = cli("recovery-window").stdout.splitlines()

    name = archive.name
    first, second = (line for line in lines if line.startswith("  any instant"))
    missing = name(Segment(1, 2))
    assert first.endswith(
        f" 01:45:00 UTC (0/1C0000) to 2026-11-01 02:00:00 UTC (0/200000), 15 min: segment {missing} is missing"
    )
    assert second.endswith(
        " 05:45:00 UTC (0/5C0000) to 2026-11-01 07:00:00 UTC (0/700000), 1 h 15 min: nothing was received since"
    )
    (hole,) = (line for line in lines if "hole" in line)
    assert hole == (
        f"  hole: WAL is missing between {name(Segment(1, 1))} and {name(Segment(1, 3))} "
        "(2026-11-01 02:00:00 UTC to 2026-11-01 04:00:00 UTC)"
    )

    put_empty_segments(archive, Segment(1, 2))
    assert "(0/580000) on timeline 1, 3 h 45 min: timeline 2 began at 0/440000" in cli("recovery-window").stdout


def test_without_a_window_the_command_fails_and_says_why(archive: ClusterArchive, cli: InProcessCli) -> None:
    put_empty_segments(archive, *segments(1, 2, 3))
    found = cli("recovery-window")
    assert found.returncode == 1
    assert "  nothing can be recovered: there is no base backup. Next: ovia-backup base-backup\n" in found.stdout

    put_base(archive, base(2.5, 4.5))
    found = cli("recovery-window")
    missing = archive.name(Segment(1, 4))
    assert found.returncode == 1
    assert f"cannot be used: segment {missing}, which the base needs, is missing" in found.stdout
    assert found.stdout.count("which the base needs") == 2, "in the table, too"

    code, data = cli.json("recovery-window")
    assert (code, data[0]["windows"]) == (1, [])
    assert data[0]["why_no_window"].startswith("base backup 2026-11-01_023000 cannot be used")


def test_a_volume_without_wal_fails_in_one_line(tmp_path: Path) -> None:
    found = InProcessCli({"BACKUP_DIR": str(tmp_path)})("recovery-window")

    assert (found.returncode, found.stdout) == (1, "")
    assert "no WAL was ever received on this volume. Next: ovia-backup wal receive" in found.stderr


def test_the_present_cluster_decides_the_exit_code(archive: ClusterArchive, cli: InProcessCli) -> None:
    """The server was replaced: the old one's window does not help the new one."""
    put_base(archive, base(2.5))
    put_empty_segments(archive, *segments(1, 2, 3))
    new = archive_on(archive.root, "7300000000000000002")
    put_empty_segments(new, Segment(1, 9))
    found = cli("recovery-window")

    assert found.returncode == 1
    clusters = [line.split()[1].strip(",") for line in found.stdout.splitlines() if line.startswith("cluster")]
    assert clusters == ["7300000000000000002", IDENTIFIER]


def test_what_cannot_be_used_is_named(archive: ClusterArchive, cli: InProcessCli) -> None:
    put_base(archive, base(2.5, verified=False))
    (put_base(archive, base(4.5)) / BASE).unlink()
    put_empty_segments(archive, *segments(1, 2, 3))
    text = cli("recovery-window").stdout

    assert "nothing can be recovered: every base backup was found to be bad" in text
    assert "base backup 2026-11-01_043000 cannot be used: it has no base.json" in text
    assert "402 B  bad" in text


def test_the_loss_now_is_that_of_this_cluster(archive: ClusterArchive, cli: InProcessCli) -> None:
    put_base(archive, base(2.5))
    put_empty_segments(archive, *segments(1, 2, 3))
    now = datetime.now(UTC)
    status = receiver_status(
        now,
        system_identifier=IDENTIFIER,
        confirmed_at=now - timedelta(seconds=40),
        worst={f"{now:%Y-%m-%dT%H:00:00+00:00}": 99.0},
    )
    write_status(archive.root, status)
    text = cli("recovery-window").stdout
    assert "changes that would be lost with the server now: the last 4" in text
    assert "the most in the last day: 1 min" in text
    assert 40 <= cli.json("recovery-window")[1][0]["rpo_seconds"] < 60

    write_status(archive.root, status.model_copy(update={"system_identifier": "9"}))
    assert "would be lost" not in cli("recovery-window").stdout
    assert cli.json("recovery-window")[1][0]["rpo_seconds"] is None


def test_growth_and_room_are_told(archive: ClusterArchive, cli: InProcessCli) -> None:
    """Half a segment's file an hour, of late; the window needs more than a day of it."""
    put_base(archive, base(0.5))
    put_empty_segments(archive, *segments(1, *range(4 * 24)))
    now = datetime.now(UTC)
    for number in range(4 * 24):
        path = archive.archived(Segment(1, number))
        path.write_bytes(b"x" * 1000)
        time = (now - (4 * 24 - number) * timedelta(hours=1)).timestamp()
        os.utime(path, (time, time))
    code, data = cli.json("recovery-window")

    assert code == 0
    assert data[0]["wal_bytes_per_day"] == pytest.approx(24_000, rel=0.05)
    # A base a week: two within the window, the one before, and one being made.
    assert data[0]["needed_bytes"] == pytest.approx(14 * 24_000 + 3 * 402, rel=0.05)
    assert data[0]["fits"] is True
    assert "24.0 kB a day" in cli("recovery-window").stdout
    assert "  room: a window of 7 d needs up to 337.2 kB; 96.4 kB are stored," in cli("recovery-window").stdout


@pytest.mark.parametrize(("free", "fits"), [(0, False), (15 * GIGABYTE - 1, False), (15 * GIGABYTE, True)])
def test_the_room_that_a_window_needs(free: int, fits: bool) -> None:
    """A GB of WAL a day, and a base of 2 GB each week: it may be two weeks old, and there may be three."""
    large = replace(base(1.5), size_bytes=2 * GIGABYTE)
    forecast = forecast_room(
        catalog_with(base(0.5), large, base(2.5, verified=False)),
        window=7 * DAY,
        base_period=7 * DAY,
        wal_bytes_per_day=GIGABYTE,
        stored_bytes=5 * GIGABYTE,
        free_bytes=free,
    )

    assert forecast.needed_bytes == 14 * GIGABYTE + 3 * 2 * GIGABYTE
    assert forecast.fits is fits


@pytest.mark.parametrize(("bases", "growth"), [([], 1000.0), ([base(0.5)], 0.0), ([base(0.5, verified=False)], 1.0)])
def test_room_is_unknown_before_there_is_a_base(bases: list[Base], growth: float) -> None:
    forecast = forecast_room(
        catalog_with(*bases),
        window=DAY,
        base_period=DAY,
        wal_bytes_per_day=growth,
        stored_bytes=0,
        free_bytes=0,
    )

    assert (forecast.needed_bytes, forecast.fits) == (None, None)


def test_too_little_room_is_said(archive: ClusterArchive, cli: InProcessCli, monkeypatch: pytest.MonkeyPatch) -> None:
    put_base(archive, base(2.5))
    put_empty_segments(archive, *segments(1, 2, 3))
    now = datetime.now(UTC).timestamp()
    os.utime(archive.archived(Segment(1, 3)), (now, now))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0})())
    text = cli("recovery-window").stdout

    assert "0 B free: TOO LITTLE; enlarge the volume, or lower RECOVERY_WINDOW_DAYS" in text
