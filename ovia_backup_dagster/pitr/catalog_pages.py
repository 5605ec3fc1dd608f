"""Names of relations from the WAL itself: the first change of a page after a checkpoint puts the whole page there.

A page of pg_class has the rows of many relations, also of those that the same record is about to delete. So a table
that existed at the last checkpoint before its DROP is named, whether it was recorded or not (``relation_names``); this
also tells a table from its indexes, and a temporary one. It needs pg_waldump of PostgreSQL 16, ``full_page_writes``
(the default), and a pg_class that VACUUM FULL has never rewritten.

Sources: PostgreSQL 16, bufpage.h, htup_details.h, pg_class.h; the columns up to ``relkind`` are the same since 12, but
that 18 has one more before ``reltoastrelid``.
"""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ovia_backup_dagster.core.files import scratch
from ovia_backup_dagster.pitr.relation_names import NamedRelation, RelationNames
from ovia_backup_dagster.pitr.transaction_ends import DEFAULT_SPACE
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.pitr.wal_records import AT_ONCE, WalReader

_PG_CLASS = 1259
#: pg_lsn, checksum, flags, lower, upper, special, page size and version, oldest xid
_PAGE_HEADER = struct.Struct("<QHHHHHHI")
_LINE_POINTER = struct.Struct("<I")
_NORMAL = 1
#: In a tuple's header: the offset of its data.
_HOFF_AT = 22
#: oid, relname, relnamespace, reltype, reloftype, relowner, relam, relfilenode, reltablespace, relpages, reltuples,
#: relallvisible, reltoastrelid, relhasindex, relisshared, relpersistence, relkind
_CLASS_ROW = struct.Struct("<I64sIIIIIIIifiI??cc")
_ONE_MORE_SINCE = 18
_CLASS_ROW_18 = struct.Struct("<I64sIIIIIIIifiiI??cc")
_KINDS = frozenset("rpitSvmcfI")
_ANY = re.compile(rb"rmgr: .* lsn: (?P<lsn>\w+/\w+), prev ")
#: The names that every database has from the beginning.
_SCHEMAS = {11: "pg_catalog", 99: "pg_toast", 2200: "public"}


def names_in_wal(
    reader: WalReader, timeline: Timeline, start: Lsn, until: Lsn, database: int, names: RelationNames
) -> dict[int, NamedRelation]:
    """The relations of a database in the images of pg_class's pages, by OID and by file number.

    Args:
        reader: reads the WAL.
        timeline: the timeline.
        start: where the WAL begins. At most ``AT_ONCE`` segments are read.
        until: where the change of interest was committed.
        database: the database's OID.
        names: for the names of schemas.

    Raises:
        WalGapError, SegmentDamagedError, VolumeError: as ``WalReader.records``.
    """
    size = reader.archive.facts.segment_bytes
    start = max(start, Lsn(max(0, until.bytes // size - (AT_ONCE - 1)) * size))
    found: dict[int, NamedRelation] = {}
    parent = reader.scratch or Path(tempfile.gettempdir())
    with scratch(parent, "DRILL_DIR"), tempfile.TemporaryDirectory(prefix="ovia-pages-", dir=parent) as name:
        pages = Path(name) / "pages"
        options = (f"--relation={DEFAULT_SPACE}/{database}/{_PG_CLASS}", f"--save-fullpage={pages}")
        for _ in reader.matches(_ANY, timeline, start, until, (), options):
            pass
        # Their names begin with timeline and position: later images replace earlier ones.
        for path in sorted(pages.iterdir()) if pages.is_dir() else ():
            for relation in relations_on_page(path.read_bytes(), reader.archive.facts.major):
                found |= dict.fromkeys((relation.oid, relation.file), _with_schema(relation, database, names))
    found.pop(0, None)
    return found


def relations_on_page(page: bytes, major: int = 16) -> Iterator[NamedRelation]:
    """The relations on a page of pg_class, also those deleted but not yet removed. ``name`` is ``schema OID.name``."""
    if len(page) < _PAGE_HEADER.size:
        return
    row = _CLASS_ROW_18 if major >= _ONE_MORE_SINCE else _CLASS_ROW
    lower = min(_PAGE_HEADER.unpack_from(page)[3], len(page))
    for at in range(_PAGE_HEADER.size, lower - _LINE_POINTER.size + 1, _LINE_POINTER.size):
        (pointer,) = _LINE_POINTER.unpack_from(page, at)
        offset, flags, length = pointer & 0x7FFF, (pointer >> 15) & 3, pointer >> 17
        if flags != _NORMAL or offset + length > len(page) or length <= _HOFF_AT:
            continue
        data = offset + page[offset + _HOFF_AT]
        if data + row.size > offset + length:
            continue
        values = row.unpack_from(page, data)
        kind = values[-1].decode("latin-1")
        if values[0] and kind in _KINDS:
            yield NamedRelation(
                oid=values[0],
                file=values[7],
                name=f"{values[2]}.{values[1].rstrip(bytes(1)).decode('utf-8', 'replace')}",
                kind=kind,
                persistence=values[-2].decode("latin-1"),
                rows=int(values[10]),
            )


def _with_schema(relation: NamedRelation, database: int, names: RelationNames) -> NamedRelation:
    schema, _, name = relation.name.partition(".")
    known = names.schemas.get((database, int(schema))) or _SCHEMAS.get(int(schema))
    return relation.model_copy(update={"name": f"{known}.{name}" if known else name})
