"""``ovia-backup doctor``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import print_json, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.doctor.report import Observation


@click.command("doctor")
@click.option("--test-alert", is_flag=True, help="Also send a message to every channel of BACKUP_NOTIFY_URLS.")
@click.option(
    "--code-server", "port", metavar="PORT", type=int, help="Instead: check the health of the code server on this port."
)
@json_option
def doctor_command(test_alert: bool, port: int | None, as_json: bool) -> None:
    """Check everything that a backup depends on, and print how to fix what is wrong.

    Exit code 1: something will fail.
    """
    from ovia_backup_dagster.doctor import code_server, dagster_instance, environment_area, examination
    from ovia_backup_dagster.doctor.report import Area, Severity, summary, worst
    from ovia_backup_dagster.doctor.time_limit import Part, look_in_time
    from ovia_backup_dagster.settings.model import Settings
    from ovia_backup_dagster.system import BackupSystem

    system = BackupSystem(Settings.load())
    if port is not None:
        server, log = f"the code server on port {port}", "see its log; then restart it"
        looks = [lambda: examination.code_server_needs(system), lambda: code_server.ask_code_server(port)]
        found = look_in_time([Part(Area.DAGSTER, look, server, log) for look in looks])
    else:
        environment = dict(os.environ)
        home, urls = "check $DAGSTER_HOME/dagster.yaml", "check BACKUP_NOTIFY_URLS and the network"
        more = [Part(Area.DAGSTER, lambda: dagster_instance.look_at_instance(environment), "Dagster's instance", home)]
        if test_alert:
            more.append(Part(Area.ALERTS, lambda: environment_area.test_alert(system), "a channel of the alerts", urls))
        found = examination.everything(system, *more)
    lines = []
    for line in found:  # printed at once, so that a check that hangs is seen
        lines.append(line)
        if not as_json:
            print_line(line)
    if as_json:
        print_json([line.as_dict() for line in lines])
    else:
        _print_statements(lines)
        click.echo(f"\n{summary(lines)}")
    sys.exit(worst(lines) is Severity.FAIL)


def print_line(line: Observation) -> None:
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    click.secho(f"{line.level:<5}", nl=False, fg=colours[line.level])
    click.echo(f"{line.area:<9} {printable(line.text)}")
    if line.fix:
        click.echo(f"{'':<15}{printable(line.fix)}")


def _print_statements(lines: Sequence[Observation]) -> None:
    """Print all SQL statements again, ready to paste, each once."""
    statements: dict[str, dict[str, None]] = {}
    for line in lines:
        statements.setdefault(line.fix, {}).update(dict.fromkeys(line.sql))
    for fix, sql in statements.items():
        if sql:
            click.echo(f"\nTo paste, {printable(fix)}")
            for statement in sql:
                click.echo(f"  {printable(statement)}")
