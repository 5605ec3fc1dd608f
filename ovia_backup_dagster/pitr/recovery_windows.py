"""Reads what can be recovered from the volume: the files of a cluster become a ``recovery_catalog``.

Nothing is remembered: each call reads the files again. The times are those of the files, which pg_receivewal sets when
it writes the last byte of a segment, and which stay when the segment is compressed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.files import as_volume_error, plain_status, reader
from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError
from ovia_backup_dagster.pitr.archive import ClusterArchive, cluster_archives
from ovia_backup_dagster.pitr.bases import BaseBackup, IncompleteBase, read_bases
from ovia_backup_dagster.pitr.recovery_catalog import Base, RecoveryCatalog
from ovia_backup_dagster.pitr.segment_files import content
from ovia_backup_dagster.pitr.wal_chain import Unfinished
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Lsn, Segment

#: A page of WAL, by default. The server writes each with a header, so a page of zeros was not written.
_PAGE_BYTES = 8192
#: Records begin at multiples of this.
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class StoredWal:
    """A file of the archive.

    Attributes:
        received_at: when its last byte was received (UTC).
        size_bytes: its size on the volume.
    """

    received_at: datetime
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What a cluster's files say.

    Attributes:
        archive: the files.
        catalog: what can be recovered.
        archived: the archived segments.
        incomplete: folders of base backups that cannot be used.
    """

    archive: ClusterArchive
    catalog: RecoveryCatalog
    archived: Mapping[Segment, StoredWal]
    incomplete: tuple[IncompleteBase, ...] = ()

    @property
    def newest(self) -> datetime | None:
        """When WAL was received last (UTC)."""
        parts = [part.received_at for part in self.catalog.unfinished if part.received_at is not None]
        return max([*self.catalog.end_of.values(), *parts], default=None)

    @property
    def archived_bytes(self) -> int:
        """How much of the volume the archived WAL takes."""
        return sum(stored.size_bytes for stored in self.archived.values())


def read_state(archive: ClusterArchive) -> ClusterState:
    """Read a cluster's files.

    Raises:
        VolumeError: they cannot be read.
    """
    # A segment is published in the archive before it leaves ``incoming``, so in this order none is missed; one that
    # leaves after this is looked for again.
    received = archive.received()
    archived = _stored(archive)
    whole = {segment: path for segment, path in received.items() if not path.name.endswith(PARTIAL)}
    parts = {segment: path for segment, path in received.items() if path.name.endswith(PARTIAL)}
    parts |= {each: archive.archived_partial(each) for each in archive.archived_partials() if each not in parts}
    times = {segment: stored.received_at for segment, stored in archived.items()}
    for segment, path in whole.items():
        if segment not in times and (time := _time_of(path) or _time_of(archive.archived(segment))) is not None:
            times[segment] = time
    bases = read_bases(archive)
    catalog = RecoveryCatalog(
        segment_bytes=archive.facts.segment_bytes,
        segments=frozenset(times),
        timelines=archive.timelines(),
        bases=tuple(map(_base, bases.complete)),
        end_of=times,
        unfinished=tuple(
            found
            for segment, path in sorted(parts.items())
            if segment not in times and (found := _unfinished(segment, path, archive.facts.segment_bytes)) is not None
        ),
    )
    return ClusterState(archive, catalog, archived, bases.incomplete)


def read_states(root: Path) -> list[ClusterState]:
    """What the files of all clusters on a volume say; the one that WAL was received from last comes first.

    Raises:
        VolumeError: they cannot be read.
    """
    states = [read_state(archive) for archive in cluster_archives(root)]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(states, key=lambda state: state.newest or never, reverse=True)


def _base(backup: BaseBackup) -> Base:
    manifest = backup.manifest
    return Base(
        name=backup.folder.name,
        timeline=manifest.timeline,
        start=manifest.start,
        end=manifest.end,
        started_at=manifest.started_at,
        finished_at=manifest.finished_at,
        size_bytes=manifest.size_bytes,
        verified=backup.verified,
        drilled_at=backup.drilled_at,
    )


def _stored(archive: ClusterArchive) -> dict[Segment, StoredWal]:
    found = {}
    for segment in archive.archived_segments():
        try:
            status = plain_status(archive.archived(segment))
        except FileNotFoundError:  # pruned meanwhile
            continue
        found[segment] = StoredWal(datetime.fromtimestamp(status.st_mtime, UTC), status.st_size)
    return found


def _time_of(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(plain_status(path).st_mtime, UTC)
    except FileNotFoundError:
        return None


def _unfinished(segment: Segment, path: Path, segment_bytes: int) -> Unfinished | None:
    """How much of an unfinished segment is there; ``None`` if that is nothing, or if it was finished meanwhile."""
    try:
        with as_volume_error(f"cannot read {path}", passing=FileNotFoundError):
            written = _written(path) if path.name.endswith(PARTIAL) else _written_in_archive(path)
    except (FileNotFoundError, SegmentDamagedError):  # the verification of the archive reports damage
        return None
    if written == 0:
        return None
    start = segment.start(segment_bytes)
    return Unfinished(segment, Lsn(start.bytes + min(written, segment_bytes)), _time_of(path))


def _written(path: Path) -> int:
    """How many bytes of a segment were written; pg_receivewal fills the rest with zeros before it begins."""
    with reader(path) as file:

        def page(number: int) -> bytes:
            file.seek(number * _PAGE_BYTES)
            return file.read(_PAGE_BYTES)

        written, beyond = 0, -(-file.seek(0, 2) // _PAGE_BYTES)
        while written < beyond:
            middle = (written + beyond) // 2
            if _end_of(page(middle)):
                written = middle + 1
            else:
                beyond = middle
        return (written - 1) * _PAGE_BYTES + _end_of(page(written - 1)) if written else 0


def _written_in_archive(path: Path) -> int:
    end = at = 0
    for block in content(path):
        if used := _end_of(block):
            end = at + used
        at += len(block)
    return end


def _end_of(block: bytes) -> int:
    """The position after the last record in a block: records are padded with zeros."""
    return -(-len(block.rstrip(b"\0")) // _ALIGNMENT) * _ALIGNMENT
