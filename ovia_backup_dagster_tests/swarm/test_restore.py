"""Restores in the stack, as in the runbook: in the console, by a run from the UI, and after a kill.

Each test leaves the database restored or as it was, and the services with their replicas.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.restore_order import Step
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.swarm.engine import POSTGRES, docker, processes, until
from ovia_backup_dagster_tests.swarm.replaced import ABLE, clear, databases
from ovia_backup_dagster_tests.swarm.swarm import OVIA_PASSWORD, Swarm

SCENARIO_1 = "Scenario 1: restore to the same host"
SCENARIO_2 = "Scenario 2: restore to a new host"
HALF_WAY = "A restore was killed half-way"
#: Different numbers, so that a service must get back its own.
REPLICAS = {"ovia_ovia-api": 1, "ovia_ovia-ingest": 2, "ovia_ovia-metrics": 0}
PEOPLE = "SELECT count(*) FROM people"


def digest(swarm: Swarm, database: str = "ovia") -> str:
    """A hash of everything that the services do not write."""
    # `\restrict` has a random word.
    dumped = f"pg_dump -U ovia -T 'audit_events*' -T sync_watermarks -d {database} | grep -v restrict | sha256sum"
    return docker("exec", swarm.container("ovia_postgres"), "bash", "-o", "pipefail", "-c", dumped)


def replicas() -> dict[str, int]:
    """Each service's replicas; -1 while another number of tasks runs."""
    found = {}
    for name in REPLICAS:
        listed = docker("service", "ls", "-f", f"name={name}", "--format", "{{.Replicas}}")
        runs, shall = listed.split()[0].split("/")
        found[name] = int(runs) if runs == shall else -1
    return found


def migrations() -> int:
    """How often the migration service was started again."""
    return int(docker("service", "inspect", "ovia_migrate", "--format", "{{.Spec.TaskTemplate.ForceUpdate}}"))


def scaled(since: float) -> set[str]:
    """The services that were scaled since then, with their new replicas."""
    shape = '{{.Actor.Attributes.name}}={{index .Actor.Attributes "replicas.new"}}'
    limits = ("--since", f"{since:.3f}", "--until", f"{time.time():.3f}")
    events = docker("events", *limits, "--filter", "type=service", "--format", shape).split()
    return {event for event in events if event[-1].isdigit()}


def harm(swarm: Swarm) -> None:
    """Delete all rows but one, so that the migration does not take it for a new database and fill it."""
    swarm.psql("TRUNCATE people, person_identity_links; INSERT INTO people VALUES (0, 'last')")


def restore(swarm: Swarm, *options: str, variables: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run a restore with short health timeouts; return its exit code and output."""
    program = (
        "import sys; from ovia_backup_dagster.restoration.steps import services; "
        "services._HEALTH_SECONDS = 15.0; services._START_SECONDS = 30.0; "
        "from ovia_backup_dagster.cli.main import main; main()"
    )
    python = ("/opt/ovia-backup/bin/python", "-c", program, "restore")
    set_to = [word for variable in variables for word in ("-e", variable)]
    command = ("docker", "exec", *set_to, swarm.container("ovia-backup_console"), *python, *options)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def good(swarm: Swarm) -> str:
    """The digest of the newest backup's content."""
    swarm.console("dump")
    swarm.console("verify")
    swarm.variables["BACKUP"] = swarm.backups()[0]["name"]
    return digest(swarm)


@pytest.fixture
def today(swarm: Swarm, good: str) -> str:
    """Damage the live database; return its digest."""
    clear(swarm)
    harm(swarm)
    found = digest(swarm)
    assert found != good
    return found


# --------------------------------------------------------------------------------------------------- the scenarios


def test_restores_are_enabled_as_the_runbook_says(swarm: Swarm) -> None:
    with pytest.raises(AssertionError, match="ovia_backup may not create or rename a database"):
        swarm.console("restore", "latest", "--plan")
    # Ovia's database belongs to a superuser, so no other role can restore it. The attempt leaves nothing behind.
    assert "database ovia belongs to ovia, a superuser" in swarm.follow(ABLE, 0)
    assert "ovia-backup_restore_password" not in docker("secret", "ls", "--format", "{{.Name}}").split()
    assert swarm.psql("SELECT count(*) FROM pg_roles WHERE rolname = 'ovia_restore'") == "0"
    swarm.follow(ABLE, 1)
    swarm.follow(ABLE, 2)
    until(lambda: "restore_password" in _secrets(swarm), 120, lambda: swarm.story("ovia-backup_console"))
    docker("service", "scale", "--detach", *(f"{name}={count}" for name, count in REPLICAS.items()))
    until(lambda: replicas() == REPLICAS, 60, lambda: str(replicas()))
    swarm.well()
    before = databases(swarm), migrations(), replicas()
    for heading, number in ((ABLE, 3), ("Slow restore", 0)):
        said = swarm.follow(heading, number)
        assert "1. restore into ovia_restore_" in said
        assert "2. stop ovia_ovia-api, ovia_ovia-ingest, ovia_ovia-metrics" in said
    assert (databases(swarm), migrations(), replicas()) == before


def _secrets(swarm: Swarm) -> str:
    with contextlib.suppress(AssertionError):  # one console stops, and the next has not started
        return docker("exec", swarm.container("ovia-backup_console"), "ls", "/run/secrets")
    return ""


def test_scenario_1_restores_and_an_undo_goes_back(swarm: Swarm, good: str, today: str) -> None:
    swarm.psql("ALTER DATABASE ovia SET statement_timeout = '1h'")
    api, migrated, began = swarm.container("ovia_ovia-api"), migrations(), time.time()
    assert "what was written since the backup" in swarm.follow(SCENARIO_1, 0)
    assert databases(swarm) == []
    said = swarm.follow(SCENARIO_1, 1)
    [kept] = databases(swarm)
    assert re.search(r"^public.people +20,000 *$", said, re.MULTILINE), said
    assert f"the database before is kept: {kept}" in said
    assert digest(swarm) == good
    assert digest(swarm, kept) == today
    assert swarm.psql("SHOW statement_timeout") == "1h"
    # The services stopped and came back; the migration ran again; the health check reached the new tasks.
    assert scaled(began) == {"ovia_ovia-api=0", "ovia_ovia-api=1", "ovia_ovia-ingest=0", "ovia_ovia-ingest=2"}
    assert replicas() == REPLICAS
    assert swarm.container("ovia_ovia-api") != api
    assert "GET /health" in swarm.sh(f"docker logs {swarm.container('ovia_ovia-api')}")
    assert migrations() == migrated + 1
    newest = docker("service", "ps", "ovia_migrate", "--format", "{{.CurrentState}}").splitlines()[0]
    assert newest.startswith("Complete"), newest
    # Back to the previous database, byte for byte; forward again; then the kept one is dropped.
    assert "written since the swap: public.audit_events" in swarm.follow(SCENARIO_1, 2)
    assert digest(swarm) == today
    assert replicas() == REPLICAS
    swarm.follow(SCENARIO_1, 2)
    assert digest(swarm) == good
    assert kept.partition("_before_")[0] in swarm.follow(SCENARIO_1, 3)
    assert databases(swarm) == []
    # An undo runs no migration.
    assert migrations() == migrated + 1


def test_a_restore_from_the_ui_shows_no_secret(swarm: Swarm, good: str, today: str) -> None:
    until(swarm.locations, 120, lambda: swarm.story("ovia-backup_webserver"))
    config = swarm.runbook.config(SCENARIO_1)
    asked = config["ops"]["restore"]["config"]
    assert asked["action"] == "plan"
    asked["backup"] = swarm.variables["BACKUP"]
    planned = json.dumps(swarm.succeeded(swarm.launch("restore_job", config)))
    assert "swap names: ovia becomes ovia_before_" in planned
    assert digest(swarm) == today
    refused = swarm.launch("restore_job", {"ops": {"restore": {"config": {"action": "restore", "confirm": "ovia"}}}})
    assert "nothing was done: ovia is not the word of a pending plan" in json.dumps(swarm.finished(refused))
    assert digest(swarm) == today
    migrated = migrations()
    asked |= {"action": "restore", "confirm": re.findall(r"confirm: (ovia-\d{8}T\d{6}Z)", planned)[0]}
    shown = swarm.succeeded_in_sight(swarm.launch("restore_job", config), "restore")
    assert digest(swarm) == good
    assert replicas() == REPLICAS
    assert migrations() == migrated + 1
    for secret in (OVIA_PASSWORD, base64.b64encode(OVIA_PASSWORD.encode()).decode()):
        for place, text in shown.items():
            # Ovia's own stack gives its password by value, as the old one did.
            assert secret not in text or '"com.docker.stack.namespace": "ovia"' in text, f"a secret in {place}"
    assert any(OVIA_PASSWORD in text for text in shown.values()), "the search sees nothing"


# ----------------------------------------------------------------------------------------------------------- killed


#: The step in which a restore is killed, and whether it is aborted then rather than resumed.
KILLS = (
    (Step.STOP, True),
    (Step.SWAP, False),
    (Step.RESTORE, False),
    (Step.MIGRATE, True),
    (Step.START, False),
    (Step.HEALTH, True),
)


@contextmanager
def restoring(
    swarm: Swarm, step: Step, mark: JournalMark, *options: str
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Start a restore in the console; yield its process when its journal has reached this entry."""
    folder = Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", "ovia_backup_data")) / "restores"
    before = set(folder.glob("*.journal"))

    def there() -> bool:
        entries = [line for path in set(folder.glob("*.journal")) - before for line in path.read_text().splitlines()]
        return any(f'"mark":"{mark}","step":"{step}"' in line for line in entries)

    command = ("ovia-backup", "restore", swarm.variables["BACKUP"], "--yes-destroy", "ovia")
    with subprocess.Popen(
        ("docker", "exec", *options, swarm.container("ovia-backup_console"), *command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as client:
        until(lambda: list(_processes(*command)), 60, "the restore did not begin", pause=0.05)
        [pid] = _processes(*command)
        until(there, 60, lambda: str(client.communicate(timeout=60)), pause=0.001)
        yield pid, client


def _processes(*command: str) -> Iterator[int]:
    """The process in the console, not the Docker client that started it."""
    for number, words in processes():
        if words[0].startswith("/opt/ovia-backup/bin/python") and words[2 : 1 + len(command)] == [*command[1:]]:
            yield number


@pytest.mark.parametrize(("step", "back"), thinned(KILLS, daily=2))
def test_a_restore_killed_in_any_step_can_be_finished(
    swarm: Swarm, good: str, today: str, step: Step, back: bool
) -> None:
    """Half of the restores are aborted and half resumed; one loses its whole container."""
    if step is Step.STOP:
        swarm.settled("console")
    with restoring(swarm, step, JournalMark.BEGUN) as (pid, client):
        if step is Step.STOP:
            docker("kill", swarm.container("ovia-backup_console"))
        else:
            os.kill(pid, signal.SIGKILL)
        client.communicate(timeout=60)
        assert client.returncode == 137
    until(lambda: _secrets(swarm), 60, lambda: swarm.story("ovia-backup_console"))
    assert digest(swarm) in (good, today), "the live database is neither the old one nor the new one"
    code, said = restore(swarm, "latest", "--yes-destroy", "ovia")
    assert code == 1
    assert "is not finished" in said
    swarm.follow(HALF_WAY, int(back))
    assert digest(swarm) == (today if back else good)
    assert replicas() == REPLICAS


@pytest.mark.parametrize(
    "options", [pytest.param(("-t",), id="terminal"), pytest.param((), id="pipe", marks=pytest.mark.exhaustive)]
)
def test_a_restore_outlives_the_terminal_it_began_in(
    swarm: Swarm, good: str, today: str, options: tuple[str, ...]
) -> None:
    with restoring(swarm, Step.RESTORE, JournalMark.BEGUN, *options) as (pid, client):
        client.kill()
        client.communicate(timeout=60)
        until(lambda: not Path(f"/proc/{pid}").exists(), 120, "the restore still runs")
    assert digest(swarm) == good
    assert replicas() == REPLICAS
    assert "is not finished" not in swarm.console("status")


# --------------------------------------------------------------------------------------------------- failures


@contextmanager
def migrations_fail() -> Iterator[None]:
    """Give the migration a wrong password for the block."""
    docker("service", "update", "--detach", "--replicas", "0", "--env-add", "POSTGRES_PASSWORD=wrong", "ovia_migrate")
    try:
        yield
    finally:
        right = f"POSTGRES_PASSWORD={OVIA_PASSWORD}"
        docker("service", "update", "--detach", "--replicas", "1", "--env-add", right, "ovia_migrate")


@pytest.mark.exhaustive
def test_a_failed_migration_undoes_only_with_auto_undo(swarm: Swarm, good: str, today: str) -> None:
    backup = swarm.variables["BACKUP"]
    with migrations_fail():
        code, said = restore(swarm, backup, "--yes-destroy", "ovia", "--auto-undo")
        assert code == 1
        assert "service ovia_migrate failed" in said
        assert digest(swarm) == today
        assert replicas() == REPLICAS
        code, said = restore(swarm, backup, "--yes-destroy", "ovia")
        assert code == 1
        assert "service ovia_migrate failed" in said
        assert digest(swarm) == good
        assert replicas() == REPLICAS


def test_an_unsuitable_service_stops_a_restore_early(swarm: Swarm, today: str) -> None:
    backup = swarm.variables["BACKUP"]
    for variable, wrong in (
        ("SWARM_APP_SERVICES=ovia_ovia-app", "there is no service ovia_ovia-app: did you mean ovia_ovia-api"),
        ("SWARM_MIGRATE_SERVICE=ovia_ovia-api", "service ovia_ovia-api cannot be run once"),
    ):
        code, said = restore(swarm, backup, "--yes-destroy", "ovia", variables=(variable,))
        assert code == 1
        assert wrong in said
        assert "step: " not in said
    assert digest(swarm) == today
    assert replicas() == REPLICAS


@contextmanager
def about_to_stop(swarm: Swarm) -> Iterator[list[tuple[int, str]]]:
    """A restore that has compared its copy, and waits in the block for the lock before it stops a service.

    After the block the list has its exit code and output.
    """
    ended: list[tuple[int, str]] = []
    lock = Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", "ovia_backup_data")) / ".lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with restoring(swarm, Step.RESTORE, JournalMark.DONE) as (_, client):
            assert client.stdout is not None
            while "waiting for " not in (line := client.stdout.readline()):
                assert line, "the restore did not wait"
            yield ended
            fcntl.flock(held, fcntl.LOCK_UN)
            said = client.communicate(timeout=120)[0]
            ended.append((client.returncode, said))


def test_services_run_while_a_restore_waits_for_a_lock(swarm: Swarm, good: str, today: str) -> None:
    with about_to_stop(swarm) as ended:
        assert replicas() == REPLICAS
    [(code, said)] = ended
    assert code == 0, said
    assert digest(swarm) == good
    assert replicas() == REPLICAS


@pytest.mark.exhaustive
def test_a_failed_health_check_undoes_the_restore(swarm: Swarm, today: str) -> None:
    unanswered = "HEALTH_URL=http://ovia-metrics:8080/health"
    code, said = restore(
        swarm, swarm.variables["BACKUP"], "--yes-destroy", "ovia", "--auto-undo", variables=(unanswered,)
    )
    assert code == 1
    assert "http://ovia-metrics:8080/health was not healthy within 15 s" in said
    assert digest(swarm) == today
    assert replicas() == REPLICAS


@pytest.mark.exhaustive
def test_a_lost_filter_ends_a_restore_or_is_waited_for(swarm: Swarm, good: str, today: str) -> None:
    with about_to_stop(swarm) as ended:
        docker("service", "scale", "--detach", "ovia-backup_docker-filter=0")
        until(lambda: not docker("ps", "-q", "-f", "name=ovia-backup_docker-filter"), 60, "the filter is still there")
    [(code, said)] = ended
    docker("service", "scale", "--detach", "ovia-backup_docker-filter=1")
    assert code == 1
    assert "Docker does not answer at tcp://docker-filter:2375" in said
    assert digest(swarm) == today
    assert databases(swarm) == []
    assert replicas() == REPLICAS
    swarm.well("docker-filter")
    # A restore waits for a filter that comes back.
    with restoring(swarm, Step.SWAP, JournalMark.DONE) as (_, client):
        docker("kill", swarm.container("ovia-backup_docker-filter"))
        said = client.communicate(timeout=120)[0]
    assert client.returncode == 0, said
    assert digest(swarm) == good
    assert replicas() == REPLICAS


@pytest.mark.exhaustive
def test_an_abort_passes_over_services_that_cannot_run(swarm: Swarm, today: str) -> None:
    """One service was removed, one has no suitable node: the others get their replicas, and a restore may begin."""
    for name in ("gone", "nowhere"):
        options = ("--detach", "--no-resolve-image", "--name", name, "--entrypoint", "sleep 100000")
        docker("service", "create", *options, POSTGRES)
    try:
        services = f"SWARM_APP_SERVICES={','.join([*REPLICAS, 'gone', 'nowhere'])}"
        with restoring(swarm, Step.SWAP, JournalMark.BEGUN, "-e", services) as (pid, client):
            os.kill(pid, signal.SIGKILL)
            client.communicate(timeout=60)
        docker("service", "rm", "gone")
        docker("service", "update", "--detach", "--constraint-add", "node.labels.nowhere==1", "nowhere")
        code, said = restore(swarm, "--abort")
        assert code == 0, said
        assert "note: there is no service gone" in said
        assert "note: of 1 tasks of nowhere 0 ran after 30 s" in said
        assert "Next: " in said
    finally:
        docker("service", "rm", "nowhere")
    assert digest(swarm) == today
    assert replicas() == REPLICAS
    assert databases(swarm) == []
    assert restore(swarm, "latest", "--plan")[0] == 0


@pytest.mark.exhaustive
def test_a_drop_can_stop_the_services_before_its_drill(swarm: Swarm, good: str) -> None:
    """The backup is unverified: the restore's drill verifies it while the services are stopped."""
    swarm.console("restore", swarm.variables["BACKUP"], "--yes-destroy", "ovia")
    clear(swarm)
    swarm.console("dump")
    unproven = swarm.backups()[0]["name"]
    assert unproven != swarm.variables["BACKUP"]
    harm(swarm)
    code, said = restore(swarm, unproven, "--mode", "drop", "--stop-services", "first", "--yes-destroy", "ovia")
    assert code == 0, said
    assert said.index("step: stop services") < said.index("step: drill") < said.index("step: drop database")
    assert digest(swarm) == good
    assert replicas() == REPLICAS
    assert databases(swarm) == []


# ------------------------------------------------------------------------------------------------- another server


def test_scenario_2_restores_onto_an_empty_server(swarm: Swarm, good: str) -> None:
    """The server's volume is lost with all roles; only a backup in another folder is left."""
    swarm.console("restore", swarm.variables["BACKUP"], "--yes-destroy", "ovia")
    swarm.psql("ALTER DATABASE ovia SET statement_timeout = '1h'")
    swarm.console("dump")  # whose file of roles has the setting
    swarm.follow("Copying a backup off-host", 0)
    docker("service", "scale", *(f"{name}=0" for name in REPLICAS), "ovia_postgres=0")
    until(lambda: not docker("ps", "-aq", "-f", "name=ovia_postgres"), 60, "it is still there")
    docker("volume", "rm", "ovia_postgres_data")
    docker("service", "scale", "--detach", "ovia_postgres=1")
    until(lambda: swarm.health("ovia_postgres") == "healthy", 120, lambda: swarm.story("ovia_postgres"))
    with pytest.raises(AssertionError, match="does not exist"):
        swarm.psql(PEOPLE)
    del swarm.variables["BACKUP"]
    swarm.follow(SCENARIO_2, 0)
    swarm.follow(SCENARIO_2, 1)
    assert digest(swarm) == good
    assert swarm.psql("SHOW statement_timeout") == "1h"
    assert replicas() == dict.fromkeys(REPLICAS, 1)
    assert swarm.psql("SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = 'ovia_backup'") == "t"
    clear(swarm)
    swarm.follow("Rotating the password", 0, timeout=120)
    swarm.well()
    until(lambda: _removed(swarm), 60, "the old secret is still used")
    until(swarm.locations, 120, lambda: swarm.story("ovia-backup_webserver"))
    swarm.succeeded(swarm.launch("daily_backup_job"))


def _removed(swarm: Swarm) -> bool:
    with contextlib.suppress(AssertionError):
        swarm.follow("Rotating the password", 1)
        return True
    return False
