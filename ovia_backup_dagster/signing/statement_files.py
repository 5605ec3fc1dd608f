"""The files of a signed log: ``00000042.json`` and ``00000042.json.sig``, their lock, and how they are written.

What is in them belongs to ``statement_log`` and ``chain``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.files import NOTE_BYTES, as_volume_error, read_small, sync_folder, write_whole
from ovia_backup_dagster.core.reserve import with_reserve
from ovia_backup_dagster.signing.chain import broken

LOCK, SIGNATURE = ".lock", ".sig"
_NAME = re.compile(r"\d{8,}\.json")


@dataclass(frozen=True)
class StatementFiles:
    """The files of one log.

    Attributes:
        root: the backup folder.
        path: the log's folder.
    """

    root: Path
    path: Path

    def file(self, sequence: int) -> Path:
        """The file of a statement."""
        return self.path / f"{sequence:08}.json"

    def contents(self, first: int) -> Iterator[bytes]:
        """The files of the statements from this number on.

        Raises:
            StatementLogError: one is missing, and a later one is there.
            VolumeError: one cannot be read.
        """
        with as_volume_error(f"cannot list {self.path}", passing=FileNotFoundError):
            try:
                names = [name for name in os.listdir(self.path) if _NAME.fullmatch(name)]
            except FileNotFoundError:
                return
        last = max((int(name.partition(".")[0]) for name in names), default=0)
        for sequence in range(first, last + 1):
            try:
                yield read_small(self.file(sequence))
            except FileNotFoundError:
                raise broken(f"statement {sequence} is missing", f"statement {last} is there") from None

    def signature(self, sequence: int) -> bytes:
        """The signature of a statement.

        Raises:
            StatementLogError: it is missing.
            VolumeError: it cannot be read.
        """
        path = _signature_of(self.file(sequence))
        try:
            return read_small(path, NOTE_BYTES)
        except FileNotFoundError:
            raise broken(f"statement {sequence} has no signature", f"{path} is missing") from None

    def sha256(self, sequence: int) -> str | None:
        """Hex SHA-256 of a statement's file; ``None`` if it is gone."""
        try:
            return hashlib.sha256(read_small(self.file(sequence))).hexdigest()
        except FileNotFoundError:
            return None

    def changed_ns(self) -> int:
        """When a statement was added last, or a file of the folder renamed or removed."""
        with as_volume_error(f"cannot read {self.path}", passing=FileNotFoundError):
            try:
                return os.stat(self.path).st_mtime_ns
            except FileNotFoundError:
                return 0

    def write(self, sequence: int, content: bytes, signature: bytes) -> None:
        """Write the signature and then its statement, so that a reader who sees a statement sees its signature.

        Raises:
            VolumeError: one cannot be written.
        """
        path = self.file(sequence)
        with as_volume_error(f"cannot write {path}"):
            for target, text in ((_signature_of(path), signature), (path, content)):
                with_reserve(self.root, lambda target=target, text=text: write_whole(target, text))  # type: ignore[misc]
            sync_folder(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One statement at a time: drills and dumps run side by side."""
        with as_volume_error(f"cannot use the folder {self.path}"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with as_volume_error(f"cannot lock {self.path / LOCK}"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _signature_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{SIGNATURE}")
