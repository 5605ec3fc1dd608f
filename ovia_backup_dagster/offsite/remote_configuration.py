"""Checks the configuration of a remote in rclone's file, before anything is sent."""

from __future__ import annotations

import json

from ovia_backup_dagster.core.errors import RemoteAccessError, SettingsError
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_errors import last_words


def require_configured(remote: Remote) -> None:
    """Refuse a remote that rclone's configuration does not have, or that would accept any host key.

    Raises:
        SettingsError: it is not configured, or the file cannot be read.
        RemoteAccessError: an SFTP remote without known host keys.
        ProgramMissingError: rclone is missing.
    """
    section = remote.address.section
    if section is None:
        return
    config = _sections(remote)
    if section not in config:
        has = f"{remote.program.config} has {', '.join(sorted(config)) or 'no remote'}"
        raise SettingsError(
            f"remote {remote} is not configured",
            why=f"OFFSITE_REMOTES names {section}:, and {has if remote.program.config else 'RCLONE_CONFIG is not set'}",
            fix=f"rclone config create {section} …, or correct OFFSITE_REMOTES",
        )
    options = config[section]
    if options.get("type") == "sftp" and not options.get("known_hosts_file"):
        raise RemoteAccessError(
            f"remote {remote} would accept any host key",
            why=f"[{section}] of RCLONE_CONFIG has no known_hosts_file",
            fix=f"ssh-keyscan {shell_word(options.get('host', 'HOST'))} > known_hosts; compare it with the server's "
            f"keys; then known_hosts_file = /…/known_hosts in [{section}]",
        )


def _sections(remote: Remote) -> dict[str, dict[str, str]]:
    file = remote.program.config
    code, output, stderr = remote.ask(("config", "dump"))
    if code or (file is not None and not file.is_file()):
        raise SettingsError(
            f"RCLONE_CONFIG={file} cannot be read",
            why=last_words(stderr),
            fix=f"ls -l {shell_word(str(file))}; rclone config show",
        )
    found: dict[str, dict[str, str]] = json.loads(output)
    return found
