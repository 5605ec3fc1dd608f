"""The proof that a database that was restored from a backup equals it, check by check.

How a backup is restored and the outcome read, compared and written down as lines of evidence; the same for a drill's
copy and for a database that goes live. In which order that is done, and what else, is the business of ``drill``; how,
that of ``places``, ``roles``, ``restore`` and ``reread``; what is compared, that of ``proof.comparison``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import psycopg

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.checks import Check, Stage
from ovia_backup_dagster.core.errors import BackupError, ExtensionMissingError
from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.core.human_text import human_bytes, joined
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.core.verdict import Witness, judge
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres import computed_values
from ovia_backup_dagster.postgres.data_stream import Log, decode_text, split_columns
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.postgres.server_language import diagnose_program, in_english
from ovia_backup_dagster.postgres.session import connect, effective_options
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, as_recorded
from ovia_backup_dagster.postgres.stall import watch
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof import comparison, executed_functions, roles
from ovia_backup_dagster.proof.check_results import NO_CODE, CheckResult, CopiedTable, Result
from ovia_backup_dagster.proof.comparison import Unordered
from ovia_backup_dagster.proof.computed_comparison import compare
from ovia_backup_dagster.proof.database_reader import Reading, Rereader
from ovia_backup_dagster.proof.excluded_entries import Withheld, withheld
from ovia_backup_dagster.proof.pg_restore import REFRESH, SURROUNDINGS, Restorer, Unrefreshed
from ovia_backup_dagster.proof.source_settings import InEffect, of_backup, put_in_effect
from ovia_backup_dagster.proof.target import Copy, explained

_SIZES = """
    SELECT convert_to(quote_ident(n.nspname) || '.' || quote_ident(c.relname),
                      CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE %s END) AS name,
           CASE c.relkind WHEN 'r' THEN pg_total_relation_size(c.oid) ELSE (
               SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM pg_partition_tree(c.oid)
           ) END AS bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')
"""
_INVALID_INDEXES = """
    SELECT c.oid::regclass::text AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT i.indisvalid AND c.relkind = 'i' ORDER BY 1
"""
_NOT_ENFORCED = """
    SELECT DISTINCT tgrelid::regclass::text AS name FROM pg_trigger
    WHERE tgisinternal AND tgconstraint <> 0 AND tgenabled <> 'O' ORDER BY 1
"""
#: ANALYZE gives every table a number of rows.
_WITHOUT_STATISTICS = """
    SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND c.reltuples < 0 AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 1
"""
_EXTENSION = "EXTENSION - "
_RESCUE = "--mode new --even-if-damaged"
_NOT_VALID = "SELECT count(*) AS number FROM pg_constraint WHERE NOT convalidated"


@dataclass
class Proof:
    """One backup's, and what was found of it so far: all of it is evidence.

    The steps, in order: :meth:`read_backup`, :meth:`restore`, :meth:`prove`, :meth:`analyze`.

    Attributes:
        verifier: catalog, programs, and what a backup must hold.
        source: the database that is backed up; asked how it writes values, for a dump that does not say so itself.
        backup: to be restored.
        log: told what happens.
        jobs: how many entries pg_restore restores at a time. One alone fills the holes that large rows leave: the
            rows are the same, in another order.
        rescue: the command that brings the rows where a restore fails over a rule; empty: as at home.
        lines: a line for each check that was made.
        phases: name -> seconds, in order.
        versions: of what took part.
        lost: what a restore despite errors met, a line each.
        unrefreshed: materialized views that pg_restore could not refresh.
        manifest: the backup's, once it is read; the old script's have none.
        witness: what the backup holds.
        found: what the copy holds.
        sha256: of the file, as it is now.
        sizes: table -> bytes on disk in the copy, with indexes and TOAST.
        copy_bytes: ``pg_database_size`` of the copy.
        settings: what of the source's is in effect in the copy.
        withheld: what the copy was not given, which a database that goes live is.
    """

    verifier: Verifier
    source: Connection
    backup: Backup
    log: Log
    jobs: int = field(kw_only=True)
    rescue: str = field(default="", kw_only=True)
    lines: list[CheckResult] = field(default_factory=list, init=False)
    phases: dict[str, float] = field(default_factory=dict, init=False)
    versions: dict[str, str] = field(default_factory=dict, init=False)
    lost: list[str] = field(default_factory=list, init=False)
    unrefreshed: list[Unrefreshed] = field(default_factory=list, init=False)
    manifest: Manifest | None = field(default=None, init=False)
    witness: Witness | None = field(default=None, init=False)
    found: Witness | None = field(default=None, init=False)
    sha256: str | None = field(default=None, init=False)
    sizes: dict[str, int] = field(default_factory=dict, init=False)
    copy_bytes: int | None = field(default=None, init=False)
    settings: InEffect = field(default=InEffect(), init=False)
    withheld: Withheld = field(default_factory=Withheld, init=False)
    _unsure: bool = field(default=False, init=False)

    # ---- the backup

    def read_manifest(self) -> Manifest | None:
        """What was known when the backup was made.

        Raises:
            VolumeError: a newer program wrote it.
        """
        self.manifest = self.backup.manifest
        if self.manifest is not None:
            database = self.manifest.database
            self.versions |= {"source": database.server_version, "pg_dump": self.manifest.client_version}
        return self.manifest

    @property
    def source_bytes(self) -> int | None:
        """How large the source was, if that is known."""
        return self.manifest.database.size_bytes if self.manifest else None

    def read_backup(self) -> Witness | None:
        """What the backup holds: as read when it was verified, if the file is still that; else as it is read now.

        ``None`` when it is damaged, which is a line, too.

        Raises:
            BackupError: no verdict could be reached.
        """
        self.read_manifest()
        self.witness = self._read_backup()
        if self.witness is not None:
            self.versions.setdefault("pg_dump", self.witness.archive_client)
        return self.witness

    def _read_backup(self) -> Witness | None:
        backup, verifier = self.backup, self.verifier
        self.versions["pg_restore"] = self._programs.version("pg_restore")
        with self.phase("hash"):
            wanted = self._sha256_then()
            if wanted is not None and backup.witness is not None:
                self.log(f"hashing {backup} ({human_bytes(backup.size_bytes)})")
                self.sha256 = file_sha256(backup.path)
                if self.sha256 == wanted and not verifier.altered_files(backup) and backup.problem is None:
                    self.add(Check.UNALTERED, [], odd=self._manifest_notes, passed=f"SHA-256 {wanted}")
                    return backup.witness
        with self.phase("verification"):
            verified = verifier.verify(backup, log=self.log)
        self.sha256 = verified.judgement.sha256
        wrong = [] if verified.judgement.intact else list(verified.judgement.reasons)
        self.add(
            Check.UNALTERED,
            wrong,
            odd=self._manifest_notes,
            passed=f"SHA-256 {self.sha256}, taken now" if wanted is None else f"SHA-256 {self.sha256}",
        )
        return verified.witness

    @property
    def _manifest_notes(self) -> list[str]:
        return [self.backup.manifest_trouble] if self.backup.manifest_trouble else []

    def _sha256_then(self) -> str | None:
        if self.manifest is not None:
            return self.manifest.sha256
        return self.backup.judgement.sha256 if self.backup.judgement else None

    # ---- the copy

    def restore(self, copy: Copy, *, despite_errors: bool = False) -> None:
        """Restore the backup into a copy that is not made yet.

        Args:
            copy: to be made.
            despite_errors: restore what can be, and write down what was said of the rest: ``lost``.

        Raises:
            BackupError: it cannot be made, or the restore met an error: that is a line, too.
        """
        self.log(f"restoring {self.backup} into: {copy.name}")
        listing, script = self._listing, self.script
        with connect(copy.server) as session:
            self.versions["copy"] = _one(session, "SELECT current_setting('server_version') AS one")
        self._prove_extensions_available(copy)
        notes: list[str] = []
        if copy.private:
            with self.phase("roles"):
                notes += self._make_roles(copy)
        else:
            text = "the server has roles of its own, which are left as they are"
            self.add(Check.ROLES, [], passed=text, result=Result.NOT_MADE)
        if not copy.with_owners:
            self.withheld = withheld(copy.server, self._programs, self.backup.path)
            notes += self.withheld.notes
        with self.phase("restore"):
            notes += copy.create(script)
            settings = self._live_as_the_source(copy)
            notes += settings.notes
            restorer = Restorer(
                self._programs,
                copy.connection,
                copy.name,
                self.jobs,
                with_owners=copy.with_owners,
                live=copy.live,
                settings=settings,
                rescue=self.rescue or f"ovia-backup restore {self.verifier.catalog.word(self.backup)} {_RESCUE}",
                without=self.withheld.entries,
            )
            try:
                archive = self.backup.path, listing, self.source_bytes, self.log
                if despite_errors:
                    salvaged = restorer.salvage(*archive)
                    self.lost = salvaged.lost
                    notes += salvaged.notes
                else:
                    notes += restorer.restore(*archive)
            except BackupError as error:
                error = explained(error, copy)
                check = Check.EXTENSIONS if isinstance(error, ExtensionMissingError) else Check.RESTORED
                self.add(check, [error.account, *settings.notes, *settings.quietly])
                raise error from None
        passed = f"{self.jobs} job{'s' if self.jobs > 1 else ''}, {self.phases['restore']:.1f} s, no error"
        self.add(Check.RESTORED, self.lost, odd=notes, passed=passed)
        with self.phase("materialized views"):
            self._prove_refreshed(restorer)

    def _live_as_the_source(self, copy: Copy) -> InEffect:
        """Put the source's settings in effect, until ``source_settings.take_out``."""
        self.settings = put_in_effect(copy, of_backup(self.backup, self.script, self._listing))
        self.log(f"settings of the source, in effect while the copy is filled: {', '.join(self.settings.names)}")
        for note in self.settings.quietly:
            self.log(note)
        return self.settings

    def prove_functions(self, copy: Copy) -> executed_functions.Reach:
        """Look at what the restore would run with more rights than its owners have; that is a line, too.

        Raises:
            BackupError: it cannot be told.
        """
        if copy.private:
            found = executed_functions.Reach("", ())
            text = "whatever runs, runs in a cluster that is the copy's alone"
        else:
            found = executed_functions.reach(copy.server, self._programs, self.backup)
            text = f"none is known to, as {found.role}" if found.role else "the role that restores has none to lend"
        self.add(Check.FUNCTIONS, [], odd=[str(found)] if found.functions else [], passed=text)
        return found

    def _make_roles(self, copy: Copy) -> list[str]:
        saved = self.backup.saved_roles()
        if saved is None:
            self.add(Check.ROLES, [], passed="no roles were saved with this backup", result=Result.NOT_MADE)
            made = roles.make_missing(copy.server, self._programs, self.backup.path)
            return [f"roles were not saved with this backup; made up: {', '.join(made)}"] if made else []
        for note in roles.replay(copy.server, saved):
            self.log(f"roles: {note}")
        bad, odd = roles.differences(copy.server, self._programs, saved)
        self.add(Check.ROLES, bad, odd=odd, passed=f"{len(roles.saved(saved))} roles, with what they may do")
        return []

    def _prove_extensions_available(self, copy: Copy) -> None:
        """A missing extension is said as such, before a restore fails on it."""
        entries = archives.entries(self._listing)
        wanted = {entry.removeprefix(_EXTENSION).rstrip() for entry in entries if entry.startswith(_EXTENSION)}
        with connect(copy.server) as session:
            rows = session.execute("SELECT name FROM pg_available_extensions").fetchall()
        missing = sorted(wanted - {row["name"] for row in rows})
        if missing:
            fix = "install its package beside the server programs in PG_BIN_DIR; or drill on a server that has it: "
            fix += "ovia-backup drill --where database"
            error = ExtensionMissingError(
                f"the extension {', '.join(missing)} is not installed where the backup is restored to",
                why="the source has it, and the PostgreSQL here does not",
                fix="install its package on that server; then try again" if copy.live else fix,
            )
            self.add(Check.EXTENSIONS, [error.account])
            raise error

    def _prove_refreshed(self, restorer: Restorer) -> None:
        views = [entry for entry in archives.entries(self._listing) if entry.startswith(REFRESH)]
        self.unrefreshed = restorer.refresh(self.backup.path, self._listing, self._search_path) if views else []
        odd = [str(view) for view in self.unrefreshed]
        if not self.lost:
            odd = [f"the data is proven, but {line}" for line in odd]
        self.add(
            Check.MATERIALIZED_VIEWS,
            odd,
            passed=f"{len(views)} refreshed" if views else "there is none to refresh",
        )

    @property
    def _search_path(self) -> str | None:
        """That which the source database gives its sessions, if it gives one."""
        for setting in self.manifest.database.settings.get("", ()) if self.manifest else ():
            name, _, value = setting.partition("=")
            if name.lower() == "search_path":
                return value
        return None

    # ---- the proof

    def prove(self, copy: Copy) -> Rereader:
        """Read the copy and compare; returns what it was read with.

        Raises:
            BackupError: it cannot be read.
        """
        assert self.witness is not None
        witness = self.witness
        self._prove_extensions(copy)
        candidates, encoding = self._session_options(), archives.encoding(self.script)
        schema_options = ("--no-tablespaces", *(() if copy.with_owners else ("--no-owner", "--no-privileges")))
        with self.phase("reading the copy"):
            readers = [
                Rereader(self._programs, copy.connection, each, encoding, copy.folder, copy.live) for each in candidates
            ]
            reader, reading = self._read_copy(witness, readers, schema_options)
        found = self.found = reading.witness
        self._measure(copy, reader.encoding)
        with self.phase("comparison"):
            self._prove_tables(witness, found, reader)
            bad = comparison.sequence_differences(witness, found)
            self.add(Check.SEQUENCES, bad, passed=f"{len(found.sequences):,} sequences")
            bad = comparison.large_object_differences(witness.large_objects, found.large_objects)
            notes = archives.large_object_notes(self._programs, self.backup.path, self._listing)
            bad += comparison.large_object_note_differences(
                notes, reading.large_object_notes, with_privileges=copy.with_owners
            )
            self.add(Check.LARGE_OBJECTS, bad, passed=f"{found.large_objects.count:,} large objects")
            schema = archives.schema_text(self._programs, self.backup.path, *schema_options)
            differences = self._contents_differences(copy, witness, found, schema, reading.schema)
            self._prove_contents(copy, witness, found, differences, self._privileges(copy, schema, reading.schema))
            bound = comparison.structure_differences(schema, reading.schema)
            self._prove_structure(copy, found, differences, bound)
            odd = comparison.schema_differences(schema, reading.schema)
            self.add(Check.SCHEMA_TEXT, odd, passed="the same SQL")
            self._prove_expectations(found)
        with self.phase("computed values"):
            self.prove_computed(copy)
        return reader

    def prove_computed(self, copy: Copy) -> list[str]:
        """Compare what no dump holds with what the source had; returns what is bad, without why it may be.

        Raises:
            ServerError: the copy cannot be asked.
        """
        before = self.manifest.computed if self.manifest else None
        if before is None:
            text = "the dump has no record of what its source computed: an older program made it"
            self.add(Check.COMPUTED, [], passed=text, result=Result.NOT_MADE)
            return []
        compared = compare(before, computed_values.read(copy.connection, before))
        word = self.verifier.catalog.word(self.backup)
        way_out = f"to have every row all the same: ovia-backup restore {word} --mode new --even-if-damaged"
        self.add(
            Check.COMPUTED,
            [f"{text}; {way_out}" for text in compared.wrong],
            odd=[*compared.strange, *filter(None, [compared.not_compared])] if compared.strange else (),
            passed="; ".join(filter(None, (compared.equal, compared.not_compared))),
            result=Result.PASSED if compared.made else Result.NOT_MADE,
        )
        return compared.bad

    def take_stock(self, copy: Copy) -> None:
        """Read what the copy of a damaged backup holds, which there is nothing to compare with.

        Raises:
            BackupError: it cannot be read.
        """
        with self.phase("reading the copy"):
            options, encoding = self._session_options()[0], archives.encoding(self.script)
            reader = Rereader(self._programs, copy.connection, options, encoding, copy.folder, copy.live)
            self.found = reader.read(log=self.log).witness
        self._measure(copy, encoding)

    def _prove_extensions(self, copy: Copy) -> None:
        with connect(copy.connection) as session:
            rows = session.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1").fetchall()
        here = {row["extname"]: row["extversion"] for row in rows}
        before = self.manifest.database.extensions if self.manifest else {}
        odd = [
            f"extension {name} is {here.get(name, 'missing')} in the copy and {version} in the source"
            for name, version in before.items()
            if here.get(name) != version
        ]
        odd += self.manifest.undumped if self.manifest else ()
        listed = ", ".join(f"{name} {version}" for name, version in here.items())
        unknown = "" if self.manifest else "; the source's versions are not known"
        self.add(Check.EXTENSIONS, [], odd=odd, passed=f"{listed or 'none'}{unknown}")

    def _session_options(self) -> list[str]:
        """What decides how values are written: what the dump ran with; unknown, what it may have run with."""
        if self.manifest is not None:
            return [as_recorded(self.manifest.session_options)]
        # The old script's dumps carry the source's settings: the server's, the database's or the role's.
        candidates = [archives.session_options(self.script), SESSION_OPTIONS]
        try:
            candidates.insert(0, effective_options(self.source))
        except BackupError as error:
            self.log(f"the source's time zone is not known: {error.account}")
            self._unsure = True
        return list(dict.fromkeys(candidates))

    def _read_copy(
        self, witness: Witness, readers: Sequence[Rereader], schema_options: Sequence[str]
    ) -> tuple[Rereader, Reading]:
        """The copy as it is; read anew with other session options while that may explain what differs."""
        readings = []
        for reader in readers:
            reading = reader.read(*schema_options, log=self.log)
            unequal = len(comparison.unequal_tables(witness, reading.witness))
            readings.append((unequal, reader, reading))
            if not unequal:
                break
        _, reader, reading = min(readings, key=lambda read: read[0])
        return reader, reading

    def _prove_tables(self, witness: Witness, found: Witness, reader: Rereader) -> None:
        columns = {table.name: split_columns(table.columns) for table in witness.tables}
        again = {
            name: columns[name]
            for name in comparison.unequal_tables(witness, found)
            if comparison.comparable(name, witness, found, split_columns)
        }
        rows: dict[str, tuple[Unordered, Unordered]] = {}
        if again:
            self.log(f"comparing row by row, as the order may differ: {', '.join(again)}")
            before = archives.read_unordered(self._programs, self.backup.path, witness, again, self.log)
            after = reader.read_unordered(again, self.log)
            rows = {
                name: (
                    Unordered(before[name].rows, before[name].total),
                    Unordered(after[name].rows, after[name].total),
                )
                for name in again
            }
        bad, odd = comparison.table_differences(witness, found, rows)
        if bad and self._unsure:
            hint = (
                "the dump does not say in which time zone it was written, and the source could not be asked: it may be "
            )
            bad.insert(0, f"{hint}that alone")
        passed = f"{found.rows:,} rows in {len(found.tables):,} tables"
        if self.jobs == 1 and odd:
            # One job fills the holes that large rows leave: that is how it was asked for.
            passed, odd = f"{passed}; of {len(odd)}, in another order, as one job may load them", []
        self.add(Check.TABLES, bad, odd=odd, passed=passed)

    def _prove_contents(
        self,
        copy: Copy,
        witness: Witness,
        found: Witness,
        differences: Sequence[str],
        privileges: tuple[Sequence[str], Sequence[str]],
    ) -> None:
        others = [line for line in differences if not comparison.is_structure(line.partition(": ")[2])]
        left = sum(comparison.left_out(entry, live=copy.live) for entry in witness.contents)
        without, odd = [], [*privileges[1]]
        if left and copy.live:
            odd.append(f"{left} entries of subscriptions left out: they would take over the source's replication slots")
        elif left:
            without.append(f"{left} entries of publications and subscriptions left out, on purpose")
        if copy.live and (elsewhere := archives.tablespaces(self._programs, self.backup.path)):
            odd.append(f"what the source keeps in tablespace {', '.join(elsewhere)} is in the database's own")
        if not copy.with_owners:
            without.append("without owners and privileges, which a scratch database does not get")
        entries = sum(not entry.startswith(REFRESH) for entry in found.contents)
        passed = "; ".join([f"{entries:,} entries", *without])
        self.add(Check.CONTENTS, [*others, *privileges[0]], odd=odd, passed=passed)

    def _privileges(self, copy: Copy, original: bytes, made: bytes) -> tuple[list[str], list[str]]:
        """What is bad and odd of the privileges: compared by what they mean, whatever role made the objects."""
        with connect(copy.server) as session:
            makers = {_one(session, "SELECT pg_get_userbyid(10) AS name")}
        makers |= {self.manifest.database.bootstrap_superuser} if self.manifest else set()
        return comparison.privilege_differences(original, made, makers)

    def _prove_structure(self, copy: Copy, found: Witness, differences: Sequence[str], bound: Sequence[str]) -> None:
        wrong = [line for line in differences if comparison.is_structure(line.partition(": ")[2])]
        with connect(copy.connection) as session:
            wrong += [f"index {row['name']} is not valid" for row in session.execute(_INVALID_INDEXES)]
            # No dump carries this: it is never so in the source's sense.
            wrong += [f"foreign keys of {row['name']} are not enforced" for row in session.execute(_NOT_ENFORCED)]
            not_valid = _one(session, _NOT_VALID)
        count = sum(map(comparison.is_structure, found.contents))
        so_before = f"; NOT VALID, as in the source: {not_valid}" if int(not_valid) else ""
        self.add(Check.STRUCTURE, [*wrong, *bound], passed=f"{count:,}, all valid{so_before}")

    def _contents_differences(
        self, copy: Copy, witness: Witness, found: Witness, original: bytes, made: bytes
    ) -> list[str]:
        # What could not be refreshed is a finding of its own.
        before, after = ([e for e in w.contents if not e.startswith(REFRESH)] for w in (witness, found))
        names = {owner for text in (original, made) for owner in comparison.owners(text)}
        with connect(copy.server) as session:
            names |= {row["rolname"] for row in session.execute("SELECT rolname FROM pg_roles")}
        names |= {self.manifest.database.bootstrap_superuser} if self.manifest else set()
        without = self.withheld.entries
        return comparison.contents_differences(
            before, after, with_owners=copy.with_owners, live=copy.live, roles=names, without=without
        )

    def _prove_expectations(self, found: Witness) -> None:
        expectations = self.verifier.expectations
        previous = self.verifier.catalog.proven_before(self.backup, datetime.now(UTC))
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
                f"compared with {previous}" if before else "there is no earlier proven backup to compare with",
            ),
        }
        for check, (made, text) in lines.items():
            wrong = [finding.text for finding in findings if finding.check is check]
            self.add(check, wrong, passed=text, result=Result.PASSED if made else Result.NOT_MADE)

    def _measure(self, copy: Copy, encoding: str) -> None:
        with connect(copy.connection) as session:
            self.copy_bytes = int(_one(session, "SELECT pg_database_size(current_database()) AS one"))
            self.sizes = {decode_text(row["name"]): row["bytes"] for row in session.execute(_SIZES, [encoding])}

    def analyze(self, copy: Copy) -> None:
        """Give the copy the statistics that no dump carries.

        Raises:
            ServerError: the server or its disk failed, which says nothing about the copy.
        """
        command: tuple[str, ...] = (
            self._programs.path("vacuumdb"),
            "--analyze-only",
            "--no-password",
            "--quiet",
            f"--jobs={self.jobs}",
            # -d is read as a connection string, so it is given one.
            f"--dbname={copy.connection.conninfo()}",
        )
        command = self._programs.confined(command, server=copy.connection)
        with self.phase("analyze"):
            watching = watch(self._programs, copy.connection, work_counts=True)
            variables = {**copy.connection.environment(), **in_english(copy.connection, self.settings.options)}
            code, _, stderr = capture(command, variables=variables, watch=watching)
        what = f"ANALYZE of {copy.connection} failed"
        if code == 0:
            # It passes over what this role may not analyze, and is content.
            with connect(copy.connection) as session:
                without = [row["name"] for row in session.execute(_WITHOUT_STATISTICS)]
            odd = [f"without statistics: {name}" for name in without]
            self.add(Check.ANALYZED, [], odd=odd, passed="done")
            return
        error = diagnose_program(stderr, what=what, connection=copy.connection, exit_code=code)
        self.add(Check.ANALYZED, [error.account])
        if isinstance(error, SURROUNDINGS):
            raise error

    # ---- the record

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block's seconds are added to those of that name."""
        clock = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - clock

    def add(
        self,
        check: Check,
        wrong: Sequence[str],
        *,
        odd: Sequence[str] = (),
        passed: str = "",
        result: Result = Result.PASSED,
    ) -> None:
        """A line of the evidence: what is wrong, else what is odd, else how it passed."""
        if wrong:
            result = Result.ODD if check.is_odd else Result.FAILED
            text = joined([*wrong, *odd])
        elif odd:
            result, text = Result.ODD, joined(odd)
        else:
            text = passed
        self.lines.append(CheckResult(check=check, result=result, text=text))
        self.log(f"{check.value}: {result.value}" + (f" ({text})" if text else ""))

    def list_unmade(self, stage: Stage) -> None:
        """Note each check that was not made, at the end of a stage: so a check that no code makes is noticed.

        A restore notes those of a drill, too: the two are the same act.
        """
        made = {line.check for line in self.lines}
        for check in dict.fromkeys((*Check.at(Stage.DRILL), *Check.at(stage))):
            if check not in made:
                text = NO_CODE if stage in check.stages else f"not a check of a {stage.value}"
                self.add(check, [], passed=text, result=Result.NOT_MADE)

    @property
    def lines_in_order(self) -> tuple[CheckResult, ...]:
        """The lines, as the checks are listed."""
        order = list(Check)
        return tuple(sorted(self.lines, key=lambda line: order.index(line.check)))

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(line.result is Result.FAILED for line in self.lines)

    @property
    def tables(self) -> tuple[CopiedTable, ...]:
        """The copy's, as far as they were read."""
        return tuple(
            CopiedTable(name=table.name, rows=table.rows, size_bytes=self.sizes.get(table.name, 0))
            for table in (self.found.tables if self.found else ())
        )

    @property
    def seconds(self) -> dict[str, float]:
        """The phases, to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self.phases.items()}

    # ---- what it reads

    @property
    def _programs(self) -> Programs:
        return self.verifier.programs

    @cached_property
    def _listing(self) -> str:
        return archives.contents_list(self._programs, self.backup.path)

    @cached_property
    def script(self) -> bytes:
        """The SQL that makes the archive's database."""
        return archives.database_text(self._programs, self.backup.path)


def _one(session: psycopg.Connection[dict[str, Any]], query: str) -> str:
    row = session.execute(query.encode()).fetchone()
    assert row is not None
    return str(next(iter(row.values())))
