"""Catalogs of point-in-time recovery, and archives on a volume: small segments, readable positions and times.

Segments are 1 MB. A position is written as a segment's number and a part of it: ``at(3.5)`` is in the middle of
segment 3. A day of the tests has 24 segments, one received at the end of each hour, beginning with ``DAY_ZERO``.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.core.manifest import FileFacts
from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts
from ovia_backup_dagster.pitr.base_manifest import BASE, BASE_VERDICT, BaseManifest, BaseVerdict, sealed
from ovia_backup_dagster.pitr.bases import BASE_DRILL, BaseDrill
from ovia_backup_dagster.pitr.recovery_catalog import Base, RecoveryCatalog
from ovia_backup_dagster.pitr.segment_files import compress
from ovia_backup_dagster.pitr.wal_chain import Unfinished
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Lsn, Segment, Switch, Timeline, history_name

SIZE = 1024 * 1024
IDENTIFIER = "7300000000000000001"
DAY_ZERO = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def at(segment: float) -> Lsn:
    """A position: the segment's number and a part of it."""
    return Lsn(int(segment * SIZE))


def hour(number: float) -> datetime:
    """The instant at which this position was written."""
    return DAY_ZERO + number * HOUR


def segments(timeline: int, *numbers: int) -> frozenset[Segment]:
    return frozenset(Segment(timeline, number) for number in numbers)


def forked(number: int, *switches: tuple[int, float]) -> Timeline:
    """A timeline, from its ancestors and where each ended."""
    return Timeline(number, tuple(Switch(ancestor, at(position)) for ancestor, position in switches))


def base(
    start: float,
    end: float | None = None,
    *,
    timeline: int = 1,
    verified: bool | None = True,
    drilled: bool = False,
    name: str = "",
) -> Base:
    """A base backup that took a quarter of an hour."""
    end = start + 0.25 if end is None else end
    return Base(
        name=name or f"{hour(start):%Y-%m-%d_%H%M%S}",
        timeline=timeline,
        start=at(start),
        end=at(end),
        started_at=hour(start),
        finished_at=hour(end),
        size_bytes=1_000_000,
        verified=verified,
        drilled_at=hour(end) + HOUR if drilled else None,
    )


def catalog_with(
    *bases: Base,
    whole: Iterable[Segment] = (),
    timelines: Iterable[Timeline] = (),
    unfinished: Iterable[tuple[int, float]] = (),
    times: bool = True,
) -> RecoveryCatalog:
    """A catalog.

    Args:
        bases: its base backups.
        whole: the segments that are there.
        timelines: besides the first.
        unfinished: timeline and position of each segment of which there is a part; it was received at that position's
            instant.
        times: whether it is known when segments were received.
    """
    found = frozenset(whole)
    return RecoveryCatalog(
        segment_bytes=SIZE,
        segments=found,
        timelines={1: Timeline(1), **{each.number: each for each in timelines}},
        bases=bases,
        end_of={segment: hour(segment.number + 1) for segment in found} if times else {},
        unfinished=tuple(
            Unfinished(Segment(timeline, int(position)), at(position), hour(position) if times else None)
            for timeline, position in unfinished
        ),
    )


def archive_on(volume: Path, identifier: str = IDENTIFIER) -> ClusterArchive:
    """An empty archive."""
    archive = ClusterArchive(volume, identifier)
    archive.create(ClusterFacts(system_identifier=identifier, segment_bytes=SIZE, major=16))
    return archive


def segment_content(segment: Segment, *, written: float = 1.0, header_timeline: int | None = None) -> bytes:
    """A segment's bytes: page headers as PostgreSQL writes them, and a part of them filled.

    Args:
        segment: the segment.
        written: how much of it was written; the rest is zeros.
        header_timeline: the timeline in the header, if it is the parent's.
    """
    start = segment.start(SIZE).bytes
    head = struct.pack(
        "<HHIQIIQII", 0xD113, 2, header_timeline or segment.timeline, start, 0, 0, int(IDENTIFIER), SIZE, 8192
    )
    pages = bytearray()
    while len(pages) < written * SIZE:
        short = struct.pack("<HHIQII", 0xD113, 0, segment.timeline, start + len(pages), 0, 0)
        pages += (short if pages else head).ljust(8192, b"w")
    return bytes(pages[: int(written * SIZE)]).ljust(SIZE, b"\0")


def put_segment(
    archive: ClusterArchive, segment: Segment, received_at: datetime | None = None, *, content: bytes | None = None
) -> Path:
    """Archive a whole segment."""
    source = archive.incoming / archive.name(segment)
    source.write_bytes(segment_content(segment) if content is None else content)
    _date(source, received_at or hour(segment.number + 1))
    compress(source, archive.archived(segment))
    source.unlink()
    return archive.archived(segment)


def put_empty_segments(archive: ClusterArchive, *wanted: Segment) -> None:
    """Files that have the names and times of archived segments, and no content: for what looks at nothing else."""
    for segment in wanted:
        path = archive.archived(segment)
        path.write_bytes(b"12345")
        _date(path, hour(segment.number + 1))


def put_unfinished(archive: ClusterArchive, timeline: int, position: float, *, archived: bool = False) -> Path:
    """A segment that is being received, or was left unfinished at a switch of timelines."""
    segment = Segment(timeline, int(position))
    path = archive.incoming / f"{archive.name(segment)}{PARTIAL}"
    path.write_bytes(segment_content(segment, written=position - segment.number))
    _date(path, hour(position))
    if archived:
        compress(path, archive.archived_partial(segment))
        path.unlink()
        return archive.archived_partial(segment)
    return path


def put_history(archive: ClusterArchive, timeline: Timeline) -> Path:
    """A history file, as PostgreSQL writes it."""
    path = archive.wal / history_name(timeline.number)
    lines = (f"{switch.timeline}\t{switch.at}\tno recovery target specified\n" for switch in timeline.ancestors)
    path.write_text("\n".join(lines))
    return path


def put_base(archive: ClusterArchive, of: Base) -> Path:
    """A base backup's folder, with statements; its data is a few bytes."""
    folder = archive.base / of.name
    folder.mkdir(mode=0o700)
    files = {"base.tar": b"data" * 100, "backup_manifest": b"{}"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = BaseManifest(
        system_identifier=archive.system_identifier,
        server_version="16.15",
        major=16,
        bootstrap_superuser="postgres",
        timeline=of.timeline,
        start_lsn=str(of.start),
        end_lsn=str(of.end),
        started_at=of.started_at,
        finished_at=of.finished_at,
        seconds=1.0,
        compression="none",
        client_version="16.15",
        files={name: FileFacts.of(content) for name, content in files.items()},
        data_bytes=400,
        made_by="the tests",
    )
    text = sealed(manifest)
    (folder / BASE).write_bytes(text)
    sha256 = hashlib.sha256(text).hexdigest()
    if of.verified is not None:
        verdict = BaseVerdict(
            base_sha256=sha256,
            verdict="good" if of.verified else "bad",
            checked_at=of.finished_at,
            files=1,
            bytes=400,
            seconds=1.0,
            made_by="the tests",
        )
        (folder / BASE_VERDICT).write_text(verdict.to_json())
    if of.drilled_at is not None:
        (folder / BASE_DRILL).write_text(BaseDrill(base_sha256=sha256, drilled_at=of.drilled_at).to_json())
    return folder


def _date(path: Path, time: datetime) -> None:
    os.utime(path, (time.timestamp(), time.timestamp()))
