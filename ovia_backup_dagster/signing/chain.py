"""What all statements of a log say together. Pure: bytes in, a state or an error out.

Each statement names the SHA-256 of the one before it, so that the signature of the last one covers all. The order of
the checks follows The Update Framework: signature, form, place, database, time. Files belong to ``statement_log``.

The key may change on the way: a statement ``keys``, signed by the old key, names the new one, which signs all later
statements. A reader knows one key of the log's history. With the newest, the last signature covers all. With an older
one, the reader goes in legs: each ends with the statement with which its key hands over to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from pydantic import ValidationError

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE
from ovia_backup_dagster.core.errors import StatementLogError
from ovia_backup_dagster.signing.sshsig import SignatureError, public_key, verify
from ovia_backup_dagster.signing.statement import Event, KeyChange, SignedFile, SignedStatement, Standing

Files = Mapping[str, SignedFile]


@dataclass(frozen=True, slots=True)
class Head:
    """The last statement of a log.

    Attributes:
        sequence: its number; 0 for an empty log.
        sha256: of its file; ``None`` for an empty log.
        at: when it was made (UTC); ``None`` for an empty log.
        expires_at: until when the log counts as current (UTC); ``None`` for an empty log.
    """

    sequence: int = 0
    sha256: str | None = None
    at: datetime | None = None
    expires_at: datetime | None = None

    def __str__(self) -> str:
        return f"{self.sequence} {self.sha256 or 'empty'}"


@dataclass(frozen=True, slots=True)
class Rotation:
    """A replacement of the key.

    Attributes:
        sequence: the number of the statement about it, the last that the old key signs.
        old, new: the public keys, as OpenSSH writes them.
    """

    sequence: int
    old: str
    new: str


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
        pinned: the public key that the reader knows, as OpenSSH writes it: one of the log's history.
        head: the last statement.
        known: archive's file name -> what was stated last, also of backups that the volume no longer has.
        removed: the archives that were removed from the volume.
        rotations: the replacements of the key, in order.
    """

    database: str
    pinned: str
    head: Head = Head()
    known: Mapping[str, Known] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    rotations: tuple[Rotation, ...] = ()

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

    @property
    def key(self) -> str:
        """The public key that must sign the next statement."""
        return self.rotations[-1].new if self.rotations else self.pinned

    def signer_of(self, sequence: int) -> str:
        """The public key that was current when this statement was made."""
        return next((each.old for each in self.rotations if each.sequence >= sequence), self.key)

    def followed_by(self, contents: Sequence[bytes], signatures: Mapping[int, bytes], now: datetime) -> Chain:
        """The log with the statements that follow.

        Args:
            contents: their files, in order; at least one.
            signatures: number -> signature: of the last of them, and of those that :func:`claims_of_a_new_key` names.
            now: the instant (UTC) that no statement may lie after.

        Raises:
            StatementLogError: a signature is invalid, or a statement is not the next one of this log.
        """
        chain = self
        while contents:
            number = chain._signed_by_the_key(contents, signatures)
            signer = chain.key
            chain, contents = chain._with(contents[:number], now), contents[number:]
            if chain.signer_of(chain.head.sequence) != signer:
                why = "the key that signed it was not the current one"
                raise broken(f"the signature of statement {chain.head.sequence} does not count", why)
        return chain

    def _signed_by_the_key(self, contents: Sequence[bytes], signatures: Mapping[int, bytes]) -> int:
        """How many of the statements the current key vouches for: up to the first where it may hand over, else all."""
        key, before = public_key(self.key), self.head.sequence
        for sequence in sorted(number for number in signatures if before < number < before + len(contents)):
            try:
                verify(key, contents[sequence - before - 1], signatures[sequence])
            except SignatureError:
                continue  # made with an earlier key; or forged, in which case a later signature is found invalid
            return sequence - before
        last = before + len(contents)
        try:
            verify(key, contents[-1], signatures[last])
        except SignatureError as error:
            raise broken(f"the signature of statement {last} is invalid", str(error)) from None
        return len(contents)

    def _with(self, contents: Sequence[bytes], now: datetime) -> Chain:
        """The log with these statements, the last of which is signed."""
        last = self.head.sequence + len(contents)
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
        known, removed, rotations = dict(self.known), set(self.removed), self.rotations
        for statement, _ in reversed(statements):
            self._require_ours(statement, now)
            if statement.keys is not None:
                rotations = (*rotations, self._rotation(statement.sequence, statement.keys, rotations))
            elif statement.event is Event.REMOVED:
                removed.add(statement.backup)
            elif statement.event.is_about_a_backup:
                if statement.event is not Event.HELD:  # which may be about one that is only elsewhere
                    removed.discard(statement.backup)
                files = MappingProxyType(dict(statement.files))
                about = Known(statement.sequence, files, statement.standing, statement.held_until)
                known[statement.backup] = about
        newest, sha256 = statements[0]
        head = Head(last, sha256, newest.at, newest.expires_at)
        return replace(self, head=head, known=known, removed=frozenset(removed), rotations=rotations)

    def _rotation(self, sequence: int, keys: KeyChange, before: Sequence[Rotation]) -> Rotation:
        """A replacement of the key that is current: the last new one, else the known one if statements were read."""
        current = before[-1].new if before else self.pinned if self.head.sequence else keys.old
        if keys.old != current:
            raise broken(f"statement {sequence} does not count", "it replaces a key that was not current")
        if keys.new in (keys.old, *(each.old for each in before)):
            raise broken(f"statement {sequence} does not count", "its new key is one that was replaced")
        return Rotation(sequence, keys.old, keys.new)

    def _require_ours(self, statement: SignedStatement, now: datetime) -> None:
        if statement.database != self.database:
            why = f"statement {statement.sequence} is about {statement.database}"
            raise broken(f"the log is not of database {self.database}", why)
        if statement.at > now + CLOCK_TOLERANCE:
            why = f"it is of {statement.at:%Y-%m-%d %H:%M} UTC: a clock is wrong, or was when it was made"
            raise broken(f"statement {statement.sequence} is from the future", why)


def claims_of_a_new_key(contents: Iterable[bytes], first: int) -> list[int]:
    """The numbers of the statements that may replace the key, seen without parsing, as nothing is proven yet.

    Args:
        contents: of statements, in order.
        first: the number of the first of them.
    """
    return [number for number, content in enumerate(contents, first) if _CLAIM in content]


#: As :meth:`SignedStatement.to_json` writes it. In another statement it costs one signature to check.
_CLAIM = f'"{Event.KEYS.value}"'.encode()


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
