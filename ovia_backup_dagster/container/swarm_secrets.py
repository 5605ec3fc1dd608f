"""A container's secrets: copies the files that Swarm mounts, so that runs, which are not Swarm tasks, can mount them.

Also refuses secrets among a container's variables. ``settings`` reads the files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ovia_backup_dagster.container.errors import ContainerError
from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.settings.model import variable_names
from ovia_backup_dagster.settings.secret_files import password_in

#: Where Swarm mounts a service's secrets.
SECRETS = Path("/run/secrets")
#: A folder in memory: copies of the secrets for runs, which are not Swarm tasks, and the storage's passfile.
PRIVATE = Path("/run/ovia-backup")
STORAGE_SECRET = "storage_password"  # noqa: S105 - a file's name
PASSFILE = PRIVATE / "storage.pgpass"
#: Variable -> the variable that names a file instead. Docker shows the variables of every container.
FILE_VARIABLES = {
    "PGPASSWORD": "POSTGRES_PASSWORD_FILE",
    "POSTGRES_PASSWORD": "POSTGRES_PASSWORD_FILE",
    "RESTORE_POSTGRES_PASSWORD": "RESTORE_POSTGRES_PASSWORD_FILE",
    "WAL_POSTGRES_PASSWORD": "WAL_POSTGRES_PASSWORD_FILE",
    "BACKUP_NOTIFY_URLS": "BACKUP_NOTIFY_URLS_FILE",
}
#: All variables that name the file of a secret.
SECRET_FILES = (
    *sorted(set(FILE_VARIABLES.values())),
    "BACKUP_SIGNING_KEY_FILE",
    "BACKUP_VERIFY_KEY_FILE",
    "RCLONE_CONFIG",
)


def refuse_secret_values(environment: Mapping[str, str]) -> None:
    """Refuse a password among the variables: Docker shows the variables of every run.

    Raises:
        SettingsError: there is a password.
    """
    for name, by_file in FILE_VARIABLES.items():
        if environment.get(name):
            raise SettingsError(
                f"{name} is set by value",
                why="docker inspect would show it for every run",
                fix=f"make it a Docker secret, and set {by_file} (docs/runbook.md, Installing)",
            )
    for name in sorted(variable_names() & environment.keys()):
        if password_in(environment[name]):
            raise SettingsError(
                f"{name} holds a password",
                why="docker inspect would show it for every run",
                fix="take it out of the URL; a password is a Docker secret (docs/runbook.md, Installing)",
            )


def collect_secrets(*, storage: bool = True) -> None:
    """Copy this container's secrets to ``PRIVATE``, and make the storage's passfile from its password.

    A secret that Swarm no longer mounts is removed from ``PRIVATE``, because a running run keeps the folder alive.

    Args:
        storage: whether the role uses Dagster's storage, and so has its password.

    Raises:
        ContainerError: a secret that a variable names is missing, or the folder cannot be written.
    """
    try:
        given = {secret.name: secret.read_text("utf-8") for secret in SECRETS.iterdir()}
        for left in PRIVATE.iterdir():
            if left.name not in given and left != PASSFILE:
                left.unlink()
        for name, secret in given.items():
            _write(PRIVATE / name, secret)
        if storage:
            password = (SECRETS / STORAGE_SECRET).read_text("utf-8").partition("\n")[0]
            # libpq's own rules: a field's colon and backslash are escaped.
            escaped = password.replace("\\", "\\\\").replace(":", "\\:")
            _write(PASSFILE, f"*:*:*:*:{escaped}\n")
    except (OSError, UnicodeError) as error:
        raise ContainerError(
            "the secrets cannot be collected",
            why=str(error),
            fix="docker secret ls; each of deploy/stack.yml must be there (docs/runbook.md, Installing)",
        ) from None
    for name in SECRET_FILES:
        if path := os.environ.get(name):
            require_readable(Path(path), name)


def _write(path: Path, text: str) -> None:
    """Replace the file atomically: a run may be reading the old one. Never readable by others."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def require_readable(path: Path, name: str = "") -> None:
    """Raise :class:`ContainerError` if a secret cannot be read; ``name`` is the variable that names its file."""
    try:
        path.read_bytes()
    except OSError as error:
        raise ContainerError(
            f"the secret {f'{name}={path}' if name else path} cannot be read",
            why=error.strerror or str(error),
            fix="docker secret ls; then see the secrets of this service in deploy/stack.yml",
        ) from None
