"""A whole deployment: PostgreSQL, ``dg dev`` with schedule and sensor, and a receiver of its alerts.

The tests of the UI and the README's pictures use it. ``browser`` drives the UI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.demo.process_groups import end_group
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import REPOSITORY, execute, free_port, quiet, running_cluster
from ovia_backup_dagster_tests.defs.receiver import Receiver, receiver
from ovia_backup_dagster_tests.defs.support import OURS, backdate, environment, load

DATABASE = "ovia"
AGE = timedelta(hours=30)
_SENSOR = """{ repositoryLocationName: "ovia_backup_dagster", repositoryName: "__repository__",
    sensorName: "backup_freshness_sensor" }"""

#: The changes of the database since that backup, as the UI shows them.
CHANGES = {"public.audit_events": "+240", "public.people": "+3", "public.sync_watermarks": "-2"}
_SINCE = (
    """INSERT INTO people (id, person_key, given_name, family_name, email, team, hired_on)
       SELECT 1000000 + i, md5('new person:' || i)::uuid, 'New', 'Person', 'new' || i || '@example.com', 'sales',
              DATE '2026-02-01' FROM generate_series(1, 3) AS i""",
    "INSERT INTO audit_events (action, payload) SELECT 'login', '{}' FROM generate_series(1, 240)",
    "DELETE FROM sync_watermarks WHERE ctid IN (SELECT ctid FROM sync_watermarks LIMIT 2)",
)


@dataclass(frozen=True)
class Deployment:
    """A running deployment.

    Attributes:
        url: of the UI.
        database: connection as its superuser.
        system: with the same settings, to read and change the volume without Dagster.
        people: the receiver of alerts.
    """

    url: str
    database: Connection
    system: BackupSystem
    people: Receiver

    def rows(self) -> dict[str, int]:
        """The tables without partitions -> how many rows each has in the database."""
        to = self.database
        with psycopg.connect(host=to.host, port=to.port, dbname=to.database, user=to.user) as session:
            tables = session.execute(
                """SELECT nspname, relname, format('%I.%I', nspname, relname), relkind = 'p'
                   FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
                   WHERE relkind IN ('r', 'p') AND NOT relispartition
                   AND nspname NOT IN ('pg_catalog', 'information_schema')"""
            ).fetchall()
            counts = {}
            for schema, name, quoted, partitioned in tables:
                # Without the rows of tables that inherit from it.
                query = sql.SQL("SELECT count(*) FROM {}" if partitioned else "SELECT count(*) FROM ONLY {}")
                [(counts[quoted],)] = session.execute(query.format(sql.Identifier(schema, name)))
            return counts

    def stop_sensor(self) -> None:
        """Stop the sensor: it has no further ticks."""
        found = self._ask("{ sensorOrError(sensorSelector: " + _SENSOR + ") { ... on Sensor { sensorState { id } } } }")
        stopped = self._ask("mutation($id: String!) { stopSensor(id: $id) { __typename } }", found["sensorState"]["id"])
        assert stopped["__typename"] == "StopSensorMutationResult"

    def _ask(self, query: str, state: str = "") -> dict[str, Any]:
        """The single answer to a GraphQL query."""
        body = json.dumps({"query": query, "variables": {"id": state}}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            [answer] = json.load(response)["data"].values()
        assert isinstance(answer, dict)
        return answer

    @property
    def newest(self) -> Backup:
        """The newest backup on the volume."""
        return self.system.catalog.backups()[0]


@contextmanager
def deployed(scale: float) -> Iterator[Deployment]:
    """Start it over a volume whose only backup, a verified one, is 30 hours old. Nothing is left behind.

    So the sensor's first tick sends an alert, and the first verification has a backup to compare with.

    Args:
        scale: of the sample database.
    """
    with (
        running_cluster(embedded_server.bin_dir()) as cluster,
        tempfile.TemporaryDirectory(prefix="ovia-ui-", dir="/tmp") as folder,
        receiver() as people,
    ):
        embedded_server.create_database(cluster.connection(), cluster.bin_dir, DATABASE, scale)
        database = cluster.connection(DATABASE)
        home = Path(folder) / "dagster"
        home.mkdir()
        shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
        variables = environment(
            database, Path(folder) / "backups", cluster.bin_dir, BACKUP_NOTIFY_URLS=people.url, DAGSTER_HOME=str(home)
        )
        system = BackupSystem(load(variables))
        before = system.dumper.dump(log=quiet)
        assert system.verifier.verify(before, log=quiet).judgement.good
        backdate(system.catalog, before, AGE)
        execute(database, *_SINCE)
        with _served(variables, Path(folder) / "dagster.log") as url:
            yield Deployment(url, database, system, people)


@contextmanager
def _served(variables: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run the webserver and the daemon; yields the UI's address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*OURS, "PYTHON"))}
    port = free_port()
    where = ("--workspace", "workspace.yaml", "--host", "127.0.0.1", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    with open(log, "wb") as output:
        # Its own session: the code servers and runs that it starts must end with it.
        process = subprocess.Popen(
            (Path(sys.executable).with_name("dg"), "dev", *where),
            cwd=REPOSITORY,
            env={**kept, **variables},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            until(lambda: _answers(url) or process.poll() is not None, 120, "Dagster did not start")
            assert process.poll() is None, log.read_text()
            yield url
        finally:
            end_group(process)
            process.wait(0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=30) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def until(true: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Wait for a condition outside of the browser; inside, Playwright waits."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)
