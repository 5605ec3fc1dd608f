"""Which functions of ordinary roles a restore runs, from archives that a real server has written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.drill.placement import Choice, Where
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.executed_functions import reach, run_by_restore
from ovia_backup_dagster_tests.conftest import PortCluster, execute, free_port, quiet
from ovia_backup_dagster_tests.support.drilling import Drilling, by_check, database, one
from ovia_backup_dagster_tests.support.factories import with_roles

#: Ways in which a restore runs a function. It is called m.f, or an object made from it is used.
F = "CREATE FUNCTION m.f({0}) RETURNS {1} LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN {2}; END'"
TRUE, INT = F.format("int", "bool", "true"), F.format("int", "int", "$1")
WAYS = {
    "check": (TRUE, "CREATE TABLE m.t (a int CHECK (m.f(a)))"),
    "check that is not valid": (
        TRUE,
        "CREATE TABLE m.t (a int)",
        "ALTER TABLE m.t ADD CONSTRAINT k CHECK (m.f(a)) NOT VALID",
    ),
    "domain": (TRUE, "CREATE DOMAIN m.d AS int CHECK (m.f(VALUE))", "CREATE TABLE m.t (a m.d)"),
    "domain in an array in a type": (
        TRUE,
        "CREATE DOMAIN m.d AS int CHECK (m.f(VALUE))",
        "CREATE TYPE m.c AS (x m.d[])",
        "CREATE TABLE m.t (a m.c)",
    ),
    "generated column": (INT, "CREATE TABLE m.t (a int, b int GENERATED ALWAYS AS (m.f(a)) STORED)"),
    "index on an expression": (INT, "CREATE TABLE m.t (a int)", "CREATE INDEX ON m.t (m.f(a))"),
    "partial index": (TRUE, "CREATE TABLE m.t (a int)", "CREATE INDEX ON m.t (a) WHERE m.f(a)"),
    "partition key": (INT, "CREATE TABLE m.t (a int) PARTITION BY RANGE (m.f(a))"),
    "statistics": (INT, "CREATE TABLE m.t (a int)", "CREATE STATISTICS m.s ON (m.f(a)), a FROM m.t"),
    "materialized view": (INT, "CREATE MATERIALIZED VIEW m.mv AS SELECT m.f(1)"),
    "view in a materialized view": (
        INT,
        "CREATE VIEW m.v AS SELECT m.f(1) AS x",
        "CREATE MATERIALIZED VIEW m.mv AS SELECT x FROM m.v",
    ),
    "rule": (INT, "CREATE TABLE m.t (a int)", "CREATE RULE r AS ON INSERT TO m.t DO ALSO SELECT m.f(new.a)"),
    "operator": (
        F.format("int, int", "bool", "true"),
        "CREATE OPERATOR m.=== (FUNCTION = m.f, LEFTARG = int, RIGHTARG = int)",
        "CREATE TABLE m.t (a int CHECK (a OPERATOR(m.===) 1))",
    ),
    "aggregate": (
        F.format("int, int", "int", "1"),
        "CREATE AGGREGATE m.g (int) (SFUNC = m.f, STYPE = int)",
        "CREATE MATERIALIZED VIEW m.mv AS SELECT m.g(1)",
    ),
    "cast": (
        "CREATE TYPE m.c AS (x int)",
        F.format("m.c", "int", "1"),
        "CREATE CAST (m.c AS int) WITH FUNCTION m.f",
        "CREATE TABLE m.t (a m.c CHECK (a::int > 0))",
    ),
    "range": (
        F.format("int, int", "float8", "1"),
        "CREATE TYPE m.r AS RANGE (SUBTYPE = int, SUBTYPE_DIFF = m.f)",
        "CREATE TABLE m.t (a m.r)",
    ),
    "function in a function": (
        INT,
        "CREATE FUNCTION m.outer(a int) RETURNS int LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT m.f(a); END",
        "CREATE TABLE m.t (a int CHECK (m.outer(a) > 0))",
    ),
}
#: Cases in which the contents list does not say which function runs: then all are named.
UNSAID = {
    "exclusion": (INT, "CREATE TABLE m.t (a int, EXCLUDE USING btree ((m.f(a)) WITH =))"),
    "exclusion of some": (TRUE, "CREATE TABLE m.t (a int, EXCLUDE USING btree (a WITH =) WHERE (m.f(a)))"),
    "trigger that fires in replicas": (
        "CREATE FUNCTION m.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TABLE m.t (a int)",
        "CREATE TRIGGER x BEFORE DELETE ON m.t FOR EACH ROW EXECUTE FUNCTION m.f()",
        "ALTER TABLE m.t ENABLE ALWAYS TRIGGER x",
    ),
}
#: Objects that a restore creates without running a function.
NOT_RUN = {
    "exclusion": (
        INT,
        "CREATE TABLE m.t (a int, b int, EXCLUDE USING gist (int4range(a, b) WITH &&) WHERE (a < b))",
        "CREATE TABLE m.u (a int PRIMARY KEY, b int UNIQUE REFERENCES m.u)",
    ),
    "nothing": (INT,),
    "view": (INT, "CREATE VIEW m.v AS SELECT m.f(1)"),
    "trigger": (
        "CREATE FUNCTION m.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TABLE m.t (a int)",
        "CREATE TRIGGER x BEFORE INSERT ON m.t FOR EACH ROW EXECUTE FUNCTION m.f()",
    ),
    "policy": (TRUE, "CREATE TABLE m.t (a int)", "CREATE POLICY p ON m.t USING (m.f(a))"),
    "grants and comments": (INT, "GRANT EXECUTE ON FUNCTION m.f TO PUBLIC", "COMMENT ON FUNCTION m.f IS 'x'"),
}
PROGRAM = """
    CREATE FUNCTION m.f(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        BEGIN EXECUTE 'ALTER ROLE {0} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN true; END $$
"""


@pytest.fixture
def owner(server: PortCluster) -> Iterator[Connection]:
    """A database, connected as the role that owns one schema in it."""
    name = f"mallory_{free_port()}"
    execute(server.connection(), f"CREATE ROLE {name} LOGIN")
    with database(server, name) as found:
        execute(found, f"CREATE SCHEMA m AUTHORIZATION {name}")
        yield replace(found, user=name)
    execute(server.connection(), f"DROP ROLE {name}")


def dumped(owner: Connection, bin_dir: Path, folder: Path, *, proven: bool = False) -> tuple[Drilling, Backup]:
    drilling = Drilling(replace(owner, user="postgres"), bin_dir, folder, Expectations())
    if proven:
        return drilling, drilling.dump()
    return drilling, Dumper(drilling.catalog, drilling.source, drilling.programs).dump(log=quiet)


def make(owner: Connection, ways: Mapping[str, Sequence[str]]) -> None:
    """Run the statements of each way in its own schema."""
    for number, (way, statements) in enumerate(ways.items()):
        schema = f'"{way} {number}"'
        execute(replace(owner, user="postgres"), f"CREATE SCHEMA {schema} AUTHORIZATION {owner.user}")
        execute(owner, *(re.sub(r"\bm\.", f"{schema}.", statement) for statement in statements))


def test_only_functions_that_a_restore_runs_are_named(owner: Connection, bin_dir: Path, tmp_path: Path) -> None:
    make(owner, {**WAYS, **NOT_RUN})
    drilling, backup = dumped(owner, bin_dir, tmp_path)
    found = reach(drilling.source, drilling.programs, backup)
    assert found.role == "postgres, a superuser"
    assert {match[1] for name in found.functions if (match := re.match(r"FUNCTION (.*) \d+ f\(", name))} == set(WAYS)
    assert owner.user in str(found)
    assert f"and {len(found.functions) - 3} more" in str(found)
    # A role without power lends none.
    assert reach(owner, drilling.programs, backup).functions == ()


@pytest.mark.parametrize("way", UNSAID)
def test_if_the_list_is_unclear_all_functions_are_named(
    owner: Connection, bin_dir: Path, tmp_path: Path, way: str
) -> None:
    make(owner, {way: UNSAID[way]})
    drilling, backup = dumped(owner, bin_dir, tmp_path)
    assert len(reach(drilling.source, drilling.programs, backup).functions) == 1


def test_an_event_trigger_by_another_role_is_named(owner: Connection, bin_dir: Path, tmp_path: Path) -> None:
    execute(
        owner, "CREATE TABLE m.t (a int)", "CREATE FUNCTION m.f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'"
    )
    boss = replace(owner, user="postgres")
    execute(boss, "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION m.f()")
    drilling, backup = dumped(owner, bin_dir, tmp_path)
    assert len(reach(drilling.source, drilling.programs, backup).functions) == 1
    execute(boss, "ALTER FUNCTION m.f() OWNER TO postgres")
    assert reach(drilling.source, drilling.programs, drilling.dump()).functions == ()


def test_a_member_of_a_superuser_role_lends_as_much(owner: Connection, bin_dir: Path, tmp_path: Path) -> None:
    execute(owner, *WAYS["check"])
    drilling, backup = dumped(owner, bin_dir, tmp_path)
    for group in ("postgres", "pg_execute_server_program"):
        execute(drilling.source, f"GRANT {group} TO {owner.user}")
        found = reach(owner, drilling.programs, backup)
        assert (found.role, len(found.functions)) == (f"{owner.user}, a member of {group}", 1)
        execute(drilling.source, f"REVOKE {group} FROM {owner.user}")


def test_an_altered_globals_file_hides_no_function(owner: Connection, bin_dir: Path, tmp_path: Path) -> None:
    """The file calls the role a superuser, but on the server it is none."""
    execute(owner, *WAYS["check"])
    drilling, backup = dumped(owner, bin_dir, tmp_path)
    backup = with_roles(backup, f"CREATE ROLE {owner.user};\nALTER ROLE {owner.user} WITH SUPERUSER;\n".encode())
    assert len(reach(drilling.source, drilling.programs, backup).functions) == 1


@pytest.mark.parametrize(
    ("schema", "function"),
    [("m", "f() postgres"), ("; Type: TABLE", "f"), ("1259 1 TABLE", "; 0"), ("m", 'f" postgres')],
)
def test_no_name_hides_a_function(owner: Connection, bin_dir: Path, tmp_path: Path, schema: str, function: str) -> None:
    """The contents list does not quote names, so a name may look like the end of an entry."""
    names = ".".join('"' + name.replace('"', '""') + '"' for name in (schema, function))
    boss = replace(owner, user="postgres")
    execute(boss, f'CREATE SCHEMA IF NOT EXISTS "{schema}" AUTHORIZATION {owner.user}')
    execute(owner, f"CREATE FUNCTION {names}() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'")
    execute(owner, f"CREATE TABLE m.t (a int CHECK (a > {names}()))")
    drilling, backup = dumped(owner, bin_dir, tmp_path)
    assert len(reach(drilling.source, drilling.programs, backup).functions) == 1


def test_a_role_named_not_postgres_is_no_superuser() -> None:
    listing = "7; 1255 1 FUNCTION m f() not postgres\n;\tdepends on: 6\n8; 1259 2 TABLE m t x\n;\tdepends on: 7\n"
    assert run_by_restore(listing, {"postgres"}, {"postgres", "not postgres"}) == ["FUNCTION m f() not postgres"]
    assert run_by_restore(listing, {"postgres"}, {"postgres"}) == []
    assert run_by_restore(listing, set(), set()) == ["FUNCTION m f() not postgres"]


# ------------------------------------------------------------------------------------------- a drill on a server


def attack(owner: Connection) -> None:
    execute(owner, PROGRAM.format(owner.user), "CREATE TABLE m.t (a int CHECK (m.f(a)))", "INSERT INTO m.t VALUES (1)")


def is_superuser(owner: Connection) -> object:
    return one(replace(owner, user="postgres"), f"SELECT rolsuper FROM pg_roles WHERE rolname = '{owner.user}'")


@pytest.mark.exhaustive
def test_a_superusers_drill_on_the_source_needs_trust(owner: Connection, bin_dir: Path, tmp_path: Path) -> None:
    attack(owner)
    drilling, backup = dumped(owner, bin_dir, tmp_path, proven=True)
    evidence = drilling.drill(Where.DATABASE)
    assert not evidence.passed
    assert "--trust-archive" in evidence.fix
    assert "FUNCTION m f(integer)" in evidence.error
    assert is_superuser(owner) is False
    assert by_check(evidence)[Check.FUNCTIONS].result is Result.ODD
    trusting = Choice(Where.DATABASE, trust_archive=True)
    evidence = drilling.driller.drill(backup, trusting, launched_by="a test", log=quiet)
    assert evidence.passed, evidence.failures
    assert "1 function of roles that are not superusers run as postgres" in by_check(evidence)[Check.FUNCTIONS].text
    assert is_superuser(owner) is True, "the attack does not work, and the test shows nothing"
    execute(drilling.source, f"ALTER ROLE {owner.user} NOSUPERUSER")
    # In a throwaway cluster, the owner of a function gains rights only there.
    assert drilling.drill(Where.THROWAWAY).passed
    assert is_superuser(owner) is False


def test_a_drill_by_a_role_with_no_power_lends_none(owner: Connection, bin_dir: Path, tmp_path: Path) -> None:
    attack(owner)
    drilling, _ = dumped(owner, bin_dir, tmp_path, proven=True)
    role = f"weak_{owner.user}"
    execute(drilling.source, f"CREATE ROLE {role} LOGIN CREATEDB")
    try:
        weak = replace(drilling.driller, target=replace(drilling.source, user=role))
        evidence = drilling.drill(Where.DATABASE, driller=weak)
        assert evidence.passed, evidence.failures
        assert by_check(evidence)[Check.FUNCTIONS].result is Result.PASSED
        assert is_superuser(owner) is False
    finally:
        execute(drilling.source, f"DROP ROLE {role}")


def test_only_a_drill_on_another_cluster_needs_no_trust(owner: Connection, bin_dir: Path, tmp_path: Path) -> None:
    """If the source's cluster is unknown, it may be this one, and the drill is refused."""
    execute(owner, *WAYS["check"])
    drilling, backup = dumped(owner, bin_dir, tmp_path)
    path = backup.sidecar(".json")
    text = path.read_text("utf-8")
    system = str(one(drilling.source, "SELECT system_identifier::text FROM pg_control_system()"))
    assert system in text
    path.chmod(0o600)
    for known, passes in ((f'"{system}"', False), ("null", False), ('"7000000000000000001"', True)):
        path.write_text(text.replace(f'"{system}"', known), "utf-8")
        evidence = drilling.drill(Where.DATABASE)
        assert evidence.passed is passes, (known, evidence.failures)
        assert by_check(evidence)[Check.FUNCTIONS].result is Result.ODD


def test_for_a_role_without_power_no_archive_is_read(owner: Connection, tmp_path: Path) -> None:
    assert reach(owner, Programs(tmp_path), None).functions == ()  # type: ignore[arg-type]
