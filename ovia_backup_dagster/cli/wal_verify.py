"""``ovia-backup wal verify``: the WAL archive read back."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import volume_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, print_json, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.pitr.wal_verification import ArchiveVerification


@click.command("verify")
@click.option("--records", is_flag=True, help="Decode every record, too, with the pg_waldump of the server's version.")
@json_option
def wal_verify_command(records: bool, as_json: bool) -> None:
    """Read every archived segment back, and name what is missing or damaged. Exit code 1: something is.

    The contents of base backups are verified when they are made; this command checks only that
    their files and WAL exist.
    """
    from ovia_backup_dagster.pitr.archive import cluster_archives
    from ovia_backup_dagster.pitr.wal_verification import verify_archive

    system = volume_from_environment()
    archives = cluster_archives(system.settings.backup_dir)
    if not archives:
        click.echo("ovia-backup: no WAL was ever received on this volume. Next: ovia-backup wal receive", err=True)
        sys.exit(FAILED)
    programs = system.programs if records else None
    found = [verify_archive(archive, programs, log=log) for archive in archives]
    if as_json:
        print_json([_as_dict(each) for each in found])
    else:
        for each in found:
            for finding in each.findings:
                click.echo(printable(f"{finding.name}: {finding.text}"))
            click.echo(_summary(each))
        if any(each.findings for each in found):
            log("Next: ovia-backup recovery-window; a base backup bridges what is lost: ovia-backup base-backup")
    sys.exit(FAILED if any(each.findings for each in found) else 0)


def _summary(found: ArchiveVerification) -> str:
    from ovia_backup_dagster.core.human_text import human_bytes

    read = f"{found.segments:,} segments ({human_bytes(found.wal_bytes)} of WAL) read"
    if found.records:
        read += " and decoded"
    wrong = f"findings: {len(found.findings)}" if found.findings else "nothing is missing or damaged"
    return f"cluster {found.archive.system_identifier}: {read}, {found.bases} base backups: {wrong}"


def _as_dict(found: ArchiveVerification) -> dict[str, Any]:
    return {
        "system_identifier": found.archive.system_identifier,
        "segments": found.segments,
        "wal_bytes": found.wal_bytes,
        "base_backups": found.bases,
        "records": found.records,
        "findings": [{"name": finding.name, "text": finding.text} for finding in found.findings],
    }
