"""Turns messages of PostgreSQL's server, programs and libpq into typed errors with the likely cause and next command.

These functions read the table in ``known_messages``. A session's error is recognized by its SQLSTATE, whatever the
server's language; a program's output by its text. A message that the table does not contain is shown unchanged,
because a guess would mislead a frightened person. This module judges messages only: ``archive`` judges archives, and
``core.files`` errors of the volume's files.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import psycopg

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import BackupError, ProgramError
from ovia_backup_dagster.postgres import passfile
from ovia_backup_dagster.postgres.known_messages import KNOWN_MESSAGES, KnownMessage
from ovia_backup_dagster.postgres.programs import Connection, Variables, messages
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier, sql_string
from ovia_backup_dagster.postgres.sandbox import CANNOT, REFUSED
from ovia_backup_dagster.postgres.server_messages import is_raised, text_of, without_values
from ovia_backup_dagster.postgres.translation import english

#: Stands for an unknown name in advice.
_UNKNOWN = "..."
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)


def diagnose(
    text: str, *, what: str, connection: Connection | None = None, exit_code: int | None = None
) -> BackupError:
    """The typed error for the output of a program, or for a message of libpq.

    Args:
        text: standard error, or a libpq error message; the error shows no data values from it.
        what: what failed, naming the object.
        connection: the connection of the attempt, for the advice; its password is removed from the text.
        exit_code: the program's; a negative code is a signal.
    """
    if exit_code == REFUSED and text.startswith(CANNOT):
        return errors.SandboxError(
            what,
            why="it reads untrusted data and cannot be confined here, which DRILL_SANDBOX=require demands",
            said=text.strip().rpartition("\n")[2],
            fix="see what this kernel or container lacks: ovia-backup doctor; or accept it: DRILL_SANDBOX=auto",
        )
    if found := _recognised(text, connection):
        return found.error(what, connection, _line_of(text, found.line))
    redact = connection.redact if connection else str
    lines = messages(redact(without_values(text)))
    if signal_of_crash := crashed(exit_code):
        return errors.ProgramCrashedError(
            what,
            why=f"the program crashed (signal {signal_of_crash}): unexpected input triggered a bug, or it is damaged",
            fix="try again; if it crashes again, reinstall the client programs, and check: ovia-backup doctor",
            said=" / ".join(lines[-1:]),
        )
    if exit_code is not None and exit_code < 0:
        return ProgramError(
            what,
            why=f"the program was ended by signal {-exit_code}: another process killed it, or memory ran out",
            fix="see what ended it: dmesg | tail; then retry",
            said=" / ".join(lines[-1:]),
        )
    return ProgramError(what, said=" / ".join(lines[-3:]) or f"it ended with code {exit_code} and no message")


def crashed(exit_code: int | None) -> int:
    """The signal of the crash that ended a program, also if reported by a shell; 0 for any other end.

    SIGKILL is not a crash: another process sent it, or the kernel when memory ran out. Nor is SIGBUS, which the kernel
    sends when the disk cannot read the program's own file.
    """
    signal_number = -exit_code if exit_code and exit_code < 0 else (exit_code or 0) - 128
    return signal_number if signal_number in _CRASHES else 0


def diagnose_error(
    error: psycopg.Error | UnicodeError, *, what: str, connection: Connection | None = None
) -> BackupError:
    """The typed error for a failure in one of our sessions: by its SQLSTATE if the server sent one.

    Args:
        error: as psycopg raised it.
        what: what failed, naming the object.
        connection: the connection of the attempt, for the advice; its password is removed from the text.
    """
    text = text_of(error)
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return diagnose_sqlstate(
            error.sqlstate, text, routine=error.diag.source_function or "", what=what, connection=connection
        )
    return diagnose(text, what=what, connection=connection)


def diagnose_sqlstate(
    sqlstate: str, text: str, *, routine: str, what: str, connection: Connection | None = None
) -> BackupError:
    """The typed error for an error of the server.

    Args:
        sqlstate: the error's (PostgreSQL's Appendix A).
        text: the message, in any language; it distinguishes only causes that share the SQLSTATE.
        routine: the function in the server's source that reported the error, which distinguishes them in any language.
        what, connection: as for :func:`diagnose`.
    """
    # The message and SQLSTATE of RAISE are chosen by a user's function, so they identify nothing.
    if not is_raised(text):
        rows = [row for row in KNOWN_MESSAGES if row.of and re.fullmatch(row.of, sqlstate)]
        if found := _recognised(text, connection, rows):
            return found.error(what, connection, _line_of(text, found.line))
        told = [row for row in rows if row.routine and re.fullmatch(row.routine, routine)]
        told += [row for row in KNOWN_MESSAGES if row.alone and re.fullmatch(row.alone, sqlstate)]
        if told:
            return _Found(told[0], None, 0).error(what, connection, _line_of(text, 0))
    redact = connection.redact if connection else str
    return ProgramError(what, said=" / ".join(messages(redact(without_values(text)))[-3:]))


def _recognised(text: str, connection: Connection | None, rows: Iterable[KnownMessage] | None = None) -> _Found | None:
    """The first row of the table that matches ``text``; ``None`` if a user's function raised the message."""
    if is_raised(text):
        return None
    without_tls = connection is not None and connection.libpq.get("PGSSLMODE") == "disable"
    # Search before redacting: a password such as "password" must not hide the words of the pattern.
    said = english(text)
    for known in KNOWN_MESSAGES if rows is None else rows:
        match = re.search(known.pattern, said) if known.pattern else None
        if match and (without_tls or not known.only_without_tls):
            return _Found(known, match, said.count("\n", 0, match.start()))
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    """A row of the table, and where the text matches it."""

    known: KnownMessage
    match: re.Match[str] | None
    line: int

    def error(self, what: str, connection: Connection | None, said: str) -> BackupError:
        redact = connection.redact if connection else str
        why, fix = likely_cause(self.known, connection), _advice(self.known, connection, self.match)
        if self.known.error is errors.PasswordMissingError and connection is not None:
            why, fix = passfile.trouble(connection) or (why, fix)
        return self.known.error(what, why=why, fix=fix, said=redact(without_values(said)))


def likely_cause(known: KnownMessage, connection: Connection | None) -> str:
    """The likely cause of a known message; without a connection, with the names of the usual variables."""
    return known.why.format_map(_set_by(connection))


def _advice(known: KnownMessage, connection: Connection | None, match: re.Match[str] | None) -> str:
    places = dict.fromkeys(re.compile(known.pattern).groupindex, _UNKNOWN)
    found = match.groupdict() if match else {}
    return known.fix.format_map({**places, **_names(connection), **_set_by(connection), **found})


def _names(connection: Connection | None) -> Mapping[str, str]:
    if connection is None:
        return dict.fromkeys(
            ("host", "port", "user", "database", "role", "login", "name", "literal", "set_password"), _UNKNOWN
        )
    return {
        "host": shell_word(connection.host),
        "port": str(connection.port),
        "user": shell_word(connection.user),
        "database": shell_word(connection.database),
        # psql folds a bare name to lower case.
        "set_password": shell_word(f"\\password {_psql_identifier(connection.user)}"),
        "role": sql_identifier(connection.user),
        "login": sql_string(connection.user),
        "name": sql_identifier(connection.database),
        "literal": sql_string(connection.database),
    }


def _set_by(connection: Connection | None) -> Mapping[str, str]:
    variables = connection.variables if connection else Variables()
    if connection and connection.password is None and (file := connection.libpq.get("PGPASSFILE")):
        variables = replace(variables, password=f"its line in PGPASSFILE={shell_word(file)}")
    hints = variables.hints
    return {
        "by_host": variables.host,
        "by_user": variables.user,
        "by_password": variables.password,
        "see_server": hints.server or "see the server's log",
        "see_disk": hints.disk or "df -h, where it runs",
        "see_network": hints.network or "from where it can be reached, try the same",
    }


def _psql_identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _line_of(text: str, number: int) -> str:
    lines = text.split("\n")
    return lines[min(number, len(lines) - 1)].strip()
