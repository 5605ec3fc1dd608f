"""How far a restore has got with the live database, from its journal and the server together.

It only queries. ``back`` and ``execution`` draw the conclusions.
"""

from __future__ import annotations

from ovia_backup_dagster.core.errors import RestoreError
from ovia_backup_dagster.restoration.request import command_to_give_up
from ovia_backup_dagster.restoration.restore_order import Mode, Step
from ovia_backup_dagster.restoration.step_data import SwapData
from ovia_backup_dagster.restoration.steps.step_context import Work
from ovia_backup_dagster.restoration.swap import database_state, is_called, swap_outcome


def is_named(work: Work) -> bool:
    """Whether the restored database has the live name, in a restore that found no live database. Asks the server.

    Raises:
        ServerError: no connection, or it broke.
    """
    order, made = work.order, work.journal.made
    return order.takes_name and made is not None and is_called(work.target, order.database, made)


def is_swapped(work: Work, oids: tuple[int, int]) -> bool:
    """Whether the swap was made, by this or another process.

    Raises:
        RestoreError: neither database has the live name: both were renamed or dropped since.
    """
    order, found = work.order, swap_outcome(work.target, work.order.database, oids)
    if found == "torn":
        raise RestoreError(
            f"neither the old nor the new database is called {order.database}",
            why="they were renamed or dropped since",
            fix=f"if what there is now is to stay, give this {order.mode} up: {command_to_give_up(order)}; else give "
            f"{order.database} its name back by hand: psql -l; ALTER DATABASE ... RENAME TO ...",
        )
    return found == "after"


def is_lost(work: Work) -> bool:
    """Whether the live database was dropped, at least in part, so that only finishing this restore brings it back.

    Raises:
        ServerError: no connection, or it broke.
    """
    if work.order.mode is not Mode.DROP or not work.journal.begun(Step.DROP) or is_named(work):
        return False
    found = database_state(work.target, work.order.database)
    return work.journal.done(Step.DROP) or found.oid != work.order.live_oid or found.invalid


def is_torn(work: Work) -> bool:
    """Whether a swap was begun, and neither database has the live name now: an operator renamed or dropped them.

    Raises:
        ServerError: no connection, or it broke.
    """
    oids = work.journal.data(SwapData).oids
    return oids is not None and swap_outcome(work.target, work.order.database, oids) == "torn"


def was_live(work: Work) -> bool:
    """Whether the incoming database is known to have been live, whatever its name is now: it may hold new rows."""
    return work.journal.done(Step.SWAP) or work.journal.data(SwapData).was_live
