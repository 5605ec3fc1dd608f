"""What a container of the Swarm stack does before it becomes Dagster, HAProxy or a shell for people, and its health.

It puts the secrets where runs can read them, waits for what its role cannot do without, says in one line what is
missing, and then *becomes* the real program. What stands in the stack is ``deploy/stack.yml``'s business, what is
looked at in depth the ``doctor``'s. Never imports dagster: a health check is asked for every minute.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

from ovia_backup_dagster.core.errors import BackupError, SettingsError
from ovia_backup_dagster.settings.model import variable_names
from ovia_backup_dagster.settings.secret_files import password_in

#: Where Swarm mounts a service's secrets.
SECRETS = Path("/run/secrets")
#: In memory: the same, as files that runs, which are no Swarm tasks, can be given; and the storage's passfile.
PRIVATE = Path("/run/ovia-backup")
STORAGE_SECRET = "storage_password"  # noqa: S105 - a file's name
PASSFILE = PRIVATE / "storage.pgpass"
#: Is there while something will fail.
UNWELL = PRIVATE / "unwell"
#: What the health check said last.
_SAID = Path("/tmp/ovia-backup-unhealthy")  # noqa: S108 - a container's own

#: Who may come is decided by the networks that a service is on.
ALL = "0.0.0.0"  # noqa: S104
#: What runs printed, by time, job and container.
RUN_LOGS = Path("/var/lib/ovia-backup/runs")
RUN_LOGS_KEPT = 500
CODE_SERVER_PORT = 4000
WEBSERVER_PORT = 3000
HEALTH_PORT = 8404
#: How long to wait for what starts at the same time, before the container ends and Swarm begins anew.
PATIENCE_SECONDS = 90.0
DOCTOR_INTERVAL_SECONDS = 600.0
#: How long until it looks again while something will fail: often a service that is only starting.
DOCTOR_AGAIN_SECONDS = 60.0
#: It ends in half of it, whatever hangs.
DOCTOR_TIMEOUT_SECONDS = 60.0

#: Set by value, they would stand in what Docker shows of each container.
BY_FILE = {
    "PGPASSWORD": "POSTGRES_PASSWORD_FILE",
    "POSTGRES_PASSWORD": "POSTGRES_PASSWORD_FILE",
    "RESTORE_POSTGRES_PASSWORD": "RESTORE_POSTGRES_PASSWORD_FILE",
    "BACKUP_NOTIFY_URLS": "BACKUP_NOTIFY_URLS_FILE",
}


class ServiceError(BackupError):
    """A container of the stack lacks what its role cannot do without."""


class NotThereYetError(ServiceError):
    """What a role depends on does not answer; it may only be starting."""

    transient = True


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The roles of the image. See deploy/stack.yml."""


def run() -> None:
    """The console script: an error of ours is one line."""
    try:
        main()
    except BackupError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


@main.command("code-server")
def code_server() -> None:
    """Serve the definitions of one database, with what its runs need."""
    refuse_values(os.environ)
    collect_secrets()
    os.environ["DAGSTER_CONTAINER_CONTEXT"] = json.dumps(container_context(os.environ))
    wait_for(storage)
    module = ("--module-name", "ovia_backup_dagster.definitions", "--attribute", "defs")
    become("dagster", "api", "grpc", "--host", ALL, "--port", str(CODE_SERVER_PORT), *module)


@main.command()
def daemon() -> None:
    """Schedules, sensors and the queue of runs."""
    collect_secrets()
    wait_for(storage)
    wait_for(docker)
    wait_for(code_servers)
    become("dagster-daemon", "run", "--workspace", str(_home() / "workspace.yaml"))


@main.command()
def webserver() -> None:
    """The UI."""
    collect_secrets()
    wait_for(storage)
    # Without one the UI still shows what was, and why: only a start in the wrong order is waited out.
    with contextlib.suppress(ServiceError):
        wait_for(code_servers)
    workspace = str(_home() / "workspace.yaml")
    become("dagster-webserver", "--host", ALL, "--port", str(WEBSERVER_PORT), "--workspace", workspace)


@main.command()
def door() -> None:
    """TLS and a password in front of the UI."""
    for name in ("web_tls", "web_users"):
        _readable(SECRETS / name)
    become("haproxy", "-W", "-db", "-f", str(_home() / "haproxy/web.cfg"), "-f", str(SECRETS / "web_users"))


@main.command("docker-filter")
def docker_filter() -> None:
    """Pass on to Docker what launching a run needs."""
    socket = Path("/var/run/docker.sock")
    if not socket.is_socket():
        raise ServiceError(
            f"there is no Docker socket at {socket}",
            why="it is not mounted, or Docker does not run here",
            fix="see the volumes of docker-filter in deploy/stack.yml; on the node: ls -l /var/run/docker.sock",
        )
    become("haproxy", "-W", "-db", "-f", str(_home() / "haproxy/docker.cfg"))


@main.command()
def doctor() -> None:
    """Look again and again; unhealthy while something will fail."""
    collect_secrets()
    said: list[str] = []
    while True:
        lines = _examine()
        bad = [line for line in lines if line["level"] != "ok"]
        words = [f"{line['level']:<5}{line['text']}{'. Next: ' if line['fix'] else ''}{line['fix']}" for line in bad]
        if words != said:
            click.echo("\n".join(words) or "ok   nothing to mend")
            said = words
        if any(line["level"] == "fail" for line in bad):
            UNWELL.touch()
            time.sleep(DOCTOR_AGAIN_SECONDS)
        else:
            UNWELL.unlink(missing_ok=True)
            time.sleep(DOCTOR_INTERVAL_SECONDS)


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
        return [{"level": "fail", "text": f"the doctor did not come to an end: {error}", "fix": "ovia-backup doctor"}]
    return lines


@main.command()
def console() -> None:
    """Wait for people: docker exec."""
    collect_secrets()
    become("sleep", "infinity")


@main.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(command: tuple[str, ...]) -> None:
    """Become a run's own command, with what it prints in a file: its container, and Docker's log, will be gone."""
    with contextlib.suppress(OSError):
        RUN_LOGS.mkdir(mode=0o700, exist_ok=True)
        for old in sorted(RUN_LOGS.iterdir())[:-RUN_LOGS_KEPT]:
            old.unlink(missing_ok=True)
        job = os.environ.get("DAGSTER_RUN_JOB_NAME", "run")
        name = f"{datetime.now(UTC):%Y-%m-%d_%H%M%S}_{job}_{socket.gethostname()}.log"
        log = os.open(RUN_LOGS / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
    become(*command)


@main.command()
@click.argument("role", type=click.Choice(["daemon", "webserver", "proxy", "doctor"]))
def health(role: str) -> None:
    """A container's health check. Docker hides what one says: what is new goes to the service's log, too."""
    try:
        _check(role)
    except BackupError as error:
        _tell_once(str(error))
        raise
    with contextlib.suppress(OSError):
        _SAID.unlink()


def _check(role: str) -> None:
    match role:
        case "daemon":
            docker()
            _daemon_lives()
        case "webserver":
            _answers(f"http://127.0.0.1:{WEBSERVER_PORT}/server_info", "the web server")
            storage()
        case "proxy":
            _answers(f"http://127.0.0.1:{HEALTH_PORT}/health", "what is behind the proxy")
        case "doctor":
            if UNWELL.exists():
                raise ServiceError("something will fail", fix="docker service logs ovia-backup_doctor --tail 20")


def _tell_once(text: str) -> None:
    with contextlib.suppress(OSError):
        if _SAID.exists() and _SAID.read_text("utf-8") == text:
            return
        _SAID.write_text(text, "utf-8")
    with contextlib.suppress(OSError), Path("/proc/1/fd/2").open("w", encoding="utf-8") as log:
        log.write(f"unhealthy: {text}\n")


# ---------------------------------------------------------------------------------------------------- secrets


def refuse_values(environment: Mapping[str, str]) -> None:
    """A password among the variables would be in what Docker shows of each run.

    Raises:
        SettingsError: one is there.
    """
    for name, by_file in BY_FILE.items():
        if environment.get(name):
            raise SettingsError(
                f"{name} is set by value",
                why="docker inspect would show it for every run",
                fix=f"make it a Docker secret, and set {by_file} (docs/runbook.md, Installing)",
            )
    for name in sorted(variable_names() & environment.keys()):
        if password_in(environment[name]):
            raise SettingsError(
                f"{name} holds a password",
                why="docker inspect would show it for every run",
                fix="take it out of the URL; a password is a Docker secret (docs/runbook.md, Installing)",
            )


def collect_secrets() -> None:
    """Copy this container's secrets to ``PRIVATE``, and make the storage's passfile from its password.

    What was taken away from it is gone from there, too: a run that is under way keeps the folder alive.

    Raises:
        ServiceError: a secret that a variable names is not there, or the folder cannot be written.
    """
    try:
        given = {secret.name: secret.read_text("utf-8") for secret in SECRETS.iterdir()}
        for left in PRIVATE.iterdir():
            if left.name not in given and left != PASSFILE:
                left.unlink()
        for name, secret in given.items():
            _write(PRIVATE / name, secret)
        password = (SECRETS / STORAGE_SECRET).read_text("utf-8").partition("\n")[0]
        # libpq's own rules: a field's colon and backslash are escaped.
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        _write(PASSFILE, f"*:*:*:*:{escaped}\n")
    except (OSError, UnicodeError) as error:
        raise ServiceError(
            "the secrets cannot be collected",
            why=str(error),
            fix="docker secret ls; each of deploy/stack.yml must be there (docs/runbook.md, Installing)",
        ) from None
    for name in sorted(set(BY_FILE.values())):
        if path := os.environ.get(name):
            _readable(Path(path), name)


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a run may be reading the one before. Never readable by others."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def _readable(path: Path, name: str = "") -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ServiceError(
            f"the secret {f'{name}={path}' if name else path} cannot be read",
            why=error.strerror or str(error),
            fix="docker secret ls; then see the secrets of this service in deploy/stack.yml",
        ) from None


# ------------------------------------------------------------------------------------------------ what runs need


def container_context(environment: Mapping[str, str]) -> dict[str, Any]:
    """What Dagster's Docker launcher gives to a run of this code location: its environment, networks and volumes.

    Args:
        environment: the code server's own. All of its settings are passed on; they name files where secrets stand.
    """
    passed = [
        f"{name}={value}"
        for name, value in sorted(environment.items())
        if value and (name in variable_names() or name.startswith("PGSSL"))
    ]
    return {
        "docker": {
            "env_vars": passed,
            "networks": environment.get("RUN_NETWORKS", "").split(),
            "container_kwargs": {"volumes": environment.get("RUN_VOLUMES", "").split()},
        }
    }


# ---------------------------------------------------------------------------------------- what a role depends on


def wait_for(there: Callable[[], None], patience: float = PATIENCE_SECONDS, pause: float = 2.0) -> None:
    """Wait for what may only be starting.

    Raises:
        ServiceError: it is still not there.
    """
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            return there()
        except ServiceError as error:
            if not error.transient or time.monotonic() >= deadline:
                raise
            if not told:
                click.echo(f"waiting: {error.account}", err=True)
                told = True
        time.sleep(pause)


def storage() -> None:
    """Dagster's storage answers.

    Raises:
        NotThereYetError: it does not.
    """
    import psycopg

    url = _instance()["storage"]["postgres"]["postgres_url"].replace("+psycopg2", "")  # SQLAlchemy's, not libpq's
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise NotThereYetError(
            "Dagster's storage does not answer",
            why=" ".join(str(error).split()),
            fix="docker service ps ovia-backup_storage; docker service logs ovia-backup_storage --tail 20",
        ) from None


def code_servers() -> None:
    """Each code server of the workspace answers.

    Raises:
        NotThereYetError: one does not.
    """
    from ovia_backup_dagster.doctor.code_server import ask_code_server
    from ovia_backup_dagster.doctor.report import Severity

    workspace = yaml.safe_load((_home() / "workspace.yaml").read_text("utf-8"))
    for server in (entry["grpc_server"] for entry in workspace["load_from"]):
        for line in ask_code_server(server["port"], server["host"]):
            if line.level is Severity.FAIL:
                name = f"ovia-backup_{server['host']}"
                raise NotThereYetError(line.text, fix=f"docker service ps {name}; docker service logs {name} --tail 20")


def docker() -> None:
    """Docker answers, has the image, and the networks that runs are put on are there and attachable.

    Raises:
        NotThereYetError: it does not answer.
        ServiceError: something else of it is not so.
    """
    import docker as sdk
    from docker.errors import DockerException, NotFound

    networks = [*_instance()["run_launcher"]["config"]["networks"], *os.environ.get("RUN_NETWORKS", "").split()]
    image = os.environ.get("DAGSTER_CURRENT_IMAGE", "")
    try:
        with contextlib.closing(sdk.from_env(timeout=10)) as client:
            client.ping()
            for name in networks:
                _attachable(client, name)
            try:
                client.images.get(image)
            except NotFound:
                raise ServiceError(
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


def _attachable(client: Any, name: str) -> None:
    from docker.errors import NotFound

    try:
        found = client.api.inspect_network(name)
    except NotFound:
        raise ServiceError(
            f"there is no network {name} for runs",
            why="RUN_NETWORKS names another than the stack that is backed up",
            fix="docker network ls; then set RUN_NETWORKS, and the network backed-up, in deploy/stack.yml",
        ) from None
    if found.get("Driver") == "overlay" and not found.get("Attachable"):
        raise ServiceError(
            f"the network {name} is not attachable: no run can be put on it",
            why="runs are plain containers, not services",
            fix=f"docker network inspect {name}; add `attachable: true` to it in its stack's file, and make it anew",
        )


def _daemon_lives() -> None:
    done = subprocess.run(
        (sys.executable, "-m", "dagster._daemon", "liveness-check"),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise ServiceError("the daemon gives no sign of life", why=said[-1] if said else "", fix="see its log")


def _answers(url: str, what: str) -> None:
    try:
        with urllib.request.urlopen(url, timeout=10):  # noqa: S310 - our own, on loopback
            pass
    except (urllib.error.URLError, OSError) as error:
        raise ServiceError(f"{what} does not answer", why=str(error), fix="see this service's log") from None


def _instance() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((_home() / "dagster.yaml").read_text("utf-8"))
    return found


def _home() -> Path:
    return Path(os.environ["DAGSTER_HOME"])


def become(program: str, *arguments: str) -> NoReturn:
    """From here on this process is that program: signals and exit codes are its own."""
    os.execvp(program, (program, *arguments))  # noqa: S606 - argv, no shell
