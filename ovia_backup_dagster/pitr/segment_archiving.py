"""Moves finished segments from ``incoming`` to the archive: checked, compressed, published, in order.

A segment is archived if its header says what its name says, every record in it has its checksum, and the records
continue those of the segment before. For the last, the segments that were archived last stay in ``incoming``, from one
on in which a record begins, until their successor has been checked. ``wal_receiver`` decides when.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ovia_backup_dagster.core.files import (
    as_volume_error,
    file_sha256,
    read_small,
    sync_folder,
    unlink,
    write_whole,
)
from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError
from ovia_backup_dagster.pitr.archive import COMPRESSED, ClusterArchive
from ovia_backup_dagster.pitr.segment_files import (
    compress,
    first_record_ends_later,
    has_begun,
    last_page_with_a_record,
    page_of_later_timeline,
    read_header,
    sha256_of_content,
)
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Lsn, Segment, parse_history_name
from ovia_backup_dagster.pitr.wal_records import NO_RECORD, check_records
from ovia_backup_dagster.postgres.programs import Programs


@dataclass(frozen=True, slots=True)
class SegmentArchiver:
    """One cluster's segments.

    Attributes:
        archive: the cluster's files.
        programs: the client programs, of the server's major version.
    """

    archive: ClusterArchive
    programs: Programs
    _known: set[Segment] = field(default_factory=set, init=False)

    def archive_finished(self) -> Iterator[Segment]:
        """Archive each finished segment; yields it once it is published.

        Raises:
            SegmentDamagedError: a segment is not what its name says, or does not continue the one before; it stays in
                ``incoming``, and so do all later ones.
            VolumeError: the volume refused, or is full.
        """
        self._archive_histories()
        # What is already archived, back to the last segment in which a record begins.
        tail: list[Segment] = []
        received = self.archive.received()
        newest = max(received, default=None)
        for segment, path in received.items():
            if path.name.endswith(PARTIAL):
                # The server changed its timeline within this segment: nothing more will be written to it.
                if newest is not None and segment < newest:
                    self.archive_partial(segment)
                continue
            if tail and not _follows(tail[-1], segment):
                self._drop(tail)
            if segment not in self._known and not self._is_archived(segment):
                self.check(segment, *tail)
                compress(path, self.archive.archived(segment))
                yield segment
            if read_header(path).begins_a_record:
                self._drop(tail)
            self._known.add(segment)
            tail.append(segment)

    def _drop(self, tail: list[Segment]) -> None:
        """Remove archived segments from ``incoming``: their records are checked to the end."""
        for segment in tail:
            unlink(self.archive.incoming / self.archive.name(segment))
            self._known.discard(segment)
        tail.clear()

    def forget(self, segment: Segment) -> None:
        """Let a segment that was archived be archived again."""
        self._known.discard(segment)

    def first_unarchived(self) -> Segment | None:
        """The finished segment in ``incoming`` that :meth:`archive_finished` would archive next.

        Raises:
            VolumeError: the folder cannot be read.
        """
        finished = (each for each, path in self.archive.received().items() if not path.name.endswith(PARTIAL))
        return next((segment for segment in finished if segment not in self._known), None)

    def check(self, segment: Segment, *before: Segment, folder: Path | None = None) -> None:
        """Check a finished segment.

        Args:
            segment: the segment.
            before: the segments before it, from one on in which a record begins, if they are still there.
            folder: where it is; ``None`` for ``incoming``.

        Raises:
            SegmentDamagedError: it is not what its name says.
            VolumeError: it cannot be read.
        """
        archive = self.archive
        name, size = archive.name(segment), archive.facts.segment_bytes
        folder = folder or archive.incoming
        path = folder / name
        header = read_header(path)
        wrong = header.unlike_its_name(segment, archive.system_identifier, size)
        if not wrong and (found := path.stat().st_size) != size:
            wrong = f"it has {found:,} bytes"
        if not wrong and (at := page_of_later_timeline(path, segment.timeline, header.page_bytes)) is not None:
            wrong = f"its page at byte {at:,} is of a later timeline"
        if wrong:
            raise SegmentDamagedError(
                f"WAL segment {name} is not what its name says",
                why=wrong,
                fix="dmesg | tail; is another program writing into the folder? then: ovia-backup base-backup",
            )
        # What begins in a segment before was decoded with it, but for the record that ends in this one.
        start = None
        if before:
            page = last_page_with_a_record(folder / archive.name(before[0]), header.page_bytes)
            start = Lsn(before[0].start(size).bytes + page)
        try:
            check_records(self.programs, folder, [archive.name(each) for each in (*before, segment)], start)
        except SegmentDamagedError as error:
            # The largest records fill several segments: this one is checked with the segment in which it ends.
            chain = (*before, segment)
            if not NO_RECORD.search(error.said) or not first_record_ends_later(
                folder / archive.name(chain[0]), len(chain)
            ):
                raise

    def archive_partial(self, segment: Segment) -> None:
        """Archive a segment that will not be finished, with the records that it has: ``NAME.partial.zst``.

        Raises:
            VolumeError: the volume refused, or is full.
        """
        source = self.archive.incoming / f"{self.archive.name(segment)}{PARTIAL}"
        with as_volume_error(f"cannot archive {source.name}"):
            if source.stat().st_size == self.archive.facts.segment_bytes and has_begun(source):
                compress(source, self.archive.wal / f"{source.name}{COMPRESSED}")
            unlink(source)
            sync_folder(source.parent)

    def _is_archived(self, segment: Segment) -> bool:
        target = self.archive.archived(segment)
        if not target.exists():
            return False
        received = self.archive.incoming / self.archive.name(segment)
        if sha256_of_content(target) != file_sha256(received):
            raise SegmentDamagedError(
                f"WAL segment {received.name} was received twice, with different content",
                why="the server was put back to an earlier state, and has written other WAL since",
                fix="ovia-backup base-backup",
            )
        return True

    def _archive_histories(self) -> None:
        incoming, wal = self.archive.incoming, self.archive.wal
        with as_volume_error(f"cannot archive the timelines' history in {wal}"):
            for name in sorted(os.listdir(incoming)):
                if parse_history_name(name) is None:
                    continue
                # It stays in incoming: pg_receivewal would fetch it again.
                if not (wal / name).exists():
                    write_whole(wal / name, read_small(incoming / name))
                    sync_folder(wal)


def _follows(previous: Segment, segment: Segment) -> bool:
    return segment == Segment(previous.timeline, previous.number + 1)
