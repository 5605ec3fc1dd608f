"""The interface to the orchestrator that runs the application's services. Each orchestrator is a class of its own.

Docker Swarm is the first (``swarm.docker_services``). ``system`` chooses the service manager of a restore; nothing in
``restoration`` imports an implementation. The order in which services are stopped, migrated and started belongs to
``steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Services:
    """The services that a restore stops, runs and checks, from the settings.

    Attributes:
        names: the services that write to the database.
        migrate: the one-shot service that migrates the database; empty for none.
        health_url: the application's health check; empty for none.
    """

    names: Sequence[str] = ()
    migrate: str = ""
    health_url: str = ""


class ServiceManager(Protocol):
    """The services of the application.

    There is no separate check of whether the manager answers: the first call reports that, and an earlier answer would
    be outdated. Each method raises, besides the errors that it lists:
        ServiceMissingError: there is no such service.
        ServiceManagerUnreachableError: the manager did not answer for some seconds or, in a wait, until its timeout.
        ServiceManagerRefusedError: the manager refused the request.
    """

    @property
    def name(self) -> str:
        """The manager's name, for people."""
        ...

    def replicas(self, service: str) -> int:
        """The number of tasks that the service is meant to have.

        Raises:
            ServiceUnsuitableError: the service cannot be scaled.
        """
        ...

    def scale(self, service: str, replicas: int) -> None:
        """Set the number of tasks that the service is meant to have. Does not wait for them.

        Raises:
            ServiceUnsuitableError: the service cannot be scaled.
        """
        ...

    def wait_until_stopped(self, services: Sequence[str], timeout_seconds: float, log: Callable[[str], None]) -> None:
        """Wait until no task of these services runs or is shutting down.

        Raises:
            ServiceStuckError: a task still does at the timeout.
        """
        ...

    def wait_until_running(
        self, service: str, replicas: int, timeout_seconds: float, log: Callable[[str], None]
    ) -> None:
        """Wait until this many tasks of the service run and are healthy.

        Raises:
            ServiceStuckError: too few run at the timeout; with the error of the newest failed task.
        """
        ...

    def check_once(self, service: str) -> None:
        """Refuse a service that :meth:`run_once` would refuse. Changes nothing.

        Raises:
            ServiceUnsuitableError: the service does not end by itself.
        """
        ...

    def runs(self, service: str, timeout_seconds: float) -> dict[str, Any]:
        """JSON data that distinguishes the next run of :meth:`run_once` from all earlier ones. Changes nothing.

        Raises:
            ServiceUnsuitableError: the service does not end by itself.
        """
        ...

    def run_once(
        self, service: str, timeout_seconds: float, log: Callable[[str], None], since: dict[str, Any] | None = None
    ) -> None:
        """Run a service that ends by itself, such as one that migrates a database, and wait until it is complete.

        Args:
            service: its name.
            timeout_seconds: how long to wait for the run.
            log: receives progress lines.
            since: an earlier result of :meth:`runs`: a run that began after it is waited for, and no other is begun.

        Raises:
            ServiceUnsuitableError: the service does not end by itself.
            MigrationFailedError: the run failed, or did not complete in time. No task of it runs any more.
        """
        ...

    def end(self, service: str, timeout_seconds: float, log: Callable[[str], None]) -> bool:
        """End all running and pending tasks of a service, so that none starts again; returns whether there were any.

        Raises:
            ServiceUnsuitableError: the service cannot be scaled.
            ServiceStuckError: a task did not end in time.
        """
        ...

    def scale_command(self, replicas: Mapping[str, int | None]) -> str:
        """The command with which an operator does what :meth:`scale` does. Sends no request.

        The operator fills in a number that is ``None``.
        """
        ...

    def run_once_command(self, service: str) -> str:
        """The command with which an operator does what :meth:`run_once` does. Sends no request."""
        ...
