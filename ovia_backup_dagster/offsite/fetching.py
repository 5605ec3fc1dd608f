"""Brings a backup back from a remote. Nothing is accepted that the signed log does not vouch for.

The checks follow The Update Framework, in this order: the log's last signature, and by hash links every statement and
the database; that the log is not shorter or other than this machine has seen; that its end has not expired; the marker;
that a statement vouches for the backup, and a receipt for its copy; then each file, bounded by its size,
decrypted to disk and compared by SHA-256, before any client program sees it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from ovia_backup_dagster.core.errors import (
    BackupNotFoundError,
    CopyDamagedError,
    NotFreshError,
    StatementLogError,
    VolumeError,
)
from ovia_backup_dagster.core.files import as_volume_error, file_sha256, is_file
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.naming import SUFFIX, BackupName
from ovia_backup_dagster.core.sidecars import MANIFEST
from ovia_backup_dagster.offsite.copy_plan import complete_copies
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.layout import MARKER, SIGNATURE, STATEMENTS, Listing, file_path, receipt_path
from ovia_backup_dagster.offsite.rclone import SMALL_BYTES, Remote
from ovia_backup_dagster.offsite.receipt import Marker, Receipt
from ovia_backup_dagster.offsite.remote_configuration import require_configured
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.offsite.transfer import fetch
from ovia_backup_dagster.signing.chain import Chain, Known
from ovia_backup_dagster.signing.log_replica import extend
from ovia_backup_dagster.signing.sshsig import SignatureError
from ovia_backup_dagster.signing.statement import ARCHIVE, Standing
from ovia_backup_dagster.signing.statement_log import StatementLog

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Copies:
    """What a remote offers, after the checks that concern all of it.

    Attributes:
        marker: whose remote it is.
        listing: its objects.
        chain: the signed log; at least what this machine has seen.
    """

    marker: Marker
    listing: Listing
    chain: Chain

    @property
    def complete(self) -> list[tuple[BackupName, Known]]:
        """The whole copies that a statement vouches for, newest first."""
        found = complete_copies(self.listing, self.chain)
        return sorted(found, key=lambda each: (each[0].started_at, each[0].filename), reverse=True)

    def size_of(self, archive: str) -> int:
        """The bytes that a copy has on the remote."""
        return sum(self.listing.sizes[path] for path in self.listing.files_of(archive))


@dataclass(frozen=True, slots=True)
class Offer:
    """A copy that can be fetched, with what is stated about it."""

    copies: Copies
    name: BackupName
    known: Known


@dataclass(frozen=True, slots=True)
class Fetcher:
    """One remote, as a source of backups.

    Attributes:
        log: on this machine; it is continued by the remote's.
        age: with the identity that decrypts.
    """

    remote: Remote
    log: StatementLog
    age: Age

    def copies(self, now: datetime, *, allow_expired: bool = False) -> Copies:
        """What the remote offers. Continues this machine's log by the remote's statements.

        Args:
            allow_expired: whether a log that has ended days ago may be used: the host is gone, or the log was cut off.

        Raises:
            RemoteError: the remote cannot be used, or is another's.
            StatementLogError: its log is broken, or shorter than this machine has seen.
            NotFreshError: its log has expired.
            SettingsError, ProgramMissingError, VolumeError: it cannot be read or written here.
        """
        require_configured(self.remote)
        remote_log = RemoteLog(self.remote, self.log)
        listing = Listing.of({path: stored.size_bytes for path, stored in self.remote.listing().items()})
        if MARKER not in listing.sizes:
            raise remote_log.no_marker()
        seen = self.log.chain().head
        if listing.statement > seen.sequence:
            self._continue_log(seen.sequence, listing)
        else:
            if listing.statement < seen.sequence and not self.log.can_record and self.remote.as_of is None:
                raise StatementLogError(
                    f"the log on remote {self.remote} was cut off",
                    why=f"it has {listing.statement} statements, and this machine has read {seen.sequence}",
                    fix="use another remote; or an earlier state of this one: --as-of TIME",
                )
            remote_log.require_ours(listing)
        chain = self.log.chain()
        if not allow_expired and chain.head.expires_at is not None and chain.head.expires_at < now:
            raise NotFreshError(
                f"the log on remote {self.remote} expired on {chain.head.expires_at:%Y-%m-%d %H:%M} UTC",
                why="the host has stopped, or the end of the log was cut off to hide later backups",
                fix="compare its head with the one that you noted, and with other remotes; then: --allow-expired",
            )
        # The log comes first: the marker may be signed by a key that it replaced since.
        return Copies(remote_log.marker(), listing, chain)

    def find(self, wanted: str, now: datetime, *, allow_expired: bool = False) -> Offer:
        """The copy that ``wanted`` means: an archive's name, or ``latest``, the newest that is not known to be bad.

        Raises:
            BackupNotFoundError: there is no such copy.
            BackupError: as :meth:`copies`.
        """
        copies = self.copies(now, allow_expired=allow_expired)
        return Offer(copies, *self._chosen(copies, wanted))

    def fetch(self, offer: Offer, folder: Path, log: Log) -> Path:
        """Write a backup's files into a folder, and return the archive's path.

        Raises:
            CopyDamagedError: a file is not what was signed.
            RemoteError, SettingsError, ProgramMissingError, VolumeError: it cannot be read, decrypted or written.
        """
        copies, archive, known = offer.copies, offer.name.filename, offer.known
        receipts_of(self.remote, RemoteLog(self.remote, self.log), copies.marker, copies.listing, archive)
        with as_volume_error(f"cannot use the folder {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        suffixes = sorted(known.files, key=lambda suffix: (suffix == ARCHIVE, suffix))
        for suffix in suffixes:
            stated, target = known.files[suffix], folder / f"{archive}{suffix}"
            path = file_path(archive, suffix, stated.sha256)
            if path not in copies.listing.sizes:
                if suffix in (ARCHIVE, MANIFEST.suffix):
                    raise CopyDamagedError(
                        f"{path} is not on {self.remote}",
                        why="the receipt says that it was there: it was deleted since",
                        fix=f"ovia-backup fetch {archive} --from another remote, or --as-of TIME",
                    )
                log(f"{archive}{suffix} was written after the last copy to {self.remote}, and is left out")
                continue
            if is_file(target) and _is(target, stated.size_bytes, stated.sha256):
                continue
            _require_room(folder, stated.size_bytes)
            if suffix == ARCHIVE:
                log(f"fetching {archive}, {human_bytes(stated.size_bytes)}, from {self.remote}")
            fetch(self.remote, path, self.age, target, stated, log=log)
        return folder / archive

    def _chosen(self, copies: Copies, wanted: str) -> tuple[BackupName, Known]:
        complete = copies.complete
        if wanted == "latest":
            good = [each for each in complete if each[1].standing in (Standing.VERIFIED, Standing.PROVEN)]
        else:
            good = [each for each in complete if wanted in (each[0].filename, each[0].filename.removesuffix(SUFFIX))]
        if good:
            return good[0]
        newest = f"the newest is {complete[0][0].filename}" if complete else "it has no complete copy"
        raise BackupNotFoundError(
            f"no copy called {wanted!r} of database {copies.chain.database} on remote {self.remote}",
            why=newest,
            fix="ovia-backup list --offsite",
        )

    def _continue_log(self, seen: int, listing: Listing) -> None:
        """Add the remote's statements to this machine's log, after checking them."""
        last = listing.statement
        statements = {path: size for path, size in listing.sizes.items() if path.startswith(f"{STATEMENTS}/")}
        if large := [path for path, size in statements.items() if size > SMALL_BYTES]:
            raise StatementLogError(
                f"{large[0]} on remote {self.remote} is larger than {human_bytes(SMALL_BYTES)}",
                why="no statement is",
                fix="use another remote; or an earlier state of this one: --as-of TIME",
            )
        with tempfile.TemporaryDirectory(prefix="ovia-log-") as text:
            folder = Path(text)
            names = [f"{sequence:08}.json" for sequence in range(seen + 1, last + 1)]
            self.remote.get(STATEMENTS, [*names, *(f"{name}{SIGNATURE}" for name in names)], folder)
            contents: list[bytes] = []
            signatures: dict[int, bytes] = {}
            for sequence, name in enumerate(names, seen + 1):
                if not ((folder / name).is_file() and (folder / f"{name}{SIGNATURE}").is_file()):
                    raise StatementLogError(
                        f"statement {sequence} is missing on remote {self.remote}",
                        why=f"it or its signature was deleted, and statement {last} is there",
                        fix="use another remote; or an earlier state of this one: --as-of TIME",
                    )
                contents.append((folder / name).read_bytes())
                signatures[sequence] = (folder / f"{name}{SIGNATURE}").read_bytes()
            extend(self.log, contents, signatures)


def receipts_of(remote: Remote, remote_log: RemoteLog, marker: Marker, listing: Listing, archive: str) -> list[Receipt]:
    """The receipts of a copy, checked, oldest first.

    Raises:
        CopyDamagedError: one does not count.
        RemoteError: one cannot be read.
    """
    found = []
    for sequence in listing.receipts[archive]:
        path = receipt_path(archive, sequence)
        content, signature = remote.read(path), remote.read(path + SIGNATURE)
        why = "it was listed, and is gone"
        if content is not None and signature is not None:
            try:
                remote_log.verify(content, signature)
                receipt = Receipt.model_validate_json(content)
            except (SignatureError, ValidationError) as error:
                why = str(error).splitlines()[0]
            else:
                if (receipt.remote, receipt.backup, receipt.sequence) == (marker.id, archive, sequence):
                    found.append(receipt)
                    continue
                why = f"it is of {receipt.backup} on remote {receipt.remote}, and this is remote {marker.id}"
        raise CopyDamagedError(
            f"the receipt {path} on {remote} does not count",
            why=why,
            fix=f"ovia-backup offsite verify {remote}; then another remote: ovia-backup fetch {archive} --from NAME",
        )
    return found


def _is(path: Path, size_bytes: int, sha256: str) -> bool:
    return path.stat().st_size == size_bytes and file_sha256(path) == sha256


def _require_room(folder: Path, size_bytes: int) -> None:
    """The ciphertext and the plain file are there together for a moment."""
    free = shutil.disk_usage(folder).free
    if free < 2 * size_bytes:
        raise VolumeError(
            f"{folder} has too little room",
            why=f"{human_bytes(2 * size_bytes)} are needed for a moment, and {human_bytes(free)} are free",
            fix="ovia-backup fetch BACKUP --to a folder with more room",
        )
