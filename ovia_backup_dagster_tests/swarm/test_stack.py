"""The stack at work, in the order of a bad week. Each test leaves the stack healthy."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import pytest

from ovia_backup_dagster_tests.swarm.engine import IMAGE, POSTGRES, STATE, Engine, docker, until
from ovia_backup_dagster_tests.swarm.swarm import (
    CHANNEL_PASSWORD,
    OVIA_PASSWORD,
    SENSOR_SECONDS,
    SERVICES,
    UI_PASSWORD,
    Swarm,
)


def test_the_runbook_installs_the_stack(swarm: Swarm) -> None:
    said = swarm.follow("Installing", 4)
    assert said.count("1/1") == len(SERVICES), said
    assert "\nfail" not in said, said
    assert swarm.backups()[0]["state"] == "proven"
    until(
        lambda: any("a test of the backup alerts" in told["title"] for told in swarm.told()),
        30,
        "no test alert arrived",
    )
    assert "Complete" in docker("service", "ps", "ovia-backup_handover", "--format", "{{.CurrentState}}")


def test_no_secret_is_on_a_disk(swarm: Swarm) -> None:
    """A secret in a container's layer would outlive its rotation."""
    # Mounting a secret leaves an empty file in the layer.
    places = "'(' -path '*/run/ovia-backup/*' -o -path '*/run/secrets/*' ')' -type f -size +0"
    found = swarm.sh(f"find {STATE}/docker/overlay2/*/diff {places}")
    assert found == ""
    volume = docker("volume", "inspect", "-f", "{{.Mountpoint}}", "ovia-backup_secrets")
    assert "tmpfs" in swarm.sh(f"findmnt -n -o FSTYPE {volume}")


def test_a_backup_is_launched_in_the_ui(swarm: Swarm) -> None:
    run = swarm.succeeded(swarm.launch("daily_backup_job"))
    newest = swarm.backups()[0]
    assert newest["state"] == "proven"
    assert newest["run_id"] == run["runId"]
    assert newest["rows"] >= 140_000
    until(lambda: not swarm.run_containers(), 60, "the run's container is still there")
    # Its output outlives its container.
    runs = docker("exec", swarm.container("ovia-backup_webserver"), "ls", "/var/lib/ovia-backup/runs")
    assert "_daily_backup_job_" in runs
    logs = docker("exec", swarm.container("ovia-backup_webserver"), "ls", f"/var/lib/ovia-backup/logs/{run['runId']}")
    assert "compute_logs" in logs


def test_the_drill_passes(swarm: Swarm) -> None:
    run = swarm.succeeded(swarm.launch("restore_drill_job"))
    history = json.loads(swarm.console("drill", "--history", "--json"))
    assert [check["result"] for check in history[0]["lines"] if check["result"] == "failed"] == []
    assert history[0]["launched_by"] != ""
    assert swarm.console("status").startswith("BACKUP OK"), run


#: A superuser's function that acts only in a drill, and fails if one of its attempts succeeds.
_ATTACK = """
    CREATE SCHEMA lab;
    CREATE FUNCTION lab.act() RETURNS text LANGUAGE plpgsql AS $act$
    DECLARE attempt text; reached text := '';
    BEGIN
        IF current_setting('wal_level') <> 'minimal' THEN RETURN ''; END IF;
        FOREACH attempt IN ARRAY ARRAY[
            'cat /run/ovia-backup/postgres_password', 'ls /run/secrets', 'ls /backups/daily', 'touch /backups/evil',
            'cat /proc/1/environ', 'kill -0 1', 'echo > /dev/tcp/postgres/5432', 'echo > /dev/udp/postgres/53',
            'ls /var/lib/ovia-backup', 'touch /tmp/evil']
        LOOP
            BEGIN
                EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', format('exec /bin/bash -c %L', attempt));
                reached := reached || attempt || '; ';
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
        IF reached <> '' THEN RAISE EXCEPTION 'reached: %', reached; END IF;
        RETURN 'nothing';
    END $act$;
    CREATE MATERIALIZED VIEW lab.view AS SELECT lab.act() AS reached;
"""


def test_a_drill_in_a_run_is_contained(swarm: Swarm) -> None:
    """With the capabilities, the seccomp profile and the mounts of a run."""
    swarm.psql(_ATTACK)
    try:
        swarm.console("dump")
        swarm.console("verify", "latest")
        swarm.succeeded(swarm.launch("restore_drill_job"))
    finally:
        swarm.psql("DROP SCHEMA lab CASCADE")
    [drill, *_] = json.loads(swarm.console("drill", "--history", "--json"))
    lines = {line["check"]: line for line in drill["lines"]}
    assert drill["confinement"].startswith("confined by Landlock "), drill["confinement"]
    assert lines["drill_contained"]["result"] == "passed", lines["drill_contained"]
    assert lines["materialized_views_refreshed"]["result"] == "passed", lines["materialized_views_refreshed"]


@pytest.mark.exhaustive
def test_the_runbooks_figures_are_bearable(swarm: Swarm) -> None:
    """Write the runbook's figures to .cache/swarm/figures.md. The test only requires that they are bearable."""
    waits = []
    for _ in range(3):
        run = swarm.succeeded(swarm.launch("daily_backup_job"))
        events = run["eventConnection"]["events"]
        [began] = [float(e["timestamp"]) / 1000 for e in events if (e.get("message") or "").startswith("pg_dump of ")]
        waits.append(began - run["creationTime"])
    time.sleep(10)  # at rest
    shape = "{{.Name}} {{.MemUsage}}"
    used = {}
    for line in docker("stats", "--no-stream", "--format", shape).splitlines():
        name, memory = line.split()[:2]
        if name.startswith("ovia-backup_"):
            used[name.removeprefix("ovia-backup_").partition(".")[0]] = memory
    assert set(used) == set(SERVICES)
    size = int(docker("image", "inspect", "-f", "{{.Size}}", IMAGE)) / 1e6
    beneath = int(docker("image", "inspect", "-f", "{{.Size}}", POSTGRES)) / 1e6
    rows = [
        ("from launch to pg_dump's start", f"{median(waits):.1f} s (of three: {min(waits):.1f} to {max(waits):.1f})"),
        ("image", f"{size:.0f} MB, of which PostgreSQL's own {beneath:.0f} MB"),
        *((f"memory at rest, {name}", used[name]) for name in SERVICES),
    ]
    table = "".join(f"| {what} | {figure} |\n" for what, figure in rows)
    (STATE / "figures.md").write_text(f"| what | measured |\n|---|---|\n{table}", "utf-8")
    assert median(waits) < 60


def test_an_old_dump_makes_the_status_critical(swarm: Swarm) -> None:
    """Thirty hours old. The alert of the sensor is expected further below."""
    swarm.sh(
        f"""docker exec {swarm.container("ovia-backup_console")} sh -c '
        set -e; cd /backups; mkdir aside; newest=$(ls -t daily/*.dump | head -1); mv daily/* weekly/* aside/
        old=daily/ovia_daily_$(date -u -d "-30 hours" +%Y-%m-%d_%H%M%S).dump
        cp aside/$(basename $newest) $old; touch -d "-30 hours" $old'"""
    )
    assert "CRITICAL" in swarm.console("status", check=False)


# ------------------------------------------------------------------------------------------------ access control


def test_the_door_asks_for_a_password(swarm: Swarm) -> None:
    assert _knock(swarm, None) == 401
    assert _knock(swarm, "wrong") == 401
    assert _knock(swarm, UI_PASSWORD) == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen("http://localhost:3000/server_info", timeout=5)
    # A page of another site makes the browser send the password.
    for header in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"):
        assert _knock(swarm, UI_PASSWORD, header) == 403, header
    assert _knock(swarm, UI_PASSWORD, "Origin: https://localhost:8443") == 200
    # Old TLS is refused.
    old = swarm.sh("openssl s_client -connect localhost:8443 -tls1_1 < /dev/null 2>&1 || true")
    assert "Cipher is (NONE)" in old or "no protocols available" in old


def test_wrong_passwords_lock_an_address_out(swarm: Swarm) -> None:
    """The next tests do not use the UI; :func:`test_a_lockout_ends` comes after them."""
    codes = [_knock(swarm, "wrong") for _ in range(25)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert _knock(swarm, UI_PASSWORD) == 429


def _knock(swarm: Swarm, password: str | None, header: str = "") -> int:
    headers = {"Authorization": swarm.credentials(password)} if password else {}
    headers |= dict([header.split(": ", 1)]) if header else {}
    context = ssl.create_default_context(cafile=swarm.variables["CERTIFICATE"])
    request = urllib.request.Request("https://localhost:8443/", headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


_ASK = """
import socket, sys
asks = {5432: bytes([0, 0, 0, 8, 4, 210, 22, 47])}  # PostgreSQL: may we speak TLS?
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3) as peer:
    peer.sendall(asks.get(int(sys.argv[2]), b"GET / HTTP/1.0\\r\\n\\r\\n"))
    print(peer.recv(12))
"""


def test_ovias_services_cannot_reach_the_stack(swarm: Swarm) -> None:
    """The API is the service most likely to be taken over."""

    def answer(container: str, host: str, port: int) -> str:
        command = ("docker", "exec", container, "/opt/ovia-backup/bin/python", "-c", _ASK, host, str(port))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    inside, daemon = swarm.container("ovia_ovia-api"), swarm.container("ovia-backup_daemon")
    assert answer(inside, "postgres", 5432) == "b'N'\n"
    assert answer(daemon, "code-server", 4000)
    assert answer(daemon, "ovia-backup_storage", 5432) == "b'N'\n"
    ours = {"webserver": 3000, "code-server": 4000, "storage": 5432, "docker-filter": 2375, "door": 8443}
    for name, port in ours.items():
        assert not answer(inside, name, port), name
        # A router may answer for addresses that do not exist.
        nowhere = answer(inside, "10.250.250.250", port)
        shape = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
        for address in docker("inspect", "-f", shape, swarm.container(f"ovia-backup_{name}")).split():
            assert answer(inside, address, port) == nowhere, f"{name} at {address}"


def test_the_filter_refuses_other_requests(swarm: Swarm) -> None:
    ask = (
        "import http.client, sys; c = http.client.HTTPConnection('docker-filter', 2375, timeout=10); "
        "c.request(sys.argv[1], sys.argv[2], body=b'{}', headers={'Content-Type': 'application/json'}); "
        "print(c.getresponse().status)"
    )
    daemon = swarm.container("ovia-backup_daemon")

    def asked(method: str, path: str) -> int:
        return int(docker("exec", daemon, "/opt/ovia-backup/bin/python", "-c", ask, method, path))

    identifier = docker("inspect", "-f", "{{.Id}}", daemon)
    assert asked("GET", "/_ping") == 200
    assert asked("GET", f"/v1.41/containers/{identifier}/json") == 200
    assert asked("GET", f"/v1.41/images/{IMAGE}/json") == 200
    assert asked("GET", "/v1.41/services/ovia_ovia-api") == 200
    for method, path in (
        ("GET", "/v1.41/containers/json"),
        ("GET", "/v1.41/info"),
        ("GET", "/v1.41/secrets"),
        ("GET", "/v1.41/nodes"),
        ("GET", "/v1.41/volumes"),
        ("GET", f"/v1.41/containers/{identifier}/archive?path=/run/secrets"),
        ("GET", f"/v1.41/containers/{identifier}/logs?stdout=1"),
        ("POST", f"/v1.41/containers/{identifier}/exec"),
        ("POST", f"/v1.41/containers/{identifier}/kill"),
        ("POST", f"/v1.41/containers/{identifier}/../{identifier}/exec"),
        ("POST", f"/v1.41/containers/%2e%2e/containers/{identifier}/exec"),
        ("POST", "/v1.41/build"),
        ("POST", "/v1.41/images/create?fromImage=debian"),
        ("POST", "/v1.41/swarm/leave?force=1"),
        ("DELETE", f"/v1.41/containers/{identifier}?force=1"),
        ("PUT", f"/v1.41/containers/{identifier}/archive?path=/"),
    ):
        assert asked(method, path) == 403, f"{method} {path}"


def test_an_alert_says_that_the_backup_is_old(swarm: Swarm) -> None:
    def told() -> list[dict[str, str]]:
        return [told for told in swarm.told() if "the newest backup is too old" in told["title"]]

    until(told, SENSOR_SECONDS, lambda: str(swarm.told()))
    assert "30" in told()[0]["message"] or "1 d 6 h" in told()[0]["message"]
    assert "Next: " in told()[0]["message"]
    console = swarm.container("ovia-backup_console")
    back = "cd /backups; rm daily/*; mv aside/ovia_daily* daily/; mv aside/* weekly/ 2> /dev/null; rmdir aside"
    docker("exec", console, "sh", "-c", back)
    assert swarm.console("status").startswith("BACKUP OK")


def test_a_lockout_ends(swarm: Swarm) -> None:
    until(lambda: _knock(swarm, UI_PASSWORD) == 200, 90, "the right password is locked out")


# ------------------------------------------------------------------------------------------------------ secrets


def test_no_secret_shows_anywhere(swarm: Swarm) -> None:
    files = docker(
        "exec", swarm.container("ovia-backup_code-server"), "sh", "-c", "cd /run/secrets; head -c 200 *password"
    )
    passwords = [line for line in files.splitlines() if line and not line.startswith("==>")]
    assert len(passwords) == 2
    secrets = [*passwords, CHANNEL_PASSWORD, UI_PASSWORD]
    secrets += [base64.b64encode(secret.encode()).decode() for secret in secrets]
    swarm.finished(swarm.launch("doctor_job"))
    seen = swarm.succeeded_in_sight(swarm.launch("daily_backup_job"), "daily_dump")
    for place, text in seen.items():
        for secret in secrets:
            # Ovia's own stack sets its password by value, as it always did.
            assert secret not in text, f"a secret in {place}"
    assert OVIA_PASSWORD in json.dumps(docker("service", "inspect", "ovia_postgres")), "the search finds nothing at all"


# ------------------------------------------------------------------------------------------------- a bad week


@contextmanager
def dumps_wait(swarm: Swarm) -> Iterator[None]:
    """Make a dump that begins in the block wait for a lock."""
    container = swarm.container("ovia_postgres")
    statement = "BEGIN; LOCK TABLE people; SELECT pg_sleep(600)"
    holder = subprocess.Popen(
        ("docker", "exec", container, "psql", "-U", "ovia", "-d", "ovia", "-c", statement),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'people'::regclass"
    until(lambda: swarm.psql(held) == "1", 30, "no lock", pause=0.2)
    try:
        yield
    finally:
        ends = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()"
        )
        subprocess.run(
            ("docker", "exec", container, "psql", "-U", "ovia", "-d", "ovia", "-c", ends),
            capture_output=True,
            check=False,
        )
        holder.wait(30)


def waiting_dump(swarm: Swarm) -> tuple[str, str]:
    """Launch a run whose dump waits until :func:`dumps_wait` ends; return it and its container."""
    run_id = swarm.launch("daily_backup_job")
    container = swarm.in_step(run_id, "daily_dump")
    # The step may have begun before pg_dump does.
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'"
    until(lambda: swarm.psql(waits) == "1", 60, lambda: swarm.account(run_id), pause=0.3)
    return run_id, container


@pytest.mark.exhaustive
def test_the_daemon_is_killed_while_a_run_is_under_way(swarm: Swarm) -> None:
    swarm.settled("daemon")
    with dumps_wait(swarm):
        run_id, _ = waiting_dump(swarm)
        docker("kill", swarm.container("ovia-backup_daemon"))
    swarm.succeeded(run_id)
    swarm.well("daemon")
    swarm.succeeded(swarm.launch("daily_backup_job"))


@pytest.mark.exhaustive
def test_postgres_is_stopped_during_a_dump(swarm: Swarm) -> None:
    """The server is back within a minute, and the run tries the dump again by itself."""
    with dumps_wait(swarm):
        run_id, _ = waiting_dump(swarm)
        docker("service", "scale", "ovia_postgres=0")
    docker("service", "scale", "ovia_postgres=1")
    run = swarm.succeeded(run_id, 300)
    kinds = [event["__typename"] for event in run["eventConnection"]["events"]]
    assert "ExecutionStepUpForRetryEvent" in kinds, kinds
    assert swarm.backups()[0]["state"] == "proven"


def test_a_run_whose_container_is_killed_is_marked_failed(swarm: Swarm) -> None:
    with dumps_wait(swarm):
        run_id, container = waiting_dump(swarm)
        docker("kill", container)
        began = time.monotonic()
        assert swarm.finished(run_id)["status"] == "FAILURE"
        assert time.monotonic() - began < 120
    assert ".tmp" in swarm.daily(), "the killed run left no temporary file"


@pytest.mark.exhaustive
def test_the_engine_restarts_while_a_run_is_under_way(swarm: Swarm, engine: Engine) -> None:
    swarm.settled()
    with dumps_wait(swarm):
        run_id, _ = waiting_dump(swarm)
        engine.restart()
    swarm.well(seconds=300)
    assert swarm.finished(run_id)["status"] == "FAILURE"
    until(lambda: swarm.health("ovia_postgres") == "healthy", 120, lambda: swarm.story("ovia_postgres"))


def test_failed_runs_alert_and_the_next_run_cleans_up(swarm: Swarm) -> None:
    failed = [run["runId"] for run in swarm.runs(statuses=["FAILURE"]) if run["jobName"] == "daily_backup_job"]
    assert failed
    until(
        lambda: any(run_id in told["message"] for told in swarm.told() for run_id in failed),
        SENSOR_SECONDS,
        lambda: str(swarm.told()),
    )
    swarm.succeeded(swarm.launch("daily_backup_job"))
    assert ".tmp" not in swarm.daily()
