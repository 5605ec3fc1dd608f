"""The names of tables, recorded for the time when they are gone: WAL has only numbers.

``pitr/<system identifier>/relations/<UTC>_<database OID>.json`` has all relations of a database with OID, file number
and name. A record is written whenever a base backup or a dump is made (:func:`record_relation_names`), unless nothing
has changed. A table that was created and dropped between two records is named from the WAL itself, if at all:
``catalog_pages``. What happened to a table is for ``wal_changes``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psycopg
from pydantic import AwareDatetime

from ovia_backup_dagster.core.files import WITNESS_BYTES, as_volume_error, read_small, sync_folder, unlink, write_whole
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.core.pitr_errors import ServerReplacedError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.postgres.session import system_identifier

#: The lowest OID of what users create.
FIRST_USER_OID = 16384
#: ``pg_class.relkind`` of relations that have rows, either their own or those of their partitions.
TABLE_KINDS = frozenset("rp")
_STAMP = "%Y-%m-%d_%H%M%S"
_NAME = re.compile(r"(\d{4}-\d\d-\d\d_\d{6})_(\d{1,10})\.json")
_DATABASE = "SELECT oid::bigint AS oid, datname AS name FROM pg_database WHERE datname = current_database()"
_SCHEMAS = "SELECT oid::bigint AS oid, nspname AS name FROM pg_namespace"
# A catalog that VACUUM FULL has rewritten has another file number than its OID. Temporary tables are not in the WAL.
_RELATIONS = """
    SELECT c.oid::bigint AS oid, coalesce(pg_relation_filenode(c.oid), 0)::bigint AS file,
           n.nspname || '.' || c.relname AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
           c.reltuples::bigint AS rows,
           CASE WHEN c.relispartition AND c.relkind IN ('r', 'p') THEN pg_partition_root(c.oid)::oid::bigint ELSE 0 END
               AS root
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence <> 't'
      AND (c.oid >= 16384 OR c.relkind = 'r' AND pg_relation_filenode(c.oid) IS DISTINCT FROM c.oid)
    ORDER BY c.oid
"""


class NamedRelation(Sidecar):
    """A relation as the catalog had it.

    Attributes:
        oid: ``pg_class.oid``.
        file: the number of its file, 0 for none.
        name: schema and name.
        kind: ``pg_class.relkind``: ``r`` table, ``p`` partitioned table, ``i`` index, ``t`` TOAST, …
        persistence: ``p`` permanent, ``u`` unlogged, ``t`` temporary.
        rows: as last counted by VACUUM or ANALYZE; -1 for never.
        root: of a partition, the OID of the table that it is part of; else 0.
    """

    oid: int
    file: int
    name: str
    kind: str
    persistence: str = "p"
    rows: int = -1
    root: int = 0


class RelationRecord(Sidecar):
    """The relations of one database at one time.

    Attributes:
        recorded_at: when (UTC).
        database, database_oid: the database.
        schemas: OID -> name.
        relations: all relations but the temporary ones.
    """

    version: Literal[1] = 1
    recorded_at: AwareDatetime
    database: str
    database_oid: int
    schemas: dict[int, str]
    relations: tuple[NamedRelation, ...]

    @property
    def definitions(self) -> list[tuple[object, ...]]:
        """The relations without their numbers of rows, which change all the time."""
        return [(each.oid, each.file, each.name, each.kind, each.persistence, each.root) for each in self.relations]


#: A database's OID, and a number in it: an OID or a file's number.
Numbered = tuple[int, int]


@dataclass(frozen=True)
class RelationNames:
    """What the numbers in WAL are called. A key is a database's OID and a number.

    Attributes:
        by_oid: the relations, each as recorded last.
        by_file: the same by all file numbers that they had when they were recorded.
        given: names by OID or file number, for what is neither.
        databases: name -> OID.
        schemas: the names of schemas.
    """

    by_oid: Mapping[Numbered, NamedRelation] = field(default_factory=dict)
    by_file: Mapping[Numbered, NamedRelation] = field(default_factory=dict)
    given: Mapping[Numbered, str] = field(default_factory=dict)
    databases: Mapping[str, int] = field(default_factory=dict)
    schemas: Mapping[Numbered, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[RelationRecord], given: Mapping[Numbered, str] | None = None) -> RelationNames:
        """The names of these records, oldest first."""
        names = cls({}, {}, given or {}, {}, {})
        for record in records:
            names = names.and_those_of(record)
        return names

    def and_those_of(self, record: RelationRecord) -> RelationNames:
        """These names and those of a later record."""
        key = record.database_oid
        return RelationNames(
            {**self.by_oid, **{(key, found.oid): found for found in record.relations}},
            {**self.by_file, **{(key, found.file): found for found in record.relations if found.file}},
            self.given,
            {**self.databases, record.database: key},
            {**self.schemas, **{(key, oid): name for oid, name in record.schemas.items()}},
        )

    def and_found(self, database: int, found: Mapping[int, NamedRelation]) -> RelationNames:
        """These names, and others of a database by OID and file number; what is known already stays."""
        return RelationNames(
            {**{(database, each.oid): each for each in found.values()}, **self.by_oid},
            {**{(database, each.file): each for each in found.values() if each.file}, **self.by_file},
            self.given,
            self.databases,
            self.schemas,
        )

    def of_oid(self, database: int, oid: int) -> NamedRelation | None:
        """The relation with this OID."""
        return self.by_oid.get((database, oid)) or self._given(database, oid)

    def of_file(self, database: int, number: int) -> NamedRelation | None:
        """The relation whose file has, or had, this number: a number that was never replaced is also the OID."""
        key = (database, number)
        return self.by_file.get(key) or self.by_oid.get(key) or self._given(database, number)

    def _given(self, database: int, number: int) -> NamedRelation | None:
        name = self.given.get((database, number))
        return NamedRelation(oid=number, file=number, name=name, kind="r") if name is not None else None


def read_relation_names(session: psycopg.Connection[dict[str, Any]], now: datetime) -> RelationRecord:
    """The relations of the session's database as they are now.

    Raises:
        psycopg.Error: the server failed.
    """
    database = session.execute(_DATABASE).fetchone()
    assert database is not None  # the database of a session always exists
    return RelationRecord(
        recorded_at=now,
        database=database["name"],
        database_oid=database["oid"],
        schemas={row["oid"]: row["name"] for row in session.execute(_SCHEMAS)},
        relations=tuple(NamedRelation(**row) for row in session.execute(_RELATIONS)),
    )


def record_relation_names(
    session: psycopg.Connection[dict[str, Any]], archive: ClusterArchive, now: datetime
) -> Path | None:
    """Record the names in the session's database; returns the record, or ``None`` if nothing has changed.

    Raises:
        ServerReplacedError: the session is another cluster's.
        VolumeError, DiskFullError: the volume refused.
        psycopg.Error: the server failed.
    """
    identifier = system_identifier(session)
    if identifier not in (None, archive.system_identifier):
        raise ServerReplacedError(
            f"the names of cluster {identifier} do not belong to the archive of {archive.system_identifier}",
            why="another cluster answers under the server's address",
            fix="ovia-backup wal status",
        )
    found = read_relation_names(session, now)
    last = [path for path, _, oid in _records(archive) if oid == found.database_oid][-1:]
    if last and _read(last[0]).definitions == found.definitions:
        return None
    folder = relations_folder(archive)
    path = folder / f"{now.astimezone(UTC).strftime(_STAMP)}_{found.database_oid}.json"
    with as_volume_error(f"cannot write {path}"):
        folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(path, found.model_dump_json().encode())
        sync_folder(folder)
    return path


def recorded_names(archive: ClusterArchive) -> list[RelationRecord]:
    """All records of a cluster, oldest first.

    Raises:
        VolumeError: a record cannot be read.
    """
    return [_read(path) for path, _, _ in _records(archive)]


def remove_old_names(archive: ClusterArchive, before: datetime) -> list[Path]:
    """Remove the records that name nothing in the WAL since an instant; returns them.

    Raises:
        VolumeError: the volume refused.
    """
    found = _records(archive)
    needless = superseded([(oid, at) for _, at, oid in found], before)
    removed = [path for path, at, oid in found if (oid, at) in needless]
    with as_volume_error(f"cannot remove old records in {relations_folder(archive)}"):
        for path in removed:
            unlink(path)
    return removed


def superseded(records: Iterable[tuple[int, datetime]], before: datetime) -> set[tuple[int, datetime]]:
    """Which records are not needed for what happened at ``before`` or later: for each database, all that have a newer
    one that was also written by then.

    Args:
        records: a database's OID and the time (UTC) of each record.
        before: the earliest instant whose names are still needed (UTC).
    """
    old = [record for record in records if record[1] <= before]
    newest = {database: max(at for each, at in old if each == database) for database, _ in old}
    return {(database, at) for database, at in old if at < newest[database]}


def relations_folder(archive: ClusterArchive) -> Path:
    """Where a cluster's records are."""
    return archive.folder / "relations"


def _records(archive: ClusterArchive) -> list[tuple[Path, datetime, int]]:
    """The records, oldest first: path, time (UTC), the database's OID."""
    folder = relations_folder(archive)
    with as_volume_error(f"cannot read {folder}"):
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            return []
    matches = filter(None, map(_NAME.fullmatch, names))
    return [(folder / m[0], datetime.strptime(m[1], _STAMP).replace(tzinfo=UTC), int(m[2])) for m in matches]


def _read(path: Path) -> RelationRecord:
    with as_volume_error(f"cannot read {path}"):
        return parse_sidecar(RelationRecord, read_small(path, WITNESS_BYTES), path.name)
