"""Health checks of the containers: Dagster's storage, the code servers, Docker, the role's own program.

A role waits for some of these before it starts; Docker runs the health check every minute. Thorough checks are in
``doctor``. This module never imports dagster.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from ovia_backup_dagster.container.errors import ContainerError, NotThereYetError
from ovia_backup_dagster.container.swarm_secrets import PRIVATE
from ovia_backup_dagster.core.errors import BackupError

#: This file exists while something will fail.
UNWELL = PRIVATE / "unwell"
#: The last error of the health check.
_LAST_COMPLAINT = Path("/tmp/ovia-backup-unhealthy")  # noqa: S108 - a container's own
#: Ports of the stack's programs.
CODE_SERVER_PORT = 4000
WEBSERVER_PORT = 3000
HEALTH_PORT = 8404


@click.command("health")
@click.argument("role", type=click.Choice(["daemon", "webserver", "proxy", "doctor", "wal"]))
def health_command(role: str) -> None:
    """Check a container's health. Docker hides a health check's output: a new error also goes to the service's log."""
    try:
        _check_role(role)
    except BackupError as error:
        _tell_once(str(error))
        raise
    with contextlib.suppress(OSError):
        _LAST_COMPLAINT.unlink()


def _check_role(role: str) -> None:
    match role:
        case "daemon":
            docker_is_ready()
            _daemon_is_alive()
        case "webserver":
            _answers(f"http://127.0.0.1:{WEBSERVER_PORT}/server_info", "the web server")
            storage_answers()
        case "proxy":
            _answers(f"http://127.0.0.1:{HEALTH_PORT}/health", "what is behind the proxy")
        case "doctor":
            if UNWELL.exists():
                raise ContainerError("something will fail", fix="docker service logs ovia-backup_doctor --tail 20")
        case "wal":
            wal_is_received()


def _tell_once(text: str) -> None:
    with contextlib.suppress(OSError):
        if _LAST_COMPLAINT.exists() and _LAST_COMPLAINT.read_text("utf-8") == text:
            return
        _LAST_COMPLAINT.write_text(text, "utf-8")
    with contextlib.suppress(OSError), Path("/proc/1/fd/2").open("w", encoding="utf-8") as log:
        log.write(f"unhealthy: {text}\n")


def storage_answers() -> None:
    """Require that Dagster's storage answers.

    Raises:
        NotThereYetError: it does not answer.
    """
    import psycopg

    storage = _instance_settings()["storage"]["postgres"]
    url = storage["postgres_url"].replace("+psycopg2", "")  # SQLAlchemy's, not libpq's
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise NotThereYetError(
            "Dagster's storage does not answer",
            why=" ".join(str(error).split()),
            fix="docker service ps ovia-backup_storage; docker service logs ovia-backup_storage --tail 20",
        ) from None


def code_servers_answer() -> None:
    """Require that each code server of the workspace answers.

    Raises:
        NotThereYetError: a code server does not answer.
    """
    from ovia_backup_dagster.doctor.code_server import ask_code_server
    from ovia_backup_dagster.doctor.report import Severity

    workspace = yaml.safe_load((dagster_home() / "workspace.yaml").read_text("utf-8"))
    for server in (entry["grpc_server"] for entry in workspace["load_from"]):
        for line in ask_code_server(server["port"], server["host"]):
            if line.level is Severity.FAIL:
                name = f"ovia-backup_{server['host']}"
                raise NotThereYetError(line.text, fix=f"docker service ps {name}; docker service logs {name} --tail 20")


def wal_is_received() -> None:
    """Require that this container's WAL receiver reports, and that it receives, or archives what it had received.

    Raises:
        ContainerError: it does not report, or its report says that it does not receive.
        VolumeError: the report cannot be read.
    """
    from ovia_backup_dagster.pitr.receiver_status import ReceiverState, read_status

    status = read_status(Path(os.environ["BACKUP_DIR"]))
    log = "docker service logs ovia-backup_wal --tail 20"
    if status is None or status.host != socket.gethostname() or status.is_stale(datetime.now(UTC)):
        last = f"its last report is of {status.written_at:%Y-%m-%d %H:%M:%S} UTC, on {status.host}" if status else ""
        raise ContainerError("the WAL receiver does not report", why=last or "it never did", fix=log)
    trouble = next(iter(status.troubles), None)
    # While it waits without a trouble, it has just started, and may have much to archive.
    if status.state is ReceiverState.STOPPED or (trouble and status.state is ReceiverState.WAITING):
        why, fix = (trouble.account, trouble.fix) if trouble else ("the receiver has ended", "")
        raise ContainerError("no WAL is received", why=why, fix=fix or log)


def docker_is_ready() -> None:
    """Require that Docker answers, and has the runs' image and networks, and that the networks are attachable.

    Raises:
        NotThereYetError: Docker does not answer.
        ContainerError: the image or a network is missing, or a network is not attachable.
    """
    import docker as sdk
    from docker.errors import DockerException, NotFound

    launcher = _instance_settings()["run_launcher"]["config"]
    networks = [(name, "networks of the launcher in deploy/dagster.yaml") for name in launcher["networks"]]
    for variable in ("RUN_NETWORKS", "RUN_OFFSITE_NETWORKS"):
        networks += [(name, variable) for name in os.environ.get(variable, "").split()]
    image = os.environ.get("DAGSTER_CURRENT_IMAGE", "")
    try:
        with contextlib.closing(sdk.from_env(timeout=10)) as client:
            client.ping()
            for name, variable in networks:
                _require_attachable(client, name, variable)
            try:
                client.images.get(image)
            except NotFound:
                raise ContainerError(
                    f"the image {image} is not on this node",
                    why="runs are made from it, and nothing pulls it for them",
                    fix=f"docker pull {image}, or build it: docker build -t {image} -f deploy/Dockerfile .",
                ) from None
    except (DockerException, OSError) as error:
        raise NotThereYetError(
            "Docker does not answer: no run can be launched",
            why=" ".join(str(error).split()),
            fix="docker service ps ovia-backup_docker-filter; docker service logs ovia-backup_docker-filter --tail 20",
        ) from None


def _require_attachable(client: Any, name: str, variable: str) -> None:
    from docker.errors import NotFound

    try:
        found = client.api.inspect_network(name)
    except NotFound:
        raise ContainerError(
            f"there is no network {name} for runs",
            why=f"{variable} names it, and Docker does not have it",
            fix=f"docker network ls; correct {variable} and the networks of the stack's files; then deploy/deploy.sh",
        ) from None
    if found.get("Driver") == "overlay" and not found.get("Attachable"):
        raise ContainerError(
            f"the network {name} is not attachable: no run can be put on it",
            why="runs are plain containers, not services",
            fix=f"docker network inspect {name}; add `attachable: true` to it in its stack's file, and create it again",
        )


def _daemon_is_alive() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "dagster._daemon", "liveness-check"),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise ContainerError("the daemon gives no sign of life", why=said[-1] if said else "", fix="see its log")


def _answers(url: str, what: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=10):  # noqa: S310 - our own, on loopback
            pass
    except (urllib.error.URLError, OSError) as error:
        raise ContainerError(f"{what} does not answer", why=str(error), fix="see this service's log") from None


def _instance_settings() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((dagster_home() / "dagster.yaml").read_text("utf-8"))
    return found


def dagster_home() -> Path:
    """The folder where the image has the settings of Dagster and HAProxy."""
    return Path(os.environ["DAGSTER_HOME"])
