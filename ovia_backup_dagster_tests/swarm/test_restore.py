"""Restores in the stack, as the runbook has them: by a person in the console, by a run from the UI, and killed.

Each test leaves the database restored, or as it was, and the services with their replicas.
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
from ovia_backup_dagster_tests.swarm.engine import POSTGRES, docker, processes, until
from ovia_backup_dagster_tests.swarm.swarm import OVIA_PASSWORD, Swarm

ABLE = "Being able to restore"
SCENARIO_1 = "Scenario 1: restore to the same host"
SCENARIO_2 = "Scenario 2: restore to a new host"
HALF_WAY = "A restore was killed half-way"
#: Not all one, so that each must come back to its own.
REPLICAS = {"ovia_ovia-api": 1, "ovia_ovia-ingest": 2, "ovia_ovia-metrics": 0}
PEOPLE = "SELECT count(*) FROM people"


def digest(swarm: Swarm, database: str = "ovia") -> str:
    """Of all that the services do not write."""
    # `\restrict` has a random word.
    dumped = f"pg_dump -U ovia -T 'audit_events*' -T sync_watermarks -d {database} | grep -v restrict | sha256sum"
    return docker("exec", swarm.container("ovia_postgres"), "bash", "-o", "pipefail", "-c", dumped)


def databases(swarm: Swarm) -> list[str]:
    """Beside the live one."""
    names = "SELECT datname FROM pg_database WHERE datname LIKE 'ovia_%' ORDER BY 1"
    return swarm.psql(names, database="postgres").split()


def replicas() -> dict[str, int]:
    """Of each service, where as many run as shall."""
    found = {}
    for name in REPLICAS:
        listed = docker("service", "ls", "-f", f"name={name}", "--format", "{{.Replicas}}")
        runs, shall = listed.split()[0].split("/")
        found[name] = int(runs) if runs == shall else -1
    return found


def migrations() -> int:
    """How often the service that migrates was begun anew."""
    return int(docker("service", "inspect", "ovia_migrate", "--format", "{{.Spec.TaskTemplate.ForceUpdate}}"))


def scaled(since: float) -> set[str]:
    """What services were scaled to."""
    shape = '{{.Actor.Attributes.name}}={{index .Actor.Attributes "replicas.new"}}'
    limits = ("--since", f"{since:.3f}", "--until", f"{time.time():.3f}")
    events = docker("events", *limits, "--filter", "type=service", "--format", shape).split()
    return {event for event in events if event[-1].isdigit()}


def harm(swarm: Swarm) -> None:
    """Somebody deletes all but one, so that no migration takes it for a new database, and fills it."""
    swarm.psql("TRUNCATE people, person_identity_links; INSERT INTO people VALUES (0, 'nobody')")


def clear(swarm: Swarm) -> None:
    """A person drops what is left beside the live database."""
    for name in databases(swarm):
        swarm.psql(f"DROP DATABASE {name}", database="postgres")


def restore(swarm: Swarm, *options: str, variables: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit code, and all that was printed. No test has five minutes for what stays red."""
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
    """What the newest backup holds."""
    swarm.console("dump")
    swarm.console("verify")
    swarm.variables["BACKUP"] = swarm.backups()[0]["name"]
    return digest(swarm)


@pytest.fixture
def today(swarm: Swarm, good: str) -> str:
    """The live database is not as it should be. What it holds."""
    clear(swarm)
    harm(swarm)
    found = digest(swarm)
    assert found != good
    return found


# --------------------------------------------------------------------------------------------------- the scenarios


def test_it_is_made_possible(swarm: Swarm) -> None:
    with pytest.raises(AssertionError, match="ovia_backup may not make or rename a database"):
        swarm.console("restore", "latest", "--plan")
    # Ovia's database belongs to a superuser, and so no other role can restore it; nothing is left of the attempt.
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
    with contextlib.suppress(AssertionError):  # one console is going, the next not there yet
        return docker("exec", swarm.container("ovia-backup_console"), "ls", "/run/secrets")
    return ""


def test_scenario_1_and_back(swarm: Swarm, good: str, today: str) -> None:
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
    # The services stopped, and have come back; the migration ran anew; health was asked of what runs now.
    assert scaled(began) == {"ovia_ovia-api=0", "ovia_ovia-api=1", "ovia_ovia-ingest=0", "ovia_ovia-ingest=2"}
    assert replicas() == REPLICAS
    assert swarm.container("ovia_ovia-api") != api
    assert "GET /health" in swarm.sh(f"docker logs {swarm.container('ovia_ovia-api')}")
    assert migrations() == migrated + 1
    newest = docker("service", "ps", "ovia_migrate", "--format", "{{.CurrentState}}").splitlines()[0]
    assert newest.startswith("Complete"), newest
    # Back to what was there before, byte for byte; and forth; and what is left over is dropped.
    assert "written since the swap: public.audit_events" in swarm.follow(SCENARIO_1, 2)
    assert digest(swarm) == today
    assert replicas() == REPLICAS
    swarm.follow(SCENARIO_1, 2)
    assert digest(swarm) == good
    assert kept.partition("_before_")[0] in swarm.follow(SCENARIO_1, 3)
    assert databases(swarm) == []
    # As delivered, the services are one each.
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
    assert "nothing was done: ovia is not the word of a plan that waits" in json.dumps(swarm.finished(refused))
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


STEPS = (Step.RESTORE, Step.STOP, Step.SWAP, Step.MIGRATE, Step.START, Step.HEALTH)


@contextmanager
def restoring(
    swarm: Swarm, step: Step, mark: JournalMark, *options: str
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A restore in the console, when its journal has just got there; the process by its number on this machine."""
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
        until(lambda: list(_processes(*command)), 20, "it did not begin", pause=0.05)
        [pid] = _processes(*command)
        until(there, 60, lambda: str(client.communicate(timeout=60)), pause=0.001)
        yield pid, client


def _processes(*command: str) -> Iterator[int]:
    """Of the console, and not Docker's client that asked for them."""
    for number, words in processes():
        if words[0].startswith("/opt/ovia-backup/bin/python") and words[2 : 1 + len(command)] == [*command[1:]]:
            yield number


@pytest.mark.parametrize(("number", "step"), list(enumerate(STEPS)), ids=STEPS)
def test_killed_in_each_step(swarm: Swarm, good: str, today: str, number: int, step: Step) -> None:
    """Every second one is put back; and one loses its whole container."""
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
    back = number % 2 == 1
    swarm.follow(HALF_WAY, int(back))
    assert digest(swarm) == (today if back else good)
    assert replicas() == REPLICAS


@pytest.mark.parametrize("options", [(), ("-t",)], ids=["pipe", "terminal"])
def test_a_terminal_that_is_closed_ends_only_what_is_seen(
    swarm: Swarm, good: str, today: str, options: tuple[str, ...]
) -> None:
    with restoring(swarm, Step.RESTORE, JournalMark.BEGUN, *options) as (pid, client):
        client.kill()
        client.communicate(timeout=60)
        until(lambda: not Path(f"/proc/{pid}").exists(), 120, "it still runs")
    assert digest(swarm) == good
    assert replicas() == REPLICAS
    assert "is not finished" not in swarm.console("status")


# --------------------------------------------------------------------------------------------------- what goes wrong


@contextmanager
def migrations_fail() -> Iterator[None]:
    """Its password is not the database's; nobody has noticed yet."""
    docker("service", "update", "--detach", "--replicas", "0", "--env-add", "POSTGRES_PASSWORD=wrong", "ovia_migrate")
    try:
        yield
    finally:
        right = f"POSTGRES_PASSWORD={OVIA_PASSWORD}"
        docker("service", "update", "--detach", "--replicas", "1", "--env-add", right, "ovia_migrate")


def test_a_migration_that_fails(swarm: Swarm, good: str, today: str) -> None:
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


def test_what_cannot_be_stopped_or_run_is_found_out_before_anything_is_touched(swarm: Swarm, today: str) -> None:
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
    """A restore that has proven its copy, and in the block waits, as for a dump, before it stops anything.

    After the block its exit code and what it said stand in the list.
    """
    ended: list[tuple[int, str]] = []
    lock = Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", "ovia_backup_data")) / ".lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with restoring(swarm, Step.RESTORE, JournalMark.DONE) as (_, client):
            assert client.stdout is not None
            while "waiting for " not in (line := client.stdout.readline()):
                assert line, "it did not wait"
            yield ended
            fcntl.flock(held, fcntl.LOCK_UN)
            said = client.communicate(timeout=120)[0]
            ended.append((client.returncode, said))


def test_a_dump_is_waited_for_while_the_services_run(swarm: Swarm, good: str, today: str) -> None:
    with about_to_stop(swarm) as ended:
        assert replicas() == REPLICAS
    [(code, said)] = ended
    assert code == 0, said
    assert digest(swarm) == good
    assert replicas() == REPLICAS


def test_health_that_stays_red(swarm: Swarm, today: str) -> None:
    nobody = "HEALTH_URL=http://ovia-metrics:8080/health"
    code, said = restore(swarm, swarm.variables["BACKUP"], "--yes-destroy", "ovia", "--auto-undo", variables=(nobody,))
    assert code == 1
    assert "http://ovia-metrics:8080/health was not healthy within 15 s" in said
    assert digest(swarm) == today
    assert replicas() == REPLICAS


def test_the_filter_is_gone_between_two_steps(swarm: Swarm, good: str, today: str) -> None:
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
    # One that comes back is waited for.
    with restoring(swarm, Step.SWAP, JournalMark.DONE) as (_, client):
        docker("kill", swarm.container("ovia-backup_docker-filter"))
        said = client.communicate(timeout=120)[0]
    assert client.returncode == 0, said
    assert digest(swarm) == good
    assert replicas() == REPLICAS


def test_services_that_cannot_come_back_do_not_hold_up_the_way_back(swarm: Swarm, today: str) -> None:
    """One is gone, one can run nowhere: the others get their replicas, and another restore may begin."""
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


def test_a_drop_with_the_services_stopped_from_the_beginning(swarm: Swarm, good: str) -> None:
    """Of a backup that nobody has verified: its drill does, while the services are down."""
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


def test_scenario_2_and_a_new_password(swarm: Swarm, good: str) -> None:
    """The server's volume is gone, and with it all roles; what is left is a backup in a folder elsewhere."""
    swarm.console("restore", swarm.variables["BACKUP"], "--yes-destroy", "ovia")
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
