"""Privileges are compared by meaning: an extension's owner may differ, the privileges of other roles may not."""

from __future__ import annotations

import pytest

from ovia_backup_dagster.proof.comparison import compare_privileges, contents_differences, owner_names

HEAD = "--\n-- Name: {0}; Type: {1}; Schema: {2}; Owner: {3}\n--\n\n{4}\n\n\n"
VIEW = "TABLE pg_stat_statements"
GRANT = "GRANT SELECT ON TABLE public.pg_stat_statements TO monitor;"


def acl(name: str, sql: str, owner: str = "ovia", schema: str = "public") -> bytes:
    return HEAD.format(name, "ACL", schema, owner, sql).encode()


def table(name: str, owner: str = "ovia") -> bytes:
    return HEAD.format(name, "TABLE", "public", owner, f"CREATE TABLE public.{name} ();").encode()


def bad(before: bytes, after: bytes) -> list[str]:
    return compare_privileges(before, after, {"ovia", "postgres"})[0]


def test_the_owner_of_an_extensions_object_may_differ() -> None:
    assert bad(acl(VIEW, GRANT), acl(VIEW, GRANT, "postgres")) == []
    assert bad(acl(VIEW, GRANT), acl(VIEW, GRANT, "boss")) == []
    # Privileges that the superuser revoked from itself mean nothing if another role is the superuser.
    own = "REVOKE ALL ON TABLE public.pg_stat_statements FROM ovia;\n"
    own += "GRANT SELECT ON TABLE public.pg_stat_statements TO ovia;\n"
    assert bad(acl(VIEW, own + GRANT), acl(VIEW, GRANT, "postgres")) == []


@pytest.mark.parametrize(
    "after",
    [
        acl(VIEW, GRANT.replace("monitor", "mallory"), "postgres"),
        acl(VIEW, GRANT.replace("SELECT", "ALL"), "postgres"),
        acl(VIEW, GRANT[:-1] + " WITH GRANT OPTION;", "postgres"),
        acl(VIEW, GRANT + "\nGRANT SELECT ON TABLE public.pg_stat_statements TO PUBLIC;", "postgres"),
        acl(VIEW, "SET SESSION AUTHORIZATION app;\n" + GRANT, "postgres"),
        acl(VIEW, "", "postgres"),
        b"",
    ],
)
def test_an_extra_or_missing_privilege_is_a_difference(after: bytes) -> None:
    before = acl(VIEW, GRANT)
    for one, other in ((before, after), (after, before)):
        (line,) = bad(one, other)
        assert line.startswith("privileges differ: acl TABLE pg_stat_statements in public (")


def test_a_users_own_object_is_compared_exactly() -> None:
    """The backup names its owner."""
    revoked = "REVOKE ALL ON TABLE public.t FROM ovia;"
    for name, sql in (("TABLE t", revoked), ("COLUMN t.a.b", "REVOKE SELECT(a) ON TABLE public.t FROM ovia;")):
        assert bad(table("t") + acl(name, sql), table("t"))
    function = HEAD.format("f(integer)", "FUNCTION", "public", "ovia", "CREATE FUNCTION public.f();").encode()
    assert bad(function + acl("FUNCTION f(a integer)", "REVOKE ALL ON FUNCTION public.f() FROM ovia;"), function)


def test_a_reassigned_extension_object_is_odd() -> None:
    """REASSIGN OWNED gives away an extension's objects; their grants stay, with another grantor."""
    sql = "REVOKE ALL ON TABLE public.m FROM ovia;\nREVOKE SELECT ON TABLE public.m FROM PUBLIC;\n"
    sql += "GRANT ALL ON TABLE public.m TO app;\nGRANT SELECT ON TABLE public.m TO PUBLIC;"
    copy = acl("TABLE m", "GRANT ALL ON TABLE public.m TO app;", "postgres")
    found, odd = compare_privileges(acl("TABLE m", sql, "app"), copy, {"ovia", "postgres"})
    assert found == []
    (line,) = odd
    assert line.startswith("TABLE m in public belongs to postgres in the copy, and to app in the source: pg_dump does")


def test_an_owners_own_privileges_are_no_difference() -> None:
    """Such an entry may exist on one side only."""
    own = "REVOKE ALL ON TABLE public.m FROM app;\nGRANT SELECT ON TABLE public.m TO app;"
    assert bad(acl("TABLE m", own, "app"), b"") == []
    assert bad(b"", acl("TABLE m", own, "app")) == []


def test_default_privileges_are_compared_by_role() -> None:
    name, sql = "DEFAULT PRIVILEGES FOR TABLES", "ALTER DEFAULT PRIVILEGES FOR ROLE {} GRANT SELECT ON TABLES TO app;"
    one, other = (HEAD.format(name, "DEFAULT ACL", "-", who, sql.format(who)).encode() for who in ("ovia", "postgres"))
    assert bad(one, other)
    assert bad(one, one) == []


ROLES = {"ovia", "postgres", "some one", "one"}


def test_dependent_entries_are_compared_without_owner() -> None:
    entries = ["TABLE DATA cfg conf {}", "SEQUENCE SET cfg s {}", "COMMENT - LARGE OBJECT 1 {}", "POLICY public t p {}"]
    entries += ["DEFAULT public t a {}", "ACL - LARGE OBJECT 1 {}"]
    before, after = ([entry.format(who) for entry in entries] for who in ("some one", "postgres"))
    assert contents_differences(before, after, with_owners=True, roles=ROLES) == []
    assert contents_differences(before[1:], after, with_owners=True, roles=ROLES) == [
        "only in the copy: TABLE DATA cfg conf"
    ]


def test_a_users_object_of_the_wrong_role_is_bad() -> None:
    for kind in ("TABLE public t", "FUNCTION public f()", "SCHEMA - s", "BLOB - 1"):
        before, after = [f"{kind} ovia"], [f"{kind} postgres"]
        assert len(contents_differences(before, after, with_owners=True, roles=ROLES)) == 2


def test_owners_are_named_by_the_schema() -> None:
    text = table("a", "some one") + table("b", "-") + HEAD.format("e", "EXTENSION", "-", "", "x").encode()
    assert owner_names(text) == {"some one"}
