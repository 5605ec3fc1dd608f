"""Reads pg_restore's messages: its errors, the commands that failed, and whether the backup or the server is at fault.

Values in messages never leave this module. ``violations`` explains a broken rule and what to do about it;
``pg_restore`` runs the program.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.server_language import diagnose_program
from ovia_backup_dagster.postgres.server_messages import is_raised, without_values
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof.archive_entries import ArchiveEntry
from ovia_backup_dagster.proof.load_order import LoadOrder
from ovia_backup_dagster.proof.load_rounds import Failure, numbers_in
from ovia_backup_dagster.proof.search_path import leaning, missed
from ovia_backup_dagster.proof.unqualified_functions import Leaning
from ovia_backup_dagster.proof.violations import Met, error_of

_MESSAGE = re.compile(r"^(?=pg_restore: error: )", re.MULTILINE)
#: The line of a message with the error. The lines after it (DETAIL, CONTEXT, the command) may contain any text.
_ERROR = re.compile(r"^pg_restore: error: (?!a worker process died)(.+)$", re.MULTILINE)
_COMMAND = re.compile(r"^Command was: ((?s:.*?);$)", re.MULTILINE)
_QUERY = re.compile(r"could not execute query: [^\W\d_]+:")
#: A dump may hold its rows as INSERT commands.
_ROW = re.compile(r"\bVALUES \(.*", re.DOTALL)
#: Faults of the server, its disk or the connection: they say nothing about the backup or its target.
SURROUNDINGS = (
    errors.ServerUnreachableError,
    errors.ConnectionLostError,
    errors.ServerDiskFullError,
    errors.ServerDataError,
    errors.ServerMemoryError,
    errors.LockTableFullError,
    errors.TransactionConflictError,
    errors.StatementCancelledError,
    errors.LockTimeoutError,
    errors.MomentaryError,
    errors.TooManyConnectionsError,
    errors.AuthenticationError,
    errors.ExtensionMissingError,
    errors.StalledError,
)


@dataclass(frozen=True, slots=True)
class RestoreMessages:
    """Reads the messages of one restore.

    Attributes:
        target: the database that is filled.
        name: the place, for people.
        rescue: the command that restores the rows if a rule refuses them; empty if there is none.
    """

    target: Connection
    name: str
    rescue: str

    @property
    def failure(self) -> str:
        """Names the failed restore, if no more is known."""
        return f"the restore into the {self.name} failed"

    def raise_surroundings(self, stderr: str, code: int, jobs: int) -> None:
        """Raise the first error of the server, its disk or the connection, if there is one.

        Args:
            stderr: pg_restore's messages so far.
            code: its exit code; 0 while it runs.
            jobs: how many jobs wrote to ``stderr``.

        Raises:
            BackupError: there is such an error.
        """
        # The messages of several jobs are interleaved, so a text that a function raised looks like the server's own.
        # The failed entries are run again one by one, and then their messages are clear.
        if is_raised(stderr) and len(numbers_in(stderr)) > 1:
            return
        for message in filter(_ERROR.search, _MESSAGE.split(stderr)):
            found = self._understood(message, code, self.failure)
            # Tables that read each other are locked while they are loaded, so two jobs can deadlock and the server ends
            # one of them. That entry is loaded again alone.
            if isinstance(found, SURROUNDINGS) and not (
                jobs > 1 and isinstance(found, errors.TransactionConflictError)
            ):
                raise found

    def errors_of(self, stderr: str, code: int, what: str, listing: str) -> list[tuple[str, str]]:
        """Each error's text, with the command that failed; empty if there was no error.

        Args:
            stderr, code: of a run that has ended.
            what: names the failed operation.
            listing: the archive's contents list, which holds all names: any other word may be a value.

        Raises:
            BackupError: the server or its disk failed.
        """
        met = []
        for message in _MESSAGE.split(stderr):
            if _ERROR.search(message):
                found = self._understood(message, code, what)
                if isinstance(found, SURROUNDINGS):
                    raise found
                command = _command(message)
                met.append((self._said(message, listing + command), command))
        return met

    def broken_off(self, stderr: str, code: int, what: str, listing: str) -> BackupError:
        """The error for a run that ended early, at its first error or at one that belongs to no entry."""
        # The messages of several jobs are interleaved, so a function's text looks like the server's own.
        messages = [stderr] if is_raised(stderr) else _MESSAGE.split(stderr)
        message = next(filter(_ERROR.search, messages), "")
        if not message:
            return diagnose_program(stderr, what=what, connection=self.target, exit_code=code)
        found = self._understood(message, code, what)
        if isinstance(found, SURROUNDINGS):
            return found
        first = Met(
            Failure(ArchiveEntry(0, "", "", 0), message),
            self._said(message, listing + _command(stderr)),
            _command(stderr),
        )
        return error_of(what, [first], (), self.rescue)

    def unmade(self, failed: Sequence[Failure], listing: str, order: LoadOrder) -> BackupError:
        """The error for the entries that failed in every round."""
        lean = [failure.message for failure in failed if missed(failure.message)]
        found: list[Leaning] = []
        if lean:
            with connect(self.target) as session:
                found = leaning(session, order, lean)
        return error_of(self.failure, [self.met(failure, listing) for failure in failed], found, self.rescue)

    def met(self, failure: Failure, listing: str) -> Met:
        """The failure of one entry, without data values."""
        command = _command(failure.message)
        return Met(failure, self._said(failure.message, listing + command), command)

    def _understood(self, message: str, code: int, what: str) -> BackupError:
        # Only the first line is the server's own text, unless a function raised the error.
        error = _ERROR.search(message)
        text = message if error is None or is_raised(message) else error[1]
        return diagnose_program(text, what=what, connection=self.target, exit_code=code)

    def _said(self, message: str, known: str) -> str:
        """The line with the error, without data values; ``known`` contains all names."""
        # A contents list separates the parts of a name by spaces, a message by a dot.
        known = f"{known}\n{known.replace(' ', '.')}"
        said = without_values(message[_start(message) :], known).partition("\n")[0]
        return self.target.redact(_QUERY.sub("", said.removeprefix("pg_restore: error: "), count=1).strip())


def _command(message: str) -> str:
    """The command that failed, without rows."""
    found = _COMMAND.search(message)
    return _ROW.sub("VALUES …;", found[1]) if found else ""


def _start(message: str) -> int:
    """The position where the error begins; warnings may precede it."""
    error = _ERROR.search(message)
    return error.start() if error else 0
