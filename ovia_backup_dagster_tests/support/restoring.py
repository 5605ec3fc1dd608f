"""A live database with a verified backup, and ways to disturb, kill and inspect its restores.

Helpers that several test modules of restores need; those of a single module stay there.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from unittest import mock

import psycopg
from psycopg import sql

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration import application_health
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.restoration.step_data import StepData
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.swarm import docker_api
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, free_port
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Ended, Place
from ovia_backup_dagster_tests.restoration.docker_engine import Engine, engine

SCHEMA = """
    CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, seen timestamptz NOT NULL DEFAULT now());
    CREATE INDEX ON people (seen);
    INSERT INTO people (id, name) SELECT g, 'person ' || g FROM generate_series(1, 500) g;
    CREATE TABLE identities (id bigserial PRIMARY KEY, person int NOT NULL REFERENCES people, key text UNIQUE);
    INSERT INTO identities (person, key) SELECT id, md5(id::text) FROM people;
    -- A crash of the server forgets where a sequence stands, and goes on from a later number.
    SELECT setval('identities_id_seq', 500);
    CREATE TABLE person_identity_links (person int REFERENCES people, at date DEFAULT '2026-01-01');
    INSERT INTO person_identity_links (person) SELECT id FROM people WHERE id % 3 = 0;
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM people
"""


#: A write after the backup, and the disaster.
SINCE = "INSERT INTO people (id, name) VALUES (1000, 'since the backup'); DELETE FROM identities WHERE person < 100"


_VOLATILE = re.compile(rb"^(\\(un)?restrict .*|-- Dumped .*)\n", re.MULTILINE)


@dataclass
class Site:
    """A live database on a server, its volume, and digests of its content at the backup and now."""

    place: Place
    live: Connection
    bin_dir: Path
    backup: Backup
    then: str
    now: str

    def content(self, database: str = "") -> str:
        """A digest of all that a database holds, schema and data."""
        connection = self.live.to(database or self.live.database)
        dumped = subprocess.run(
            (self.bin_dir / "pg_dump", "--no-password", f"--dbname={connection.conninfo()}"),
            env={**os.environ, **connection.environment()},
            capture_output=True,
            check=True,
        )
        return hashlib.sha256(_VOLATILE.sub(b"", dumped.stdout)).hexdigest()

    @property
    def databases(self) -> list[str]:
        """The server's databases that belong to this site."""
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1"
        with admin_of(self) as session:
            return [row[0] for row in session.execute(query, [self.live.database])]

    @property
    def records(self) -> list[Record]:
        return list(RestoreFolder(self.place.catalog).newest_first())

    def restore(self, *arguments: str, confirm: bool = True):  # type: ignore[no-untyped-def]
        """``ovia-backup restore`` of the backup, confirmed."""
        yes = ("--yes-destroy", self.live.database) if confirm else ()
        return self.place.run("restore", self.place.catalog.word(self.backup), *yes, *arguments)

    def undo(self, *arguments: str):  # type: ignore[no-untyped-def]
        return self.place.run("undo-restore", "--yes-destroy", self.live.database, *arguments)

    def with_settings(self, **settings: str) -> Site:
        return replace(self, place=replace(self.place, settings={**self.place.settings, **settings}))


def admin_of(site: Site):  # type: ignore[no-untyped-def]
    import psycopg

    live = site.live
    return psycopg.connect(host=live.host, port=live.port, user=live.user, dbname="postgres", autocommit=True)


@contextmanager
def site_on(server: PortCluster, bin_dir: Path, tmp_path: Path, name: str = "") -> Iterator[Site]:
    name = name or f"live{os.getpid()}_{free_port()}"
    with admin(server) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    live = server.connection(name)
    try:
        execute(live, SCHEMA)
        place = place_for(live, bin_dir, tmp_path / "backups", tmp_path)
        found = Site(place, live, bin_dir, place.chain(), "", "")
        found.then = found.content()
        execute(live, SINCE)
        found.now = found.content()
        assert found.now != found.then
        yield found
    finally:
        with admin(server) as session:
            rows = session.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name]).fetchall()
            for row in rows:
                session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(str(row[0]))))


class Application:
    """The application's health endpoint: its answers, and the requests that it received.

    Attributes:
        answers: status and headers of each answer in order; the last one is repeated.
        asked: path and Authorization header of each request.
        hangs: whether it accepts requests and never answers.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[tuple[int, dict[str, str]]] = [(200, {})]
        self.asked: list[tuple[str, str | None]] = []
        self.hangs = False
        self.over = threading.Event()

    def url(self, path: str = "/health", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def serving() -> Iterator[Application]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, self.headers["Authorization"]))
            if found.hangs:
                found.over.wait(60)
                return
            status, headers = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Application(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            found.over.set()
            server.shutdown()
            thread.join()


#: The lines of a journal: mark and step.
Words = tuple[tuple[JournalMark, str | None], ...]


BACK = ("--abort", "--resume")


REPLICAS = {"api": 2, "ingest": 1}


def words_of(*steps: Step) -> Words:
    """The journal of an undisturbed restore with these steps."""
    found: list[tuple[JournalMark, str | None]] = []
    for step in steps:
        marks = (JournalMark.BEGUN, *([JournalMark.NOTED] if step is Step.RESTORE else []), JournalMark.DONE)
        found += [(mark, step) for mark in marks]
    return (*found, (JournalMark.FINISHED, None))


SWAP = words_of(Step.RESTORE, Step.STOP, Step.SWAP, Step.MIGRATE, Step.START, Step.HEALTH)


def copy_database(site: Site, model: str, name: str) -> None:
    with admin_of(site) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(model)))


def drop_database(site: Site, name: str) -> None:
    with admin_of(site) as session:
        session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def with_services(site: Site, folder: Path) -> Iterator[tuple[Site, Engine]]:
    """The same site with services on an engine that is polled often; their migration completes at once."""
    with (
        engine(folder / "gone", **REPLICAS, migrate=1) as docker,
        serving() as application,
        mock.patch.object(docker_api, "_PAUSE_SECONDS", 0.01),
        mock.patch.object(application_health, "_PAUSE_SECONDS", 0.01),
    ):
        docker.complete.add("migrate")
        yield (
            site.with_settings(
                SWARM_APP_SERVICES=",".join(REPLICAS),
                SWARM_MIGRATE_SERVICE="migrate",
                SWARM_DOCKER_URL=docker.url,
                HEALTH_URL=application.url(),
            ),
            docker,
        )


@contextmanager
def killed_at(word: int, *, before: bool) -> Iterator[None]:
    """A process forked in the block is killed before or after it writes that line of its journal (from 0)."""
    write, counted = Journal.write, count()

    def writing(self: Journal, mark: JournalMark, step: str | None = None, *data: StepData | None) -> None:
        here = next(counted) == word
        if here and before:
            os.killpg(0, signal.SIGKILL)
        write(self, mark, step, *data)
        if here:
            os.killpg(0, signal.SIGKILL)

    with mock.patch.object(Journal, "write", writing):
        yield


def kill_here(*_: object, **__: object) -> None:
    """Kill this forked process and the programs that it started."""
    os.killpg(0, signal.SIGKILL)


def whole(site: Site) -> str:
    """Assert that the live database is the old or the new one and accepts sessions; return which."""
    content = site.content()
    assert content in (site.now, site.then)
    return "old" if content == site.now else "new"


def written(site: Site) -> Words:
    """The lines of the newest journal."""
    newest = max(site.place.root.glob("restores/*.journal"))
    return tuple((entry.mark, entry.step) for entry in Journal.read(newest).entries)


def sql_in_server(site: Site, statement: str, *names: str) -> None:
    with admin_of(site) as session:
        session.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextmanager
def each_step(step: Step, action: Callable[[], object]) -> Iterator[None]:
    """In the block, a forked process calls ``action`` just before it takes that step."""
    original = TakenStep.carry_out

    def carry_out(self: TakenStep) -> object:
        if self.data.step == step:
            action()
        return original(self)

    with mock.patch.object(TakenStep, "carry_out", carry_out):
        yield


def failed(site: Site, ended: Ended) -> str:
    """Assert that the command failed, and that the record has the same error; return the error."""
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    error = site.records[0].error
    assert error, ended.output
    assert f"Error: {error}" in ended.output
    assert "Next: " in ended.output
    return error


def ended_as(site: Site, wanted: str) -> None:
    """Assert that no restore is unfinished, and that the live database is the wanted one."""
    assert RestoreFolder(site.place.catalog).unfinished() is None
    assert whole(site) == wanted


def admin_of_live(site: Site):  # type: ignore[no-untyped-def]
    live = site.live
    return closing(
        psycopg.connect(host=live.host, port=live.port, user=live.user, dbname=live.database, autocommit=True)
    )


def execute_prepared(site: Site) -> None:
    with admin_of_live(site) as session:
        session.execute("BEGIN")
        session.execute("INSERT INTO people (id, name) VALUES (5000, 'prepared')")
        session.execute("PREPARE TRANSACTION 'stays'")


def drop_live(site: Site) -> None:
    with admin_of(site) as session:
        session.execute(f"DROP DATABASE {site.live.database} WITH (FORCE)")


SECONDS = 20


@contextmanager
def hammering(to: Connection, threads: int = 6) -> Iterator[list[tuple[float, float]]]:
    """Clients that query all the time and reconnect at once; yields the gaps between two answers."""
    stop = threading.Event()
    gaps: list[tuple[float, float]] = []

    def ask() -> None:
        last, session = time.monotonic(), None
        while not stop.is_set():
            try:
                session = session or psycopg.connect(
                    host=to.host, port=to.port, dbname=to.database, user=to.user, autocommit=True
                )
                session.execute("SELECT 1")
                gaps.append((last, last := time.monotonic()))
            except psycopg.Error:
                session = None
        if session:
            session.close()

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(threads)]
    for client in clients:
        client.start()
    try:
        yield gaps
    finally:
        stop.set()
        for client in clients:
            client.join(SECONDS)


def untouched(site: Site) -> None:
    """Assert that the live database is the old one, with no other database beside it."""
    assert site.databases == [site.live.database]
    assert site.content() == site.now


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def order(mode: Mode = Mode.SWAP, **changes: object) -> Order:
    known: dict[str, object] = {
        "mode": mode,
        "started_at": NOW,
        "database": "ovia",
        "backup": "ovia_daily_2026-11-23_030000.dump",
        "host": "db",
        "port": 5432,
        "incoming": "ovia_restore_20261123120000",
        "kept": "ovia_before_20261123120000",
        "launched_by": "test",
        "made_by": "test",
    }
    return Order.model_validate({**known, **changes})
