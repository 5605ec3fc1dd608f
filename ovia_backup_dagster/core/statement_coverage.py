"""Binds a statement about a backup to one archive and one manifest; it counts for no other.

Verdicts, drills, holds, acceptances and promotions are statements. :class:`Covered` alone defines what a statement
names, and :func:`is_about` alone decides whether it covers a backup's current files. A signature of a statement would
sign ``Covered``. :func:`contradictions` tells whether the parts of a backup belong together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, timedelta

from ovia_backup_dagster.core.archive_header import ArchiveHeader
from ovia_backup_dagster.core.manifest import Manifest, Sidecar
from ovia_backup_dagster.core.naming import BackupName

#: The archive's own time is within the dump's, with this tolerance, because a clock may be set during the dump.
_TOLERANCE = timedelta(minutes=5)


class Covered(Sidecar):
    """The files that a statement covers.

    Attributes:
        archive_sha256: hex digest of the archive; ``None`` if it was not read.
        manifest_sha256: hex digest of the manifest's file; ``None`` without a manifest, as for the old script's dumps.
    """

    archive_sha256: str | None
    manifest_sha256: str | None


class Statement(Sidecar):
    """Base of the statements about a finished backup.

    Attributes:
        covered: the files that it covers; ``None`` in statements of older programs, which their other fields bind.
        size_bytes, mtime_ns: of the archive, if the statement names them.
    """

    covered: Covered | None = None
    size_bytes: int | None = None
    mtime_ns: int | None = None

    @property
    def archive_sha256(self) -> str | None:
        """The SHA-256 that the manifest must name, too; ``None`` if the statement names none."""
        return self.covered.archive_sha256 if self.covered else None


@dataclass(frozen=True, slots=True)
class Unit:
    """The current state of a backup's files, without reading the whole archive.

    Attributes:
        size_bytes, mtime_ns: of the archive.
        archive_sha256: from its manifest, or from its verification; ``None`` if neither names one.
        manifest_sha256: of the manifest's file; ``None`` without one.
    """

    size_bytes: int
    mtime_ns: int
    archive_sha256: str | None
    manifest_sha256: str | None

    @property
    def covered(self) -> Covered:
        """The hashes that a statement about it must name."""
        return Covered(archive_sha256=self.archive_sha256, manifest_sha256=self.manifest_sha256)


def is_about(statement: Statement, unit: Unit) -> bool:
    """Whether a statement covers a backup's current files."""
    if statement.size_bytes is not None and statement.size_bytes != unit.size_bytes:
        return False
    if statement.mtime_ns is not None and statement.mtime_ns != unit.mtime_ns:
        return False
    if statement.covered is not None and statement.covered.manifest_sha256 != unit.manifest_sha256:
        return False
    return None in (statement.archive_sha256, unit.archive_sha256) or statement.archive_sha256 == unit.archive_sha256


def contradictions(
    manifest: Manifest, *, name: BackupName | None, size_bytes: int, header: ArchiveHeader | None
) -> Iterator[str]:
    """Why an archive, its manifest and its name are not of one dump, in words; empty if they may be.

    Args:
        manifest: the manifest beside the archive.
        name: the parsed file name; ``None`` if it does not have the form of a backup's name.
        size_bytes: the archive's length.
        header: the archive's header; ``None`` if its version is unknown.
    """
    if size_bytes != manifest.size_bytes:
        yield f"it is {size_bytes:,} bytes long; it was {manifest.size_bytes:,} when it was written"
    database, begun = manifest.database.name, manifest.started_at.astimezone(UTC)
    if name is not None and name.database != database:
        yield f"its name is of database {name.database}, its manifest of {database}"
    if name is not None and name.started_at != begun.replace(microsecond=0):
        yield f"its name is of {name.started_at:%Y-%m-%d %H:%M:%S} UTC, its manifest of {begun:%Y-%m-%d %H:%M:%S} UTC"
    if header is None:
        return
    if header.database != database:
        yield f"the archive is of database {header.database}, its manifest of {database}"
    at = header.created_at
    ended = manifest.finished_at.astimezone(UTC)
    if at is None or not min(begun, ended) - _TOLERANCE <= at <= max(begun, ended) + _TOLERANCE:
        written = f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "no time"
        yield f"the archive is of {written}, its manifest of {begun:%Y-%m-%d %H:%M:%S} UTC"
    if _number(header.server_version) != _number(manifest.database.server_version):
        yield (
            f"the archive is of a server of version {header.server_version}, its manifest of "
            f"{manifest.database.server_version}"
        )


def _number(version: str) -> str:
    """A version without the vendor's suffix: the package may be updated between two queries."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return match.group() if match else version
