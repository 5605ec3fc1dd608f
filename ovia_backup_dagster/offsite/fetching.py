"""Brings a backup back from a remote. Nothing is accepted that the signed log does not vouch for.

The checks follow The Update Framework, in this order: the log's last signature, and by hash links every statement and
the database; that the log is not shorter or other than this machine has seen; that its end has not expired; the marker;
that a statement vouches for the backup, and a receipt for its copy; then each file, bounded by its size,
decrypted to disk and compared by SHA-256, before any client program sees it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

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
from ovia_backup_dagster.offsite.copies import GOOD, Copies
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.layout import MARKER, SIGNATURE, Listing, file_path, statement_path
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.remote_configuration import require_configured
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.offsite.small_objects import MOST_BYTES, read_objects
from ovia_backup_dagster.offsite.transfer import fetch
from ovia_backup_dagster.signing.chain import Known
from ovia_backup_dagster.signing.log_replica import extend
from ovia_backup_dagster.signing.statement import ARCHIVE
from ovia_backup_dagster.signing.statement_log import StatementLog

Log = Callable[[str], None]
_LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Offer:
    """A copy that can be fetched, with what is stated about it.

    Attributes:
        newer: verified backups that are newer than ``latest``, and have no complete copy: not sent yet, or deleted.
    """

    copies: Copies
    name: BackupName
    known: Known
    newer: tuple[str, ...] = ()


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
        listing = remote_log.listing()
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
        return remote_log.copies(remote_log.marker(), listing)

    def find(self, wanted: str, now: datetime, *, allow_expired: bool = False) -> Offer:
        """The copy that ``wanted`` means: an archive's name, or ``latest``, the newest that is not known to be bad.

        Raises:
            BackupNotFoundError: there is no such copy.
            BackupError: as :meth:`copies`.
        """
        copies = self.copies(now, allow_expired=allow_expired)
        name, known = self._chosen(copies, wanted)
        newer = [archive for archive in _without_copy(copies) if _started(archive) > name.started_at]
        return Offer(copies, name, known, tuple(newer) if wanted == _LATEST else ())

    def fetch(self, offer: Offer, folder: Path, log: Log) -> Path:
        """Write a backup's files into a folder, and return the archive's path.

        Raises:
            CopyDamagedError: a file is not what was signed.
            RemoteError, SettingsError, ProgramMissingError, VolumeError: it cannot be read, decrypted or written.
        """
        copies, archive, known = offer.copies, offer.name.filename, offer.known
        for name in offer.newer:
            log(
                f"{name} is newer, and has no complete copy on {self.remote}: it was not sent yet, or was deleted there"
            )
        sent, there = copies.sent(archive), copies.there(archive)
        with as_volume_error(f"cannot use the folder {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        suffixes = sorted(known.files, key=lambda suffix: (suffix == ARCHIVE, suffix))
        for suffix in suffixes:
            stated, target = known.files[suffix], folder / f"{archive}{suffix}"
            path = file_path(archive, suffix, stated.sha256)
            if path not in there:
                why = "was deleted or cut off on" if path in sent else "was written after the last copy to"
                log(f"{archive}{suffix} {why} {self.remote}, and is left out")
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
        if wanted == _LATEST:
            found = [each for each in complete if each[1].standing in GOOD]
        else:
            found = [each for each in complete if wanted in (each[0].filename, each[0].filename.removesuffix(SUFFIX))]
        if found:
            return found[0]
        name = wanted if wanted.endswith(SUFFIX) else f"{wanted}{SUFFIX}"
        if name in copies.chain.known and name in copies.listing.receipts:
            raise CopyDamagedError(
                f"the copy of {name} on {self.remote} does not count",
                why=_why_incomplete(copies, name),
                fix=f"another remote: ovia-backup fetch {name} --from NAME; or an earlier state: --as-of TIME",
            )
        newest = f"the newest is {complete[0][0].filename}" if complete else "it has no complete copy"
        raise BackupNotFoundError(
            f"no copy called {wanted!r} of database {copies.chain.database} on remote {self.remote}",
            why=newest,
            fix="ovia-backup list --offsite",
        )

    def _continue_log(self, seen: int, listing: Listing) -> None:
        """Add the remote's statements to this machine's log, after checking them."""
        sequences, paths = range(seen + 1, listing.statement + 1), list[str]()
        # One that is missing ends the loop: the last number may be anything.
        for path in map(statement_path, sequences):
            for each in (path, path + SIGNATURE):
                if listing.sizes.get(each, MOST_BYTES + 1) > MOST_BYTES:
                    large = each in listing.sizes
                    raise self._broken(
                        each, f"it is larger than {human_bytes(MOST_BYTES)}" if large else "it is missing"
                    )
                paths.append(each)
        contents = read_objects(self.remote, listing, paths)
        for path in paths:
            if path not in contents:
                raise self._broken(path, "it was listed, and is gone")
        statements = {sequence: contents[statement_path(sequence)] for sequence in sequences}
        signatures = {sequence: contents[statement_path(sequence) + SIGNATURE] for sequence in sequences}
        extend(self.log, statements, signatures)

    def _broken(self, path: str, why: str) -> StatementLogError:
        fix = "use another remote; or an earlier state of this one: --as-of TIME"
        return StatementLogError(f"{path} on remote {self.remote} cannot be used", why=why, fix=fix)


def _without_copy(copies: Copies) -> list[str]:
    """The archives that are verified by the log, and have no complete copy, newest first."""
    complete = {name.filename for name, _ in copies.complete}
    good = (name for name, known in copies.chain.known.items() if known.standing in GOOD and name not in complete)
    return sorted((name for name in good if BackupName.parse(name)), key=_started, reverse=True)


def _started(archive: str) -> datetime:
    name = BackupName.parse(archive)
    assert name is not None
    return name.started_at


def _why_incomplete(copies: Copies, archive: str) -> str:
    """Why a copy that has receipts is not complete."""
    refused = [f"{path}: {why}" for path, why in copies.refused.items() if f"/{archive}/" in path]
    if archive not in copies.receipts:
        return refused[-1] if refused else "it has no receipt that counts"
    there = copies.there(archive)
    gone = [path for path in copies.sent(archive) if path not in there]
    return f"{gone[0]} was deleted or cut off there" if gone else "its receipts do not name its archive"


def _is(path: Path, size_bytes: int, sha256: str) -> bool:
    return path.stat().st_size == size_bytes and file_sha256(path) == sha256


def _require_room(folder: Path, size_bytes: int) -> None:
    """The ciphertext and the plain file are there together for a moment."""
    free = shutil.disk_usage(folder).free
    if free < 2 * size_bytes:
        raise VolumeError(
            f"{folder} has too little room",
            why=f"{human_bytes(2 * size_bytes)} are needed temporarily, and {human_bytes(free)} are free",
            fix="ovia-backup fetch BACKUP --to a folder with more room",
        )
