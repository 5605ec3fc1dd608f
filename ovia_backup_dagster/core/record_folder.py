"""A folder on the volume for records, each written once with a page for people, and for notes of instants.

The modules of such folders (``drill.folder``, ``restoration.folder``) define the content and file name of a record.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError, StrangeFileError, VolumeError
from ovia_backup_dagster.core.files import (
    NOTE_BYTES,
    WITNESS_BYTES,
    as_volume_error,
    exists,
    is_folder,
    read_small,
    sync_folder,
)
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar

RECORD = ".json"
_PAGE = ".md"
M = TypeVar("M", bound=Sidecar)


class RecordFolder:
    """A folder of records.

    Args:
        catalog: the volume's catalog.
        name: the folder's name.
    """

    def __init__(self, catalog: Catalog, name: str) -> None:
        self._catalog = catalog
        self.path = catalog.root / name

    def _write_once(self, filename: str, record: Sidecar, page: str) -> Path:
        """Write a record, with its page; returns the record's path.

        Args:
            filename: the name of both files, without the suffix.
            record: the record.
            page: the same for people, in Markdown.

        Raises:
            VolumeError, DiskFullError: the volume refused, or the record exists already.
        """
        path = self.path / f"{filename}{RECORD}"
        with as_volume_error(f"cannot write {path}"):
            if exists(path):
                raise VolumeError(f"{path} exists already", why="a record is never rewritten", fix=f"read {path}")
            self._catalog.write(path, record.to_json().encode())
            self._catalog.write(path.with_suffix(_PAGE), page.encode())
            sync_folder(self.path)
        return path

    def _paths(self, wanted: Callable[[str], object]) -> list[Path]:
        """The files with wanted names, sorted by name, last first; none if the folder does not exist.

        Raises:
            VolumeError: the folder cannot be read.
        """
        with as_volume_error(f"cannot list {self.path}", passing=FileNotFoundError):
            try:
                names = sorted(filter(wanted, os.listdir(self.path)), reverse=True)
            except FileNotFoundError:
                return []
        return [path for path in (self.path / name for name in names) if not is_folder(path)]

    def _read(self, model: type[M], paths: Iterable[Path]) -> Iterator[M]:
        """The records in these files, without those that cannot be parsed and without other programs' files.

        Raises:
            VolumeError: a file cannot be read.
        """
        for path in paths:
            try:
                text = read_small(path, WITNESS_BYTES)
            except (FileNotFoundError, StrangeFileError):
                continue  # a link or a FIFO; the doctor reports it
            with contextlib.suppress(BackupError):
                yield parse_sidecar(model, text, path.name)

    def _note_instant(self, path: Path, now: datetime) -> None:
        """Record an instant (UTC).

        Raises:
            VolumeError: it cannot be written.
        """
        with as_volume_error(f"cannot use the folder {self.path}"):
            self._catalog.write(path, f"{now.isoformat()}\n".encode())

    def _noted_instant(self, path: Path) -> datetime | None:
        """The recorded instant (UTC); ``None`` if none was recorded, or if the file does not contain one."""
        with contextlib.suppress(OSError, ValueError, VolumeError):
            found = datetime.fromisoformat(read_small(path, NOTE_BYTES).decode().strip())
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        return None
