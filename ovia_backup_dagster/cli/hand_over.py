"""``ovia-backup hand-over``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.options import OwnerType, json_option
from ovia_backup_dagster.cli.output import log, log_waiting, print_json, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.core.takeover import Owner


@click.command("hand-over")
@click.option(
    "--to",
    "owner",
    type=OwnerType(),
    required=True,
    help="User and group that this system runs as, such as 10001:10001.",
)
@click.option(
    "--finish",
    is_flag=True,
    help="After the old service is removed: bring back the dumps that it removed in the meantime.",
)
@json_option
def hand_over_command(owner: Owner, finish: bool, as_json: bool) -> None:
    """Take over the volume from the old backup script. Run as root.

    Until --finish, the old script can remove no dump for good.
    """
    from ovia_backup_dagster.core import takeover
    from ovia_backup_dagster.settings.model import Settings

    settings = Settings.load()
    settings.require_volume()
    act = takeover.finish if finish else takeover.begin
    wait = settings.backup_lock_wait_minutes * 60
    done = act(settings.backup_dir, owner, datetime.now(UTC), wait, log_waiting)
    if as_json:
        answer = {"owner": str(owner), "changed": done.changed, "unchanged": done.unchanged}
        answer |= {"left_alone": done.left_alone, "came_back": done.came_back}
        if done.protection:
            answer |= {"protected": done.protection.names, "newly_protected": done.protection.added}
        print_json(answer)
        return
    click.echo(f"{settings.backup_dir} belongs to {owner}: {len(done.changed)} changed, {done.unchanged} were right")
    for name in done.left_alone:
        click.echo(f"left alone, not ours: {printable(name)}")
    for name in done.came_back:
        click.echo(f"came back: {printable(name)}")
    if done.protection:
        count, new = len(done.protection.names), len(done.protection.added)
        click.echo(f"protected from the old script: {count} dumps, {new} of them now")
        log(f"when the old service is removed, as root: ovia-backup hand-over --finish --to {owner}")
    elif finish:
        click.echo(f"the hand-over is over; {len(done.came_back)} dumps came back")
    else:
        click.echo("no hand-over is under way: every dump is ours already")
