"""Binds a statement about a backup to one archive and one manifest. It does not count for any other.

Verdicts, drills, holds, acceptances and promotions are statements. :class:`Covered` is the one list of what a statement
names; :func:`is_about` the one decision whether it is about a backup as it is now. A signature of a statement would
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

#: The archive's own time is from within the dump; clocks are set meanwhile.
_TOLERANCE = timedelta(minutes=5)


class Covered(Sidecar):
    """What a statement is about.

    Attributes:
        archive_sha256: hex digest of the archive; ``None`` when it was not read.
        manifest_sha256: hex digest of the manifest's file; ``None`` where there is none, as of the old script's dumps.
    """

    archive_sha256: str | None
    manifest_sha256: str | None


class Statement(Sidecar):
    """Base of what is said about a backup after it was made.

    Attributes:
        covered: what it is about; ``None`` in what older programs wrote, which is bound by what else it names.
        size_bytes, mtime_ns: of the archive that it is about, if it is bound to them.
    """

    covered: Covered | None = None
    size_bytes: int | None = None
    mtime_ns: int | None = None

    @property
    def archive_sha256(self) -> str | None:
        """The archive that the manifest must name, too; ``None`` if the statement names none."""
        return self.covered.archive_sha256 if self.covered else None


@dataclass(frozen=True, slots=True)
class Unit:
    """A backup as it is now, as far as a look at it tells.

    Attributes:
        size_bytes, mtime_ns: of the archive.
        archive_sha256: as its manifest names it, or as it was when it was verified; ``None`` when that is not known.
        manifest_sha256: of the manifest's file; ``None`` without one.
    """

    size_bytes: int
    mtime_ns: int
    archive_sha256: str | None
    manifest_sha256: str | None

    @property
    def covered(self) -> Covered:
        """What a statement about it names."""
        return Covered(archive_sha256=self.archive_sha256, manifest_sha256=self.manifest_sha256)


def is_about(statement: Statement, unit: Unit) -> bool:
    """Whether a statement is about a backup as it is now."""
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
    """Why an archive, its manifest and its name are not of one dump, in words; nothing if they may be.

    Args:
        manifest: as it stands beside the archive.
        name: what the file's name says; ``None`` when it is none of ours, and says nothing.
        size_bytes: the archive's length.
        header: what the archive says of itself; ``None`` when it is of a kind that is not known here.
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
    """A version without its vendor's words: a server may be packaged again between two questions."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return match.group() if match else version
