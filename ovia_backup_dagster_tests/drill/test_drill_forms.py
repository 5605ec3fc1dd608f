"""Healthy databases of every kind pass the drill; it reports only what is odd in them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.drill.negative_control import control
from ovia_backup_dagster.drill.placement import Where
from ovia_backup_dagster.drill.throwaway_cluster import locks_for, throwaway
from ovia_backup_dagster.postgres import archive
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.local_cluster import account_id
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, WRITABLE
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.database_reader import CopyReader
from ovia_backup_dagster_tests.conftest import NewDatabase, PortCluster, execute, free_port, quiet
from ovia_backup_dagster_tests.support.drilling import Drilling, assert_passed, by_check, database, not_passed, one
from ovia_backup_dagster_tests.support.exhaustive import thinned

BOSS = 'the "Boss"'
SECRET = "s3cret-of-a-mapping"
ODD_NAMES = (
    'quo"te', "apo'strophe", "Ünï cödé", " ", "new\nline", "per%cent %s", r"back\slash \n", "dot.ted", "UPPER",
    "--comment", "COPY x (a) FROM stdin;", "a\u2028b", "table", "$1", "x" * 63,
)  # fmt: skip


@pytest.fixture(scope="module")
def boss(full_bin_dir: Path) -> Iterator[PortCluster]:
    """A server whose bootstrap superuser is not called postgres and may not log in."""
    folder = Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp"))
    port = free_port()
    cluster = PortCluster(full_bin_dir, folder, settings={"port": str(port)}, port=port)
    try:
        cluster.create()
        cluster.start()
        execute(cluster.connection(), "CREATE ROLE deputy SUPERUSER LOGIN")
        appointed = replace(cluster, superuser="deputy")
        execute(
            appointed.connection(),
            f"ALTER ROLE postgres RENAME TO {_quoted(BOSS)}",
            f"ALTER ROLE {_quoted(BOSS)} NOLOGIN",
        )
        yield appointed
    finally:
        cluster.remove()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _without_subscription(source: Connection) -> Iterator[None]:
    """Drop the subscription afterwards: a database with one cannot be dropped."""
    try:
        yield
    finally:
        if one(source, "SELECT count(*) FROM pg_subscription"):
            execute(source, "ALTER SUBSCRIPTION sub SET (slot_name = NONE)", "DROP SUBSCRIPTION sub")


def test_a_database_with_every_kind_of_object_passes(boss: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    space = boss.folder / "space"
    space.mkdir()
    os.chown(space, account_id(), -1)
    execute(
        boss.connection(),
        f"CREATE TABLESPACE elsewhere OWNER deputy LOCATION '{space}'",
        "CREATE ROLE members NOLOGIN",
        'CREATE ROLE "Odd ""role"" %" LOGIN IN ROLE members',
        """ALTER ROLE "Odd ""role"" %" SET work_mem = '64kB'""",
        "COMMENT ON ROLE members IS 'who belongs'",
        "GRANT pg_read_all_data TO members WITH ADMIN OPTION",
    )
    with database(boss, "forms", "TABLESPACE elsewhere") as source, _without_subscription(source):
        execute(
            source,
            # A clustered and rewritten table with deleted rows.
            "CREATE TABLE clustered (id int PRIMARY KEY, v text)",
            "INSERT INTO clustered SELECT i, md5(i::text) FROM generate_series(1, 2000) i",
            "CREATE INDEX by_v ON clustered (v)",
            "CLUSTER clustered USING by_v",
            "DELETE FROM clustered WHERE id % 3 = 0",
            "VACUUM FULL clustered",
            "INSERT INTO clustered SELECT i * 3, 'new' FROM generate_series(1, 300) i",
            # Rows that fill more than a page and are not toasted.
            "CREATE TABLE plain (id int, v text)",
            "ALTER TABLE plain ALTER v SET STORAGE plain",
            "INSERT INTO plain SELECT i, repeat(chr(64 + i % 26), 100 + 7000 * (i % 2)) FROM generate_series(1, 300) i",
            "CREATE TABLE external (v bytea)",
            "ALTER TABLE external ALTER v SET STORAGE external",
            "INSERT INTO external SELECT decode(repeat(md5(i::text), 90000), 'hex') FROM generate_series(1, 3) i",
            # A child with two parents, and a parent's column that was added after the child's own.
            "CREATE TABLE parent (a int)",
            "CREATE TABLE child (b int) INHERITS (parent)",
            "ALTER TABLE parent ADD c text DEFAULT 'c'",
            "CREATE TABLE aunt (d int)",
            "ALTER TABLE child ADD d int",
            "ALTER TABLE child INHERIT aunt",
            "INSERT INTO child SELECT i, i * 2, 'x' || i, i FROM generate_series(1, 50) i",
            "INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 5) i",
            "ALTER TABLE parent ADD gone int",
            "ALTER TABLE parent DROP gone",
            # Hash partitions keyed by an enum, of two levels.
            "CREATE TYPE colour AS ENUM ('red', 'green', 'blue')",
            "CREATE TABLE hashed (c colour, v int) PARTITION BY HASH (c)",
            "CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
            "CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1) PARTITION BY LIST (c)",
            "CREATE TABLE hashed_1_all PARTITION OF hashed_1 DEFAULT",
            "INSERT INTO hashed SELECT c, i FROM unnest(enum_range(NULL::colour)) c, generate_series(1, 50) i",
            "CREATE TABLE nothing ()",
            "INSERT INTO nothing DEFAULT VALUES",
            "CREATE TABLE empty (a int)",
            "CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS a",
            "CREATE TABLE no_partition (a int) PARTITION BY RANGE (a)",
            # Materialized views: on another one, never populated, and one that only this search_path can refresh.
            "CREATE MATERIALIZED VIEW first AS SELECT count(*) AS n FROM clustered",
            "CREATE MATERIALIZED VIEW second AS SELECT n + 1 AS m FROM first",
            "CREATE MATERIALIZED VIEW unfilled AS SELECT * FROM plain WITH NO DATA",
            "CREATE FUNCTION here() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM empty); END'",
            "CREATE MATERIALIZED VIEW lost AS SELECT here() AS h",
            # NOT VALID constraints that some rows break.
            "ALTER TABLE plain ADD CONSTRAINT small CHECK (id < 10) NOT VALID",
            "CREATE TABLE refers (id int)",
            "INSERT INTO refers VALUES (-1)",
            "ALTER TABLE refers ADD FOREIGN KEY (id) REFERENCES clustered NOT VALID",
            # Objects that connect to other servers.
            "CREATE PUBLICATION pub FOR TABLE clustered WHERE (id > 5)",
            "COMMENT ON PUBLICATION pub IS 'told'",
            f"CREATE SUBSCRIPTION sub CONNECTION 'host=nowhere password={SECRET}' PUBLICATION p WITH (connect = false)",
            "COMMENT ON SUBSCRIPTION sub IS 'heard'",
            "CREATE FOREIGN DATA WRAPPER distant",
            "CREATE SERVER far FOREIGN DATA WRAPPER distant OPTIONS (host 'nowhere')",
            f"CREATE USER MAPPING FOR members SERVER far OPTIONS (user 'u', password '{SECRET}')",
            "CREATE FOREIGN TABLE far_away (a int) SERVER far OPTIONS (table_name 'x')",
            "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
            "CREATE EVENT TRIGGER watched ON ddl_command_end EXECUTE FUNCTION watch()",
            "ALTER EVENT TRIGGER watched DISABLE",
            "SELECT lo_from_bytea(4711, 'large')",
            "GRANT SELECT ON LARGE OBJECT 4711 TO members",
            "COMMENT ON LARGE OBJECT 4711 IS 'a large object'",
            'ALTER LARGE OBJECT 4711 OWNER TO "Odd ""role"" %"',
            'ALTER TABLE clustered OWNER TO "Odd ""role"" %"',
            f"ALTER TABLE plain OWNER TO {_quoted(BOSS)}",
            "ALTER TABLE external SET TABLESPACE pg_default",
            "CREATE INDEX placed ON plain (id) TABLESPACE pg_default",
            "GRANT SELECT (a), UPDATE (c) ON parent TO members WITH GRANT OPTION",
            'ALTER ROLE "Odd ""role"" %" IN DATABASE forms SET statement_timeout = 5000',
            "ALTER DATABASE forms OWNER TO members",
            "ALTER DATABASE forms SET search_path = elsewhere, public",
        )
        drilling = Drilling(source, full_bin_dir, tmp_path)

        evidence = drilling.dump_and_drill()

        assert_passed(evidence, Check.TABLES, Check.MATERIALIZED_VIEWS, Check.SCHEMA_TEXT)
        lines = by_check(evidence)
        # A serial pg_restore would also change the order of `plain`; a drill never runs one.
        assert set(lines[Check.TABLES].text.split("; ")) <= {
            f"table public.{name} holds the same rows, in another order of rows or columns"
            for name in ("hashed", "child")
        }
        assert lines[Check.MATERIALIZED_VIEWS].text.startswith(
            "the data is proven, but materialized view public.lost cannot be refreshed by pg_restore, which has no "
        )
        assert lines[Check.COMPUTED].text.startswith("4 materialized views as in the source")
        assert "NOT VALID, as in the source: 2" in lines[Check.STRUCTURE].text
        assert "5 entries of publications and subscriptions left out" in lines[Check.CONTENTS].text
        written = "".join(path.read_text("utf-8") for path in drilling.driller.drills.path.glob("*.*"))
        assert SECRET not in written

        # The same drill, into a scratch database on the source's server.
        assert_passed(
            drilling.drill(Where.DATABASE),
            Check.TABLES,
            Check.MATERIALIZED_VIEWS,
            Check.SCHEMA_TEXT,
        )


@pytest.mark.exhaustive
def test_odd_names_in_every_place_pass(boss: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    """Each odd name is used for a schema, table, role, sequence and view; the database has an odd name, too."""
    with database(boss, "da\"ta'base; %s \\ dot.ted\nÜ") as source:
        for number, name in enumerate(ODD_NAMES):
            quoted = _quoted(name)
            role = _quoted(f"r{name}"[:63])
            with psycopg.connect(host=source.host, port=source.port, dbname=source.database, user=source.user) as it:
                for statement in (
                    f"CREATE ROLE {role}",
                    f"COMMENT ON ROLE {role} IS {sql.Literal(name).as_string(it)}",
                    f"CREATE SCHEMA {quoted} AUTHORIZATION {role}",
                    f"SET search_path = {quoted}",
                    f"CREATE TYPE {_quoted('e' + name[:60])} AS ENUM ({sql.Literal(name).as_string(it)})",
                    f"CREATE TABLE {quoted} ({quoted} text PRIMARY KEY, n serial, e {_quoted('e' + name[:60])})",
                    f"ALTER TABLE {quoted} OWNER TO {role}",
                    f"INSERT INTO {quoted} VALUES ({sql.Literal(name).as_string(it)}), ('{number}')",
                    f"CREATE SEQUENCE {_quoted('s' + name[:60])} START {number + 1}",
                    f"CREATE MATERIALIZED VIEW {_quoted('m' + name[:60])} AS SELECT * FROM {quoted}",
                    f"CREATE VIEW {_quoted('v' + name[:60])} AS SELECT * FROM {quoted}",
                    f"CREATE FUNCTION {_quoted('f' + name[:60])}({quoted} int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
                    f"COMMENT ON TABLE {quoted} IS {sql.Literal(name).as_string(it)}",
                    f"GRANT SELECT ON {quoted} TO deputy",
                    f"CREATE TABLE parted (id int, {quoted} text) PARTITION BY LIST ({quoted})",
                    f"CREATE TABLE {_quoted('p' + name[:60])} PARTITION OF parted DEFAULT",
                    f"INSERT INTO parted VALUES (1, {sql.Literal(name).as_string(it)})",
                    f"SELECT lo_create({5000 + number})",
                    f"ALTER LARGE OBJECT {5000 + number} OWNER TO {role}",
                ):
                    it.execute(statement.encode())
        drilling = Drilling(source, full_bin_dir, tmp_path)

        evidence = drilling.dump_and_drill()

        assert_passed(evidence, Check.SCHEMA_TEXT)
        assert len(evidence.tables) == 2 * len(ODD_NAMES)
        assert all(table.size_bytes for table in evidence.tables)
        assert_passed(drilling.drill(Where.DATABASE), Check.SCHEMA_TEXT)


def test_the_negative_control_works_with_odd_names(boss: PortCluster) -> None:
    with database(boss, "control") as source:
        for name in ODD_NAMES:
            quoted = _quoted(name)
            execute(
                source,
                f"CREATE SCHEMA {quoted}",
                f"CREATE TABLE {quoted}.{quoted} (g int GENERATED ALWAYS AS (1) STORED, {quoted} text, "
                "i int GENERATED ALWAYS AS IDENTITY)",
                f"INSERT INTO {quoted}.{quoted} VALUES (DEFAULT, 'a'), (DEFAULT, 'b')",
            )
        reader = CopyReader(Programs(boss.bin_dir), source, SESSION_OPTIONS, "UTF8")
        tables = reader.read().witness.tables
        assert len(tables) == len(ODD_NAMES)

        for table in tables:
            outcome = control(reader, [table], WRITABLE)
            assert (outcome.table, outcome.noticed) == (table.name, True)

        assert {table.rows for table in reader.read().witness.tables} == {2}


@pytest.mark.exhaustive
def test_the_control_puts_a_row_back_with_source_settings(
    boss: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    """The CHECKs hold only under the settings of the database."""
    with database(boss, "control_settings") as source:
        for setting in (
            "TimeZone = 'Asia/Kolkata'",
            "DateStyle = 'German'",
            "IntervalStyle = 'sql_standard'",
            "bytea_output = 'escape'",
            "extra_float_digits = 0",
            "quote_all_identifiers = on",
        ):
            execute(source, f"ALTER DATABASE control_settings SET {setting}")
        execute(
            source,
            "CREATE TABLE t (at timestamptz, d date, i interval, b bytea, f float8, CHECK (at::date = d),"
            " CHECK (d::text ~ '[.]'), CHECK (b::text !~ 'x'), CHECK (i::text !~ 'day'),"
            " CHECK (length(f::text) < 17))",
            "INSERT INTO t SELECT '2026-01-01 20:00+00', '2026-01-02', '-1 day +2:03:04',"
            r" '\101\000'::bytea, 0.1 + 0.2",
        )
        assert_passed(Drilling(source, full_bin_dir, tmp_path).dump_and_drill(), Check.SCHEMA_TEXT)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", thinned(["template1", "postgres"]))
def test_template1_and_postgres_pass_a_drill(name: str, boss: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    source = boss.connection(name)
    execute(source, "CREATE TABLE t AS SELECT 1 AS a", f"ALTER DATABASE {name} SET work_mem = '1MB'")
    try:
        evidence = Drilling(source, full_bin_dir, tmp_path).dump_and_drill()
    finally:
        execute(source, "DROP TABLE t", f"ALTER DATABASE {name} RESET ALL")

    assert_passed(evidence)
    assert evidence.rows == 1


@pytest.mark.exhaustive
def test_an_empty_database_passes_without_the_control(boss: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    with database(boss, "void") as source:
        drilling = Drilling(source, full_bin_dir, tmp_path)
        verifier = drilling.driller.verifier
        made = Dumper(drilling.catalog, source, drilling.programs).dump(log=quiet)
        assert verifier.accept(made, by="a test", run_id=None, log=quiet).judgement.good

        evidence = drilling.drill()

        assert_passed(evidence)
        control = by_check(evidence)[Check.CONTROL]
        assert (control.result, control.text) == (Result.NOT_MADE, "not possible: every table is empty")


@pytest.mark.parametrize(
    ("statements", "table"),
    thinned(
        [
            (
                (
                    "CREATE TYPE e AS ENUM ('a', 'b')",
                    "CREATE TABLE r (k e) PARTITION BY HASH (k)",
                    "CREATE TABLE r0 PARTITION OF r FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
                    "INSERT INTO r VALUES ('a'), ('b')",
                ),
                "public.r",
            ),
            (
                (
                    "CREATE TABLE r (k int) PARTITION BY RANGE (k)",
                    "CREATE TABLE r0 PARTITION OF r DEFAULT",
                    "INSERT INTO r VALUES (1)",
                ),
                "public.r0",
            ),
            (
                ("CREATE TABLE t AS SELECT 1 AS a", "CREATE RULE keep AS ON DELETE TO t DO INSTEAD NOTHING"),
                "public.t",
            ),
            (
                (
                    "CREATE TABLE t (a int PRIMARY KEY, b int REFERENCES t)",
                    "INSERT INTO t VALUES (1, 1)",
                    "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
                    "CREATE TRIGGER no BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION no()",
                ),
                "public.t",
            ),
        ]
    ),
    ids=["an enum's hash", "a partition", "a rule that keeps rows", "a trigger that keeps rows"],
)
def test_the_negative_control_restores_the_deleted_row(
    statements: tuple[str, ...], table: str, boss: PortCluster
) -> None:
    with database(boss, "only") as source:
        execute(source, *statements)
        reader = CopyReader(Programs(boss.bin_dir), source, SESSION_OPTIONS, "UTF8")
        before = reader.read().witness

        outcome = control(reader, before.tables, WRITABLE)

        assert (outcome.table, outcome.noticed) == (table, True)
        assert reader.read().witness.rows == before.rows


@pytest.mark.exhaustive
@pytest.mark.parametrize("encoding", thinned(["SQL_ASCII", "LATIN1", "WIN1252"]))
def test_a_database_in_another_encoding_passes(
    encoding: str, boss: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    with database(boss, f"enc_{encoding.lower()}", f"ENCODING '{encoding}' LOCALE 'C'") as source:
        execute(
            source,
            'CREATE TABLE "Größe" ("Länge" text)',
            """INSERT INTO "Größe" VALUES ('ß'), ('é')""",
            'CREATE MATERIALIZED VIEW "Übersicht" AS SELECT count(*) FROM "Größe"',
            """COMMENT ON TABLE "Größe" IS 'größer'""",
            "CREATE TABLE big AS SELECT i, chr(233) FROM generate_series(1, 9) i"
            if encoding != "SQL_ASCII"
            else r"CREATE TABLE big AS SELECT convert_from('\xff', 'SQL_ASCII') AS t FROM generate_series(1, 9)",
        )
        drilling = Drilling(source, full_bin_dir, tmp_path)

        evidence = drilling.dump_and_drill()

        assert_passed(evidence)
        assert by_check(evidence)[Check.CONTROL].text.startswith('the deletion of a row in public."Gr')
        assert_passed(drilling.drill(Where.DATABASE))


@pytest.mark.exhaustive
def test_a_missing_locale_is_replaced_with_a_note(
    boss: PortCluster, full_bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = archive.database_text

    def foreign(*arguments: object) -> bytes:
        return said(*arguments).replace(b"LOCALE = 'C'", b"LOCALE = 'tlh_QO.UTF-8'")  # type: ignore[arg-type]

    monkeypatch.setattr(archive, "database_text", foreign)
    with database(boss, "located", "LOCALE 'C'") as source:
        execute(source, "CREATE TABLE t AS SELECT 'ä' AS a")

        evidence = Drilling(source, full_bin_dir, tmp_path).dump_and_drill()

    assert_passed(evidence, Check.RESTORED)
    assert by_check(evidence)[Check.RESTORED].text.startswith("the copy has locale C, since the source's")


HOSTILE = (
    "datestyle = 'SQL, DMY'",
    "timezone = 'Asia/Kathmandu'",
    "bytea_output = 'escape'",
    "extra_float_digits = -5",
    "intervalstyle = 'sql_standard'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "search_path = 'nowhere'",
    "statement_timeout = '5s'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "standard_conforming_strings = off",
    "row_security = off",
    "quote_all_identifiers = on",
    "default_tablespace = 'pg_default'",
    "default_table_access_method = 'heap'",
    "client_encoding = 'LATIN1'",
    "xmloption = 'document'",
    "lc_monetary = 'C'",
    "session_replication_role = replica",
    "check_function_bodies = on",
)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("level", "where"),
    thinned(
        [
            ("database", Where.THROWAWAY),
            ("role in database", Where.DATABASE),
            ("role", Where.THROWAWAY),
            ("role in database", Where.THROWAWAY),
            ("database", Where.DATABASE),
            ("role", Where.DATABASE),
        ],
    ),
)
def test_hostile_settings_of_the_source_pass(
    level: str, where: Where, boss: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    with database(boss, "set") as source:
        execute(
            source,
            "CREATE ROLE hostile SUPERUSER LOGIN",
            "CREATE TABLE t AS SELECT now() AS t, '\\x00ff'::bytea AS b, 0.1::float8 + 0.2 AS f, "
            "interval '1 mon' AS i, date '2026-02-03' AS d, '1.5'::money AS m",
            "CREATE TABLE x (x xml, t timestamptz)",
            "INSERT INTO x VALUES ('a', now()), ('<a/>', '-infinity')",
            "CREATE MATERIALIZED VIEW v AS SELECT * FROM t",
            "SELECT lo_from_bytea(0, '\\xff00')",
            "CREATE ROLE other",
            "ALTER TABLE x OWNER TO other",
        )
        whom = {"database": "DATABASE set", "role": "ROLE hostile", "role in database": "ROLE hostile IN DATABASE set"}
        try:
            with psycopg.connect(
                host=source.host, port=source.port, dbname="postgres", user=source.user, autocommit=True
            ) as it:
                for setting in HOSTILE:
                    it.execute(f"ALTER {whom[level]} SET {setting}".encode())
            drilling = Drilling(replace(source, user="hostile"), full_bin_dir, tmp_path)

            evidence = drilling.dump_and_drill(where)
        finally:
            deputy = replace(source, database="postgres")
            execute(deputy, "DROP DATABASE set WITH (FORCE)", "DROP ROLE hostile", "DROP ROLE other")

    # With quote_all_identifiers, names in expressions may be quoted or not.
    assert_passed(evidence, Check.SCHEMA_TEXT)


# ------------------------------------------------------------------------------------------ the old script's dumps


@contextmanager
def _old_script(source: Connection, drilling: Drilling) -> Iterator[Drilling]:
    """A backup of the old script: a plain pg_dump, an hour old, without manifest, roles or verdict."""
    folder = drilling.volume / "daily"
    drilling.catalog.prepare()
    path = folder / f"{source.database}_daily_2026-01-02_030000.dump"
    command = (drilling.programs.path("pg_dump"), "-Fc", f"--file={path}", f"--dbname={source.conninfo()}")
    code, _, stderr = capture(command, variables=source.environment())
    assert code == 0, stderr
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    yield drilling


@pytest.mark.parametrize(
    ("level", "reachable"),
    thinned(
        [
            ("server", False),
            ("role", True),
            ("server", True),
            ("database", True),
            ("database", False),
            ("role", False),
        ],
    ),
)
def test_a_dump_of_the_old_script_passes(
    level: str, reachable: bool, boss: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    settings = ("timezone = 'America/St_Johns'", "bytea_output = 'escape'")
    with database(boss, "old") as source:
        execute(
            source,
            "CREATE ROLE dumps SUPERUSER LOGIN",
            'CREATE ROLE "a ""second"" %"',
            "CREATE TABLE t AS SELECT timestamptz '2026-07-01' + i * interval '9 hours 1 second' AS t, "
            "decode(md5(i::text), 'hex') AS b FROM generate_series(1, 500) i",
            'ALTER TABLE t OWNER TO "a ""second"" %"',
            "CREATE TABLE p (t timestamptz) PARTITION BY RANGE (t)",
            "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2026-01-01 0:00+0') TO ('2027-01-01 0:00+0')",
            "INSERT INTO p VALUES ('2026-07-01 0:00+0'), ('2026-03-01 0:00+0')",
        )
        whom = {"server": "SYSTEM", "database": "DATABASE old", "role": "ROLE dumps"}[level]
        try:
            for setting in settings:
                execute(source, f"ALTER {whom} SET {setting}")
            execute(source, "SELECT pg_reload_conf()")
            time.sleep(0.2)
            dumping = replace(source, user="dumps")
            with _old_script(dumping, Drilling(dumping, full_bin_dir, tmp_path)) as drilling:
                driller = drilling.driller
                if not reachable:
                    driller = replace(driller, source=replace(dumping, port=free_port()))

                evidence = drilling.drill(driller=driller)
        finally:
            for name in ("timezone", "bytea_output"):
                execute(source, f"ALTER SYSTEM RESET {name}")
            deputy = replace(source, database="postgres")
            execute(
                deputy,
                "SELECT pg_reload_conf()",
                "DROP DATABASE old WITH (FORCE)",
                "DROP ROLE dumps",
                'DROP ROLE "a ""second"" %"',
            )

    assert not evidence.manifest
    if level == "database" or reachable:
        assert_passed(evidence, Check.RESTORED)
    else:
        assert not_passed(evidence).keys() == {Check.RESTORED, Check.TABLES, Check.SCHEMA_TEXT}
        assert "the source could not be asked" in by_check(evidence)[Check.TABLES].text
    made_up = by_check(evidence)[Check.RESTORED].text
    assert 'a "second" %' in made_up


# ------------------------------------------------------------------------------------------ the scratch database


@pytest.mark.exhaustive
def test_a_superuser_can_drill_in_a_scratch_database(
    new_full_database: NewDatabase, full_bin_dir: Path, tmp_path: Path
) -> None:
    drilling = Drilling(new_full_database(), full_bin_dir, tmp_path)

    evidence = drilling.dump_and_drill(Where.DATABASE)

    assert_passed(evidence, Check.TABLES, Check.SCHEMA_TEXT)
    assert evidence.place.startswith(f"database {drilling.source.database}_restore_test on ")
    assert "without owners and privileges" in by_check(evidence)[Check.CONTENTS].text
    left = one(
        replace(drilling.source, database="postgres"), "SELECT count(*) FROM pg_database WHERE datname ~ '_test'"
    )
    assert left == 0


def test_an_ordinary_role_can_drill_in_a_scratch_database(
    new_full_database: NewDatabase, full_bin_dir: Path, tmp_path: Path
) -> None:
    drilling = Drilling(new_full_database(), full_bin_dir, tmp_path)
    postgres = replace(drilling.source, database="postgres")
    drilling.dump()
    execute(postgres, "CREATE ROLE restores LOGIN CREATEDB")
    try:
        driller = replace(drilling.driller, target=replace(drilling.source, user="restores"))
        evidence = drilling.drill(Where.DATABASE, driller=driller)
    finally:
        execute(postgres, "DROP ROLE restores")

    assert_passed(evidence, Check.TABLES, Check.SCHEMA_TEXT)


@pytest.mark.exhaustive
def test_another_version_of_an_extension_is_odd(boss: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    with database(boss, "extended") as source:
        execute(source, "CREATE EXTENSION hstore VERSION '1.6'", "CREATE TABLE t AS SELECT 'a=>1'::hstore AS h")

        evidence = Drilling(source, full_bin_dir, tmp_path).dump_and_drill()

    assert_passed(evidence, Check.EXTENSIONS)
    newest = by_check(evidence)[Check.EXTENSIONS].text
    assert newest == "extension hstore is 1.8 in the copy and 1.6 in the source"


def test_a_throwaway_server_has_room_to_lock_all_tables(bin_dir: Path) -> None:
    """Reading the copy locks all tables and sequences, and a server's lock table has a fixed size from its start."""
    room = "SELECT current_setting('max_locks_per_transaction')::int * current_setting('max_connections')::int"
    with throwaway(
        Programs(bin_dir), Path("/tmp"), "large", "postgres", relations=80_000, keep=False, log=quiet
    ) as copy:
        assert one(copy.server, room) == 160_000
    assert locks_for(0) == 512
