"""One statement of the signed log: what became of a backup, and the files that count for it from then on.

A statement never changes. Its place among the others, and what all of them say together, belong to ``chain``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.manifest import Sidecar

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: The suffix of the archive itself among a backup's files.
ARCHIVE = ""


class Event(StrEnum):
    """What became of a backup."""

    BACKUP = "backup"
    PROMOTED = "promoted"
    EVIDENCE = "evidence"
    ADOPTED = "adopted"
    HELD = "held"
    REMOVED = "removed"


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


class SignedStatement(Sidecar):
    """``statements/00000042.json``, whose signature is ``statements/00000042.json.sig``.

    Attributes:
        version: of this format.
        sequence: its number, from 1, as in its file's name.
        previous: SHA-256 of the file of the statement before it; ``None`` for the first.
        database: the database whose backups the log is about.
        at: when it was made (UTC).
        expires_at: when a log that ends with it counts as cut off or stopped (UTC).
        event: what happened.
        backup: the archive's file name.
        files: from now on the only files that count for the backup: suffix -> file, the archive's suffix being empty.
        standing: what is known of the backup from now on.
        held_until: until when no retention removes the backup (UTC); ``None`` if it is not held.
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
