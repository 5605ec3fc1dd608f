"""A signed volume with backups that no server made, and remotes reached by the real rclone and age."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster_tests.offsite.intruder import CONTENTS, Scene
from ovia_backup_dagster_tests.offsite.site import Clock, Site, made_site, set_clock
from ovia_backup_dagster_tests.support.factories import DAY, NOW
from ovia_backup_dagster_tests.support.signed_logs import forgotten


@pytest.fixture(scope="session")
def age(tmp_path_factory: pytest.TempPathFactory) -> Age:
    """A new identity, made by age-keygen."""
    identity = tmp_path_factory.mktemp("age") / "identity.txt"
    subprocess.run(("age-keygen", "-o", identity), check=True, capture_output=True)
    recipient = identity.read_text().partition("public key: ")[2].split()[0]
    return Age((recipient,), identity)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the clock of the signed log."""
    set_clock(monkeypatch)
    return lambda at: setattr(Clock, "at", at)


@pytest.fixture
def site(tmp_path: Path, age: Age, clock: Callable[[datetime], None]) -> Site:
    """A site whose remote is a folder."""
    return made_site(tmp_path, age)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, age: Age) -> tuple[Site, Path]:
    """A site with two copies, and its remote as it was when there was one."""
    folder = tmp_path_factory.mktemp("attacks")
    with pytest.MonkeyPatch.context() as patch:
        set_clock(patch)
        site = made_site(folder, age)
        site.backup(NOW - 2 * DAY, CONTENTS["yesterday"])
        site.copy()
        shutil.copytree(site.folder, folder / "before")
        site.backup(NOW - DAY, CONTENTS["today"])
        site.copy()
    return site, folder / "before"


@pytest.fixture
def scene(
    original: tuple[Site, Path], tmp_path: Path, clock: object, age: Age, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    made, before = original
    forgotten()
    site = made.at(tmp_path / "volume", tmp_path / "NAS für alle")
    for source, target in ((made.root, site.root), (made.folder, site.folder)):
        shutil.copytree(source, target)
    today, yesterday = (str(backup) for backup in site.catalog.newest_first())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "age").symlink_to(age.path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Scene(site, today, yesterday, before, tmp_path / "reader")
