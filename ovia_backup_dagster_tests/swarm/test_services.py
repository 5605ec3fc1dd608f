"""``ovia_backup_dagster.swarm`` on a real swarm, through the filter on Docker's socket, without a stack."""

from __future__ import annotations

import copy
import gc
import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovia_backup_dagster.core.errors import (
    MigrationFailedError,
    ServiceManagerRefusedError,
    ServiceManagerUnreachableError,
    ServiceMissingError,
    ServiceStuckError,
    ServiceUnsuitableError,
)
from ovia_backup_dagster.swarm import docker_api, docker_services
from ovia_backup_dagster.swarm.docker_api import SwarmApi, redacted
from ovia_backup_dagster.swarm.docker_services import Swarm
from ovia_backup_dagster_tests.conftest import REPOSITORY
from ovia_backup_dagster_tests.swarm import engine as engines
from ovia_backup_dagster_tests.swarm.engine import Engine, docker, until

BUSYBOX = "ovia-busybox:1"
WORKS = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


@pytest.fixture(scope="module", autouse=True)
def house(engine: Engine) -> Iterator[None]:
    """Build the image before these tests, and remove all of their services after them."""
    engines.build_busybox(BUSYBOX)
    yield
    if engine.building is not None:
        wait([engine.building])  # else the cleanup below would wait for the build's containers, and prune them
    for name in docker("service", "ls", "--format", "{{.Name}}").split():
        docker("service", "rm", name)
    until(lambda: not docker("ps", "-q"), 60, lambda: docker("ps"), pause=0.2)
    docker("container", "prune", "--force")
    docker("image", "rm", BUSYBOX)


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    """The port of the filter, with its deployed configuration."""
    configuration = REPOSITORY / "deploy/haproxy/docker.cfg"
    filtering = subprocess.Popen(("haproxy", "-db", "-f", configuration), stdout=subprocess.DEVNULL)
    try:
        until(lambda: ask(2375, "GET", "/_ping") == 200, 30, "the filter does not answer", pause=0.1)
        yield 2375
    finally:
        filtering.terminate()
        filtering.wait(10)


@pytest.fixture
def swarm(port: int) -> Swarm:
    return Swarm(f"tcp://127.0.0.1:{port}")


@pytest.fixture
def said() -> list[str]:
    return []


def ask(port: int, method: str, path: str) -> int:
    """The HTTP status of the answer; 0 without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body=b"{}", headers={"Content-Type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@contextmanager
def service(name: str, script: str, *options: str, image: str = BUSYBOX) -> Iterator[str]:
    """A service that runs a shell script."""
    begin = ("service", "create", "--detach", "--quiet", "--no-resolve-image", "--name", name, *options)
    docker(*begin, image, "/bin/sh", "-c", script)
    try:
        yield name
    finally:
        # Docker 20.10 crashes if a service is removed while Swarm removes one of its tasks. Tasks that ended by
        # themselves stay.
        docker("service", "scale", "--detach", f"{name}=0", check=False)
        with suppress(AssertionError):
            until(lambda: not docker("service", "ps", "-q", name), 1.5, "tasks are left", pause=0.1)
        docker("service", "rm", name)


def once(
    name: str, script: str, *options: str, condition: str = "none", image: str = BUSYBOX
) -> AbstractContextManager[str]:
    """A service like a migration: at 0 replicas until it is run."""
    restart = ("--restart-condition", condition, "--restart-delay", "100ms")
    return service(name, script, "--replicas", "0", *restart, *options, image=image)


def inspect(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("service", "inspect", name))[0]
    return found


def containers(name: str, *options: str) -> set[str]:
    mine = f"label=com.docker.swarm.service.name={name}"
    return set(docker("ps", "-q", "--no-trunc", "-f", mine, *options).split())


def tasks(name: str) -> set[str]:
    return set(docker("service", "ps", "-q", "--no-trunc", name).split())


def spec_but(name: str, **changed: int) -> dict[str, Any]:
    """The service's specification after these changes and no others."""
    spec: dict[str, Any] = copy.deepcopy(inspect(name)["Spec"])
    if "replicas" in changed:
        spec["Mode"]["Replicated"]["Replicas"] = changed["replicas"]
    if "forced" in changed:
        spec["TaskTemplate"]["ForceUpdate"] = changed["forced"]
    return spec


# ------------------------------------------------------------------------------------------------- the filter


def test_the_filter_passes_only_what_a_restore_needs(port: int) -> None:
    with service("one", WORKS):
        identifier = inspect("one")["ID"]
        until(lambda: containers("one"), 30, lambda: docker("service", "ps", "one"), pause=0.2)
        task = docker("service", "ps", "-q", "--no-trunc", "one")
        for method, path in (
            ("GET", "/version"),
            ("GET", "/v1.41/services"),
            ("GET", "/v1.41/services/one"),
            ("GET", f"/v1.41/services/{identifier}?insertDefaults=false"),
            ("GET", "/v1.41/services/one/logs?stdout=1&tail=1"),
            ("GET", "/v1.41/tasks"),
            ("GET", "/v1.41/tasks?filters=%7B%22service%22%3A%5B%22one%22%5D%7D"),
        ):
            assert ask(port, method, path) == 200, f"{method} {path}"
        assert ask(port, "POST", f"/v1.41/services/{identifier}/update?version=0") in {400, 500}, "Docker's own answer"
        for method, path in (
            ("POST", "/v1.41/services/create"),
            ("POST", "/v1.41/services"),
            ("POST", "/v1.41/services/one/update?version=1"),
            ("POST", f"/v1.41/services/{identifier}"),
            ("POST", f"/v1.41/services/{identifier}/update/../../create"),
            ("POST", f"/v1.41/services/%2e%2e/services/{identifier}/update"),
            ("PUT", f"/v1.41/services/{identifier}/update"),
            ("DELETE", f"/v1.41/services/{identifier}"),
            ("GET", f"/v1.41/services/{identifier}/update"),
            ("GET", f"/v1.41/tasks/{task}"),
            ("GET", f"/v1.41/tasks/{task}/logs?stdout=1"),
            ("POST", "/v1.41/tasks"),
            ("GET", "/v1.41/nodes"),
            ("POST", "/v1.41/nodes/self/update"),
            ("GET", "/v1.41/swarm"),
            ("GET", "/v1.41/swarm/unlockkey"),
            ("POST", "/v1.41/swarm/update"),
            ("GET", "/v1.41/secrets"),
            ("POST", "/v1.41/secrets/create"),
            ("GET", "/v1.41/configs"),
            ("GET", "/v1.41/events"),
            ("GET", "/v1.41/containers/json"),
            ("POST", "/v1.41/networks/create"),
        ):
            assert ask(port, method, path) == 403, f"{method} {path}"


def test_a_refusal_says_where_to_look(swarm: Swarm) -> None:
    with pytest.raises(ServiceManagerRefusedError, match=r"service a b.*deploy/haproxy/docker\.cfg"):
        swarm.replicas("a b")


# ------------------------------------------------------------------------------------------------ unsuitable services


def test_a_missing_service_is_an_error_with_a_suggestion(swarm: Swarm) -> None:
    with service("ovia_ovia-api", WORKS, "--replicas", "0"):
        calls: tuple[Callable[[], object], ...] = (
            lambda: swarm.replicas("ovia_ovia-apl"),
            lambda: swarm.scale("ovia_ovia-apl", 0),
            lambda: swarm.wait_until_stopped(["ovia_ovia-api", "ovia_ovia-apl"], 5, print),
            lambda: swarm.wait_until_running("ovia_ovia-apl", 1, 5, print),
            lambda: swarm.runs("ovia_ovia-apl", 10),
            lambda: swarm.run_once("ovia_ovia-apl", 5, print),
            lambda: swarm.end("ovia_ovia-apl", 5, print),
        )
        for call in calls:
            with pytest.raises(ServiceMissingError, match=r"no service ovia_ovia-apl: did you mean ovia_ovia-api\?"):
                call()


@pytest.mark.parametrize("mode", ["global", "replicated-job"])
def test_a_service_of_another_mode_is_left_alone(swarm: Swarm, mode: str) -> None:
    with service("other", WORKS, "--mode", mode):
        before = inspect("other")["Spec"]
        for call in (
            lambda: swarm.replicas("other"),
            lambda: swarm.scale("other", 0),
            lambda: swarm.runs("other", 10),
            lambda: swarm.run_once("other", 5, print),
            lambda: swarm.end("other", 5, print),
        ):
            with pytest.raises(ServiceUnsuitableError, match="service other cannot be scaled: its mode is"):
                call()
        assert inspect("other")["Spec"] == before


# ------------------------------------------------------------------------------------------ scaled, and nothing else


@pytest.fixture(scope="module")
def belongings(engine: Engine) -> Iterator[tuple[str, ...]]:
    """Options for everything that a service can have on one node."""
    docker("network", "create", "--driver", "overlay", "--attachable", "rich")
    docker("secret", "create", "password", "-", stdin="s3cret")
    docker("config", "create", "settings", "-", stdin="a = 1")
    options = """
        --label of=service --container-label of=container --env A=1 --env B= --hostname rich --user 0:0 --group 0
        --workdir /tmp --init --read-only --tty --stop-signal SIGINT --stop-grace-period 3s --host there:10.9.8.7
        --dns 10.9.8.1 --dns-option timeout:3 --dns-search example --ulimit nofile=512:1024 --cap-drop ALL
        --cap-add CHOWN --sysctl net.ipv4.ip_unprivileged_port_start=0
        --limit-cpu 0.5 --limit-memory 64M --limit-pids 50 --reserve-memory 4M
        --network name=rich,alias=other --endpoint-mode dnsrr --publish mode=host,target=80,published=8099
        --secret source=password,target=/run/secrets/p,uid=1,gid=2,mode=0400
        --config source=settings,target=/etc/settings,mode=0440
        --mount type=tmpfs,destination=/t,tmpfs-size=1m,tmpfs-mode=0700 --mount type=volume,source=rich,destination=/v
        --health-cmd true --health-interval 1s --health-retries 2 --health-start-period 2s --health-timeout 3s
        --log-driver json-file --log-opt max-size=1m --placement-pref spread=node.labels.zone
        --constraint node.role==manager
        --replicas-max-per-node 3 --restart-delay 100ms --restart-max-attempts 2 --restart-window 9s
        --update-delay 1s --update-failure-action continue --update-max-failure-ratio 0.5 --update-monitor 2s
        --update-order stop-first --update-parallelism 2 --rollback-delay 2s --rollback-failure-action continue
        --rollback-max-failure-ratio 0.25 --rollback-monitor 3s --rollback-order stop-first --rollback-parallelism 3
    """
    yield tuple(options.split())
    until(lambda: not containers("rich", "-a"), 30, lambda: docker("ps", "-a"), pause=0.2)
    docker("network", "rm", "rich")
    docker("secret", "rm", "password")
    docker("config", "rm", "settings")


def test_scaling_keeps_the_whole_specification(swarm: Swarm, belongings: tuple[str, ...], said: list[str]) -> None:
    with service("rich", "sleep 1", *belongings, "--replicas", "0", "--restart-condition", "on-failure"):
        assert swarm.replicas("rich") == 0
        expected = spec_but("rich", replicas=1, forced=1)
        swarm.run_once("rich", 30, said.append)
        assert inspect("rich")["Spec"] == expected
        expected = spec_but("rich", replicas=0)
        swarm.scale("rich", 0)
        assert inspect("rich")["Spec"] == expected
        assert swarm.replicas("rich") == 0
    assert said == ["rich is complete"]


def test_scaling_keeps_running_tasks(swarm: Swarm) -> None:
    """Scaling to the current number changes nothing; scaling up keeps the running tasks."""
    with service("app", WORKS, "--replicas", "1"):
        swarm.wait_until_running("app", 1, 30, print)
        before, first = inspect("app")["Version"], containers("app")
        swarm.scale("app", 1)
        assert inspect("app")["Version"] == before
        swarm.scale("app", 2)
        swarm.wait_until_running("app", 2, 30, print)
        assert first < containers("app")
        assert len(containers("app")) == 2


def test_an_update_by_another_client_is_kept(swarm: Swarm) -> None:
    """The update comes between our read and our own update."""
    with service("app", WORKS, "--replicas", "0"):
        looks = []

        def edit(spec: dict[str, Any]) -> bool:
            looks.append(spec["Labels"])
            if len(looks) == 1:
                docker("service", "update", "--detach", "--quiet", "--label-add", "theirs=1", "app")
            spec["Mode"]["Replicated"]["Replicas"] = 3
            return True

        swarm.api.update("app", edit, time.monotonic() + 10)
        assert looks == [{}, {"theirs": "1"}]
        assert inspect("app")["Spec"]["Labels"] == {"theirs": "1"}
        assert swarm.replicas("app") == 3


def test_concurrent_updates_are_all_kept(port: int) -> None:
    def label(number: int) -> None:
        def edit(spec: dict[str, Any]) -> bool:
            spec["Labels"][str(number)] = ""
            return True

        Swarm(f"tcp://127.0.0.1:{port}").api.update("app", edit, time.monotonic() + 20)

    with service("app", WORKS, "--replicas", "0"):
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(label, range(6)))
        assert set(inspect("app")["Spec"]["Labels"]) == set("012345")


# ------------------------------------------------------------------------------------------------ stopping, starting


def test_a_task_that_ignores_sigterm_is_waited_for(swarm: Swarm, said: list[str]) -> None:
    with (
        service("deaf", "trap '' TERM; while :; do sleep 0.1; done", "--stop-grace-period", "6s"),
        service("good", WORKS, "--replicas", "2"),
    ):
        swarm.wait_until_running("deaf", 1, 30, print)
        swarm.wait_until_running("good", 2, 30, print)
        node = docker("node", "inspect", "self", "--format", "{{.ID}}")
        swarm.scale("deaf", 0)
        swarm.scale("good", 0)
        with pytest.raises(
            ServiceStuckError, match=rf"task deaf\.1 on node {node} did not stop within 2 s.*running"
        ) as stuck:
            swarm.wait_until_stopped(["good", "deaf"], 2, said.append)
        assert f"if the node is off for good: docker node rm --force {node}, then try again" in stuck.value.fix
        assert containers("deaf")
        swarm.wait_until_stopped(["good", "deaf"], 30, said.append)
        assert not containers("deaf") | containers("good")
    assert "waiting for 3 tasks to stop: deaf.1, good.1, good.2" in said


def test_a_task_that_never_started_counts_as_stopped(swarm: Swarm) -> None:
    with service("nowhere", WORKS, "--constraint", "node.labels.nowhere==true"):
        with pytest.raises(ServiceStuckError, match=r"of 1 tasks of nowhere 0 ran after 2 s.*no suitable node"):
            swarm.wait_until_running("nowhere", 1, 2, print)
        swarm.scale("nowhere", 0)
        swarm.wait_until_stopped(["nowhere"], 10, print)


def test_the_error_says_why_tasks_do_not_run(swarm: Swarm, said: list[str]) -> None:
    quick = ("--restart-delay", "100ms", "--replicas", "2")
    sick = ("--health-cmd", "false", "--health-interval", "500ms", "--health-retries", "1")
    with (
        service("no-image", WORKS, *quick, image="ovia-no-such-image:1"),
        service("ends", "exit 3", *quick),
        service("sick", WORKS, *quick, *sick),
    ):
        for name, why in {"no-image": "No such image: ovia-no-such-image:1", "ends": r"exit \(3\)"}.items():
            with pytest.raises(ServiceStuckError, match=rf"of 2 tasks of {name} .* ran after 3 s: .*{why}"):
                swarm.wait_until_running(name, 2, 3, said.append)
        with pytest.raises(
            ServiceStuckError, match=r"of 2 tasks of sick 0 ran after 3 s: a task is (complete|starting)"
        ):
            swarm.wait_until_running("sick", 2, 3, said.append)
    assert [line for line in said if line.startswith("no-image: a task is rejected: ")]


def test_tasks_of_an_earlier_specification_do_not_count(swarm: Swarm) -> None:
    with service("app", WORKS, "--update-order", "start-first"):
        swarm.wait_until_running("app", 1, 30, print)
        docker("service", "update", "--detach", "--quiet", "--env-add", "NEW=1", "--health-cmd", "false", "app")
        assert containers("app"), "the earlier one runs on"
        with pytest.raises(ServiceStuckError):
            swarm.wait_until_running("app", 1, 2, print)


# -------------------------------------------------------------------------------------------------------- migrations


def test_a_migration_runs_each_time_it_is_asked_for(swarm: Swarm, said: list[str]) -> None:
    with once("migrate", "echo migrated; sleep 0.3"):
        for times in (1, 2, 3):
            swarm.run_once("migrate", 30, said.append)
            assert docker("service", "logs", "--raw", "migrate").split() == ["migrated"] * times
        assert swarm.replicas("migrate") == 1
        # No task is left to wait for.
        swarm.wait_until_stopped(["migrate"], 2, print)
    assert said == ["migrate is complete"] * 3


def test_a_failed_migration_is_reported_with_its_output(swarm: Swarm) -> None:
    noise = "for n in $(seq 20); do echo line $n; done; sleep 0.3; printf 'no \\033[31mpeople\\033[0m\\n' >&2; exit 1"
    with once("migrate", noise):
        with pytest.raises(MigrationFailedError) as raised:
            swarm.run_once("migrate", 30, print)
        text = str(raised.value)
        assert "service migrate failed: a task is failed: task: non-zero exit (1)" in text
        assert "line 20" in text
        assert "people" in text
        assert "line 5 " not in text
        assert "\033" not in text
        # The first run's output is not shown again.
        docker("service", "update", "--detach", "--quiet", "--args", "sh -c 'echo second; exit 2'", "migrate")
        with pytest.raises(MigrationFailedError, match=r"exit \(2\).*second") as raised:
            swarm.run_once("migrate", 30, print)
        assert "line 20" not in str(raised.value)


def test_a_migration_with_a_missing_image_fails(swarm: Swarm) -> None:
    with once("migrate", "true", image="ovia-no-such-image:1"):  # noqa: SIM117
        with pytest.raises(MigrationFailedError, match=r"a task is rejected: .*No such image: ovia-no-such-image:1"):
            swarm.run_once("migrate", 60, print)


def test_a_failed_migration_is_retried_by_its_policy(swarm: Swarm, said: list[str]) -> None:
    """As often as its restart policy allows, at most three times."""
    twice = "test -e /v/2 && exit 0; test -e /v/1 && touch /v/2; touch /v/1; exit 1"
    kept = ("--mount", "type=volume,source=attempts,destination=/v")
    with once("migrate", twice, *kept, condition="on-failure"):
        swarm.run_once("migrate", 30, said.append)
    assert [line for line in said if line.endswith("exit (1); Swarm tries again")]
    assert said[-1] == "migrate is complete"
    for options, tasks in {(): 3, ("--restart-max-attempts", "1"): 2}.items():
        with once("migrate", "exit 1", *options, condition="on-failure"):
            with pytest.raises(MigrationFailedError, match=r"exit \(1\)"):
                swarm.run_once("migrate", 30, said.append)
            failed = docker("service", "ps", "-q", "-f", "desired-state=shutdown", "migrate").split()
            assert tasks <= len(failed) <= tasks + 1


def test_an_abandoned_migration_is_ended(swarm: Swarm, said: list[str]) -> None:
    """It is ended at once after a timeout, and before the next attempt after a failure. The error has its output."""
    with once("migrate", f"echo waiting for a lock; {WORKS}", condition="on-failure"):
        with pytest.raises(MigrationFailedError, match=r"not complete in 3 s: a task is running \(waiting for a lock"):
            swarm.run_once("migrate", 3, said.append)
        assert not containers("migrate")
        assert swarm.replicas("migrate") == 0
    assert [line for line in said if line.startswith("ending migrate: a task is running")]
    # The fourth attempt, which Swarm may start before this client looks again, prints nothing.
    thrice = f"n=$(ls /v | wc -l); touch /v/$n; [ $n -gt 2 ] || {{ echo no people; exit 1; }}; {WORKS}"
    kept = ("--mount", "type=volume,source=abandoned,destination=/v")
    with once("migrate", thrice, *kept, condition="on-failure"):
        with pytest.raises(MigrationFailedError, match=r"exit \(1\).*no people"):
            swarm.run_once("migrate", 30, print)
        assert swarm.replicas("migrate") == 0
        begun = tasks("migrate")
        time.sleep(2)
        assert tasks("migrate") <= begun, "Swarm tried it once more"


def test_the_error_names_a_migration_that_may_still_run(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_services, "_END_SECONDS", 1.0)
    with once("migrate", "trap '' TERM; while :; do sleep 0.1; done", "--stop-grace-period", "5s"):
        with pytest.raises(
            MigrationFailedError, match=r"not complete in 2 s: .*may still run: task migrate\.1.*node rm"
        ):
            swarm.run_once("migrate", 2, print)
        assert swarm.end("migrate", 30, print), "what is shutting down is not ended"
        assert not containers("migrate")


def test_end_stops_running_and_pending_tasks(swarm: Swarm) -> None:
    with once("migrate", WORKS):
        before = inspect("migrate")["Version"]
        assert not swarm.end("migrate", 5, print), "it never ran"
        assert inspect("migrate")["Version"] == before
        docker("service", "scale", "--detach", "migrate=1")
        until(lambda: containers("migrate"), 30, "no migration", pause=0.1)
        assert swarm.end("migrate", 30, print)
        assert not containers("migrate")
        before = inspect("migrate")["Version"]
        assert not swarm.end("migrate", 5, print), "there is nothing left"
        assert inspect("migrate")["Version"] == before
    # A task that waits for its restart delay, or for a suitable node.
    for state, options in {
        "Ready": ("--restart-delay", "1h"),
        "Pending": ("--constraint", "node.labels.nowhere==true"),
    }.items():
        with once("migrate", "exit 1", *options, condition="on-failure"):
            docker("service", "scale", "--detach", "migrate=1")
            seen = ("service", "ps", "--format", "{{.CurrentState}}", "migrate")
            until(lambda: state in docker(*seen), 30, lambda: docker(*seen), pause=0.1)  # noqa: B023
            assert swarm.end("migrate", 30, print)
            assert swarm.replicas("migrate") == 0
    # A task that ended by itself is kept, with its log.
    for script in ("exit 0", "exit 1"):
        with once("migrate", script):
            with suppress(MigrationFailedError):
                swarm.run_once("migrate", 30, print)
            before = inspect("migrate")["Version"]
            assert not swarm.end("migrate", 5, print)
            assert inspect("migrate")["Version"] == before
            assert swarm.replicas("migrate") == len(tasks("migrate")) == 1


def test_end_stops_a_run_that_has_no_task_yet(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service has a replica, but Swarm has not created its task yet."""
    with once("migrate", WORKS):
        docker("service", "scale", "--detach", "migrate=1")
        monkeypatch.setattr(SwarmApi, "tasks", lambda *_: [])
        assert swarm.end("migrate", 5, print)
        assert swarm.replicas("migrate") == 0


def begin(swarm: Swarm, name: str) -> None:
    """Begin a run as a process that is killed before it sees the result."""

    def die(*_: object) -> NoReturn:
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker_services, "_later", die)
        with pytest.raises(SystemExit):
            swarm.run_once(name, 30, print)


def test_a_run_that_was_begun_is_not_begun_again(swarm: Swarm, said: list[str]) -> None:
    with once("migrate", "echo began; sleep 2; echo ended"):
        swarm.run_once("migrate", 30, print)
        since = json.loads(json.dumps(swarm.runs("migrate", 10)))
        begin(swarm, "migrate")
        for _ in ("while it runs", "after it"):
            swarm.run_once("migrate", 30, said.append, since)
            assert sorted(docker("service", "logs", "--raw", "migrate").split()) == ["began"] * 2 + ["ended"] * 2
        assert said == ["waiting for the run of migrate that was begun before", "migrate is complete"] * 2
        # With a new mark, the next run is begun.
        swarm.run_once("migrate", 30, print, swarm.runs("migrate", 10))
        assert docker("service", "logs", "--raw", "migrate").split().count("ended") == 3


def test_a_failed_run_that_was_begun_before_is_reported(swarm: Swarm) -> None:
    with once("migrate", "echo no people; exit 1"):
        since = swarm.runs("migrate", 10)
        begin(swarm, "migrate")
        for _ in range(2):
            with pytest.raises(MigrationFailedError, match=r"exit \(1\).*no people"):
                swarm.run_once("migrate", 30, print, since)
        assert len(tasks("migrate")) == 1


def test_a_run_that_was_ended_is_run_again(swarm: Swarm, said: list[str]) -> None:
    with once(
        "migrate", "test -e /v/1 || { touch /v/1; sleep 60; }", "--mount", "type=volume,source=begun,destination=/v"
    ):
        since = swarm.runs("migrate", 10)
        begin(swarm, "migrate")
        until(lambda: containers("migrate"), 30, "no migration", pause=0.1)
        assert swarm.end("migrate", 30, print)
        swarm.run_once("migrate", 30, said.append, since)
    assert said == ["migrate is complete"]


def test_a_rolled_back_update_is_not_taken_for_the_next(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollback resets the counter, so its value is used again. (Swarm takes an early completion for a failure.)"""
    back = ("--update-failure-action", "rollback", "--update-monitor", "5s", "--rollback-monitor", "100ms")
    second_fails = "test -e /v/2 && exit 0; test -e /v/1 && touch /v/2 && exit 1; touch /v/1"
    kept = ("--mount", "type=volume,source=rolled,destination=/v")
    with once("migrate", second_fails, *back, *kept):
        swarm.run_once("migrate", 30, print)
        monkeypatch.setattr(Swarm, "end", lambda *_: False)  # else it could end the rolled-back task
        with pytest.raises(MigrationFailedError):
            swarm.run_once("migrate", 30, print)
        forced = "{{.Spec.TaskTemplate.ForceUpdate}} {{.UpdateStatus.State}}"
        until(
            lambda: docker("service", "inspect", "--format", forced, "migrate") == "1 rollback_completed",
            20,
            lambda: docker("service", "inspect", "migrate"),
            pause=0.2,
        )
        swarm.run_once("migrate", 30, print)


def test_a_service_that_never_ends_is_refused(swarm: Swarm) -> None:
    for options, why in {
        ("--restart-condition", "any"): "restart condition is `any`",
        ("--replicas", "2"): "2 replicas",
    }.items():
        with service("app", WORKS, *options):
            before = inspect("app")["Version"]
            with pytest.raises(ServiceUnsuitableError, match=why):
                swarm.run_once("app", 5, print)
            with pytest.raises(ServiceUnsuitableError, match=why):
                swarm.runs("app", 10)
            assert inspect("app")["Version"] == before


# ------------------------------------------------------------------------------------------------ redaction


def test_a_migrations_printed_password_is_redacted(swarm: Swarm) -> None:
    url = "postgresql://ovia:s3cr3t/@db:5432/ovia"
    script = f"echo {'x' * 180} $DATABASE_URL; env | grep PASSWORD; echo cannot connect to $DATABASE_URL; exit 1"
    variables = ("--env", f"DATABASE_URL={url}", "--env", "POSTGRES_PASSWORD=s3cr3t")
    with once("migrate", script, *variables), pytest.raises(MigrationFailedError) as raised:
        swarm.run_once("migrate", 30, print)
    assert "POSTGRES_PASSWORD=... / cannot connect to postgresql://ovia:...@db:5432/ovia" in str(raised.value)
    assert "s3c" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("cannot reach postgres://u:s3c@h:5432/d?a=b", "cannot reach postgres://u:...@h:5432/d?a=b"),
        ("redis://:s3c@h and amqps://u:s3c@h", "redis://:...@h and amqps://u:...@h"),
        ("'postgresql+psycopg://u@server:s3c@h/d'", "'postgresql+psycopg://u@server:...@h/d'"),
        ("postgres://h:5432/d?user=u&password=s3@c&sslmode=require", "postgres://h:5432/d?user=u&password=..."),
        ("postgres://u:s3c@h/d?password=s3@c", "postgres://u:...@h/d?password=..."),
        ("host=h password=s3c dbname=d", "host=h password=... dbname=d"),
        (r"host=h password='s3 \'s3''c' dbname=d", "host=h password=... dbname=d"),
        ("PGPASSWORD=s3c psql", "PGPASSWORD=... psql"),
        ("DB_PASS=s3c Pwd = s3c; passwd: s3c", "DB_PASS=... Pwd = ... passwd: ..."),
        (r'{"password": "s3\"s3 c", "host": "h"}', '{"password": ..., "host": "h"}'),
        ('{"password":"","host":"h"}', '{"password":...,"host":"h"}'),
        (r'{"message": "password=\"s3 c\" is wrong"}', '{"message": "password=...'),
        ("password='s3 c and no end", "password=..."),
        ("STATEMENT: ALTER ROLE u PASSWORD 's3 c' LOGIN", "STATEMENT: ALTER ROLE u PASSWORD ... LOGIN"),
        ('password authentication failed for user "u"', 'password authentication failed for user "u"'),
        ("see https://example.org:8080/a or write to a@b", "see https://example.org:8080/a or write to a@b"),
    ],
)
def test_passwords_in_a_line_are_redacted(line: str, shown: str) -> None:
    assert redacted(line) == shown


SECRETS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)


@given(SECRETS)
@example("a/b@c:d?e#f")
def test_any_secret_in_a_url_is_redacted(secret: str) -> None:
    assert redacted(f"to postgres://u:{secret}@h/d now") == "to postgres://u:...@h/d now"


@given(SECRETS)
def test_any_secret_in_a_setting_is_redacted(secret: str) -> None:
    quoted = "'" + secret.replace("\\", r"\\").replace("'", r"\'") + " x'"
    assert redacted(f"host=h password={quoted} a=b") == "host=h password=... a=b"
    for name in ("PGPASSWORD=", "pwd: "):
        assert redacted(f"to {name}x{secret} now") == f"to {name}... now"


# ------------------------------------------------------------------------------------------------- Docker goes away


@pytest.mark.exhaustive
def test_a_restart_of_docker_is_waited_for(swarm: Swarm, engine: Engine) -> None:
    with service("app", WORKS), once("migrate", "sleep 3", condition="on-failure"):
        swarm.wait_until_running("app", 1, 30, print)
        engine.stop()
        back = threading.Timer(1, engine.start)
        back.start()
        try:
            swarm.scale("app", 2)
        finally:
            back.join()
        swarm.wait_until_running("app", 2, 60, print)

        def restart() -> None:
            until(lambda: containers("migrate"), 30, "no migration", pause=0.1)
            engine.restart()

        # Stopping the engine ends the task; Swarm tries again.
        again = threading.Thread(target=restart)
        again.start()
        try:
            swarm.run_once("migrate", 60, print)
        finally:
            again.join()


# The SDK leaves the socket of a failed connection open.
@pytest.mark.filterwarnings("ignore:.*unclosed <socket:ResourceWarning")
def test_without_docker_a_call_fails_in_time(swarm: Swarm, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_api, "PATIENCE_SECONDS", 1.0)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    at_socket = Swarm()
    with service("app", WORKS, "--replicas", "0"):
        assert at_socket.replicas("app") == 0
        engine.stop()
        try:
            for swarming, place in ((swarm, "tcp://127.0.0.1:2375"), (at_socket, "its socket")):
                began = time.monotonic()
                with pytest.raises(ServiceManagerUnreachableError, match=f"Docker does not answer at {place}"):
                    swarming.scale("app", 1)
                with pytest.raises(ServiceManagerUnreachableError):
                    swarming.wait_until_stopped(["app"], 1, print)
                assert time.monotonic() - began < 15
        finally:
            engine.start()
            gc.collect()
        assert Swarm().replicas("app") == 0
