"""Copies on a remote: what is sent, when it counts as there, and what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import (
    RemoteMissingError,
)
from ovia_backup_dagster.offsite.layout import MARKER
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


def test_nothing_is_sent_twice(site: Site) -> None:
    site.backup()
    site.copy()
    before = site.objects()
    assert site.copy().sent == ()
    assert site.objects() == before


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


def test_without_its_marker_a_remote_is_left_alone(site: Site) -> None:
    site.backup()
    site.remote.delete(MARKER)
    before = site.objects()
    with pytest.raises(RemoteMissingError, match="its disk is not mounted"):
        site.copy()
    assert site.objects() == before
