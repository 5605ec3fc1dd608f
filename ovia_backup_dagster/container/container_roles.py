"""What each container of the Swarm stack does before it becomes Dagster, HAProxy or a shell for people.

A role collects its secrets, waits for what it requires, prints in one line what is missing, and then *becomes* the
real program. ``deploy/stack.yml`` defines the services. Never imports dagster.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click

from ovia_backup_dagster.container.errors import ContainerError
from ovia_backup_dagster.container.health_checks import (
    CODE_SERVER_PORT,
    UNWELL,
    WEBSERVER_PORT,
    code_servers_answer,
    dagster_home,
    docker_is_ready,
    storage_answers,
)
from ovia_backup_dagster.container.swarm_secrets import SECRETS, collect_secrets, refuse_secret_values, require_readable
from ovia_backup_dagster.settings.model import variable_names

#: The networks of a service decide who can connect.
ALL_ADDRESSES = "0.0.0.0"  # noqa: S104
#: The output of runs, one file per run, named by time, job and container.
RUN_LOGS = Path("/var/lib/ovia-backup/runs")
RUN_LOGS_KEPT = 500
#: How long to wait for services that start at the same time, before the container exits and Swarm starts another.
PATIENCE_SECONDS = 90.0
DOCTOR_INTERVAL_SECONDS = 600.0
#: The doctor's interval while something will fail: often a service is still starting.
DOCTOR_AGAIN_SECONDS = 60.0
#: The doctor ends within half of this time, even if a check hangs.
DOCTOR_TIMEOUT_SECONDS = 60.0


@click.command("code-server")
def code_server_role() -> None:
    """Serve the definitions of one database, and pass settings, networks and volumes on to its runs."""
    refuse_secret_values(os.environ)
    collect_secrets()
    os.environ["DAGSTER_CONTAINER_CONTEXT"] = json.dumps(container_context(os.environ))
    wait_for(storage_answers)
    module = ("--module-name", "ovia_backup_dagster.definitions", "--attribute", "defs")
    replace_process("dagster", "api", "grpc", "--host", ALL_ADDRESSES, "--port", str(CODE_SERVER_PORT), *module)


@click.command("daemon")
def daemon_role() -> None:
    """Run Dagster's daemon: schedules, sensors and the queue of runs."""
    collect_secrets()
    wait_for(storage_answers)
    wait_for(docker_is_ready)
    wait_for(code_servers_answer)
    replace_process("dagster-daemon", "run", "--workspace", str(dagster_home() / "workspace.yaml"))


@click.command("webserver")
def webserver_role() -> None:
    """Run Dagster's UI."""
    collect_secrets()
    wait_for(storage_answers)
    # Without a code server the UI still shows history and errors. This wait only covers a start in the wrong order.
    with contextlib.suppress(ContainerError):
        wait_for(code_servers_answer)
    workspace = str(dagster_home() / "workspace.yaml")
    replace_process(
        "dagster-webserver", "--host", ALL_ADDRESSES, "--port", str(WEBSERVER_PORT), "--workspace", workspace
    )


@click.command("door")
def door_role() -> None:
    """Put TLS and a password in front of the UI."""
    for name in ("web_tls", "web_users"):
        require_readable(SECRETS / name)
    replace_process(
        "haproxy", "-W", "-db", "-f", str(dagster_home() / "haproxy/web.cfg"), "-f", str(SECRETS / "web_users")
    )


@click.command("docker-filter")
def docker_filter_role() -> None:
    """Pass on to Docker only the requests that launching a run needs."""
    socket = Path("/var/run/docker.sock")
    if not socket.is_socket():
        raise ContainerError(
            f"there is no Docker socket at {socket}",
            why="it is not mounted, or Docker does not run here",
            fix="see the volumes of docker-filter in deploy/stack.yml; on the node: ls -l /var/run/docker.sock",
        )
    replace_process("haproxy", "-W", "-db", "-f", str(dagster_home() / "haproxy/docker.cfg"))


@click.command("doctor")
def doctor_role() -> None:
    """Run the doctor at intervals, and state signs of life; the container is unhealthy while something will fail."""
    collect_secrets()
    said: list[str] = []
    while True:
        lines = [*_examine(), *state_alive()]
        bad = [line for line in lines if line["level"] != "ok"]
        words = [f"{line['level']:<5}{line['text']}{'. Next: ' if line['fix'] else ''}{line['fix']}" for line in bad]
        if words != said:
            click.echo("\n".join(words) or "ok   nothing to fix")
            said = words
        if any(line["level"] == "fail" for line in bad):
            UNWELL.touch()
            time.sleep(DOCTOR_AGAIN_SECONDS)
        else:
            UNWELL.unlink(missing_ok=True)
            time.sleep(DOCTOR_INTERVAL_SECONDS)


def state_alive() -> list[dict[str, str]]:
    """State a sign of life in the signed log, if one is due: the code server cannot, since it only reads the volume."""
    if not os.environ.get("BACKUP_SIGNING_KEY_FILE"):
        return []
    command = (sys.executable, "-m", "ovia_backup_dagster.cli.main", "log", "alive")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOCTOR_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        return [{"level": "warn", "text": f"no sign of life was stated in the signed log: {error}", "fix": ""}]
    if not done.returncode:
        return []
    return [{"level": "warn", "text": done.stderr.strip().removeprefix("ovia-backup: "), "fix": ""}]


def _examine() -> list[dict[str, str]]:
    try:
        done = subprocess.run(
            (sys.executable, "-m", "ovia_backup_dagster.cli.main", "doctor", "--json"),
            capture_output=True,
            text=True,
            timeout=DOCTOR_TIMEOUT_SECONDS,
            check=False,
        )
        lines: list[dict[str, str]] = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        return [{"level": "fail", "text": f"the doctor did not finish: {error}", "fix": "ovia-backup doctor"}]
    return lines


@click.command("console")
def console_role() -> None:
    """Wait for operators, who use docker exec."""
    collect_secrets()
    replace_process("sleep", "infinity")


@click.command("wal")
def wal_role() -> None:
    """Receive the server's WAL. It needs the volume and the server, and nothing of Dagster."""
    refuse_secret_values(os.environ)
    collect_secrets(storage=False)
    replace_process("ovia-backup", "wal", "receive")


@click.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_role(command: tuple[str, ...]) -> None:
    """Become a run's command, with its output in a file: the container and its Docker log are removed after the run."""
    with contextlib.suppress(OSError):
        RUN_LOGS.mkdir(mode=0o700, exist_ok=True)
        for old in sorted(RUN_LOGS.iterdir())[:-RUN_LOGS_KEPT]:
            old.unlink(missing_ok=True)
        job = os.environ.get("DAGSTER_RUN_JOB_NAME", "run")
        name = f"{datetime.now(UTC):%Y-%m-%d_%H%M%S}_{job}_{socket.gethostname()}.log"
        log = os.open(RUN_LOGS / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
    replace_process(*command)


def container_context(environment: Mapping[str, str]) -> dict[str, Any]:
    """The environment, networks and volumes that Dagster's Docker launcher gives to this code location's runs.

    Args:
        environment: the code server's environment. All of its settings are passed on; they name the files of secrets.
    """
    passed = [
        f"{name}={value}"
        for name, value in sorted(environment.items())
        if value and (name in variable_names() or name.startswith("PGSSL"))
    ]

    def names(variable: str) -> list[str]:
        return environment.get(variable, "").split()

    return {
        "docker": {
            "env_vars": passed,
            "networks": names("RUN_NETWORKS"),
            "container_kwargs": {"volumes": names("RUN_VOLUMES")},
        },
        # For the runs that copy: ``defs.run_launcher``.
        "ovia_offsite": {"networks": names("RUN_OFFSITE_NETWORKS"), "volumes": names("RUN_OFFSITE_VOLUMES")},
    }


def wait_for(there: Callable[[], None], patience: float = PATIENCE_SECONDS, pause: float = 2.0) -> None:
    """Wait for something that may still be starting.

    Raises:
        ContainerError: it did not start in time, or waiting cannot help.
    """
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            return there()
        except ContainerError as error:
            if not error.transient or time.monotonic() >= deadline:
                raise
            if not told:
                click.echo(f"waiting: {error.account}", err=True)
                told = True
        time.sleep(pause)


def replace_process(program: str, *arguments: str) -> NoReturn:
    """Replace this process by a program, which then receives signals and sets the exit code itself."""
    os.execvp(program, (program, *arguments))  # noqa: S606 - argv, no shell


#: All roles, for the containers' entry point.
ROLES = (
    code_server_role,
    console_role,
    daemon_role,
    docker_filter_role,
    doctor_role,
    door_role,
    run_role,
    wal_role,
    webserver_role,
)
