"""What ``restore`` and ``undo-restore`` share: show a plan, ask for confirmation, carry it out, print the record.

The plan and the restore themselves are in ``restoration``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.output import log, print_check_lines, print_json, print_table, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.restoration.plan import RestorePlan
    from ovia_backup_dagster.restoration.record import Record
    from ovia_backup_dagster.restoration.runner import Restorations


def carry_out(
    restorations: Restorations, plan: RestorePlan, confirmation: str | None, only_plan: bool, as_json: bool
) -> None:
    """Show a plan, ask for the database's name as confirmation, and carry the plan out."""
    if only_plan and as_json:
        print_json(plan.as_dict())
        plan.refuse()
        return
    for line in plan.lines():
        click.echo(printable(line), err=as_json)
    plan.refuse()
    if only_plan:
        return
    print_restore(restorations.run(plan, confirmed_name(plan.destroys, confirmation), log), restorations, as_json)


def confirmed_name(name: str, given: str | None) -> str:
    """Ask the operator to type the name of the database to be replaced; without a terminal, return ``given``."""
    if given is None and name and sys.stdin.isatty():
        try:
            given = str(click.prompt(f"To go on, type the name of the database ({printable(name)})", err=True))
        except click.Abort:  # Ctrl-C, or the end of the input
            click.echo("\novia-backup: nothing was done", err=True)
            sys.exit(FAILED)
    return given or ""


def print_restore(record: Record, restorations: Restorations, as_json: bool, *, putting_back: bool = False) -> None:
    """Print a restore's record, and exit with 1 if it failed.

    Args:
        putting_back: whether the command asked for the restore to be undone (``--abort``).
    """
    from ovia_backup_dagster.core.naming import before_at
    from ovia_backup_dagster.postgres.quoting import shell_word

    order = record.order
    if as_json:
        click.echo(record.to_json(), nl=False)
    else:
        print_check_lines(record.proven.lines if record.proven else ())
        if record.proven and record.proven.tables:
            print_table(("table", "rows"), [(t.name, f"{t.rows:,}") for t in record.proven.tables], right=(1,))
        for text in record.proven.lost if record.proven else ():
            click.echo(f"lost: {printable(text)}")
        for note in record.notes:
            click.echo(f"note: {printable(note)}")
        if record.outcome == "done" and order.mode.value == "undo":
            click.echo(f"{printable(order.database)} is what was {printable(order.incoming)}")
        elif record.outcome == "done" and order.tables:
            click.echo(f"{printable(', '.join(order.tables))}: copied into schema {order.tables_schema}")
        elif record.outcome == "done":
            click.echo(f"{printable(order.becomes)} is restored")
        elif record.outcome == "put back":
            click.echo("everything is as it was before")
        if record.interruption_seconds is not None:
            click.echo(f"interruption: {record.interruption_seconds * 1000:.0f} ms")
        if record.kept and before_at(record.kept, order.database) is None:
            pass  # it has another name now, which a note states
        elif record.kept and record.outcome == "put back":
            again = f"to make it live again: ovia-backup undo-restore --kept {shell_word(record.kept)}"
            click.echo(f"{record.what_is_kept} stays as {printable(record.kept)}; {again}")
        elif record.kept:
            kept = f"{record.what_is_kept} is kept: {printable(record.kept)}"
            click.echo(f"{kept}; to go back to it: ovia-backup undo-restore --kept {shell_word(record.kept)}")
        click.echo(f"record: {restorations.folder.path / order.filename}.md")
    put_back = putting_back and record.outcome == "put back"
    if record.error and put_back and record.error not in record.notes:
        log(f"what had failed before: {record.error}")  # it no longer matters
    elif record.error:
        log(f"Error: {record.error}")
        if record.fix:
            log(f"Next: {record.fix}")
        if not put_back:
            sys.exit(FAILED)
