"""Values that a restore computes again, and that no dump holds, are compared with the source's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.manifest import Computed, Manifest, parse_sidecar
from ovia_backup_dagster.drill.placement import Where
from ovia_backup_dagster.postgres import computed_values
from ovia_backup_dagster.postgres.computed_values import Recorder
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.proof.check_results import CheckResult, Result
from ovia_backup_dagster.proof.computed_comparison import compare
from ovia_backup_dagster_tests.conftest import PortCluster, execute, quiet
from ovia_backup_dagster_tests.support.dagster_ui import awaited
from ovia_backup_dagster_tests.support.drilling import Drilling, by_check, database, one

ROLE = "of computed values"
#: Tables whose generated columns have the same values after any restore.
SOUND = (
    "CREATE TABLE keyed (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)",
    "ALTER TABLE keyed ADD words tsvector GENERATED ALWAYS AS (to_tsvector('simple', a || ' words')) STORED",
    "INSERT INTO keyed SELECT i, i % 7 FROM generate_series(1, 500) i",
    'CREATE SCHEMA "odd ""s; %"',
    'CREATE TABLE "odd ""s; %"."t.%s" (t int, "the ""sum"", %" int GENERATED ALWAYS AS (t + 1) STORED)',
    'ALTER TABLE "odd ""s; %"."t.%s" ADD number oid GENERATED ALWAYS AS (tableoid) STORED',
    'INSERT INTO "odd ""s; %"."t.%s" SELECT i FROM generate_series(1, 50) i',
    "CREATE TYPE colour AS ENUM ('red', 'green', 'blue')",
    "CREATE TABLE hashed (c colour, v int, g int GENERATED ALWAYS AS (v * 3) STORED) PARTITION BY HASH (c)",
    *(f"CREATE TABLE hashed_{i} PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER {i})" for i in (0, 1)),
    "INSERT INTO hashed SELECT c, i FROM unnest(enum_range(NULL::colour)) c, generate_series(1, 9) i",
    "CREATE TABLE parent (a int, g int GENERATED ALWAYS AS (-a) STORED)",
    "CREATE TABLE child (b int) INHERITS (parent)",
    "INSERT INTO parent VALUES (1), (NULL)",
    "INSERT INTO child (a, b) VALUES (2, 3)",
    # A type without equality, and values that are neither small nor inline.
    "CREATE TABLE large (d point, v text, x xml GENERATED ALWAYS AS (NULL) STORED)",
    "ALTER TABLE large ADD p point GENERATED ALWAYS AS (d + point '(1,1)') STORED",
    "ALTER TABLE large ADD w text GENERATED ALWAYS AS (v || v) STORED",
    "INSERT INTO large SELECT point(i / 3.0, i), repeat(md5(i::text), 100000) FROM generate_series(1, 3) i",
    "CREATE TABLE none (a int, g int GENERATED ALWAYS AS (a) STORED)",
    "CREATE UNLOGGED TABLE unlogged (a int, g int GENERATED ALWAYS AS (a) STORED)",
    "INSERT INTO unlogged VALUES (1)",
    "CREATE VIEW times AS SELECT id, '2026-01-01 Z'::timestamptz + id * '1 h'::interval, '1 y'::interval y FROM keyed",
    "CREATE VIEW texts AS SELECT id, id / 7.0::float4 f, id::money m, '\\x00ff'::bytea, 'keyed'::regclass FROM keyed",
    "CREATE MATERIALIZED VIEW first AS SELECT * FROM times NATURAL JOIN texts",
    "CREATE MATERIALIZED VIEW second AS SELECT count(*) AS t FROM first",
    "CREATE MATERIALIZED VIEW unfilled AS SELECT * FROM keyed WITH NO DATA",
    "CREATE MATERIALIZED VIEW nothing AS SELECT",
)
#: Tables with a generated column that a restore computes differently, though its function is IMMUTABLE: the function,
#: what happens before its rows are inserted, and what happens after.
UNSOUND = {
    "a setting": ("current_setting('ovia.of_tests', true)::int", "SET ovia.of_tests = 41", ""),
    "the clock": ("extract(epoch FROM clock_timestamp())::int % 1000 + (random() * 1000000)::int", "", ""),
    "the user": ("length(session_user)", "", ""),
    "another table": (
        "(SELECT max(n) FROM public.looked_up)",
        "CREATE TABLE public.looked_up AS SELECT 41 AS n",
        "UPDATE public.looked_up SET n = 43",
    ),
}


def line_of(drilling: Drilling, where: Where = Where.THROWAWAY) -> CheckResult:
    return by_check(drilling.drill(where))[Check.COMPUTED]


@contextmanager
def role(server: PortCluster, *statements: str) -> Iterator[None]:
    admin = server.connection()
    execute(admin, f'CREATE ROLE "{ROLE}" LOGIN', *statements)
    try:
        yield
    finally:
        execute(admin, f'DROP OWNED BY "{ROLE}"', f'DROP ROLE "{ROLE}"')


def dumper_of(drilling: Drilling) -> Dumper:
    return Dumper(drilling.catalog, drilling.source, drilling.programs, lock_wait_timeout_seconds=20)


def recorded(dumper: Dumper, log: Callable[[str], None] = quiet) -> Computed:
    """The computed values that a dump records."""
    manifest = dumper.dump(log=log).manifest
    assert manifest is not None
    assert manifest.computed is not None
    return manifest.computed


def test_equal_computed_values_pass(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    with database(server, "sound") as source:
        execute(
            source,
            "ALTER DATABASE sound SET datestyle = 'German, DMY'",
            "ALTER DATABASE sound SET intervalstyle = 'iso_8601'",
            "ALTER DATABASE sound SET extra_float_digits = -10",
            "ALTER DATABASE sound SET bytea_output = 'escape'",
            "ALTER DATABASE sound SET quote_all_identifiers = on",
            "ALTER DATABASE sound SET timezone = 'Asia/Kolkata'",
        )
        execute(source, *SOUND)
        drilling = Drilling(source, bin_dir, tmp_path)
        backup = drilling.dump()

        here, there = line_of(drilling), line_of(drilling, Where.DATABASE)

    assert (here.result, there.result) == (Result.PASSED, Result.PASSED), (here, there)
    assert here.text == there.text
    assert here.text.startswith("11 generated columns and 4 materialized views as in the source; not compared: ")
    assert "column number (it is computed from tableoid, which differs in every database)" in here.text
    assert backup.manifest is not None
    assert backup.manifest.computed is not None
    found = backup.manifest.computed
    assert found.tables["public.hashed"].rows == 27
    assert found.tables["public.keyed"].key == ("id",)
    assert found.tables["public.parent"].rows == 2
    assert list(found.tables['"odd ""s; %"."t.%s"'].columns) == ['"the ""sum"", %"']
    assert found.views["public.unfilled"].hash is None
    assert not any("snapshot" in option for option in backup.manifest.options)


@pytest.mark.exhaustive
def test_a_generated_column_with_other_values_is_named(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    with role(server), database(server, "unsound") as source:
        for number, (name, (body, before, after)) in enumerate(UNSOUND.items()):
            function = f"f{number}(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN {body}; END $$"
            execute(
                source,
                f"CREATE FUNCTION {function}",
                f'CREATE TABLE "by {name}" (id int PRIMARY KEY, a int, right_one int GENERATED ALWAYS AS (a) STORED, '
                f"wrong_one int GENERATED ALWAYS AS (f{number}(a)) STORED)",
                f'GRANT INSERT ON "by {name}" TO "{ROLE}"',
                before or "SELECT",
                *([f'SET SESSION AUTHORIZATION "{ROLE}"'] if name == "the user" else []),
                f'INSERT INTO "by {name}" SELECT i, i FROM generate_series(1, 9) i',
                *(["RESET SESSION AUTHORIZATION"] if name == "the user" else []),
                after or "SELECT",
            )
        drilling = Drilling(source, bin_dir, tmp_path)
        drilling.dump()

        for where in (Where.THROWAWAY, Where.DATABASE):
            evidence = drilling.drill(where)

            assert not evidence.passed
            lines = by_check(evidence)
            assert lines[Check.TABLES].result is Result.PASSED, lines[Check.TABLES]
            line = lines[Check.COMPUTED]
            assert line.result is Result.FAILED
            assert evidence.failures == (line.text,)
            for name in UNSOUND:
                assert f'table public."by {name}" has other values in generated column wrong_one than' in line.text
            assert "right_one" not in line.text
            assert "was changed after rows were written (any UPDATE of these computes it again)" in line.text
            assert "--mode new --even-if-damaged" in line.text
            assert len(line.text) < 1000
            assert evidence.trouble is not None


def test_a_stale_materialized_view_is_odd(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    with database(server, "stale") as source:
        execute(
            source,
            "CREATE TABLE base AS SELECT 1 AS n",
            "CREATE MATERIALIZED VIEW stale AS SELECT n FROM base",
            "CREATE MATERIALIZED VIEW fewer AS SELECT n FROM base",
            "CREATE MATERIALIZED VIEW at AS SELECT now()",
            "CREATE MATERIALIZED VIEW same AS SELECT 1 AS one",
            "UPDATE base SET n = 2; INSERT INTO base VALUES (3)",
            "REFRESH MATERIALIZED VIEW stale",
            "UPDATE base SET n = 4 WHERE n = 3",
        )
        drilling = Drilling(source, bin_dir, tmp_path)

        evidence = drilling.dump_and_drill()

    assert evidence.passed, evidence.failures
    line = by_check(evidence)[Check.COMPUTED]
    assert line.result is Result.ODD
    assert "materialized view public.stale has other values than it had in the source" in line.text
    assert "materialized view public.fewer has 2 rows, and had 1 in the source" in line.text
    assert "materialized view public.at has other values" in line.text
    assert "may have been stale" in line.text
    assert "same" not in line.text


@pytest.mark.parametrize("key", ["", "PRIMARY KEY"])
def test_values_that_changed_rows_are_found(key: str, server: PortCluster) -> None:
    """The values are the same as a set, but in other rows."""
    flip = "CREATE OR REPLACE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT {}'"
    with database(server, "places") as source:
        execute(
            source,
            flip.format("1 - $1"),
            f"CREATE TABLE t (a int {key}, g int GENERATED ALWAYS AS (f(a)) STORED)",
            "INSERT INTO t VALUES (0), (1)",
        )
        with Recorder(source, lambda: True) as recorder:
            before = recorder.finish()
        same = computed_values.read(source, before)
        execute(source, flip.format("$1"), "UPDATE t SET a = a")
        changed = computed_values.read(source, before)

    assert before.tables == same.tables
    assert compare(before, changed).bad == ["table public.t has other values in generated column g than the source had"]


@pytest.mark.exhaustive
def test_computed_values_are_read_up_to_the_limit(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    """The largest tables are left out; the log, the manifest and the evidence say so."""
    with database(server, "limited") as source:
        execute(
            source,
            "CREATE TABLE small (a int, g int GENERATED ALWAYS AS (a) STORED)",
            "INSERT INTO small VALUES (1)",
            "CREATE TABLE big (a int, g int GENERATED ALWAYS AS (a) STORED)",
            "INSERT INTO big SELECT generate_series(1, 20000)",
            "CREATE MATERIALIZED VIEW bigger AS SELECT * FROM big, generate_series(1, 3)",
        )
        drilling, said = Drilling(source, bin_dir, tmp_path), list[str]()
        found = recorded(replace(dumper_of(drilling), most_bytes=500_000), said.append)

        line = line_of(drilling)

        off = recorded(replace(dumper_of(drilling), most_bytes=0))
    assert list(found.tables) == ["public.small"]
    assert found.left_out.keys() == {"public.big", "public.bigger"}
    assert "no more than 500.0 kB are read in all" in found.left_out["public.big"]
    assert any("left out: public.big: its size is" in each for each in said)
    assert line.result is Result.PASSED
    assert line.text.startswith("1 generated column as in the source; not compared: public.big (its size is")
    assert off.why
    compared = compare(off, Computed())
    assert not compared.made
    assert off.why in compared.not_compared


@pytest.mark.exhaustive
def test_an_older_dump_has_no_record(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    with database(server, "older") as source:
        execute(source, "CREATE TABLE t (a int, g int GENERATED ALWAYS AS (a) STORED)")
        drilling = Drilling(source, bin_dir, tmp_path)
        backup = drilling.dump()
        assert backup.manifest is not None
        text = backup.manifest.model_copy(update={"computed": None}).to_json().replace(' "computed": null,\n', "")
        assert "computed" not in text
        backup.path.with_name(f"{backup.path.name}.json").write_text(text)

        assert parse_sidecar(Manifest, text, "it").computed is None
        line = line_of(drilling)
    assert line.result is Result.NOT_MADE
    assert "an older program made it" in line.text


@pytest.mark.exhaustive
def test_computed_values_in_sql_ascii_are_compared(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    options = "ENCODING 'SQL_ASCII' LOCALE 'C'"
    with database(server, "bytes", options) as source:
        to = {"host": source.host, "port": source.port, "dbname": source.database, "user": source.user}
        with psycopg.connect(**to, autocommit=True, client_encoding="LATIN1") as session:  # type: ignore[arg-type]
            session.execute(
                'CREATE TABLE "tä%" ("ä" text PRIMARY KEY, "ö" text GENERATED ALWAYS AS ("ä" || \'ü\') STORED)'
            )
            session.execute("INSERT INTO \"tä%\" VALUES ('\xff'), ('a')")
            session.execute('CREATE MATERIALIZED VIEW "vß" AS SELECT * FROM "tä%"')
        drilling = Drilling(source, bin_dir, tmp_path)
        found = recorded(dumper_of(drilling))

        line = line_of(drilling)
    assert list(found.tables) == ['public."t\\xe4%"']
    assert (line.result, line.text) == (
        Result.PASSED,
        "1 generated column and 1 materialized view as in the source",
    )


# ------------------------------------------------------------------------------------------ a dump must not fail


def test_computed_values_are_read_in_the_dumps_snapshot(
    server: PortCluster, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change after the start of the dump is neither in the dump nor in the record."""
    with database(server, "moving") as source:
        execute(
            source,
            "CREATE TABLE t (a int PRIMARY KEY, g int GENERATED ALWAYS AS (a) STORED)",
            "INSERT INTO t SELECT generate_series(1, 100)",
            "CREATE TABLE rewritten (a int PRIMARY KEY, g int GENERATED ALWAYS AS (a) STORED)",
        )
        drilling = Drilling(source, bin_dir, tmp_path)
        meanwhile(monkeypatch, source, "UPDATE t SET a = a + 1000; TRUNCATE rewritten")
        found = recorded(dumper_of(drilling))

        line = line_of(drilling)
    assert found.tables["public.t"].rows == 100
    assert line.text == (
        "1 generated column as in the source; not compared: public.rewritten (it was refreshed or rewritten when the "
        "dump began)"
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "meanwhile_",
    [
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'lost' AND xact_start < now()",
        "DROP TABLE passing_by",
    ],
    ids=["its session is ended", "a table is dropped"],
)
def test_a_dump_succeeds_although_its_snapshot_is_lost(
    meanwhile_: str, server: PortCluster, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database(server, "lost") as source:
        execute(source, "CREATE TABLE passing_by ()", "CREATE TABLE t ()", "CREATE MATERIALIZED VIEW v AS SELECT 1")
        drilling = Drilling(source, bin_dir, tmp_path)
        meanwhile(monkeypatch, source, meanwhile_)
        found = recorded(dumper_of(drilling))
    assert found.why
    assert not found.views
    assert not compare(found, Computed()).made


def test_a_dump_by_a_role_with_few_rights_succeeds(
    server: PortCluster, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role has no second connection, and may not read a view, which pg_dump does not read either."""
    with role(server), database(server, "narrow") as source:
        execute(
            source,
            "CREATE TABLE t (a int PRIMARY KEY, g int GENERATED ALWAYS AS (a) STORED)",
            "CREATE TABLE hidden (a int)",
            f'GRANT SELECT ON t, hidden TO "{ROLE}"',
            "CREATE MATERIALIZED VIEW v AS SELECT * FROM hidden",
        )
        drilling = Drilling(replace(source, user=ROLE), bin_dir, tmp_path)
        wide = recorded(dumper_of(drilling))
        meanwhile(monkeypatch, source, f'ALTER ROLE "{ROLE}" CONNECTION LIMIT 1')
        narrow = recorded(dumper_of(drilling))
    assert list(wide.tables) == ["public.t"]
    assert wide.left_out == {"public.v": "permission denied for materialized view v"}
    assert "too many connections" in narrow.why
    assert not narrow.tables


def test_a_dump_does_not_block_a_refresh(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    """Not even while the dump waits for a lock."""
    with database(server, "refreshed") as source:
        execute(source, "CREATE TABLE t AS SELECT 1 AS a", "CREATE MATERIALIZED VIEW mine AS SELECT 1")
        drilling = Drilling(source, bin_dir, tmp_path)
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        refreshed = list[bool]()
        with psycopg.connect(host=source.host, port=source.port, dbname="refreshed", user=source.user) as other:
            other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")

            def log(_: str) -> None:
                if not refreshed and one(source, waiting):
                    execute(source, "SET lock_timeout = '3s'", "REFRESH MATERIALIZED VIEW mine")
                    refreshed.append(True)
                    other.rollback()

            manifest = dumper_of(drilling).dump(log=log, progress_seconds=0.1).manifest
    assert refreshed
    assert manifest is not None
    assert manifest.computed is not None
    assert manifest.computed.views["public.mine"].hash


def test_a_locked_table_is_left_out_of_the_record(server: PortCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        computed_values, "_OPTIONS", computed_values._OPTIONS.replace("lock_timeout=5s", "lock_timeout=200ms")
    )
    with database(server, "locked") as source:
        execute(source, "CREATE MATERIALIZED VIEW busy AS SELECT 1", "CREATE MATERIALIZED VIEW idle AS SELECT 1")
        with psycopg.connect(host=source.host, port=source.port, dbname="locked", user=source.user) as other:
            other.execute("REFRESH MATERIALIZED VIEW busy")
            with Recorder(source, lambda: True) as recorder:
                found = recorder.finish()
    assert list(found.views) == ["public.idle"]
    assert found.left_out == {"public.busy": "another session had it locked"}


def test_reading_computed_values_ends_soon_after_pg_dump(server: PortCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """No session is left on the server."""
    with database(server, "endless") as source:
        execute(
            source,
            "CREATE TABLE t (a int, g int GENERATED ALWAYS AS (a) STORED)",
            "INSERT INTO t VALUES (1)",
            "CREATE MATERIALIZED VIEW v AS SELECT 1",
        )
        slow = computed_values._HASH.replace(b"count(*) AS rows", b"count(pg_sleep(100)) AS rows")
        monkeypatch.setattr(computed_values, "_HASH", slow)
        with Recorder(source, lambda: True) as recorder:
            assert recorder.snapshot
            found = recorder.finish(0.2)
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'endless'"
        with psycopg.connect(
            host=source.host, port=source.port, dbname="postgres", user=source.user, autocommit=True
        ) as session:
            # A server process ends a moment after its client.
            awaited(lambda: session.execute(sessions).fetchone() == (0,), 10)
    assert found.left_out.keys() == {"public.t", "public.v"}
    assert "more than 30 s longer" in found.left_out["public.v"]


def meanwhile(monkeypatch: pytest.MonkeyPatch, source: Connection, *statements: str) -> None:
    """Run statements between the snapshot and the pg_dump that uses it."""
    before = vars(Recorder)["snapshot"]

    def snapshot(self: Recorder) -> str | None:
        found: str | None = before.__get__(self)
        execute(source, *statements)
        return found

    monkeypatch.setattr(Recorder, "snapshot", property(snapshot))
