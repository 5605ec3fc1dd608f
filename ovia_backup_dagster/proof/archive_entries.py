"""The entries of an archive, from its contents list: one line each, in the archive's order.

``archive_objects`` reads the SQL of an entry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LISTED = re.compile(r"^(\d+); \d+ (\d+) (.+)$", re.MULTILINE)
#: Kinds of entries that hold data: rows, and the content of large objects and sequences.
DATA = re.compile(r"(?:TABLE DATA|BLOBS|SEQUENCE SET) ")
_AFTER_DATA = re.compile(
    r"(?:CONSTRAINT|CHECK CONSTRAINT|FK CONSTRAINT|INDEX|INDEX ATTACH|TRIGGER|EVENT TRIGGER|POLICY|ROW SECURITY|RULE"
    r"|STATISTICS|PUBLICATION|PUBLICATION TABLE|PUBLICATION TABLES IN SCHEMA|SUBSCRIPTION|MATERIALIZED VIEW DATA) "
)
TABLE_DATA = "TABLE DATA "


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One entry of an archive.

    Attributes:
        number: its number in the archive, which identifies it.
        line: its line in the contents list, which pg_restore accepts as input.
        text: the part of the line that describes it: ``TYPE schema name owner``.
        oid: the object's OID in the source.
    """

    number: int
    line: str
    text: str
    oid: int


def entries_of(listing: str) -> list[ArchiveEntry]:
    """The entries of a contents list."""
    return [ArchiveEntry(int(m[1]), m[0], m[3], int(m[2])) for m in _LISTED.finditer(listing)]


def sections_of(entries: Sequence[ArchiveEntry]) -> tuple[list[ArchiveEntry], list[ArchiveEntry], list[ArchiveEntry]]:
    """The entries of the sections pre-data, data and post-data, in the archive's order."""
    end = next((at for at, entry in enumerate(entries) if _AFTER_DATA.match(entry.text)), len(entries))
    begin = next((at for at, entry in enumerate(entries[:end]) if DATA.match(entry.text)), end)
    return list(entries[:begin]), list(entries[begin:end]), list(entries[end:])
