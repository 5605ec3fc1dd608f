"""What came of a restore, for people: the record that is made from its journal alone, and the fate of what it replaced.

What was done, step by step, is ``journal``'s.
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
    """What becomes of a database that a restore replaced."""

    STAYS = "stays"
    ANNOUNCE = "announce"
    DROP = "drop"


def fate(replaced_at: datetime, announced_at: datetime | None, keep: timedelta, now: datetime) -> Fate:
    """Decide about a kept database: a pure function. None is dropped unannounced, nor within a day of it.

    Args:
        replaced_at: when the restore replaced it (UTC).
        announced_at: when people were last told that it will be dropped (UTC); ``None`` when they were not.
        keep: how long it is kept; nothing keeps it for ever.
        now: the present (UTC).
    """
    due = replaced_at + keep
    if keep <= timedelta(0) or now < due - _NOTICE:
        return Fate.STAYS
    # What people were told before counts for the day that they were told of: `keep` may have been raised since.
    if announced_at is None or announced_at < due - _NOTICE:
        return Fate.ANNOUNCE
    return Fate.DROP if now >= max(due, announced_at + _LEAST_NOTICE) else Fate.STAYS


class Record(Sidecar):
    """What came of one restore; evidence like a drill's, never rewritten.

    Attributes:
        order: what was asked for.
        finished_at: UTC.
        outcome: ``done``; ``put back``, when it failed or was aborted, and all is as before; ``given up``, when it
            could be neither finished nor put back, and a person said so; why is the error.
        proven: what the proof found.
        seconds: step -> seconds.
        interruption_seconds: how long no session was let in, at the swap.
        sessions_cut: how many were ended for it.
        replicas: of each service, as they were before.
        subscriptions: those that were disabled in the database that is kept.
        counters: what the server had counted of writes when the swap was done.
        swapped_at: when the swap was made (UTC); ``None`` where there was none that stands, or its process was killed.
        live_oid: of the database that a swap made live, for good; ``None`` where none did.
        notes: what a person should know.
        error, fix: why it did not come to its end, and what to do.
        kept: the database that was live before, or for a while; empty when there is none.
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
        """What that database is, in words for people."""
        if self.outcome != "put back":
            return "the database before"
        # The restored one; or, of an undo, the one that was gone back to, which an earlier restore had kept.
        what = "what was live before it" if self.order.mode is Mode.UNDO else "what was restored"
        return f"{what}, and was live for a while,"


def record_of(journal: Journal) -> Record:
    """The record of a restore that has ended, whenever it is asked for."""
    order, swapped = journal.order, journal.data(SwapData)
    live = journal.ended is JournalMark.FINISHED and journal.done(Step.SWAP)
    # What was live for a while, and was swapped back, is kept as well.
    stays = swapped.aside if swapped.stays is None else swapped.stays
    aside = stays if journal.ended is JournalMark.PUT_BACK else ""
    notes = [note for entry in journal.entries for note in entry.data.get("notes", ())]
    # What went well in the end is no failure.
    errors = (e.data for e in reversed(journal.entries) if "error" in e.data and not (e.step and journal.done(e.step)))
    failed = next(errors, {})
    # What is live then can be undone like any other; what was put back can not.
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
    """A process that found the swap made already does not know when that was."""
    swaps = (entry for entry in journal.entries if entry.step == Step.SWAP and "interruption_seconds" in entry.data)
    return next((entry.at.replace(microsecond=0) for entry in swaps), None)


def _seconds(journal: Journal) -> dict[str, float]:
    """How long each step took, all its attempts together."""
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
