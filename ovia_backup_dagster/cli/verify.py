"""``ovia-backup verify``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.fetch import at_hand
from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import backup_argument, json_option
from ovia_backup_dagster.cli.output import backup_as_dict, log, print_json, print_table, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.core.backup import Backup
    from ovia_backup_dagster.system import BackupSystem


@click.command("verify")
@backup_argument
@click.option(
    "--unverified",
    "--unproven",
    "unverified",
    is_flag=True,
    help="Instead: verify all backups without a verdict, such as those of the old script.",
)
@json_option
def verify_command(backup: str, unverified: bool, as_json: bool) -> None:
    """Read a whole backup back, and report whether it is good. Exit code 1: it is bad, or could not be verified."""
    from ovia_backup_dagster.core.backup import State

    system = system_from_environment()
    if unverified:
        there = {str(backup) for backup in _unverified(system)}
        outcomes = system.verifier.verify_unverified(log=log)
        # Not those that another process has just made.
        left = [backup for backup in _unverified(system) if str(backup) in there]
        if as_json:
            print_json([backup_as_dict(outcome.backup, datetime.now(UTC)) for outcome in outcomes])
        else:
            count = sum(outcome.judgement.good for outcome in outcomes)
            click.echo(f"{count} of {len(outcomes) + len(left)} are verified")
        sys.exit(FAILED if left or not all(outcome.judgement.good for outcome in outcomes) else 0)
    verified = system.verifier.verify(system.catalog.find(at_hand(system, backup), datetime.now(UTC)), log=log)
    judgement, witness = verified.judgement, verified.witness
    if as_json:
        rows = witness.rows_by_table() if witness else {}
        # No verdict is stored for a backup outside the volume: its state is what this verification found.
        good = State.PROVEN if verified.backup.drilled else State.VERIFIED
        standing = good if judgement.good else State.BAD
        verdict = {"standing": standing, "state": standing.former, "rows": sum(rows.values()), "tables": rows}
        print_json(backup_as_dict(verified.backup, datetime.now(UTC)) | verdict)
    elif judgement.good and witness:
        before = verified.previous.witness.rows_by_table() if verified.previous and verified.previous.witness else {}
        _print_tables(witness.rows_by_table(), before)
        click.echo(f"{verified.backup} is verified: {witness.rows:,} rows in {len(witness.rows_by_table())} tables")
    else:
        click.echo(f"{verified.backup} is bad")
    if not as_json:
        for text in (*judgement.reasons, *(f"odd: {text}" for text in judgement.oddities)):
            click.echo(f"  {printable(text)}")
    if problem := judgement.problem(str(verified.backup)):
        log(f"Next: {problem.fix}")
        sys.exit(FAILED)


def _unverified(system: BackupSystem) -> list[Backup]:
    from ovia_backup_dagster.core.backup import State

    now = datetime.now(UTC)
    return [backup for backup in system.catalog.backups() if backup.state(now) is State.UNVERIFIED]


def _print_tables(rows: dict[str, int], before: dict[str, int]) -> None:
    from ovia_backup_dagster.core.human_text import signed

    lines = []
    for name in sorted(rows):
        change = signed(rows[name] - before[name]) if name in before else ("new" if before else "")
        lines.append((name, f"{rows[name]:,}", change))
    print_table(("table", "rows", "change"), lines, right=(1, 2))
