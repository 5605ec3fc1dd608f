"""The command line of one database, for the tests of whole walks."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.support.command_line import Cli, InProcessCli


@pytest.fixture
def cli(database: Connection, bin_dir: Path, volume: Path) -> Cli:
    """Commands in this process; a test of what only a process shows asks for ``process``."""
    return InProcessCli(
        {
            "POSTGRES_HOST": database.host,
            "POSTGRES_PORT": str(database.port),
            "POSTGRES_DB": database.database,
            "POSTGRES_USER": "postgres",
            "BACKUP_DIR": str(volume),
            "BACKUP_EXPECTED_TABLES": "people,identities,person_identity_links",
            "BACKUP_LOCK_WAIT_MINUTES": "0",
            "PG_BIN_DIR": str(bin_dir),
        }
    )
