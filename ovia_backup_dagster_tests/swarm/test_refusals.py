"""Missing or wrong parts of a deployment: each makes a service unhealthy, with one clear line in its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ovia_backup_dagster_tests.swarm.engine import IMAGE, docker, until
from ovia_backup_dagster_tests.swarm.swarm import Swarm

#: The stack's own health checks, more often: a daemon has five minutes in production.
_OFTEN = ("--health-interval=5s", "--health-retries=2", "--health-start-period=20s")


@contextmanager
def changed(swarm: Swarm, **services: tuple[str, ...]) -> Iterator[None]:
    """Change services for the block, and roll them back after it. ``_`` in a name is a dash."""
    names = {service.replace("_", "-"): options for service, options in services.items()}
    for service, options in names.items():
        often = () if service == "docker-filter" else _OFTEN
        failing = ("--detach", "--update-failure-action", "continue")
        docker("service", "update", *failing, *often, *options, f"ovia-backup_{service}")
    try:
        yield
    finally:
        for service in names:
            docker("service", "rollback", "--detach", f"ovia-backup_{service}")
        swarm.well(*names)


def lines(swarm: Swarm, service: str, text: str) -> list[str]:
    return [line for line in swarm.log(f"ovia-backup_{service}").splitlines() if text in line]


def says(swarm: Swarm, service: str, text: str, seconds: float = 120) -> str:
    found: list[str] = []

    def said() -> bool:
        found[:] = lines(swarm, service, text)
        return bool(found)

    until(said, seconds, lambda: swarm.story(f"ovia-backup_{service}"))
    return found[-1]


def is_unwell(swarm: Swarm, service: str, seconds: float = 240) -> None:
    """Wait until the service's health check fails, or its tasks end before the first check."""

    def unwell() -> bool:
        failed = docker("service", "ps", f"ovia-backup_{service}", "--format", "{{.CurrentState}}", "--no-trunc")
        return swarm.health(f"ovia-backup_{service}") == "unhealthy" or "Failed" in failed.splitlines()[1]

    until(unwell, seconds, lambda: swarm.story(f"ovia-backup_{service}"))


def test_a_missing_secret_stops_the_deployment(swarm: Swarm) -> None:
    before = docker("service", "inspect", "ovia-backup_console", "--format", "{{.Version.Index}}")
    with pytest.raises(AssertionError, match="secret not found: nothing"):
        swarm.deploy(POSTGRES_PASSWORD_SECRET="nothing")
    assert docker("service", "inspect", "ovia-backup_console", "--format", "{{.Version.Index}}") == before


def test_a_wrong_network_full_volume_and_plain_password(swarm: Swarm) -> None:
    docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=6m,uid=10001,mode=0700", "small")
    # A container holds the volume, and so keeps its content.
    fill = "cat /dev/zero > /small/full 2> /dev/null; exec sleep 3600"
    holder = docker("run", "--detach", "--rm", "--init", "-v", "small:/small", IMAGE, "sh", "-c", fill)
    try:
        until(lambda: "100%" in docker("exec", holder, "df", "/small"), 30, "the volume does not fill")
        full = ("--mount-add", "type=volume,source=small,target=/small", "--env-add", "BACKUP_DIR=/small")
        with changed(
            swarm,
            daemon=("--env-add", "RUN_NETWORKS=ovia_ovia-nett"),
            doctor=full,
            code_server=("--env-add", "PGPASSWORD=visible-Passw0rd"),
        ):
            assert "Next: docker network ls" in says(swarm, "daemon", "there is no network ovia_ovia-nett for runs")
            line = says(swarm, "code-server", "PGPASSWORD is set by value")
            assert "docker inspect would show it" in line
            assert "visible-Passw0rd" not in swarm.log("ovia-backup_code-server")
            assert "Next: " in says(swarm, "doctor", "no room for a first dump", 240)
            for service in ("daemon", "code-server", "doctor"):
                is_unwell(swarm, service)
    finally:
        docker("kill", holder)


@pytest.mark.exhaustive
def test_a_closed_network_other_major_and_missing_secret(swarm: Swarm) -> None:
    docker("network", "create", "--driver", "overlay", "closed")
    # PostgreSQL 17's client programs, from Debian.
    install = "RUN apt-get update -qq && apt-get install -qqy postgresql-client-17"
    dockerfile = f"FROM {IMAGE}\nUSER 0:0\n{install}\nUSER 10001:10001"
    docker("build", "--quiet", "--tag", "other-major", "-", stdin=dockerfile)
    other = ("--image", "other-major", "--env-add", "PG_BIN_DIR=/usr/lib/postgresql/17/bin")
    with changed(
        swarm,
        daemon=("--env-add", "RUN_NETWORKS=closed"),
        doctor=other,
        code_server=("--secret-rm", secret_name(swarm, "postgres_password")),
    ):
        assert "attachable: true" in says(swarm, "daemon", "the network closed is not attachable")
        line = says(swarm, "code-server", "POSTGRES_PASSWORD_FILE=/run/ovia-backup/postgres_password cannot be read")
        assert line.startswith("error: ")
        line = says(swarm, "doctor", ", pg_dump is 17", 240)
        assert "another image" in line
        for service in ("daemon", "code-server", "doctor"):
            is_unwell(swarm, service)


def secret_name(swarm: Swarm, target: str) -> str:
    """The secret that is mounted under this name."""
    shape = "{{range .Spec.TaskTemplate.ContainerSpec.Secrets}}{{.File.Name}} {{.SecretName}}\n{{end}}"
    found = docker("service", "inspect", "ovia-backup_code-server", "--format", shape)
    return dict(line.split() for line in found.splitlines() if line)[target]


@pytest.mark.exhaustive
def test_no_docker_socket_and_no_storage(swarm: Swarm) -> None:
    # The web server needs the time to report what it waits for.
    with changed(swarm, daemon=(), webserver=("--health-start-period=60s",)):
        swarm.well("daemon", "webserver")
        docker("service", "scale", "--detach", "ovia-backup_storage=0")
        try:
            with changed(swarm, docker_filter=("--mount-rm", "/var/run/docker.sock")):
                line = says(swarm, "docker-filter", "error: there is no Docker socket at /var/run/docker.sock")
                assert "Next: " in line
                # The daemon itself reports that it cannot launch runs.
                assert "no run can be launched" in says(swarm, "daemon", "Docker does not answer", 240)
                line = says(swarm, "webserver", "error: Dagster's storage does not answer", 240)
                assert "docker service ps ovia-backup_storage" in line
                for service in ("docker-filter", "daemon", "webserver"):
                    is_unwell(swarm, service)
                # The command line needs neither.
                swarm.console("dump")
                swarm.console("verify")
        finally:
            docker("service", "scale", "--detach", "ovia-backup_storage=1")
    swarm.well(seconds=400)
    until(swarm.locations, 120, lambda: swarm.story("ovia-backup_webserver"))
    swarm.succeeded(swarm.launch("daily_backup_job"))
