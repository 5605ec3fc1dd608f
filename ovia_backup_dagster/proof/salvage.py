"""Brings what can be had of a backup into a database: what is damaged takes nothing else with it, and what refuses rows
that the backup holds is taken away while they are loaded.

Which rules those are, and how they come back, is the business of ``relaxed_constraints``; functions that do not find
what they use without a ``search_path``, that of ``search_path``. What could not be had, or is not as it was, is told in
a line each.
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
    """What became of it.

    Attributes:
        lost: what is not there, or not as it was, a line each.
        notes: what is as it was, and did not come about in the usual way.
    """

    lost: list[str]
    notes: list[str]


@dataclass
class Salvage:
    """One under way.

    Attributes:
        loader: runs pg_restore.
        target: the database.
        order: of what is in the archive.
        explain: an error, without values.
        broken_off: what pg_restore said when it ended before its end, without values.
        options: ``PGOPTIONS`` of what fills the database.
        views: what refreshes its materialized views.
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
        """All of it.

        Raises:
            BackupError: the server or its disk failed, or pg_restore was killed: no error of the archive's.
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
        # They would see what is done to functions here.
        self._tell(self._loaded([entry for entry in self.order.after if _EVENT in entry.text]))
        lost = list(dict.fromkeys(self.lost))
        lost = lost if len(lost) <= _MOST else [*lost[:_MOST], f"and {len(lost) - _MOST:,} more errors"]
        again = [f"{entry.text} failed at first, and was made after the rest" for entry in self.loader.again]
        return Salvaged(lost, [*self.order.notes, *again, *self.notes])

    # ---- entries

    def _loaded(self, entries: Sequence[ArchiveEntry]) -> list[Failure]:
        """Load them, again what failed, and once more with functions that find what they use; returns what is left."""
        return self._again(self._load(entries, ""))

    def _again(self, failed: list[Failure]) -> list[Failure]:
        if not failed:
            return []
        failed = self._rounds(failed)
        lean = [failure.message for failure in failed if missed(failure.message)]
        if lean and self._lend():
            # What was said before is told: names are shown without schemas where a path was lent.
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
            # Something may look into a materialized view, which is empty until then; what cannot be, is told later.
            with suppress(BrokenOffError):
                self.loader.load(self.views)
            failed = self._rounds(failed)
        self._tell(self._relaxed([failure for failure in failed if failure.entry.text.startswith(_TABLE_DATA)]))
        self._tell([failure for failure in failed if not failure.entry.text.startswith(_TABLE_DATA)])
        self._tell(self._loaded(others))

    def _relaxed(self, failed: list[Failure]) -> list[Failure]:
        """Load tables without the rules that may refuse their rows, and put these back; returns what is left."""
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
        """Foreign keys that rows break bind new rows at least; returns what is left, which they are, too."""
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
                "functions lean on search_path, which every restore sets to nothing, and were lent one meanwhile; in "
                f"this database and the source: {joined([each.remedy for each in found])}"
            )
        self.lost += [f"function {signature} still has the search_path that it was lent" for signature in kept]

    @contextmanager
    def _session(self) -> Iterator[Session]:
        # As what fills it: a rule that is put back is proven under the source's settings, however long that takes.
        with connect(self.target, f"{self.options} -c search_path=pg_catalog,pg_temp") as session:
            be_patient(session)
            yield session
