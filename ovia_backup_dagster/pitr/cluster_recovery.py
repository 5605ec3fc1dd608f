"""Recovers a whole cluster into a folder, ready to start: for the case that the server and its disk are gone.

All databases, roles and settings are as they were right after a commit. ``recovered_cluster`` recovers it; here it is
shut down, cleaned of what belonged to the recovery and to the old server, and moved to its folder.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.errors import CopyError
from ovia_backup_dagster.core.files import sync_folder
from ovia_backup_dagster.core.pitr_errors import RecoveryError
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.drill.throwaway_cluster import usable
from ovia_backup_dagster.pitr.recovered_cluster import AUTO_CONFIGURATION, RecoveryOrder, recovered
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.local_cluster import account
from ovia_backup_dagster.postgres.programs import Programs

_SHUTDOWN_SECONDS = 600.0
#: What recovery leaves behind.
_REMAINS = ("backup_label.old", "tablespace_map.old", "recovery.done", "standby.signal", "postmaster.opts")
#: Settings that would make the new server wait for, or follow, another one.
_OF_THE_OLD_SERVER = re.compile(
    r"\s*(?:synchronous_standby_names|primary_conninfo|primary_slot_name|restore_command|archive_command|archive_library|"
    r"recovery_\w+|promote_trigger_file)\s*=",
    re.IGNORECASE,
)
#: Settings that may not fit the new host; they stay, and are named.
_TO_LOOK_AT = re.compile(
    r"\s*(shared_preload_libraries|synchronous_standby_names|archive_command|data_directory|hba_file|ident_file|"
    r"ssl_cert_file|ssl_key_file|ssl_ca_file|unix_socket_directories|listen_addresses|port|shared_buffers|include\w*)\s*="
)


@dataclass(frozen=True, slots=True)
class RecoveredFolder:
    """A cluster that can be started.

    Attributes:
        data: its data directory.
        tablespaces: where its other tablespaces are, by OID.
        notes: what a person should look at before the start.
    """

    data: Path
    tablespaces: dict[str, Path]
    notes: tuple[str, ...]


def recover_into(programs: Programs, target: Path, order: RecoveryOrder, *, hours: float, log: Log) -> RecoveredFolder:
    """Recover a cluster into a folder, which must not exist, or be empty.

    Args:
        programs: the client and server programs.
        target: the new data directory; there must be room for the cluster beside it.
        order: what to recover.
        hours: how long the recovery may take.
        log: receives progress.

    Raises:
        CopyError: the folder has something in it, or its parent cannot be used.
        RecoveryError: PostgreSQL did not reach the target, or did not shut down.
        BackupError: the recovery failed; nothing is left.
    """
    _require_free(target)
    spaces = target.with_name(f"{target.name}-tablespaces")
    _require_free(spaces)
    with recovered(programs, target.parent, order, hours=hours, log=log) as found:
        assert found.server is not None
        log("shutting down")
        if not found.server.shut_down(_SHUTDOWN_SECONDS):
            raise RecoveryError(
                f"the recovered cluster of {order.base} did not shut down cleanly",
                why="its last checkpoint failed, or took too long",
                fix=f"df -h {shell_word(str(target.parent))}; then try again",
            )
        with usable(target.parent):
            data = found.cluster.data
            notes = _clean(data, found.place / AUTO_CONFIGURATION)
            moved = _move_tablespaces(data, found.tablespaces, spaces)
            with contextlib.suppress(FileNotFoundError):
                target.rmdir()
            os.rename(data, target)
            # The server ran without fsync.
            os.sync()
            sync_folder(target.parent)
    return RecoveredFolder(target, moved, tuple(notes))


def _require_free(folder: Path) -> None:
    with usable(folder.parent):
        if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise CopyError(
                f"{folder} is not empty",
                why="nothing that exists is overwritten",
                fix=f"ls -la {shell_word(str(folder))}; then name a folder that does not exist yet",
            )


def _clean(data: Path, auto_configuration: Path) -> list[str]:
    """Remove what belonged to the recovery; returns what a person should look at."""
    for name in _REMAINS:
        (data / name).unlink(missing_ok=True)
    notes = []
    if auto_configuration.exists():
        lines = auto_configuration.read_text("utf-8", "replace").splitlines(keepends=True)
        left_out = [line.partition("=")[0].strip() for line in lines if _OF_THE_OLD_SERVER.match(line)]
        target = data / AUTO_CONFIGURATION
        target.write_text("".join(line for line in lines if not _OF_THE_OLD_SERVER.match(line)), encoding="utf-8")
        _own(target)
        if left_out:
            notes.append(f"{AUTO_CONFIGURATION}: left out {', '.join(left_out)}, which named the old server")
    for name in ("postgresql.conf", AUTO_CONFIGURATION):
        path = data / name
        if path.exists() and (found := _settings_in(path.read_text("utf-8", "replace").splitlines())):
            notes.append(f"{name} sets {', '.join(found)}: see whether that fits this host")
    if not (data / "postgresql.conf").exists():
        notes.append("postgresql.conf was outside the data directory, so it is not in the backup: write one")
    return notes


def _settings_in(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(match[1].lower() for line in lines if (match := _TO_LOOK_AT.match(line))))


def _move_tablespaces(data: Path, source: Path, target: Path) -> dict[str, Path]:
    moved = {}
    if source.is_dir():
        os.rename(source, target)
        for link in sorted((data / "pg_tblspc").iterdir()):
            link.unlink()
            link.symlink_to(target / link.name)
            _own(link)
            moved[link.name] = target / link.name
    return moved


def _own(path: Path) -> None:
    if (owner := account()) is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o600)
