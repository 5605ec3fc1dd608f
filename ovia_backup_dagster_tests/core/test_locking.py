"""One writer at a time, with real processes. The processes synchronize by pipes, not by sleeping."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.core import locking
from ovia_backup_dagster.core.errors import LockHeldError, VolumeError
from ovia_backup_dagster.core.locking import FILENAME, lock_holder, volume_lock
from ovia_backup_dagster_tests.conftest import REPOSITORY
from ovia_backup_dagster_tests.support.factories import NOW

#: Longer than any test: a wait ends because another process acts, not because of a timeout.
LONG = 60.0

# Holds the lock until its standard input ends, and reports that on standard output.
HOLDER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from ovia_backup_dagster.core.locking import volume_lock

with volume_lock(Path(sys.argv[1]), purpose=sys.argv[2], now=datetime(2026, 6, 15, 12, tzinfo=UTC), wait_seconds=60):
    print("locked", flush=True)
    sys.stdin.read()
"""

# The same with a child process, like pg_dump, that lives until standard input ends; argv[2] says whether it inherits.
PARENT = """
import subprocess, sys
from datetime import UTC, datetime
from pathlib import Path
from ovia_backup_dagster.core.locking import volume_lock

with volume_lock(Path(sys.argv[1]), purpose="dumping", now=datetime(2026, 6, 15, 12, tzinfo=UTC)) as lock:
    child = [sys.executable, "-c", "import sys; print('child runs', flush=True); sys.stdin.read()"]
    subprocess.run(child, pass_fds=(lock,) if sys.argv[2] == "inherits" else ())
"""

# Increments a counter in a file under the lock, a hundred times, once all other processes are ready to do the same.
COUNTER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from ovia_backup_dagster.core.locking import volume_lock

root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
with volume_lock(root, purpose="counting", now=datetime(2026, 6, 15, 12, tzinfo=UTC), wait_seconds=60):
    for _ in range(100):
        number = int((root / "counter").read_text() or "0")
        (root / "counter").write_text(str(number + 1))
"""


@contextmanager
def running(script: str, *arguments: object, says: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has printed its first line; it is ended after the block."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{says}\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def holding(root: Path, purpose: str = "dumping ovia") -> Iterator[subprocess.Popen[str]]:
    with running(HOLDER, root, purpose, says="locked") as process:
        yield process


@contextmanager
def waiting(root: Path) -> Iterator[None]:
    """Wait until another process has the lock file open without holding the lock."""
    script = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with running(script, root / FILENAME, says="open"):
        yield


def end(process: subprocess.Popen[str]) -> None:
    """Close the standard input, so that the process, and any that share the input, end."""
    assert process.stdin is not None
    process.stdin.close()


def take(root: Path, wait_seconds: float = 0.0) -> None:
    with volume_lock(root, purpose="testing", now=NOW, wait_seconds=wait_seconds):
        pass


def test_while_one_process_holds_the_lock_another_is_refused(tmp_path: Path) -> None:
    with holding(tmp_path), pytest.raises(LockHeldError):
        take(tmp_path)


def test_the_refusal_names_the_holder_of_the_lock(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        with pytest.raises(LockHeldError) as refused:
            take(tmp_path)
        holder = f"dumping ovia (process {process.pid} on {socket.gethostname()}, since 2026-06-15T12:00:00+00:00)"
        assert refused.value.why == f"{holder} holds its lock"
        assert str(tmp_path) in refused.value.what
        assert refused.value.transient
        assert refused.value.fix.endswith(f"if it hangs: kill {process.pid}")
        assert lock_holder(tmp_path) == holder


def test_a_wait_for_the_lock_is_announced_once(tmp_path: Path) -> None:
    told = []
    with holding(tmp_path) as process:

        def on_wait(holder: str) -> None:
            told.append(holder)
            end(process)

        with volume_lock(tmp_path, purpose="testing", now=NOW, wait_seconds=LONG, on_wait=on_wait):
            assert told, "both held it at once"
            assert process.wait(LONG) == 0
            assert "testing" in (tmp_path / FILENAME).read_text()
    assert [holder.partition(" (")[0] for holder in told] == ["dumping ovia"]


def test_a_wait_that_times_out_is_announced_once(tmp_path: Path) -> None:
    told: list[str] = []
    with holding(tmp_path), pytest.raises(LockHeldError, match="still after 1 s"):
        # The waiting process tries several times a second.
        volume_lock(tmp_path, purpose="testing", now=NOW, wait_seconds=1, on_wait=told.append).__enter__()
    assert len(told) == 1


def test_a_free_lock_announces_no_wait(tmp_path: Path) -> None:
    told: list[str] = []
    with volume_lock(tmp_path, purpose="testing", now=NOW, on_wait=told.append):
        assert told == []


def test_many_writers_take_turns_and_lose_no_update(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    with ExitStack() as stack:
        processes = [stack.enter_context(running(COUNTER, tmp_path, says="ready")) for _ in range(4)]
        for process in processes:
            end(process)
        assert [process.wait(LONG) for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "counter").read_text() == "400"


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
        assert lock_holder(tmp_path) is None
        take(tmp_path)


def test_a_killed_parents_child_keeps_the_lock(tmp_path: Path) -> None:
    with running(PARENT, tmp_path, "inherits", says="child runs") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
        assert (lock_holder(tmp_path) or "").startswith("dumping (")
        with pytest.raises(LockHeldError):
            take(tmp_path)
        end(process)
        take(tmp_path, wait_seconds=LONG)


def test_the_advice_for_an_orphan_frees_the_lock(tmp_path: Path) -> None:
    with running(PARENT, tmp_path, "inherits", says="child runs") as process:
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
        with waiting(tmp_path), pytest.raises(LockHeldError) as refused:
            take(tmp_path)
        assert f"process {process.pid} is gone; left behind: " in refused.value.why
        assert f", process {child} on {socket.gethostname()}, since 2026-06-15" in refused.value.why
        advice = refused.value.fix.rpartition("if it hangs: ")[2]
        assert advice == f"kill {child}"
        subprocess.run(["/bin/sh", "-c", advice], check=True)
        take(tmp_path, wait_seconds=LONG)


def test_a_reused_pid_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        note = json.loads((tmp_path / FILENAME).read_text())
        (tmp_path / FILENAME).write_text(json.dumps({**note, "pid": os.getppid()}))
        with pytest.raises(LockHeldError, match=f"is gone; left behind: .*, process {process.pid} on") as refused:
            take(tmp_path)
        assert refused.value.fix.endswith(f": kill {process.pid}")


def test_a_holder_on_another_host_is_ended_there(tmp_path: Path) -> None:
    with holding(tmp_path):
        note = json.loads((tmp_path / FILENAME).read_text())
        (tmp_path / FILENAME).write_text(json.dumps({**note, "host": "elsewhere"}))
        with pytest.raises(LockHeldError) as refused:
            take(tmp_path)
        assert refused.value.fix.endswith(f"if it hangs: on elsewhere: kill {note['pid']}")


def test_without_a_note_the_holder_is_still_found(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        (tmp_path / FILENAME).write_bytes(b"")
        with pytest.raises(LockHeldError, match=f"another process .*process {process.pid}") as refused:
            take(tmp_path)
        assert refused.value.fix.endswith(f": kill {process.pid}")


def test_a_child_without_the_descriptor_holds_no_lock(tmp_path: Path) -> None:
    # Control for the test above: a child does not get the lock by accident.
    with running(PARENT, tmp_path, "inherits not", says="child runs") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(LONG)
        take(tmp_path)


def test_leaving_the_block_does_not_unlock_a_writing_child(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with volume_lock(tmp_path, purpose="dumping", now=NOW) as lock:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, pass_fds=(lock,))
    with child:
        assert lock_holder(tmp_path) is not None
        end(child)
        assert child.wait(LONG) == 0
    assert lock_holder(tmp_path) is None


def test_the_lock_excludes_threads_of_one_process(tmp_path: Path) -> None:
    with volume_lock(tmp_path, purpose="the outer", now=NOW), pytest.raises(LockHeldError, match="the outer"):
        take(tmp_path)


def test_an_exception_under_the_lock_frees_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), volume_lock(tmp_path, purpose="failing", now=NOW):
        raise ZeroDivisionError
    take(tmp_path)


def test_two_volumes_have_two_locks(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with volume_lock(tmp_path, purpose="one", now=NOW):
        take(tmp_path / "other")


def test_asking_for_the_holder_creates_no_lock_file(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_has_no_lock_holder(tmp_path: Path) -> None:
    assert lock_holder(tmp_path / "missing") is None


def test_asking_for_the_lock_holder_changes_nothing(tmp_path: Path) -> None:
    with holding(tmp_path):
        before = (tmp_path / FILENAME).read_bytes(), (tmp_path / FILENAME).stat().st_mtime_ns
        lock_holder(tmp_path)
        assert ((tmp_path / FILENAME).read_bytes(), (tmp_path / FILENAME).stat().st_mtime_ns) == before


def test_asking_for_the_lock_holder_blocks_no_writer(tmp_path: Path) -> None:
    take(tmp_path)
    descriptor = os.open(tmp_path / FILENAME, os.O_RDONLY)
    try:
        # ``lock_holder`` holds the lock for an instant; a process that wants it tries again instead of giving up.
        fcntl.flock(descriptor, fcntl.LOCK_SH)

        def stop_looking(_: str) -> None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

        with volume_lock(tmp_path, purpose="testing", now=NOW, on_wait=stop_looking):
            pass
    finally:
        os.close(descriptor)


def test_a_shorter_note_replaces_a_longer_one_completely(tmp_path: Path) -> None:
    with volume_lock(tmp_path, purpose="a purpose of very many words indeed", now=NOW):
        pass
    with volume_lock(tmp_path, purpose="short", now=NOW):
        assert json.loads((tmp_path / FILENAME).read_text())["purpose"] == "short"


@pytest.mark.parametrize("note", ["", "garbage", "[]", "null", '"text"', '{"purpose": "x"}', "\x00\xff", "{" * 5000])
def test_an_unreadable_note_still_names_the_process(tmp_path: Path, note: str) -> None:
    with volume_lock(tmp_path, purpose="testing", now=NOW):
        (tmp_path / FILENAME).write_bytes(note.encode("latin-1"))
        assert lock_holder(tmp_path) == "another process"


def test_a_hostile_purpose_stays_on_one_line(tmp_path: Path) -> None:
    with holding(tmp_path, "dumping '; rm -rf ~; '\n\x1b[31mred"), pytest.raises(LockHeldError) as refused:
        take(tmp_path)
    assert str(refused.value).isprintable()


def test_a_full_disk_does_not_stop_the_pruning_that_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with volume_lock(tmp_path, purpose="pruning", now=NOW):
        assert lock_holder(tmp_path) == "another process"


def test_the_lock_file_is_for_its_owner_only(tmp_path: Path) -> None:
    take(tmp_path)
    assert stat.S_IMODE((tmp_path / FILENAME).stat().st_mode) == 0o600


def test_the_lock_of_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="No such file") as refused:
        take(tmp_path / "missing")
    assert refused.value.fix


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("untouched")
    (tmp_path / FILENAME).symlink_to(target)
    with pytest.raises(VolumeError):
        take(tmp_path)
    assert target.read_text() == "untouched"


def test_a_volume_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on network filesystems without a lock daemon.
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(VolumeError, match="No locks available"):
        take(tmp_path)


def test_a_lock_file_replaced_meanwhile_is_locked_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process replaced ``.lock`` between our open and our lock: we lock the new file."""
    path = tmp_path / FILENAME
    real = locking._acquire
    removed: list[Path] = []

    def tidied_up(*args: Any) -> None:
        if not removed:
            removed.append(path)
            path.unlink()
        real(*args)

    monkeypatch.setattr(locking, "_acquire", tidied_up)
    with volume_lock(tmp_path, purpose="first", now=NOW) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), path.stat())
        monkeypatch.setattr(locking, "_acquire", real)
        with pytest.raises(LockHeldError, match="first"), volume_lock(tmp_path, purpose="second", now=NOW):
            pytest.fail("two holders")


def test_locks_of_two_names_do_not_exclude_each_other(tmp_path: Path) -> None:
    with (
        volume_lock(tmp_path, purpose="dumping", now=NOW),
        volume_lock(tmp_path, purpose="a base backup", now=NOW, name=".base.lock") as lock,
    ):
        locking.require_still_there(lock, tmp_path, ".base.lock")
        with (
            pytest.raises(LockHeldError, match="a base backup"),
            volume_lock(tmp_path, purpose="another", now=NOW, name=".base.lock"),
        ):
            raise AssertionError
        assert "a base backup" in (lock_holder(tmp_path, ".base.lock") or "")
        (tmp_path / ".base.lock").unlink()
        with pytest.raises(VolumeError, match="then: ovia-backup base-backup"):
            locking.require_still_there(lock, tmp_path, ".base.lock", again="ovia-backup base-backup")
    assert lock_holder(tmp_path, ".base.lock") is None
