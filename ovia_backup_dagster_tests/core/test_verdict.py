"""How the reading of an archive is judged: bad, odd or good."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.verdict import (
    Expectations,
    Finding,
    Hold,
    Judgement,
    Witness,
    bad_backup,
    judge,
    lost_rows,
    split_identifier,
)
from ovia_backup_dagster_tests.support.factories import DAY, NOW, make_manifest, make_witness


def judge_rows(rows: dict[str, int], *expected: str, require_rows: bool = False) -> list[tuple[Check, str]]:
    found = judge(make_witness(rows), expectations=Expectations(expected, require_rows), manifest=None, previous=None)
    return [(finding.check, finding.text) for finding in found]


# --- Expected tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("public.people", "people"),
        ("public.people", "public.people"),
        ("app.people", "people"),
        ('public."My Table"', "My Table"),
        ('public."My Table"', "public.My Table"),
        ('public."My Table"', 'public."My Table"'),
        ('public."My Table"', '"My Table"'),
        ("public.people", '"people"'),
        ("public.people", '"public"."people"'),
        ('"My Schema"."a.b"', "a.b"),
        ('"My Schema"."a.b"', "My Schema.a.b"),
        ('"My Schema"."a.b"', '"My Schema"."a.b"'),
        ('public."say ""hi"""', 'say "hi"'),
        ('public."say ""hi"""', 'public."say ""hi"""'),
        ('public."PEOPLE"', "PEOPLE"),
        ("public.naïve", "naïve"),
    ],
)
def test_a_table_matches_with_and_without_schema_and_quotes(table: str, expected: str) -> None:
    assert judge_rows({table: 0}, expected) == []


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("public.people", "person"),
        ("public.people", "peopl"),
        ("public.people", "public"),
        ("app.people", "public.people"),
        ('public."People"', "people"),
        ("public.people_old", "people"),
        ("public.people", "people.public"),
        ("people.identities", "people"),
    ],
)
def test_another_table_does_not_stand_in_for_an_expected_one(table: str, expected: str) -> None:
    assert judge_rows({table: 5}, expected) == [(Check.TABLES_PRESENT, f"expected table {expected} is not in the dump")]


def test_a_dump_without_any_table_lacks_each_expected_one() -> None:
    assert [check for check, _ in judge_rows({}, "people", "identities")] == [Check.TABLES_PRESENT] * 2


def test_an_empty_expected_table_is_bad_if_rows_are_required() -> None:
    assert judge_rows({"public.people": 0}, "people") == []
    assert judge_rows({"public.people": 0}, "people", require_rows=True) == [
        (Check.TABLES_HOLD_ROWS, "expected table people holds no rows")
    ]
    assert judge_rows({"public.people": 1}, "people", require_rows=True) == []


def test_an_empty_unexpected_table_is_no_finding() -> None:
    assert judge_rows({"public.people": 1, "public.audit": 0}, "people", require_rows=True) == []


def test_an_empty_namesake_in_another_schema_hides_no_rows() -> None:
    assert judge_rows({"archive.people": 0, "public.people": 2}, "people", require_rows=True) == []


def test_a_partitioned_expected_table_counts_its_partitions() -> None:
    def found(rows: dict[str, int]) -> list[Check]:
        witness = make_witness(
            rows, partitions={"public.events_1": "public.events", "public.events_2": "public.events"}
        )
        expectations = Expectations(("events",), require_rows=True)
        return [f.check for f in judge(witness, expectations=expectations, manifest=None, previous=None)]

    assert found({"public.events_1": 0, "public.events_2": 4}) == []
    assert found({"public.events_1": 0, "public.events_2": 0}) == [Check.TABLES_HOLD_ROWS]


def test_pg_dumps_warnings_are_odd() -> None:
    manifest = make_manifest(warnings=("subscription s was left out",))
    found = judge(make_witness(), expectations=Expectations(), manifest=manifest, previous=None)
    assert found == (Finding(check=Check.NO_WARNINGS, text="subscription s was left out"),)
    assert found[0].check.is_odd


def test_lost_rows_are_odd_and_say_with_what_they_were_compared() -> None:
    before, after = make_witness({"public.people": 10, "public.gone": 3}), make_witness({"public.people": 4})
    found = judge(after, expectations=Expectations(), manifest=None, previous=("yesterday's", before))
    assert [f.text for f in found] == [
        "table public.people shrank from 10 to 4 rows (compared with yesterday's)",
        "table public.gone is gone; it held 3 rows (compared with yesterday's)",
    ]
    assert all(f.check is Check.ROWS_KEPT and f.check.is_odd for f in found)


def test_an_unchanged_backup_has_no_finding() -> None:
    witness = make_witness({"public.people": 3})
    expectations = Expectations(("people",), require_rows=True)
    found = judge(witness, expectations=expectations, manifest=make_manifest(), previous=("yesterday's", witness))
    assert found == ()


def test_only_lost_rows_and_warnings_are_odd() -> None:
    odd = {check for check in Check.at(Stage.VERIFICATION) if check.is_odd}
    assert odd == {Check.ROWS_KEPT, Check.NO_WARNINGS}


def test_a_judgement_tells_bad_from_odd() -> None:
    findings = (
        Finding(check=Check.DECODES, text="cut off"),
        Finding(check=Check.ROWS_KEPT, text="shrank"),
    )
    judgement = Judgement(at=NOW, good=False, findings=findings, size_bytes=1, mtime_ns=1, sha256=None, seconds=0.1)
    assert (judgement.reasons, judgement.oddities) == (("cut off",), ("shrank",))


# --- Lost rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (0, 0, False),
        (10, 10, False),
        (10, 1000, False),
        (10, 5, False),
        (11, 5, True),
        (10, 4, True),
        (2, 1, False),
        (1, 0, True),
        (3, 1, True),
        (1_000_000, 0, True),
    ],
)
def test_more_than_half_the_rows_is_a_loss(before: int, after: int, lost: bool) -> None:
    lines = list(lost_rows({"t": before}, {"t": after}).values())
    assert lines == ([f"table t shrank from {before:,} to {after:,} rows"] if lost else [])


def test_a_lost_table_is_reported_with_its_rows() -> None:
    assert lost_rows({"a": 1_200, "b": 0}, {"c": 5}) == {
        "a": "table a is gone; it held 1,200 rows",
        "b": "table b is gone; it held 0 rows",
    }


counts = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**6))


@settings(deadline=None)
@given(counts, counts)
def test_each_table_that_lost_half_its_rows_has_a_line(before: dict[str, int], after: dict[str, int]) -> None:
    suspicious = [t for t in before if t not in after or after[t] < before[t] / 2]
    assert [line.split()[1] for line in lost_rows(before, after).values()] == suspicious


@settings(deadline=None)
@given(counts)
def test_an_equal_dump_lost_nothing(rows: dict[str, int]) -> None:
    assert lost_rows(rows, rows) == {}


# --- Partitions ---------------------------------------------------------------------------------------------------


def test_partitions_count_for_their_root_table() -> None:
    witness = make_witness(
        {"public.events_1": 3, "public.events_2a": 4, "public.events_2b": 5, "public.people": 7},
        partitions={
            "public.events_1": "public.events",
            "public.events_2": "public.events",
            "public.events_2a": "public.events_2",
            "public.events_2b": "public.events_2",
        },
    )
    assert witness.rows_by_table() == {"public.events": 12, "public.people": 7}
    assert witness.rows == 19


def test_a_partition_dropped_on_purpose_is_no_lost_table() -> None:
    parent = "public.events"
    before = make_witness({"e_1": 10, "e_2": 10}, partitions={"e_1": parent, "e_2": parent})
    after = make_witness({"e_2": 10}, partitions={"e_2": parent})
    found = judge(after, expectations=Expectations(), manifest=None, previous=("yesterday's", before))
    assert found == ()


def test_a_partitioned_table_without_data_is_empty() -> None:
    assert make_witness({}, partitions={"e_1": "public.events"}).rows_by_table() == {"public.events": 0}


def test_cyclic_partitions_count_each_row_once() -> None:
    # No PostgreSQL makes a cycle; a crafted archive might have one.
    witness = make_witness({"a": 1, "b": 2, "c": 4}, partitions={"a": "b", "b": "a", "c": "c"})
    assert sum(witness.rows_by_table().values()) == 7


table_names = st.sampled_from(["a", "b", "c", "d", "e"])


@settings(deadline=None)
@given(st.dictionaries(table_names, st.integers(0, 100)), st.dictionaries(table_names, table_names))
def test_no_row_is_lost_when_partitions_are_added_up(rows: dict[str, int], partitions: dict[str, str]) -> None:
    witness: Witness = make_witness(rows, partitions)
    assert sum(witness.rows_by_table().values()) == witness.rows == sum(rows.values())


# --- Qualified names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("people", ["people"]),
        ("public.people", ["public", "people"]),
        ('public."My Table"', ["public", "My Table"]),
        ('"a.b"."c""d"', ["a.b", 'c"d']),
        ('""""', ['"']),
        ('"."', ["."]),
        ('""', [""]),
    ],
)
def test_a_qualified_name_is_split_into_its_parts(name: str, parts: list[str]) -> None:
    assert list(split_identifier(name)) == parts


@settings(deadline=None)
@given(st.lists(st.one_of(st.text('ab."', min_size=1), st.text(min_size=1)), min_size=1, max_size=3))
def test_any_quoted_name_is_split_into_its_parts(parts: list[str]) -> None:
    quoted = ".".join('"' + part.replace('"', '""') + '"' for part in parts)
    assert list(split_identifier(quoted)) == parts


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z_][a-z0-9_$]*", fullmatch=True), min_size=1, max_size=3))
def test_a_plain_name_needs_no_quotes(parts: list[str]) -> None:
    assert list(split_identifier(".".join(parts))) == parts


@settings(deadline=None)
@given(st.text('ab."\n ', max_size=30))
def test_no_text_crashes_the_parser(name: str) -> None:
    assert len(split_identifier(name)) >= 1


# --- Tables by their entries and families -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected", "rows"),
    [
        ("TABLE public events ovia", "events", 0),
        ("TABLE public events ovia", "public.events", 0),
        ("TABLE public events ovia", "app.events", None),
        ("TABLE public events ovia", "event", None),
        ("TABLE DATA public events ovia", "events", None),
        ("TABLE ATTACH public events ovia", "events", None),
        ("TABLE DATA public events ovia", "public", None),
        ("TABLE ATTACH public events ovia", "public", None),
        ("VIEW public events ovia", "events", None),
        ("TABLE public events", "events", None),
    ],
)
def test_a_table_without_data_is_known_by_its_entry(entry: str, expected: str, rows: int | None) -> None:
    witness = make_witness({}).model_copy(update={"contents": (entry,)})
    assert witness.rows_of(expected) == rows


def test_rows_of_a_table_count_those_of_all_its_descendants() -> None:
    rows = {"public.parent": 1, "public.child": 2, "public.grandchild": 4, "public.part": 8, "public.other": 16}
    witness = make_witness(rows, {"public.part": "public.whole"}).model_copy(
        update={"inherits": {"public.child": ("public.parent",), "public.grandchild": ("public.child",)}}
    )
    assert witness.rows_of("parent") == 7
    assert witness.rows_of("child") == 6
    assert witness.rows_of("whole") == 8
    assert witness.rows_of("other") == 16
    assert witness.rows_of("none") is None


def test_a_schema_of_the_expected_name_is_not_the_table() -> None:
    assert make_witness({"people.a": 1}).rows_of("people") is None
    assert make_witness({'public."x.people"': 1}).rows_of('"people"') is None


def test_a_table_without_a_schema_is_found_by_its_name() -> None:
    assert make_witness({"people": 3}).rows_of("people") == 3
    assert make_witness({"people": 3}).rows_of('"people"') == 3
    assert make_witness({"people": 3}).rows_of("public") is None


def test_findings_of_all_rules_are_collected() -> None:
    found = judge(
        make_witness({"public.people": 1}),
        expectations=Expectations(("identities",)),
        manifest=make_manifest(warnings=("no privileges",)),
        previous=("a.dump", make_witness({"public.people": 3})),
    )
    assert [each.check for each in found] == [Check.TABLES_PRESENT, Check.ROWS_KEPT, Check.NO_WARNINGS]


def test_the_fix_of_a_bad_backup_begins_with_the_cause() -> None:
    assert bad_backup("a.dump", "cut off").fix.startswith("find the cause, then launch daily_backup_job")


# --- What a judgement and a hold say ------------------------------------------------------------------------------


def judgement(*findings: Finding, good: bool = False) -> Judgement:
    return Judgement(at=NOW, good=good, findings=findings, size_bytes=1, mtime_ns=1, sha256="a" * 64, seconds=0.1)


def test_a_bad_judgement_names_reasons_and_the_next_command() -> None:
    problem = judgement(
        Finding(check=Check.TABLES_PRESENT, text="no people"), Finding(check=Check.DECODES, text="cut off")
    ).problem("a b.dump")
    assert problem is not None
    assert (problem.what, problem.reason) == ("a b.dump is bad", "no people; cut off")
    assert problem.fix == (
        "find the cause, then launch daily_backup_job in the Dagster UI, or run: ovia-backup dump && "
        "ovia-backup verify latest; earlier backups are untouched: ovia-backup list"
    )


def test_a_backup_of_another_source_can_be_accepted() -> None:
    problem = judgement(Finding(check=Check.SOURCE, text="another cluster")).problem("a b.dump")
    assert problem is not None
    assert problem.fix.startswith(
        "if that was meant: ovia-backup accept 'a b.dump'; if not: check POSTGRES_HOST and POSTGRES_DB, find the cause"
    )


def test_a_good_judgement_is_no_problem() -> None:
    assert judgement(good=True).problem("a.dump") is None


@pytest.mark.parametrize(
    ("days", "released", "holds"), [(1, False, True), (0, False, False), (-1, False, False), (1, True, False)]
)
def test_a_hold_is_in_force_until_its_end_or_release(days: int, released: bool, holds: bool) -> None:
    hold = Hold(until=NOW + days * DAY, reason="lost rows", released_at=NOW if released else None)
    assert hold.in_force(NOW) is holds


def test_findings_of_rows_and_warnings_name_their_check() -> None:
    found = judge(
        make_witness({"public.people": 1}),
        expectations=Expectations(),
        manifest=make_manifest().model_copy(update={"warnings": ("no privileges",)}),
        previous=("a.dump", make_witness({"public.people": 3})),
    )
    assert [(each.check, each.text) for each in found] == [
        (Check.ROWS_KEPT, "table public.people shrank from 3 to 1 rows (compared with a.dump)"),
        (Check.NO_WARNINGS, "no privileges"),
    ]
