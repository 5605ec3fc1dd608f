"""The command line of one database, for end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.support.command_line import Cli, InProcessCli


@pytest.fixture
def cli(database: Connection, bin_dir: Path, volume: Path) -> Cli:
    """Runs commands in this process; a test that needs a separate process uses ``process``."""
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
