"""``ovia-backup list``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import system_from_environment, volume_from_environment
from ovia_backup_dagster.cli.options import allow_expired_option, as_of_option, json_option
from ovia_backup_dagster.cli.output import backup_as_dict, log, manifest_problem, print_json, print_table


@click.command("list")
@json_option
@click.option("--offsite", is_flag=True, help="List the copies on the remotes instead; asks each of them.")
@as_of_option
@allow_expired_option
def list_command(as_json: bool, offsite: bool, as_of: datetime | None, allow_expired: bool) -> None:
    """List the backups, newest first."""
    if offsite:
        _list_copies(as_json, as_of, allow_expired)
        return
    if as_of or allow_expired:
        raise click.UsageError("--as-of and --allow-expired need --offsite")
    from ovia_backup_dagster.core.human_text import duration, human_bytes
    from ovia_backup_dagster.retention.promote_and_prune import preview

    system, now = system_from_environment(), datetime.now(UTC)
    backups = system.catalog.backups()
    reasons = {d.candidate.key: d for d in preview(backups, system.policy, now).decisions}
    if as_json:
        print_json([backup_as_dict(backup, now) for backup in backups])
        return
    if not backups:
        click.echo(f"no backup of database {system.catalog.database} in {system.catalog.root}")
        log("Next: ovia-backup dump")
        return
    rows = []
    for backup in backups:
        decision = reasons.get(f"{backup.tier}/{backup}")
        plan = ("keep: " if decision.keep else "remove: ") + decision.reason if decision else ""
        witness = backup.witness
        age = duration(now - backup.started_at)
        count = f"{witness.rows:,}" if witness else ""
        state = backup.state(now).value
        if not backup.is_vouched:
            state = "unsigned"
        elif manifest_problem(backup):
            state += ", manifest unreadable"
        rows.append((backup.path.name, age, human_bytes(backup.size_bytes), count, state, plan))
    print_table(("backup", "age", "size", "rows", "state", "retention"), rows, right=(1, 2, 3))


def _list_copies(as_json: bool, as_of: datetime | None, allow_expired: bool) -> None:
    """The complete copies on every remote. A remote that cannot be asked does not hide the others."""
    from ovia_backup_dagster.core.errors import BackupError
    from ovia_backup_dagster.core.human_text import duration, human_bytes

    offsite, now, code = volume_from_environment().offsite, datetime.now(UTC), 0
    rows, found = [], []
    for remote in offsite.remotes(as_of=as_of):
        try:
            copies = offsite.fetcher(remote).copies(now, allow_expired=allow_expired)
        except BackupError as error:
            click.echo(f"ovia-backup: {remote}: {error}", err=True)
            code = FAILED
            continue
        for name, known in copies.complete:
            size, standing = copies.size_of(name.filename), known.standing.value
            rows.append((str(remote), name.filename, duration(now - name.started_at), human_bytes(size), standing))
            found.append({"remote": str(remote), "name": name.filename, "size_bytes": size, "standing": standing})
    if as_json:
        print_json(found)
    elif rows:
        print_table(("remote", "backup", "age", "size", "state"), rows, right=(2, 3))
    elif not code:
        click.echo("no copy on any remote")
        log("Next: ovia-backup offsite copy")
    sys.exit(code)
