"""What a drill reports and leaves behind when its backup, the machine or another user causes trouble.

Real servers, real archives. Tests that need disks or kills are in ``faults/test_drill.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from threading import Thread
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import BackupError, BackupNotFoundError, LockHeldError, NotVerifiedError
from ovia_backup_dagster.core.locking import removing
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import promote_backup, remove_backup
from ovia_backup_dagster.core.sidecars import DRILLED, GLOBALS, MANIFEST
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.drill import throwaway_cluster
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.placement import Choice, Where
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.local_cluster import account_id
from ovia_backup_dagster.postgres.programs import Connection, Programs, Variables
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof import target as places
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.retention import promote_and_prune
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, admin, execute, free_port, quiet, running_cluster
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, tmpfs
from ovia_backup_dagster_tests.faults.harness import state_of, until
from ovia_backup_dagster_tests.support.crashes import in_a_child, raised_as_nobody
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import redated, with_roles

SCHEMA = """
    CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, note text);
    INSERT INTO people SELECT g, 'person ' || g, md5(g::text) FROM generate_series(1, 400) g;
    CREATE TABLE links (person int REFERENCES people, at timestamptz DEFAULT '2026-01-01 00:00Z');
    INSERT INTO links (person) SELECT id FROM people WHERE id % 3 = 0;
    CREATE SEQUENCE tickets START 41;
    SELECT nextval('tickets')
"""
THROWAWAY, DATABASE = Choice(Where.THROWAWAY), Choice(Where.DATABASE)


@dataclass
class Site:
    """A small database, its backups and their drills."""

    database: Connection
    catalog: Catalog
    programs: Programs
    folder: Path

    @property
    def expectations(self) -> Expectations:
        return Expectations(("people", "links"), True)

    @property
    def driller(self) -> Driller:
        verifier = Verifier(self.catalog, self.programs, self.expectations)
        return Driller(verifier, self.database, self.folder, self.database)

    def backup(self, compression: str = "auto", *, verified: bool = True) -> Backup:
        made = Dumper(self.catalog, self.database, self.programs, compression).dump(log=quiet)
        return self.driller.verifier.verify(made, log=quiet).backup if verified else made

    def bare(self, compression: str = "gzip:1") -> Backup:
        """A dump without a manifest, like the old script's, an hour old."""
        made = self.backup(compression, verified=False)
        made.sidecar(MANIFEST).unlink()
        made.sidecar(GLOBALS).unlink()
        age(made)
        return self.catalog.refresh(made)

    def drill(self, backup: Backup, choice: Choice = THROWAWAY, driller: Driller | None = None) -> Evidence:
        driller = driller or self.driller
        return driller.drill(self.catalog.refresh(backup), choice, launched_by="a test", log=quiet)

    def evidence(self) -> list[Evidence]:
        return list(self.driller.drills.newest_first())


def age(backup: Backup) -> None:
    """Set the backup file's time back by an hour."""
    at = backup.path.stat().st_mtime - 3600
    os.utime(backup.path, (at, at))


@pytest.fixture
def drill_dir() -> Iterator[Path]:
    """A DRILL_DIR with a short path, for the sockets; no drill may leave anything in it."""
    path = Path("/tmp") / f"ovia-dt-{os.getpid()}-{free_port()}"
    path.mkdir(mode=0o711)
    try:
        yield path
        assert leftovers(path) == []
    finally:
        shutil.rmtree(path, ignore_errors=True)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{throwaway_cluster.PREFIX}*"))


def _site(cluster: PortCluster, programs: Programs, folder: Path, drill_dir: Path) -> Iterator[Site]:
    name = f"site{os.getpid()}_{free_port()}"
    with admin(cluster) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    database = cluster.connection(name)
    try:
        execute(database, SCHEMA)
        yield Site(database, Catalog(folder / "backups", name), programs, drill_dir)
    finally:
        with admin(cluster) as session:
            for made in (name, places.scratch_name(name)):
                session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(made)))


@pytest.fixture
def site(server: PortCluster, bin_dir: Path, tmp_path: Path, drill_dir: Path) -> Iterator[Site]:
    yield from _site(server, Programs(bin_dir), tmp_path, drill_dir)


@pytest.fixture
def full_site(full_server: PortCluster, full_bin_dir: Path, tmp_path: Path, drill_dir: Path) -> Iterator[Site]:
    yield from _site(full_server, Programs(full_bin_dir), tmp_path, drill_dir)


def line(evidence: Evidence, check: Check) -> tuple[Result, str]:
    return next((found.result, found.text) for found in evidence.lines if found.check is check)


def failed_checks(evidence: Evidence) -> list[Check]:
    return [found.check for found in evidence.lines if found.result is Result.FAILED]


# --------------------------------------------------------------------------------------------- which backup


def test_an_ambiguous_backup_name_lists_the_matches(site: Site) -> None:
    made = [site.backup(verified=False) for _ in range(2)]
    with pytest.raises(BackupNotFoundError) as caught:
        site.driller.find(f"{made[0].started_at:%Y-%m-%d}")
    for backup in made:
        assert str(backup) in caught.value.why
    with pytest.raises(BackupNotFoundError, match="the newest is"):
        site.driller.find("2001-01-01")


def test_many_matches_of_a_name_are_counted(site: Site) -> None:
    made = site.backup(verified=False)
    for number in range(1, 9):
        name = BackupName(site.catalog.database, Tier.DAILY, made.started_at - timedelta(seconds=number))
        shutil.copy2(made.path, made.path.with_name(name.filename))
    with pytest.raises(BackupNotFoundError, match=r"and \d more"):
        site.driller.find(str(made.started_at.year))


def test_without_any_backup_the_error_says_to_make_one(site: Site) -> None:
    site.catalog.prepare()
    for wanted in ("latest", "2026-01-01"):
        with pytest.raises(BackupNotFoundError, match="ovia-backup dump"):
            site.driller.find(wanted)


@pytest.mark.exhaustive
def test_a_file_outside_the_volume_is_drilled_by_its_path(site: Site, tmp_path: Path) -> None:
    made = site.backup()
    elsewhere = tmp_path / '..it\'s a\ncopy; $(x) "y".dump'
    shutil.copy2(made.path, elsewhere)
    age(site.catalog.refresh(replace(made, path=elsewhere)))
    linked = tmp_path / "link.dump"
    linked.symlink_to(elsewhere)
    before = {path.name for path in tmp_path.iterdir()}
    evidence = site.drill(site.driller.find(str(elsewhere)), DATABASE)
    assert evidence.passed, evidence.failures
    assert evidence.backup == elsewhere.name
    again = site.drill(site.driller.find(str(linked)), DATABASE)
    assert again.passed, again.failures
    # Nothing is written beside the file; the evidence is in its own folder.
    assert {path.name for path in tmp_path.iterdir()} == before
    written = {path.name for path in site.driller.drills.path.glob("*.json")}
    assert written == {f"{evidence.filename}.json", f"{again.filename}.json"}
    assert not any(set(name) & set("\n';/ ") for name in written)
    with pytest.raises(BackupNotFoundError):
        site.driller.find(str(elsewhere), anywhere=False)


@pytest.mark.exhaustive
def test_a_backup_with_a_long_name_has_evidence(site: Site, tmp_path: Path) -> None:
    made = site.backup()
    elsewhere = tmp_path / ("ü" * 110 + ".dump")
    shutil.copy2(made.path, elsewhere)
    age(replace(made, path=elsewhere))
    assert site.drill(site.driller.find(str(elsewhere)), DATABASE).passed
    assert site.evidence()[0].backup == elsewhere.name


def test_a_dump_that_may_still_be_written_is_refused(site: Site) -> None:
    made = site.backup(verified=False)
    made.sidecar(MANIFEST).unlink()
    with pytest.raises(NotVerifiedError, match="may still be being written"):
        site.drill(made)
    assert site.evidence() == []


def test_a_bad_backup_is_not_the_latest(site: Site) -> None:
    good = site.backup()
    bad = site.backup(verified=False)
    with open(bad.path, "r+b") as file:
        file.seek(bad.size_bytes // 2)
        file.write(b"damage")
    assert site.driller.verifier.verify(bad, log=quiet).backup.state(datetime.now(UTC)) is State.BAD
    assert site.driller.find("latest").path == good.path
    evidence = site.drill(site.driller.find(str(bad)))
    assert failed_checks(evidence) == [Check.UNALTERED]
    assert "was altered" in evidence.failures[0]
    assert evidence.place == "nowhere"


def test_a_missing_expected_table_fails_the_drill_by_name(site: Site) -> None:
    execute(site.database, "DROP TABLE links")
    made = site.backup()
    assert made.state(datetime.now(UTC)) is State.BAD
    evidence = site.drill(made, DATABASE)
    # The file is unaltered; its content is wrong.
    assert failed_checks(evidence) == [Check.TABLES_PRESENT]
    assert "links" in line(evidence, Check.TABLES_PRESENT)[1]
    assert line(evidence, Check.TABLES)[0] is Result.PASSED
    assert not site.catalog.refresh(made).drilled


# --------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("compression", thinned(["gzip:1", "zstd:2"]))
@pytest.mark.parametrize("many", thinned([100, 30]), ids=["with a manifest", "without, but verified before"])
def test_no_flipped_bit_passes(full_site: Site, many: int, compression: str) -> None:
    """The hash finds the flip before a server is started."""
    site, rng = full_site, Random(f"{many}{compression}")
    made = site.backup(compression) if many == 100 else site.bare(compression)
    made = site.driller.verifier.verify(made, log=quiet).backup
    assert made.state(datetime.now(UTC)) is State.VERIFIED
    whole, status = made.path.read_bytes(), made.path.stat()
    for _ in range(many):
        at = rng.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        with open(made.path, "r+b") as file:  # in place: the same file, length and times, as a failing disk
            file.write(flipped)
        os.utime(made.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        evidence = site.drill(made)
        assert not evidence.passed, f"byte {at} of {len(whole)}"
        assert failed_checks(evidence) == [Check.UNALTERED]
        assert evidence.place == "nowhere"
        assert not site.catalog.refresh(made).drilled
    assert len(site.evidence()) == many


def test_an_unverified_dump_without_manifest_may_hide_a_flip(full_site: Site) -> None:
    """Without a manifest and a verdict, a file can only be compared with itself.

    The drill sees that the file decodes and restores, and that the copy equals it. It cannot see a flip that leaves the
    file readable: in an uncompressed block, or in a zstd frame, which has no checksum. Such a drill passes, and its
    evidence says that the hash was taken now, and that there was no manifest.
    """
    site = full_site
    made = site.bare("none")
    text = made.path.read_bytes()
    at = text.index(b"person 17\t")
    with open(made.path, "r+b") as file:
        file.seek(at)
        file.write(b"q")
    age(made)
    evidence = site.drill(made, DATABASE)
    assert evidence.passed, evidence.failures
    assert evidence.manifest is False
    assert line(evidence, Check.UNALTERED)[1].endswith("taken now")
    # A file that does not decode still fails.
    made = site.bare("gzip:1")
    with open(made.path, "r+b") as file:
        file.seek(made.size_bytes - 40)
        file.write(bytes(8))
    age(made)
    assert not site.drill(made).passed


NOT_ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda whole: whole[: len(whole) * 2 // 3],
    "empty": lambda _: b"",
    "plain SQL": lambda _: b"-- PostgreSQL database dump\n\nSET statement_timeout = 0;\n" * 20,
    "something else": lambda _: bytes(range(256)) * 64,
    "magic alone": lambda _: b"PGDMP",
}


@pytest.mark.parametrize("what", NOT_ARCHIVES)
def test_a_file_that_is_no_archive_fails_in_one_line(site: Site, tmp_path: Path, what: str) -> None:
    whole = site.backup(verified=False).path.read_bytes()
    path = tmp_path / "given.dump"
    path.write_bytes(NOT_ARCHIVES[what](whole))
    age(replace(site.catalog.backups()[0], path=path))
    evidence = site.drill(site.driller.find(str(path)))
    assert not evidence.passed
    assert failed_checks(evidence) == [Check.UNALTERED]
    assert "damaged" in evidence.failures[0]
    assert len(evidence.failures) == 1
    assert "\n" not in str(evidence.trouble)
    assert evidence.place == "nowhere"


def test_a_folder_is_no_backup(site: Site, tmp_path: Path) -> None:
    site.backup(verified=False)
    for folder in (tmp_path, site.catalog.folder(Tier.DAILY)):
        with pytest.raises(BackupNotFoundError):
            site.driller.find(str(folder))


def test_an_archive_of_a_newer_pg_dump_is_not_bad(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "newer.dump"
    newer = embedded_server.bin_dir(18) / "pg_dump"
    command = (str(newer), "--format=custom", f"--file={path}", site.database.conninfo())
    subprocess.run(command, env={**os.environ, **site.database.environment()}, check=True)
    site.backup()
    name = BackupName(site.catalog.database, Tier.DAILY, datetime(2026, 1, 2, tzinfo=UTC))
    inside = site.catalog.folder(Tier.DAILY) / name.filename
    shutil.copy2(path, inside)
    age(Backup(inside, name, 0, 0))
    made = site.driller.find(str(inside))
    evidence = site.drill(made)
    assert not evidence.passed
    assert failed_checks(evidence) == []
    assert "version" in evidence.error
    assert evidence.fix
    assert site.catalog.refresh(made).state(datetime.now(UTC)) is State.UNVERIFIED


# --------------------------------------------------------------------------------------------- failing restores


def test_a_failed_restore_names_the_error_and_the_object(site: Site) -> None:
    """A CHECK reads earlier rows of its table, which are not visible while a single COPY loads all of them."""
    execute(
        site.database,
        "CREATE TABLE aa_checked (v int, secret text DEFAULT 's3cret-default')",
        "CREATE FUNCTION allowed(int) RETURNS bool LANGUAGE sql AS "
        "'SELECT $1 = 1 OR EXISTS (SELECT 1 FROM public.aa_checked WHERE v = $1 - 1)'",
        "ALTER TABLE aa_checked ADD CONSTRAINT after_another CHECK (allowed(v))",
        "INSERT INTO aa_checked VALUES (1, 'hush-hush')",
        "INSERT INTO aa_checked VALUES (2, 'hush-hush')",
    )
    evidence = site.drill(site.backup())
    assert failed_checks(evidence) == [Check.RESTORED]
    text = line(evidence, Check.RESTORED)[1]
    assert "aa_checked" in text
    assert "after_another" in text
    assert "--mode new --even-if-damaged" in evidence.fix
    written = "".join(path.read_text() for path in site.driller.drills.path.iterdir() if path.is_file())
    assert "hush-hush" not in written
    assert "s3cret-default" not in written


def test_an_unqualified_name_is_named_in_the_error(site: Site) -> None:
    execute(
        site.database,
        "CREATE FUNCTION biggest() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT max(id) FROM people'",
        "CREATE TABLE late (v int)",
        "INSERT INTO late VALUES (1)",
        "CREATE INDEX late_index ON late ((v + biggest()))",
    )
    evidence = site.drill(site.backup(), DATABASE)
    assert failed_checks(evidence) == [Check.RESTORED]
    text = line(evidence, Check.RESTORED)[1]
    assert 'relation "people" does not exist' in text
    assert "late_index" in text


@pytest.mark.exhaustive
def test_a_missing_extension_is_named(full_site: Site, bin_dir: Path) -> None:
    site = full_site
    execute(
        site.database, "CREATE EXTENSION hstore", "CREATE TABLE tags (t hstore)", "INSERT INTO tags VALUES ('a=>1')"
    )
    with admin_of(site.database) as session:
        available = {row[0] for row in session.execute("SELECT name FROM pg_available_extensions")}
    made = site.backup("gzip:1")
    passed = site.drill(made, DATABASE)
    assert passed.passed, passed.failures
    assert "hstore" in line(passed, Check.EXTENSIONS)[1]
    verifier = Verifier(site.catalog, Programs(bin_dir), site.expectations)
    evidence = site.drill(made, driller=replace(site.driller, verifier=verifier))
    assert "hstore" in available
    assert failed_checks(evidence) == [Check.EXTENSIONS]
    assert "extension hstore is not installed" in evidence.failures[0]
    assert "--where database" in evidence.fix
    assert len(evidence.failures) == 1


def admin_of(database: Connection) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=database.host, port=database.port, dbname=database.database, user=database.user, autocommit=True
    )


@pytest.fixture
def client_bin(full_bin_dir: Path, tmp_path: Path) -> Path:
    """A folder with client programs only, like Debian's postgresql-client."""
    folder = tmp_path / "client" / "bin"
    folder.mkdir(parents=True)
    for name in ("pg_dump", "pg_dumpall", "pg_restore", "psql", "vacuumdb"):
        (folder / name).symlink_to(full_bin_dir / name)
    return folder


def test_without_server_programs_a_named_server_is_used(full_site: Site, client_bin: Path) -> None:
    site = full_site
    made = site.backup()
    verifier = Verifier(site.catalog, Programs(client_bin), site.expectations)
    driller = replace(site.driller, verifier=verifier)
    refused = site.drill(made, Choice(), driller)
    assert "only PostgreSQL's client programs are installed here" in refused.error
    assert "RESTORE_POSTGRES_HOST" in refused.fix
    assert failed_checks(refused) == []
    passed = site.drill(made, Choice(), replace(driller, target_is_named=True))
    assert passed.passed, passed.failures
    assert passed.place.startswith("database ")


# --------------------------------------------------------------------------------------------- the scratch database


def scratch(site: Site) -> str:
    return places.scratch_name(site.catalog.database)


def make_scratch(site: Site, comment: str | None = None, limit: int = -1) -> None:
    name = sql.Identifier(scratch(site))
    with admin_of(replace(site.database, database="postgres")) as session:
        session.execute(sql.SQL("CREATE DATABASE {} CONNECTION LIMIT {}").format(name, sql.Literal(limit)))
        if comment is not None:
            session.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(comment)))
    execute(replace(site.database, database=scratch(site)), "CREATE TABLE precious (v int)")


def server_state(database: Connection) -> list[tuple[object, ...]]:
    """The server's databases, roles and settings."""
    databases = (
        "SELECT datname, datdba::int8, datconnlimit, datallowconn, datacl::text, shobj_description(oid, 'pg_database') "
        "FROM pg_database WHERE datname ~ '^(site|x|postgres|template)'"
    )
    others = (
        "SELECT rolname, rolsuper, rolcreatedb, rolcanlogin, rolconfig::text FROM pg_roles",
        "SELECT setdatabase::int8, setrole::int8, setconfig::text FROM pg_db_role_setting",
        "SELECT name, setting FROM pg_settings WHERE source = 'configuration file'",
        "SELECT spcname FROM pg_tablespace",
    )
    questions = (databases, *others)
    with admin_of(replace(database, database="postgres")) as session:
        return [row for question in questions for row in sorted(session.execute(question.encode()).fetchall(), key=str)]


def has_scratch(site: Site) -> bool:
    return any(scratch(site) in map(str, row) for row in server_state(site.database))


@pytest.mark.parametrize("fails", thinned([False, True]))
def test_a_scratch_database_leaves_the_server_as_it_was(site: Site, fails: bool) -> None:
    execute(site.database, "ALTER DATABASE current_database SET x.y = 1".replace("current_database", name_of(site)))
    execute(site.database, "CREATE SCHEMA other", "CREATE TABLE other.t (v int)")
    if fails:
        execute(
            site.database,
            "CREATE FUNCTION biggest() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT max(id) FROM people'",
            "CREATE INDEX late_index ON other.t ((v + biggest()))",
            "INSERT INTO other.t VALUES (1)",
        )
    made = site.backup()
    before = server_state(site.database)
    evidence = site.drill(made, DATABASE)
    assert evidence.passed is not fails, evidence.failures
    assert server_state(site.database) == before
    with admin_of(site.database) as session:
        assert session.execute("SELECT count(*) FROM people").fetchone() == (400,)


def name_of(site: Site) -> str:
    return f'"{site.catalog.database}"'


@pytest.mark.parametrize(
    ("comment", "limit"),
    thinned([(None, -1), ("the tester's own", -1), ("the tester's own", places._CONNECTION_LIMIT)]),
)
def test_a_foreign_scratch_database_is_refused_and_untouched(site: Site, comment: str | None, limit: int) -> None:
    made = site.backup()
    make_scratch(site, comment, limit)
    before = server_state(site.database)
    evidence = site.drill(made, DATABASE)
    assert "was not made by a drill" in evidence.error
    assert f'DROP DATABASE "{scratch(site)}"' in evidence.fix
    with pytest.raises(BackupError, match="was not made by a drill"):
        site.driller.remove_copies(DATABASE)
    assert server_state(site.database) == before
    with admin_of(replace(site.database, database=scratch(site))) as session:
        session.execute("SELECT * FROM precious")


@pytest.mark.parametrize(("comment", "limit"), thinned([(places.MARK, -1), (None, places._CONNECTION_LIMIT)]))
def test_a_killed_drills_database_and_sessions_are_removed(site: Site, comment: str | None, limit: int) -> None:
    """With its comment; or without it, if the drill was killed between CREATE DATABASE and COMMENT."""
    made = site.backup()
    make_scratch(site, comment, limit)
    with admin_of(replace(site.database, database=scratch(site))) as orphan:
        evidence = site.drill(made, DATABASE)
        assert evidence.passed, evidence.failures
        with pytest.raises(psycopg.OperationalError):
            orphan.execute("SELECT 1")
    assert not has_scratch(site)


def test_a_copy_is_marked_before_anything_is_in_it(site: Site) -> None:
    """So the next drill recognizes the copy whenever this one is killed."""
    made = site.backup()
    marks: list[tuple[object, ...]] = []

    def look(text: str) -> None:
        if text.startswith("restored_without_errors"):
            marks.extend(row for row in server_state(site.database) if row[0] == scratch(site))

    site.driller.drill(made, DATABASE, launched_by="a test", log=look)
    assert [(mark[2], mark[5]) for mark in marks] == [(places._CONNECTION_LIMIT, places.MARK)]


@pytest.mark.exhaustive
def test_a_prepared_transaction_in_the_copy_is_reported(bin_dir: Path, tmp_path: Path, drill_dir: Path) -> None:
    """DROP DATABASE with FORCE fails on it: only an operator can decide about the transaction."""
    with running_cluster(bin_dir, max_prepared_transactions="2") as cluster:
        for site in _site(cluster, Programs(bin_dir), tmp_path, drill_dir):
            made = site.backup()
            make_scratch(site, places.MARK)
            to = replace(site.database, database=scratch(site))
            execute(to, "BEGIN; INSERT INTO precious VALUES (1); PREPARE TRANSACTION 'mine'")
            evidence = site.drill(made, DATABASE)
            assert "prepared transaction" in evidence.error
            execute(to, "ROLLBACK PREPARED 'mine'")
            assert site.drill(made, DATABASE).passed


def test_a_scratch_database_in_use_is_refused(site: Site, tmp_path: Path) -> None:
    """Another volume's drill of a database of the same name holds the server's lock."""
    made = site.backup()
    seen: list[Evidence] = []

    def at_work(text: str) -> None:
        if text.startswith("restoring") and not seen:
            other = Site(site.database, Catalog(tmp_path / "other", name_other(site)), site.programs, site.folder)
            seen.append(other.drill(other.backup(), DATABASE))

    evidence = site.driller.drill(made, DATABASE, launched_by="a test", log=at_work)
    assert evidence.passed, evidence.failures
    assert "is in use" in seen[0].error
    assert "another drill restores into it" in seen[0].error


def name_other(site: Site) -> str:
    return site.catalog.database


@pytest.mark.exhaustive
def test_the_lock_outlasts_an_idle_timeout(site: Site, tmp_path: Path) -> None:
    """A role's idle_session_timeout would end the session that holds the lock, and let another drill in."""
    role = f"idle{free_port()}"
    execute(site.database, f"CREATE ROLE {role} LOGIN SUPERUSER", f"ALTER ROLE {role} SET idle_session_timeout = 400")
    made = site.backup()
    target = replace(site.database, user=role)
    holders: list[object] = []

    def look(text: str) -> None:
        if text.startswith("negative_control"):
            with admin_of(site.database) as session:
                holders.extend(session.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").fetchall())

    try:
        driller = replace(site.driller, target=target, target_is_named=True)
        evidence = driller.drill(made, DATABASE, launched_by="a test", log=look)
        assert evidence.passed, evidence.failures
        assert len(holders) == 1
    finally:
        execute(site.database, f"DROP ROLE {role}")


@pytest.mark.parametrize("host", thinned(["localhost", "socket", "127.0.0.1"]))
def test_the_source_is_refused_under_any_host_name(server: PortCluster, tmp_path: Path, host: str) -> None:
    """A dump of x_restore_test, drilled with POSTGRES_DB=x: the copy would be the source."""
    base = f"x{os.getpid()}_{free_port()}"
    name = places.scratch_name(base)
    with admin(server) as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        # Refused even with the mark of a drill.
        mark = sql.SQL("COMMENT ON DATABASE {} IS {}")
        session.execute(mark.format(sql.Identifier(name), sql.Literal(places.MARK)))
    source = server.connection(name)
    try:
        execute(source, SCHEMA)
        programs = Programs(server.bin_dir)
        theirs = Site(source, Catalog(tmp_path / "theirs", name), programs, tmp_path)
        made = theirs.backup()
        by_host = replace(source, host=host, password=SecretStr(PASSWORD)) if host != "socket" else source
        mine = Site(replace(by_host, database=base), Catalog(tmp_path / "mine", base), programs, tmp_path)
        mine.catalog.prepare()
        before = server_state(source)
        for path in (made.path, bare_copy(made, made.path.parent), bare_copy(made, tmp_path, "renamed.dump")):
            evidence = mine.drill(mine.driller.find(str(path)), DATABASE)
            assert "is the source of this backup" in evidence.error, evidence.error
            assert "RESTORE_POSTGRES_HOST" in evidence.fix
        assert server_state(source) == before
        with admin_of(source) as session:
            assert session.execute("SELECT count(*) FROM people").fetchone() == (400,)
    finally:
        with admin(server) as session:
            session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def bare_copy(made: Backup, folder: Path, filename: str = "") -> Path:
    """Copy the archive without its sidecars, so that its cluster is unknown."""
    name = BackupName(made.name.database, Tier.DAILY, made.started_at - timedelta(days=3))
    path = folder / (filename or name.filename)
    shutil.copy2(made.path, path)
    age(replace(made, path=path))
    return path


def test_a_role_without_rights_is_told_what_it_lacks(site: Site) -> None:
    role = f"poor{free_port()}"
    execute(site.database, f"CREATE ROLE {role} LOGIN PASSWORD 'right'")
    made = site.backup()
    before = server_state(site.database)
    try:
        restoring = Variables(user="RESTORE_POSTGRES_USER", password="RESTORE_POSTGRES_PASSWORD")
        target = replace(site.database, user=role, host="127.0.0.1", password=SecretStr("right"), variables=restoring)
        evidence = site.drill(made, DATABASE, replace(site.driller, target=target, target_is_named=True))
        assert "permission denied to create database" in evidence.error
        assert "CREATEDB" in evidence.fix
        wrong = replace(target, password=SecretStr("wr0ng-secret"))
        evidence = site.drill(made, DATABASE, replace(site.driller, target=wrong, target_is_named=True))
        assert "password" in evidence.error
        assert f"compare RESTORE_POSTGRES_USER={role} and RESTORE_POSTGRES_PASSWORD with" in evidence.fix
        written = "".join(path.read_text() for path in site.driller.drills.path.iterdir() if path.is_file())
        assert "wr0ng-secret" not in written
        assert server_state(site.database) == before
        execute(site.database, f"ALTER ROLE {role} CREATEDB")
        evidence = site.drill(made, DATABASE, replace(site.driller, target=target, target_is_named=True))
        assert evidence.passed, evidence.failures
        assert not has_scratch(site)
    finally:
        execute(site.database, f"DROP ROLE {role}")


# --------------------------------------------------------------------------------------------- hostile environments

#: The account that throwaway servers run under, and an account that does not exist.
ACCOUNT = account_id()
STRANGER = 4242
#: An ordinary user.
ORDINARY_USER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@needs_root
@pytest.mark.exhaustive
def test_folders_and_links_of_other_users_are_left_alone(site: Site, tmp_path: Path) -> None:
    """In a DRILL_DIR that all users may write, such as /tmp."""
    made = site.backup()
    target = tmp_path / "target"
    (target / "data").mkdir(parents=True)
    (target / "keep").write_text("me")
    (site.folder / "ovia-drill-link").symlink_to(target)
    theirs = site.folder / "ovia-drill-theirs"
    (theirs / "data").mkdir(parents=True)
    (theirs / "keep").write_text("me")
    (site.folder / "ovia-drill-file").write_text("me")
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, STRANGER, STRANGER)
    before = sorted(site.folder.rglob("*"))
    try:
        assert site.drill(made).passed
        assert sorted(path for path in site.folder.rglob("*") if path.name[0] != ".") == before
        assert (target / "keep").read_text() == "me"
    finally:
        for path in site.folder.glob("ovia-drill-*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.mark.exhaustive
@pytest.mark.parametrize("who", thinned(["another server", "a process of the server's account"]))
def test_a_stale_postmaster_pid_ends_no_process(site: Site, server: PortCluster, who: str) -> None:
    """After a crash another process may have the process id, and pg_ctl would send it SIGQUIT."""
    made = site.backup()
    left = site.folder / "ovia-drill-left"
    (left / "data").mkdir(parents=True)
    (left / "data" / "PG_VERSION").write_text("16\n")
    with subprocess.Popen(["sleep", "60"], user=ACCOUNT if os.geteuid() == 0 else None) as sleeper:
        try:
            pid = sleeper.pid if who.startswith("a process") else server.pid
            lines = (server.data / "postmaster.pid").read_text().splitlines()
            (left / "data" / "postmaster.pid").write_text("\n".join([str(pid), *lines[1:]]) + "\n")
            for path in (left, *left.rglob("*")):
                os.chown(path, ACCOUNT, -1)
            assert site.drill(made).passed
            assert sleeper.poll() is None
            assert server.running
        finally:
            sleeper.kill()
    assert not left.exists()


def test_only_the_programs_of_a_killed_drill_are_ended(site: Site) -> None:
    """initdb and pg_ctl may outlive the drill before a postmaster.pid exists. A shell in the folder is left alone."""
    made = site.backup()
    left = site.folder / "ovia-drill-left"
    left.mkdir()
    os.chown(left, ACCOUNT, -1)
    for name in ("initdb", "sleep"):
        shutil.copy2("/bin/sleep", left / name)
        (left / name).chmod(0o755)
    user = ACCOUNT if os.geteuid() == 0 else None
    with (
        subprocess.Popen([left / "initdb", "60"], cwd=left, user=user) as orphan,
        subprocess.Popen([left / "sleep", "60"], cwd=left, user=user) as person,
    ):
        try:
            assert site.drill(made).passed
            assert orphan.poll() == -signal.SIGKILL
            assert person.poll() is None
        finally:
            orphan.kill()
            person.kill()
    assert not left.exists()


def test_hostile_globals_run_nothing_but_roles(site: Site, tmp_path: Path) -> None:
    """The file has no checksum: only statements about roles are run, and the drill's own role is not changed."""
    made = site.backup()
    witness = Path("/tmp") / f"ovia-hostile-{os.getpid()}-{free_port()}"
    run = f"COPY (SELECT 1) TO PROGRAM 'touch {witness}'"
    hostile = f"""
\\! touch {witness}
{run};
CREATE ROLE innocent; {run};
SET work_mem = '4MB'; {run};
DO $$ BEGIN EXECUTE $x$ {run} $x$; END $$;
CREATE TABLESPACE hostile LOCATION '/tmp';
DROP TABLESPACE hostile;
DROP ROLE postgres;
ALTER ROLE postgres NOLOGIN;
ALTER ROLE "postgres" PASSWORD 'mine';
ALTER ROLE POSTGRES NOLOGIN;
ALTER ROLE CURRENT_USER NOLOGIN;
ALTER ROLE ALL SET default_transaction_read_only = on;
ALTER ROLE U&"\\0070ostgres" NOLOGIN;
CREATE ROLE friend;
SET SESSION AUTHORIZATION friend;
ALTER SYSTEM SET archive_command = 'touch {witness}';
CREATE ROLE fr\xff;
"""
    made = with_roles(made, hostile.encode("latin-1"))
    told: list[str] = []
    evidence = site.driller.drill(made, THROWAWAY, launched_by="a test", log=told.append)
    assert not witness.exists()
    assert evidence.passed, evidence.failures
    assert any("left out" in text for text in told)


def test_the_own_check_sees_the_copy_and_none_of_our_settings(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "s3cret-of-production")
    monkeypatch.setenv("BACKUP_NOTIFY_URLS", "s3cret-channel")
    made = site.backup()
    seen = tmp_path / "seen"
    own = f"env > {seen}; psql -Atc 'SELECT count(*) FROM people' >> {seen}; echo s3cret-on-stdout; echo s3cret >&2"
    own = f"PATH={site.programs.bin_dir}:$PATH; {own}"
    evidence = site.drill(made, DATABASE, replace(site.driller, own_check=own))
    assert evidence.passed, evidence.failures
    text = seen.read_text()
    assert "DATABASE_URL=postgresql://" in text
    assert text.splitlines()[-1] == "400"
    assert "s3cret" not in text
    assert "POSTGRES_" not in text
    written = "".join(path.read_text() for path in site.driller.drills.path.iterdir() if path.is_file())
    assert "s3cret" not in written


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("own", "code"),
    thinned([("exit 7", "7"), ("broken.sql", "3"), ("kill -9 $$", "-9"), ("no-such-program-at-all", "127")]),
)
def test_a_failed_own_check_fails_the_drill(site: Site, tmp_path: Path, own: str, code: str) -> None:
    made = site.backup()
    if own.endswith(".sql"):
        own = str(tmp_path / own)
        Path(own).write_text("SELECT 1;\nSELECT * FROM nowhere;\n")
    told: list[str] = []
    driller = replace(site.driller, own_check=own)
    evidence = driller.drill(made, DATABASE, launched_by="a test", log=told.append)
    assert failed_checks(evidence) == [Check.OWN_CHECK]
    assert f"code {code};" in evidence.failures[0]
    assert not own.endswith(".sql") or any('relation "nowhere" does not exist' in text for text in told)
    assert not has_scratch(site)


@pytest.mark.exhaustive
def test_an_own_check_may_ruin_the_copy_and_leave_processes(site: Site, tmp_path: Path) -> None:
    """The own check runs last. Processes that it leaves neither delay the drill nor outlive it."""
    made = site.backup()
    pid = tmp_path / "pid"
    own = f"{site.programs.path('psql')} -qc 'DROP TABLE links'; sleep 600 & echo $! > {pid}"
    evidence = site.drill(made, DATABASE, replace(site.driller, own_check=own))
    assert evidence.passed, evidence.failures
    assert line(evidence, Check.TABLES)[0] is Result.PASSED
    until(lambda: not state_of(int(pid.read_text())))


def test_an_own_check_that_hangs_is_ended_with_the_drill(site: Site, tmp_path: Path) -> None:
    """So are its child processes, which a shell does not end."""
    made = site.backup()
    pid, answer = tmp_path / "pid", tmp_path / "answer"
    own = f"sleep 600 & echo $! > {pid}; wait; true"
    driller = replace(site.driller, own_check=own)

    def drill() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            driller.drill(made, DATABASE, launched_by="a test", log=quiet)
        except KeyboardInterrupt:
            answer.write_text("interrupted")

    child = os.fork()
    if child == 0:
        drill()
        os._exit(0)
    until(lambda: pid.exists() and pid.read_text().strip(), on_failure=lambda: os.kill(child, signal.SIGKILL))
    os.kill(child, signal.SIGINT)
    until(answer.exists, 20, on_failure=lambda: os.kill(child, signal.SIGKILL))
    os.waitpid(child, 0)
    until(lambda: not state_of(int(pid.read_text())))
    assert not has_scratch(site)
    assert site.evidence() == []


# --------------------------------------------------------------------------------------------- the evidence's folder


def test_evidence_is_never_rewritten(site: Site) -> None:
    """Two drills within a second, and one whose name is taken."""
    made = site.backup()
    made.path.write_bytes(b"no archive any more")
    first = site.drill(made)
    written = {path.name: path.read_bytes() for path in site.driller.drills.path.glob("2*")}
    second = site.drill(made)
    assert first.filename != second.filename
    for name, content in written.items():
        assert (site.driller.drills.path / name).read_bytes() == content
    assert len(site.evidence()) == 2


@pytest.mark.exhaustive
def test_strange_files_in_the_evidence_folder_are_skipped(site: Site) -> None:
    made = site.backup()
    folder = site.driller.drills.path
    first = site.drill(made, DATABASE)
    newer = (folder / f"{first.filename}.json").read_text().replace('"version": 1', '"version": 2')
    (folder / "2099-01-01_000000_x.json").write_text(newer)
    (folder / "2099-01-02_000000_x.json").write_text("{")
    (folder / "2099-01-03_000000_x.json").write_bytes(b"\xff\xfe\0")
    (folder / "2099-01-04_000000_x.json").write_text("[" * 100_000)
    (folder / "2099-01-05_000000_x.json").mkdir()
    (folder / "2099-01-06_000000_x.json").symlink_to("/nowhere")
    (folder / ".2099.json.tmp").write_text("half")
    (folder / ".a-folder.tmp").mkdir()
    (folder / "notes of mine.md").write_text("mine")
    assert site.evidence() == [first]
    second = site.drill(made, DATABASE)
    assert second.passed
    assert site.evidence() == [second, first]
    assert not (folder / ".2099.json.tmp").exists()
    assert (folder / "notes of mine.md").read_text() == "mine"


def test_a_file_in_place_of_the_evidence_folder_is_named(site: Site) -> None:
    made = site.backup()
    site.driller.drills.path.write_text("")
    with pytest.raises(BackupError, match="drills"):
        site.drill(made)


# --------------------------------------------------------------------------------------------- users


@pytest.mark.exhaustive
@needs_root
def test_an_ordinary_user_can_drill(site: Site, tmp_path: Path) -> None:
    """The user owns the volume and the DRILL_DIR, and the server runs under the user's account."""
    made = site.backup()
    folder = Path("/tmp") / f"ovia-du-{os.getpid()}-{free_port()}"
    folder.mkdir()
    volume = folder / "backups"
    shutil.copytree(site.catalog.root, volume)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, ORDINARY_USER, ORDINARY_USER)
    (folder / "drills").mkdir()
    os.chown(folder / "drills", ORDINARY_USER, ORDINARY_USER)
    try:
        mine = Site(site.database, Catalog(volume, site.catalog.database), site.programs, folder / "drills")
        backup = mine.driller.find(str(made))
        error = raised_as_nobody(lambda: _passes(mine, backup))
        assert error is None, error
        assert leftovers(folder / "drills") == []
        assert mine.evidence()[0].passed
        assert {path.stat().st_uid for path in (volume / "drills").iterdir()} == {ORDINARY_USER}
    finally:
        shutil.rmtree(folder)


def _passes(site: Site, backup: Backup) -> None:
    os.environ["HOME"] = str(site.folder)
    evidence = site.drill(backup)
    assert evidence.passed, evidence.failures


# --------------------------------------------------------------------------------------------- locks and retention

KEEP_ONE = Policy(keep={Tier.DAILY: 1, Tier.WEEKLY: 1}, weekly_day=Weekday.SUNDAY, timezone=ZoneInfo("UTC"))


def during(site: Site, backup: Backup, action: Callable[[], object], choice: Choice = DATABASE) -> Evidence:
    """Drill a backup, and run an action while it is being restored."""
    done: list[object] = []

    def log(text: str) -> None:
        if text.startswith("restoring") and not done:
            done.append(True)
            done.append(action())

    evidence = site.driller.drill(site.catalog.refresh(backup), choice, launched_by="a test", log=log)
    assert len(done) == 2
    return evidence


def dated(backup: Backup, days: float) -> Backup:
    """The same backup, dated a number of days earlier."""
    return redated(backup, backup.started_at - timedelta(days=days))


@pytest.mark.exhaustive
def test_a_second_drill_is_refused_and_names_the_first(site: Site) -> None:
    made = site.backup()

    def second() -> None:
        with pytest.raises(LockHeldError, match=f"the restore drill of {made}"):
            site.drill(made, DATABASE)

    assert during(site, made, second).passed
    assert len(site.evidence()) == 1


def test_pruning_leaves_a_backup_that_is_being_drilled(site: Site) -> None:
    older = dated(site.backup(), 3)
    newer = site.backup()

    def prune() -> None:
        pruned = promote_and_prune.prune(site.catalog, KEEP_ONE, datetime.now(UTC))
        assert pruned.in_use == (f"daily/{older}",)
        assert pruned.removed == ()

    assert during(site, older, prune).passed
    assert site.catalog.refresh(older).drilled
    # It is the newest proven backup, so it is removed only after another one is proven.
    assert promote_and_prune.prune(site.catalog, KEEP_ONE, datetime.now(UTC)).removed == ()
    assert site.drill(newer, DATABASE).passed
    assert promote_and_prune.prune(site.catalog, KEEP_ONE, datetime.now(UTC)).removed == (f"daily/{older}",)
    assert not older.path.exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("drilled", thinned([Tier.DAILY, Tier.WEEKLY]))
def test_both_hard_links_stay_while_one_is_drilled(site: Site, drilled: Tier) -> None:
    daily = dated(site.backup(), 3)
    weekly = promote_and_prune.promote(site.catalog, daily, KEEP_ONE, datetime.now(UTC)).weekly
    assert weekly is not None
    assert weekly.path.samefile(daily.path)
    site.backup()

    def remove_both() -> None:
        for backup in (daily, weekly):
            with pytest.raises(LockHeldError, match="is being restored by"):
                remove_backup(site.catalog, backup)
        assert f"daily/{daily}" in promote_and_prune.prune(site.catalog, KEEP_ONE, datetime.now(UTC)).in_use

    during(site, daily if drilled is Tier.DAILY else weekly, remove_both)
    assert remove_backup(site.catalog, daily)
    assert remove_backup(site.catalog, weekly)


@pytest.mark.parametrize("tier", thinned([Tier.DAILY, Tier.WEEKLY]))
def test_a_drill_of_a_backup_being_pruned_reports_it_gone(site: Site, tier: Tier) -> None:
    made = site.backup()
    if tier is Tier.WEEKLY:
        made = promote_backup(site.catalog, made, Tier.WEEKLY, datetime.now(UTC))
    errors: list[BaseException] = []

    def drill() -> None:
        try:
            site.drill(made)
        except BackupError as error:
            errors.append(error)

    thread = Thread(target=drill)
    with removing(made.path):
        thread.start()
        until(lambda: (site.driller.drills.path / ".lock").exists())
        made.path.unlink()
    thread.join()
    assert [type(error) for error in errors] == [BackupNotFoundError]
    assert "is gone" in str(errors[0])
    assert site.evidence() == []


def test_dump_verification_and_promotion_go_on_during_a_drill(site: Site) -> None:
    """A drill holds the volume's lock only for moments, so these commands do not wait for it."""
    made = site.backup()

    def daily_run() -> None:
        newer = site.backup()
        promote_and_prune.promote(site.catalog, newer, KEEP_ONE, datetime.now(UTC))
        assert promote_and_prune.promote(site.catalog, made, KEEP_ONE, datetime.now(UTC)).weekly is None

    assert during(site, made, daily_run).passed
    assert site.catalog.refresh(made).drilled


@pytest.mark.exhaustive
def test_a_drill_waits_for_no_dump(site: Site) -> None:
    made = site.backup()
    with site.catalog.lock("a dump that takes hours", datetime.now(UTC)):
        assert site.drill(made, DATABASE).passed
        assert site.catalog.refresh(made).drilled


@pytest.mark.exhaustive
def test_a_sweep_keeps_a_sidecar_that_is_being_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site.backup()
    rename, swept = os.rename, []

    def sweeping(source: Path, target: Path) -> None:
        if str(target).endswith(DRILLED.suffix):
            swept.append(sweep_abandoned(site.catalog))
        rename(source, target)

    monkeypatch.setattr(os, "rename", sweeping)
    assert site.drill(made, DATABASE).passed
    assert swept == [[]]
    assert site.catalog.refresh(made).drilled


@pytest.mark.exhaustive
def test_evidence_of_a_drill_that_was_killed_later_counts(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site.backup()
    rename = os.rename

    def dying(source: Path, target: Path) -> None:
        if str(target).endswith(DRILLED.suffix):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    def killed() -> None:
        monkeypatch.setattr(os, "rename", dying)  # only in the child process
        site.drill(made, DATABASE)

    assert in_a_child(killed) == -signal.SIGKILL
    assert not made.sidecar(DRILLED).exists()
    assert list(site.driller.drills.path.glob(".under-way-*"))
    standing = site.driller.drills.standing(timedelta(days=35), datetime.now(UTC))
    assert standing.last is not None
    assert standing.last.passed
    assert standing.trouble is None

    # The first drill's evidence does not count for the next drill of the same backup.
    def killed_before() -> None:
        monkeypatch.setattr(Proof, "analyze", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        site.drill(made, DATABASE)

    assert in_a_child(killed_before) == -signal.SIGKILL
    trouble = site.driller.drills.standing(timedelta(days=35), datetime.now(UTC)).trouble
    assert f"the restore drill of {made} did not end" in str(trouble)


@pytest.mark.exhaustive
def test_the_newest_proven_backup_is_kept(site: Site) -> None:
    """A real drill, then four months of dumps without a drill, pruned each week."""
    old = dated(site.backup(), 120)
    assert site.drill(old, DATABASE).passed
    for day in range(119, -1, -7):
        later = redated(old, old.started_at + timedelta(days=120 - day), keep=True)
        later.sidecar(DRILLED).unlink()
        now = later.started_at + timedelta(hours=1)
        promote_and_prune.prune(site.catalog, KEEP_ONE, now)
        kept = [backup.path.name for backup in site.catalog.backups(Tier.DAILY)]
        assert kept == [later.path.name, old.path.name]
    assert site.drill(site.driller.find("latest"), DATABASE).passed
    promote_and_prune.prune(site.catalog, KEEP_ONE, datetime.now(UTC))
    assert not old.path.exists()


# --------------------------------------------------------------------------- a disk that fills up after the restore


#: A function that fills the server's disk.
FILL = """
    CREATE FUNCTION public.fill() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE format('COPY (SELECT repeat(''x'', 1000000) FROM generate_series(1, 1000)) TO %L',
                       current_setting('data_directory') || '/fill');
    END $$
"""
FUNCTION = """
    CREATE OR REPLACE FUNCTION public.one(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
        IF {when} THEN PERFORM public.fill(); END IF;
        RETURN 1;
    END $$
"""


@needs_root
@pytest.mark.parametrize(
    ("uses", "when"),
    thinned(
        [
            ("CREATE MATERIALIZED VIEW seen AS SELECT public.one(id) FROM people", "true"),
            # Fill the disk only during ANALYZE, not while the index is built.
            ("CREATE INDEX by_one ON people (public.one(id))", "current_query() LIKE 'ANALYZE%'"),
        ]
    ),
    ids=["refresh", "analyze"],
)
def test_a_full_disk_after_the_restore_is_reported(site: Site, uses: str, when: str) -> None:
    """The drill fails with advice about the disk, not with a finding about a view or a table."""
    execute(site.database, FILL, FUNCTION.format(when="false"))
    execute(site.database, uses)
    execute(site.database, FUNCTION.format(when=when))
    with tmpfs(site.folder, 320 * MEGABYTE):
        site.folder.chmod(0o711)
        evidence = site.drill(site.backup())
    assert not evidence.passed
    # PostgreSQL reports it, or the launcher, which ends a copy that leaves too little room.
    assert re.search("No space left on device|of disk free, and must leave", evidence.error), evidence.error
    assert f"df -h {site.folder}" in evidence.fix
    assert not any("refreshed" in text for text in evidence.oddities)
