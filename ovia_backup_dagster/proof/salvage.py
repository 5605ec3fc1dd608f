"""Restores as much of a backup as possible: a damaged part does not affect the others, and rules that refuse rows are
removed while the rows are loaded.

``relaxed_constraints`` removes the rules and puts them back; ``search_path`` sets one for functions that need it. Every
loss and every difference is reported in a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psycopg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import joined
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import be_patient, connect
from ovia_backup_dagster.proof import search_path
from ovia_backup_dagster.proof.archive_entries import ArchiveEntry
from ovia_backup_dagster.proof.load_order import LoadOrder
from ovia_backup_dagster.proof.load_rounds import BrokenOffError, Failure, Loader
from ovia_backup_dagster.proof.relaxed_constraints import relax, tighten, uncompute
from ovia_backup_dagster.proof.search_path import Session, missed
from ovia_backup_dagster.proof.violations import Met, at_command

_TABLE_DATA = "TABLE DATA "
_DATA = (_TABLE_DATA, "BLOBS ")
_EVENT = "EVENT TRIGGER "
_MOST = 100


@dataclass(frozen=True, slots=True)
class Salvaged:
    """The outcome.

    Attributes:
        lost: what is missing or differs, a line each.
        notes: what is complete, but was not restored in the usual way.
    """

    lost: list[str]
    notes: list[str]


@dataclass
class Salvage:
    """One running salvage.

    Attributes:
        loader: runs pg_restore.
        target: the database.
        order: the order of the archive's entries.
        explain: turns a failure into a message without data values.
        broken_off: turns pg_restore's messages, when it ended early, into one without data values.
        options: ``PGOPTIONS`` of the sessions that fill the database.
        views: the entries that refresh its materialized views.
    """

    loader: Loader
    target: Connection
    order: LoadOrder
    explain: Callable[[Failure], Met]
    broken_off: Callable[[BrokenOffError], list[str]]
    options: str
    views: Sequence[ArchiveEntry] = ()
    lost: list[str] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)
    _lent: list[str] | None = field(default=None, init=False)
    _met: list[str] = field(default_factory=list, init=False)

    def run(self) -> Salvaged:
        """Restore everything that can be restored.

        Raises:
            BackupError: the server or its disk failed, or pg_restore was killed, so the archive is not at fault.
        """
        try:
            self._tell(self._loaded(self.order.before))
            self._data()
            after = [entry for entry in self.order.after if _EVENT not in entry.text]
            self._tell(self._anyway(self._loaded(after)))
        except BackupError:
            with suppress(BackupError):
                self._give_back()
            raise
        self._give_back()
        # Event triggers come last: they would fire when this method alters functions.
        self._tell(self._loaded([entry for entry in self.order.after if _EVENT in entry.text]))
        lost = list(dict.fromkeys(self.lost))
        lost = lost if len(lost) <= _MOST else [*lost[:_MOST], f"and {len(lost) - _MOST:,} more errors"]
        again = [f"{entry.text} failed at first, and was made after the rest" for entry in self.loader.again]
        return Salvaged(lost, [*self.order.notes, *again, *self.notes])

    # ---- entries

    def _loaded(self, entries: Sequence[ArchiveEntry]) -> list[Failure]:
        """Load entries; failed ones again, and once more with a lent ``search_path``; returns what still fails."""
        return self._again(self._load(entries, ""))

    def _again(self, failed: list[Failure]) -> list[Failure]:
        if not failed:
            return []
        failed = self._rounds(failed)
        lean = [failure.message for failure in failed if missed(failure.message)]
        if lean and self._lend():
            # Report the earlier message: with a lent path, names are shown without their schemas.
            said = {failure.entry.number: failure for failure in failed}
            failed = [said[failure.entry.number] for failure in self._rounds(failed)]
            healed = said.keys() - {failure.entry.number for failure in failed}
            self._met += [
                failure.message for number, failure in said.items() if number in healed and missed(failure.message)
            ]
        return failed

    def _load(self, entries: Sequence[ArchiveEntry], prefix: str) -> list[Failure]:
        try:
            return self.loader.load(entries)
        except BrokenOffError as error:
            self.lost += [f"{prefix}{line}" for line in self.broken_off(error)]
            return []

    def _rounds(self, failed: list[Failure]) -> list[Failure]:
        try:
            return self.loader.rounds(failed)
        except BrokenOffError as error:
            self.lost += self.broken_off(error)
            return []

    def _data(self) -> None:
        failed: list[Failure] = []
        others = []
        for level in self.order.levels:
            for entry in level.entries:
                if entry.text.startswith(_DATA):
                    failed += self._load([entry], f"{entry.text}: ")
                else:
                    others.append(entry)
        failed = self._again(failed)
        if failed and self.views:
            # An entry may read a materialized view, which was empty so far. A view that fails is reported later.
            with suppress(BrokenOffError):
                self.loader.load(self.views)
            failed = self._rounds(failed)
        self._tell(self._relaxed([failure for failure in failed if failure.entry.text.startswith(_TABLE_DATA)]))
        self._tell([failure for failure in failed if not failure.entry.text.startswith(_TABLE_DATA)])
        self._tell(self._loaded(others))

    def _relaxed(self, failed: list[Failure]) -> list[Failure]:
        """Load tables without the rules that may refuse their rows, put the rules back; returns what still fails."""
        if not failed:
            return []
        with self._session() as session:
            rules = {failure.entry.number: relax(session, *self._table(failure)) for failure in failed}
            columns: dict[int, list[str]] = {}
            left = {failure.entry.number: failure for failure in self._rounds(failed)}
            if left:
                columns = {number: uncompute(session, *self._table(failure)) for number, failure in left.items()}
                left = {failure.entry.number: failure for failure in self._rounds(list(left.values()))}
            broken = {number: tighten(session, rules[number]) for number in reversed(rules)}
        for failure in failed:
            number = failure.entry.number
            if number in left:
                continue
            said = f"{failure.entry.text}: {self.explain(failure).said}"
            different = [*broken[number], *columns.get(number, ())]
            if different:
                self.lost.append("; ".join([said, *different]))
            else:
                self.notes.append(f"{said}; its rows were loaded without its rules, which hold now")
        self.loader.again = [entry for entry in self.loader.again if entry.number not in rules]
        return [failure for failure in failed if failure.entry.number in left]

    def _anyway(self, failed: list[Failure]) -> list[Failure]:
        """Create foreign keys that rows break as NOT VALID, so that they apply to new rows; returns all failures."""
        for failure in failed:
            command = self.explain(failure).command
            if failure.entry.text.startswith(("FK CONSTRAINT ", "CHECK CONSTRAINT ")) and "NOT VALID" not in command:
                with (
                    self._session() as session,
                    suppress(psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError),
                ):
                    session.execute(f"{command.rstrip(';')} NOT VALID".encode())
        return failed

    def _table(self, failure: Failure) -> tuple[str, str]:
        return self.order.tables.get(failure.entry.number, ("", ""))

    def _tell(self, failed: Sequence[Failure]) -> None:
        for failure in failed:
            met = self.explain(failure)
            data = failure.entry.text.startswith(_DATA)
            line = f"{failure.entry.text}: {met.said}" if data else at_command(met.said, met.command)
            self.lost.append(f"{line}; {met.broken}; every row is there" if met.broken and not data else line)

    # ---- functions

    def _lend(self) -> bool:
        if self._lent is None:
            with self._session() as session:
                self._lent = search_path.lend(session)
            return bool(self._lent)
        return False

    def _give_back(self) -> None:
        if not self._lent:
            return
        with self._session() as session:
            kept = search_path.give_back(session, self._lent)
            found = search_path.leaning(session, self.order, self._met) if self._met else []
        self._lent = []
        if found:
            self.notes.append(
                "functions depend on search_path, which every restore sets to nothing, and were lent one meanwhile; in "
                f"this database and the source: {joined([each.remedy for each in found])}"
            )
        self.lost += [f"function {signature} still has the search_path that it was lent" for signature in kept]

    @contextmanager
    def _session(self) -> Iterator[Session]:
        # With the load's settings: a rule that is put back is checked under the source's, which may take long.
        with connect(self.target, f"{self.options} -c search_path=pg_catalog,pg_temp") as session:
            be_patient(session)
            yield session
