"""What a database computes and pg_dump leaves out, as hashes: generated columns, materialized views.

A dump holds how they are computed, and a restore computes them again: with other settings, other versions, another
clock the outcome may be another. So a dump records what they held, in its own snapshot (:class:`Recorder`), and a copy
is asked the same (:func:`read`). Whether the two are equal is the business of ``proof.computed_comparison``.

A hash is taken by the server, in one process, and says nothing about order: the rows' number, and, for two seeds, the
sum modulo 2**64 of ``hashtextextended`` of each row's text. A single difference is missed once in 2**128. The text of a
value is pinned as a dump's is. A generated value is hashed beside its primary key, so that two that changed places are
seen; without one, beside the columns that it is computed from. No function of a user's runs: stored values are read,
and only the types' own output.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.manifest import Computed, ComputedTable, ComputedView
from ovia_backup_dagster.postgres.data_stream import decode_text
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import be_patient, connect
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, unended

#: How much of the source is read for it, at most: some twenty seconds of one processor.
MOST_BYTES = 8 * 1024**3
#: What a dump may take longer for it; while pg_dump runs, there is time.
GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.2
_ATTEMPTS = 4
#: A server that stands still takes no request to cancel; the plain call would keep every thread waiting for it.
_CANCEL_SECONDS = 5.0
_MODULUS = 2**64
#: One process, and locks that are waited for briefly.
_OPTIONS = (
    f"{SESSION_OPTIONS} {unended()} -c statement_timeout=60s -c lock_timeout=5s -c row_security=off"
    " -c search_path=pg_catalog,pg_temp -c jit=off -c max_parallel_workers_per_gather=0"
)
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SHOWN = "convert_to({}, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
#: Names come quoted, and as bytes: those of SQL_ASCII are in no encoding. No relation is locked or opened by this.
#: Partitions are hashed each on its own and summed up under their root's name: rows may land in other ones of a copy,
#: and some may be foreign tables.
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
#: What a column is computed from depends on its default since PostgreSQL 15, before on the column itself.
#: ``tableoid``, attribute -6, is another in every database; ``pg_get_expr`` would lock the table.
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
#: What replaces a relation's file is there for every snapshot at once, an older one's too: REFRESH, ALTER TABLE.
_HASH = b"""
    SELECT count(*) AS rows, ARRAY[%s]::text[] AS sums,
           (SELECT relfilenode <> pg_relation_filenode(oid) FROM pg_class WHERE oid = %d) AS replaced
    FROM (SELECT %s FROM ONLY %s AS t OFFSET 0) AS hashed
"""
_SUMS = b"sum(hashtextextended(v%d, 0))::text, sum(hashtextextended(v%d, 1))::text"
_TABLEOID = "it is computed from tableoid, which is another in every database"
_LOCKED = "another session had it locked"
_INTERRUPTED = f"pg_dump had ended, and hashing it took more than {GRACE_SECONDS:.0f} s longer"

Session = psycopg.Connection[dict[str, Any]]


@dataclass(slots=True)
class _Relation:
    """What is stored, and how its computed values are read; of a partitioned table there are many by one name."""

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
    """What was hashed so far."""

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
        """A table of which a part cannot be hashed is left out as a whole."""
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
    """Hash in a copy what was hashed in the source.

    Args:
        connection: to the copy; no other session may write while it is read.
        wanted: the source's record: what it left out is left out.

    Raises:
        ServerError: no connection, or it broke.
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
    """Hashes the source's values beside pg_dump, in the same snapshot, in a thread of its own.

    A failure of this is none of the dump's: it is written down, and the dump goes on. Nothing of it outlasts the block.

    Args:
        connection: the source.
        holds_locks: whether pg_dump is known to hold its snapshot and its locks. Until then no table is touched: a
            change of a table that waited for us would have pg_dump wait in turn.
        most_bytes: how much may be read; 0: nothing is asked.
    """

    def __init__(
        self, connection: Connection, holds_locks: Callable[[], bool], *, most_bytes: int = MOST_BYTES
    ) -> None:
        self._connection = connection
        self._holds_locks = holds_locks
        self._most_bytes = most_bytes
        self._snapshot: str | None = None
        self._record = _Record(why="it did not come to its end")
        self._exported, self._dumped, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._session: Session | None = None
        # A daemon: whatever the server does, the process ends.
        self._thread = threading.Thread(target=self._run, name="computed values", daemon=True)

    @property
    def snapshot(self) -> str | None:
        """For ``pg_dump --snapshot``; ``None`` where there is nothing to hash, or it could not be had."""
        self._exported.wait()
        return self._snapshot

    def __enter__(self) -> Self:
        if self._most_bytes:
            self._thread.start()
        else:
            self._record.why = "switched off"
            self._exported.set()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up("")

    def give_up(self, why: str) -> None:
        """End the session now; the next attempt of pg_dump takes a snapshot of its own.

        Args:
            why: for the record.
        """
        self._stopped.set()
        self._dumped.set()
        self._end(0.0)
        if self._snapshot is not None and why:
            self._snapshot, self._record = None, _Record(why=why)

    def finish(self, grace_seconds: float = GRACE_SECONDS) -> Computed:
        """pg_dump has ended; what is not hashed after a while is left out."""
        self._dumped.set()
        self._end(grace_seconds)
        return self._record.done()

    def _end(self, seconds: float) -> None:
        if not self._thread.is_alive():
            return
        self._thread.join(seconds)
        self._stopped.set()
        # A query that begins at this moment misses it.
        for _ in range(_ATTEMPTS):
            if self._thread.is_alive() and (session := self._session) is not None:
                # A server that stands still never answers that either.
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
        session.execute(_BEGIN)
        found = _relations(session, record)
        if not found:
            return
        row = session.execute("SELECT pg_export_snapshot() AS snapshot").fetchone()
        assert row is not None
        self._snapshot = row["snapshot"]
        self._exported.set()
        be_patient(session)
        # pg_dump locks views late: a REFRESH could come between.
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
        """Until pg_dump holds its snapshot, this session must go on."""
        while not (self._dumped.is_set() or self._holds_locks()):
            self._dumped.wait(_POLL_SECONDS)


def _cancel(session: Session) -> None:
    with contextlib.suppress(psycopg.Error):
        session.cancel_safe(timeout=_CANCEL_SECONDS)


def _prepare(session: Session) -> None:
    """So that what names hold passes as it is; and a session whose client was killed ends."""
    if session.info.parameter_status("server_encoding") == "SQL_ASCII":
        session.execute("SET client_encoding = LATIN1")  # any byte is valid in it, and none is converted
    with contextlib.suppress(psycopg.Error):  # not on every system
        session.execute("SET client_connection_check_interval = '10s'")
    session.execute("SET statement_timeout = '1h'")


def _relations(session: Session, record: _Record) -> list[_Relation]:
    """What there is to hash. What can never be compared is left out."""
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
    """The smallest, as many as may be read; the others are left out."""
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
            record.leave_out(relation.name, f"it has {size}, and no more than {limit} are read in all")
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
            record.leave_out(relation.name, "it was refreshed or rewritten while the dump began")
        else:
            record.add(relation, row["rows"], row["sums"])
    record.seconds += time.monotonic() - clock


@contextmanager
def _apart(session: Session, name: str, record: _Record) -> Iterator[None]:
    """What the block locks is let go after it, so that no session waits for the dump's end; its errors are its own."""
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
