"""The marker and the signed log on a remote: made, compared with the volume's, and continued."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from ovia_backup_dagster.core.errors import CopyDamagedError, RemoteForeignError, RemoteMissingError
from ovia_backup_dagster.offsite.copies import Copies
from ovia_backup_dagster.offsite.layout import (
    MARKER,
    SIGNATURE,
    STATEMENTS,
    Listing,
    receipt_path,
    statement_path,
)
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.receipt import Marker, Receipt
from ovia_backup_dagster.offsite.small_objects import read_objects
from ovia_backup_dagster.signing.sshsig import SignatureError, public_key, verify
from ovia_backup_dagster.signing.statement_log import StatementLog


@dataclass(frozen=True, slots=True)
class RemoteLog:
    """One remote and the volume's log, which it continues."""

    remote: Remote
    log: StatementLog

    def initialize(self, now: datetime) -> Marker:
        """Make a remote ours by its marker; if it is ours already, nothing changes.

        Raises:
            RemoteForeignError: it is another database's, or holds other files.
            RemoteError: it cannot be used.
        """
        if self.remote.read(MARKER) is not None:
            return self.marker()
        listing = self.listing()
        # The signature precedes the marker: a run that was killed between the two is repeated.
        if others := listing.sizes.keys() - {MARKER + SIGNATURE}:
            raise RemoteForeignError(
                f"remote {self.remote} is not empty, and has no marker {MARKER}",
                why=f"it has {len(others):,} objects, such as {min(others)}",
                fix="give it an empty folder of its own: OFFSITE_REMOTES",
            )
        marker = Marker(id=secrets.token_hex(8), database=self.log.database, at=now)
        content = marker.to_json().encode()
        self.remote.write(MARKER + SIGNATURE, self.log.sign(content))
        self.remote.write(MARKER, content)
        return marker

    def listing(self) -> Listing:
        """All that the remote has.

        Raises:
            RemoteError: it cannot be listed whole.
        """
        return Listing.of({path: stored.size_bytes for path, stored in self.remote.listing().items()})

    def marker(self) -> Marker:
        """The remote's marker.

        Raises:
            RemoteMissingError: there is none: the path is wrong, or nothing is mounted there.
            RemoteForeignError: it is of another database or key.
            RemoteError: it cannot be read.
        """
        content = self.remote.read(MARKER)
        if content is None:
            raise self.no_marker()
        signature = self.remote.read(MARKER + SIGNATURE) or b""
        try:
            self.verify(content, signature)
            marker = Marker.model_validate_json(content)
        except (SignatureError, ValidationError) as error:
            raise RemoteForeignError(
                f"the marker of remote {self.remote} does not count",
                why=f"its signature is invalid: {error}" if isinstance(error, SignatureError) else "it is damaged",
                fix="use a folder of its own for each signing key: OFFSITE_REMOTES; then: ovia-backup offsite init "
                f"{self.remote}",
            ) from None
        if marker.database != self.log.database:
            raise RemoteForeignError(
                f"remote {self.remote} is of database {marker.database}",
                why=f"this is {self.log.database}",
                fix="give each database a folder of its own: OFFSITE_REMOTES",
            )
        return marker

    def no_marker(self) -> RemoteMissingError:
        """The error for a remote without its marker."""
        return RemoteMissingError(
            f"remote {self.remote} has no marker {MARKER}",
            why="it is new, its path is wrong, or its disk is not mounted; nothing is written or removed there",
            fix=f"if it is new: ovia-backup offsite init {self.remote}",
        )

    def verify(self, content: bytes, signature: bytes, *, since: int = 0) -> None:
        """Check the signature of a file of the remote.

        Args:
            since: a statement that the file names: a key that was replaced before it does not count.

        Raises:
            SignatureError: it is invalid.
        """
        chain = self.log.chain()
        for rotation in chain.rotations:
            if rotation.sequence >= since:
                with contextlib.suppress(SignatureError):
                    verify(public_key(rotation.old), content, signature)
                    return
        verify(public_key(chain.key), content, signature)

    def copies(self, marker: Marker, listing: Listing) -> Copies:
        """What the remote has, and which of its receipts count. Reads those that may.

        Raises:
            RemoteError: they cannot be read.
            StatementLogError, VolumeError: the log cannot be read.
        """
        chain = self.log.chain()
        # A receipt of a statement that was never made is not read, so that their number is bounded.
        paths = {
            receipt_path(archive, sequence): (archive, sequence)
            for archive, sequences in listing.receipts.items()
            for sequence in sequences
            if archive in chain.known
        }
        made = [path for path, (_, sequence) in paths.items() if sequence <= chain.head.sequence]
        contents = read_objects(self.remote, listing, [*made, *(path + SIGNATURE for path in made)])
        receipts: dict[str, list[Receipt]] = {}
        refused: dict[str, str] = {}
        for path, (archive, sequence) in paths.items():
            try:
                receipt = self._receipt(path, contents, sequence)
            except (SignatureError, ValidationError) as error:
                refused[path] = str(error).splitlines()[0]
                continue
            if (receipt.remote, receipt.backup, receipt.sequence) == (marker.id, archive, sequence):
                receipts.setdefault(archive, []).append(receipt)
            else:
                refused[path] = f"it is of {receipt.backup} on remote {receipt.remote}, and this is remote {marker.id}"
        return Copies(marker, listing, chain, receipts, refused)

    def _receipt(self, path: str, contents: Mapping[str, bytes], sequence: int) -> Receipt:
        """A receipt, after checking its signature.

        Raises:
            SignatureError: it is invalid.
            ValidationError: it has another form.
        """
        if path not in contents or path + SIGNATURE not in contents:
            raise SignatureError("it is too large, is gone again, or names a statement that was not made")
        self.verify(contents[path], contents[path + SIGNATURE], since=sequence)
        return Receipt.model_validate_json(contents[path])

    def require_ours(self, listing: Listing) -> None:
        """Refuse a remote whose log is not the beginning of the volume's.

        Raises:
            RemoteMissingError: the marker, which was read, is not in the listing.
            RemoteForeignError: another host continues it, or the volume's log is older.
            CopyDamagedError: a statement cannot be read.
            RemoteError: the remote cannot be read.
        """
        if MARKER not in listing.sizes:
            raise RemoteMissingError(
                f"remote {self.remote} cannot be listed whole",
                why=f"the listing lacks {MARKER}, which was read a moment ago: its disk or its network fails",
                fix=f"ovia-backup offsite verify {self.remote}",
            )
        if not listing.statement:
            return
        ours = self.log.chain().head.sequence
        if listing.statement > ours:
            raise RemoteForeignError(
                f"the log on remote {self.remote} has {listing.statement} statements, and the volume's has {ours}",
                why="another host writes to it, or the volume was put back to an earlier state",
                fix="if the volume was put back: ovia-backup fetch latest continues its log; otherwise give each host "
                "a folder of its own",
            )
        theirs = self.remote.read(statement_path(listing.statement))
        if theirs is None:
            raise CopyDamagedError(
                f"statement {listing.statement} on remote {self.remote} cannot be read",
                why="it was listed, and is gone",
                fix=f"ovia-backup offsite verify {self.remote}",
            )
        if hashlib.sha256(theirs).hexdigest() != self.log.files.sha256(listing.statement):
            raise RemoteForeignError(
                f"statement {listing.statement} on remote {self.remote} is not the volume's",
                why="another host writes to it, or it was forged: one of the two logs was rewritten",
                fix=f"ovia-backup log verify; ovia-backup offsite verify {self.remote}",
            )

    def continue_there(self, listing: Listing) -> int:
        """Send the statements that the remote lacks; returns how many it has then. Each is preceded by its signature.

        Raises:
            RemoteError: not all could be sent.
        """
        head = self.log.chain().head.sequence
        # From the first, so that one that was deleted there comes back.
        pairs = ((f"{sequence:08}.json", statement_path(sequence)) for sequence in range(1, head + 1))
        names = [name for name, path in pairs if not {path, path + SIGNATURE} <= listing.sizes.keys()]
        self.remote.add(self.log.path, [f"{name}{SIGNATURE}" for name in names], STATEMENTS)
        self.remote.add(self.log.path, names, STATEMENTS)
        return head
