"""``ovia-backup drill``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.fetch import at_hand
from ovia_backup_dagster.cli.invocation import operator, system_from_environment
from ovia_backup_dagster.cli.options import backup_argument, json_option
from ovia_backup_dagster.cli.output import log, print_check_lines, print_json, print_table, printable, recovery_time

if TYPE_CHECKING:
    from ovia_backup_dagster.drill.evidence import Evidence


@click.command("drill")
@backup_argument
@click.option("--from", "remote", help="Fetch the backup from this remote first; REMOTE:BACKUP does the same.")
@click.option(
    "--where",
    type=click.Choice(["auto", "throwaway", "database"]),
    help="Where to restore the backup to.  [DRILL_WHERE]",
)
@click.option("--jobs", type=click.IntRange(2, 64), help="Parallel jobs of pg_restore.  [DRILL_JOBS]")
@click.option("--keep", is_flag=True, help="Keep the restored copy for inspection, until the next drill.")
@click.option(
    "--trust-archive",
    is_flag=True,
    help="With --where database: restore even if a superuser would run the backup's functions on the source's server.",
)
@click.option("--history", is_flag=True, help="Instead: list past drills, newest first.")
@click.option("--remove-copy", is_flag=True, help="Instead: remove copies that were kept, or left by a killed drill.")
@json_option
def drill_command(
    backup: str,
    remote: str | None,
    where: str | None,
    jobs: int | None,
    keep: bool,
    trust_archive: bool,
    history: bool,
    remove_copy: bool,
    as_json: bool,
) -> None:
    """Restore a backup into a copy, compare the two, and record the evidence. Exit code 1: it is not proven."""
    system = system_from_environment()
    if history:
        _print_drills(list(system.drills.newest_first()), as_json)
        return
    if remove_copy:
        for name in system.driller.remove_copies(system.drill_choice(where=where or "")):
            click.echo(f"removed {name}")
        return
    driller = system.driller
    choice = system.drill_choice(where=where or "", jobs=jobs or 0, keep=keep, trust_archive=trust_archive)
    evidence = driller.drill(
        driller.find(at_hand(system, f"{remote}:{backup}" if remote else backup)),
        choice,
        launched_by=operator(),
        log=log,
    )
    if as_json:
        click.echo(evidence.to_json(), nl=False)
    else:
        _print_drill(evidence, driller.drills.path)
    if evidence.trouble:
        log(f"Next: {evidence.trouble.fix}")
        sys.exit(FAILED)


def _print_drill(evidence: Evidence, folder: Path) -> None:
    print_check_lines(evidence.lines)
    if evidence.error:
        click.echo(printable(evidence.error))
    if evidence.passed:
        rows = f"{evidence.rows:,} rows in {len(evidence.tables):,} tables"
        took = recovery_time(evidence.recovery_seconds)
        click.echo(f"{evidence.backup} restores: {rows}; recovery time to expect: {took}")
    else:
        click.echo(f"it is not proven that {evidence.backup} restores")
    click.echo(f"evidence: {folder / evidence.filename}.md")
    if evidence.kept:
        click.echo(f"the copy is kept until the next drill: {printable(evidence.kept)}")


def _print_drills(drills: Sequence[Evidence], as_json: bool) -> None:
    from ovia_backup_dagster.core.human_text import human_bytes

    if as_json:
        print_json([json.loads(evidence.to_json()) for evidence in drills])
        return
    if not drills:
        click.echo("no drill yet")
        log("Next: ovia-backup drill")
        return
    rows = [
        (
            f"{evidence.started_at:%Y-%m-%d %H:%M}",
            evidence.backup,
            "passed" if evidence.passed else "failed",
            recovery_time(evidence.recovery_seconds),
            f"{evidence.rows:,}",
            human_bytes(evidence.copy_bytes) if evidence.copy_bytes is not None else "",
            evidence.launched_by,
            "; ".join(evidence.failures) or (f"{len(evidence.oddities)} odd" if evidence.oddities else ""),
        )
        for evidence in drills
    ]
    head = ("drill (UTC)", "backup", "result", "recovery", "rows", "copy", "launched by", "found")
    print_table(head, rows, right=(3, 4, 5))
