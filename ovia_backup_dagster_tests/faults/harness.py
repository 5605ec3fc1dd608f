"""Shared by all fault tests: a volume, the command in a process that can be killed, and the list of invariants.

After every fault, ``Guard`` checks the same: no backup that a reader can list is broken, and the newest verified backup
is still there, byte for byte. ``recovered`` checks that the next run succeeds without help and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import pkgutil
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Self
from unittest import mock

import rich.console
import rich.table  # noqa: F401

from ovia_backup_dagster import cli, drill, proof, restoration, retention
from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.core.sidecars import MANIFEST, VERIFIED
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import PortCluster
from ovia_backup_dagster_tests.support.factories import redated

# Import all modules now, so that a kill hits the operation and not its imports, and no fork repeats the imports.
for _room in (cli, drill, proof, restoration, retention):
    for _module in pkgutil.walk_packages(_room.__path__, f"{_room.__name__}."):
        importlib.import_module(_module.name)

CHAIN = (("dump",), ("verify",), ("verify", "--unverified"), ("promote",), ("prune",))
DAY = timedelta(days=1)

_DUMP = r"\w+_(?:daily|weekly)_\d{4}-\d\d-\d\d_\d{6}\.dump"
_SIDECAR = r"\.json|\.globals\.sql|\.verified\.json|\.verified\.json\.unreadable|\.drilled\.json|\.held\.json"
_SIDECAR += r"|\.accepted\.json|\.promoted\.json"
_EVIDENCE = r"\d{4}-\d\d-\d\d_\d{6}_\w+_(?:daily|weekly)_\d{4}-\d\d-\d\d_\d{6}\.(?:json|md)"
_DRILLS = rf"drills/(?:\.(?:since|under-way)-\w+|{_EVIDENCE})"
#: What an intact volume may hold, and what a fault may leave in addition. Duplicates the production names on purpose.
_REGULAR = re.compile(rf"(?:daily|weekly)/{_DUMP}(?:{_SIDECAR})?|(?:drills/)?\.lock|\.reserve|{_DRILLS}")
_LEFTOVER = re.compile(rf"(?:daily|weekly)/\.{_DUMP}(?:{_SIDECAR})?\.tmp")


# --------------------------------------------------------------------------------------------- a volume, its settings


@dataclass(frozen=True)
class Place:
    """A volume and the settings for it, as an operator would have them."""

    settings: Mapping[str, str]
    logs: Path

    @property
    def root(self) -> Path:
        return Path(self.settings["BACKUP_DIR"])

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, **self.settings}

    @property
    def system(self) -> BackupSystem:
        with mock.patch.dict(os.environ, self.environment, clear=True):
            return BackupSystem(Settings.load())

    @property
    def catalog(self) -> Catalog:
        return self.system.catalog

    def start(self, *arguments: str) -> Running:
        """Start ``ovia-backup`` in its own process, which leads its own process group."""
        return Running(self, arguments)

    def run(self, *arguments: str, seconds: float = 60.0) -> Ended:
        return self.start(*arguments).wait(seconds)

    def chain(self) -> Backup:
        """Run the whole daily run: dump, verify, promote, prune. Each command must succeed."""
        for command in CHAIN:
            ended = self.run(*command)
            assert ended.code == 0, f"{' '.join(command)}: {ended.output}"
        return self.catalog.backups(Tier.DAILY)[0]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or the negative signal number; and its output."""

    code: int
    output: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def refused(self) -> str:
        """Assert that the command failed with one of our error lines and no traceback; return that line."""
        assert self.code == 1, (self.code, self.output)
        assert "Traceback" not in self.output, self.output
        return next(line for line in self.output.splitlines() if line.startswith("ovia-backup: "))


class Running:
    """A running ``ovia-backup``, forked from this process: the same code, without half a second of imports."""

    def __init__(self, place: Place, arguments: tuple[str, ...]) -> None:
        self._log = place.logs / f"{time.monotonic_ns()}.log"
        environment = place.environment
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(arguments, environment, self._log)
        while os.getpgid(self.pid) != self.pid:
            time.sleep(0.0005)

    def children(self) -> dict[int, str]:
        """The client programs that the command runs: process id -> name."""
        return {pid: name for pid, name in children_of(self.pid).items() if name.startswith("pg_")}

    def kill(self, *, group: bool = True) -> None:
        (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def output(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    @property
    def running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None

    def wait(self, seconds: float = 60.0) -> Ended:
        """Wait until the command ends, which must happen in time."""
        until(lambda: not self.running, seconds, pause=0.002, on_failure=lambda: self.kill())
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Ended(code, self.output)


def _become(arguments: tuple[str, ...], environment: Mapping[str, str], log: Path) -> None:
    """Turn this forked process into the command; never returns."""
    code: object = 70
    try:
        # A new session, not only a new process group: the kernel ends the stopped processes of a group whose last
        # parent in the session is killed.
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment)
        main.main(list(arguments), prog_name="ovia-backup")
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the test reads it
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 0)


def children_of(pid: int) -> dict[int, str]:
    """The children of a process, from all of its threads: process id -> name."""
    found = {}
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in listed.read_text().split():
                with contextlib.suppress(OSError):
                    found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
    return found


def state_of(pid: int) -> str:
    """The state as in ``ps``: R(unning), S(leeping), T (stopped); empty for a process that ended, reaped or not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].strip("ZX")
    return ""


def stopped(*pids: int) -> None:
    """Wait until processes that were sent SIGSTOP have stopped, or have ended."""
    until(lambda: all(state_of(pid) in ("T", "") for pid in pids))


def command_of(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")
    return []


def until(
    condition: Callable[[], object],
    seconds: float = 30.0,
    *,
    pause: float = 0.02,
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """Poll a condition; fail if it does not become true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            on_failure()
            raise AssertionError("it did not happen in time")
        time.sleep(pause)


# --------------------------------------------------------------------------------------------- the invariants


@dataclass
class Guard:
    """The invariants, which must hold from the moment that the guard is created.

    Attributes:
        place: the volume.
        newest: name -> SHA-256, modification time and judgements of each copy of the newest verified backup.
        looks: how often the volume was checked.
        seen: how many backups were read in total.
    """

    place: Place
    newest: dict[str, Fingerprint] = field(default_factory=dict)
    looks: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        if not self.place.root.exists():
            return
        now = datetime.now(UTC)
        proven = [b for b in self.place.catalog.backups() if b.state(now).is_verified]
        for backup in proven:
            if backup.started_at == proven[0].started_at:
                self.newest[f"{backup.tier}/{backup}"] = _fingerprint(backup.path)

    def look(self, *, sound: bool = True) -> None:
        """Assert that no listed backup is broken, and that the newest verified backup is unchanged and still verified.

        With ``sound=False`` the disk may fail to be read. A verdict that cannot be read proves nothing, so whether the
        newest backup still counts as verified is not checked.
        """
        now = datetime.now(UTC)
        for backup in self.place.catalog.backups():
            self.seen += nothing_broken(backup, now)
        for name, known in self.newest.items():
            *file, judgements = _fingerprint(self.place.root / name)
            # Another verification may have appended a judgement.
            as_it_was = (*file, judgements[: len(known[2])]) == known
            assert as_it_was, f"{name} is not what it was"
        names = {f"{b.tier}/{b}": b for b in self.place.catalog.backups()}
        for name in self.newest if sound else ():
            assert names[name].state(now).is_verified, f"{name} is no longer proven"
        self.looks += 1

    def glance(self) -> None:
        """Assert that no listed dump lacks its manifest."""
        for backup in self.place.catalog.backups():
            if not backup.sidecar(MANIFEST).exists():
                assert not backup.path.exists(), f"{backup} has no manifest"

    def after_the_fault(self) -> None:
        """Like ``look``; also assert that the volume holds no unknown file."""
        self.look()
        strange = [n for n in files(self.place.root) if not (_REGULAR.fullmatch(n) or _LEFTOVER.fullmatch(n))]
        assert not strange, strange

    def recovered(self) -> Backup:
        """Assert that the next daily run succeeds without manual help, sweeps all leftovers and releases the lock."""
        assert lock_holder(self.place.root) is None, "the lock is still held"
        backup = self.place.chain()
        now = datetime.now(UTC)
        assert backup.state(now).is_verified
        assert f"{backup.tier}/{backup}" not in self.newest, "the next run made nothing new"
        self.look()
        left = [name for name in files(self.place.root) if not _REGULAR.fullmatch(name)]
        assert not left, left
        dumps = {name for name in files(self.place.root) if name.endswith(".dump")}
        orphans = [n for n in files(self.place.root) if _in_tier(n) and _dump_of(n) not in dumps]
        assert not orphans, orphans
        # This includes a dump that was published by a run that died before the verdict.
        assert all(b.state(now).is_verified for b in self.place.catalog.backups())
        assert lock_holder(self.place.root) is None
        return backup


def nothing_broken(backup: Backup, now: datetime) -> int:
    """Assert that a listed backup matches its manifest. Return 1, or 0 if the backup was pruned meanwhile."""
    try:
        file = open(backup.path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return 0
    with file:
        manifest, judgement = backup.manifest, backup.judgement
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
        if manifest is None:
            # Pruning removes the dump first and the manifest last: the dump was opened just before.
            assert os.fstat(file.fileno()).st_nlink == 0 or not backup.path.exists(), f"{backup} has no manifest"
            return 0
    assert (size, digest) == (manifest.size_bytes, manifest.sha256), f"{backup} is broken"
    assert judgement is None or judgement.sha256 == digest, f"{backup} has another's verdict"
    return 1


Fingerprint = tuple[str, int, list[object]]


def _fingerprint(path: Path) -> Fingerprint:
    """SHA-256, modification time, judgements."""
    judgements = json.loads(path.with_name(f"{path.name}{VERIFIED}").read_bytes())["judgements"]
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_mtime_ns, judgements


def files(root: Path) -> list[str]:
    """All files of the volume, hidden ones included."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def leftovers(root: Path) -> list[str]:
    """Temporary files, and sidecars without a dump."""
    names = files(root)
    return [
        n
        for n in names
        if _LEFTOVER.fullmatch(n) or (_in_tier(n) and not n.endswith(".dump") and _dump_of(n) not in names)
    ]


def _in_tier(name: str) -> bool:
    return name.startswith(("daily/", "weekly/"))


def _dump_of(name: str) -> str:
    return re.sub(rf"(?<=\.dump)(?:{_SIDECAR})$", "", name)


class Reader:
    """Another process that reads the volume continuously, as an operator, a copy job or the sensor does.

    Args:
        guard: the invariants that it checks.
        may_fail: allow read errors of a failing disk (ours, or the system's). A broken backup always fails the test.
    """

    def __init__(self, guard: Guard, *, may_fail: bool = False) -> None:
        self._guard = guard
        self._may_fail = may_fail

    def __enter__(self) -> Self:
        stop, self._stop = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._stop)
            os.write(answer, json.dumps(self._watch(stop)).encode())
            os._exit(0)
        os.close(stop)
        os.close(answer)
        return self

    def _watch(self, stop: int) -> tuple[int, int, str]:
        guard = self._guard
        guard.looks = guard.seen = 0
        try:
            # Each round checks only that no dump lacks its manifest, which is fast; every 20th round reads everything.
            for number in count():
                if select.select([stop], [], [], 0.001)[0]:
                    break
                try:
                    if number % 20 == 0:
                        guard.look(sound=not self._may_fail)
                    guard.glance()
                except (BackupError, OSError):
                    if not self._may_fail:
                        raise
        except BaseException:  # noqa: BLE001 - told to the test
            return guard.looks, guard.seen, traceback.format_exc()
        return guard.looks, guard.seen, ""

    def __exit__(self, kind: object, *_: object) -> None:
        os.close(self._stop)
        with open(self._answer, "rb") as pipe:
            looks, seen, broken = json.loads(pipe.read() or b'[0, 0, "the reader died"]')
        os.waitpid(self._pid, 0)
        self._guard.looks += looks
        self._guard.seen += seen
        assert kind is not None or not broken, broken


# --------------------------------------------------------------------------------------------- time


def moments(rng: Random, many: int, seconds: float) -> list[float]:
    """Random moments in seconds, spread over the whole duration, in random order."""
    found = [(number + rng.random()) / many * seconds for number in range(many)]
    rng.shuffle(found)
    return found


def at_moment(began: float, moment: float) -> None:
    time.sleep(max(0.0, began + moment - time.monotonic()))


def a_day_passes(place: Place) -> None:
    """Make every backup a day older, by the date in its name."""
    for backup in reversed(place.catalog.backups()):
        redated(backup, backup.started_at - DAY)


def older_copies(place: Place, backup: Backup, many: int) -> None:
    """Copy the backup under dates 20 and more days earlier, so that there is something to prune."""
    for number in range(many):
        redated(backup, backup.started_at - DAY * (20 + number), keep=True)


def duration(action: Callable[[], object], times: int = 3) -> float:
    """The median duration of an action in seconds, without the first run."""
    taken = []
    for _ in range(times):
        began = time.monotonic()
        action()
        taken.append(time.monotonic() - began)
    return sorted(taken[1:])[len(taken[1:]) // 2]


@contextlib.contextmanager
def ended_by_then(running: Running) -> Iterator[Running]:
    """Kill the process at the end of the block if it is still running."""
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if running.running:
                running.kill()
                os.waitpid(running.pid, 0)


def processes(cluster: PortCluster) -> list[int]:
    """The server's processes, the postmaster first."""
    return [cluster.pid, *children_of(cluster.pid)]


def kill(cluster: PortCluster) -> None:
    pids = processes(cluster)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # Wait until init has reaped them: the next server would take a zombie for a live server.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@contextmanager
def paused(cluster: PortCluster) -> Iterator[None]:
    pids = processes(cluster)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    stopped(*pids)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
