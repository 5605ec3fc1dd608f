"""Chooses the place of a drill's copy: by the operator's choice, what is possible on this host, and the free space.

``throwaway_cluster`` creates a throwaway cluster, ``proof.target`` a scratch database.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ovia_backup_dagster.core.errors import DiskFullError, ProgramMissingError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.drill.throwaway_cluster import server_programs, throwaway, usable
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.postgres.sandbox import Limits
from ovia_backup_dagster.proof.backup_contents import BackupContents
from ovia_backup_dagster.proof.target import Copy, Source, scratch_database

#: Factor and bytes beyond the copy's size, for a restore's other files: temporary files of index builds, WAL.
_ROOM = 1.25
_ROOM_BYTES = 256 * 1024 * 1024


class Where(StrEnum):
    """Where a drill restores to."""

    AUTO = "auto"
    THROWAWAY = "throwaway"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Choice:
    """The operator's choices for one drill.

    Attributes:
        where: ``auto`` is a throwaway cluster, or a scratch database if the server programs are missing and a server
            was named for it.
        jobs: how many entries pg_restore restores at a time.
        keep: leave the copy for inspection, until the next drill.
        trust_archive: restore even if a superuser would run others' functions on the source's own cluster.
    """

    where: Where = Where.AUTO
    jobs: int = 2
    keep: bool = False
    trust_archive: bool = False


def needed_bytes(database_bytes: int) -> int:
    """Bytes that a copy of a database of this size needs while it is restored."""
    return int(database_bytes * _ROOM) + _ROOM_BYTES


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of one drill's copy.

    Attributes:
        contents: the backup.
        choice: the operator's choice.
        folder: where throwaway clusters are created.
        target: the server for scratch databases.
        target_is_named: whether the settings name that server; otherwise it is the source's.
        max_hours: how long a drill may take.
    """

    contents: BackupContents
    choice: Choice
    folder: Path
    target: Connection
    target_is_named: bool
    max_hours: float

    @property
    def copy_bytes(self) -> int:
        """The copy's size in bytes, as far as known."""
        witness = self.contents.witness
        return max(witness.decoded_bytes if witness else 0, self.contents.source_bytes or 0)

    @property
    def where(self) -> Where:
        """The chosen place, or for ``auto`` the one that is possible on this host."""
        if self.choice.where is not Where.AUTO:
            return self.choice.where
        try:
            server_programs(self.contents.programs)
        except ProgramMissingError:
            if self.target_is_named:
                return Where.DATABASE
        return Where.THROWAWAY

    def refuse_full_disk(self, copy_bytes: int) -> None:
        """Refuse a copy if the disk has too little room.

        Args:
            copy_bytes: the copy's size.

        Raises:
            DiskFullError: there is too little room for the copy, or for the copy and the next dump.
        """
        if self.where is not Where.THROWAWAY:
            return  # the server reports a full disk itself
        needed = needed_bytes(copy_bytes)
        folder, volume = self.folder, self.contents.verifier.catalog.root
        with usable(folder):
            if folder.stat().st_dev == volume.stat().st_dev:
                needed += self.contents.backup.size_bytes  # the next dump must still fit
            free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiskFullError(
                f"{folder} has too little room for a copy",
                why=f"{human_bytes(free)} free, {human_bytes(needed)} needed",
                fix=f"make room: df -h {shell_word(str(folder))}; or set DRILL_DIR to a folder on a larger disk",
            )

    def copy(self, log: Log) -> AbstractContextManager[Copy]:
        """The copy, which exists only in the block.

        Args:
            log: receives a line about what a killed drill left.

        Raises:
            BackupError: the copy cannot be created there.
        """
        contents, programs = self.contents, self.contents.programs
        facts = contents.manifest.database if contents.manifest else None
        if self.where is Where.THROWAWAY:
            superuser = facts.bootstrap_superuser if facts else "postgres"
            name = facts.name if facts else self.contents.backup.name.database
            limits = Limits.of(self.folder, self.copy_bytes, self.max_hours * 3600)
            witness = self.contents.witness
            relations = len(witness.tables) + len(witness.sequences) if witness else 0
            return throwaway(
                programs,
                self.folder,
                name,
                superuser,
                encoding=facts.encoding if facts else "UTF8",
                limits=limits,
                relations=relations,
                keep=self.choice.keep,
                log=log,
            )
        # A renamed file may bear another database's name, so the name in the archive counts, too.
        held = archives.database_of(archives.contents_list(programs, self.contents.backup.path))
        names = frozenset({facts.name} if facts else {self.contents.backup.name.database, held})
        source = Source(facts.system_identifier if facts else None, names)
        return scratch_database(self.target, contents.verifier.catalog.database, source, keep=self.choice.keep, log=log)
