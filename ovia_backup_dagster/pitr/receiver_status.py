"""What the WAL receiver reports about itself: ``pitr/status.json``, written every second or two. Pure.

``status``, the alerts, the doctor and the container's health check read it; none of them asks the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.files import as_volume_error, read_small, write_whole
from ovia_backup_dagster.core.layout import PITR
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar

_FILENAME = "status.json"
_DAY = timedelta(days=1)
#: The checks of a large segment on a slow disk are far shorter.
_STALE = timedelta(seconds=60)
_HOUR = "%Y-%m-%dT%H:00:00+00:00"


class ReceiverState(StrEnum):
    """What the receiver does."""

    RECEIVING = "receiving"
    WAITING = "waiting"
    STOPPED = "stopped"


class ReceiverTrouble(Sidecar):
    """Why something does not work, as the error says it.

    Attributes:
        error: the error's class.
        account: what and why.
        fix: the next command.
        since: since when this part of the work has not succeeded (UTC), also if for other reasons at first.
    """

    error: str
    account: str
    fix: str
    since: AwareDatetime


class ReceiverStatus(Sidecar):
    """The receiver's report.

    Attributes:
        written_at: when it was written (UTC).
        started_at: when this receiver was started (UTC).
        system_identifier, timeline: of the cluster whose WAL is received; unknown before it has answered.
        archived: the newest segment in the archive.
        confirmed_at: when the newest beacon was sent that came back from our own disk (UTC): whatever was committed
            before is safe here.
        confirmed_lsn: where that beacon was committed.
        worst: the beginning of each hour of the last day (UTC) -> the most seconds of changes that could have been
            lost.
        slot_status, slot_safe_bytes: ``wal_status`` and ``safe_wal_size`` of the slot.
        slot_limit_bytes: how much WAL the server keeps for it, ``max_slot_wal_keep_size``; unknown without a limit.
        free_bytes: the volume's free space.
        troubles: what does not work now.
    """

    written_at: AwareDatetime
    started_at: AwareDatetime
    state: ReceiverState
    pid: int
    host: str
    slot: str
    beacon_seconds: float
    system_identifier: str | None = None
    timeline: int | None = None
    archived: str | None = None
    confirmed_at: AwareDatetime | None = None
    confirmed_lsn: str | None = None
    worst: Mapping[str, float] = Field(default_factory=dict)
    slot_status: str | None = None
    slot_safe_bytes: int | None = None
    slot_limit_bytes: int | None = None
    free_bytes: int | None = None
    troubles: tuple[ReceiverTrouble, ...] = ()

    def rpo_seconds(self, now: datetime) -> float | None:
        """How many seconds of changes would be lost with the server now, at most; ``None`` if unknown."""
        return None if self.confirmed_at is None else max(0.0, (now - self.confirmed_at).total_seconds())

    def is_stale(self, now: datetime) -> bool:
        """Whether the receiver has ended, or hangs: it reports every second or two."""
        return now - self.written_at > _STALE

    @property
    def worst_rpo_seconds(self) -> float | None:
        """The most of the last day."""
        return max(self.worst.values(), default=None)


def with_observation(worst: Mapping[str, float], rpo_seconds: float, now: datetime) -> dict[str, float]:
    """The worst values of each hour of the last day, with one more observation."""
    oldest, hour = (now - _DAY).strftime(_HOUR), now.strftime(_HOUR)
    found = {each: value for each, value in worst.items() if each >= oldest}
    return found | {hour: round(max(rpo_seconds, found.get(hour, 0.0)), 1)}


def status_path(root: Path) -> Path:
    """Where the receiver of a backup volume reports."""
    return root / PITR / _FILENAME


def read_status(root: Path) -> ReceiverStatus | None:
    """The receiver's report; ``None`` if no receiver ever ran here.

    Raises:
        VolumeError: it cannot be read.
    """
    path = status_path(root)
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError):
        try:
            return parse_sidecar(ReceiverStatus, read_small(path), str(path))
        except FileNotFoundError:
            return None


def write_status(root: Path, status: ReceiverStatus) -> None:
    """Publish the report.

    Raises:
        VolumeError: the volume refused, or is full.
    """
    with as_volume_error(f"cannot write {status_path(root)}"):
        write_whole(status_path(root), status.model_dump_json(indent=1).encode())
