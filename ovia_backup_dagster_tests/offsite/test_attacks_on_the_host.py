"""What the host that makes backups does about a remote that an intruder can write to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.errors import (
    CopyDamagedError,
    RemoteError,
    RemoteForeignError,
    StatementLogError,
)
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.offsite.fetching import Fetcher
from ovia_backup_dagster.offsite.layout import MARKER, receipt_path
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.offsite.intruder import (
    CONTENTS,
    OTHER_KEY,
    TODAY,
    Scene,
    a_far_number,
    a_folder_as_marker,
    flipped,
    grown,
    receipt_of,
    signed,
    without,
)
from ovia_backup_dagster_tests.offsite.site import KEY
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import DAY, NOW
from ovia_backup_dagster_tests.support.signed_logs import edit


def test_the_host_repairs_what_was_rolled_back(scene: Scene) -> None:
    operations = scene.site.operations
    operations.copy(NOW, scene.site.said.append)
    shutil.rmtree(scene.site.folder)
    shutil.copytree(scene.before, scene.site.folder)
    copied = operations.copy(NOW, scene.site.said.append)
    assert (copied.before, copied.sent) == ((scene.yesterday,), (scene.today,))
    [finding] = operations.record.findings
    assert finding.startswith(f"{scene.today} was on nas, and is gone or hidden")
    assert scene.fetch().read_bytes() == CONTENTS["today"]


REPAIRED: tuple[tuple[str, Callable[[Scene], object]], ...] = (
    ("a forged receipt", lambda s: receipt_of(s, OTHER_KEY)),
    ("no statement 2", lambda s: without(s.statement(2))),
    ("no receipt", lambda s: without(s.receipt(s.today))),
    ("no archive", lambda s: without(s.path(s.today))),
    ("an archive cut off", lambda s: os.truncate(s.path(s.today), 70_000)),
    ("no verdict", lambda s: without(s.path(s.today, ".verified.json"))),
)


@pytest.mark.parametrize("act", thinned([pytest.param(act, id=name) for name, act in REPAIRED], daily=1))
def test_the_next_copy_repairs(act: Callable[[Scene], object], scene: Scene) -> None:
    act(scene)
    scene.site.copy()
    assert scene.fetch().read_bytes() == CONTENTS["today"]
    assert (scene.reader / "fetched" / f"{scene.today}.verified.json").exists()
    assert scene.site.copy().sent == ()


FOUND: tuple[tuple[str, Callable[[Scene], object], str], ...] = (
    ("an edited statement", lambda s: edit(s.statement(2), backup=s.today), "00000002.json on nas is not the volume's"),
    ("another signature", lambda s: signed(s.statement(2), OTHER_KEY), "00000002.json.sig on nas is not the volume's"),
    ("a forged receipt", lambda s: receipt_of(s, OTHER_KEY), "does not count: it was made with another key"),
    ("an archive grown by 1 GB", lambda s: grown(s.path(s.today)), "it has 1,000,000,000 bytes"),
    ("no statement 2", lambda s: without(s.statement(2)), "00000002.json is missing on nas"),
    ("no roles", lambda s: without(s.path(s.today, ".globals.sql")), "globals.sql.age on nas: it is not there"),
    ("a receipt of a far number", a_far_number(lambda n: f"backups/{TODAY}/receipt-{n}.json"), "was not made"),
)


@pytest.mark.parametrize(
    ("act", "words"), thinned([pytest.param(act, words, id=name) for name, act, words in FOUND], daily=1)
)
def test_verification_on_the_host_finds(act: Callable[[Scene], object], words: str, scene: Scene) -> None:
    act(scene)
    found = scene.site.operations.verify(NOW, scene.site.said.append)
    assert words in " ".join(found.findings)


@pytest.mark.exhaustive
def test_one_bit_is_found_by_reading_back(scene: Scene) -> None:
    flipped(scene.path(scene.yesterday))
    found = scene.site.operations.verify(NOW, scene.site.said.append)
    assert found.findings, "a folder has hashes, or each copy has its turn"


def test_nothing_is_written_through_a_link(scene: Scene) -> None:
    """A share may have links, which the host would follow: to any file that it may write."""
    outside = scene.reader.parent / "outside"
    outside.mkdir()
    backup = scene.site.backup(NOW, b"PGDMP: tonight")
    (scene.site.folder / "backups" / str(backup)).symlink_to(outside)
    with pytest.raises(RemoteForeignError, match="is a symbolic link, and nothing is written to nas"):
        scene.site.copy()
    assert list(outside.iterdir()) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["statements/00000005.json", MARKER])
def test_no_file_outside_is_overwritten_through_a_link(name: str, scene: Scene) -> None:
    outside = scene.reader.parent / "outside"
    outside.write_text("a file of the host")
    scene.site.backup(NOW, b"PGDMP: tonight")
    (scene.site.folder / name).unlink(missing_ok=True)
    (scene.site.folder / name).symlink_to(outside)
    with pytest.raises(RemoteError):
        scene.site.copy()
    if name == MARKER:
        with pytest.raises(RemoteError):
            scene.site.remote_log.initialize(NOW)
    assert outside.read_text() == "a file of the host"


@pytest.mark.exhaustive
def test_a_folder_as_marker_is_not_read_whole(scene: Scene) -> None:
    a_folder_as_marker(scene)
    with pytest.raises(CopyDamagedError, match="is larger than"):
        scene.site.copy()


@pytest.mark.exhaustive
def test_pruning_removes_the_copy_and_no_strangers_file(scene: Scene) -> None:
    folder = scene.path(scene.yesterday).parent
    (folder / "of another program").write_text("!")
    policy = replace(scene.site.policy, keep={Tier.DAILY: 1, Tier.WEEKLY: 1})
    pruned = replace(scene.site, policy=policy).operations.prune(NOW, scene.site.said.append)
    assert (pruned.removed, pruned.kept) == ((scene.yesterday,), (scene.today,))
    assert os.listdir(folder) == ["of another program"]


@pytest.mark.exhaustive
def test_forged_receipts_cost_no_good_copy(scene: Scene) -> None:
    """If a forged copy of tonight counted, retention would remove the real ones of the days before."""
    tonight = str(scene.site.backup(NOW, b"PGDMP: tonight"))
    place = scene.site.folder / receipt_path(tonight, scene.site.log.chain().head.sequence)
    place.parent.mkdir()
    place.write_text(scene.receipt(scene.today).read_text().replace(scene.today, tonight))
    signed(place, OTHER_KEY)
    policy = replace(scene.site.policy, keep={Tier.DAILY: 1, Tier.WEEKLY: 1})
    pruned = replace(scene.site, policy=policy).operations.prune(NOW + DAY, scene.site.said.append)
    assert scene.today in pruned.kept
    assert scene.site.copy().sent[0] == tonight


# ------------------------------------------------------------------------------------------- after a change of the key


def rotated(scene: Scene) -> Scene:
    """The key was replaced by ``OTHER_KEY``, and a backup was copied since."""
    scene.site.log.rotate(OTHER_KEY)
    site = replace(scene.site, key=OTHER_KEY)
    site.backup(NOW, b"PGDMP: after the change")
    site.copy()
    return replace(scene, site=site)


@pytest.mark.exhaustive
def test_receipts_of_a_replaced_key_still_count(scene: Scene) -> None:
    assert rotated(scene).fetch().read_bytes() == CONTENTS["today"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("known", [OTHER_KEY, KEY])
def test_a_replaced_key_signs_no_later_receipt(known: Ed25519PrivateKey, scene: Scene) -> None:
    """Not even for a reader who knows the old key alone."""
    scene = rotated(scene)
    tonight = str(next(iter(scene.site.catalog.newest_first())))
    signed(scene.receipt(tonight), KEY)
    log = StatementLog(scene.reader, scene.site.database, known.public_key())
    fetcher = Fetcher(scene.site.remote, log, scene.site.age)
    with pytest.raises(CopyDamagedError, match="made with another key"):
        fetcher.find(tonight, NOW)
    assert fetcher.find(scene.today, NOW).name.filename == scene.today


@pytest.mark.exhaustive
def test_a_replaced_key_continues_no_log(scene: Scene) -> None:
    """A thief of the old key states more with it: the readers have followed the new one."""
    theft = scene.site.at(scene.reader.parent / "theft", scene.site.folder)
    shutil.copytree(scene.site.root, theft.root)
    scene = rotated(scene)
    scene.seen()
    for days in (3, 4, 5, 6):
        theft.backup(NOW - days * DAY)
    shutil.copytree(theft.log.path, scene.site.folder / "statements", dirs_exist_ok=True)
    with pytest.raises(StatementLogError):
        scene.fetch("latest")
