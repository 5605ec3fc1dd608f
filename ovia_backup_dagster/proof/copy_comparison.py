"""Reads a restored copy back and compares it with the backup: rows, sequences, large objects, computed values.

This module holds the order in which a copy is read and compared. ``database_reader`` reads it; ``comparison`` and
``computed_comparison`` name the differences and need no server; ``schema_proof`` compares objects and privileges.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.verdict import Witness, judge
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres import computed_values
from ovia_backup_dagster.postgres.data_stream import decode_text, split_columns
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect, effective_options
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, as_recorded
from ovia_backup_dagster.proof import comparison
from ovia_backup_dagster.proof.backup_contents import BackupContents
from ovia_backup_dagster.proof.check_results import CopiedTable, Result
from ovia_backup_dagster.proof.comparison import Unordered
from ovia_backup_dagster.proof.computed_comparison import compare
from ovia_backup_dagster.proof.database_reader import CopyReader, Reading
from ovia_backup_dagster.proof.extensions import prove_extensions
from ovia_backup_dagster.proof.record import ProofRecord
from ovia_backup_dagster.proof.schema_proof import SchemaProof
from ovia_backup_dagster.proof.target import Copy

_SIZES = """
    SELECT convert_to(quote_ident(n.nspname) || '.' || quote_ident(c.relname),
                      CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE %s END) AS name,
           CASE c.relkind WHEN 'r' THEN pg_total_relation_size(c.oid) ELSE (
               SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM pg_partition_tree(c.oid)
           ) END AS bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')
"""
_COPY_BYTES = "SELECT pg_database_size(current_database()) AS bytes"


@dataclass
class CopyComparison:
    """The comparison of one copy with the backup that it was restored from.

    Attributes:
        contents: the backup.
        record: receives the results.
        source: the database that is backed up. Its settings are queried if the dump does not record how values were
            written.
        jobs: how many entries pg_restore restored at a time: a single job may load rows in another order.
        found: the copy's contents; ``None`` until it is read.
        sizes: table -> bytes on disk in the copy, with indexes and TOAST.
        copy_bytes: ``pg_database_size`` of the copy.
    """

    contents: BackupContents
    record: ProofRecord
    source: Connection
    jobs: int
    found: Witness | None = field(default=None, init=False)
    sizes: dict[str, int] = field(default_factory=dict, init=False)
    copy_bytes: int | None = field(default=None, init=False)
    _unsure: bool = field(default=False, init=False)

    def prove(self, copy: Copy, without: Collection[str]) -> CopyReader:
        """Read the copy and compare it; returns the reader that was used.

        Args:
            copy: the restored copy.
            without: entries of the contents list that were not restored.

        Raises:
            BackupError: the copy cannot be read.
        """
        contents, record = self.contents, self.record
        assert contents.witness is not None
        witness = contents.witness
        prove_extensions(contents, copy, record)
        schema_options = ("--no-tablespaces", *(() if copy.with_owners else ("--no-owner", "--no-privileges")))
        with record.phase("reading the copy"):
            readers = [self._reader(copy, options) for options in self._session_options()]
            reader, reading = self._read_copy(witness, readers, schema_options)
        found = self.found = reading.witness
        self._measure(copy, reader.encoding)
        with record.phase("comparison"):
            self._prove_tables(witness, found, reader)
            bad = comparison.sequence_differences(witness, found)
            record.add(Check.SEQUENCES, bad, passed=f"{len(found.sequences):,} sequences")
            self._prove_large_objects(copy, witness, reading)
            schema = archives.schema_text(contents.programs, contents.backup.path, *schema_options)
            SchemaProof(contents, record, copy, without).prove(schema, reading.schema, found)
            self._prove_expectations(found)
        with record.phase("computed values"):
            self.prove_computed(copy)
        return reader

    def prove_computed(self, copy: Copy) -> list[str]:
        """Compare the copy's computed values, which no dump holds, with the source's; returns the bad differences.

        Raises:
            ServerError: the copy cannot be queried.
        """
        before = self.contents.manifest.computed if self.contents.manifest else None
        if before is None:
            text = "the dump has no record of what its source computed: an older program made it"
            self.record.add(Check.COMPUTED, [], passed=text, result=Result.NOT_MADE)
            return []
        compared = compare(before, computed_values.read(copy.connection, before))
        word = self.contents.word
        way_out = f"to have every row all the same: ovia-backup restore {word} --mode new --even-if-damaged"
        self.record.add(
            Check.COMPUTED,
            [f"{text}; {way_out}" for text in compared.wrong],
            odd=[*compared.strange, *filter(None, [compared.not_compared])] if compared.strange else (),
            passed="; ".join(filter(None, (compared.equal, compared.not_compared))),
            result=Result.PASSED if compared.made else Result.NOT_MADE,
        )
        return compared.bad

    def take_stock(self, copy: Copy) -> None:
        """Read the copy of a damaged backup, without a comparison.

        Raises:
            BackupError: the copy cannot be read.
        """
        with self.record.phase("reading the copy"):
            reader = self._reader(copy, self._session_options()[0])
            self.found = reader.read(log=self.record.log).witness
        self._measure(copy, reader.encoding)

    @property
    def tables(self) -> tuple[CopiedTable, ...]:
        """The tables of the copy that were read so far."""
        return tuple(
            CopiedTable(name=table.name, rows=table.rows, size_bytes=self.sizes.get(table.name, 0))
            for table in (self.found.tables if self.found else ())
        )

    def _reader(self, copy: Copy, options: str) -> CopyReader:
        encoding = archives.encoding(self.contents.script)
        return CopyReader(self.contents.programs, copy.connection, options, encoding, copy.folder, copy.live)

    def _session_options(self) -> list[str]:
        """The settings that decide how values are written: the dump's, or if unrecorded, those it may have used."""
        if self.contents.manifest is not None:
            return [as_recorded(self.contents.manifest.session_options)]
        # The old script's dumps carry the source's settings: the server's, the database's or the role's.
        candidates = [archives.session_options(self.contents.script), SESSION_OPTIONS]
        try:
            candidates.insert(0, effective_options(self.source))
        except BackupError as error:
            self.record.log(f"the source's time zone is not known: {error.account}")
            self._unsure = True
        return list(dict.fromkeys(candidates))

    def _read_copy(
        self, witness: Witness, readers: Sequence[CopyReader], schema_options: Sequence[str]
    ) -> tuple[CopyReader, Reading]:
        """Read the copy; read it again with other session options as long as they may explain the differences."""
        readings = []
        for reader in readers:
            reading = reader.read(*schema_options, log=self.record.log)
            unequal = len(comparison.unequal_tables(witness, reading.witness))
            readings.append((unequal, reader, reading))
            if not unequal:
                break
        _, reader, reading = min(readings, key=lambda read: read[0])
        return reader, reading

    def _prove_tables(self, witness: Witness, found: Witness, reader: CopyReader) -> None:
        columns = {table.name: split_columns(table.columns) for table in witness.tables}
        again = {
            name: columns[name]
            for name in comparison.unequal_tables(witness, found)
            if comparison.comparable(name, witness, found, split_columns)
        }
        rows: dict[str, tuple[Unordered, Unordered]] = {}
        if again:
            self.record.log(f"comparing row by row, as the order may differ: {', '.join(again)}")
            before = archives.read_unordered(
                self.contents.programs, self.contents.backup.path, witness, again, self.record.log
            )
            after = reader.read_unordered(again, self.record.log)
            rows = {
                name: (
                    Unordered(before[name].rows, before[name].total),
                    Unordered(after[name].rows, after[name].total),
                )
                for name in again
            }
        bad, odd = comparison.table_differences(witness, found, rows)
        if bad and self._unsure:
            hint = "the dump does not record its time zone, and the source could not be asked: that may be the cause"
            bad.insert(0, hint)
        passed = f"{found.rows:,} rows in {len(found.tables):,} tables"
        if self.jobs == 1 and odd:
            # A single job fills the gaps that large rows leave in pages: another order is expected then.
            passed, odd = f"{passed}; {len(odd)} of these in another order, which a single job may cause", []
        self.record.add(Check.TABLES, bad, odd=odd, passed=passed)

    def _prove_large_objects(self, copy: Copy, witness: Witness, reading: Reading) -> None:
        contents, found = self.contents, reading.witness.large_objects
        bad = comparison.large_object_differences(witness.large_objects, found)
        notes = archives.large_object_notes(contents.programs, contents.backup.path, contents.listing)
        bad += comparison.large_object_note_differences(
            notes, reading.large_object_notes, with_privileges=copy.with_owners
        )
        self.record.add(Check.LARGE_OBJECTS, bad, passed=f"{found.count:,} large objects")

    def _prove_expectations(self, found: Witness) -> None:
        expectations = self.contents.verifier.expectations
        previous = self.contents.verifier.catalog.verified_before(self.contents.backup, datetime.now(UTC))
        before = (previous.path.name, previous.witness) if previous and previous.witness else None
        findings = judge(found, expectations=expectations, manifest=None, previous=before)
        expected = ", ".join(f"{name} {found.rows_of(name) or 0:,}" for name in expectations.tables)
        asked_for = expected or "BACKUP_EXPECTED_TABLES names none"
        lines = {
            Check.TABLES_PRESENT: (bool(expected), asked_for),
            Check.TABLES_HOLD_ROWS: (
                bool(expected) and expectations.require_rows,
                asked_for if expectations.require_rows else "BACKUP_REQUIRE_ROWS does not ask for rows",
            ),
            Check.ROWS_KEPT: (
                before is not None,
                f"compared with {previous}" if before else "there is no earlier verified backup to compare with",
            ),
        }
        for check, (made, text) in lines.items():
            wrong = [finding.text for finding in findings if finding.check is check]
            self.record.add(check, wrong, passed=text, result=Result.PASSED if made else Result.NOT_MADE)

    def _measure(self, copy: Copy, encoding: str) -> None:
        with connect(copy.connection) as session:
            row = session.execute(_COPY_BYTES).fetchone()
            assert row is not None
            self.copy_bytes = row["bytes"]
            self.sizes = {decode_text(row["name"]): row["bytes"] for row in session.execute(_SIZES, [encoding])}
