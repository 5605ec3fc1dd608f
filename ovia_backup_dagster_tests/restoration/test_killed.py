"""A restore whose process is killed, at every word of its journal: resumed or aborted, it is whole.

The kill is real (SIGKILL of the process group). What runs afterwards is the command that the error names.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from unittest import mock

import pytest

from ovia_backup_dagster.core.restoration import Journal, Mark, Mode, RestoreFolder, Step
from ovia_backup_dagster.postgres import swap
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.restoration.conftest import Site

#: Of a swap without services: restore begun, noted and done, swap begun and done, finished.
WORDS = 6
#: Of a drop: drill, drop, restore and name, begun and done, noted of the restore, and finished.
WORDS_OF_DROP = 10


@contextmanager
def killed_at(word: int, *, before: bool) -> Iterator[None]:
    """A process that is forked in the block is killed when it writes the journal for that time (from 0)."""
    write, counted = Journal.write, count()

    def writing(self: Journal, mark: Mark, step: Step | None = None, **data: object) -> None:
        here = next(counted) == word
        if here and before:
            os.killpg(0, signal.SIGKILL)
        write(self, mark, step, **data)
        if here:
            os.killpg(0, signal.SIGKILL)

    with mock.patch.object(Journal, "write", writing):
        yield


def whole(site: Site) -> str:
    """The live database is the old or the new one, and takes sessions; says which."""
    content = site.content()
    assert content in (site.now, site.then)
    return "old" if content == site.now else "new"


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("word", range(WORDS))
def test_a_swap_is_resumed(site: Site, word: int, before: bool) -> None:
    with killed_at(word, before=before):
        assert site.restore().killed
    if word == WORDS - 1 and not before:
        assert whole(site) == "new"
        assert site.records[0].outcome == "done"  # though there was no time to write it
        assert site.undo().code == 0
        return
    whole(site)
    line = site.restore().refused()
    assert "--resume" in line
    assert "--abort" in line
    ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    assert whole(site) == "new"
    record = site.records[0]
    assert record.outcome == "done"
    assert site.databases == sorted([site.live.database, record.kept])
    assert site.content(record.kept) == site.now
    assert site.undo().code == 0
    assert site.content() == site.now


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("word", range(WORDS))
def test_a_swap_is_aborted(site: Site, word: int, before: bool) -> None:
    with killed_at(word, before=before):
        assert site.restore().killed
    if word == WORDS - 1 and not before:
        return
    ended = site.place.run("restore", "--abort")
    assert ended.code == 0, ended.output
    assert whole(site) == "old"
    assert site.records[0].outcome == "put back"
    # What was live for a while may have been written to: it stays. Nothing else does.
    swapped = word >= 4
    assert len(site.databases) == 1 + swapped
    assert "nothing to abort" in site.place.run("restore", "--abort").refused()
    assert site.restore().code == 0
    assert whole(site) == "new"


def test_killed_while_it_swaps_nobody_is_locked_out_for_good(site: Site) -> None:
    """Killed between the words."""

    def killing(*_: object, **__: object) -> None:
        os.killpg(0, signal.SIGKILL)

    with mock.patch.object(swap, "_rename", killing):
        assert site.restore().killed
    ended = site.place.run("restore", "--abort")
    assert ended.code == 0, ended.output
    assert whole(site) == "old"
    assert site.databases == [site.live.database]


def test_killed_in_the_middle_of_pg_restore(site: Site) -> None:
    running = site.place.start("restore", site.backup.path.name, "--yes-destroy", site.live.database)
    until(lambda: "restoring" in running.output or not running.running)
    running.kill()
    assert running.wait().killed
    assert whole(site) == "old"
    assert site.place.run("restore", "--abort").code == 0
    assert site.databases == [site.live.database]


@pytest.mark.parametrize("word", range(WORDS_OF_DROP - 1))
def test_a_drop_is_resumed_and_aborted_only_while_there_is_something_to_go_back_to(site: Site, word: int) -> None:
    with killed_at(word, before=False):
        assert site.restore("--mode", "drop").killed
    journal = RestoreFolder(site.place.catalog).unfinished()
    assert journal is not None
    assert journal.order.mode is Mode.DROP
    if journal.done(Step.DROP):
        assert "--resume" in site.place.run("restore", "--abort").refused()
        ended = site.place.run("restore", "--resume")
        assert ended.code == 0, ended.output
        assert site.content() == site.then
    else:
        ended = site.place.run("restore", "--abort")
        assert ended.code == 0, ended.output
        assert site.content() == site.now
    assert site.databases == [site.live.database]


def test_half_a_database_is_nobodys_and_people_are_told(site: Site) -> None:
    """Killed when all is in it, and nothing is proven: neither clients nor dumps take it for the live one."""
    with killed_at(5, before=True):
        assert site.restore("--mode", "drop").killed
    assert len(site.databases) == 1
    assert "_restore_" in site.databases[0]
    before = [backup.path for backup in site.place.catalog.newest_first()]
    assert f'database "{site.live.database}" does not exist' in site.place.run("dump").refused()
    assert [backup.path for backup in site.place.catalog.newest_first()] == before
    status = site.place.run("status")
    assert status.code == 1
    assert status.output.startswith("BACKUP WARNING")
    assert "restore: the drop of " in status.output
    assert "Next: ovia-backup restore --resume" in status.output
    assert site.place.run("restore", "--resume").code == 0
    assert site.place.run("dump").code == 0
    assert "restore:" not in site.place.run("status").output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_puts_everything_back_by_itself(site: Site, number: signal.Signals) -> None:
    running = site.place.start("restore", site.backup.path.name, "--yes-destroy", site.live.database)
    until(lambda: "step: restore" in running.output)
    running.send(number)
    assert running.wait().code != 0
    assert site.databases == [site.live.database]
    assert whole(site) == "old"
    assert RestoreFolder(site.place.catalog).unfinished() is None


def test_two_restores_at_once(site: Site) -> None:
    first = site.place.start("restore", site.backup.path.name, "--yes-destroy", site.live.database)
    until(lambda: "step: restore" in first.output)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        line = site.restore().refused()
        assert "restore" in line
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait().code == 0
    assert whole(site) == "new"
