"""Queries a server about a client program's sessions: whether they progress, their activity, and their wait events.

A separate session queries, and only while the program itself shows no sign of life (``watch``).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ovia_backup_dagster.core.errors import BackupError, LockStalledError, LockTimeoutError, StalledError
from ovia_backup_dagster.core.human_text import duration
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.postgres.watchdog import SessionProgress, Watch

#: A server that takes longer to answer about its sessions hangs, too.
_ANSWER_SECONDS = 10.0
#: Wait events of a session that is not working itself: it waits for its client or for a lock.
_NOT_AT_WORK = ("Client", "Lock")
_SESSIONS = """
    SELECT a.pid, coalesce(a.state, '') AS state, coalesce(a.wait_event_type, '') AS kind,
           coalesce(a.wait_event, '') AS event, concat_ws(' ', a.state_change, a.query_start, md5(a.query)) AS query,
           {progress},
           CASE WHEN a.wait_event_type = 'Lock' THEN (
               SELECT coalesce(CASE WHEN l.database = d.oid THEN l.relation::regclass::text END, l.locktype)
               FROM pg_locks l, pg_database d WHERE d.datname = current_database() AND l.pid = a.pid AND NOT l.granted
               LIMIT 1) END AS locked,
           CASE WHEN a.wait_event_type = 'Lock' THEN (
               SELECT string_agg(concat('process ', b.pid, ' (', concat_ws(', ', nullif(b.application_name, ''),
                                 b.usename, b.state), ')'), ' and ' ORDER BY b.pid)
               FROM pg_stat_activity b WHERE b.pid = ANY (pg_blocking_pids(a.pid))) END AS holders
    FROM pg_stat_activity a {joins} WHERE a.application_name = %s ORDER BY a.pid
"""
#: PostgreSQL 14 and later report the progress of both COPY and CREATE INDEX.
_PROGRESS = """
           c.relid::regclass::text AS "table", c.tuples_processed AS tuples,
           concat_ws(' ', c.bytes_processed, c.tuples_processed, i.phase, i.blocks_done, i.tuples_done,
                     n.phase, n.sample_blks_scanned) AS counters
"""
_JOINS = """
    LEFT JOIN pg_stat_progress_copy c USING (pid) LEFT JOIN pg_stat_progress_create_index i USING (pid)
    LEFT JOIN pg_stat_progress_analyze n USING (pid)
"""
_NONE = "NULL::text AS \"table\", NULL::bigint AS tuples, '' AS counters"
_SEE = (
    "SELECT pid, state, wait_event_type, wait_event, query FROM pg_stat_activity WHERE application_name ~ 'ovia-backup'"
)


def watch(
    programs: Programs, connection: Connection | None = None, *, work_counts: bool = False, retry: str = ""
) -> Watch:
    """Make the watch for a client program.

    Args:
        programs: its ``stall_seconds`` limit how long a program may make no progress.
        connection: to the database that it works on; ``None`` for a program that works only on files.
        work_counts: whether an active statement counts as progress even without a sign of it: building an index or a
            foreign key may take hours and must not be lost.
        retry: the command for a retry, for messages.
    """
    seconds = programs.stall_seconds

    def ask(application: str) -> SessionProgress:
        assert connection is not None
        try:
            with connect(connection, answer_seconds=min(_ANSWER_SECONDS, max(2.0, seconds / 4))) as session:
                new = session.info.server_version >= 140000
                query = _SESSIONS.format(progress=_PROGRESS if new else _NONE, joins=_JOINS if new else "")
                rows = session.execute(query.encode(), [application]).fetchall()
        except BackupError as error:
            return SessionProgress(None, f"the server could not be asked: {error.account}")
        mark: object = [tuple(row.values()) for row in rows]
        if work_counts and any(row["state"] == "active" and row["kind"] not in _NOT_AT_WORK for row in rows):
            mark = time.monotonic()
        lock = next((f"a lock on {row['locked']}, which {_holders(row)}" for row in rows if row["locked"]), "")
        return SessionProgress(mark, "; ".join(map(_at, rows)) or "the server has no session of it", lock)

    def failed(program: str, last: SessionProgress | None) -> BackupError:
        what = f"{program} of {connection}" if connection else program
        if last is not None and last.lock:
            return waits_for_lock(LockStalledError, f"{what} was ended", last.lock, retry)
        return StalledError(
            f"{what} made no progress for {duration(timedelta(seconds=seconds))}, and was ended",
            why=f"it received nothing, and its server made no progress: {last.at}"
            if last is not None
            else "it neither ended nor used any processor time: a disk, or the network to it, may hang",
            fix=f"{_look(connection)}; {_then(retry)}",
        )

    return Watch(seconds, failed, ask if connection else None)


def waits_for_lock(kind: type[LockTimeoutError], what: str, lock: str, retry: str = "") -> LockTimeoutError:
    """The error for a program that waits for another session's lock, described by :attr:`SessionProgress.lock`."""
    return kind(
        what,
        why=f"it waited in vain for {lock}",
        fix=f"wait for that process, or end it: SELECT pg_terminate_backend(PID); {_then(retry)}",
    )


def _look(connection: Connection | None) -> str:
    if connection is None:
        return "dmesg | tail"
    return f"pg_isready -h {shell_word(connection.host)} -p {connection.port}; psql -c {shell_word(_SEE)}"


def _then(retry: str) -> str:
    return f"then try again: {retry}" if retry else "then try again"


def _holders(row: Mapping[str, Any]) -> str:
    return f"{row['holders']} holds" if row["holders"] else "a prepared transaction holds"


def _at(row: Mapping[str, Any]) -> str:
    """``process 4711, active, COPY of public.people (1,000 rows), waiting for ClientWrite``."""
    parts = [f"process {row['pid']}", row["state"]]
    if row["table"]:
        parts.append(f"COPY of {row['table']} ({row['tuples']:,} rows)")
    if row["event"]:
        parts.append(f"waiting: {row['kind']}/{row['event']}")
    return ", ".join(filter(None, parts))
