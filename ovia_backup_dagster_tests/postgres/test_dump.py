"""The dump against real servers: what it publishes, and that a failure leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.backup import State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.core.locking import lock_holder, volume_lock
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster_tests.conftest import (
    PASSWORD,
    NewDatabase,
    PortCluster,
    execute,
    free_port,
    make_certificate,
    quiet,
    running_cluster,
    snapshot,
)
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, tmpfs
from ovia_backup_dagster_tests.support.exhaustive import thinned

# ------------------------------------------------------------------------------------------ what is published


def test_a_dump_is_published_with_manifest_and_globals(dumper: Dumper, catalog: Catalog) -> None:
    before = datetime.now(UTC).replace(microsecond=0)

    backup = dumper.dump(run_id="run-1", log=quiet)

    manifest = backup.manifest
    assert manifest is not None
    assert manifest.sha256 == hashlib.sha256(backup.path.read_bytes()).hexdigest()
    assert manifest.size_bytes == backup.path.stat().st_size > 100_000
    assert before <= manifest.started_at <= manifest.finished_at <= datetime.now(UTC)
    assert manifest.started_at == backup.started_at
    assert manifest.run_id == "run-1"
    assert manifest.compression == "gzip:1"  # this build has no zstd
    assert manifest.warnings == ()
    facts = manifest.database
    assert facts.name == catalog.database
    assert facts.server_version.startswith("16.")
    assert facts.system_identifier is not None
    assert facts.system_identifier.isdigit()
    assert (facts.owner, facts.bootstrap_superuser) == ("ovia", "postgres")
    assert (facts.encoding, facts.collate, facts.ctype) == ("UTF8", "C", "C")
    assert facts.settings == {"": ("TimeZone=America/New_York", "bytea_output=escape")}
    assert facts.extensions == {"plpgsql": "1.0"}
    roles = backup.sidecar(".globals.sql").read_text()
    assert "CREATE ROLE ovia" in roles
    assert "PASSWORD" not in roles
    assert [b.path for b in catalog.backups()] == [backup.path]
    assert backup.state(datetime.now(UTC)) is State.UNVERIFIED


def test_files_are_for_their_owner_only(dumper: Dumper, volume: Path) -> None:
    os.umask(0o022)
    drills = DrillFolder(dumper.catalog)

    replace(dumper, published=lambda: drills.prepare(datetime.now(UTC))).dump(log=quiet)

    modes = {path.name: path.stat().st_mode & 0o777 for path in (volume, *volume.rglob("*"))}
    folders = {path.name for path in (volume, *volume.rglob("*")) if path.is_dir()}
    assert folders == {volume.name, "daily", "weekly", "drills"}
    assert {modes[name] for name in folders} == {0o700}
    assert {mode for name, mode in modes.items() if name not in folders} == {0o600}


def test_an_unusable_drills_folder_prevents_no_dump(dumper: Dumper, catalog: Catalog, volume: Path) -> None:
    volume.mkdir()
    (volume / "drills").write_text("no folder")

    published = replace(dumper, published=lambda: DrillFolder(catalog).prepare(datetime.now(UTC)))

    assert catalog.backups() == []
    assert published.dump(log=quiet).path.exists()


def test_two_dumps_in_one_second_are_two_backups(dumper: Dumper, catalog: Catalog) -> None:
    for _ in range(3):
        dumper.dump(log=quiet)

    assert len(catalog.backups()) == 3


def test_the_whole_build_compresses_with_zstd(new_full_database: NewDatabase, full_bin_dir: Path, volume: Path) -> None:
    database = new_full_database()

    backup = Dumper(Catalog(volume, database.database), database, Programs(full_bin_dir)).dump(log=quiet)

    assert backup.manifest is not None
    assert backup.manifest.compression == "zstd:2"


def test_a_password_over_tls_is_in_no_file_of_the_dump(
    full_server: PortCluster, new_full_database: NewDatabase, full_bin_dir: Path, volume: Path
) -> None:
    database = new_full_database()
    connection = Connection(
        "127.0.0.1",
        full_server.port,
        database.database,
        "postgres",
        SecretStr(PASSWORD),
        {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(full_server.folder / "server.crt")},
    )

    Dumper(Catalog(volume, database.database), connection, Programs(full_bin_dir)).dump(log=quiet)

    assert not [path for path in volume.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


def test_a_certificate_of_another_authority_is_refused(
    full_server: PortCluster, full_bin_dir: Path, volume: Path, tmp_path: Path
) -> None:
    make_certificate(tmp_path / "other.key", tmp_path / "other.crt")
    libpq = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(tmp_path / "other.crt")}
    connection = Connection("127.0.0.1", full_server.port, "postgres", "postgres", SecretStr(PASSWORD), libpq)

    with pytest.raises(errors.CertificateError, match="certificate verify failed"):
        Dumper(Catalog(volume, "postgres"), connection, Programs(full_bin_dir)).dump(log=quiet)


@pytest.mark.parametrize(
    "name",
    thinned(
        ["a=b", "postgresql://x", "../x", "with\nnewline", "'; rm -rf ~; '", 'quo"te', "100%", "Ünï cödé", "x" * 63],
        daily=3,
    ),
)
def test_a_database_of_any_name_is_dumped(
    name: str, new_database: NewDatabase, programs: Programs, volume: Path, tmp_path: Path
) -> None:
    connection = new_database(name)
    catalog = Catalog(volume, name)

    backup = Dumper(catalog, connection, programs).dump(log=quiet)

    assert backup.path.parent == volume / "daily"
    assert backup.manifest is not None
    assert backup.manifest.database.name == name
    assert backup.manifest.warnings == ()
    assert [b.name.database for b in catalog.backups()] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {"backups"}


def test_libpqs_environment_does_not_redirect_the_dump(dumper: Dumper, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PGHOSTADDR", "127.0.0.9")
        patched.setenv("PGSERVICE", "nowhere")
        patched.setenv("PGOPTIONS", "-c no.such_setting")
        patched.setenv("PGDATABASE", "other")
        patched.setenv("PGTARGETSESSIONATTRS", "standby")

        dumper.dump(log=quiet)

        assert os.environ["PGHOSTADDR"] == "127.0.0.9"  # put back


def test_the_manifest_warns_of_what_pg_dump_leaves_out(database: Connection, dumper: Dumper) -> None:
    execute(
        database,
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 dbname=x password=hidden' PUBLICATION p "
        "WITH (connect = false)",
        "ALTER SUBSCRIPTION s SET (slot_name = NONE)",
    )
    lesser = replace(dumper, connection=_role(database, "reader", "pg_read_all_data"))
    try:
        execute(
            database,
            "ALTER TABLE ask_sessions DISABLE ROW LEVEL SECURITY",
            "SELECT lo_unlink(oid) FROM pg_largeobject_metadata",
        )
        backup = lesser.dump(log=quiet)
    finally:
        execute(database, "DROP SUBSCRIPTION s")

    assert backup.manifest is not None
    assert any("subscriptions not dumped" in warning for warning in backup.manifest.warnings)


def test_a_secret_in_a_custom_setting_is_not_recorded(database: Connection, dumper: Dumper) -> None:
    execute(database, f"ALTER DATABASE \"{database.database}\" SET app.jwt_secret = '{PASSWORD}'")

    backup = dumper.dump(log=quiet)

    assert PASSWORD not in backup.sidecar(".json").read_text()
    assert backup.manifest is not None
    assert "app.jwt_secret=********" in backup.manifest.database.settings[""]


def test_progress_is_relative_to_the_last_dumps_size(database: Connection, dumper: Dumper) -> None:
    dumper.dump(log=quiet)
    lines: list[str] = []
    execute(
        database,
        "CREATE TABLE bulk AS SELECT g, md5(g::text) || md5((g * 7)::text) AS text FROM generate_series(1, 200000) g",
    )

    dumper.dump(log=lines.append, progress_seconds=0.05)

    progress = [line for line in lines if "/s" in line]
    assert progress
    assert all("of the last dump's size" in line for line in progress)


# ------------------------------------------------------------------------------------------ failures


@pytest.fixture
def earlier(dumper: Dumper, volume: Path) -> dict[str, tuple[int, bytes]]:
    """A good backup that exists already: no failure may touch it."""
    dumper.dump(log=quiet)
    return snapshot(volume)


def fails(dumper: Dumper, error: type[errors.BackupError], match: str | None = None) -> errors.BackupError:
    """Assert that the dump fails with this error, in one line and without the password; return the error."""
    with pytest.raises(error, match=match) as caught:
        dumper.dump(log=quiet)
    assert type(caught.value) is error
    text = str(caught.value)
    assert "\n" not in text
    assert "Next: " in text
    assert PASSWORD not in text
    return caught.value


def test_an_unreachable_server_fails_the_dump(dumper: Dumper, earlier: object, volume: Path) -> None:
    nowhere = replace(dumper.connection, host="127.0.0.1", port=free_port())

    error = fails(replace(dumper, connection=nowhere), errors.ServerUnreachableError, "Connection refused")

    assert error.transient
    assert snapshot(volume) == earlier


def test_an_unknown_host_fails_the_dump(dumper: Dumper, earlier: object, volume: Path) -> None:
    nowhere = replace(dumper.connection, host="no-such-host.invalid")

    fails(replace(dumper, connection=nowhere), errors.HostUnknownError)

    assert snapshot(volume) == earlier


def test_a_wrong_password_fails_the_dump(server: PortCluster, dumper: Dumper, earlier: object, volume: Path) -> None:
    wrong = replace(dumper.connection, host="127.0.0.1", port=server.port, password=SecretStr("not-" + PASSWORD))

    error = fails(replace(dumper, connection=wrong), errors.AuthenticationError, "password authentication failed")

    assert not error.transient
    assert snapshot(volume) == earlier


def test_a_missing_password_fails_the_dump(server: PortCluster, dumper: Dumper, earlier: object, volume: Path) -> None:
    without = replace(dumper.connection, host="127.0.0.1", port=server.port)

    fails(replace(dumper, connection=without), errors.PasswordMissingError, "no password supplied")

    assert snapshot(volume) == earlier


def test_a_missing_role_fails_the_dump(dumper: Dumper) -> None:
    fails(replace(dumper, connection=replace(dumper.connection, user="nobody_here")), errors.RoleMissingError)


def test_a_missing_database_fails_the_dump(dumper: Dumper, volume: Path, earlier: object) -> None:
    missing = replace(dumper.connection, database="no_such_database")

    fails(replace(dumper, connection=missing), errors.DatabaseMissingError, "no_such_database")

    assert snapshot(volume) == earlier


@pytest.mark.parametrize(
    ("preparation", "kind", "match"),
    [
        ("GRANT SELECT ON people TO {role}", errors.PrivilegeError, "permission denied for"),
        ("GRANT pg_read_all_data TO {role}", errors.RowSecurityError, "row-level security"),
        (
            "GRANT pg_read_all_data TO {role}; ALTER ROLE {role} BYPASSRLS",
            errors.LargeObjectPrivilegeError,
            "permission denied for large object",
        ),
    ],
    ids=["table", "row security", "large object"],
)
def test_a_missing_right_fails_the_dump(
    preparation: str,
    kind: type[errors.BackupError],
    match: str,
    database: Connection,
    dumper: Dumper,
    earlier: object,
    volume: Path,
) -> None:
    connection = _role(database, "lesser")
    execute(database, *preparation.format(role=connection.user).split("; "))

    fails(replace(dumper, connection=connection), kind, match)

    assert snapshot(volume) == earlier


def test_a_server_newer_than_pg_dump_is_refused(dumper: Dumper, earlier: object, volume: Path) -> None:
    with running_cluster(embedded_server.bin_dir(18)) as newer:
        connection = replace(newer.connection(), database="postgres")

        fails(replace(dumper, connection=connection), errors.VersionMismatchError, "the server is PostgreSQL 18")

    assert snapshot(volume) == earlier


def test_a_missing_pg_dump_is_reported(dumper: Dumper, tmp_path: Path) -> None:
    fails(
        replace(dumper, programs=Programs(tmp_path)), errors.ProgramMissingError, "pg_dump was not found in PG_BIN_DIR"
    )


def test_an_unsupported_compression_is_refused(dumper: Dumper) -> None:
    fails(replace(dumper, compression="zstd:3"), errors.CompressionUnsupportedError, "built without zstd")


def test_a_locked_table_ends_the_dump_in_a_timeout(
    database: Connection, dumper: Dumper, earlier: object, volume: Path
) -> None:
    with _session(database) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")

        error = fails(dumper, errors.LockTimeoutError, "statement timeout")

    assert error.transient
    assert snapshot(volume) == earlier


def test_a_dump_cancelled_by_an_administrator_fails(
    database: Connection, dumper: Dumper, earlier: object, volume: Path
) -> None:
    patient = replace(dumper, lock_wait_timeout_seconds=60)
    with _session(database) as other, _session(database) as administrator:
        other.execute("BEGIN")
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        with _running_dump(patient) as dump:
            _until(lambda: _waiting_backends(administrator))
            administrator.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database()"
            )
            _, stderr = dump.communicate(timeout=30)
    assert "StatementCancelledError" in stderr
    assert snapshot(volume) == earlier


def test_a_server_killed_during_the_dump_fails_it(bin_dir: Path, volume: Path, programs: Programs) -> None:
    with running_cluster(bin_dir) as doomed:
        _bulk(doomed.connection())
        catalog = Catalog(volume, "postgres")
        dumper = Dumper(catalog, doomed.connection(), programs)
        dumper.dump(log=quiet)

        def kill_once_it_writes(line: str) -> None:
            if "/s" in line and not line.startswith("0 B") and doomed.running:
                doomed.stop("immediate")

        before = [snapshot(volume)]

        def dump_until_killed() -> None:
            while True:
                dumper.dump(log=kill_once_it_writes, progress_seconds=0.02)
                # On a busy machine, the dump ended before it reported any progress.
                execute(doomed.connection(), "INSERT INTO bulk TABLE bulk")
                before.append(snapshot(volume))

        with pytest.raises(errors.ConnectionLostError) as caught:
            dump_until_killed()

    assert caught.value.transient
    assert snapshot(volume) == before[-1]


@contextmanager
def network_of_its_own(name: str) -> Iterator[tuple[str, str]]:
    """A network namespace with a veth pair to this one; yields this side's address and device."""
    here, there = f"{name}a", f"{name}b"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", "10.213.7.1/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", "10.213.7.2/30", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        yield "10.213.7.1", here
    finally:
        ip("netns", "del", name)


@pytest.mark.exhaustive
@pytest.mark.skipif(os.geteuid() != 0, reason="a network of one's own needs root")
def test_a_silent_network_loss_fails_the_dump(bin_dir: Path, volume: Path, programs: Programs) -> None:
    """By itself, the kernel would wait for two hours."""
    with running_cluster(bin_dir, listen_addresses="*") as server, network_of_its_own("oviat") as (address, device):
        with open(server.data / "pg_hba.conf", "a", encoding="utf-8") as rules:
            rules.write(f"host all all {address}/30 trust\n")
        execute(server.connection(), "SELECT pg_reload_conf()", "CREATE TABLE people ()")
        connection = replace(server.connection(), host=address)
        dumper = Dumper(Catalog(volume, "postgres"), connection, programs, lock_wait_timeout_seconds=60)
        with _session(server.connection()) as other, _session(server.connection()) as watcher:
            other.execute("BEGIN")
            other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
            with _running_dump(dumper, "ip", "netns", "exec", "oviat") as dump:
                _until(lambda: _waiting_backends(watcher))
                subprocess.run(["ip", "link", "set", device, "down"], check=True)
                _, stderr = dump.communicate(timeout=30)

    assert "ConnectionLostError" in stderr
    assert list((volume / "daily").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_a_disk_that_fills_during_the_dump_fails_it(database: Connection, dumper: Dumper, volume: Path) -> None:
    with tmpfs(volume, 1500 * 1024):
        dumper.dump(log=quiet)
        earlier = snapshot(volume)
        _bulk(database)

        fails(dumper, errors.DiskFullError, "No space left on device")

        assert snapshot(volume) == earlier


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small filesystem needs root")
def test_too_little_room_refuses_the_dump(dumper: Dumper, volume: Path) -> None:
    with tmpfs(volume, 4 * MEGABYTE):
        backup = dumper.dump(log=quiet)
        (volume / "ballast").write_bytes(b"x" * (4 * 1024 * 1024 - 2 * backup.size_bytes))
        earlier = snapshot(volume)

        fails(dumper, errors.DiskFullError, "too little room")

        assert snapshot(volume) == earlier


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting read-only needs root")
def test_a_read_only_volume_refuses_the_dump(dumper: Dumper, volume: Path) -> None:
    with tmpfs(volume, 4 * MEGABYTE):
        dumper.dump(log=quiet)
        earlier = snapshot(volume)
        subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)

        fails(dumper, errors.ReadOnlyVolumeError, "mounted read-only")

        assert snapshot(volume) == earlier


def test_a_file_in_the_folders_place_is_refused(dumper: Dumper, volume: Path) -> None:
    volume.write_text("not a folder")

    fails(dumper, errors.VolumeError, "cannot use the backup folder")

    assert volume.read_text() == "not a folder"


@pytest.mark.parametrize("ready", [True, False], ids=["with folders in its place", "with nothing in its place"])
def test_a_volume_unmounted_during_a_dump_fails_it(ready: bool, dumper: Dumper, volume: Path) -> None:
    """As after an unmount: the mount point then shows another disk, and nothing on it may be called a backup."""
    dumper.catalog.prepare()
    gone = volume.with_name("unmounted")

    def unmount(line: str) -> None:
        if line.startswith("pg_dump of"):
            volume.rename(gone)
            if ready:
                dumper.catalog.prepare()

    with pytest.raises(errors.VolumeError if ready else errors.BackupError) as refused:
        dumper.dump(log=unmount)

    assert refused.value.what.startswith((f"the backup folder {volume} is not the one that was locked", "pg_dump of"))
    assert snapshot(volume) == {}
    assert snapshot(gone) == {}


def test_a_lock_file_removed_during_a_dump_fails_it(dumper: Dumper, volume: Path) -> None:
    """Another process could take the lock then, and may have swept this dump's temporary."""

    def remove(line: str) -> None:
        if line.startswith("pg_dump of"):
            (volume / ".lock").unlink()

    with pytest.raises(errors.VolumeError, match="is not the one that was locked"):
        dumper.dump(log=remove)

    assert snapshot(volume) == {}


def test_a_temporary_removed_during_a_dump_fails_it(
    dumper: Dumper, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a program that removes hidden files: the error is one line, without a traceback."""

    def hashed(path: Path, *, sync: bool = False) -> str:
        digest = file_sha256(path, sync=sync)
        path.unlink()
        return digest

    monkeypatch.setattr("ovia_backup_dagster.postgres.dump.file_sha256", hashed)

    fails(dumper, errors.VolumeMissingError, "cannot dump to")
    assert snapshot(volume) == {}


def test_a_lock_held_by_another_run_refuses_the_dump(dumper: Dumper, volume: Path, earlier: object) -> None:
    with volume_lock(volume, purpose="a long dump", now=datetime.now(UTC)):
        error = fails(dumper, errors.LockHeldError, "a long dump")

    assert error.transient
    assert snapshot(volume) == earlier


def test_a_dump_from_the_future_does_not_stop_the_next(dumper: Dumper, catalog: Catalog) -> None:
    """As after a clock that jumped back: the new dump is made all the same, under its own date."""
    future = dumper.dump(log=quiet)
    ahead = replace(future.name, started_at=future.started_at + timedelta(days=400))
    for suffix in ("", ".json", ".globals.sql"):
        os.rename(f"{future.path}{suffix}", f"{future.path.with_name(ahead.filename)}{suffix}")

    backup = dumper.dump(log=quiet)

    assert abs(backup.started_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert len(catalog.backups()) == 2


# ------------------------------------------------------------------------------------------ a killed process


def test_a_killed_parent_leaves_the_lock_to_pg_dump(database: Connection, dumper: Dumper, volume: Path) -> None:
    """While an orphaned pg_dump still writes, no other process does; afterwards the next run cleans up."""
    patient = replace(dumper, lock_wait_timeout_seconds=60)
    dumper.catalog.prepare()
    with _session(database) as other, _session(database) as watcher:
        other.execute("BEGIN")
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        with _running_dump(patient) as dump:
            _until(lambda: _waiting_backends(watcher))
            dump.send_signal(signal.SIGKILL)
            dump.wait(30)
            assert lock_holder(volume) is not None
            fails(dumper, errors.LockHeldError, "dumping")
        other.execute("ROLLBACK")
        _until(lambda: lock_holder(volume) is None)
    assert next((volume / "daily").iterdir()).name.startswith(".")

    backup = dumper.dump(log=quiet)

    assert {path.name for path in (volume / "daily").iterdir()} == {
        backup.path.name + suffix for suffix in ("", ".json", ".globals.sql")
    }


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_pg_dump_and_cleans_up(
    kind: signal.Signals, database: Connection, dumper: Dumper, volume: Path
) -> None:
    patient = replace(dumper, lock_wait_timeout_seconds=60)
    dumper.catalog.prepare()
    with _session(database) as other, _session(database) as watcher:
        other.execute("BEGIN")
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        with _running_dump(patient) as dump:
            _until(lambda: _waiting_backends(watcher))
            dump.send_signal(kind)
            assert dump.wait(30) != 0
        assert lock_holder(volume) is None

    assert list((volume / "daily").iterdir()) == []


# ------------------------------------------------------------------------------------------ helpers


def _role(database: Connection, prefix: str, *memberships: str) -> Connection:
    """A new login role with these memberships and no other right."""
    role = f"{prefix}_{os.getpid()}_{time.monotonic_ns()}"
    execute(database, f"CREATE ROLE {role} LOGIN", *(f"GRANT {group} TO {role}" for group in memberships))
    return replace(database, user=role)


def _bulk(database: Connection) -> None:
    """Some 40 MB that do not compress well."""
    execute(
        database,
        "CREATE TABLE bulk AS SELECT g AS id, sha512(g::text::bytea) || sha512((g + 1)::text::bytea) AS noise "
        "FROM generate_series(1, 150000) g",
    )


@contextmanager
def _session(database: Connection) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(
        host=database.host, port=database.port, dbname=database.database, user=database.user, autocommit=True
    ) as session:
        yield session


def _waiting_backends(session: psycopg.Connection[tuple[object, ...]]) -> bool:
    rows = session.execute(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    ).fetchall()
    return len(rows) > 0


def _until(condition: object, seconds: float = 30.0) -> None:
    """Poll a condition; fail when it does not come true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


_CHILD = """
import json, signal, sys
from pathlib import Path
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.postgres import programs
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.dump import Dumper
programs.KEEPALIVES.update(keepalives_idle=1, keepalives_interval=1, keepalives_count=2, tcp_user_timeout=3000)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
a = json.loads(sys.argv[1])
catalog = Catalog(Path(a["root"]), a["database"])
connection = Connection(a["host"], a["port"], a["database"], a["user"])
dumper = Dumper(catalog, connection, Programs(Path(a["bin"])), lock_wait_timeout_seconds=a["wait"])
try:
    dumper.dump(log=lambda _: None)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@contextmanager
def _running_dump(dumper: Dumper, *prefix: str) -> Iterator[subprocess.Popen[str]]:
    """A dump in its own process."""
    arguments = {
        "root": str(dumper.catalog.root),
        "database": dumper.connection.database,
        "host": dumper.connection.host,
        "port": dumper.connection.port,
        "user": dumper.connection.user,
        "bin": str(dumper.programs.bin_dir),
        "wait": dumper.lock_wait_timeout_seconds,
    }
    command = [*prefix, sys.executable, "-c", _CHILD, json.dumps(arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
