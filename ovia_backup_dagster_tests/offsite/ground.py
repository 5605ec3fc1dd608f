"""A site whose remote fails, and what holds after every fault."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from ovia_backup_dagster.core.errors import (
    BackupError,
)
from ovia_backup_dagster.core.remote_address import parse_remotes
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster_tests.faults.disks import MEGABYTE
from ovia_backup_dagster_tests.offsite.servers import Kind, Server
from ovia_backup_dagster_tests.offsite.site import Site
from ovia_backup_dagster_tests.support.factories import NOW

BIG = 6 * MEGABYTE
KINDS: tuple[Kind, ...] = ("s3", "sftp", "webdav")


@dataclass(frozen=True)
class Ground:
    """A site, and the server that its remote is on; ``None`` for a folder."""

    site: Site
    server: Server | None

    def again(self, **changes: object) -> Site:
        """The site with another remote program, such as a slow one."""
        program = replace(self.site.remote.program, **changes)  # type: ignore[arg-type]
        return replace(self.site, remote=replace(self.site.remote, program=program))


@contextmanager
def unchanged(site: Site) -> Iterator[None]:
    """The volume's backups and its log are the same afterwards."""
    before = fingerprint(site.root)
    yield
    assert fingerprint(site.root) == before


def fingerprint(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and "offsite" not in str(path.relative_to(root)))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def big(rng: Random, size: int = BIG) -> bytes:
    return b"PGDMP" + rng.randbytes(size)


def outcome(action: Callable[[], object]) -> BackupError | None:
    """How an action ended that may succeed."""
    try:
        action()
    except BackupError as error:
        return error
    return None


def in_the_child(action: Callable[[], object]) -> int:
    """Start an action in a process of its own; return its id."""
    if pid := os.fork():
        return pid
    try:
        action()
    finally:
        os._exit(0)


def completed(site: Site, new: Path, folder: Path) -> None:
    """The next run makes the copy complete, and it comes back."""
    if new.name not in site.copy().copies:
        raise AssertionError("it is still missing")
    assert site.operations.verify(NOW, site.said.append).findings == ()
    assert site.fetch(folder).read_bytes() == new.read_bytes()
    assert site.copy().sent == ()


def on_folder(folder: Path, tmp_path: Path, age: Age) -> Site:
    [address] = parse_remotes(f"nas={folder}")
    site = Site(tmp_path / "volume", Remote(address, Program(stall_seconds=20)), age)
    site.catalog.prepare()
    return site
