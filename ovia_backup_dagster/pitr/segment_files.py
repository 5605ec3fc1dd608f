"""The files of WAL segments: what is in a segment's first page, and compression. Nothing here decides what is kept.

An archived segment is a zstd frame with a checksum of the content, and a seal: a skippable frame, which every zstd
program passes over, with the SHA-256 of the first frame. Without the seal, a flipped bit is not always seen: in zstd's
frame header, or where it changes how repeated bytes are encoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import zstandard

from ovia_backup_dagster.core.files import TEMPORARY, as_volume_error, reader, removed_on_error, sync_folder
from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment

_LEVEL = 1
_FRAME_HEADER_BYTES = 18
#: The header of zstd's first kind of skippable frame: magic, and the length of what follows.
_SEAL_HEADER = struct.pack("<II", 0x184D2A50, hashlib.sha256().digest_size)
_SEAL_BYTES = len(_SEAL_HEADER) + hashlib.sha256().digest_size
_BLOCK_BYTES = 1024 * 1024
#: ``XLogLongPageHeaderData`` in PostgreSQL 12 to 18: magic, info, timeline, address, remaining length, padding, system
#: identifier, sizes of a segment and of a page.
_HEADER = struct.Struct("<HHIQIIQII")
#: ``XLogPageHeaderData``, which each page has: magic, info, timeline, address, remaining length, padding.
_PAGE_HEADER = struct.Struct("<HHIQII")
#: ``xl_tot_len`` at the beginning of each record.
_RECORD_LENGTH = struct.Struct("<I")
_LONG_HEADER = 0x0002
_CONTINUES_RECORD = 0x0001
#: Records begin at multiples of this.
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment's first page says.

    Attributes:
        timeline: the timeline that wrote the page: in a segment in which the timeline changed, the parent.
        address: the position of its first byte.
        system_identifier: the cluster's.
        segment_bytes: the size of the cluster's segments.
        page_bytes: the size of its pages of WAL.
        continued: how many bytes follow of a record that began in an earlier segment.
    """

    timeline: int
    address: Lsn
    system_identifier: str
    segment_bytes: int
    page_bytes: int = 8192
    continued: int = 0

    @property
    def begins_a_record(self) -> bool:
        """Whether a record begins in the segment; the largest records fill several segments. pg_waldump needs one."""
        pages = self.segment_bytes // max(self.page_bytes, 1)
        return self.continued < self.segment_bytes - _HEADER.size - (pages - 1) * _PAGE_HEADER.size

    @property
    def first_record(self) -> int:
        """Where the first record begins that begins in the segment, in bytes from its start."""
        offset, left, room = _HEADER.size, self.continued, self.page_bytes - _HEADER.size
        while left > room:
            left -= room
            offset += room + _PAGE_HEADER.size
            room = self.page_bytes - _PAGE_HEADER.size
        end = offset + left
        aligned = -(-end // _ALIGNMENT) * _ALIGNMENT
        return aligned + _PAGE_HEADER.size if aligned % self.page_bytes == 0 else aligned

    def unlike_its_name(self, segment: Segment, system_identifier: str, segment_bytes: int) -> str:
        """What differs from the segment that its name says; empty if nothing does."""
        return next(
            (
                text
                for text, differs in (
                    (f"it is of cluster {self.system_identifier}", self.system_identifier != system_identifier),
                    (f"it begins at {self.address}", self.address != segment.start(segment_bytes)),
                    # Where the timeline changes, the first pages are the parent's.
                    (f"it is of timeline {self.timeline}", self.timeline > segment.timeline),
                    (f"its segments have {self.segment_bytes:,} bytes", self.segment_bytes != segment_bytes),
                )
                if differs
            ),
            "",
        )


def read_header(path: Path) -> SegmentHeader:
    """Read a segment's header.

    Raises:
        SegmentDamagedError: the file does not begin like a segment.
        FileNotFoundError, VolumeError: it cannot be read.
    """
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError), reader(path) as file:
        return header_in(file.read(_HEADER.size), path)


def page_of_later_timeline(path: Path, timeline: int, page_bytes: int) -> int | None:
    """Where the first page begins whose header names a later timeline than the segment's, in bytes; ``None`` without.

    pg_waldump notices such a page only by the next one, which has the right timeline again.

    Raises:
        FileNotFoundError, VolumeError: the file cannot be read.
    """
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError), reader(path) as file:
        content = file.read()
    begins = range(0, len(content) - _PAGE_HEADER.size, page_bytes)
    return next((at for at in begins if _PAGE_HEADER.unpack_from(content, at)[2] > timeline), None)


def last_page_with_a_record(path: Path, page_bytes: int) -> int:
    """Where the last page begins in which a record begins, in bytes; 0 if there is none after the first page.

    Raises:
        FileNotFoundError, VolumeError: the file cannot be read.
    """
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError), reader(path) as file:
        for at in range(os.fstat(file.fileno()).st_size - page_bytes, 0, -page_bytes):
            file.seek(at)
            page = file.read(page_bytes)
            if len(page) == page_bytes and _begins_a_record(page):
                return at
    return 0


def _begins_a_record(page: bytes) -> bool:
    """Whether a record begins in a page that is not the segment's first."""
    _, info, _, _, remaining, _ = _PAGE_HEADER.unpack_from(page)
    continued = remaining if info & _CONTINUES_RECORD else 0
    at = _PAGE_HEADER.size + -(-continued // _ALIGNMENT) * _ALIGNMENT
    # After the switch to another segment, the rest of the segment is zeros.
    return at < len(page) and bool(_RECORD_LENGTH.unpack_from(page, at)[0])


def header_in(content: bytes, path: Path) -> SegmentHeader:
    """The header in a segment's first bytes.

    Raises:
        SegmentDamagedError: they are not those of a segment.
    """
    if len(content) >= _HEADER.size:
        _, info, timeline, address, remaining, _, identifier, size, page = _HEADER.unpack_from(content)
        if info & _LONG_HEADER:
            continued = remaining if info & _CONTINUES_RECORD else 0
            return SegmentHeader(timeline, Lsn(address), str(identifier), size, page, continued)
    raise SegmentDamagedError(
        f"{path} does not begin like a WAL segment",
        why="the disk altered it, or another program wrote it",
        fix=f"ls -l {path}; dmesg | tail",
    )


def first_record_ends_later(path: Path, segments: int) -> bool:
    """Whether the first record that begins in a segment is longer than this segment and those after it.

    Args:
        path: the segment's file.
        segments: how many segments there are, this one included.

    Raises:
        SegmentDamagedError: the file does not begin like a segment.
        FileNotFoundError, VolumeError: it cannot be read.
    """
    header = read_header(path)
    begin = header.first_record
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError), reader(path) as file:
        file.seek(begin)
        (length,) = _RECORD_LENGTH.unpack(file.read(_RECORD_LENGTH.size).ljust(_RECORD_LENGTH.size, b"\0"))
    room = segments * header.segment_bytes - begin
    return bool(length > room - room // header.page_bytes * _PAGE_HEADER.size)


def has_begun(path: Path) -> bool:
    """Whether anything was written into a segment that pg_receivewal has filled with zeros; ``False`` if it is gone."""
    with contextlib.suppress(FileNotFoundError), reader(path) as file:
        return any(file.read(_HEADER.size))
    return False


def compress(source: Path, target: Path) -> int:
    """Compress a file, read the result back, and publish it; returns its size in bytes.

    The target appears complete or not at all, and is on disk when this returns; it gets the source's time.

    Raises:
        SegmentDamagedError: what was written does not decompress to what was read.
        VolumeError: the disk refused, or is full.
    """
    temporary = target.parent / f".{target.name}{TEMPORARY}"
    with as_volume_error(f"cannot archive {source.name}"), removed_on_error(temporary):
        digest, seal = hashlib.sha256(), hashlib.sha256()
        with reader(source) as file, open(temporary, "wb", opener=_private) as out:
            times = os.fstat(file.fileno())
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj(size=times.st_size)
            for block in iter(partial(file.read, _BLOCK_BYTES), b""):
                digest.update(block)
                _write(out, seal, compressor.compress(block))
            _write(out, seal, compressor.flush())
            out.write(_SEAL_HEADER + seal.digest())
            out.flush()
            os.fsync(out.fileno())
        require_sealed(temporary)
        if sha256_of_content(temporary) != digest.hexdigest():
            raise SegmentDamagedError(
                f"{source.name} was not archived as it was received",
                why="the disk or its driver altered what was written",
                fix="dmesg | tail; df -h $BACKUP_DIR",
            )
        os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))
        os.rename(temporary, target)
        sync_folder(target.parent)
        return target.stat().st_size


def require_sealed(path: Path) -> None:
    """Require that each byte of an archived segment's file is as it was written.

    Raises:
        SegmentDamagedError: it is not.
        FileNotFoundError, VolumeError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError), reader(path) as file:
        left = os.fstat(file.fileno()).st_size - _SEAL_BYTES
        while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
        seal = file.read(_SEAL_BYTES + 1)
    if left or seal != _SEAL_HEADER + digest.digest():
        raise SegmentDamagedError(
            f"{path} was altered, or cut off",
            why="it does not match the checksum at its end",
            fix="dmesg | tail; then make a base backup: ovia-backup base-backup",
        )


def decompress(source: Path, target: Path) -> None:
    """Write a compressed file's content to a new file.

    Raises:
        SegmentDamagedError: the source does not decompress, or not to its whole content.
        VolumeError: a file cannot be read or written.
    """
    with as_volume_error(f"cannot read {source}"), open(target, "xb", opener=_private) as out:
        out.writelines(content(source))


def sha256_of_content(path: Path) -> str:
    """The hex SHA-256 of a compressed file's content.

    Raises:
        SegmentDamagedError: it does not decompress, or not to its whole content.
        VolumeError: it cannot be read.
    """
    digest = hashlib.sha256()
    with as_volume_error(f"cannot read {path}"):
        for block in content(path):
            digest.update(block)
    return digest.hexdigest()


def content(path: Path) -> Iterator[bytes]:
    """A compressed file's content, block by block.

    Raises:
        SegmentDamagedError: it does not decompress, or not to its whole content: a file that was cut off ends silently.
        OSError, VolumeError: it cannot be read.
    """
    with reader(path) as file:
        try:
            whole = zstandard.frame_content_size(file.read(_FRAME_HEADER_BYTES))
            file.seek(0)
            size = 0
            with zstandard.ZstdDecompressor().stream_reader(file) as stream:
                while block := stream.read(_BLOCK_BYTES):
                    size += len(block)
                    yield block
        except zstandard.ZstdError as error:
            raise _undecodable(path, str(error)) from None
    # ``compress`` always writes the size; a flipped bit can hide it.
    if whole != size:
        raise _undecodable(path, f"it has {size:,} of {max(whole, 0):,} bytes")


def _undecodable(path: Path, said: str) -> SegmentDamagedError:
    why = "the disk altered it, or it was cut off"
    return SegmentDamagedError(
        f"{path} does not decompress", why=why, said=said, fix="dmesg | tail; ovia-backup wal verify"
    )


def _write(out: BinaryIO, digest: hashlib._Hash, content: bytes) -> None:
    out.write(content)
    digest.update(content)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
