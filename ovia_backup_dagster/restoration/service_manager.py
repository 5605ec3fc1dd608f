"""The interface of the program that runs the application's services. Another orchestrator is another class.

Docker Swarm is the first (``swarm.docker_services``). ``system`` chooses the one that a restore gets; nothing in
``restoration`` imports one. The order in which services are stopped, migrated and started belongs to ``steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Services:
    """Which services a restore stops, migrates with and asks, as the settings say.

    Attributes:
        names: of those that write to the database.
        migrate: the one-shot service that migrates it; empty for none.
        health_url: what answers when all is well; empty for nothing.
    """

    names: Sequence[str] = ()
    migrate: str = ""
    health_url: str = ""


class ServiceManager(Protocol):
    """The services of the application.

    That a manager cannot be reached is told by the first method that is called: there is no question of its own for
    it, whose answer would be old at the next. Each method raises, beside what it names:
        ServiceMissingError: there is no such service.
        ServiceManagerUnreachableError: the manager did not answer, for some seconds or, in a wait, up to its end.
        ServiceManagerRefusedError: it refused.
    """

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    def replicas(self, service: str) -> int:
        """How many tasks the service is meant to have.

        Raises:
            ServiceUnsuitableError: it cannot be scaled.
        """
        ...

    def scale(self, service: str, replicas: int) -> None:
        """Set how many tasks it is meant to have. Does not wait for them.

        Raises:
            ServiceUnsuitableError: it cannot be scaled.
        """
        ...

    def wait_until_stopped(self, services: Sequence[str], timeout_seconds: float, log: Callable[[str], None]) -> None:
        """Wait until nothing of them runs, or shuts down.

        Raises:
            ServiceStuckError: something still does.
        """
        ...

    def wait_until_running(
        self, service: str, replicas: int, timeout_seconds: float, log: Callable[[str], None]
    ) -> None:
        """Wait until so many of its tasks run and are well.

        Raises:
            ServiceStuckError: they do not; with what the newest of them that failed said.
        """
        ...

    def check_once(self, service: str) -> None:
        """Refuse what :meth:`run_once` would refuse; changes nothing.

        Raises:
            ServiceUnsuitableError: it does not end by itself.
        """
        ...

    def runs(self, service: str, timeout_seconds: float) -> dict[str, Any]:
        """What tells the next run of :meth:`run_once` from all earlier ones, as JSON; changes nothing.

        Raises:
            ServiceUnsuitableError: it does not end by itself.
        """
        ...

    def run_once(
        self, service: str, timeout_seconds: float, log: Callable[[str], None], since: dict[str, Any] | None = None
    ) -> None:
        """Run a service that ends by itself, such as one that migrates a database, and wait until it is complete.

        Args:
            service: its name.
            timeout_seconds: for how long it is waited for.
            log: told what happens.
            since: what :meth:`runs` said: a run that was begun after that is waited for, and none is begun again.

        Raises:
            ServiceUnsuitableError: it does not end by itself.
            MigrationFailedError: it failed, or was not complete in time. Nothing of it runs any more.
        """
        ...

    def end(self, service: str, timeout_seconds: float, log: Callable[[str], None]) -> bool:
        """End what runs of a service, or is about to, so that it does not begin again; whether there was anything.

        Raises:
            ServiceUnsuitableError: it cannot be scaled.
            ServiceStuckError: it did not end in time.
        """
        ...

    def scale_command(self, replicas: Mapping[str, int | None]) -> str:
        """The command by which a person does what :meth:`scale` does; where a number is ``None``, the person knows it.

        Asks nothing.
        """
        ...

    def run_once_command(self, service: str) -> str:
        """The command by which a person does what :meth:`run_once` does. Asks nothing."""
        ...
