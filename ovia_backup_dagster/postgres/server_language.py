"""Finds the cause of a client program's failure when the server's message is not in English.

A program prints the server's messages in the server's language, and no SQLSTATE. So the server is asked to answer in
English, if the role may set that. If a message is still not recognized, a session repeats the failed query and gets its
SQLSTATE. The session changes nothing: like pg_dump, it uses a read-only transaction.
"""

from __future__ import annotations

import re

from ovia_backup_dagster.core.errors import BackupError, MomentaryError, ProgramError, StatementTimeoutError
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import MAY_ENGLISH, connect
from ovia_backup_dagster.postgres.translation import SEVERITY

#: The server refuses the connection if the role may not set this.
_IN_ENGLISH = "-c lc_messages=C"
#: pg_dump and pg_dumpall print the failed query last. pg_restore prints commands, which must not be repeated.
_QUESTION = re.compile(r"^(?:pg_dump|pg_dumpall): detail: (?:Query|Command) was: ((?s:.+))\Z", re.MULTILINE)


def in_english(connection: Connection, options: str = "") -> dict[str, str]:
    """``PGOPTIONS`` for a program that make the server answer in English, if the role may set that.

    Args:
        connection: the program's.
        options: further options to include.
    """
    try:
        may = connection.sandboxed or _may(connection)
    except BackupError:
        may = False  # the program will run into the same error
    options = f"{options} {_IN_ENGLISH}" if may else options
    return {"PGOPTIONS": options.strip()} if options else {}


def _may(connection: Connection) -> bool:
    with connect(connection) as session:
        return session.execute(MAY_ENGLISH).fetchone() is not None


def diagnose_program(stderr: str, *, what: str, connection: Connection, exit_code: int) -> BackupError:
    """Like :func:`diagnosis.diagnose`, but if the server's message is not recognized, a session repeats the query.

    Args:
        stderr: the program's standard error.
        what: what failed, naming the object.
        connection: the program's.
        exit_code: the program's; a negative code is a signal.
    """
    error = diagnose(stderr, what=what, connection=connection, exit_code=exit_code)
    if type(error) is not ProgramError or exit_code < 0 or not SEVERITY.search(stderr):
        return error
    question = _QUESTION.search(stderr)
    if question is None and "connection to server" not in stderr:
        return error
    try:
        _ask(connection, question[1].strip() if question else "")
    except StatementTimeoutError:
        return error  # our session's own timeout: finding the cause would take too long
    except BackupError as asked:
        if type(asked) is ProgramError:
            return error
        return type(asked)(what, why=asked.why, fix=asked.fix, said=asked.said)
    return MomentaryError(
        what,
        why="the server refused this to the client program, but accepts it from a session now: the cause has passed",
        said=error.said,
        fix="retry",
    )


def _ask(connection: Connection, question: str) -> None:
    with connect(connection) as session, session.transaction(), session.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
        cursor.execute("SET LOCAL row_security = off")  # as pg_dump does
        if question.startswith("COPY "):
            with cursor.copy(question.encode()) as rows:
                for _ in rows:
                    pass
        elif question:
            cursor.execute(question.encode())
