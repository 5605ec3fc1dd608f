"""``ovia-backup keys``: the keys of the signed log, and backups from before it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.output import log
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.files import exists
from ovia_backup_dagster.core.shell import shell_word

if TYPE_CHECKING:
    from ovia_backup_dagster.signing.chain import Chain


@click.group("keys")
def keys_group() -> None:
    """Make and replace the keys that sign backups, and take earlier backups into the signed log."""


@keys_group.command("init")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="A new or empty folder.")
@click.option("--without-age", is_flag=True, help="Make no key to encrypt copies off this host.")
def init_command(folder: Path, without_age: bool) -> None:
    """Make a pair of keys, a key to encrypt copies off this host, and a page to print, in a folder.

    The host that makes backups needs both keys of the pair; a machine that only restores needs the public one. The page
    has what a restore on an empty machine needs. Note on it the head that `ovia-backup log verify` prints.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ovia_backup_dagster.signing.age_keys import AGE_IDENTITY, AgePair, new_age_pair
    from ovia_backup_dagster.signing.key_files import fingerprint, pair_files, write_new
    from ovia_backup_dagster.signing.recovery_page import RECOVERY_PAGE, PageFacts

    age = AgePair() if without_age else new_age_pair()
    key = Ed25519PrivateKey.generate()
    page = PageFacts(datetime.now(UTC), key.public_key(), age, log=_log_that_can_be_read())
    files = (*pair_files(key, "ovia-backup"), *age.files, page.file)
    write_new(folder, files)
    click.echo(f"made {', '.join(file.name for file in files)} in {folder}: {fingerprint(key.public_key())}")
    log(f"Next: {_exports(folder)}; then: ovia-backup keys adopt")
    log(f"Print {RECOVERY_PAGE}, and delete it here")
    if not without_age:
        log(f"Move {AGE_IDENTITY} off this host, and delete it here: it decrypts all copies, and no backup needs it")


@keys_group.command("rotate")
@click.option("--to", "folder", type=click.Path(path_type=Path), required=True, help="A new or empty folder.")
def rotate_command(folder: Path) -> None:
    """Replace the keys of the signed log with a new pair in a folder.

    The old key signs a statement that names the new one, and the new one signs from then on. A machine that knows only
    the old public key follows. Repeat an interrupted call with the same folder. This does not help after the signing
    key was stolen: docs/signing.md.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ovia_backup_dagster.core.errors import SettingsError
    from ovia_backup_dagster.signing.age_keys import AgePair, age_pair_in
    from ovia_backup_dagster.signing.key_files import VERIFY_KEY, fingerprint, pair_files, pair_in, write_new
    from ovia_backup_dagster.signing.recovery_page import RECOVERY_PAGE, PageFacts

    system = system_from_environment()
    statements = system.required_statement_log
    new, signing = pair_in(folder), system.settings.backup_signing_key_file
    age = age_pair_in(signing.parent) if signing else AgePair()
    if new is None:
        statements.require_key()
        new = Ed25519PrivateKey.generate()
        # The recipient stays the same; the identity, if it is still here, is not copied again but to paper.
        write_new(folder, (*pair_files(new, "ovia-backup"), *AgePair(recipient=age.recipient).files))
    elif new.public_key() == statements.key:
        why = f"{fingerprint(statements.key)} is the key in BACKUP_VERIFY_KEY_FILE"
        raise SettingsError(f"the key in {folder} is in use already", why=why, fix="choose a new folder")
    statements.rotate(new)
    if not exists(folder / RECOVERY_PAGE):  # written by an earlier call for another database
        key, chain = new.public_key(), statements.chain()
        printed = age.recipient is not None
        write_new(folder, [PageFacts(datetime.now(UTC), key, age, age_was_printed=printed, log=chain).file])
    click.echo(
        f"the log of {statements.database} is signed by {fingerprint(new.public_key())} from now on; "
        f"head {statements.chain().head}"
    )
    log(
        f"Next: {_exports(folder)}; copy {VERIFY_KEY} to the machines that restore; restart what runs with the old "
        f"keys, then delete the old signing key: {signing}"
    )
    log(f"Print {RECOVERY_PAGE}, note each log's head on it, and delete it here")


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


def _log_that_can_be_read() -> Chain | None:
    """The log of the volume that the settings name, if there is one; new keys are also made where nothing is set."""
    try:
        statements = system_from_environment().statement_log
        return statements.chain() if statements is not None else None
    except BackupError:
        return None
