"""(l, m): a restore that goes live beside the runbook's; how long busy clients wait for its swap."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import NamedTuple

import psycopg

from benchmarks.drill import PRODUCTION, restore_and_count
from benchmarks.measure import Json, alternate, processors, ratio, run, say, summary, target
from benchmarks.world import BIN, OVIA_BACKUP, World, libpq
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.programs import Connection

CLIENTS = 6
RESTORES, UNDOS = 2, 8
#: A query shows the instant of a swap; gaps this close before or after it may belong to the interruption.
_AROUND_SECONDS = 1.0
#: Seconds without a swap, whose longest gap is compared with the swap's.
_CALM_SECONDS = 3.0
_WHICH = "SELECT oid::bigint FROM pg_database WHERE datname = current_database()"


def measure(world: World, megabytes: int) -> Json:
    """The two ways in turns on one live database; then its swaps with busy clients."""
    made = world.database(megabytes)
    old, roles = world.path("old-script"), world.path("roles")
    run((BIN / "pg_dump", "--format=custom", f"--file={old}"), libpq(made))
    run((BIN / "pg_dumpall", "--globals-only", f"--file={roles}"), libpq(made))
    production = Cluster(BIN, world.path("production"), settings=PRODUCTION)
    production.create()
    production.start()
    try:
        say("  filling a server that keeps its data safe")
        admin = libpq(production.connection())
        run((BIN / "psql", "--quiet", f"--file={roles}"), admin)
        run((BIN / "pg_restore", "--exit-on-error", "--create", "--dbname=postgres", old), admin)
        run((BIN / "vacuumdb", "--analyze", made.database), admin)
        return _measure(world, production, production.connection(made.database), old)
    finally:
        production.remove()
        old.unlink()


def _measure(world: World, production: Cluster, live: Connection, old: Path) -> Json:
    admin = libpq(production.connection())
    environment = world.environment(live)
    for command in (("dump",), ("verify",)):
        run((OVIA_BACKUP, *command), environment)
    volume = Path(environment["BACKUP_DIR"])

    def checkpoint() -> None:
        run((BIN / "psql", "--command=CHECKPOINT"), admin)

    def restore() -> float:
        return run((OVIA_BACKUP, "restore", "latest", "--yes-destroy", live.database), environment)

    def forget() -> None:
        kept = _records(volume)[-1]["kept"]
        run((OVIA_BACKUP, "undo-restore", "--forget", "--yes-destroy", kept), environment)

    busy: dict[str, list[float]] = {"swap": [], "runbook": []}

    def swap() -> float:
        checkpoint()
        with processors(busy["swap"]):
            taken = restore()
        forget()
        return taken

    def runbook() -> float:
        checkpoint()
        with processors(busy["runbook"]):
            taken = run((BIN / "dropdb", live.database), admin)
            taken += run((BIN / "createdb", "--template=template0", "--owner=ovia", live.database), admin)
            return taken + restore_and_count(production, live.database, old)

    samples = alternate({"swap": swap, "runbook": runbook})
    records = _records(volume)
    undo = (OVIA_BACKUP, "undo-restore", "--yes-destroy", live.database)
    say(f"  {CLIENTS} clients, and {RESTORES} restores")
    gaps, calm = [], []
    for number in range(RESTORES):
        if number:
            forget()
        interruption = _interruption(live, restore)
        gaps.append(interruption.swap)
        calm.append(interruption.calm)
    say(f"  {CLIENTS} clients, and {UNDOS} times undo-restore")
    for _ in range(UNDOS):
        interruption = _interruption(live, lambda: run(undo, environment))
        gaps.append(interruption.swap)
        calm.append(interruption.calm)
    whole = ratio(samples["swap"], samples["runbook"])
    interrupted = summary(gaps, 4)
    return {
        "database_bytes": world.size_bytes(live),
        "seconds": {name: summary(taken) for name, taken in samples.items()},
        "busy": {name: summary(taken) for name, taken in busy.items()},
        "cores": os.cpu_count(),
        "steps": _summaries([record["seconds"] for record in records]),
        "phases": _summaries([record["proven"]["phases"] for record in records]),
        "clients": CLIENTS,
        "restores": RESTORES,
        "undos": UNDOS,
        "interruption": interrupted,
        "calm": summary(calm, 4),
        "swap": summary([record["interruption_seconds"] for record in _records(volume)[len(records) :]], 4),
        "ratios": {"l": whole},
        "targets": [
            target("l", "restore, proven and live / drop, `pg_restore` and count(*)", whole["median"], 0.85),
            target(
                "m", "longest wait of a client for the swap, the worst of all", interrupted["max"] * 1000, 250, "ms"
            ),
        ],
    }


def _records(volume: Path) -> list[Json]:
    return [json.loads(path.read_text("utf-8")) for path in sorted(volume.glob("restores/*.json"))]


def _summaries(each: list[dict[str, float]]) -> Json:
    return {name: summary([one[name] for one in each]) for name in each[0]}


class Interruption(NamedTuple):
    """The longest time between two successful queries of a client, in seconds.

    Attributes:
        swap: around the swap.
        calm: in the seconds before, without other work.
    """

    swap: float
    calm: float


def _interruption(live: Connection, work: Callable[[], object]) -> Interruption:
    """The interruption of the clients while ``work`` swapped the database once."""
    with _hammering(live) as seen:
        time.sleep(_CALM_SECONDS)
        began = time.monotonic()
        work()
    swap, calm = 0.0, 0.0
    for answers in seen:
        (change,) = [after.at for before, after in pairwise(answers) if before.oid != after.oid]
        for before, after in pairwise(answers):
            if after.at < began:
                calm = max(calm, after.at - before.at)
            if before.at < change + _AROUND_SECONDS and after.at > change - _AROUND_SECONDS:
                swap = max(swap, after.at - before.at)
    return Interruption(swap, calm)


class Answer(NamedTuple):
    """A query that succeeded: when (``time.monotonic``), and in which database."""

    at: float
    oid: int


@contextmanager
def _hammering(live: Connection) -> Iterator[list[list[Answer]]]:
    """Clients that query the database without pause during the block; afterwards, the list has each one's answers."""
    processes = get_context("spawn")  # without our threads
    seen: list[list[Answer]] = []
    pipes, clients = [], []
    try:
        for _ in range(CLIENTS):
            ours, theirs = processes.Pipe()
            client = processes.Process(target=_hammer, args=(live, theirs), daemon=True)
            client.start()
            theirs.close()  # so that a client's death is noticed
            pipes.append(ours)
            clients.append(client)
        for pipe in pipes:
            pipe.recv()  # the client has its first answer
        yield seen
        time.sleep(_AROUND_SECONDS)
        for pipe in pipes:
            pipe.send("end")
        seen += [pipe.recv() for pipe in pipes]
    finally:
        for client in clients:
            client.terminate()
            client.join()


def _hammer(live: Connection, pipe: Pipe) -> None:
    """Connect, query, and start again at once, whatever the answer."""
    end = threading.Event()
    answers: list[Answer] = []

    def listen() -> None:
        pipe.recv()
        end.set()

    threading.Thread(target=listen, daemon=True).start()
    while not end.is_set():
        try:
            with psycopg.connect(live.conninfo(), host=live.host, port=live.port, user=live.user) as session:
                row = session.execute(_WHICH).fetchone()
                assert row is not None
                answers.append(Answer(time.monotonic(), row[0]))
        except psycopg.Error:
            continue  # the measured interruption
        if len(answers) == 1:
            pipe.send("begun")
    pipe.send(answers)
