"""Checks that the service manager knows the services that a restore stops, starts or runs for a migration.

``preflight`` finds all other obstacles.
"""

from __future__ import annotations

from ovia_backup_dagster.core.errors import ServiceManagerUnreachableError
from ovia_backup_dagster.restoration.preflight import Preflight
from ovia_backup_dagster.restoration.restore_order import Order, Step
from ovia_backup_dagster.restoration.service_manager import ServiceManager


def check_services(found: Preflight, order: Order, manager: ServiceManager) -> None:
    """Check the services early, not only when the restored database is ready to go live."""
    counts: dict[str, int] = {}
    for name in order.services:
        with found.collecting():
            try:
                counts[name] = manager.replicas(name)
            except ServiceManagerUnreachableError as error:
                # The manager will not answer for the others either.
                found.obstacles.append(_by_hand(error))
                return
    if order.migrate:
        with found.collecting():
            try:
                manager.check_once(order.migrate)
            except ServiceManagerUnreachableError as error:
                raise _by_hand(error) from None
    if counts:
        when = "from the beginning" if order.steps[0] == Step.STOP else "for the last steps alone"
        replicas = ", ".join(f"{name} ({count} replicas)" for name, count in counts.items())
        found.facts["services"] = f"stopped {when}: {replicas}"


def _by_hand(error: ServiceManagerUnreachableError) -> ServiceManagerUnreachableError:
    by_hand = "or stop the services by hand, and go on without them: the same with --without-services"
    return ServiceManagerUnreachableError(error.what, why=error.why, said=error.said, fix=f"{error.fix}; {by_hand}")
