"""Copies one backup to any place by hand: a folder, ``user@host:/path``, or an rclone remote.

The copy is complete by itself, and needs none of this program: the archive, its sidecars and a list of their SHA-256,
which ``sha256sum --check`` reads. With keys, the files are encrypted and the list is signed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import CopyDamagedError, RemoteForeignError
from ovia_backup_dagster.core.files import file_sha256, plain_status
from ovia_backup_dagster.core.remote_address import RemoteAddress
from ovia_backup_dagster.core.sidecars import SIDECAR_KINDS
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.layout import ENCRYPTED, SIGNATURE
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster.offsite.transfer import PlainFile, digest_of, send
from ovia_backup_dagster.signing.statement_log import StatementLog

Log = Callable[[str], None]
_SSH = re.compile(r"(?P<login>[\w.-]+@[\w.:\[\]-]+):(?P<path>/?[^:]*)")


@dataclass(frozen=True, slots=True)
class ManualCopy:
    """Where to copy a backup, and with which keys.

    Attributes:
        age: encrypts the files; ``None`` leaves them as they are.
        log: signs the list; ``None`` leaves it unsigned.
    """

    catalog: Catalog
    remote: Remote
    age: Age | None
    log: StatementLog | None

    def copy(self, backup: Backup, log: Log) -> list[str]:
        """Copy a backup's files; read each back, and compare its hash with what was sent.

        Returns:
            The names of the files there.

        Raises:
            RemoteForeignError: a different file of this name exists there.
            CopyDamagedError: what arrived is not what was sent.
            RemoteError, VolumeError, SettingsError, ProgramMissingError: it could not be copied.
        """
        made, lines = [], []
        with self.catalog.reading(backup):
            for source in self._sources(backup):
                name = source.path.name + (ENCRYPTED if self.age else "")
                sent = send(source, self.age, self.remote, name, log=log)
                size, sha256 = digest_of(self.remote, name)
                if (size, sha256) != (sent.size_bytes, sent.sha256):
                    raise CopyDamagedError(
                        f"{name} did not arrive at {self.remote.address.target} as it was sent",
                        why=f"it has {size:,} bytes and the SHA-256 {sha256[:16]}…",
                        fix="repeat the command",
                    )
                log(f"{name}: {size:,} bytes, SHA-256 {sha256}, read back")
                made.append(name)
                lines.append(f"{source.sha256}  {source.path.name}\n")
        return [*made, *self._write_list(backup, "".join(lines).encode())]

    def _sources(self, backup: Backup) -> list[PlainFile]:
        """The files to copy, those of the last complete reading; none of the target may be another file."""
        paths = [backup.sidecar(kind) for kind in SIDECAR_KINDS if backup.read_sidecar(kind) is not None]
        there = self.remote.listing()
        for path in (*paths, backup.path):
            name = path.name + (ENCRYPTED if self.age else "")
            if name in there:
                raise RemoteForeignError(
                    f"{name} is at {self.remote.address.target} already",
                    why="a copy never replaces a file",
                    fix="name another folder, or remove the earlier copy",
                )
        backup.require_stated_archive()
        return [_plain(path) for path in (*paths, backup.path)]

    def _write_list(self, backup: Backup, content: bytes) -> list[str]:
        name = f"{backup}.sha256"
        if self.log is None:
            self.remote.write(name, content)
            return [name]
        self.remote.write(name + SIGNATURE, self.log.sign(content))
        self.remote.write(name, content)
        return [name + SIGNATURE, name]


def destination(text: str, program: Program) -> Remote:
    """The place that a person named: a folder, ``user@host:/path`` by the ssh program, or a remote of rclone's file."""
    if match := _SSH.fullmatch(text):
        ssh = f"ssh -o BatchMode=yes {match['login']}"
        # A connection string: rclone needs no configuration for it, and ssh uses the operator's keys and known hosts.
        return Remote(RemoteAddress("there", f":sftp,ssh='{ssh}':{match['path']}"), program)
    if ":" in text.partition("/")[0]:
        return Remote(RemoteAddress("there", text.rstrip("/")), program)
    return Remote(RemoteAddress("there", str(Path(text).absolute())), program)


def _plain(path: Path) -> PlainFile:
    return PlainFile(path, plain_status(path).st_size, file_sha256(path))
