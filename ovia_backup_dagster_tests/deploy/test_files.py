"""The files of deploy/ agree with each other and with the settings. ``make test-swarm`` tests that they work."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from ovia_backup_dagster import __version__
from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster.container.swarm_secrets import FILE_VARIABLES
from ovia_backup_dagster.defs.run_launcher import OffsiteRunLauncher
from ovia_backup_dagster.settings.model import variable_names
from ovia_backup_dagster_tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
#: Variables without use in a container of the image, and secrets by value where the stack requires a file.
NOT_IN_STACK = {
    *FILE_VARIABLES,
    "BACKUP_ASSET_PREFIX",
    "PG_BIN_DIR",
    # The identity that decrypts copies does not belong on the host that makes them.
    "OFFSITE_IDENTITY_FILE",
}
#: A stack file that is optional -> its settings, and the services that it gives them to.
OVERLAYS = {
    "restore.yml": ("x-restore", {"code-server", "console"}),
    "signing.yml": ("x-signing", {"code-server", "console", "doctor"}),
    "offsite.yml": ("x-offsite", {"code-server", "console", "doctor"}),
    "pitr.yml": ("x-pitr", {"code-server", "console", "doctor", "wal"}),
    # It only adds a file that rclone's own names.
    "sftp.yml": ("", {"code-server", "console", "doctor"}),
}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text("utf-8"))
    return found


@pytest.mark.parametrize("part", ["telemetry", "nux", "run_retries", "concurrency", "retention", "freshness"])
def test_production_and_a_checkout_share_settings(part: str) -> None:
    ours = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text("utf-8"))
    assert read("dagster.yaml")[part] == ours[part]


def test_every_setting_can_be_set_in_the_stack() -> None:
    overlays = [set(read(file)[key]) for file, (key, _) in OVERLAYS.items() if key]
    given = [set(read("stack.yml")["x-database"]), *overlays]
    assert variable_names() - set().union(*given) == NOT_IN_STACK
    # Each has one place.
    assert sum(map(len, given)) == len(set().union(*given))


@pytest.mark.parametrize("file", OVERLAYS)
def test_an_overlay_gives_settings_and_secrets_together(file: str) -> None:
    """A service with the settings and without the secrets they name would not start."""
    overlay = read(file)
    key, services = OVERLAYS[file]
    settings = overlay[key] if key else {}
    given = {name: about for name, about in overlay["services"].items() if name != "daemon"}
    assert given.keys() == services
    for name, about in given.items():
        assert settings.items() <= about.get("environment", {}).items(), name
        mounted = {secret["target"] for secret in about["secrets"]}
        named = {Path(value).name for value in settings.values() if value.startswith("/run/ovia-backup/")}
        assert mounted == overlay["secrets"].keys(), name
        assert named == (mounted if key else set()), name
        for secret in about["secrets"]:
            assert (secret["uid"], secret["gid"], secret["mode"]) == ("10001", "10001", 0o400), name


def test_only_runs_that_copy_reach_the_remotes() -> None:
    """Every other container of this stack is on networks of its own or of the stack that is backed up."""
    overlay, nas = read("offsite.yml"), read("nas.yml")
    assert overlay["networks"]["outside"] == {"name": "ovia-backup_outside", "driver": "overlay", "attachable": True}
    on_it = {name for name, about in overlay["services"].items() if "outside" in about.get("networks", [])}
    assert on_it == {"console", "doctor"}
    for name in ("code-server", "daemon"):
        assert overlay["services"][name]["environment"]["RUN_OFFSITE_NETWORKS"] == "ovia-backup_outside"
    assert nas["services"].keys() == {"code-server", "console", "doctor"}
    for file in ("stack.yml", "restore.yml", "signing.yml", "second-database.yml"):
        assert "outside" not in read(file).get("networks", {}), file
    launcher = read("dagster.yaml")["run_launcher"]
    assert (launcher["module"], launcher["class"]) == (OffsiteRunLauncher.__module__, OffsiteRunLauncher.__name__)


def test_only_the_overlay_can_restore() -> None:
    """The stack alone can only read the database; the overlay's settings reach only the console and runs."""
    stack, overlay = read("stack.yml"), read("restore.yml")
    assert "restore_password" not in str(stack)
    for network in overlay["services"]["code-server"]["environment"]["RUN_NETWORKS"].split():
        [about] = [found for found in stack["networks"].values() if found["name"] == network]
        # A deployment does not change an existing network.
        assert about.get("external") or about["attachable"], network


def test_the_wal_receiver_has_the_server_and_one_secret() -> None:
    """It runs for months with a password that copies every database, so it reaches nothing else."""
    stack, overlay = read("stack.yml"), read("pitr.yml")
    receiver = overlay["services"]["wal"]
    environment = receiver["environment"].items() - overlay["x-pitr"].items()
    assert environment - stack["x-database"].items() == {
        ("DEPLOYMENT_HINTS", receiver["environment"]["DEPLOYMENT_HINTS"])
    }
    for line in receiver["environment"]["DEPLOYMENT_HINTS"].splitlines():
        assert line in stack["x-database"]["DEPLOYMENT_HINTS"]
    assert receiver["networks"] == ["backed-up"]
    assert [secret["source"] for secret in receiver["secrets"]] == ["wal_password"]
    assert stack["x-private"] in receiver["volumes"]
    assert (receiver["deploy"]["replicas"], receiver["deploy"]["update_config"]["order"]) == (1, "stop-first")


def test_the_unit_runs_the_receiver_without_end() -> None:
    text = (DEPLOY / "ovia-backup-wal.service").read_text("utf-8")
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    service = unit["Service"]
    program, *command = service["ExecStart"].split()
    assert Path(program).name == "ovia-backup"
    assert CliRunner().invoke(main, [*command, "--help"]).exit_code == 0
    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    # SIGTERM ends it well, with this code.
    assert service["SuccessExitStatus"] == str(128 + SIGTERM)
    volume = service["ReadWritePaths"]
    assert unit["Unit"]["RequiresMountsFor"] == volume
    assert f"BACKUP_DIR={volume}" in text
    comments = "".join(line for line in text.splitlines() if line.startswith("#"))
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", comments))
    assert len(named) > 3
    assert named <= variable_names()


def test_every_service_has_limits_placement_and_log_bounds() -> None:
    for name in ("stack.yml", "second-database.yml", "pitr.yml"):
        for service_name, about in read(name)["services"].items():
            if "image" not in about:
                continue  # extends a service of the other file
            deploy = about["deploy"]
            assert set(deploy["resources"]["limits"]) == {"cpus", "memory"}, service_name
            assert deploy["placement"]["constraints"] == ["node.labels.ovia.backup == true"], service_name
            assert about["logging"]["options"]["max-size"], service_name
            assert service_name == "storage" or about["cap_drop"] == ["ALL"], service_name


def test_one_service_is_published_one_has_the_socket() -> None:
    services = read("stack.yml")["services"]
    assert [name for name, about in services.items() if "ports" in about] == ["door"]
    assert [name for name, about in services.items() if "docker.sock" in str(about)] == ["docker-filter"]


def test_networks_volumes_and_secrets_have_names() -> None:
    """Without a name, Docker prefixes the stack's name, and runs would use another object."""
    files = ("stack.yml", *OVERLAYS, "second-database.yml")
    for kind in ("networks", "volumes", "secrets"):
        for name, about in [item for file in files for item in read(file).get(kind, {}).items()]:
            assert about["name"], name


def test_the_files_name_this_version() -> None:
    for name in ("Dockerfile", "stack.yml", "second-database.yml", "pitr.yml"):
        found = re.findall(r"(?:ovia-backup-dagster:|VERSION=)(\d[\d.]*\d)", (DEPLOY / name).read_text("utf-8"))
        assert found, name
        assert set(found) == {__version__}, name


def test_production_runs_the_tested_versions() -> None:
    # A test tool's extras do not change the version.
    pattern = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[a-z0-9,-]+\])?==(\S+)", re.MULTILINE)
    tested = set(pattern.findall((REPOSITORY / "requirements.lock").read_text("utf-8")))
    production = set(pattern.findall((DEPLOY / "requirements.lock").read_text("utf-8")))
    assert production - tested == set()
    assert {name for name, _ in production} >= {"dagster", "dagster-docker", "dagster-postgres"}


@pytest.mark.parametrize(
    ("image", "pinned"), [("", False), ("postgres:16", False), (f"postgres:16@sha256:{'0' * 64}", True)]
)
def test_deploying_an_image_by_tag_warns(tmp_path: Path, image: str, pinned: bool) -> None:
    """Docker is replaced by a program that prints its arguments."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    (tmp_path / "deploy/ovia-backup.env").write_text(f"POSTGRES_IMAGE={image}\n" if image else "")
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text('#!/bin/sh\necho "$POSTGRES_IMAGE: $*"\n')
    docker.chmod(0o755)
    done = subprocess.run(
        [tmp_path / "deploy/deploy.sh"],
        env={"PATH": f"{docker.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    # The warning does not stop the deployment.
    assert done.stdout == f"{image}: stack deploy --resolve-image never --compose-file deploy/stack.yml ovia-backup\n"
    assert ("warning: postgres:16 is a tag" in done.stderr) is not pinned
    assert bool(done.stderr) is not pinned


def test_the_base_image_can_be_pinned() -> None:
    """Docker accepts a base image by tag and digest together."""
    stages = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert set(stages) == {"${POSTGRES_IMAGE}"}
    others = {about["image"] for about in read("stack.yml")["services"].values() if "POSTGRES_IMAGE" in about["image"]}
    assert others == {"${POSTGRES_IMAGE:-postgres:16}"}
    for name in ("deploy/Dockerfile", "deploy/ovia-backup.env.example", "docs/runbook.md"):
        assert "POSTGRES_IMAGE=postgres:16@sha256:" in (REPOSITORY / name).read_text("utf-8"), name
