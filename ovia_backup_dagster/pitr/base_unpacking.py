"""Unpacks a base backup into a folder, for a server that recovers it. ``base_verification`` says whether it is good."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from ovia_backup_dagster.core.files import reader
from ovia_backup_dagster.core.pitr_errors import BaseBackupError
from ovia_backup_dagster.pitr.base_manifest import TAR
from ovia_backup_dagster.pitr.bases import BaseBackup
from ovia_backup_dagster.pitr.tar_stream import ByteStream, TarFormatError, tar_entries
from ovia_backup_dagster.postgres.local_cluster import account

_TABLESPACE_MAP = "tablespace_map"


def unpack_base(base: BaseBackup, data: Path, tablespaces: Path) -> None:
    """Unpack a base backup. The files belong to the account that runs servers.

    Args:
        base: the base backup.
        data: the data directory; it must not exist.
        tablespaces: where the other tablespaces go, each into a folder with its OID.

    Raises:
        BaseBackupError: a tar file is damaged.
        VolumeError: the base backup cannot be read.
        OSError: the folder cannot be written.
    """
    _make_folder(data)
    for name in sorted(base.manifest.files):
        match = TAR.fullmatch(name)
        if match is None:
            continue
        target = data
        if match[1] != "base":
            target = tablespaces / match[1]
            target.parent.mkdir(mode=0o700, exist_ok=True)
            _own(target.parent)
            _make_folder(target)
        try:
            with _opened(base.folder / name) as source:
                _unpack(source, target)
        except (TarFormatError, zstandard.ZstdError, gzip.BadGzipFile, EOFError) as error:
            raise BaseBackupError(
                f"base backup {base} is damaged",
                why=f"{name} cannot be unpacked",
                said=str(error),
                fix="ovia-backup recovery-window; then use an older base backup, and make a new one",
            ) from None
    _move_tablespaces(base, data, tablespaces)


@contextmanager
def _opened(path: Path) -> Iterator[ByteStream]:
    with reader(path) as file:
        if path.suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
                yield stream
        elif path.suffix == ".gz":
            with gzip.open(file) as unzipped:
                yield unzipped
        else:
            yield file


def _unpack(source: ByteStream, target: Path) -> None:
    for entry, content in tar_entries(source):
        path = target / os.fsdecode(entry.path)
        if not entry.is_file:
            if not path.is_dir():
                _make_folder(path)
            continue
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            _own(file)
            file.writelines(content)


def _move_tablespaces(base: BaseBackup, data: Path, tablespaces: Path) -> None:
    """Let the server look for the tablespaces where they are now; it makes the links itself when it starts."""
    found = data / _TABLESPACE_MAP
    if found.exists():
        oids = [match[1] for match in map(TAR.fullmatch, base.manifest.files) if match and match[1] != "base"]
        found.write_bytes(b"".join(f"{oid} {tablespaces / oid}\n".encode() for oid in sorted(oids)))


def _make_folder(path: Path) -> None:
    path.mkdir(mode=0o700)
    _own(path)


def _own(target: Path | BinaryIO) -> None:
    owner = account()
    if owner is not None:
        place = target if isinstance(target, Path) else target.fileno()
        os.chown(place, owner.pw_uid, owner.pw_gid)
