"""The program that made the golden files: a month of a small database, with real servers, dumps, drills and restores.

Kept as a record of where they come from. It need not run again: files on users' volumes do not change either. The
commands are the real ones, in their own processes; only the clock, the host's name and the user's name are set.
"""

from __future__ import annotations

import datetime as dt
import getpass
import importlib
import json
import os
import pkgutil
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import ovia_backup_dagster
from ovia_backup_dagster.core import takeover
from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.reserve import RESERVE
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode
from ovia_backup_dagster.restoration.step_data import StepData
from ovia_backup_dagster_tests.conftest import PortCluster, dump_that_waits, execute, quiet, running_cluster
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Ended, Place, until
from ovia_backup_dagster_tests.restoration.docker_engine import engine
from ovia_backup_dagster_tests.support.factories import redated, set_mtime
from ovia_backup_dagster_tests.support.old_script import old_script
from ovia_backup_dagster_tests.support.restoring import serving

HERE = Path(__file__).parent
DATABASE, OTHER = "ovia", "Ovia test.2"
HOUR, DAY = dt.timedelta(hours=1), dt.timedelta(days=1)
FIRST = dt.datetime(2026, 3, 1, 3, 0, tzinfo=dt.UTC)  # a Sunday
LAST = FIRST + 30 * DAY
SCHEMA = """
    CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, born date,
        age int GENERATED ALWAYS AS (id % 90) STORED);
    INSERT INTO people SELECT g, 'person ' || g, '1980-01-01'::date + g FROM generate_series(1, 200) g;
    CREATE TABLE identities (id serial PRIMARY KEY, person int NOT NULL REFERENCES people, key text UNIQUE);
    INSERT INTO identities (person, key) SELECT id, md5(id::text) FROM people WHERE id % 2 = 0;
    CREATE TABLE person_identity_links (person int REFERENCES people, at date DEFAULT '2026-01-01');
    INSERT INTO person_identity_links (person) SELECT id FROM people WHERE id % 5 = 0;
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM people;
    SELECT lo_from_bytea(4242, 'a large object');
    ALTER TABLE people OWNER TO ovia;
"""


class _Anywhere(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, dt.datetime)


class Clock(dt.datetime, metaclass=_Anywhere):
    """A clock that runs on from the instant that it was set to."""

    offset = dt.timedelta()

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return dt.datetime.now(tz) + cls.offset

    @classmethod
    def set(cls, at: dt.datetime) -> None:
        cls.offset = at - dt.datetime.now(dt.UTC)


@contextmanager
def other_surroundings() -> Iterator[None]:
    """Set clock, host name and user, for this process and those that it forks."""
    for found in pkgutil.walk_packages(ovia_backup_dagster.__path__, "ovia_backup_dagster."):
        if not found.name.startswith(("ovia_backup_dagster.defs", "ovia_backup_dagster.definitions")):
            importlib.import_module(found.name)
    ours = [module for name, module in sys.modules.items() if name.startswith("ovia_backup_dagster.")]
    with ExitStack() as patched:
        for module in ours:
            if getattr(module, "datetime", None) is dt.datetime:
                patched.enter_context(mock.patch.object(module, "datetime", Clock))
        patched.enter_context(mock.patch.object(socket, "gethostname", return_value="backups-1"))
        patched.enter_context(mock.patch.object(getpass, "getuser", return_value="operator"))
        yield


def die(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)


@contextmanager
def killed_at(word: int) -> Iterator[None]:
    """A restore forked in the block is killed after it wrote that line of its journal (from 0)."""
    write, counted = Journal.write, count()

    def writing(self: Journal, mark: JournalMark, step: str | None = None, *data: StepData | None) -> None:
        write(self, mark, step, *data)
        if next(counted) == word:
            os.killpg(0, signal.SIGKILL)

    with mock.patch.object(Journal, "write", writing):
        yield


@dataclass
class Life:
    """The volume, and the server that is backed up at present."""

    place: Place
    live: Connection

    def run(self, *arguments: str, code: int = 0, **settings: str) -> str:
        ended = self.begun(*arguments, **settings)
        print(f"{Clock.now(dt.UTC):%m-%d %H:%M} {' '.join(arguments)}: {ended.code}", flush=True)
        if ended.code != code:
            raise RuntimeError(ended.output)
        return ended.output

    def begun(self, *arguments: str, **settings: str) -> Ended:
        return self.with_settings(**settings).run(*arguments)

    def with_settings(self, **settings: str) -> Place:
        return replace(self.place, settings={**self.place.settings, **settings})

    def dump(self, **settings: str) -> Backup:
        """Dump, and set the day in the archive's header, too: pg_dump's own clock cannot be set."""
        place = self.with_settings(**settings)
        replace(self, place=place).run("dump")
        made = place.catalog.backups(Tier.DAILY)[0]
        at = made.started_at
        made = redated(made, at)
        set_mtime(made.path, at + dt.timedelta(seconds=1))
        return made

    def day(self, number: int, *, bad: bool = False) -> None:
        Clock.set(FIRST + number * DAY)
        self.dump()
        self.run("verify", code=int(bad))
        if not bad:
            self.run("promote")
            self.run("prune")

    def at(self, number: int, hours: float) -> None:
        Clock.set(FIRST + number * DAY + hours * HOUR)

    def name(self, number: int) -> str:
        return f"{DATABASE}_daily_{FIRST + number * DAY:%Y-%m-%d_%H%M%S}.dump"

    def move_to(self, cluster: PortCluster) -> None:
        self.live = cluster.connection(DATABASE)
        to = {"POSTGRES_HOST": self.live.host, "POSTGRES_PORT": str(self.live.port)}
        self.place = self.with_settings(**to)


def new_database(cluster: PortCluster, name: str = DATABASE) -> None:
    execute(cluster.connection(), f'CREATE DATABASE "{name}" TEMPLATE template0 OWNER ovia')
    execute(cluster.connection(), f"ALTER DATABASE \"{name}\" SET timezone = 'America/New_York'")
    execute(cluster.connection(name), SCHEMA)


def old_dumps(life: Life, bin_dir: Path) -> None:
    """The dumps that the old script left before our first day: one that failed, and two that are whole."""
    pg_dump = f"{bin_dir}/pg_dump -Fc -h {life.live.host} -p {life.live.port} -U postgres {DATABASE}"
    for days, dump in ((3, "true"), (2, pg_dump), (1, pg_dump)):
        old_script(life.place.root, FIRST - days * DAY, dump=dump)


def a_month(life: Life, servers: list[PortCluster], bin_dir: Path) -> None:
    old_dumps(life, bin_dir)
    life.day(0)
    life.at(0, 1)
    life.run("verify", f"{DATABASE}_daily_2026-02-28_030000.dump")
    life.run("drill")
    life.dump(POSTGRES_DB=OTHER)
    for number in (1, 2, 3):
        life.day(number)
    execute(life.live, "ALTER TABLE person_identity_links RENAME TO links")
    life.day(4, bad=True)
    execute(life.live, "ALTER TABLE links RENAME TO person_identity_links")
    for number in (5, 6, 7, 8):
        life.day(number)
        if number == 7:
            life.run("drill")
        restores_of_the_first_server(life, number)
    execute(life.live, "DELETE FROM identities WHERE person > 20")
    for number in (9, 10):  # the one before is held
        life.day(number)
    life.move_to(servers[1])
    life.day(11, bad=True)
    life.run("accept", life.name(11))
    life.run("promote", life.name(11))
    for number in (12, 13):
        life.day(number)
    rot(life, 12)
    life.day(14)
    life.run("drill", code=1, DRILL_CHECK_COMMAND="echo the tables are not what they were >&2; exit 3")
    for number in (15, 16):
        life.day(number)
    restores_of_the_second_server(life, servers)
    for number in (17, 18):
        life.day(number)
    execute(life.live, "DELETE FROM person_identity_links", "INSERT INTO person_identity_links (person) VALUES (5)")
    life.day(19)  # the one before is held, and released
    life.run("prune", "--release", life.name(18))
    for number in range(20, 31):
        if number != 25:  # the machine was off
            life.day(number)
        if number in (21, 28):
            life.run("drill")
    broken_verdict(life)
    the_last_morning(life)


def restores_of_the_first_server(life: Life, number: int) -> None:
    life.at(number, 6)
    if number == 5:
        with services(life):
            life.run("restore", life.name(5), "--yes-destroy", DATABASE)
            life.at(number, 7)
            life.run("undo-restore", "--yes-destroy", DATABASE)
        life.at(number, 8)
        life.run("restore", life.name(3), "--mode", "new", "--into", "ovia_of_wednesday")
    if number == 6:
        restorations = life.place.system.restorations
        restorations.kept_databases.expire(2 * DAY, lambda *_: True, Clock.now(dt.UTC), quiet)
    if number == 8:
        with services(life), killed_at(4):
            assert life.begun("restore", life.name(8), "--yes-destroy", DATABASE).killed
        with services(life):
            life.run("restore", "--abort")


def restores_of_the_second_server(life: Life, servers: list[PortCluster]) -> None:
    life.at(16, 2)
    life.run("restore", life.name(12), "--mode", "new", "--into", "ovia_salvaged", "--even-if-damaged")
    life.at(16, 6)
    life.run("restore", life.name(16), "--mode", "drop", "--yes-destroy", DATABASE)
    life.at(16, 12)
    with killed_at(1):
        assert life.begun("restore", life.name(16), "--yes-destroy", DATABASE).killed
    life.move_to(servers[2])
    life.run("restore", "--abort", "--yes-destroy", DATABASE, code=1)  # given up
    life.at(16, 13)
    life.run("restore", life.name(16), "--new-host", "--create-roles")


def rot(life: Life, number: int) -> None:
    path = life.place.root / "daily" / life.name(number)
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    life.run("verify", path.name, code=1)


def broken_verdict(life: Life) -> None:
    """A full disk once cut off a verdict, and the backup was verified again."""
    path = life.place.root / "daily" / f"{life.name(24)}.verified.json"
    path.write_bytes(path.read_bytes()[:100])
    life.run("verify", life.name(24))


def the_last_morning(life: Life) -> None:
    life.at(30, 1)
    with services(life) as settings:
        system = life.with_settings(**settings).system
        wishes = Wishes(backup=life.name(30), mode=Mode.SWAP, jobs=2)
        restorations = system.restorations
        plan = restorations.planner.plan(wishes, "operator", "0f3e6f4a-6b1f-4ed5-9a4a-53d8e4e2f6a1", Clock.now(dt.UTC))
        assert restorations.offer(plan), plan.obstacles
        life.at(30, 1.5)
        with killed_at(4):
            assert life.begun("restore", life.name(30), "--yes-destroy", DATABASE, "--auto-undo").killed
    life.at(30, 2)
    with mock.patch.object(DrillFolder, "record", die):
        assert life.begun("drill").killed
    life.at(30, 3)
    with dump_that_waits(life.live) as waits:
        running = life.place.start("dump")
        until(waits, 20)
        running.kill()
        assert running.wait().killed
    # As the old script removes a dump: it knows no sidecars.
    (life.place.root / "daily" / life.name(2)).unlink()


@contextmanager
def services(life: Life) -> Iterator[dict[str, str]]:
    """Restores in the block stop and start the application's services on an engine."""
    with engine(life.place.logs / "gone", api=2, ingest=1, migrate=1) as docker, serving() as application:
        docker.complete.add("migrate")
        settings = {
            "SWARM_APP_SERVICES": "api,ingest",
            "SWARM_MIGRATE_SERVICE": "migrate",
            "SWARM_DOCKER_URL": docker.url,
            "HEALTH_URL": application.url(),
        }
        before, life.place = life.place, life.with_settings(**settings)
        try:
            yield settings
        finally:
            life.place = before


def a_hand_over(root: Path, life: Life, bin_dir: Path) -> None:
    """Hand over the old script's volume; then the old script removes the dumps that exceed its count."""
    root.mkdir()
    pg_dump = f"{bin_dir}/pg_dump -Fc -h {life.live.host} -p {life.live.port} -U postgres {DATABASE}"
    for days in (2, 1, 0):
        old_script(root, FIRST + days * DAY, dump=pg_dump)
    at = FIRST + 2 * DAY + HOUR
    # A hand-over recognises the old script's volume by dumps of another user.
    takeover.begin(root, takeover.Owner(10001, 10001), at)
    old_script(root, FIRST + 3 * DAY, dump=pg_dump, daily_keep=2)
    set_mtime(root / ".handover", at)


def keep(root: Path, name: str) -> None:
    """Copy a volume here, and the times of its dumps into a JSON file beside it."""
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(root, target, ignore=lambda _, names: [RESERVE] if RESERVE in names else [])
    timed = [path for path in root.rglob("*") if path.suffix == ".dump" or path.name == ".handover"]
    times = {str(path.relative_to(root)): path.stat().st_mtime_ns for path in sorted(timed)}
    (HERE / f"{name}.mtimes.json").write_text(json.dumps(times, indent=1) + "\n", "utf-8")


def main() -> None:
    bin_dir = embedded_server.bin_dir()
    folder = Path(tempfile.mkdtemp(prefix="golden-", dir="/tmp"))
    try:
        with ExitStack() as held:
            servers = [held.enter_context(running_cluster(bin_dir)) for _ in range(3)]
            held.enter_context(other_surroundings())
            for server in servers[:2]:
                execute(server.connection(), "CREATE ROLE ovia LOGIN", "CREATE ROLE readers")
                execute(server.connection(), "GRANT readers TO ovia")
                new_database(server)
            new_database(servers[0], OTHER)
            Clock.set(FIRST)
            root = folder / "backups"
            live = servers[0].connection(DATABASE)
            settings = {"BACKUP_DAILY_KEEP": "60", "BACKUP_WEEKLY_KEEP": "60"}
            place = place_for(live, bin_dir, root, folder)
            life = Life(replace(place, settings={**place.settings, **settings}), live)
            a_month(life, servers, bin_dir)
            a_hand_over(folder / "handover", life, bin_dir)
        keep(root, "volume")
        keep(folder / "handover", "handover")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
