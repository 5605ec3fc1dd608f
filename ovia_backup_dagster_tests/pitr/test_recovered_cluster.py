"""Recovery to a commit, in a confined cluster: what is there and what is not, and each way in which it fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import BackupError, CopyError, LockHeldError
from ovia_backup_dagster.core.files import TEMPORARY
from ovia_backup_dagster.core.locking import removing
from ovia_backup_dagster.core.pitr_errors import BaseBackupError, RecoveryError, SegmentDamagedError
from ovia_backup_dagster.pitr.base_manifest import BASE
from ovia_backup_dagster.pitr.bases import BaseBackup
from ovia_backup_dagster.pitr.cluster_recovery import recover_into
from ovia_backup_dagster.pitr.recovered_cluster import RecoveryOrder, recovered
from ovia_backup_dagster.pitr.wal_position import Lsn
from ovia_backup_dagster_tests.conftest import PortCluster, admin, free_port
from ovia_backup_dagster_tests.pitr.ground import ground_on
from ovia_backup_dagster_tests.pitr.history import History, history_on, query, short_folder
from ovia_backup_dagster_tests.pitr.receiving import switch


@pytest.fixture(scope="module")
def history(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A server whose settings would stop a recovery that used them."""
    volume = tmp_path_factory.mktemp("pitr") / "volume"
    with (
        ground_on(full_bin_dir, wal_keep_size="1GB", max_prepared_transactions="5") as ground,
        history_on(ground, volume) as made,
    ):
        ground.execute(
            "ALTER SYSTEM SET shared_preload_libraries = 'there_is_no_such_library'",
            "ALTER SYSTEM SET restore_command = 'false'",
        )
        made.commit("first", "CREATE TABLE marks (name text)", "INSERT INTO marks VALUES ('first')")
        yield made


@pytest.fixture(scope="module")
def base(history: History) -> BaseBackup:
    """A base backup, with three segments of WAL after it, and a fourth that is unfinished."""
    made = history.base_backup()
    history.commit("second", "INSERT INTO marks VALUES ('second')")
    switch(history.ground)
    history.commit("harm", "DELETE FROM marks")
    switch(history.ground)
    history.commit("remade", "CREATE TABLE later ()")
    switch(history.ground)
    history.commit("last", "INSERT INTO marks VALUES ('last')")
    history.running.until_safe()
    return made


def test_the_commit_is_there_and_the_next_is_not(history: History, base: BaseBackup) -> None:
    with history.recovered(base, "second") as cluster:
        assert query(cluster, "SELECT name FROM public.marks ORDER BY 1") == ["first", "second"]
        assert query(cluster, "SELECT to_regclass('public.later')") == [None]
        assert cluster.phases.keys() == {"unpack", "replay"}
        place = cluster.place
    assert not place.exists()
    with history.recovered(base, "harm") as cluster:
        assert query(cluster, "SELECT name FROM public.marks") == []


def test_what_is_being_recovered_is_not_removed(history: History, base: BaseBackup) -> None:
    with history.recovered(base, "second"), pytest.raises(LockHeldError), removing(base.folder / BASE):
        pass
    with removing(base.folder / BASE):
        pass


def test_the_unfinished_segment_is_replayed(history: History, base: BaseBackup) -> None:
    with history.recovered(base, "last") as cluster:
        assert query(cluster, "SELECT name FROM public.marks") == ["last"]


def test_a_recovered_server_reaches_nothing_outside(history: History, base: BaseBackup, tmp_path: Path) -> None:
    with history.recovered(base, "second") as cluster:
        program = f"sh -c 'echo x > {tmp_path}/written; cat {history.archive.wal}/*; touch {cluster.place}/wal/x'"
        with pytest.raises(BackupError, match=r"COPY|program"):
            query(cluster, f"COPY public.marks FROM PROGRAM $${program}$$")
        assert not (tmp_path / "written").exists()
        assert not (cluster.place / "wal" / "x").exists()


def test_a_target_that_no_record_has_is_not_reached(history: History, base: BaseBackup) -> None:
    order = history.order(base, "last")
    beyond = Lsn(order.target.bytes + (1 << 30))
    order = RecoveryOrder(order.archive, base, order.timeline, beyond)
    with (
        short_folder() as folder,
        pytest.raises(RecoveryError, match="recovery ended before configured recovery target was reached") as error,
        recovered(history.ground.programs, folder, order, hours=0.05, log=lambda line: None),
    ):
        pass
    assert "ovia-backup recovery-window" in error.value.fix


def _copied(history: History, base: BaseBackup, tmp_path: Path) -> tuple[History, BaseBackup]:
    """The history on a volume of its own, to be damaged."""
    volume = tmp_path / "copy"
    # The receiver goes on meanwhile, and removes its temporary files.
    passing = shutil.ignore_patterns("ovia-wal-*", "incoming", f"*{TEMPORARY}*")
    shutil.copytree(history.volume, volume, ignore=passing)
    (volume / history.archive.incoming.relative_to(history.volume)).mkdir()
    copy = History(history.ground, volume, history.running, history.commits)
    return copy, type(base)(copy.archive.base / base.folder.name, base.manifest, base.sha256)


@pytest.mark.exhaustive
def test_a_missing_segment_is_not_jumped_over(history: History, base: BaseBackup, tmp_path: Path) -> None:
    order = history.order(base, "last")
    copy, of = _copied(history, base, tmp_path)
    copy.archive.archived(copy.archive.archived_segments()[-2]).unlink()
    order = RecoveryOrder(copy.archive, of, order.timeline, order.target)
    with (
        short_folder() as folder,
        pytest.raises(RecoveryError),
        recovered(history.ground.programs, folder, order, hours=0.05, log=lambda line: None),
    ):
        pass


def test_a_damaged_segment_ends_the_recovery(history: History, base: BaseBackup, tmp_path: Path) -> None:
    order = history.order(base, "last")
    copy, of = _copied(history, base, tmp_path)
    path = copy.archive.archived(copy.archive.archived_segments()[-2])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    order = RecoveryOrder(copy.archive, of, order.timeline, order.target)
    with (
        short_folder() as folder,
        pytest.raises(SegmentDamagedError, match=path.name),
        recovered(history.ground.programs, folder, order, hours=0.05, log=lambda line: None),
    ):
        pass


@pytest.mark.exhaustive
def test_a_damaged_base_backup_is_not_recovered(history: History, base: BaseBackup, tmp_path: Path) -> None:
    copy, of = _copied(history, base, tmp_path)
    [path] = of.folder.glob("base.tar*")
    os.truncate(path, path.stat().st_size // 2)
    order = history.order(base, "last")
    with (
        short_folder() as folder,
        pytest.raises(BaseBackupError, match="is damaged"),
        recovered(
            history.ground.programs,
            folder,
            RecoveryOrder(copy.archive, of, order.timeline, order.target),
            hours=0.05,
            log=lambda line: None,
        ),
    ):
        pass


def test_what_happened_since_the_base_is_replayed(history: History, base: BaseBackup) -> None:
    """A database of the same name is made again, a transaction is prepared, and the server gets other settings."""
    ground = history.ground
    ground.execute("CREATE DATABASE shop")
    history.commit("before", "CREATE TABLE old (a int)", database="shop")
    since = history.base_backup()
    ground.execute("DROP DATABASE shop", "CREATE DATABASE shop")
    ground.execute("BEGIN; CREATE TABLE pending (); PREPARE TRANSACTION 'pending'", database="shop")
    ground.execute("ALTER SYSTEM SET max_connections = 90", "ALTER SYSTEM RESET shared_preload_libraries")
    ground.cluster.stop()
    ground.cluster.start()
    history.commit("after", "CREATE TABLE new (a int)", database="shop")
    history.running.until_safe()
    try:
        with history.recovered(since, "after") as cluster:
            tables = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
            assert query(cluster, tables, "shop") == ["new"]
            assert query(cluster, "SELECT gid FROM pg_prepared_xacts") == ["pending"]
    finally:
        ground.execute("ROLLBACK PREPARED 'pending'", database="shop")


@pytest.mark.exhaustive
def test_tablespaces_are_recovered_elsewhere(history: History, base: BaseBackup) -> None:
    ground = history.ground
    place = ground.cluster.folder / "space"
    place.mkdir()
    shutil.chown(place, ground.cluster.data.owner(), ground.cluster.data.group())
    ground.execute(f"CREATE TABLESPACE far LOCATION '{place}'")
    history.commit("far", "CREATE TABLE there TABLESPACE far AS SELECT 1 AS a")
    since = history.base_backup()
    history.commit("farther", "INSERT INTO there VALUES (2)")
    history.running.until_safe()
    with history.recovered(since, "farther") as cluster:
        assert query(cluster, "SELECT a FROM public.there ORDER BY 1") == [1, 2]
        location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'far'"
        assert query(cluster, location)[0].startswith(str(cluster.place))


@pytest.mark.exhaustive
def test_a_whole_cluster_is_recovered_into_a_folder(history: History, base: BaseBackup) -> None:
    ground = history.ground
    ground.execute("CREATE ROLE ada LOGIN", "CREATE DATABASE other", "ALTER SYSTEM SET work_mem = '5MB'")
    ground.execute("ALTER SYSTEM RESET shared_preload_libraries", "ALTER SYSTEM SET synchronous_standby_names = ''")
    place = ground.cluster.folder / "whole"
    place.mkdir()
    shutil.chown(place, ground.cluster.data.owner(), ground.cluster.data.group())
    ground.execute(f"CREATE TABLESPACE whole LOCATION '{place}'")
    since = history.base_backup()
    history.commit("whole", "CREATE TABLE in_other TABLESPACE whole AS SELECT 1 AS a", database="other")
    history.running.until_safe()
    with short_folder() as folder:
        target = folder / "data"
        done = recover_into(ground.programs, target, history.order(since, "whole"), hours=0.05, log=lambda line: None)
        assert done.data == target
        assert sorted(os.listdir(folder)) == [".ovia-drill-0.lock", "data", "data-tablespaces"]
        [note] = [note for note in done.notes if "left out" in note]
        assert "restore_command, synchronous_standby_names, which named the old server" in note
        with pytest.raises(CopyError, match="is not empty"):
            recover_into(ground.programs, target, history.order(since, "whole"), hours=0.05, log=lambda line: None)
        cluster = PortCluster(ground.bin_dir, folder, port=free_port())
        shutil.chown(folder, target.owner(), target.group())  # for the socket
        with (target / "postgresql.conf").open("a") as file:
            file.write(f"port = {cluster.port}\nunix_socket_directories = '{folder}'\n")
        cluster.start()
        try:
            with admin(cluster, "other") as session:
                assert session.execute("SELECT a FROM in_other").fetchone() == (1,)
                assert session.execute("SHOW work_mem").fetchone() == ("5MB",)
                assert session.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'ada'").fetchone() == (1,)
                session.execute("INSERT INTO in_other VALUES (2)")
        finally:
            cluster.stop("immediate")
