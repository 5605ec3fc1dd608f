"""Restores into a database that goes live, and salvage of damaged backups."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import (
    ConnectionLostError,
    CopyError,
    ExtensionMissingError,
    RestoreError,
    ServerUnreachableError,
)
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.proof import pg_restore
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster.proof.target import MARK, live_copy
from ovia_backup_dagster.restoration.swap import database_state
from ovia_backup_dagster_tests.conftest import NewDatabase, PortCluster, admin, execute, free_port, quiet
from ovia_backup_dagster_tests.support.drilling import Drilling, database, one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.proofs import going_live, lines_of, proof_of

PUBLISHED = (
    "CREATE PUBLICATION everyone FOR TABLE people",
    "COMMENT ON PUBLICATION everyone IS 'for the reports'",
    "ALTER PUBLICATION everyone OWNER TO ovia",
)
SUBSCRIBED = ("CREATE SUBSCRIPTION sub CONNECTION 'host=nowhere password=s3cret' PUBLICATION p WITH (connect = false)",)


# ---- to go live


def test_a_database_that_goes_live_is_given_everything(
    full_server: PortCluster, tmp_path: Path, new_full_database: NewDatabase, full_bin_dir: Path
) -> None:
    source = new_full_database()
    execute(source, *PUBLISHED, "GRANT SELECT ON people TO ovia_readonly")
    drilling = Drilling(source, full_bin_dir, tmp_path)
    proof = proof_of(drilling, drilling.dump())
    with going_live(source, "live_copy") as copy:
        proof.restore(copy)
        proof.prove(copy)
        proof.analyze(copy)

        assert {check for check, line in lines_of(proof).items() if line.result is Result.FAILED} == set()
        assert lines_of(proof)[Check.CONTENTS].result is Result.PASSED, lines_of(proof)[Check.CONTENTS].text
        assert one(copy.connection, "SELECT count(*) FROM pg_publication_tables") == 1
        assert one(copy.connection, "SELECT obj_description(oid) FROM pg_publication") == "for the reports"
        assert one(copy.connection, "SELECT tableowner FROM pg_tables WHERE tablename = 'people'") == "ovia"
        assert one(copy.connection, "SELECT has_table_privilege('ovia_readonly', 'people', 'SELECT')") is True
        about = "SELECT datconnlimit FROM pg_database WHERE datname = current_database()"
        copy.release()  # until then, its connection limit marks it as ours
        assert one(copy.connection, about) == -1
        mark = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
        assert one(copy.connection, mark) != MARK
        assert one(copy.connection, "SELECT count(*) FROM pg_stats WHERE tablename = 'people'") != 0


@pytest.mark.parametrize(
    ("statement", "says"),
    thinned(
        [
            ("DROP PUBLICATION everyone", "missing in the copy: PUBLICATION - everyone ovia"),
            (
                "ALTER PUBLICATION everyone DROP TABLE people",
                "missing in the copy: PUBLICATION TABLE public everyone people",
            ),
            ("CREATE PUBLICATION another", "only in the copy: PUBLICATION - another"),
            ("ALTER TABLE people OWNER TO ovia_readonly", "missing in the copy: TABLE public people ovia"),
            ("REVOKE SELECT ON people FROM ovia_readonly", "people"),
        ]
    ),
)
def test_a_publication_or_an_owner_that_differs_is_found(
    statement: str, says: str, tmp_path: Path, new_full_database: NewDatabase, full_bin_dir: Path
) -> None:
    source = new_full_database()
    execute(source, *PUBLISHED, "GRANT SELECT ON people TO ovia_readonly")
    drilling = Drilling(source, full_bin_dir, tmp_path)
    proof = proof_of(drilling, drilling.dump())
    with going_live(source, "live_copy") as copy:
        proof.restore(copy)
        execute(copy.connection, statement)
        proof.prove(copy)

    contents = lines_of(proof)[Check.CONTENTS]
    assert contents.result is Result.FAILED
    assert says in contents.text


def test_subscriptions_are_left_out_with_a_note(
    tmp_path: Path, new_full_database: NewDatabase, full_bin_dir: Path
) -> None:
    source = new_full_database()
    execute(source, *SUBSCRIBED)
    try:
        drilling = Drilling(source, full_bin_dir, tmp_path)
        proof = proof_of(drilling, drilling.dump())
        with going_live(source, "live_copy") as copy:
            proof.restore(copy)
            proof.prove(copy)

            subscriptions = "SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
            assert one(copy.connection, subscriptions + "WHERE d.datname = current_database()") == 0
    finally:
        execute(source, "ALTER SUBSCRIPTION sub SET (slot_name = NONE)", "DROP SUBSCRIPTION sub")

    contents = lines_of(proof)[Check.CONTENTS]
    assert contents.result is Result.ODD
    assert contents.text.startswith("1 entries of subscriptions left out")


def test_a_tablespace_is_left_out_with_a_note(tmp_path: Path, server: PortCluster, bin_dir: Path) -> None:
    with admin(server) as session:
        session.execute("SET allow_in_place_tablespaces = on")
        session.execute("CREATE TABLESPACE \"fast one\" LOCATION ''")
        try:
            with database(server, "spaced") as source:
                execute(source, 'CREATE TABLE t (a int PRIMARY KEY) TABLESPACE "fast one"')
                drilling = Drilling(source, bin_dir, tmp_path)
                proof = proof_of(drilling, drilling.dump())
                with going_live(source, "live_copy") as copy:
                    proof.restore(copy)
                    proof.prove(copy)
        finally:
            session.execute('DROP TABLESPACE "fast one"')

    contents = lines_of(proof)[Check.CONTENTS]
    assert contents.result is Result.ODD
    assert contents.text == 'what the source keeps in tablespace "fast one" is in the database\'s own'


def test_a_restore_to_go_live_makes_no_roles(tmp_path: Path, server: PortCluster, bin_dir: Path) -> None:
    with admin(server) as session:
        session.execute("CREATE ROLE passing_by")
    with database(server, "owned") as source:
        execute(source, "CREATE TABLE t AS SELECT 1 AS a", "ALTER TABLE t OWNER TO passing_by")
        drilling = Drilling(source, bin_dir, tmp_path)
        proof = proof_of(drilling, drilling.dump())
        execute(source, "DROP OWNED BY passing_by", "DROP ROLE passing_by")
        with going_live(source, "live_copy") as copy:
            with pytest.raises(RestoreError, match="passing_by"):
                proof.restore(copy)

            assert one(source, "SELECT count(*) FROM pg_roles WHERE rolname = 'passing_by'") == 0


def test_a_live_database_refuses_another_locale(
    tmp_path: Path, server: PortCluster, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = archives.database_text

    def foreign(*arguments: object) -> bytes:
        return said(*arguments).replace(b"LOCALE = 'C'", b"LOCALE = 'tlh_QO.UTF-8'")  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "database_text", foreign)
    with database(server, "located", "LOCALE 'C'") as source:
        execute(source, "CREATE TABLE t (a int)")
        drilling = Drilling(source, bin_dir, tmp_path)
        proof = proof_of(drilling, drilling.dump())
        with going_live(source, "live_copy") as copy:
            with pytest.raises(CopyError, match="tlh_QO") as caught:
                proof.restore(copy)

            assert "localedef" in caught.value.fix
            assert one(source, "SELECT count(*) FROM pg_database WHERE datname = 'live_copy'") == 0


def test_a_missing_extension_is_named_with_its_fix(
    server: PortCluster, bin_dir: Path, tmp_path: Path, full_bin_dir: Path, new_full_database: NewDatabase
) -> None:
    source = new_full_database()
    execute(source, "CREATE EXTENSION hstore")
    drilling = Drilling(source, full_bin_dir, tmp_path)
    proof = proof_of(drilling, drilling.dump())
    with going_live(server.connection(), "live_copy") as copy:
        with pytest.raises(ExtensionMissingError, match="hstore") as caught:
            proof.restore(copy)

        assert caught.value.fix == "install its package on that server; then try again"


def test_dropping_can_be_repeated_and_ends_sessions(server: PortCluster) -> None:
    copy = live_copy(server.connection(), "live_copy", "a place")
    copy.drop()
    with admin(server) as session:
        session.execute("CREATE DATABASE live_copy")
    with pytest.raises(CopyError, match="is not dropped"):
        copy.drop()  # it does not have our mark
    oid = database_state(server.connection(), "live_copy").oid
    with admin(server, "live_copy") as other:
        copy.drop(oid)
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")
    copy.drop()

    assert one(server.connection(), "SELECT count(*) FROM pg_database WHERE datname = 'live_copy'") == 0


def test_an_existing_database_is_not_restored_into(tmp_path: Path, new_database: NewDatabase, bin_dir: Path) -> None:
    source, other = new_database(), new_database()
    drilling = Drilling(source, bin_dir, tmp_path)
    proof = proof_of(drilling, drilling.dump())

    with pytest.raises(CopyError, match="a place exists already"):
        proof.restore(live_copy(source, other.database, "a place"))

    assert one(other, "SELECT count(*) FROM people") != 0


# ---- progress


#: A table and its index, each of which takes a second to restore.
SLOW = (
    "CREATE FUNCTION slowly(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
    'CREATE TABLE "Odd one" (a int CHECK (slowly(a) = a))',
    'CREATE INDEX ON "Odd one" (slowly(a))',
    'INSERT INTO "Odd one" SELECT generate_series(1, 40)',
    "CREATE OR REPLACE FUNCTION slowly(int) RETURNS int LANGUAGE sql AS 'SELECT $1 FROM pg_sleep(0.03)'",
    "ALTER FUNCTION slowly IMMUTABLE",
)


def test_progress_has_bytes_tables_and_time_left(
    tmp_path: Path, server: PortCluster, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_restore, "_PROGRESS_SECONDS", 0.05)
    told: list[str] = []
    with database(server, "slow") as source:
        execute(source, *SLOW)
        drilling = Drilling(source, bin_dir, tmp_path)
        proof = proof_of(drilling, drilling.dump(), told)
        with going_live(source, "live_copy") as copy:
            proof.restore(copy)

    assert any(line.endswith('; loading public."Odd one"') for line in told)
    assert any(line.endswith('; indexing public."Odd one"') for line in told)
    assert any(re.search(r"^restored \d+\.\d MB of about \d+\.\d MB, about \d+ s left", line) for line in told), told


# ---- salvage of damaged backups


LARGE = "CREATE TABLE large AS SELECT i, sha256(i::text::bytea) AS v FROM generate_series(1, 40000) i"


def newest(drilling: Drilling) -> Backup:
    return next(iter(drilling.catalog.newest_first()))


@contextmanager
def damaged(how: Callable[[bytes], bytes], server: PortCluster, bin_dir: Path, folder: Path) -> Iterator[Drilling]:
    """A backup of three tables, damaged in the second, which is nearly the whole file."""
    with database(server, "torn") as source:
        execute(
            source,
            "CREATE TABLE first AS SELECT generate_series(1, 5) AS a",
            LARGE,
            "CREATE TABLE more AS SELECT generate_series(1, 7) AS a",
            "ALTER TABLE more ADD PRIMARY KEY (a)",
            "CREATE SEQUENCE numbers START 3",
            "SELECT nextval('numbers')",
            "SELECT lo_from_bytea(0, 'large object')",
        )
        drilling = Drilling(source, bin_dir, folder)
        path = drilling.dump().path
        whole = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(how(whole))
        yield drilling


def _altered(whole: bytes) -> bytes:
    middle = len(whole) // 2
    return whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 64]) + whole[middle + 64 :]


def _cut(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("jobs", thinned([2, 4]))
def test_a_damaged_table_leaves_the_others_intact(
    jobs: int, server: PortCluster, bin_dir: Path, tmp_path: Path
) -> None:
    with damaged(_altered, server, bin_dir, tmp_path) as drilling:
        proof = proof_of(drilling, newest(drilling), jobs=jobs)
        assert proof.contents.witness is None
        with going_live(drilling.source, "what_is_left") as copy:
            proof.restore(copy, despite_errors=True)
            proof.take_stock(copy)

            assert one(copy.connection, "SELECT last_value FROM numbers") == 3
            assert one(copy.connection, "SELECT count(*) FROM pg_largeobject") == 1
            assert one(copy.connection, "SELECT count(*) FROM pg_index WHERE indrelid = 'more'::regclass") == 1

    assert {table.name: table.rows for table in proof.tables} == {
        "public.first": 5,
        "public.large": 0,
        "public.more": 7,
    }
    (lost,) = proof.lost
    assert re.match(r"TABLE DATA public large postgres: could not (?:un|de)compress data", lost)
    assert lines_of(proof)[Check.RESTORED].result is Result.FAILED
    assert lines_of(proof)[Check.RESTORED].text == lost


def test_the_beginning_of_a_truncated_archive_is_restored(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    with damaged(_cut, server, bin_dir, tmp_path) as drilling:
        proof = proof_of(drilling, newest(drilling))
        with going_live(drilling.source, "what_is_left") as copy:
            proof.restore(copy, despite_errors=True)
            proof.take_stock(copy)

    rows = {table.name: table.rows for table in proof.tables}
    assert rows == {"public.first": 5, "public.large": 0, "public.more": 0}
    assert [line.partition(": ")[0] for line in proof.lost] == [
        "TABLE DATA public large postgres",
        "TABLE DATA public more postgres",
        "BLOBS - BLOBS ",
    ]


@pytest.mark.exhaustive
def test_errors_are_shown_once_without_values_and_limited(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    with database(server, "torn") as source:
        execute(
            source,
            "CREATE FUNCTION fine() RETURNS bool LANGUAGE sql AS $$ SELECT true $$",
            *(f"CREATE TABLE t{i} (a int CONSTRAINT c{i} CHECK (fine()), b text DEFAULT 's3cret')" for i in range(150)),
            *(f"INSERT INTO t{i} VALUES ({i})" for i in range(150)),
            "CREATE OR REPLACE FUNCTION fine() RETURNS bool LANGUAGE sql AS $$ SELECT false $$",
        )
        drilling = Drilling(source, bin_dir, tmp_path)
        proof = proof_of(drilling, drilling.dump())
        with going_live(source, "what_is_left") as copy:
            proof.restore(copy, despite_errors=True)

    assert len(proof.lost) == 101
    assert proof.lost[-1] == "and 50 more errors"
    assert len(set(proof.lost)) == 101
    assert all(
        re.match(r"TABLE DATA public t\d+ postgres: .*violates check constraint", line) for line in proof.lost[:-1]
    )
    assert "s3cret" not in str(proof.lost)


def test_a_statement_that_fails_is_shown_without_its_literals(
    server: PortCluster, bin_dir: Path, tmp_path: Path
) -> None:
    with admin(server) as session:
        session.execute("CREATE ROLE passing_by")
    with database(server, "torn") as source:
        execute(
            source,
            "CREATE TABLE t AS SELECT 1 AS a",
            "CREATE FOREIGN DATA WRAPPER w OPTIONS (password 's3cret')",
            "ALTER FOREIGN DATA WRAPPER w OWNER TO postgres",
            "CREATE SERVER s FOREIGN DATA WRAPPER w OPTIONS (password 's3cret')",
            "CREATE USER MAPPING FOR passing_by SERVER s OPTIONS (password 's3cret')",
        )
        drilling = Drilling(source, bin_dir, tmp_path)
        proof = proof_of(drilling, drilling.dump())
        execute(source, "DROP USER MAPPING FOR passing_by SERVER s", "DROP ROLE passing_by")
        with going_live(source, "what_is_left") as copy:
            proof.restore(copy, despite_errors=True)

            assert one(copy.connection, "SELECT count(*) FROM t") == 1

    (lost,) = proof.lost
    assert lost.startswith('role "passing_by" does not exist, at: CREATE USER MAPPING FOR passing_by')
    assert "s3cret" not in lost


@pytest.mark.exhaustive
def test_each_view_that_fails_at_the_same_time_is_named(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    """The messages of two pg_restore processes are interleaved, even within a word."""
    with database(server, "views") as source:
        execute(
            source,
            "CREATE TABLE base AS SELECT 1 AS n",
            "CREATE FUNCTION total() RETURNS bigint LANGUAGE sql AS 'SELECT sum(n) FROM base'",
            *(f"CREATE MATERIALIZED VIEW v{i} AS SELECT total() AS t" for i in range(100)),
        )
        drilling = Drilling(source, bin_dir, tmp_path)
        backup = drilling.dump()
        proof = proof_of(drilling, backup)
        with going_live(source, "views_new") as copy:
            proof.restore(copy)
            listing = archives.contents_list(drilling.programs, backup.path)
            told = Restorer(drilling.programs, copy.connection, copy.name, 4).refresh(backup.path, listing)
    assert sorted(view.command for view in told) == sorted(
        f"REFRESH MATERIALIZED VIEW public.v{i};" for i in range(100)
    )


@pytest.mark.parametrize("despite_errors", [False, True])
def test_a_terminated_session_ends_the_restore(
    despite_errors: bool, server: PortCluster, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_restore, "_PROGRESS_SECONDS", 0.05)
    ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'what_is_left' AND query ~ '^COPY'"
    with database(server, "slow") as source:
        execute(source, *SLOW)
        drilling = Drilling(source, bin_dir, tmp_path)
        proof = proof_of(drilling, drilling.dump())
        proof.log = lambda line: execute(source, ends) if "loading" in line else None
        with going_live(source, "what_is_left") as copy, pytest.raises(ConnectionLostError):
            proof.restore(copy, despite_errors=despite_errors)

    assert lines_of(proof)[Check.RESTORED].result is Result.FAILED


def test_a_server_error_is_not_reported_as_a_loss(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    with damaged(_altered, server, bin_dir, tmp_path) as drilling:
        backup = newest(drilling)
        listing = archives.contents_list(drilling.programs, backup.path)
        nowhere = replace(drilling.source, port=free_port())

        with pytest.raises(ServerUnreachableError):
            Restorer(drilling.programs, nowhere, "database", 2).salvage(backup.path, listing, None, quiet)
