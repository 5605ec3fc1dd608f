"""The sidecars in a base backup's folder: what was made (``base.json``) and what its verification found
(``verified.json``).

``base.json`` is written once, before the folder gets its name, and never changes. It ends with a checksum of the text
before it, as PostgreSQL's own manifest does, because nothing else states what it has to be. A statement about a base
backup, such as a verdict, names the SHA-256 of its ``base.json``, and so cannot vouch for another backup.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.core.files import as_volume_error, read_small
from ovia_backup_dagster.core.manifest import FileFacts, Sidecar, parse_sidecar
from ovia_backup_dagster.pitr.wal_position import Lsn

BASE = "base.json"
BASE_VERDICT = "verified.json"
_SEAL = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n\}\n')
_SEAL_BYTES = len(',\n "checksum": ""\n}\n') + 64
#: The tar files of a base backup: the data directory's, and a tablespace's by its OID.
TAR = re.compile(r"(base|[1-9]\d{0,9})\.tar(\.gz|\.zst)?")
_FILE = r"^(?:(?:base|[1-9]\d{0,9})\.tar(?:\.gz|\.zst)?|backup_manifest)$"
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Lsn = Annotated[str, Field(pattern=r"^[0-9A-F]{1,8}/[0-9A-F]{1,8}$")]


class BaseTablespace(Sidecar):
    """A tablespace besides the data directory.

    Attributes:
        oid: its OID, which names its tar file.
        name: its name; empty if the server could not report it.
        location: the folder on the server.
    """

    oid: int
    name: str
    location: str


class BaseManifest(Sidecar):
    """One base backup.

    Attributes:
        system_identifier: the cluster's.
        server_version: as ``SHOW server_version`` prints it.
        bootstrap_superuser: the role with OID 10, as which a recovered cluster is used.
        major: e.g. 16; only this major version recovers the backup.
        timeline: the timeline that the backup was made on.
        start_lsn: where recovery begins to read WAL.
        end_lsn: where the backup ended: recovery must read at least to here.
        started_at: when it began (UTC, by the server's clock); the instant in the folder's name.
        finished_at: when it had ended (UTC, by the server's clock): no earlier instant can be recovered from it.
        seconds: how long it took until all files were on disk, by a monotonic clock of ours.
        compression: as passed to pg_basebackup, e.g. ``server-zstd:1``.
        max_rate: the limit, as passed to pg_basebackup; empty for none.
        client_version: the output of ``pg_basebackup --version``.
        files: file name -> facts, as they were written.
        tablespaces: the tablespaces besides the data directory.
        data_bytes: the length of all files in the backup, unpacked.
        warnings: pg_basebackup's messages at exit 0.
        run_id: Dagster's run id; ``None`` from the command line.
        made_by: name and version of this program.
    """

    version: Literal[1] = 1
    system_identifier: str = Field(pattern=r"^\d{1,20}$")
    server_version: str
    bootstrap_superuser: str
    major: int
    timeline: int = Field(ge=1)
    start_lsn: _Lsn
    end_lsn: _Lsn
    started_at: AwareDatetime
    finished_at: AwareDatetime
    seconds: float
    compression: str
    max_rate: str = ""
    client_version: str
    files: dict[Annotated[str, Field(pattern=_FILE)], FileFacts]
    tablespaces: tuple[BaseTablespace, ...] = ()
    data_bytes: int
    warnings: tuple[str, ...] = ()
    run_id: str | None = None
    made_by: str

    @property
    def start(self) -> Lsn:
        return Lsn.parse(self.start_lsn)

    @property
    def end(self) -> Lsn:
        return Lsn.parse(self.end_lsn)

    @property
    def size_bytes(self) -> int:
        """How much of the volume its files take."""
        return sum(file.size_bytes for file in self.files.values())


class BaseVerdict(Sidecar):
    """What a verification of a base backup found.

    Attributes:
        base_sha256: of the ``base.json`` of the backup that was verified; the verdict holds for no other.
        verdict: whether each byte is what the server sent.
        findings: what is wrong, in words for people; the first of many.
        checked_at: when (UTC).
        files: how many files were read, unpacked.
        bytes: their length.
        seconds: how long that took.
        run_id: Dagster's run id; ``None`` from the command line.
        made_by: name and version of the program that verified.
    """

    version: Literal[1] = 1
    base_sha256: _Sha256
    verdict: Literal["good", "bad"]
    findings: tuple[str, ...] = ()
    checked_at: AwareDatetime
    files: int
    bytes: int
    seconds: float
    run_id: str | None = None
    made_by: str

    @property
    def good(self) -> bool:
        return self.verdict == "good"


def sealed(manifest: BaseManifest) -> bytes:
    """The text of ``base.json``, with the checksum at its end."""
    text = manifest.model_dump_json(indent=1).removesuffix("\n}").encode()
    return text + f',\n "checksum": "{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()


def parse_base_manifest(content: bytes, path: str) -> BaseManifest:
    """Read the text of ``base.json``.

    Raises:
        VolumeError: it was altered or cut off, or does not have the form that this version writes.
    """
    seal = _SEAL.fullmatch(content[-_SEAL_BYTES:])
    if seal is None or hashlib.sha256(content[:-_SEAL_BYTES]).hexdigest() != seal[1].decode():
        raise VolumeError(
            f"{path} was altered",
            why="it does not match the checksum at its end: the disk altered it, or another program did",
            fix="dmesg | tail; then make another base backup: ovia-backup base-backup",
        )
    return parse_sidecar(BaseManifest, content, path)


def read_base_manifest(folder: Path) -> tuple[BaseManifest, str]:
    """The manifest in a base backup's folder, and the SHA-256 of its file, which statements about the backup name.

    Raises:
        FileNotFoundError: there is none: the backup is incomplete.
        VolumeError: it cannot be read, or was altered.
    """
    path = folder / BASE
    with as_volume_error(f"cannot read {path}", passing=FileNotFoundError):
        content = read_small(path)
    return parse_base_manifest(content, str(path)), hashlib.sha256(content).hexdigest()
