"""``ovia-backup-service``: the entry point of the containers of the Swarm stack.

It combines the roles and the health check, and prints a ``BackupError`` as one line. It never imports dagster, because
the health check runs every minute.
"""

from __future__ import annotations

import sys

import click

from ovia_backup_dagster.container.container_roles import ROLES
from ovia_backup_dagster.container.health_checks import health_command
from ovia_backup_dagster.core.errors import BackupError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The roles of the image. See deploy/stack.yml."""


for _command in (*ROLES, health_command):
    main.add_command(_command)


def entry_point() -> None:
    """The console script: a ``BackupError`` is printed as one line."""
    try:
        main()
    except BackupError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
