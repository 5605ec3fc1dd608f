"""The files of point-in-time recovery on the backup volume, a folder for each cluster:

``pitr/<system identifier>/`` with ``cluster.json``, ``incoming/`` (segments as pg_receivewal writes them), ``wal/``
(checked and compressed segments, and history files) and ``base/<UTC>/`` (base backups). This module knows names and
paths, and reads which files there are; the modules that write a file define its content.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from pydantic import Field

from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.core.files import as_volume_error, exists, is_folder, read_small, sync_folder, write_whole
from ovia_backup_dagster.core.layout import PITR
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.core.write_permission import make_writable
from ovia_backup_dagster.pitr.wal_position import (
    PARTIAL,
    SEGMENT_BYTES,
    Segment,
    Timeline,
    parse_history,
    parse_history_name,
)

COMPRESSED = ".zst"
_CLUSTER = "cluster.json"
_BASE_TIME = "%Y-%m-%d_%H%M%S"
BASE_NAME = re.compile(r"\d{4}-\d\d-\d\d_\d{6}")


class ClusterFacts(Sidecar):
    """What does not change in a cluster's life, in ``cluster.json``.

    Attributes:
        system_identifier: as ``IDENTIFY_SYSTEM`` reports it.
        segment_bytes: the size of its WAL segments.
        major: PostgreSQL's major version; its programs read this WAL and no other's.
    """

    system_identifier: str = Field(pattern=r"^\d{1,20}$")
    segment_bytes: int = SEGMENT_BYTES
    major: int


@dataclass(frozen=True)
class ClusterArchive:
    """The files of one cluster.

    Attributes:
        root: the backup volume.
        system_identifier: the cluster's.
    """

    root: Path
    system_identifier: str

    @property
    def folder(self) -> Path:
        return self.root / PITR / self.system_identifier

    @property
    def incoming(self) -> Path:
        """Where pg_receivewal writes."""
        return self.folder / "incoming"

    @property
    def wal(self) -> Path:
        """Finished segments, checked and compressed; history files."""
        return self.folder / "wal"

    @property
    def base(self) -> Path:
        """Base backups, a folder each."""
        return self.folder / "base"

    @cached_property
    def facts(self) -> ClusterFacts:
        """What is recorded about the cluster.

        Raises:
            VolumeError: ``cluster.json`` cannot be read.
        """
        path = self.folder / _CLUSTER
        with as_volume_error(f"cannot read {path}"):
            return parse_sidecar(ClusterFacts, read_small(path), str(path))

    @property
    def began_at(self) -> datetime:
        """When the archive was begun (UTC): ``cluster.json`` is written once.

        Raises:
            VolumeError: it cannot be looked at.
        """
        path = self.folder / _CLUSTER
        with as_volume_error(f"cannot inspect {path}"):
            return datetime.fromtimestamp(path.lstat().st_mtime, UTC)

    def create(self, facts: ClusterFacts) -> None:
        """Make the folders (mode 0700), and record the facts the first time.

        Raises:
            VolumeError: the volume refused.
        """
        # Each by itself: with ``parents``, the folders above get the mode that the umask gives.
        for folder in (self.root, self.root / PITR, self.folder, self.incoming, self.wal, self.base):
            make_writable(folder)
        with as_volume_error(f"cannot use the folder {self.folder}"):
            if not exists(self.folder / _CLUSTER):
                write_whole(self.folder / _CLUSTER, facts.to_json().encode())
                sync_folder(self.folder)
                sync_folder(self.folder.parent)

    def name(self, segment: Segment) -> str:
        """A segment's file name."""
        return segment.name(self.facts.segment_bytes)

    def archived(self, segment: Segment) -> Path:
        """Where a finished segment is."""
        return self.wal / f"{self.name(segment)}{COMPRESSED}"

    def archived_partial(self, segment: Segment) -> Path:
        """Where a segment is that was not finished, because its timeline ended within it."""
        return self.wal / f"{self.name(segment)}{PARTIAL}{COMPRESSED}"

    def archived_segments(self) -> list[Segment]:
        """The finished segments, in order.

        Raises:
            VolumeError: the folder cannot be read.
        """
        names = (name.removesuffix(COMPRESSED) for name in _names(self.wal) if name.endswith(COMPRESSED))
        return sorted(filter(None, (Segment.parse(name, self.facts.segment_bytes) for name in names)))

    def archived_partials(self) -> list[Segment]:
        """The unfinished segments in the archive, in order.

        Raises:
            VolumeError: the folder cannot be read.
        """
        suffix = f"{PARTIAL}{COMPRESSED}"
        names = (name.removesuffix(suffix) for name in _names(self.wal) if name.endswith(suffix))
        return sorted(filter(None, (Segment.parse(name, self.facts.segment_bytes) for name in names)))

    def received(self) -> dict[Segment, Path]:
        """The segments in ``incoming``, the unfinished one too.

        Raises:
            VolumeError: the folder cannot be read.
        """
        found = {}
        for name in sorted(_names(self.incoming)):
            segment = Segment.parse(name.removesuffix(PARTIAL), self.facts.segment_bytes)
            if segment is not None and segment not in found:
                found[segment] = self.incoming / name
        return found

    def timelines(self) -> dict[int, Timeline]:
        """The timelines that have a history file, and the first, which has none.

        Raises:
            VolumeError: a file cannot be read, or is no history file.
        """
        found = {1: Timeline(1)}
        for folder in (self.incoming, self.wal):
            for name in _names(folder):
                number = parse_history_name(name)
                if number is not None:
                    with as_volume_error(f"cannot read {folder / name}"):
                        text = read_small(folder / name).decode("utf-8", "replace")
                    try:
                        found[number] = parse_history(number, text)
                    except ValueError as error:
                        raise VolumeError(
                            f"{folder / name} is damaged",
                            why=str(error),
                            fix="put back a copy of it: the server has one in pg_wal as long as it has this timeline",
                        ) from error
        return found

    def base_folders(self) -> list[Path]:
        """The published base backups, oldest first.

        Raises:
            VolumeError: the folder cannot be read.
        """
        return sorted(self.base / name for name in _names(self.base) if BASE_NAME.fullmatch(name))


def base_name(started_at: datetime) -> str:
    """The name of a base backup's folder."""
    return started_at.astimezone(UTC).strftime(_BASE_TIME)


def cluster_archives(root: Path) -> list[ClusterArchive]:
    """The archives of all clusters whose WAL was ever received.

    Raises:
        VolumeError: the folder cannot be read.
    """
    names = sorted(name for name in _names(root / PITR) if name.isdigit() and is_folder(root / PITR / name))
    return [ClusterArchive(root, name) for name in names if (root / PITR / name / _CLUSTER).exists()]


def _names(folder: Path) -> list[str]:
    with as_volume_error(f"cannot read {folder}"):
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []
