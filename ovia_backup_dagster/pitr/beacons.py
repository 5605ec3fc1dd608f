"""Measures the recovery point: a message is committed on the server, and awaited on our own disk.

Between sending and return, the moment of sending is the newest that is known to be safe. ``wal_source`` writes the
message; ``receiver_report`` notes what follows.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from ovia_backup_dagster.core.pitr_errors import SlotLostError
from ovia_backup_dagster.pitr.receiver_report import ReceiverReport
from ovia_backup_dagster.pitr.segment_files import has_begun
from ovia_backup_dagster.pitr.wal_position import Timeline
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.pitr.wal_source import BEACON_PREFIX, Beacon, SourceIdentity, WalSource

#: A beacon returns within a moment, unless something is wrong: for so long it is looked for more often.
_ON_ITS_WAY_SECONDS, _MOMENT_SECONDS = 1.0, 0.2
#: How often the names of tables are recorded; a record is written only if they have changed.
_NAMES_SECONDS = 600.0


@dataclass
class BeaconWatch:
    """The beacons of one connection to a cluster.

    Attributes:
        source: the server.
        identity: of the cluster.
        reader: reads what was received.
        every_seconds: how often to send one.
        report: receives the measurements.
    """

    source: WalSource
    identity: SourceIdentity
    reader: WalReader
    every_seconds: float
    report: ReceiverReport
    _pending: Beacon | None = None
    _sent_at: datetime | None = None
    _sent_clock: float = 0.0
    _next_at: float = 0.0
    _names_at: float = 0.0

    def pause_seconds(self, most: float) -> float:
        """For how many seconds nothing is due; ``most`` at most."""
        now = time.monotonic()
        if self._pending is not None and now < self._sent_clock + _ON_ITS_WAY_SECONDS:
            return min(most, _MOMENT_SECONDS)
        return min(most, max(_MOMENT_SECONDS, self._next_at - now))

    def tick(self) -> bool:
        """Send a beacon if one is due, and see whether the last one has come back.

        Returns whether one was due: only then was everything looked at.

        Raises:
            ServerReplacedError: another cluster answers.
            SlotLostError: the slot is gone, or has lost its WAL.
            BackupError: the server, or our disk, did not answer.
        """
        due = time.monotonic() >= self._next_at
        if due:
            self._next_at = time.monotonic() + self.every_seconds
            if self._pending is None:
                sent_at = datetime.now(UTC)
                self._pending = self.source.send_beacon(self.identity.system_identifier)
                self._sent_at, self._sent_clock = sent_at, time.monotonic()
            # Also while a beacon does not return: then above all.
            self._look_at_slot()
        if time.monotonic() >= self._names_at:
            self._names_at = time.monotonic() + _NAMES_SECONDS
            self.source.record_names(self.reader.archive)
        timeline = self.reader.archive.timelines().get(self.identity.timeline)
        if self._pending is None or self._sent_at is None or timeline is None:
            return due
        if lsn := returned(self.reader, timeline, self._pending):
            self.report.confirm(self._sent_at, lsn)
            self._pending = None
            # If it came late, the next one is due already: it would wait for another interval.
            self._next_at = min(self._next_at, self._sent_clock + self.every_seconds)
        return due

    def _look_at_slot(self) -> None:
        slot, state = self.source.slot, self.source.slot_state()
        if state is not None:
            self.report.slot(state)
        if state is None or state.lost:
            gone = state is None
            raise SlotLostError(
                f"slot {slot} is gone" if gone else f"slot {slot} has lost its WAL",
                why="it was dropped" if gone else "the server removed WAL: max_slot_wal_keep_size",
                fix="ovia-backup wal status; the receiver creates it again when its connection ends",
            )


def returned(reader: WalReader, timeline: Timeline, beacon: Beacon) -> str | None:
    """Where a beacon's transaction was committed, by our own disk; ``None`` if it has not arrived.

    Raises:
        WalGapError, SegmentDamagedError, VolumeError: the WAL since it was sent cannot be read.
    """
    archive, size = reader.archive, reader.archive.facts.segment_bytes
    segment = timeline.segment(beacon.start.bytes // size, size)
    received = archive.received().get(segment)
    # pg_receivewal fills a segment with zeros before it writes what it received.
    if not (received is not None and has_begun(received)) and not archive.archived(segment).exists():
        return None
    payload, found = " ".join(f"{byte:02X}" for byte in beacon.nonce.encode()), False
    records = reader.records(timeline, beacon.start, None, ("LogicalMessage", "Transaction"))
    with contextlib.closing(records):
        for record in records:
            if record.rmgr == "LogicalMessage" and BEACON_PREFIX in record.text and payload in record.text:
                found = True
            elif found and record.xid == beacon.xid and record.text.startswith("COMMIT"):
                return str(record.lsn)
    return None
