"""A throwaway cluster that PostgreSQL recovers from a base backup and received WAL, up to one commit.

Nothing of the source's configuration is used: its ``synchronous_standby_names`` alone would hang every commit. The
cluster is confined like a drill's, because a physical copy has the source's code, too. ``recovery_target`` says which
commit; ``wal_feed`` hands the WAL over.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError, ProgramError
from ovia_backup_dagster.core.human_text import human_bytes, seconds
from ovia_backup_dagster.core.locking import reading
from ovia_backup_dagster.core.pitr_errors import BaseBackupError, RecoveryError
from ovia_backup_dagster.drill.throwaway_cluster import (
    CLUSTER,
    SERVER_LOG,
    ThrowawayServer,
    cluster_folder,
    locks_for,
    remove_folder,
    server_programs,
    usable,
)
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_manifest import BASE
from ovia_backup_dagster.pitr.base_unpacking import unpack_base
from ovia_backup_dagster.pitr.bases import BaseBackup
from ovia_backup_dagster.pitr.wal_feed import WalFeed
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.deferred_signals import signals_deferred
from ovia_backup_dagster.postgres.local_cluster import Cluster, account
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.postgres.sandbox import Limits

_WAL, _WANTED, _TABLESPACES = "wal", "wanted", "tablespaces"
AUTO_CONFIGURATION = "postgresql.auto.conf"
_CONFIGURATION, _HBA = "recovery.conf", "hba.conf"
#: The settings of the source that recovery needs at least, by their names in pg_controldata.
_CONTROLLED = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
#: Transactions that were prepared since the base backup need a place, whatever the setting was then.
_PREPARED = 100
_STOPPED = re.compile(r"recovery stopping after WAL location \(LSN\) \"(\S+)\"")
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "synchronous_standby_names": "",
    "archive_mode": "off",
    "autovacuum": "off",
    "jit": "off",
    # Sessions are refused until the target is reached, so the source's later settings need not be matched.
    "hot_standby": "off",
    "recovery_target_inclusive": "on",
    "recovery_target_action": "promote",
    "lc_messages": "C",
    "log_timezone": "UTC",
    "max_wal_size": "4GB",
    "shared_buffers": "128MB",
    "dynamic_shared_memory_type": "mmap",
}


@dataclass(frozen=True, slots=True)
class RecoveryOrder:
    """What to recover.

    Attributes:
        archive: the cluster's files.
        base: the base backup to begin with.
        timeline: the timeline to follow.
        target: the commit record that is replayed last.
    """

    archive: ClusterArchive
    base: BaseBackup
    timeline: Timeline
    target: Lsn

    @property
    def wal_bytes(self) -> int:
        """How much WAL is replayed."""
        return max(0, self.target - self.base.manifest.start)


@dataclass(slots=True)
class RecoveredCluster:
    """The cluster, as of its target.

    Attributes:
        cluster: how to reach it.
        place: its folder, which is removed with it.
        phases: how long each part took, in seconds.
        server: its server.
    """

    cluster: Cluster
    place: Path
    phases: dict[str, float] = field(default_factory=dict)
    server: ThrowawayServer | None = None

    @property
    def tablespaces(self) -> Path:
        """The folder of the tablespaces besides the data directory, if there are any."""
        return self.cluster.folder / _TABLESPACES

    def connection(self, database: str) -> Connection:
        """A superuser's connection to one of its databases."""
        return self.cluster.connection(database)


@contextmanager
def recovered(
    programs: Programs, folder: Path, order: RecoveryOrder, *, limits: Limits | None = None, hours: float, log: Log
) -> Iterator[RecoveredCluster]:
    """A cluster as it was right after a commit; it exists only while the block runs.

    Args:
        programs: the client and server programs, with the sandbox that confines them.
        folder: where its folder is made.
        order: what to recover.
        limits: the resources that the server may use; ``None`` for no limit.
        hours: how long the recovery may take.
        log: receives progress.

    Raises:
        RecoveryError: PostgreSQL did not reach the target.
        BaseBackupError, SegmentDamagedError: what it is recovered from is damaged.
        BackupError: the cluster cannot be made or started.
    """
    bin_dir = server_programs(programs)
    with _kept(order.base), cluster_folder(bin_dir, folder, log) as place:
        cluster = Cluster(
            bin_dir, place / CLUSTER, superuser=order.base.manifest.bootstrap_superuser, sandbox=programs.sandbox
        )
        found = RecoveredCluster(cluster, place)
        server: ThrowawayServer | None = None
        try:
            size = human_bytes(order.base.manifest.data_bytes)
            log(f"unpacking base backup {order.base} ({size})")
            clock = time.monotonic()
            with usable(folder):
                feed = _prepare(programs, cluster, place, order)
            found.phases["unpack"] = time.monotonic() - clock
            log(f"replaying {human_bytes(order.wal_bytes)} of WAL, to {order.target}")
            clock = time.monotonic()
            server = found.server = _recover(cluster, place, order, feed, limits, hours)
            found.phases["replay"] = time.monotonic() - clock
            log(f"recovered to {order.target} ({seconds(found.phases['replay'])}, {feed.delivered} segments)")
            yield found
        finally:
            with signals_deferred():
                if server is not None:
                    server.end()
                remove_folder(place)


@contextmanager
def _kept(base: BaseBackup) -> Iterator[None]:
    """Keep pruning from removing the base backup and the WAL after it while the block runs."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(reading(base.folder / BASE))
        except FileNotFoundError:
            raise BaseBackupError(
                f"base backup {base} is gone", why="it was removed in the meantime", fix="ovia-backup recovery-window"
            ) from None
        yield


def _prepare(programs: Programs, cluster: Cluster, place: Path, order: RecoveryOrder) -> WalFeed:
    for path in (cluster.folder, cluster.sockets, place / _WAL, cluster.folder / _WANTED):
        path.mkdir(mode=0o700, exist_ok=True)
        if (owner := account()) is not None:
            ours = path == place / _WAL

            os.chown(path, 0 if ours else owner.pw_uid, owner.pw_gid)
            if ours:
                path.chmod(0o711)
    unpack_base(order.base, cluster.data, cluster.folder / _TABLESPACES)
    feed = WalFeed(order.archive, order.timeline, place / _WAL, cluster.folder / _WANTED)
    controlled = _controlled(programs, cluster.data)
    settings = {
        **_SETTINGS,
        **controlled,
        "max_prepared_transactions": str(max(_PREPARED, int(controlled["max_prepared_transactions"]))),
        "max_locks_per_transaction": str(max(locks_for(0), int(controlled["max_locks_per_transaction"]))),
        "unix_socket_directories": str(cluster.sockets),
        "hba_file": str(place / _HBA),
        "restore_command": feed.restore_command,
        "recovery_target_lsn": str(order.target),
        "recovery_target_timeline": str(order.timeline.number),
    }
    _write(place / _CONFIGURATION, "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items()))
    _write(place / _HBA, "local all all trust\n")
    # Settings that were made by ALTER SYSTEM would win over these.
    with contextlib.suppress(FileNotFoundError):
        os.rename(cluster.data / AUTO_CONFIGURATION, place / AUTO_CONFIGURATION)
    _write(cluster.data / "recovery.signal", "")
    return feed


def _recover(
    cluster: Cluster, place: Path, order: RecoveryOrder, feed: WalFeed, limits: Limits | None, hours: float
) -> ThrowawayServer:
    try:
        with feed.running():
            server = ThrowawayServer.start(
                cluster,
                place,
                limits,
                options=("-c", f"config_file={place / _CONFIGURATION}"),
                read=[place / _WAL, place / _CONFIGURATION, place / _HBA],
                start_seconds=hours * 3600,
            )
    except ProgramError as error:
        if feed.error is not None:
            raise feed.error from None
        raise _unreached(order, (place / SERVER_LOG).read_text("utf-8", "replace"), error) from None
    said = (place / SERVER_LOG).read_text("utf-8", "replace")
    stopped = _STOPPED.search(said)
    if stopped is None or Lsn.parse(stopped[1]) != order.target:
        server.end()
        raise _unreached(order, said, None)
    return server


def _unreached(order: RecoveryOrder, said: str, error: BackupError | None) -> RecoveryError:
    lines = [line for line in said.splitlines() if re.search(r"(?:FATAL|PANIC|ERROR):  ", line)][-2:]
    lines = lines or said.splitlines()[-1:]
    shown = " / ".join(re.sub(r"^.*?((?:FATAL|PANIC|ERROR):  )", r"\1", line) for line in lines)
    return RecoveryError(
        f"base backup {order.base} was not recovered to {order.target}",
        why="WAL before the target is missing or damaged, or the target is not the place of a commit",
        said=shown or (error.reason if error else "it did not say that it reached the target"),
        fix="ovia-backup recovery-window; ovia-backup wal verify",
    )


def _controlled(programs: Programs, data: Path) -> Mapping[str, str]:
    """The settings that the source had at the base backup's checkpoint."""
    command = programs.confined((programs.path("pg_controldata"), str(data)), read=[data])
    code, output, stderr = capture(command)
    lines = dict(line.split(":", 1) for line in output.decode("utf-8", "replace").splitlines() if ":" in line)
    found = {name: lines.get(label, "").strip() for name, label in _CONTROLLED.items()}
    if code or not all(value.isdigit() for value in found.values()):
        raise ProgramError(f"pg_controldata cannot read {data}", said=stderr.strip() or f"it ended with code {code}")
    return found


def _write(path: Path, text: str) -> None:

    path.write_text(text, encoding="utf-8")
    path.chmod(0o640)
    if (owner := account()) is not None:
        os.chown(path, 0 if path.parent.name != "data" else owner.pw_uid, owner.pw_gid)


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
