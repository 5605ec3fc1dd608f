"""Fixtures of the Dagster layer's tests: an instance, and a code location with its own database."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.defs.receiver import Receiver, receiver
from ovia_backup_dagster_tests.defs.support import Location, environment, load


@pytest.fixture(scope="session")
def unsynced() -> Iterator[None]:
    """SQLite does not wait for the disk: no test of Dagster's history needs it to survive a power failure."""

    def switch_off(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", switch_off)
    yield
    event.remove(Engine, "connect", switch_off)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance in memory."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an instance on disk with empty databases, made once because it takes a second."""
    home = tmp_path_factory.mktemp("dagster")
    with dg.instance_for_test(temp_dir=str(home), set_dagster_home=False):
        return home


@pytest.fixture
def disk_instance(tmp_path: Path, prepared_home: Path, unsynced: None) -> Iterator[dg.DagsterInstance]:
    """An instance on disk, in ``tmp_path / "dagster"``, with compute logs."""
    home = tmp_path / "dagster"
    shutil.copytree(prepared_home, home)
    with dg.instance_for_test(temp_dir=str(home), set_dagster_home=False) as instance:
        yield instance


@pytest.fixture
def location(database: Connection, volume: Path, bin_dir: Path, instance: dg.DagsterInstance) -> Location:
    """The code location of a sample database."""
    return Location(load(environment(database, volume, bin_dir)), instance)


NewLocation = Callable[..., Location]


@pytest.fixture
def new_location(database: Connection, volume: Path, bin_dir: Path, instance: dg.DagsterInstance) -> NewLocation:
    """Makes the same location with further settings."""

    def new(**more: str) -> Location:
        return Location(load(environment(database, volume, bin_dir, **more)), instance)

    return new


@pytest.fixture
def bare(volume: Path, instance: dg.DagsterInstance) -> NewLocation:
    """Makes code locations without a server, for code that only reads the volume."""

    def new(**more: str) -> Location:
        volume.mkdir(exist_ok=True)
        settings = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_DB": "sample", "BACKUP_DIR": str(volume), **more}
        return Location(load(settings), instance)

    return new


@pytest.fixture
def people() -> Iterator[Receiver]:
    """A receiver of alerts."""
    with receiver() as running:
        yield running
