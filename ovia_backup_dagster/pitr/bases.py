"""The base backups of a cluster as values, read from the volume. Which of them are kept is decided elsewhere."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import AwareDatetime

from ovia_backup_dagster.core.errors import BackupNotFoundError, VolumeError
from ovia_backup_dagster.core.files import as_volume_error, read_small
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.pitr.archive import ClusterArchive, cluster_archives
from ovia_backup_dagster.pitr.base_manifest import BASE, BASE_VERDICT, BaseManifest, BaseVerdict, read_base_manifest

#: A drill's statement about a base backup. The drill defines what else is in it.
BASE_DRILL = "drilled.json"


class BaseDrill(Sidecar):
    """That a drill recovered a base backup and found the right rows.

    Attributes:
        base_sha256: of the ``base.json`` of the backup that was recovered; the statement holds for no other.
        drilled_at: when (UTC).
    """

    version: Literal[1] = 1
    base_sha256: str
    drilled_at: AwareDatetime


_S = TypeVar("_S", BaseVerdict, BaseDrill)


@dataclass(frozen=True, slots=True)
class BaseBackup:
    """A complete base backup.

    Attributes:
        folder: its folder.
        manifest: what was made.
        sha256: of its ``base.json``; a statement about the backup names it.
        verified: whether the newest verification found it good; ``None`` if it was not verified.
        verified_at: when (UTC).
        drilled_at: when a drill last recovered it (UTC); ``None`` if none did.
    """

    folder: Path
    manifest: BaseManifest
    sha256: str
    verified: bool | None = None
    verified_at: datetime | None = None
    drilled_at: datetime | None = None

    def __str__(self) -> str:
        return self.folder.name

    @property
    def drilled(self) -> bool:
        """Whether a drill recovered it."""
        return self.drilled_at is not None


@dataclass(frozen=True, slots=True)
class IncompleteBase:
    """A folder that cannot be used as a base backup: its manifest is missing, or was altered.

    Attributes:
        folder: the folder.
        why: what is wrong, in words for people.
    """

    folder: Path
    why: str


@dataclass(frozen=True, slots=True)
class Bases:
    """What is in a cluster's folder of base backups.

    Attributes:
        complete: the base backups, in the order of their WAL, oldest first.
        incomplete: the other folders.
    """

    complete: tuple[BaseBackup, ...] = ()
    incomplete: tuple[IncompleteBase, ...] = ()


def read_bases(archive: ClusterArchive) -> Bases:
    """Read a cluster's base backups. A folder that is removed meanwhile is left out.

    Raises:
        VolumeError: the folder cannot be read.
    """
    complete, incomplete = [], []
    for folder in archive.base_folders():
        try:
            complete.append(read_base(folder))
        except FileNotFoundError:
            if folder.exists():
                incomplete.append(IncompleteBase(folder, f"it has no {BASE}"))
        except VolumeError as error:
            incomplete.append(IncompleteBase(folder, error.account))
    complete.sort(key=lambda base: (base.manifest.start, base.folder.name))
    return Bases(tuple(complete), tuple(incomplete))


def find_base(root: Path, name: str = "", system_identifier: str | None = None) -> tuple[ClusterArchive, Path]:
    """A published base backup by its name, as its cluster's archive and its folder.

    Args:
        root: the backup volume.
        name: the folder's name; empty for the newest.
        system_identifier: the cluster to look in; ``None`` for all.

    Raises:
        BackupNotFoundError: there is none.
        VolumeError: the volume cannot be read.
    """
    archives = [each for each in cluster_archives(root) if system_identifier in (None, each.system_identifier)]
    found = [(archive, folder) for archive in archives for folder in archive.base_folders()]
    if name:
        found = [(archive, folder) for archive, folder in found if folder.name == name]
    if not found:
        what = f"there is no base backup {name}" if name else "there is no base backup"
        raise BackupNotFoundError(what, fix="ovia-backup recovery-window; to make one: ovia-backup base-backup")
    return max(found, key=lambda each: each[1].name)


def read_base(folder: Path) -> BaseBackup:
    """Read one base backup. A statement that cannot be read, or is about another backup, does not count.

    Raises:
        FileNotFoundError: it has no manifest, and is incomplete.
        VolumeError: its manifest cannot be read, or was altered.
    """
    manifest, sha256 = read_base_manifest(folder)
    verdict = _statement(BaseVerdict, folder / BASE_VERDICT, sha256)
    drill = _statement(BaseDrill, folder / BASE_DRILL, sha256)
    return BaseBackup(
        folder,
        manifest,
        sha256,
        verified=verdict.good if verdict else None,
        verified_at=verdict.checked_at if verdict else None,
        drilled_at=drill.drilled_at if drill else None,
    )


def _statement(model: type[_S], path: Path, sha256: str) -> _S | None:
    with contextlib.suppress(FileNotFoundError, VolumeError), as_volume_error(f"cannot read {path}"):
        found = parse_sidecar(model, read_small(path), str(path))
        return found if found.base_sha256 == sha256 else None
    return None
