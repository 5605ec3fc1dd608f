"""Backup names: every database name survives the conversion to a file name and back, and none leaves its folder."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.core.naming import NAME_BYTES, BackupName, before_at, before_name, is_utf8, restore_name
from ovia_backup_dagster.core.sidecars import SIDECAR_KINDS
from ovia_backup_dagster.core.tiers import Tier

AT = datetime(2026, 2, 21, 3, 0, tzinfo=UTC)

HOSTILE = (
    "/",
    "..",
    ".",
    "../x",
    "../../etc/passwd",
    "a\nb",
    "100%",
    "%2F",
    "%",
    "my.db",
    "a_daily_b",
    "ovia_daily_2026-01-01_000000.dump",
    "ovia_weekly_2026-01-01_000000",
    "'; rm -rf ~; '",
    "~",
    "-rf",
    "Ünïcødé 猫 \N{PILE OF POO}",
    "a b\tc",
    ".dump",
)

# A PostgreSQL name has 1 to 63 bytes of UTF-8, any but NUL.
database_names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63),
    st.text("ab_-./%2F~'\" \n", min_size=1, max_size=20),
).filter(lambda name: len(name.encode()) <= 63)
instants = st.datetimes(timezones=st.just(UTC))  # years 1 to 9999
backup_names = st.builds(BackupName, database_names, st.sampled_from(Tier), instants)


@settings(deadline=None)
@given(backup_names)
@example(BackupName("ovia", Tier.DAILY, datetime(1, 1, 1, tzinfo=UTC)))
@example(BackupName("ovia", Tier.WEEKLY, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)))
@example(BackupName("ovia", Tier.DAILY, datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)))
@example(BackupName("ovia", Tier.DAILY, datetime(2026, 1, 1, tzinfo=UTC)))
def test_a_file_name_is_parsed_to_its_parts(name: BackupName) -> None:
    assert BackupName.parse(name.filename) == name


@pytest.mark.parametrize("database", HOSTILE)
def test_hostile_names_are_parsed_to_their_parts(database: str) -> None:
    name = BackupName(database, Tier.DAILY, AT)
    assert BackupName.parse(name.filename) == name


@settings(deadline=None)
@given(backup_names)
def test_a_file_name_stays_in_its_folder_and_is_plain_ascii(name: BackupName) -> None:
    # No slash, no leading dot, no blank, and no character that is special to a shell, a terminal or a glob pattern.
    assert re.fullmatch(r"[A-Za-z0-9_%-]+_(daily|weekly|monthly|yearly)_[0-9-]{10}_[0-9]{6}\.dump", name.filename)
    assert os.path.normpath(os.path.join("folder", name.filename)) == f"folder/{name.filename}"


@settings(deadline=None)
@given(backup_names)
def test_the_longest_temporary_name_fits_a_directory_entry(name: BackupName) -> None:
    longest = max((kind.suffix for kind in SIDECAR_KINDS), key=len)
    assert len(f".{name.filename}{longest}.tmp".encode()) <= 255


@settings(deadline=None)
@given(backup_names, backup_names)
def test_two_names_never_share_a_file(one: BackupName, other: BackupName) -> None:
    assert (one == other) == (one.filename == other.filename)


def test_known_names_stay_as_they_are() -> None:
    assert BackupName("ovia", Tier.DAILY, AT).filename == "ovia_daily_2026-02-21_030000.dump"
    assert BackupName("ovia", Tier.WEEKLY, AT).filename == "ovia_weekly_2026-02-21_030000.dump"
    assert BackupName("my.db", Tier.DAILY, AT).filename == "my%2Edb_daily_2026-02-21_030000.dump"


@pytest.mark.parametrize(
    ("filename", "database"),
    [
        ("ovia_daily_2026-02-21_030000.dump", "ovia"),
        ("my.db_daily_2026-02-21_030000.dump", "my.db"),
        ("my db_daily_2026-02-21_030000.dump", "my db"),
        ("naïve_daily_2026-02-21_030000.dump", "naïve"),
        ("50%_daily_2026-02-21_030000.dump", "50%"),
        ("%ff_daily_2026-02-21_030000.dump", "%ff"),
        ("%2f_daily_2026-02-21_030000.dump", "%2f"),
        ("a_daily_b_daily_2026-02-21_030000.dump", "a_daily_b"),
        ("a\nb_daily_2026-02-21_030000.dump", "a\nb"),
    ],
)
def test_the_old_scripts_names_are_parsed(filename: str, database: str) -> None:
    assert BackupName.parse(filename) == BackupName(database, Tier.DAILY, AT)


@pytest.mark.parametrize(
    "filename",
    [
        "",
        "notes.txt",
        ".dump",
        ".ovia.tmp",
        "daily_2026-02-21_030000.dump",
        "_daily_2026-02-21_030000.dump",
        "ovia_quarterly_2026-02-21_030000.dump",
        "ovia_Daily_2026-02-21_030000.dump",
        "ovia_daily_2026-02-21_030000",
        "ovia_daily_2026-02-21_030000.dump.json",
        "ovia_daily_2026-02-21_030000.dump\n",
        "ovia_daily_2026-02-21_030000.sql",
        "ovia_daily_2026-02-21.dump",
        "ovia_daily_20260221_030000.dump",
        "ovia_daily_2026-02-30_030000.dump",
        "ovia_daily_2025-02-29_030000.dump",
        "ovia_daily_2026-13-01_030000.dump",
        "ovia_daily_2026-02-21_240000.dump",
        "ovia_daily_2026-02-21_036000.dump",
        "ovia_daily_2026-02-21_030060.dump",
        "ovia_daily_0000-01-01_000000.dump",
        "ovia_daily_٢٠٢٦-02-21_030000.dump",
    ],
)
def test_names_of_other_files_are_not_parsed(filename: str) -> None:
    assert BackupName.parse(filename) is None


@pytest.mark.parametrize("raw", [b"\xff_daily_2026-02-21_030000.dump", b"caf\xe9_daily_2026-02-21_030000.dump"])
def test_a_name_that_is_not_utf8_is_read_without_a_crash(raw: bytes) -> None:
    # os.scandir returns such names with lone surrogates. One such file must not make every backup unreadable.
    parsed = BackupName.parse(os.fsdecode(raw))
    assert parsed is None or parsed.database == os.fsdecode(raw.partition(b"_daily_")[0])


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_crashes_the_parser(filename: str) -> None:
    parsed = BackupName.parse(filename)
    assert parsed is None or filename.endswith(".dump")


def test_an_instant_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        BackupName("ovia", Tier.DAILY, datetime(2026, 2, 21, 3, 0))  # noqa: DTZ001 - that is what is refused


def test_equal_instants_have_equal_names_in_any_zone() -> None:
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    there = (AT + timedelta(microseconds=999_999)).astimezone(kathmandu)
    assert BackupName("ovia", Tier.DAILY, there) == BackupName("ovia", Tier.DAILY, AT)


# --- The names that a restore gives to databases ------------------------------------------------------------------


def test_a_restore_names_both_databases_by_the_instant() -> None:
    assert restore_name("ovia", AT) == "ovia_restore_20260221030000"
    assert before_name("ovia", AT) == "ovia_before_20260221030000"
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    assert before_name("ovia", AT.astimezone(kathmandu)) == "ovia_before_20260221030000"


@pytest.mark.parametrize("database", ["o" * 41, "ü" * 21, "猫" * 21])
def test_long_names_are_cut_to_fit_and_stay_unique(database: str) -> None:
    other = database[:-1] + "x"
    for named in (restore_name, before_name):
        one = named(database, AT)
        assert len(one.encode()) <= NAME_BYTES
        assert one != named(other, AT)


def test_a_name_that_just_fits_is_not_cut() -> None:
    fits = NAME_BYTES - len("_before_20260221030000")
    assert before_name("o" * fits, AT) == "o" * fits + "_before_20260221030000"
    assert len(before_name("o" * (fits + 1), AT)) == NAME_BYTES


@pytest.mark.parametrize("database", ["ovia", "a_before_20260221030000", "ü" * 31])
def test_a_replaced_database_tells_when_it_was_replaced(database: str) -> None:
    assert before_at(before_name(database, AT), database) == AT


@pytest.mark.parametrize(
    "name",
    [
        "ovia",
        "ovia_before_",
        "ovia_before_2026022103000",
        "ovia_before_20260230030000",
        "ovia_before_20260221030000x",
        "other_before_20260221030000",
        "ovia_restore_20260221030000",
    ],
)
def test_other_databases_were_not_replaced(name: str) -> None:
    assert before_at(name, "ovia") is None


def test_only_a_name_in_utf8_can_be_recorded() -> None:
    assert is_utf8("猫")
    assert not is_utf8(os.fsdecode(b"caf\xe9"))
