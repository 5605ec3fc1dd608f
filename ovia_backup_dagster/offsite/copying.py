"""Sends what a remote lacks: the statements of the log, and each verified backup with its sidecars.

A backup is there when its receipt is, which is written last. What a killed run left is sent again under the same names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError, CopyDamagedError, LockHeldError
from ovia_backup_dagster.core.files import as_volume_error
from ovia_backup_dagster.core.human_text import human_bytes, seconds
from ovia_backup_dagster.offsite.copies import Copies
from ovia_backup_dagster.offsite.copy_plan import missing_copies
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.layout import BACKUPS, SIGNATURE, file_path, receipt_path
from ovia_backup_dagster.offsite.rclone import Remote, Stored
from ovia_backup_dagster.offsite.receipt import CopiedFile, Receipt
from ovia_backup_dagster.offsite.remote_configuration import require_configured
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.offsite.transfer import PlainFile, send
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing.statement_log import StatementLog

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """What a run of copying did.

    Attributes:
        sent: the archives that were sent, or whose sidecars were sent, newest first.
        before: the archives of the complete copies that were there before.
        copies: the archives of the complete copies afterwards, oldest first.
        copies_bytes: their size on the remote.
        sent_bytes: the size of all ciphertexts that were sent.
        elapsed_seconds: how long it took.
        failed: the archives that could not be read here, with the error; they did not stop the others.
    """

    sent: tuple[str, ...]
    before: tuple[str, ...]
    copies: tuple[str, ...]
    copies_bytes: int
    sent_bytes: int
    elapsed_seconds: float
    failed: dict[str, BackupError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Copier:
    """Copies of one database's backups on one remote.

    Attributes:
        policy: the remote's retention.
    """

    catalog: Catalog
    log: StatementLog
    remote: Remote
    age: Age
    policy: Policy

    def copy(self, now: datetime, log: Log) -> Copied:
        """Send everything that is verified and not there, newest first.

        Raises:
            RemoteError: the remote cannot be used, or a transfer failed.
            SettingsError, ProgramMissingError: rclone or age cannot be used.
            StatementLogError, VolumeError: the volume cannot be read.
            LockHeldError: another process copies to this remote.
        """
        began = time.monotonic()
        self.log.require_key()
        self.age.encrypting()
        require_configured(self.remote)
        remote_log = RemoteLog(self.remote, self.log)
        with exclusively(self.catalog.root, self.remote):
            marker = remote_log.marker()
            listing = remote_log.listing()
            remote_log.require_ours(listing)
            remote_log.continue_there(listing)
            copies = remote_log.copies(marker, listing)
            verified = {str(backup): backup for backup in self._verified(now)}
            names = [backup.name for backup in verified.values()]
            sent, sent_bytes, failed = [], 0, dict[str, BackupError]()
            missing = missing_copies(names, copies, self.policy, now)
            # A store without hashes would read everything back, in silence; there rclone compares what it wrote.
            hashes = bool(missing) and self.remote.has_cheap_hashes()
            for archive in missing:
                try:
                    sent_bytes += self._send(verified[archive], copies, now, log, hashes=hashes)
                except CopyDamagedError as error:
                    # A file that rotted here must not keep older ones from leaving.
                    failed[archive] = error
                    log(str(error))
                else:
                    sent.append(archive)
        before = {name.filename for name, _ in copies.complete}
        size = sum(map(copies.size_of, before))
        return Copied(
            sent=tuple(sent),
            before=tuple(sorted(before)),
            copies=tuple(sorted({*before, *sent})),
            copies_bytes=size + sent_bytes,
            sent_bytes=sent_bytes,
            elapsed_seconds=time.monotonic() - began,
            failed=failed,
        )

    def _verified(self, now: datetime) -> Iterator[Backup]:
        for backup in self.catalog.newest_first():
            if backup.is_vouched and backup.state(now).is_verified:
                yield backup

    def _send(self, backup: Backup, copies: Copies, now: datetime, log: Log, *, hashes: bool) -> int:
        """Send a backup's files, and its receipt, which names all that are there; return the bytes that were sent."""
        archive, began = str(backup), time.monotonic()
        known, there = copies.chain.known[archive], copies.there(archive)
        files: dict[str, CopiedFile] = {}
        sent: list[CopiedFile] = []
        with self.catalog.reading(backup):
            for suffix, stated in known.files.items():
                path = file_path(archive, suffix, stated.sha256)
                if path in there:
                    files[suffix] = there[path]
                    continue
                source = PlainFile(backup.sidecar(suffix), stated.size_bytes, stated.sha256)
                files[suffix] = send(source, self.age, self.remote, path, log=log)
                sent.append(files[suffix])
        self._require_arrived(archive, sent, hashes=hashes)
        receipt = Receipt(remote=copies.marker.id, backup=archive, sequence=known.sequence, at=now, files=files)
        content = receipt.to_json().encode()
        path = receipt_path(archive, known.sequence)
        self.remote.write(path + SIGNATURE, self.log.sign(content))
        self.remote.write(path, content)
        size = sum(file.size_bytes for file in sent)
        log(f"{self.remote}: sent {archive}, {human_bytes(size)} in {seconds(time.monotonic() - began)}")
        return size

    def _require_arrived(self, archive: str, files: Iterable[CopiedFile], *, hashes: bool) -> None:
        """Compare what arrived with what was sent: its size, and its hash where the store has one."""
        there = self.remote.listing(f"{BACKUPS}/{archive}", hashes=hashes)
        for file in files:
            if wrong := difference(file, there.get(file.path)):
                raise CopyDamagedError(
                    f"{file.path} did not arrive on {self.remote} as it was sent",
                    why=wrong,
                    fix=f"ovia-backup offsite copy {self.remote}",
                )


def difference(sent: CopiedFile, there: Stored | None) -> str:
    """How an object differs from what was sent, in words; empty if it does not. A store without hashes has a size."""
    if there is None:
        return "it is not there"
    if there.size_bytes != sent.size_bytes:
        return f"it has {there.size_bytes:,} bytes, and {sent.size_bytes:,} were sent"
    for name, value in (("sha256", sent.sha256), ("md5", sent.md5)):
        if there.hashes.get(name, value).lower() != value:
            return f"its {name.upper()} is {there.hashes[name][:16]}…, and {value[:16]}… was sent"
    return ""


@contextlib.contextmanager
def exclusively(root: Path, remote: Remote) -> Iterator[None]:
    """Let one process at a time work on a remote.

    Raises:
        LockHeldError: another one does.
        VolumeError: the lock cannot be made.
    """
    path = root / f".offsite-{remote}.lock"
    with as_volume_error(f"cannot lock {path}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeldError(
                f"another process copies to remote {remote}, or removes copies there",
                why=f"it holds {path}",
                fix="wait for its end; to see it: fuser -v " + str(path),
            ) from None
        yield
    finally:
        os.close(descriptor)
