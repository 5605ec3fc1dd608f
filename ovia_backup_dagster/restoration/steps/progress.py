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
    """Whether what was restored has the live database's name, where there was none, if not by this process.

    Raises:
        ServerError: it cannot be asked.
    """
    order, made = work.order, work.journal.made
    return order.takes_name and made is not None and is_called(work.target, order.database, made)


def is_swapped(work: Work, oids: tuple[int, int]) -> bool:
    """Whether the swap was made, if not by this process.

    Raises:
        RestoreError: a person has renamed or dropped both of the databases since.
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
    """Whether the live database was dropped, if only in part, so that this restore alone can bring it back.

    Raises:
        ServerError: it cannot be asked.
    """
    if work.order.mode is not Mode.DROP or not work.journal.begun(Step.DROP) or is_named(work):
        return False
    found = database_state(work.target, work.order.database)
    return work.journal.done(Step.DROP) or found.oid != work.order.live_oid or found.invalid


def is_torn(work: Work) -> bool:
    """Whether a swap was begun, and neither of its databases is the live one: a person has seen to that.

    Raises:
        ServerError: it cannot be asked.
    """
    oids = work.journal.data(SwapData).oids
    return oids is not None and swap_outcome(work.target, work.order.database, oids) == "torn"


def was_live(work: Work) -> bool:
    """Whether what was to be live is known to have been, whatever it is called now: it may have been written to."""
    return work.journal.done(Step.SWAP) or work.journal.data(SwapData).was_live
