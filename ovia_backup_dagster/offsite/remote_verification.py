"""Checks a remote weekly: each copy against its receipts, one to its last byte, the lock by a refused delete."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import CopyDamagedError, RemoteAccessError, RemoteError, RemoteLockedError
from ovia_backup_dagster.core.files import read_small
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.offsite.copies import Copies
from ovia_backup_dagster.offsite.copying import difference, exclusively
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.layout import CANARIES, SIGNATURE, Listing, file_path, statement_path
from ovia_backup_dagster.offsite.rclone import Remote, Stored
from ovia_backup_dagster.offsite.receipt import CopiedFile
from ovia_backup_dagster.offsite.remote_configuration import require_configured
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.offsite.remote_record import ReadBack, RemoteRecord
from ovia_backup_dagster.offsite.small_objects import read_objects
from ovia_backup_dagster.offsite.transfer import digest_of, plain_digest_of
from ovia_backup_dagster.signing.statement import ARCHIVE
from ovia_backup_dagster.signing.statement_log import StatementLog

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RemoteVerified:
    """What a verification found.

    Attributes:
        copies: the archives of the complete copies, oldest first.
        copies_bytes: their size on the remote.
        findings: what is wrong, a line each; empty if all is well.
        notes: what is odd and harms nothing, such as files of others.
        read_back: the copy that was read whole; ``None`` if there is none.
        free_bytes: the room that is left, if the store says so.
    """

    copies: tuple[str, ...]
    copies_bytes: int
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    read_back: ReadBack | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class RemoteVerifier:
    """The weekly check of one remote.

    Attributes:
        age: with an identity, the copy that is read back is decrypted; otherwise its ciphertext is compared.
        expected: what this host knows of the remote.
    """

    catalog: Catalog
    log: StatementLog
    remote: Remote
    age: Age
    expected: RemoteRecord

    def verify(self, now: datetime, log: Log) -> RemoteVerified:
        """Check everything that can be checked without a restore.

        Raises:
            RemoteError: the remote cannot be used; damaged or missing copies are findings, and no error.
            SettingsError, ProgramMissingError, StatementLogError, VolumeError: it cannot be checked.
            LockHeldError: another process works on this remote.
        """
        require_configured(self.remote)
        remote_log = RemoteLog(self.remote, self.log)
        with exclusively(self.catalog.root, self.remote):
            marker = remote_log.marker()
            stored = self.remote.listing(hashes=self.remote.has_cheap_hashes())
            listing = Listing.of({path: each.size_bytes for path, each in stored.items()})
            remote_log.require_ours(listing)
            copies = remote_log.copies(marker, listing)
            names = sorted(name.filename for name, _ in copies.complete)
            findings = [*self._statement_findings(copies), *vanished(self.remote, self.expected.copies, names)]
            findings += [f"{path} on {self.remote} does not count: {why}" for path, why in copies.refused.items()]
            archives: dict[str, CopiedFile] = {}
            for name in sorted(copies.receipts):
                wrong = list(self._differences(copies.sent(name).values(), stored))
                findings += wrong
                if name in names and not wrong:
                    # Of what differs already, nothing need be read: it may have become any size.
                    path = file_path(name, ARCHIVE, copies.chain.known[name].files[ARCHIVE].sha256)
                    archives[name] = copies.sent(name)[path]
            read_back = self._read_back(archives, now, log)
            if read_back is not None and not read_back.good:
                findings.append(f"{read_back.backup} on {self.remote} was read back, and is not what was sent")
            findings += self._lock_findings(now)
        others = [archive for archive in listing.receipts if archive not in copies.chain.known]
        notes = [f"no statement vouches for {archive} on {self.remote}" for archive in others]
        notes += [f"{path} on {self.remote} is not of this program" for path in listing.strangers]
        size = sum(map(copies.size_of, names))
        return RemoteVerified(tuple(names), size, tuple(findings), tuple(notes), read_back, self.remote.free_bytes())

    def _statement_findings(self, copies: Copies) -> Iterator[str]:
        """Compare each statement and signature with the volume's: the log's hashes cover one that was changed, but the
        remote is of no use then.
        """
        vouched = [receipt.sequence for receipts in copies.receipts.values() for receipt in receipts]
        last = max([copies.listing.statement, *vouched])
        ours = {statement_path(each): self.log.files.file(each) for each in range(1, last + 1)}
        ours |= {path + SIGNATURE: file.with_name(f"{file.name}{SIGNATURE}") for path, file in ours.items()}
        theirs = read_objects(self.remote, copies.listing, ours)
        for path in sorted(ours):
            if path not in copies.listing.sizes:
                yield f"{path} is missing on {self.remote}"
            elif theirs.get(path) != read_small(ours[path]):
                yield f"{path} on {self.remote} is not the volume's"

    def _differences(self, files: Iterable[CopiedFile], stored: Mapping[str, Stored]) -> Iterator[str]:
        for file in files:
            if wrong := difference(file, stored.get(file.path)):
                yield f"{file.path} on {self.remote}: {wrong}"

    def _read_back(self, archives: Mapping[str, CopiedFile], now: datetime, log: Log) -> ReadBack | None:
        """Read one copy whole: the one after the copy that was read last, so that each has its turn."""
        if not archives:
            return None
        last = self.expected.read_back.backup if self.expected.read_back else ""
        name = min((name for name in archives if name > last), default=min(archives))
        file, decrypted = archives[name], self.age.identity is not None
        log(f"{self.remote}: reading {name} back, {human_bytes(file.size_bytes)}")
        try:
            if decrypted:
                stated = self.log.chain().known[name].files[ARCHIVE]
                good = plain_digest_of(self.remote, file.path, self.age) == (stated.size_bytes, stated.sha256)
            else:
                good = digest_of(self.remote, file.path) == (file.size_bytes, file.sha256)
        except CopyDamagedError:
            good = False
        return ReadBack(at=now, backup=name, decrypted=decrypted, good=good)

    def _lock_findings(self, now: datetime) -> Iterator[str]:
        """Try to delete a locked object: a lock that only reads back proves nothing."""
        if not self.remote.lock_days:
            return
        name = f"{now:%Y-%m-%d_%H%M%S}"
        try:
            self.remote.write(f"{CANARIES}/{name}", f"{now.isoformat()}\n".encode())
        except RemoteError as error:
            yield f"the lock of {self.remote} could not be tested: {error.account}"
            return
        # Some stores say only that access is denied.
        with contextlib.suppress(RemoteLockedError, RemoteAccessError):
            self.remote.delete_for_good(CANARIES, [name])
            yield f"{self.remote} deleted an object that OFFSITE_LOCK_DAYS={self.remote.lock_days} should have locked"


def vanished(remote: Remote, expected: Iterable[str], there: Collection[str]) -> list[str]:
    """A finding for each copy that was there, and that this host did not remove."""
    gone = [archive for archive in expected if archive not in there]
    return [f"{archive} was on {remote}, and is gone or hidden: this host did not remove it" for archive in gone]
