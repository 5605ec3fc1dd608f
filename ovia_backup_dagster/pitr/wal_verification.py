"""Reads a cluster's archive back, and names what is missing or damaged in it: segments, history files, base backups.

Each byte of a segment's file is compared with its seal, its content is decompressed, and its header is compared with
its name. On demand, pg_waldump decodes every record, too. The content of base backups is read by
``base_verification``; this module checks only that their files exist. Nothing is changed.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError, VolumeError
from ovia_backup_dagster.core.files import as_volume_error, exists, plain_status, scratch
from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.bases import read_bases
from ovia_backup_dagster.pitr.recovery_catalog import Hole, RecoveryCatalog
from ovia_backup_dagster.pitr.recovery_windows import read_state
from ovia_backup_dagster.pitr.segment_files import SegmentHeader, content, decompress, header_in, require_sealed
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Timeline, history_name
from ovia_backup_dagster.pitr.wal_records import AT_ONCE, check_records, require_program
from ovia_backup_dagster.postgres.programs import Programs

#: Progress is reported after so many segments.
_REPORTED = 500
_NO_RECORD = re.compile(r"could not find a valid record after")
_POSITION = re.compile(r"\b[0-9A-F]{1,8}/[0-9A-F]{1,8}\b")


@dataclass(frozen=True, slots=True)
class ArchiveFinding:
    """Something that is wrong.

    Attributes:
        name: the segment, the history file or the base backup; of a hole, its first segment.
        text: what is wrong.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class ArchiveVerification:
    """What was found.

    Attributes:
        archive: the cluster's files.
        segments: how many archived segments were read.
        wal_bytes: how many bytes of WAL they have.
        bases: how many base backups there are.
        records: whether every record was decoded.
        findings: what is wrong.
    """

    archive: ClusterArchive
    segments: int
    wal_bytes: int
    bases: int
    records: bool
    findings: tuple[ArchiveFinding, ...]


def verify_archive(
    archive: ClusterArchive, programs: Programs | None = None, *, log: Callable[[str], None] = lambda _: None
) -> ArchiveVerification:
    """Read a cluster's archive back. What is pruned meanwhile is no finding.

    Args:
        archive: the cluster's files.
        programs: the client programs, to decode every record as well; segments are decompressed into a temporary
            folder for that, a few at a time.
        log: receives progress.

    Raises:
        ProgramMissingError, VersionMismatchError: there is no pg_waldump that reads this WAL.
        VolumeError: the folders cannot be read, or there is no room for decompressed segments (272 MB).
    """
    if programs is not None:
        require_program(programs, archive.facts.major)
    findings = list[ArchiveFinding]()
    catalog = _catalog(archive, findings)
    timelines = {each.number: each for each in catalog.all_timelines} if catalog is not None else {}
    sound: dict[Segment, SegmentHeader] = {}
    wanted = archive.archived_segments()
    for number, segment in enumerate(wanted, 1):
        try:
            sound[segment] = _read(archive, segment, timelines.get(segment.timeline))
        except FileNotFoundError:
            continue
        except BackupError as error:
            findings.append(ArchiveFinding(archive.name(segment), error.reason or error.account))
        if number % _REPORTED == 0:
            log(f"{number:,} of {len(wanted):,} segments read")
    findings += _unfinished(archive)
    if programs is not None:
        findings += _records(archive, programs, sound, log)
    if catalog is not None:
        findings += (_missing(archive, hole) for hole in catalog.holes)
        findings += _unknown_timelines(catalog)
        findings += _unusable(catalog)
    findings += _bases(archive)
    return ArchiveVerification(
        archive,
        segments=len(wanted),
        wal_bytes=len(sound) * archive.facts.segment_bytes,
        bases=len(archive.base_folders()),
        records=programs is not None,
        findings=tuple(dict.fromkeys(findings)),
    )


def _catalog(archive: ClusterArchive, findings: list[ArchiveFinding]) -> RecoveryCatalog | None:
    try:
        return read_state(archive).catalog
    except VolumeError as error:
        findings.append(ArchiveFinding(archive.system_identifier, f"what can be recovered is unknown: {error.account}"))
    return None


def _read(archive: ClusterArchive, segment: Segment, timeline: Timeline | None) -> SegmentHeader:
    """Read a segment whole; returns its header.

    Raises:
        FileNotFoundError: it was removed meanwhile.
        SegmentDamagedError: it is damaged, or is not what its name says.
        VolumeError: it cannot be read.
    """
    path, size = archive.archived(segment), archive.facts.segment_bytes
    require_sealed(path)
    header, length = _content(path)
    wrong = header.unlike_its_name(segment, archive.system_identifier, size)
    if not wrong and length != size:
        wrong = f"it has {length:,} bytes"
    if not wrong and timeline is not None and header.timeline != timeline.of(segment.start(size)):
        wrong = f"it is of timeline {header.timeline}"
    if wrong:
        raise SegmentDamagedError(f"{path} is not what its name says", why=wrong)
    return header


def _content(path: Path) -> tuple[SegmentHeader, int]:
    header, length = None, 0
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError):
        for block in content(path):
            header = header or header_in(block, path)
            length += len(block)
    return header or header_in(b"", path), length


def _unfinished(archive: ClusterArchive) -> Iterator[ArchiveFinding]:
    for segment in archive.archived_partials():
        path, size = archive.archived_partial(segment), archive.facts.segment_bytes
        try:
            require_sealed(path)
            header, _ = _content(path)
        except FileNotFoundError:
            continue
        except BackupError as error:
            yield ArchiveFinding(path.name, error.reason or error.account)
        else:
            if wrong := header.unlike_its_name(segment, archive.system_identifier, size):
                yield ArchiveFinding(path.name, wrong)


def _missing(archive: ClusterArchive, hole: Hole) -> ArchiveFinding:
    first = Segment(hole.before.timeline, hole.after.number + 1) if hole.after is not None else None
    last = Segment(hole.before.timeline, hole.before.number - 1)
    if hole.after is None or first is None:
        return ArchiveFinding(archive.name(last), f"missing before {archive.name(hole.before)}")
    between = f"between {archive.name(hole.after)} and {archive.name(hole.before)}"
    if first == last:
        return ArchiveFinding(archive.name(first), f"missing {between}")
    return ArchiveFinding(archive.name(first), f"missing, as all to {archive.name(last)}, {between}")


def _unknown_timelines(catalog: RecoveryCatalog) -> Iterator[ArchiveFinding]:
    """Without its history file, recovery does not find what a timeline goes on from."""
    for timeline in catalog.all_timelines:
        if timeline.number not in catalog.timelines:
            yield ArchiveFinding(history_name(timeline.number), "missing: what its timeline goes on from is unknown")


def _bases(archive: ClusterArchive) -> Iterator[ArchiveFinding]:
    found = read_bases(archive)
    for folder in found.incomplete:
        yield ArchiveFinding(folder.folder.name, f"no base backup: {folder.why}")
    for base in found.complete:
        for name, facts in base.manifest.files.items():
            try:
                size = plain_status(base.folder / name).st_size
            except FileNotFoundError:
                if base.folder.exists():
                    yield ArchiveFinding(base.folder.name, f"{name} is missing")
            except VolumeError as error:
                yield ArchiveFinding(base.folder.name, error.account)
            else:
                if size != facts.size_bytes:
                    yield ArchiveFinding(base.folder.name, f"{name} has {size:,} of {facts.size_bytes:,} bytes")
        if base.verified is False:
            yield ArchiveFinding(base.folder.name, "its verification found it to be bad")


def _unusable(catalog: RecoveryCatalog) -> Iterator[ArchiveFinding]:
    for base in catalog.good_bases:
        if not catalog.usable(base):
            yield ArchiveFinding(base.name, f"cannot be recovered: {catalog.windows_of(base)[0].why_it_ends}")


def _records(
    archive: ClusterArchive,
    programs: Programs,
    sound: Mapping[Segment, SegmentHeader],
    log: Callable[[str], None],
) -> Iterator[ArchiveFinding]:
    """Decode the records of all segments, a few at a time, also those that begin in one and end in the next."""
    reported = done = 0
    for batch in _batches(sound):
        with _decompressed(archive, batch) as (folder, there):
            yield from _damaged(archive, programs, folder, there, sound)
        done += len(batch)
        if done - reported >= _REPORTED:
            log(f"the records of {done:,} of {len(sound):,} segments decoded")
            reported = done


def _batches(sound: Mapping[Segment, SegmentHeader]) -> Iterator[list[Segment]]:
    """Segments that follow one another. A batch begins with the last segment of the one before.

    The largest records fill whole segments, and pg_waldump needs a whole record to begin with. So a batch ends with a
    segment in which a record begins.
    """
    batch: list[Segment] = []
    for segment in sorted(sound):
        if batch and segment != Segment(batch[-1].timeline, batch[-1].number + 1):
            yield batch
            batch = []
        batch.append(segment)
        if len(batch) > AT_ONCE and sound[segment].begins_a_record:
            yield batch
            batch = [segment]
    if batch:
        yield batch


@contextlib.contextmanager
def _decompressed(archive: ClusterArchive, batch: Sequence[Segment]) -> Iterator[tuple[Path, list[Segment]]]:
    """A folder with segments, and those of them that were not pruned meanwhile."""
    there = list[Segment]()
    # Not in the cluster's folder: a receiver that starts sweeps its own temporary folders there.
    parent = Path(tempfile.gettempdir())
    with scratch(parent, "TMPDIR"), tempfile.TemporaryDirectory(prefix="ovia-wal-", dir=parent) as name:
        for segment in batch:
            source = archive.archived(segment)
            try:
                decompress(source, Path(name) / archive.name(segment))
            except VolumeError:
                if exists(source):
                    raise
                there.clear()  # pruned meanwhile, and pruning removes the oldest first
            else:
                there.append(segment)
        yield Path(name), there


def _damaged(
    archive: ClusterArchive,
    programs: Programs,
    folder: Path,
    segments: Sequence[Segment],
    sound: Mapping[Segment, SegmentHeader],
) -> Iterator[ArchiveFinding]:
    """The segments with a damaged record. pg_waldump stops at the first, so it is run again behind it."""
    while segments := segments[_first_that_begins(segments, sound) :]:
        try:
            check_records(programs, folder, [archive.name(segment) for segment in segments])
        except SegmentDamagedError as error:
            rest = segments[1:]
            if _NO_RECORD.search(error.said) and _first_that_begins(rest, sound) == len(rest):
                return  # the record that begins here may end in a segment that is not here
            damaged = _place(error.said, segments, archive.facts.segment_bytes)
            yield ArchiveFinding(archive.name(damaged), error.reason)
            segments = [each for each in segments if each > damaged]
        else:
            return


def _first_that_begins(segments: Sequence[Segment], sound: Mapping[Segment, SegmentHeader]) -> int:
    """The place of the first segment in which a record begins; the number of segments if there is none."""
    return next((at for at, segment in enumerate(segments) if sound[segment].begins_a_record), len(segments))


def _place(said: str, segments: Sequence[Segment], segment_bytes: int) -> Segment:
    """The segment of the last position that pg_waldump names: that of the damaged record, or page."""
    positions = _POSITION.findall(said)
    number = Lsn.parse(positions[-1]).bytes // segment_bytes if positions else segments[0].number
    return next((segment for segment in segments if segment.number == number), segments[0])
