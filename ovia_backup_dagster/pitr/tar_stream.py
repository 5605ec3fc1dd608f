"""Reads a tar file of pg_basebackup from its beginning to its end, without unpacking.

PostgreSQL writes plain ustar: files and folders, no links, no extensions. Anything else is refused, so that no program
that unpacks the file later can find more in it than was checked here. Whether a file belongs there is for the caller.
ByteStream: PostgreSQL 16, tar.c and basebackup.c. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_BLOCK = 512
_END = bytes(_BLOCK)
_READ_BYTES = 256 * 1024
_FILE, _FOLDER = b"0", b"5"


class TarFormatError(ValueError):
    """The bytes are not a tar file as PostgreSQL writes it."""


class ByteStream(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A file or a folder.

    Attributes:
        path: below the tar file's root, without ``./`` and a final slash.
        is_file: a folder has no content.
        size_bytes: the length of the content.
    """

    path: bytes
    is_file: bool
    size_bytes: int


def tar_entries(source: ByteStream) -> Iterator[tuple[TarEntry, Iterator[bytes]]]:
    """The entries in their order, each with its content, which the caller reads to its end before the next entry.

    Raises:
        TarFormatError: the bytes are not a tar file as PostgreSQL writes it, or it was cut off; the text says where.
    """
    while (header := _exactly(source, _BLOCK, "a header")) != _END:
        entry = _parsed(header)
        yield entry, _content(source, entry)
    # Two blocks of zeros are the end.
    while block := source.read(_READ_BYTES):
        if block.strip(b"\0"):
            raise TarFormatError("there is data after its end")


def _content(source: ByteStream, entry: TarEntry) -> Iterator[bytes]:
    left = entry.size_bytes
    while left:
        block = source.read(min(left, _READ_BYTES))
        if not block:
            raise TarFormatError(f"it ends within {_shown(entry.path)}")
        left -= len(block)
        yield block
    padding = -entry.size_bytes % _BLOCK
    if padding and _exactly(source, padding, "padding").strip(b"\0"):
        raise TarFormatError(f"there is data between {_shown(entry.path)} and the next entry")


def _exactly(source: ByteStream, size: int, what: str) -> bytes:
    found = b""
    while len(found) < size:
        block = source.read(size - len(found))
        if not block:
            raise TarFormatError(f"it ends within {what}")
        found += block
    return found


def _parsed(header: bytes) -> TarEntry:
    path = header[:100].rstrip(b"\0")
    if _octal(header[148:156]) != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise TarFormatError("a header has a wrong checksum")
    kind, prefix = header[156:157], header[345:500].rstrip(b"\0")
    if header[257:263] != b"ustar\0" or b"\0" in path or prefix or kind not in (_FILE, _FOLDER):
        raise TarFormatError(f"{_shown(path)} is neither a file nor a folder as PostgreSQL writes it")
    clean = path.removeprefix(b"./").removesuffix(b"/") if kind == _FOLDER else path.removeprefix(b"./")
    if not clean or any(part in (b"", b".", b"..") for part in clean.split(b"/")):
        raise TarFormatError(f"{_shown(path)} leads out of the data directory")
    size = _number(header[124:136])
    if kind == _FOLDER and size:
        raise TarFormatError(f"{_shown(path)} is a folder with content")
    return TarEntry(clean, kind == _FILE, size)


def _number(field: bytes) -> int:
    # From 8 GB on, a size is written in base 256.
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise TarFormatError(f"a header has {field!r} in place of a number")
    return int(digits, 8)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
