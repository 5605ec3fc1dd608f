"""The keys of the signed log. Without them backups are not signed."""

from __future__ import annotations

from pathlib import Path

from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting


class SigningSettings(SettingsGroup):
    """The files of the two keys."""

    title = "Signatures"

    backup_verify_key_file: Path | None = setting(
        "BACKUP_VERIFY_KEY_FILE",
        help="The public key (`ssh-ed25519 …`) of the signed log. If it is set, a backup or a verdict that no signed "
        "statement vouches for does not count, and no program opens it.",
        shown="none: nothing is signed",
    )
    backup_signing_key_file: Path | None = setting(
        "BACKUP_SIGNING_KEY_FILE",
        help="Its private key, in OpenSSH's format, without a passphrase. Needed where backups are made; a machine "
        "that only restores must not have it. `ovia-backup keys init` makes both.",
        shown="none",
    )
