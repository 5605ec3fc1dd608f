"""Makes a backup of one database as it was at an instant: recovers separately, dumps from there, and verifies it.

Such an extract is a dump like any other, which the restore that exists swaps in, and undoes. It is in a folder of its
own, ``recovered/<UTC of its last commit>/``, which retention, freshness and ``latest`` do not know.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BadBackupError, DatabaseMissingError
from ovia_backup_dagster.core.files import as_volume_error, is_file
from ovia_backup_dagster.core.layout import RECOVERED
from ovia_backup_dagster.core.manifest import RecoveredTo
from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.pitr.archive import base_name
from ovia_backup_dagster.pitr.recovered_cluster import RecoveryOrder, recovered
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.postgres.sandbox import Limits
from ovia_backup_dagster.postgres.verification import Verifier

#: ``recovered/<time>/<tier>/<file>``.
_PARTS = 4


@dataclass(frozen=True, slots=True)
class Extractor:
    """Everything that an extract depends on.

    Attributes:
        catalog: the database's backups; the extract is signed by the same ledger.
        verifier: judges the extract, as it judges dumps.
        programs: the client and server programs.
        compression: of the dump.
        folder: where the throwaway cluster is made.
        hours: how long a recovery may take.
    """

    catalog: Catalog
    verifier: Verifier
    programs: Programs
    compression: str
    folder: Path
    hours: float

    def extract(self, order: RecoveryOrder, to: RecoveredTo, log: Log, *, run_id: str | None = None) -> Path:
        """Recover the database and dump it; returns the path of the verified dump.

        Args:
            order: what to recover.
            to: the same for people.
            log: receives progress.
            run_id: Dagster's.

        Raises:
            RecoveryTargetError: the cluster had no such database at that instant.
            RecoveryError: PostgreSQL did not reach the target.
            BadBackupError: the dump is bad; it is removed.
            BackupError: the recovery, the dump or its verification failed; nothing is left.
        """
        limits = Limits.of(self.folder, order.base.manifest.data_bytes + order.wal_bytes, self.hours * 3600)
        with (
            self._place(to) as catalog,
            recovered(self.programs, self.folder, order, limits=limits, hours=self.hours, log=log) as cluster,
        ):
            connection = cluster.connection(self.catalog.database)
            dumper = Dumper(catalog, connection, self.programs, self.compression, recovered_to=to)
            try:
                backup = dumper.dump(run_id=run_id, log=log)
            except DatabaseMissingError:
                raise RecoveryTargetError(
                    f"the cluster had no database {self.catalog.database} at {to.committed_at:%Y-%m-%d %H:%M:%S} UTC",
                    why="it was dropped before, or created later",
                    fix="choose another instant: ovia-backup wal timeline",
                ) from None
            # A person chose the instant: it may be one before a table that is expected today.
            verifier = replace(self.verifier, catalog=catalog, expectations=Expectations())
            judgement = verifier.verify(backup, log=log).judgement
            if not judgement.good:
                raise BadBackupError(
                    f"the database as of {to.committed_at:%Y-%m-%d %H:%M:%S} UTC was dumped, and the dump is bad",
                    why="; ".join(judgement.reasons[:3]),
                    fix="ovia-backup recovery-window; then try an instant before or after",
                )
        return backup.path

    @contextmanager
    def _place(self, to: RecoveredTo) -> Iterator[Catalog]:
        """The catalog of the extract alone; its folder is removed if the block fails."""
        folder = self.catalog.root / RECOVERED / base_name(to.committed_at)
        with as_volume_error(f"cannot make {folder}"):
            while folder.exists():
                folder = folder.with_name(f"{folder.name}x")
            folder.mkdir(mode=0o700, parents=True)
        try:
            yield Catalog(folder, self.catalog.database, self.catalog.lock_wait_seconds, ledger=self.catalog.ledger)
        except BaseException:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
            raise


def is_extract(root: Path, name: str) -> bool:
    """Whether a name is that of an extract: ``recovered/<time>/daily/<file>`` on the volume, and nothing else."""
    parts = Path(name).parts
    return len(parts) == _PARTS and parts[0] == RECOVERED and ".." not in parts and is_file(root / name)


def remove_old_extracts(root: Path, older_than: datetime, log: Callable[[str], None]) -> list[Path]:
    """Remove the extracts that were made before an instant (UTC), unless a restore reads one; returns their folders.

    Raises:
        VolumeError: one cannot be removed.
    """
    removed = []
    for folder in sorted((root / RECOVERED).glob("*")) if (root / RECOVERED).is_dir() else []:
        with as_volume_error(f"cannot remove {folder}"):
            if datetime.fromtimestamp(folder.stat().st_mtime, UTC) < older_than:
                shutil.rmtree(folder)
                removed.append(folder)
                log(f"removed the extract {folder.name}")
    return removed
