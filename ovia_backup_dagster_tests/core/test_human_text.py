"""Numbers, sizes and durations as a person reads them."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.core.human_text import duration, human_bytes, signed


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (999.5, "1.0 kB"),
        (1000, "1.0 kB"),
        (1500, "1.5 kB"),
        (999_499, "999.5 kB"),
        (999_500, "1.0 MB"),
        (639_000_000, "639.0 MB"),
        (1_900_000_000, "1.9 GB"),
        (2_500_000_000_000, "2.5 TB"),
        (2_500_000_000_000_000, "2500.0 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_bytes_are_shown_with_a_decimal_unit(count: float, text: str) -> None:
    assert human_bytes(count) == text


@settings(deadline=None)
@given(st.integers(0, 10**15))
def test_bytes_are_short_and_within_five_percent(count: int) -> None:
    match = re.fullmatch(r"(\d{1,3}(?:\.\d)?|1000\.0) (B|kB|MB|GB|TB)", human_bytes(count))
    assert match is not None
    said = float(match[1]) * 1000 ** ("B", "kB", "MB", "GB", "TB").index(match[2])
    assert abs(said - count) <= max(0.051 * count, 0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (12, "12 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (119, "1 min"),
        (300, "5 min"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d"),
        (93_600, "1 d 2 h"),
        (86_400 + 60, "1 d"),
        (-300, "5 min"),
        (-86_400, "1 d"),
    ],
)
def test_durations_are_shown_in_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(("change", "text"), [(0, "0"), (1200, "+1,200"), (-3, "-3"), (-1_000_000, "-1,000,000")])
def test_signed_numbers_show_their_sign(change: int, text: str) -> None:
    assert signed(change) == text
