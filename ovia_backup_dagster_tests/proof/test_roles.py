"""Roles created from the saved globals: their rights on a server that others use, and their comparison in a copy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.postgres import globals_file as saved_globals
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.proof import roles
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.roles import replay
from ovia_backup_dagster_tests.conftest import PortCluster, execute, running_cluster
from ovia_backup_dagster_tests.support.drilling import Drilling, by_check, database, one

QUOTED = '"Odd ""one""; --"'
SETUP = (
    "CREATE ROLE owners NOLOGIN",
    f"""CREATE ROLE {QUOTED} LOGIN CONNECTION LIMIT 3 VALID UNTIL '2031-01-01' IN ROLE owners""",
    "CREATE ROLE boss SUPERUSER CREATEROLE REPLICATION BYPASSRLS NOINHERIT LOGIN PASSWORD 'b0ss'",
    "GRANT pg_execute_server_program, pg_read_all_data TO boss",
    "GRANT boss TO owners WITH ADMIN OPTION",
    "ALTER ROLE owners SET search_path TO 'a', 'b c'",
    "ALTER ROLE owners SET session_preload_libraries TO 'auto_explain'",
    r"COMMENT ON ROLE owners IS 'it''s; \'",
    "GRANT SET ON PARAMETER log_statement TO owners",
    "GRANT SET ON PARAMETER lc_messages TO owners",
    "GRANT SET, ALTER SYSTEM ON PARAMETER log_duration TO boss WITH GRANT OPTION",
    # Granted by a role that is not the bootstrap superuser.
    f"SET ROLE boss; GRANT ALTER SYSTEM ON PARAMETER log_duration TO {QUOTED}; RESET ROLE",
)
ODD = 'Odd "one"; --'
NAMES = ("owners", ODD, "boss")
ATTRIBUTES = """
    SELECT concat_ws(' ', CASE WHEN rolsuper THEN 'super' END, CASE WHEN rolcreaterole THEN 'createrole' END,
                     CASE WHEN rolreplication THEN 'replication' END, CASE WHEN rolbypassrls THEN 'bypassrls' END,
                     CASE WHEN rolinherit THEN 'inherit' END, CASE WHEN rolcanlogin THEN 'login' END,
                     CASE WHEN rolpassword IS NOT NULL THEN 'password' END)
    FROM pg_authid WHERE rolname = '{}'
"""
GROUPS = """
    SELECT string_agg(g.rolname, ' ' ORDER BY g.rolname)
    FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles r ON r.oid = m.member
    WHERE r.rolname = '{}'
"""


@dataclass
class Server:
    """A server that no other module uses; its roles are dropped after each test."""

    cluster: PortCluster
    programs: Programs
    saved: bytes

    @property
    def connection(self) -> Connection:
        return self.cluster.connection()

    def dumped(self, *options: str) -> bytes:
        command = (self.programs.path("pg_dumpall"), "--globals-only", *options, "-d", self.connection.conninfo())
        code, text, stderr = capture(command, variables=self.connection.environment())
        assert code == 0, stderr
        return text

    def attributes(self, role: str) -> str:
        return str(one(self.connection, f"SELECT coalesce(({ATTRIBUTES.format(role)}), 'not made')"))

    def groups(self, role: str) -> str:
        return str(one(self.connection, f"SELECT coalesce(({GROUPS.format(role)}), '')"))

    def clear(self) -> None:
        for name in saved_globals.parse_globals(self.dumped()).roles:
            if name != "postgres":
                quoted = '"' + name.replace('"', '""') + '"'
                execute(self.connection, f"DROP OWNED BY {quoted}", f"DROP ROLE {quoted}")


@pytest.fixture(scope="module")
def own(bin_dir: object) -> Iterator[Server]:
    with running_cluster(bin_dir) as cluster:  # type: ignore[arg-type]
        there = Server(cluster, Programs(bin_dir), b"")  # type: ignore[arg-type]
        execute(there.connection, *SETUP)
        there.saved = there.dumped()
        there.clear()
        yield there


@pytest.fixture
def there(own: Server) -> Iterator[Server]:
    yield own
    own.clear()


def test_a_new_host_lacks_roles_that_no_object_names(server: PortCluster) -> None:
    saved = b"CREATE ROLE missing_reader;\nCREATE ROLE missing_owner;\n"
    schema = b"ALTER TABLE public.t OWNER TO missing_owner;\n"
    assert roles.missing(server.connection(), saved, schema) == ["missing_owner"]
    assert roles.missing(server.connection(), saved, None) == ["missing_reader", "missing_owner"]


def test_an_unnamed_role_gets_no_power(there: Server) -> None:
    assert b"PASSWORD" in there.saved, "the test shows nothing"
    notes = roles.create(there.connection, there.saved, NAMES)
    assert there.attributes("boss") == "login"
    assert there.groups("boss") == ""
    # Memberships among the new roles are kept: no role gains power by them.
    assert (there.groups(ODD), there.groups("owners")) == ("owners", "boss")
    assert one(there.connection, "SELECT rolconfig::text FROM pg_roles WHERE rolname = 'owners'") == (
        '{"search_path=a, \\"b c\\""}'
    )
    parameters = "SELECT string_agg(parname, ' ') FROM pg_parameter_acl WHERE paracl::text ~ 'owners|boss|Odd'"
    assert one(there.connection, parameters) == "lc_messages"
    told = "\n".join(notes)
    assert 'ALTER ROLE "boss" SUPERUSER CREATEROLE REPLICATION BYPASSRLS; GRANT "pg_execute_server_program"' in told
    assert "setting session_preload_libraries of role owners: permission denied" in told
    assert "were not set: boss" in told
    assert f"set one for: {ODD}, boss" in told
    # The note can be pasted as SQL.
    for statements in re.findall("to give it: (.*)", told):
        execute(there.connection, *re.split("; (?=ALTER|GRANT)", statements))
    assert there.attributes("boss") == "super createrole replication bypassrls login"
    assert there.groups("boss") == "pg_execute_server_program pg_read_all_data"
    assert roles.compare_roles(there.connection, there.programs, there.saved)[0] == []


def test_a_named_role_gets_everything_but_a_password(there: Server) -> None:
    roles.create(there.connection, there.saved, NAMES, NAMES)
    assert there.attributes("boss") == "super createrole replication bypassrls login"
    bad, odd = roles.compare_roles(there.connection, there.programs, there.saved)
    assert (bad, odd) == ([], [])


def test_an_unnamed_member_of_a_named_role_gets_nothing(there: Server) -> None:
    """A forged file makes an unnamed role a member of a named one."""
    notes = roles.create(there.connection, there.saved, NAMES, ("boss",))
    assert there.attributes("boss").startswith("super")
    assert there.groups("owners") == ""
    assert 'GRANT "boss" TO "owners"' in "\n".join(notes)


def test_parameters_of_existing_roles_are_noted_not_granted(there: Server) -> None:
    execute(there.connection, "CREATE ROLE before; GRANT SET ON PARAMETER log_duration TO before")
    saved = b"CREATE ROLE before;\nCREATE ROLE late;\nGRANT SET ON PARAMETER log_duration TO before;\n"
    saved += (
        b"GRANT ALTER SYSTEM ON PARAMETER log_duration TO before;\nGRANT SET ON PARAMETER log_statement TO PUBLIC;\n"
    )
    saved += b"GRANT SET ON PARAMETER log_statement TO gone;\n"
    missing = roles.missing(there.connection, saved, None)
    (note,) = roles.create(there.connection, saved, missing, missing)
    assert note == (
        "roles that are there already are left as they are; to give what was saved: GRANT ALTER SYSTEM ON PARAMETER "
        'log_duration TO "before"; GRANT SET ON PARAMETER log_statement TO PUBLIC'
    )


FORGED = [
    b"CREATE ROLE forged SUPERUSER PASSWORD 'x';\n",
    b"CREATE ROLE forged;\nALTER ROLE forged WITH SUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$x';\n",
    b"CREATE ROLE forged;\nALTER ROLE forged  SUPERUSER ;\n",
    b"CREATE ROLE forged;\nALTER ROLE \"forged\" ENCRYPTED PASSWORD 'x';\n",
    b"CREATE ROLE forged IN ROLE postgres;\n",
    b"CREATE ROLE forged ADMIN postgres;\n",
    b"CREATE ROLE forged;\nGRANT postgres TO forged;\n",
    b'CREATE ROLE forged;\nGRANT "postgres" TO forged WITH ADMIN OPTION, SET TRUE GRANTED BY postgres;\n',
    b"CREATE ROLE forged;\nGRANT pg_write_server_files TO forged;\n",
    b"CREATE ROLE forged;\nCREATE ROLE g;\nGRANT g TO forged;\nGRANT pg_read_all_data TO g;\n",
    b"CREATE ROLE forged; ALTER ROLE forged SUPERUSER;\n",
    b"CREATE ROLE forged; COPY (SELECT 1) TO PROGRAM 'true';\n",
    b"CREATE ROLE forged;\nCOMMENT ON ROLE forged IS ''; ALTER ROLE forged SUPERUSER;\n",
    b"CREATE ROLE forged;\nALTER ROLE forged SET work_mem TO '1MB'; ALTER ROLE forged SUPERUSER;\n",
    b"CREATE ROLE forged;\nALTER ROLE forged SET session_preload_libraries TO '/tmp/x';\n",
    b"CREATE ROLE forged;\nALTER ROLE forged SET app.x TO '1';\n",
    b"CREATE ROLE forged;\nGRANT SET ON PARAMETER session_preload_libraries TO forged;\n",
    b"CREATE ROLE forged;\nGRANT ALTER SYSTEM ON PARAMETER lc_messages TO forged;\n",
    b"CREATE ROLE forged;\nGRANT SET ON PARAMETER lc_messages TO forged WITH GRANT OPTION;\n",
    b"CREATE ROLE forged;\nGRANT SET ON PARAMETER log_statement TO PUBLIC;\n",
    b"CREATE ROLE forged;\nGRANT SET ON PARAMETER lc_messages, session_preload_libraries TO forged;\n",
    b"CREATE ROLE forged;\nGRANT SET ON PARAMETER lc_messages TO forged; ALTER ROLE forged SUPERUSER;\n",
    b"CREATE ROLE forged VALID UNTIL 'now'; ALTER ROLE forged SUPERUSER; --';\n",
    b"CREATE ROLE forged;\nALTER ROLE postgres PASSWORD 'mine';\nALTER ROLE CURRENT_USER NOLOGIN;\n",
    b'CREATE ROLE forged;\nALTER ROLE U&"\\0070ostgres" NOLOGIN;\nALTER ROLE all SET work_mem TO 1;\n',
]


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
def test_a_forged_file_gives_neither_power_nor_a_password(there: Server, forged: bytes) -> None:
    before = there.attributes("postgres"), one(there.connection, "SELECT rolpassword FROM pg_authid WHERE oid = 10")
    names = roles.missing(there.connection, forged, None)
    roles.create(there.connection, forged, names)
    assert there.attributes("forged") in ("inherit", "inherit login", "not made")
    assert there.groups("forged") in ("", "g")
    power = "SELECT count(*) FROM pg_roles WHERE oid <> 10 AND (rolsuper OR rolreplication OR rolbypassrls)"
    assert one(there.connection, power) == 0
    assert one(there.connection, "SELECT count(*) FROM pg_authid WHERE oid <> 10 AND rolpassword IS NOT NULL") == 0
    assert (
        one(
            there.connection, "SELECT count(*) FROM pg_auth_members WHERE roleid = 10 OR roleid < 16384 AND oid > 16384"
        )
        == 0
    )
    assert one(there.connection, "SELECT count(*) FROM pg_parameter_acl WHERE paracl::text ~ '(^|[{,])(forged)?='") == 0
    assert one(there.connection, "SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text ~ 'preload|app'") == 0
    after = there.attributes("postgres"), one(there.connection, "SELECT rolpassword FROM pg_authid WHERE oid = 10")
    assert after == before


def test_a_replay_creates_the_same_roles(there: Server) -> None:
    assert roles.replay(there.connection, there.saved) == []
    assert roles.compare_roles(there.connection, there.programs, there.saved) == ([], [])


ALTERED = [
    ("ALTER ROLE owners CREATEDB", "bad", "role owners has gained CREATEDB"),
    ("ALTER ROLE boss NOBYPASSRLS NOLOGIN", "bad", "role boss no longer has LOGIN, BYPASSRLS"),
    ("CREATE ROLE stranger", "bad", "role stranger was created, but not saved"),
    ("ALTER ROLE owners RENAME TO owner", "bad", "role owners was saved, but not created"),
    ("GRANT pg_monitor TO owners", "bad", "role owners is now a member of pg_monitor"),
    ("REVOKE pg_read_all_data FROM boss", "bad", "role boss is not a member of pg_read_all_data"),
    ("REVOKE ADMIN OPTION FOR boss FROM owners", "bad", "role owners is with other options in boss"),
    ("REVOKE SET ON PARAMETER log_statement FROM owners", "bad", "GRANT SET ON PARAMETER log_statement"),
    ("ALTER ROLE owners SET search_path TO 'a'", "odd", "role owners has a different setting: search_path"),
    ("ALTER ROLE owners CONNECTION LIMIT 1", "odd", "role owners has a different limit of connections"),
    ("ALTER ROLE owners VALID UNTIL '2030-01-01'", "odd", "role owners has a different end of its password"),
    ("COMMENT ON ROLE owners IS 'other'", "odd", "role owners has a different comment"),
]


@pytest.mark.parametrize(("change", "how", "said"), ALTERED, ids=[change for change, _, _ in ALTERED])
def test_a_difference_between_roles_is_named(there: Server, change: str, how: str, said: str) -> None:
    roles.replay(there.connection, there.saved)
    execute(there.connection, change)
    bad, odd = roles.compare_roles(there.connection, there.programs, there.saved)
    assert any(text.startswith(said) for text in (bad if how == "bad" else odd)), (bad, odd)
    assert not (odd if how == "bad" else bad)


def test_a_drill_with_roles_of_fewer_rights_fails(there: Server, tmp_path: Path) -> None:
    execute(there.connection, *SETUP)
    with database(there.cluster, "drilled") as source:
        execute(source, "CREATE TABLE t (a int)")
        drilling = Drilling(source, there.programs.bin_dir, tmp_path)  # type: ignore[arg-type]
        drilling.dump()
        line = by_check(drilling.drill())[Check.ROLES]
        assert (line.result, line.text) == (Result.PASSED, "4 roles, with what they may do")

        def forgetful(server: Connection, saved: bytes) -> list[str]:
            return replay(server, saved.replace(b" BYPASSRLS", b" NOBYPASSRLS"))

        with mock.patch.object(roles, "replay", forgetful):
            evidence = drilling.drill()
    assert not evidence.passed
    assert by_check(evidence)[Check.ROLES].text == "role boss no longer has BYPASSRLS"
