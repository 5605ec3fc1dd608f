"""The shared ground works: the WAL role replicates, and without its pg_hba line it does not."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.pitr.archive import cluster_archives
from ovia_backup_dagster_tests.pitr.ground import ground_on, replication_session


def test_the_wal_role_replicates_only_with_its_line(bin_dir: Path, tmp_path: Path) -> None:
    with ground_on(bin_dir) as ground:
        archive = ground.archive(tmp_path / "volume")
        with replication_session(ground.connection) as session:
            identified = session.execute("IDENTIFY_SYSTEM").fetchone()
        with (
            ground.without_replication_line(),
            pytest.raises(psycopg.OperationalError, match="entry for replication connection"),
        ):
            replication_session(ground.connection)
        replication_session(ground.connection).close()

    assert identified is not None
    assert identified[0] == archive.system_identifier
    assert cluster_archives(tmp_path / "volume") == [archive]
    assert archive.facts.segment_bytes == 16 * 1024 * 1024
