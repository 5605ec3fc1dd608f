"""What an intruder who can write to a folder remote does there, and the site that suffers it.

One site is made once, and copied for each attack. The reader is another machine, with the public key and the identity
alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.fetching import Fetcher
from ovia_backup_dagster.offsite.layout import MARKER, receipt_path, statement_path
from ovia_backup_dagster.signing import sshsig
from ovia_backup_dagster.signing.sshsig import sign
from ovia_backup_dagster_tests.offsite.site import KEY, Clock, Site
from ovia_backup_dagster_tests.support.factories import DAY, NOW, ROLES
from ovia_backup_dagster_tests.support.signed_logs import edit, forgotten

OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
CONTENTS = {"today": b"PGDMP: made today, " + bytes(70_000), "yesterday": b"PGDMP: yesterday's, " + bytes(69_999)}
GIGABYTE = 10**9
TODAY = "ovia_daily_2026-06-14_120000.dump"


@dataclass(frozen=True)
class Scene:
    """A site to attack.

    Attributes:
        site: the host that makes backups, and its remote.
        today, yesterday: archives that are on the remote.
        before: the remote as it was yesterday.
        reader: the folder of another machine.
    """

    site: Site
    today: str
    yesterday: str
    before: Path
    reader: Path

    def path(self, archive: str, suffix: str = "") -> Path:
        return self.site.folder / self.site.object(archive, suffix)

    def receipt(self, archive: str) -> Path:
        return self.site.folder / receipt_path(archive, self.site.log.chain().known[archive].sequence)

    def statement(self, sequence: int) -> Path:
        return self.site.folder / statement_path(sequence)

    def encrypt(self, path: Path, content: bytes) -> None:
        """Write what anyone can make who knows the public key."""
        path.write_bytes(self.site.age.encrypted(content))

    def fetcher(self) -> Fetcher:
        return self.site.elsewhere(self.reader)

    def seen(self) -> None:
        """Let the reader have read the log as it is now."""
        self.fetcher().copies(NOW)
        forgotten()

    def fetch(self, wanted: str = "today", *, allow_expired: bool = False) -> Path:
        forgotten()
        fetcher = self.fetcher()
        offer = fetcher.find(getattr(self, wanted, wanted), Clock.at, allow_expired=allow_expired)
        return fetcher.fetch(offer, self.reader / "fetched", self.site.said.append)


def swapped(one: Path, other: Path) -> None:
    one_content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(one_content)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def signed(path: Path, key: Ed25519PrivateKey = KEY) -> None:
    path.with_name(f"{path.name}.sig").write_bytes(sign(key, path.read_bytes()))


# -------------------------------------------------------------------------------------------------- files of a backup


def random_bytes_and_a_verdict(scene: Scene) -> None:
    archive, verdict = scene.path(scene.today), scene.path(scene.today, ".verified.json")
    archive.write_bytes(os.urandom(archive.stat().st_size))
    verdict.write_bytes(scene.path(scene.yesterday, ".verified.json").read_bytes())


def old_objects_under_a_new_name(scene: Scene) -> None:
    for suffix in ("", ".json", ".globals.sql", ".verified.json"):
        scene.path(scene.today, suffix).write_bytes(scene.path(scene.yesterday, suffix).read_bytes())


def another_dump_for_our_key(scene: Scene) -> None:
    scene.encrypt(scene.path(scene.today), bytes(len(CONTENTS["today"])))


def another_dump_for_another_key(scene: Scene) -> None:
    path = scene.path(scene.today)
    stranger = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    path.write_bytes(Age((stranger,)).encrypted(bytes(len(CONTENTS["today"]))))


def other_roles(scene: Scene) -> None:
    scene.encrypt(scene.path(scene.today, ".globals.sql"), b"ALTER ROLE evil SUPERUSER;"[: len(ROLES)])


def a_replaced_verdict(scene: Scene) -> None:
    other = scene.path(scene.yesterday, ".verified.json").read_bytes()
    scene.path(scene.today, ".verified.json").write_bytes(other)


def grown(path: Path) -> None:
    os.truncate(path, GIGABYTE)


def linked_outside(scene: Scene) -> None:
    path = scene.path(scene.today)
    shutil.copy(path, scene.reader.parent / "outside")
    path.unlink()
    path.symlink_to(scene.reader.parent / "outside")


# ----------------------------------------------------------------------------------------------------------- receipts


def receipt_of(scene: Scene, key: Ed25519PrivateKey = KEY, **fields: object) -> None:
    path = scene.receipt(scene.today)
    edit(path, **fields)
    signed(path, key)


def receipt_of_another_backup(scene: Scene) -> None:
    for end in ("", ".sig"):
        shutil.copy(f"{scene.receipt(scene.yesterday)}{end}", f"{scene.receipt(scene.today)}{end}")


# --------------------------------------------------------------------------------------------------------- statements


def without(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def signature_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sig")


def for_another_purpose(scene: Scene) -> None:
    """A signature by our key, as ``git commit -S`` makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sshsig, "NAMESPACE", "git")
        signed(scene.statement(4))


def copied_over_another(scene: Scene) -> None:
    for end in ("", ".sig"):
        shutil.copy(f"{scene.statement(2)}{end}", f"{scene.statement(4)}{end}")


def cut_at_its_end(scene: Scene) -> None:
    for sequence in (3, 4):
        without(scene.statement(sequence), signature_of(scene.statement(sequence)))


def another_history(scene: Scene) -> None:
    """The host was cloned: the same key states other backups, and as many or more."""
    clone = scene.site.at(scene.reader.parent / "clone", scene.site.folder)
    for day in (4, 3, 2):
        clone.backup(NOW - day * DAY)
    shutil.copytree(clone.log.path, scene.site.folder / "statements", dirs_exist_ok=True)
    (scene.site.folder / "statements" / ".lock").unlink()
    forgotten()


def from_the_future(scene: Scene) -> None:
    edit(scene.statement(4), at="2027-01-01T00:00:00Z", expires_at="2027-01-04T00:00:00Z")
    signed(scene.statement(4))


# -------------------------------------------------------------------------------------------------------------- names


def strange_names(scene: Scene) -> None:
    folder = os.fsencode(scene.site.folder)
    today = scene.today.encode()
    for name in (
        *(b"a b", b"line\nbreak", b"\xff\xfe", b"statements/%2e%2e", b"statements/" + b"9" * 240 + b".json"),
        *(b"statements/00000004.json.json", b"backups/" + today + b"/..age", b"backups/-rf", b"statements/ 5.json"),
        *("statements/٠٠٠٠٠٠٠٥.json".encode(), "statements/٠٠٠٠٠٠٠٥.json.sig".encode(), b"backups/%00"),
    ):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"!")
    os.mkfifo(scene.site.folder / "backups" / "fifo")
    (scene.site.folder / "statements" / "loop").symlink_to(scene.site.folder)


def a_far_number(path: Callable[[int], str]) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        place = scene.site.folder / path(99_999_999_999)
        place.write_bytes(b"{}")
        signature_of(place).write_bytes(b"!")

    return act


def a_folder_as_marker(scene: Scene) -> None:
    marker = scene.site.folder / MARKER
    marker.unlink()
    marker.mkdir()
    for number in range(40):
        (marker / str(number)).write_bytes(bytes(500_000))


# ------------------------------------------------------------------------------------------------------------- marker


def marker_of(scene: Scene, key: Ed25519PrivateKey = KEY, **fields: object) -> None:
    edit(scene.site.folder / MARKER, **fields)
    signed(scene.site.folder / MARKER, key)


def another_databases_remote(scene: Scene) -> None:
    """The same key, but another database: the operator gave two databases one folder, or the intruder swapped them."""
    other = replace(scene.site.at(scene.reader.parent / "other", scene.reader.parent / "elsewhere"), database="sales")
    other.folder.mkdir()
    other.catalog.prepare()
    other.remote_log.initialize(NOW)
    other.backup()
    other.copy()
    shutil.rmtree(scene.site.folder)
    other.folder.rename(scene.site.folder)


def a_pipe_as_marker(scene: Scene) -> None:
    without(signature_of(scene.site.folder / MARKER))
    os.mkfifo(signature_of(scene.site.folder / MARKER))
