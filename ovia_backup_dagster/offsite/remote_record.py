"""What this host knows of a remote without asking it: ``offsite/<database>/<remote>.json`` on the volume.

Written after each copy, verification and removal; read by ``status``, the alerts and the doctor. It also shows what was
there, so that copies which disappear are noticed.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.core.files import as_volume_error, read_small
from ovia_backup_dagster.core.layout import OFFSITE
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.core.naming import BackupName, encode_database


class ReadBack(Sidecar):
    """A copy that was read back whole.

    Attributes:
        at: when (UTC).
        backup: the archive's file name.
        decrypted: whether the plain file was compared; otherwise its ciphertext.
        good: whether it was what was sent.
    """

    at: AwareDatetime
    backup: str
    decrypted: bool
    good: bool


class RemoteRecord(Sidecar):
    """A remote, as this host last saw it.

    Attributes:
        version: of this format.
        copies: the archives of the complete copies.
        copies_bytes: their size on the remote.
        copied_at: the end of the last run that copied everything (UTC).
        failed_at, failure: when the last run failed, and why; empty if it did not.
        verified_at: the last complete verification (UTC).
        findings: what it found wrong.
        read_back: the last copy that was read back.
        free_bytes: the room on the remote, if it says so.
    """

    version: Literal[1] = 1
    copies: tuple[str, ...] = ()
    copies_bytes: int = 0
    copied_at: AwareDatetime | None = None
    failed_at: AwareDatetime | None = None
    failure: str = ""
    verified_at: AwareDatetime | None = None
    findings: tuple[str, ...] = ()
    read_back: ReadBack | None = None
    free_bytes: int | None = None

    @property
    def newest(self) -> datetime | None:
        """When the newest complete copy was begun (UTC)."""
        names = (BackupName.parse(archive) for archive in self.copies)
        return max((name.started_at for name in names if name), default=None)


class RemoteRecords:
    """The records of one database's remotes."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._folder = catalog.root / OFFSITE / encode_database(catalog.database)

    def read(self, remote: str) -> RemoteRecord:
        """The record of a remote; an empty one if there is none, or it cannot be understood.

        Raises:
            VolumeError: it cannot be read.
        """
        path = self._path(remote)
        try:
            return parse_sidecar(RemoteRecord, read_small(path), path.name)
        except FileNotFoundError:
            return RemoteRecord()

    def update(self, remote: str, **changes: object) -> RemoteRecord:
        """Change some facts of a record, and return it.

        Raises:
            VolumeError: it cannot be written.
        """
        try:
            known = self.read(remote)
        except VolumeError:
            known = RemoteRecord()  # another program's file, which the new one replaces
        record = known.model_copy(update=changes)
        with as_volume_error(f"cannot use the folder {self._folder}"):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._catalog.write(self._path(remote), record.to_json().encode())
        return record

    def _path(self, remote: str) -> Path:
        return self._folder / f"{remote}.json"
