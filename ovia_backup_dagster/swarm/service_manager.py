"""Services of the swarm: how many tasks each has, and what became of them. In which order is decided elsewhere.

A service is changed by sending back the whole specification that Docker gave, with one thing in it different. The
SDK's own ``Service.scale`` writes Docker's defaults into it, upon which Swarm replaces tasks that run, and sends the
registry credentials of whoever runs this.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env

from ovia_backup_dagster.core.errors import (
    DockerRefusedError,
    DockerUnreachableError,
    MigrationFailedError,
    ServiceMissingError,
    ServiceStuckError,
    ServiceUnsuitableError,
    SwarmError,
)

Log = Callable[[str], None]
#: What Docker calls a service's specification, a task, and the like: its JSON.
Json = dict[str, Any]
T = TypeVar("T")

#: How long Docker may be away while one thing is asked of it, in seconds. A wait allows for its own whole time.
PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
_ANSWER_SECONDS = 10
#: A task in any other state holds a container, or is about to.
_ENDED = frozenset({"complete", "shutdown", "failed", "rejected", "orphaned", "remove"})
#: So many tasks of a migration may fail, where its service says that Swarm shall try again.
_ATTEMPTS = 3
#: How long a migration that was given up may take to end, in seconds; Docker's own stop_grace_period is 10.
_END_SECONDS = 60.0
_LOG_LINES = 10
_NAME = r"(?:password|passwd|_pass|pwd)"
#: A URL's password, up to its last @: tools complain of the very one that holds / or @ and is not encoded. One in a
#: URL's query is a setting.
_IN_URL = re.compile(rf"(\b[a-z][a-z0-9+.-]{{0,30}}://[^\s:/]*:)(?:(?![?&]\w*{_NAME}=)\S)*@", re.IGNORECASE)
#: That of a setting: in a connection string, an environment, JSON or SQL. One in quotes ends where they do.
_IN_SETTING = re.compile(
    rf"""({_NAME}(?:\\*["'])?(?:\s*[=:]\s*|\s+(?=')))"""
    r"""(?:(?P<quote>\\*["'])(?:(?P=quote){2}|\\.|(?!(?P=quote)).)*(?:(?P=quote)|$)|\S+)""",
    re.IGNORECASE,
)


class Swarm:
    """The services of a swarm, asked of one of its managers. Connects when it is asked.

    Each method raises, beside what it names:
        ServiceMissingError: there is no such service.
        DockerUnreachableError: Docker did not answer, for some seconds or, in a wait, up to its end.
        DockerRefusedError: it, or a filter before it, refused.

    Args:
        url: where Docker answers (``unix://…``, ``tcp://…``); ``None`` for what ``DOCKER_HOST`` says, else its socket.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url

    def replicas(self, service: str) -> int:
        """How many tasks the service is meant to have.

        Raises:
            ServiceUnsuitableError: it is global, or a job.
        """
        spec = self._inspect(service, _soon())["Spec"]
        return int(_replicated(spec)["Replicas"])

    def scale(self, service: str, replicas: int) -> None:
        """Set how many tasks it is meant to have. Does not wait for them.

        Raises:
            ServiceUnsuitableError: it is global, or a job.
        """

        def set_replicas(spec: Json) -> bool:
            mode = _replicated(spec)
            different = bool(mode["Replicas"] != replicas)
            mode["Replicas"] = replicas
            return different

        self._update(service, set_replicas, _soon())

    def wait_until_stopped(self, services: Sequence[str], timeout_seconds: float, log: Log) -> None:
        """Wait until no task of theirs has a container, not even one that is shutting down.

        Raises:
            ServiceStuckError: one still has.
        """
        ends, told = time.monotonic() + timeout_seconds, 0
        for last in _looks(ends):
            left = [(name, t) for name in services for t in self._tasks(name, ends) if _state(t) not in _ENDED]
            if not left:
                return
            if last:
                name, task = left[0]
                more = f", and {len(left) - 1} more" if left[1:] else ""
                raise ServiceStuckError(
                    f"task {_task_name(name, task)} on node {_node(task)} did not stop within {timeout_seconds:.0f} s"
                    f"{more}",
                    why=f"its state is {_state(task)}; its stop_grace_period may be longer, or its node be down",
                    # Of a node that is off, Swarm says for a day that what ran there runs.
                    fix=f"docker service ps {name}; docker node ls; if the node is off for good: "
                    f"docker node rm --force {task.get('NodeID') or 'NODE'}, then try again",
                )
            if len(left) != told:
                told = len(left)
                log(f"waiting for {told} tasks to stop: {', '.join(sorted(_task_name(*pair) for pair in left))}")

    def wait_until_running(self, service: str, replicas: int, timeout_seconds: float, log: Log) -> None:
        """Wait until so many tasks of its present specification run; with a health check, until they are well.

        One that ends at once was running for a moment: so each is looked at twice.

        Raises:
            ServiceStuckError: they do not; with what the newest of them that failed said.
        """
        ends, told = time.monotonic() + timeout_seconds, ""
        before: set[str] = set()
        for last in _looks(ends):
            template = self._inspect(service, ends)["Spec"]["TaskTemplate"]
            tasks = [task for task in self._tasks(service, ends) if _made_by(template, task)]
            running = {task["ID"] for task in tasks if _state(task) == task["DesiredState"] == "running"}
            if len(running & before) >= replicas:
                return
            before = running
            trouble = _trouble(tasks)
            if last:
                raise ServiceStuckError(
                    f"of {replicas} tasks of {service} {len(running)} ran after {timeout_seconds:.0f} s",
                    said=trouble,
                    fix=f"docker service ps --no-trunc {service}; docker service logs {service} --tail 20",
                )
            if trouble != told:
                told = trouble
                log(f"{service}: {trouble}")

    def check_once(self, service: str) -> None:
        """Refuse what :meth:`run_once` would refuse; changes nothing.

        Raises:
            ServiceUnsuitableError: it is global, a job, has several replicas, or is restarted whenever it ends.
        """
        _check_ends_by_itself(self._inspect(service, _soon())["Spec"])

    def runs(self, service: str, timeout_seconds: float) -> Json:
        """What tells the next run of :meth:`run_once` from all earlier ones; changes nothing. Can be kept as JSON.

        Args:
            service: its name.
            timeout_seconds: how long Docker may be away.

        Raises:
            ServiceUnsuitableError: it is global, a job, has several replicas, or is restarted whenever it ends.
        """
        return _runs(*self._runnable(service, time.monotonic() + timeout_seconds))

    def run_once(self, service: str, timeout_seconds: float, log: Log, since: Json | None = None) -> None:
        """Run a service that ends by itself, such as one that migrates a database, and wait until it is complete.

        One at 0 replicas is set to 1. Where its restart condition is ``on-failure``, Swarm may try it three times. One
        that failed is ended, as by :meth:`end`: nobody is to run it later, on whichever database is live then.

        Args:
            service: its name.
            timeout_seconds: for how long it is waited for.
            log: told what happens.
            since: what :meth:`runs` said. A run that was begun after that is waited for, or what became of it is told,
                and none is begun anew, which would kill it half-way. One that was ended does not count.

        Raises:
            ServiceUnsuitableError: it is global, a job, has several replicas, or is restarted whenever it ends.
            MigrationFailedError: it failed, or was not complete in time; with the last lines that it printed.
        """
        ends = time.monotonic() + timeout_seconds
        spec, tasks = self._runnable(service, ends)
        if since is not None and _begun_since(since, spec, tasks):
            log(f"waiting for the run of {service} that was begun before")
        else:
            since = _runs(spec, tasks)
            before = since["forced"]

            def force(spec: Json) -> bool:
                template, mode = spec["TaskTemplate"], _replicated(spec)
                if _forced(template) != before and mode["Replicas"]:
                    return False  # an update of ours whose answer was lost, or somebody else's: begun since we looked
                template["ForceUpdate"] = _forced(template) + 1
                mode["Replicas"] = 1
                return True

            spec = self._update(service, force, ends)
        told = 0
        for last in _looks(ends):
            tasks = _later(since, spec, self._tasks(service, ends))
            if any(_state(task) == "complete" for task in tasks):
                log(f"{service} is complete")
                return
            ended = [task for task in tasks if _state(task) in _ENDED]
            # Swarm makes a task's successor in the same step in which it gives the task up.
            given_up = len(ended) == len(tasks) > 0 and all(task["DesiredState"] != "running" for task in tasks)
            if given_up or len(ended) >= _ATTEMPTS or last:
                what = "failed" if ended else f"was not complete in {timeout_seconds:.0f} s"
                why, said = _trouble(tasks), self._printed(spec, tasks)
                fix = f"docker service ps --no-trunc {service}; docker service logs {service} --tail 50"
                if not ended:  # Swarm forgets, with its log, what is ended
                    fix = f"find out what {service} waited for; its log is gone with it"
                try:
                    self.end(service, _END_SECONDS, log)
                except SwarmError as error:
                    why = f"{why}; and it may still run: {error.account}"
                    fix = f"docker service scale {service}=0; {error.fix}"
                raise MigrationFailedError(f"service {service} {what}", why=why, said=said, fix=fix)
            if len(ended) != told:
                told = len(ended)
                log(f"{service}: {_trouble(tasks)}; Swarm tries again")

    def end(self, service: str, timeout_seconds: float, log: Log) -> bool:
        """End what runs of a service, or is about to, and wait until none of it has a container.

        It is left at 0 replicas: any more, and Swarm would begin it again. :meth:`run_once` sets them to 1. Where
        nothing runs, nothing is changed.

        Returns:
            Whether there was anything to end.

        Raises:
            ServiceUnsuitableError: it is global, or a job.
            ServiceStuckError: it did not end in time.
        """
        ends = time.monotonic() + timeout_seconds
        spec, tasks = self._inspect(service, ends)["Spec"], self._tasks(service, ends)
        left = [task for task in tasks if _state(task) not in _ENDED or task["DesiredState"] == "running"]
        # Asked for a moment ago, and Swarm is about to make its first task.
        asked_for = _replicated(spec)["Replicas"] and not _of_counter(spec, tasks)
        if not left and not asked_for:
            return False
        log(f"ending {service}: {_trouble(left)}")
        self.scale(service, 0)
        self.wait_until_stopped([service], timeout_seconds, log)
        return True

    # ------------------------------------------------------------------------------------------- what is asked

    def _runnable(self, service: str, ends: float) -> tuple[Json, list[Json]]:
        """The specification of one that ends by itself, and its tasks."""
        # In this order a run that is begun meanwhile is known as new, by its task.
        tasks = self._tasks(service, ends)
        spec: Json = self._inspect(service, ends)["Spec"]
        _check_ends_by_itself(spec)
        return spec, tasks

    def _inspect(self, service: str, ends: float) -> Json:
        found: Json = self._ask(lambda api: api.inspect_service(service), ends, service)
        return found

    def _tasks(self, service: str, ends: float) -> list[Json]:
        """Oldest first."""
        found: list[Json] = self._ask(lambda api: api.tasks({"service": service}), ends, service)
        return sorted(found, key=lambda task: str(task["CreatedAt"]))

    def _update(self, service: str, edit: Callable[[Json], bool], ends: float) -> Json:
        """Change its specification, and return it. ``edit`` says whether there was anything to change."""

        def change(api: docker.APIClient) -> Json:
            found = api.inspect_service(service)
            spec: Json = found["Spec"]
            if edit(spec):
                answer = api.post(
                    f"{api.base_url}/v{api.api_version}/services/{found['ID']}/update",
                    params={"version": found["Version"]["Index"]},
                    json=spec,
                    timeout=_ANSWER_SECONDS,
                )
                if not answer.ok:
                    raise APIError(str(answer.status_code), response=answer, explanation=_explanation(answer))
            return spec

        return self._ask(change, ends, service)

    def _printed(self, spec: Json, tasks: Sequence[Json]) -> str:
        """The last lines of the newest task that had a container; nothing, when they cannot be had."""
        had = [task["ID"] for task in tasks if task["Status"].get("ContainerStatus", {}).get("ContainerID")]
        if not had:
            return ""
        mark = f"com.docker.swarm.task.id={had[-1]}"

        def lines(api: docker.APIClient) -> bytes:
            tty = bool(spec["TaskTemplate"]["ContainerSpec"].get("TTY"))
            options = {"details": True, "stdout": True, "stderr": True, "tail": _LOG_LINES, "is_tty": tty}
            return b"".join(api.service_logs(spec["Name"], **options))

        try:
            text = self._ask(lines, time.monotonic(), spec["Name"]).decode("utf-8", "replace")
        except (DockerUnreachableError, DockerRefusedError):
            return ""  # its log driver keeps none, or its node is away: the failure matters more
        pairs = (line.partition(" ")[::2] for line in text.splitlines())
        return " / ".join(redacted(line).strip()[:200] for details, line in pairs if mark in details)

    def _ask(self, question: Callable[[docker.APIClient], T], ends: float, service: str) -> T:
        """Ask, and anew while Docker is away or somebody else's update was quicker, until the end."""
        for last in _looks(ends):
            try:
                with self._api() as api:
                    return question(api)
            except NotFound:
                raise self._missing(service) from None
            except (APIError, DockerException, requests.RequestException) as error:
                said = _said(error)
                if isinstance(error, APIError) and error.is_client_error():
                    raise DockerRefusedError(
                        f"Docker refuses what a restore needs of service {service}",
                        said=said,
                        fix="see deploy/haproxy/docker.cfg for what the filter passes on; docker service inspect "
                        + service,
                    ) from None
                if last:
                    raise DockerUnreachableError(
                        f"Docker does not answer at {self._url or 'its socket, or DOCKER_HOST'}",
                        said=said,
                        fix="docker info, on a manager (docker node ls); docker service ps ovia-backup_docker-filter",
                    ) from None
        raise AssertionError("there is always a last look")

    @contextmanager
    def _api(self) -> Iterator[docker.APIClient]:
        """A client for one question: none is left that Docker's restart has cut off."""
        where = {"base_url": self._url} if self._url else kwargs_from_env()
        with closing(docker.APIClient(**where, timeout=_ANSWER_SECONDS)) as api:
            yield api

    def _missing(self, service: str) -> ServiceMissingError:
        try:
            with self._api() as api:
                names = [str(found["Spec"]["Name"]) for found in api.services()]
        except (DockerException, requests.RequestException):
            names = []
        near = difflib.get_close_matches(service, names, n=3)
        return ServiceMissingError(
            f"there is no service {service}",
            why=f"did you mean {' or '.join(near)}?" if near else "",
            fix="docker service ls; then set SWARM_APP_SERVICES and SWARM_MIGRATE_SERVICE",
        )


def _looks(ends: float) -> Iterator[bool]:
    """Paces a loop; each time, whether it is the last."""
    while time.monotonic() < ends:
        yield False
        time.sleep(_PAUSE_SECONDS)
    yield True


def _soon() -> float:
    return time.monotonic() + PATIENCE_SECONDS


def _explanation(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _said(error: Exception) -> str:
    return str(getattr(error, "explanation", "") or error)


# ------------------------------------------------------------------------------------- what a specification says


def _replicated(spec: Json) -> Json:
    try:
        mode: Json = spec["Mode"]["Replicated"]
    except KeyError:
        kind = "/".join(spec["Mode"])
        raise ServiceUnsuitableError(
            f"service {spec['Name']} cannot be scaled",
            why=f"its mode is {kind}, not replicated",
            fix=f"leave {spec['Name']} out of SWARM_APP_SERVICES, or set `mode: replicated` in its stack's file",
        ) from None
    return mode


def _check_ends_by_itself(spec: Json) -> None:
    name = spec["Name"]
    if _replicated(spec)["Replicas"] > 1:
        raise ServiceUnsuitableError(
            f"service {name} cannot be run once",
            why=f"it has {_replicated(spec)['Replicas']} replicas",
            fix=f"docker service scale {name}=1",
        )
    # Docker's default is `any`.
    if spec["TaskTemplate"].get("RestartPolicy", {}).get("Condition", "any") == "any":
        raise ServiceUnsuitableError(
            f"service {name} cannot be run once",
            why="its restart condition is `any`: Swarm begins it again whenever it ends",
            fix=f"docker service update --restart-condition on-failure {name}, and in its stack's file",
        )


def _forced(template: Json) -> int:
    return int(template.get("ForceUpdate", 0))


def _made_by(template: Json, task: Json) -> bool:
    same = task["Spec"].get("ContainerSpec") == template.get("ContainerSpec")
    return same and _forced(task["Spec"]) == _forced(template)


def _runs(spec: Json, tasks: Sequence[Json]) -> Json:
    return {"forced": _forced(spec["TaskTemplate"]), "tasks": [task["ID"] for task in tasks]}


def _of_counter(spec: Json, tasks: Sequence[Json]) -> list[Json]:
    """The tasks of the latest run; not those that were ended, which Swarm forgets in a moment."""
    counter = _forced(spec["TaskTemplate"])
    return [task for task in tasks if _forced(task["Spec"]) == counter and task["DesiredState"] != "remove"]


def _later(since: Json, spec: Json, tasks: Sequence[Json]) -> list[Json]:
    """Those of them that were made since then."""
    # An update that was rolled back leaves tasks of a counter that comes again.
    return [task for task in _of_counter(spec, tasks) if task["ID"] not in since["tasks"]]


def _begun_since(since: Json, spec: Json, tasks: Sequence[Json]) -> bool:
    """Whether a run was begun since then, if only by an update of which Swarm has made no task yet."""
    asked_for = _forced(spec["TaskTemplate"]) != since["forced"] and _replicated(spec)["Replicas"] > 0
    return asked_for or bool(_later(since, spec, tasks))


# --------------------------------------------------------------------------------------------- what a task says


def redacted(line: str) -> str:
    """A printed line without the passwords in it, as far as they can be known: a URL's, and those of settings."""
    return _IN_SETTING.sub(r"\1...", _IN_URL.sub(r"\1...@", line))


def _state(task: Json) -> str:
    return str(task["Status"]["State"])


def _task_name(service: str, task: Json) -> str:
    return f"{service}.{task.get('Slot', '')}"


def _node(task: Json) -> str:
    return str(task.get("NodeID") or "none yet")


def _trouble(tasks: Sequence[Json]) -> str:
    """What became of the newest task that ended or complains; where none does, how the newest stands."""
    telling = [task for task in tasks if task["Status"].get("Err") or _state(task) in _ENDED] or tasks
    if not telling:
        return "Swarm made no task of it yet"
    error = telling[-1]["Status"].get("Err")
    return f"a task is {_state(telling[-1])}" + (f": {error}" if error else "")
