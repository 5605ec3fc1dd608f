"""Fixtures of the Dagster layer's tests: an instance, and a code location on a database of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.defs.receiver import Receiver, receiver
from ovia_backup_dagster_tests.defs.support import Location, environment, load


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """In memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def disk_instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """On disk, in ``tmp_path / "dagster"``, with compute logs."""
    home = tmp_path / "dagster"
    home.mkdir()
    with dg.instance_for_test(temp_dir=str(home), set_dagster_home=False) as instance:
        yield instance


@pytest.fixture
def location(database: Connection, volume: Path, bin_dir: Path, instance: dg.DagsterInstance) -> Location:
    """The code location of a sample database."""
    return Location(load(environment(database, volume, bin_dir)), instance)


NewLocation = Callable[..., Location]


@pytest.fixture
def new_location(database: Connection, volume: Path, bin_dir: Path, instance: dg.DagsterInstance) -> NewLocation:
    """The same with further settings."""

    def new(**more: str) -> Location:
        return Location(load(environment(database, volume, bin_dir, **more)), instance)

    return new


@pytest.fixture
def bare(volume: Path, instance: dg.DagsterInstance) -> NewLocation:
    """A code location without a server, for what only looks at the volume."""

    def new(**more: str) -> Location:
        volume.mkdir(exist_ok=True)
        settings = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_DB": "sample", "BACKUP_DIR": str(volume), **more}
        return Location(load(settings), instance)

    return new


@pytest.fixture
def people() -> Iterator[Receiver]:
    """Who is told."""
    with receiver() as running:
        yield running
