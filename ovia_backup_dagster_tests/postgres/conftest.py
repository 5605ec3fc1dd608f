"""Fixtures for provoked failures: servers and scenes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.conftest import (
    PortCluster,
    running_cluster,
)
from ovia_backup_dagster_tests.support.provocations import FEW, Scene, doors, primary_and_standby, to_be_stopped


@pytest.fixture(scope="module")
def gate(full_bin_dir: Path) -> Iterator[PortCluster]:
    """A whole PostgreSQL with few connections, and a pg_hba.conf rule for each way to refuse one."""
    with doors(running_cluster(full_bin_dir, tls=True, reserved_connections="2", **FEW)) as cluster:
        yield cluster


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(request, tmp_path)


@pytest.fixture(scope="module")
def doomed(full_bin_dir: Path) -> Iterator[PortCluster]:
    """A server that tests stop or kill; such a test starts it again."""
    with to_be_stopped(running_cluster(full_bin_dir, restart_after_crash="on")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pair(full_bin_dir: Path) -> Iterator[tuple[PortCluster, PortCluster]]:
    """A primary with two tables, and its standby, which is not started."""
    with primary_and_standby(running_cluster(full_bin_dir, autovacuum="off")) as both:
        yield both


@pytest.fixture(scope="module")
def damaged(full_bin_dir: Path) -> Iterator[PortCluster]:
    """A server with checksums, whose files tests overwrite while it is stopped."""
    with running_cluster(full_bin_dir) as cluster:
        cluster.stop()
        cluster._run("pg_checksums", "--enable", "--no-sync", f"--pgdata={cluster.data}")
        cluster.start()
        yield cluster
