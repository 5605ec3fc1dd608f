"""What PostgreSQL's server, programs and libpq say -> a typed error with the likely cause and the command to give next.

The functions that read the table in ``known_messages``: what a session is told is known by its SQLSTATE, whatever the
server's language, and what a program prints by its text. A message that the table does not know is shown as it is: a
guess would send a frightened person the wrong way. Only what was *said* is judged here; an archive is judged in
``archive``, a file of the volume in ``core.files``.
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

#: How advice names what is not known.
_UNKNOWN = "..."
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)


def diagnose(
    text: str, *, what: str, connection: Connection | None = None, exit_code: int | None = None
) -> BackupError:
    """The typed error for what a program or libpq printed.

    Args:
        text: standard error, or a libpq error message; what is shown of it repeats no data.
        what: what failed, naming the thing.
        connection: of the attempt, for the advice; its password is removed from the text.
        exit_code: of the program; a negative one is a signal.
    """
    if exit_code == REFUSED and text.startswith(CANNOT):
        return errors.SandboxError(
            what,
            why="it reads what others wrote, and cannot be confined here, which DRILL_SANDBOX=require asks for",
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
            why=f"the program crashed (signal {signal_of_crash}): it met what it was not written for, or is broken",
            fix="try again; if it stays so, install the client programs again, and compare: ovia-backup doctor",
            said=" / ".join(lines[-1:]),
        )
    if exit_code is not None and exit_code < 0:
        return ProgramError(
            what,
            why=f"the program was ended by signal {-exit_code}: somebody killed it, or memory ran out",
            fix="see who ended it: dmesg | tail; then retry",
            said=" / ".join(lines[-1:]),
        )
    return ProgramError(what, said=" / ".join(lines[-3:]) or f"it ended with code {exit_code} and no message")


def crashed(exit_code: int | None) -> int:
    """The signal of a crash that a program ended by, also as a shell reports it; 0 for any other end.

    Not SIGKILL: that is another's doing, as the kernel's where memory runs out. Nor SIGBUS, by which a disk ends a
    program whose own file it does not read.
    """
    signal_number = -exit_code if exit_code and exit_code < 0 else (exit_code or 0) - 128
    return signal_number if signal_number in _CRASHES else 0


def diagnose_error(
    error: psycopg.Error | UnicodeError, *, what: str, connection: Connection | None = None
) -> BackupError:
    """The typed error for what befell a session of ours: by its SQLSTATE where the server has told one.

    Args:
        error: as psycopg raised it.
        what: what failed, naming the thing.
        connection: of the attempt, for the advice; its password is removed from the text.
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
    """The typed error for what the server refused.

    Args:
        sqlstate: what it is (PostgreSQL's Appendix A).
        text: in whatever language; it only tells apart what the server calls by the same SQLSTATE.
        routine: of the server's source, which tells those apart in all languages.
        what, connection: as for :func:`diagnose`.
    """
    # The words of RAISE are a user's own, and so is the SQLSTATE that it names.
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
    """The first line of the table that ``text`` is about; none where a function's own words are in it."""
    if is_raised(text):
        return None
    without_tls = connection is not None and connection.libpq.get("PGSSLMODE") == "disable"
    # Not redacted: a password such as "password" must not hide the words that are looked for.
    said = english(text)
    for known in KNOWN_MESSAGES if rows is None else rows:
        match = re.search(known.pattern, said) if known.pattern else None
        if match and (without_tls or not known.only_without_tls):
            return _Found(known, match, said.count("\n", 0, match.start()))
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    """A line of the table, and where the text is about it."""

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
    """Why a known message is said, in words; without a connection, of one that the usual variables set."""
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
