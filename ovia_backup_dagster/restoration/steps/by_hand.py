"""Instructions for an operator if the program cannot act itself, with the service manager's commands.

This module does not query the service manager, which may be unreachable.
"""

from __future__ import annotations

from collections.abc import Mapping

from ovia_backup_dagster.restoration.steps.step_context import Work


def to_stop(work: Work) -> str:
    return f"to be stopped by hand: {work.manager.scale_command(dict.fromkeys(work.order.services, 0))}"


def to_migrate(work: Work) -> str:
    return f"to be run by hand: {work.manager.run_once_command(work.order.migrate)}"


def to_end_migration(work: Work) -> str:
    return f"to be stopped by hand, if it still runs: {work.manager.scale_command({work.order.migrate: 0})}"


def to_start(work: Work, replicas: Mapping[str, int | None]) -> str:
    """Args:
    replicas: service -> its replicas; ``None`` if only the operator knows the number.
    """
    return f"to be started by hand: {work.manager.scale_command(replicas)}"


def to_ask_health(work: Work) -> str:
    return f"to be checked by hand: {work.order.health_url}"
