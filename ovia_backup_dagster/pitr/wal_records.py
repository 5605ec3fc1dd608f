"""Reads the records of received WAL with pg_waldump, which checks the CRC of each record that it decodes.

What the records mean for people, such as commits and drops, is for the callers. Segments that are compressed are
decompressed into a temporary folder, a few at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ovia_backup_dagster.core.errors import VersionMismatchError
from ovia_backup_dagster.core.files import reader, scratch
from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError, WalGapError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.segment_files import SegmentHeader, content, decompress, has_begun, header_in, read_header
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Lsn, Segment, Timeline
from ovia_backup_dagster.postgres.programs import Programs, capture
from ovia_backup_dagster.postgres.programs import start as start_program

#: As many segments are decompressed at a time: 256 MB.
AT_ONCE = 16
#: pg_waldump reads the files of one timeline: all are staged under the names of this one.
_STAGED_TIMELINE = 1
_PAGE_BYTES = 8192
_RECORD = re.compile(
    rb"rmgr: (?P<rmgr>\w+)\s+len \(rec/tot\):\s*\d+/\s*(?P<bytes>\d+), tx:\s+(?P<xid>\d+), "
    rb"lsn: (?P<lsn>\w+/\w+), prev \w+/\w+, desc: (?P<text>.*)"
)
#: What pg_waldump reports where the WAL that was received ends: the rest of the last segment is zeros.
_END = re.compile(
    r"invalid record length at|could not find a valid record after|invalid magic number 0000|"
    r"missing contrecord|there is no contrecord flag|could not find file|record with incorrect prev-link|"
    r"unexpected pageaddr"
)

#: pg_waldump found no record from the start on.
NO_RECORD = re.compile(r"could not find a valid record after")


@dataclass(frozen=True, slots=True)
class WalRecord:
    """One record.

    Attributes:
        rmgr: the resource manager that wrote it, such as ``Transaction``.
        xid: its transaction; 0 for none.
        lsn: where it begins.
        text: pg_waldump's description.
        bytes: its length.
    """

    rmgr: str
    xid: int
    lsn: Lsn
    text: str
    bytes: int

    def end(self, segment_bytes: int) -> Lsn:
        """The position at which the next record may begin: records are aligned, and pages have headers."""
        at, left = self.lsn.bytes, self.bytes
        if self.rmgr == "XLOG" and self.text.startswith("SWITCH"):
            at, left = (at // segment_bytes + 1) * segment_bytes, 0
        while left:
            part = min(left, _PAGE_BYTES - at % _PAGE_BYTES)
            at, left = at + part, left - part
            if left:
                at += _page_header(at, segment_bytes)
        at = (at + 7) // 8 * 8
        return Lsn(at if at % _PAGE_BYTES else at + _page_header(at, segment_bytes))


def _page_header(at: int, segment_bytes: int) -> int:
    """The length of the header of the page that begins there."""
    return 24 if at % segment_bytes else 40


def parse_record(line: str) -> WalRecord | None:
    """The record in a line of pg_waldump; ``None`` for any other line."""
    match = _RECORD.match(line.encode("utf-8", "surrogateescape"))
    return _record(match) if match else None


def _record(match: re.Match[bytes]) -> WalRecord:
    rmgr, text = match["rmgr"].decode(), match["text"].decode("utf-8", "replace")
    return WalRecord(rmgr, int(match["xid"]), Lsn.parse(match["lsn"].decode()), text, int(match["bytes"]))


def require_program(programs: Programs, major: int) -> None:
    """Require the pg_waldump of the server's major version: no other reads its WAL.

    Raises:
        ProgramMissingError: it is not installed.
        VersionMismatchError: it is of another major version.
    """
    if (ours := programs.major("pg_waldump")) != major:
        raise VersionMismatchError(
            f"pg_waldump {ours} cannot read the WAL of PostgreSQL {major}",
            why="WAL has another format in each major version",
            fix=f"install the programs of PostgreSQL {major} and set PG_BIN_DIR to their folder",
        )


def check_records(programs: Programs, folder: Path, names: Sequence[str], start: Lsn | None = None) -> None:
    """Decode every record of finished segments.

    Args:
        programs: the client programs.
        folder: where the segments are.
        names: their names, in order without a hole. The record that begins in one and ends in the next is checked, too.
        start: where to begin in the first one, at the start of a page; ``None`` for its start.

    Raises:
        SegmentDamagedError: a record has a wrong checksum, or is not one that PostgreSQL writes.
    """
    ends = dict.fromkeys((names[0], names[-1]))
    begin = () if start is None else (f"--start={start}",)
    command = (programs.path("pg_waldump"), "--quiet", f"--path={folder}", *begin, *ends)
    code, _, stderr = capture(command)
    if code != 0:
        said = stderr.strip().splitlines()[-1] if stderr.strip() else f"pg_waldump ended with code {code}"
        raise SegmentDamagedError(
            f"WAL segment {names[-1]} is damaged",
            why="a record in it has a wrong checksum: the disk altered it, or it was not received whole",
            said=said,
            fix="dmesg | tail; then ovia-backup wal status says what can still be recovered",
        )


@dataclass(frozen=True, slots=True)
class WalReader:
    """Reads the WAL of one cluster.

    Attributes:
        archive: the cluster's files.
        programs: the client programs.
        scratch: the folder for decompressed segments; they are removed afterwards.
    """

    archive: ClusterArchive
    programs: Programs
    scratch: Path | None = None

    def records(
        self,
        timeline: Timeline,
        start: Lsn,
        end: Lsn | None = None,
        rmgrs: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> Generator[WalRecord]:
        """The records that begin in a range, in the order of the WAL.

        Args:
            timeline: the timeline to follow.
            start: where to begin; the first record after it counts.
            end: where to stop; ``None`` for everything that was received.
            rmgrs: only records of these resource managers.
            options: more options of pg_waldump.

        Raises:
            WalGapError: a segment in the range is missing.
            SegmentDamagedError: one is damaged.
            VolumeError: one cannot be read.
        """
        with contextlib.closing(self.matches(_RECORD, timeline, start, end, rmgrs, options)) as matches:
            yield from map(_record, matches)

    def matches(
        self,
        pattern: re.Pattern[bytes],
        timeline: Timeline,
        start: Lsn,
        end: Lsn | None = None,
        rmgrs: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> Generator[re.Match[bytes]]:
        """Like :meth:`records`, but pg_waldump's lines, for callers that read millions of them.

        Args:
            pattern: lines that do not match it from their beginning on are left out. It has a group ``lsn``.

        Raises:
            WalGapError, SegmentDamagedError, VolumeError: as :meth:`records`.
        """
        require_program(self.programs, self.archive.facts.major)
        size = self.archive.facts.segment_bytes
        received, archived = self._begun(), set(self.archive.archived_segments())
        first = start.bytes // size
        last = max((segment.number for segment in (*received, *archived)), default=first)
        if end is not None:
            last = min(last, max(first, (end.bytes - 1) // size))
        for number in range(first, last + 1, AT_ONCE):
            numbers = range(number, min(number + AT_ONCE, last + 1))
            inside = [timeline.segment(each, size) for each in numbers]
            for segment in inside:
                if segment not in received and segment not in archived:
                    raise self._gap(segment)
            wanted = [*inside, *self._up_to_a_record(timeline, numbers[-1] + 1)]
            stop = Lsn((numbers[-1] + 1) * size)
            begin, limit = max(start, Lsn(number * size)), min(end, stop) if end is not None else stop
            with self._staged(wanted) as folder:
                # After a switch to the next segment, the rest of the old segment is zeros: reading cannot begin there.
                while begin < limit and not (
                    yield from self._dumped(
                        folder,
                        wanted,
                        pattern,
                        begin,
                        limit,
                        [f"--end={wanted[-1].end(size)}", *(f"--rmgr={rmgr}" for rmgr in rmgrs), *options],
                        ends_early=inside[-1] in received or wanted[-1] not in archived,
                    )
                ):
                    begin = Lsn((begin.bytes // size + 1) * size)

    def _up_to_a_record(self, timeline: Timeline, number: int) -> list[Segment]:
        """The segments from one on, up to the first in which a record begins or that was not received.

        The last record before them may end in any of them.
        """
        found: list[Segment] = []
        while True:
            found.append(segment := timeline.segment(number + len(found), self.archive.facts.segment_bytes))
            header = self._header(segment)
            if header is None or header.begins_a_record:
                return found

    def _header(self, segment: Segment) -> SegmentHeader | None:
        if segment in self._begun():
            for path in self._received_as(segment):
                with contextlib.suppress(FileNotFoundError):
                    return read_header(path)
        archived = self.archive.archived(segment)
        return header_in(next(content(archived)), archived) if archived.exists() else None

    def _dumped(
        self,
        folder: Path,
        segments: Sequence[Segment],
        pattern: re.Pattern[bytes],
        start: Lsn,
        stop: Lsn,
        options: Sequence[str],
        *,
        ends_early: bool,
    ) -> Generator[re.Match[bytes], None, bool]:
        """The matches; returns whether there was a place to begin at."""
        # pg_waldump does not print a record that begins before its --end and ends after it. So it reads on, and what
        # begins after ``stop`` is left out here. Positions are compared as the text that pg_waldump prints, which is
        # much faster: the longer is the greater.
        last = f"{stop.bytes >> 32:X}/{stop.bytes & 0xFFFFFFFF:08X}".encode()
        length = len(last)
        command = (
            self.programs.path("pg_waldump"),
            f"--path={folder}",
            f"--timeline={_STAGED_TIMELINE}",
            f"--start={start}",
            *options,
        )
        with start_program(command, pipe_stdout=True) as child:
            assert child.process.stdout is not None
            for line in child.process.stdout:
                if (match := pattern.match(line)) is not None:
                    lsn = match["lsn"]
                    if len(lsn) > length or (lsn >= last and len(lsn) == length):
                        return True
                    yield match
            code = child.wait()
            stderr = child.stderr
        if NO_RECORD.search(stderr) and start.bytes % self.archive.facts.segment_bytes:
            return False
        if code != 0 and not (ends_early and _END.search(stderr)):
            name = self.archive.name(segments[0])
            raise SegmentDamagedError(
                f"the WAL from segment {name} on cannot be read",
                said=stderr.strip().splitlines()[-1] if stderr.strip() else f"pg_waldump ended with code {code}",
                fix="ovia-backup wal verify",
            )
        return True

    @contextmanager
    def _staged(self, segments: Sequence[Segment]) -> Iterator[Path]:
        """A folder with these segments under the names that pg_waldump expects; those that are missing are left out."""
        parent = self.scratch or Path(tempfile.gettempdir())
        with (
            scratch(parent, "DRILL_DIR"),
            tempfile.TemporaryDirectory(prefix="ovia-wal-", dir=parent) as name,
            contextlib.ExitStack() as opened,
        ):
            folder = Path(name)
            received = self._begun()
            for segment in segments:
                target = folder / self.archive.name(Segment(_STAGED_TIMELINE, segment.number))
                if segment in received and (file := self._opened(segment, opened)) is not None:
                    os.symlink(f"/proc/{os.getpid()}/fd/{file.fileno()}", target)
                elif (archived := self.archive.archived(segment)).exists():
                    decompress(archived, target)
            yield folder

    def _opened(self, segment: Segment, opened: contextlib.ExitStack) -> BinaryIO | None:
        """A received segment; ``None`` if it is archived already.

        pg_receivewal renames it when it is finished, and then it is archived and removed. An open file can be read on.
        """
        for path in self._received_as(segment):
            with contextlib.suppress(FileNotFoundError):
                return opened.enter_context(reader(path))
        return None

    def _received_as(self, segment: Segment) -> tuple[Path, Path]:
        """The paths that a segment has in turn: unfinished, finished."""
        name = self.archive.name(segment)
        return self.archive.incoming / f"{name}{PARTIAL}", self.archive.incoming / name

    def _begun(self) -> dict[Segment, Path]:
        """The received segments; pg_receivewal fills a new one with zeros before it writes."""
        return {segment: path for segment, path in self.archive.received().items() if has_begun(path)}

    def _gap(self, segment: Segment) -> WalGapError:
        return WalGapError(
            f"WAL segment {self.archive.name(segment)} is missing",
            why="it was not received, or was removed",
            fix="ovia-backup recovery-window",
        )
