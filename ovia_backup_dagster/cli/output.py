"""How commands print: tables, JSON, progress on standard error, and names made safe for a terminal.

Data goes to standard output, progress to standard error. Output of a single command is in that command's module.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ovia_backup_dagster.core.errors import BackupError

if TYPE_CHECKING:
    from ovia_backup_dagster.core.backup import Backup
    from ovia_backup_dagster.proof.check_results import CheckResult


def print_json(data: object) -> None:
    click.echo(json.dumps(data, indent=1, default=str))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print columns; those numbered in ``right`` (from 0) are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number in right else "left", overflow="fold", no_wrap=number == 0)
    for row in rows:
        # Text, not str: a "[" in a name must not be read as markup.
        table.add_row(*(Text(printable(cell)) for cell in row))
    # In a pipe, lines may be longer than a terminal's.
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


def printable(text: str) -> str:
    """Replace control characters: names come from databases and file systems, and could act on a terminal."""
    return "".join(c if c.isprintable() else "�" for c in text)


def log(text: str) -> None:
    """Print a line on standard error, with the time (UTC): progress, and what to do next."""
    click.echo(f"{datetime.now(UTC):%H:%M:%S} {printable(text)}", err=True)


def log_waiting(holder: str) -> None:
    """Called once by an operation that waits while another one holds the lock."""
    log(f"waiting for {holder}")


def backup_as_dict(backup: Backup, now: datetime) -> dict[str, Any]:
    """A backup as ``--json`` prints it."""
    judgement, witness = backup.judgement, backup.witness
    problem = manifest_problem(backup)
    manifest = None if problem else backup.manifest
    return {
        "name": backup.path.name,
        "path": str(backup.path),
        "database": backup.name.database,
        "tier": backup.tier.value,
        "started_at": backup.started_at.isoformat(),
        "age_seconds": int((now - backup.started_at).total_seconds()),
        "size_bytes": backup.size_bytes,
        "standing": backup.state(now).value,
        "state": backup.state(now).former,  # as 0.1.0 had it, for one release
        "drilled": backup.drilled,
        "verified_at": judgement.at.isoformat() if judgement else None,
        "findings": [finding.text for finding in judgement.findings] if judgement else [],
        "problem": backup.problem.why if backup.problem else None,
        "manifest_problem": problem,
        "accepted_by": backup.acceptance.by if backup.acceptance else None,
        "promoted_from": backup.promotion.promoted_from if backup.promotion else None,
        "rows": witness.rows if witness else None,
        "sha256": manifest.sha256 if manifest else None,
        "compression": manifest.compression if manifest else None,
        "run_id": manifest.run_id if manifest else None,
    }


def manifest_problem(backup: Backup) -> str | None:
    """Why a backup's manifest cannot be used; ``None`` if it can, or if there is none."""
    try:
        return backup.manifest_trouble or None
    except BackupError as error:
        return error.account


def print_check_lines(lines: Iterable[CheckResult]) -> None:
    """Print the checks of a copy, each with its result."""
    colours = {"passed": "green", "odd": "yellow", "failed": "red", "not made": "yellow"}
    for line in lines:
        click.secho(f"{line.result.value:<9}", nl=False, fg=colours[line.result.value])
        click.echo(f"{line.check.value:<38}{printable(line.text)}")


def recovery_time(count: float | None) -> str:
    """A recovery time in seconds, as text; empty if the drill did not finish."""
    return "" if count is None else f"{count:.1f} s"
