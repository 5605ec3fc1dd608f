"""Runs pg_restore against a database: the whole archive, the rest of a damaged one, or only its views.

It fills an empty database, which ``target`` creates. ``restore_messages`` reads pg_restore's output;
``copy_comparison`` decides whether the outcome is right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from ovia_backup_dagster.core.errors import ArchiveDamagedError
from ovia_backup_dagster.postgres.archive import annotated_schema, argument, use_lines
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection, Programs, start
from ovia_backup_dagster.postgres.server_language import in_english
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.postgres.stall import watch
from ovia_backup_dagster.postgres.translation import english
from ovia_backup_dagster.proof.archive_entries import ArchiveEntry, entries_of
from ovia_backup_dagster.proof.comparison import left_out
from ovia_backup_dagster.proof.load_order import LoadOrder, may_lean, order_of
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
from ovia_backup_dagster.proof.materialized_views import REFRESH, REFRESH_COMMAND, Unrefreshed, refresh_in_session
from ovia_backup_dagster.proof.restore_messages import RestoreMessages
from ovia_backup_dagster.proof.restore_progress import progress_teller
from ovia_backup_dagster.proof.salvage import Salvage, Salvaged
from ovia_backup_dagster.proof.source_settings import InEffect
from ovia_backup_dagster.proof.violations import at_command

_PROGRESS_SECONDS = 10.0
#: Memory for building indexes, shared by all jobs; at least PostgreSQL's default for each.
_INDEX_MEGABYTES, _LEAST_MEGABYTES = 512, 64


@dataclass(frozen=True, slots=True)
class Restorer:
    """All that a restore depends on.

    Attributes:
        programs: pg_restore.
        target: the database.
        name: the place, for people.
        jobs: how many entries pg_restore restores at a time.
        with_owners: whether owners and privileges are restored.
        live: whether publications are restored, because the database goes live.
        settings: the source's settings that are in effect in the database.
        rescue: the command that restores the rows if a rule refuses them; empty if there is none.
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
        """Restore all entries except those left out, tablespaces, and the refresh of materialized views.

        Data that reads other tables is loaded after them, and failed entries are tried again after the rest.

        Args:
            archive: the file.
            listing: its contents list.
            expected_bytes: the database's final size, if known; for the progress.
            log: receives the progress every ten seconds.

        Returns:
            A line for each entry that was loaded later than in the archive's order.

        Raises:
            BackupError: entries failed in every round; the content of the database is useless.
        """
        order = self._order(archive, listing)
        before = {entry.number for entry in order.before}
        loader = self._loader(archive, progress_teller(self.target, expected_bytes, log), before)
        rest = (*order.levels[0].entries, *(order.after if order.at_once else ()))
        # Several jobs open their sessions after the pre-data part is restored. A single job must do the same: a setting
        # that names one of the archive's text search configurations is in effect only in sessions that begin later.
        parts = ((*order.before, *rest),) if self.jobs > 1 else (order.before, rest)
        failed: list[Failure] = []
        try:
            for part in parts:
                failed += loader.load(part, self.jobs)
                if missing := [failure for failure in failed if failure.entry.number in before]:
                    # The later errors are consequences of the first.
                    raise self._messages.unmade(missing[:1], listing, order)
            for level in order.levels[1:]:
                failed += loader.load(level.entries, 1 if level.apart else self.jobs)
            late = {entry.number for entry in order.after}
            waiting = loader.rounds([failure for failure in failed if failure.entry.number not in late])
            failed = [failure for failure in failed if failure.entry.number in late]
            views = [entry for entry in entries_of(listing) if entry.text.startswith(REFRESH)]
            if waiting and not views:
                raise self._messages.unmade(waiting, listing, order)
            if not order.at_once:
                failed += loader.load(order.after, self.jobs)
            failed = loader.rounds([*waiting, *failed])
            if failed and views:
                # An entry may read a materialized view, which was empty so far.
                loader.load(views)
                failed = loader.rounds(failed)
        except BrokenOffError as broken:
            said = messages_of(broken.stderr)
            if missing := [
                Failure(entry, said.get(entry.number, "")) for entry in failed_of(broken.stderr, order.before)
            ]:
                raise self._messages.unmade(missing[:1], listing, order) from None
            raise self._messages.broken_off(broken.stderr, broken.code, self._messages.failure, listing) from None
        if failed:
            data = [failure for failure in failed if failure.entry.number not in late]
            raise self._messages.unmade(data or failed, listing, order)
        return [*order.notes, *(_loaded_again(entry) for entry in loader.again)]

    def rehearse(self, archive: Path, listing: str) -> None:
        """Restore all but the data, to find out whether this role may create the archive's objects on this server.

        Raises:
            BackupError: the first error.
        """
        order = self._order(archive, listing)
        chosen = (*order.before, *(entry for level in order.levels for entry in level.entries), *order.after)
        code, stderr = self._run(archive, chosen, ("--exit-on-error", "--schema-only"), None, self.jobs)
        if code != 0:
            raise self._messages.broken_off(stderr, code, self._messages.failure, listing)

    def salvage(self, archive: Path, listing: str, expected_bytes: int | None, log: Log) -> Salvaged:
        """Like :meth:`restore`, but despite errors, for an archive that may be damaged.

        The data is loaded table by table, because pg_restore ends at a damaged table. Rules that refuse rows are
        removed while the rows are loaded: see ``salvage``.

        Raises:
            BackupError: the server or its disk failed, or pg_restore was killed, so the archive is not at fault.
        """
        order = self._order(archive, listing, despite_errors=True)
        loader = self._loader(archive, progress_teller(self.target, expected_bytes, log))

        def broken_off(error: BrokenOffError) -> list[str]:
            errors = self._messages.errors_of(error.stderr, error.code, self._messages.failure, listing)
            if not errors:
                raise self._messages.broken_off(error.stderr, error.code, self._messages.failure, listing)
            return [at_command(said, command) for said, command in errors]

        views = [entry for entry in entries_of(listing) if entry.text.startswith(REFRESH)]
        return Salvage(
            loader,
            self.target,
            order,
            lambda failure: self._messages.met(failure, listing),
            broken_off,
            self._options,
            views,
        ).run()

    def refresh(self, archive: Path, listing: str, search_path: str | None = None) -> list[Unrefreshed]:
        """Refresh the materialized views that were populated; returns those that pg_restore could not refresh.

        pg_restore's sessions have no ``search_path``, which functions may need. So failed views are refreshed again in
        a session that has one, repeatedly while that makes progress, because views read other views.

        Args:
            archive: the file.
            listing: its contents list.
            search_path: the source database's own setting; ``None`` for the default of the copy's server.

        Raises:
            BackupError: the server or its disk failed, which is not a finding about a view.
        """
        for jobs in (self.jobs, 1):
            # The messages of several jobs are interleaved, so a single job refreshes failed views again.
            views = [entry for entry in entries_of(listing) if entry.text.startswith(REFRESH)]
            code, stderr = self._run(archive, views, (), None, jobs)
            if code == 0:
                return []
        what = f"refreshing the materialized views of the {self.name} failed"
        found = [
            Unrefreshed(command, said)
            for said, command in self._messages.errors_of(stderr, code, what, listing)
            if command.startswith(REFRESH_COMMAND)
        ]
        if not found:
            raise self._messages.broken_off(stderr, code, what, listing)
        refresh_in_session(self.target, self.settings.options, found, search_path, listing)
        return found

    @property
    def _messages(self) -> RestoreMessages:
        return RestoreMessages(self.target, self.name, self.rescue)

    @property
    def _options(self) -> str:
        # These two settings save a sixth of the time. No commit waits for the disk, but a later durable commit, such as
        # the rename that lets a database go live, writes everything before it to the disk as well.
        memory = max(_LEAST_MEGABYTES, _INDEX_MEGABYTES // self.jobs)
        return f"{self.settings.options} -c synchronous_commit=off -c maintenance_work_mem={memory}MB"

    def _wanted(self, entry: str) -> bool:
        return not (left_out(entry, live=self.live) or entry.startswith(REFRESH) or entry in self.without)

    def _order(self, archive: Path, listing: str, *, despite_errors: bool = False) -> LoadOrder:
        schema = ""
        if despite_errors or may_lean(listing):
            try:
                schema = annotated_schema(self.programs, archive)
            except ArchiveDamagedError:
                if not despite_errors:
                    raise
        return order_of(listing, schema, self._wanted)

    def _loader(self, archive: Path, on_poll: Callable[[], None], alone: Collection[int] = ()) -> Loader:
        def run(chosen: Sequence[ArchiveEntry], jobs: int) -> tuple[int, str]:
            code, stderr = self._run(archive, chosen, (VERBOSE,), on_poll, jobs, alone)
            if code != 0:
                self._messages.raise_surroundings(stderr, code, jobs)
            return code, stderr

        return Loader(run, self._empty, alone)

    def _run(
        self,
        archive: Path,
        chosen_entries: Sequence[ArchiveEntry],
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
                        self._messages.raise_surroundings(child.stderr, 0, jobs)
                    if not numbers_in(child.stderr).isdisjoint(give_up_at):
                        # A table is missing: loading all others first would only delay the report.
                        child.process.terminate()

                code = child.wait(poll, _PROGRESS_SECONDS)
                # Errors are recognized by their English text, and a server may print another language.
                return code, english(child.stderr)

    def _empty(self, tables: Sequence[str]) -> None:
        with connect(self.target) as session:
            for table in tables:
                with suppress(psycopg.ProgrammingError):
                    session.execute(f"DELETE FROM ONLY {table}".encode())  # noqa: S608 - as pg_restore wrote it


def _loaded_again(entry: ArchiveEntry) -> str:
    return (
        f"{entry.text.rpartition(' ')[0]} failed at first, and was made after the rest: it looks into what came later; "
        "a plain pg_restore may fail on it"
    )
