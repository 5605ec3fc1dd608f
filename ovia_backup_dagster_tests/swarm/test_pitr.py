"""Point-in-time recovery in the stack, as in the runbook: from switching it on to switching it off.

Between: harm and recovery to the second before it, a killed receiver, a rebooted node, and a server that is lost with
its volume.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.pitr.archive import cluster_archives
from ovia_backup_dagster.pitr.receiver_status import read_status
from ovia_backup_dagster_tests.swarm.engine import Engine, docker, until
from ovia_backup_dagster_tests.swarm.replaced import ABLE, clear, databases
from ovia_backup_dagster_tests.swarm.swarm import SERVICES, Swarm

ON = "Switching it on"
SAFE = "Seeing what is safe"
STOPPED = "The receiver stopped"
REBOOTED = "After a reboot of the node"
OFF = "Switching it off"
MOMENT = "Scenario 3: point-in-time recovery"
GONE = "Scenario 4: the server is gone, and its disk"
WAL = "ovia-backup_wal"
LINE = "host replication ovia_wal all scram-sha-256"


@pytest.fixture(scope="module")
def receiving(swarm: Swarm) -> Swarm:
    """The stack, receiving WAL as the runbook says."""
    if "ovia-backup_restore_password" not in docker("secret", "ls", "--format", "{{.Name}}").split():
        swarm.follow(ABLE, 1)
        swarm.follow(ABLE, 2)
    swarm.settings.write_text(f"{swarm.settings.read_text('utf-8')}WAL_BEACON_SECONDS=1\n", "utf-8")
    assert LINE in swarm.follow(ON, 0)
    # A second time, nothing is added.
    swarm.follow(ON, 1)
    swarm.follow(ON, 1)
    assert swarm.sh(f"docker exec {swarm.container('ovia_postgres')} cat {hba(swarm)}").count(f"\n{LINE}\n") == 1
    swarm.follow(ON, 2)
    until(lambda: wal_secret(swarm), 120, lambda: swarm.story("ovia-backup_console"))
    # The doctor is unhealthy until there is a base backup.
    swarm.well("wal", *(name for name in SERVICES if name != "doctor"), seconds=400)
    return swarm


def hba(swarm: Swarm) -> str:
    return swarm.psql("SHOW hba_file")


def wal_secret(swarm: Swarm) -> str:
    """The password that the console has; empty while it is replaced."""
    with contextlib.suppress(AssertionError):
        return docker("exec", swarm.container("ovia-backup_console"), "cat", "/run/ovia-backup/wal_password")
    return ""


def volume() -> Path:
    return Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", "ovia_backup_data"))


def safe(swarm: Swarm, seconds: float = 60) -> None:
    """Wait until what is committed now is safe in the volume, and the receiver has no trouble."""
    now, root = datetime.now(UTC), volume()

    def there() -> bool:
        status = read_status(root)
        return bool(status and status.confirmed_at and status.confirmed_at > now and not status.troubles)

    until(there, seconds, lambda: f"{read_status(root)}\n{swarm.story(WAL)}", pause=0.2)


def windows(swarm: Swarm) -> dict[str, Any]:
    [found] = json.loads(swarm.console("recovery-window", "--json"))
    about: dict[str, Any] = found
    return about


def require_no_gap(swarm: Swarm) -> None:
    """Require that the archive has every segment from its first on, and that the window has no hole."""
    [archive] = cluster_archives(volume())
    numbers = [segment.number for segment in archive.archived_segments()]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert windows(swarm)["holes"] == []


def segment(swarm: Swarm) -> None:
    """Write something, and end the WAL segment."""
    swarm.psql("INSERT INTO audit_events (what) VALUES ('more'); SELECT pg_switch_wal()")


def test_switching_on_opens_a_recovery_window(receiving: Swarm) -> None:
    # The doctor also asks Dagster, which may answer late on a busy machine: only recovery counts here.
    said = receiving.follow(ON, 3, check=False)
    assert "receiving: cluster " in said, said
    assert "\nok   recovery  any instant from " in said, said
    assert "\nfail recovery" not in said, said
    assert receiving.psql("SELECT wal_status || ' ' || active FROM pg_replication_slots") == "reserved true"
    assert receiving.psql("SHOW max_slot_wal_keep_size") == "4GB"
    about = json.loads(docker("inspect", receiving.container(WAL)))[0]
    assert set(about["NetworkSettings"]["Networks"]) == {"ovia_ovia-net"}
    password = wal_secret(receiving)
    for service in (WAL, "ovia-backup_code-server", "ovia-backup_console"):
        assert password not in docker("inspect", receiving.container(service), service)
    assert docker("exec", receiving.container(WAL), "ls", "/run/ovia-backup") == "wal_password"


def content(swarm: Swarm) -> str:
    """A hash of everything that the services do not write. Sequences run ahead after a recovery, as after a crash."""
    tables = "-T 'audit_events*' -T sync_watermarks -T marks"
    dumped = f"pg_dump -U ovia -d ovia {tables} | grep -vE 'restrict|setval' | sha256sum"
    return docker("exec", swarm.container("ovia_postgres"), "bash", "-o", "pipefail", "-c", dumped)


#: A hundred links are left, so that the database passes for a good one after the undo.
HARM = "TRUNCATE person_identity_links; INSERT INTO person_identity_links SELECT id, id FROM people LIMIT 100"


def test_harm_is_undone_to_the_second_before_it(receiving: Swarm) -> None:
    swarm = receiving
    # Meanwhile, a run makes a base backup.
    until(swarm.locations, 120, lambda: swarm.story("ovia-backup_webserver"))
    run_id = swarm.launch("base_backup_job")
    clear(swarm)
    swarm.psql("INSERT INTO people (name) VALUES ('the last one before the harm')")
    before = content(swarm)
    # A person names the second before the harm: what was committed by then is kept.
    swarm.psql("SELECT pg_sleep(2)")
    swarm.psql(HARM)
    harmed = content(swarm)
    assert harmed != before
    safe(swarm)
    swarm.variables["TO"] = f"{second_before(swarm.follow(MOMENT, 0)):%Y-%m-%d %H:%M:%S} UTC"
    assert "recover: base backup " in swarm.follow(MOMENT, 1)
    assert databases(swarm) == []
    said = swarm.follow(MOMENT, 2)
    assert content(swarm) == before
    [kept] = databases(swarm)
    assert f"the database before is kept: {kept}" in said
    swarm.follow(MOMENT, 3)
    assert content(swarm) == harmed
    clear(swarm)
    # The receiver went on: the swap is a matter of two names.
    safe(swarm)
    swarm.succeeded(run_id)
    assert [base["verified"] for base in windows(swarm)["base_backups"]] == [True, True]


def second_before(timeline: str) -> datetime:
    """The second before the harm, as a person reads it from the timeline: each minute, then what happened in it."""
    day, found = "", []
    for line in timeline.splitlines():
        if minute := re.match(r"\d{4}-\d\d-\d\d(?= \d\d:\d\d )", line):
            day = minute[0]
        elif "TRUNCATE public.person_identity_links " in line:
            found.append(datetime.fromisoformat(f"{day} {line.split()[0]}"))
    [harmed] = found
    return harmed - timedelta(seconds=1)


def test_a_killed_receiver_continues_without_a_gap(receiving: Swarm) -> None:
    swarm = receiving
    swarm.settled("wal")
    killed = swarm.container(WAL)
    docker("kill", killed)
    for _ in range(3):
        segment(swarm)
    until(lambda: swarm.health(WAL) and swarm.container(WAL) != killed, 60, lambda: swarm.story(WAL))
    safe(swarm)
    require_no_gap(swarm)
    for heading in (SAFE, REBOOTED):
        said = swarm.follow(heading, 0)
        assert "receiving: cluster " in said
        assert "hole: " not in said
    # The next test waits until it runs again.
    assert "Failed" in swarm.follow(STOPPED, 0)


@pytest.mark.exhaustive
def test_a_rebooted_node_receives_again(receiving: Swarm, engine: Engine) -> None:
    swarm = receiving
    swarm.settled()
    segment(swarm)
    engine.restart()
    until(lambda: swarm.health("ovia_postgres") == "healthy", 120, lambda: swarm.story("ovia_postgres"))
    swarm.well("wal", "console", seconds=180)
    segment(swarm)
    safe(swarm)
    require_no_gap(swarm)
    assert "receiving: cluster " in swarm.follow(REBOOTED, 0)


@contextmanager
def writing(swarm: Swarm) -> Iterator[list[tuple[int, datetime]]]:
    """Commit numbered rows while the block runs; the list has those that the server acknowledged, when it is over."""
    swarm.psql("CREATE TABLE IF NOT EXISTS marks (n int, at timestamptz)")
    acknowledged: list[tuple[int, datetime]] = []
    insert = "INSERT INTO marks VALUES ({}, clock_timestamp()) RETURNING n, at AT TIME ZONE 'UTC'"
    every = f'for n in $(seq 100000); do echo "{insert.format("$n")};"; done | psql -U ovia -d ovia -XAtq'
    with subprocess.Popen(
        ("docker", "exec", swarm.container("ovia_postgres"), "bash", "-c", every),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        while len(acknowledged) < 200:
            acknowledged.append(mark(process.stdout.readline()))
        yield acknowledged
        acknowledged += [mark(line) for line in process.stdout if line.endswith("\n")]


def mark(line: str) -> tuple[int, datetime]:
    number, _, at = line.strip().partition("|")
    return int(number), datetime.fromisoformat(at).replace(tzinfo=UTC)


def test_a_lost_server_is_recovered_from_the_volume(receiving: Swarm) -> None:
    """Killed, with its disk gone: what is lost is what had not come back from the volume, at most seconds."""
    swarm = receiving
    swarm.settled("wal")
    swarm.well("wal")
    safe(swarm)
    before = content(swarm)
    with writing(swarm) as acknowledged:
        docker("kill", swarm.container("ovia_postgres"))
        docker("service", "scale", "--detach", "ovia_postgres=0")
    until(lambda: not docker("ps", "-q", "-f", "name=ovia_postgres"), 60, "it is still there")
    docker("rm", *docker("ps", "-aq", "-f", "volume=ovia_postgres_data").split())
    docker("volume", "rm", "ovia_postgres_data")
    status = read_status(volume())
    assert status is not None
    confirmed = status.confirmed_at
    assert confirmed is not None
    swarm.follow(GONE, 0)
    said = swarm.follow(GONE, 1)
    assert "timeline 2" in said, said
    kept = int(swarm.psql("SELECT max(n) FROM marks"))
    assert swarm.psql("SELECT count(*) FROM marks") == str(kept)
    lost = [at for number, at in acknowledged if number > kept]
    assert [at for at in lost if at <= confirmed] == []
    assert not lost or lost[-1] - lost[0] < timedelta(seconds=3), lost
    swarm.psql("DROP TABLE marks")
    assert content(swarm) == before
    segment(swarm)
    # Its role and password are back, too.
    safe(swarm)
    # Instants before the loss can be recovered on the new timeline, too.
    about = windows(swarm)
    assert (about["timeline"], about["holes"]) == (2, [])
    assert datetime.fromisoformat(about["windows"][0]["from"]) < confirmed


def test_switching_off_leaves_nothing_on_the_server(receiving: Swarm) -> None:
    swarm = receiving
    swarm.follow(OFF, 0)
    assert swarm.psql("SELECT count(*) FROM pg_replication_slots") == "0"
    assert swarm.psql("SELECT count(*) FROM pg_roles WHERE rolname = 'ovia_wal'") == "0"
    # Its update has begun, and may still replace the container.
    swarm.settled("console")
    swarm.well("console")
    swarm.follow(OFF, 1)
    assert docker("service", "ls", "-q", "-f", f"name={WAL}") == ""
    assert docker("secret", "ls", "-q", "-f", "name=ovia-backup_wal_password") == ""
