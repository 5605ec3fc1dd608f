"""Promotes and prunes: takes the lock, reads the catalog again, decides, acts.

The decisions are pure functions in ``promotion`` and ``plan``. This module has the order of steps that the Dagster
assets and the command line share. ``core.publication`` publishes and removes files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import LockHeldError, NotVerifiedError, VolumeError
from ovia_backup_dagster.core.publication import promote_backup, remove_backup
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.retention.plan import RetentionPlan, candidate, plan_retention
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.retention.promotion import decide_promotion


@dataclass(frozen=True, slots=True)
class Promoted:
    """The result of a promotion.

    Attributes:
        made: tier -> the new backup.
        reasons: tier that is on -> why there is a new backup, or why not.
    """

    made: Mapping[Tier, Backup]
    reasons: Mapping[Tier, str]

    @property
    def weekly(self) -> Backup | None:
        """The new weekly backup, if there is one."""
        return self.made.get(Tier.WEEKLY)

    @property
    def reason(self) -> str:
        """All reasons, for a person; each names its tier if more than one is on."""
        if len(self.reasons) == 1:
            return next(iter(self.reasons.values()))
        return "; ".join(f"{tier}: {reason}" for tier, reason in self.reasons.items())


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of pruning.

    Attributes:
        plan: the decisions with their reasons.
        removed: keys of the removed backups.
        swept: abandoned temporary files and sidecars that were removed.
        in_use: keys of backups that are being restored; the next pruning removes them.
        freed_bytes: the size of the removed backups; another hard link may still hold the space.
    """

    plan: RetentionPlan
    removed: tuple[str, ...] = ()
    freed_bytes: int = 0
    swept: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()


def promote(
    catalog: Catalog, backup: Backup, policy: Policy, now: datetime, on_wait: Callable[[str], None] | None = None
) -> Promoted:
    """Promote a verified backup to each tier that is on and has no backup of that week, month or year.

    Raises:
        LockHeldError, BackupNotFoundError, VolumeError, DiskFullError.
    """
    with _locked(catalog, f"promoting {backup}", now, on_wait) as now:
        made, reasons = {}, {}
        for tier in policy.promoted_to:
            decision = decide_promotion(catalog.refresh(backup), tier, catalog.backups(tier), policy, now)
            reasons[tier] = decision.reason
            if decision.promote:
                catalog.prepare(tier)
                made[tier] = promote_backup(catalog, catalog.refresh(backup), tier, now)
    return Promoted(made, reasons)


def prune(catalog: Catalog, policy: Policy, now: datetime, on_wait: Callable[[str], None] | None = None) -> Pruned:
    """Remove the backups that the policy does not keep. A file that is gone or irremovable does not stop the rest.

    Raises:
        NotVerifiedError: the newest dump is not verified.
        VolumeError: some files could not be removed; all others were.
        LockHeldError: another operation is under way.
    """
    with _locked(catalog, "pruning", now, on_wait) as now:
        swept = tuple(path.name for path in sweep_abandoned(catalog))
        backups = {f"{b.tier}/{b}": b for b in catalog.backups()}
        plan = preview(backups.values(), policy, now)
        unfinished = RestoreFolder(catalog).unfinished()
        if plan.held:
            raise NotVerifiedError(
                "nothing was removed",
                why=plan.held,
                fix="verify it: ovia-backup verify latest"
                if plan.held.endswith(State.UNVERIFIED)
                else "make a new one: ovia-backup dump && ovia-backup verify",
            )
        removed, in_use, freed, failures = [], [], 0, []
        for decision in plan.removals:
            backup = backups[decision.candidate.key]
            if unfinished and unfinished.order.backup_path == str(backup.path):
                in_use.append(decision.candidate.key)  # the removing process was killed, so it holds no lock
                continue
            try:
                remove_backup(catalog, backup)
            except LockHeldError:
                in_use.append(decision.candidate.key)
            except VolumeError as error:
                failures.append(error)
            else:
                removed.append(decision.candidate.key)
                freed += backup.size_bytes
    if failures:
        raise VolumeError(
            f"{len(failures)} of {len(plan.removals)} backups could not be removed",
            why=failures[0].account,
            fix=failures[0].fix,
        )
    return Pruned(plan, tuple(removed), freed, swept, tuple(in_use))


@contextmanager
def _locked(catalog: Catalog, purpose: str, now: datetime, on_wait: Callable[[str], None] | None) -> Iterator[datetime]:
    """Hold the lock; yields the present, which is later than ``now`` by the time spent waiting.

    With the old ``now``, a dump made in the meantime would seem to be dated in the future, and be ignored.
    """
    began = time.monotonic()
    with catalog.lock(purpose, now, on_wait):
        yield now + timedelta(seconds=time.monotonic() - began)


def preview(backups: Iterable[Backup], policy: Policy, now: datetime) -> RetentionPlan:
    """What :func:`prune` would decide now; changes nothing and needs no lock.

    A backup that no signed statement vouches for has no part in it: it takes no other's place, and is not removed.
    """
    return plan_retention([candidate(b, now) for b in backups if b.is_vouched], policy, now)
