"""Advisory locks: one process of this system excludes another on the same server until its session ends.

A lost network can keep a session, and so its lock, alive on the server. If waiting for a lock fails, the error
therefore names the holder. The caller decides what to lock; ``session`` keeps a session from outliving its client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import AdvisoryLockHeldError

Session = psycopg.Connection[dict[str, Any]]

_KEY = "hashtextextended(%s, 0)"
_LOCK, _TRY, _UNLOCK = (
    f"SELECT {function}({_KEY}) AS done"
    for function in ("pg_advisory_lock", "pg_try_advisory_lock", "pg_advisory_unlock")
)
#: pg_locks shows a 64-bit key as two 32-bit numbers (PostgreSQL's documentation of pg_locks, "advisory locks").
_HOLDER = f"""
    SELECT l.pid, coalesce(a.usename, '') AS role, coalesce(a.application_name, '') AS application,
           coalesce(host(a.client_addr), '') AS client, coalesce(a.state, '') AS state,
           to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS since
    FROM (SELECT {_KEY} AS key) AS k
    JOIN pg_locks l ON l.classid::bigint = (k.key >> 32) & 4294967295 AND l.objid::bigint = k.key & 4294967295
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """One lock in the database that the session is connected to.

    Attributes:
        name: is hashed to the lock's key. All releases must use the same name.
        purpose: what the holder does, for messages: ``the swap of a restore``.
    """

    name: str
    purpose: str

    def take(self, session: Session) -> None:
        """Wait for the lock, at most for the session's ``lock_timeout``.

        Raises:
            AdvisoryLockHeldError: another session, which the error names, holds the lock.
        """
        try:
            session.execute(_LOCK, [self.name])
        except psycopg.errors.LockNotAvailable:
            raise self._held(session) from None

    def take_at_once(self, session: Session) -> None:
        """Take the lock without waiting.

        Raises:
            AdvisoryLockHeldError: another session, which the error names, holds the lock.
        """
        row = session.execute(_TRY, [self.name]).fetchone()
        if not (row and row["done"]):
            raise self._held(session)

    def wait_until_free(self, session: Session) -> None:
        """Wait until no other session holds the lock: take it and release it.

        Raises:
            AdvisoryLockHeldError: another session, which the error names, holds the lock.
        """
        self.take(session)
        session.execute(_UNLOCK, [self.name])

    def _held(self, session: Session) -> AdvisoryLockHeldError:
        row = session.execute(_HOLDER, [self.name]).fetchone()
        what = f"{self.purpose} waits for another one on this server"
        if row is None:
            return AdvisoryLockHeldError(what, why="the other one has ended by now", fix="try again")
        details = (row["role"] and f"role {row['role']}", row["application"], row["client"], row["state"])
        since = f"connected since {row['since']} UTC" if row["since"] else ""
        held = ", ".join(filter(None, (f"process {row['pid']}", *details, since)))
        return AdvisoryLockHeldError(
            what,
            why=f"{held}, holds the advisory lock {self.name!r}: it is doing the same, or its client is gone and "
            "the server has not noticed yet",
            fix=f"wait for it to end; if its client is gone: SELECT pg_terminate_backend({row['pid']}); then try again",
        )
