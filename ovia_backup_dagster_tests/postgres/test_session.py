"""Our own sessions, in databases whose owner tries to mislead them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ovia_backup_dagster.postgres.dump_privileges import missing_rights
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect, database_facts, effective_options
from ovia_backup_dagster.restoration.activity import newest_timestamps, written
from ovia_backup_dagster_tests.conftest import PortCluster, execute
from ovia_backup_dagster_tests.support.drilling import as_role, database, one

#: An unqualified query of ours for one of these would find the villain's view first.
_CATALOGS = (
    "pg_class", "pg_database", "pg_db_role_setting", "pg_extension", "pg_roles", "pg_settings",
    "pg_stat_database", "pg_stat_user_tables",
)  # fmt: skip
_TRAP = """
    CREATE FUNCTION evil.trap() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        IF current_setting('is_superuser') = 'on' THEN ALTER ROLE villain SUPERUSER; END IF; RETURN true;
    END $$
"""


@pytest.fixture
def misled(server: PortCluster) -> Iterator[Connection]:
    """A superuser's connection to a database whose owner tries to become superuser."""
    boss = server.connection()
    execute(boss, "CREATE ROLE villain LOGIN")
    try:
        with database(server, "misled", "OWNER villain") as db:
            execute(
                as_role(db, "villain"),
                "CREATE SCHEMA evil",
                _TRAP,
                "CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS "
                "'SELECT pg_catalog.now() WHERE evil.trap()'",
                *(
                    f"CREATE VIEW evil.{name} AS SELECT * FROM pg_catalog.{name} WHERE evil.trap()"
                    for name in _CATALOGS
                ),
                "CREATE TABLE evil.t (at timestamptz)",
                "INSERT INTO evil.t VALUES ('2026-01-01 12:00+00')",
                "ALTER DATABASE misled SET search_path = evil, pg_catalog, public",
            )
            execute(boss, "ALTER ROLE postgres IN DATABASE misled SET search_path = evil, pg_catalog, public")
            yield db
    finally:
        execute(boss, "DROP ROLE villain")


def _rights(connection: Connection) -> object:
    with connect(connection) as session:
        return missing_rights(session, connection.user)


@pytest.mark.parametrize(
    "ask",
    [
        database_facts,
        effective_options,
        _rights,
        lambda db: written(db, db.database),
        lambda db: newest_timestamps(db, db.database),
    ],
    ids=["facts", "options", "rights", "written", "newest"],
)
def test_no_code_of_the_databases_owner_runs_in_our_sessions(
    misled: Connection, ask: Callable[[Connection], object]
) -> None:
    ask(misled)
    assert not one(misled.to("postgres"), "SELECT rolsuper FROM pg_roles WHERE rolname = 'villain'")


def test_a_databases_own_settings_are_still_recorded(misled: Connection) -> None:
    execute(misled, "ALTER DATABASE misled SET timezone = 'America/New_York'")
    assert "TimeZone=America/New_York" in effective_options(misled)
