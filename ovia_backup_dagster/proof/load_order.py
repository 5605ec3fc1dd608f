"""The order in which an archive is restored, if its own order is not enough: entries that read other tables come later.

A CHECK, a generated column, a domain or an index may call a function that reads a table. pg_dump sorts by what the
catalogs record, and they record nothing about a function whose body is a string. A plain pg_restore then fails, or
computes other values, depending on how its jobs are scheduled. ``table_reads`` finds what is read in the archive's own
text; ``load_rounds`` loads entries again that fail nevertheless. Nothing here runs pg_restore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ovia_backup_dagster.core.human_text import some
from ovia_backup_dagster.proof.archive_entries import DATA, TABLE_DATA, ArchiveEntry, entries_of, sections_of
from ovia_backup_dagster.proof.archive_objects import ROUTINES, ArchiveObject, ArchiveObjects
from ovia_backup_dagster.proof.routine_text import called_without_schema
from ovia_backup_dagster.proof.table_reads import TableReads
from ovia_backup_dagster.proof.unqualified_functions import Leaning, leaning_among, signature_of

_LEANS_LATE = ("INDEX", "CONSTRAINT", "CHECK CONSTRAINT")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """Data that is loaded at the same time.

    Attributes:
        entries: in the archive's order.
        apart: load one entry after the other, because each may read the others.
    """

    entries: tuple[ArchiveEntry, ...]
    apart: bool = False


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """An archive's entries in the order in which they are restored.

    Attributes:
        before: the pre-data entries, such as tables and functions.
        levels: the data: first tables that read no other, then those that read these, and so on.
        after: the post-data entries: indexes, constraints, triggers.
        after_all: whether ``after`` must wait until all data is loaded.
        notes: a line for each entry that comes later than in the archive.
        tables: number of a table's data entry -> its schema and name.
        leaning: functions that are called during the load and depend on the session's ``search_path``.
        calls: signature of a function that may depend on it -> the functions that it calls without a schema, in lower
            case.
    """

    before: tuple[ArchiveEntry, ...]
    levels: tuple[LoadLevel, ...]
    after: tuple[ArchiveEntry, ...]
    after_all: bool = False
    notes: tuple[str, ...] = ()
    tables: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    leaning: tuple[Leaning, ...] = ()
    calls: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def at_once(self) -> bool:
        """Whether pg_restore may load everything in one run, in any order."""
        return not self.after_all and len(self.levels) == 1


def may_lean(listing: str) -> bool:
    """Whether the archive has functions at all, or rows of an extension's table, which a function may read."""
    entries = entries_of(listing)
    tables = {entry.oid for entry in entries if entry.text.startswith("TABLE ") and not DATA.match(entry.text)}
    return any(
        entry.text.startswith(tuple(f"{kind} " for kind in ROUTINES))
        or (entry.text.startswith(TABLE_DATA) and entry.oid not in tables)
        for entry in entries
    )


def order_of(listing: str, schema: str, wanted: Callable[[str], bool] = lambda _: True) -> LoadOrder:
    """The order in which an archive is restored.

    Args:
        listing: its contents list.
        schema: the output of ``pg_restore --verbose --schema-only --file=-``; empty if no function can read tables.
        wanted: tells from an entry's text whether it is restored.
    """
    before, data, after = sections_of(entries_of(listing))
    before, data, after = ([entry for entry in part if wanted(entry.text)] for part in (before, data, after))
    archive = ArchiveObjects(schema, data)
    reads = TableReads(archive)
    levels, notes = _levels(reads)
    late = _late(reads, after)
    called = reads.called_by_rows(after)
    return LoadOrder(
        before=tuple(_sorted(reads, before)),
        levels=tuple(levels),
        after=tuple(after),
        after_all=bool(late),
        notes=(*notes, *late),
        tables={entry.number: archive.schema_and_name(number) for number, entry in archive.tables.items()},
        leaning=tuple(leaning_among(called, archive)),
        calls={signature_of(each): frozenset(called_without_schema(each.text)) for each in called},
    )


def _levels(reads: TableReads) -> tuple[list[LoadLevel], list[str]]:
    """The data, level by level, and the reasons why some of it comes later."""
    leaning: dict[int, set[int]] = {}
    last: set[int] = set()
    archive = reads.archive
    notes: list[tuple[int, str]] = []
    for number, entry in archive.tables.items():
        for what, function, relations in reads.leans_on(number):
            others = {read.number for read in relations} & archive.tables.keys() - {number}
            if function is None:
                leaning.setdefault(number, set())
                by, names = "an extension's function", ["an extension's table"]
            elif others:
                leaning.setdefault(number, set()).update(others)
                by, names = function.called, [read.called for read in relations if read.number in others]
            elif not relations:
                last.add(number)
                by, names = function.called, ["what it names at run time"]
            else:
                continue
            notes.append((entry.number, _note(reads.archive.by_number[number], what, by, names)))
    last -= leaning.keys()
    later = {archive.tables[number].number for number in (*leaning, *last)}
    levels = [LoadLevel(tuple(entry for entry in archive.data if entry.number not in later))]
    waiting = dict(leaning)
    while waiting:
        ready = {number for number, others in waiting.items() if not others & waiting.keys()}
        taken = {archive.tables[number].number for number in ready or waiting}
        levels.append(LoadLevel(tuple(entry for entry in archive.data if entry.number in taken), apart=not ready))
        waiting = {number: others for number, others in waiting.items() if ready and number not in ready}
    if last:
        taken = {archive.tables[number].number for number in last}
        levels.append(LoadLevel(tuple(entry for entry in archive.data if entry.number in taken), apart=True))
    at = {entry.number: place for place, entry in enumerate(archive.data)}
    return levels, list(dict.fromkeys(text for number, text in sorted(notes, key=lambda note: at[note[0]])))


def _late(reads: TableReads, after: Iterable[ArchiveEntry]) -> list[str]:
    """The indexes and constraints that read tables, so that all data must be loaded before them."""
    notes = []
    for entry in after:
        each = reads.archive.by_number.get(entry.number)
        if each is None or each.kind not in _LEANS_LATE or each.text.rstrip().endswith("NOT VALID;"):
            continue
        for _, function, caller in reads.evaluated(each):
            names = [read.called for read in reads.read_by(function, caller)]
            if names or reads.is_dynamic(function):
                of = each.name.rpartition(" ")[2] if each.kind != "INDEX" else each.name
                notes.append(
                    f"{each.kind.lower()} {each.schema}.{of} was made after all data: {function.called} looks into "
                    f"{_some(names or ['what it names at run time'])}; a plain pg_restore may compute it otherwise"
                )
    return notes


def _sorted(reads: TableReads, before: list[ArchiveEntry]) -> list[ArchiveEntry]:
    """The pre-data entries; objects that a generated column's function reads come before its table."""
    extra: dict[int, list[int]] = {}
    for number, each in reads.archive.by_number.items():
        if each.kind == "TABLE" and ("GENERATED ALWAYS AS (" in each.text or "PARTITION BY" in each.text):
            called = [function for _, function, _ in reads.evaluated(each)]
            if called:
                reached = {number for function in called for number in reads.reached_from(function)}
                extra[number] = sorted(reached - {number})
    if not extra:
        return before
    entries = {entry.number: entry for entry in before}
    found: dict[int, ArchiveEntry] = {}
    for entry in before:
        todo, under_way = [entry.number], {entry.number}
        while todo:
            number = todo[-1]
            own = reads.archive.by_number[number].needs if number in reads.archive.by_number else ()
            needs = [*own, *extra.get(number, ())]
            open_ = [need for need in needs if need in entries and need not in found and need not in under_way]
            if open_:
                todo.append(open_[0])
                under_way.add(open_[0])
            else:
                found[number] = entries[number]
                todo.pop()
    return list(found.values())


def _note(table: ArchiveObject, what: str, function: str, names: Sequence[str]) -> str:
    return (
        f"table {table.called} was loaded after the others: {what} looks into {_some(names)} ({function}); "
        "a plain pg_restore may fail on it"
    )


def _some(names: Sequence[str]) -> str:
    return some(list(dict.fromkeys(names)), _SHOWN)
