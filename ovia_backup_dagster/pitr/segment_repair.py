"""What happens to received segments that cannot be archived: fetched again while the server has them, else set aside.

Nothing is deleted: files go to ``set-aside/<UTC>/`` in the cluster's folder. A segment that is set aside leaves a hole
in the archive, which ``recovery_catalog`` finds and alerts report.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.files import as_volume_error, file_sha256, sync_folder
from ovia_backup_dagster.pitr.archive import ClusterArchive, base_name
from ovia_backup_dagster.pitr.segment_archiving import SegmentArchiver
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Segment
from ovia_backup_dagster.pitr.wal_source import WalSource
from ovia_backup_dagster.postgres.programs import Programs, capture

SET_ASIDE = "set-aside"


@dataclass(slots=True)
class SegmentRepair:
    """The repair of one cluster's segments.

    Attributes:
        archiver: what could not archive them.
        source: the server.
        programs: the client programs.
        log: receives what was done.
    """

    archiver: SegmentArchiver
    source: WalSource
    programs: Programs
    log: Callable[[str], None]

    @property
    def archive(self) -> ClusterArchive:
        return self.archiver.archive

    def repair(self, segment: Segment) -> None:
        """Replace a finished segment in ``incoming`` by what the server still has; if it has not, set it aside.

        If the server sends the same bytes, the segment before is the damaged one: a record that ends in this segment
        was not checked when that one was archived.

        Raises:
            VolumeError: the volume refused, or is full.
        """
        name = self.archive.name(segment)
        with tempfile.TemporaryDirectory(prefix="ovia-wal-", dir=self.archive.folder) as folder:
            why = self._fetch(segment, Path(folder))
            if not why and file_sha256(Path(folder) / name) == file_sha256(self.archive.incoming / name):
                before = Segment(segment.timeline, segment.number - 1)
                if (self.archive.incoming / self.archive.name(before)).exists():
                    damaged = self.archive.name(before)
                    self.log(f"{name} is the same as on the server: {damaged}, which precedes it, is damaged")
                    self._withdraw(before)
                    self.repair(before)
                    return
                why = "it does not continue the segment before it, and the server sends the same again"
            self.set_aside(self.archive.incoming / name)
            if not why:
                with as_volume_error(f"cannot put {name} back"):
                    os.rename(Path(folder) / name, self.archive.incoming / name)
                    sync_folder(self.archive.incoming)
                self.log(f"the server sent {name} again, whole")
                return
        # An archived one of this name is of a past that the server no longer has.
        if self.archive.archived(segment).exists():
            self.set_aside(self.archive.archived(segment))
        self.log(f"{name} was set aside, and is missing in the archive: {why}. Next: ovia-backup base-backup")

    def _withdraw(self, segment: Segment) -> None:
        """Take an archived segment out of the archive, so that it is archived again."""
        self.archiver.forget(segment)
        if self.archive.archived(segment).exists():
            self.set_aside(self.archive.archived(segment))

    def _fetch(self, segment: Segment, folder: Path) -> str:
        """Receive one segment again, without the slot, into a folder; why not, if that failed."""
        size = self.archive.facts.segment_bytes
        # pg_receivewal begins an unfinished segment again from its start; it looks at the size alone.
        with open(folder / f"{self.archive.name(segment)}{PARTIAL}", "wb") as file:
            file.truncate(size)
        connection = self.source.connection
        command = (
            self.programs.path("pg_receivewal"),
            f"--directory={folder}",
            "--no-loop",
            "--no-password",
            f"--endpos={segment.end(size)}",
            f"--dbname={connection.conninfo()}",
        )
        code, _, stderr = capture(self.programs.sandbox.bound(command), variables=connection.environment())
        if not (folder / self.archive.name(segment)).exists():
            return connection.redact(stderr.strip().rpartition("\n")[2]) or f"pg_receivewal ended with code {code}"
        try:
            self.archiver.check(segment, folder=folder)
        except BackupError as error:
            return f"the server's own copy is damaged, too: {error.reason}"
        return ""

    def set_aside(self, *paths: Path) -> None:
        """Move files or folders out of the archive, without deleting anything.

        Raises:
            VolumeError: the volume refused.
        """
        folder = self.archive.folder / SET_ASIDE / base_name(datetime.now(UTC))
        with as_volume_error(f"cannot set files aside in {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in paths:
                target = folder / path.name
                if target.exists():
                    target = Path(tempfile.mkdtemp(dir=folder)) / path.name
                shutil.move(path, target)
                sync_folder(path.parent)
            sync_folder(folder)
