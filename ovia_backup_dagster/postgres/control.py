"""The negative control of a drill: a row is deleted in the copy, and the comparison must notice.

A comparison that sees nothing passes everything; this is what shows that it sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from ovia_backup_dagster.core.verdict import TableWitness
from ovia_backup_dagster.postgres.reread import Rereader
from ovia_backup_dagster.postgres.session import connect

Session = psycopg.Connection[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Control:
    """What came of it.

    Attributes:
        table: of which a row was deleted; empty when no table let one go.
        noticed: whether reading the table again showed it.
    """

    table: str
    noticed: bool


def control(reader: Rereader, tables: Iterable[TableWitness]) -> Control:
    """Delete a row of the smallest table that lets one go, read the table again, and put the row back.

    Args:
        reader: of the copy.
        tables: the copy's, as they were read; those without rows are passed over.

    Raises:
        BackupError: the copy cannot be read.
    """
    filled = sorted((table for table in tables if table.rows), key=lambda table: (table.rows, table.name))
    with connect(reader.copy) as session:
        for table in filled:
            row = _take_row(session, table)
            if row is None:
                continue  # a rule or a reference keeps it: another table will do
            after = reader.read_table(table.name)
            _put_back(session, table, row)
            read = (after.rows, after.digest.hexdigest()) if after else None
            return Control(table.name, read != (table.rows, table.sha256))
    return Control("", noticed=False)


def _take_row(session: Session, table: TableWitness) -> bytes | None:
    """Delete a row; returns it as COPY writes it, or ``None`` when none could be deleted."""
    # A table that is loaded through its root is read by that name: its rows stand in the partitions.
    for target in (f"ONLY {table.name}", table.name):
        try:
            with session.transaction():
                _without_triggers(session)
                found = _fetch(session, f"SELECT tableoid, ctid::text AS ctid FROM {target} LIMIT 1")  # noqa: S608
                if found is None:
                    continue
                where = f"WHERE tableoid = {found['tableoid']} AND ctid = '{found['ctid']}'::tid"
                query = f"COPY (SELECT {table.columns} FROM {target} {where}) TO STDOUT"  # noqa: S608
                with session.cursor().copy(query.encode()) as copied:
                    row = b"".join(map(bytes, copied))
                if session.execute(f"DELETE FROM {target} {where}".encode()).rowcount == 1:  # noqa: S608
                    return row
        except psycopg.Error:
            continue
    return None


def _put_back(session: Session, table: TableWitness, row: bytes) -> None:
    columns = f" ({table.columns})" if table.columns else ""
    with session.transaction():
        _without_triggers(session)
        with session.cursor().copy(f"COPY {table.name}{columns} FROM STDIN".encode()) as copied:
            copied.write(row)


def _fetch(session: Session, query: str) -> dict[str, Any] | None:
    # The names in it are as pg_dump printed them, quoted where needed.
    return session.execute(query.encode()).fetchone()


def _without_triggers(session: Session) -> None:
    """The row alone is to be missing, whatever triggers and references say. Superusers may ask for that."""
    with _permitted(session):
        session.execute("SET LOCAL session_replication_role = replica")


@contextmanager
def _permitted(session: Session) -> Iterator[None]:
    """What this role may not do is left undone, and the transaction goes on."""
    try:
        with session.transaction():
            yield
    except psycopg.errors.InsufficientPrivilege:
        return
