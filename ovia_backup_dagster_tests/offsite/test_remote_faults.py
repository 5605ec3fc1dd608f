"""Remotes that fail: each fault ends in a typed error, nothing local changes, and the next run completes the copies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from ovia_backup_dagster.core.errors import (
    CopyDamagedError,
    RemoteError,
    RemoteFullError,
    RemoteStalledError,
    RemoteUnreachableError,
)
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, tmpfs
from ovia_backup_dagster_tests.faults.proxy import Silence
from ovia_backup_dagster_tests.offsite.ground import (
    KINDS,
    Ground,
    big,
    completed,
    in_the_child,
    on_folder,
    outcome,
    unchanged,
)
from ovia_backup_dagster_tests.offsite.servers import Kind, Resetting, Server, site_on, until_ended
from ovia_backup_dagster_tests.offsite.site import made_site
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import DAY, NOW, drilled

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# ------------------------------------------------------------------------------------------------- killed in the middle


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", ["s3"], indirect=True)
@pytest.mark.parametrize("moment", thinned(range(30)))
def test_the_server_is_killed_during_an_upload(moment: int, ground: Ground, rng: Random, tmp_path: Path) -> None:
    killed_server(ground, rng, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", ["sftp", "webdav"], indirect=True)
@pytest.mark.parametrize("moment", range(5))
def test_another_server_is_killed(moment: int, ground: Ground, rng: Random, tmp_path: Path) -> None:
    killed_server(ground, rng, tmp_path)


def killed_server(ground: Ground, rng: Random, tmp_path: Path) -> None:
    site, server = ground.site, ground.server
    assert server is not None
    new = site.backup(NOW, big(rng)).path
    seconds = rng.uniform(0, 2.5)
    print(f"killed after {seconds:.2f} s")
    timer = threading.Timer(seconds, server.kill)
    timer.start()
    with unchanged(site):
        error = outcome(ground.again(bandwidth="4M", stall_seconds=3.0).copy)
    # rclone tries a refused connection to S3 again for longer than our patience here.
    assert error is None or (isinstance(error, (RemoteUnreachableError, RemoteStalledError)) and error.fix), error
    timer.join()
    server.start()
    left = site.elsewhere(tmp_path / "before").copies(NOW).complete
    assert len(left) in (1, 2), "half a copy does not count"
    completed(site, new, tmp_path / "new")


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", [None, *KINDS], indirect=True, ids=str)
@pytest.mark.parametrize("moment", range(5))
def test_our_process_is_killed_during_an_upload(moment: int, ground: Ground, rng: Random, tmp_path: Path) -> None:
    site = ground.site
    new = site.backup(NOW, big(rng)).path
    slow = ground.again(bandwidth="4M")
    with unchanged(site):
        pid = in_the_child(slow.copy)
        seconds = rng.uniform(0, 2.5)
        print(f"killed after {seconds:.2f} s")
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    # rclone writes what it was given, and ends: without us, it would meet the next run.
    until_ended(str(tmp_path), *site.age.recipients)
    completed(site, new, tmp_path / "new")


def test_a_sidecar_that_arrived_in_part_is_sent_again(tmp_path: Path, age: Age, clock: object) -> None:
    """Its copy has a receipt already; the killed run wrote none."""
    site = made_site(tmp_path, age)
    backup = site.backup()
    site.copy()
    drilled(site.catalog, backup)
    (site.folder / site.object(str(backup), ".drilled.json")).write_bytes(b"age-encryption.org/v1\n")
    assert site.copy().sent == (str(backup),)
    got = site.fetch(tmp_path / "new")
    assert Path(f"{got}.drilled.json").read_bytes() == Path(f"{backup.path}.drilled.json").read_bytes()


# ---------------------------------------------------------------------------------------------------------- a full disk


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [None, *KINDS], ids=str)
def test_the_remote_is_full(kind: Kind | None, tmp_path: Path, age: Age, clock: object, rng: Random) -> None:
    served = tmp_path / "NAS für alle" if kind is None else tmp_path / "served"
    with tmpfs(served, 4 * MEGABYTE), ExitStack() as held:
        if kind is None:
            site = on_folder(served, tmp_path, age)
        else:
            server = held.enter_context(Server(kind, served, tmp_path / "rclone.conf"))
            site = site_on(server, tmp_path, age)
        site.remote_log.initialize(NOW)
        site.backup(NOW - DAY, b"PGDMP: small")
        site.copy()
        site.backup(NOW, big(rng))
        with unchanged(site), pytest.raises(RemoteError) as refused:
            site.copy()
        print(refused.value)
        assert isinstance(refused.value, RemoteFullError) or kind in ("s3", "sftp", "webdav")
        assert site.fetch(tmp_path / "new").read_bytes() == b"PGDMP: small"


# --------------------------------------------------------------------------------------------------------- bad networks


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_a_server_that_never_answers_is_given_up(ground: Ground) -> None:
    assert ground.server is not None
    site = ground.again(stall_seconds=2.0)
    with Silence() as silence:
        ground.server.configure(silence.port)
        began = time.monotonic()
        with unchanged(site), pytest.raises(RemoteStalledError, match="has not answered for 2 s"):
            site.copy()
        assert time.monotonic() - began < 30


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_a_server_that_falls_silent_is_given_up(ground: Ground, rng: Random, tmp_path: Path) -> None:
    assert ground.server is not None
    new = ground.site.backup(NOW, big(rng)).path
    timer = threading.Timer(1.5, ground.server.stop)
    timer.start()
    with unchanged(ground.site), pytest.raises(RemoteStalledError):
        ground.again(stall_seconds=4.0, bandwidth="2M").copy()
    timer.join()
    ground.server.kill()
    ground.server.start()
    completed(ground.site, new, tmp_path / "new")


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_a_connection_that_is_reset_each_time_is_an_error(ground: Ground, rng: Random, tmp_path: Path) -> None:
    assert ground.server is not None
    new = ground.site.backup(NOW, big(rng)).path
    with Resetting(ground.server.port, from_client=MEGABYTE) as proxy:
        ground.server.configure(proxy.port)
        # For S3, rclone repeats each part, and may still do so when nothing has moved for as long as is allowed.
        given_up = pytest.raises(
            (RemoteUnreachableError, RemoteStalledError), match=r"the connection was lost|has not answered"
        )
        with unchanged(ground.site), given_up:
            ground.site.copy()
    ground.server.configure()
    completed(ground.site, new, tmp_path / "new")


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_a_few_lost_connections_are_made_up_for(ground: Ground, rng: Random, tmp_path: Path) -> None:
    assert ground.server is not None
    new = ground.site.backup(NOW, big(rng)).path
    with Resetting(ground.server.port, from_client=3 * MEGABYTE, resets=1) as proxy:
        ground.server.configure(proxy.port)
        assert ground.site.copy().sent == (new.name,)
        assert proxy.resets == 0
    ground.server.configure()
    completed(ground.site, new, tmp_path / "new")


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_five_thousand_objects_and_a_listing_that_fails(ground: Ground) -> None:
    """A listing is whole, or it is an error: half of one would let retention remove what it does not show."""
    assert ground.server is not None
    place = ground.server.folder / "bucket/Käse & Brot/a b/canary"
    place.mkdir()
    for number in range(5000):
        (place / f"{number:05} of many others").touch()
    ground.server.kill()
    ground.server.cache = "5m"
    ground.server.start()
    began = time.monotonic()
    assert ground.site.copy().sent == ()
    print(f"a run with nothing to copy: {time.monotonic() - began:.1f} s")
    ground.site.backup(NOW - DAY)
    ground.site.copy()
    few = replace(ground.site, policy=replace(ground.site.policy, keep={**ground.site.policy.keep}))
    before = ground.site.objects()
    with Resetting(ground.server.port, from_server=50_000) as proxy:
        ground.server.configure(proxy.port)
        for act in (few.copy, lambda: few.operations.prune(NOW, print)):
            with unchanged(ground.site), pytest.raises((RemoteUnreachableError, RemoteStalledError)):
                act()
    ground.server.configure()
    assert ground.site.objects() == before


# ------------------------------------------------------------------------------------------------------ damaged objects


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_object_is_found_and_refused(damage: Callable[[Path], None], ground: Ground, tmp_path: Path) -> None:
    assert ground.server is not None
    site = ground.site
    [backup] = site.catalog.newest_first()
    damage(ground.server.folder / "bucket/Käse & Brot/a b" / site.object(str(backup)))
    with unchanged(site):
        assert any(str(backup) in finding for finding in site.operations.verify(NOW, site.said.append).findings)
        with pytest.raises(CopyDamagedError):
            site.fetch(tmp_path / "new", str(backup))
    assert not list((tmp_path / "new").rglob("*.dump"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_two_objects_swapped_are_found(ground: Ground, tmp_path: Path) -> None:
    """Of one size, so that a listing shows nothing. A store without hashes finds it by reading back, one at a time."""
    assert ground.server is not None
    site, folder = ground.site, ground.server.folder / "bucket/Käse & Brot/a b"
    site.backup(NOW - DAY, b"PGDMP: the other")
    site.copy()
    one, other = (folder / site.object(str(backup)) for backup in site.catalog.newest_first())
    one.rename(folder / "one")
    other.rename(one)
    (folder / "one").rename(other)
    findings = [
        *site.operations.verify(NOW, site.said.append).findings,
        *site.operations.verify(NOW, site.said.append).findings,
    ]
    assert findings
    for backup in site.catalog.newest_first():
        with pytest.raises(CopyDamagedError):
            site.fetch(tmp_path / "new", str(backup))


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", [None, *KINDS], indirect=True, ids=str)
def test_200_megabytes_in_parts(ground: Ground, rng: Random, tmp_path: Path) -> None:
    new = ground.site.backup(NOW, big(rng, 200 * MEGABYTE)).path
    began = time.monotonic()
    assert ground.site.copy().sent == (new.name,)
    print(f"200 MiB in {time.monotonic() - began:.1f} s")
    assert ground.site.fetch(tmp_path / "new").read_bytes() == new.read_bytes()
