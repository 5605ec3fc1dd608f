"""Sends a file as ``ovia-backup offsite copy`` does: a program for ``offsite``, which measures its memory.

``python -m benchmarks.send_file FILE SHA256 RECIPIENT CONFIG TARGET``. It imports what that command has imported by
then, and nothing of the benchmarks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ovia_backup_dagster.cli.main
import ovia_backup_dagster.offsite.operations
import ovia_backup_dagster.system  # noqa: F401
from ovia_backup_dagster.core.remote_address import RemoteAddress
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster.offsite.transfer import PlainFile, send

if __name__ == "__main__":
    path, sha256, recipient, config, place = sys.argv[1:]
    file = PlainFile(Path(path), Path(path).stat().st_size, sha256)
    remote = Remote(RemoteAddress("s3", place), Program(Path(config)))
    send(file, Age((recipient,)), remote, "memory", log=lambda _: None)
