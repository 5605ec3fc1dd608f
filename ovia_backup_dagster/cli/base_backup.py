"""``ovia-backup base-backup``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, print_json

if TYPE_CHECKING:
    from ovia_backup_dagster.pitr.bases import BaseBackup


@click.command("base-backup")
@click.option("--no-verify", is_flag=True, help="Do not read the backup back.")
@json_option
def base_backup_command(no_verify: bool, as_json: bool) -> None:
    """Make a base backup for point-in-time recovery, and verify it. Exit code 1: it failed, or the backup is bad.

    It may run at the same time as a dump. Recovery to an instant needs it and the WAL received since.
    """
    from ovia_backup_dagster.pitr.base_verification import verify_base
    from ovia_backup_dagster.pitr.bases import read_base

    maker = system_from_environment().pitr.base_backups
    base = maker.make(datetime.now(UTC), log=log)
    if not no_verify:
        verify_base(maker.archive, base.folder, now=datetime.now(UTC), log=log)
        base = read_base(base.folder)
    if as_json:
        print_json(_as_dict(base))
    else:
        click.echo(base.folder)


def _as_dict(base: BaseBackup) -> dict[str, Any]:
    manifest = base.manifest
    return {
        "name": base.folder.name,
        "path": str(base.folder),
        "system_identifier": manifest.system_identifier,
        "timeline": manifest.timeline,
        "start_lsn": manifest.start_lsn,
        "end_lsn": manifest.end_lsn,
        "started_at": manifest.started_at.isoformat(),
        "finished_at": manifest.finished_at.isoformat(),
        "seconds": manifest.seconds,
        "size_bytes": manifest.size_bytes,
        "data_bytes": manifest.data_bytes,
        "compression": manifest.compression,
        "tablespaces": [space.name for space in manifest.tablespaces],
        "warnings": list(manifest.warnings),
        "verified": base.verified,
        "drilled": base.drilled,
    }
