"""Finds out why a program that replicates (pg_basebackup, pg_receivewal) failed, or would fail.

A server refuses replication for reasons of its own, and lets the same role into a database all the while; so an
ordinary session, with which ``postgres.server_language`` repeats a question, cannot tell them. Every other message is
for ``postgres.diagnosis``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import psycopg

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import BackupError, MomentaryError, ProgramError
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.server_language import diagnose_program
from ovia_backup_dagster.postgres.session import identify_by_replication


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A message: its pattern, the error, its cause and the remedy, in which ``{role}`` and ``{line}`` are filled."""

    pattern: str
    error: type[BackupError]
    why: str
    fix: str


#: The messages of PostgreSQL 13 to 18.
_REFUSALS = (
    _Refusal(
        r"no pg_hba\.conf entry for replication connection|pg_hba\.conf rejects replication connection",
        errors.AccessRefusedError,
        "the server's pg_hba.conf does not let this role replicate from here: a line for database all does not match "
        "replication",
        "append to pg_hba.conf on the server: {line}; then: SELECT pg_reload_conf()",
    ),
    _Refusal(
        r"permission denied to start WAL sender|must be superuser or replication role to start walsender",
        errors.PrivilegeError,
        "the role lacks the attribute REPLICATION",
        "as a superuser: ALTER ROLE {role} REPLICATION",
    ),
    _Refusal(
        r"number of requested standby connections exceeds",
        errors.TooManyConnectionsError,
        "all of the server's max_wal_senders are in use, or it has none",
        "see by what: SELECT pid, usename, application_name, client_addr FROM pg_stat_replication; then retry, or: "
        "ALTER SYSTEM SET wal_level = replica; ALTER SYSTEM SET max_wal_senders = 20; restart the server",
    ),
    _Refusal(
        r"checksum verification failed|checksum error occurred",
        errors.ServerDataError,
        "a page on the server's disk has a wrong checksum: a disk or its memory is failing",
        "keep all existing backups; copy the server's data directory; see which table it is, and restore it: "
        "ovia-backup list",
    ),
)


def require_replication(connection: Connection, answer_seconds: float) -> str:
    """Require that a role may replicate from here, by doing it; returns the cluster's system identifier.

    Raises:
        BackupError: the server refuses, with the cause.
    """
    try:
        return identify_by_replication(connection, answer_seconds)
    except psycopg.Error as error:
        what = f"role {connection.user} cannot receive WAL from {connection.host}:{connection.port}"
        raise diagnose_replication(str(error), what=what, connection=connection, exit_code=1) from None


def diagnose_replication(stderr: str, *, what: str, connection: Connection, exit_code: int) -> BackupError:
    """The typed error for a program that replicates and failed.

    Args:
        stderr: the program's standard error.
        what: what failed, naming the object.
        connection: the program's.
        exit_code: the program's; a negative code is a signal.
    """
    without_tls = connection.libpq.get("PGSSLMODE") == "disable" and "no encryption" in stderr
    for known in _REFUSALS:
        said = next((line.strip() for line in stderr.splitlines() if re.search(known.pattern, line)), "")
        if said and not without_tls:
            # Words such as all have a meaning in pg_hba.conf, unless they are quoted.
            plain = re.fullmatch(r"[a-z0-9]+(?:_[a-z0-9]+)+", connection.user)
            role = connection.user if plain else sql_identifier(connection.user)
            fix = known.fix.format(role=role, line=f"host replication {role} all scram-sha-256")
            return known.error(what, why=known.why, fix=fix, said=connection.redact(said))
    found = diagnose_program(stderr, what=what, connection=connection, exit_code=exit_code)
    if isinstance(found, MomentaryError):
        # The server let an ordinary session in, which says nothing about replication.
        direct = diagnose(stderr, what=what, connection=connection, exit_code=exit_code)
        return direct if type(direct) is ProgramError else found
    return found
