"""Checks that a copy has the backup's objects: contents, owners, privileges, constraints, indexes, the SQL of each.

Makes three checks from one comparison, on a running copy. ``comparison`` and ``grants`` name the differences, and need
no server.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.verdict import Witness
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof import comparison
from ovia_backup_dagster.proof.backup_contents import BackupContents
from ovia_backup_dagster.proof.materialized_views import REFRESH
from ovia_backup_dagster.proof.record import ProofRecord
from ovia_backup_dagster.proof.target import Copy

_INVALID_INDEXES = """
    SELECT c.oid::regclass::text AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT i.indisvalid AND c.relkind = 'i' ORDER BY 1
"""
_NOT_ENFORCED = """
    SELECT DISTINCT tgrelid::regclass::text AS name FROM pg_trigger
    WHERE tgisinternal AND tgconstraint <> 0 AND tgenabled <> 'O' ORDER BY 1
"""
_NOT_VALID = "SELECT count(*) AS number FROM pg_constraint WHERE NOT convalidated"


@dataclass(frozen=True, slots=True)
class SchemaProof:
    """The comparison of one copy's objects with the backup's.

    Attributes:
        contents: the backup.
        record: receives the results.
        copy: the restored copy.
        without: entries of the contents list that were not restored.
    """

    contents: BackupContents
    record: ProofRecord
    copy: Copy
    without: Collection[str]

    def prove(self, original: bytes, made: bytes, found: Witness) -> None:
        """Make the checks.

        Args:
            original, made: the SQL of the backup's schema and of the copy's.
            found: the copy's contents.

        Raises:
            BackupError: the server or the archive cannot be read.
        """
        differences = self._contents_differences(found, original, made)
        privileges = comparison.compare_privileges(original, made, self._makers())
        self._prove_contents(found, differences, privileges)
        self._prove_structure(found, differences, comparison.structure_differences(original, made))
        odd = comparison.schema_differences(original, made)
        self.record.add(Check.SCHEMA_TEXT, odd, passed="the same SQL")

    def _witness(self) -> Witness:
        assert self.contents.witness is not None
        return self.contents.witness

    def _contents_differences(self, found: Witness, original: bytes, made: bytes) -> list[str]:
        # Another check reports views that could not be refreshed.
        before, after = ([e for e in w.contents if not e.startswith(REFRESH)] for w in (self._witness(), found))
        names = {owner for text in (original, made) for owner in comparison.owner_names(text)}
        with connect(self.copy.server) as session:
            names |= {row["rolname"] for row in session.execute("SELECT rolname FROM pg_roles")}
        names |= self.contents.bootstrap_superuser
        return comparison.contents_differences(
            before,
            after,
            with_owners=self.copy.with_owners,
            live=self.copy.live,
            roles=names,
            without=self.without,
        )

    def _makers(self) -> set[str]:
        """Both servers' bootstrap superusers."""
        with connect(self.copy.server) as session:
            row = session.execute("SELECT pg_get_userbyid(10) AS name").fetchone()
        assert row is not None
        return {row["name"]} | self.contents.bootstrap_superuser

    def _prove_contents(
        self, found: Witness, differences: Sequence[str], privileges: tuple[Sequence[str], Sequence[str]]
    ) -> None:
        """Record the check of entries and privileges; ``privileges`` has the bad and the odd differences of these."""
        copy, contents = self.copy, self.contents
        others = [line for line in differences if not comparison.is_structure(line.partition(": ")[2])]
        left = sum(comparison.left_out(entry, live=copy.live) for entry in self._witness().contents)
        without, odd = [], [*privileges[1]]
        if left and copy.live:
            odd.append(f"{left} entries of subscriptions left out: they would take over the source's replication slots")
        elif left:
            without.append(f"{left} entries of publications and subscriptions left out, on purpose")
        if copy.live and (elsewhere := archives.tablespaces(contents.programs, contents.backup.path)):
            odd.append(f"what the source keeps in tablespace {', '.join(elsewhere)} is in the database's own")
        if not copy.with_owners:
            without.append("without owners and privileges, which a scratch database does not get")
        entries = sum(not entry.startswith(REFRESH) for entry in found.contents)
        passed = "; ".join([f"{entries:,} entries", *without])
        self.record.add(Check.CONTENTS, [*others, *privileges[0]], odd=odd, passed=passed)

    def _prove_structure(self, found: Witness, differences: Sequence[str], bound: Sequence[str]) -> None:
        wrong = [line for line in differences if comparison.is_structure(line.partition(": ")[2])]
        with connect(self.copy.connection) as session:
            wrong += [f"index {row['name']} is not valid" for row in session.execute(_INVALID_INDEXES)]
            # No dump records this state, so it does not come from the source.
            wrong += [f"foreign keys of {row['name']} are not enforced" for row in session.execute(_NOT_ENFORCED)]
            row = session.execute(_NOT_VALID).fetchone()
            assert row is not None
            not_valid = row["number"]
        count = sum(map(comparison.is_structure, found.contents))
        so_before = f"; NOT VALID, as in the source: {not_valid}" if not_valid else ""
        self.record.add(Check.STRUCTURE, [*wrong, *bound], passed=f"{count:,}, all valid{so_before}")
