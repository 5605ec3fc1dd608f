"""Restores an archive into a database: the one place that runs pg_restore against a server.

An empty database is filled and nothing else is touched. Where it comes from is the business of ``places``; whether
the outcome is right, that of whoever compares it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.comparison import left_out, redacted
from ovia_backup_dagster.core.errors import BackupError, RestoreError
from ovia_backup_dagster.core.words import human_bytes
from ovia_backup_dagster.postgres.archive import use_list
from ovia_backup_dagster.postgres.client import WRITABLE, Connection, Programs, start
from ovia_backup_dagster.postgres.datatext import Log
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.session import connect

REFRESH = "MATERIALIZED VIEW DATA "
_PROGRESS_SECONDS = 10.0
#: Of a message, the line that says what is wrong. What follows (DETAIL, CONTEXT, the command) may repeat the data.
_ERROR = re.compile(r"^pg_restore: error: (?!a worker process died)(.+)$", re.MULTILINE)
_COMMAND = re.compile(r"^Command was: ((?s:.*?);$)", re.MULTILINE)
_SHOWN = 120
#: What is no fault of the backup's, nor of what it is restored into: a finding about neither.
SURROUNDINGS = (
    errors.ServerUnreachableError,
    errors.ConnectionLostError,
    errors.ServerDiskFullError,
    errors.ServerDataError,
    errors.TooManyConnectionsError,
    errors.AuthenticationError,
    errors.ExtensionMissingError,
)


@dataclass(frozen=True, slots=True)
class Restorer:
    """All that a restore depends on.

    Attributes:
        programs: pg_restore.
        target: the database.
        name: of the place, for people.
        jobs: how many entries at a time.
        with_owners: whether owners and privileges are restored, too.
    """

    programs: Programs
    target: Connection
    name: str
    jobs: int
    with_owners: bool = True

    def restore(self, archive: Path, listing: str, expected_bytes: int | None, log: Log) -> None:
        """Restore all but subscriptions, publications and tablespaces, and what refreshes materialized views.

        Args:
            archive: the file.
            listing: its contents list.
            expected_bytes: how large the database will be, as far as is known, for the progress.
            log: told about progress every ten seconds.

        Raises:
            BackupError: the first error that was met; what stands in the database then is of no use.
        """

        def wanted(entry: str) -> bool:
            return not left_out(entry) and not entry.startswith(REFRESH)

        code, stderr = self._run(
            archive, listing, wanted, ("--exit-on-error",), lambda: self._tell(expected_bytes, log)
        )
        if code != 0:
            raise self._failed(stderr, code, f"the restore into the {self.name} failed")

    def refresh(self, archive: Path, listing: str) -> list[str]:
        """Refresh the materialized views that were populated; returns what was said of those that could not be.

        Raises:
            BackupError: the server or its disk failed, which says nothing about a view.
        """
        code, stderr = self._run(archive, listing, lambda entry: entry.startswith(REFRESH), (), None)
        if code == 0:
            return []
        what = f"refreshing the materialized views of the {self.name} failed"
        told = []
        for message in re.split(r"(?=^pg_restore: error: )", stderr, flags=re.MULTILINE):
            error, command = _ERROR.search(message), _COMMAND.search(message)
            if error and command:
                found = diagnose(error[1], what=what, connection=self.target, exit_code=code)
                if isinstance(found, SURROUNDINGS):
                    raise found
                view = command[1].removeprefix("REFRESH MATERIALIZED VIEW ").removesuffix(";")
                said = error[1].removeprefix("could not execute query: ERROR:").strip()
                told.append(f"the data is proven, but materialized view {view} cannot be refreshed: {said}")
        if not told:
            raise self._failed(stderr, code, what)
        return told

    def _run(
        self,
        archive: Path,
        listing: str,
        wanted: Callable[[str], bool],
        options: Sequence[str],
        on_poll: Callable[[], None] | None,
    ) -> tuple[int, str]:
        owners = () if self.with_owners else ("--no-owner", "--no-privileges")
        with use_list(listing, wanted) as chosen:
            command = (
                self.programs.path("pg_restore"),
                "--no-password",
                "--no-tablespaces",
                f"--jobs={self.jobs}",
                *options,
                *owners,
                chosen,
                f"--dbname={self.target.conninfo()}",
                str(archive),
            )
            with start(command, variables={**self.target.environment(), "PGOPTIONS": WRITABLE}) as child:
                code = child.wait(on_poll, _PROGRESS_SECONDS)
                return code, child.stderr

    def _failed(self, stderr: str, code: int, what: str) -> BackupError:
        error, command = _ERROR.search(stderr), _COMMAND.search(stderr)
        said = error[0].removeprefix("pg_restore: error: ") if error else stderr
        found = diagnose(said, what=what, connection=self.target, exit_code=code)
        if isinstance(found, SURROUNDINGS) or error is None:
            return found
        at = " ".join(redacted(command[1]).split()) if command else ""
        if len(at) > _SHOWN:
            at = at[:_SHOWN] + "…"
        return RestoreError(
            f"{what}, at: {at}" if at else what,
            why="the source holds something that cannot be made anew in this order, or not by this role",
            said=self.target.redact(said),
            fix="see what it is in the source; mend it there; then dump, and drill again",
        )

    def _tell(self, expected: int | None, log: Log) -> None:
        try:
            with connect(self.target) as session:
                row = session.execute("SELECT pg_database_size(current_database()) AS bytes").fetchone()
        except BackupError:
            return  # pg_restore will say why
        size = row["bytes"] if row else 0
        log(f"restored {human_bytes(size)}" + (f" of about {human_bytes(expected)}" if expected else ""))
