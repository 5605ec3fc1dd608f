"""Owners and privileges, restored by a second superuser, and onto a server with another bootstrap superuser.

Both servers have two test extensions: one with tables, of which pg_dump saves only some, and one whose script grants
privileges on its objects.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.doctor.server_area import server as look_at_server
from ovia_backup_dagster.drill.placement import Where
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.undumped_rows import undumped
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster_tests.conftest import PortCluster, execute, running_cluster
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Place
from ovia_backup_dagster_tests.support.drilling import Drilling, by_check, database, one

CONTROL = "default_version = '1.0'\nrelocatable = true\n"
EXTENSIONS = {
    "ovia_conf": """
        CREATE TABLE conf (k text PRIMARY KEY, v text);
        INSERT INTO conf VALUES ('builtin', '1'), ('other', '2');
        CREATE SEQUENCE numbers;
        CREATE TABLE parts (parent text, n int DEFAULT nextval('numbers'));
        CREATE TABLE unsaved (a int);
        CREATE TABLE filled (code text);
        INSERT INTO filled VALUES ('ch'), ('de');
        SELECT pg_catalog.pg_extension_config_dump('conf', $$WHERE k NOT IN ('builtin', 'other') OR k LIKE '%x'$$);
        SELECT pg_catalog.pg_extension_config_dump('parts', '');
        SELECT pg_catalog.pg_extension_config_dump('numbers', '');
    """,
    "ovia_given": """
        CREATE TABLE member (a int);
        CREATE TABLE given (a int);
        CREATE SEQUENCE counting;
        CREATE TYPE pair AS (a int);
        CREATE FUNCTION closed(x int) RETURNS int LANGUAGE sql AS 'SELECT 1';
        GRANT SELECT ON member, given TO PUBLIC;
        REVOKE EXECUTE ON FUNCTION closed(int) FROM PUBLIC;
    """,
}
SOURCE = (
    "CREATE ROLE monitor; CREATE ROLE app; CREATE ROLE app2",
    # Objects that extensions created.
    "CREATE EXTENSION pg_stat_statements; CREATE EXTENSION citext; CREATE EXTENSION ovia_given",
    "CREATE SCHEMA cfg; CREATE EXTENSION ovia_conf SCHEMA cfg",
    "GRANT SELECT ON pg_stat_statements TO monitor",
    "REVOKE EXECUTE ON FUNCTION pg_stat_statements_reset(oid, oid, bigint) FROM PUBLIC",
    "REVOKE USAGE ON TYPE citext FROM PUBLIC; GRANT USAGE ON TYPE citext TO app WITH GRANT OPTION",
    "GRANT INSERT ON member TO app; REVOKE SELECT ON member FROM ovia; REVOKE SELECT ON given FROM PUBLIC",
    "GRANT USAGE ON SEQUENCE counting TO monitor; GRANT USAGE ON TYPE pair TO app",
    "GRANT EXECUTE ON FUNCTION closed(int) TO app; GRANT SELECT (a) ON given TO monitor",
    "INSERT INTO cfg.conf VALUES ('mine', E'\\\\.'); INSERT INTO cfg.parts (parent) VALUES ('a'), ('b')",
    "GRANT SELECT ON cfg.conf TO PUBLIC",
    # Objects that initdb created.
    "GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_waldir() TO monitor",
    "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_sleep(float8) FROM PUBLIC",
    "GRANT SELECT (wait_event) ON pg_catalog.pg_stat_activity TO monitor",
    "GRANT CREATE ON SCHEMA public TO app; COMMENT ON SCHEMA public IS 'ours'",
    "GRANT USAGE ON LANGUAGE plpgsql TO monitor; REVOKE USAGE ON LANGUAGE sql FROM PUBLIC",
    # Objects that users created: their owners matter.
    "CREATE TABLE t (a int); INSERT INTO t VALUES (1); GRANT SELECT ON t TO app WITH GRANT OPTION",
    "SET ROLE app; GRANT SELECT ON t TO app2; RESET ROLE",
    "CREATE TABLE u (a int); ALTER TABLE u OWNER TO app; REVOKE INSERT ON u FROM app",
    "ALTER DEFAULT PRIVILEGES FOR ROLE ovia IN SCHEMA public GRANT SELECT ON TABLES TO app",
    "CREATE FUNCTION f(a int, OUT b int) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    "REVOKE EXECUTE ON FUNCTION f(int) FROM PUBLIC; GRANT EXECUTE ON FUNCTION f(int) TO app",
    "SELECT lo_from_bytea(4711, 'x'), lo_from_bytea(4712, 'y'); ALTER LARGE OBJECT 4712 OWNER TO app",
    "GRANT SELECT ON LARGE OBJECT 4711 TO app; COMMENT ON LARGE OBJECT 4711 IS 'c'",
)
#: The privileges of roles that are neither superusers nor the owner; below, the owners of the users' objects.
MEANING = """
    SELECT string_agg(concat_ws(' ', kind, name, grantee, privilege, grantable), E'\\n'
                      ORDER BY kind, name, grantee, privilege)
    FROM (
        SELECT 'relation' AS kind, c.oid::regclass::text AS name, relacl AS acl, relowner AS owner FROM pg_class c
        WHERE c.relnamespace <> 'pg_toast'::regnamespace
        UNION ALL SELECT 'function', oid::regprocedure::text, proacl, proowner FROM pg_proc
        UNION ALL SELECT 'type', oid::regtype::text, typacl, typowner FROM pg_type
        UNION ALL SELECT 'schema', nspname, nspacl, nspowner FROM pg_namespace
        UNION ALL SELECT 'language', lanname, lanacl, lanowner FROM pg_language
        UNION ALL SELECT 'large object', oid::text, lomacl, lomowner FROM pg_largeobject_metadata
        UNION ALL SELECT 'column', attrelid::regclass || '.' || attname, attacl, 0 FROM pg_attribute
    ) AS o, LATERAL (
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee,
               a.privilege_type AS privilege, a.is_grantable AS grantable
        FROM aclexplode(o.acl) a WHERE a.grantee <> o.owner
    ) AS given WHERE grantee NOT IN ('ovia', 'postgres', 'boss')
"""
OWNERS = """
    SELECT string_agg(concat_ws(' ', c.relname, relowner::regrole), ' ' ORDER BY relname) FROM pg_class c
    WHERE relname IN ('t', 'u')
"""


@dataclass(frozen=True)
class Pair:
    """A source whose bootstrap superuser is ``ovia``, and another server, whose is ``postgres``."""

    source: PortCluster
    other: PortCluster
    bin_dir: Path


@pytest.fixture(scope="module")
def pair(full_bin_dir: Path) -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(prefix="ovia-pg-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        build = folder / "postgresql"
        shutil.copytree(full_bin_dir.parent, build, symlinks=True)
        for name, script in EXTENSIONS.items():
            (build / "share" / "extension" / f"{name}.control").write_text(CONTROL, "utf-8")
            (build / "share" / "extension" / f"{name}--1.0.sql").write_text(script, "utf-8")
        bin_dir = build / "bin"
        with running_cluster(bin_dir, superuser="ovia") as source, running_cluster(bin_dir) as other:
            yield Pair(source, other, bin_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def live(pair: Pair) -> Iterator[Connection]:
    name = f"owners{os.getpid()}"
    with database(pair.source, name) as made:
        execute(made, *SOURCE)
        yield made


@pytest.fixture
def place(pair: Pair, live: Connection, tmp_path: Path) -> Place:
    place = place_for(live, pair.bin_dir, tmp_path / "backups", tmp_path)
    return replace(place, settings={**place.settings, "BACKUP_EXPECTED_TABLES": "t"})


@pytest.mark.exhaustive
def test_owners_and_privileges_survive_on_any_server(pair: Pair, live: Connection, place: Place) -> None:
    backup = place.chain()
    meant = one(live, MEANING)
    assert "function pg_ls_waldir() monitor EXECUTE" in str(meant)
    drilled = place.run("drill")
    assert drilled.code == 0, drilled.output

    # By a second superuser, on the same server.
    execute(live, "CREATE ROLE boss SUPERUSER LOGIN")
    by_boss = replace(place, settings={**place.settings, "RESTORE_POSTGRES_USER": "boss"})
    ended = by_boss.run("restore", backup.path.name, "--yes-destroy", live.database)
    assert ended.code == 0, ended.output
    assert one(live, OWNERS) == "t ovia u app"
    assert one(live, "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'member'") == "boss"
    assert one(live, MEANING) == meant
    assert by_boss.run("undo-restore", "--yes-destroy", live.database).code == 0

    # An extension that the server no longer has is named before anything changes.
    control = pair.bin_dir.parent / "share" / "extension" / "ovia_given.control"
    control.rename(control.with_suffix(".away"))
    try:
        for options in (("--yes-destroy", live.database), ("--mode", "new"), ("--plan",)):
            refused = by_boss.run("restore", backup.path.name, *options)
            assert refused.code == 1, refused.output
            assert "ovia_given" in refused.output
        assert one(live, MEANING) == meant
    finally:
        control.with_suffix(".away").rename(control)

    # On a server whose bootstrap superuser has another name.
    there = pair.other.connection(live.database)
    to = {"POSTGRES_HOST": there.host, "POSTGRES_PORT": str(there.port), "POSTGRES_USER": "postgres"}
    elsewhere = replace(place, settings={**place.settings, **to})
    ended = elsewhere.run("restore", backup.path.name, "--new-host")
    assert ended.code == 0, ended.output
    assert one(there, OWNERS) == "t ovia u app"
    assert one(there, "SELECT rolsuper FROM pg_roles WHERE rolname = 'ovia'") is False
    assert one(there, MEANING) == meant
    # The rows of extensions' tables that pg_dump saves.
    assert one(there, "SELECT string_agg(k || v, ' ' ORDER BY k) FROM cfg.conf") == "builtin1 mine\\. other2"


@pytest.mark.exhaustive
def test_a_scratch_database_where_the_server_lacks_roles(pair: Pair, tmp_path: Path) -> None:
    """No role is created there: objects that need a missing role are left out, and the evidence names them."""
    with database(pair.source, f"scratch{os.getpid()}") as source:
        execute(
            source,
            """CREATE ROLE reader; CREATE ROLE "Odd ""one"", TO" """,
            'CREATE TABLE "my t" (a int); INSERT INTO "my t" VALUES (1); ALTER TABLE "my t" ENABLE ROW LEVEL SECURITY',
            'CREATE POLICY mine ON "my t" TO reader USING (true); COMMENT ON POLICY mine ON "my t" IS \'x\'',
            'CREATE POLICY "a TO reader" ON "my t" USING (true)',
            """CREATE POLICY "all" ON "my t" TO reader, "Odd ""one"", TO" USING (true)""",
            """CREATE POLICY few ON "my t" AS RESTRICTIVE FOR SELECT TO pg_monitor, "Odd ""one"", TO" USING (a > 0)""",
            "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w",
            "CREATE USER MAPPING FOR reader SERVER s OPTIONS (u 'secret'); CREATE USER MAPPING FOR public SERVER s",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET role = reader AS 'SELECT 1'",
            "ALTER SCHEMA public OWNER TO reader",
            'CREATE SCHEMA theirs AUTHORIZATION reader; GRANT SELECT ON "my t" TO reader',
            "ALTER DEFAULT PRIVILEGES FOR ROLE reader GRANT SELECT ON TABLES TO PUBLIC",
            "SELECT lo_from_bytea(1, 'x'); GRANT SELECT ON LARGE OBJECT 1 TO reader; COMMENT ON LARGE OBJECT 1 IS 'c'",
        )
        drilling = Drilling(source, pair.bin_dir, tmp_path)
        drilling.dump()
        elsewhere = replace(drilling.driller, target=pair.other.connection())
        evidence = drilling.drill(Where.DATABASE, driller=elsewhere)
        assert evidence.passed, evidence.failures
        line = by_check(evidence)[Check.RESTORED]
        assert line.result is Result.ODD
        lacking = "as the server has no role "
        assert line.text.split("; ") == [
            f"left out: user mapping USER MAPPING reader SERVER s, {lacking}reader",
            f'left out: policy my t all in public, {lacking}Odd "one", TO, reader',
            f'left out: policy my t few in public, {lacking}Odd "one", TO',
            f"left out: policy my t mine in public, {lacking}reader",
        ]
        # The source's own server has all of the roles.
        own = drilling.drill(Where.DATABASE, driller=drilling.driller)
        assert by_check(own)[Check.RESTORED].result is Result.PASSED
        # A throwaway cluster creates the roles in another order, and policies list them in that order.
        private = drilling.drill()
        assert private.passed, private.failures
        assert by_check(private)[Check.SCHEMA_TEXT].result is Result.PASSED


@pytest.mark.exhaustive
def test_rows_of_extensions_that_no_dump_has_are_named(pair: Pair, tmp_path: Path) -> None:
    with database(pair.source, f"rows{os.getpid()}") as source:
        execute(source, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)", "CREATE EXTENSION ovia_conf")
        # CREATE EXTENSION inserts the rows of its script; the rows of its configuration tables are in the dump.
        assert undumped(source) == []
        execute(source, "INSERT INTO conf VALUES ('mine', ''), ('6 x', '%'); INSERT INTO parts VALUES ('a')")
        assert undumped(source) == []
        drilling = Drilling(source, pair.bin_dir, tmp_path)
        assert drilling.dump().manifest.undumped == ()  # type: ignore[union-attr]

        execute(
            source,
            "INSERT INTO unsaved VALUES (1), (2); INSERT INTO filled VALUES ('fr')",
            "UPDATE conf SET v = 'changed' WHERE k = 'builtin'",
        )
        named = [
            "table public.conf of extension ovia_conf: 1 rows",
            "table public.filled of extension ovia_conf: 1 rows",
            "table public.unsaved of extension ovia_conf: 2 rows",
        ]

        def are_named(lines: object) -> bool:
            return [line.partition(" that did not come with it")[0] for line in lines] == named  # type: ignore[attr-defined]

        backup = drilling.dump()
        assert backup.judgement is not None
        assert are_named(backup.judgement.oddities)
        evidence = drilling.drill()
        assert evidence.passed
        assert are_named(by_check(evidence)[Check.EXTENSIONS].text.split("; "))
        place = place_for(source, pair.bin_dir, tmp_path / "backups", tmp_path)
        said = [line.text for line in look_at_server(place.system)]
        assert are_named([text for text in said if "extension" in text])

        # With a role that may not read the tables.
        execute(source, "CREATE ROLE weak LOGIN; GRANT SELECT ON conf TO weak")
        weak = undumped(replace(source, user="weak"))
        assert are_named(weak[:1]) is False
        assert [line for line in weak if "filled" in line or "unsaved" in line] == [
            f"table public.{name} of extension ovia_conf may hold rows that no dump contains: this role may not read it"
            for name in ("filled", "unsaved")
        ]
