"""(u-z): what receiving WAL costs, base backups, replay, WAL of a day, and what is lost with the server's disk."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from benchmarks.measure import Json, alternate, ratio, run, say, seconds, summary, target
from benchmarks.receiver_cost import ReceiverCost
from benchmarks.wal_load import (
    CLIENTS,
    archive_all,
    fill,
    position,
    processor_seconds,
    received,
    safe_server,
    short_cluster,
    start_recovered,
    stored_bytes,
    value,
    write_wal,
)
from benchmarks.world import BIN, World, libpq
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.pitr.base_verification import verify_base
from ovia_backup_dagster.pitr.recovered_cluster import RecoveryOrder, recovered
from ovia_backup_dagster.pitr.recovery_plan import LATEST, RecoveryPlanner
from ovia_backup_dagster.pitr.segment_files import decompress
from ovia_backup_dagster.postgres.local_cluster import Cluster, account
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster_tests.pitr.ground import Ground
from ovia_backup_dagster_tests.pitr.history import short_folder
from ovia_backup_dagster_tests.pitr.lost_server import Lost, prepared_server

BEACON_SECONDS = 2
_BASES, _REPLAYS = 5, 3
_LOSSES = {"asynchronous": 10, "synchronous": 4}
#: Of the size that is asked for: pgbench's database, and the WAL that is replayed.
_DATABASE_PART, _WAL_PART = 0.3, 0.5
_DEMO, _DEMO_BEACON_SECONDS, _DEMO_SAMPLES, _UPDATE_SECONDS = "ovia", 10, 6, 5
_UPDATE = """\\set id random(1, :rows)
UPDATE identities SET last_seen_at = last_seen_at + interval '1 second' WHERE id = :id;
"""
_DAY, _MEGABYTES = 86400, 1_000_000


def measure(world: World, megabytes: int) -> Json:
    """All of it. A smaller size also means shorter and fewer runs."""
    part = min(1.0, megabytes / 1000)
    with safe_server() as ground:
        fill(ground, int(megabytes * _DATABASE_PART))
        database_bytes = int(str(value(ground, "SELECT pg_database_size('bench')")))
        receiving = ReceiverCost(world, ground, BEACON_SECONDS, part).measure()
        bases = _bases(world, ground)
        replay = _replay(world, ground, int(megabytes * _WAL_PART))
    with _demo(world) as day:
        lost = _losses(world, part)
    worst = max(receiving["rpo_seconds"]["max"], replay["rpo_seconds"])
    return {
        "database_bytes": database_bytes,
        "clients": CLIENTS,
        "cores": os.cpu_count(),
        "beacon_seconds": BEACON_SECONDS,
        "receiving": receiving,
        "bases": bases,
        "replay": replay,
        "day": day,
        "lost": lost,
        "targets": [
            target("u", "throughput that receiving takes, all on one host", receiving["cost_percent"], 3.0, "%"),
            target("u", "the same, the receiver as on another host", receiving["apart_percent"], 3.0, "%"),
            target("v", f"RPO under load, a beacon every {BEACON_SECONDS} s", worst, BEACON_SECONDS + 2.0, "s"),
            target("w", "base backup / a bare `pg_basebackup`", bases["ratios"]["w"]["median"], 1.3),
            target("x", "verification of a base backup / making it", bases["ratios"]["x"]["median"], 0.5),
            target("y", "replay, confined / PostgreSQL's own", replay["ratios"]["y"]["median"], 1.1),
            target("z", "commits lost with a synchronous receiver", lost["synchronous"]["commits"]["max"], 0.0),
        ],
    }


# ------------------------------------------------------------------------------------------------------- base backups


def _bases(world: World, ground: Ground) -> Json:
    """Base backups, their verification, and pg_basebackup with the same compression and checksums."""
    volume, there = world.path("volume"), ground.connection
    maker, verified, sizes = ground.maker(volume), [], []
    command = (
        BIN / "pg_basebackup",
        "--format=tar",
        "--wal-method=none",
        "--checkpoint=fast",
        "--manifest-checksums=SHA256",
        "--no-password",
        f"--dbname={there.conninfo()}",
    )

    def ours() -> float:
        ground.execute("CHECKPOINT")
        clock = time.perf_counter()
        base = maker.make(datetime.now(UTC), log=_quiet)
        taken = time.perf_counter() - clock
        verified.append(seconds(lambda: verify_base(maker.archive, base.folder, now=datetime.now(UTC), log=_quiet)))
        assert base.manifest.compression == maker.compressions[0]
        sizes.append((base.manifest.size_bytes, base.manifest.data_bytes))
        shutil.rmtree(base.folder)
        return taken

    def bare() -> float:
        ground.execute("CHECKPOINT")
        folder = world.path("bare")
        taken = run((*command, f"--pgdata={folder}", f"--compress={maker.compressions[0]}"), libpq(there))
        shutil.rmtree(folder)
        return taken

    samples = alternate({"ours": ours, "bare": bare}, _BASES)
    return {
        "size_bytes": sizes[-1][0],
        "data_bytes": sizes[-1][1],
        "seconds": {name: summary(found) for name, found in {**samples, "verification": verified}.items()},
        "ratios": {"w": ratio(samples["ours"], samples["bare"]), "x": ratio(verified, samples["ours"])},
    }


# ------------------------------------------------------------------------------------------------------------- replay


def _replay(world: World, ground: Ground, megabytes: int) -> Json:
    """A recovery from the archive, and PostgreSQL's own from the same base backup and plain segments."""
    say(f"making {megabytes:,} MB of WAL")
    volume, programs = world.path("volume"), Programs(BIN)
    with received(ground, volume, BEACON_SECONDS) as running:
        ground.base_backup(volume)
        start = position(ground)
        clock = time.monotonic()
        write_wal(ground, megabytes, world.path("script"))
        rate = (position(ground) - start) / (time.monotonic() - clock)
        archive_all(ground, running)
        status = running.until_safe()
    assert status.worst_rpo_seconds is not None
    order = RecoveryPlanner(volume, programs).plan(LATEST, datetime.now(UTC), database=None).order
    plain = _plain_segments(world, order)
    unpacked: dict[str, list[float]] = {"unpack": [], "tar": []}
    settings = ""

    def ours() -> float:
        nonlocal settings
        with short_folder() as folder, recovered(programs, folder, order, hours=1, log=_quiet) as found:
            settings = (found.place / "recovery.conf").read_text("utf-8")
            unpacked["unpack"].append(found.phases["unpack"])
            return found.phases["replay"]

    def own() -> float:
        with short_cluster() as cluster:
            unpacked["tar"].append(_unpack(cluster, order, settings, plain))
            return seconds(lambda: start_recovered(cluster))

    samples = alternate({"ours": ours, "own": own}, _REPLAYS)
    shutil.rmtree(plain)
    return {
        "wal_bytes": order.wal_bytes,
        "wal_megabytes_per_second": round(rate / _MEGABYTES, 1),
        "rpo_seconds": status.worst_rpo_seconds,
        "stored": round(stored_bytes(order.archive, start) / (order.target - start), 3),
        "seconds": {name: summary(found) for name, found in {**samples, **unpacked}.items()},
        "ratios": {"y": ratio(samples["ours"], samples["own"])},
    }


def _plain_segments(world: World, order: RecoveryOrder) -> Path:
    """All segments, as PostgreSQL itself would have archived them."""
    archive, folder = order.archive, world.path("plain")
    folder.mkdir(mode=0o755)
    for segment in archive.archived_segments():
        decompress(archive.archived(segment), folder / archive.name(segment))
    for segment, path in archive.received().items():
        shutil.copyfile(path, folder / archive.name(segment))
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def _unpack(cluster: Cluster, order: RecoveryOrder, settings: str, plain: Path) -> float:
    """Unpack the base backup with tar, and let the server recover as ours does; returns tar's seconds."""
    cluster.data.mkdir(mode=0o700)
    archive = order.base.folder / "base.tar.zst"
    command = ("tar", "--extract", "--zstd", f"--file={archive}", f"--directory={cluster.data}")
    taken = run(command, {"PATH": os.environ.get("PATH", os.defpath)})
    hba = cluster.folder / "hba.conf"
    hba.write_text("local all all trust\n", "utf-8")
    own = {"hba_file": hba, "restore_command": f"cp {plain}/%f %p"}
    for name, changed in own.items():
        settings = re.sub(rf"^{name} = .*$", f"{name} = '{changed}'", settings, flags=re.MULTILINE)
    (cluster.data / "postgresql.conf").write_text(settings, "utf-8")
    (cluster.data / "postgresql.auto.conf").write_text("", "utf-8")
    (cluster.data / "recovery.signal").touch()
    if (owner := account()) is not None:
        for path in (cluster.folder, hba, cluster.data, *cluster.data.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    return taken


# ------------------------------------------------------------------------------------------------------ the demo's day


@contextmanager
def _demo(world: World) -> Iterator[Json]:
    """The demo's database, idle while the block runs, and then with updates; yields what is known afterwards."""
    found: Json = {}
    with safe_server() as ground:
        embedded_server.create_database(ground.cluster.connection(), BIN, _DEMO, 1.0)
        run((BIN / "vacuumdb", "--all", "--analyze", "--freeze"), libpq(ground.cluster.connection(_DEMO)))
        ground.execute("CHECKPOINT")
        volume = world.path("volume")
        with received(ground, volume, _DEMO_BEACON_SECONDS, database=_DEMO) as running:
            receivers = (running.process.pid, *running.children)
            used, clock = processor_seconds(*receivers), time.monotonic()
            with _sampled(ground) as samples:
                yield found
            busy = (processor_seconds(*receivers) - used) / (time.monotonic() - clock)
            archive_all(ground, running)
            start = position(ground)
            _update(world, ground)
            written = position(ground) - start
            archive_all(ground, running)
            stored = stored_bytes(ground.archive(volume), start)
        found |= {
            "beacon_seconds": _DEMO_BEACON_SECONDS,
            "idle_processor_percent": round(100 * busy, 1),
            "idle_bytes": summary(samples, 0),
            "idle_bytes_per_day": round(statistics.median(samples) * _DAY / _DEMO_BEACON_SECONDS),
            "updates": {"wal_bytes": written, "stored": round(stored / written, 3)},
        }


@contextmanager
def _sampled(ground: Ground) -> Iterator[list[int]]:
    """How many bytes of WAL were written between a beacon and the next while the block runs, at least in a minute."""
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        before = position(ground)
        while len(samples) < _DEMO_SAMPLES or not ended.is_set():
            time.sleep(_DEMO_BEACON_SECONDS)
            now = position(ground)
            samples.append(now - before)
            before = now

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _update(world: World, ground: Ground) -> None:
    """Update rows of the demo as a synchronization would, one in a transaction."""
    rows, script = value(ground, "SELECT max(id) FROM identities", _DEMO), world.path("update")
    script.write_text(_UPDATE, "utf-8")
    pgbench = (BIN / "pgbench", "--no-vacuum", "--client=2", f"--time={_UPDATE_SECONDS}", f"--define=rows={rows}")
    run((*pgbench, f"--file={script}"), libpq(ground.cluster.connection(_DEMO)))


# ----------------------------------------------------------------------------------------------------------- the loss


def _losses(world: World, part: float) -> Json:
    """Lose the server with its disk while sessions commit; see what a recovery brings back."""
    random, found = Random(0), {}
    with safe_server() as ground:
        volume = world.path("volume")
        volume.mkdir(mode=0o700)
        with prepared_server(ground, volume, beacon_seconds=BEACON_SECONDS) as prepared:
            for name, rounds in _LOSSES.items():
                each: list[Lost] = []
                for _ in range(max(2, round(rounds * part))):
                    folder = world.path("lost")
                    wait = random.uniform(0, 1)
                    each.append(prepared.lose(folder, synchronous=name == "synchronous", seconds=wait))
                    shutil.rmtree(folder)
                    if faults := each[-1].faults():
                        raise RuntimeError(f"a recovery does not keep its promise: {'; '.join(faults)}")
                    say(f"  {name}: {each[-1].commits} of {each[-1].committed:,} commits lost")
                found[name] = {
                    "rounds": len(each),
                    "committed": sum(lost.committed for lost in each),
                    "commits": summary([lost.commits for lost in each], 0),
                    "seconds": summary([lost.seconds for lost in each], 4),
                }
    return found


def _quiet(_: str) -> None:
    """Log nothing."""
