"""``ovia-backup keys``: the keys of the signed log, and backups from before it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.output import log
from ovia_backup_dagster.core.shell import shell_word


@click.group("keys")
def keys_group() -> None:
    """Make the keys that sign backups, and take earlier backups into the signed log."""


@keys_group.command("init")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="A new or empty folder.")
def init_command(folder: Path) -> None:
    """Make a pair of keys in a folder.

    The host that makes backups needs both; a machine that only restores needs the public one. Keep a copy of the
    public key, and of the head that `ovia-backup log verify` prints, away from the host.
    """
    from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY, create_keys, fingerprint

    key = create_keys(folder, "ovia-backup")
    where = shell_word(str(folder.absolute()))
    click.echo(f"made {SIGNING_KEY} and {VERIFY_KEY} in {folder}: {fingerprint(key)}")
    log(
        f"Next: export BACKUP_SIGNING_KEY_FILE={where}/{SIGNING_KEY} BACKUP_VERIFY_KEY_FILE={where}/{VERIFY_KEY}; "
        "then: ovia-backup keys adopt"
    )


@keys_group.command("adopt")
@click.argument("backup", required=False)
def adopt_command(backup: str | None) -> None:
    """Vouch for backups that were made without the key: for BACKUP, or for all that no statement vouches for.

    What is on the volume now is taken on trust. Verify the backups first, and look at what this prints.
    """
    from ovia_backup_dagster.core.locking import reading
    from ovia_backup_dagster.signing.adoption import adopt, unsigned

    system = system_from_environment()
    statements = system.required_statement_log
    now = datetime.now(UTC)
    wanted = [system.catalog.find(backup, now, anywhere=False)] if backup else unsigned(system.catalog, now)
    for found in wanted:
        with reading(found.path):
            for name in adopt(statements, found):
                click.echo(f"taken on trust: {name}")
    click.echo(f"{len(wanted)} backups adopted; head {statements.chain().head}")
    if wanted:
        log("Next: ovia-backup verify --unverified; ovia-backup list")
