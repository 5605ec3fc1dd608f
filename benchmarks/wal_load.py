"""Servers whose WAL is received, pgbench on them, and what receiving costs: what ``pitr`` and ``barman`` measure with.

The server, its role and its receiver are those of the tests (``ovia_backup_dagster_tests.pitr``), with the settings of
a server that keeps its data safe.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.drill import PRODUCTION
from benchmarks.measure import background, run, say
from benchmarks.world import BIN, libpq
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.receiver_status import ReceiverStatus
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment
from ovia_backup_dagster.postgres.local_cluster import Cluster, account
from ovia_backup_dagster_tests.conftest import admin
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.ground import Ground, ground_on
from ovia_backup_dagster_tests.pitr.history import short_folder
from ovia_backup_dagster_tests.pitr.receiving import Receiver, receiver

#: The database that pgbench works on, and its sessions and threads.
DATABASE = "bench"
CLIENTS, THREADS = 4, 2
#: Megabytes of a database at scale 1.
_SCALE_MEGABYTES = 15
_SETTINGS: dict[str, Any] = {**PRODUCTION, "shared_buffers": "512MB", "max_wal_size": "8GB"}
#: Commits that wait for no disk: WAL is made as fast as the processor can.
_UNSAFE = {"PGOPTIONS": "-c synchronous_commit=off"}
_UPDATE = """\\set aid random(1, 100000 * :scale - 100)
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid BETWEEN :aid AND :aid + 99;
"""
#: The slot of pg_receivewal alone.
_ALONE = "alone"
_TICKS = os.sysconf("SC_CLK_TCK")


def safe_server() -> AbstractContextManager[Ground]:
    """A server that keeps its data safe, with the role that receives WAL."""
    return ground_on(BIN, **_SETTINGS)


def fill(ground: Ground, megabytes: int) -> None:
    """Make pgbench's tables, of about that size."""
    ground.execute(f"CREATE DATABASE {DATABASE}")
    scale = max(1, megabytes // _SCALE_MEGABYTES)
    say(f"making pgbench's tables, scale {scale}")
    run((BIN / "pgbench", "--initialize", "--quiet", f"--scale={scale}"), _client(ground))


def throughput(ground: Ground, seconds: float, log: Path) -> float:
    """Transactions a second. A checkpoint comes before, so that each run writes as many whole pages."""
    ground.execute("CHECKPOINT")
    run((*_pgbench(), f"--time={seconds:.0f}"), _client(ground), log)
    match = re.search(r"^tps = ([0-9.]+)", log.read_text("utf-8"), re.MULTILINE)
    assert match is not None
    return float(match[1])


def write_wal(ground: Ground, megabytes: int, script: Path) -> None:
    """Update rows until so much WAL was written, many in a transaction: pgbench's own transactions write little."""
    script.write_text(_UPDATE, "utf-8")
    goal = position(ground).bytes + megabytes * 1_000_000
    while position(ground).bytes < goal:
        run((*_pgbench(), f"--file={script}", "--time=1"), _client(ground) | _UNSAFE)


def position(ground: Ground) -> Lsn:
    """Where the next record will begin."""
    return Lsn.parse(str(value(ground, "SELECT pg_current_wal_insert_lsn()")))


def next_segment(ground: Ground) -> str:
    """End the segment that is being written; returns its name."""
    ground.execute("SELECT pg_logical_emit_message(true, 'benchmark', 'a segment with nothing in it is not ended')")
    return str(value(ground, "SELECT pg_walfile_name(pg_switch_wal())"))


@contextmanager
def received(
    ground: Ground, volume: Path, beacon_seconds: int, *, synchronous: bool = False, database: str = "postgres"
) -> Iterator[Receiver]:
    """Receive WAL on a new volume while the block runs; afterwards the server has no slot.

    Args:
        ground: the server.
        volume: the volume; it must not exist.
        beacon_seconds: how often to write a beacon.
        synchronous: whether commits wait for the receiver.
        database: the one that is backed up.
    """
    volume.mkdir(mode=0o700)
    try:
        with receiver(ground, volume, WAL_BEACON_SECONDS=str(beacon_seconds), POSTGRES_DB=database) as running:
            running.until_safe()
            try:
                if synchronous:
                    _wait_for_receiver(ground, wait=True)
                    until(lambda: value(ground, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"))
                yield running
            finally:
                if synchronous:
                    _wait_for_receiver(ground, wait=False)
            running.end()
    finally:
        until(lambda: value(ground, "SELECT count(*) FROM pg_replication_slots WHERE active") == 0)
        ground.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


@contextmanager
def received_by_program(ground: Ground, folder: Path) -> Iterator[None]:
    """Let pg_receivewal alone receive WAL while the block runs, with the options that our receiver gives it."""
    folder.mkdir()
    there = ground.connection
    ground.execute(f"SELECT pg_create_physical_replication_slot('{_ALONE}', true)")
    command = (BIN / "pg_receivewal", f"--directory={folder}", f"--slot={_ALONE}", "--no-loop", "--synchronous")
    environment = {**libpq(there), "PGAPPNAME": _ALONE}
    with background((*command, f"--dbname={there.conninfo()}"), environment, folder.with_suffix(".log")):
        until(lambda: value(ground, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"))
        yield
    until(lambda: value(ground, "SELECT count(*) FROM pg_replication_slots WHERE active") == 0)
    ground.execute(f"SELECT pg_drop_replication_slot('{_ALONE}')")


def archive_all(ground: Ground, running: Receiver) -> ReceiverStatus:
    """End the segment, and wait until it is in the archive."""
    name = next_segment(ground)
    return running.until(lambda status: (status.archived or "") >= name, 300)


@contextmanager
def short_cluster() -> Iterator[Cluster]:
    """A folder for a cluster, and the cluster, which is removed with it; its path is short because of the socket's."""
    with short_folder() as folder:
        cluster = Cluster(BIN, folder / "c")
        cluster.folder.mkdir()
        cluster.folder.chmod(0o711)
        if (owner := account()) is not None:
            os.chown(cluster.folder, owner.pw_uid, owner.pw_gid)
        try:
            yield cluster
        finally:
            cluster.remove()


def start_recovered(cluster: Cluster) -> None:
    """Start a server on its own socket, and wait until its recovery has ended: pg_ctl waits for less."""
    with open(cluster.data / "postgresql.conf", "a", encoding="utf-8") as file:
        file.write(f"\nlisten_addresses = ''\nport = 5432\nunix_socket_directories = '{cluster.sockets}'\n")
    cluster.start()
    there = cluster.connection()
    while True:
        try:
            with psycopg.connect(host=there.host, port=there.port, dbname=there.database, user=there.user) as session:
                if session.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,):
                    return
        except psycopg.OperationalError:
            if not cluster.running:
                raise
        time.sleep(0.01)


def stored_bytes(archive: ClusterArchive, start: Lsn) -> int:
    """The size of the archived segments from a position on, in bytes."""
    first = Segment.at(1, start, archive.facts.segment_bytes)
    return sum(archive.archived(each).stat().st_size for each in archive.archived_segments() if each >= first)


@contextmanager
def server_apart(ground: Ground) -> Iterator[Callable[[int], None]]:
    """Keep the server and what this process starts off the last core; yields what puts another process onto it.

    With one core only, nothing changes.
    """
    before = os.sched_getaffinity(0)
    others, last = before - {max(before)}, {max(before)}
    _place(others or before, os.getpid(), ground.cluster.pid)
    try:
        yield lambda pid: _place(last, pid)
    finally:
        _place(before, os.getpid(), ground.cluster.pid)


def _place(cores: set[int], *pids: int) -> None:
    """Let processes, and those that they have started, run on some cores only. What they start later inherits it."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task.name), cores)
                _place(cores, *map(int, (task / "children").read_text("ascii").split()))


def processor_seconds(*pids: int) -> float:
    """What processes and their ended children have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def value(ground: Ground, query: str, database: str = "postgres") -> object:
    """The value of a superuser's query."""
    with admin(ground.cluster, database) as session:
        row = session.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _wait_for_receiver(ground: Ground, *, wait: bool) -> None:
    change = "SET synchronous_standby_names = 'ovia_wal'" if wait else "RESET synchronous_standby_names"
    ground.execute(f"ALTER SYSTEM {change}")
    ground.reload()


def _client(ground: Ground) -> dict[str, str]:
    return libpq(ground.cluster.connection(DATABASE))


def _pgbench() -> tuple[str | Path, ...]:
    return (BIN / "pgbench", "--no-vacuum", f"--client={CLIENTS}", f"--jobs={THREADS}")
