"""Reads PostgreSQL's own manifest of a base backup, ``backup_manifest``. Pure.

Our manifest of the same backup is in ``base_manifest``. Source: PostgreSQL 16, backup_manifest.c.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ovia_backup_dagster.pitr.wal_position import Lsn

#: The file's name in a base backup.
BACKUP_MANIFEST = "backup_manifest"
_END = re.compile(rb'"Manifest-Checksum": "([0-9a-f]{64})"\}\n')
_END_BYTES = len('"Manifest-Checksum": ""}\n') + 64
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of the data directory.

    Attributes:
        size_bytes: its length.
        sha256: hex digest.
    """

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PostgresManifest:
    """What a base backup has to contain.

    Attributes:
        files: path in the data directory, as the server's bytes -> facts. Files of tablespaces are below
            ``pg_tblspc/OID``.
        timeline: the timeline that wrote the WAL that the backup needs.
        start, end: the range of that WAL.
        system_identifier: the cluster's; ``None`` before PostgreSQL 17.
    """

    files: Mapping[bytes, ManifestFile]
    timeline: int
    start: Lsn
    end: Lsn
    system_identifier: str | None

    @property
    def data_bytes(self) -> int:
        """The length of all files together."""
        return sum(file.size_bytes for file in self.files.values())


def parse_postgres_manifest(content: bytes) -> PostgresManifest:
    """Read the file, and check it against the checksum at its end.

    Raises:
        ValueError: the file was altered or cut off, or does not have a SHA-256 for each file; the text says which.
    """
    end = _END.fullmatch(content[-_END_BYTES:])
    if end is None:
        raise ValueError("it has no checksum at its end: it was altered or cut off")
    if hashlib.sha256(content[:-_END_BYTES]).hexdigest() != end[1].decode():
        raise ValueError("it does not match the checksum at its end: it was altered")
    try:
        return _parsed(json.loads(content))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"PostgreSQL does not write such a manifest: {error!r}") from None


def _parsed(found: Any) -> PostgresManifest:
    files: dict[bytes, ManifestFile] = {}
    for entry in found["Files"]:
        path = entry["Path"].encode() if "Path" in entry else bytes.fromhex(entry["Encoded-Path"])
        checksum = entry.get("Checksum", "")
        if entry.get("Checksum-Algorithm") != "SHA256" or not _SHA256.fullmatch(checksum):
            raise ValueError(f"{shown_path(path)} has no SHA-256")
        if path in files:
            raise ValueError(f"{shown_path(path)} is in it twice")
        files[path] = ManifestFile(int(entry["Size"]), checksum)
    ranges = found["WAL-Ranges"]
    if len(ranges) != 1:
        raise ValueError(f"its WAL is of {len(ranges)} timelines, and recovery begins on one")
    return PostgresManifest(
        files=files,
        timeline=int(ranges[0]["Timeline"]),
        start=Lsn.parse(ranges[0]["Start-LSN"]),
        end=Lsn.parse(ranges[0]["End-LSN"]),
        system_identifier=str(found["System-Identifier"]) if "System-Identifier" in found else None,
    )


def shown_path(path: bytes) -> str:
    """A path of the server, which need not be UTF-8, for people."""
    return path.decode("utf-8", "backslashreplace")
