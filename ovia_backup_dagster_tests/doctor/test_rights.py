"""The doctor reports a missing right if and only if pg_dump is refused, and the SQL that it prints fixes that."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.postgres.dump_privileges import Missing, missing_rights
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import sql_identifier, sql_string
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute
from ovia_backup_dagster_tests.support.rights import SCHEMA

ROLE = "rights_dumper"
GROUP = "rights_group"
OWNER = "rights_owner"
TABLES = ("a.plain", "a.whole", "pgx.part", "pgx.bare", "a.members")
SEQUENCES = ("a.numbers", "a.members_x_seq")
RELATIONS = (*TABLES, *SEQUENCES)
SCHEMAS = ("a", "pgx")
OBJECTS = ("101", "102")
#: How a role may have a right: as itself, by PUBLIC, by a group.
GRANTEES = (ROLE, "PUBLIC", GROUP)
OWNERS = (ROLE, GROUP, OWNER)


@dataclass(frozen=True)
class Case:
    """What the role is granted, and what of it is revoked."""

    inherits: bool
    group: str
    everything: str
    bypassrls: bool
    statements: tuple[str, ...] = field(default=())


def changes() -> st.SearchStrategy[str]:
    """Statements that grant or revoke something; they may come in any order."""
    table, schema, lob = st.sampled_from(TABLES), st.sampled_from(SCHEMAS), st.sampled_from(OBJECTS)
    relation, grantee, owner = st.sampled_from(RELATIONS), st.sampled_from(GRANTEES), st.sampled_from(OWNERS)
    right = st.sampled_from(("SELECT", "INSERT", "UPDATE", "TRUNCATE", "REFERENCES"))
    columns = st.sampled_from(("x", "x, y", "x, y, z"))
    free = st.sampled_from(("a.plain", "a.whole", "pgx.part", "pgx.bare", "a.members", "a.numbers"))
    row_security = st.sampled_from(("ENABLE", "FORCE", "DISABLE", "NO FORCE"))
    return st.one_of(
        st.builds("REVOKE SELECT ON {} FROM {}".format, relation, grantee),
        st.builds("REVOKE USAGE ON SCHEMA {} FROM {}".format, schema, grantee),
        st.builds("REVOKE SELECT ON LARGE OBJECT {} FROM {}".format, lob, st.sampled_from((*GRANTEES, OWNER))),
        st.builds("GRANT {} ON {} TO {}".format, right, table, grantee),
        st.builds("GRANT SELECT ({}) ON a.plain TO {}".format, columns, grantee),
        st.builds("GRANT SELECT ON {} TO {}".format, relation, grantee),
        st.builds("GRANT USAGE ON SCHEMA {} TO {}".format, schema, grantee),
        st.builds("GRANT {} ON LARGE OBJECT {} TO {}".format, st.sampled_from(("SELECT", "UPDATE")), lob, grantee),
        st.builds("ALTER TABLE {} OWNER TO {}".format, free, owner),
        st.builds("ALTER LARGE OBJECT {} OWNER TO {}".format, lob, owner),
        st.builds("ALTER TABLE {} {} ROW LEVEL SECURITY".format, table, row_security),
        st.sampled_from((f"ALTER ROLE {ROLE} SET lo_compat_privileges = on", f"ALTER ROLE {ROLE} SET role = {GROUP}")),
    )


#: Most cases begin with all that a dump needs, and lose little of it: else hardly any dump would succeed.
def given_to(grantee: str) -> tuple[str, ...]:
    return (
        *(f"GRANT SELECT ON {relation} TO {grantee}" for relation in RELATIONS),
        *(f"GRANT USAGE ON SCHEMA {schema} TO {grantee}" for schema in SCHEMAS),
        *(f"GRANT SELECT ON LARGE OBJECT {lob} TO {grantee}" for lob in OBJECTS),
    )


CASES = st.builds(
    lambda inherits, group, everything, bypassrls, given, more: Case(
        inherits, group, everything, bypassrls, (*given, *more)
    ),
    st.booleans(),
    st.sampled_from(("", "FALSE", "TRUE", "TRUE")),
    st.sampled_from(("", "", "FALSE", "TRUE")),
    st.booleans(),
    st.sampled_from(GRANTEES).map(given_to),
    st.lists(changes(), max_size=4),
)


def undo(cluster: PortCluster, database: str) -> None:
    """Return to the state after ``SCHEMA``: everything belongs to the superuser, and no role has a grant."""
    with admin(cluster, database) as session:
        for role in (ROLE, GROUP, OWNER):
            session.execute(f"REASSIGN OWNED BY {role} TO postgres".encode())
            session.execute(f"DROP OWNED BY {role}".encode())
            session.execute(f"DROP ROLE {role}".encode())
        for relation in RELATIONS:
            session.execute(f"REVOKE ALL ON {relation} FROM PUBLIC".encode())
            session.execute(f"GRANT ALL ON {relation} TO postgres".encode())
        session.execute(b"REVOKE ALL (x, y, z) ON a.plain FROM PUBLIC")
        for table in TABLES:
            session.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY".encode())
        for schema in SCHEMAS:
            session.execute(f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC".encode())
        for lob in OBJECTS:
            session.execute(f"REVOKE ALL ON LARGE OBJECT {lob} FROM PUBLIC".encode())


def make_roles(cluster: PortCluster, database: str, case: Case) -> None:
    inherit = "INHERIT" if case.inherits else "NOINHERIT"
    bypass = "BYPASSRLS" if case.bypassrls else "NOBYPASSRLS"
    with admin(cluster, database) as session:
        session.execute(f"CREATE ROLE {ROLE} LOGIN {inherit} {bypass}".encode())
        session.execute(f"CREATE ROLE {GROUP}".encode())
        session.execute(f"CREATE ROLE {OWNER}".encode())
        if case.group:
            session.execute(f"GRANT {GROUP} TO {ROLE} WITH INHERIT {case.group}, SET TRUE".encode())
        if case.everything:
            session.execute(f"GRANT pg_read_all_data TO {ROLE} WITH INHERIT {case.everything}".encode())
        for statement in case.statements:
            session.execute(statement.encode())


@pytest.fixture(scope="module")
def small(server: PortCluster) -> Iterator[Connection]:
    """A small database with one object of each kind."""
    name = "rights"
    with admin(server) as session:
        session.execute(b"CREATE DATABASE rights TEMPLATE template0")
    execute(server.connection(name), *SCHEMA.split(";"))
    yield server.connection(name)
    with admin(server) as session:
        session.execute(b"DROP DATABASE rights WITH (FORCE)")


def pg_dump(to: Connection, bin_dir: Path) -> str:
    """The error output of a real dump, empty if it succeeds. The dump goes to /dev/null."""
    done = subprocess.run(
        (str(bin_dir / "pg_dump"), "-Fc", "--no-sync", "--no-password", "--file=/dev/null"),
        env={**to.environment(), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or done.stderr
    return done.stderr if done.returncode else ""


def rights(to: Connection) -> list[Missing]:
    with connect(to) as session:
        row = session.execute("SELECT current_user AS role").fetchone()
        assert row is not None
        return missing_rights(session, row["role"])


def refused(small: Connection, server: PortCluster, bin_dir: Path, case: Case) -> bool:
    """Whether a real dump is refused; asserts that the doctor says the same."""
    make_roles(server, small.database, case)
    try:
        to = replace(small, user=ROLE)
        said = pg_dump(to, bin_dir)
        missing = [right for right in rights(to) if not right.later]
    finally:
        undo(server, small.database)
    assert not said or "permission denied" in said or "row-level security" in said, said
    assert bool(missing) == bool(said), (said, missing)
    return bool(said)


OUTCOMES: list[bool] = []


@settings(deadline=None, max_examples=40, derandomize=True)
@given(case=CASES)
def agrees(small: Connection, server: PortCluster, bin_dir: Path, case: Case) -> None:
    OUTCOMES.append(refused(small, server, bin_dir, case))


@pytest.mark.exhaustive
def test_a_right_is_missing_if_and_only_if_pg_dump_is_refused(
    small: Connection, server: PortCluster, bin_dir: Path
) -> None:
    OUTCOMES.clear()
    agrees(small, server, bin_dir)
    # Both outcomes must be frequent, or the test proves nothing.
    assert 0.15 < sum(OUTCOMES) / len(OUTCOMES) < 0.85


@pytest.mark.parametrize(
    ("statements", "is_refused"),
    [
        ((), False),
        (("REVOKE USAGE ON SCHEMA pgx FROM {r}",), True),
        (("REVOKE SELECT ON a.numbers FROM {r}",), True),
        (("REVOKE SELECT ON a.members_x_seq FROM {r}",), True),
        # pg_dump locks a partitioned table, but does not copy it.
        (("REVOKE SELECT ON a.whole FROM {r}",), True),
        (("REVOKE SELECT ON a.whole FROM {r}", "GRANT INSERT ON a.whole TO {r}"), False),
        (("ALTER TABLE a.whole ENABLE ROW LEVEL SECURITY",), False),
        (("ALTER TABLE pgx.part ENABLE ROW LEVEL SECURITY",), True),
        # An owner is bound by FORCE alone.
        (("ALTER TABLE a.plain OWNER TO {r}", "ALTER TABLE a.plain ENABLE ROW LEVEL SECURITY"), False),
        (
            (
                "ALTER TABLE a.plain OWNER TO {r}",
                "ALTER TABLE a.plain ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            ),
            True,
        ),
        (("ALTER TABLE a.plain ENABLE ROW LEVEL SECURITY", "ALTER ROLE {r} BYPASSRLS"), False),
        # The lock needs a right on the table, COPY a right on each column but the generated one.
        (("REVOKE SELECT ON a.plain FROM {r}", "GRANT UPDATE, SELECT (x, y) ON a.plain TO {r}"), False),
        (("REVOKE SELECT ON a.plain FROM {r}", "GRANT UPDATE, SELECT (x) ON a.plain TO {r}"), True),
        (("REVOKE SELECT ON a.plain FROM {r}", "GRANT SELECT (x, y, z) ON a.plain TO {r}"), True),
        (("REVOKE SELECT ON pgx.bare FROM {r}", "GRANT UPDATE ON pgx.bare TO {r}"), True),
        # An owner may revoke their own right.
        (("ALTER LARGE OBJECT 101 OWNER TO {r}", "REVOKE SELECT ON LARGE OBJECT 101 FROM {r}"), True),
        (("REVOKE SELECT ON LARGE OBJECT 101 FROM {r}",), True),
        (("REVOKE SELECT ON LARGE OBJECT 101 FROM {r}", "GRANT SELECT ON LARGE OBJECT 101 TO PUBLIC"), False),
        (("REVOKE SELECT ON LARGE OBJECT 101 FROM {r}", "ALTER ROLE {r} SET lo_compat_privileges = on"), False),
        # A member has a group's rights only if the membership inherits.
        (
            (
                "REVOKE SELECT ON LARGE OBJECT 101 FROM {r}",
                "GRANT SELECT ON LARGE OBJECT 101 TO {g}",
                "GRANT {g} TO {r} WITH INHERIT FALSE",
            ),
            True,
        ),
        (
            (
                "REVOKE SELECT ON LARGE OBJECT 101 FROM {r}",
                "GRANT SELECT ON LARGE OBJECT 101 TO {g}",
                "GRANT {g} TO {r} WITH INHERIT TRUE",
            ),
            False,
        ),
        (("REVOKE SELECT ON a.plain FROM {r}", "GRANT pg_read_all_data TO {r} WITH INHERIT FALSE"), True),
        (("REVOKE SELECT ON a.plain FROM {r}", "GRANT pg_read_all_data TO {r}"), False),
    ],
)
def test_edge_cases_agree_with_pg_dump(
    small: Connection, server: PortCluster, bin_dir: Path, statements: tuple[str, ...], is_refused: bool
) -> None:
    case = Case(True, "", "", False, (*given_to(ROLE), *(text.format(r=ROLE, g=GROUP) for text in statements)))
    assert refused(small, server, bin_dir, case) is is_refused


def test_grants_for_single_tables_are_reported(small: Connection, server: PortCluster) -> None:
    case = Case(False, "", "", True, given_to(ROLE))
    make_roles(server, small.database, case)
    try:
        to = replace(small, user=ROLE)
        (right,) = rights(to)
        assert (right.later, right.what.startswith("tables are granted one by one")) == (True, True)
        # A role that does not inherit would gain nothing from a plain GRANT.
        assert right.sql == f'GRANT pg_read_all_data TO "{ROLE}" WITH INHERIT TRUE;'
        execute(small, right.sql)
        assert rights(to) == []
    finally:
        undo(server, small.database)


def test_names_are_quoted_so_that_they_can_be_pasted(small: Connection) -> None:
    for name in ('a"b', "a'b", "a\\b", "a\tb\\c\n\x1b'\"", "\N{SNOWMAN}\N{RIGHT-TO-LEFT OVERRIDE}"):
        assert sql_identifier(name).isprintable()
        with connect(small) as session:
            row = session.execute(f"SELECT {sql_string(name)} AS text, 1 AS {sql_identifier(name)}".encode())
            assert row.fetchone() == {"text": name, name: 1}
