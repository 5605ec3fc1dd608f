"""What pg_restore says on a server, read: its errors, the commands they were met at, whose fault they are.

Values in messages never leave here. What a broken rule means, and what to do about it, is the business of
``violations``; which runs a message comes from, of ``pg_restore``.
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
#: Of a message, the line that says what is wrong. What follows (DETAIL, CONTEXT, the command) may hold any words.
_ERROR = re.compile(r"^pg_restore: error: (?!a worker process died)(.+)$", re.MULTILINE)
_COMMAND = re.compile(r"^Command was: ((?s:.*?);$)", re.MULTILINE)
_QUERY = re.compile(r"could not execute query: [^\W\d_]+:")
#: A dump may hold its rows as commands.
_ROW = re.compile(r"\bVALUES \(.*", re.DOTALL)
#: What is no fault of the backup's, nor of what it is restored into: a finding about neither.
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
    """How the messages of one restore are read.

    Attributes:
        target: the database that is filled.
        name: of the place, for people.
        rescue: the command that brings the rows where a restore fails over a rule; empty where there is none.
    """

    target: Connection
    name: str
    rescue: str

    @property
    def failure(self) -> str:
        """What failed, where nothing more is known."""
        return f"the restore into the {self.name} failed"

    def raise_surroundings(self, stderr: str, code: int, jobs: int) -> None:
        """Raise what is no fault of the backup's, nor of what it is restored into, if that was said.

        Args:
            stderr: what was said so far.
            code: the exit code; 0 while pg_restore runs.
            jobs: how many spoke at a time.

        Raises:
            BackupError: it was said.
        """
        # What several jobs say at a time is mixed up: then it is not known whose words a function has raised. Alone,
        # what failed will say it again.
        if is_raised(stderr) and len(numbers_in(stderr)) > 1:
            return
        for message in filter(_ERROR.search, _MESSAGE.split(stderr)):
            found = self._understood(message, code, self.failure)
            # Tables that look into each other are locked while they are loaded: then one job waits for the other, and
            # one of them gives up. Alone, it is loaded again.
            if isinstance(found, SURROUNDINGS) and not (
                jobs > 1 and isinstance(found, errors.TransactionConflictError)
            ):
                raise found

    def errors_of(self, stderr: str, code: int, what: str, listing: str) -> list[tuple[str, str]]:
        """What was said of each error, and the command that it was met at; empty where there was none.

        Args:
            stderr, code: of a run that has ended.
            what: failed.
            listing: the archive's contents list, which has all names: what it has not may be a value.

        Raises:
            BackupError: it was the server's or its disk's.
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
        """The error of a run that was broken off at its first, or by what is no error of an entry's."""
        # What several jobs say at a time is mixed up: then it is not known whose words a function has raised.
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
        """The error for what could not be made, however often it was tried."""
        lean = [failure.message for failure in failed if missed(failure.message)]
        found: list[Leaning] = []
        if lean:
            with connect(self.target) as session:
                found = leaning(session, order, lean)
        return error_of(self.failure, [self.met(failure, listing) for failure in failed], found, self.rescue)

    def met(self, failure: Failure, listing: str) -> Met:
        """The failure of one entry, as it may be shown."""
        command = _command(failure.message)
        return Met(failure, self._said(failure.message, listing + command), command)

    def _understood(self, message: str, code: int, what: str) -> BackupError:
        # Only the first line is the server's own words; and not even that where a function has raised it.
        error = _ERROR.search(message)
        text = message if error is None or is_raised(message) else error[1]
        return diagnose_program(text, what=what, connection=self.target, exit_code=code)

    def _said(self, message: str, known: str) -> str:
        """The line that says what is wrong, without the values in it; ``known`` has all names."""
        # A list has a name's parts apart.
        known = f"{known}\n{known.replace(' ', '.')}"
        said = without_values(message[_start(message) :], known).partition("\n")[0]
        return self.target.redact(_QUERY.sub("", said.removeprefix("pg_restore: error: "), count=1).strip())


def _command(message: str) -> str:
    """The command that an error was met at, without rows."""
    found = _COMMAND.search(message)
    return _ROW.sub("VALUES …;", found[1]) if found else ""


def _start(message: str) -> int:
    """Where what is wrong is said; before it may stand what was worth a warning."""
    error = _ERROR.search(message)
    return error.start() if error else 0
