"""How differences between a backup and its copy are judged: bad, odd, or no finding."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.core.human_text import joined
from ovia_backup_dagster.core.verdict import LargeObjects, TableWitness, Witness
from ovia_backup_dagster.postgres.data_stream import UnorderedRows, split_columns
from ovia_backup_dagster.postgres.quoting import without_literals
from ovia_backup_dagster.proof.comparison import (
    Unordered,
    comparable,
    compare_privileges,
    contents_differences,
    is_structure,
    large_object_differences,
    large_object_note_differences,
    left_out,
    owner_names,
    schema_differences,
    sequence_differences,
    structure_differences,
    table_differences,
    unequal_tables,
)
from ovia_backup_dagster_tests.support.factories import make_witness

NAMES = st.sampled_from(["public.people", 'public."Odd; name"', "ops.t", "a.b"])
TABLES = st.dictionaries(NAMES, st.tuples(st.integers(0, 5), st.text("abc", min_size=1, max_size=2)), max_size=4)


def witness(tables: dict[str, tuple[int, str]]) -> Witness:
    """The witness of tables, given each table's number of rows and content."""
    made = tuple(
        TableWitness(name=name, columns="id, v", rows=rows, sha256=hashlib.sha256(content.encode()).hexdigest())
        for name, (rows, content) in tables.items()
    )
    return make_witness({}).model_copy(update={"tables": made})


@given(TABLES)
def test_equal_readings_have_no_finding(tables: dict[str, tuple[int, str]]) -> None:
    assert unequal_tables(witness(tables), witness(tables)) == ()
    assert table_differences(witness(tables), witness(tables), {}) == ([], [])


@given(TABLES, TABLES)
def test_only_unequal_tables_are_named(one: dict[str, tuple[int, str]], other: dict[str, tuple[int, str]]) -> None:
    before, after = witness(one), witness(other)
    unequal = {name for name in {*one, *other} if one.get(name) != other.get(name)}

    # Comparable tables are compared independently of row order; here, they differ.
    rows = {
        name: (Unordered(1, 1), Unordered(1, 2)) for name in unequal if comparable(name, before, after, split_columns)
    }
    bad, odd = table_differences(before, after, rows)

    assert len(bad) == len(unequal)
    assert all(any(f"table {name} " in line for line in bad) for name in unequal)
    assert odd == []


@given(TABLES, TABLES)
def test_the_same_rows_in_another_order_are_odd_and_never_bad(
    one: dict[str, tuple[int, str]], other: dict[str, tuple[int, str]]
) -> None:
    before, after = witness(one), witness(other)
    rows = {
        name: (Unordered(7, 7), Unordered(7, 7))
        for name in unequal_tables(before, after)
        if comparable(name, before, after, split_columns)
    }

    bad, odd = table_differences(before, after, rows)

    assert len(odd) == len(rows)
    assert len(bad) == len(unequal_tables(before, after)) - len(rows)


def test_tables_with_other_row_counts_are_not_comparable() -> None:
    assert not comparable("t", witness({"t": (1, "a")}), witness({"t": (2, "a")}), split_columns)
    assert not comparable("t", witness({"t": (1, "a")}), witness({}), split_columns)
    assert comparable("t", witness({"t": (1, "a")}), witness({"t": (1, "b")}), split_columns)


ROWS = st.lists(st.lists(st.binary(max_size=4).map(lambda b: b.hex().encode()), min_size=3, max_size=3), max_size=20)


@given(ROWS, st.permutations(["a", '"b, c"', "d"]), st.randoms(use_true_random=False), st.integers(1, 40))
def test_rows_equal_in_any_order_of_rows_and_columns(
    rows: list[list[bytes]], order: list[str], rng: random.Random, cut: int
) -> None:
    names = ["a", '"b, c"', "d"]
    shuffled = [[row[names.index(name)] for name in order] for row in rng.sample(rows, len(rows))]

    one, other = UnorderedRows(names), UnorderedRows(names)
    feed(one, names, rows, cut)
    feed(other, order, shuffled, cut + 1)

    assert (one.rows, one.total) == (other.rows, other.total) == (len(rows), one.total)


@given(ROWS.filter(bool), st.integers(0, 1000), st.integers(0, 2))
def test_one_altered_value_changes_the_sum(rows: list[list[bytes]], which: int, column: int) -> None:
    names = ["a", "b", "c"]
    altered = [list(row) for row in rows]
    altered[which % len(rows)][column] += b"x"

    one, other = UnorderedRows(names), UnorderedRows(names)
    feed(one, names, rows, 1000)
    feed(other, names, altered, 1000)

    assert one.rows == other.rows
    assert one.total != other.total


def test_values_that_change_places_between_rows_change_the_sum() -> None:
    names = ["a", "b"]
    one, other = UnorderedRows(names), UnorderedRows(names)
    feed(one, names, [[b"1", b"x"], [b"2", b"y"]], 1000)
    feed(other, names, [[b"1", b"y"], [b"2", b"x"]], 1000)

    assert one.total != other.total


def feed(into: UnorderedRows, columns: list[str], rows: list[list[bytes]], cut: int) -> None:
    """Feed rows as the reader does: one block, cut into pieces at any byte."""
    text = bytearray(b"".join(b"\t".join(row) + b"\n" for row in rows))
    into.begin(", ".join(columns))
    for at in range(0, len(text), cut):
        into.add(text, at, min(at + cut, len(text)))


def test_a_sequence_that_differs_is_named() -> None:
    before = make_witness().model_copy(update={"sequences": {"public.a": "4, true", "public.b": "1, false"}})
    after = make_witness().model_copy(update={"sequences": {"public.a": "5, true", "public.c": "1, false"}})

    lines = sequence_differences(before, after)

    assert lines == [
        "sequence public.a: 5, true in the copy, 4, true in the backup",
        "sequence public.b: missing in the copy, 1, false in the backup",
        "sequence public.c: 1, false in the copy, missing in the backup",
    ]
    assert sequence_differences(before, before) == []


def test_large_objects_that_differ_are_counted() -> None:
    assert large_object_differences(LargeObjects(count=2, content="a"), LargeObjects(count=2, content="a")) == []
    assert "1 large objects" in large_object_differences(LargeObjects(count=2), LargeObjects(count=1))[0]
    assert "content" in large_object_differences(LargeObjects(count=2, content="a"), LargeObjects(count=2))[0]


def test_a_drill_leaves_out_publications_and_subscriptions() -> None:
    out = ["PUBLICATION - p ovia", "PUBLICATION TABLE public p people ovia", "COMMENT - PUBLICATION p ovia"]
    out += ["PUBLICATION TABLES IN SCHEMA - p public ovia", "SUBSCRIPTION - s ovia", "COMMENT - SUBSCRIPTION s ovia"]
    kept = ["TABLE public PUBLICATION ovia", "COMMENT public TABLE publications ovia", "SCHEMA - SUBSCRIPTION ovia"]

    assert all(map(left_out, out))
    assert not any(map(left_out, kept))
    assert contents_differences([*out, *kept], kept, with_owners=True) == []


def test_a_live_database_is_given_publications() -> None:
    given = ["PUBLICATION - p ovia", "PUBLICATION TABLE public p people ovia", "COMMENT - PUBLICATION p ovia"]
    out = ["SUBSCRIPTION - publication ovia", "COMMENT - SUBSCRIPTION s ovia"]

    assert not any(left_out(entry, live=True) for entry in given)
    assert all(left_out(entry, live=True) for entry in out)
    assert contents_differences([*given, *out], given, with_owners=True, live=True) == []
    assert contents_differences(given[:1], [], with_owners=True, live=True) == [f"missing in the copy: {given[0]}"]


def test_constraints_and_indexes_are_structure() -> None:
    assert is_structure("FK CONSTRAINT public people people_manager_fk ovia")
    assert is_structure("INDEX public people_pkey ovia")
    assert not is_structure("TABLE public INDEX ovia")
    assert not is_structure("TABLE DATA public people ovia")


@given(st.lists(st.sampled_from(["TABLE public a x", "TABLE public b x", "VIEW public c d y"]), max_size=6))
def test_contents_are_compared_as_often_as_they_occur(entries: list[str]) -> None:
    shuffled = sorted(entries, reverse=True)

    assert contents_differences(entries, shuffled, with_owners=True) == []
    assert contents_differences([*entries, "INDEX public i x"], entries, with_owners=True) == [
        "missing in the copy: INDEX public i x"
    ]
    assert contents_differences(entries, [*entries, "INDEX public i x"], with_owners=True) == [
        "only in the copy: INDEX public i x"
    ]


def test_without_owners_all_other_differences_are_found() -> None:
    before = [
        "TABLE public a long name of an owner",
        "TABLE public a ovia",
        "ACL public TABLE a ovia",
        "BLOBS - BLOBS ",
    ]
    before += ["DEFAULT ACL public DEFAULT PRIVILEGES FOR TABLES ovia", 'INDEX public odd "name" some one']
    after = ["TABLE public a tester", "TABLE public a tester", "BLOBS - BLOBS ", 'INDEX public odd "name" tester']

    assert contents_differences(before, after, with_owners=False) == []
    assert contents_differences(before, after[1:], with_owners=False)
    assert contents_differences(before, [*after, "TABLE public b tester"], with_owners=False) == [
        "only in the copy: TABLE public b"
    ]
    # Another owner of the public schema, which initdb creates, shows only in the schema's own entry.
    public, others = "SCHEMA - public some one", ["SCHEMA - public_x ovia", "SCHEMA - mine some one"]
    copied = ["SCHEMA - public_x tester", "SCHEMA - mine tester"]
    assert contents_differences([public, *others], copied, with_owners=False) == []
    assert contents_differences([public, *others], copied[1:], with_owners=False)
    assert contents_differences([public, *others], copied, with_owners=True)


SECTION = "--\n-- Name: {0}; Type: {1}; Schema: public; Owner: ovia\n--\n\n{2}\n\n\n"


def test_a_schema_difference_is_named_without_secrets() -> None:
    view = SECTION.format("v", "VIEW", "CREATE VIEW v AS\n SELECT 'secret {}' || {};")
    function = SECTION.format("f()", "FUNCTION", "CREATE FUNCTION f() AS $$ {} $$;")
    before = view.format("one", "a") + function.format("pass word")
    after = view.format("one", "b") + function.format("password")

    (line,) = schema_differences(before.encode(), after.encode())

    assert "view v in public" in line
    assert "function f() in public" in line
    assert "|| a; | " in line
    assert "secret" not in line
    assert "word" not in line
    assert schema_differences(before.encode(), before.encode()) == []


@given(st.text("ab'$; \n", max_size=30), st.text("ab", max_size=5))
def test_no_text_between_quotes_is_shown(inside: str, tag: str) -> None:
    quoted = "'" + inside.replace("'", "''").replace("a", "SECRET") + "'"
    dollars = f"${tag}$" + inside.replace("$", "").replace("a", "SECRET") + f"${tag}$"

    assert "SECRET" not in without_literals(f"SELECT {quoted};")
    assert "SECRET" not in without_literals(f"AS {dollars};")


def test_many_lines_are_shortened() -> None:
    assert joined(["a", "b"]) == "a; b"
    assert joined([str(n) for n in range(9)]).endswith("4; and 4 more")


WRITTEN = "CREATE POLICY p ON t USING (((a > 1) AND ((who)::text = ANY ((ARRAY['x'::character varying])::text[]))));"
AGAIN = "CREATE POLICY p ON t USING (((a > 1) AND ((who)::text = ANY (ARRAY[('x'::character varying)::text]))));"


@pytest.mark.parametrize(
    ("copy", "bad"),
    [
        (AGAIN, False),
        (AGAIN.replace("::text)", "::pg_catalog.varchar(3))"), False),
        (AGAIN.replace(" AND ", " OR "), True),
        (AGAIN.replace("'x'", "'y'"), True),
        (AGAIN.replace("'x'", "'x '"), True),
        (AGAIN.replace("> 1", "> 10"), True),
        (AGAIN.replace("ON t ", "ON t TO PUBLIC "), True),
        (AGAIN.replace("(((a > 1) AND (", "((a > (1 AND ((").replace("))));", ")))));"), True),
    ],
)
def test_a_policy_means_the_same_or_is_bad(copy: str, bad: bool) -> None:
    before, after = (SECTION.format("t p", "POLICY", text).encode() for text in (WRITTEN, copy))
    assert bool(structure_differences(before, after)) is bad
    assert schema_differences(before, after)
    assert structure_differences(after, after) == []


def test_the_roles_of_a_policy_have_no_order() -> None:
    one, other, less = (
        SECTION.format("t p", "POLICY", f"CREATE POLICY p ON public.t FOR SELECT TO {roles} USING (true);").encode()
        for roles in ('"b, ""x", a, c', 'a, "b, ""x", c', 'a, "b, ""x"')
    )
    assert structure_differences(one, other) == schema_differences(one, other) == []
    assert structure_differences(one, less)


def test_a_policy_is_shown_without_its_values() -> None:
    before, after = (SECTION.format("t p", "POLICY", text).encode() for text in (WRITTEN, AGAIN.replace("a > 1", "a")))
    (line,) = structure_differences(before, after)
    assert line.startswith("policy t p in public differs: CREATE POLICY p ON t USING (")
    assert "'x'" not in line


NOTES = [b"GRANT ALL ON LARGE OBJECT 7 TO app;", b"COMMENT ON LARGE OBJECT 12 IS 'one;\ntwo';"]


def test_large_object_notes_are_named_in_order() -> None:
    differences = large_object_note_differences
    assert differences(NOTES, NOTES[::-1], with_privileges=True) == []
    assert differences(NOTES, [], with_privileges=True) == ["privileges or comments differ of large objects: 7; 12"]
    assert differences([], NOTES, with_privileges=False) == ["privileges or comments differ of large objects: 12"]


# --- Structure: what an object's SQL means ------------------------------------------------------------------------

TABLE_SQL = "CREATE TABLE public.t (\n    id integer NOT NULL,\n    name text DEFAULT 'x'::text\n);"


def of(kind: str, text: str, name: str = "t") -> bytes:
    return SECTION.format(name, kind, text).encode()


@pytest.mark.parametrize(
    ("copy", "lines"),
    [
        (TABLE_SQL, []),
        (TABLE_SQL.replace("'x'", "'y'"), []),
        (TABLE_SQL.replace("integer", '"integer"'), []),
        (TABLE_SQL.replace("integer", "bigint"), ["table t in public differs: not id integer, but id bigint"]),
        (TABLE_SQL.replace(" NOT NULL", ""), ["table t in public differs: not NOT NULL"]),
        (TABLE_SQL.replace(" DEFAULT 'x'::text", ""), ["table t in public differs: not DEFAULT"]),
        (TABLE_SQL.replace("TABLE", "UNLOGGED TABLE"), ["table t in public differs: but UNLOGGED"]),
    ],
)
def test_a_table_differs_by_columns_and_constraints(copy: str, lines: list[str]) -> None:
    assert structure_differences(of("TABLE", TABLE_SQL), of("TABLE", copy)) == lines


@pytest.mark.parametrize(
    ("kind", "before", "after", "lines"),
    [
        ("INDEX", "CREATE UNIQUE INDEX t ON t USING btree (a);", "CREATE INDEX t ON t USING hash (a);",
         ["index t in public differs: not UNIQUE, not USING btree, but USING hash"]),
        ("TYPE", "CREATE TYPE t AS ENUM ('a');", "CREATE TYPE t AS ENUM ('b');", ["type t in public differs"]),
        ("FK CONSTRAINT", "ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES b(c);",
         "ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES b(d);", ["fk constraint t in public differs"]),
        ("VIEW", "CREATE VIEW t AS\n SELECT a;", "CREATE VIEW t AS\n SELECT b;",
         ["view t in public differs: SELECT a; | SELECT b;"]),
        ("FUNCTION", "CREATE FUNCTION t() AS $$ secret $$;", "CREATE FUNCTION t() AS $$ other $$;",
         ["function t in public differs"]),
        ("COMMENT", "COMMENT ON TABLE t IS 'a';", "COMMENT ON TABLE t IS 'b';", []),
    ],
)  # fmt: skip
def test_each_kind_differs_by_what_it_means(kind: str, before: str, after: str, lines: list[str]) -> None:
    assert structure_differences(of(kind, before), of(kind, after)) == lines
    assert structure_differences(of(kind, before), of(kind, before)) == []


def test_all_different_objects_are_named_in_order() -> None:
    views = [of("VIEW", f"CREATE VIEW {name} AS SELECT a;", name) for name in ("c", "a", "b")]
    others = [text.replace(b"SELECT a", b"SELECT z") for text in views]
    found = structure_differences(b"".join(views), b"".join([others[0], views[1], others[2]]))
    assert [line.split(" in ")[0] for line in found] == ["view b", "view c"]


def test_a_long_difference_is_cut_off() -> None:
    before = of("VIEW", f"CREATE VIEW t AS\n SELECT {'a' * 300};")
    (line,) = structure_differences(before, before.replace(b"aaa;", b"aab;"))
    assert line == f"view t in public differs: SELECT {'a' * 113} | SELECT {'a' * 113}"


def test_other_privileges_are_bad_and_owners_are_named() -> None:
    table = of("TABLE", TABLE_SQL)
    granted = of("ACL", "GRANT SELECT ON TABLE public.t TO app;", "TABLE t")
    assert compare_privileges(table + granted, table + granted) == ([], [])
    bad, odd = compare_privileges(table + granted, table)
    assert (bad, odd) == (["privileges differ: acl TABLE t in public (1 missing in the copy)"], [])
    bad, _ = compare_privileges(table, table + granted)
    assert len(bad) == 1
    assert owner_names(table) == {"ovia"}


# --- Exact words and single branches ------------------------------------------------------------------------------


def test_each_kind_of_unequal_table_has_its_line() -> None:
    before = make_witness({}).model_copy(
        update={
            "tables": (
                TableWitness(name="columns", columns="a, b", rows=1, sha256="1"),
                TableWitness(name="gone", columns="a", rows=1200, sha256="1"),
                TableWitness(name="order", columns="a", rows=2, sha256="1"),
                TableWitness(name="rows", columns="a", rows=2000, sha256="1"),
                TableWitness(name="values", columns="a", rows=3000, sha256="1"),
            )
        }
    )
    after = make_witness({}).model_copy(
        update={
            "tables": (
                TableWitness(name="added", columns="a", rows=1, sha256="1"),
                TableWitness(name="columns", columns="a, c", rows=1, sha256="1"),
                TableWitness(name="order", columns="a", rows=2, sha256="2"),
                TableWitness(name="rows", columns="a", rows=1000, sha256="2"),
                TableWitness(name="values", columns="a", rows=3000, sha256="2"),
            )
        }
    )
    rows = {"order": (Unordered(2, 5), Unordered(2, 5)), "values": (Unordered(3000, 5), Unordered(3000, 6))}
    assert table_differences(before, after, rows) == (
        [
            "table added is in the copy, but not in the backup",
            "table columns has other columns in the copy: a, c, not a, b",
            "table gone is not in the copy; the backup holds 1,200 rows of it",
            "table rows has 1,000 rows in the copy and 2,000 in the backup",
            "table values differs in the content of its 3,000 rows",
        ],
        ["table order holds the same rows, in another order of rows or columns"],
    )


def test_revoked_rights_of_large_objects_need_privileges() -> None:
    revoked = [b"REVOKE ALL ON LARGE OBJECT 7 FROM app;"]
    assert large_object_note_differences(revoked, [], with_privileges=False) == []
    assert large_object_note_differences(revoked, [], with_privileges=True)


def test_owners_of_large_objects_privileges_are_entries() -> None:
    entry = "ACL - LARGE OBJECT 7 ovia"
    assert contents_differences([entry], [], with_owners=True) == [f"missing in the copy: {entry}"]
    assert contents_differences(["ACL public TABLE t ovia"], [], with_owners=True) == []


def test_objects_of_two_owners_are_counted_once_each() -> None:
    # A trigger belongs to its table, whatever its entry names.
    before = ["TRIGGER public t one ovia", "TRIGGER public t one app"]
    roles = ("ovia", "app")
    assert contents_differences(before, before[::-1], with_owners=True, roles=roles) == []
    assert len(contents_differences(before, before[:1], with_owners=True, roles=roles)) == 1


def test_one_entry_of_the_copy_matches_only_one_entry() -> None:
    before = ["TABLE public a some one"] * 2
    assert contents_differences(before, ["TABLE public a tester"], with_owners=False) == [
        "missing in the copy: TABLE public a some one"
    ]


def test_the_public_schema_may_be_listed_on_both_sides() -> None:
    assert contents_differences(["SCHEMA - public ovia"], ["SCHEMA - public tester"], with_owners=False) == []
    # A schema whose name only begins with "public".
    assert contents_differences(["SCHEMA - public x ovia"], ["SCHEMA - public x tester"], with_owners=False) == []


def test_objects_of_one_side_are_not_compared_as_text() -> None:
    table, view = of("TABLE", TABLE_SQL), of("VIEW", "CREATE VIEW v AS SELECT a;", "v")
    for one, other in ((table, table + view), (table + view, table)):
        assert schema_differences(one, other) == []
        assert structure_differences(one, other) == []


def test_privileges_are_not_compared_as_text() -> None:
    granted = of("ACL", "GRANT SELECT ON TABLE public.t TO app;", "TABLE t")
    assert schema_differences(granted, granted.replace(b"app", b"web")) == []


@pytest.mark.parametrize("kind", ["USER MAPPING", "SERVER", "SUBSCRIPTION", "FOREIGN DATA WRAPPER"])
def test_text_that_may_hold_a_password_is_not_shown(kind: str) -> None:
    before = of(kind, "CREATE something OPTIONS (password one);")
    assert schema_differences(before, before.replace(b"one", b"two")) == [
        f"PostgreSQL writes back differently: {kind.lower()} t in public"
    ]


def test_a_difference_of_length_has_no_example() -> None:
    before = of("VIEW", "CREATE VIEW t AS\n SELECT a")
    assert schema_differences(before, before.replace(b"SELECT a", b"SELECT a\n FROM b")) == [
        "PostgreSQL writes back differently: view t in public"
    ]


def test_sql_in_another_encoding_is_compared() -> None:
    table = of("TABLE", "CREATE TABLE t (\n    a integer\n);").replace(b"    a ", b"    \xff ")
    assert structure_differences(table, table.replace(b"integer", b"bigint")) == [
        r"table t in public differs: not \xff integer, but \xff bigint"
    ]
    view = of("VIEW", "CREATE VIEW t AS\n SELECT a;").replace(b"SELECT a", b"SELECT \xff")
    assert structure_differences(view, view.replace(b"\xff", b"\xfe")) == [
        r"view t in public differs: SELECT \xff; | SELECT \xfe;"
    ]


def test_rights_of_bootstrap_superusers_are_not_compared() -> None:
    extension = SECTION.format("FUNCTION f()", "ACL", "GRANT ALL ON FUNCTION public.f() TO {};")
    before, after = (extension.format(role).replace("Owner: ovia", f"Owner: {role}").encode() for role in ("pg", "su"))
    assert compare_privileges(before, after, makers=("pg", "su")) == ([], [])
    bad, odd = compare_privileges(before, after)
    assert (len(bad), len(odd)) == (0, 1)
    assert odd[0].startswith("FUNCTION f() in public belongs to su in the copy, and to pg in the source")
