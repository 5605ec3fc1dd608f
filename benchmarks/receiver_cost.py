"""What receiving WAL costs the server: pgbench with and without a receiver, and the receiver's and sender's time.

``pitr`` states it.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import Json, alternate, summary
from benchmarks.wal_load import (
    archive_all,
    next_segment,
    position,
    processor_seconds,
    received,
    received_by_program,
    server_apart,
    stored_bytes,
    throughput,
    value,
)
from benchmarks.world import World
from ovia_backup_dagster_tests.pitr.ground import Ground
from ovia_backup_dagster_tests.pitr.receiving import Receiver

_SECONDS, _RUNS, _SYNCHRONOUS_RUNS = 6, 5, 2
#: A folder in memory, for a volume that does not share the server's disk, and the room that it needs.
_MEMORY, _ROOM = Path("/dev/shm"), 2_000_000_000
_MEGABYTES = 1_000_000


@dataclass
class ReceiverCost:
    """The measurement.

    Attributes:
        world: has the folder.
        ground: the server, with pgbench's tables.
        beacon_seconds: of the receivers.
        part: 1 for full length, less to try things out.
    """

    world: World
    ground: Ground
    beacon_seconds: int
    part: float
    _rpo: list[float] = field(default_factory=list)
    _processor: list[float] = field(default_factory=list)
    _sender: list[float] = field(default_factory=list)
    _stored: list[float] = field(default_factory=list)
    _wal_rate: list[float] = field(default_factory=list)

    def measure(self) -> Json:
        """All sides in turns; those whose commits wait for the receiver come last."""
        self._throughput()
        samples = alternate(
            {
                "off": self._throughput,
                "on": self._with_receiver,
                "alone": self._with_program,
                "off_apart": lambda: self._apart(receiving=False),
                "on_apart": lambda: self._apart(receiving=True),
            },
            max(2, round(_RUNS * self.part)),
        )
        waiting = {"synchronous": self._synchronous}
        samples |= alternate(waiting, max(1, round(_SYNCHRONOUS_RUNS * self.part)))
        median = {name: statistics.median(found) for name, found in samples.items()}
        return {
            "transactions": {name: summary(found, 1) for name, found in samples.items()},
            "run_seconds": self._length,
            "cost_percent": round(100 * (1 - median["on"] / median["off"]), 2),
            "alone_percent": round(100 * (1 - median["alone"] / median["off"]), 2),
            "apart_percent": round(100 * (1 - median["on_apart"] / median["off_apart"]), 2),
            "synchronous_ratio": round(median["synchronous"] / median["on"], 3),
            "rpo_seconds": summary(self._rpo, 1),
            "processor_seconds_per_gb": summary(self._processor, 1),
            "sender_seconds_per_gb": summary(self._sender, 1),
            "stored": summary(self._stored),
            "wal_megabytes_per_second": summary(self._wal_rate, 1),
        }

    @property
    def _length(self) -> float:
        return max(2.0, _SECONDS * self.part)

    def _throughput(self) -> float:
        return throughput(self.ground, self._length, self.world.path("pgbench"))

    def _with_receiver(self) -> float:
        with received(self.ground, self.world.path("volume"), self.beacon_seconds) as running:
            return self._observed(running)

    def _with_program(self) -> float:
        with received_by_program(self.ground, self.world.path("alone")):
            return self._throughput()

    def _synchronous(self) -> float:
        with received(self.ground, self.world.path("volume"), self.beacon_seconds, synchronous=True):
            return self._throughput()

    def _apart(self, *, receiving: bool) -> float:
        """As on two hosts: the server and pgbench on all cores but one, the receiver on that, its volume in memory."""
        with server_apart(self.ground) as place:
            if not receiving:
                return self._throughput()
            with _in_memory(self.world) as volume, received(self.ground, volume, self.beacon_seconds) as running:
                place(running.process.pid)
                return self._observed(running)

    def _observed(self, running: Receiver) -> float:
        """The throughput; what it costs is noted."""
        ground = self.ground
        sender = int(str(value(ground, "SELECT pid FROM pg_stat_replication")))
        ours = (running.process.pid, *running.children)
        next_segment(ground)
        start = position(ground)
        before = processor_seconds(*ours), processor_seconds(sender)
        found = self._throughput()
        written = position(ground) - start
        archive_all(ground, running)
        status = running.until_safe()
        assert status.worst_rpo_seconds is not None
        self._processor.append((processor_seconds(*ours) - before[0]) / written * 1e9)
        self._sender.append((processor_seconds(sender) - before[1]) / written * 1e9)
        self._stored.append(stored_bytes(ground.archive(running.volume), start) / written)
        self._wal_rate.append(written / self._length / _MEGABYTES)
        self._rpo.append(status.worst_rpo_seconds)
        return found


@contextmanager
def _in_memory(world: World) -> Iterator[Path]:
    """A path for a volume in memory; on the disk if there is too little."""
    if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM:
        with tempfile.TemporaryDirectory(prefix="ovia-bench-", dir=_MEMORY) as folder:
            yield Path(folder) / "volume"
    else:
        yield world.path("volume")
