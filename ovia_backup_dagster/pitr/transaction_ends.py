"""The records that end transactions, as pg_waldump prints them: who committed when, and which files went with it.

Recovery looks at nothing else: a time or a transaction as its target is compared with these records only. What else a
transaction did is for ``wal_changes``. Pure, but for :func:`read_ends`, which reads the WAL.

The texts are those of PostgreSQL 16 (xactdesc.c). ``dropped stats`` exists since 15.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from datetime import datetime
from typing import NamedTuple

from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.pitr.wal_records import WalReader

_END = re.compile(
    r"(?P<what>COMMIT|ABORT)(?:_PREPARED (?P<xid>\d+):)? "
    r"(?P<time>\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC(?P<rest>.*)",
    re.DOTALL,
)
_TRANSACTION = re.compile(
    rb"rmgr: Transaction .* tx:\s+(?P<xid>\d+), lsn: (?P<lsn>\w+/\w+), prev \w+/\w+, desc: (?P<text>(?:COMMIT|ABORT).*)"
)
_FILE = re.compile(r"(?:base/(?P<database>\d+)|global|pg_tblspc/(?P<space>\d+)/[^/ ]+/(?P<placed>\d+))/(?P<file>\d+)")
_DROPPED_STATS = re.compile(r"\b(\d+)/(\d+)/(\d+)")
_RELCACHE = re.compile(r"\brelcache (\d+)")
#: PostgreSQL's ``PGSTAT_KIND_RELATION``.
_RELATION_STATS = "2"
#: The tablespaces ``pg_default`` and ``pg_global``.
DEFAULT_SPACE, GLOBAL_SPACE = 1663, 1664


class RelationFile(NamedTuple):
    """The file of a relation. Its number is the relation's OID until the file is first replaced.

    Attributes:
        space: the tablespace's OID.
        database: the database's OID; 0 for a catalog that all databases share.
        number: ``pg_class.relfilenode``.
    """

    space: int
    database: int
    number: int


class TransactionEnd(NamedTuple):
    """A commit or an abort, also of a prepared transaction or of a subtransaction that was rolled back.

    Attributes:
        lsn: where the record begins: recovery to this position, inclusive, ends with this record.
        xid: the transaction that ended.
        time: when, by the server's clock (UTC). Times do not always increase with the position.
        committed: ``False`` for an abort.
        subtransactions: those that ended with it.
        dropped_files: files that were removed with it, in the order of the statements.
        dropped_relations: (database OID, relation OID) of what was dropped: tables, indexes, views, sequences.
        touched: OIDs of relations whose definition changed.
    """

    lsn: Lsn
    xid: int
    time: datetime
    committed: bool
    subtransactions: tuple[int, ...] = ()
    dropped_files: tuple[RelationFile, ...] = ()
    dropped_relations: tuple[tuple[int, int], ...] = ()
    touched: tuple[int, ...] = ()


def parse_end(text: str, xid: int, lsn: Lsn) -> TransactionEnd | None:
    """Read the description of a ``Transaction`` record; ``None`` if it ends no transaction.

    Args:
        text: with times in UTC, as pg_waldump prints them with ``TZ=UTC``.
        xid: the record's transaction.
        lsn: where the record begins.
    """
    match = _END.match(text)
    if match is None:
        return None
    time = datetime.fromisoformat(f"{match['time']}+00:00")
    top, committed = int(match["xid"] or xid), match["what"] == "COMMIT"
    if not match["rest"]:
        return TransactionEnd(lsn, top, time, committed)
    parts = dict.fromkeys(("rels", "subxacts", "dropped stats", "inval msgs"), "")
    for part in match["rest"].split("; "):
        name, _, rest = part.partition(": ")
        if name in parts:
            parts[name] = rest
    stats = _DROPPED_STATS.findall(parts["dropped stats"])
    return TransactionEnd(
        lsn,
        top,
        time,
        committed,
        tuple(map(int, parts["subxacts"].split())),
        # PostgreSQL lists what was scheduled last first.
        tuple(reversed([_file(found) for found in _FILE.finditer(parts["rels"])])),
        tuple((int(database), int(oid)) for kind, database, oid in stats if kind == _RELATION_STATS),
        tuple(dict.fromkeys(map(int, _RELCACHE.findall(parts["inval msgs"])))),
    )


def parse_file(path: str) -> RelationFile | None:
    """The file of a path such as ``base/16384/16385``; ``None`` for any other path, and for forks other than main."""
    match = _FILE.fullmatch(path)
    return _file(match) if match else None


def _file(match: re.Match[str]) -> RelationFile:
    if match["database"]:
        return RelationFile(DEFAULT_SPACE, int(match["database"]), int(match["file"]))
    if match["space"]:
        return RelationFile(int(match["space"]), int(match["placed"]), int(match["file"]))
    return RelationFile(GLOBAL_SPACE, 0, int(match["file"]))


def read_ends(reader: WalReader, timeline: Timeline, start: Lsn, end: Lsn | None = None) -> Generator[TransactionEnd]:
    """The ends of transactions in a range, in the order of the WAL.

    Raises:
        WalGapError, SegmentDamagedError, VolumeError: as ``WalReader.records``.
    """
    with contextlib.closing(reader.matches(_TRANSACTION, timeline, start, end, ("Transaction",))) as matches:
        for match in matches:
            found = parse_end(
                match["text"].decode("utf-8", "replace"), int(match["xid"]), Lsn.parse(match["lsn"].decode())
            )
            if found is not None:
                yield found
