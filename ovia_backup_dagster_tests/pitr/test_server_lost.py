"""The server is killed with its disk while sessions commit: what the recovery brings back, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from ovia_backup_dagster_tests.pitr.ground import ground_on
from ovia_backup_dagster_tests.pitr.lost_server import Lost, PreparedServer, prepared_server
from ovia_backup_dagster_tests.support.exhaustive import thinned

ROUNDS = 20


@pytest.fixture(scope="module")
def prepared(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreparedServer]:
    """The server's commits wait for its disk, as by default: only then is a commit sent to the receiver at once."""
    volume = tmp_path_factory.mktemp("pitr") / "volume"
    volume.mkdir(mode=0o700)
    with (
        ground_on(full_bin_dir, synchronous_commit="on", full_page_writes="on") as ground,
        prepared_server(ground, volume) as made,
    ):
        yield made


def _require_promises(lost: Lost, *, synchronous: bool) -> None:
    said = f"{lost.commits} of {lost.committed} commits lost, {lost.seconds * 1000:.0f} ms"
    print(f"{'synchronous' if synchronous else 'asynchronous'}: {said}")
    assert lost.faults() == [], said
    assert 0 < lost.confirmed <= lost.committed
    if synchronous:
        assert lost.commits == 0, said


@pytest.mark.parametrize("synchronous", thinned([False, True]))
def test_a_lost_server_loses_only_its_last_moment(
    prepared: PreparedServer, tmp_path: Path, rng: Random, synchronous: bool
) -> None:
    lost = prepared.lose(tmp_path / "round", synchronous=synchronous, seconds=rng.uniform(0, 0.5))
    _require_promises(lost, synchronous=synchronous)


@pytest.mark.exhaustive
@pytest.mark.many_rounds
@pytest.mark.parametrize("synchronous", [False, True], ids=["asynchronous", "synchronous"])
def test_a_server_lost_many_times_keeps_the_promise(
    prepared: PreparedServer, tmp_path: Path, rng: Random, synchronous: bool
) -> None:
    for number in range(ROUNDS):
        lost = prepared.lose(tmp_path / f"round-{number}", synchronous=synchronous, seconds=rng.uniform(0, 3))
        _require_promises(lost, synchronous=synchronous)
