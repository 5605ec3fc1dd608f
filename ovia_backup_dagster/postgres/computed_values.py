"""Hashes of values that a database computes and pg_dump leaves out: generated columns and materialized views.

A dump contains only their definitions, and a restore computes the values again. With other settings, another version or
at another time, the result may differ. So each dump records hashes of the values in its own snapshot
(:class:`Recorder`), and the same hashes are taken of a copy (:func:`read`). ``proof.computed_comparison`` compares
them.

The server computes the hashes in one process, independent of row order: the number of rows, and, for two seeds, the sum
modulo 2**64 of ``hashtextextended`` of each row's text. A single difference goes unnoticed once in 2**128. The session
settings pin the text of a value as they do for a dump. A generated value is hashed together with its primary key, so
that two swapped values are noticed; without a primary key, together with the columns that it is computed from. No
user-defined function runs: stored values are read, and only the types' output functions are called.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import psycopg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.manifest import Computed, ComputedTable, ComputedView, WalPoint
from ovia_backup_dagster.postgres.data_stream import decode_text
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import be_patient, connect
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, unended

#: How much of the source is read for the hashes, at most: about twenty seconds of one processor.
MOST_BYTES = 8 * 1024**3
#: How long hashing may delay a dump after pg_dump has ended.
GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.2
_ATTEMPTS = 4
#: A server that hangs accepts no cancel request; psycopg's plain ``cancel`` would make every thread wait for it.
_CANCEL_SECONDS = 5.0
_MODULUS = 2**64
#: One process, without parallel workers, and only a brief wait for locks.
_OPTIONS = (
    f"{SESSION_OPTIONS} {unended()} -c statement_timeout=60s -c lock_timeout=5s -c row_security=off"
    " -c search_path=pg_catalog,pg_temp -c jit=off -c max_parallel_workers_per_gather=0"
)
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SHOWN = "convert_to({}, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
#: Names are quoted, and returned as bytes, because those of an SQL_ASCII database have no encoding. The query locks and
#: opens no relation. Each partition is hashed on its own, and the sums are added up under the root's name: in a copy,
#: rows may land in other partitions, and some partitions may be foreign tables.
_RELATIONS = f"""
    SELECT c.oid::bigint AS oid, c.relkind = 'm' AS view, c.relispopulated AS populated,
           {_SHOWN.format("quote_ident(n.nspname) || '.' || quote_ident(c.relname)")} AS relation,
           {_SHOWN.format("quote_ident(m.nspname) || '.' || quote_ident(r.relname)")} AS name,
           ARRAY(SELECT {_SHOWN.format("quote_ident(a.attname)")}
                 FROM pg_index i CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS u (number, place)
                 JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
                 WHERE i.indrelid = r.oid AND i.indisprimary AND u.place <= i.indnkeyatts ORDER BY u.place) AS key
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class r ON r.oid = coalesce(CASE WHEN c.relispartition THEN pg_partition_root(c.oid) END, c.oid)
    JOIN pg_namespace m ON m.oid = r.relnamespace
    WHERE (c.relkind = 'm' OR c.relkind = 'r' AND c.oid IN (
              SELECT attrelid FROM pg_attribute WHERE attgenerated = 's' AND NOT attisdropped))
      AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (
          SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'e')
    ORDER BY c.oid
"""  # noqa: S608 - of constants
#: A column's inputs depend on its default since PostgreSQL 15, and on the column itself before. ``tableoid``, attribute
#: -6, differs in every database. The query avoids ``pg_get_expr``, which would lock the table.
_COLUMNS = rf"""
    SELECT a.attrelid::bigint AS oid, {_SHOWN.format("quote_ident(a.attname)")} AS name,
           f.adbin::text ~ ':varattno -6\M' AS numbered,
           ARRAY(SELECT {_SHOWN.format("quote_ident(i.attname)")} FROM pg_attribute i
                 WHERE i.attrelid = a.attrelid AND i.attnum IN (
                     SELECT d.refobjsubid FROM pg_depend d
                     WHERE (d.classid, d.objid) IN (('pg_attrdef'::regclass, f.oid), ('pg_class'::regclass, a.attrelid))
                       AND d.objsubid IN (0, a.attnum) AND d.refclassid = 'pg_class'::regclass
                       AND d.refobjid = a.attrelid AND d.refobjsubid NOT IN (0, a.attnum))
                 ORDER BY i.attname) AS inputs
    FROM pg_attribute a JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
    WHERE a.attgenerated = 's' AND NOT a.attisdropped ORDER BY a.attrelid, a.attname
"""  # noqa: S608 - of constants
#: A new file of a relation (after REFRESH or ALTER TABLE) is visible to every snapshot at once, even to an older one.
_HASH = b"""
    SELECT count(*) AS rows, ARRAY[%s]::text[] AS sums,
           (SELECT relfilenode <> pg_relation_filenode(oid) FROM pg_class WHERE oid = %d) AS replaced
    FROM (SELECT %s FROM ONLY %s AS t OFFSET 0) AS hashed
"""
_SUMS = b"sum(hashtextextended(v%d, 0))::text, sum(hashtextextended(v%d, 1))::text"
_TABLEOID = "it is computed from tableoid, which differs in every database"
_LOCKED = "another session had it locked"
_INTERRUPTED = f"hashing it took more than {GRACE_SECONDS:.0f} s longer than pg_dump"

Session = psycopg.Connection[dict[str, Any]]


class SnapshotAnchor(Protocol):
    """Takes a snapshot whose last commit is known exactly."""

    def take(self, session: Session, begin: str) -> WalPoint:
        """Begin a transaction in a session, with a snapshot.

        Args:
            session: of the database to dump, without a transaction; it has one afterwards.
            begin: the statement that begins the transaction.

        Returns:
            The commit, or why there is none: that fails no dump.

        Raises:
            ServerError: the session failed or broke.
        """


@dataclass(slots=True)
class _Relation:
    """A stored relation, and how to read its computed values. The partitions of a table share their root's name."""

    oid: int
    view: bool
    populated: bool
    relation: bytes
    name: str
    key: tuple[bytes, ...]
    columns: list[tuple[bytes, tuple[bytes, ...]]] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def query(self) -> bytes:
        """The hashes of each column, or of a view's rows."""
        if self.view:
            texts = [b"ROW(t.*)"]
        else:
            texts = [
                b"ROW(%s)" % b", ".join(b"t." + each for each in (*(self.key or inputs), name))
                for name, inputs in self.columns
            ]
        values = b", ".join(b'%s::text COLLATE "C" AS v%d' % (text, i) for i, text in enumerate(texts))
        sums = b", ".join(_SUMS % (i, i) for i in range(len(texts)))
        return _HASH % (sums, self.oid, values, self.relation)


@dataclass
class _Record:
    """The hashes taken so far."""

    tables: dict[str, ComputedTable] = field(default_factory=dict)
    views: dict[str, ComputedView] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    why: str = ""
    read_bytes: int = 0
    seconds: float = 0.0
    sums: dict[str, list[int]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, relation: _Relation, rows: int, sums: Iterable[str | None]) -> None:
        numbers = [int(number or 0) for number in sums]
        before = self.sums.get(relation.name, [0] * len(numbers))
        self.sums[relation.name] = [(a + b) % _MODULUS for a, b in zip(before, numbers, strict=True)]
        self.rows[relation.name] = self.rows.get(relation.name, 0) + rows
        self.read_bytes += relation.size_bytes
        found = self.sums[relation.name]
        hashes = [f"{one:016x}{other:016x}" for one, other in zip(found[::2], found[1::2], strict=True)]
        if relation.view:
            self.views[relation.name] = ComputedView(rows=rows, hash=hashes[0])
            return
        self.tables[relation.name] = ComputedTable(
            rows=self.rows[relation.name],
            key=tuple(map(decode_text, relation.key)),
            columns={decode_text(name): value for (name, _), value in zip(relation.columns, hashes, strict=True)},
        )

    def leave_out(self, name: str, why: str) -> None:
        """Leave out a whole table or view, if a part of it cannot be hashed."""
        self.left_out.setdefault(name, why)

    def done(self) -> Computed:
        return Computed(
            tables={name: table for name, table in self.tables.items() if name not in self.left_out},
            views={name: view for name, view in self.views.items() if name not in self.left_out},
            left_out=self.left_out,
            why=self.why,
            read_bytes=self.read_bytes,
            seconds=round(self.seconds, 3),
        )


def read(connection: Connection, wanted: Computed) -> Computed:
    """Hash in a copy the values that were hashed in the source.

    Args:
        connection: to the copy; no other session may write to it meanwhile.
        wanted: the source's record; values that it left out are left out here, too.

    Raises:
        ServerError: the connection failed or broke.
    """
    record = _Record()
    names = {*wanted.tables, *wanted.views}
    if not names:
        return record.done()
    with connect(connection, _OPTIONS) as session:
        be_patient(session)
        _prepare(session)
        session.execute("SET statement_timeout = 0")
        session.execute(_BEGIN)
        for relation in _relations(session, record):
            if relation.name in names:
                _hash(session, relation, record)
    return record.done()


class Recorder:
    """Hashes the source's values in a separate thread while pg_dump runs, in the same snapshot.

    If hashing fails, the reason is recorded and the dump continues. The session ends with the ``with`` block.

    Args:
        connection: to the source.
        holds_locks: whether pg_dump is known to hold its snapshot and its locks. The recorder touches no table before:
            a DDL statement that waited for the recorder would make pg_dump wait in turn.
        most_bytes: how much may be read; 0 switches hashing off.
        anchor: finds the commit that the snapshot ends with; ``None`` if no one needs it.
    """

    def __init__(
        self,
        connection: Connection,
        holds_locks: Callable[[], bool],
        *,
        most_bytes: int = MOST_BYTES,
        anchor: SnapshotAnchor | None = None,
    ) -> None:
        self._connection = connection
        self._anchor = anchor
        self._wal_point: WalPoint | None = None
        self._holds_locks = holds_locks
        self._most_bytes = most_bytes
        self._snapshot: str | None = None
        self._record = _Record(why="hashing did not finish")
        self._exported, self._dumped, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._session: Session | None = None
        # A daemon thread, so that the process can end even if the server hangs.
        self._thread = threading.Thread(target=self._run, name="computed values", daemon=True)

    @property
    def snapshot(self) -> str | None:
        """For ``pg_dump --snapshot``; ``None`` if there is nothing to hash or no snapshot could be exported."""
        self._exported.wait()
        return self._snapshot

    def __enter__(self) -> Self:
        if self._most_bytes or self._anchor is not None:
            self._thread.start()
        else:
            self._record.why = "switched off"
            self._exported.set()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up("")

    def give_up(self, why: str) -> None:
        """End the session now; the next attempt of pg_dump takes its own snapshot.

        Args:
            why: the reason to record.
        """
        self._stopped.set()
        self._dumped.set()
        self._end(0.0)
        if self._snapshot is not None and why:
            self._snapshot, self._record = None, _Record(why=why)
            if self._wal_point is not None:
                self._wal_point = WalPoint(why=f"pg_dump took a snapshot of its own: {why}")

    @property
    def wal_point(self) -> WalPoint | None:
        """The commit that the snapshot ends with, or why there is none; ``None`` without an anchor."""
        return self._wal_point

    def finish(self, grace_seconds: float = GRACE_SECONDS) -> Computed:
        """Return the hashes after pg_dump has ended; values not hashed within the grace period are left out."""
        self._dumped.set()
        self._end(grace_seconds)
        return self._record.done()

    def _end(self, seconds: float) -> None:
        if not self._thread.is_alive():
            return
        self._thread.join(seconds)
        self._stopped.set()
        # Several attempts: a query that begins at this moment misses the cancel request.
        for _ in range(_ATTEMPTS):
            if self._thread.is_alive() and (session := self._session) is not None:
                # In a thread, because a server that hangs does not answer a cancel request, either.
                threading.Thread(target=_cancel, args=[session], daemon=True).start()
            self._thread.join(1.0)

    def _run(self) -> None:
        record = _Record()
        try:
            with connect(self._connection, _OPTIONS) as session:
                self._session = session
                self._hash_all(session, record)
        except BackupError as error:
            record = _Record(why=error.account)
        finally:
            self._session = None
            self._record = record
            self._exported.set()

    def _hash_all(self, session: Session, record: _Record) -> None:
        _prepare(session)
        if self._anchor is not None:
            self._wal_point = self._anchor.take(session, _BEGIN)
        else:
            session.execute(_BEGIN)
        found = _relations(session, record) if self._most_bytes else []
        if not self._most_bytes:
            record.why = "switched off"
        if not found and (self._wal_point is None or not self._wal_point.lsn):
            return
        row = session.execute("SELECT pg_export_snapshot() AS snapshot").fetchone()
        assert row is not None
        self._snapshot = row["snapshot"]
        self._exported.set()
        be_patient(session)
        # Views first: pg_dump locks them late, so that a REFRESH could run before.
        views, tables = ([each for each in found if each.view is view] for view in (True, False))
        self._hash(session, views, record)
        self._wait_for_locks()
        self._hash(session, tables, record)

    def _hash(self, session: Session, found: Sequence[_Relation], record: _Record) -> None:
        for relation in list(_within(session, found, self._most_bytes - record.read_bytes, record)):
            if self._stopped.is_set():
                record.leave_out(relation.name, _INTERRUPTED)
            else:
                _hash(session, relation, record)

    def _wait_for_locks(self) -> None:
        """Keep this session open until pg_dump has imported the snapshot and locked its tables."""
        while not (self._dumped.is_set() or self._holds_locks()):
            self._dumped.wait(_POLL_SECONDS)


def _cancel(session: Session) -> None:
    with contextlib.suppress(psycopg.Error):
        session.cancel_safe(timeout=_CANCEL_SECONDS)


def _prepare(session: Session) -> None:
    """Pass the bytes of names through unchanged, and let the server end the session if this client is killed."""
    if session.info.parameter_status("server_encoding") == "SQL_ASCII":
        session.execute("SET client_encoding = LATIN1")  # every byte is valid in it, and none is converted
    with contextlib.suppress(psycopg.Error):  # not available on every operating system
        session.execute("SET client_connection_check_interval = '10s'")
    session.execute("SET statement_timeout = '1h'")


def _relations(session: Session, record: _Record) -> list[_Relation]:
    """The relations to hash. Columns that can never be compared are recorded as left out."""
    found = {
        row["oid"]: _Relation(
            row["oid"], row["view"], row["populated"], row["relation"], decode_text(row["name"]), tuple(row["key"])
        )
        for row in session.execute(_RELATIONS)
    }
    for row in session.execute(_COLUMNS) if any(not each.view for each in found.values()) else ():
        relation = found.get(row["oid"])
        if relation is None:
            continue
        if row["numbered"]:
            record.leave_out(f"{relation.name}, column {decode_text(row['name'])}", _TABLEOID)
        else:
            relation.columns.append((row["name"], tuple(row["inputs"])))
    return [each for each in found.values() if each.view or each.columns]


def _within(session: Session, found: Iterable[_Relation], most: int, record: _Record) -> Iterator[_Relation]:
    """Yield the smallest relations whose total size is within the limit; record the others as left out."""
    for relation in found:
        with _apart(session, relation.name, record):
            row = session.execute(f"SELECT pg_table_size({relation.oid}::oid::regclass) AS bytes".encode()).fetchone()
            relation.size_bytes = (row and row["bytes"]) or 0
    together = 0
    for relation in sorted(found, key=lambda each: each.size_bytes):
        if relation.name in record.left_out:
            continue
        together += relation.size_bytes
        if together > most:
            size, limit = human_bytes(relation.size_bytes), human_bytes(most)
            record.leave_out(relation.name, f"its size is {size}, and no more than {limit} are read in all")
        else:
            yield relation


def _hash(session: Session, relation: _Relation, record: _Record) -> None:
    if relation.name in record.left_out:
        return
    if not relation.populated:
        record.views[relation.name] = ComputedView()
        return
    clock = time.monotonic()
    with _apart(session, relation.name, record):
        row = session.execute(relation.query).fetchone()
        assert row is not None
        if row["replaced"]:
            record.leave_out(relation.name, "it was refreshed or rewritten when the dump began")
        else:
            record.add(relation, row["rows"], row["sums"])
    record.seconds += time.monotonic() - clock


@contextmanager
def _apart(session: Session, name: str, record: _Record) -> Iterator[None]:
    """Release the block's locks at its end, so that no session waits for the end of the dump; record its errors."""
    session.execute("SAVEPOINT apart")
    try:
        yield
    except psycopg.errors.LockNotAvailable:
        record.leave_out(name, _LOCKED)
    except psycopg.errors.QueryCanceled:
        record.leave_out(name, _INTERRUPTED)
    except psycopg.Error as error:
        if session.closed:
            raise
        record.leave_out(name, said_by(error))
    session.execute("ROLLBACK TO SAVEPOINT apart; RELEASE SAVEPOINT apart")
