"""The objects of an archive, from its annotated schema: their SQL, dependencies, and partitions.

``table_reads`` finds out what a function reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from ovia_backup_dagster.proof.archive_entries import TABLE_DATA, ArchiveEntry

#: How ``pg_restore --verbose --schema-only --file=-`` begins each entry.
_BEGINS = re.compile(
    r"^-- TOC entry (\d+) \(class \d+ OID \d+\)\n(?:-- Dependencies:([ \d]*)\n)?"
    r"-- Name: (.*); Type: (.*); Schema: (.*); Owner: .*\n(?:-- Data Pos: .*\n)?--\n",
    re.MULTILINE,
)
#: Kinds that SQL can call.
ROUTINES = ("FUNCTION", "PROCEDURE", "AGGREGATE")
#: Kinds that hold rows of their own.
HOLD_ROWS = ("TABLE", "FOREIGN TABLE", "MATERIALIZED VIEW")
_READ_FROM = (*HOLD_ROWS, "VIEW")


@dataclass(frozen=True, slots=True)
class ArchiveObject:
    """One object of an archive.

    Attributes:
        number: the number of its entry.
        kind: ``TABLE``, ``FUNCTION``, ...
        schema, name: its schema and name; a function's name includes its arguments.
        needs: the numbers of the objects that it depends on.
        text: its SQL.
    """

    number: int
    kind: str
    schema: str
    name: str
    needs: tuple[int, ...]
    text: str

    @property
    def bare(self) -> str:
        """Its name as other objects use it: a function's name without its arguments."""
        return self.name.partition("(")[0] if self.kind in ROUTINES else self.name

    @property
    def called(self) -> str:
        """The bare name with its schema."""
        return f"{self.schema}.{self.bare}"


@dataclass
class ArchiveObjects:
    """All objects of one archive.

    Attributes:
        schema: the output of ``pg_restore --verbose --schema-only --file=-``.
        data: the entries that hold data.
    """

    schema: str
    data: list[ArchiveEntry]

    @cached_property
    def by_number(self) -> dict[int, ArchiveObject]:
        """Number -> object."""
        matches = list(_BEGINS.finditer(self.schema))
        ends = [*(match.start() for match in matches[1:]), len(self.schema)]
        found: dict[int, ArchiveObject] = {}
        for match, end in zip(matches, ends, strict=False):
            number, needs, name, kind, schema = match.groups()
            needed = tuple(map(int, (needs or "").split()))
            # The first match counts: a function's body may contain text that looks like another entry.
            found.setdefault(
                int(number), ArchiveObject(int(number), kind, schema, name, needed, self.schema[match.end() : end])
            )
        return found

    @cached_property
    def relations(self) -> dict[str, list[ArchiveObject]]:
        """Name, in lower case -> the relations that a query can read by this name."""
        return self._by_name(_READ_FROM)

    @cached_property
    def routines(self) -> dict[str, list[ArchiveObject]]:
        """Name, in lower case -> the routines that can be called by this name."""
        return self._by_name(ROUTINES)

    def _by_name(self, kinds: tuple[str, ...]) -> dict[str, list[ArchiveObject]]:
        found: dict[str, list[ArchiveObject]] = {}
        for each in self.by_number.values():
            if each.kind in kinds:
                found.setdefault(each.bare.lower(), []).append(each)
        return found

    @cached_property
    def tables(self) -> dict[int, ArchiveEntry]:
        """Number of a table -> the entry of its data."""
        oids = {entry.oid: entry for entry in self.data if entry.text.startswith(TABLE_DATA)}
        numbers = {
            match[1]: match[2]
            for match in re.finditer(r"^-- TOC entry (\d+) \(class \d+ OID (\d+)\)$", self.schema, re.MULTILINE)
        }
        return {
            number: oids[int(numbers[str(number)])]
            for number, each in self.by_number.items()
            if each.kind == "TABLE" and int(numbers[str(number)]) in oids
        }

    @cached_property
    def extensions(self) -> set[int]:
        """The numbers of the extensions, if the archive has rows of an extension's own tables."""
        known = {entry.number for entry in self.tables.values()}
        strange = any(entry.text.startswith(TABLE_DATA) and entry.number not in known for entry in self.data)
        return {each.number for each in self.by_number.values() if each.kind == "EXTENSION"} if strange else set()

    @cached_property
    def children(self) -> dict[int, set[int]]:
        """Table -> its partitions and the tables that inherit from it."""
        found: dict[int, set[int]] = {}
        for child, parents in self.parents.items():
            for parent in parents:
                found.setdefault(parent, set()).add(child)
        return found

    @cached_property
    def parents(self) -> dict[int, set[int]]:
        """The reverse of :attr:`children`."""
        found: dict[int, set[int]] = {}
        for each in self.by_number.values():
            above = [need for need in each.needs if self.kind_of(need) == "TABLE"]
            if each.kind == "TABLE ATTACH" and len(above) > 1:
                attached = re.search(r" ATTACH PARTITION (\S+)", each.text)
                child = next((n for n in above if attached and attached[1].endswith(self.by_number[n].name)), above[0])
                found.setdefault(child, set()).update(set(above) - {child})
            elif each.kind == "TABLE" and "INHERITS (" in each.text:
                found.setdefault(each.number, set()).update(above)
        return found

    def kind_of(self, number: int) -> str:
        """The kind of an object; empty if the archive has no such number."""
        return self.by_number[number].kind if number in self.by_number else ""

    def schema_and_name(self, number: int) -> tuple[str, str]:
        """Schema and name of an object."""
        return self.by_number[number].schema, self.by_number[number].name

    def above(self, number: int) -> set[int]:
        """The ancestors of a table."""
        found: set[int] = set()
        todo = [number]
        while todo:
            for parent in self.parents.get(todo.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    todo.append(parent)
        return found - {number}

    def below(self, number: int) -> set[int]:
        """The descendants of a table."""
        found: set[int] = set()
        todo = [number]
        while todo:
            more = self.children.get(todo.pop(), set()) - found
            found |= more
            todo += more
        return found
