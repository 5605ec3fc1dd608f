"""Finds the tables that are read when rows are inserted or indexes are built: by functions of CHECKs, domains, columns.

A table that is named needlessly costs only time. If one is missed, a load fails, and ``load_rounds`` repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ovia_backup_dagster.proof.archive_entries import ArchiveEntry
from ovia_backup_dagster.proof.archive_objects import HOLD_ROWS, ROUTINES, ArchiveObject, ArchiveObjects
from ovia_backup_dagster.proof.routine_text import (
    CALL,
    DYNAMIC,
    LITERAL,
    body_of,
    calls,
    evaluated_text,
    relations_in,
    words_in,
)

#: Kinds whose SQL runs when a row is inserted into a table that depends on them, or an index on the table is built.
_BETWEEN = ("DOMAIN", "TYPE", "OPERATOR", "OPERATOR CLASS", "OPERATOR FAMILY", "CAST", *ROUTINES)
#: Kinds that consist only of the functions that they name.
_MADE_OF = ("OPERATOR", "OPERATOR CLASS", "CAST", "TYPE", "AGGREGATE")
#: A function with its own search_path, and functions that look names up when they run.
_OWN_PATH = re.compile(r"^    SET search_path TO ", re.MULTILINE)
_BY_NAME = re.compile(r"^    LANGUAGE (?:sql|plpgsql)\b.*?^    AS ", re.MULTILINE | re.DOTALL)
_TRIGGER = re.compile(r"\bRETURNS (?:event_)?trigger\b")


@dataclass
class TableReads:
    """What the objects of one archive read.

    Attributes:
        archive: its objects.
    """

    archive: ArchiveObjects
    _reads: dict[int, set[int]] = field(default_factory=dict, init=False)
    _closures: dict[int, set[int]] = field(default_factory=dict, init=False)

    def leans_on(self, number: int) -> list[tuple[str, ArchiveObject | None, list[ArchiveObject]]]:
        """The reads of a table or an index: the part of it, the function that this calls, the relations that it reads.

        The function is ``None`` if an extension's function may be called.
        """
        each = self.archive.by_number.get(number)
        if each is None:
            return []
        found: list[tuple[str, ArchiveObject | None, list[ArchiveObject]]] = []
        for owner in (each, *(self.archive.by_number[parent] for parent in sorted(self.archive.above(number)))):
            for what, function, caller in self.evaluated(owner):
                reads = self.read_by(function, caller)
                if reads or self.is_dynamic(function):
                    found.append((what, function, reads))
        if self.archive.extensions.intersection(each.needs) and CALL.search(evaluated_text(each.text)):
            found.append(("what is computed of its columns", None, []))
        return found

    def evaluated(self, each: ArchiveObject) -> Iterator[tuple[str, ArchiveObject, ArchiveObject]]:
        """The functions that run when a row is inserted: the part that calls them, the function, the calling object."""
        seen: set[int] = set()

        def through(owner: ArchiveObject, what: str) -> Iterator[tuple[str, ArchiveObject, ArchiveObject]]:
            for need in owner.needs:
                needed = self.archive.by_number.get(need)
                if needed is None or need in seen or needed.kind not in _BETWEEN:
                    continue
                if needed.kind in ROUTINES:
                    # A function that only a default calls does not run. A cast does not name its function.
                    default = calls(owner.text, needed.bare) and not calls(evaluated_text(owner.text), needed.bare)
                    if (default and owner.kind not in _MADE_OF) or _TRIGGER.search(needed.text):
                        continue
                    seen.add(need)
                    yield what or _where(owner, needed.bare), needed, owner
                else:
                    seen.add(need)
                    within = f"the CHECK of domain {needed.called}" if needed.kind == "DOMAIN" else ""
                    if needed.kind == "OPERATOR":
                        within = _where(owner, f".{needed.bare})")
                    yield from through(needed, within or what or f"{needed.kind.lower()} {needed.called}")

        yield from through(each, "")

    def read_by(self, function: ArchiveObject, caller: ArchiveObject) -> list[ArchiveObject]:
        """The relations with rows that a function reads, directly or through others, ordered by number."""
        reached = self.reached_from(function)
        if self.is_dynamic(function):
            # The caller's literals may name what it reads.
            told = {word for literal in LITERAL.findall(caller.text) for word in words_in(literal)}
            reached = reached | {each.number for word in told for each in self.archive.relations.get(word, ())}
        found: set[int] = set()
        for number in reached:
            if self.archive.kind_of(number) in HOLD_ROWS:
                found |= {number, *self.archive.below(number)}
        return [self.archive.by_number[number] for number in sorted(found)]

    def is_dynamic(self, function: ArchiveObject) -> bool:
        """Whether a function, or one that it calls, builds its SQL at run time."""
        return any(
            self.archive.kind_of(number) in ROUTINES and DYNAMIC.search(body_of(self.archive.by_number[number].text))
            for number in self.reached_from(function)
        )

    def reached_from(self, function: ArchiveObject) -> set[int]:
        """The numbers of all objects that a function reads or calls, directly or through others."""
        if function.number in self._closures:
            return self._closures[function.number]
        todo, seen = [function.number], {function.number}
        while todo:
            number = todo.pop()
            if self.archive.kind_of(number) in (*ROUTINES, "VIEW", "MATERIALIZED VIEW", "OPERATOR", "DOMAIN", "TYPE"):
                more = self._mentioned(number) - seen
                seen |= more
                todo += more
        self._closures[function.number] = seen
        return seen

    def _mentioned(self, number: int) -> set[int]:
        if number not in self._reads:
            each = self.archive.by_number[number]
            found = {need for need in each.needs if need in self.archive.by_number}
            if each.kind in ROUTINES:
                for read in relations_in(body_of(each.text)):
                    found |= {relation.number for relation in self.archive.relations.get(read, ())}
                for word in words_in(body_of(each.text)):
                    found |= {other.number for other in self.archive.routines.get(word, ())}
            self._reads[number] = found - {number}
        return self._reads[number]

    def called_by_rows(self, after: Iterable[ArchiveEntry]) -> list[ArchiveObject]:
        """The functions that rows or indexes call, directly or through others, and that look names up when they run."""
        objects = self.archive.by_number
        tables = [number for number, each in objects.items() if each.kind == "TABLE"]
        called: dict[int, ArchiveObject] = {}
        for number in (*tables, *(entry.number for entry in after)):
            if number in objects:
                called |= {function.number: function for _, function, _ in self.evaluated(objects[number])}
        todo = list(called)
        while todo:
            for number in self._mentioned(todo.pop()):
                if self.archive.kind_of(number) in ROUTINES and number not in called:
                    called[number] = self.archive.by_number[number]
                    todo.append(number)
        return [
            function
            for _, function in sorted(called.items())
            if function.kind != "AGGREGATE" and _BY_NAME.search(function.text) and not _OWN_PATH.search(function.text)
        ]


def _where(owner: ArchiveObject, function: str) -> str:
    """The part of an object that calls a function."""
    if owner.kind == "TABLE":
        for line in owner.text.splitlines():
            if calls(line, function) or (not function[0].isalnum() and function in line):
                if constraint := re.search(r'CONSTRAINT ("(?:[^"]|"")*"|\S+) CHECK', line):
                    return f"its CHECK {constraint[1]}"
                if " GENERATED ALWAYS AS (" in line:
                    return f"its generated column {line.split()[0]}"
            if "PARTITION BY" in line and calls(line, function):
                return f"the partition key of {owner.called}"
        return "what is computed of its rows"
    return f"{owner.kind.lower()} {owner.name}"
