"""Copies on a remote: what is sent, when it counts as there, and what comes back."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core.errors import CopyDamagedError, LockHeldError, RemoteError, RemoteMissingError
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.offsite.copying import exclusively
from ovia_backup_dagster.offsite.layout import MARKER, Listing
from ovia_backup_dagster.offsite.remote_pruning import RemotePruner
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.conftest import quiet
from ovia_backup_dagster_tests.offsite.site import Site
from ovia_backup_dagster_tests.support.factories import DAY, NOW, drilled


def test_a_copy_comes_back_on_an_empty_machine(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    copied = site.copy()
    assert (copied.sent, copied.before, copied.copies) == ((str(backup),), (), (str(backup),))
    assert all(path.endswith((".age", ".json", ".sig")) for path in site.objects())
    back = site.fetch(tmp_path / "new")
    for kind in ("", ".json", ".globals.sql", ".verified.json"):
        assert Path(f"{back}{kind}").read_bytes() == Path(f"{backup.path}{kind}").read_bytes()


@pytest.mark.exhaustive
def test_nothing_is_sent_twice(site: Site) -> None:
    site.backup()
    site.copy()
    before = site.objects()
    assert site.copy().sent == ()
    assert site.objects() == before


@pytest.mark.exhaustive
def test_a_later_drill_follows_its_backup(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    site.copy()
    before = set(site.objects())
    drilled(site.catalog, backup)
    assert site.copy().sent == (str(backup),)
    assert before < set(site.objects()), "nothing is overwritten or removed"
    back = site.fetch(tmp_path / "new")
    assert Path(f"{back}.drilled.json").read_bytes() == Path(f"{backup.path}.drilled.json").read_bytes()


def test_everything_that_is_missing_is_made_up_for(site: Site) -> None:
    backups = [site.backup(NOW - days * DAY) for days in (3, 2, 1)]
    assert site.copy().sent == tuple(str(backup) for backup in reversed(backups))


@pytest.mark.exhaustive
def test_what_rotted_here_is_not_sent_and_stops_no_other(site: Site) -> None:
    """The archive has its size and its time, so that its verdict still counts."""
    older, rotten = site.backup(NOW - 2 * DAY), site.backup(NOW - DAY)
    status = rotten.path.stat()
    content = bytearray(rotten.path.read_bytes())
    content[-1] ^= 1
    rotten.path.write_bytes(content)
    os.utime(rotten.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CopyDamagedError, match=f"{rotten} is not sent: its SHA-256 is not the one"):
        site.operations.copy(NOW, site.said.append)
    assert site.operations.record.copies == (str(older),)
    there = site.objects()
    assert not [path for path in there if f"{rotten}/receipt" in path]
    assert site.object(str(rotten)) not in there, "a store with a lock would keep it"


def test_one_process_at_a_time_works_on_a_remote(site: Site) -> None:
    """The other is no failure of the remote, and is not recorded as one."""
    site.backup()
    before, operations = site.objects(), site.operations
    with exclusively(site.root, site.remote):
        for act in (operations.copy, operations.verify, operations.prune):
            with pytest.raises(LockHeldError, match="another process copies to remote nas"):
                act(NOW, quiet)
    assert (site.objects(), operations.record.failure) == (before, "")


def test_without_its_marker_a_remote_is_left_alone(site: Site) -> None:
    site.backup()
    site.remote.delete(MARKER)
    before = site.objects()
    with pytest.raises(RemoteMissingError, match="its disk is not mounted"):
        site.copy()
    assert site.objects() == before


@pytest.mark.exhaustive
def test_an_interrupted_removal_is_no_intruders_work(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two copies that go, the first is gone when the removal fails: no one is told that it vanished."""
    old = [str(site.backup(NOW - days * DAY)) for days in (40, 39)]
    newest = str(site.backup(NOW - DAY))
    site.operations.copy(NOW, quiet)
    site.policy = Policy({Tier.DAILY: 1, Tier.WEEKLY: 1}, Weekday.SUNDAY, ZoneInfo("UTC"))
    whole = RemotePruner._remove

    def remove(pruner: RemotePruner, archive: str, listing: Listing, now: datetime) -> None:
        if archive != old[0]:
            raise RemoteError("the connection was lost")
        whole(pruner, archive, listing, now)

    monkeypatch.setattr(RemotePruner, "_remove", remove)
    with pytest.raises(RemoteError):
        site.operations.prune(NOW, quiet)
    site.operations.copy(NOW, quiet)
    assert site.operations.record.findings == ()
    assert site.operations.record.copies == (old[1], newest)
