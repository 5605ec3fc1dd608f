"""Docker Swarm as a restore's service manager: how many tasks each service has, and what became of them.

What a service manager does for a restore is stated in ``restoration.service_manager``, in which order in
``restoration.steps``. How Docker is asked belongs to ``docker_api``.

A service is changed by sending back the whole specification that Docker gave, with one thing in it different. The
SDK's own ``Service.scale`` writes Docker's defaults into it, upon which Swarm replaces tasks that run, and sends the
registry credentials of the user who runs this.
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

#: A task in any other state holds a container, or is about to.
_ENDED = frozenset({"complete", "shutdown", "failed", "rejected", "orphaned", "remove"})
#: So many tasks of a migration may fail, where its service says that Swarm shall try again.
_ATTEMPTS = 3
#: How long a migration that was given up may take to end, in seconds; Docker's own stop_grace_period is 10.
_END_SECONDS = 60.0


class Swarm:
    """The services of a swarm, asked of one of its managers. Connects when it is asked.

    Each method raises, beside what it names:
        ServiceMissingError: there is no such service.
        ServiceManagerUnreachableError: Docker did not answer, for some seconds or, in a wait, up to its end.
        ServiceManagerRefusedError: it, or a filter before it, refused.

    Args:
        url: where Docker answers (``unix://…``, ``tcp://…``); ``None`` for what ``DOCKER_HOST`` says, else its socket.
    """

    name = "Docker"

    def __init__(self, url: str | None = None) -> None:
        self.api = SwarmApi(url)

    def replicas(self, service: str) -> int:
        """How many tasks the service is meant to have.

        Raises:
            ServiceUnsuitableError: it is global, or a job.
        """
        spec = self.api.inspect(service, soon())["Spec"]
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

        self.api.update(service, set_replicas, soon())

    def wait_until_stopped(self, services: Sequence[str], timeout_seconds: float, log: Log) -> None:
        """Wait until no task of theirs has a container, not even one that is shutting down.

        Raises:
            ServiceStuckError: one still has.
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
        """Refuse what :meth:`run_once` would refuse; changes nothing.

        Raises:
            ServiceUnsuitableError: it is global, a job, has several replicas, or is restarted whenever it ends.
        """
        _check_ends_by_itself(self.api.inspect(service, soon())["Spec"])

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
        that failed is ended, as by :meth:`end`: it must not run later, on whichever database is live then.

        Args:
            service: its name.
            timeout_seconds: for how long it is waited for.
            log: told what happens.
            since: what :meth:`runs` said. A run that was begun after that is waited for, or what became of it is told,
                and none is begun again, which would kill it half-way. One that was ended does not count.

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
                    return False  # an update of ours whose answer was lost, or of another client: begun since we looked
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
            # Swarm makes a task's successor in the same step in which it gives the task up.
            given_up = len(ended) == len(tasks) > 0 and all(task["DesiredState"] != "running" for task in tasks)
            if given_up or len(ended) >= _ATTEMPTS or last:
                what = "failed" if ended else f"was not complete in {timeout_seconds:.0f} s"
                why, said = _trouble(tasks), self.api.printed(spec, tasks)
                fix = f"docker service ps --no-trunc {service}; docker service logs {service} --tail 50"
                if not ended:  # Swarm forgets, with its log, what is ended
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
        spec, tasks = self.api.inspect(service, ends)["Spec"], self.api.tasks(service, ends)
        left = [task for task in tasks if _state(task) not in _ENDED or task["DesiredState"] == "running"]
        # Asked for a moment ago, and Swarm is about to make its first task.
        asked_for = _replicated(spec)["Replicas"] and not _of_counter(spec, tasks)
        if not left and not asked_for:
            return False
        log(f"ending {service}: {_trouble(left)}")
        self.scale(service, 0)
        self.wait_until_stopped([service], timeout_seconds, log)
        return True

    def _runnable(self, service: str, ends: float) -> tuple[Json, list[Json]]:
        """The specification of one that ends by itself, and its tasks."""
        # In this order a run that is begun meanwhile is known as new, by its task.
        tasks = self.api.tasks(service, ends)
        spec: Json = self.api.inspect(service, ends)["Spec"]
        _check_ends_by_itself(spec)
        return spec, tasks

    # ---------------------------------------------------------------------------------------------- by hand

    def scale_command(self, replicas: Mapping[str, int | None]) -> str:
        """The command by which a person does what :meth:`scale` does."""
        counts = (f"{name}={'REPLICAS' if count is None else count}" for name, count in replicas.items())
        return f"docker service scale {' '.join(counts)}"

    def run_once_command(self, service: str) -> str:
        """The command by which a person does what :meth:`run_once` does."""
        # A migration that was ended stands at 0; and one that runs once never becomes what Docker waits for.
        return f"docker service update --detach --force --replicas 1 {service}"


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
