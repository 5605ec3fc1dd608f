"""How much of the volume the recovery window will need, from what arrives and what is kept. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from ovia_backup_dagster.pitr.recovery_catalog import RecoveryCatalog

_DAY = timedelta(days=1)
#: Besides the bases that ended within the window: the one before it, and one that is being made.
_MORE_BASES = 2


@dataclass(frozen=True, slots=True)
class RoomForecast:
    """The room for a recovery window.

    Attributes:
        window: how far back any instant is to be recoverable.
        wal_bytes_per_day: how much the archive grows; 0 if unknown.
        needed_bytes: what WAL and base backups will take together at most; ``None`` if that is unknown.
        stored_bytes: what they take now.
        free_bytes: the volume's free space.
    """

    window: timedelta
    wal_bytes_per_day: float
    needed_bytes: int | None
    stored_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool | None:
        """Whether there is room; ``None`` if that is unknown."""
        return None if self.needed_bytes is None else self.needed_bytes <= self.stored_bytes + self.free_bytes


def needed_room(base_bytes: float, wal_bytes_per_day: float, window: timedelta, base_period: timedelta) -> int:
    """How many bytes WAL and base backups take together at most.

    The oldest base that is kept may be older than the window by the time between two bases, and so may its WAL.

    Args:
        base_bytes: the size of a base backup.
        wal_bytes_per_day: how much the archive grows.
        window: how far back any instant is to be recoverable.
        base_period: the longest time between two base backups.
    """
    bases = math.ceil(window / base_period) + _MORE_BASES
    return math.ceil(bases * base_bytes + wal_bytes_per_day * ((window + base_period) / _DAY))


def forecast_room(
    catalog: RecoveryCatalog,
    *,
    window: timedelta,
    base_period: timedelta,
    wal_bytes_per_day: float,
    stored_bytes: int,
    free_bytes: int,
) -> RoomForecast:
    """What the window will need once it is full, if enough is known.

    Args:
        catalog: whose newest base backup says how large the next will be.
        window: how far back any instant is to be recoverable.
        base_period: the longest time between two base backups.
        wal_bytes_per_day, stored_bytes, free_bytes: as in :class:`RoomForecast`.
    """
    needed = None
    if catalog.good_bases and wal_bytes_per_day:
        newest = max(catalog.good_bases, key=lambda base: base.started_at)
        needed = needed_room(newest.size_bytes, wal_bytes_per_day, window, base_period)
    return RoomForecast(window, wal_bytes_per_day, needed, stored_bytes, free_bytes)
