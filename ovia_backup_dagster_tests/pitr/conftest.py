"""Fixtures that several test modules of point-in-time recovery share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.pitr.received_shop import Shop, shop_on


@pytest.fixture(scope="session")
def shop(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A server whose WAL is received. A test makes tables of its own, and reads from where it began."""
    with shop_on(full_bin_dir, tmp_path_factory.mktemp("shop") / "volume") as shop:
        yield shop
