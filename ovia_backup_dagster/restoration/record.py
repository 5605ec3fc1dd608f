"""The record of an ended restore, derived from its journal alone, and when a replaced database expires.

The steps of a restore belong to ``journal``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.restoration.journal import OUTCOMES, Journal, JournalMark
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.restoration.step_data import Proven, StopData, SwapData

_NOTICE = timedelta(days=2)
_LEAST_NOTICE = timedelta(days=1)


class Fate(StrEnum):
    """The fate of a replaced database."""

    STAYS = "stays"
    ANNOUNCE = "announce"
    DROP = "drop"


def fate(replaced_at: datetime, announced_at: datetime | None, keep: timedelta, now: datetime) -> Fate:
    """Decide the fate of a kept database. Pure. It is dropped at the earliest a day after its drop was announced.

    Args:
        replaced_at: when the restore replaced it (UTC).
        announced_at: when its drop was last announced (UTC); ``None`` if it was not.
        keep: how long it is kept; zero keeps it forever.
        now: the present (UTC).
    """
    due = replaced_at + keep
    if keep <= timedelta(0) or now < due - _NOTICE:
        return Fate.STAYS
    # An announcement counts only for the date that it named: `keep` may have been raised since.
    if announced_at is None or announced_at < due - _NOTICE:
        return Fate.ANNOUNCE
    return Fate.DROP if now >= max(due, announced_at + _LEAST_NOTICE) else Fate.STAYS


class Record(Sidecar):
    """The record of one restore: evidence, like a drill's, that is never rewritten.

    Attributes:
        order: the restore as planned.
        finished_at: UTC.
        outcome: ``done``; ``put back``: it failed or was aborted, and all is as before; ``given up``: it could be
            neither finished nor put back, and an operator ended it; ``error`` has the reason.
        proven: the results of the checks.
        seconds: step -> seconds.
        interruption_seconds: how long the swap kept new sessions out.
        sessions_cut: how many sessions were terminated.
        replicas: service -> its replicas before the restore.
        subscriptions: those disabled in the kept database.
        counters: the server's write counters at the swap.
        swapped_at: when the swap was made (UTC); ``None`` if no swap is in effect, or its process was killed.
        live_oid: the OID of the database that a swap made live for good; ``None`` without one.
        notes: texts for the operator.
        error, fix: why it did not finish, and what to do.
        kept: the database that was live before the restore, or for a while; empty without one.
    """

    version: Literal[1] = 1
    order: Order
    finished_at: AwareDatetime
    outcome: Literal["done", "put back", "given up"]
    proven: Proven | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    interruption_seconds: float | None = None
    sessions_cut: int | None = None
    replicas: dict[str, int] = Field(default_factory=dict)
    subscriptions: tuple[str, ...] = ()
    counters: dict[str, Any] = Field(default_factory=dict)
    swapped_at: AwareDatetime | None = None
    live_oid: int | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    fix: str = ""
    kept: str = ""

    @property
    def what_is_kept(self) -> str:
        """Describes the kept database, for people."""
        if self.outcome != "put back":
            return "the database before"
        # The restored database; for an undo, the replaced database that it swapped back to.
        what = "what was live before it" if self.order.mode is Mode.UNDO else "what was restored"
        return f"{what}, and was live for a while,"


def record_of(journal: Journal) -> Record:
    """Derive the record of an ended restore from its journal, at any later time."""
    order, swapped = journal.order, journal.data(SwapData)
    live = journal.ended is JournalMark.FINISHED and journal.done(Step.SWAP)
    # A database that was live for a while and was swapped back is kept, too.
    stays = swapped.aside if swapped.stays is None else swapped.stays
    aside = stays if journal.ended is JournalMark.PUT_BACK else ""
    notes = [note for entry in journal.entries for note in entry.data.get("notes", ())]
    # An error of a step that succeeded later does not count.
    errors = (e.data for e in reversed(journal.entries) if "error" in e.data and not (e.step and journal.done(e.step)))
    failed = next(errors, {})
    # A restored database that is live can be undone; a restore that was put back cannot.
    back = "go back: ovia-backup undo-restore" if failed and live else ""
    return Record(
        order=order,
        finished_at=(journal.entries[-1].at if journal.entries else order.started_at).replace(microsecond=0),
        outcome=OUTCOMES[journal.ended or JournalMark.PUT_BACK],
        proven=journal.proven,
        seconds=_seconds(journal),
        interruption_seconds=swapped.interruption_seconds,
        sessions_cut=swapped.sessions_cut,
        replicas=journal.data(StopData).replicas or {},
        subscriptions=swapped.aside_subscriptions if aside else swapped.subscriptions,
        counters=swapped.counters,
        swapped_at=_swapped_at(journal) if live else None,
        live_oid=swapped.incoming_oid if live else None,
        notes=tuple(dict.fromkeys(notes)),
        error=str(failed.get("error", "")),
        fix="; or ".join(filter(None, (str(failed.get("fix", "")), back))),
        kept=order.kept if live else aside,
    )


def _swapped_at(journal: Journal) -> datetime | None:
    """The time of the swap; unknown if a later process found it already made."""
    swaps = (entry for entry in journal.entries if entry.step == Step.SWAP and "interruption_seconds" in entry.data)
    return next((entry.at.replace(microsecond=0) for entry in swaps), None)


def _seconds(journal: Journal) -> dict[str, float]:
    """Step -> seconds, the sum of all attempts."""
    seconds: dict[str, float] = {}
    since: datetime | None = None
    for entry in journal.entries:
        if entry.step is None or entry.mark in (JournalMark.NOTED, JournalMark.PUTTING_BACK):
            continue
        if entry.mark is JournalMark.BEGUN:
            since = entry.at
        elif since is not None:
            took = (entry.at - since).total_seconds()
            seconds[entry.step] = round(seconds.get(entry.step, 0.0) + took, 3)
            since = None
    return seconds
