"""The header of a custom-format archive: the database, server version and time that its first bytes name.

pg_dump writes it before anything else: ``WriteHead`` in PostgreSQL's pg_backup_archiver.c. Magic, version (three
bytes), sizes of int and offset, format, compression (a byte since 1.15, an int before), seven time fields, database,
two versions. An int is a sign byte and the bytes of its value, lowest first; a string is its length and its bytes.
Reading it is cheap and runs no program.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

MAGIC = b"PGDMP"
#: More than any header needs: it has three strings of at most a hundred bytes.
HEAD_BYTES = 4096
#: The known layouts: PostgreSQL 9.5 to 18.
_OLDEST, _NEWEST = (1, 12), (1, 16)
_COMPRESSION_IS_A_BYTE = (1, 15)


@dataclass(frozen=True, slots=True)
class ArchiveHeader:
    """The header.

    Attributes:
        created_at: when pg_dump began. The header has pg_dump's local time, which is read as UTC, because this program
            runs pg_dump with TZ=UTC; ``None`` if the fields are not a valid time.
        database: the name of the database that pg_dump connected to.
        server_version: as the server reported it, e.g. ``16.15 (Debian 16.15-1)``.
        client_version: the version of pg_dump.
    """

    created_at: datetime | None
    database: str
    server_version: str
    client_version: str


def parse_header(head: bytes) -> ArchiveHeader | None:
    """Parse the header of an archive from its first ``HEAD_BYTES`` bytes.

    ``None`` for an unknown archive version.

    Raises:
        ValueError: the bytes are not a header, or a broken one.
    """
    if not head.startswith(MAGIC) or len(head) < len(MAGIC) + 3:
        raise ValueError("no archive")
    reader = _Reader(head, len(MAGIC))
    major, minor, _ = reader.byte(), reader.byte(), reader.byte()
    if not _OLDEST <= (major, minor) <= _NEWEST:
        return None
    reader.int_bytes = reader.byte()
    _offset_bytes, _format = reader.byte(), reader.byte()
    _compression = reader.byte() if (major, minor) >= _COMPRESSION_IS_A_BYTE else reader.integer()
    second, minute, hour, day, month, year, _ = (reader.integer() for _ in range(7))
    try:
        # datetime has no leap seconds.
        created_at = datetime(year + 1900, month + 1, day, hour, minute, min(second, 59), tzinfo=UTC)
    except (ValueError, OverflowError):
        created_at = None
    return ArchiveHeader(created_at, reader.string(), reader.string(), reader.string())


class _Reader:
    """Reads the header value by value."""

    def __init__(self, head: bytes, position: int) -> None:
        self.head = head
        self.position = position
        self.int_bytes = 4

    def take(self, length: int) -> bytes:
        found = self.head[self.position : self.position + length]
        if length < 0 or len(found) < length:
            raise ValueError("the header is cut off")
        self.position += length
        return found

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        sign = self.byte()
        value = int.from_bytes(self.take(self.int_bytes), "little")
        return -value if sign else value

    def string(self) -> str:
        length = self.integer()
        # A length of -1 means a null string.
        return self.take(max(length, 0)).decode("utf-8", "replace")
