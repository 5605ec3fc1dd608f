"""Statements about a finished backup, and the judgement of its archive's contents.

Each has its own sidecar (``<file>.verified.json``, ``.drilled.json``, ``.held.json``, ``.accepted.json``,
``.promoted.json``), because the archive and its manifest never change. ``statement_coverage`` tells which files a
statement covers. Judgements are appended, never rewritten. ``postgres`` reads archives, ``retention`` keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import BadBackupError
from ovia_backup_dagster.core.manifest import Manifest, Sidecar
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.core.statement_coverage import Statement


class Finding(Sidecar):
    """One finding of a check, in words for people."""

    check: Check
    text: str


class TableWitness(Sidecar):
    """One table's data in the archive.

    Attributes:
        name: as pg_dump writes it in the COPY header, quoted if necessary: ``public.people``.
        columns: the column list of the COPY header, as written.
        rows: the number of rows.
        sha256: hex digest of the COPY text of all rows, in the archive's order.
    """

    name: str
    columns: str
    rows: int
    sha256: str


class LargeObjects(Sidecar):
    """All large objects of the archive.

    Attributes:
        count: the number of large objects.
        content: hex of the sum modulo 2**256 of each object's SHA-256 (oid and data): independent of order.
    """

    count: int = 0
    content: str = "0"


class Witness(Sidecar):
    """The contents that a complete reading of an archive found.

    Attributes:
        tables: every table with a data block, in the order of the archive.
        sequences: name -> ``setval`` arguments after the name (``42, true``).
        contents: the archive's contents list, sorted: ``TYPE schema name owner``.
        partitions: partition -> its parent, both as in ``tables``.
        inherits: child table -> its parents by inheritance, as in ``tables``.
        schema_sha256: hex digest of the schema text, without the lines that hold a random key (psql's restrict and
            unrestrict) or versions (``-- Dumped from``, ``-- Dumped by``).
        decoded_bytes: length of the decoded data text.
        archive_client: the pg_dump version that wrote the archive, from its header.
    """

    tables: tuple[TableWitness, ...]
    sequences: dict[str, str]
    large_objects: LargeObjects
    contents: tuple[str, ...]
    partitions: dict[str, str]
    inherits: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    schema_sha256: str
    decoded_bytes: int
    archive_client: str

    @property
    def rows(self) -> int:
        """The number of rows in all tables."""
        return sum(table.rows for table in self.tables)

    def rows_by_table(self) -> dict[str, int]:
        """The number of rows of each table; partitions count towards their partitioned table.

        So a partition that is dropped on purpose every month is not a lost table.
        """
        counts: dict[str, int] = {}
        # A partitioned table has no data of its own, and may have no partitions left.
        for parent in self.partitions.values():
            counts.setdefault(self.root(parent), 0)
        for table in self.tables:
            root = self.root(table.name)
            counts[root] = counts.get(root, 0) + table.rows
        return counts

    def rows_of(self, expected: str) -> int | None:
        """The number of rows of the table that a setting names (``name`` or ``schema.name``) and of its descendants.

        ``None`` if the archive has no such table.
        """
        counts = {table.name: table.rows for table in self.tables}
        family = {**{child: (parent,) for child, parent in self.partitions.items()}, **self.inherits}
        names = {*counts, *family, *(parent for parents in family.values() for parent in parents)}
        found = {name for name in names if _answers_to(name, expected)}
        # A partitioned table without partitions has no data; only the contents list names it.
        if not found and not any(_is_entry_of(entry, expected) for entry in self.contents):
            return None
        while True:
            children = {child for child, parents in family.items() if found.intersection(parents)} - found
            if not children:
                return sum(counts.get(name, 0) for name in found)
            found |= children

    def root(self, name: str) -> str:
        """The topmost partitioned table of a partition; any other table is its own root."""
        seen = set()
        while name in self.partitions and name not in seen:
            seen.add(name)
            name = self.partitions[name]
        return name


class Judgement(Statement):
    """One verification, bound to the file that it read.

    Attributes:
        at: when it ended (UTC).
        good: whether no blocking check failed.
        findings: all findings, bad and odd.
        size_bytes, mtime_ns, sha256: the file as it was read. ``sha256`` is ``None`` if it could not be read.
        seconds: how long it took.
        previous: the backup with which the rows were compared.
        run_id: Dagster's run id; ``None`` from the command line.
    """

    at: AwareDatetime
    good: bool
    findings: tuple[Finding, ...]
    size_bytes: int
    mtime_ns: int
    sha256: str | None
    seconds: float
    previous: str | None = None
    run_id: str | None = None

    @property
    def archive_sha256(self) -> str | None:
        """The archive's SHA-256 if it is good. A bad archive's hash may differ from the manifest's."""
        return self.sha256 if self.good else None

    @property
    def strange(self) -> tuple[str, ...]:
        """The texts of the findings that an operator may accept: the backup is of another source than earlier ones."""
        return tuple(f.text for f in self.findings if f.check is Check.SOURCE)

    @property
    def intact(self) -> bool:
        """Whether the archive itself is undamaged, even if it lacks what was expected."""
        return not any(f.check in (Check.MATCHES_MANIFEST, Check.DECODES) for f in self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The texts of the bad findings; empty for a good backup."""
        return tuple(f.text for f in self.findings if not f.check.is_odd)

    @property
    def oddities(self) -> tuple[str, ...]:
        """The texts of the odd findings."""
        return tuple(f.text for f in self.findings if f.check.is_odd)

    def problem(self, backup: str) -> BadBackupError | None:
        """The error that says why the backup with this name is bad; ``None`` if it is good."""
        if self.good:
            return None
        accept = f"if that was meant: ovia-backup accept {shell_word(backup)}; if not: check POSTGRES_HOST and "
        accept += "POSTGRES_DB, "
        return bad_backup(backup, "; ".join(self.reasons), accept if self.strange else "")


def bad_backup(backup: str, why: str, first: str = "") -> BadBackupError:
    """The error for a bad backup. Its remedy begins with ``first``, if something special must be done."""
    return BadBackupError(
        f"{backup} is bad",
        why=why,
        fix=f"{first}find the cause, then launch daily_backup_job in the Dagster UI, or run: ovia-backup dump && "
        "ovia-backup verify latest; earlier backups are untouched: ovia-backup list",
    )


class Verification(Sidecar):
    """``<file>.verified.json``: every judgement so far, newest last, and the last good reading of the archive."""

    version: Literal[1] = 1
    judgements: tuple[Judgement, ...] = Field(min_length=1)
    witness: Witness | None


class DrillRecord(Statement):
    """One restore drill, bound to the file that it restored.

    Attributes:
        at: when it began (UTC).
        passed: whether it proved that the backup can be restored.
        size_bytes, mtime_ns: the file as it was restored.
        evidence: the file in ``drills/`` with the details.
    """

    at: AwareDatetime
    passed: bool
    size_bytes: int
    mtime_ns: int
    evidence: str


class Drills(Sidecar):
    """``<file>.drilled.json``: every drill of this backup so far, newest last."""

    version: Literal[1] = 1
    drills: tuple[DrillRecord, ...] = Field(min_length=1)


class HoldCause(StrEnum):
    """Why a backup is held: a finding in the next one, or a person's decision."""

    LOST_ROWS = "lost rows"
    OTHER_SOURCE = "other source"
    PERSON = "a person"


class Hold(Statement):
    """``<file>.held.json``: keep this backup regardless of the counts.

    Attributes:
        until: when the hold expires (UTC).
        cause: why the backup is held.
        tables: table that lost rows -> its number of rows in this backup.
        reason: the cause in words, with the numbers.
        released_at: when an operator released it, because the change was intended (UTC).
    """

    version: Literal[1] = 1
    until: AwareDatetime
    cause: HoldCause = HoldCause.LOST_ROWS
    tables: dict[str, int] = Field(default_factory=dict)
    reason: str
    released_at: AwareDatetime | None = None

    def in_force(self, now: datetime) -> bool:
        """Whether the hold is in force at ``now`` (UTC)."""
        return self.released_at is None and now < self.until


class Acceptance(Statement):
    """``<file>.accepted.json``: an operator confirmed that this backup is intentionally of another source.

    Attributes:
        at: when it was accepted (UTC).
        by: who accepted it.
        system_identifier: the cluster's; ``None`` if unknown.
        found: the accepted findings, in words.
    """

    version: Literal[1] = 1
    at: AwareDatetime
    by: str
    system_identifier: str | None
    found: tuple[str, ...]


class PromotionRecord(Statement):
    """``<promoted>.promoted.json``: the daily backup that this weekly, monthly or yearly one is a copy of.

    Attributes:
        at: when it was promoted (UTC).
        promoted_from: the daily file's name.
    """

    version: Literal[1] = 1
    at: AwareDatetime
    promoted_from: str


@dataclass(frozen=True, slots=True)
class Expectations:
    """The settings' expectations for the content of a backup.

    Attributes:
        tables: ``name`` (in any schema) or ``schema.name``.
        require_rows: whether each of these tables must have at least one row.
    """

    tables: tuple[str, ...] = ()
    require_rows: bool = False


def judge(
    witness: Witness,
    *,
    expectations: Expectations,
    manifest: Manifest | None,
    previous: tuple[str, Witness] | None,
) -> tuple[Finding, ...]:
    """Judge a complete reading of an archive.

    Args:
        witness: the reading.
        expectations: from the settings.
        manifest: the backup's manifest, if it has one; its warnings are odd findings.
        previous: name and reading of the previous verified backup, whose row counts are compared.
    """
    findings = []
    counts = witness.rows_by_table()
    for expected in expectations.tables:
        rows = witness.rows_of(expected)
        if rows is None:
            findings.append(Finding(check=Check.TABLES_PRESENT, text=f"expected table {expected} is not in the dump"))
        elif expectations.require_rows and rows == 0:
            findings.append(Finding(check=Check.TABLES_HOLD_ROWS, text=f"expected table {expected} holds no rows"))
    if previous is not None:
        name, before = previous
        findings += [
            Finding(check=Check.ROWS_KEPT, text=f"{text} (compared with {name})")
            for text in lost_rows(before.rows_by_table(), counts).values()
        ]
    if manifest is not None:
        findings += [Finding(check=Check.NO_WARNINGS, text=text) for text in manifest.warnings]
    return tuple(findings)


def lost_rows(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, str]:
    """Table that is missing, or lost more than half of its rows -> a line with both numbers."""
    lines = {}
    for table, rows in before.items():
        if table not in after:
            lines[table] = f"table {table} is gone; it held {rows:,} rows"
        elif after[table] * 2 < rows:
            lines[table] = f"table {table} shrank from {rows:,} to {after[table]:,} rows"
    return lines


def _answers_to(table: str, expected: str) -> bool:
    parts = split_identifier(table)
    return expected in (parts[-1], ".".join(parts)) or split_identifier(expected) in (parts, parts[-1:])


def _is_entry_of(entry: str, expected: str) -> bool:
    """Whether an entry of the contents list, ``TABLE schema name owner``, is the expected table's."""
    kind, _, rest = entry.partition(" ")
    schema, _, name_and_owner = rest.partition(" ")
    if kind != "TABLE" or schema in ("DATA", "ATTACH"):
        return False
    *qualifier, name = split_identifier(expected)
    return name_and_owner.startswith(name + " ") and qualifier in ([], [schema])


def split_identifier(name: str) -> list[str]:
    """The parts of a qualified name, unquoted: ``public."My Table"`` -> ``["public", "My Table"]``."""
    parts, part, quoted, i = [], "", False, 0
    while i < len(name):
        char = name[i]
        if char == '"' and quoted and name[i + 1 : i + 2] == '"':
            part += '"'
            i += 1
        elif char == '"':
            quoted = not quoted
        elif char == "." and not quoted:
            parts.append(part)
            part = ""
        else:
            part += char
        i += 1
    return [*parts, part]
