"""Copies from the stack to an S3 server outside of it, and the loss of the node, which ends both stacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.offsite.servers import SECRET, Server
from ovia_backup_dagster_tests.swarm.engine import HERE, STATE, docker, until
from ovia_backup_dagster_tests.swarm.swarm import SENSOR_SECONDS, SERVICES, Swarm

COPIES = "Copies on remotes"
LOST = "Losing the node"
OUTSIDE = "ovia-backup_outside"
NAS = STATE / "nas"
PEOPLE = "SELECT count(*), md5(string_agg(p::text, ',' ORDER BY p::text)) FROM people p"


@pytest.fixture(scope="module")
def vault() -> Iterator[Server]:
    """An S3 server on the host, which containers reach as they reach the Internet."""
    gateway = docker("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}")
    folder = STATE / "vault"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "ovia-backups").mkdir(parents=True)
    with Server("s3", folder, STATE / "rclone.conf", host=gateway) as server:
        server.config.write_text(server.config.read_text("utf-8").replace("[store]", "[vault]"), "utf-8")
        yield server


@pytest.fixture(scope="module")
def nas() -> Iterator[Path]:
    """A mount, shared as systemd makes them all."""
    shutil.rmtree(NAS, ignore_errors=True)
    NAS.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "nas", NAS), check=True)
    subprocess.run(("mount", "--make-shared", NAS), check=True)
    yield NAS
    subprocess.run(("umount", "--lazy", NAS), check=True)


@pytest.fixture(scope="module")
def copying(swarm: Swarm, vault: Server, nas: Path) -> Swarm:
    """The stack, copying as the runbook says."""
    swarm.variables["RCLONE_CONF"] = str(vault.config)
    os.chown(nas, 10001, 10001)
    files = 'STACK_FILES="${STACK_FILES:-deploy/stack.yml} deploy/nas.yml"'
    swarm.settings.write_text(f"{swarm.settings.read_text('utf-8')}{files}\nNAS_FOLDER={nas}\n", "utf-8")
    swarm.console("dump")
    swarm.console("verify", "latest")
    for number in range(3):
        swarm.follow(COPIES, number)
    # The doctor is unhealthy until the remote has its marker.
    swarm.well(*(name for name in SERVICES if name != "doctor"))
    swarm.settled("console")
    return swarm


def copies(swarm: Swarm) -> list[str]:
    found = json.loads(swarm.console("list", "--offsite", "--json"))
    return [copy["name"] for copy in found]


def test_switching_copies_on_sends_every_verified_backup(copying: Swarm) -> None:
    said = copying.follow(COPIES, 3)
    assert "vault is ours" in said, said
    verified = {backup["name"] for backup in copying.backups() if backup["state"] == "proven"}
    assert verified
    assert verified >= set(copies(copying))
    # What no tier of the remote would keep is not sent.
    assert copies(copying)[0] == copying.backups()[0]["name"]


@pytest.mark.exhaustive
def test_a_mounted_nas_is_a_remote(copying: Swarm) -> None:
    console, remote = copying.container("ovia-backup_console"), "OFFSITE_REMOTES=nas=/nas/ovia"
    for act in ("init", "copy"):
        said = docker("exec", "-e", remote, console, "ovia-backup", "offsite", act)
    assert "nas: " in said
    assert list((NAS / "ovia/backups").glob("*/receipt-*.json"))


def reaches(container: str) -> set[str]:
    """Of the remotes' network and the NAS, what a container has."""
    about = json.loads(docker("inspect", container))[0]
    has = {*about["NetworkSettings"]["Networks"], *(mount["Destination"] for mount in about["Mounts"])}
    return has & {OUTSIDE, "/nas"}


def test_only_runs_that_copy_reach_the_remote(copying: Swarm) -> None:
    until(copying.locations, 120, lambda: copying.story("ovia-backup_webserver"))
    daily = copying.launch("daily_backup_job")
    container = copying.in_step(daily, "daily_dump")
    assert reaches(container) == {OUTSIDE, "/nas"}
    shown = docker("inspect", container)
    assert "OFFSITE_REMOTES" in shown, "the search finds nothing at all"
    for secret in (SECRET, "PRIVATE KEY"):
        assert secret not in shown
    drill = copying.launch("restore_drill_job")
    assert reaches(copying.in_step(drill, "restore_drill")) == set()
    run = copying.succeeded(daily)
    assert copies(copying)[0] == copying.backups()[0]["name"], copying.account(run["runId"])
    copying.succeeded(drill)


def test_the_copies_are_verified_by_a_person_and_a_run(copying: Swarm) -> None:
    run_id = copying.launch("offsite_verification_job")
    said = copying.follow(COPIES, 4)
    assert "head" in said
    copying.succeeded(run_id)
    assert "offsite" not in copying.console("status")


def test_a_lost_remote_is_alerted_and_the_backup_goes_on(copying: Swarm, vault: Server) -> None:
    bucket = vault.folder / "ovia-backups"
    lost = bucket.rename(vault.folder / "lost")
    try:
        copying.succeeded(copying.launch("daily_backup_job"))
        assert copying.backups()[0]["state"] == "proven"
        until(
            lambda: any("nothing can be copied to remote vault" in told["message"] for told in copying.told()),
            SENSOR_SECONDS,
            lambda: str(copying.told()),
        )
    finally:
        lost.rename(bucket)
    copying.succeeded(copying.launch("daily_backup_job"))
    assert copies(copying)[:2] == [backup["name"] for backup in copying.backups()[:2]]


def test_a_lost_node_is_restored_from_the_remote(copying: Swarm) -> None:
    """Volumes, secrets and services are gone. There are the printed page, rclone's file and the image."""
    people, newest = copying.psql(PEOPLE), copies(copying)[0]
    page = (copying.clone / "ovia-keys/recovery-page.txt").read_text("utf-8").splitlines()
    docker("swarm", "leave", "--force")
    until(lambda: not docker("ps", "-q"), 120, lambda: docker("ps"))
    docker("system", "prune", "--volumes", "--force")
    left = docker("volume", "ls", "-q").split()
    if left:
        docker("volume", "rm", *left)
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    rescue = copying.clone / "rescue"
    rescue.mkdir()
    for name, begins in (("verify_key.pub", "ssh-ed25519 "), ("age_identity.txt", "AGE-SECRET-KEY-1")):
        [line] = {line.strip() for line in page if line.strip().startswith(begins)}
        (rescue / name).write_text(f"{line}\n", "utf-8")
    shutil.copy2(copying.variables["RCLONE_CONF"], rescue / "rclone.conf")
    shutil.rmtree(copying.clone / "ovia-keys")
    copying.sh(f"docker stack deploy -c {HERE / 'standins/ovia/stack.yml'} ovia")
    docker("service", "scale", "--detach", "ovia_ovia-api=0", "ovia_ovia-ingest=0", "ovia_ovia-metrics=0")
    until(lambda: copying.health("ovia_postgres") == "healthy", 120, lambda: copying.story("ovia_postgres"))
    said = copying.follow(LOST, 0)
    assert newest in said
    assert copying.psql(PEOPLE) == people
