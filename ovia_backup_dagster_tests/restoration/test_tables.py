"""``restore --tables``: chosen tables as they were, in a schema of their own; no live table is changed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.restore_order import Step
from ovia_backup_dagster.restoration.steps.copy_tables import TablesData
from ovia_backup_dagster.restoration.table_copy import parse_tables, parts_of
from ovia_backup_dagster_tests.conftest import execute
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import Site, Words, admin_of, killed_at, words_of, written

WORDS: Words = (
    *words_of(Step.RESTORE)[:-1],
    *((mark, TablesData.step) for mark in (JournalMark.BEGUN, JournalMark.NOTED, JournalMark.DONE)),
    (JournalMark.FINISHED, None),
)


def schemas(site: Site) -> list[str]:
    """The schemas of restored tables in the live database."""
    return [row[0] for row in asked(site, "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'restored_')")]


def asked(site: Site, query: str) -> list[tuple]:  # type: ignore[type-arg]
    live = site.live
    with psycopg.connect(host=live.host, port=live.port, user=live.user, dbname=live.database) as session:
        return session.execute(query.encode()).fetchall()


def untouched(site: Site) -> bool:
    """Whether the live database is as it was, once the schemas are dropped; and whether no other database is left."""
    for name in schemas(site):
        execute(site.live, f"DROP SCHEMA {name} CASCADE")
    return site.content() == site.now and site.databases == [site.live.database]


def printed(output: str, begin: str) -> list[str]:
    """The words of the command that a note prints after this beginning."""
    [line] = [line for line in output.splitlines() if line.startswith(f"note: {begin}")]
    return shlex.split(line.removeprefix(f"note: {begin}"))


def test_lost_rows_are_inserted_by_the_printed_statement(site: Site) -> None:
    execute(site.live, "UPDATE people SET name = 'changed since' WHERE id = 400")
    before = asked(site, "SELECT * FROM people ORDER BY id")
    done = site.restore("--tables", "identities,public.people", confirm=False)
    assert done.code == 0, done.output
    [schema] = schemas(site)
    assert '"public"."identities": 500 rows, as they were' in done.output
    assert "99 of them are missing now, by primary key" in done.output
    assert '"public"."people": 500 rows, as they were' in done.output
    assert asked(site, f"SELECT count(*), min(name) FROM {schema}.people WHERE id <= 500") == [(500, "person 1")]
    assert asked(site, "SELECT * FROM people ORDER BY id") == before
    [first, _] = [line for line in done.output.splitlines() if line.startswith("note: to insert those: ")]
    program, _, database, _, statement = shlex.split(first.removeprefix("note: to insert those: "))
    assert (program, database) == ("psql", site.live.database)
    execute(site.live, statement)
    assert asked(site, "SELECT count(*), count(DISTINCT key) FROM identities") == [(500, 500)]
    *_, drop = printed(
        done.output, f"no table of {site.live.database} was changed; when the schema is not needed any more: "
    )
    execute(site.live, drop)
    assert schemas(site) == []
    assert site.databases == [site.live.database]
    [record] = site.records
    assert record.outcome == "done"
    assert record.order.tables == ("identities", "public.people")


#: Statements that make a table and fill it, and how many rows it then has.
ODD = [
    (["CREATE TYPE mood AS ENUM ('so', 'la')", "CREATE TABLE {t} (m mood PRIMARY KEY)",
      "INSERT INTO {t} VALUES ('la')"], 1),
    (["CREATE TABLE {t} (a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED)",
      "INSERT INTO {t} DEFAULT VALUES"], 1),
    (["CREATE TABLE {t} (a int) PARTITION BY LIST (a)", "CREATE TABLE part PARTITION OF {t} DEFAULT",
      "INSERT INTO {t} VALUES (1), (2)"], 2),
    (["CREATE TABLE {t} (a int)", "CREATE TABLE child () INHERITS ({t})", "INSERT INTO {t} VALUES (1)",
      "INSERT INTO child VALUES (2)"], 1),
    (["CREATE MATERIALIZED VIEW {t} AS SELECT 1 AS a"], 1),
    (["CREATE TABLE {t} (gone int, b text)", "ALTER TABLE {t} DROP COLUMN gone",
      "INSERT INTO {t} VALUES (E'\\t\\\\N'), (NULL)"], 2),
    (["CREATE TABLE {t} ()", "INSERT INTO {t} DEFAULT VALUES", "INSERT INTO {t} DEFAULT VALUES"], 2),
    (["CREATE DOMAIN small AS int CHECK (VALUE < 5)", "CREATE TABLE {t} (s small, l small[])",
      "INSERT INTO {t} VALUES (1, '{{1,2}}')"], 1),
    (["CREATE TABLE {t} (c regclass, m money, i interval, f float8, z timestamptz, b bytea)",
      "INSERT INTO {t} VALUES ('people', 1.5, '1 day -2 h', 0.1, now(), '\\x00ff')"], 1),
    (["CREATE TABLE {t} (p people)", "INSERT INTO {t} SELECT p FROM people p"], 501),
    (["CREATE TABLE {t} (a int PRIMARY KEY)", "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY",
      "INSERT INTO {t} VALUES (3)"], 1),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "rows"), thinned(ODD, daily=2))
@pytest.mark.parametrize("name", thinned(['a,b."c" d\'e', "Capital", "ö\n\\"]))
def test_tables_of_every_kind_are_copied(site: Site, sql: list[str], rows: int, name: str) -> None:
    """The table is gone in the live database when it is restored, and so are the types that it needs."""
    table = sql_identifier(name)
    execute(site.live, "SET standard_conforming_strings = on", *(each.format(t=table) for each in sql))
    made = site.place.chain()
    execute(site.live, "DROP SCHEMA public CASCADE")
    given = f'public."{name.replace(chr(34), chr(34) * 2)}"'
    done = site.place.run("restore", site.place.catalog.word(made), "--tables", given)
    assert done.code == 0, done.output
    [schema] = schemas(site)
    assert asked(site, f"SELECT count(*) FROM {schema}.{table}") == [(rows,)]
    assert site.databases == [site.live.database]


def test_no_function_of_the_live_database_runs(site: Site) -> None:
    """A domain's check would run as the role that restores, which may be a superuser."""
    execute(
        site.live,
        "CREATE DOMAIN checked AS text",
        "CREATE TABLE of_domain (id checked PRIMARY KEY)",
        "INSERT INTO of_domain VALUES ('a')",
    )
    made = site.place.chain()
    execute(
        site.live,
        "CREATE TABLE ran (a int)",
        "CREATE FUNCTION runs(text) RETURNS bool LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO ran VALUES (1); RETURN true; END'",
        "ALTER DOMAIN checked ADD CHECK (runs(VALUE))",
        "TRUNCATE ran",
        "DELETE FROM of_domain",
    )
    done = site.place.run("restore", site.place.catalog.word(made), "--tables", "of_domain")
    assert done.code == 0, done.output
    assert "it is not known how many of them are missing now" in done.output
    assert asked(site, "SELECT count(*) FROM ran") == [(0,)]
    *_, statement = printed(done.output, "to insert those: ")
    execute(site.live, statement)
    assert asked(site, "SELECT id FROM of_domain") == [("a",)]


def test_rows_that_arrive_altered_are_noticed(site: Site) -> None:
    """An event trigger of the live database gives each new table a trigger that alters its rows."""
    execute(
        site.live,
        "CREATE FUNCTION alters() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.name = $$x$$; RETURN NEW; END'",
        "CREATE FUNCTION spreads() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN EXECUTE (SELECT "
        "$$CREATE TRIGGER a BEFORE INSERT ON $$ || object_identity || $$ FOR EACH ROW EXECUTE FUNCTION "
        "public.alters()$$ FROM pg_event_trigger_ddl_commands()); END'",
        "CREATE EVENT TRIGGER spreads ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION spreads()",
    )
    site.now = site.content()
    done = site.restore("--tables", "people", confirm=False)
    assert done.code == 1
    assert 'differs from "public"."people" of the restored copy: 500 rows of 500, or other values' in done.output
    assert untouched(site)


def test_the_live_table_may_have_changed(site: Site) -> None:
    execute(site.live, "ALTER TABLE identities DROP COLUMN person, ADD COLUMN more int, ALTER COLUMN id TYPE int")
    done = site.restore("--tables", "identities", confirm=False)
    assert "99 of them are missing now" in done.output
    *_, statement = printed(done.output, "to insert those: ")
    execute(site.live, statement)
    assert asked(site, "SELECT count(*), count(key) FROM identities") == [(500, 500)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    thinned(
        [
            (["--tables", "nowhere"], "there is no table nowhere in"),
            (["--tables", "people", "--mode", "drop"], "exclude --tables"),
            (["--tables", "people", "--into", "seen"], "are for whole databases, and exclude --tables"),
            (["--tables", "other.people"], "there is no table other.people in"),
            (["--tables", "a.b.c"], "a.b.c is not the name of a table"),
            (["--tables", "people_pkey"], "there is no table people_pkey in"),
        ],
        daily=3,
    ),
)
def test_an_impossible_wish_is_refused_before_anything(site: Site, arguments: Sequence[str], said: str) -> None:
    line = site.restore(*arguments, confirm=False).refused()
    assert said in line
    assert untouched(site)
    assert site.records == []


def test_a_name_in_two_schemas_is_refused_and_put_back(site: Site) -> None:
    execute(site.live, "CREATE SCHEMA other", "CREATE TABLE other.people (a int)")
    made = site.place.chain()
    site.now = site.content()
    done = site.place.run("restore", site.place.catalog.word(made), "--tables", "people")
    assert 'people is several tables: "other"."people", "public"."people"' in done.output
    assert "--tables SCHEMA.TABLE" in done.output
    assert untouched(site)
    done = site.place.run("restore", site.place.catalog.word(made), "--tables", "public.people,other.people")
    assert done.code == 0, done.output
    [schema] = schemas(site)
    assert asked(site, f"SELECT count(*) FROM {schema}.other_people") == [(0,)]


def test_a_role_that_may_not_create_a_schema_is_told(site: Site) -> None:
    with admin_of(site) as session:
        session.execute("DROP ROLE IF EXISTS tables_only")
        session.execute("CREATE ROLE tables_only LOGIN CREATEDB")
    try:
        with_role = site.with_settings(RESTORE_POSTGRES_USER="tables_only")
        planned = with_role.restore("--tables", "people", "--plan", confirm=False)
        assert "tables_only may not create a schema" in planned.output
        assert f'GRANT CREATE ON DATABASE "{site.live.database}" TO "tables_only"' in planned.output
    finally:
        with admin_of(site) as session:
            session.execute("DROP ROLE tables_only")


def test_the_owner_of_the_database_may_read_them(site: Site) -> None:
    with admin_of(site) as session:
        session.execute("DROP ROLE IF EXISTS tables_owner")
        session.execute("CREATE ROLE tables_owner LOGIN")
        session.execute(f'ALTER DATABASE "{site.live.database}" OWNER TO tables_owner'.encode())
    try:
        assert site.restore("--tables", "people", confirm=False).code == 0
        [schema] = schemas(site)
        to = {"host": site.live.host, "port": site.live.port, "dbname": site.live.database}
        with psycopg.connect(**to, user="tables_owner") as owner:  # type: ignore[arg-type]
            assert owner.execute(f"SELECT count(*) FROM {schema}.people".encode()).fetchone() == (500,)
    finally:
        with admin_of(site) as session:
            session.execute(f'ALTER DATABASE "{site.live.database}" OWNER TO CURRENT_USER'.encode())
            session.execute("DROP OWNED BY tables_owner")
            execute(site.live, "DROP OWNED BY tables_owner")
            session.execute("DROP ROLE tables_owner")


@pytest.mark.parametrize("then", thinned(["--resume", "--abort"], daily=2))
@pytest.mark.parametrize(
    ("word", "before"),
    thinned([(4, True), (4, False), *((n, b) for n in (0, 1, 2, 3, 5) for b in (True, False))], daily=2),
)
def test_a_killed_copy_is_resumed_or_aborted(site: Site, word: int, before: bool, then: str) -> None:
    """After word 4, the rows are there and the journal knows it; before, only the rows are there."""
    with killed_at(word, before=before):
        assert site.restore("--tables", "people", confirm=False).killed
    assert written(site) == WORDS[: word + (not before)]
    ended = site.place.run("restore", then)
    assert ended.code == 0, ended.output
    there = schemas(site)
    assert len(there) == (then == "--resume")
    assert [asked(site, f"SELECT count(*) FROM {name}.people") for name in there] == [[(500,)]] * len(there)
    assert site.records[0].outcome == ("done" if there else "put back")
    assert untouched(site)


def test_a_schema_of_another_is_left_alone(site: Site) -> None:
    """It has the name, but not the mark of this restore."""
    with killed_at(3, before=False):
        assert site.restore("--tables", "people", confirm=False).killed
    stamp = json.loads(site.place.run("restore", "--history", "--json").output or "[]")
    assert stamp == []
    [journal] = site.place.catalog.root.glob("restores/*.journal*")
    name = f"restored_{journal.name[:17].replace('-', '')}"
    execute(site.live, f"CREATE SCHEMA {name}", f"CREATE TABLE {name}.precious (a int)")
    refused = site.place.run("restore", "--resume")
    assert f'schema "{name}" already exists' in refused.output
    assert asked(site, f"SELECT to_regclass('{name}.precious') IS NOT NULL") == [(True,)]
    assert site.databases == [site.live.database]


@given(st.lists(st.text(alphabet='ab".,\n ', min_size=1), min_size=1))
@example(['a,b"', ","])
def test_any_list_of_quoted_names_is_read_as_given(names: list[str]) -> None:
    quoted = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in names]
    found = parse_tables([",".join(quoted)])
    assert [parts_of(each) for each in found] == list(dict.fromkeys(("", name) for name in names))
