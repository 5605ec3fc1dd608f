"""What a client program could not make plain, asked of the server by a session of ours.

A program prints what the server says in the server's language, and no SQLSTATE. So it is asked to speak English where
the role may ask for that; and where a failure's words are still not understood, a session puts the same question again
and is told its SQLSTATE. Nothing here changes anything: what pg_dump asks, it asks in a read-only transaction, too.
"""

from __future__ import annotations

import re

from ovia_backup_dagster.core.errors import BackupError, MomentaryError, ProgramError, StatementTimeoutError
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import MAY_ENGLISH, connect
from ovia_backup_dagster.postgres.translation import SEVERITY

#: Who may not set it is not even let in with it.
_IN_ENGLISH = "-c lc_messages=C"
#: pg_dump and pg_dumpall end with the question that failed. pg_restore's is a command, and not for us to repeat.
_QUESTION = re.compile(r"^(?:pg_dump|pg_dumpall): detail: (?:Query|Command) was: ((?s:.+))\Z", re.MULTILINE)


def in_english(connection: Connection, options: str = "") -> dict[str, str]:
    """``PGOPTIONS`` of a program, by which the server answers it in English; without that, where the role may not ask.

    Args:
        connection: the program's.
        options: what else is in them.
    """
    try:
        may = connection.sandboxed or _may(connection)
    except BackupError:
        may = False  # the program will meet it, too
    options = f"{options} {_IN_ENGLISH}" if may else options
    return {"PGOPTIONS": options.strip()} if options else {}


def _may(connection: Connection) -> bool:
    with connect(connection) as session:
        return session.execute(MAY_ENGLISH).fetchone() is not None


def diagnose_program(stderr: str, *, what: str, connection: Connection, exit_code: int) -> BackupError:
    """As :func:`diagnosis.diagnose`; where the server's words are not known, a session asks again.

    Args:
        stderr: what the program printed.
        what: what failed, naming the thing.
        connection: the program's.
        exit_code: of the program; a negative one is a signal.
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
        return error  # ours: it would take too long to find out
    except BackupError as asked:
        if type(asked) is ProgramError:
            return error
        return type(asked)(what, why=asked.why, fix=asked.fix, said=asked.said)
    return MomentaryError(
        what,
        why="the server refused this to the client program, and does it for a session now: what was in the way has "
        "passed",
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
