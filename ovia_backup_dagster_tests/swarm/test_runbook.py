"""Every command of docs/runbook.md, on the stack that it describes; test_restore runs those of a restore."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ovia_backup_dagster_tests.swarm.engine import IMAGE, docker, until
from ovia_backup_dagster_tests.swarm.swarm import SENSOR_SECONDS, SERVICES, TITLE, Swarm


def test_the_runbooks_first_command_works(swarm: Swarm) -> None:
    swarm.runbook.take(TITLE, 0)
    assert "doctor" in swarm.console("--help")


def test_moving_from_the_old_service_loses_no_backup(swarm: Swarm) -> None:
    """The old script backs up at each start and keeps seven files by count. By now there are more than seven."""
    seen: set[str] = set()

    def look() -> None:
        seen.update(name for name in swarm.sh(_listing(swarm)).split() if name.endswith(".dump"))

    look()
    assert len(seen) > 7
    for _ in range(2):
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
    assert removed, "the old script removed no file, so this test shows no protection"
    swarm.follow("Moving from the old backup service", 0)
    swarm.follow("Moving from the old backup service", 1)
    assert seen - set(swarm.sh(_listing(swarm)).split()) == set()
    # If it starts before PostgreSQL accepts it, the old script leaves an empty file, which is bad.
    begun = [backup for backup in swarm.backups() if backup["size_bytes"] > 0]
    assert [backup for backup in begun if backup["state"] not in ("proven", "being written")] == []
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
        ("Verifying the latest backup", 0, "verified"),
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
def test_other_commands_of_the_runbook(swarm: Swarm, heading: str, number: int, said: str) -> None:
    assert said in swarm.follow(heading, number)


def test_an_upgrade_runs_the_new_image_by_schedule(swarm: Swarm) -> None:
    before = swarm.settings.read_text("utf-8")
    swarm.settings.write_text(f"{before}BACKUP_SCHEDULE='* * * * *'\n", "utf-8")
    swarm.follow("Upgrading", 0)
    swarm.well()
    until(
        lambda: swarm.image("ovia-backup_daemon") == "ovia-backup-dagster:next",
        180,
        lambda: swarm.story("ovia-backup_daemon"),
    )
    until(lambda: _scheduled(swarm), 150, lambda: str(swarm.runs(5)))
    run = swarm.succeeded(_scheduled(swarm)[-1]["runId"])
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert tags["dagster/image"] == "ovia-backup-dagster:next"
    # The next test deploys the old image again, and the old schedule.
    swarm.settings.write_text(f"{before}OVIA_BACKUP_IMAGE={IMAGE}\n", "utf-8")


def _scheduled(swarm: Swarm) -> list[dict[str, Any]]:
    tag = {"key": "dagster/schedule_name", "value": "daily_backup_schedule"}
    return [run for run in swarm.runs() if tag in run["tags"]]


def test_a_second_database_and_the_old_image(swarm: Swarm) -> None:
    """One deployment adds the database and goes back from the upgrade."""
    swarm.psql("CREATE DATABASE second", database="postgres")
    swarm.psql("CREATE TABLE notes AS SELECT g AS id FROM generate_series(1, 1234) g", database="second")
    swarm.follow("A second database", 0)
    swarm.well()
    until(
        lambda: swarm.health("ovia-backup_code-server-second") == "healthy",
        120,
        lambda: swarm.story("code-server-second"),
    )
    until(lambda: "second" in swarm.locations(), 120, lambda: str(swarm.locations()))
    for service in SERVICES:
        if service != "storage":
            assert swarm.image(f"ovia-backup_{service}") == IMAGE, service
    both = [swarm.launch("daily_backup_job"), swarm.launch("daily_backup_job", location="second")]
    for run_id in both:
        swarm.succeeded(run_id)
    assert swarm.backups()[0]["rows"] > 100_000
    files = swarm.sh(
        "docker run --rm -v ovia_backup_data_second:/backups -e POSTGRES_HOST=postgres -e POSTGRES_DB=second "
        "ovia-backup-dagster:0.2.0 ovia-backup list --json"
    )
    [newest] = [backup for backup in json.loads(files) if backup["tier"] == "daily"]
    assert (newest["rows"], newest["state"], newest["run_id"]) == (1234, "proven", both[1])
    assert "1. restore into second_restore_" in swarm.follow("A second database", 1)
    nodes = swarm.graphql("{ assetsOrError { ... on AssetConnection { nodes { key { path } } } } }")
    keys = {"/".join(node["key"]["path"]) for node in nodes["assetsOrError"]["nodes"]}
    assert {"daily_dump", "second/daily_dump"} <= keys


def test_an_alert_says_that_all_is_well_again(swarm: Swarm) -> None:
    """It is the last alert after the failed runs."""

    def titles() -> list[str]:
        return [told["title"] for told in swarm.told()]

    until(lambda: any("all is well" in title for title in titles()), SENSOR_SECONDS, lambda: str(titles()))
