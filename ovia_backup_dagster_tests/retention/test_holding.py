"""A person keeps a backup: in every tier, on the volume and in the signed log, until it is released."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.publication import promote_backup
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.retention.holding import hold, release
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.retention.promote_and_prune import preview
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.support.factories import DAY, NOW, make_catalog, verified_backup

ONE = Policy({Tier.DAILY: 1, Tier.WEEKLY: 1}, Weekday.SUNDAY, ZoneInfo("UTC"))


def removals(catalog: Catalog, now: datetime = NOW) -> set[str]:
    return {decision.candidate.key for decision in preview(catalog.backups(), ONE, now).removals}


@pytest.mark.parametrize("until", [None, NOW + 10 * DAY])
def test_a_kept_backup_stays_until_its_time_or_release(tmp_path: Path, until: datetime | None) -> None:
    catalog = make_catalog(tmp_path)
    old, *_ = [verified_backup(catalog, NOW - days * DAY) for days in (30, 2, 1)]
    assert f"daily/{old}" in removals(catalog)
    hold(catalog, old, NOW, until=until, by="a person")
    assert f"daily/{old}" not in removals(catalog)
    assert (f"daily/{old}" in removals(catalog, NOW + 11 * DAY)) is (until is not None)
    release(catalog, catalog.refresh(old), NOW)
    assert f"daily/{old}" in removals(catalog)


def test_a_hold_covers_every_tier_and_the_signed_log(tmp_path: Path) -> None:
    statement_log._read.clear()
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    log = StatementLog(tmp_path, "ovia", key.public_key(), key)
    catalog = Catalog(tmp_path, "ovia", ledger=log)
    catalog.prepare()
    backup = verified_backup(catalog, NOW - 30 * DAY)
    promoted = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    until = NOW + DAY
    hold(catalog, backup, NOW, until=until, by="a person")
    known = log.chain().known
    assert [known[str(each)].held_until for each in (backup, promoted)] == [until, until]
    release(catalog, catalog.refresh(backup), NOW)
    assert [each.held_until for each in log.chain().known.values()] == [None, None]
