"""A restore whose process is killed at an entry of its journal can be resumed or aborted.

The daily suite tries some of the entries, and ``make test-faults`` all of them.

The kill is real (SIGKILL of the process group). The tests then run the command that the error names. Afterwards the
live database is the intact old one or the intact new one, and each service has its replicas.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from ovia_backup_dagster.restoration import swap
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.restore_order import Mode, Step
from ovia_backup_dagster_tests.faults.harness import Ended, until
from ovia_backup_dagster_tests.restoration.docker_engine import Engine
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import (
    BACK,
    REPLICAS,
    SWAP,
    Site,
    Words,
    drop_database,
    kill_here,
    killed_at,
    whole,
    with_services,
    words_of,
    written,
)

UNDO = words_of(Step.STOP, Step.SWAP, Step.START, Step.HEALTH)
#: Without the migration and the health check, which a swap has, too.
DROP = words_of(Step.DRILL, Step.STOP, Step.DROP, Step.RESTORE, Step.NAME, Step.START)
NEW = words_of(Step.RESTORE)
NEW_HOST = words_of(Step.RESTORE, Step.NAME, Step.MIGRATE, Step.START, Step.HEALTH)
_RENAMES = frozenset({Step.SWAP, Step.DROP, Step.NAME})


def moments(words: Words, wanted: Callable[[int, bool], bool] = lambda *_: True) -> pytest.MarkDecorator:
    """Parametrize a test with the moments before and after each journal entry.

    Nothing happens between two steps, so "before" the next step is left out: it equals "after" the previous one.

    The daily suite kills once in each step that renames or drops a database, after the step began; the other moments
    are exhaustive.
    """
    found = [
        pytest.param(
            word,
            before,
            id=f"{'before' if before else 'after'}-{word}-{mark}".replace(" ", "-"),
            marks=[] if mark is JournalMark.BEGUN and step in _RENAMES and not before else [pytest.mark.exhaustive],
        )
        for word, (mark, step) in enumerate(words)
        for before in (True, False)
        if (word == 0 or not (before and mark is JournalMark.BEGUN)) and wanted(word, before)
    ]
    return pytest.mark.parametrize(("word", "before"), found)


@pytest.fixture
def swarm(site: Site, tmp_path: Path) -> Iterator[tuple[Site, Engine]]:
    with with_services(site, tmp_path) as found:
        yield found


def kill(site: Site, words: Words, word: int, before: bool, command: Callable[[], Ended]) -> bool:
    """Kill the command before or after this journal entry; return whether that was its end.

    Fails if the journal has entries other than ``words``.
    """
    with killed_at(word, before=before):
        assert command().killed
    assert written(site) == words[: word + (not before)]
    return word == len(words) - 1 and not before


def test_every_step_is_killed() -> None:
    assert {step for words in (SWAP, UNDO, DROP, NEW_HOST) for _, step in words} == {*Step, None}


# ----------------------------------------------------------------------------------------------------- a swap


@moments(SWAP)
def test_a_swap_is_resumed(swarm: tuple[Site, Engine], word: int, before: bool) -> None:
    site, docker = swarm
    if kill(site, SWAP, word, before, site.restore):
        assert site.records[0].outcome == "done"  # although the process was killed before it wrote the record
    else:
        whole(site)
        line = site.restore().refused()
        assert "--resume" in line
        assert "--abort" in line
        ended = site.place.run("restore", "--resume")
        assert ended.code == 0, ended.output
    assert whole(site) == "new"
    assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert docker.forced["migrate"] == 1
    record = site.records[0]
    assert record.outcome == "done"
    assert record.replicas == REPLICAS
    assert site.databases == sorted([site.live.database, record.kept])
    assert site.content(record.kept) == site.now
    if SWAP[word][1] is Step.SWAP:  # only the killed process knew when it swapped, and the counters
        assert site.undo().code == 0
        assert site.content() == site.now
        assert docker.replicas == {**REPLICAS, "migrate": 1}


@moments(SWAP)
def test_a_swap_is_aborted(swarm: tuple[Site, Engine], word: int, before: bool) -> None:
    site, docker = swarm
    if kill(site, SWAP, word, before, site.restore):
        assert whole(site) == "new"
    else:
        ended = site.place.run("restore", "--abort")
        assert ended.code == 0, ended.output
        assert whole(site) == "old"
        assert site.records[0].outcome == "put back"
    assert docker.replicas == {**REPLICAS, "migrate": 1}
    # A database that was live for a while may have been written to, so it is kept; no other one is.
    swapped = word >= SWAP.index((JournalMark.DONE, Step.SWAP))
    assert len(site.databases) == 1 + swapped
    assert "nothing to abort" in site.place.run("restore", "--abort").refused()


@pytest.mark.exhaustive
def test_an_aborted_restore_can_start_again(swarm: tuple[Site, Engine]) -> None:
    site, docker = swarm
    for step in (Step.RESTORE, Step.SWAP, Step.HEALTH):
        kill(site, SWAP, SWAP.index((JournalMark.BEGUN, step)), False, site.restore)
        assert site.place.run("restore", "--abort").code == 0
        assert whole(site) == "old"
    assert site.restore().code == 0
    assert whole(site) == "new"
    assert docker.replicas == {**REPLICAS, "migrate": 1}


@pytest.mark.parametrize("then", thinned(BACK))
def test_a_killed_swap_locks_no_session_out(swarm: tuple[Site, Engine], then: str) -> None:
    """Killed during the swap, between two journal entries."""
    site, docker = swarm
    with mock.patch.object(swap, "_rename", kill_here):
        assert site.restore().killed
    assert docker.replicas == {**dict.fromkeys(REPLICAS, 0), "migrate": 1}
    ended = site.place.run("restore", then)
    assert ended.code == 0, ended.output
    assert whole(site) == ("old" if then == "--abort" else "new")
    assert len(site.databases) == (1 if then == "--abort" else 2)
    assert docker.replicas == {**REPLICAS, "migrate": 1}


@pytest.mark.parametrize("then", thinned(BACK))
@pytest.mark.parametrize("stop", thinned(["first", "at-swap"]))
def test_a_restore_killed_in_pg_restore_can_be_finished(swarm: tuple[Site, Engine], stop: str, then: str) -> None:
    site, docker = swarm
    arguments = ("--yes-destroy", site.live.database, "--stop-services", stop)
    running = site.place.start("restore", site.backup.path.name, *arguments)
    until(lambda: "restoring" in running.output.partition("step: restore")[2] or not running.running)
    running.kill()
    assert running.wait().killed
    assert whole(site) == "old"
    assert docker.replicas["api"] == (0 if stop == "first" else 2)
    ended = site.place.run("restore", then)
    assert ended.code == 0, ended.output
    assert whole(site) == ("old" if then == "--abort" else "new")
    assert len(site.databases) == (1 if then == "--abort" else 2)
    assert docker.replicas == {**REPLICAS, "migrate": 1}


# ----------------------------------------------------------------------------------------------------- an undo


_UNDO_SWAPS = UNDO.index((JournalMark.BEGUN, Step.SWAP))


@pytest.mark.exhaustive
@pytest.mark.parametrize("word", thinned([_UNDO_SWAPS, *(word for word in range(len(UNDO)) if word != _UNDO_SWAPS)]))
def test_an_undo_is_resumed_and_aborted(swarm: tuple[Site, Engine], word: int) -> None:
    """Killed before and after the entry; each round undoes, in alternating directions."""
    site, docker = swarm
    assert site.restore().code == 0
    for before in (True, False):
        for then in BACK:
            here, there = whole(site), "old" if whole(site) == "new" else "new"
            if not kill(site, UNDO, word, before, site.undo):
                whole(site)
                line = site.undo().refused()
                assert "--resume" in line
                assert "--abort" in line
                ended = site.place.run("restore", then)
                assert ended.code == 0, ended.output
                assert site.records[0].outcome == ("done" if then == "--resume" else "put back")
                there = there if then == "--resume" else here
            assert whole(site) == there
            assert docker.replicas == {**REPLICAS, "migrate": 1}
            (other,) = set(site.databases) - {site.live.database}
            assert site.content(other) == (site.now if there == "new" else site.then)


# ----------------------------------------------------------------------------------------------------- a drop


_DROPS = DROP.index((JournalMark.BEGUN, Step.DROP))


def dropping(site: Site) -> Site:
    return site.with_settings(SWARM_MIGRATE_SERVICE="", HEALTH_URL="")


@moments(DROP)
def test_a_drop_is_resumed(swarm: tuple[Site, Engine], word: int, before: bool) -> None:
    """An abort is refused after the drop."""
    site, docker = dropping(swarm[0]), swarm[1]
    if not kill(site, DROP, word, before, lambda: site.restore("--mode", "drop")):
        journal = RestoreFolder(site.place.catalog).unfinished()
        assert journal is not None
        assert journal.order.mode is Mode.DROP
        if word <= _DROPS:
            assert whole(site) == "old"
        else:
            assert "--resume" in site.place.run("restore", "--abort").refused()
        ended = site.place.run("restore", "--resume")
        assert ended.code == 0, ended.output
    assert whole(site) == "new"
    assert site.databases == [site.live.database]
    assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert site.records[0].outcome == "done"


@moments(DROP, lambda word, _: word <= _DROPS)
def test_a_drop_is_aborted(swarm: tuple[Site, Engine], word: int, before: bool) -> None:
    site, docker = dropping(swarm[0]), swarm[1]
    kill(site, DROP, word, before, lambda: site.restore("--mode", "drop"))
    ended = site.place.run("restore", "--abort")
    assert ended.code == 0, ended.output
    assert whole(site) == "old"
    assert site.databases == [site.live.database]
    assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert site.records[0].outcome == "put back"


# ----------------------------------------------------------------------------------------------------- mode new


@pytest.mark.parametrize("then", thinned(BACK))
@moments(NEW)
def test_a_restore_beside_is_resumed_and_aborted(
    swarm: tuple[Site, Engine], word: int, before: bool, then: str
) -> None:
    """The live database and the services are unaffected."""
    site, docker = swarm
    made = f"{site.live.database}_look"
    ended = kill(site, NEW, word, before, lambda: site.restore("--mode", "new", "--into", made, confirm=False))
    assert whole(site) == "old"
    if not ended:
        last = site.place.run("restore", then)
        assert last.code == 0, last.output
    assert whole(site) == "old"
    there = ended or then == "--resume"
    assert site.databases == [site.live.database, *([made] if there else [])]
    if there:
        assert site.content(made) == site.then
    assert site.records[0].outcome == ("done" if there else "put back")
    assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert not docker.forced


#: The first entry after the rename: from here on, the database is live.
_LIVES = NEW_HOST.index((JournalMark.DONE, Step.NAME))


def on_a_new_host(site: Site, docker: Engine, word: int, before: bool) -> bool:
    """Kill a restore with --new-host, without a live database and with all services at 0; return whether it ended."""
    docker.replicas.update(dict.fromkeys(docker.replicas, 0))
    drop_database(site, site.live.database)
    scale = [f"--scale={name}={number}" for name, number in REPLICAS.items()]
    return kill(site, NEW_HOST, word, before, lambda: site.restore("--new-host", *scale, confirm=False))


@moments(NEW_HOST)
def test_a_new_host_is_resumed(swarm: tuple[Site, Engine], word: int, before: bool) -> None:
    """An abort is refused once the database is live."""
    site, docker = swarm
    if not on_a_new_host(site, docker, word, before):
        if word >= _LIVES:
            assert whole(site) == "new"
            assert "may have been written to" in site.place.run("restore", "--abort").refused()
        ended = site.place.run("restore", "--resume")
        assert ended.code == 0, ended.output
    assert whole(site) == "new"
    assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert docker.forced["migrate"] == 1
    assert site.records[0].outcome == "done"


@moments(NEW_HOST, lambda word, _: word < _LIVES)
def test_a_new_host_is_aborted(swarm: tuple[Site, Engine], word: int, before: bool) -> None:
    site, docker = swarm
    on_a_new_host(site, docker, word, before)
    ended = site.place.run("restore", "--abort")
    assert ended.code == 0, ended.output
    assert site.databases == []
    assert set(docker.replicas.values()) == {0}
    assert site.records[0].outcome == "put back"


# ----------------------------------------------------------------------------------------------------- others


def test_an_incomplete_database_admits_no_one_and_is_alerted(site: Site) -> None:
    """Killed when the database is complete but not proven: neither clients nor dumps take it for the live one."""
    with killed_at(5, before=True):
        assert site.restore("--mode", "drop").killed
    assert len(site.databases) == 1
    assert "_restore_" in site.databases[0]
    before = [backup.path for backup in site.place.catalog.newest_first()]
    assert f'database "{site.live.database}" does not exist' in site.place.run("dump").refused()
    assert [backup.path for backup in site.place.catalog.newest_first()] == before
    status = site.place.run("status")
    assert status.code == 2
    assert status.output.startswith("BACKUP CRITICAL")
    assert "; the drop of " in status.output
    assert " is not finished" in status.output
    assert "Next: ovia-backup restore --resume" in status.output
    assert site.place.run("restore", "--resume").code == 0
    assert site.place.run("dump").code == 0
    assert "restore:" not in site.place.run("status").output


@pytest.mark.parametrize("number", thinned([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
def test_ctrl_c_puts_everything_back_by_itself(swarm: tuple[Site, Engine], number: signal.Signals) -> None:
    site, docker = swarm
    arguments = ("--yes-destroy", site.live.database, "--stop-services", "first")
    running = site.place.start("restore", site.backup.path.name, *arguments)
    until(lambda: "step: restore" in running.output)
    running.send(number)
    assert running.wait().code != 0
    assert site.databases == [site.live.database]
    assert whole(site) == "old"
    assert RestoreFolder(site.place.catalog).unfinished() is None
    assert docker.replicas == {**REPLICAS, "migrate": 1}


@pytest.mark.exhaustive
def test_a_second_restore_is_refused_and_names_the_first(site: Site) -> None:
    first = site.place.start("restore", site.backup.path.name, "--yes-destroy", site.live.database)
    until(lambda: "step: restore" in first.output)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        line = site.restore().refused()
        assert f"the swap of {site.backup} (process {first.pid} on " in line
        assert "holds its lock" in line
        assert line.endswith(f"Next: wait for it to end; see: ovia-backup status; if it hangs: kill {first.pid}"), line
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait().code == 0
    assert whole(site) == "new"
