"""Restores an archive into a database: the one place that runs pg_restore against a server.

An empty database is filled and nothing else is touched. Where it comes from is the business of ``places``; whether
the outcome is right, that of whoever compares it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psycopg

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import ArchiveDamagedError, BackupError
from ovia_backup_dagster.core.human_text import duration, human_bytes
from ovia_backup_dagster.postgres.archive import annotated_schema, argument, use_lines
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection, Programs, start
from ovia_backup_dagster.postgres.server_language import diagnose_program, in_english
from ovia_backup_dagster.postgres.server_messages import is_raised, said_by, without_values
from ovia_backup_dagster.postgres.session import be_patient, connect
from ovia_backup_dagster.postgres.stall import watch
from ovia_backup_dagster.postgres.translation import english
from ovia_backup_dagster.proof.comparison import left_out
from ovia_backup_dagster.proof.load_order import Entry, Leaning, Order, entries_of, may_lean, order_of
from ovia_backup_dagster.proof.load_rounds import (
    NOISE,
    VERBOSE,
    BrokenOffError,
    Failure,
    Loader,
    failed_of,
    messages_of,
    numbers_in,
)
from ovia_backup_dagster.proof.salvage import Salvage, Salvaged
from ovia_backup_dagster.proof.search_path import leaning, missed
from ovia_backup_dagster.proof.source_settings import InEffect
from ovia_backup_dagster.proof.violations import Met, at_command, error_of

REFRESH = "MATERIALIZED VIEW DATA "
_REFRESH = "REFRESH MATERIALIZED VIEW "
_PROGRESS_SECONDS = 10.0
#: What a restored size must be of the expected one before it says anything about the time that is left.
_TELLING = 0.05
#: The server's own account of what it is at: the program's, asked for, would come between its errors.
_PROGRESS = """
    SELECT pg_database_size(current_database()) AS bytes,
           ARRAY(SELECT DISTINCT relid::regclass::text FROM pg_stat_progress_copy
                 WHERE datname = current_database() ORDER BY 1) AS loading,
           ARRAY(SELECT DISTINCT relid::regclass::text FROM pg_stat_progress_create_index
                 WHERE datname = current_database() ORDER BY 1) AS indexing
"""
_MESSAGE = re.compile(r"^(?=pg_restore: error: )", re.MULTILINE)
#: Of a message, the line that says what is wrong. What follows (DETAIL, CONTEXT, the command) may hold any words.
_ERROR = re.compile(r"^pg_restore: error: (?!a worker process died)(.+)$", re.MULTILINE)
_COMMAND = re.compile(r"^Command was: ((?s:.*?);$)", re.MULTILINE)
_QUERY = re.compile(r"could not execute query: [^\W\d_]+:")
#: A dump may hold its rows as commands.
_ROW = re.compile(r"\bVALUES \(.*", re.DOTALL)
#: For building indexes, among all jobs; PostgreSQL's own default is the least.
_INDEX_MEGABYTES, _LEAST_MEGABYTES = 512, 64
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


@dataclass(slots=True)
class Unrefreshed:
    """A materialized view that pg_restore could not refresh.

    Attributes:
        command: that refreshes it, with its semicolon.
        said: what the server said when it was last tried and failed.
        refreshed: whether a session of ours could.
    """

    command: str
    said: str
    refreshed: bool = False

    def __str__(self) -> str:
        command = self.command.removesuffix(";")
        view = command.removeprefix(_REFRESH)
        if self.refreshed:
            return (
                f"materialized view {view} cannot be refreshed by pg_restore, which has no search_path: {self.said}; "
                f"it was refreshed with one, by: {command}"
            )
        return f"materialized view {view} cannot be refreshed: {self.said}; when that is put right: {command}"


@dataclass(frozen=True, slots=True)
class Restorer:
    """All that a restore depends on.

    Attributes:
        programs: pg_restore.
        target: the database.
        name: of the place, for people.
        jobs: how many entries at a time.
        with_owners: whether owners and privileges are restored, too.
        live: whether publications are, as into a database that goes live.
        settings: what of the source's is in effect there.
        rescue: the command that brings the rows where a restore fails over a rule; empty where there is none.
        without: further entries of the contents list that are not restored.
    """

    programs: Programs
    target: Connection
    name: str
    jobs: int
    with_owners: bool = True
    live: bool = False
    settings: InEffect = InEffect()  # noqa: RUF009 - frozen
    rescue: str = ""
    without: frozenset[str] = frozenset()

    def restore(self, archive: Path, listing: str, expected_bytes: int | None, log: Log) -> list[str]:
        """Restore all but what is left out, tablespaces, and what refreshes materialized views.

        Data that looks into other tables comes after them, and what failed is tried again after the rest.

        Args:
            archive: the file.
            listing: its contents list.
            expected_bytes: how large the database will be, as far as is known, for the progress.
            log: told about progress every ten seconds.

        Returns:
            A line for each thing that came later than the archive has it.

        Raises:
            BackupError: what could not be made, however often it was tried; what stands in the database then is of no
                use.
        """
        order = self._order(archive, listing)
        before = {entry.number for entry in order.before}
        loader = self._loader(archive, self._teller(expected_bytes, log), before)
        rest = (*order.levels[0].entries, *(order.after if order.at_once else ()))
        # Several jobs begin their sessions when what comes before is made, and one alone must, too: a setting that
        # names a text search configuration of the archive's is in effect from then on.
        parts = ((*order.before, *rest),) if self.jobs > 1 else (order.before, rest)
        failed: list[Failure] = []
        try:
            for part in parts:
                failed += loader.load(part, self.jobs)
                if missing := [failure for failure in failed if failure.entry.number in before]:
                    # What follows from the first is no news.
                    raise self._error(missing[:1], listing, order)
            for level in order.levels[1:]:
                failed += loader.load(level.entries, 1 if level.apart else self.jobs)
            late = {entry.number for entry in order.after}
            waiting = loader.rounds([failure for failure in failed if failure.entry.number not in late])
            failed = [failure for failure in failed if failure.entry.number in late]
            views = [entry for entry in entries_of(listing) if entry.text.startswith(REFRESH)]
            if waiting and not views:
                raise self._error(waiting, listing, order)
            if not order.at_once:
                failed += loader.load(order.after, self.jobs)
            failed = loader.rounds([*waiting, *failed])
            if failed and views:
                # Something may look into a materialized view, which is empty until then.
                loader.load(views)
                failed = loader.rounds(failed)
        except BrokenOffError as broken:
            said = messages_of(broken.stderr)
            if missing := [
                Failure(entry, said.get(entry.number, "")) for entry in failed_of(broken.stderr, order.before)
            ]:
                raise self._error(missing[:1], listing, order) from None
            raise self._failed(broken.stderr, broken.code, self._failure, listing) from None
        if failed:
            data = [failure for failure in failed if failure.entry.number not in late]
            raise self._error(data or failed, listing, order)
        return [*order.notes, *(_loaded_again(entry) for entry in loader.again)]

    def rehearse(self, archive: Path, listing: str) -> None:
        """As :meth:`restore`, but for all data: whether this role may make what is in it, on this server.

        Raises:
            BackupError: the first error that was met.
        """
        order = self._order(archive, listing)
        chosen = (*order.before, *(entry for level in order.levels for entry in level.entries), *order.after)
        code, stderr = self._run(archive, chosen, ("--exit-on-error", "--schema-only"), None, self.jobs)
        if code != 0:
            raise self._failed(stderr, code, self._failure, listing)

    def salvage(self, archive: Path, listing: str, expected_bytes: int | None, log: Log) -> Salvaged:
        """As :meth:`restore`, of an archive that may be damaged, whatever errors are met.

        The data table by table: what is damaged ends pg_restore, and must take nothing else with it. What refuses
        rows is taken away while they are loaded: see ``salvage``.

        Raises:
            BackupError: the server or its disk failed, or pg_restore was killed: no error of the archive's.
        """
        order = self._order(archive, listing, despite_errors=True)
        loader = self._loader(archive, self._teller(expected_bytes, log))

        def broken_off(error: BrokenOffError) -> list[str]:
            errors = self._errors(error.stderr, error.code, self._failure, listing)
            if not errors:
                raise self._failed(error.stderr, error.code, self._failure, listing)
            return [at_command(said, command) for said, command in errors]

        views = [entry for entry in entries_of(listing) if entry.text.startswith(REFRESH)]
        return Salvage(
            loader, self.target, order, lambda failure: self._met(failure, listing), broken_off, self._options, views
        ).run()

    def refresh(self, archive: Path, listing: str, search_path: str | None = None) -> list[Unrefreshed]:
        """Refresh the materialized views that were populated; returns those that pg_restore could not.

        It has no ``search_path``, which functions may lean on: what failed is tried again in a session that has one, as
        often as that gets on, for views stand on views.

        Args:
            archive: the file.
            listing: its contents list.
            search_path: the source database's own; ``None``: what the copy's server gives.

        Raises:
            BackupError: the server or its disk failed, which says nothing about a view.
        """
        for jobs in (self.jobs, 1):
            # Where several fail at a time, their messages are mixed up: then once more, one after the other.
            views = [entry for entry in entries_of(listing) if entry.text.startswith(REFRESH)]
            code, stderr = self._run(archive, views, (), None, jobs)
            if code == 0:
                return []
        what = f"refreshing the materialized views of the {self.name} failed"
        found = [
            Unrefreshed(command, said)
            for said, command in self._errors(stderr, code, what, listing)
            if command.startswith(_REFRESH)
        ]
        if not found:
            raise self._failed(stderr, code, what, listing)
        self._refresh_again(found, search_path, listing)
        return found

    def _refresh_again(self, views: Sequence[Unrefreshed], search_path: str | None, listing: str) -> None:
        with connect(self.target, self.settings.options) as session:
            be_patient(session)
            if search_path is not None:
                # By its whole name: the path may put a schema of others before what is built in.
                session.execute("SELECT pg_catalog.set_config('search_path', %s, false)", [search_path])
            left, before = list(views), len(views) + 1
            while left and len(left) < before:
                before = len(left)
                for view in left:
                    try:
                        session.execute(view.command.encode())
                    except psycopg.Error as error:
                        if session.closed:
                            raise
                        view.said = self.target.redact(said_by(error, listing + view.command)) or view.said
                    else:
                        view.refreshed = True
                left = [view for view in left if not view.refreshed]

    @property
    def _failure(self) -> str:
        return f"the restore into the {self.name} failed"

    @property
    def _options(self) -> str:
        # Together a sixth less time. Nothing waits for the disk: whatever is committed afterwards, such as the renaming
        # that lets a database go live, is not on disk before all of this is.
        memory = max(_LEAST_MEGABYTES, _INDEX_MEGABYTES // self.jobs)
        return f"{self.settings.options} -c synchronous_commit=off -c maintenance_work_mem={memory}MB"

    def _wanted(self, entry: str) -> bool:
        return not (left_out(entry, live=self.live) or entry.startswith(REFRESH) or entry in self.without)

    def _order(self, archive: Path, listing: str, *, despite_errors: bool = False) -> Order:
        schema = ""
        if despite_errors or may_lean(listing):
            try:
                schema = annotated_schema(self.programs, archive)
            except ArchiveDamagedError:
                if not despite_errors:
                    raise
        return order_of(listing, schema, self._wanted)

    def _loader(self, archive: Path, on_poll: Callable[[], None], alone: Collection[int] = ()) -> Loader:
        def run(chosen: Sequence[Entry], jobs: int) -> tuple[int, str]:
            code, stderr = self._run(archive, chosen, (VERBOSE,), on_poll, jobs, alone)
            if code != 0:
                self._raise_surroundings(stderr, code, jobs)
            return code, stderr

        return Loader(run, self._empty, alone)

    def _run(
        self,
        archive: Path,
        chosen_entries: Sequence[Entry],
        options: Sequence[str],
        on_poll: Callable[[], None] | None,
        jobs: int,
        give_up_at: Collection[int] = (),
    ) -> tuple[int, str]:
        owners = () if self.with_owners else ("--no-owner", "--no-privileges")
        with use_lines(entry.line for entry in chosen_entries) as chosen:
            command: tuple[str, ...] = (
                self.programs.path("pg_restore"),
                "--no-password",
                "--no-tablespaces",
                f"--jobs={jobs}",
                *options,
                *owners,
                chosen,
                f"--dbname={self.target.conninfo()}",
                argument(archive),
            )
            read = (archive, chosen.partition("=")[2])
            command = self.programs.confined(command, read=read, server=self.target, forks=jobs > 1)
            variables = {**self.target.environment(), **in_english(self.target, self._options)}
            watching = watch(self.programs, self.target, work_counts=True)
            noise = NOISE if VERBOSE in options else None
            with start(command, variables=variables, watch=watching, noise=noise) as child:

                def poll() -> None:
                    if on_poll is not None:
                        on_poll()
                    if noise is not None:
                        self._raise_surroundings(child.stderr, 0, jobs)
                    if not numbers_in(child.stderr).isdisjoint(give_up_at):
                        # A table is missing: to load all others first would only delay the bad news.
                        child.process.terminate()

                code = child.wait(poll, _PROGRESS_SECONDS)
                # What its errors mean is read off the words, and a server may have others.
                return code, english(child.stderr)

    def _empty(self, tables: Sequence[str]) -> None:
        with connect(self.target) as session:
            for table in tables:
                with suppress(psycopg.ProgrammingError):
                    session.execute(f"DELETE FROM ONLY {table}".encode())  # noqa: S608 - as pg_restore wrote it

    def _raise_surroundings(self, stderr: str, code: int, jobs: int) -> None:
        # What several jobs say at a time is mixed up: then it is not known whose words a function has raised. Alone,
        # what failed will say it again.
        if is_raised(stderr) and len(numbers_in(stderr)) > 1:
            return
        for message in filter(_ERROR.search, _MESSAGE.split(stderr)):
            found = self._understood(message, code, self._failure)
            # Tables that look into each other are locked while they are loaded: then one job waits for the other, and
            # one of them gives up. Alone, it is loaded again.
            if isinstance(found, SURROUNDINGS) and not (
                jobs > 1 and isinstance(found, errors.TransactionConflictError)
            ):
                raise found

    def _errors(self, stderr: str, code: int, what: str, listing: str) -> list[tuple[str, str]]:
        """What was said of each error, and the command that it was met at; empty where there was none.

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

    def _failed(self, stderr: str, code: int, what: str, listing: str) -> BackupError:
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
            Failure(Entry(0, "", "", 0), message), self._said(message, listing + _command(stderr)), _command(stderr)
        )
        return error_of(what, [first], (), self.rescue)

    def _error(self, failed: Sequence[Failure], listing: str, order: Order) -> BackupError:
        """The error for what could not be made, however often it was tried."""
        lean = [failure.message for failure in failed if missed(failure.message)]
        found: list[Leaning] = []
        if lean:
            with connect(self.target) as session:
                found = leaning(session, order, lean)
        return error_of(self._failure, [self._met(failure, listing) for failure in failed], found, self.rescue)

    def _met(self, failure: Failure, listing: str) -> Met:
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

    def _teller(self, expected: int | None, log: Log) -> Callable[[], None]:
        """What tells how far it is: bytes, tables, and the seconds that are left if it goes on like this."""
        began = time.monotonic()

        def tell() -> None:
            try:
                with connect(self.target) as session:
                    row = session.execute(_PROGRESS).fetchone()
            except BackupError:
                return  # pg_restore will say why
            assert row is not None
            size = row["bytes"]
            text = f"restored {human_bytes(size)}"
            if expected:
                text += f" of about {human_bytes(expected)}"
                if _TELLING * expected < size < expected:
                    left = (time.monotonic() - began) * (expected - size) / size
                    text += f", about {duration(timedelta(seconds=left))} left"
            for doing in ("loading", "indexing"):
                if row[doing]:
                    text += f"; {doing} {', '.join(row[doing])}"
            log(text)

        return tell


def _command(message: str) -> str:
    """The command that an error was met at, without rows."""
    found = _COMMAND.search(message)
    return _ROW.sub("VALUES …;", found[1]) if found else ""


def _start(message: str) -> int:
    """Where what is wrong is said; before it may stand what was worth a warning."""
    error = _ERROR.search(message)
    return error.start() if error else 0


def _loaded_again(entry: Entry) -> str:
    return (
        f"{entry.text.rpartition(' ')[0]} failed at first, and was made after the rest: it looks into what came later; "
        "a plain pg_restore may fail on it"
    )
