"""The time limit of file operations that may hang."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ovia_backup_dagster.core.deadline import within_deadline
from ovia_backup_dagster.core.errors import StalledVolumeError

LONG = 60.0
SHORT = 0.01


def test_a_result_in_time_is_returned(tmp_path: Path) -> None:
    assert within_deadline(LONG, tmp_path, lambda: 7) == 7


def test_an_error_of_the_operation_is_raised(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        within_deadline(LONG, tmp_path, fail)


def test_a_hanging_operation_is_given_up_and_not_repeated(tmp_path: Path) -> None:
    release, started = threading.Event(), []

    def hang() -> str:
        started.append(threading.current_thread())
        release.wait()
        return "late"

    for _ in range(3):
        with pytest.raises(StalledVolumeError, match=rf"the backup volume {tmp_path} does not answer within 0.01 s"):
            within_deadline(SHORT, tmp_path, hang)
    assert len(started) == 1
    release.set()
    # The next call waits for the hung one, and then runs its own operation.
    assert within_deadline(LONG, tmp_path, lambda: "now") == "now"
    started[0].join(LONG)
    assert not started[0].is_alive()


def test_another_volume_is_read_while_one_hangs(tmp_path: Path) -> None:
    release = threading.Event()
    with pytest.raises(StalledVolumeError, match="does not answer"):
        within_deadline(SHORT, tmp_path / "one", release.wait)
    assert within_deadline(LONG, tmp_path / "other", lambda: 7) == 7
    release.set()
