"""A database gets the properties of another: owner, limit, comment, privileges and settings, as in the catalogs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ovia_backup_dagster.core.errors import DatabaseMissingError
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration import database_settings
from ovia_backup_dagster.restoration.database_settings import Properties, apply, carry_over
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute
from ovia_backup_dagster_tests.support.drilling import as_role, database

SECRET = "s3cret' of \\ an app\nwith a line"
ROLES = 'keeper, reader, "Odd ""role"" x"'
ROWS = """
    SELECT pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database'),
           (SELECT array_agg(a::text ORDER BY a::text) FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) a),
           (SELECT array_agg((setrole, setconfig)::text ORDER BY setrole) FROM pg_db_role_setting
            WHERE setdatabase = pg_database.oid)
    FROM pg_database WHERE datname = %s
"""


@pytest.fixture
def rich(server: PortCluster) -> Iterator[Connection]:
    """A database with every kind of property, and one without any."""
    boss = server.connection()
    execute(boss, "CREATE ROLE keeper", "CREATE ROLE reader", 'CREATE ROLE "Odd ""role"" x"')
    try:
        with database(server, "rich") as source, database(server, "plain"):
            secret = SECRET.replace("'", "''")
            execute(
                boss,
                "ALTER DATABASE rich OWNER TO keeper",
                "ALTER DATABASE rich CONNECTION LIMIT 7",
                "COMMENT ON DATABASE rich IS 'what''s \"in\" it\n\\here'",
                "REVOKE ALL ON DATABASE rich FROM PUBLIC",
                "REVOKE TEMPORARY ON DATABASE rich FROM keeper",
                "GRANT CONNECT ON DATABASE rich TO reader WITH GRANT OPTION",
                'SET ROLE reader; GRANT CONNECT ON DATABASE rich TO "Odd ""role"" x"; RESET ROLE',
                """ALTER DATABASE rich SET search_path TO "$user", 'Odd, "schema"', public""",
                "ALTER DATABASE rich SET session_preload_libraries TO ''",
                "ALTER DATABASE rich SET DateStyle TO 'ISO, DMY'",
                "ALTER DATABASE rich SET work_mem TO 65536",
                "ALTER DATABASE rich SET log_min_duration_statement TO '1h'",
                f"ALTER DATABASE rich SET app.secret TO E'{secret.replace(chr(92), chr(92) * 2)}'",
                """ALTER ROLE "Odd ""role"" x" IN DATABASE rich SET search_path TO ''""",
                "ALTER ROLE reader IN DATABASE rich SET statement_timeout TO '5s'",
            )
            yield source
    finally:
        execute(boss, f"DROP ROLE {ROLES}")


def rows(cluster: PortCluster, name: str) -> object:
    with admin(cluster) as session:
        return session.execute(ROWS, [name]).fetchone()


def test_all_properties_and_no_others_are_carried_over(server: PortCluster, rich: Connection) -> None:
    execute(
        server.connection(),
        "ALTER DATABASE plain SET enable_seqscan TO off",
        "ALTER ROLE postgres IN DATABASE plain SET work_mem TO '1MB'",
        "GRANT CREATE ON DATABASE plain TO reader",
        "COMMENT ON DATABASE plain IS 'gone'",
    )
    for _ in range(2):
        assert carry_over(rich, "rich", "plain") == []
        assert rows(server, "plain") == rows(server, "rich")


def test_a_new_databases_properties_are_carried_over(server: PortCluster, rich: Connection) -> None:
    with database(server, "bare"):
        assert carry_over(rich, "bare", "rich") == []
        assert rows(server, "rich") == rows(server, "bare")


def test_properties_survive_the_journal(server: PortCluster, rich: Connection) -> None:
    read = database_settings.properties(rich, "rich")
    assert "s3cret" not in repr(read)
    kept = Properties.from_json(read.to_json())
    assert kept == read
    assert apply(rich, kept, "plain") == []
    assert rows(server, "plain") == rows(server, "rich")


def test_impossible_properties_are_noted_and_the_rest_set(server: PortCluster, rich: Connection) -> None:
    wanted = database_settings.properties(rich, "rich").model_copy(
        update={"owner": "nobody_here", "labels": {"selinux": "x"}, "tablespace": "elsewhere"}
    )
    notes = apply(rich, wanted, "plain")
    assert any("nobody_here" in note for note in notes)
    assert any("security label" in note and "not loaded" in note for note in notes)
    assert any("SET TABLESPACE" in note for note in notes)
    assert database_settings.properties(rich, "plain").comment == wanted.comment
    assert database_settings.properties(rich, "plain").settings == wanted.settings


def test_the_notes_for_a_weak_role_have_no_secrets(server: PortCluster, rich: Connection) -> None:
    execute(server.connection(), "CREATE ROLE mender LOGIN CREATEDB", "GRANT keeper TO mender")
    try:
        execute(server.connection(), "ALTER DATABASE plain OWNER TO mender")
        notes = carry_over(as_role(rich, "mender"), "rich", "plain")
        assert any("log_min_duration_statement" in note for note in notes)
        assert not any("s3cret" in note for note in notes)
        now = database_settings.properties(rich, "plain")
        assert now.owner == "keeper"
        assert now.connection_limit == 7
    finally:
        execute(server.connection(), "DROP OWNED BY mender", "ALTER DATABASE plain OWNER TO postgres")
        execute(server.connection(), "DROP ROLE mender")


def test_secrets_stay_out_of_the_servers_log(server: PortCluster, rich: Connection) -> None:
    with admin(server) as session:
        session.execute("ALTER SYSTEM SET log_statement = 'all'")
        session.execute("SELECT pg_reload_conf()")
    try:
        before = server.log.stat().st_size
        carry_over(rich, "rich", "plain")
        with open(server.log, encoding="utf-8", errors="replace") as log:
            log.seek(before)
            assert "s3cret' of" not in log.read().replace("''", "'")
    finally:
        execute(server.connection(), "ALTER SYSTEM RESET log_statement", "SELECT pg_reload_conf()")


def test_a_missing_database_is_an_error(server: PortCluster) -> None:
    with pytest.raises(DatabaseMissingError):
        carry_over(server.connection(), "nowhere", "postgres")
