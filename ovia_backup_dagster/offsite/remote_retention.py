"""Decides which copies a remote keeps, by the same plan as the volume's retention. Pure.

On a remote a backup has one copy, which counts in every tier that is on: it goes when no tier keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.backup import State
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.retention.plan import Candidate, plan_retention
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing.chain import Known
from ovia_backup_dagster.signing.statement import Standing

_STATES = {
    Standing.UNVERIFIED: State.UNVERIFIED,
    Standing.BAD: State.BAD,
    Standing.VERIFIED: State.VERIFIED,
    Standing.PROVEN: State.PROVEN,
}


@dataclass(frozen=True, slots=True)
class CopyDecision:
    """Whether a remote keeps a copy, and why.

    Attributes:
        archive: the archive's file name.
    """

    archive: str
    keep: bool
    reason: str


def plan_remote(copies: Iterable[tuple[BackupName, Known]], policy: Policy, now: datetime) -> list[CopyDecision]:
    """A decision for every copy, newest first.

    Args:
        copies: the complete copies that a statement vouches for, in any order, each once.
        policy: how many each tier keeps; a tier that keeps none is off.
        now: the present (UTC).
    """
    tiers = [tier for tier in Tier if policy.count(tier)]
    known = dict(copies)
    found = [_candidate(name, facts, tier) for name, facts in known.items() for tier in tiers]
    kept: dict[str, str] = {}
    removed: dict[str, str] = {}
    for decision in plan_retention(found, policy, now).decisions:
        archive = decision.candidate.key.partition("/")[2]
        (kept if decision.keep else removed).setdefault(archive, decision.reason)
    ordered = sorted(known, key=lambda name: (name.started_at, name.filename), reverse=True)
    archives = [name.filename for name in ordered]
    return [CopyDecision(archive, archive in kept, kept.get(archive) or removed[archive]) for archive in archives]


def _candidate(name: BackupName, known: Known, tier: Tier) -> Candidate:
    return Candidate(
        key=f"{tier}/{name.filename}",
        tier=tier,
        started_at=name.started_at,
        state=_STATES[known.standing],
        drilled=known.standing is Standing.PROVEN,
        held_until=known.held_until,
        hold_reason="a person keeps it, or a later backup lost rows",
        identified=False,
    )
