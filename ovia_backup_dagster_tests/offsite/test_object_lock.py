"""Object lock, by a store that enforces it: what an intruder with the host's credentials cannot undo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import RemoteError
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.fetching import Fetcher
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.offsite.servers import LockingStore, locking_store
from ovia_backup_dagster_tests.offsite.site import Site
from ovia_backup_dagster_tests.support.factories import DAY, NOW

LOCK_DAYS = 40
_buckets = (f"bucket{number}" for number in count(1))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockingStore]:
    with locking_store(tmp_path_factory.mktemp("store")) as found:
        yield found


def site_in(store: LockingStore, folder: Path, age: Age, *, lock: bool = True, lock_days: int = LOCK_DAYS) -> Site:
    bucket = next(_buckets)
    store.bucket(bucket, lock=lock)
    statement_log._read.clear()
    site = Site(folder / "volume", store.remote(bucket, lock_days), age)
    site.catalog.prepare()
    return site


@pytest.fixture
def locked(store: LockingStore, tmp_path: Path, age: Age, clock: object) -> Site:
    site = site_in(store, tmp_path, age)
    site.remote_log.initialize(NOW)
    return site


def bucket_of(site: Site) -> str:
    return site.remote.address.target.removeprefix("store:").partition("/")[0]


@pytest.mark.exhaustive
def test_every_object_is_locked_and_the_lock_holds(locked: Site, store: LockingStore) -> None:
    locked.backup()
    locked.copy()
    stored = locked.remote.listing(locks=True)
    days = {(each.locked_until - datetime.now(UTC)).days for each in stored.values() if each.locked_until}
    assert all(each.locked_until for each in stored.values()), "statements, receipts and the marker, too"
    assert days == {LOCK_DAYS - 1}
    found = locked.operations.verify(NOW, locked.said.append)
    assert found.findings == ()
    assert any("canary/" in key for key in store.versions(bucket_of(locked))), "its deletion was refused"


@pytest.mark.exhaustive
def test_pruning_says_until_when_a_copy_is_locked(locked: Site) -> None:
    old, new = locked.backup(NOW - 2 * DAY), locked.backup(NOW - DAY)
    locked.copy()
    few = replace(locked, policy=replace(locked.policy, keep={Tier.DAILY: 1, Tier.WEEKLY: 1}))
    before = locked.objects()
    pruned = few.operations.prune(NOW, locked.said.append)
    assert (pruned.removed, pruned.kept) == ((), (str(new), str(old)))
    assert pruned.locked[str(old)].startswith("locked until ")
    assert few.operations.record.failure == ""
    assert locked.objects() == before, "and nothing is hidden"


@pytest.mark.exhaustive
def test_a_copy_whose_lock_has_ended_goes_for_good(locked: Site, store: LockingStore) -> None:
    """Also its older versions, which would fill the bucket unseen."""
    unlocked = replace(locked, remote=replace(locked.remote, lock_days=0))
    old = unlocked.backup(NOW - 2 * DAY)
    unlocked.copy()
    path = unlocked.object(str(old))
    unlocked.remote.write(path, bytes(unlocked.objects()[path]))  # a second version
    locked.backup(NOW - DAY)
    locked.copy()
    few = replace(locked, policy=replace(locked.policy, keep={Tier.DAILY: 1, Tier.WEEKLY: 1}))
    assert few.operations.prune(NOW, locked.said.append).removed == (str(old),)
    assert not [key for key in store.versions(bucket_of(locked)) if str(old) in key]


@pytest.mark.exhaustive
def test_a_bucket_without_lock_is_an_error_and_a_finding(
    store: LockingStore, tmp_path: Path, age: Age, clock: object
) -> None:
    site = site_in(store, tmp_path, age, lock=False, lock_days=0)
    site.remote_log.initialize(NOW)
    site.backup()
    site.copy()
    site = replace(site, remote=replace(site.remote, lock_days=LOCK_DAYS))
    [finding] = site.operations.verify(NOW, site.said.append).findings
    assert "its bucket has no object lock" in finding
    site.backup(NOW)
    with pytest.raises(RemoteError, match="OFFSITE_LOCK_DAYS=0"):
        site.copy()


@pytest.mark.exhaustive
def test_a_lock_that_does_not_hold_is_a_finding(locked: Site) -> None:
    """The store accepts the lock, and the object can be deleted: here, because the lock ends at once."""
    remote = replace(locked.remote, lock_days=LOCK_DAYS)

    class Unlocking(type(remote)):  # type: ignore[misc]
        _locking = ()

    weak = Unlocking(remote.address, remote.program, LOCK_DAYS)
    [finding] = replace(locked, remote=weak).operations.verify(NOW, locked.said.append).findings
    assert f"deleted an object that OFFSITE_LOCK_DAYS={LOCK_DAYS} should have locked" in finding


@pytest.mark.exhaustive
def test_what_an_intruder_hides_is_noticed_and_comes_back(locked: Site, tmp_path: Path) -> None:
    backup = locked.backup()
    locked.operations.copy(NOW, locked.said.append)
    whole = locked.objects()
    time.sleep(1.1)  # versions are told apart by the second
    then = datetime.now(UTC)
    time.sleep(1.1)
    for path in whole:
        locked.remote.delete(path)
    assert locked.objects() == {}

    earlier = replace(locked.remote, as_of=then)
    fetcher = Fetcher(earlier, StatementLog(tmp_path / "new", "ovia", locked.key.public_key()), locked.age)
    got = fetcher.fetch(fetcher.find("latest", NOW), tmp_path / "got", locked.said.append)
    assert got.read_bytes() == backup.path.read_bytes()

    for path in whole:
        if path.startswith(("ovia-offsite", "statements")):
            content = earlier.read(path)
            assert content is not None
            locked.remote.write(path, content)
    [finding] = locked.operations.verify(NOW, locked.said.append).findings
    assert finding == f"{backup} was on store, and is gone or hidden: this host did not remove it"


@pytest.mark.exhaustive
def test_a_user_value_in_the_place_of_a_lock_harms_nothing(locked: Site, store: LockingStore) -> None:
    place = f"{bucket_of(locked)}/of%20ovia/backups/strange"
    store.request("PUT", place, "!", **{"x-amz-meta-object-lock-retain-until-date": "whenever"})
    assert locked.remote.listing(locks=True)["backups/strange"].locked_until is None
