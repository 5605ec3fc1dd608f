"""Every command of docs/runbook.md, on the stack that it is about."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.error

import pytest

from ovia_backup_dagster_tests.swarm.engine import IMAGE, docker, until
from ovia_backup_dagster_tests.swarm.swarm import TITLE, Swarm

PEOPLE = "SELECT count(*) FROM people"


def test_the_first_command(swarm: Swarm) -> None:
    swarm.runbook.take(TITLE, 0)
    assert "doctor" in swarm.console("--help")


def test_the_old_and_the_new_share_the_volume_and_lose_nothing(swarm: Swarm) -> None:
    """The old script's day is each of its starts; it keeps seven by count, and has had more than that since."""
    seen: set[str] = set()

    def look() -> None:
        seen.update(name for name in swarm.sh(_listing(swarm)).split() if name.endswith(".dump"))

    look()
    assert len(seen) > 7
    for _ in range(3):
        written = swarm.log("ovia_backup").count("backup written")
        docker("service", "update", "--force", "--detach", "ovia_backup")
        until(
            lambda before=written: swarm.log("ovia_backup").count("backup written") > before,  # type: ignore[misc]
            90,
            lambda: swarm.story("ovia_backup"),
        )
        look()
        swarm.succeeded(swarm.launch("daily_backup_job"))
        look()
    removed = seen - set(swarm.sh(_listing(swarm)).split())
    assert removed, "the old script removed nothing: this test shows nothing"
    swarm.follow("Moving from the old backup service", 0)
    swarm.follow("Moving from the old backup service", 1)
    assert seen - set(swarm.sh(_listing(swarm)).split()) == set()
    states = {backup["state"] for backup in swarm.backups()}
    assert states <= {"proven", "being written"}, states
    every = "stat -c %u:%g /backups /backups/*/*"
    owners = docker("exec", swarm.container("ovia-backup_console"), "sh", "-c", every)
    assert set(owners.split()) == {"10001:10001"}


def _listing(swarm: Swarm) -> str:
    return f"docker exec {swarm.container('ovia-backup_console')} ls /backups/daily /backups/weekly"


@pytest.mark.parametrize(
    ("heading", "number", "said"),
    [
        ("Checking backup logs", 0, "dagster.daemon"),
        ("Checking backup logs", 1, "programs"),
        ("Verifying the latest backup", 0, "proven"),
        ("Ad-hoc backup on the Swarm host", 0, ""),
        ("Copying a backup off-host", 0, ".dump.globals.sql"),
        ("Before any of them", 0, "passed"),
        ("Checking backup freshness", 0, "OK"),
        ("What to do if a backup fails", 0, ""),
        ("Reading the logs of a failed run", 0, "dagster"),
        ("External monitoring", 0, "dagster_version"),
        ("Monthly restore drill", 0, "restores: "),
        ('pg_dump fails with "connection refused"', 0, "accepting connections"),
        ("The backup volume is full", 0, "/backups"),
        ('pg_restore fails with "invalid archive"', 0, ""),
    ],
)
def test_what_people_look_at(swarm: Swarm, heading: str, number: int, said: str) -> None:
    assert said in swarm.follow(heading, number)


def test_scenario_1_and_back(swarm: Swarm) -> None:
    """Somebody deleted everybody."""
    swarm.console("dump")
    swarm.console("verify")
    swarm.variables["BACKUP"] = swarm.backups()[0]["name"]
    swarm.psql("ALTER DATABASE ovia SET statement_timeout = '1h'")
    swarm.psql("DELETE FROM person_identity_links; DELETE FROM people")
    scenario = "Scenario 1: restore to the same host"
    for number in range(3):
        swarm.follow(scenario, number)
    assert re.search(r"^ people +\| +20000$", swarm.follow(scenario, 3), re.MULTILINE)
    assert "ok, 20000 people" in swarm.follow(scenario, 4)
    assert docker("service", "ls", "-f", "name=ovia_ovia", "--format", "{{.Replicas}}").split() == ["1/1"] * 3
    swarm.follow(scenario, 5)
    assert swarm.psql(PEOPLE) == "0"
    # It was wanted, after all.
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('ovia', 'ovia_restored')"
    swarm.psql("ALTER DATABASE ovia ALLOW_CONNECTIONS false", database="postgres")
    swarm.psql(ends, database="postgres")
    swarm.psql("ALTER DATABASE ovia RENAME TO ovia_wrong", database="postgres")
    swarm.psql("ALTER DATABASE ovia_restored RENAME TO ovia", database="postgres")
    swarm.psql("ALTER DATABASE ovia_wrong RENAME TO ovia_restored", database="postgres")
    swarm.follow(scenario, 6)
    del swarm.variables["BACKUP"]
    assert swarm.psql(PEOPLE) == "20000"
    assert swarm.psql("SELECT datname FROM pg_database WHERE datname LIKE 'ovia%'") == "ovia"
    swarm.succeeded(swarm.launch("daily_backup_job"))


def test_scenario_2_and_a_new_password(swarm: Swarm) -> None:
    """The server's volume is gone, and with it all roles; what is left is a backup in a folder elsewhere."""
    docker("service", "scale", "ovia_ovia-api=0", "ovia_ovia-ingest=0", "ovia_ovia-metrics=0", "ovia_postgres=0")
    until(lambda: not docker("ps", "-aq", "-f", "name=ovia_postgres"), 60, "it is still there")
    docker("volume", "rm", "ovia_postgres_data")
    docker("service", "scale", "--detach", "ovia_postgres=1")
    until(lambda: swarm.health("ovia_postgres") == "healthy", 120, lambda: swarm.story("ovia_postgres"))
    with pytest.raises(AssertionError, match="does not exist"):
        swarm.psql(PEOPLE)
    scenario = "Scenario 2: restore to a new host"
    swarm.follow(scenario, 0)
    swarm.follow(scenario, 1)
    assert swarm.psql(PEOPLE) == "20000"
    assert swarm.psql("SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = 'ovia_backup'") == "t"
    swarm.follow("Rotating the password", 0, timeout=120)
    swarm.variables["POSTGRES_PASSWORD_SECRET"] = "ovia-backup_postgres_password_2"
    docker("service", "scale", "ovia_ovia-api=1", "ovia_ovia-ingest=1", "ovia_ovia-metrics=1")
    until(lambda: "ok, 20000" in swarm.sh("curl -s localhost:8080/health || true"), 60, "not healthy")
    swarm.well()
    until(lambda: _removed(swarm), 60, "the old secret is still used")
    swarm.succeeded(swarm.launch("daily_backup_job"))


def _removed(swarm: Swarm) -> bool:
    with contextlib.suppress(AssertionError):
        swarm.follow("Rotating the password", 1)
        return True
    return False


def test_upgrading_and_back(swarm: Swarm) -> None:
    swarm.follow("Upgrading", 0)
    swarm.well()
    until(lambda: _image(swarm, "daemon") == "ovia-backup-dagster:next", 180, lambda: swarm.story("ovia-backup_daemon"))
    until(lambda: _locations(swarm), 120, lambda: swarm.story("ovia-backup_webserver"))
    run_id = swarm.launch("daily_backup_job")
    used = docker("inspect", "-f", "{{.Config.Image}}", swarm.in_step(run_id, "daily_dump"))
    assert used == "ovia-backup-dagster:next"
    swarm.succeeded(run_id)
    swarm.settings.write_text(swarm.settings.read_text("utf-8").replace("ovia-backup-dagster:next", IMAGE), "utf-8")
    swarm.deploy()
    until(lambda: _image(swarm, "daemon") == IMAGE, 180, lambda: swarm.story("ovia-backup_daemon"))
    swarm.well()


def _image(swarm: Swarm, service: str) -> str:
    with contextlib.suppress(AssertionError):  # one is going, the next not there yet
        return docker("inspect", "-f", "{{.Config.Image}}", swarm.container(f"ovia-backup_{service}"))
    return ""


def test_a_second_database(swarm: Swarm) -> None:
    swarm.psql("CREATE DATABASE second", database="postgres")
    swarm.psql("CREATE TABLE notes AS SELECT g AS id FROM generate_series(1, 1234) g", database="second")
    swarm.follow("A second database", 0)
    swarm.well()
    until(
        lambda: swarm.health("ovia-backup_code-server-second") == "healthy",
        120,
        lambda: swarm.story("code-server-second"),
    )
    until(lambda: "second" in _locations(swarm), 120, lambda: str(_locations(swarm)))
    both = [swarm.launch("daily_backup_job"), swarm.launch("daily_backup_job", location="second")]
    for run_id in both:
        swarm.succeeded(run_id)
    assert swarm.backups()[0]["rows"] > 100_000
    files = swarm.sh(
        "docker run --rm -v ovia_backup_data_second:/backups -e POSTGRES_HOST=postgres -e POSTGRES_DB=second "
        "ovia-backup-dagster:0.1.0 ovia-backup list --json"
    )
    [newest] = [backup for backup in json.loads(files) if backup["tier"] == "daily"]
    assert (newest["rows"], newest["state"], newest["run_id"]) == (1234, "proven", both[1])
    nodes = swarm.graphql("{ assetsOrError { ... on AssetConnection { nodes { key { path } } } } }")
    keys = {"/".join(node["key"]["path"]) for node in nodes["assetsOrError"]["nodes"]}
    assert {"daily_dump", "second/daily_dump"} <= keys


def _locations(swarm: Swarm) -> list[str]:
    """None while the web server begins anew."""
    query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }"
    with contextlib.suppress(urllib.error.URLError):
        return [node["location"]["name"] for node in swarm.graphql(query)["repositoriesOrError"]["nodes"]]
    return []


def test_people_were_told_that_all_is_well_again(swarm: Swarm) -> None:
    """After the failed runs: the last that they heard. It may take the sensor's five minutes."""

    def titles() -> list[str]:
        return [told["title"] for told in swarm.told()]

    until(lambda: any("all is well" in title for title in titles()), 330, lambda: str(titles()))


def test_every_command_of_the_runbook_was_run(swarm: Swarm) -> None:
    every = {(heading, number) for heading, blocks in swarm.runbook.blocks().items() for number in range(len(blocks))}
    assert every - swarm.runbook.done == set()
