"""Decides which backups a remote lacks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.offsite.copies import GOOD, Copies
from ovia_backup_dagster.offsite.remote_retention import plan_remote
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing.chain import Known
from ovia_backup_dagster.signing.statement import ARCHIVE


def missing_copies(local: Iterable[BackupName], copies: Copies, policy: Policy, now: datetime) -> list[str]:
    """The archives to send, newest first: those without a complete copy, and those of which a file is not there.

    One that the remote's retention would remove at once is not sent; one archive of several tiers is sent once.

    Args:
        local: the verified backups on the volume that a statement vouches for.
        copies: what the remote has.
        policy: the remote's.
        now: the present (UTC).
    """
    complete = dict(copies.complete)
    # A copy that is known to be bad, and goes, does not stand for the same archive in another tier.
    good = [(name, known) for name, known in complete.items() if known.standing in GOOD]
    archives = {(name.started_at, known.files[ARCHIVE].sha256) for name, known in good}
    wanted: dict[BackupName, Known] = {}
    for name in sorted(local, key=lambda name: (name.started_at, -name.tier.rank), reverse=True):
        if name.filename not in copies.chain.known:
            continue
        known = copies.known(name.filename)
        if ARCHIVE not in known.files:
            continue
        if name in complete:
            if copies.lacks(name.filename):
                wanted[name] = known
        elif (same := (name.started_at, known.files[ARCHIVE].sha256)) not in archives:
            archives.add(same)
            wanted[name] = known
    every = {**complete, **wanted}
    kept = {decision.archive for decision in plan_remote(every.items(), policy, now) if decision.keep}
    return [name.filename for name in wanted if name.filename in kept]
