"""Decides which backups a remote lacks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.offsite.layout import Listing
from ovia_backup_dagster.offsite.remote_retention import plan_remote
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing.chain import Chain, Known
from ovia_backup_dagster.signing.statement import ARCHIVE


def complete_copies(listing: Listing, chain: Chain) -> list[tuple[BackupName, Known]]:
    """The copies that are whole by their receipts and that a statement vouches for."""
    names = ((BackupName.parse(archive), archive) for archive in listing.receipts)
    return [(name, chain.known[archive]) for name, archive in names if name is not None and archive in chain.known]


def missing_copies(
    local: Iterable[BackupName], listing: Listing, chain: Chain, policy: Policy, now: datetime
) -> list[str]:
    """The archives to send, newest first: whole backups, and those with a newer verdict or drill.

    One that the remote's retention would remove at once is not sent; one archive of several tiers is sent once.

    Args:
        local: the verified backups on the volume that a statement vouches for.
        listing: what the remote has.
        chain: the signed log.
        policy: the remote's.
        now: the present (UTC).
    """
    there = complete_copies(listing, chain)
    archives = {(name.started_at, known.files[ARCHIVE].sha256) for name, known in there if ARCHIVE in known.files}
    wanted: dict[BackupName, Known] = {}
    for name in sorted(local, key=lambda name: (name.started_at, -name.tier.rank), reverse=True):
        known = chain.known.get(name.filename)
        if known is None or ARCHIVE not in known.files:
            continue
        if name.filename in listing.receipts:
            if listing.receipts[name.filename][-1] < known.sequence:
                wanted[name] = known
        elif (same := (name.started_at, known.files[ARCHIVE].sha256)) not in archives:
            archives.add(same)
            wanted[name] = known
    every = dict([*there, *wanted.items()])
    kept = {decision.archive for decision in plan_remote(every.items(), policy, now) if decision.keep}
    return [name.filename for name in wanted if name.filename in kept]
