"""Docker Swarm as a restore's service manager: scale services, wait for their tasks, and run a migration.

``restoration.service_manager`` states what a service manager does for a restore, ``restoration.steps`` its order.
Requests to Docker belong to ``docker_api``.

To change a service, its whole specification is sent back as Docker returned it, with one value changed. The SDK's own
``Service.scale`` writes Docker's defaults into it, so that Swarm replaces running tasks, and sends the registry
credentials of the user who runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ovia_backup_dagster.core.errors import (
    MigrationFailedError,
    ServiceManagerError,
    ServiceStuckError,
    ServiceUnsuitableError,
)
from ovia_backup_dagster.swarm.docker_api import Json, SwarmApi, looks, soon

Log = Callable[[str], None]

#: A task in any other state has a container, or is about to get one.
_ENDED = frozenset({"complete", "shutdown", "failed", "rejected", "orphaned", "remove"})
#: How many tasks of a migration may fail if its service's restart policy lets Swarm try again.
_ATTEMPTS = 3
#: How long to wait for an abandoned migration to end, in seconds; Docker's default stop_grace_period is 10.
_END_SECONDS = 60.0


class Swarm:
    """The services of a swarm, through one of its managers. Each request opens its own connection.

    Each method raises, besides the errors that it lists:
        ServiceMissingError: there is no such service.
        ServiceManagerUnreachableError: Docker did not answer for 10 seconds or, in a wait, until its timeout.
        ServiceManagerRefusedError: Docker, or the filter in front of it, refused the request.

    Args:
        url: where Docker answers (``unix://…``, ``tcp://…``); ``None`` for ``DOCKER_HOST``, else Docker's socket.
    """

    name = "Docker"

    def __init__(self, url: str | None = None) -> None:
        self.api = SwarmApi(url)

    def replicas(self, service: str) -> int:
        """The number of replicas in the service's specification.

        Raises:
            ServiceUnsuitableError: the service is global, or a job.
        """
        spec = self.api.inspect(service, soon())["Spec"]
        return int(_replicated(spec)["Replicas"])

    def scale(self, service: str, replicas: int) -> None:
        """Set the service's number of replicas. Does not wait for its tasks.

        Raises:
            ServiceUnsuitableError: the service is global, or a job.
        """

        def set_replicas(spec: Json) -> bool:
            mode = _replicated(spec)
            different = bool(mode["Replicas"] != replicas)
            mode["Replicas"] = replicas
            return different

        self.api.update(service, set_replicas, soon())

    def wait_until_stopped(self, services: Sequence[str], timeout_seconds: float, log: Log) -> None:
        """Wait until no task of these services has a container, not even one that is shutting down.

        Raises:
            ServiceStuckError: a task still has a container at the timeout.
        """
        ends, told = time.monotonic() + timeout_seconds, 0
        for last in looks(ends):
            left = [(name, t) for name in services for t in self.api.tasks(name, ends) if _state(t) not in _ENDED]
            if not left:
                return
            if last:
                name, task = left[0]
                more = f", and {len(left) - 1} more" if left[1:] else ""
                raise ServiceStuckError(
                    f"task {_task_name(name, task)} on node {_node(task)} did not stop within {timeout_seconds:.0f} s"
                    f"{more}",
                    why=f"its state is {_state(task)}; its stop_grace_period may be longer, or its node may be down",
                    # Swarm reports the tasks of a node that is off as running for a day.
                    fix=f"docker service ps {name}; docker node ls; if the node is off for good: "
                    f"docker node rm --force {task.get('NodeID') or 'NODE'}, then try again",
                )
            if len(left) != told:
                told = len(left)
                log(f"waiting for {told} tasks to stop: {', '.join(sorted(_task_name(*pair) for pair in left))}")

    def wait_until_running(self, service: str, replicas: int, timeout_seconds: float, log: Log) -> None:
        """Wait until this many tasks of the current specification run, and are healthy if there is a health check.

        A task that ends at once also runs for a moment, so each must be seen running twice.

        Raises:
            ServiceStuckError: too few run at the timeout; with the error of the newest failed task.
        """
        ends, told = time.monotonic() + timeout_seconds, ""
        before: set[str] = set()
        for last in looks(ends):
            template = self.api.inspect(service, ends)["Spec"]["TaskTemplate"]
            tasks = [task for task in self.api.tasks(service, ends) if _made_by(template, task)]
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
        """Refuse a service that :meth:`run_once` would refuse. Changes nothing.

        Raises:
            ServiceUnsuitableError: the service is global, a job, has several replicas, or always restarts.
        """
        _check_ends_by_itself(self.api.inspect(service, soon())["Spec"])

    def runs(self, service: str, timeout_seconds: float) -> Json:
        """A JSON mark that tells the next run of :meth:`run_once` from all earlier ones. Changes nothing.

        Args:
            service: its name.
            timeout_seconds: how long to repeat requests while Docker is unreachable.

        Raises:
            ServiceUnsuitableError: the service is global, a job, has several replicas, or always restarts.
        """
        return _runs(*self._runnable(service, time.monotonic() + timeout_seconds))

    def run_once(self, service: str, timeout_seconds: float, log: Log, since: Json | None = None) -> None:
        """Run a service that ends by itself, such as one that migrates a database, and wait until it is complete.

        A service at 0 replicas is set to 1. If its restart condition is ``on-failure``, Swarm may try it three times. A
        failed one is ended, as by :meth:`end`: it must not run later, on another live database.

        Args:
            service: its name.
            timeout_seconds: how long to wait for it.
            log: called with each event.
            since: the answer of :meth:`runs`. If a run was begun after that, this waits for it or reports its result,
                and begins no other, which would kill it half-way. A run that was ended does not count.

        Raises:
            ServiceUnsuitableError: the service is global, a job, has several replicas, or always restarts.
            MigrationFailedError: the run failed, or was not complete in time; with its last lines of output.
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
                    return False  # our own update whose answer was lost, or another client's: already begun
                template["ForceUpdate"] = _forced(template) + 1
                mode["Replicas"] = 1
                return True

            spec = self.api.update(service, force, ends)
        told = 0
        for last in looks(ends):
            tasks = _later(since, spec, self.api.tasks(service, ends))
            if any(_state(task) == "complete" for task in tasks):
                log(f"{service} is complete")
                return
            ended = [task for task in tasks if _state(task) in _ENDED]
            # Swarm creates a task's successor in the same transaction in which it gives the task up.
            given_up = len(ended) == len(tasks) > 0 and all(task["DesiredState"] != "running" for task in tasks)
            if given_up or len(ended) >= _ATTEMPTS or last:
                what = "failed" if ended else f"was not complete in {timeout_seconds:.0f} s"
                # Of a failed attempt, if there was one: its successor, just started, has printed nothing yet.
                why, said = _trouble(tasks), self.api.printed(spec, ended or tasks)
                fix = f"docker service ps --no-trunc {service}; docker service logs {service} --tail 50"
                if not ended:  # Swarm removes an ended task together with its log
                    fix = f"find out what {service} waited for; its log is gone with it"
                try:
                    self.end(service, _END_SECONDS, log)
                except ServiceManagerError as error:
                    why = f"{why}; and it may still run: {error.account}"
                    fix = f"docker service scale {service}=0; {error.fix}"
                raise MigrationFailedError(f"service {service} {what}", why=why, said=said, fix=fix)
            if len(ended) != told:
                told = len(ended)
                log(f"{service}: {_trouble(tasks)}; Swarm tries again")

    def end(self, service: str, timeout_seconds: float, log: Log) -> bool:
        """End a service's running and pending tasks, and wait until none has a container.

        The service stays at 0 replicas, since otherwise Swarm would start it again; :meth:`run_once` sets 1. If no task
        runs or is pending, nothing changes.

        Returns:
            Whether there was a task to end.

        Raises:
            ServiceUnsuitableError: the service is global, or a job.
            ServiceStuckError: a task did not end in time.
        """
        ends = time.monotonic() + timeout_seconds
        spec, tasks = self.api.inspect(service, ends)["Spec"], self.api.tasks(service, ends)
        left = [task for task in tasks if _state(task) not in _ENDED or task["DesiredState"] == "running"]
        # Scaled up a moment ago: Swarm is about to create the first task.
        asked_for = _replicated(spec)["Replicas"] and not _of_counter(spec, tasks)
        if not left and not asked_for:
            return False
        log(f"ending {service}: {_trouble(left)}")
        self.scale(service, 0)
        self.wait_until_stopped([service], timeout_seconds, log)
        return True

    def _runnable(self, service: str, ends: float) -> tuple[Json, list[Json]]:
        """The specification and the tasks of a service that ends by itself."""
        # Tasks first: a run that starts between the two requests is then recognized as new by its task.
        tasks = self.api.tasks(service, ends)
        spec: Json = self.api.inspect(service, ends)["Spec"]
        _check_ends_by_itself(spec)
        return spec, tasks

    # ---------------------------------------------------------------------------------------------- by hand

    def scale_command(self, replicas: Mapping[str, int | None]) -> str:
        """The command with which an operator does the same as :meth:`scale`."""
        counts = (f"{name}={'REPLICAS' if count is None else count}" for name, count in replicas.items())
        return f"docker service scale {' '.join(counts)}"

    def run_once_command(self, service: str) -> str:
        """The command with which an operator does the same as :meth:`run_once`."""
        # An ended migration has 0 replicas. --detach, since a task that runs once never converges.
        return f"docker service update --detach --force --replicas 1 {service}"


# ------------------------------------------------------------------------------------------------ specifications


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
            why="its restart condition is `any`: Swarm starts it again whenever it ends",
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
    """The tasks of the latest run, without ended ones that Swarm is about to remove."""
    counter = _forced(spec["TaskTemplate"])
    return [task for task in tasks if _forced(task["Spec"]) == counter and task["DesiredState"] != "remove"]


def _later(since: Json, spec: Json, tasks: Sequence[Json]) -> list[Json]:
    """The tasks that were created since then."""
    # A rolled-back update leaves tasks whose counter value is used again.
    return [task for task in _of_counter(spec, tasks) if task["ID"] not in since["tasks"]]


def _begun_since(since: Json, spec: Json, tasks: Sequence[Json]) -> bool:
    """Whether a run was begun since then, even if Swarm has not created its task yet."""
    asked_for = _forced(spec["TaskTemplate"]) != since["forced"] and _replicated(spec)["Replicas"] > 0
    return asked_for or bool(_later(since, spec, tasks))


# -------------------------------------------------------------------------------------------------------- tasks


def _state(task: Json) -> str:
    return str(task["Status"]["State"])


def _task_name(service: str, task: Json) -> str:
    return f"{service}.{task.get('Slot', '')}"


def _node(task: Json) -> str:
    return str(task.get("NodeID") or "none yet")


def _trouble(tasks: Sequence[Json]) -> str:
    """The state and error of the newest task that ended or has an error; else of the newest task."""
    telling = [task for task in tasks if task["Status"].get("Err") or _state(task) in _ENDED] or tasks
    if not telling:
        return "Swarm has created no task of it yet"
    error = telling[-1]["Status"].get("Err")
    return f"a task is {_state(telling[-1])}" + (f": {error}" if error else "")
