"""Barman on the same work: base backups, the archiving of WAL, and the time until a cluster is recovered.

Barman is not installed with this project. In an environment of its own (3.20 needs Python 3.12), with rsync in PATH::

    python3.12 -m venv FOLDER && FOLDER/bin/pip install barman zstandard
    BARMAN=FOLDER/bin/barman make bench ONLY=barman
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Json, alternate, background, ratio, run, say, seconds, summary
from benchmarks.wal_load import (
    fill,
    next_segment,
    position,
    safe_server,
    short_cluster,
    start_recovered,
    value,
    write_wal,
)
from benchmarks.world import BIN, World
from ovia_backup_dagster.pitr.wal_position import Lsn
from ovia_backup_dagster.postgres.local_cluster import account
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.ground import WAL_PASSWORD, WAL_ROLE, Ground
from ovia_backup_dagster_tests.pitr.receiving import PROGRAM, Receiver, receiver

VARIABLE = "BARMAN"
_SERVER, _SLOT = "main", "barman"
_BASES, _ARCHIVINGS, _RECOVERIES = 3, 3, 2
#: Of the size that is asked for: pgbench's database, and the WAL of each archiving.
_DATABASE_PART, _WAL_PART = 0.3, 0.2
_CONFIGURATION = """[barman]
barman_user = {user}
barman_home = {folder}/home
barman_lock_directory = {folder}
configuration_files_directory = {folder}/conf.d
log_file = {folder}/log
path_prefix = {programs}

[{server}]
description = the benchmark's
conninfo = {superuser}
streaming_conninfo = {role}
backup_method = postgres
backup_compression = zstd
backup_compression_level = 1
backup_compression_location = server
backup_compression_format = tar
streaming_archiver = on
slot_name = {slot}
compression = zstd
compression_level = 1
staging_path = {folder}/staging
staging_location = local
"""


def given() -> Path | None:
    """Barman's program, if it is given."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def measure(world: World, megabytes: int) -> Json:
    """Both on one server, in turns, each with a slot of its own."""
    program = given()
    assert program is not None
    with safe_server() as ground:
        fill(ground, int(megabytes * _DATABASE_PART))
        barman = _prepared(world, ground, program)
        volume = world.path("volume")
        volume.mkdir(mode=0o700)
        ours = _Ours(world, ground, volume)
        # Barman refuses base backups while it does not receive WAL.
        with receiver(ground, volume) as running, barman.receiving():
            _begin(ground, running, barman)
            bases = alternate({"ours": ours.base_backup, "barman": lambda: barman.run("backup", _SERVER)}, _BASES)
            running.end()
        archivings, written = _archivings(world, ground, ours, barman, int(megabytes * _WAL_PART))
        target = _target(ground, ours, barman)
        recoveries = alternate(
            {"ours": lambda: ours.recovered(target), "barman": lambda: barman.recovered(target)}, _RECOVERIES
        )
        refusal = barman.refusal("verify-backup", _SERVER, "latest")
    samples = {"base": bases, "archiving": archivings, "recovered": recoveries}
    return {
        "version": barman.version(),
        "seconds": {what: {name: summary(each) for name, each in found.items()} for what, found in samples.items()},
        "ratios": {what: ratio(found["ours"], found["barman"]) for what, found in samples.items()},
        "archived_bytes": summary(written, 0),
        "verification_refused": refusal,
        "targets": [],
    }


def _prepared(world: World, ground: Ground, program: Path) -> _Barman:
    folder = world.path("barman")
    for name in ("conf.d", "home", "staging"):
        (folder / name).mkdir(parents=True)
    to = ground.cluster.connection()
    superuser = f"host={to.host} port={to.port} user={to.user} dbname={to.database}"
    role = f"host=127.0.0.1 port={to.port} user={WAL_ROLE} password={WAL_PASSWORD}"
    configuration = folder / "barman.conf"
    user = subprocess.run(("id", "-un"), capture_output=True, text=True, check=True).stdout.strip()
    configuration.write_text(
        _CONFIGURATION.format(
            folder=folder, user=user, programs=BIN, server=_SERVER, slot=_SLOT, superuser=superuser, role=role
        ),
        "utf-8",
    )
    barman = _Barman(world, program, folder)
    barman.run("receive-wal", "--create-slot", _SERVER)
    return barman


def _begin(ground: Ground, running: Receiver, barman: _Barman) -> None:
    """Let both receive and archive their first segments: Barman refuses base backups before."""
    running.until_safe()
    # Its slot keeps no WAL before that.
    until(lambda: value(ground, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 2)
    names = [next_segment(ground) for _ in range(3)]
    until(lambda: barman.streamed(names[-1]))
    running.until(lambda status: (status.archived or "") >= names[-1])
    barman.run("archive-wal", _SERVER)


def _archivings(
    world: World, ground: Ground, ours: _Ours, barman: _Barman, megabytes: int
) -> tuple[dict[str, list[float]], list[int]]:
    """How long each needs to receive and archive WAL that is there, in turns."""
    samples: dict[str, list[float]] = {"ours": [], "barman": []}
    written = []
    for number in range(_ARCHIVINGS):
        start = position(ground)
        write_wal(ground, megabytes, world.path("script"))
        name = next_segment(ground)
        written.append(position(ground) - start)
        next_segment(ground)  # Barman leaves the newest finished segment where it is
        sides: list[tuple[str, Callable[[str], float]]] = [("ours", ours.archive), ("barman", barman.archive)]
        for side, archive in sides if number % 2 == 0 else reversed(sides):
            samples[side].append(archive(name))
        say(f"  round {number + 1} of {_ARCHIVINGS}: " + ", ".join(f"{n} {s[-1]:.3f}" for n, s in samples.items()))
    return samples, written


def _target(ground: Ground, ours: _Ours, barman: _Barman) -> Lsn:
    """A commit that both have archived; the position after it, as Barman takes it, includes it for both."""
    ground.execute("CREATE TABLE target ()")
    found = position(ground)
    name = next_segment(ground)
    next_segment(ground)
    ours.archive(name)
    barman.archive(name)
    return found


@dataclass(frozen=True)
class _Ours:
    world: World
    ground: Ground
    volume: Path

    def base_backup(self) -> float:
        return run((PROGRAM, "base-backup", "--no-verify"), self._environment)

    def archive(self, name: str) -> float:
        """Seconds from the receiver's start until a segment is in the archive, and all before it."""
        with receiver(self.ground, self.volume) as running:
            taken = seconds(lambda: running.until(lambda status: (status.archived or "") >= name, 600))
            running.end()
        return taken

    def recovered(self, target: Lsn) -> float:
        """Seconds until a server of its own accepts sessions, as of the target."""
        with short_cluster() as cluster:
            clock = time.perf_counter()
            run((PROGRAM, "recover", "--into", cluster.data, "--to", f"lsn:{target}"), self._environment)
            start_recovered(cluster)
            return time.perf_counter() - clock

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), **self.ground.settings(self.volume)}


@dataclass(frozen=True)
class _Barman:
    world: World
    program: Path
    folder: Path

    def run(self, *arguments: str) -> float:
        """Seconds of one of its commands."""
        return run(self._command(*arguments), self._environment)

    def version(self) -> str:
        """Its version."""
        done = subprocess.run((self.program, "--version"), capture_output=True, text=True, check=True)
        return done.stdout.split()[0]

    def refusal(self, *arguments: str) -> str:
        """Why it refuses a command; empty if it does not."""
        done = subprocess.run(
            self._command(*arguments), env=self._environment, capture_output=True, text=True, check=False
        )
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return " ".join(lines) if done.returncode else ""

    def receiving(self) -> AbstractContextManager[object]:
        """Receive WAL while the block runs."""
        return background(self._command("receive-wal", _SERVER), self._environment, self.folder / "receive.log")

    def streamed(self, name: str) -> bool:
        """Whether a finished segment was received."""
        return (self.folder / "home" / _SERVER / "streaming" / name).exists()

    def archive(self, name: str) -> float:
        """Seconds until a segment is in the archive, and all before it. Its cron job would look once a minute."""
        archived = self.folder / "home" / _SERVER / "wals" / name[:16] / name
        clock = time.perf_counter()
        with self.receiving():
            while not archived.exists():
                self.run("archive-wal", _SERVER)
            return time.perf_counter() - clock

    def recovered(self, target: Lsn) -> float:
        """Seconds until a server of its own accepts sessions, as of the target."""
        with short_cluster() as cluster:
            clock = time.perf_counter()
            to = (f"--target-lsn={target}", "--target-action=promote")
            self.run("restore", *to, _SERVER, "latest", str(cluster.data))
            if (owner := account()) is not None:
                run(("chown", "-R", f"{owner.pw_uid}:{owner.pw_gid}", cluster.data), self._environment)
            start_recovered(cluster)
            return time.perf_counter() - clock

    def _command(self, *arguments: str) -> tuple[str | Path, ...]:
        return (self.program, "--config", self.folder / "barman.conf", *arguments)

    @property
    def _environment(self) -> dict[str, str]:
        path = f"{BIN}:{self.program.parent}:{os.environ.get('PATH', os.defpath)}"
        return {"PATH": path, "HOME": str(self.folder)}
