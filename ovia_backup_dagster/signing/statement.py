"""One statement of the signed log: what became of a backup, and the files that count for it from then on.

Two kinds are about no backup: a sign of life, and the replacement of the key. A statement never changes. Its place
among the others, and what all of them say together, belong to ``chain``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from ovia_backup_dagster.core.manifest import Sidecar

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: A public key of type Ed25519 as OpenSSH writes it, without a comment.
PublicKeyText = Annotated[str, Field(pattern=r"^ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}$")]
#: The suffix of the archive itself among a backup's files.
ARCHIVE = ""


class Event(StrEnum):
    """What became of a backup; or, about no backup, that the host still signs, or with which key from now on."""

    BACKUP = "backup"
    PROMOTED = "promoted"
    EVIDENCE = "evidence"
    ADOPTED = "adopted"
    HELD = "held"
    REMOVED = "removed"
    ALIVE = "alive"
    KEYS = "keys"

    @property
    def is_about_a_backup(self) -> bool:
        return self not in (Event.ALIVE, Event.KEYS)


class Standing(StrEnum):
    """What was known of a backup when a statement about it was made, for readers who have only the log."""

    UNVERIFIED = "unverified"
    BAD = "bad"
    VERIFIED = "verified"
    PROVEN = "proven"


class SignedFile(Sidecar):
    """A file as it was written.

    Attributes:
        size_bytes: its length.
        sha256: its hex digest.
    """

    size_bytes: int
    sha256: Digest

    @classmethod
    def of(cls, content: bytes) -> Self:
        """The facts about this content."""
        return cls(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class KeyChange(Sidecar):
    """The replacement of the key. The statement about it is signed by the old key, and all later ones by the new key.

    Attributes:
        old: the public key that is replaced.
        new: the public key that counts from the next statement on.
    """

    old: PublicKeyText
    new: PublicKeyText


class SignedStatement(Sidecar):
    """``statements/00000042.json``, whose signature is ``statements/00000042.json.sig``.

    Attributes:
        version: of this format.
        sequence: its number, from 1, as in its file's name.
        previous: SHA-256 of the file of the statement before it; ``None`` for the first.
        database: the database whose backups the log is about.
        at: when it was made (UTC).
        expires_at: when a log whose last statement is this one counts as cut off, or its host as stopped (UTC).
        event: what happened.
        backup: the archive's file name; empty if the event is about no backup.
        files: from now on the only files that count for the backup: suffix -> file, the archive's suffix being empty.
        standing: what is known of the backup from now on.
        held_until: until when no retention removes the backup (UTC); ``None`` if it is not held.
        keys: the old and the new key of the event ``keys``; not in the files of other statements.
    """

    version: Literal[1] = 1
    sequence: int = Field(ge=1)
    previous: Digest | None
    database: str
    at: AwareDatetime
    expires_at: AwareDatetime
    event: Event
    backup: str
    files: Mapping[str, SignedFile] = Field(default_factory=dict)
    standing: Standing = Standing.UNVERIFIED
    held_until: AwareDatetime | None = None
    keys: KeyChange | None = None

    @model_validator(mode="after")
    def _require_what_the_event_needs(self) -> Self:
        if self.event.is_about_a_backup is not bool(self.backup):
            raise ValueError(
                f"a statement {self.event.value} names {'a' if self.event.is_about_a_backup else 'no'} backup"
            )
        if self.files and not self.event.is_about_a_backup:
            raise ValueError(f"a statement {self.event.value} has no files")
        if (self.event is Event.KEYS) is not (self.keys is not None):
            raise ValueError("the event keys, and no other, names an old and a new key")
        return self

    def to_json(self) -> str:
        """The text that is written to disk, with a final newline."""
        return self.model_dump_json(indent=1, exclude=None if self.keys else {"keys"}) + "\n"
