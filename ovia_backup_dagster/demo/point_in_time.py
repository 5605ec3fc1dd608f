"""The demo of point-in-time recovery: WAL is received, and rows are deleted, brought back, and taken away again."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.errors import ProgramError, VolumeError
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.demo.own_commands import COMMAND, run_command
from ovia_backup_dagster.demo.process_groups import end_group, start_group
from ovia_backup_dagster.pitr.receiver_status import read_status
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.session import connect

_ROLE_SCRIPT, _PASSWORD = "deploy/wal-role.sql", "WAL_PASSWORD"
_TABLE = "person_identity_links"
_BEACON_SECONDS = 1
_START_SECONDS = 30.0
_POLL_SECONDS = 0.1

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PointInTime:
    """The receiver of the demo's WAL.

    Attributes:
        folder: the demo's.
    """

    folder: Path

    def settings(self) -> dict[str, str]:
        """The settings that switch it on."""
        return {"PITR_ENABLED": "true", "WAL_BEACON_SECONDS": str(_BEACON_SECONDS)}

    def prepare(self, cluster: Cluster, checkout: Path, database: str) -> None:
        """Create or change the role ``ovia_wal``.

        Raises:
            BackupError: psql failed.
        """
        embedded_server.run_script(
            cluster.connection(database), cluster.bin_dir, checkout / _ROLE_SCRIPT, secret_variable=_PASSWORD
        )

    @contextmanager
    def receiving(self, environment: Mapping[str, str]) -> Iterator[None]:
        """Receive WAL while the block runs. If another demo does so already, its receiver serves both."""
        volume = Path(environment["BACKUP_DIR"])
        if volume.exists() and not volume.is_dir():
            yield  # the job reports it
            return
        volume.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.folder / "wal.log", "ab") as log:
            process = start_group((*COMMAND, "wal", "receive"), env=dict(environment), stdout=log, stderr=log)
        try:
            self._wait_until_safe(volume, process)
            yield
        finally:
            end_group(process)

    def show(self, environment: Mapping[str, str], cluster: Cluster, database: str, log: Log) -> str:
        """Delete rows, bring them back, take them away again, and bring them back; returns what happened, in a line.

        Raises:
            BackupError: a command failed.
        """
        log("making a base backup, deleting rows, and bringing them back as of the second before")
        run_command(environment, "base-backup")
        # An instant can be recovered once something was committed after the base backup.
        self._wait_until_safe(Path(environment["BACKUP_DIR"]))
        with connect(cluster.connection(database)) as session:

            def rows() -> int:
                found = session.execute(f"SELECT count(*) AS rows FROM public.{_TABLE}".encode()).fetchone()  # noqa: S608
                return int(found["rows"]) if found else 0

            before = rows()
            at = session.execute("SELECT clock_timestamp() AS now").fetchone()
            assert at is not None
            session.execute(f"DELETE FROM public.{_TABLE}".encode())  # noqa: S608 - a constant
        counts = [before, 0]
        clock = time.monotonic()
        target = at["now"].astimezone(UTC).isoformat(sep=" ")
        run_command(environment, "restore", "--to", target, "--yes-destroy", database)
        took = time.monotonic() - clock
        for command in (("undo-restore",), ("undo-restore",)):
            counts.append(self._rows(cluster, database))
            run_command(environment, *command, "--yes-destroy", database)
        counts.append(self._rows(cluster, database))
        deleted, restored, undone, again = counts[1:]
        if (restored, undone, again) != (before, deleted, before):
            raise ProgramError("the rows did not come back", why=f"there were {counts} rows", fix="make clean")
        status = read_status(Path(environment["BACKUP_DIR"]))
        worst = status.worst_rpo_seconds if status else None
        lost = f"; at most {worst:.1f} s of changes were not safe yet" if worst is not None else ""
        return f"{before:,} rows deleted, {restored:,} back in {took:.1f} s, {undone:,} after the undo{lost}"

    @staticmethod
    def _rows(cluster: Cluster, database: str) -> int:
        with connect(cluster.connection(database)) as session:
            found = session.execute(f"SELECT count(*) AS rows FROM public.{_TABLE}".encode()).fetchone()  # noqa: S608
            return int(found["rows"]) if found else 0

    @staticmethod
    def _wait_until_safe(volume: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        """Wait until a message that is sent from now on has come back, or the receiver has ended."""
        began, deadline = datetime.now(UTC), time.monotonic() + _START_SECONDS
        while (process is None or process.poll() is None) and time.monotonic() < deadline:
            try:
                status = read_status(volume)
            except VolumeError:
                return
            if status is not None and status.confirmed_at is not None and status.confirmed_at > began:
                return
            time.sleep(_POLL_SECONDS)
