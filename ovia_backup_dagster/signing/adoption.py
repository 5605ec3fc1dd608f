"""Takes backups into the signed log that were made without it: a person vouches for what is on the volume now."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.files import file_sha256, plain_status
from ovia_backup_dagster.core.ledger import UNSIGNED
from ovia_backup_dagster.core.sidecars import SIDECAR_KINDS
from ovia_backup_dagster.signing.statement import ARCHIVE, SignedFile, Standing
from ovia_backup_dagster.signing.statement_log import StatementLog


def unsigned(catalog: Catalog, now: datetime) -> list[Backup]:
    """The complete backups that no statement vouches for, oldest first.

    Raises:
        VolumeError: the volume cannot be read.
        StatementLogError: the log is broken.
    """
    found = (backup for backup in reversed(catalog.backups()) if not backup.is_vouched)
    return [backup for backup in found if backup.state(now) is not State.BEING_WRITTEN]


def adopt(log: StatementLog, backup: Backup) -> list[str]:
    """State that a backup counts as it is on the volume now. Reads the whole archive for its SHA-256.

    Returns:
        The files that were taken on trust.

    Raises:
        VolumeError: a file cannot be read.
        SettingsError, StatementLogError: it cannot be stated.
    """
    sha256 = file_sha256(backup.path)
    contents = {kind.suffix: backup.read_sidecar(kind) for kind in SIDECAR_KINDS}
    files = {suffix: SignedFile.of(content) for suffix, content in contents.items() if content is not None}
    size_bytes = plain_status(backup.path).st_size
    log.adopted(
        backup.path.name, {ARCHIVE: SignedFile(size_bytes=size_bytes, sha256=sha256), **files}, _standing(backup)
    )
    return [f"{backup.path.name}{suffix}" for suffix in (ARCHIVE, *files)]


def _standing(backup: Backup) -> Standing:
    """The standing that the adopted sidecars give the backup: until it is adopted, none of them counts."""
    backup = replace(backup, ledger=UNSIGNED)
    if backup.problem is not None:
        return Standing.BAD
    if backup.drilled:
        return Standing.PROVEN
    return Standing.VERIFIED if backup.judgement is not None else Standing.UNVERIFIED
