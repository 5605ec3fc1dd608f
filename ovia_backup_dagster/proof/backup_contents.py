"""The known contents of a backup: its manifest, its reading by a verification, its contents list.

Checks that the file is the one that was written. ``postgres`` reads and verifies archives; ``copy_comparison`` reads
the copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.core.verdict import Witness
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof.record import ProofRecord


@dataclass
class BackupContents:
    """The contents of one backup.

    Attributes:
        verifier: catalog, programs, and the expectations for a backup.
        backup: the backup.
        record: receives the result of the check.
        manifest: the backup's manifest, once it is read; ``None`` for a dump of the old script.
        witness: the contents that a reading found; ``None`` until the backup is read.
        sha256: the current hash of the file; ``None`` until the file is read.
    """

    verifier: Verifier
    backup: Backup
    record: ProofRecord
    manifest: Manifest | None = field(default=None, init=False)
    witness: Witness | None = field(default=None, init=False)
    sha256: str | None = field(default=None, init=False)

    @property
    def programs(self) -> Programs:
        """The client programs."""
        return self.verifier.programs

    @property
    def word(self) -> str:
        """The argument that names the backup on a command line."""
        return self.verifier.catalog.word(self.backup)

    def read_manifest(self) -> Manifest | None:
        """Read the manifest.

        Raises:
            VolumeError: a newer program wrote it.
        """
        self.manifest = self.backup.manifest
        if self.manifest is not None:
            database = self.manifest.database
            self.record.versions |= {"source": database.server_version, "pg_dump": self.manifest.client_version}
        return self.manifest

    def read(self) -> Witness | None:
        """The backup's contents, from its verification if the file is unchanged; otherwise it is verified now.

        ``None`` if the backup is damaged; the check is then recorded as failed.

        Raises:
            BackupError: no verdict could be reached.
        """
        self.read_manifest()
        self.witness = self._read()
        if self.witness is not None:
            self.record.versions.setdefault("pg_dump", self.witness.archive_client)
        return self.witness

    def _read(self) -> Witness | None:
        backup, verifier, record = self.backup, self.verifier, self.record
        record.versions["pg_restore"] = self.programs.version("pg_restore")
        with record.phase("hash"):
            wanted = self._sha256_then()
            if wanted is not None and backup.witness is not None:
                record.log(f"hashing {backup} ({human_bytes(backup.size_bytes)})")
                self.sha256 = file_sha256(backup.path)
                if self.sha256 == wanted and not verifier.altered_files(backup) and backup.problem is None:
                    record.add(Check.UNALTERED, [], odd=self._manifest_notes, passed=f"SHA-256 {wanted}")
                    return backup.witness
        with record.phase("verification"):
            verified = verifier.verify(backup, log=record.log)
        self.sha256 = verified.judgement.sha256
        wrong = [] if verified.judgement.intact else list(verified.judgement.reasons)
        record.add(
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

    @property
    def source_bytes(self) -> int | None:
        """The source's size in bytes, if known."""
        return self.manifest.database.size_bytes if self.manifest else None

    @property
    def bootstrap_superuser(self) -> set[str]:
        """The name of the source's bootstrap superuser; empty if unknown."""
        return {self.manifest.database.bootstrap_superuser} if self.manifest else set()

    @property
    def search_path(self) -> str | None:
        """The ``search_path`` that the source database sets for its sessions, if any."""
        for setting in self.manifest.database.settings.get("", ()) if self.manifest else ():
            name, _, value = setting.partition("=")
            if name.lower() == "search_path":
                return value
        return None

    @cached_property
    def listing(self) -> str:
        """The archive's contents list."""
        return archives.contents_list(self.programs, self.backup.path)

    @cached_property
    def script(self) -> bytes:
        """The SQL that creates the archive's database."""
        return archives.database_text(self.programs, self.backup.path)
