"""The names of the objects on a remote. Pure.

::

    ovia-offsite.json(.sig)                   the marker: whose remote this is
    statements/00000042.json(.sig)            the signed log
    backups/<archive>/<archive>.age           the archive; the same for its manifest and its roles
    backups/<archive>/<archive><suffix>.<sha256>.age   a sidecar that may get a newer version
    backups/<archive>/receipt-00000042.json(.sig)      written last: all files as of statement 42 are there
    canary/...                                what a lock must protect

No object is ever overwritten, so that a store can lock all of them. Most stores cannot rename, and some show an object
before it is complete: so a backup is there if its receipt is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.sidecars import SIDECAR_KINDS

MARKER = "ovia-offsite.json"
SIGNATURE = ".sig"
STATEMENTS = "statements"
BACKUPS = "backups"
ENCRYPTED = ".age"
#: How much of a sidecar's SHA-256 its name has, in hex digits.
_VERSION_DIGITS = 16
#: A statement's number, from 1, as it is written: one spelling each, of at most 12 digits.
_NUMBER = r"(?!0{8}\.)([0-9]{8}|[1-9][0-9]{8,11})"
_STATEMENT = re.compile(rf"{STATEMENTS}/{_NUMBER}\.json(\.sig)?")
_RECEIPT = re.compile(rf"receipt-{_NUMBER}\.json(\.sig)?")
#: Suffixes of the files that never change once the dump is made, the archive's being empty.
IMMUTABLE = ("", *(kind.suffix for kind in SIDECAR_KINDS if kind.made_with_dump))


def statement_path(sequence: int) -> str:
    """Where a statement is; its signature is beside it, with ``.sig``."""
    return f"{STATEMENTS}/{sequence:08}.json"


def receipt_path(archive: str, sequence: int) -> str:
    """Where the receipt is for a backup's files as of a statement."""
    return f"{BACKUPS}/{archive}/receipt-{sequence:08}.json"


def file_path(archive: str, suffix: str, sha256: str) -> str:
    """Where a backup's file is, encrypted.

    Args:
        suffix: the sidecar's; empty for the archive.
        sha256: of the file before encryption, which distinguishes versions of a sidecar.
    """
    version = "" if suffix in IMMUTABLE else f".{sha256[:_VERSION_DIGITS]}"
    return f"{BACKUPS}/{archive}/{archive}{suffix}{version}{ENCRYPTED}"


@dataclass(frozen=True)
class Listing:
    """What a remote has, from one complete listing.

    Attributes:
        sizes: path below the remote -> bytes.
        statement: the highest number such that this statement and its signature are there; 0 for an empty log.
        receipts: archive -> the numbers of its receipts that have a signature, the newest last. Not checked yet.
        strangers: paths that are not of this layout.
    """

    sizes: Mapping[str, int]
    statement: int = 0
    receipts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Listing:
        """Sort the paths of a listing."""
        statements: dict[int, set[str]] = {}
        receipts: dict[str, dict[int, set[str]]] = {}
        strangers = []
        for path in sizes:
            if match := _STATEMENT.fullmatch(path):
                statements.setdefault(int(match[1]), set()).add(match[2] or "")
                continue
            folder, _, rest = path.partition("/")
            archive, _, filename = rest.partition("/")
            if folder == BACKUPS and BackupName.parse(archive):
                if match := _RECEIPT.fullmatch(filename):
                    receipts.setdefault(archive, {}).setdefault(int(match[1]), set()).add(match[2] or "")
                elif not _is_file(archive, filename):
                    strangers.append(path)
            elif path not in (MARKER, MARKER + SIGNATURE) and folder != CANARIES:
                strangers.append(path)
        return cls(
            sizes=sizes,
            statement=max(_complete(statements), default=0),
            receipts={name: found for name, each in receipts.items() if (found := tuple(sorted(_complete(each))))},
            strangers=tuple(sorted(strangers)),
        )

    def size_of(self, archive: str) -> int:
        """The bytes of everything that belongs to a backup."""
        return sum(self.sizes[path] for path in self.files_of(archive))

    def files_of(self, archive: str) -> list[str]:
        """The paths of everything that belongs to a backup, the receipts last: the order in which they are removed is
        the reverse.
        """
        prefix = f"{BACKUPS}/{archive}/"
        names = [path.removeprefix(prefix) for path in self.sizes if path.startswith(prefix)]
        receipts = sorted(name for name in names if _RECEIPT.fullmatch(name))
        return [f"{prefix}{name}" for name in (*sorted(name for name in names if _is_file(archive, name)), *receipts)]


#: Objects that a weekly verification tries to delete while they are locked.
CANARIES = "canary"


def _complete(parts: Mapping[int, Iterable[str]]) -> Iterator[int]:
    """The numbers of which both the file and its signature are there."""
    return (number for number, found in parts.items() if set(found) == {"", SIGNATURE})


def _is_file(archive: str, filename: str) -> bool:
    """Whether this is a name of one of a backup's files, encrypted."""
    return filename.startswith(archive) and filename.endswith(ENCRYPTED) and "/" not in filename
