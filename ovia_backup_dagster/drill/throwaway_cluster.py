"""A cluster that exists for one drill: confined, watched, and removed afterwards.

Its server runs code from the backup, so no file in its folder is trusted: the server is ended through its launcher
(``postgres.sandbox_launcher``), not through files that it could have changed. The cluster of a killed drill ends with
the drill; the next drill removes its folder. ``proof.target`` makes copies on servers that others use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError, CopyError, ProgramError, ProgramMissingError
from ovia_backup_dagster.core.files import is_folder
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.deferred_signals import signals_deferred
from ovia_backup_dagster.postgres.local_cluster import Cluster, account, account_id, may_enter
from ovia_backup_dagster.postgres.process_end import end_process
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.sandbox import Limits, limit_of_processes
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof.target import EXCEEDED, Copy, Kind

#: The prefix of the clusters' folders; a folder with this prefix that is not in use is removed.
PREFIX = "ovia-drill-"
SERVER_PROGRAMS = ("initdb", "postgres")
#: The subfolder that the server may change; the other files in the folder are this module's, out of its reach.
CLUSTER = "c"
#: The server's log, in the folder.
SERVER_LOG = "log"
_LOCK, _LAUNCHER = "lock", "launcher"
_START_SECONDS = 60.0
_END_SECONDS = 30.0
_NOT_FOR_INITDB = frozenset("\"'$\\")
#: No other client connects, and the cluster need not survive a power cut.
_SETTINGS = {
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "maintenance_work_mem": "256MB",
    "jit": "off",
    # There are as many jobs as cores: parallel workers would only make the jobs write their sorts to disk.
    "max_parallel_maintenance_workers": "0",
    # A container's /dev/shm has 64 MB, which a parallel index build or query may exceed; and it is outside the sandbox.
    "dynamic_shared_memory_type": "mmap",
}
#: A dump locks all tables and sequences: the lock table has this many entries for each possible transaction.
_LOCKS, _TRANSACTIONS = 512, 100


@contextmanager
def throwaway(
    programs: Programs,
    folder: Path,
    database: str,
    superuser: str,
    *,
    encoding: str = "UTF8",
    limits: Limits | None = None,
    relations: int = 0,
    keep: bool,
    log: Log,
) -> Iterator[Copy]:
    """A cluster that exists only while the block runs.

    Args:
        programs: the client and server programs, with the sandbox that confines them.
        folder: where the cluster's folder is created.
        database: the name of its database, which is the source's.
        superuser: the source's bootstrap superuser.
        encoding: the source's. All databases share the roles: a role's name is stored in the encoding of the database
            in which it is created, and looked up in the encoding of the session's database.
        limits: the resources that the server may use; ``None`` for no limit.
        relations: how many tables and sequences the database will have, if known.
        keep: leave the cluster running for inspection, until the next drill.
        log: receives a line about what a killed drill left.

    Raises:
        ProgramMissingError: the server programs are not installed.
        BackupError: the cluster cannot be created or started.
    """
    bin_dir = server_programs(programs)
    with cluster_folder(bin_dir, folder, log) as place:
        takes = _NOT_FOR_INITDB.isdisjoint(superuser)
        cluster = Cluster(
            bin_dir,
            place / CLUSTER,
            superuser=superuser if takes else "postgres",
            encoding=encoding,
            settings={**_SETTINGS, "max_locks_per_transaction": str(locks_for(relations))},
            sandbox=programs.sandbox,
        )
        kept = False
        server: ThrowawayServer | None = None
        try:
            with usable(folder):
                cluster.create()
            server = ThrowawayServer.start(cluster, place, limits)
            if not takes:
                cluster = _renamed(cluster, superuser)
            there = cluster.connection(database)
            look = f"psql --host={cluster.sockets} --username={shell_word(superuser)} --dbname={shell_word(database)}"
            maintenance = cluster.connection("template1" if database == "postgres" else "postgres")
            if database in ("postgres", "template1"):
                # These databases exist already, but must be created like the source's.
                with connect(maintenance) as session:
                    session.execute(f"ALTER DATABASE {database} IS_TEMPLATE false".encode())
                    session.execute(f"DROP DATABASE {database}".encode())
            yield Copy(there, maintenance, "throwaway cluster", Kind.THROWAWAY, look, folder=place, limits=limits)
            kept = keep
        finally:
            if kept and server is not None:
                server.stay()
            else:
                with signals_deferred():
                    if server is not None:
                        server.end()
                    remove_folder(place)


def locks_for(relations: int) -> int:
    """``max_locks_per_transaction`` for twice as many relations: partitions have roots, other sessions take locks."""
    return max(_LOCKS, -(-2 * relations // _TRANSACTIONS))


@dataclass(slots=True)
class ThrowawayServer:
    """A server under its launcher."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        cluster: Cluster,
        place: Path,
        limits: Limits | None,
        *,
        options: Sequence[str] = (),
        read: Iterable[Path] = (),
        start_seconds: float = _START_SECONDS,
    ) -> ThrowawayServer:
        """Start the server, and wait until it accepts connections.

        Args:
            cluster: its cluster.
            place: the cluster's folder, with our own files about it.
            limits: the resources that it may use.
            options: more arguments of the server.
            read: folders that it may read besides its own.
            start_seconds: how long it may take until it accepts connections.

        Raises:
            ProgramError: the server does not start; the reason is the last line of its log.
        """
        assert cluster.sandbox is not None
        more = [f"sockets={cluster.sockets}", f"report={place / EXCEEDED}", *(limits.options() if limits else ())]
        if limits is not None:
            more.append(limit_of_processes(account_id()))
        command = cluster.sandbox.command(
            (str(cluster.program("postgres")), "-D", str(cluster.data), *options),
            read=read,
            write=[cluster.folder],
            forks=True,
            stay=True,
            account=account(),
            more=more,
        )
        with open(place / SERVER_LOG, "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cluster.folder,
                env=cluster.environment,
                start_new_session=True,  # Ctrl-C at our terminal is not meant for the server
            )
        server = cls(process)
        try:
            (place / _LAUNCHER).write_text(f"{process.pid}", encoding="ascii")
            server._wait_until_ready(cluster, place, start_seconds)
        except BaseException:
            with signals_deferred():
                server.end()
            raise
        return server

    def _wait_until_ready(self, cluster: Cluster, place: Path, start_seconds: float) -> None:
        deadline, pause = time.monotonic() + start_seconds, 0.01
        while True:
            try:
                with connect(cluster.connection()):
                    return
            except BackupError as error:
                code = self.process.poll()
                if code is None and time.monotonic() < deadline:
                    time.sleep(pause)
                    pause = min(1.1 * pause, 0.25)  # a recovery may take hours
                    continue
                lines = (place / SERVER_LOG).read_text("utf-8", "replace").splitlines()[-1:]
                why = " / ".join(lines) or error.reason
                ended = f"ended with code {code}" if code is not None else "does not take connections"
                raise ProgramError(
                    f"the throwaway server {ended}", why=why, fix="DRILL_SANDBOX=off ovia-backup drill, to see whether"
                    " it starts unconfined; then report it",
                ) from None  # fmt: skip

    def stay(self) -> None:
        """Let the server outlive this process."""
        self.process.send_signal(signal.SIGUSR1)

    def shut_down(self, seconds: float) -> bool:
        """Shut the server down cleanly (PostgreSQL's fast shutdown); ``False`` if it did not end in time."""
        for child in _children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds) == 0
        return False

    def end(self) -> None:
        """End the server and all processes that it started."""
        end_process(self.process, _END_SECONDS)


def _children(pid: int) -> list[int]:
    """The processes that a process has started: of a launcher, its server."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in thread.read_text(encoding="ascii").split()]
    return found


def _renamed(cluster: Cluster, superuser: str) -> Cluster:
    """Rename the bootstrap superuser to a name that initdb does not accept; returns the cluster."""
    renames = "ovia_drill_renames"
    for user, statement in (
        (cluster.superuser, f"CREATE ROLE {renames} SUPERUSER LOGIN"),
        (renames, f"ALTER ROLE {sql_identifier(cluster.superuser)} RENAME TO {sql_identifier(superuser)}"),
        (superuser, f"DROP ROLE {renames}"),
    ):
        with connect(cluster.connection(user=user)) as session:
            session.execute(statement.encode())
    return replace(cluster, superuser=superuser)


def server_programs(programs: Programs) -> Path:
    """The folder of the server programs.

    Raises:
        ProgramMissingError: they are not installed; the advice offers the scratch database.
    """
    try:
        found = [Path(programs.path(program)) for program in SERVER_PROGRAMS]
    except ProgramMissingError as error:
        raise ProgramMissingError(
            f"a throwaway cluster cannot be created: {error.what}",
            why="only PostgreSQL's client programs are installed here",
            fix="install the server's, too (Debian: postgresql-16), or restore into a scratch database: "
            "RESTORE_POSTGRES_HOST=... RESTORE_POSTGRES_USER=... ovia-backup drill --where database",
        ) from None
    return found[0].parent


def remove_remains(bin_dir: Path, folder: Path) -> list[Path]:
    """Stop and remove all throwaway clusters that no drill uses, kept ones as well; returns their folders."""
    with _alone(folder):
        return _remove_remains(bin_dir, folder)


def remains(folder: Path) -> list[Path]:
    """The folders of throwaway clusters that no drill uses."""
    ours = {os.geteuid(), account_id()}
    places = (place for place in sorted(folder.glob(f"{PREFIX}*")) if is_folder(place))
    return [place for place in places if place.lstat().st_uid in ours and not _in_use(place)]


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turn an error of the block into one that says why a cluster cannot use the folder.

    Raises:
        CopyError: the folder is missing, not writable, or out of reach of the account that servers run under.
    """
    what = f"cannot create a throwaway cluster in {folder}"
    try:
        if not may_enter(folder):
            raise CopyError(
                what,
                why="PostgreSQL does not run as root, and the account that it runs under cannot enter this folder",
                fix=f"namei -l {shell_word(str(folder))}; chmod o+x what is closed, or set DRILL_DIR to another folder",
            )
        yield
    except OSError as error:
        raise CopyError(
            what,
            said=error.strerror or str(error),
            fix="ls -ld {0}; df -h {0}; findmnt -T {0}; or set DRILL_DIR to another folder".format(
                shell_word(str(folder))
            ),
        ) from error


@contextmanager
def cluster_folder(bin_dir: Path, folder: Path, log: Log) -> Iterator[Path]:
    """A folder for a cluster, locked while it is in use."""
    with usable(folder), _alone(folder):
        for place in _remove_remains(bin_dir, folder):
            log(f"removed what an earlier drill had left: {place}")
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        if os.geteuid() == 0:
            place.chmod(0o711)  # the server's account passes through the folder, and may change nothing in it
        lock = _open_lock(place)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield place
    finally:
        os.close(lock)


def _remove_remains(bin_dir: Path, folder: Path) -> list[Path]:
    found = remains(folder)
    for place in found:
        _end_launcher(place)
        Cluster(bin_dir, place).end_processes()
        remove_folder(place)
    return found


def _end_launcher(place: Path) -> None:
    """End a kept server and all processes that it started."""
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(OSError, ValueError):
        process = Path("/proc") / str(int((place / _LAUNCHER).read_text(encoding="ascii")))
        # After a crash another process may have the PID.
        while Path(os.readlink(process / "cwd")).is_relative_to(place.resolve()) and time.monotonic() < deadline:
            os.kill(int(process.name), signal.SIGTERM)
            time.sleep(0.01)


def remove_folder(place: Path) -> None:
    """Remove a folder, even if a server made a very deep tree in it."""
    # Remove the lock last: without it, a half-removed folder would look like one that a killed drill left.
    inside = [str(path) for path in place.glob("*") if path.name != _LOCK] if place.exists() else []
    for paths in (inside, [str(place)]):
        _run("rm", "-rf", "--one-file-system", "--", *paths)
        if left := [path for path in paths if os.path.lexists(path)]:
            # A folder may deny access to its own user.
            _run("chmod", "-R", "u+rwx", "--", *left)
            _run("rm", "-rf", "--one-file-system", "--", *left)


def _run(*command: str) -> None:
    subprocess.run(
        command,
        env={"PATH": os.environ.get("PATH", os.defpath)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that another process cannot remove a new cluster before the cluster is locked."""
    path = folder / f".{PREFIX}{os.geteuid()}.lock"
    with usable(folder):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _open_lock(place: Path) -> int:
    return os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _in_use(place: Path) -> bool:
    try:
        descriptor = _open_lock(place)
    except OSError:
        return True  # another account's: leave it alone
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
