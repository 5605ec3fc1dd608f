"""Judges how point-in-time recovery stands: what would be lost now, what can be recovered, and what is wrong. Pure.

``standing_reader`` reads the facts from the volume. Nothing here asks the server: the receiver reports what it says.
One cause is reported once, the first in the chain of causes; what merely follows from it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import duration, seconds
from ovia_backup_dagster.pitr.recovery_catalog import Base, Hole, RecoveryCatalog, Stretch, shown_time
from ovia_backup_dagster.pitr.standing_troubles import (
    base_troubles,
    chain_troubles,
    holes_since_base,
    receiving_troubles,
    room_troubles,
)
from ovia_backup_dagster.pitr.standing_values import PitrFacts, PitrLimits, PitrPart, PitrTrouble


@dataclass(frozen=True, slots=True)
class PitrStanding:
    """How point-in-time recovery stands.

    Attributes:
        text: how things stand, in a sentence.
        found: what is wrong, the most causal first; empty if all is well.
        facts: what was judged.
        rpo_seconds: how many seconds of changes would be lost with the server now, at most; ``None`` if unknown.
        window: what can be recovered without a hole up to the newest instant; ``None`` if nothing can.
        newest: the newest base backup that is not bad.
        verified: the newest one that is verified.
        drilled_at: when a base backup last passed a drill (UTC).
    """

    text: str
    found: tuple[PitrTrouble, ...]
    facts: PitrFacts
    rpo_seconds: float | None
    window: Stretch | None
    newest: Base | None
    verified: Base | None
    drilled_at: datetime | None

    @property
    def troubles(self) -> tuple[BackupError, ...]:
        """The errors to report, the most causal first."""
        return tuple(trouble.error for trouble in self.found)

    @property
    def urgent(self) -> bool:
        """Whether recent changes, or all instants, cannot be recovered now."""
        return any(trouble.urgent for trouble in self.found)

    @property
    def parts(self) -> tuple[PitrPart, ...]:
        """The parts that have troubles."""
        return tuple(part for part in PitrPart if any(trouble.part is part for trouble in self.found))

    @property
    def worst_rpo_seconds(self) -> float | None:
        """The most seconds of changes that could have been lost within the last day."""
        return self.facts.status.worst_rpo_seconds if self.facts.status else None

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The holes in the WAL from the oldest base backup on."""
        return self.facts.catalog.holes if self.facts.catalog else ()

    @property
    def described_holes(self) -> tuple[str, ...]:
        """Each hole in words: which WAL is missing, and about when it was written."""
        if self.facts.catalog is None:
            return ()
        size, still = self.facts.catalog.segment_bytes, self.open_holes
        return tuple(
            f"between {hole.after.name(size) if hole.after else 'the oldest base backup'} "
            f"({shown_time(hole.since) if hole.since else 'unknown'}) and {hole.before.name(size)} "
            f"({shown_time(hole.until) if hole.until else 'unknown'})"
            + ("" if hole in still else ", and so before the newest base backup")
            for hole in self.holes
        )

    @property
    def open_holes(self) -> tuple[Hole, ...]:
        """Those that the newest verified base backup does not make history."""
        return holes_since_base(self.facts.catalog) if self.facts.catalog else ()


def judge_pitr(facts: PitrFacts, limits: PitrLimits, now: datetime) -> PitrStanding:
    """Judge how point-in-time recovery stands.

    Args:
        facts: what the volume says.
        limits: what the settings allow.
        now: the present (UTC).
    """
    catalog = facts.catalog
    good = catalog.good_bases if catalog else ()
    newest = max(good, key=lambda base: base.started_at, default=None)
    found = list(room_troubles(facts, limits, newest, now))
    # A full disk also keeps the receiver from reporting.
    if not any(trouble.urgent for trouble in found):
        found += receiving_troubles(facts, limits, now)
    found += [*chain_troubles(facts), *base_troubles(facts, limits, newest, now)]
    window, rpo = _window(catalog), facts.status.rpo_seconds(now) if facts.status else None
    drilled = [base.drilled_at for base in good if base.drilled_at is not None]
    return PitrStanding(
        text=_text(window, _beginning(catalog), rpo, now),
        found=_first_of_each(sorted(found, key=lambda trouble: not trouble.urgent)),
        facts=facts,
        rpo_seconds=rpo,
        window=window,
        newest=newest,
        verified=max((base for base in good if base.verified), key=lambda base: base.started_at, default=None),
        drilled_at=max(drilled, default=None),
    )


def _beginning(catalog: RecoveryCatalog | None) -> datetime | None:
    """The earliest instant that can be recovered, with whatever holes after it (UTC)."""
    return min((stretch.from_time for stretch in catalog.stretches), default=None) if catalog else None


def _text(window: Stretch | None, beginning: datetime | None, rpo: float | None, now: datetime) -> str:
    if window is None:
        able = "no instant can be recovered yet"
    else:
        since, until = shown_time(window.from_time), shown_time(window.to_time)
        able = f"any instant from {since} to {until} can be recovered ({duration(now - window.from_time)})"
        if beginning is not None and beginning < window.from_time:
            able += f", and parts of the time since {shown_time(beginning)}"
    lost = "unknown" if rpo is None else f"the last {seconds(rpo)}"
    return f"{able}; what would be lost with the server now: {lost}"


def _first_of_each(troubles: Iterable[PitrTrouble]) -> tuple[PitrTrouble, ...]:
    """The first trouble of each class: a second one of the same class has the same cause, or waits for the first."""
    found: dict[type[BackupError], PitrTrouble] = {}
    for trouble in troubles:
        found.setdefault(type(trouble.error), trouble)
    return tuple(found.values())


def _window(catalog: RecoveryCatalog | None) -> Stretch | None:
    if catalog is None:
        return None
    stretches = [each for each in catalog.stretches if each.timeline == catalog.newest.number]
    return max(stretches, key=lambda stretch: stretch.to_lsn, default=None)
