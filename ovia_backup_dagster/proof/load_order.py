"""In which order an archive is restored, where its own order does not say it: what looks into other tables comes later.

A CHECK, a generated column, a domain or an index may call a function that reads a table, and pg_dump sorts by what the
catalogs know: of a function whose body is a string they know nothing. A plain pg_restore then fails, or computes other
values, or not, as its jobs happen to be scheduled. What is read is found in the archive's own text: its entries name
what they depend on, and a function's body names what it reads. Found too much, it costs time alone; found too little,
the rounds of ``proof.load_rounds`` load again what failed. What runs pg_restore is there; nothing here does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ovia_backup_dagster.core.human_text import some

_LISTED = re.compile(r"^(\d+); \d+ (\d+) (.+)$", re.MULTILINE)
#: As ``pg_restore --verbose --schema-only --file=-`` begins each entry.
_BEGINS = re.compile(
    r"^-- TOC entry (\d+) \(class \d+ OID \d+\)\n(?:-- Dependencies:([ \d]*)\n)?"
    r"-- Name: (.*); Type: (.*); Schema: (.*); Owner: .*\n(?:-- Data Pos: .*\n)?--\n",
    re.MULTILINE,
)
_DATA = re.compile(r"(?:TABLE DATA|BLOBS|SEQUENCE SET) ")
_AFTER_DATA = re.compile(
    r"(?:CONSTRAINT|CHECK CONSTRAINT|FK CONSTRAINT|INDEX|INDEX ATTACH|TRIGGER|EVENT TRIGGER|POLICY|ROW SECURITY|RULE"
    r"|STATISTICS|PUBLICATION|PUBLICATION TABLE|PUBLICATION TABLES IN SCHEMA|SUBSCRIPTION|MATERIALIZED VIEW DATA) "
)
_TABLE_DATA = "TABLE DATA "
_ROUTINES = ("FUNCTION", "PROCEDURE", "AGGREGATE")
_HOLD_ROWS = ("TABLE", "FOREIGN TABLE", "MATERIALIZED VIEW")
_READ_FROM = (*_HOLD_ROWS, "VIEW")
#: Kinds whose SQL is evaluated when rows come into what depends on them, or an index is built.
_BETWEEN = ("DOMAIN", "TYPE", "OPERATOR", "OPERATOR CLASS", "OPERATOR FAMILY", "CAST", *_ROUTINES)
#: Those that are nothing but the functions that they name.
_MADE_OF = ("OPERATOR", "OPERATOR CLASS", "CAST", "TYPE", "AGGREGATE")
_LEANS_LATE = ("INDEX", "CONSTRAINT", "CHECK CONSTRAINT")
_OWN_PATH = re.compile(r"^    SET search_path TO ", re.MULTILINE)
_BY_NAME = re.compile(r"^    LANGUAGE (?:sql|plpgsql)\b.*?^    AS ", re.MULTILINE | re.DOTALL)
_SIMPLE = re.compile(r"[a-z_][a-z0-9_$]*")
_TRIGGER = re.compile(r"\bRETURNS (?:event_)?trigger\b")
_DYNAMIC = re.compile(r"\bexecute\b|\bquery_to_xml\b|\bplpy\b|\bspi_\w+", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_LITERAL = re.compile(r"'(?:[^']|'')*'")
_BODY = re.compile(r"\bAS (\$\w*\$)(.*?)\1|\bAS '((?:[^']|'')*)'|\b(RETURN\b.*|BEGIN ATOMIC\b.*)", re.DOTALL)
#: What comes after one of these may be a relation.
_CLAUSE = re.compile(
    r"\b(?:from|join|into|update|using|table|only)\b(.*?)"
    r"(?=\b(?:where|group|order|having|limit|on|set|values|union|loop|select)\b|;|\)|$)",
    re.IGNORECASE | re.DOTALL,
)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_WORD = re.compile(r'"((?:[^"]|"")*)"|([^\W\d][\w$]*)')
#: A default is not evaluated for a column that the rows bring.
_DEFAULT = re.compile(r" DEFAULT (?!.* GENERATED ).*?(?= NOT NULL|,?$)", re.MULTILINE)
_CALL = re.compile(r'[\w"]\.(?:\w+|"[^"]+")\(')
_BARE_CALL = re.compile(r'(?<![.\w"])"?([^\W\d][\w$]*)"?\s*\(')
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One of an archive.

    Attributes:
        number: the archive's own, by which it is known.
        line: as the contents list has it, and takes it back.
        text: of the line, what it is: ``TYPE schema name owner``.
        oid: in the source.
    """

    number: int
    line: str
    text: str
    oid: int


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """Data that is loaded at a time.

    Attributes:
        entries: in the archive's order.
        apart: one after the other, as each may look into the others.
    """

    entries: tuple[ArchiveEntry, ...]
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Leaning:
    """A function that says of what it uses only the name, not where it is.

    Attributes:
        signature: as ``ALTER FUNCTION`` takes it.
        schemas: where that is, as SQL writes them.
    """

    signature: str
    schemas: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What makes it independent of the session, as SQL."""
        return f"ALTER FUNCTION {self.signature} SET search_path = {', '.join((*self.schemas, 'pg_temp'))}"


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """An archive's entries as they are restored.

    Attributes:
        before: what the tables are made of.
        levels: data: first what looks into nothing, then what looks into that, and so on.
        after: indexes, constraints, triggers.
        after_all: whether that must wait until all data is there.
        notes: a line for each that comes later than in the archive.
        tables: of the data of a table, which it is: schema and name.
        leaning: functions that are called meanwhile, and find what they name by the ``search_path`` of a session.
        calls: of those that may do so, signature -> the functions that they call without a schema, in lower case.
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
        """Whether pg_restore may do all of it in one go, in whatever order it likes."""
        return not self.after_all and len(self.levels) == 1


def entries_of(listing: str) -> list[ArchiveEntry]:
    """A contents list's."""
    return [ArchiveEntry(int(m[1]), m[0], m[3], int(m[2])) for m in _LISTED.finditer(listing)]


def may_lean(listing: str) -> bool:
    """Whether the archive has functions at all, or rows of an extension's that one may read."""
    entries = entries_of(listing)
    tables = {entry.oid for entry in entries if entry.text.startswith("TABLE ") and not _DATA.match(entry.text)}
    return any(
        entry.text.startswith(tuple(f"{kind} " for kind in _ROUTINES))
        or (entry.text.startswith(_TABLE_DATA) and entry.oid not in tables)
        for entry in entries
    )


def order_of(listing: str, schema: str, wanted: Callable[[str], bool] = lambda _: True) -> LoadOrder:
    """The order in which an archive is restored.

    Args:
        listing: its contents list.
        schema: what ``pg_restore --verbose --schema-only --file=-`` prints of it; empty where nothing may lean.
        wanted: of an entry's text, whether it is restored.
    """
    before, data, after = _sections(entries_of(listing))
    before, data, after = ([entry for entry in part if wanted(entry.text)] for part in (before, data, after))
    found = _Archive(schema, data)
    levels, notes = found.levels()
    late = found.late(after)
    return LoadOrder(
        before=tuple(found.sorted(before)),
        levels=tuple(levels),
        after=tuple(after),
        after_all=bool(late),
        notes=(*notes, *late),
        tables={entry.number: found.called(number) for number, entry in found.tables.items()},
        leaning=tuple(found.leaning(after)),
        calls={_signature(each): frozenset(_called_bare(each)) for each in found.called_by_rows(after)},
    )


def _sections(entries: Sequence[ArchiveEntry]) -> tuple[list[ArchiveEntry], list[ArchiveEntry], list[ArchiveEntry]]:
    """As pg_dump lists them: what comes before the data, the data, what comes after."""
    end = next((at for at, entry in enumerate(entries) if _AFTER_DATA.match(entry.text)), len(entries))
    begin = next((at for at, entry in enumerate(entries[:end]) if _DATA.match(entry.text)), end)
    return list(entries[:begin]), list(entries[begin:end]), list(entries[end:])


@dataclass(frozen=True, slots=True)
class _Object:
    number: int
    kind: str
    schema: str
    name: str
    needs: tuple[int, ...]
    text: str

    @property
    def bare(self) -> str:
        """Its name as others call it: a function's without its arguments."""
        return self.name.partition("(")[0] if self.kind in _ROUTINES else self.name

    @property
    def called(self) -> str:
        return f"{self.schema}.{self.bare}"


@dataclass
class _Archive:
    """What an archive's text says of its objects."""

    schema: str
    data: list[ArchiveEntry]
    _reads: dict[int, set[int]] = field(default_factory=dict, init=False)
    _closures: dict[int, set[int]] = field(default_factory=dict, init=False)

    @cached_property
    def objects(self) -> dict[int, _Object]:
        matches = list(_BEGINS.finditer(self.schema))
        ends = [*(match.start() for match in matches[1:]), len(self.schema)]
        found: dict[int, _Object] = {}
        for match, end in zip(matches, ends, strict=False):
            number, needs, name, kind, schema = match.groups()
            needed = tuple(map(int, (needs or "").split()))
            # The first: a function's body may hold what looks like another.
            found.setdefault(
                int(number), _Object(int(number), kind, schema, name, needed, self.schema[match.end() : end])
            )
        return found

    @cached_property
    def relations(self) -> dict[str, list[_Object]]:
        return self._by_name(_READ_FROM)

    @cached_property
    def routines(self) -> dict[str, list[_Object]]:
        return self._by_name(_ROUTINES)

    def _by_name(self, kinds: tuple[str, ...]) -> dict[str, list[_Object]]:
        found: dict[str, list[_Object]] = {}
        for each in self.objects.values():
            if each.kind in kinds:
                found.setdefault(each.bare.lower(), []).append(each)
        return found

    @cached_property
    def tables(self) -> dict[int, ArchiveEntry]:
        """Table -> its data."""
        oids = {entry.oid: entry for entry in self.data if entry.text.startswith(_TABLE_DATA)}
        numbers = {
            match[1]: match[2]
            for match in re.finditer(r"^-- TOC entry (\d+) \(class \d+ OID (\d+)\)$", self.schema, re.MULTILINE)
        }
        return {
            number: oids[int(numbers[str(number)])]
            for number, each in self.objects.items()
            if each.kind == "TABLE" and int(numbers[str(number)]) in oids
        }

    @cached_property
    def extensions(self) -> set[int]:
        """Those whose own tables have rows in the archive."""
        known = {entry.number for entry in self.tables.values()}
        strange = any(entry.text.startswith(_TABLE_DATA) and entry.number not in known for entry in self.data)
        return {each.number for each in self.objects.values() if each.kind == "EXTENSION"} if strange else set()

    @cached_property
    def children(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for child, parents in self.parents.items():
            for parent in parents:
                found.setdefault(parent, set()).add(child)
        return found

    @cached_property
    def parents(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for each in self.objects.values():
            above = [need for need in each.needs if self._kind(need) == "TABLE"]
            if each.kind == "TABLE ATTACH" and len(above) > 1:
                attached = re.search(r" ATTACH PARTITION (\S+)", each.text)
                child = next((n for n in above if attached and attached[1].endswith(self.objects[n].name)), above[0])
                found.setdefault(child, set()).update(set(above) - {child})
            elif each.kind == "TABLE" and "INHERITS (" in each.text:
                found.setdefault(each.number, set()).update(above)
        return found

    def _kind(self, number: int) -> str:
        return self.objects[number].kind if number in self.objects else ""

    def called(self, number: int) -> tuple[str, str]:
        """An object's schema and name."""
        return self.objects[number].schema, self.objects[number].name

    # ---- what is read

    def leans_on(self, number: int) -> list[tuple[str, _Object | None, list[_Object]]]:
        """Of a table or an index: what of it, which function, and what that reads; no function: an extension's."""
        each = self.objects.get(number)
        if each is None:
            return []
        found: list[tuple[str, _Object | None, list[_Object]]] = []
        for owner in (each, *(self.objects[parent] for parent in sorted(self._above(number)))):
            for what, function, caller in self._evaluated(owner):
                reads = self._read_by(function, caller)
                if reads or self._dynamic(function):
                    found.append((what, function, reads))
        if self.extensions.intersection(each.needs) and _CALL.search(_evaluated_text(each)):
            found.append(("what is computed of its columns", None, []))
        return found

    def _above(self, number: int) -> set[int]:
        found: set[int] = set()
        todo = [number]
        while todo:
            for parent in self.parents.get(todo.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    todo.append(parent)
        return found - {number}

    def _evaluated(self, each: _Object) -> Iterator[tuple[str, _Object, _Object]]:
        """The functions that run when a row comes in: what of the object calls them, which, and from which object."""
        seen: set[int] = set()

        def through(owner: _Object, what: str) -> Iterator[tuple[str, _Object, _Object]]:
            for need in owner.needs:
                needed = self.objects.get(need)
                if needed is None or need in seen or needed.kind not in _BETWEEN:
                    continue
                if needed.kind in _ROUTINES:
                    # That a default alone calls is not called; a cast does not name the function that it calls.
                    default = _calls(owner.text, needed.bare) and not _calls(_evaluated_text(owner), needed.bare)
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

    def _read_by(self, function: _Object, caller: _Object) -> list[_Object]:
        """The relations with rows that a function reads, itself or through others; in the order of their numbers."""
        reached = self._reached(function)
        if self._dynamic(function):
            # It may be told what to read.
            told = {word for literal in _LITERAL.findall(caller.text) for word in _words(literal)}
            reached = reached | {each.number for word in told for each in self.relations.get(word, ())}
        found: set[int] = set()
        for number in reached:
            if self._kind(number) in _HOLD_ROWS:
                found |= {number, *self._below(number)}
        return [self.objects[number] for number in sorted(found)]

    def _dynamic(self, function: _Object) -> bool:
        """Whether it, or what it calls, puts together at run time what it reads."""
        return any(
            self._kind(number) in _ROUTINES and _DYNAMIC.search(_body(self.objects[number].text))
            for number in self._reached(function)
        )

    def _reached(self, function: _Object) -> set[int]:
        """What a function needs to run: what it reads and calls, and what that does."""
        if function.number in self._closures:
            return self._closures[function.number]
        todo, seen = [function.number], {function.number}
        while todo:
            number = todo.pop()
            if self._kind(number) in (*_ROUTINES, "VIEW", "MATERIALIZED VIEW", "OPERATOR", "DOMAIN", "TYPE"):
                more = self._mentioned(number) - seen
                seen |= more
                todo += more
        self._closures[function.number] = seen
        return seen

    def _below(self, number: int) -> set[int]:
        found: set[int] = set()
        todo = [number]
        while todo:
            more = self.children.get(todo.pop(), set()) - found
            found |= more
            todo += more
        return found

    def _mentioned(self, number: int) -> set[int]:
        if number not in self._reads:
            each = self.objects[number]
            found = {need for need in each.needs if need in self.objects}
            if each.kind in _ROUTINES:
                for read in _relations_in(_body(each.text)):
                    found |= {relation.number for relation in self.relations.get(read, ())}
                for word in _words(_body(each.text)):
                    found |= {other.number for other in self.routines.get(word, ())}
            self._reads[number] = found - {number}
        return self._reads[number]

    # ---- the order

    def levels(self) -> tuple[list[LoadLevel], list[str]]:
        """The data, level by level, and why some comes later."""
        leaning: dict[int, set[int]] = {}
        last: set[int] = set()
        notes: list[tuple[int, str]] = []
        for number, entry in self.tables.items():
            for what, function, reads in self.leans_on(number):
                others = {read.number for read in reads} & self.tables.keys() - {number}
                if function is None:
                    leaning.setdefault(number, set())
                    by, names = "an extension's function", ["an extension's table"]
                elif others:
                    leaning.setdefault(number, set()).update(others)
                    by, names = function.called, [read.called for read in reads if read.number in others]
                elif not reads:
                    last.add(number)
                    by, names = function.called, ["what it names at run time"]
                else:
                    continue
                notes.append((entry.number, _note(self.objects[number], what, by, names)))
        last -= leaning.keys()
        later = {self.tables[number].number for number in (*leaning, *last)}
        levels = [LoadLevel(tuple(entry for entry in self.data if entry.number not in later))]
        waiting = dict(leaning)
        while waiting:
            ready = {number for number, reads in waiting.items() if not reads & waiting.keys()}
            taken = {self.tables[number].number for number in ready or waiting}
            levels.append(LoadLevel(tuple(entry for entry in self.data if entry.number in taken), apart=not ready))
            waiting = {number: reads for number, reads in waiting.items() if ready and number not in ready}
        if last:
            taken = {self.tables[number].number for number in last}
            levels.append(LoadLevel(tuple(entry for entry in self.data if entry.number in taken), apart=True))
        at = {entry.number: place for place, entry in enumerate(self.data)}
        return levels, list(dict.fromkeys(text for number, text in sorted(notes, key=lambda note: at[note[0]])))

    def late(self, after: Iterable[ArchiveEntry]) -> list[str]:
        """What of the indexes and constraints reads tables, for which all data must be there."""
        notes = []
        for entry in after:
            each = self.objects.get(entry.number)
            if each is None or each.kind not in _LEANS_LATE or each.text.rstrip().endswith("NOT VALID;"):
                continue
            for _, function, caller in self._evaluated(each):
                reads = [read.called for read in self._read_by(function, caller)]
                if reads or self._dynamic(function):
                    of = each.name.rpartition(" ")[2] if each.kind != "INDEX" else each.name
                    notes.append(
                        f"{each.kind.lower()} {each.schema}.{of} was made after all data: {function.called} looks into "
                        f"{_some(reads or ['what it names at run time'])}; a plain pg_restore may compute it otherwise"
                    )
        return notes

    def called_by_rows(self, after: Iterable[ArchiveEntry]) -> list[_Object]:
        """The functions that rows or indexes call, themselves or through others, and that look names up as they run."""
        called: dict[int, _Object] = {}
        for number in (*(number for number, each in self.objects.items() if each.kind == "TABLE"), *by_number(after)):
            if number in self.objects:
                called |= {function.number: function for _, function, _ in self._evaluated(self.objects[number])}
        todo = list(called)
        while todo:
            for number in self._mentioned(todo.pop()):
                if self._kind(number) in _ROUTINES and number not in called:
                    called[number] = self.objects[number]
                    todo.append(number)
        return [
            function
            for _, function in sorted(called.items())
            if function.kind != "AGGREGATE" and _BY_NAME.search(function.text) and not _OWN_PATH.search(function.text)
        ]

    def leaning(self, after: Iterable[ArchiveEntry]) -> list[Leaning]:
        """Those of them that name what they use without its schema."""
        found = []
        for function in self.called_by_rows(after):
            schemas = self._unqualified(function)
            if schemas:
                names = tuple(dict.fromkeys(map(quote_ident, (function.schema, *schemas))))
                found.append(Leaning(_signature(function), names))
        return found

    def _unqualified(self, function: _Object) -> list[str]:
        """The schemas of what a function names without one."""
        body = _body(function.text)
        clauses = " ".join(_CLAUSE.findall(body))
        found = []
        for named, words, text, end in (
            (self.routines, _words(body), body, r"\s*\("),
            (self.relations, _relations_in(body), clauses, ""),
        ):
            for name in sorted(words & named.keys()):
                bare = rf'(?<![.\w"])"?{re.escape(name)}"?(?!\w|"|\s*\.){end}'
                if re.search(bare, text, re.IGNORECASE):
                    found += sorted(other.schema for other in named[name] if other.number != function.number)
        return found

    def sorted(self, before: list[ArchiveEntry]) -> list[ArchiveEntry]:
        """What comes before the data, with what a generated column's function reads before its table is made."""
        extra: dict[int, list[int]] = {}
        for number, each in self.objects.items():
            if each.kind == "TABLE" and ("GENERATED ALWAYS AS (" in each.text or "PARTITION BY" in each.text):
                called = [function for _, function, _ in self._evaluated(each)]
                if called:
                    reached = {number for function in called for number in self._reached(function)}
                    extra[number] = sorted(reached - {number})
        if not extra:
            return before
        entries = {entry.number: entry for entry in before}
        found: dict[int, ArchiveEntry] = {}
        for entry in before:
            todo, under_way = [entry.number], {entry.number}
            while todo:
                number = todo[-1]
                own = self.objects[number].needs if number in self.objects else ()
                needs = [*own, *extra.get(number, ())]
                open_ = [need for need in needs if need in entries and need not in found and need not in under_way]
                if open_:
                    todo.append(open_[0])
                    under_way.add(open_[0])
                else:
                    found[number] = entries[number]
                    todo.pop()
        return list(found.values())


def _signature(function: _Object) -> str:
    return f"{quote_ident(function.schema)}.{function.name}"


def _called_bare(function: _Object) -> set[str]:
    return {match[1].lower() for match in _BARE_CALL.finditer(_body(function.text))}


def _note(table: _Object, what: str, function: str, names: Sequence[str]) -> str:
    return (
        f"table {table.called} was loaded after the others: {what} looks into {_some(names)} ({function}); "
        "a plain pg_restore may fail on it"
    )


def _some(names: Sequence[str]) -> str:
    return some(list(dict.fromkeys(names)), _SHOWN)


def _where(owner: _Object, function: str) -> str:
    """What of an object calls a function."""
    if owner.kind == "TABLE":
        for line in owner.text.splitlines():
            if _calls(line, function) or (not function[0].isalnum() and function in line):
                if constraint := re.search(r'CONSTRAINT ("(?:[^"]|"")*"|\S+) CHECK', line):
                    return f"its CHECK {constraint[1]}"
                if " GENERATED ALWAYS AS (" in line:
                    return f"its generated column {line.split()[0]}"
            if "PARTITION BY" in line and _calls(line, function):
                return f"the partition key of {owner.called}"
        return "what is computed of its rows"
    return f"{owner.kind.lower()} {owner.name}"


def _evaluated_text(each: _Object) -> str:
    return _DEFAULT.sub("", each.text)


def _calls(text: str, function: str) -> bool:
    return function.lower() in _words(text)


def _body(text: str) -> str:
    """A function's, without comments; with what it puts together at run time where it does so."""
    match = _BODY.search(text)
    body = next((part for part in (match[2], match[3], match[4]) if part is not None), "") if match else text
    body = _COMMENT.sub(" ", body)
    return body if _DYNAMIC.search(body) else _LITERAL.sub(" ", body)


def _relations_in(body: str) -> set[str]:
    """Words that may name a relation: those of FROM and the like; of what is put together at run time, any."""
    if _DYNAMIC.search(body):
        return _words(body)
    quoted: dict[str, str] = {}

    def aside(match: re.Match[str]) -> str:
        # A name may hold what ends a clause.
        stands = f"q{len(quoted)}_"
        quoted[stands] = match[1].replace('""', '"').lower()
        return stands

    body = _QUOTED.sub(aside, body)
    return {quoted.get(word, word) for clause in _CLAUSE.findall(body) for word in _words(clause)}


def _words(text: str) -> set[str]:
    return {(quoted.replace('""', '"') or bare).lower() for quoted, bare in _WORD.findall(text)}


def quote_ident(name: str) -> str:
    """A schema's, as SQL writes it."""
    return name if _SIMPLE.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def by_number(entries: Iterable[ArchiveEntry]) -> Mapping[int, ArchiveEntry]:
    """Each by its number."""
    return {entry.number: entry for entry in entries}
