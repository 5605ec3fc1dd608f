"""The same round trip on every kind of remote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core.remote_address import parse_remotes
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster_tests.offsite.servers import Kind, Server, site_on
from ovia_backup_dagster_tests.offsite.site import Site, made_site
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import DAY, NOW


@pytest.fixture
def remote_site(request: pytest.FixtureRequest, tmp_path: Path, age: Age, clock: object) -> Iterator[Site]:
    kind: Kind | None = request.param
    if kind is None:
        yield made_site(tmp_path, age, "Käse & Brot")
        return
    with Server(kind, tmp_path / "served", tmp_path / "rclone.conf") as server:
        site = site_on(server, tmp_path, age)
        site.remote_log.initialize(NOW)
        yield site


@pytest.mark.exhaustive
@pytest.mark.parametrize("remote_site", thinned(("s3", None, "sftp", "webdav")), indirect=True, ids=str)
def test_a_round_trip(remote_site: Site, tmp_path: Path) -> None:
    site, operations = remote_site, remote_site.operations
    old, new = site.backup(NOW - 2 * DAY, b"PGDMP: old"), site.backup(NOW - DAY, b"PGDMP: new")
    assert site.remote_log.initialize(NOW + DAY).at == NOW, "it is ours already"
    assert operations.copy(NOW, site.said.append).sent == (str(new), str(old))
    objects = site.objects()
    again = operations.copy(NOW, site.said.append)
    assert (again.sent, len(again.before), site.objects()) == ((), 2, objects)

    verified = operations.verify(NOW, site.said.append)
    assert (verified.findings, verified.notes) == ((), ())
    assert verified.copies == (str(old), str(new))
    assert verified.read_back is not None
    assert verified.read_back.good

    fewer = replace(site, policy=replace(site.policy, keep={Tier.DAILY: 1, Tier.WEEKLY: 1}))
    assert fewer.operations.prune(NOW, site.said.append).removed == (str(old),)
    assert fewer.operations.prune(NOW, site.said.append).removed == ()
    assert not any(str(old) in path for path in site.objects())

    got = site.fetch(tmp_path / "new")
    assert got.read_bytes() == b"PGDMP: new"
    assert Path(f"{got}.globals.sql").exists()


@pytest.mark.exhaustive
def test_a_place_within_a_place_is_another_remote(tmp_path: Path, age: Age, clock: object) -> None:
    """Nothing of one remote is listed on another, and a marker is found only in its own folder."""
    site = made_site(tmp_path, age)
    [address] = parse_remotes(f"inner={site.folder}/inner")
    inner = replace(site, remote=replace(site.remote, address=address))
    site.backup()
    site.copy()
    assert inner.objects() == {}
