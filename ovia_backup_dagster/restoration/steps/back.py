"""Puts a whole restore back: decides whether that is possible, and undoes each step from the last to the first.

A step's own module undoes the step.
"""

from __future__ import annotations

from ovia_backup_dagster.core.errors import BackupError, NoWayBackError, RestoreError
from ovia_backup_dagster.restoration.request import command_to_give_up
from ovia_backup_dagster.restoration.restore_order import Step
from ovia_backup_dagster.restoration.step_data import SwapData
from ovia_backup_dagster.restoration.steps import registry
from ovia_backup_dagster.restoration.steps.progress import is_lost, is_named, is_swapped
from ovia_backup_dagster.restoration.steps.services import end_migration, give_replicas_back
from ovia_backup_dagster.restoration.steps.step_context import Work
from ovia_backup_dagster.restoration.swap import database_state, names_by_oid


def require_way_back(work: Work) -> None:
    """Refuse to put back a restore whose old live database cannot come back.

    Raises:
        NoWayBackError: the old live database is gone, or there was none.
    """
    order, oids = work.order, work.journal.data(SwapData).oids
    why, instead = "", ""
    if is_named(work):
        why = "this restore created it; it is live, and may have been written to"
    elif is_lost(work):
        why = "mode drop has begun to drop it, and only a backup can bring it back"
        instead = f"; or give this backup up, to restore another: {command_to_give_up(order)}"
    elif oids is not None and is_swapped(work, oids):
        kept = database_state(work.target, order.kept)
        why = "" if kept.oid == oids[0] else f"what was live before is no longer there as {order.kept}"
    if why:
        raise NoWayBackError(
            f"database {order.database} cannot be put back",
            why=why,
            fix=f"to finish it: ovia-backup restore --resume{instead}",
        )


def require_still_live(work: Work) -> None:
    """Refuse to go on if an operator has undone the swap by hand.

    Raises:
        RestoreError: the old database is live again, or neither database is.
    """
    order, oids = work.order, work.journal.data(SwapData).oids
    if work.journal.done(Step.SWAP) and oids is not None and not is_swapped(work, oids):
        raise RestoreError(
            f"database {order.database} is not what the {order.mode} made live",
            why="what was live before was put back, by renaming",
            fix="put everything back: ovia-backup restore --abort",
        )


def put_back(work: Work) -> list[BackupError]:
    """Return the live database and the services' replicas to the state before the restore.

    Returns:
        Problems that do not keep the restore from ending: services that are scaled but unhealthy, and a copy that
        cannot be dropped.

    Raises:
        BackupError: this failed; it can be tried again.
    """
    taken = [registry.kind_of(word)(work) for word in reversed(work.order.steps)]
    problems: list[BackupError] = []
    for step in taken:
        problems += step.put_back()
    for step in taken:
        problems += step.clean_up()
    return problems


def let_go(work: Work) -> list[BackupError]:
    """Leave the databases of a torn swap as they are, and give the services their replicas back.

    Returns:
        Problems, as for :func:`put_back`.

    Raises:
        BackupError: the services could not be scaled; this can be tried again.
    """
    noted = work.journal.data(SwapData)
    assert noted.oids is not None  # the swap is torn, so it was begun
    whose = dict(zip(noted.oids, ("was live before", "was to be live"), strict=True))
    called = names_by_oid(work.target, whose)
    notes = [
        f"what {what} is called {called[oid]} now" if oid in called else f"what {what} is gone"
        for oid, what in whose.items()
    ]
    if stopped := ", ".join(noted.subscriptions):
        notes.append(f"subscriptions that may be disabled: {stopped}")
    work.note(Step.SWAP, notes)
    end_migration(work)
    return give_replicas_back(work)
