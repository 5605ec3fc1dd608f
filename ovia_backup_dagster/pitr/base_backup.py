"""Makes a base backup: runs pg_basebackup into a temporary folder, hashes its files, writes ``base.json``, and gives
the folder its name.

A base backup is the ground that received WAL is replayed on. ``base_verification`` decides whether it is good, and the
caller how often to retry: an error states whether it is ``transient``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core.errors import (
    BackupError,
    CompressionUnsupportedError,
    DiskFullError,
    ProgramError,
    StalledError,
    VersionMismatchError,
)
from ovia_backup_dagster.core.files import (
    TEMPORARY,
    as_volume_error,
    exists,
    file_sha256,
    is_folder,
    plain_status,
    read_small,
    sync_folder,
    write_whole,
)
from ovia_backup_dagster.core.human_text import human_bytes, seconds
from ovia_backup_dagster.core.layout import PITR
from ovia_backup_dagster.core.locking import require_still_there, volume_lock
from ovia_backup_dagster.core.manifest import FileFacts
from ovia_backup_dagster.core.pitr_errors import BaseBackupError
from ovia_backup_dagster.core.write_permission import make_writable
from ovia_backup_dagster.pitr.archive import BASE_NAME, ClusterArchive, base_name, cluster_archives
from ovia_backup_dagster.pitr.base_manifest import BASE, TAR, BaseManifest, sealed
from ovia_backup_dagster.pitr.base_verification import MANIFEST_BYTES
from ovia_backup_dagster.pitr.bases import BaseBackup, read_base, read_bases
from ovia_backup_dagster.pitr.postgres_manifest import BACKUP_MANIFEST, PostgresManifest, parse_postgres_manifest
from ovia_backup_dagster.pitr.replication_refusals import diagnose_replication
from ovia_backup_dagster.pitr.source_server import SourceServer, ask_source, server_clock
from ovia_backup_dagster.postgres.programs import Connection, Programs, messages, start
from ovia_backup_dagster.postgres.server_language import in_english
from ovia_backup_dagster.postgres.stall import watch

#: The lock, in the folder of all clusters: two base backups at a time would share the server's disk and the network.
#: It is not the volume's, which a dump holds: a dump may run beside a base backup.
BASE_LOCK = ".base.lock"
PROGRESS_SECONDS = 10.0
#: The command that messages advise for a retry.
_AGAIN = "ovia-backup base-backup"
#: The first that server and pg_basebackup both support. Compression on the server saves the network's time; zstd:1 is
#: faster than gzip:1, and its files are smaller.
COMPRESSIONS = ("server-zstd:1", "client-zstd:1", "server-gzip:1", "client-gzip:1", "none")
#: Without a base backup to compare with: zstd:1 needs 0.2 of a data directory, and rarely more than this.
_EXPECTED_RATIO = 0.5
#: The server archives its WAL elsewhere or not at all: this system receives it.
_EXPECTED = re.compile(r"NOTICE:\s+(?:WAL archiving is not enabled|all required WAL segments have been archived)")
_WARNINGS_LIMIT = 50

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BaseBackupMaker:
    """Everything that a base backup depends on.

    Attributes:
        archive: the files of the cluster.
        connection: to the server, as the role that receives WAL.
        programs: the client programs.
        max_rate: the limit, as pg_basebackup spells it, such as ``50M``; empty for none.
        lock_wait_seconds: how long to wait for another base backup; ``None`` for not at all.
        compressions: those to try, in this order.
    """

    archive: ClusterArchive
    connection: Connection
    programs: Programs
    max_rate: str = ""
    lock_wait_seconds: float | None = None
    compressions: tuple[str, ...] = COMPRESSIONS

    def make(
        self, now: datetime, *, log: Log, run_id: str | None = None, progress_seconds: float = PROGRESS_SECONDS
    ) -> BaseBackup:
        """Make a base backup. It appears under its name complete, or not at all.

        Args:
            now: the present (UTC), for the lock's note.
            log: receives what happens, line by line.
            run_id: Dagster's run, for the manifest.
            progress_seconds: how often to log progress.

        Raises:
            ServerReplacedError: another cluster than the archive's answers.
            LockHeldError: another base backup is being made.
            BackupError: the backup failed; it left nothing behind and touched no earlier one.
        """
        make_writable(self.archive.base)
        with as_volume_error(f"cannot make a base backup in {self.archive.base}"), self._lock(now, log) as lock:
            for path in sweep_unfinished_bases(self.archive.root):
                log(f"removed a leftover of a crashed run: {path}")
            source = ask_source(self.connection)
            source.require_cluster(self.archive.system_identifier)
            self._refuse_other_major(source)
            expected_bytes = self._require_room(source)
            folder = self._free_folder(source.now)
            with _removed(self.archive.base / f".{folder.name}{TEMPORARY}") as temporary:
                clock = time.monotonic()
                compression, warnings = self._run(temporary, lock, expected_bytes, log, progress_seconds)
                base = self._described(temporary, source, clock, log).model_copy(
                    update={"compression": compression, "warnings": warnings[:_WARNINGS_LIMIT], "run_id": run_id}
                )
                write_whole(temporary / BASE, sealed(base))
                sync_folder(temporary)
                require_still_there(lock, self.archive.root / PITR, BASE_LOCK, again=_AGAIN)
                os.rename(temporary, folder)
                sync_folder(self.archive.base)
        size, data = human_bytes(base.size_bytes), human_bytes(base.data_bytes)
        log(f"published base backup {folder.name} ({data} in {seconds(base.seconds)}, as {size} with {compression})")
        return read_base(folder)

    def _lock(self, now: datetime, log: Log) -> AbstractContextManager[int]:
        return volume_lock(
            self.archive.root / PITR,
            purpose=f"making a base backup of {self._address}",
            now=now,
            wait_seconds=self.lock_wait_seconds,
            on_wait=lambda holder: log(f"waiting for {holder}"),
            name=BASE_LOCK,
        )

    def _described(self, folder: Path, source: SourceServer, clock: float, log: Log) -> BaseManifest:
        """The manifest of what pg_basebackup wrote, which is on disk when this returns.

        Raises:
            BackupError: it is not what pg_basebackup has to write.
        """
        finished_at = self._server_time(source, time.monotonic() - clock, log)
        manifest = self._manifest(folder)
        files = {path.name: _facts(path) for path in sorted(folder.iterdir())}
        _require_tars(files, self._address)
        return BaseManifest(
            system_identifier=self.archive.system_identifier,
            server_version=source.version,
            bootstrap_superuser=source.bootstrap_superuser,
            major=source.facts.major,
            timeline=manifest.timeline,
            start_lsn=str(manifest.start),
            end_lsn=str(manifest.end),
            started_at=source.now,
            finished_at=finished_at,
            seconds=round(time.monotonic() - clock, 3),
            compression="",
            max_rate=self.max_rate,
            client_version=self.programs.version("pg_basebackup"),
            files=files,
            tablespaces=tuple(space for space in source.tablespaces if _has_tar(space.oid, files)),
            data_bytes=manifest.data_bytes,
            made_by=f"ovia-backup-dagster {__version__}",
        )

    @property
    def _address(self) -> str:
        return f"{self.connection.host}:{self.connection.port}"

    def _refuse_other_major(self, source: SourceServer) -> None:
        ours, server = self.programs.major("pg_basebackup"), source.facts.major
        if ours != server:
            raise VersionMismatchError(
                f"pg_basebackup {ours} is the wrong version for the server at {self._address}",
                why=f"the server is PostgreSQL {server} ({source.version}), and only its own programs read its files",
                fix=f"use PostgreSQL {server}'s client programs: set PG_BIN_DIR, or use another image",
            )

    def _require_room(self, source: SourceServer) -> int:
        """The bytes that the backup is expected to take; requires that they are free."""
        before = read_bases(self.archive).complete
        needed = before[-1].manifest.size_bytes if before else int(source.database_bytes * _EXPECTED_RATIO)
        free = shutil.disk_usage(self.archive.base).free
        if free < needed:
            took = f"the last one took {human_bytes(needed)}"
            if not before:
                took = f"the databases have {human_bytes(source.database_bytes)}, and half of that must be free"
            raise DiskFullError(
                f"the backup volume {self.archive.root} has too little room for a base backup",
                why=f"{human_bytes(free)} free; {took}",
                fix="make room: ovia-backup prune --dry-run; df -h $BACKUP_DIR; or enlarge the volume",
            )
        return needed if before else 0

    def _free_folder(self, started_at: datetime) -> Path:
        while exists(folder := self.archive.base / base_name(started_at)):
            started_at += timedelta(seconds=1)
        return folder

    def _run(
        self, folder: Path, lock: int, expected_bytes: int, log: Log, progress_seconds: float
    ) -> tuple[str, tuple[str, ...]]:
        """Run pg_basebackup; returns the compression, and its warnings."""
        stderr = ""
        for compression in self.compressions:
            log(f"pg_basebackup of {self._address}, compression {compression}")
            code, stderr = self._once(folder, compression, lock, expected_bytes, log, progress_seconds)
            if code == 0:
                told = messages(self.connection.redact(stderr))
                return compression, tuple(line for line in told if not _EXPECTED.search(line))
            # It is refused before anything is written.
            if not re.search("compress", stderr, re.IGNORECASE) or _bytes_in(folder):
                what = f"pg_basebackup of {self._address} failed"
                raise diagnose_replication(stderr, what=what, connection=self.connection, exit_code=code)
            _remove(folder)
        raise CompressionUnsupportedError(
            f"pg_basebackup of {self._address} refuses every compression: {', '.join(self.compressions)}",
            said=" / ".join(messages(self.connection.redact(stderr))[-1:]),
            fix="pg_basebackup --version; ovia-backup doctor",
        )

    def _once(
        self, folder: Path, compression: str, lock: int, expected_bytes: int, log: Log, progress_seconds: float
    ) -> tuple[int, str]:
        command = (
            self.programs.path("pg_basebackup"),
            f"--pgdata={folder}",
            "--format=tar",
            # The WAL that the backup needs is received with all other WAL.
            "--wal-method=none",
            "--checkpoint=fast",
            f"--compress={compression}",
            "--manifest-checksums=SHA256",
            "--no-password",
            # The files are synced later by this process, when it hashes what was written.
            "--no-sync",
            *((f"--max-rate={self.max_rate}",) if self.max_rate else ()),
            f"--dbname={self.connection.conninfo()}",
        )
        variables = {**self.connection.environment(), **in_english(self.connection)}
        watched = watch(self.programs, self.connection, retry=_AGAIN)
        clock = time.monotonic()

        def tell() -> None:
            size, took = _bytes_in(folder), time.monotonic() - clock
            line = f"{human_bytes(size)} after {took:.0f} s, {human_bytes(size / max(took, 0.001))}/s"
            share = f", {100 * size / expected_bytes:.0f} % of the last one's size" if expected_bytes else ""
            log(line + share)

        # The child inherits the lock: if this process is killed, no other base backup begins until it has ended.
        try:
            with start(command, variables=variables, pass_fds=(lock,), watch=watched) as child:
                code = child.wait(tell, poll_seconds=progress_seconds)
        except StalledError as error:
            if "BackupWaitWalArchive" not in error.reason:
                raise
            raise BaseBackupError(
                f"pg_basebackup of {self._address} was ended",
                why="everything was sent, but the server waits until its own archive_command or archive_library has "
                "archived the WAL, and that fails",
                fix="SELECT * FROM pg_stat_archiver; see the server's log; correct archive_command, or, if only this "
                "system archives: ALTER SYSTEM SET archive_command = '/bin/true'; SELECT pg_reload_conf()",
            ) from None
        return code, child.stderr

    def _manifest(self, folder: Path) -> PostgresManifest:
        """PostgreSQL's manifest, which it writes last."""
        what = f"pg_basebackup of {self._address} wrote an incomplete backup"
        fix = f"try again: {_AGAIN}; df -h $BACKUP_DIR"
        try:
            manifest = parse_postgres_manifest(read_small(folder / BACKUP_MANIFEST, MANIFEST_BYTES))
        except FileNotFoundError:
            raise ProgramError(what, why=f"it ended with code 0, and wrote no {BACKUP_MANIFEST}", fix=fix) from None
        except ValueError as error:
            raise BaseBackupError(what, why=f"{BACKUP_MANIFEST} cannot be used: {error}", fix=fix) from None
        if manifest.system_identifier not in (None, self.archive.system_identifier):
            raise BaseBackupError(what, why="the server was replaced meanwhile", fix=fix)
        return manifest

    def _server_time(self, source: SourceServer, elapsed_seconds: float, log: Log) -> datetime:
        """When the backup had ended, by the server's clock."""
        try:
            return server_clock(self.connection)
        except BackupError as error:
            # The backup is complete, and may be the last one of this server.
            log(f"the server's clock cannot be read any more, so the end is computed: {error.account}")
            return source.now + timedelta(seconds=elapsed_seconds)


def sweep_unfinished_bases(root: Path) -> list[Path]:
    """Remove the folders that a killed run left, of all clusters. The caller holds the lock of base backups.

    Raises:
        VolumeError: a folder cannot be read.
    """
    swept = []
    for archive in cluster_archives(root):
        with as_volume_error(f"cannot list {archive.base}", passing=FileNotFoundError):
            names = sorted(os.listdir(archive.base)) if is_folder(archive.base) else []
        for path in (archive.base / name for name in names):
            inner = path.name[1 : -len(TEMPORARY)]
            if path.name == f".{inner}{TEMPORARY}" and BASE_NAME.fullmatch(inner) and is_folder(path):
                # A folder that cannot be removed does not stop the sweep.
                with contextlib.suppress(OSError):
                    _remove(path)
                    swept.append(path)
    return swept


@contextmanager
def _removed(folder: Path) -> Iterator[Path]:
    """Remove a folder at the end of the block, unless it has been renamed."""
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            _remove(folder)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _facts(path: Path) -> FileFacts:
    sha256 = file_sha256(path, sync=True)
    return FileFacts(sha256=sha256, size_bytes=plain_status(path).st_size)


def _require_tars(files: dict[str, FileFacts], address: str) -> None:
    strange = [name for name in files if not TAR.fullmatch(name) and name != BACKUP_MANIFEST]
    if strange or not any(name.startswith("base.tar") for name in files):
        raise ProgramError(
            f"pg_basebackup of {address} wrote other files than expected",
            why=f"it ended with code 0, and wrote {', '.join(files) or 'none'}",
            fix="pg_basebackup --version; ovia-backup doctor",
        )


def _has_tar(oid: int, files: dict[str, FileFacts]) -> bool:
    return any(name.startswith(f"{oid}.tar") for name in files)


def _bytes_in(folder: Path) -> int:
    size = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                size += entry.stat(follow_symlinks=False).st_size
    return size
