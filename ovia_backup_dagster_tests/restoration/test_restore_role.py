"""``deploy/restore-role.sql`` creates a role that can do a whole restore and lends no superuser rights to a backup."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster_tests.conftest import REPOSITORY, PortCluster, execute
from ovia_backup_dagster_tests.support.drilling import one
from ovia_backup_dagster_tests.support.restoring import Site, admin_of

SCRIPT = REPOSITORY / "deploy" / "restore-role.sql"
ROLE = "ovia_restore"
#: All characters that could end a literal or start a psql variable.
PASSWORD = """it's "a" \\ $pass$ :word :'word' %"""
OWNED = ("TABLE people", "TABLE identities", "TABLE person_identity_links", "MATERIALIZED VIEW counted")
ATTACK = """
    CREATE FUNCTION m.f(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        BEGIN EXECUTE 'ALTER ROLE {0} SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN true; END $$
"""


@dataclass
class Restoring:
    """A site whose database belongs to one role, and a schema in it to another.

    Attributes:
        site: the site, restored by the superuser.
        weak: the same site, restored by the role of the script.
        owner: the role that owns the database.
        mallory: the role that owns the schema.
    """

    site: Site
    weak: Site
    owner: str
    mallory: str

    @property
    def stranger(self) -> str:
        """A role that owns nothing."""
        return f"stranger_{self.site.live.database}"

    def may_all(self) -> object:
        return one(self.site.live.to("postgres"), f"SELECT rolsuper FROM pg_roles WHERE rolname = '{self.mallory}'")

    @property
    def live_owner(self) -> object:
        return one(self.site.live, "SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()")


def run(site: Site, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as in the runbook: by psql from standard input."""
    variables = {**os.environ, **site.live.environment(), **environment}
    command = [str(site.bin_dir / "psql"), "-q", "-X", "-w", "-U", "postgres", "-d", site.live.database]
    with SCRIPT.open("rb") as script:
        return subprocess.run(
            command, env=variables, stdin=script, capture_output=True, text=True, timeout=60, check=False
        )


def made(site: Site) -> str:
    """Run the script with a password; return its warnings."""
    result = run(site, RESTORE_PASSWORD=PASSWORD)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


@pytest.fixture
def owned(site: Site) -> Iterator[Restoring]:
    """The site before the script has run."""
    owner, mallory = (f"{who}_{site.live.database}" for who in ("owner", "mallory"))
    execute(site.live, f"CREATE ROLE {owner} LOGIN", f"CREATE ROLE {mallory} LOGIN")
    execute(
        site.live,
        *(f"ALTER {what} OWNER TO {owner}" for what in OWNED),
        f"ALTER DATABASE {site.live.database} OWNER TO {owner}",
        f"ALTER DATABASE {site.live.database} SET timezone = 'Asia/Kolkata'",
        f"CREATE SCHEMA m AUTHORIZATION {mallory}",
    )
    execute(
        replace(site.live, user=mallory),
        ATTACK.format(mallory),
        "CREATE TABLE m.t (a int CHECK (m.f(a)))",
        "INSERT INTO m.t VALUES (1)",
        f"GRANT USAGE ON SCHEMA m TO {owner}",
        "SELECT lo_from_bytea(0, 'large')",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA m GRANT SELECT ON TABLES TO {owner}",
    )
    tcp = {
        "RESTORE_POSTGRES_HOST": "127.0.0.1",
        "RESTORE_POSTGRES_USER": ROLE,
        "RESTORE_POSTGRES_PASSWORD": PASSWORD,
    }
    yield Restoring(site, site.with_settings(**tcp), owner, mallory)
    with admin_of(site) as session:
        for name in site.databases:
            session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        for role in (ROLE, owner, mallory, f"stranger_{site.live.database}"):
            session.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def restoring(owned: Restoring) -> Restoring:
    """The role that the script created, a backup, and changes since."""
    site, weak = owned.site, owned.weak
    assert made(site) == ""
    execute(site.live, "REFRESH MATERIALIZED VIEW counted")
    site.backup = weak.backup = site.place.chain()
    site.then = weak.then = site.content()
    execute(site.live, "DELETE FROM people WHERE id = 1000", "INSERT INTO m.t VALUES (2)")
    site.now = weak.now = site.content()
    assert site.now != site.then
    execute(site.live, f"ALTER ROLE {owned.mallory} NOSUPERUSER")
    return owned


def test_the_role_copies_tables(restoring: Restoring) -> None:
    execute(restoring.site.live, "DELETE FROM people WHERE id < 3 AND id NOT IN (SELECT person FROM identities)")
    ended = restoring.weak.restore("--tables", "people,m.t", confirm=False)
    assert ended.code == 0, ended.output
    assert "rows, as they were, are in schema restored_" in ended.output


def test_the_role_swaps_undoes_and_forgets(restoring: Restoring) -> None:
    site, weak = restoring.site, restoring.weak
    planned = weak.restore("--plan", confirm=False)
    assert planned.code == 0, planned.output
    assert "run as" not in planned.output
    execute(site.live, f"CREATE ROLE {restoring.stranger} LOGIN")
    others = [
        psycopg.connect(host=site.live.host, port=site.live.port, dbname=site.live.database, user=user)
        for user in (restoring.owner, restoring.mallory, restoring.stranger)
    ]
    ended = weak.restore()
    assert ended.code == 0, ended.output
    assert site.content() == site.then
    record = site.records[0]
    assert (record.notes, record.sessions_cut) == ((), len(others))
    assert record.proven is not None
    results = {line.check: line.result for line in record.proven.lines}
    assert results[Check.FUNCTIONS] is Result.PASSED
    # m.f has dynamic SQL and might read any table, so its table is loaded last, which is odd.
    assert {check for check, result in results.items() if result is Result.ODD} == {Check.RESTORED}
    assert Result.FAILED not in results.values()
    assert restoring.live_owner == restoring.owner
    assert one(site.live, "SHOW timezone") == "Asia/Kolkata"
    for wanted in (site.now, site.then):
        ended = weak.undo()
        assert ended.code == 0, ended.output
        assert site.content() == wanted
    (kept,) = set(site.databases) - {site.live.database}
    ended = weak.place.run("undo-restore", "--forget", "--yes-destroy", kept)
    assert ended.code == 0, ended.output
    assert site.databases == [site.live.database]
    assert restoring.may_all() is False
    for other in others:
        other.close()


@pytest.mark.exhaustive
def test_the_role_drops_and_restores(restoring: Restoring) -> None:
    site = restoring.site
    ended = restoring.weak.restore("--mode", "drop")
    assert ended.code == 0, ended.output
    assert site.content() == site.then
    assert restoring.live_owner == restoring.owner
    assert one(site.live, "SHOW timezone") == "Asia/Kolkata"
    assert restoring.may_all() is False


@pytest.mark.exhaustive
def test_the_role_restores_beside_and_drills(restoring: Restoring) -> None:
    site, weak = restoring.site, restoring.weak
    look = f"{site.live.database}_look"
    ended = weak.restore("--mode", "new", "--into", look, confirm=False)
    assert ended.code == 0, ended.output
    # Mode new sets no settings; with the time zone, the rows read the same.
    execute(site.live, f"ALTER DATABASE {look} SET timezone = 'Asia/Kolkata'")
    assert site.content(look) == site.then
    ended = weak.place.run("drill", "--where", "database")
    assert ended.code == 0, ended.output
    assert site.databases == [site.live.database, look]
    doctor = weak.place.run("doctor").output
    assert f"role {ROLE} may replace database {site.live.database}" in doctor
    assert "run as" not in doctor
    assert restoring.may_all() is False


@pytest.mark.exhaustive
def test_a_superuser_lends_what_this_role_does_not(restoring: Restoring) -> None:
    """With a superuser, which the docs advised earlier, the attack is named and succeeds."""
    site = restoring.site
    strong = site.with_settings(RESTORE_POSTGRES_USER="postgres")
    said = "1 function of roles that are not superusers run as postgres, a superuser: FUNCTION m f(integer)"
    for looked in (strong.restore("--plan", confirm=False), strong.place.run("doctor")):
        assert said in looked.output
        assert "deploy/restore-role.sql" in looked.output
    assert restoring.may_all() is False
    assert "--trust-archive" in strong.place.run("drill", "--where", "database").output
    assert restoring.may_all() is False
    assert strong.restore().code == 0
    assert restoring.may_all() is True, "the attack does not work, and the tests show nothing"
    record = site.records[0]
    assert record.proven is not None
    assert said in next(line.text for line in record.proven.lines if line.check is Check.FUNCTIONS)


@pytest.mark.exhaustive
def test_forced_row_security_gives_the_role_bypassrls(owned: Restoring) -> None:
    """Only then does the role need BYPASSRLS, to read back the rows that it restored."""
    site = owned.site
    assert made(site) == ""
    bypasses = f"SELECT rolbypassrls FROM pg_roles WHERE rolname = '{ROLE}'"
    assert one(site.live, bypasses) is False
    execute(
        site.live,
        "ALTER TABLE people ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE people FORCE ROW LEVEL SECURITY",
        "CREATE POLICY no_one ON people USING (false)",
        # The view's owner may no longer read the table, whichever role restores the view.
        "DROP MATERIALIZED VIEW counted",
    )
    backup = site.place.chain()
    then = site.content()
    assert owned.weak.place.run("restore", backup.path.name, "--yes-destroy", site.live.database).code == 1
    assert made(site) == ""
    assert one(site.live, bypasses) is True
    ended = owned.weak.place.run("restore", backup.path.name, "--yes-destroy", site.live.database)
    assert ended.code == 0, ended.output
    assert site.content() == then


FORBIDDEN = [
    "CREATE ROLE mine",
    f"ALTER ROLE {ROLE} SUPERUSER",
    "ALTER ROLE {owner} PASSWORD 'mine'",
    "ALTER ROLE postgres PASSWORD 'mine'",
    "SET ROLE postgres",
    f"GRANT {{owner}} TO {ROLE}",
    f"GRANT pg_execute_server_program TO {ROLE}",
    "COPY people TO PROGRAM 'cat > /dev/null'",
    "COPY people TO '/tmp/ovia-restore-role-test'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT rolpassword FROM pg_authid",
    "ALTER SYSTEM SET work_mem = '1MB'",
    "SELECT lo_import('/etc/passwd')",
    "SELECT pg_terminate_backend({pid})",
    "LOAD '/tmp/ovia-restore-role-test'",
]


def test_the_role_never_becomes_superuser(owned: Restoring) -> None:
    site = owned.site
    made(site)
    outcomes: dict[str, object] = {}
    with admin_of(site) as boss, closing(_session(site)) as session:
        for statement in FORBIDDEN:
            outcome: object = "it may"
            try:
                session.execute(statement.format(owner=owned.owner, pid=boss.info.backend_pid).encode())
            except psycopg.Error as error:
                outcome = type(error)
            outcomes[statement] = outcome
    assert outcomes == dict.fromkeys(FORBIDDEN, psycopg.errors.InsufficientPrivilege)


def _session(site: Site) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host="127.0.0.1", port=site.live.port, user=ROLE, password=PASSWORD, dbname=site.live.database, autocommit=True
    )


def _rights(site: Site) -> object:
    roles = f"SELECT to_jsonb(r) - 'rolpassword' FROM pg_roles r WHERE rolname = '{ROLE}'"
    groups = "SELECT jsonb_agg(to_jsonb(m) - 'oid' ORDER BY m.roleid) FROM pg_auth_members m WHERE member = "
    groups += f"'{ROLE}'::regrole"
    return one(site.live, f"SELECT jsonb_build_array(({roles}), ({groups}))")


def test_the_script_repairs_the_role_and_reports_excess(owned: Restoring) -> None:
    site = owned.site
    made(site)
    before = _rights(site)
    assert made(site) == ""
    assert _rights(site) == before
    # The role has some rights too many, and others are missing.
    later = f"later_{site.live.database}"
    execute(
        site.live,
        f"ALTER ROLE {ROLE} SUPERUSER CREATEROLE REPLICATION NOCREATEDB NOLOGIN",
        f"REVOKE {owned.owner} FROM {ROLE}",
        f"GRANT {owned.owner} TO {ROLE} WITH INHERIT FALSE, SET FALSE",
        f"GRANT pg_read_all_data TO {ROLE}",
        f"CREATE ROLE {later}",
        f"CREATE TABLE later (a int); ALTER TABLE later OWNER TO {later}",
        "CREATE TABLE the_bosses (a int)",
    )
    told = made(site).splitlines()
    assert told == [
        "1 objects belong to postgres, a superuser: ovia_restore cannot restore them",
        "ovia_restore is also a member of pg_read_all_data",
    ]
    execute(site.live, f"REVOKE pg_read_all_data FROM {ROLE}", "DROP TABLE the_bosses", "DROP TABLE later")
    execute(site.live, f"REVOKE {later} FROM {ROLE}", f"DROP ROLE {later}")
    assert _rights(site) == before


def test_no_role_is_created_for_a_superusers_database(site: Site) -> None:
    """A member of a superuser role has a superuser's power."""
    result = run(site, RESTORE_PASSWORD=PASSWORD)
    assert result.returncode == 3
    assert f"database {site.live.database} belongs to postgres, a superuser" in result.stderr
    assert one(site.live, f"SELECT count(*) FROM pg_roles WHERE rolname = '{ROLE}'") == 0


def test_no_role_is_created_without_a_password(owned: Restoring) -> None:
    result = run(owned.site)
    assert result.returncode == 3
    assert "no password: set RESTORE_PASSWORD" in result.stderr
    assert one(owned.site.live, f"SELECT count(*) FROM pg_roles WHERE rolname = '{ROLE}'") == 0


def test_the_password_is_in_no_log(owned: Restoring, server: PortCluster) -> None:
    execute(owned.site.live, f"ALTER DATABASE \"{owned.site.live.database}\" SET log_statement = 'all'")
    assert run(owned.site, RESTORE_PASSWORD="unlogged-pa55word").returncode == 0
    logs = [path for path in Path(server.folder).rglob("*") if path.is_file() and "log" in path.name]
    text = "".join(path.read_text(errors="replace") for path in logs)
    assert "SET log_statement = 'none'" in text
    assert "unlogged-pa55word" not in text
