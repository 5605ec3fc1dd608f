"""Backup file names <-> (database, tier, UTC instant), and the names that a restore gives to databases.

Only this module knows the form of a backup's file name, whether of this program or of the old ``backup.sh`` (the same
pattern, without encoding of the database's name). ``catalog`` lists folders, ``postgres`` queries databases.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from ovia_backup_dagster.core.tiers import Tier

SUFFIX = ".dump"
#: The position of the instant in a backup's file name; as text, instants sort by time.
INSTANT = slice(-len("2026-02-21_030000.dump"), -len(SUFFIX))
_PATTERN = re.compile(
    rf"(?P<database>.+)_(?P<tier>{'|'.join(Tier)})_(?P<at>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}_[0-9]{{6}})\.dump", re.DOTALL
)
_SAFE = re.compile(r"[A-Za-z0-9_-]*")
#: PostgreSQL's limit for a name, in bytes.
NAME_BYTES = 63
_STAMP = "%Y%m%d%H%M%S"
_BEFORE = re.compile(r".*_before_(?P<at>[0-9]{14})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class BackupName:
    """The parts of a backup's name: the database, the tier, and when the dump began.

    Attributes:
        database: the database's name in PostgreSQL, not encoded.
        tier: the tier.
        started_at: aware, UTC, whole seconds.
    """

    database: str
    tier: Tier
    started_at: datetime

    def __post_init__(self) -> None:
        if self.started_at.utcoffset() is None:
            raise ValueError("started_at must be an aware datetime")
        # Normalize once, so that equal instants give equal names.
        object.__setattr__(self, "started_at", self.started_at.astimezone(UTC).replace(microsecond=0))

    @property
    def filename(self) -> str:
        """The file's name, without a folder: ``ovia_daily_2026-02-21_030000.dump``."""
        # isoformat pads years below 1000, which strftime does not on every platform.
        stamp = self.started_at.replace(tzinfo=None).isoformat("_").replace(":", "")
        return f"{encode_database(self.database)}_{self.tier}_{stamp}{SUFFIX}"

    @classmethod
    def parse(cls, filename: str) -> BackupName | None:
        """Parse a file's name; ``None`` if it is not a backup's name: other files are left alone."""
        match = _PATTERN.fullmatch(filename)
        if match is None:
            return None
        try:
            at = datetime.fromisoformat(match["at"]).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(_decode_database(match["database"]), Tier.named(match["tier"]), at)


def is_utf8(name: str) -> bool:
    """Whether a name is valid UTF-8: a file's name may be any bytes; Python represents invalid ones as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def restore_name(database: str, at: datetime) -> str:
    """``<database>_restore_20260221030000``: the name of the copy that will replace the database.

    Args:
        database: the database's name.
        at: aware, with a four-digit year.
    """
    return _beside(database, "restore", at)


def before_name(database: str, at: datetime) -> str:
    """``<database>_before_20260221030000``: the name of a database that was replaced at this instant."""
    return _beside(database, "before", at)


def before_at(name: str, database: str) -> datetime | None:
    """When the database with this name was replaced; ``None`` if :func:`before_name` did not form the name."""
    match = _BEFORE.fullmatch(name)
    if match is None:
        return None
    try:
        at = datetime.strptime(match["at"], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None
    return at if before_name(database, at) == name else None


def _beside(database: str, word: str, at: datetime) -> str:
    suffix = f"_{word}_{at.astimezone(UTC).strftime(_STAMP)}"
    room = NAME_BYTES - len(suffix)
    if len(database.encode()) > room:
        # A hash distinguishes two long names, so that a database is not mistaken for another one's replaced database.
        mark = f"_{hashlib.sha256(database.encode()).hexdigest()[:6]}"
        database = database.encode()[: room - len(mark)].decode("utf-8", "ignore") + mark
    return database + suffix


def encode_database(database: str) -> str:
    """Percent-encode all but ``[A-Za-z0-9_-]``, so that no database name can leave its folder or hide a file."""
    return "".join(c if _SAFE.fullmatch(c) else _encode_char(c) for c in database)


def _encode_char(char: str) -> str:
    # quote() never encodes "." and "~", but our names must encode them.
    # A file's name need not be UTF-8; Python represents such bytes as surrogates.
    return quote(char, safe="", errors="surrogateescape") if char not in ".~" else f"%{ord(char):02X}"


def _decode_database(encoded: str) -> str:
    """Undo :func:`encode_database`; a text that it cannot have produced (``my.db``) is returned unchanged."""
    try:
        decoded = unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        return encoded
    return decoded if encode_database(decoded) == encoded else encoded
