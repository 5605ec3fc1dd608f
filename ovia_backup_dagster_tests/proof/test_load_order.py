"""The order in which rows and indexes are loaded whose functions read other tables.

The order does not depend on chance. Tables that never load are named, and their rows are salvaged.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import RestoreError
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.proof import pg_restore
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.load_order import may_lean
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster_tests.conftest import PortCluster, execute, quiet
from ovia_backup_dagster_tests.support.drilling import Drilling, by_check, database, one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.proofs import going_live, lines_of, proof_of

#: A CHECK that reads a table whose data is loaded later.
ELSEWHERE = (
    "CREATE SCHEMA a",
    "CREATE SCHEMA b",
    "CREATE TABLE b.codes (kind text, code text, PRIMARY KEY (kind, code))",
    """CREATE FUNCTION b.known(k text, c text) RETURNS bool LANGUAGE sql AS
       $$ SELECT EXISTS (SELECT FROM b.codes WHERE kind = k AND code = c) $$""",
    "INSERT INTO b.codes VALUES ('acct', 'gold'), ('acct', 'blue')",
    "CREATE TABLE a.accounts (id int PRIMARY KEY, acct text, CONSTRAINT acct_known CHECK (b.known('acct', acct)))",
    "INSERT INTO a.accounts SELECT i, CASE i % 2 WHEN 0 THEN 'gold' ELSE 'blue' END FROM generate_series(1, 200) i",
)
NOTE = (
    "table a.accounts was loaded after the others: its CHECK acct_known looks into b.codes (b.known); "
    "a plain pg_restore may fail on it"
)
#: Objects that read others, or are read. Because of their names, pg_dump lists them in the wrong order.
KINDS = (
    "CREATE SCHEMA app",
    "CREATE TABLE app.z_codes (code text PRIMARY KEY)",
    "INSERT INTO app.z_codes VALUES ('a'), ('b')",
    """CREATE FUNCTION app.is_code(c text) RETURNS bool LANGUAGE plpgsql AS
       $$ BEGIN RETURN EXISTS (SELECT FROM app.z_codes z WHERE z.code = c); END $$""",
    "CREATE DOMAIN app.code AS text CONSTRAINT code_known CHECK (app.is_code(VALUE))",
    "CREATE TABLE app.arrays (id int, codes app.code[])",
    "INSERT INTO app.arrays VALUES (1, '{a,b}')",
    "CREATE TABLE app.z_rates (code text PRIMARY KEY, r numeric)",
    "INSERT INTO app.z_rates VALUES ('a', 1.5), ('b', 2)",
    "CREATE VIEW app.y_rates AS SELECT * FROM app.z_rates",
    """CREATE FUNCTION app.rate(c text) RETURNS numeric LANGUAGE sql IMMUTABLE AS
       $$ SELECT r FROM app.y_rates WHERE code = c $$""",
    "CREATE FUNCTION app.double(c text) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$ SELECT 2 * app.rate(c) $$",
    """CREATE TABLE app.items (id int, code text, first numeric DEFAULT app.rate('a'),
                               total numeric GENERATED ALWAYS AS (app.double(code)) STORED)""",
    "INSERT INTO app.items (id, code) SELECT i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 50) i",
    "CREATE INDEX items_rate ON app.items (app.rate(code), id)",
    "CREATE TABLE app.defaults (id int, r numeric DEFAULT app.rate('a'))",
    "INSERT INTO app.defaults VALUES (1)",
    "CREATE TABLE app.events (id int, code text) PARTITION BY RANGE (id)",
    "CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM (0) TO (100)",
    """CREATE FUNCTION app.has_rate(c text) RETURNS bool
       BEGIN ATOMIC SELECT EXISTS (SELECT FROM app.z_rates WHERE code = c); END""",
    "ALTER TABLE app.events ADD CONSTRAINT events_rated CHECK (app.has_rate(code))",
    "INSERT INTO app.events VALUES (1, 'a')",
    "CREATE TABLE app.parents (id int, c text CONSTRAINT parents_known CHECK (app.is_code(c)))",
    "CREATE TABLE app.children (x int) INHERITS (app.parents)",
    "INSERT INTO app.children VALUES (1, 'a', 2)",
    # Third level: a CHECK that reads a table that reads another table.
    "CREATE FUNCTION app.is_item(i int) RETURNS bool LANGUAGE sql AS $$ SELECT count(*) > 0 FROM app.items AS x $$",
    "CREATE TABLE app.bought (id int CONSTRAINT is_an_item CHECK (app.is_item(id)))",
    "INSERT INTO app.bought VALUES (1), (2)",
    # A function that reads no table, or that only a trigger calls, does not delay its table.
    "CREATE FUNCTION app.tidy(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(trim(t)) $$",
    "CREATE TABLE app.aside (t text CHECK (app.tidy(t) <> ''))",
    "INSERT INTO app.aside VALUES ('X')",
    """CREATE FUNCTION app.on_aside() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN PERFORM 1 FROM app.items; RETURN new; END $$""",
    "CREATE TRIGGER aside BEFORE INSERT ON app.aside FOR EACH ROW EXECUTE FUNCTION app.on_aside()",
    # Dynamic SQL with a table name from the caller, or built at run time; functions of an operator, of a cast, and on
    # a table with an odd name.
    """CREATE FUNCTION app.is_in(t text, c text) RETURNS bool LANGUAGE plpgsql AS $$ DECLARE found bool; BEGIN
       EXECUTE format('SELECT EXISTS (SELECT FROM app.%I AS x WHERE x.code = $1)', t) INTO found USING c;
       RETURN found; END $$""",
    "CREATE TABLE app.as_told (c text CONSTRAINT told CHECK (app.is_in('z_codes', c)))",
    "INSERT INTO app.as_told VALUES ('a')",
    "CREATE TABLE app.as_built (c text CONSTRAINT built CHECK (app.is_in('z_' || 'codes', c)))",
    "INSERT INTO app.as_built VALUES ('a')",
    "CREATE FUNCTION app.same(text, text) RETURNS bool LANGUAGE sql AS $$ SELECT $1 IN (TABLE app.z_codes) $$",
    "CREATE OPERATOR app.=~= (LEFTARG = text, RIGHTARG = text, FUNCTION = app.same)",
    "CREATE TABLE app.by_operator (c text CONSTRAINT alike CHECK (c OPERATOR(app.=~=) 'a'))",
    "INSERT INTO app.by_operator VALUES ('a')",
    "CREATE TYPE app.pair AS (a int, b bigint)",
    "CREATE FUNCTION app.paired(i int) RETURNS app.pair LANGUAGE sql AS $$ SELECT i, max(id)::bigint FROM app.items $$",
    "CREATE CAST (int AS app.pair) WITH FUNCTION app.paired(int)",
    "CREATE TABLE app.by_cast (i int CONSTRAINT cast_is CHECK (((i::app.pair).b) IS NOT NULL))",
    "INSERT INTO app.by_cast VALUES (1)",
    'CREATE TABLE app."Odd; (Table" (id int)',
    'INSERT INTO app."Odd; (Table" VALUES (1)',
    'CREATE FUNCTION app.in_odd(i int) RETURNS bool LANGUAGE sql AS $$ SELECT i IN (TABLE app."Odd; (Table") $$',
    "CREATE TABLE app.into_odd (i int CONSTRAINT odd CHECK (app.in_odd(i)))",
    "INSERT INTO app.into_odd VALUES (1)",
    "SELECT lo_from_bytea(4711, 'large')",
)
LATER = {
    "app.arrays": "the CHECK of domain app.code looks into app.z_codes (app.is_code)",
    "app.items": "its generated column total looks into app.z_rates (app.double)",
    "app.events_1": "its CHECK events_rated looks into app.z_rates (app.has_rate)",
    "app.parents": "its CHECK parents_known looks into app.z_codes (app.is_code)",
    "app.children": "its CHECK parents_known looks into app.z_codes (app.is_code)",
    "app.as_told": "its CHECK told looks into app.z_codes (app.is_in)",
    "app.as_built": "its CHECK built looks into what it names at run time (app.is_in)",
    "app.by_operator": "its CHECK alike looks into app.z_codes (app.same)",
    "app.by_cast": "what is computed of its rows looks into app.items (app.paired)",
    "app.into_odd": "its CHECK odd looks into app.Odd; (Table (app.in_odd)",
    "app.bought": "its CHECK is_an_item looks into app.items (app.is_item)",
}
#: Two tables that read each other: there is no right order.
CYCLE = (
    "CREATE TABLE one (id int)",
    "CREATE TABLE two (id int)",
    "CREATE FUNCTION in_one(i int) RETURNS bool LANGUAGE sql AS $$ SELECT i IN (SELECT id FROM public.one) $$",
    "CREATE FUNCTION in_two(i int) RETURNS bool LANGUAGE sql AS $$ SELECT i IN (SELECT id FROM public.two) $$",
    "INSERT INTO one VALUES (1), (2)",
    "INSERT INTO two VALUES (1), (2)",
    "ALTER TABLE one ADD CONSTRAINT one_is_in_two CHECK (in_two(id))",
    "ALTER TABLE two ADD CONSTRAINT two_is_in_one CHECK (in_one(id))",
    "COMMENT ON CONSTRAINT two_is_in_one ON two IS 'kept'",
)
#: A function whose text does not show which table it reads.
HIDDEN = (
    "CREATE TABLE z_hidden (id int)",
    "INSERT INTO z_hidden VALUES (1), (2)",
    """CREATE FUNCTION is_filled(t text) RETURNS bool LANGUAGE plpgsql AS
       $$ BEGIN RETURN pg_relation_size(('public.z' || t)::regclass) > 0; END $$""",
    "CREATE TABLE a_seen (id int CONSTRAINT seen_is_filled CHECK (is_filled('_hidden')))",
    "INSERT INTO a_seen VALUES (1), (2)",
)


def plain(source: Connection, bin_dir: Path, path: Path, *options: str) -> Path:
    """A dump by pg_dump alone."""
    command = (f"{bin_dir}/pg_dump", "--format=custom", *options, f"--file={path}")
    code, _, stderr = capture(command, variables=source.environment())
    assert code == 0, stderr
    return path


def asked(connection: Connection, *statements: str) -> object:
    """The first value that the last statement returns."""
    to = {"host": connection.host, "port": connection.port, "dbname": connection.database, "user": connection.user}
    with psycopg.connect(**to, autocommit=True) as session:  # type: ignore[arg-type]
        for statement in statements:
            cursor = session.execute(statement.encode())
        row = cursor.fetchone()
    assert row is not None
    return row[0]


def load(archive: Path, target: Connection, bin_dir: Path, jobs: int) -> list[str]:
    """Load an archive into the target database; return the notes."""
    programs = Programs(bin_dir)
    restorer = Restorer(programs, target, "copy", jobs, rescue="RESCUE")
    return restorer.restore(archive, archives.contents_list(programs, archive), None, quiet)


@pytest.mark.parametrize("jobs_of_rounds", thinned([(1, 4), (1, *[2, 4] * 5)], together=True), ids=len)
def test_a_table_that_reads_a_later_one_is_loaded_after_it(
    server: PortCluster, bin_dir: Path, tmp_path: Path, jobs_of_rounds: tuple[int, ...]
) -> None:
    with database(server, "elsewhere") as source:
        execute(source, *ELSEWHERE)
        archive = plain(source, bin_dir, tmp_path / "elsewhere.dump")
    for jobs in jobs_of_rounds:
        with database(server, "again") as target:
            assert load(archive, target, bin_dir, jobs) == [NOTE]
            assert one(target, "SELECT count(*) FROM a.accounts") == 200


def test_every_kind_of_reader_is_loaded_after_what_it_reads(
    server: PortCluster, full_server: PortCluster, bin_dir: Path, full_bin_dir: Path, tmp_path: Path
) -> None:
    """In a throwaway cluster, on the source's server and on another one; the only finding is the note."""
    with database(server, "kinds") as source:
        execute(source, *KINDS)
        drilling = Drilling(source, bin_dir, tmp_path)
        backup = drilling.dump()
        evidence = drilling.drill()
        texts = [by_check(evidence)[Check.RESTORED].text]
        assert evidence.passed, evidence.failures
        for place, folder, jobs in ((source, bin_dir, 1), (full_server.connection(), full_bin_dir, 3)):
            proof = proof_of(replace(drilling, bin_dir=folder), backup, jobs=jobs)
            with going_live(place, "kinds_copy") as copy:
                proof.restore(copy)
                proof.prove(copy)
                to = copy.connection
                assert not proof.failed, proof.lines
                assert one(to, "SELECT sum(total) FROM app.items") == 25 * (3 + 4)
                look = "SELECT count(*) FROM app.items WHERE app.rate(code) = 1.5"
                assert asked(to, "SET enable_seqscan = off", look) == 25
                assert one(to, "SELECT convert_from(lo_get(4711), 'UTF8')") == "large"
                texts.append(lines_of(proof)[Check.RESTORED].text)
                notes = Restorer(Programs(folder), to, "copy", 2)._order(backup.path, proof.contents.listing).notes
    assert len(set(texts)) == 1
    found = {note.partition(" was loaded after the others: ")[0].removeprefix("table "): note for note in notes}
    assert {
        name: note.partition(": ")[2].partition("; a plain")[0] for name, note in found.items() if name in LATER
    } == LATER
    assert [name for name in found if name not in LATER] == [
        (
            "index app.items_rate was made after all data: app.rate looks into app.z_rates; "
            "a plain pg_restore may compute it otherwise"
        )
    ]


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_table_that_fails_unforeseen_is_loaded_again(
    jobs: int, server: PortCluster, bin_dir: Path, tmp_path: Path
) -> None:
    """The rows are INSERT commands, some of which may have succeeded the first time."""
    with database(server, "hidden") as source:
        execute(source, *HIDDEN, "INSERT INTO a_seen SELECT 1 FROM generate_series(1, 5)")
        archive = plain(source, bin_dir, tmp_path / "hidden.dump", "--inserts")
    with database(server, "again") as target:
        notes = load(archive, target, bin_dir, jobs)
        assert one(target, "SELECT count(*) FROM a_seen") == 7
    if jobs == 1:
        assert notes == [
            (
                "TABLE DATA public a_seen failed at first, and was made after the rest: it looks into what came later; "
                "a plain pg_restore may fail on it"
            )
        ]


@pytest.mark.exhaustive
def test_a_table_that_never_loads_is_named_and_salvaged(
    server: PortCluster, bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the order is not foreseen and two jobs deadlock."""
    with database(server, "cycle") as source:
        execute(source, *CYCLE)
        drilling = Drilling(source, bin_dir, tmp_path)
        backup = drilling.dump()
        said = set()
        for jobs, foreseen in ((1, True), (2, True), (2, False)):
            monkeypatch.setattr(pg_restore, "may_lean", may_lean if foreseen else lambda _: False)
            proof = proof_of(drilling, backup, jobs=jobs)
            with going_live(source, "cycle_copy") as copy, pytest.raises(RestoreError) as raised:
                proof.restore(copy)
            said.add(str(raised.value))
        monkeypatch.undo()
        (text,) = said
        assert (
            "CHECK one_is_in_two refuses a row of public.one; CHECK two_is_in_one refuses a row of public.two" in text
        )
        assert f"ovia-backup restore {backup.path.name} --mode new --even-if-damaged" in text

        proof = proof_of(drilling, backup)
        with going_live(source, "cycle_copy") as copy:
            proof.restore(copy, despite_errors=True)
            proof.prove(copy)
            assert proof.lost == []
            assert not proof.failed, proof.lines
            valid = "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND convalidated AND conrelid >= 16384"
            assert one(copy.connection, valid) == 2
            kept = "SELECT obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE conname = 'two_is_in_one'"
            assert one(copy.connection, kept) == "kept"


#: Constraints that rows break although the catalog calls them valid.
BROKEN_BY_DATA = (
    "CREATE TABLE checked (id int, t text)",
    "INSERT INTO checked VALUES (1, 's3cret'), (-7, 's3cret')",
    "ALTER TABLE checked ADD CONSTRAINT is_right CHECK (id > 0) NOT VALID",
    "CREATE TABLE parts (id int, t text) PARTITION BY RANGE (id)",
    "CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (-100) TO (100)",
    "INSERT INTO parts VALUES (-7, 's3cret')",
    "ALTER TABLE parts ADD CONSTRAINT part_is_right CHECK (id > 0) NOT VALID",
    "CREATE DOMAIN positive AS int",
    "CREATE TABLE within (many positive[])",
    "INSERT INTO within VALUES ('{1,-7}')",
    "ALTER DOMAIN positive ADD CONSTRAINT is_positive CHECK (VALUE > 0) NOT VALID",
    "UPDATE pg_constraint SET convalidated = true WHERE conname IN ('is_right', 'part_is_right', 'is_positive')",
    "CREATE TABLE missing (id int, t text)",
    "INSERT INTO missing VALUES (1, NULL), (2, 's3cret')",
    "UPDATE pg_attribute SET attnotnull = true WHERE attrelid = 'missing'::regclass AND attname = 't'",
)
BROKEN_AFTER_DATA = (
    "CREATE TABLE parent (id int PRIMARY KEY)",
    "CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent)",
    "INSERT INTO parent VALUES (1)",
    "CREATE TABLE twice (id int CONSTRAINT is_one PRIMARY KEY)",
    "CREATE TABLE apart (r int4range, CONSTRAINT is_apart EXCLUDE USING gist (r WITH &&))",
    "SET session_replication_role = replica; INSERT INTO child VALUES (1, 1), (2, 98765)",
    "UPDATE pg_index SET indisready = false WHERE indexrelid IN ('is_one'::regclass, 'is_apart'::regclass)",
    "INSERT INTO twice VALUES (98765), (98765)",
    "INSERT INTO apart VALUES ('[1,5]'), ('[2,98765]')",
    "UPDATE pg_index SET indisready = true WHERE indexrelid IN ('is_one'::regclass, 'is_apart'::regclass)",
)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("statements", "names", "rows"),
    [
        (
            BROKEN_BY_DATA,
            (
                "CHECK is_right refuses a row of public.checked",
                "column t of public.missing is NOT NULL, and a row has none",
                "CHECK part_is_right refuses a row of public.part_1",
                "CHECK is_positive of domain public.positive refuses a row of public.within",
            ),
            {"checked": 2, "parts": 1, "within": 1, "missing": 2},
        ),
        (
            BROKEN_AFTER_DATA,
            (
                "exclusion constraint is_apart of public.apart cannot be created: rows conflict",
                "unique is_one of public.twice cannot be created: rows share a key",
                "foreign key child_p_fkey (public.child → public.parent) cannot be created",
            ),
            {"parent": 1, "child": 2, "twice": 2, "apart": 2},
        ),
    ],
    ids=["of rows", "of keys"],
)
def test_a_broken_constraint_is_named_and_all_rows_salvaged(
    statements: tuple[str, ...],
    names: tuple[str, ...],
    rows: dict[str, int],
    server: PortCluster,
    bin_dir: Path,
    tmp_path: Path,
) -> None:
    with database(server, "broken") as source:
        execute(source, "; ".join(statements))
        drilling = Drilling(source, bin_dir, tmp_path)
        backup = drilling.dump()
        evidence = drilling.drill()
        text = f"{evidence.error} {evidence.fix}"
        for name in names:
            assert name in text
        assert "their values are not shown" in text
        assert f"ovia-backup restore {backup.path.name} --mode new --even-if-damaged" in text

        proof = proof_of(drilling, backup)
        with going_live(source, "broken_copy") as copy:
            proof.restore(copy, despite_errors=True)
            for table, count in rows.items():
                assert one(copy.connection, f"SELECT count(*) FROM {table}") == count, proof.lost
            bound = "SELECT count(*) FROM pg_constraint WHERE NOT convalidated"
            assert one(copy.connection, bound) == (4 if statements is BROKEN_BY_DATA else 1), proof.lost
    assert len(proof.lost) == len(names)
    assert lines_of(proof)[Check.RESTORED].result is Result.FAILED
    for shown in (text, *proof.lost):
        assert not {"s3cret", "98765", "-7"} & set(shown.replace("(", " ").replace(")", " ").split())


#: Functions that depend on the session's search_path: in SQL and PL/pgSQL, on an extension, on an operator.
LEANING = (
    "CREATE SCHEMA app",
    "CREATE SCHEMA ops",
    "CREATE EXTENSION unaccent",
    "SET search_path = app, public",
    "CREATE TABLE rates (code text PRIMARY KEY, r numeric)",
    "INSERT INTO rates VALUES ('a', 1.5), ('b', 2)",
    "CREATE FUNCTION rate(c text) RETURNS numeric LANGUAGE sql IMMUTABLE AS $$ SELECT r FROM rates WHERE code = c $$",
    "CREATE FUNCTION norm(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(trim(t)) $$",
    "CREATE FUNCTION norm2(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT norm(t) || '!' $$",
    """CREATE FUNCTION fine(t text) RETURNS bool LANGUAGE plpgsql SET search_path = app AS
       $$ BEGIN RETURN norm(t) <> ''; END $$""",
    "CREATE FUNCTION plain(t text) RETURNS bool RETURN norm(t) <> ''",
    "CREATE DOMAIN tidy AS text CHECK (norm2(VALUE) <> '!')",
    """CREATE TABLE items (id int PRIMARY KEY, code text, name tidy, CHECK (fine(name)), CHECK (plain(name)),
                           total numeric GENERATED ALWAYS AS (rate(code) * 2) STORED)""",
    "INSERT INTO items SELECT i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END, 'Name ' || i FROM generate_series(1, 300) i",
    "CREATE INDEX items_name ON items (norm2(name))",
    """CREATE FUNCTION public.no_accents(t text) RETURNS text LANGUAGE sql IMMUTABLE AS
       $$ SELECT unaccent('unaccent', t) $$""",
    "CREATE INDEX items_plain ON items (public.no_accents(name))",
    "CREATE FUNCTION ops.near(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS $$ SELECT abs($1 - $2) < 10 $$",
    "CREATE OPERATOR ops.<=> (LEFTARG = int, RIGHTARG = int, FUNCTION = ops.near)",
    "SET search_path = app, public, ops",
    "CREATE FUNCTION is_near(i int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN i <=> 5; END $$",
    "CREATE TABLE points (i int CONSTRAINT points_near CHECK (is_near(i)))",
    "INSERT INTO points VALUES (1), (7)",
    "CREATE EVENT TRIGGER looks ON ddl_command_end EXECUTE FUNCTION public.looks()",
)
LOOKS = "CREATE FUNCTION public.looks() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; END $$"


@pytest.mark.exhaustive
def test_functions_that_need_a_search_path_are_lent_one(
    full_server: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    with database(full_server, "leaning") as source:
        execute(source, "; ".join((LOOKS, *LEANING)))
        drilling = Drilling(source, full_bin_dir, tmp_path)
        backup = drilling.dump()
        evidence = drilling.drill()
        assert not evidence.passed
        assert "functions depend on search_path" in evidence.error
        for remedy in (
            "app.norm2(text) SET search_path = app, pg_temp",
            "app.rate(text) SET search_path = app, pg_temp",
        ):
            assert f"ALTER FUNCTION {remedy}" in evidence.fix
        assert "app.fine" not in evidence.fix
        assert "app.plain" not in evidence.fix
        assert f"ovia-backup restore {backup.path.name} --mode new --even-if-damaged" in evidence.fix
        assert len(evidence.error + evidence.fix) < 1000

        proof = proof_of(drilling, backup)
        with going_live(source, "leaning_copy") as copy:
            proof.restore(copy, despite_errors=True)
            proof.prove(copy)
            assert proof.lost == []
            # The schema equals the archive's again: the lent search_path is gone.
            assert not proof.failed, proof.lines
            path = "SET search_path = app, public"
            assert asked(copy.connection, path, "SELECT sum(total) FROM app.items") == 150 * (3 + 4)
            assert one(copy.connection, "SELECT count(*) FROM app.points") == 2
            own = "SELECT count(*) FROM pg_proc WHERE proconfig IS NOT NULL AND oid >= 16384"
            assert one(copy.connection, own) == 1
        text = lines_of(proof)[Check.RESTORED].text
        assert "were lent one meanwhile" in text
        assert "ALTER FUNCTION public.no_accents(text) SET search_path = public, pg_temp" in text

        # After the advised statements, a drill passes.
        execute(
            source,
            *(f"ALTER FUNCTION {f} SET search_path = app, pg_temp" for f in ("app.norm2(text)", "app.rate(text)")),
            "ALTER FUNCTION public.no_accents(text) SET search_path = public, pg_temp",
            "ALTER FUNCTION app.is_near(int) SET search_path = app, ops, pg_temp",
        )
        evidence = drilling.dump_and_drill()
        assert evidence.passed, evidence.failures
