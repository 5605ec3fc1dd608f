"""The demo: start the embedded server, run the daily job through Dagster, and list the backups.

Dagster runs as a child process, so that the command line never imports it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import ProgramError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.sidecars import SIDECAR_KINDS
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.demo.point_in_time import PointInTime
from ovia_backup_dagster.demo.process_groups import end_group, start_group
from ovia_backup_dagster.demo.second_place import SecondPlace
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.programs import messages
from ovia_backup_dagster.settings.model import PREFIXES

DATABASE = "ovia"
_PYTHON = (sys.executable, "-W", "ignore", "-m")
_DG = str(Path(sys.executable).with_name("dg"))
_LAUNCH = (*_PYTHON, "ovia_backup_dagster.defs.job_launcher")
_JOBS = ("daily_backup_job", "restore_drill_job")
_RESTORE_ROLE, _RESTORE_ROLE_SCRIPT = "ovia_restore", "deploy/restore-role.sql"
_OURS = (*PREFIXES, "PG", "DAGSTER_")

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a demo showed besides the backups.

    Attributes:
        brought_back: the verification of the copy that was brought back, in a line; empty without copies.
        recovered: what was deleted, brought back and undone, in a line.
    """

    brought_back: str
    recovered: str


@dataclass(frozen=True, slots=True)
class Demo:
    """One demo.

    Attributes:
        folder: holds the backups and Dagster's history; kept between runs.
        scale: the size of the sample database, when it is created.
    """

    folder: Path
    scale: float

    @property
    def backups(self) -> Path:
        """The demo's backup volume."""
        return self.folder / "backups"

    @property
    def recovery(self) -> PointInTime:
        """The demo's point-in-time recovery."""
        return PointInTime(self.folder)

    @property
    def second(self) -> SecondPlace:
        """Where the demo's backups are copied to."""
        return SecondPlace(self.folder)

    def back_up(self, log: Log) -> Shown:
        """Run ``daily_backup_job`` and ``restore_drill_job`` once, bring a copy back, and rows as of an instant.

        Raises:
            BackupError: the server or a job failed; the error names the log.
        """
        with self._server(log) as cluster, self.recovery.receiving(self._environment(cluster)):
            self._run_jobs(cluster, log)
            environment = self._environment(cluster)
            brought_back = self.second.bring_back(environment)
            return Shown(brought_back, self.recovery.show(environment, cluster, DATABASE, log))

    def _run_jobs(self, cluster: Cluster, log: Log) -> None:
        environment = self.second.prepare(self._environment(cluster), log)
        output = self.folder / "jobs.log"
        log(f"running {' and '.join(_JOBS)} through Dagster (their log: {output})")
        command = (*_LAUNCH, str(_checkout() / "workspace.yaml"), *_JOBS)
        with open(output, "wb") as file:
            process = start_group(command, env=environment, stdout=subprocess.PIPE, stderr=file, cwd=_checkout())
            succeeded = 0
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log(line.decode().rstrip())
                    succeeded += 1
                code = process.wait()
            finally:
                end_group(process)
        if code != 0:
            lines = messages(output.read_text("utf-8", "replace"))
            raise ProgramError(f"{_JOBS[succeeded]} failed", why=lines[-1] if lines else "", fix=f"read {output}")

    def drill(self) -> Evidence | None:
        """The newest restore drill."""
        return next(DrillFolder(Catalog(self.backups, DATABASE)).newest_first(), None)

    def serve(self, port: int, log: Log) -> int:
        """Run the UI and the daemon until they end, with at least one backup to show; returns their exit code.

        Raises:
            BackupError: the port is taken, or the server failed.
        """
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                # Dagster would continue without its UI, and the browser would show another program.
                raise ProgramError(
                    f"port {port} is taken", why=error.strerror or str(error), fix=f"make dev PORT={port + 1}"
                ) from None
        with self._server(log) as cluster, self.recovery.receiving(self._environment(cluster)):
            if not any(self.backups.glob("*/*.dump")):
                try:
                    self._run_jobs(cluster, log)
                except ProgramError as error:  # the UI shows the failed run, too
                    log(str(error))
            log(f"the Dagster UI: http://127.0.0.1:{port} (Ctrl-C ends it)")
            where = ("--workspace", str(_checkout() / "workspace.yaml"), "--host", "127.0.0.1", "--port", str(port))
            command = (_DG, "dev", *where)
            process = start_group(command, env=self._environment(cluster), cwd=_checkout())
            try:
                return process.wait()
            except (KeyboardInterrupt, SystemExit):
                log("ending Dagster")
                return 0
            finally:
                end_group(process)

    def remove(self) -> None:
        """Stop the demo's server, and remove its data, backups and history."""
        Cluster(embedded_server.bin_dir(), _private_folder(self.folder)).remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """The backups on the volume: backup, size, rows, state, sidecars."""
        catalog, now = Catalog(self.backups, DATABASE), datetime.now(UTC)
        rows = []
        for backup in catalog.backups():
            witness = backup.witness
            count = f"{witness.rows:,}" if witness else ""
            beside = ", ".join(kind.word for kind in reversed(SIDECAR_KINDS) if backup.sidecar(kind).exists())
            where = f"{backup.tier}/{backup}"
            rows.append((where, human_bytes(backup.size_bytes), count, backup.state(now).value, beside))
        return rows

    @contextmanager
    def _server(self, log: Log) -> Iterator[Cluster]:
        """The demo's server with the sample database; the last process that uses it stops it.

        Each process that uses it holds a shared lock, which the kernel releases if the process is killed; so the next
        demo stops a server that was left running.
        """
        cluster = Cluster(embedded_server.bin_dir(), _private_folder(self.folder))
        users = os.open(cluster.folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with _alone(cluster):
                fcntl.flock(users, fcntl.LOCK_SH)
                self._start(cluster, log)
            yield cluster
        finally:
            with _alone(cluster), contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                cluster.stop()
            os.close(users)

    def _start(self, cluster: Cluster, log: Log) -> None:
        # Written last: an interrupted load starts again.
        done = cluster.folder / "loaded"
        if not done.exists():
            self._make(cluster, log)
            done.touch()
        elif not cluster.running:
            cluster.start()
        embedded_server.create_restore_role(
            cluster.connection(DATABASE), cluster.bin_dir, _checkout() / _RESTORE_ROLE_SCRIPT
        )
        self.recovery.prepare(cluster, _checkout(), DATABASE)

    def _make(self, cluster: Cluster, log: Log) -> None:
        """Create the cluster with the sample database, after removing what an earlier attempt left."""
        cluster.stop("immediate")
        for remains in (cluster.data, self.folder / "dagster"):
            shutil.rmtree(remains, ignore_errors=True)
        if self.backups.is_dir():
            # Backups of an earlier server, which was lost, for example when the machine was restarted.
            aside = self.backups.with_name(f"backups-until-{datetime.now(UTC):%Y-%m-%d_%H%M%S}")
            self.backups.rename(aside)
            log(f"the backups of the previous server are kept in {aside}")
        log(f"making a PostgreSQL 16 cluster in {cluster.folder}")
        cluster.create()
        cluster.start()
        log(f"loading the sample database {DATABASE}")
        embedded_server.create_database(cluster.connection(), cluster.bin_dir, DATABASE, self.scale)

    def _environment(self, cluster: Cluster) -> dict[str, str]:
        """The child's environment: this process's, with the demo's settings instead of another deployment's."""
        home = self.folder / "dagster"
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_checkout() / "dagster.yaml", home / "dagster.yaml")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return {
            **kept,
            "DAGSTER_HOME": str(home),
            "POSTGRES_HOST": str(cluster.folder),
            "POSTGRES_DB": DATABASE,
            "POSTGRES_USER": "ovia",
            "RESTORE_POSTGRES_USER": _RESTORE_ROLE,
            "BACKUP_DIR": str(self.backups),
            "PG_BIN_DIR": str(cluster.bin_dir),
            **self.recovery.settings(),
            **self.second.settings(),
        }


@contextmanager
def _alone(cluster: Cluster) -> Iterator[None]:
    """Hold a lock, so that only one demo at a time starts or stops the server."""
    with open(cluster.folder / "start.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _checkout() -> Path:
    """The folder with ``workspace.yaml`` and ``dagster.yaml``.

    Raises:
        ProgramError: this is not a checkout.
    """
    folder = Path(__file__).parents[2]
    if not (folder / "workspace.yaml").exists():
        raise ProgramError(
            "the demo runs from a checkout", why=f"{folder} has no workspace.yaml", fix="clone the project; make demo"
        )
    return folder


def _private_folder(folder: Path) -> Path:
    """The cluster's folder: short enough for a socket, the same for each run of a demo, and private.

    Raises:
        ProgramError: another user created it.
    """
    mark = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    place = Path(tempfile.gettempdir()) / f"ovia-demo-{os.geteuid()}-{mark}"
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:
        status = place.lstat()
        # Under root the folder belongs to the account that the server runs as; no other user may enter it.
        ours = os.geteuid() in (0, status.st_uid)
        if place.is_symlink() or not ours or status.st_mode & 0o077:
            raise ProgramError(
                f"{place} is not ours", why="another user made it", fix=f"remove it: rm -r {place}"
            ) from None
    return place
