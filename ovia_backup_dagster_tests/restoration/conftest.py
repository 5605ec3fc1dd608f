"""The live database of most restore tests: created once per worker, and copied for each test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster_tests.conftest import PortCluster
from ovia_backup_dagster_tests.support.restoring import Site, copy_database, drop_database, site_on


@pytest.fixture(scope="session")
def model(server: PortCluster, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site that is copied for each test, because a dump and its verification take longer than most tests."""
    with site_on(server, bin_dir, tmp_path_factory.mktemp("model")) as site:
        copy_database(site, site.live.database, f"model_{site.live.database}")
        try:
            yield site
        finally:
            drop_database(site, f"model_{site.live.database}")


@pytest.fixture
def site(model: Site, tmp_path: Path) -> Site:
    """A live database that changed since its verified backup, with its own volume."""
    for database in model.databases:
        drop_database(model, database)
    copy_database(model, f"model_{model.live.database}", model.live.database)
    root = tmp_path / "backups"
    subprocess.run(("cp", "-a", str(model.place.root), str(root)), check=True)
    place = replace(model.place, settings={**model.place.settings, "BACKUP_DIR": str(root)}, logs=tmp_path)
    return replace(model, place=place, backup=place.catalog.backups(Tier.DAILY)[0])
