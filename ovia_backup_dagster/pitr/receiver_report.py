"""Keeps the receiver's report while it runs: troubles begin and end, and what would have been lost is observed.

``receiver_status`` defines the report.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError, VolumeError
from ovia_backup_dagster.pitr.receiver_status import (
    ReceiverState,
    ReceiverStatus,
    ReceiverTrouble,
    read_status,
    with_observation,
    write_status,
)
from ovia_backup_dagster.pitr.wal_source import SlotState

_KEPT = ("system_identifier", "timeline", "archived", "confirmed_at", "confirmed_lsn", "worst")


@dataclass
class ReceiverReport:
    """The report of a running receiver.

    Attributes:
        root: the backup volume.
        status: as it was written last.
        log: receives what begins and ends, line by line.
    """

    root: Path
    status: ReceiverStatus
    log: Callable[[str], None]
    _troubles: dict[str, BackupError] = field(default_factory=dict)
    _since: dict[str, datetime] = field(default_factory=dict)

    @classmethod
    def begin(cls, root: Path, slot: str, beacon_seconds: float, log: Callable[[str], None]) -> ReceiverReport:
        """The report of a receiver that starts. It continues the last one: the time between counts as a risk, too."""
        now, before = datetime.now(UTC), None
        with contextlib.suppress(VolumeError):  # a damaged report is written again
            before = read_status(root)
        status = ReceiverStatus(
            written_at=now,
            started_at=now,
            state=ReceiverState.WAITING,
            pid=os.getpid(),
            host=socket.gethostname(),
            slot=slot,
            beacon_seconds=beacon_seconds,
        )
        if before is not None:
            status = status.model_copy(update={name: getattr(before, name) for name in _KEPT})
        report = cls(root, status, log)
        report.write(ReceiverState.WAITING)
        return report

    def update(self, **values: object) -> None:
        """Set fields of the next report."""
        self.status = self.status.model_copy(update=values)

    def confirm(self, sent_at: datetime, lsn: str) -> None:
        """A beacon came back from our own disk: what was committed before it was sent (UTC) is safe."""
        self._observe(self.status.confirmed_at or sent_at)
        self.update(confirmed_at=sent_at, confirmed_lsn=lsn)

    def slot(self, state: SlotState) -> None:
        """How the slot stands now."""
        self.update(slot_status=state.wal_status, slot_safe_bytes=state.safe_bytes, slot_limit_bytes=state.limit_bytes)

    def write(self, state: ReceiverState | None = None) -> None:
        """Write the report. A full disk does not end the receiver: a report that grows old says the same."""
        self._observe(self.status.confirmed_at)
        troubles = tuple(
            ReceiverTrouble(error=type(error).__name__, account=error.account, fix=error.fix, since=self._since[part])
            for part, error in self._troubles.items()
        )
        free = None
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.root).free
        self.update(written_at=datetime.now(UTC), state=state or self.status.state, troubles=troubles, free_bytes=free)
        with contextlib.suppress(VolumeError):
            write_status(self.root, self.status)

    def trouble(self, part: str, error: BackupError) -> None:
        """A part of the work does not succeed. Each reason is logged once, however often it is tried."""
        before = self._troubles.get(part)
        if before is None or before.account != error.account:
            self.log(str(error))
        if before is None:
            self._since[part] = datetime.now(UTC)
        self._troubles[part] = error

    def well(self, part: str) -> None:
        """A part of the work succeeded."""
        if self._troubles.pop(part, None) is not None:
            self.log(f"{part}: works again")

    def _observe(self, safe_until: datetime | None) -> None:
        if safe_until is not None:
            now = datetime.now(UTC)
            lost = max(0.0, (now - safe_until).total_seconds())
            self.update(worst=with_observation(self.status.worst, lost, now))
