"""When a beacon is sent and looked for: at once when it is due, and more often while it is on its way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.beacons import BeaconWatch
from ovia_backup_dagster.pitr.receiver_report import ReceiverReport
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.pitr.wal_source import WalSource
from ovia_backup_dagster.postgres.programs import start
from ovia_backup_dagster_tests.conftest import quiet
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.ground import Ground, ground_on

_EVERY = 1.5
_TICK = 1.0


def test_a_late_beacon_is_followed_by_the_next_at_once(full_bin_dir: Path, tmp_path: Path) -> None:
    with ground_on(full_bin_dir) as ground:
        archive = ground.archive(tmp_path / "volume")
        source = WalSource(ground.connection, "beacons")
        source.create_slot()
        report = ReceiverReport.begin(archive.root, source.slot, _EVERY, quiet)
        watch = BeaconWatch(source, source.identify(), WalReader(archive, ground.programs), _EVERY, report)

        began = time.monotonic()
        assert watch.tick()
        # Nothing receives. It is looked for often for a second, and then at every tick.
        assert watch.pause_seconds(_TICK) < _TICK or time.monotonic() - began > _TICK
        time.sleep(1.1)
        watch.tick()
        assert report.status.confirmed_at is None
        time.sleep(_EVERY)
        assert watch.tick()
        assert report.status.confirmed_at is None

        with _receiving(ground, archive, source.slot):
            until(lambda: watch.tick() is not None and report.status.confirmed_at is not None)
            first = report.status.confirmed_at
            # It has come back late: the next one is due already.
            assert watch.pause_seconds(_TICK) < _TICK
            assert watch.tick()
            until(lambda: watch.tick() is not None and report.status.confirmed_at != first)
            # This one came at once: the next one is due after the interval, and no tick is left out meanwhile.
            assert watch.pause_seconds(0.1) == 0.1
            assert watch.pause_seconds(10.0) <= _EVERY


@contextmanager
def _receiving(ground: Ground, archive: ClusterArchive, slot: str) -> Iterator[None]:
    command = (
        ground.programs.path("pg_receivewal"),
        f"--directory={archive.incoming}",
        f"--slot={slot}",
        "--no-loop",
        "--synchronous",
        f"--dbname={ground.connection.conninfo()}",
    )
    with start(command, variables=ground.connection.environment()):
        yield
