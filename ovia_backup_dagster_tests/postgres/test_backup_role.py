"""``deploy/backup-role.sql``: a role that can back up all of a database, and do nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.dump_privileges import missing_rights
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster_tests.conftest import REPOSITORY, NewDatabase, PortCluster, admin, execute, quiet
from ovia_backup_dagster_tests.support.rights import SCHEMA

SCRIPT = REPOSITORY / "deploy" / "backup-role.sql"
ROLE = "ovia_backup"
OTHER_ROLE = "backup_role_other"
#: Everything that could end a literal or be taken for a psql variable.
PASSWORD = """it's "a" \\ $pass$ :word :'word' %"""


@pytest.fixture
def full(new_full_database: NewDatabase, full_server: PortCluster) -> Iterator[Connection]:
    """A database with one object of each kind, of which PUBLIC may read nothing."""
    database = new_full_database()
    execute(
        database,
        "CREATE EXTENSION IF NOT EXISTS hstore",
        SCHEMA,
        f"CREATE ROLE {OTHER_ROLE}",
        f"ALTER TABLE a.plain OWNER TO {OTHER_ROLE}",
        "ALTER TABLE a.plain ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE a.plain FORCE ROW LEVEL SECURITY",
        "INSERT INTO a.plain (x, y) VALUES (1, 'one')",
        "SELECT lo_from_bytea(103, 'large')",
        "REVOKE ALL ON ALL TABLES IN SCHEMA a, pgx, public FROM PUBLIC",
        f'REVOKE ALL ON DATABASE "{database.database}" FROM PUBLIC',
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
    )
    yield database
    with admin(full_server, database.database) as session:
        for role in (ROLE, OTHER_ROLE):
            if session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                name = sql.Identifier(role)
                session.execute(sql.SQL("REASSIGN OWNED BY {} TO postgres").format(name))
                session.execute(sql.SQL("DROP OWNED BY {}").format(name))
                session.execute(sql.SQL("DROP ROLE {}").format(name))


def run(database: Connection, bin_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with psql, from another database of the server."""
    variables = {**database.to("postgres").environment(), **environment}
    command = [str(bin_dir / "psql"), "-X", "-w", "-v", f"database={database.database}", *arguments, "-f", str(SCRIPT)]
    variables["LD_LIBRARY_PATH"] = str(bin_dir.parent / "lib")
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)


def made(database: Connection, bin_dir: Path, password: str = PASSWORD) -> None:
    result = run(database, bin_dir, BACKUP_PASSWORD=password)
    assert (result.returncode, result.stderr) == (0, "")
    assert "beware" not in result.stdout
    assert "member" not in result.stdout


@pytest.fixture
def role(full: Connection, full_server: PortCluster, full_bin_dir: Path) -> Connection:
    """A connection as the role, with its password over TLS."""
    made(full, full_bin_dir)
    over_tls = {"PGSSLMODE": "require"}
    return replace(full, host="127.0.0.1", user=ROLE, password=SecretStr(PASSWORD), libpq=over_tls)


def test_the_role_backs_up_the_whole_database(role: Connection, full_bin_dir: Path, tmp_path: Path) -> None:
    with connect(role) as session:
        assert missing_rights(session, ROLE) == []
        row = session.execute("SELECT count(*) AS n FROM pg_largeobject_metadata").fetchone()
        objects = row["n"] if row else 0
    catalog, programs = Catalog(tmp_path / "backups", role.database), Programs(full_bin_dir)
    backup = Dumper(catalog, role, programs).dump(log=quiet)
    assert backup.manifest is not None
    assert backup.manifest.warnings == ()
    assert backup.manifest.globals_included
    assert backup.manifest.database.system_identifier
    expectations = Expectations(("people", "identities", "person_identity_links"), True)
    verified = Verifier(catalog, programs, expectations).verify(backup, log=quiet)
    assert verified.judgement.good
    assert verified.witness is not None
    assert verified.witness.rows_by_table()["a.plain"] == 1
    assert verified.witness.large_objects.count == objects


FORBIDDEN = [
    "INSERT INTO a.plain (x) VALUES (2)",
    "UPDATE a.plain SET y = ''",
    "DELETE FROM people",
    "TRUNCATE people",
    "SELECT nextval('a.numbers')",
    "SELECT lo_put(103, 0, 'x')",
    "SELECT lo_unlink(103)",
    "CREATE TABLE mine (x int)",
    "CREATE TABLE a.mine (x int)",
    "CREATE TEMPORARY TABLE mine (x int)",
    "CREATE SCHEMA mine",
    "CREATE EXTENSION pg_trgm",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "ALTER ROLE ovia_backup SUPERUSER",
    f"ALTER ROLE {OTHER_ROLE} LOGIN",
    "GRANT pg_write_all_data TO ovia_backup",
    f"SET ROLE {OTHER_ROLE}",
    "ALTER TABLE people OWNER TO ovia_backup",
    "COPY people TO PROGRAM 'cat > /dev/null'",
    "COPY people TO '/tmp/ovia-backup-role-test'",
    "SELECT pg_read_file('/etc/passwd')",
    "ALTER SYSTEM SET work_mem = '1MB'",
    "CHECKPOINT",
    "SELECT pg_terminate_backend({pid})",
    "SELECT pg_cancel_backend({pid})",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "REFRESH MATERIALIZED VIEW a.kept",
]


def test_the_role_can_do_nothing_else(role: Connection, full_server: PortCluster) -> None:
    outcomes: dict[str, object] = {}
    with admin(full_server, role.database) as other:
        for statement in FORBIDDEN:
            assert role.password
            with psycopg.connect(
                host=role.host,
                port=role.port,
                dbname=role.database,
                user=role.user,
                password=role.password.get_secret_value(),
                sslmode="require",
                autocommit=True,
            ) as session:
                assert session.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
                # The default protects only against accidents: the session can turn it off.
                session.execute("SET default_transaction_read_only = off")
                outcome: object = "it may"
                try:
                    session.execute(statement.format(pid=other.info.backend_pid).encode())
                except psycopg.Error as error:
                    outcome = type(error)
                outcomes[statement] = outcome
    assert outcomes == dict.fromkeys(FORBIDDEN, psycopg.errors.InsufficientPrivilege)


def acl(database: Connection) -> list[dict[str, object]]:
    """All roles and grants; without passwords, because their salt changes."""
    query = """
        SELECT (SELECT jsonb_agg(to_jsonb(r) - 'rolpassword' ORDER BY rolname) FROM pg_roles r) AS roles,
               (SELECT jsonb_agg(m ORDER BY m.oid) FROM pg_auth_members m) AS members,
               (SELECT jsonb_agg(s) FROM pg_db_role_setting s) AS settings,
               (SELECT jsonb_agg(o ORDER BY o.oid) FROM pg_largeobject_metadata o) AS objects,
               (SELECT array_agg(proacl::text ORDER BY oid) FROM pg_proc) AS functions,
               (SELECT datacl::text FROM pg_database WHERE datname = current_database()) AS database
    """
    with connect(database) as session:
        return list(session.execute(query).fetchall())


def test_the_runbooks_sql_runs_from_standard_input(full: Connection, full_bin_dir: Path) -> None:
    variables = {**full.environment(), "BACKUP_PASSWORD": PASSWORD, "LD_LIBRARY_PATH": str(full_bin_dir.parent / "lib")}
    with SCRIPT.open("rb") as script:
        command = [str(full_bin_dir / "psql"), "-q", "-U", "postgres", "-d", full.database]
        result = subprocess.run(command, env=variables, stdin=script, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    with connect(replace(full, user=ROLE)) as session:
        assert missing_rights(session, ROLE) == []


def test_no_grant_on_a_system_function_enters_the_dumps(full: Connection, full_bin_dir: Path) -> None:
    execute(full, "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    made(full, full_bin_dir)
    assert f"{ROLE}=" not in str(acl(full)[0]["functions"])


def test_a_second_run_only_grants_rights_on_new_objects(role: Connection, full: Connection, full_bin_dir: Path) -> None:
    before = acl(full)
    made(full, full_bin_dir)
    assert acl(full) == before
    execute(full, "SELECT lo_create(104)", "CREATE TABLE a.later (x int)")
    with connect(role) as session:
        (lacking,) = missing_rights(session, ROLE)
        assert "1 of 6 large objects" in lacking.what
    made(full, full_bin_dir)
    with connect(role) as session:
        assert missing_rights(session, ROLE) == []


def test_a_role_loses_excess_rights_and_the_rest_is_reported(full: Connection, full_bin_dir: Path) -> None:
    execute(full, f"CREATE ROLE {ROLE} SUPERUSER CREATEDB CREATEROLE REPLICATION", f"GRANT {OTHER_ROLE} TO {ROLE}")
    result = run(full, full_bin_dir, BACKUP_PASSWORD=PASSWORD)
    assert result.returncode == 0
    assert result.stdout.strip() == f"ovia_backup is also a member of {OTHER_ROLE}"
    with connect(full) as session:
        row = session.execute(
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication AS may FROM pg_roles WHERE rolname = %s",
            (ROLE,),
        ).fetchone()
    assert row == {"may": False}


@pytest.mark.parametrize("given", [(), ("-v", "password=")])
def test_without_a_password_no_role_is_made(given: tuple[str, ...], full: Connection, full_bin_dir: Path) -> None:
    result = run(full, full_bin_dir, *given)
    assert result.returncode == 3
    assert "no password: set BACKUP_PASSWORD" in result.stderr
    with connect(full) as session:
        assert session.execute("SELECT FROM pg_roles WHERE rolname = 'ovia_backup'").fetchone() is None


def test_a_password_given_as_a_variable_is_in_no_log(
    full: Connection, full_server: PortCluster, full_bin_dir: Path
) -> None:
    execute(full, f"ALTER DATABASE \"{full.database}\" SET log_statement = 'all'")
    result = run(full, full_bin_dir, "-v", "password=unlogged-pa55word")
    assert result.returncode == 0, result.stderr
    logs = [path for path in full_server.folder.rglob("*") if path.is_file() and "log" in path.name]
    text = "".join(path.read_text(errors="replace") for path in logs)
    assert "SET log_statement = 'none'" in text
    assert "unlogged-pa55word" not in text
