"""Runs the WAL receiver as a process of its own, and compares what it received with the server's own files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.receiver_status import ReceiverStatus, read_status
from ovia_backup_dagster.pitr.segment_files import content
from ovia_backup_dagster.pitr.wal_position import Segment
from ovia_backup_dagster_tests.conftest import admin
from ovia_backup_dagster_tests.pitr.ground import Ground

PROGRAM = Path(sys.executable).with_name("ovia-backup")
_SECONDS = 60.0


@dataclass
class Receiver:
    """A running receiver.

    Attributes:
        process: ``ovia-backup wal receive``.
        volume: the backup volume.
        log: the file with its output.
    """

    process: subprocess.Popen[bytes]
    volume: Path
    log: Path

    @property
    def status(self) -> ReceiverStatus | None:
        return read_status(self.volume)

    def until(self, reached: Callable[[ReceiverStatus], object], seconds: float = _SECONDS) -> ReceiverStatus:
        """Wait until the report satisfies a condition."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status
            if status is not None and status.pid == self.process.pid and reached(status):
                return status
            said = f"{status and status.model_dump_json(indent=1)}\n{self.log.read_text()}"
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def until_safe(self) -> ReceiverStatus:
        """Wait until everything that is committed now is safe: a beacon that was sent later has come back."""
        now = time.time()
        return self.until(lambda status: status.confirmed_at and status.confirmed_at.timestamp() >= now)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)

    @property
    def children(self) -> list[int]:
        """Its pg_receivewal."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid:
                    found.append(int(process.name))
        return found


@contextmanager
def receiver(ground: Ground, volume: Path, **settings: str) -> Iterator[Receiver]:
    """Start a receiver; it is ended with the block."""
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ},
        **ground.settings(volume, **{"WAL_BEACON_SECONDS": "1", **settings}),
    }
    log = volume.with_name(f"{volume.name}.log")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [str(PROGRAM), "wal", "receive"], env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield Receiver(process, volume, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def server_segment(ground: Ground, name: str) -> bytes:
    """A finished segment in the server's own pg_wal."""
    return (ground.cluster.data / "pg_wal" / name).read_bytes()


def switch(ground: Ground, rows: int = 100) -> str:
    """Write rows and end the segment; returns the name of the segment."""
    with admin(ground.cluster) as session:
        session.execute("CREATE TABLE IF NOT EXISTS filled (a int, b text)")
        session.execute("INSERT INTO filled SELECT n, repeat('x', 100) FROM generate_series(1, %s) n", [rows])
        row = session.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
    assert row is not None
    return str(row[0])


def archived_bytes(archive: ClusterArchive, segment: Segment) -> bytes:
    """A segment's content in the archive."""
    return b"".join(content(archive.archived(segment)))


def require_no_gap(ground: Ground, archive: ClusterArchive) -> list[Segment]:
    """Require that the archive has every segment from its first on, as the server has them; returns them."""
    segments = archive.archived_segments()
    numbers = [segment.number for segment in segments]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for segment in segments:
        name = archive.name(segment)
        if (ground.cluster.data / "pg_wal" / name).exists():
            same = archived_bytes(archive, segment) == server_segment(ground, name)
            assert same, name  # pytest would compare 16 MB byte by byte
    return segments


def as_json(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(done.stdout)
    return found
