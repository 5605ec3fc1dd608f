"""The marker and the signed log on a remote: made, compared with the volume's, and continued."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from ovia_backup_dagster.core.errors import CopyDamagedError, RemoteForeignError, RemoteMissingError
from ovia_backup_dagster.offsite.layout import MARKER, SIGNATURE, STATEMENTS, Listing, statement_path
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.receipt import Marker
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
        listing = Listing.of({path: stored.size_bytes for path, stored in self.remote.listing().items()})
        if listing.sizes:
            raise RemoteForeignError(
                f"remote {self.remote} is not empty, and has no marker {MARKER}",
                why=f"it has {len(listing.sizes):,} objects, such as {next(iter(listing.sizes))}",
                fix="give it an empty folder of its own: OFFSITE_REMOTES",
            )
        marker = Marker(id=secrets.token_hex(8), database=self.log.database, at=now)
        content = marker.to_json().encode()
        self.remote.write(MARKER + SIGNATURE, self.log.sign(content))
        self.remote.write(MARKER, content)
        return marker

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
                why=f"its signature does not hold: {error}" if isinstance(error, SignatureError) else "it is damaged",
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

    def verify(self, content: bytes, signature: bytes) -> None:
        """Check the signature of a file of the remote, by the current key or one that it replaced.

        Raises:
            SignatureError: it does not hold.
        """
        chain = self.log.chain()
        for key in [chain.pinned, *(each.old for each in chain.rotations)]:
            with contextlib.suppress(SignatureError):
                verify(public_key(key), content, signature)
                return
        verify(public_key(chain.key), content, signature)

    def require_ours(self, listing: Listing) -> None:
        """Refuse a remote whose log is not the beginning of the volume's.

        Raises:
            RemoteForeignError: another host continues it, or the volume's log is older.
            CopyDamagedError: a statement cannot be read.
            RemoteError: the remote cannot be read.
        """
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
        names = [f"{sequence:08}.json" for sequence in range(listing.statement + 1, head + 1)]
        self.remote.add(self.log.path, [f"{name}{SIGNATURE}" for name in names], STATEMENTS)
        self.remote.add(self.log.path, names, STATEMENTS)
        return head
