"""``ovia-backup``: the same core without Dagster, for when Dagster is down, and for cron and monitoring.

This module holds the command group, the handling of signals, and the exit codes: 0 done; 1 the operation failed, or
the checked backup is bad; 2 usage; ``status`` follows the monitoring plugins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
Each command is in its own module, which :data:`VERBS` names.

``--help`` and ``status`` must answer at once: a command's module is imported only when the command is called, and its
function imports what only running the command needs.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NoReturn, cast

import click

from ovia_backup_dagster import __version__
from ovia_backup_dagster.cli.exit_codes import FAILED, UNKNOWN
from ovia_backup_dagster.core.errors import BackupError

#: Command -> its module in this package, and the function in it. Imported only when the command is called.
VERBS = {
    "accept": "accept:accept_command",
    "base-backup": "base_backup:base_backup_command",
    "copy": "copy:copy_command",
    "demo": "demo:demo_command",
    "doctor": "doctor:doctor_command",
    "drill": "drill:drill_command",
    "dump": "dump:dump_command",
    "fetch": "fetch:fetch_command",
    "hand-over": "hand_over:hand_over_command",
    "keep": "keep:keep_command",
    "keys": "keys:keys_group",
    "list": "list_backups:list_command",
    "log": "statements:log_group",
    "offsite": "offsite:offsite_group",
    "pitr-drill": "recover:pitr_drill_command",
    "promote": "promote:promote_command",
    "prune": "prune:prune_command",
    "recover": "recover:recover_command",
    "recovery-window": "recovery_window:recovery_window_command",
    "release": "keep:release_command",
    "restore": "restore:restore_command",
    "status": "status:status_command",
    "undo-restore": "undo_restore:undo_restore_command",
    "verify": "verify:verify_command",
    "wal": "wal:wal_group",
}

_RESTORES = ("restore", "undo-restore")
#: A restore may be done, put back or not begun, depending on when the signal came.
_AFTER_A_RESTORE = "for its outcome: ovia-backup restore --history; for what is unfinished: ovia-backup status"


class _Terminated(SystemExit):
    """The process was ended by a signal."""


class _Verbs(Mapping[str, click.Command]):
    """The commands by name, each imported only when it is called."""

    def __getitem__(self, verb: str) -> click.Command:
        module, _, name = VERBS[verb].partition(":")
        command: click.Command = getattr(importlib.import_module(f"ovia_backup_dagster.cli.{module}"), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Group(click.Group):
    """Turns a ``BackupError`` into one line and an exit code."""

    def main(self, *args: Any, **extra: Any) -> Any:
        _repair_streams()
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BackupError as error:
            click.echo(f"ovia-backup: {error}", err=True)
            _keep_whole(error)
            ctx.exit(FAILED)
        except KeyboardInterrupt:
            left = _AFTER_A_RESTORE if ctx.invoked_subcommand in _RESTORES else "nothing is left unfinished"
            click.echo(f"ovia-backup: ended by Ctrl-C; {left}", err=True)
            ctx.exit(128 + signal.SIGINT)
        except _Terminated as end:
            if ctx.invoked_subcommand in _RESTORES:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    click.echo(f"ovia-backup: ended by a signal; {_AFTER_A_RESTORE}", err=True)
            ctx.exit(int(str(end.code)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EIO):
                raise
            # Standard output is on a full disk, or its terminal is gone. Monitoring must not read that as "critical".
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with contextlib.suppress(OSError):
                click.echo(f"ovia-backup: cannot print: {error.strerror}", err=True)
            ctx.exit(UNKNOWN if ctx.invoked_subcommand == "status" else FAILED)


@click.group(
    cls=_Group,
    commands=cast("MutableMapping[str, click.Command]", _Verbs()),  # click only reads it
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ovia-backup")
def main() -> None:
    """Back up a PostgreSQL database, and prove the backups.

    The settings come from the environment: POSTGRES_HOST, POSTGRES_DB, BACKUP_DIR and the others in
    docs/configuration.md. BACKUP is a backup's name, a path, or `latest`.
    """
    # On SIGTERM or SIGHUP, a command ends its pg_dump and removes or puts back what is unfinished.
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _terminated)


def _repair_streams() -> None:
    """Open /dev/null for each closed stream (``>&-``), and escape characters that a stream cannot encode."""
    # In order: open() returns the lowest free number. If a lock or a dump got that number, it would receive the output.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _terminated(number: int, _: object) -> NoReturn:
    # Both the shell and the kernel send SIGHUP when a terminal closes; the second must not interrupt the cleanup.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise _Terminated(128 + number)


def _keep_whole(error: BackupError) -> None:
    """Write a message that is too long for a terminal to a private file, and print its path."""
    if not error.whole:
        return
    import tempfile

    with contextlib.suppress(OSError):
        number, path = tempfile.mkstemp(prefix="ovia-backup-", suffix=".txt")
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(error.whole + "\n")
        click.echo(f"ovia-backup: the whole message is in {path}", err=True)


if __name__ == "__main__":
    main()
