"""A restore reports errors without the values of rows that PostgreSQL repeats; errors of a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.postgres.server_messages import said_by, without_values
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, free_port
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Place

SECRET = "s3cretword"
NUMBER = "98765432109876"
#: Table -> what its CHECK does during a restore, and what the restore says about it.
ERRORS = {
    "raised": ("RAISE EXCEPTION 'the card of % is wrong', secret", "raised by public.on_raised(text), line 3"),
    "raised_lines": (
        "RAISE EXCEPTION E'first\\n%', secret USING DETAIL = secret, HINT = secret",
        "raised by public.on_raised_lines(text), line 3",
    ),
    "raised_as_known": (
        """RAISE EXCEPTION 'relation "%" does not exist', secret""",
        "raised by public.on_raised_as_known(text), line 3",
    ),
    "asserted": ("ASSERT false, secret", "raised by public.on_asserted(text), line 3"),
    "number": ("PERFORM secret::int", 'invalid input syntax for type integer: "…"'),
    "quotes": ("""PERFORM ('a "b" ' || secret || ' "c"')::int""", 'invalid input syntax for type integer: "…"'),
    "lines": ("PERFORM (E'a\\n' || secret || E'\\nb: ' || secret)::int", 'invalid input syntax for type integer: "…"'),
    "large": (f"PERFORM '{NUMBER}'::int", 'value "…" is out of range for type integer'),
    "day": ("PERFORM secret::date", 'invalid input syntax for type date: "…"'),
    "mood": ("PERFORM secret::public.feeling", 'invalid input value for enum public.feeling: "…"'),
    "list": ("PERFORM secret::int[]", 'malformed array literal: "…"'),
    "json": ("PERFORM ('{' || secret)::json", "invalid input syntax for type json"),
    "zone": ("PERFORM pg_catalog.now() AT TIME ZONE (secret || '-4711')", 'time zone "…" not recognized'),
    "setting": (
        "PERFORM pg_catalog.set_config('TimeZone', secret || '-4711', true)",
        'invalid value for parameter "TimeZone": "…"',
    ),
    "name": ("PERFORM pg_catalog.quote_ident(secret)::regclass", 'relation "…" does not exist'),
    "dynamic": ("EXECUTE pg_catalog.format('SELECT %I FROM public.raised', secret)", "does not exist"),
    "checked": ("RETURN false", 'new row for relation "checked" violates check constraint "is_right"'),
    "twice": ("RETURN true", 'could not create unique index "is_one"'),
}


@dataclass
class Site:
    place: Place
    database: str

    @property
    def written(self) -> str:
        """The text of all files on the volume except the dumps."""
        found = [path for path in self.place.root.rglob("*") if path.is_file() and path.suffix != ".dump"]
        assert found
        return "\n".join(path.read_text("utf-8") for path in found)


@pytest.fixture(scope="module")
def site(server: PortCluster, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A database whose backup does not restore, because its functions raise errors then."""
    name = f"values{os.getpid()}_{free_port()}"
    live = server.connection(name)
    with admin(server) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    try:
        execute(live, "CREATE TYPE feeling AS ENUM ('good')")
        for table, (does, _) in ERRORS.items():
            body = f"BEGIN\n  IF current_setting('application_name') LIKE 'ovia-backup%' THEN\n {does}; END IF;"
            execute(
                live,
                f"CREATE TABLE {table} (id int, secret text)",
                f"CREATE FUNCTION on_{table}(secret text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS "
                f"$$ {body} RETURN true; END $$",
                f"INSERT INTO {table} VALUES (1, '{SECRET}'), (2, '{SECRET}')",
                f"ALTER TABLE {table} ADD CONSTRAINT is_right CHECK (on_{table}(secret))",
            )
        one = "CREATE FUNCTION one(id int, secret text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT secret ||"
        execute(
            live,
            f"{one} CASE WHEN current_setting('application_name') LIKE 'ovia-backup%' THEN '' ELSE id::text END $$",
            "CREATE UNIQUE INDEX is_one ON twice (one(id, secret))",
        )
        folder = tmp_path_factory.mktemp("site")
        place = place_for(live, bin_dir, folder / "backups", folder)
        place = replace(place, settings={**place.settings, "BACKUP_EXPECTED_TABLES": "raised"})
        place.chain()
        yield Site(place, name)
    finally:
        with admin(server) as session:
            rows = session.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name]).fetchall()
            for row in rows:
                session.execute(f"DROP DATABASE {row[0]} WITH (FORCE)".encode())


def test_losses_are_reported_without_values(site: Site) -> None:
    """The restore meets each error, and names its table, constraint and line."""
    backup = site.place.catalog.backups()[0].path.name
    ended = site.place.run("restore", backup, "--mode", "new", "--even-if-damaged")
    assert ended.code == 0, ended.output
    (record,) = RestoreFolder(site.place.catalog).newest_first()
    assert record.proven is not None
    for table, (_, said) in ERRORS.items():
        whose = f"TABLE DATA public {table} " if table != "twice" else said
        assert [line for line in record.proven.lost if line.startswith(whose) and said in line], (table, record)
    assert "(line 1)" in record.proven.lost[0] or any("line 1" in line for line in record.proven.lost)
    for text in (ended.output, site.written):
        assert SECRET not in text
        assert NUMBER not in text


@pytest.mark.parametrize("command", [("drill",), ("restore", "latest", "--mode", "new")])
def test_the_first_error_is_reported_without_values(site: Site, command: tuple[str, ...]) -> None:
    ended = site.place.run(*command)
    assert ended.code == 1
    assert "Traceback" not in ended.output
    assert any(said in ended.output for _, said in ERRORS.values()), ended.output
    for text in (ended.output, site.written):
        assert SECRET not in text
        assert NUMBER not in text


def test_errors_of_our_own_queries_have_no_values(site: Site, server: PortCluster) -> None:
    """The same rule applies to our own queries, in which no user's function looks up a name."""
    to = {"host": str(server.folder), "port": server.port, "user": "postgres", "dbname": site.database}
    with psycopg.connect(**to, application_name="ovia-backup", autocommit=True) as session:  # type: ignore[arg-type]
        for table in ERRORS.keys() - {"twice", "checked", "name", "dynamic"}:
            with pytest.raises(psycopg.Error) as caught:
                session.execute(f"SELECT on_{table}(%s)".encode(), [SECRET])
            assert SECRET in str(caught.value) or NUMBER in str(caught.value)
            said = said_by(caught.value)
            assert said
            assert SECRET not in said
            assert NUMBER not in said


def test_values_in_other_languages_quotes_are_removed() -> None:
    """Values in the quotes of other languages are removed. libpq's connection errors are left unchanged."""
    for text, said in (
        (f"FEHLER:  ungültige Eingabesyntax für Typ integer: »{SECRET}«", "FEHLER:  ungültige Eingabesyntax"),
        (f"ERREUR:  syntaxe en entrée invalide pour le type integer : « {SECRET} »", "ERREUR:  syntaxe en entrée"),
        ('connection to server at "127.0.0.1" failed: FATAL:  role "x" does not exist', 'role "x" does not exist'),
        ('connection is bad: invalid "sslmode" value: "x"', 'invalid "sslmode" value: "x"'),
        (f'ERROR:  insert or update on table "t" violates x "k"\nDETAIL:  Key (a)=({SECRET})', 'table "t" violates x'),
    ):
        assert said in without_values(text)
        assert SECRET not in without_values(text)
        assert without_values(without_values(text)) == without_values(text)
