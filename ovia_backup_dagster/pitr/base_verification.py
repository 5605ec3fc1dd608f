"""Reads a base backup back, and judges whether each byte is what the server sent. Nothing is unpacked.

The tar files are streamed: decompressed, and compared with PostgreSQL's own manifest, which has a size and a SHA-256
for each file. That a good backup also recovers is for a drill to prove.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Protocol, cast

import zstandard

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.core.files import as_volume_error, read_small, reader, sync_folder, write_whole
from ovia_backup_dagster.core.human_text import human_bytes, joined, seconds
from ovia_backup_dagster.core.locking import reading
from ovia_backup_dagster.core.manifest import FileFacts
from ovia_backup_dagster.core.pitr_errors import BaseBackupError
from ovia_backup_dagster.core.reserve import with_reserve
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_manifest import (
    BASE,
    BASE_VERDICT,
    TAR,
    BaseManifest,
    BaseVerdict,
    parse_base_manifest,
)
from ovia_backup_dagster.pitr.postgres_manifest import (
    BACKUP_MANIFEST,
    PostgresManifest,
    parse_postgres_manifest,
    shown_path,
)
from ovia_backup_dagster.pitr.tar_stream import ByteStream, TarEntry, TarFormatError, tar_entries
from ovia_backup_dagster.pitr.wal_position import Lsn

#: PostgreSQL's manifest has about 200 bytes a file: this is for more than two million files.
MANIFEST_BYTES = 512 * 1024 * 1024
#: The verdict names this many findings.
_MOST_FINDINGS = 20
_READ_BYTES = 256 * 1024
#: The beginning of these files is looked at.
_LABEL, _CONTROL = b"backup_label", b"global/pg_control"
_HEAD_BYTES = 8192
_START = re.compile(rb"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) \(file [0-9A-F]{24}\)$", re.MULTILINE)
_TIMELINE = re.compile(rb"^START TIMELINE: (\d+)$", re.MULTILINE)

Log = Callable[[str], None]


def verify_base(
    archive: ClusterArchive, folder: Path, *, now: datetime, log: Log, run_id: str | None = None
) -> BaseVerdict:
    """Verify a base backup, and record the verdict in its folder.

    Args:
        archive: the cluster's files.
        folder: the backup's.
        now: the present (UTC), for the verdict.
        log: receives what happens, line by line.
        run_id: Dagster's run, for the verdict.

    Raises:
        BaseBackupError: the backup is bad; the error names the file. The verdict is recorded. Or it is incomplete.
        VolumeError: a file cannot be read, or the verdict cannot be written: there is no new verdict.
        LockHeldError: the backup is being removed.
    """
    clock = time.monotonic()
    try:
        with as_volume_error(f"cannot read {folder / BASE}", passing=FileNotFoundError), reading(folder / BASE):
            content = read_small(folder / BASE)
            found = _Findings()
            _read_back(archive, folder, content, found)
            verdict = BaseVerdict(
                base_sha256=hashlib.sha256(content).hexdigest(),
                verdict="bad" if found.texts else "good",
                findings=tuple(found.texts[:_MOST_FINDINGS]),
                checked_at=now,
                files=found.files,
                bytes=found.bytes,
                seconds=round(time.monotonic() - clock, 3),
                run_id=run_id,
                made_by=f"ovia-backup-dagster {__version__}",
            )
            with_reserve(archive.root, lambda: _write(folder, verdict))
    except FileNotFoundError:
        raise BaseBackupError(
            f"base backup {folder.name} is incomplete", why=f"it has no {BASE}", fix="ovia-backup base-backup"
        ) from None
    if found.texts:
        raise BaseBackupError(
            f"base backup {folder.name} of cluster {archive.system_identifier} is bad",
            why=joined(found.texts),
            fix="dmesg | tail; then make another one: ovia-backup base-backup",
        )
    size, took = human_bytes(verdict.bytes), seconds(verdict.seconds)
    log(f"base backup {folder.name} is verified: {verdict.files:,} files, {size} in {took}")
    return verdict


def _write(folder: Path, verdict: BaseVerdict) -> None:
    write_whole(folder / BASE_VERDICT, verdict.to_json().encode())
    sync_folder(folder)


@dataclass(slots=True)
class _Findings:
    """What is wrong, and how much was read."""

    texts: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def add(self, text: str) -> None:
        self.texts.append(text)


def _read_back(archive: ClusterArchive, folder: Path, content: bytes, found: _Findings) -> None:
    try:
        base = parse_base_manifest(content, BASE)
    except VolumeError as error:
        found.add(error.account)
        return
    if base.system_identifier != archive.system_identifier:
        found.add(f"{BASE} is of cluster {base.system_identifier}")
    for path in sorted(folder.iterdir()):
        if TAR.fullmatch(path.name) and path.name not in base.files:
            found.add(f"{path.name} does not belong to the backup")
    manifest = _manifest(folder, base, found)
    if manifest is None:
        return
    contents = _Contents(manifest, found)
    whole = True
    for name, facts in base.files.items():
        if TAR.fullmatch(name):
            whole &= contents.read(folder / name, facts)
    if whole:
        contents.require_complete()
        contents.require_cluster(base)


def _manifest(folder: Path, base: BaseManifest, found: _Findings) -> PostgresManifest | None:
    """PostgreSQL's manifest, if it is what was written."""
    try:
        content: bytes | None = read_small(folder / BACKUP_MANIFEST, MANIFEST_BYTES)
    except FileNotFoundError:
        content = None
    facts = base.files.get(BACKUP_MANIFEST)
    if difference := facts.difference(content) if facts else f"is not named in {BASE}":
        found.add(f"{BACKUP_MANIFEST} {difference}")
    if content is None:
        return None
    try:
        manifest = parse_postgres_manifest(content)
    except ValueError as error:
        found.add(f"{BACKUP_MANIFEST} cannot be used: {error}")
        return None
    said = (base.timeline, base.start, base.end, base.data_bytes)
    if said != (manifest.timeline, manifest.start, manifest.end, manifest.data_bytes):
        found.add(f"{BASE} and {BACKUP_MANIFEST} are not of one backup")
    if manifest.system_identifier not in (None, base.system_identifier):
        found.add(f"{BACKUP_MANIFEST} is of cluster {manifest.system_identifier}")
    return manifest


class _Contents:
    """The files in the tar files, compared with PostgreSQL's manifest."""

    def __init__(self, manifest: PostgresManifest, found: _Findings) -> None:
        self._manifest = manifest
        self._missing = dict(manifest.files)
        self._found = found
        self._heads: dict[bytes, bytes] = {}

    def read(self, path: Path, facts: FileFacts) -> bool:
        """Read a tar file; ``False`` if it could not be read to its end."""
        name = path.name
        whole = True
        try:
            with reader(path) as file:
                hashed = _Hashed(file)
                try:
                    with _decompressed(name, hashed) as source:
                        self._compare(name, source)
                except _UNREADABLE as error:
                    self._found.add(f"{name} cannot be read to its end: {error}")
                    whole = False
                if difference := hashed.difference(facts):
                    self._found.add(f"{name} {difference}")
        except FileNotFoundError:
            self._found.add(f"{name} is missing")
            return False
        return whole

    def _compare(self, name: str, source: ByteStream) -> None:
        prefix = b"" if name.startswith("base.") else f"pg_tblspc/{name.partition('.')[0]}/".encode()
        for entry, content in tar_entries(source):
            digest = hashlib.sha256()
            head = b""
            for block in content:
                head = head or block[:_HEAD_BYTES]
                digest.update(block)
            if entry.is_file:
                self._judge(name, prefix + entry.path, entry, digest.hexdigest())
                if prefix + entry.path in (_LABEL, _CONTROL):
                    self._heads[prefix + entry.path] = head

    def _judge(self, name: str, path: bytes, entry: TarEntry, sha256: str) -> None:
        self._found.files += 1
        self._found.bytes += entry.size_bytes
        wanted = self._missing.pop(path, None)
        if wanted is None:
            why = "is in it twice" if path in self._manifest.files else f"is not in {BACKUP_MANIFEST}"
            self._found.add(f"{name}: {shown_path(path)} {why}")
        elif entry.size_bytes != wanted.size_bytes:
            self._found.add(
                f"{name}: {shown_path(path)} has {entry.size_bytes:,} bytes, and the server sent {wanted.size_bytes:,}"
            )
        elif sha256 != wanted.sha256:
            self._found.add(f"{name}: {shown_path(path)} is not what the server sent: its SHA-256 differs")

    def require_complete(self) -> None:
        """Require that each file of the manifest was in a tar file."""
        for path in self._missing:
            self._found.add(f"{shown_path(path)} is in {BACKUP_MANIFEST}, but in no tar file")

    def require_cluster(self, base: BaseManifest) -> None:
        """Require that the files are this cluster's, and that recovery begins where the manifests say."""
        control = self._heads.get(_CONTROL, b"")
        # ``ControlFileData`` begins with the system identifier.
        if len(control) < 8 or str(struct.unpack_from("=Q", control)[0]) != base.system_identifier:
            self._found.add(f"{shown_path(_CONTROL)} is not of cluster {base.system_identifier}")
        label = self._heads.get(_LABEL, b"")
        start, timeline = _START.search(label), _TIMELINE.search(label)
        if start is None or Lsn.parse(start[1].decode()) != self._manifest.start:
            self._found.add(f"{shown_path(_LABEL)} does not begin at {self._manifest.start}")
        if timeline is None or int(timeline[1]) != self._manifest.timeline:
            self._found.add(f"{shown_path(_LABEL)} is not of timeline {self._manifest.timeline}")


class _Hashed:
    """A file that hashes what is read from it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._bytes = 0

    def read(self, size: int = _READ_BYTES, /) -> bytes:
        block = self._file.read(size)
        self._digest.update(block)
        self._bytes += len(block)
        return block

    def difference(self, facts: FileFacts) -> str:
        """How the whole file differs from what was written, in words; empty if it does not."""
        while self.read():
            pass
        if self._bytes != facts.size_bytes:
            return f"is {self._bytes:,} bytes long; it was {facts.size_bytes:,} when it was written"
        if self._digest.hexdigest() != facts.sha256:
            return "was altered: it does not have the SHA-256 that it had when it was written"
        return ""


#: What decompressing or reading a tar file that was altered can raise.
_UNREADABLE = (TarFormatError, zstandard.ZstdError, zlib.error, gzip.BadGzipFile, EOFError)


class _Closing(ByteStream, Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def _decompressed(name: str, file: _Hashed) -> Iterator[ByteStream]:
    """The tar file in a file, as its name says that it is compressed."""
    if name.endswith(".tar"):
        yield file
        return
    stream: _Closing
    if name.endswith(".zst"):
        decompressor = zstandard.ZstdDecompressor()
        # Frame after frame: what follows the first one would otherwise be ignored.
        stream = decompressor.stream_reader(
            cast("IO[bytes]", file), read_size=_READ_BYTES, read_across_frames=True, closefd=False
        )
    else:
        stream = cast("_Closing", gzip.GzipFile(fileobj=cast("IO[bytes]", file), mode="rb"))
    with contextlib.closing(stream):
        yield stream
