"""The steps for the application's services: stop, migrate, start, and wait until the application is healthy.

The service manager stops and starts the services.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TypeVar

from ovia_backup_dagster.core.errors import BackupError, ServiceError, ServiceManagerRefusedError
from ovia_backup_dagster.restoration.application_health import wait_until_healthy
from ovia_backup_dagster.restoration.restore_order import Order, Step
from ovia_backup_dagster.restoration.step_data import HealthData, MigrateData, StartData, StepData, StopData
from ovia_backup_dagster.restoration.steps import by_hand
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.step_context import Work

E = TypeVar("E", bound=BackupError)
_STOP_SECONDS = 300.0
_START_SECONDS = 300.0
_MIGRATE_SECONDS = 1800.0
_HEALTH_SECONDS = 300.0


class StopStep(TakenStep):
    """Stops the services that write to the database."""

    data = StopData

    @classmethod
    def needed(cls, order: Order) -> bool:
        return bool(order.services)

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"stop {', '.join(order.services)}, and wait until none of their tasks runs"

    def note(self) -> StopData | None:
        work = self.work
        noted = work.journal.data(StopData)
        work.refuse_obstacles(noted)
        if noted.replicas is not None or work.by_hand:
            return None
        return StopData(replicas={name: work.manager.replicas(name) for name in work.order.services})

    def take(self) -> None:
        stop(self.work)

    def by_hand(self) -> str:
        return by_hand.to_stop(self.work)

    def put_back(self) -> list[BackupError]:
        return give_replicas_back(self.work)


class MigrateStep(TakenStep):
    """Runs the service that migrates the database."""

    data = MigrateData

    @classmethod
    def needed(cls, order: Order) -> bool:
        return bool(order.migrate)

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"run {order.migrate}, and wait until it has completed"

    def note(self) -> MigrateData | None:
        work = self.work
        if work.journal.data(MigrateData).runs is not None or work.by_hand:
            return None
        return MigrateData(runs=work.manager.runs(work.order.migrate, _MIGRATE_SECONDS))

    def take(self) -> None:
        work = self.work
        since = work.journal.data(MigrateData).runs
        work.manager.run_once(work.order.migrate, _MIGRATE_SECONDS, work.log, since)

    def by_hand(self) -> str:
        return by_hand.to_migrate(self.work)


class StartStep(TakenStep):
    """Starts the services that were stopped."""

    data = StartData

    @classmethod
    def needed(cls, order: Order) -> bool:
        return bool(order.services)

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"start {', '.join(order.services)}"

    def take(self) -> StepData | None:
        work, wanted = self.work, self._replicas
        problems = _scale(work, {name: count for name, count in wanted.items() if count is not None})
        for problem in problems[1:]:
            work.log(problem.account)
        if problems:
            raise problems[0]
        return StartData(notes=(self.by_hand(),)) if None in wanted.values() else None

    def by_hand(self) -> str:
        return by_hand.to_start(self.work, self._replicas)

    @property
    def _replicas(self) -> dict[str, int | None]:
        """Service -> its replicas afterwards; ``None`` if it was stopped by hand, so the number was not noted."""
        before = self.work.journal.data(StopData).replicas or {}
        return {name: before.get(name) if count is None else count for name, count in self.work.order.services.items()}


class HealthStep(TakenStep):
    """Waits for the application's health check."""

    data = HealthData

    @classmethod
    def needed(cls, order: Order) -> bool:
        return bool(order.health_url)

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"wait for {order.health_url}" + (", else swap back" if order.auto_undo else "")

    def take(self) -> HealthData | None:
        work = self.work
        if not work.health_url:
            return HealthData(notes=("health was not checked: HEALTH_URL is no longer set",))
        wait_until_healthy(work.health_url, _HEALTH_SECONDS, work.log)
        return None

    def by_hand(self) -> str:
        return by_hand.to_ask_health(self.work)


# ---- used by other steps while putting back


def stop(work: Work) -> None:
    """Stop the services, and wait until none of their tasks runs.

    Raises:
        ServiceManagerError: one cannot be stopped.
    """
    names = list(work.order.services)
    for name in names:
        work.manager.scale(name, 0)
    work.manager.wait_until_stopped(names, _STOP_SECONDS, work.log)


def start_unnoted(work: Work) -> None:
    """Start the services although the journal cannot be written: they must not stay down because of that."""
    if Step.START in work.order.steps:
        with contextlib.suppress(BackupError):
            StartStep(work).carry_out()


def stop_again(work: Work) -> None:
    """Stop the services before the live database is swapped back, if they were started."""
    if not work.journal.begun(Step.START) or work.by_hand:
        return
    try:
        stop(work)
    except ServiceError as error:
        work.log(error.account)  # the swap terminates the service's sessions in any case


def end_migration(work: Work) -> None:
    """End an unfinished migration, so that it does not change the database that comes back.

    Raises:
        ServiceManagerError: the service manager does not answer, or refused.
    """
    journal, order = work.journal, work.order
    if not journal.begun(Step.MIGRATE) or journal.done(Step.MIGRATE):
        return
    if work.by_hand:
        work.note(Step.MIGRATE, [by_hand.to_end_migration(work)])
        return
    try:
        if work.manager.end(order.migrate, _STOP_SECONDS, work.log):
            work.note(Step.MIGRATE, [f"{order.migrate} was ended, and is at 0 replicas"])
    except ServiceError as error:
        work.note(Step.MIGRATE, [error.account])


def give_replicas_back(work: Work) -> list[BackupError]:
    """Scale the services to their replicas before the restore; returns the errors of unhealthy services.

    Raises:
        ServiceManagerError: the service manager does not answer, or refused.
    """
    before = work.journal.data(StopData).replicas or {}
    if work.journal.begun(Step.STOP) and (work.by_hand or not before):
        work.note(Step.START, [by_hand.to_start(work, {name: before.get(name) for name in work.order.services})])
    return [] if work.by_hand else [*_scale(work, before)]


def _scale(work: Work, wanted: Mapping[str, int]) -> list[ServiceError]:
    """Scale all services, even if one fails; returns the errors of unhealthy services.

    Raises:
        ServiceManagerError: the service manager does not answer, or refused to scale a service.
    """
    problems: list[ServiceError] = []
    refusals: list[ServiceManagerRefusedError] = []
    scaled: list[tuple[str, int]] = []
    for name, count in wanted.items():
        with _collected(problems, ServiceError), _collected(refusals, ServiceManagerRefusedError):
            work.manager.scale(name, count)
            scaled.append((name, count))
    for name, count in scaled:
        with _collected(problems, ServiceError):
            work.manager.wait_until_running(name, count, _START_SECONDS, work.log)
    for refusal in refusals:
        raise refusal
    return problems


@contextlib.contextmanager
def _collected(problems: list[E], kind: type[E]) -> Iterator[None]:
    try:
        yield
    except kind as problem:
        problems.append(problem)
