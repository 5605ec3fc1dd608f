"""The one-time word that a plan prints in the launchpad and that the restore must repeat within an hour.

A database's name would confirm every later run that repeats a launchpad's text. So each plan is kept beside the
journals, in a file that only its owner can read, and the restore consumes it before it touches anything. The volume is
the source of truth; Dagster's storage decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import RestoreRefusedError, VolumeError
from ovia_backup_dagster.core.files import as_volume_error, sync_folder, unlink
from ovia_backup_dagster.core.layout import RESTORES
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.core.naming import encode_database
from ovia_backup_dagster.restoration.restore_order import Mode, Order

#: How long the word of a plan is valid.
LIFETIME = timedelta(hours=1)
_PLAN = ".plan-"
_NAME_BYTES = 240
_MOST_BYTES = 1024 * 1024
#: Fields that differ between a plan and its restore although nothing shown to the operator has changed.
_OF_THE_RUN = {"version", "started_at", "backup_path", "backup_started_at", "kept", "launched_by", "run_id", "made_by"}
_PLAN_FIRST = (
    "launch the job with the same options and action: plan (for an undo: plan_undo), read what it would do, and give "
    "the word that it prints as confirm"
)


class _Shown(Sidecar):
    """A plan as it was shown to an operator.

    Attributes:
        shown_at: UTC.
        order: the planned restore.
        covered: what distinguishes the backup from another file with the same name.
    """

    version: Literal[1] = 1
    shown_at: AwareDatetime
    order: Order
    covered: dict[str, str]


class Words:
    """Plans that were shown and not used yet, in ``restores/`` on the volume.

    Args:
        catalog: the catalog of that volume. Its ``restores/`` must exist.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._folder = catalog.root / RESTORES

    def offer(self, order: Order, backup: Backup | None, now: datetime) -> str:
        """Store a plan that is shown, and return its word.

        Args:
            order: the planned restore.
            backup: the backup to restore; ``None`` for an undo.
            now: the present (UTC).

        Raises:
            VolumeError, DiskFullError: the plan cannot be stored.
        """
        shown = _Shown(shown_at=now, order=order, covered=_covered(backup))
        with as_volume_error(f"cannot use the folder {self._folder}"):
            self._sweep(now)
            word, path = self._reserve(order)
            try:
                self._catalog.write(path, shown.to_json().encode())
            except BaseException:
                unlink(path)
                raise
            return word

    def redeem(self, word: str, order: Order, backup: Backup | None, now: datetime) -> None:
        """Consume a word. The caller holds the restores' lock and has changed nothing yet.

        Args:
            word: as the operator typed it.
            order: the restore that is about to run.
            backup: the backup that is about to be restored; ``None`` for an undo.
            now: the present (UTC).

        Raises:
            RestoreRefusedError: the word is missing, unknown or expired, or belongs to another plan; the message names
                the difference.
            VolumeError: the plan cannot be read or removed.
        """
        if not word:
            raise _refused("no word was given to confirm", why="a plan prints it")
        path = self._path(word)
        shown = self._read(path)
        if shown is None:
            raise _refused(
                f"{word} is not the word of a pending plan",
                why="it was already used, it expired after an hour, or no plan printed it",
            )
        if not -CLOCK_TOLERANCE <= now - shown.shown_at <= LIFETIME:
            raise _refused(
                f"the plan {word} is too old",
                why=f"it was shown at {shown.shown_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            )
        if changed := _changed(shown, order, _covered(backup)):
            raise _refused(f"this is not what the plan {word} showed", why="; ".join(changed))
        with as_volume_error(f"cannot use the plan {path}"):
            if not unlink(path):
                raise _refused(f"the plan {word} was used already", why="another run took it just now")
            sync_folder(self._folder)

    def _reserve(self, order: Order) -> tuple[str, Path]:
        """A random word, unique among the plans."""
        at = order.started_at
        while True:
            word = word_of(order, at)
            path = self._path(word)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                return word, path
            at += timedelta(seconds=1)

    def _path(self, word: str) -> Path:
        # The input may be anything: accept no path, and no name that is too long for a file.
        encoded = encode_database(word.encode("utf-8", "replace").decode())
        return self._folder / f"{_PLAN}{encoded}"[:_NAME_BYTES]

    def _read(self, path: Path) -> _Shown | None:
        """Read a plan; ``None`` if there is none at this path.

        Raises:
            VolumeError: it is not a regular file, or cannot be parsed.
        """
        try:
            with as_volume_error(f"cannot read {path}", passing=FileNotFoundError):
                # O_NONBLOCK: opening a FIFO without a writer would wait forever.
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                raise VolumeError(
                    f"cannot read {path}", why="it is not a restore plan", fix=f"ls -ld {path}; rm -r {path}"
                )
            with as_volume_error(f"cannot read {path}"):
                text = os.read(descriptor, _MOST_BYTES)
        finally:
            os.close(descriptor)
        return parse_sidecar(_Shown, text, path.name)

    def _sweep(self, now: datetime) -> None:
        """Remove expired plans, and incomplete files that a killed process left."""
        for entry in os.scandir(self._folder):
            if entry.name.startswith((_PLAN, f".{_PLAN}")):
                with contextlib.suppress(OSError):  # removed meanwhile, or a folder, which this program did not create
                    if abs(now.timestamp() - entry.stat(follow_symlinks=False).st_mtime) > LIFETIME.total_seconds():
                        os.unlink(entry.path)


def word_of(order: Order, at: datetime | None = None) -> str:
    """A short name for a restore or plan that an operator can type: its database and time."""
    return f"{order.database}-{(at or order.started_at).astimezone(UTC):%Y%m%dT%H%M%SZ}"


def _covered(backup: Backup | None) -> dict[str, str]:
    """What distinguishes a backup from another file with the same name."""
    if backup is None:
        return {}
    found = {"size": str(backup.size_bytes), "modification time": str(backup.mtime_ns)}
    return found | ({"SHA-256": backup.manifest.sha256} if backup.manifest else {})


def _changed(shown: _Shown, order: Order, covered: Mapping[str, str]) -> list[str]:
    """The differences from the plan that was shown to the operator, in words."""
    then, now = _essentials(shown.order), _essentials(order)
    found = [f"{name}: {then[name]} then, {now[name]} now" for name in now if then[name] != now[name]]
    if not found and shown.covered != covered:
        found = [f"the file of {order.backup} is a different one now"]
    return found


def _essentials(order: Order) -> dict[str, Any]:
    left_out = set(_OF_THE_RUN)
    if order.mode in (Mode.SWAP, Mode.DROP):
        left_out.add("incoming")  # its name contains the time
    return order.model_dump(mode="json", exclude=left_out)


def _refused(what: str, *, why: str) -> RestoreRefusedError:
    return RestoreRefusedError(f"nothing was done: {what}", why=why, fix=_PLAN_FIRST)
