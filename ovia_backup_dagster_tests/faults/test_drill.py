"""Drills whose disk fills up, whose server dies, or that are ended: nothing is left, and the next drill passes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import psycopg
import pytest

from ovia_backup_dagster.drill import throwaway_cluster
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.proof import target
from ovia_backup_dagster_tests.conftest import PortCluster, execute, free_port, running_cluster
from ovia_backup_dagster_tests.faults.conftest import MANY, Record, needs_root, place_for, rounds
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, filled, tmpfs
from ovia_backup_dagster_tests.faults.harness import (
    Place,
    at_moment,
    children_of,
    duration,
    ended_by_then,
    files,
    moments,
    state_of,
    until,
)
from ovia_backup_dagster_tests.support.dagster_ui import (
    Dagster,
)
from ovia_backup_dagster_tests.support.exhaustive import thinned

#: A prefix of a line that a drill logs -> the phase that follows that line.
PHASES = {
    "hashing": "while it hashed",
    "restoring": "while it made roles and restored",
    "restored_without_errors": "while it refreshed and read the copy",
    "rows_and_content_equal": "while it compared",
    "analyzed": "in the negative control",
    "own_check_passes": "while it removed the copy",
}


@pytest.fixture(scope="module")
def source(server: PortCluster, bin_dir: Path) -> Iterator[Connection]:
    """A database whose restore takes a moment, mostly for its indexes."""
    name = f"drill{os.getpid()}_{free_port()}"
    postgres = server.connection()
    execute(postgres, f"CREATE DATABASE {name} TEMPLATE template0")
    database = server.connection(name)
    indexes = "; ".join(f"CREATE INDEX ON bulk (noise, id, (id % {number + 2}))" for number in range(8))
    try:
        execute(
            database,
            "CREATE TABLE people (id int PRIMARY KEY, name text)",
            "INSERT INTO people SELECT g, 'p' || g FROM generate_series(1, 500) g",
            "CREATE TABLE bulk AS SELECT g AS id, md5(g::text) || md5((g + 1)::text) AS noise "
            "FROM generate_series(1, 20000) g",
            indexes,
        )
        yield database
    finally:
        execute(postgres, f"DROP DATABASE IF EXISTS {target.scratch_name(name)} WITH (FORCE)")
        execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def template(source: Connection, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A volume with one verified backup."""
    folder = tmp_path_factory.mktemp("drills")
    made = place_for(source, bin_dir, folder / "backups", folder)
    settings = {**made.settings, "BACKUP_EXPECTED_TABLES": "people,bulk"}
    made = replace(made, settings=settings)
    assert made.run("dump").code == 0
    assert made.run("verify").code == 0
    return made


@pytest.fixture
def place(template: Place, tmp_path: Path) -> Iterator[Place]:
    """A copy of ``template`` with its own DRILL_DIR."""
    root, folder = tmp_path / "backups", Path("/tmp") / f"ovia-dk-{os.getpid()}-{free_port()}"
    shutil.copytree(template.root, root)
    folder.mkdir(mode=0o711)
    settings = {**template.settings, "BACKUP_DIR": str(root), "DRILL_DIR": str(folder)}
    try:
        yield Place(settings, tmp_path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def drill_dir(place: Place) -> Path:
    return Path(place.settings["DRILL_DIR"])


def servers(place: Place) -> dict[int, str]:
    """PostgreSQL processes whose working directory is in the DRILL_DIR."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            here = os.readlink(process / "cwd")
            if here.startswith(str(drill_dir(place))) and state_of(int(process.name)):
                found[int(process.name)] = (process / "comm").read_text().strip()
    return found


def postmaster(place: Place) -> int:
    for path in drill_dir(place).glob(f"{throwaway_cluster.PREFIX}*/c/data/postmaster.pid"):
        with suppress(OSError, ValueError, IndexError):
            return int(path.read_text().splitlines()[0])
    return 0


@contextmanager
def stuffed(folder: Path) -> Iterator[None]:
    """Fill the disk until the block ends, while another process may be writing to it."""
    ballast = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        with suppress(OSError):
            for at in count():
                os.posix_fallocate(ballast, at * 65536, 65536)
        yield
    finally:
        os.close(ballast)


def scratch_there(place: Place) -> bool:
    return one(place, f"SELECT 1 FROM pg_database WHERE datname = '{scratch(place)}'")


def scratch(place: Place) -> str:
    return target.scratch_name(place.settings["POSTGRES_DB"])


def asked(place: Place) -> psycopg.Connection[tuple[object, ...]]:
    """Connect to the source's server."""
    host, port = place.settings["POSTGRES_HOST"], place.settings["POSTGRES_PORT"]
    return psycopg.connect(host=host, port=port, user="postgres", dbname="postgres")


def one(place: Place, question: str) -> bool:
    with asked(place) as session:
        return bool(session.execute(question.encode()).fetchall())


def evidence(place: Place) -> list[Evidence]:
    return list(place.system.drills.newest_first())


def nothing_left(place: Place) -> None:
    """Assert that no server, no folder and no scratch database is left."""
    until(lambda: not servers(place), 10)
    assert [path.name for path in drill_dir(place).glob(f"{throwaway_cluster.PREFIX}*")] == []
    until(lambda: not scratch_there(place), 5)


def no_half_evidence(place: Place) -> None:
    for path in (place.root / "drills").glob("*"):
        if path.suffix == ".json":
            Evidence.model_validate_json(path.read_bytes())
        elif path.suffix == ".md":
            assert path.read_text().endswith("\n")


def next_one_passes(place: Place, *arguments: str) -> None:
    """Assert that the next drill passes, sweeps all leftovers and leaves none."""
    before = len(evidence(place))
    ended = place.run("drill", *arguments)
    assert ended.code == 0, ended.output
    nothing_left(place)
    no_half_evidence(place)
    assert len(evidence(place)) == before + 1
    assert evidence(place)[0].passed
    assert not [name for name in files(place.root) if name.endswith(".tmp")]
    assert place.catalog.backups()[0].drilled


# --------------------------------------------------------------------------------------------- no room


@needs_root
def test_a_drill_dir_without_room_is_refused_first(place: Place) -> None:
    with tmpfs(drill_dir(place), 100 * MEGABYTE):
        drill_dir(place).chmod(0o711)
        ended = place.run("drill")
        assert ended.code == 1
        assert "has too little room for a copy: 100.0 MB free" in ended.output or "MB free" in ended.output
        assert "needed" in ended.output
        assert "hashing" not in ended.output
    assert len(evidence(place)) == 1
    assert not evidence(place)[0].passed
    assert "DRILL_DIR" in evidence(place)[0].fix
    nothing_left(place)


@pytest.mark.exhaustive
@needs_root
def test_a_disk_that_fills_up_in_mid_restore(place: Place) -> None:
    """If the estimate was too small or another process writes: the drill reports the full disk and cleans up."""
    with tmpfs(drill_dir(place), 400 * MEGABYTE):
        drill_dir(place).chmod(0o711)
        with ended_by_then(place.start("drill")) as running:
            until(lambda: "restoring" in running.output, 30)
            with stuffed(drill_dir(place)):
                ended = running.wait()
        assert ended.code == 1
        # The launcher reports it, or PostgreSQL in one of two messages. If PostgreSQL cannot write its log, the server
        # ends and the connection is lost.
        said = ("of disk free, and must leave", "No space left on device", "wrote only", "connection")
        assert any(words in ended.output for words in said), ended.output
        assert "Traceback" not in ended.output
        found = evidence(place)[0]
        assert not found.passed
        assert f"df -h {drill_dir(place)}" in found.fix
        assert "ovia_postgres" not in found.fix
        nothing_left(place)
        next_one_passes(place)


@needs_root
def test_a_volume_without_room_for_evidence_is_refused_at_once(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "small"
    with tmpfs(root, 64 * MEGABYTE):
        shutil.copytree(place.root, root, dirs_exist_ok=True)
        small = replace(place, settings={**place.settings, "BACKUP_DIR": str(root)})
        with filled(root, 2 * MEGABYTE):
            line = small.run("drill").refused()
        assert "no room for a drill's evidence" in line
        assert evidence(small) == []
        next_one_passes(small, "--where", "database")


@needs_root
@pytest.mark.parametrize("reserve", thinned([True, False]))
def test_a_volume_that_fills_up_during_a_drill(place: Place, tmp_path: Path, reserve: bool) -> None:
    """With a reserve, the evidence is written. Without it, the drill fails with an error that names the full volume."""
    root = tmp_path / "small"
    with tmpfs(root, 96 * MEGABYTE):
        shutil.copytree(place.root, root, dirs_exist_ok=True)
        small = replace(place, settings={**place.settings, "BACKUP_DIR": str(root)})
        (root / ".reserve").unlink(missing_ok=True)
        if reserve:
            (root / ".reserve").write_bytes(bytes(4 * MEGABYTE))
        with ended_by_then(small.start("drill", "--where", "database")) as running:
            until(lambda: "restoring" in running.output, 30)
            with filled(root, 0):
                ended = running.wait()
        no_half_evidence(small)
        assert "Traceback" not in ended.output
        nothing_left(small)
        if reserve:
            assert ended.code == 0, ended.output
            assert evidence(small)[0].passed
            assert small.catalog.backups()[0].drilled
        else:
            assert "the backup volume is full" in ended.refused()
            assert evidence(small) == []
            assert not [name for name in files(root) if "drills/2" in name]
        next_one_passes(small, "--where", "database")


@needs_root
@pytest.mark.parametrize("kind", ["missing", "a file", "read-only", "closed"])
def test_an_unusable_drill_dir_is_named_in_the_evidence(place: Place, kind: str) -> None:
    folder = drill_dir(place)
    if kind == "read-only":
        with tmpfs(folder, 400 * MEGABYTE):
            folder.chmod(0o711)
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            ended = place.run("drill")
    elif kind == "closed":
        folder.chmod(0o700)  # the server's account cannot enter
        ended = place.run("drill")
        folder.chmod(0o711)
    else:
        folder.rmdir()
        if kind == "a file":
            folder.write_text("")
        ended = place.run("drill")
        folder.unlink(missing_ok=True)
        folder.mkdir(mode=0o711)
    assert ended.code == 1
    assert "Traceback" not in ended.output
    found = evidence(place)[0]
    assert str(folder) in found.error
    assert "DRILL_DIR" in found.fix
    assert "BACKUP_DIR" not in found.fix
    if kind == "closed":  # one kind is enough to show that the next drill passes
        next_one_passes(place)


@needs_root
def test_a_read_only_volume_is_refused(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "ro"
    with tmpfs(root, 64 * MEGABYTE):
        shutil.copytree(place.root, root, dirs_exist_ok=True)
        frozen = replace(place, settings={**place.settings, "BACKUP_DIR": str(root)})
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        assert "read-only" in frozen.run("drill").refused()
    nothing_left(place)


# --------------------------------------------------------------------------------------------- servers that die


@pytest.mark.parametrize(
    "until_it_says",
    [
        "restoring",
        pytest.param("restored_without_errors", marks=pytest.mark.exhaustive),
        pytest.param("analyzed", marks=pytest.mark.exhaustive),
    ],
)
def test_the_throwaway_server_is_killed(place: Place, until_it_says: str) -> None:
    with ended_by_then(place.start("drill")) as running:
        until(lambda: until_it_says in running.output and postmaster(place), 30, pause=0.002)
        os.kill(postmaster(place), signal.SIGKILL)
        ended = running.wait()
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    found = evidence(place)[0]
    assert not found.passed
    assert "ovia_postgres" not in found.fix
    assert "docker" not in found.fix
    assert found.fix
    nothing_left(place)
    next_one_passes(place)


@pytest.mark.exhaustive
def test_a_scratch_server_is_stopped_in_mid_restore(place: Place, bin_dir: Path, tmp_path: Path) -> None:
    with running_cluster(bin_dir) as other:
        settings = {
            **place.settings,
            "RESTORE_POSTGRES_HOST": other.connection().host,
            "RESTORE_POSTGRES_PORT": str(other.port),
        }
        named = replace(place, settings=settings)
        with ended_by_then(named.start("drill", "--where", "database")) as running:
            until(lambda: "restoring" in running.output, 30)
            other.stop("immediate")
            ended = running.wait()
        assert ended.code == 1
        assert "Traceback" not in ended.output
        assert not evidence(place)[0].passed
        other.start()
        ended = named.run("drill", "--where", "database")
        assert ended.code == 0, ended.output
        with psycopg.connect(host=other.connection().host, port=other.port, user="postgres", dbname="postgres") as s:
            assert s.execute("SELECT count(*) FROM pg_database").fetchone() == (3,)


# --------------------------------------------------------------------------------------------- drills that are ended


def phase_of(output: str) -> str:
    found = [phase for said, phase in PHASES.items() if f"{said}" in output]
    return found[-1] if found else "before it read anything"


@pytest.mark.parametrize("where", thinned(["throwaway", "database"]))
@pytest.mark.parametrize("number", thinned([signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)]))
def test_a_signalled_drill_cleans_up(place: Place, where: str, number: signal.Signals) -> None:
    ended_politely(place, where, number, "restored_without_errors")
    assert evidence(place) == []
    next_one_passes(place, "--where", where)


def test_a_drill_signalled_during_initdb_ends_its_processes(place: Place) -> None:
    """A process that initdb had started could otherwise write into the folder while it is removed."""
    with ended_by_then(place.start("drill", "--where", "throwaway")) as running:
        until(lambda: server_stopped(place), 30, pause=0.001)
        running.send(signal.SIGTERM)
        ended = running.wait()
    assert servers(place) == {}
    assert ended.code == 128 + signal.SIGTERM, ended.output
    assert "restoring" not in ended.output
    nothing_left(place)


def server_stopped(place: Place) -> bool:
    """Stop a server process, so that it cannot notice by itself that initdb has ended; whether there was one."""
    for pid, name in servers(place).items():
        with suppress(ProcessLookupError):
            if name == "postgres":
                os.kill(pid, signal.SIGSTOP)
                return True
    return False


@pytest.mark.exhaustive
@pytest.mark.parametrize("where", ["throwaway", "database"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drill_signalled_in_any_phase_cleans_up(place: Place, where: str, number: signal.Signals) -> None:
    for said in PHASES:
        ended_politely(place, where, number, said)
    next_one_passes(place, "--where", where)


def ended_politely(place: Place, where: str, number: signal.Signals, said: str) -> None:
    with ended_by_then(place.start("drill", "--where", where)) as running:
        until(lambda: said in running.output, 30, pause=0.002)
        running.send(number)
        ended = running.wait()
    assert ended.code in (128 + number, 0), ended.output
    assert "Traceback" not in ended.output
    nothing_left(place)
    no_half_evidence(place)


@pytest.mark.exhaustive
@rounds(few=1, many=50)
@pytest.mark.parametrize("where", thinned(["throwaway", "database"]))
def test_a_drill_killed_at_any_moment_is_cleaned_up(
    place: Place, rng: Random, record: Record, where: str, times: int
) -> None:
    """``kill -9`` of the drill, in about half of the rounds without the processes that it started.

    The next drill ends the processes that went on.
    """
    # A few kills fall into the first 70 % of the duration, so that they hit the drill.
    seconds = duration(lambda: place.run("drill", "--where", where), 2) * (1.0 if times >= MANY else 0.7)
    hit: Counter[str] = Counter()
    left = 0
    for moment in moments(rng, times, seconds):
        group = rng.random() < 0.5
        with ended_by_then(place.start("drill", "--where", where)) as running:
            at_moment(running.began, moment)
            if running.running:
                running.kill(group=group)
            ended = running.wait()
        if ended.killed:
            hit[phase_of(ended.output)] += 1
        left += (
            bool(servers(place))
            or bool(list(drill_dir(place).glob(f"{throwaway_cluster.PREFIX}*")))
            or scratch_there(place)
        )
        no_half_evidence(place)
        next_one_passes(place, "--where", where)
    assert hit
    if times >= MANY:
        assert left
    record(
        fault=f"`ovia-backup drill --where {where}` killed",
        how="`kill -9` at random moments, half of them with all that it had started",
        times=times,
        where=", ".join(f"{number} {phase}" for phase, number in hit.most_common()),
        saw="no half evidence",
        then=f"passed, each time, and left no server, no folder and no database; {left} times it removed one",
    )


@pytest.mark.parametrize("where", thinned(["throwaway", "database"]))
@pytest.mark.parametrize(
    "said", thinned([pytest.param("hashing", marks=pytest.mark.exhaustive), "restoring", "restored_without_errors"])
)
def test_a_drill_killed_in_a_phase_is_cleaned_up(place: Place, where: str, said: str) -> None:
    with ended_by_then(place.start("drill", "--where", where)) as running:
        until(lambda: said in running.output, 30, pause=0.002)
        running.kill(group=False)
        assert running.wait().killed
    no_half_evidence(place)
    assert evidence(place) == []
    next_one_passes(place, "--where", where)


# --------------------------------------------------------------------------------------------- cancelled in Dagster


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)])
def test_a_run_of_the_job_is_terminated(place: Place, tmp_path: Path, number: signal.Signals) -> None:
    """The UI's terminate button does the same: it sends a signal to the run's process."""
    command = (sys.executable, "-W", "ignore", "-m", "dagster", "job", "execute")
    with open(tmp_path / "run.log", "wb") as output:
        run = subprocess.Popen(
            (*command, "-m", "ovia_backup_dagster.definitions", "-j", "restore_drill_job"),
            cwd=tmp_path,
            env={**place.environment, "DAGSTER_HOME": ""},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until(lambda: postmaster(place) or run.poll() is not None, 60)
        assert run.poll() is None, (tmp_path / "run.log").read_text()
        os.kill(run.pid, number)
        assert run.wait(60) != 0
    finally:
        run.kill()
        run.wait()
    nothing_left(place)
    assert evidence(place) == []
    next_one_passes(place)


@pytest.mark.exhaustive
def test_a_launched_run_is_terminated_in_the_ui(place: Place, home: Path, record: Record) -> None:
    dagster = Dagster(place, home)
    try:
        run = dagster.launch("restore_drill_job")
        until(lambda: postmaster(place), 120)
        dagster.graphql(_TERMINATE, id=run)
        assert dagster.ended(run) == "CANCELED"
        until(lambda: not servers(place), 30)
        nothing_left(place)
        assert evidence(place) == []
        next_one_passes(place)
    finally:
        dagster.end()
    record(
        fault="a drill terminated in the Dagster UI",
        how="`terminateRun` in the middle of the restore",
        times=1,
        saw="no evidence",
        then="nothing was left, and the next drill passed",
    )


_TERMINATE = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"


@pytest.mark.parametrize("number", thinned([signal.SIGTERM, signal.SIGKILL]))
def test_a_database_still_being_created_is_removed_later(place: Place, number: signal.Signals) -> None:
    """The server finishes CREATE DATABASE after its client is gone. Until then, no session sees the database."""
    with asked(place) as session:
        # CREATE DATABASE waits for this lock of another session on the catalog.
        session.execute("LOCK TABLE pg_database IN SHARE MODE")
        with ended_by_then(place.start("drill", "--where", "database")) as running:
            waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE%' AND wait_event_type = 'Lock'"
            until(lambda: one(place, waiting), 30)
            running.send(number)
            if number is signal.SIGKILL:
                assert running.wait().killed
                with ended_by_then(place.start("drill", "--where", "database")) as running:
                    until(lambda: "hashing" in running.output)
                    session.rollback()
                    ended = running.wait()
                assert ended.code == 0, ended.output
            else:
                session.rollback()
                assert running.wait().code == 128 + number
    nothing_left(place)


def test_a_second_signal_does_not_interrupt_the_cleanup(place: Place) -> None:
    """An impatient operator sends the second signal while the drill cleans up."""
    with ended_by_then(place.start("drill")) as running:
        until(lambda: "restoring" in running.output, 30, pause=0.002)
        running.send(signal.SIGTERM)
        until(lambda: "pg_ctl" in children_of(running.pid).values() or not running.running, 30, pause=0.001)
        running.send(signal.SIGTERM)
        running.wait()
    nothing_left(place)
