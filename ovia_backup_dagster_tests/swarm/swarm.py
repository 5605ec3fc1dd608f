"""A swarm with a stack like Ovia's and ours beside it, used as an operator and Dagster's UI use it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from docker import APIClient

from ovia_backup_dagster_tests.swarm.engine import IMAGE, SOCKET, docker, processes, until

OVIA_PASSWORD = "ovia's own-Passw0rd"
UI_PASSWORD = "door-Passw0rd"
CHANNEL_PASSWORD = "channel-Passw0rd"
SERVICES = ("storage", "code-server", "daemon", "webserver", "door", "docker-filter", "doctor", "console")
TITLE = "Runbook: backups of Ovia's database"
#: The freshness sensor runs twice a minute here; the daemon may be busy, or may have restarted.
SENSOR_SECONDS = 180
#: How long printing a service's log may take.
_LOG_SECONDS = 15
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
_JOBS = "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } jobs { name } } } } }"
_PLAN = """query ($p: PipelineSelector!) { executionPlanOrError(pipeline: $p, mode: "default") { __typename } }"""
_LAUNCH = """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run {
    runId status jobName startTime endTime creationTime tags { key value }
    eventConnection { events { __typename ... on MessageEvent { message timestamp stepKey }
        ... on ExecutionStepFailureEvent { error { message } } } } } } }"""
_RUNS = """query($f: RunsFilter, $n: Int) { runsOrError(filter: $f, limit: $n) { ... on Runs { results {
    runId status jobName creationTime startTime endTime runConfigYaml tags { key value } } } } }"""


def _running_containers(service: str) -> list[str]:
    of_service = f"label=com.docker.swarm.service.name={service}"
    return docker("ps", "-q", "-f", of_service, "-f", "status=running").split()


def _running() -> set[str]:
    """Our services of which a task of the current specification runs, according to Swarm."""
    with contextlib.closing(APIClient(base_url=f"unix://{SOCKET}", version="1.41")) as api:
        services = api.services(filters={"name": "ovia-backup"})
        tasks = api.tasks(filters={"desired-state": "running"})
    run = [(task["ServiceID"], _made_of(task["Spec"])) for task in tasks if task["Status"]["State"] == "running"]
    return {it["Spec"]["Name"] for it in services if (it["ID"], _made_of(it["Spec"]["TaskTemplate"])) in run}


def _made_of(template: dict[str, Any]) -> tuple[object, ...]:
    return template["ContainerSpec"], template.get("ForceUpdate", 0)


@dataclass
class Runbook:
    """docs/runbook.md, and which of its commands were run.

    Attributes:
        done: the blocks that were run, by heading and number.
    """

    text: str
    done: set[tuple[str, int]] = field(default_factory=set)

    def blocks(self) -> dict[str, list[str]]:
        """The shell blocks under each heading."""
        found: dict[str, list[str]] = {}
        heading = ""
        for match in re.finditer(r"^#+ ([^\n]+)$|^( *)```sh\n(.*?)^ *```$", self.text, re.MULTILINE | re.DOTALL):
            if match[1]:
                heading = match[1]
            else:
                lines = [line.removeprefix(match[2]) for line in match[3].splitlines()]
                found.setdefault(heading, []).append("\n".join(lines))
        return found

    def config(self, heading: str) -> Any:
        """The launchpad's run config under a heading."""
        text = self.text.partition(f"# {heading}\n")[2]
        return yaml.safe_load(re.search(r"^ *```yaml\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)[1])  # type: ignore[index]

    def take(self, heading: str, number: int) -> str:
        self.done.add((heading, number))
        return self.blocks()[heading][number]


@dataclass
class Swarm:
    """Both stacks.

    Attributes:
        clone: the folder in which commands are run.
        variables: the shell variables that the runbook expects.
    """

    clone: Path
    runbook: Runbook
    variables: dict[str, str]

    # ------------------------------------------------------------------------------------------- as a person

    def sh(self, command: str, *, check: bool = True, timeout: float = 900) -> str:
        """Run a command in bash, and return its output."""
        done = subprocess.run(
            ("bash", "-euo", "pipefail", "-c", command),
            cwd=self.clone,
            env={**os.environ, **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"exit code {done.returncode}:\n{command}\n{done.stdout[-3000:]}")
        return done.stdout

    def follow(self, heading: str, number: int = 0, **options: Any) -> str:
        """Run a block of the runbook in a shell in which `ovia-backup` is defined."""
        known = self.runbook.blocks()[TITLE][0].splitlines()[0]
        return self.sh(f"{known}\n{self.runbook.take(heading, number)}", **options)

    def console(self, *arguments: str, check: bool = True) -> str:
        return docker("exec", self.container("ovia-backup_console"), "ovia-backup", *arguments, check=check)

    def backups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.console("list", "--json"))
        return found

    def daily(self) -> str:
        return docker("exec", self.container("ovia-backup_console"), "ls", "-A", "/backups/daily")

    def psql(self, statement: str, *, database: str = "ovia") -> str:
        container = self.container("ovia_postgres")
        return docker("exec", container, "psql", "-U", "ovia", "-d", database, "-XAtqc", statement)

    @property
    def settings(self) -> Path:
        return self.clone / "deploy/ovia-backup.env"

    def deploy(self, **variables: str) -> None:
        """Deploy our stack again, with these variables for this deployment only."""
        before = self.settings.read_text("utf-8")
        lines = "".join(f"{name}='{value}'\n" for name, value in variables.items())
        try:
            self.settings.write_text(before + lines, "utf-8")
            self.sh("deploy/deploy.sh")
        finally:
            self.settings.write_text(before, "utf-8")

    # ------------------------------------------------------------------------------------------ the state of services

    def container(self, service: str) -> str:
        found = _running_containers(service)
        assert found, f"{service} does not run: {self.story(service)}"
        return found[0]

    def image(self, service: str) -> str:
        """The image of the service's container; empty between the stop of one and the start of the next."""
        found = _running_containers(service)
        return docker("inspect", "-f", "{{.Config.Image}}", found[0], check=False) if found else ""

    def health(self, service: str) -> str:
        """``healthy``, ``unhealthy``, ``starting``; ``running`` where nothing checks; empty where nothing runs."""
        found = _running_containers(service)
        if not found:
            return ""
        shape = "{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}"
        return docker("inspect", "-f", shape, found[0], check=False)

    def well(self, *services: str, seconds: float = 240) -> None:
        """Wait until services are healthy, also according to Swarm, which learns it a moment after Docker."""
        names = {f"ovia-backup_{name}" for name in services or SERVICES}

        def unwell() -> set[str]:
            return {name for name in names if self.health(name) not in ("healthy", "running")} or names - _running()

        until(lambda: not unwell(), seconds, lambda: "\n".join(self.story(name) for name in unwell()))

    def settled(self, *services: str) -> None:
        """Wait until Swarm no longer watches an update of these services.

        Until then it takes the end of a container for a failed update, and rolls back.
        """
        names = [f"ovia-backup_{name}" for name in services or SERVICES]
        shape = "{{.Spec.Name}} {{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}"

        def watched() -> str:
            states = docker("service", "inspect", "-f", shape, *names).splitlines()
            return "; ".join(state for state in states if state.endswith(("updating", "rollback_started")))

        until(lambda: not watched(), 180, watched)

    def story(self, service: str) -> str:
        """The state of a service's tasks, and the end of its log."""
        tasks = docker("service", "ps", service, "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", check=False)
        return f"{service}: {self.health(service)}\n{tasks}\n{self.log(service)[-1500:]}"

    def log(self, service: str) -> str:
        """A service's log. While a task is replaced, Docker prints what there is, and may then wait without end."""
        command = ("docker", "service", "logs", "--raw", service)
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_LOG_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            return (error.stdout or b"").decode("utf-8", "replace")
        return done.stdout.decode("utf-8", "replace")

    def told(self) -> list[dict[str, str]]:
        """Every notification so far."""
        lines = self.log("ovia_receiver").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def succeeded_in_sight(self, run_id: str, step: str) -> dict[str, str]:
        """Every place where a secret could show, during a run and after it, with its text."""
        seen = {"run container": docker("inspect", self.in_step(run_id, step))}
        seen["processes"] = " ".join(word for _, words in processes() for word in words)
        seen["run"] = json.dumps(self.succeeded(run_id))
        for kind in ("container", "service", "network", "volume", "secret", "config", "node"):
            listed = ("ls", "-aq") if kind == "container" else ("ls", "-q")
            for name in docker(kind, *listed).split():
                if name in docker("network", "ls", "-q", "-f", "driver=null"):
                    continue
                seen[f"{kind} {name}"] = docker(kind, "inspect", name, check=False)
        seen["image"] = docker("image", "inspect", IMAGE) + docker("history", "--no-trunc", IMAGE)
        for service in docker("service", "ls", "--format", "{{.Name}}").split():
            if service != "ovia_receiver":  # it prints the notifications that it receives
                seen[f"log of {service}"] = self.log(service)
        seen["runs"] = json.dumps(self.runs())
        everything = "find /backups /var/lib/ovia-backup -type f ! -name '*.dump' -exec cat {} +"
        seen["files"] = docker("exec", self.container("ovia-backup_console"), "sh", "-c", everything)
        seen["storage"] = docker(
            "exec", self.container("ovia-backup_storage"), "pg_dump", "-U", "dagster", "-d", "dagster", "--inserts"
        )
        return seen

    def run_containers(self, *, everything: bool = True) -> list[str]:
        every = ("-a",) if everything else ()
        return docker("ps", *every, "-q", "--no-trunc", "-f", "label=dagster/run_id").split()

    # ---------------------------------------------------------------------------------------- as Dagster's UI

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            "https://localhost:8443/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json", "Authorization": self.credentials()},
        )
        context = ssl.create_default_context(cafile=self.variables["CERTIFICATE"])
        try:
            with urllib.request.urlopen(request, context=context, timeout=60) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            error.msg += f": {error.read(2000)!r}"
            raise
        assert "errors" not in found, found
        data: dict[str, Any] = found["data"]
        return data

    def locations(self) -> list[str]:
        """The code locations of which a run can be launched; none while the code server restarts."""
        found = []
        for node in self.graphql(_JOBS)["repositoriesOrError"]["nodes"]:
            name = node["location"]["name"]
            [job] = [job["name"] for job in node["jobs"] if job["name"].endswith("daily_backup_job")]
            selector = {
                "repositoryLocationName": name,
                "repositoryName": "__repository__",
                "pipelineName": job,
            }
            # The web server requests this from the code server each time.
            if self.graphql(_PLAN, p=selector)["executionPlanOrError"]["__typename"] == "ExecutionPlan":
                found.append(name)
        return found

    def credentials(self, password: str = UI_PASSWORD) -> str:
        return "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()

    def launch(self, job: str, config: dict[str, Any] | None = None, location: str = "ovia_backup_dagster") -> str:
        selector = {"repositoryLocationName": location, "repositoryName": "__repository__", "jobName": job}
        params = {"selector": selector, "runConfigData": config or {}}
        launched = self.graphql(_LAUNCH, p=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id: str = launched["run"]["runId"]
        return run_id

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.graphql(_RUN, id=run_id)["runOrError"]
        return found

    def runs(self, limit: int = 100, **filters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.graphql(_RUNS, f=filters, n=limit)["runsOrError"]["results"]
        return found

    def finished(self, run_id: str, seconds: float = 180) -> dict[str, Any]:
        until(lambda: self.run(run_id)["status"] in FINISHED, seconds, lambda: self.account(run_id))
        return self.run(run_id)

    def succeeded(self, run_id: str, seconds: float = 180) -> dict[str, Any]:
        run = self.finished(run_id, seconds)
        assert run["status"] == "SUCCESS", self.account(run_id)
        return run

    def account(self, run_id: str) -> str:
        run = self.run(run_id)
        events = run["eventConnection"]["events"]
        return "\n".join([run["status"], *(event["message"] for event in events if event.get("message"))][-40:])

    def in_step(self, run_id: str, step: str, seconds: float = 90) -> str:
        """Wait until the run has begun a step; return its container."""

        def there() -> bool:
            events = self.run(run_id)["eventConnection"]["events"]
            return any(e["__typename"] == "ExecutionStepStartEvent" and e["stepKey"] == step for e in events)

        until(there, seconds, lambda: self.account(run_id), pause=0.3)
        [container] = docker("ps", "-q", "-f", f"label=dagster/run_id={run_id}").split()
        return container
