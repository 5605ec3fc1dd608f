"""The order in which a new restore takes its steps, for each mode.

The order is stored with the restore when it is planned: a killed restore is finished in the order that it began with,
by whatever version. To add a step, write a module for it and list it in a mode's sequence here. A step that no mode
takes any more must stay known, for the restores that began with it.
"""

from __future__ import annotations

from ovia_backup_dagster.core.errors import UnknownStepError
from ovia_backup_dagster.drill.runner import MADE_BY
from ovia_backup_dagster.restoration.journal import Journal
from ovia_backup_dagster.restoration.restore_order import Mode, Order, StopServices
from ovia_backup_dagster.restoration.steps.copy_tables import TablesStep
from ovia_backup_dagster.restoration.steps.drill_first import DrillStep
from ovia_backup_dagster.restoration.steps.drop_database import DropStep
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.name_database import NameStep
from ovia_backup_dagster.restoration.steps.restore_copy import RestoreStep
from ovia_backup_dagster.restoration.steps.services import HealthStep, MigrateStep, StartStep, StopStep
from ovia_backup_dagster.restoration.steps.swap_step import SwapStep

SEQUENCES: dict[Mode, tuple[type[TakenStep], ...]] = {
    Mode.SWAP: (RestoreStep, StopStep, SwapStep, MigrateStep, StartStep, HealthStep),
    Mode.DROP: (DrillStep, StopStep, DropStep, RestoreStep, NameStep, MigrateStep, StartStep, HealthStep),
    Mode.NEW: (RestoreStep, TablesStep, NameStep, MigrateStep, StartStep, HealthStep),
    # The application ran on this database before: its schema needs no migration.
    Mode.UNDO: (StopStep, SwapStep, StartStep, HealthStep),
}


def steps_of(order: Order) -> tuple[str, ...]:
    """The words of the steps that a new order takes, in sequence."""
    kinds = [kind for kind in SEQUENCES[order.mode] if kind.needed(order)]
    if order.stop_services is StopServices.FIRST:
        kinds.sort(key=lambda kind: kind is not StopStep)
    return tuple(str(kind.data.step) for kind in kinds)


def find_kind(word: str) -> type[TakenStep] | None:
    """The step with this word in the journal; ``None`` if this version has no such step."""
    return next((kind for kinds in SEQUENCES.values() for kind in kinds if kind.data.step == word), None)


def kind_of(word: str) -> type[TakenStep]:
    """The step with this word, in a journal that :func:`refuse_unknown` has accepted."""
    kind = find_kind(word)
    assert kind is not None, word
    return kind


def refuse_unknown(journal: Journal) -> None:
    """Refuse a restore that this version can neither finish nor put back: a newer version may have begun it.

    Raises:
        UnknownStepError: the restore has a step that this version does not know.
        JournalError: the journal data of a step cannot be parsed.
    """
    order = journal.order
    for word in dict.fromkeys([*order.steps, *(entry.step for entry in journal.entries if entry.step)]):
        kind = find_kind(word)
        if kind is None:
            raise UnknownStepError(
                f"the {order.mode} of {order.backup or order.database} has the step {word!r}, which this version does "
                "not know",
                why=f"{order.made_by} began it, and this is {MADE_BY}",
                fix=f"nothing was done: use {order.made_by}, or a newer one",
            )
        journal.data(kind.data)
