"""A signed volume with backups that no server made, and remotes reached by the real rclone and age."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from ovia_backup_dagster.offsite import transfer
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster_tests.offsite.ground import Ground
from ovia_backup_dagster_tests.offsite.intruder import CONTENTS, Scene
from ovia_backup_dagster_tests.offsite.servers import Kind, Server, site_on, until_ended
from ovia_backup_dagster_tests.offsite.site import Clock, Site, made_site, set_clock
from ovia_backup_dagster_tests.support.factories import DAY, NOW
from ovia_backup_dagster_tests.support.remotes import new_age
from ovia_backup_dagster_tests.support.signed_logs import forgotten


@pytest.fixture(scope="session")
def age(tmp_path_factory: pytest.TempPathFactory) -> Age:
    return new_age(tmp_path_factory.mktemp("age"))


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


@pytest.fixture
def nothing_is_left(tmp_path: Path, age: Age, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program is left running. Lost connections are tried again soon."""
    monkeypatch.setitem(transfer.send.__kwdefaults__ or {}, "retry_seconds", 1.0)
    yield
    until_ended(str(tmp_path), *age.recipients, str(age.identity))


@pytest.fixture
def ground(request: pytest.FixtureRequest, tmp_path: Path, age: Age, clock: object) -> Iterator[Ground]:
    """A remote that holds one small backup, on a server of the requested kind."""
    kind: Kind | None = getattr(request, "param", "s3")
    with ExitStack() as held:
        server = None
        if kind is None:
            site = made_site(tmp_path, age)
        else:
            server = held.enter_context(Server(kind, tmp_path / "served", tmp_path / "rclone.conf"))
            site = site_on(server, tmp_path, age)
            site.remote_log.initialize(NOW)
        site.backup(NOW - 2 * DAY, b"PGDMP: the first")
        site.copy()
        yield Ground(site, server)
