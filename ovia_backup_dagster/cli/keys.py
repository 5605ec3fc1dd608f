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
    """Make and replace the keys that sign backups, and take earlier backups into the signed log."""


@keys_group.command("init")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="A new or empty folder.")
def init_command(folder: Path) -> None:
    """Make a pair of keys in a folder.

    The host that makes backups needs both; a machine that only restores needs the public one. Keep a copy of the
    public key, and of the head that `ovia-backup log verify` prints, away from the host.
    """
    from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY, create_keys, fingerprint

    key = create_keys(folder, "ovia-backup")
    click.echo(f"made {SIGNING_KEY} and {VERIFY_KEY} in {folder}: {fingerprint(key)}")
    log(f"Next: {_exports(folder)}; then: ovia-backup keys adopt")


@keys_group.command("rotate")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="A new or empty folder.")
def rotate_command(folder: Path) -> None:
    """Replace the keys of the signed log by a new pair in a folder.

    The old key signs a statement that names the new one, and the new one signs from then on. A machine that knows only
    the old public key follows. Repeat an interrupted call with the same folder. This does not help after the signing
    key was stolen: docs/signing.md.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ovia_backup_dagster.core.errors import SettingsError
    from ovia_backup_dagster.signing.key_files import VERIFY_KEY, fingerprint, pair_files, pair_in, write_new

    system = system_from_environment()
    statements = system.required_statement_log
    new = pair_in(folder)
    if new is None:
        statements.require_key()
        new = Ed25519PrivateKey.generate()
        write_new(folder, pair_files(new, "ovia-backup"))
    elif new.public_key() == statements.key:
        why = f"{fingerprint(statements.key)} is the key in BACKUP_VERIFY_KEY_FILE"
        raise SettingsError(f"the key in {folder} is in use already", why=why, fix="choose a new folder")
    statements.rotate(new)
    click.echo(
        f"the log of {statements.database} is signed by {fingerprint(new.public_key())} from now on; "
        f"head {statements.chain().head}"
    )
    log(
        f"Next: {_exports(folder)}; copy {VERIFY_KEY} to the machines that restore; restart what runs with the old "
        f"keys, then delete the old signing key: {system.settings.backup_signing_key_file}"
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


def _exports(folder: Path) -> str:
    """The command that sets both keys to those of a folder."""
    from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY

    where = shell_word(str(folder.absolute()))
    return f"export BACKUP_SIGNING_KEY_FILE={where}/{SIGNING_KEY} BACKUP_VERIFY_KEY_FILE={where}/{VERIFY_KEY}"
