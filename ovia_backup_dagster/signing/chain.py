"""What all statements of a log say together. Pure: bytes in, a state or an error out.

Each statement names the SHA-256 of the one before it, so that the signature of the last one covers all. The order of
the checks follows The Update Framework: signature, form, place, database, time. Files belong to ``statement_log``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE
from ovia_backup_dagster.core.errors import StatementLogError
from ovia_backup_dagster.signing.sshsig import SignatureError, verify
from ovia_backup_dagster.signing.statement import Event, SignedFile, SignedStatement, Standing

Files = Mapping[str, SignedFile]


@dataclass(frozen=True, slots=True)
class Head:
    """The last statement of a log.

    Attributes:
        sequence: its number; 0 for an empty log.
        sha256: of its file; ``None`` for an empty log.
        expires_at: until when the log counts as current (UTC); ``None`` for an empty log.
    """

    sequence: int = 0
    sha256: str | None = None
    expires_at: datetime | None = None

    def __str__(self) -> str:
        return f"{self.sequence} {self.sha256 or 'empty'}"


@dataclass(frozen=True, slots=True)
class Known:
    """What the last statement about a backup says that names its files.

    Attributes:
        sequence: the statement's number.
        files: suffix -> file, the archive's suffix being empty.
        standing: what was known of it.
        held_until: until when no retention removes it (UTC).
    """

    sequence: int
    files: Files
    standing: Standing = Standing.UNVERIFIED
    held_until: datetime | None = None


@dataclass(frozen=True)
class Chain:
    """A log as far as it was read.

    Attributes:
        database: whose log it is.
        head: the last statement.
        known: archive's file name -> what was stated last, also of backups that the volume no longer has.
        removed: the archives that were removed from the volume.
    """

    database: str
    head: Head = Head()
    known: Mapping[str, Known] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    @property
    def backups(self) -> Mapping[str, Files]:
        """The files that count on the volume, by the archive's file name."""
        return {name: known.files for name, known in self.known.items() if name not in self.removed}

    def files_of(self, archive: str, *, on_volume: bool = True) -> Files:
        """The files that count for a backup; empty if no statement vouches for it.

        Args:
            on_volume: whether it is about the volume, where a removed backup no longer counts. A copy elsewhere
                outlives the removal.
        """
        if archive not in self.known or (on_volume and archive in self.removed):
            return {}
        return self.known[archive].files

    def followed_by(self, contents: list[bytes], signature: bytes, key: Ed25519PublicKey, now: datetime) -> Chain:
        """The log with the statements that follow.

        Args:
            contents: their files, in order; at least one.
            signature: of the last of them.
            key: the only key that counts.
            now: the instant (UTC) that no statement may lie after.

        Raises:
            StatementLogError: the signature does not hold, or a statement is not the next one of this log.
        """
        last = self.head.sequence + len(contents)
        try:
            verify(key, contents[-1], signature)
        except SignatureError as error:
            raise broken(f"the signature of statement {last} does not hold", str(error)) from None
        # Walk back first: what the signature does not cover is not parsed.
        statements: list[tuple[SignedStatement, str]] = []
        wanted = hashlib.sha256(contents[-1]).hexdigest()
        for sequence, content in zip(range(last, self.head.sequence, -1), reversed(contents), strict=True):
            found = hashlib.sha256(content).hexdigest()
            if found != wanted:
                raise broken(f"statement {sequence} was changed", "the statement after it names another SHA-256")
            statement = _parsed(content, sequence)
            statements.append((statement, found))
            wanted = statement.previous or ""
        if wanted != (self.head.sha256 or ""):
            why = f"statement {self.head.sequence + 1} does not follow statement {self.head.sequence} as it was read"
            raise broken("the log was rewritten", why)
        known, removed = dict(self.known), set(self.removed)
        for statement, _ in reversed(statements):
            self._require_ours(statement, now)
            name = statement.backup
            if statement.event is Event.REMOVED:
                removed.add(name)
                continue
            removed.discard(name)
            files = MappingProxyType(dict(statement.files))
            known[name] = Known(statement.sequence, files, statement.standing, statement.held_until)
        newest, sha256 = statements[0]
        head = Head(last, sha256, newest.expires_at)
        return replace(self, head=head, known=known, removed=frozenset(removed))

    def _require_ours(self, statement: SignedStatement, now: datetime) -> None:
        if statement.database != self.database:
            why = f"statement {statement.sequence} is about {statement.database}"
            raise broken(f"the log is not of database {self.database}", why)
        if statement.at > now + CLOCK_TOLERANCE:
            why = f"it is of {statement.at:%Y-%m-%d %H:%M} UTC: a clock is wrong, or was when it was made"
            raise broken(f"statement {statement.sequence} is from the future", why)


def broken(what: str, why: str) -> StatementLogError:
    """The error of a log that cannot be trusted."""
    return StatementLogError(
        what,
        why=why,
        fix="see which statement: ovia-backup log verify; restore the folder statements/ from a copy, or compare its "
        "head with the one that you noted",
    )


def _parsed(content: bytes, sequence: int) -> SignedStatement:
    try:
        # Signed, so not forged: one parser is enough, and ten years of statements are read in a second.
        statement = SignedStatement.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise broken(
            f"statement {sequence} cannot be read", f"a newer ovia-backup may have written it: {why}"
        ) from None
    if statement.sequence != sequence:
        raise broken(f"statement {sequence} is in the wrong place", f"it says that it is number {statement.sequence}")
    return statement
