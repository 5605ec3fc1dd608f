"""A server that is lost with its disk while sessions commit: what they were told, and what a recovery brings back.

``Lost`` compares the two; the test asserts on it, and ``benchmarks.pitr`` states it. A round begins with copies of a
server and a volume that were prepared once, so that no round pays for initdb and a base backup.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from ovia_backup_dagster.pitr.recovered_cluster import recovered
from ovia_backup_dagster.pitr.recovery_plan import LATEST, RecoveryPlanner
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster_tests.conftest import PortCluster, admin, free_port, quiet
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.ground import Ground
from ovia_backup_dagster_tests.pitr.history import short_folder
from ovia_backup_dagster_tests.pitr.receiving import Receiver, receiver

#: Sessions that commit at the same time.
WRITERS = 2
_SYNCHRONOUS = "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'"

#: For each writer, when each of its rows was acknowledged (seconds since 1970); a row's number is its place.
Acknowledged = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Lost:
    """What one round lost.

    Attributes:
        acknowledged: for each writer, when each of its rows was acknowledged.
        recovered: for each writer, the numbers of its rows after the recovery, in order.
        killed_at: when the server was killed (seconds since 1970).
        confirmed_at: until when everything was safe, as the receiver had reported (seconds since 1970).
    """

    acknowledged: Acknowledged
    recovered: Sequence[Sequence[int]]
    killed_at: float
    confirmed_at: float

    @property
    def commits(self) -> int:
        """Commits that were acknowledged, and are gone."""
        return sum(len(set(range(len(told))) - set(there)) for told, there in self._each)

    @property
    def committed(self) -> int:
        """Commits that were acknowledged."""
        return sum(map(len, self.acknowledged))

    @property
    def seconds(self) -> float:
        """From the acknowledgment of the last commit that was recovered to the kill; 0 if none was lost."""
        if not self.commits:
            return 0.0
        kept = [told[number] for told, there in self._each for number in there if number < len(told)]
        return max(0.0, self.killed_at - max(kept, default=min(told[0] for told in self.acknowledged if told)))

    @property
    def confirmed(self) -> int:
        """Commits that were acknowledged before the instant that the receiver had reported as safe."""
        return sum(at < self.confirmed_at for told in self.acknowledged for at in told)

    def faults(self) -> list[str]:
        """What contradicts the promises: in each writer's order, nothing confirmed is missing, nothing is invented."""
        found = []
        for writer, (told, there) in enumerate(self._each):
            if list(there) != list(range(len(there))):
                found.append(f"writer {writer}: the rows are not the first that it committed: {list(there)[-5:]}")
            # The last row may be committed without an answer.
            if len(there) > len(told) + 1:
                found.append(f"writer {writer}: {len(there)} rows, and only {len(told)} were acknowledged")
            safe = sum(at < self.confirmed_at for at in told)
            if len(there) < safe:
                found.append(f"writer {writer}: {len(there)} rows, and {safe} were confirmed as safe")
        return found

    @property
    def _each(self) -> Iterator[tuple[Sequence[float], Sequence[int]]]:
        return zip(self.acknowledged, self.recovered, strict=True)


@dataclass(frozen=True)
class PreparedServer:
    """A stopped server and its volume, which rounds copy.

    Attributes:
        ground: the server.
        volume: has a base backup of it, and the WAL since.
        beacon_seconds: how often a round's receiver writes a beacon.
    """

    ground: Ground
    volume: Path
    beacon_seconds: int = 1

    def lose(self, folder: Path, *, synchronous: bool, seconds: float) -> Lost:
        """One round: commit, lose the server, recover to the last commit that was received.

        Args:
            folder: for the round's volume; it must not exist.
            synchronous: whether the server waits for the receiver before it acknowledges a commit.
            seconds: how long the writers go on after the first beacon has confirmed some of their rows.
        """
        folder.mkdir(mode=0o700)
        _copy(self.volume, folder / "volume")
        with (
            _copied(self.ground) as ground,
            receiver(ground, folder / "volume", WAL_BEACON_SECONDS=str(self.beacon_seconds)) as running,
        ):
            if synchronous:
                ground.execute("ALTER SYSTEM SET synchronous_standby_names = 'ovia_wal'")
                ground.reload()
                until(lambda: _says(ground, _SYNCHRONOUS))
            with Writers(ground.cluster).writing() as writers:
                until(lambda: all(writers.acknowledged))
                running.until_safe()
                time.sleep(seconds)
                killed_at = destroy(ground.cluster)
            confirmed_at = _ended(running)
        recovered = recovered_rows(ground.programs, folder / "volume")
        return Lost(writers.acknowledged, recovered, killed_at, confirmed_at)


@contextmanager
def prepared_server(ground: Ground, volume: Path, *, beacon_seconds: int = 1) -> Iterator[PreparedServer]:
    """Prepare a running server, and stop it: a table for the writers, a slot, a base backup."""
    ground.execute("CREATE TABLE numbered (writer int, number int)")
    with receiver(ground, volume) as running:
        running.until_safe()
        ground.base_backup(volume)
        running.end()
    # The slot keeps what was not received yet.
    ground.cluster.stop()
    yield PreparedServer(ground, volume, beacon_seconds)


@dataclass
class Writers:
    """Sessions that commit numbered rows as fast as they can, and note each commit that was acknowledged."""

    cluster: PortCluster
    acknowledged: list[list[float]] = field(default_factory=lambda: [[] for _ in range(WRITERS)])

    @contextmanager
    def writing(self) -> Iterator[Writers]:
        """Write until the server is gone, which the block sees to."""
        threads = [threading.Thread(target=self._write, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            if self.cluster.data.exists():
                destroy(self.cluster)
            for thread in threads:
                thread.join()

    def _write(self, writer: int) -> None:
        told = self.acknowledged[writer]
        # An error is the loss of the server.
        with contextlib.suppress(psycopg.OperationalError), admin(self.cluster) as session:
            while True:
                session.execute("INSERT INTO numbered VALUES (%s, %s)", [writer, len(told)])
                told.append(time.time())


def destroy(cluster: PortCluster) -> float:
    """Kill all processes of a server at once, and remove its disk; returns when (seconds since 1970).

    The sender of WAL is killed first. What it has handed to the kernel still arrives, as the kernel goes on.
    """
    postmaster = cluster.pid
    children = (Path(f"/proc/{postmaster}/task/{postmaster}/children")).read_text("ascii").split()
    processes = sorted((int(child) for child in children), key=lambda pid: not _sends(pid))
    for pid in (*processes, postmaster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    killed_at = time.time()
    shutil.rmtree(cluster.data, ignore_errors=True)
    until(lambda: not any(map(_lives, (*processes, postmaster))))
    shutil.rmtree(cluster.data, ignore_errors=True)
    return killed_at


def recovered_rows(programs: Programs, volume: Path) -> list[list[int]]:
    """Recover to the last commit on a volume; returns the numbers of each writer's rows."""
    plan = RecoveryPlanner(volume, programs).plan(LATEST, datetime.now(UTC), database=None)
    query = b"SELECT writer, number FROM public.numbered ORDER BY writer, number"
    rows: list[list[int]] = [[] for _ in range(WRITERS)]
    with (
        short_folder() as folder,
        recovered(programs, folder, plan.order, hours=0.1, log=quiet) as found,
        connect(found.connection("postgres")) as session,
    ):
        for row in session.execute(query):
            rows[row["writer"]].append(row["number"])
    return rows


def _ended(running: Receiver) -> float:
    """End the receiver once it has noticed the loss; returns until when everything was safe, as it reported."""
    status = running.until(lambda status: any(each.error == "ServerUnreachableError" for each in status.troubles))
    until(lambda: not running.children)
    running.end()
    assert status.confirmed_at is not None
    return status.confirmed_at.timestamp()


@contextmanager
def _copied(source: Ground) -> Iterator[Ground]:
    """A copy of a stopped server, started on a port of its own."""
    folder = Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp"))
    cluster = replace(source.cluster, folder=folder, port=free_port())
    try:
        shutil.chown(folder, source.cluster.data.owner(), source.cluster.data.group())
        _copy(source.cluster.data, cluster.data)
        with open(cluster.data / "postgresql.conf", "a", encoding="utf-8") as file:
            file.write(f"port = {cluster.port}\nunix_socket_directories = '{folder}'\n")
        cluster.start()
        yield replace(source, cluster=cluster)
    finally:
        cluster.remove()


def _copy(source: Path, target: Path) -> None:
    """With owners, modes and times."""
    subprocess.run(("cp", "--archive", "--reflink=auto", source, target), check=True)


def _says(ground: Ground, query: str) -> bool:
    with admin(ground.cluster) as session:
        return session.execute(query.encode()).fetchone() == (True,)


def _sends(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"walsender" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] != "Z"
    return False
