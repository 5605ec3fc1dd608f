"""Any alteration of the restored copy fails the drill, and the drill names it.

One copy is restored, then cloned, altered and proven many times. A few tests run a whole drill.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from psycopg import sql

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.verdict import Witness
from ovia_backup_dagster.drill.throwaway_cluster import throwaway
from ovia_backup_dagster.postgres.data_stream import split_columns
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.proof import comparison, record
from ovia_backup_dagster.proof.check_results import CheckResult, Result
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.proof.target import Copy
from ovia_backup_dagster_tests.conftest import TEMPLATE, PortCluster, admin, execute, quiet
from ovia_backup_dagster_tests.support.drilling import Drilling, assert_passed, by_check
from ovia_backup_dagster_tests.support.exhaustive import thinned

#: Name of a table -> its type, its three values, and the altered second value.
TYPES: dict[str, tuple[str, tuple[str, str, str], str]] = {
    "smallint": ("smallint", ("1", "2", "3"), "4"),
    "bigint": ("bigint", ("1", "9007199254740993", "3"), "9007199254740992"),
    "real": ("real", ("1", "2.5", "'NaN'"), "2.5000002"),
    "double": ("double precision", ("0", "0.3", "-1"), "0.30000000000000004"),
    "zero": ("double precision", ("1", "0", "2"), "'-0'"),
    "numeric": ("numeric", ("1", "1.0", "'Infinity'"), "1.00"),
    "money": ("money", ("1", "2.50", "3"), "2.51"),
    "text": ("text", ("'a'", "'b'", "'c'"), "'b '"),
    "case": ("text", ("'a'", "'b'", "'c'"), "'B'"),
    "unicode form": ("text", ("'a'", "U&'\\00E9'", "'c'"), "U&'e\\0301'"),
    "line end": ("text", ("'a'", r"E'b\nc'", "'c'"), r"E'b\r\nc'"),
    "backslash": ("text", ("'a'", r"E'\\n'", "'c'"), r"E'\n'"),
    "end of data": ("text", ("'a'", r"E'\\.'", "'c'"), r"E'\\.\\.'"),
    "null and empty": ("text", ("'a'", "NULL", "'c'"), "''"),
    "empty and null": ("text", ("'a'", "''", "'c'"), "NULL"),
    "null as text": ("text", ("'a'", "NULL", "'c'"), r"E'\\N'"),
    "varchar": ("varchar(9)", ("'a'", "'b'", "'c'"), "'b '"),
    "char": ("char(5)", ("'a'", "'b'", "'c'"), "'bb'"),
    "bytea": ("bytea", (r"'\x00'", r"'\x0102'", r"'\x'"), r"'\x0103'"),
    "boolean": ("boolean", ("true", "false", "NULL"), "true"),
    "date": ("date", ("'2026-01-01'", "'infinity'", "'4713-01-01 BC'"), "'-infinity'"),
    "time": ("time", ("'00:00'", "'23:59:59.999999'", "'1:00'"), "'24:00'"),
    "timetz": ("timetz", ("'1:00+1'", "'0:00+0'", "'3:00+0'"), "'1:00+1'"),
    "timestamp": ("timestamp", ("'2026-01-01'", "'2026-01-02 3:04:05.000001'", "now()"), "'2026-01-02 3:04:05'"),
    "timestamptz": ("timestamptz", ("'2026-01-01 0:00+0'", "'2026-03-29 2:30+1'", "now()"), "'2026-03-29 2:30+0'"),
    "interval": ("interval", ("'1 day'", "'1 mon'", "'1 s'"), "'30 days'"),
    "uuid": ("uuid", ("gen_random_uuid()", "gen_random_uuid()", "gen_random_uuid()"), "gen_random_uuid()"),
    "json": ("json", ("'1'", "'{\"a\": 1}'", "'null'"), "'{\"a\":1}'"),
    "jsonb": ("jsonb", ("'1'", "'{\"a\": null}'", "'null'"), "'{}'"),
    "json null": ("jsonb", ("'1'", "'null'", "'{}'"), "NULL"),
    "array": ("int[]", ("'{1}'", "'{1,2}'", "'{}'"), "'{2,1}'"),
    "array bounds": ("int[]", ("'{1}'", "'{1,2}'", "'{}'"), "'[0:1]={1,2}'"),
    "array of text": ("text[]", ("'{a}'", "'{NULL}'", "'{}'"), "'{\"NULL\"}'"),
    "two dimensions": ("int[][]", ("'{{1}}'", "'{{1,2},{3,4}}'", "'{}'"), "'{1,2,3,4}'"),
    "int4range": ("int4range", ("'[1,2]'", "'[1,9)'", "'empty'"), "'[1,9]'"),
    "tstzrange": ("tstzrange", ("'empty'", "'[2026-01-01 0:00+0,)'", "'(,)'"), "'(2026-01-01 0:00+0,)'"),
    "multirange": ("int4multirange", ("'{}'", "'{[1,2],[5,6]}'", "'{[1,9]}'"), "'{[1,6]}'"),
    "enum": ("public.identity_provider", ("'slack'", "'github'", "'jira'"), "'slack'"),
    "domain": ("public.email_address", ("'a@b'", "'c@d'", "'e@f'"), "'c@D'"),
    "composite": ("types.pair", ("'(1,a)'", "'(2,)'", "'(,)'"), "'(2,\"\")'"),
    "inet": ("inet", ("'::1'", "'10.0.0.1'", "'10.0.0.0/8'"), "'10.0.0.1/8'"),
    "macaddr": ("macaddr", ("'08:00:2b:01:02:03'", "'08:00:2b:01:02:04'", "NULL"), "'08:00:2b:01:02:05'"),
    "bit": ("bit(4)", ("'0000'", "'0001'", "'1111'"), "'0011'"),
    "varbit": ("varbit", ("'0'", "'00'", "''"), "'000'"),
    "point": ("point", ("'(0,0)'", "'(1,2)'", "'(3,4)'"), "'(2,1)'"),
    "polygon": ("polygon", ("'((0,0),(1,1))'", "'((0,0),(1,2))'", "NULL"), "'((0,0),(1,3))'"),
    "tsvector": ("tsvector", ("'a:1'", "'b:1A c:2'", "''"), "'b:1 c:2'"),
    "tsquery": ("tsquery", ("'a'", "'a & b'", "'!a'"), "'a | b'"),
    "xml": ("xml", ("'<a/>'", "'<a>1</a>'", "''"), "'<a>2</a>'"),
    "oid": ("oid", ("1", "4294967295", "3"), "4294967294"),
    "pg_lsn": ("pg_lsn", ("'0/0'", "'1/A'", "'2/0'"), "'1/B'"),
    "hstore": ("types.hstore", ("'a=>1'", "'a=>NULL'", "''"), "'a=>\"\"'"),
    "citext": ("types.citext", ("'a'", "'b'", "'c'"), "'B'"),
    "ltree": ("types.ltree", ("'a'", "'a.b'", "''"), "'a.c'"),
    "cube": ("types.cube", ("'1'", "'(1,2)'", "'(0)'"), "'(1,2),(3,4)'"),
    "large text": ("text", ("repeat('x', 3000000)", "repeat('y', 3000000)", "''"), "repeat('y', 2999999) || 'z'"),
}
WATCH = "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION more.watch()"
SOURCE = [
    "CREATE SCHEMA types",
    *(f"CREATE EXTENSION {name} SCHEMA types" for name in ("hstore", "citext", "ltree", "cube", "unaccent")),
    "CREATE TYPE types.pair AS (a int, b text)",
    *(f'CREATE TABLE types."of {name}" (id int, v {kind})' for name, (kind, _, _) in TYPES.items()),
    *(
        f'INSERT INTO types."of {name}" VALUES ' + ", ".join(f"({i}, {value})" for i, value in enumerate(values))
        for name, (_, values, _) in TYPES.items()
    ),
    "CREATE SCHEMA more",
    "CREATE TABLE more.from_here AS SELECT i, 'x' || i AS v FROM generate_series(1, 5) i",
    "CREATE TABLE more.to_there AS SELECT i, 'x' || i AS v FROM generate_series(6, 9) i",
    "CREATE TABLE more.swapped AS SELECT i, 'x' || i AS v, 'y' || i AS w FROM generate_series(1, 5) i",
    "CREATE TABLE more.twice AS SELECT 1 AS i FROM generate_series(1, 5)",
    "CREATE TABLE more.listed (k text, v int) PARTITION BY LIST (k)",
    *(f"CREATE TABLE more.listed_{k} PARTITION OF more.listed FOR VALUES IN ('{k}')" for k in "abc"),
    "INSERT INTO more.listed SELECT k, v FROM unnest('{a,b,c}'::text[]) k, generate_series(1, 3) v",
    "CREATE TABLE more.hashed (k int, v int) PARTITION BY HASH (k)",
    *(f"CREATE TABLE more.h_{i} PARTITION OF more.hashed FOR VALUES WITH (MODULUS 2, REMAINDER {i})" for i in (0, 1)),
    "INSERT INTO more.hashed SELECT i, i FROM generate_series(1, 20) i",
    "CREATE TABLE more.checked (a int CHECK (a > 0), b int NOT NULL DEFAULT 7, c int REFERENCES people (id), d int)",
    "ALTER TABLE more.checked ADD CONSTRAINT excluded EXCLUDE USING gist (int4range(a, b) WITH &&)",
    "ALTER TABLE more.checked ADD FOREIGN KEY (d) REFERENCES people (id) ON DELETE CASCADE DEFERRABLE",
    "CREATE FUNCTION more.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    *(
        f"CREATE TRIGGER {name} BEFORE UPDATE ON more.checked FOR EACH ROW EXECUTE FUNCTION more.nothing()"
        for name in ("one_trigger", "another_trigger")
    ),
    "CREATE POLICY looks ON more.checked USING (a > 1)",
    "ALTER TABLE more.checked ENABLE ROW LEVEL SECURITY",
    "CREATE TABLE more.forced (a int)",
    "ALTER TABLE more.forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    "CREATE DOMAIN more.positive AS int CONSTRAINT is_positive CHECK (VALUE > 0)",
    "CREATE VIEW more.seen AS SELECT a FROM more.checked",
    "CREATE RULE nothing AS ON DELETE TO more.seen DO INSTEAD NOTHING",
    "CREATE STATISTICS more.together ON a, b FROM more.checked",
    "CREATE SEQUENCE more.cycling MAXVALUE 9 CYCLE",
    "CREATE SEQUENCE more.never_used",
    "COMMENT ON TABLE more.twice IS 'five rows'",
    "GRANT SELECT, INSERT ON more.twice TO ovia_readonly, PUBLIC",
    "CREATE MATERIALIZED VIEW more.counted AS SELECT count(*) FROM people",
    WATCH,
]
#: An object that decides who may see which rows -> its description, and the statement that alters it.
GUARDS = {
    "a policy's expression": (
        "policy guarded expression in more",
        "ALTER POLICY expression ON more.guarded USING (true)",
    ),
    "a policy's check": ("policy guarded checks in more", "ALTER POLICY checks ON more.guarded WITH CHECK (true)"),
    "a policy's role": ("policy guarded role in more", "ALTER POLICY role ON more.guarded TO PUBLIC"),
    "a policy that is permissive": (
        "policy guarded restrictive in more",
        "DROP POLICY restrictive ON more.guarded; CREATE POLICY restrictive ON more.guarded USING (a > 1)",
    ),
    "a policy's command": (
        "policy guarded command in more",
        "DROP POLICY command ON more.guarded; CREATE POLICY command ON more.guarded FOR UPDATE USING (a > 1)",
    ),
    **{
        f"a function that is {what}": (f"function f_{name}() in more", f"ALTER FUNCTION more.f_{name}() {what}")
        for name, what in {
            "definer": "SECURITY DEFINER",
            "invoker": "SECURITY INVOKER",
            "leak": "LEAKPROOF",
            "volatile": "IMMUTABLE",
            "strict": "STRICT",
            "parallel": "PARALLEL SAFE",
            "set": "RESET search_path",
            "other": "SET search_path = more, pg_temp",
        }.items()
    },
    "a function's body": (
        "function nothing() in more",
        "CREATE OR REPLACE FUNCTION more.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
    ),
    "a function's expression": (
        "function standard() in more",
        "CREATE OR REPLACE FUNCTION more.standard() RETURNS int RETURN 1 + 2 * 4",
    ),
    "a view's query": (
        "view current_people in public",
        "CREATE OR REPLACE VIEW current_people AS SELECT id, display_name, email, team, manager_id FROM people",
    ),
    "a view's barrier": ("view barrier in more", "ALTER VIEW more.barrier RESET (security_barrier)"),
    "a view's invoker": ("view invoker in more", "ALTER VIEW more.invoker RESET (security_invoker)"),
    "a view's check": ("view checking in more", "ALTER VIEW more.checking RESET (check_option)"),
    "an event trigger that is off": ("event trigger watch2", "ALTER EVENT TRIGGER watch2 DISABLE"),
}
SOURCE += [
    "CREATE TABLE more.guarded (a int, who varchar)",
    "CREATE POLICY expression ON more.guarded USING (a > 1 AND who IN ('x', 'y'))",
    "CREATE POLICY unaltered ON more.guarded USING (who IN ('x', 'y') OR who LIKE ANY (ARRAY['a%', 'b%']))",
    "CREATE POLICY checks ON more.guarded USING (a > 1) WITH CHECK (a > 2)",
    "CREATE POLICY role ON more.guarded TO ovia_readonly USING (a > 1)",
    "CREATE POLICY restrictive ON more.guarded AS RESTRICTIVE USING (a > 1)",
    "CREATE POLICY command ON more.guarded FOR SELECT USING (a > 1)",
    *(
        f"CREATE FUNCTION more.f_{name}() RETURNS int LANGUAGE sql {how} AS 'SELECT 1'"
        for name, how in dict.fromkeys(("definer", "leak", "volatile", "strict", "parallel"), "").items()
    ),
    "CREATE FUNCTION more.f_invoker() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    "CREATE FUNCTION more.f_set() RETURNS int LANGUAGE sql SET search_path = more AS 'SELECT 1'",
    "CREATE FUNCTION more.f_other() RETURNS int LANGUAGE sql SET search_path = more AS 'SELECT 1'",
    "CREATE FUNCTION more.f_owner() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION more.standard() RETURNS int RETURN (1 + 2) * 3",
    "CREATE VIEW more.barrier WITH (security_barrier) AS SELECT a FROM more.guarded",
    "CREATE VIEW more.invoker WITH (security_invoker) AS SELECT a FROM more.guarded",
    "CREATE VIEW more.checking AS SELECT a FROM more.guarded WHERE a > 1 WITH CHECK OPTION",
    "CREATE EVENT TRIGGER watch2 ON ddl_command_end WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION more.watch()",
    *(f"SELECT lo_from_bytea({oid}, 'x')" for oid in (900010, 900011, 900012)),
    "GRANT SELECT ON LARGE OBJECT 900010 TO ovia_readonly",
    "COMMENT ON LARGE OBJECT 900011 IS E'one; it''s\nmine'",
    "CREATE TYPE more.owned AS ENUM ('a')",
    "CREATE SCHEMA owned",
]
SOURCE.insert(SOURCE.index(WATCH), "CREATE FUNCTION more.watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'")
ODD_NAME = 'ops."Odd ""Name"" ; drop\nme"'


@dataclass(frozen=True)
class Alteration:
    """An alteration in SQL, the check that must fail, and the words that the check must have."""

    check: Check
    says: tuple[str, ...]
    statements: tuple[str, ...]


def _rows(*tables: str, sql: str) -> Alteration:
    return Alteration(Check.TABLES, tuple(f"table {table} " for table in tables), (sql,))


def _structure(says: str, *statements: str) -> Alteration:
    return Alteration(Check.STRUCTURE, (says,), statements)


def _contents(says: str, *statements: str) -> Alteration:
    return Alteration(Check.CONTENTS, (says,), statements)


#: Each entry alters another object, so that one copy can have all alterations.
ALTERATIONS = {
    **{
        name: _rows(f'types."of {name}"', sql=f'UPDATE types."of {name}" SET v = {value} WHERE id = 1')
        for name, (_, _, value) in TYPES.items()
    },
    "a generated column's base": _rows("public.people", sql="UPDATE people SET given_name = 'Eve' WHERE id = 3"),
    "a partition": _rows(
        "public.audit_events_2026_02",
        sql="UPDATE audit_events_2026_02 SET payload = '{}' WHERE id = (SELECT min(id) FROM audit_events_2026_02)",
    ),
    "the default partition": _rows("public.audit_events_default", sql="UPDATE audit_events_default SET actor_id = 0"),
    "partitions by an enum's hash": _rows(
        "public.sync_batches", sql="UPDATE sync_batches SET row_count = row_count + 1 WHERE batch_no = 1"
    ),
    "a list partition's row in another": _rows(
        "more.listed_a", "more.listed_b", sql="UPDATE more.listed SET k = 'b' WHERE k = 'a' AND v = 2"
    ),
    "a hash partition": _rows("more.h_1", sql="DELETE FROM more.h_1 WHERE k = (SELECT max(k) FROM more.h_1)"),
    "an inheritance parent": _rows("public.notes", sql="UPDATE ONLY notes SET body = body || '!'"),
    "an inheritance child": _rows(
        "public.ask_notes", sql="UPDATE ask_notes SET rating = 9 WHERE id = (SELECT min(id) FROM ask_notes)"
    ),
    "a table with an odd name": _rows(ODD_NAME, sql=f"UPDATE {ODD_NAME} SET \"value) FROM stdin;\" = 'x' WHERE id = 1"),
    "a table without columns": _rows("ops.heartbeats", sql="INSERT INTO ops.heartbeats DEFAULT VALUES"),
    "an unlogged table": _rows("public.ask_cache", sql="UPDATE ask_cache SET answer = answer || ' '"),
    "a text with backslashes": _rows("public.text_samples", sql="UPDATE text_samples SET extra = body, body = extra"),
    "a row less": _rows("public.identities", sql="DELETE FROM identities WHERE id = 5"),
    "a row more": _rows(
        "public.kpi_snapshots",
        sql="INSERT INTO kpi_snapshots (kpi, period, value, percentiles, captured_at) "
        "SELECT kpi, period, value, percentiles, captured_at FROM kpi_snapshots LIMIT 1",
    ),
    "a row where none was": _rows(
        "public.sync_conflicts", sql="INSERT INTO sync_conflicts (provider, details) VALUES ('slack', '{}')"
    ),
    "the same row once more": _rows("more.twice", sql="INSERT INTO more.twice VALUES (1)"),
    "values swapped between rows": _rows(
        "more.swapped", sql="UPDATE more.swapped SET v = 'x' || (5 - i) WHERE i IN (2, 3)"
    ),
    "a row moved to another table": _rows(
        "more.from_here",
        "more.to_there",
        sql="WITH gone AS (DELETE FROM more.from_here WHERE i = 3 RETURNING *) "
        "INSERT INTO more.to_there SELECT * FROM gone",
    ),
    "a table dropped": Alteration(
        Check.TABLES, ("table public.sync_watermarks is not in the copy",), ("DROP TABLE sync_watermarks",)
    ),
    "a table more": Alteration(
        Check.TABLES, ("table public.extra is in the copy, but not in the backup",), ("CREATE TABLE extra ()",)
    ),
    "a sequence": Alteration(
        Check.SEQUENCES, ("sequence public.audit_event_number: ",), ("SELECT nextval('audit_event_number')",)
    ),
    "a sequence used for the first time": Alteration(
        Check.SEQUENCES,
        ("sequence more.never_used: 1, true in the copy, 1, false",),
        ("SELECT nextval('more.never_used')",),
    ),
    "a sequence that cycles no more": _structure("sequence cycling in more", "ALTER SEQUENCE more.cycling NO CYCLE"),
    "a byte in a large object": Alteration(
        Check.LARGE_OBJECTS, ("the content of the ",), (r"SELECT lo_put(900002, 50000, '\x00')",)
    ),
    "an index": _structure("INDEX public identities_handle_idx", "DROP INDEX identities_handle_idx"),
    "an index more": _structure("only in the copy: INDEX public more_idx", "CREATE INDEX more_idx ON people (team)"),
    "an index that is another": _structure(
        "index people_current_team_idx in public differs",
        "DROP INDEX people_current_team_idx",
        "CREATE UNIQUE INDEX people_current_team_idx ON people (id) WHERE employment_status <> 'left'",
    ),
    "an invalid index": _structure(
        "index public.ask_sessions_person_idx is not valid",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ask_sessions_person_idx'::regclass",
    ),
    "a foreign key": _structure(
        "FK CONSTRAINT public people people_manager_fk", "ALTER TABLE people DROP CONSTRAINT people_manager_fk"
    ),
    "a foreign key that is not enforced": _structure(
        "foreign keys of public.ask_sessions are not enforced", "ALTER TABLE ask_sessions DISABLE TRIGGER ALL"
    ),
    "a foreign key that is not validated": _structure(
        "fk constraint checked checked_c_fkey in more differs",
        "ALTER TABLE more.checked DROP CONSTRAINT checked_c_fkey",
        "ALTER TABLE more.checked ADD FOREIGN KEY (c) REFERENCES people (id) NOT VALID",
    ),
    "a foreign key that does not cascade": _structure(
        "fk constraint checked checked_d_fkey in more differs",
        "ALTER TABLE more.checked DROP CONSTRAINT checked_d_fkey",
        "ALTER TABLE more.checked ADD FOREIGN KEY (d) REFERENCES people (id) DEFERRABLE",
    ),
    "a primary key": _structure(
        "CONSTRAINT public text_samples text_samples_pkey", "ALTER TABLE text_samples DROP CONSTRAINT text_samples_pkey"
    ),
    "an exclusion": _structure("CONSTRAINT more checked excluded", "ALTER TABLE more.checked DROP CONSTRAINT excluded"),
    "a check": _structure(
        "not CONSTRAINT checked_a_check CHECK", "ALTER TABLE more.checked DROP CONSTRAINT checked_a_check"
    ),
    "not null": _structure("not NOT NULL", "ALTER TABLE identities ALTER handle DROP NOT NULL"),
    "a default": _structure("not DEFAULT", "ALTER TABLE kpi_snapshots ALTER dimensions DROP DEFAULT"),
    "a column's type": _structure(
        "not row_count integer, but row_count bigint", "ALTER TABLE sync_batches ALTER row_count TYPE bigint"
    ),
    "generation": _structure("GENERATED ALWAYS", "ALTER TABLE people ALTER display_name DROP EXPRESSION"),
    "a domain's check": _structure("domain positive in more", "ALTER DOMAIN more.positive DROP CONSTRAINT is_positive"),
    "logging": _structure("not UNLOGGED", "ALTER TABLE ask_cache SET LOGGED"),
    "a trigger": _structure("TRIGGER more checked one_trigger", "DROP TRIGGER one_trigger ON more.checked"),
    "a trigger that is off": _structure(
        "trigger checked another_trigger in more differs: but DISABLE TRIGGER",
        "ALTER TABLE more.checked DISABLE TRIGGER another_trigger",
    ),
    "an event trigger": _structure("EVENT TRIGGER - watch", "DROP EVENT TRIGGER watch"),
    "a rule": _structure("RULE more seen nothing", "DROP RULE nothing ON more.seen"),
    "a policy": _structure("POLICY more checked looks", "DROP POLICY looks ON more.checked"),
    "row security": _structure(
        "ROW SECURITY public ask_sessions", "ALTER TABLE ask_sessions DISABLE ROW LEVEL SECURITY"
    ),
    "forced row security": _structure(
        "FORCE ROW LEVEL SECURITY", "ALTER TABLE more.forced NO FORCE ROW LEVEL SECURITY"
    ),
    "statistics": _structure("STATISTICS more together", "DROP STATISTICS more.together"),
    "a partition that is none": _structure(
        "TABLE ATTACH more listed_c", "ALTER TABLE more.listed DETACH PARTITION more.listed_c"
    ),
    "a materialized view": _structure("MATERIALIZED VIEW more counted", "DROP MATERIALIZED VIEW more.counted"),
    "a view": _contents("VIEW public current_managers", "DROP VIEW current_managers"),
    "a function": _contents("FUNCTION public legacy_import_script()", "DROP FUNCTION legacy_import_script()"),
    "a comment": _contents("COMMENT more TABLE twice", "COMMENT ON TABLE more.twice IS NULL"),
    "an owner": _contents("TABLE public ask_sessions ovia", "ALTER TABLE ask_sessions OWNER TO postgres"),
    "a grant": _contents(
        "privileges differ: acl TABLE twice in more", "REVOKE INSERT ON more.twice FROM ovia_readonly"
    ),
    "all grants": _contents(
        "privileges differ: acl TABLE kpi_snapshots in public", "REVOKE ALL ON kpi_snapshots FROM ovia_readonly"
    ),
    "default privileges": _contents(
        "privileges differ: default acl DEFAULT PRIVILEGES FOR TABLES in ops",
        "ALTER DEFAULT PRIVILEGES FOR ROLE ovia IN SCHEMA ops REVOKE SELECT ON TABLES FROM ovia_readonly",
    ),
    "a large object's owner": _contents("BLOB", "ALTER LARGE OBJECT 900001 OWNER TO postgres"),
    "an enum's label": _structure(
        "type identity_provider in public differs", "ALTER TYPE identity_provider ADD VALUE 'other'"
    ),
    "an extension": _contents("EXTENSION - unaccent", "DROP EXTENSION unaccent"),
    **{name: _structure(f"{says} differs", statement) for name, (says, statement) in GUARDS.items()},
    "a large object's grant": Alteration(
        Check.LARGE_OBJECTS,
        ("privileges or comments differ of large objects: ", "900010"),
        ("GRANT UPDATE ON LARGE OBJECT 900010 TO ovia_readonly",),
    ),
    "a large object's first grant": _contents(
        "ACL - LARGE OBJECT 900012", "GRANT SELECT ON LARGE OBJECT 900012 TO ovia_readonly"
    ),
    "a large object's comment": Alteration(
        Check.LARGE_OBJECTS,
        ("privileges or comments differ of large objects: ", "900011"),
        ("COMMENT ON LARGE OBJECT 900011 IS 'other'",),
    ),
    "a function's owner": _contents("FUNCTION more f_owner() postgres", "ALTER FUNCTION more.f_owner() OWNER TO ovia"),
    "a type's owner": _contents("TYPE more owned postgres", "ALTER TYPE more.owned OWNER TO ovia"),
    "a schema's owner": _contents("SCHEMA - owned postgres", "ALTER SCHEMA owned OWNER TO ovia"),
}

#: Differences that are odd but do not fail a drill: PostgreSQL itself writes such SQL back differently.
ODDITIES = {
    "comment TABLE people in public": "COMMENT ON TABLE people IS 'all'",
    "policy checked looks in more": "ALTER POLICY looks ON more.checked USING ((a)::bigint > 1)",
}


class Copies:
    """A backup, its restored copy, and clones of the copy."""

    def __init__(self, drilling: Drilling, copy: Copy) -> None:
        self.drilling = drilling
        self.backup = drilling.driller.find("latest")
        assert self.backup.witness is not None
        self.witness: Witness = self.backup.witness
        self._copy = copy
        self._made = 0

    def clone(self) -> Copy:
        """Clone the restored copy."""
        self._made += 1
        name = f"clone{self._made}"
        with psycopg.connect(**_to(self._copy.server), autocommit=True) as session:
            command = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"
            session.execute(
                sql.SQL(command).format(sql.Identifier(name), sql.Identifier(self._copy.connection.database))
            )
        return replace(self._copy, connection=replace(self._copy.connection, database=name))

    def prove(self, copy: Copy) -> dict[Check, CheckResult]:
        """Run the drill's checks on a copy; return their results."""
        proof = proof_of(self.drilling, self.backup)
        proof.prove(copy)
        return {line.check: line for line in proof.lines}


def proof_of(drilling: Drilling, backup: Backup) -> Proof:
    """A proof that has read its backup."""
    proof = Proof(drilling.driller.verifier, drilling.source, backup, quiet, jobs=2)
    assert proof.read_backup() is not None
    return proof


def _to(connection: Connection) -> dict[str, Any]:
    return {
        "host": connection.host,
        "port": connection.port,
        "dbname": connection.database,
        "user": connection.user,
        "client_encoding": "UTF8",
    }


@pytest.fixture(scope="module")
def copies(full_server: PortCluster, full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    name = "proof"
    with admin(full_server) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER ovia".encode())
    source = full_server.connection(name)
    try:
        execute(source, *SOURCE)
        drilling = Drilling(source, full_bin_dir, tmp_path_factory.mktemp("volume"))
        backup = drilling.dump()
    finally:
        with admin(full_server) as session:
            session.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    with throwaway(drilling.programs, Path("/tmp"), name, "postgres", keep=False, log=quiet) as copy:
        proof = proof_of(drilling, backup)
        proof.restore(copy)
        assert {line.result for line in proof.lines} == {Result.PASSED}, proof.lines
        yield Copies(drilling, copy)


def _show_all(patch: pytest.MonkeyPatch) -> None:
    """Show all lines of evidence, unshortened."""
    patch.setattr(comparison, "joined", "; ".join)
    patch.setattr(record, "joined", "; ".join)


@pytest.fixture(scope="module")
def altered(copies: Copies) -> dict[Check, CheckResult]:
    """The results of the drill's checks on a copy in which everything is altered."""
    copy = copies.clone()
    with psycopg.connect(**_to(copy.connection), autocommit=True) as session:
        session.execute("SET session_replication_role = replica")
        for alteration in ALTERATIONS.values():
            for statement in alteration.statements:
                assert session.execute(statement.encode()).rowcount != 0, statement
    with pytest.MonkeyPatch.context() as patch:
        _show_all(patch)
        return copies.prove(copy)


def test_an_unaltered_copy_is_proven(copies: Copies) -> None:
    lines = copies.prove(copies.clone())

    assert {check for check, line in lines.items() if line.result is Result.FAILED} == set()
    # Odd are the row order of two tables (hashed by an enum; with a late column), and the CHECK over a varchar.
    assert {check for check, line in lines.items() if line.result is Result.ODD} == {
        Check.TABLES,
        Check.SCHEMA_TEXT,
    }
    assert lines[Check.TABLES].text.count("another order") == 2


@pytest.mark.parametrize("name", ALTERATIONS)
def test_every_alteration_fails_the_drill_and_is_named(name: str, altered: dict[Check, CheckResult]) -> None:
    alteration = ALTERATIONS[name]
    line = altered[alteration.check]

    assert line.result is Result.FAILED
    if alteration.check is Check.TABLES:
        assert {_table(text) for text in alteration.says} <= _tables_named(line)
    for text in alteration.says:
        assert text in line.text


def _tables_named(line: CheckResult) -> set[str]:
    """The names of wrong tables, without those whose rows are only in another order."""
    return set(re.findall(r"table ((?s:.*?)) (?:has|differs|is) ", line.text))


def _table(says: str) -> str:
    return says.removeprefix("table ").split(" is ")[0].rstrip()


def test_only_altered_tables_are_named(altered: dict[Check, CheckResult]) -> None:
    wanted = {
        _table(text)
        for alteration in ALTERATIONS.values()
        if alteration.check is Check.TABLES
        for text in alteration.says
    }

    assert _tables_named(altered[Check.TABLES]) == wanted


def test_sql_that_is_written_back_differently_is_odd(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copies.clone()
    execute(copy.connection, *ODDITIES.values())
    _show_all(monkeypatch)

    text = copies.prove(copy)[Check.SCHEMA_TEXT].text

    assert [what for what in ODDITIES if what not in text] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "statement",
    ["SELECT lo_create(4242)", "SELECT lo_unlink(900001)"],
)
def test_an_extra_or_missing_large_object_is_found(statement: str, copies: Copies) -> None:
    copy = copies.clone()
    execute(copy.connection, statement)

    lines = copies.prove(copy)

    assert lines[Check.LARGE_OBJECTS].result is Result.FAILED
    assert re.search(r"the copy has \d large objects, the backup \d", lines[Check.LARGE_OBJECTS].text)


#: A value of a type's category -> another value.
_OTHERS = {
    "N": "{c} + 1",
    "S": "{c} || 'x'",
    "B": "NOT {c}",
    "D": "{c} + interval '1 day'",
    "A": "{c} || {c}",
    "U": "NULL",
}


@pytest.mark.parametrize("examples", thinned([2, 10]))
def test_any_altered_value_of_any_table_is_named(copies: Copies, examples: int) -> None:
    """Alter one value and put it back, many times: each time the drill names the table."""
    copy = copies.clone()
    tables = [table for table in copies.witness.tables if table.rows and table.columns]

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.data())
    def examine(data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(tables))
        column = data.draw(st.sampled_from(split_columns(table.columns)))
        row = data.draw(st.integers(0, table.rows - 1))
        undo = _alter(copy.connection, table.name, column, row)
        assume(undo is not None)
        assert undo is not None

        line = copies.prove(copy)[Check.TABLES]
        undo()

        assert line.result is Result.FAILED
        # Earlier alterations were undone, so only this table is named.
        assert _tables_named(line) == {table.name}

    examine()

    assert copies.prove(copy)[Check.TABLES].result is Result.ODD


def _alter(connection: Connection, table: str, column: str, row: int) -> Callable[[], None] | None:
    """Alter one value, if its column allows that; return a function that puts it back."""
    only = f"(SELECT ctid, tableoid FROM {table} OFFSET {row} LIMIT 1)"
    with psycopg.connect(**_to(connection), autocommit=True) as session:
        session.execute("SET session_replication_role = replica")
        found = session.execute(
            f"SELECT tableoid::regclass::text, ctid::text, {column}::text FROM {table} "
            f"WHERE (ctid, tableoid) = {only}".encode()
        ).fetchone()
        assert found is not None
        kind = session.execute(
            f"SELECT typcategory FROM pg_type WHERE oid = (SELECT pg_typeof({column}) FROM {table} LIMIT 1)".encode()
        ).fetchone()
        assert kind is not None
        other = _OTHERS.get(str(kind[0]), "NULL").format(c=column)
        leaf, ctid, before = found
        try:
            after = session.execute(
                f"UPDATE ONLY {leaf} SET {column} = {other} WHERE ctid = '{ctid}' "
                f"RETURNING ctid::text, {column}::text".encode()
            ).fetchone()
        except psycopg.Error:
            return None
    assert after is not None
    if after[1] == before:
        return None

    def undo() -> None:
        with psycopg.connect(**_to(connection), autocommit=True) as session:
            session.execute("SET session_replication_role = replica")
            literal = sql.Literal(before).as_string(session) if before is not None else "NULL"
            kept = session.execute(f"UPDATE ONLY {leaf} SET {column} = {literal} WHERE ctid = '{after[0]}'".encode())
            assert kept.rowcount == 1

    return undo


WHOLE = {
    "a value": (Check.TABLES, "table public.people ", "UPDATE people SET email = 'x@y' WHERE id = 2"),
    "a row": (Check.TABLES, "table public.identities ", "DELETE FROM identities WHERE id = 5"),
    "a policy": (Check.STRUCTURE, "POLICY more checked looks", "DROP POLICY looks ON more.checked"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", thinned(WHOLE))
def test_a_whole_drill_of_an_altered_copy_fails(name: str, copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    check, says, statement = WHOLE[name]
    restore = Restorer.restore

    def restore_and_alter(self: Restorer, *arguments: Any) -> list[str]:
        notes = restore(self, *arguments)
        execute(self.target, "SET session_replication_role = replica", statement)
        return notes

    monkeypatch.setattr(Restorer, "restore", restore_and_alter)

    evidence = copies.drilling.drill()

    assert not evidence.passed
    assert {line.check for line in evidence.lines if line.result is Result.FAILED} == {check}
    assert says in by_check(evidence)[check].text
    assert says in str(evidence.trouble)
    drilled = copies.drilling.driller.find("latest")
    assert not drilled.drills.drills[-1].passed if drilled.drills else False


@pytest.mark.exhaustive
def test_a_whole_drill_passes(copies: Copies) -> None:
    assert_passed(copies.drilling.drill(), Check.TABLES, Check.SCHEMA_TEXT)
