"""The proof that a restored database equals its backup: the steps, in their order.

A drill's copy and a database that goes live are proven by the same steps; the callers make the differences.
``core.check_registry`` lists the checks; add a new check there first. The steps themselves are in ``backup_contents``,
``copy_restoration``, ``copy_comparison`` and ``table_statistics``.
"""

from __future__ import annotations

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.core.verdict import Witness
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof import executed_functions
from ovia_backup_dagster.proof.backup_contents import BackupContents
from ovia_backup_dagster.proof.check_results import CopiedTable
from ovia_backup_dagster.proof.copy_comparison import CopyComparison
from ovia_backup_dagster.proof.copy_restoration import CopyRestoration
from ovia_backup_dagster.proof.database_reader import CopyReader
from ovia_backup_dagster.proof.materialized_views import Unrefreshed
from ovia_backup_dagster.proof.record import ProofRecord
from ovia_backup_dagster.proof.table_statistics import analyze
from ovia_backup_dagster.proof.target import Copy


class Proof(ProofRecord):
    """The proof of one backup, with its results so far.

    The steps, in order: :meth:`read_backup`, :meth:`prove_functions`, :meth:`restore`, :meth:`prove`, :meth:`analyze`.

    Args:
        verifier: catalog, programs, and the expectations for a backup.
        source: the database that is backed up. Its settings are queried if the dump does not record how values were
            written.
        backup: the backup to restore.
        log: receives progress lines.
        jobs: how many entries pg_restore restores at a time.
        rescue: the command that restores the rows if a rule refuses them; empty for the usual command.
    """

    def __init__(
        self, verifier: Verifier, source: Connection, backup: Backup, log: Log, *, jobs: int, rescue: str = ""
    ) -> None:
        super().__init__(log)
        self.jobs = jobs
        self.contents = BackupContents(verifier, backup, self)
        self.restoration = CopyRestoration(self.contents, self, jobs, rescue)
        self.comparison = CopyComparison(self.contents, self, source, jobs)

    # ---- the steps

    def read_manifest(self) -> Manifest | None:
        """As :meth:`BackupContents.read_manifest`."""
        return self.contents.read_manifest()

    def read_backup(self) -> Witness | None:
        """As :meth:`BackupContents.read`."""
        return self.contents.read()

    def prove_functions(self, copy: Copy) -> executed_functions.Reach:
        """As :meth:`CopyRestoration.prove_functions`."""
        return self.restoration.prove_functions(copy)

    def restore(self, copy: Copy, *, despite_errors: bool = False) -> None:
        """As :meth:`CopyRestoration.restore`."""
        self.restoration.restore(copy, despite_errors=despite_errors)

    def prove(self, copy: Copy) -> CopyReader:
        """As :meth:`CopyComparison.prove`, except for the entries that were left out of the copy."""
        return self.comparison.prove(copy, self.restoration.withheld.entries)

    def prove_computed(self, copy: Copy) -> list[str]:
        """As :meth:`CopyComparison.prove_computed`."""
        return self.comparison.prove_computed(copy)

    def take_stock(self, copy: Copy) -> None:
        """As :meth:`CopyComparison.take_stock`."""
        self.comparison.take_stock(copy)

    def analyze(self, copy: Copy) -> None:
        """As :func:`table_statistics.analyze`."""
        analyze(copy.connection, self.contents.programs, self.restoration.settings.options, self.jobs, self)

    # ---- findings

    @property
    def lost(self) -> list[str]:
        """The errors of a restore despite errors, a line each."""
        return self.restoration.lost

    @property
    def unrefreshed(self) -> list[Unrefreshed]:
        """Materialized views that pg_restore could not refresh."""
        return self.restoration.unrefreshed

    @property
    def found(self) -> Witness | None:
        """The copy's contents; ``None`` until it is read."""
        return self.comparison.found

    @property
    def tables(self) -> tuple[CopiedTable, ...]:
        """The tables of the copy that were read so far."""
        return self.comparison.tables

    @property
    def copy_bytes(self) -> int | None:
        """``pg_database_size`` of the copy; ``None`` until it is read."""
        return self.comparison.copy_bytes
