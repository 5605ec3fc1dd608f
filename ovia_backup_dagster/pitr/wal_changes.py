"""What a committed transaction did to tables, derived from what it left in the WAL: DROP, TRUNCATE, many DELETEs, DDL.

WAL has no statements, only pages, files and numbers. What each statement leaves was found by experiment with PostgreSQL
16.15 and ``wal_level=replica``; ``wal_timeline`` says what is read. Pure: a :class:`Footprint` in, :class:`Change` out.

* DROP TABLE: the commit lists the files (``rels``) and the OIDs (``dropped stats``) of the table, its indexes, its
  TOAST table. Rows are deleted from pg_class and, two for each table or view, from pg_type. A temporary table, a view
  and a composite type have OIDs there, but no files; an index or a sequence has no rows in pg_type.
* TRUNCATE: no OID is dropped. Each file is replaced: ``Storage CREATE`` of a file whose number is not a new relation's
  OID (``Standby LOCK`` has none such), then the old file in ``rels``, in the same order. The new file of a table gets
  no record; that of an index gets its first page (``XLOG FPI``, ``Hash``, ``BRIN``), that of a sequence a ``Sequence``
  record. In the transaction that created the table, only ``Storage TRUNCATE``: nothing is lost, nothing is reported.
  ``Heap TRUNCATE`` exists only with ``wal_level=logical``.
* VACUUM FULL, CLUSTER, REFRESH MATERIALIZED VIEW, and an ALTER TABLE that rewrites: a relation is created, locked, and
  dropped again in the same transaction, and the old files go with it.
* REINDEX and ALTER TABLE SET TABLESPACE: like TRUNCATE, but the new files are filled with ``XLOG FPI``, or, if the
  table was empty, are in another tablespace than the old.
* DELETE: one ``Heap DELETE`` a row, under the number of the file and of the subtransaction. An UPDATE that moves a row
  to another partition has the flag 0x10.
* CREATE TEMPORARY TABLE: ``Standby LOCK`` without ``Storage CREATE``. A composite type looks the same, and is left out.
* An unlogged table has only ``_init`` files in the WAL: its DROP is seen, its TRUNCATE and DELETEs are not.
* DROP DATABASE: ``Database DROP`` removes the files before the commit, so what is kept must end before this record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from ovia_backup_dagster.pitr.relation_names import FIRST_USER_OID, TABLE_KINDS, NamedRelation, RelationNames
from ovia_backup_dagster.pitr.transaction_ends import RelationFile, TransactionEnd
from ovia_backup_dagster.pitr.wal_position import Lsn

_PG_TYPE, _PG_CLASS, _PG_PARTITIONED = 1247, 1259, 3350
#: Catalogs whose changes are DDL, and what they describe.
_CATALOGS = {
    1247: "type", 1249: "column", 1255: "function", 1259: "relation", 1260: "role", 1261: "role", 1262: "database",
    1417: "server", 2224: "sequence", 2604: "default", 2606: "constraint", 2609: "comment", 2610: "index",
    2612: "language", 2615: "schema", 2617: "operator", 2618: "view or rule", 2620: "trigger", 3079: "extension",
    3118: "foreign table", 3256: "policy", 3350: "partitioning", 3466: "event trigger", 3501: "type",
    6104: "publication",
}  # fmt: skip
#: What has OIDs in pg_class, but no file: views and rules, partitioned and foreign tables.
_WITHOUT_FILE = (2618, 3350, 3118)


class ChangeKind(Enum):
    """What happened to a table or a database."""

    DROP = "DROP TABLE"
    TRUNCATE = "TRUNCATE"
    DELETE = "DELETE"
    DROP_DATABASE = "DROP DATABASE"
    REWRITE = "rewrite"
    DDL = "DDL"

    @property
    def loses_rows(self) -> bool:
        """Whether rows are gone after it."""
        return self not in (ChangeKind.REWRITE, ChangeKind.DDL)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a transaction did.

    Attributes:
        kind: what.
        database: the database's OID; 0 for what all databases share.
        table: the table's name; its number if the name is not known; empty for a database or for what has no table.
        named: whether the name is known.
        deleted: rows deleted, by a DELETE.
        inserted: rows inserted into the same table by the same transaction.
        detail: of DDL: which kinds of objects.
    """

    kind: ChangeKind
    database: int
    table: str
    named: bool = True
    deleted: int = 0
    inserted: int = 0
    detail: str = ""

    @property
    def text(self) -> str:
        """For people: ``DELETE public.people (300 rows)``."""
        rows = f"{self.deleted:,} rows" if self.kind is ChangeKind.DELETE else ""
        reloaded = f"{self.inserted:,} inserted" if self.inserted else ""
        told = ", ".join(filter(None, (rows, self.detail, reloaded)))
        return " ".join(filter(None, (self.kind.value, self.table, f"({told})" if told else "")))


@dataclass(frozen=True, slots=True)
class MassDelete:
    """Which DELETE is reported.

    Attributes:
        rows: at least so many rows.
        share: or at least this share of the table's rows, if their number is known.
        least: but never fewer rows than this.
    """

    rows: int = 100
    share: float = 0.5
    least: int = 20

    def told(self, deleted: int, of: int) -> bool:
        """Whether to report a DELETE of so many rows from a table with ``of`` rows (-1: not known)."""
        return deleted >= self.rows or (deleted >= self.least and of > 0 and deleted >= self.share * of)


class RowChanges:
    """How many rows a transaction inserted, updated, deleted in one file."""

    __slots__ = ("deleted", "inserted", "updated")

    def __init__(self) -> None:
        self.inserted = self.updated = self.deleted = 0

    def add(self, other: RowChanges) -> None:
        self.inserted += other.inserted
        self.updated += other.updated
        self.deleted += other.deleted


@dataclass(slots=True)
class Footprint:
    """What a transaction or a subtransaction left in the WAL before its end.

    Attributes:
        records: how many records, without those of indexes.
        rows: file -> rows.
        locked: (database, OID) of relations locked exclusively; a new relation is, too.
        created: new files, with their place in the WAL.
        filled: new files with records that no empty table has.
        beacon: whether it is our own message.
        dropped_databases: OID -> where its files were removed.
    """

    records: int = 0
    rows: dict[RelationFile, RowChanges] = field(default_factory=dict)
    locked: dict[tuple[int, int], None] = field(default_factory=dict)
    created: list[tuple[Lsn, RelationFile]] = field(default_factory=list)
    filled: set[RelationFile] = field(default_factory=set)
    beacon: bool = False
    dropped_databases: dict[int, Lsn] = field(default_factory=dict)

    def add(self, other: Footprint) -> None:
        """Add what a subtransaction left."""
        self.records += other.records
        for file, rows in other.rows.items():
            self.rows.setdefault(file, RowChanges()).add(rows)
        self.locked |= other.locked
        self.created = sorted([*self.created, *other.created], key=lambda each: each[0])
        self.filled |= other.filled
        self.beacon |= other.beacon
        self.dropped_databases |= other.dropped_databases

    def is_plain(self, mass: MassDelete) -> bool:
        """Whether it only changed rows, and deleted few: the most frequent case, and quickly recognized."""
        return not (
            self.created
            or self.dropped_databases
            or any(file.number < FIRST_USER_OID for file in self.rows)
            or sum(rows.deleted for rows in self.rows.values()) >= mass.least
        )

    def touches(self, database: int | None) -> bool:
        """Whether it changed something in a database (``None``: in any)."""
        if database is None:
            return bool(self.rows or self.locked or self.created)
        return (
            any(file.database == database for file in self.rows)
            or any(where == database for where, _ in self.locked)
            or any(file.database == database for _, file in self.created)
        )


class Changes:
    """Tells transactions' changes, in the order of their commits: what is temporary is known from then on.

    Args:
        database: report only what concerns this database; ``None`` for all.
        names: the names of relations.
        mass: which DELETE is reported.
    """

    def __init__(self, database: int | None, names: RelationNames, mass: MassDelete | None = None) -> None:
        self._database = database
        self._names = names
        self._mass = mass or MassDelete()
        self._temporary: set[tuple[int, int]] = set()

    def of(self, end: TransactionEnd, footprint: Footprint) -> tuple[Change, ...]:
        """The changes of a committed transaction."""
        found = [
            Change(ChangeKind.DROP_DATABASE, database, self._database_name(database))
            for database in footprint.dropped_databases
            if self._database in (None, database)
        ]
        for database in sorted(self._concerned(end, footprint)):
            if database == 0 and found:
                continue  # the row of pg_database
            told = _Told(database, end, footprint, self._names, self._mass)
            here = [*told.drops(), *told.rewrites(), *told.truncations(), *told.deletes()]
            found += here or ([] if self._is_temporary(told) else told.definitions())
        return tuple(found)

    def _concerned(self, end: TransactionEnd, footprint: Footprint) -> set[int]:
        files = (*footprint.rows, *(file for _, file in footprint.created), *end.dropped_files)
        oids = (*footprint.locked, *end.dropped_relations)
        found = {file.database for file in files} | {database for database, _ in oids}
        # Roles belong to all databases.
        return {database for database in found if self._database in (None, database) or database == 0}

    def _database_name(self, oid: int) -> str:
        return next((name for name, known in self._names.databases.items() if known == oid), f"database {oid}")

    def _is_temporary(self, told: _Told) -> bool:
        """Whether a definition is of temporary tables only."""
        locked = {(told.database, oid) for oid in told.locked}
        if told.files or told.catalog(*_WITHOUT_FILE) or not (locked or told.dropped):
            return False
        if told.catalog(_PG_CLASS, inserted=True):
            self._temporary |= locked
            return True
        known = {each for each in locked if self._persistence(each) == "t"} | (locked & self._temporary)
        return bool(told.dropped) or known == locked

    def _persistence(self, relation: tuple[int, int]) -> str:
        found = self._names.of_oid(*relation)
        return found.persistence if found else ""


class _Told:
    """One transaction in one database."""

    def __init__(
        self, database: int, end: TransactionEnd, footprint: Footprint, names: RelationNames, mass: MassDelete
    ) -> None:
        self.database = database
        self._footprint = footprint
        self._names = names
        self._mass = mass
        self._touched = end.touched
        self.locked = [oid for where, oid in footprint.locked if where == database]
        self._removed = [file for file in end.dropped_files if file.database == database]
        made = [file for _, file in footprint.created if file.database == database]
        self._new = [file for file in made if file.number in set(self.locked)]
        self._replacing = [file for file in made if file not in self._new]
        new = {file.number for file in self._new}
        gone = [oid for where, oid in end.dropped_relations if where == database]
        #: What was dropped, without what the transaction itself had created.
        self.dropped = [oid for oid in gone if oid not in new]
        self._transient = [oid for oid in gone if oid in new]
        self.files = [*made, *self._removed]

    def catalog(self, *catalogs: int, inserted: bool = False) -> int:
        """How many rows of catalogs were changed; or only: inserted."""
        return sum(
            rows.inserted if inserted else rows.inserted + rows.updated + rows.deleted
            for file, rows in self._rows()
            if self._catalog_of(file) in catalogs
        )

    def drops(self) -> Iterator[Change]:
        # Without files, it was temporary, or a view; and a partitioned table without partitions has no rows.
        if not self._removed:
            return
        relations = [(oid, self._names.of_oid(self.database, oid)) for oid in sorted(self.dropped)]
        for oid, found in relations:
            if found is not None and found.kind in TABLE_KINDS and found.persistence != "t":
                yield self._change(ChangeKind.DROP, found, oid)
        # The others are its indexes and TOAST table; or tables that were created since the names were recorded. How
        # many is certain; which number is the table's, and which is one of its indexes', is not.
        types = sum(rows.deleted for file, rows in self._rows() if self._catalog_of(file) == _PG_TYPE)
        if self._transient:
            types -= self.catalog(_PG_TYPE, inserted=True)
        left = types // 2 - sum(found is not None and found.kind not in "itS" for _, found in relations)
        unknown = [oid for oid, found in relations if found is None]
        for oid in sorted(unknown, key=self._when_locked)[: max(0, left)]:
            yield self._change(ChangeKind.DROP, None, oid)

    def rewrites(self) -> Iterator[Change]:
        if self._transient:
            known = [(oid, self._names.of_oid(self.database, oid)) for oid in self.locked if oid not in self._transient]
            tables = [(oid, found) for oid, found in known if found is not None and found.kind in {*TABLE_KINDS, "m"}]
            for oid, found in tables or known[:1]:
                yield self._change(ChangeKind.REWRITE, found, oid)

    def truncations(self) -> Iterator[Change]:
        if not self._removed:
            return  # a new database, for example
        replaced = self._replaced()
        origin: dict[RelationFile, RelationFile] = {}
        for new in self._replacing:
            old = replaced.get(new)
            # With savepoints, a file that replaced another may be replaced, too.
            first = origin.get(old, old) if old is not None else None
            if first is not None:
                origin[new] = first
            if new in replaced.values() or new in self._footprint.filled or self._catalog_of(new):
                continue
            if first is not None and first.space != new.space:
                continue
            found = next(filter(None, (self._of_file(each) for each in (first, new))), None)
            if found is None or (found.kind in TABLE_KINDS and found.persistence == "p"):
                inserted = self._footprint.rows.get(new, RowChanges()).inserted
                yield self._change(ChangeKind.TRUNCATE, found, (first or new).number, inserted=inserted)

    def deletes(self) -> Iterator[Change]:
        tables: dict[int, list[tuple[NamedRelation | None, RowChanges]]] = {}
        for file, rows in self._rows():
            found = self._of_file(file)
            if self._catalog_of(file) or file in self._removed or (found and found.kind not in TABLE_KINDS):
                continue
            tables.setdefault((found.root or found.oid) if found else file.number, []).append((found, rows))
        for number, parts in tables.items():
            deleted, inserted = (sum(getattr(rows, what) for _, rows in parts) for what in ("deleted", "inserted"))
            known = [found.rows for found, _ in parts if found is not None and found.rows >= 0]
            if self._mass.told(deleted, sum(known) if len(known) == len(parts) else -1):
                whole = self._names.of_oid(self.database, number) or parts[0][0]
                yield self._change(ChangeKind.DELETE, whole, number, deleted=deleted, inserted=inserted)

    def definitions(self) -> list[Change]:
        """The DDL, as one change."""
        catalogs = Counter({catalog: 1 for file, _ in self._rows() if (catalog := self._catalog_of(file)) in _CATALOGS})
        if not catalogs:
            return []
        known = {oid: self._names.of_oid(self.database, oid) for oid in self._touched if oid >= FIRST_USER_OID}
        tables = sorted({found.name for found in known.values() if found and found.kind not in "it"})
        unknown = [f"relation {oid}" for oid, found in known.items() if found is None][:1]
        detail = ", ".join(dict.fromkeys(_CATALOGS[catalog] for catalog in sorted(catalogs)))
        return [
            Change(
                ChangeKind.DDL, self.database, ", ".join(tables or unknown), bool(tables) or not unknown, detail=detail
            )
        ]

    def summary(self) -> Iterator[str]:
        """The rows that were changed, table by table."""
        for file, rows in self._rows():
            if self._catalog_of(file):
                continue
            counts = (("inserted", rows.inserted), ("updated", rows.updated), ("deleted", rows.deleted))
            told = ", ".join(f"{count:,} {word}" for word, count in counts if count)
            found = self._of_file(file)
            if told and not (found and found.kind == "t"):
                yield f"{found.name if found else f'relation {file.number}'}: {told}"

    def _rows(self) -> Iterable[tuple[RelationFile, RowChanges]]:
        return ((file, rows) for file, rows in self._footprint.rows.items() if file.database == self.database)

    def _catalog_of(self, file: RelationFile) -> int:
        """The OID of the catalog that this file belongs to; 0 if it is none."""
        if file.number < FIRST_USER_OID:
            return file.number
        found = self._of_file(file)
        return found.oid if found and found.oid < FIRST_USER_OID else 0

    def _of_file(self, file: RelationFile | None) -> NamedRelation | None:
        return self._names.of_file(file.database, file.number) if file is not None else None

    def _when_locked(self, oid: int) -> int:
        # DROP TABLE locks the table before what belongs to it.
        return self.locked.index(oid) if oid in self.locked else len(self.locked)

    def _replaced(self) -> dict[RelationFile, RelationFile]:
        """New file -> the file that it replaced: both are listed in the order of the statements."""
        dropped = ((oid, self._names.of_oid(self.database, oid)) for oid in self.dropped)
        known = {found.file if found else oid for oid, found in dropped}
        removed = [file for file in self._removed if file.number not in known]
        return dict(zip(self._replacing, removed, strict=True)) if len(removed) == len(self._replacing) else {}

    def _change(
        self, kind: ChangeKind, found: NamedRelation | None, number: int, *, deleted: int = 0, inserted: int = 0
    ) -> Change:
        name = found.name if found else f"relation {number}"
        return Change(kind, self.database, name, found is not None, deleted, inserted)


def rows_changed(end: TransactionEnd, footprint: Footprint, names: RelationNames, database: int | None) -> str:
    """The rows that a transaction changed, in words: ``public.people: 3 inserted``; empty for none."""
    databases = sorted({file.database for file in footprint.rows} if database is None else {database})
    lines = [line for each in databases for line in _Told(each, end, footprint, names, MassDelete()).summary()]
    return "; ".join(lines)
