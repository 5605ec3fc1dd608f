"""Which WAL there is to read, and where in it an instant is: found by the segments' file times, and so only roughly.

A segment keeps the time of its last write when it is archived. The readers compare commit times themselves; a wrong
file time costs them time, and never a commit. What can be recovered also depends on base backups, and is not decided
here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from ovia_backup_dagster.core.files import as_volume_error, plain_status
from ovia_backup_dagster.core.pitr_errors import WalGapError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.segment_files import has_begun
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline, newest_timeline


@dataclass(frozen=True, slots=True)
class WalRange:
    """The newest WAL of a timeline without a hole.

    Attributes:
        timeline: the timeline.
        first: the number of its first segment.
        written: when each segment was last written (UTC), from the first on.
        segment_bytes: the size of a segment.
    """

    timeline: Timeline
    first: int
    written: tuple[datetime, ...]
    segment_bytes: int

    @property
    def start(self) -> Lsn:
        """The position of its first byte."""
        return self.segment_start(0)

    @property
    def last_start(self) -> Lsn:
        """The position at which its last segment begins."""
        return self.segment_start(len(self.written) - 1)

    def segment_start(self, index: int) -> Lsn:
        """The position at which a segment begins; ``index`` counts from the first segment, and may lie beyond them."""
        return Lsn((self.first + min(max(index, 0), len(self.written) - 1)) * self.segment_bytes)

    def before(self, instant: datetime) -> Lsn:
        """A position that is, by the file times, before everything that was written at an instant (UTC).

        The segment before the one that has the instant is included: file times are those of another clock.
        """
        earlier = [index for index, written in enumerate(self.written) if written < instant]
        return self.segment_start(earlier[-1] if earlier else 0)

    def earlier(self, position: Lsn, segments: int) -> Lsn:
        """Where the segment begins that is so many before the one of a position; at least the range's start."""
        return max(self.start, Lsn(max(0, position.bytes // self.segment_bytes - segments) * self.segment_bytes))


def last_received(archives: Iterable[ClusterArchive]) -> ClusterArchive | None:
    """The archive whose WAL was written last; ``None`` if none has WAL.

    Raises:
        VolumeError: the volume cannot be read.
    """
    newest: dict[ClusterArchive, datetime] = {}
    for archive in archives:
        with contextlib.suppress(WalGapError):
            wal = newest_range(archive, newest_timeline(archive.timelines().values()))
            newest[archive] = wal.written[-1]
    return max(newest, key=newest.__getitem__, default=None)


def newest_range(archive: ClusterArchive, timeline: Timeline) -> WalRange:
    """The WAL of a timeline back from its newest segment, up to a hole.

    Raises:
        WalGapError: there is no WAL of this timeline.
        VolumeError: the volume cannot be read.
    """
    size = archive.facts.segment_bytes
    there = {segment: archive.archived(segment) for segment in archive.archived_segments()}
    there |= {segment: path for segment, path in archive.received().items() if has_begun(path)}
    numbers = sorted({segment.number for segment in there if timeline.segment(segment.number, size) == segment})
    if not numbers:
        raise WalGapError(
            f"there is no WAL of timeline {timeline.number} of cluster {archive.system_identifier}",
            why="nothing was received yet, or it was removed",
            fix="ovia-backup wal status",
        )
    written: list[datetime] = []
    number = numbers[-1]
    while (path := there.get(timeline.segment(number, size))) is not None:
        with as_volume_error(f"cannot read {path}"):
            try:
                status = plain_status(path)
            except FileNotFoundError:  # it was archived meanwhile
                status = plain_status(archive.archived(timeline.segment(number, size)))
        written.append(datetime.fromtimestamp(status.st_mtime, UTC))
        number -= 1
    return WalRange(timeline, number + 1, tuple(reversed(written)), size)
