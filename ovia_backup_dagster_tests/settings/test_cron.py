"""The accepted cron expressions: those that Dagster accepts, except dates that never occur."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise, product, takewhile

import pytest
from dagster._utils.schedules import cron_string_iterator, is_valid_cron_string

from ovia_backup_dagster.settings.cron import longest_pause_days, why_not

FIELDS = (
    "* 0 59 60 99 */5 0-10 10-5 */0 */90 1,2 1,,2 , a -1 5/15 0-59/7 1- -/2 ? L 1-60 00 5-5 1.5 +1 ٣",
    "* 0 23 24 22-2 8-18/2 */24 jan 1-24 1#2",
    "* 1 31 0 32 l L ? ?/2 1,L 31,30 1-32 15w L-3 */31 */32 L/2",
    "* 1 12 13 0 jan JAN jan-mar foo jan,2 dec-feb */2 january L ? 1-13",
    "* 0 7 8 ?/2 sun mon-fri fri-mon 5#2 5#6 5#0 sun#1 L5 l8 5L ? 1,5#2 5#1,5#3 sunday 7-1 5-7 0-7 1-5/2 L",
)
EXPRESSIONS = [
    " ".join(part if at == place else "*" for at in range(5))
    for place, parts in enumerate(FIELDS)
    for part in parts.split()
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_is_accepted_if_dagster_accepts_it(expression: str) -> None:
    assert (why_not(expression) == "") == is_valid_cron_string(expression), why_not(expression)


@pytest.mark.parametrize(
    "expression", ["0 0 30 2 *", "0 0 31 4 *", "0 0 30,31 feb *", "0 0 31 4,6,9,11 *", "0 0 30-31 2 ?", "0 0 31 2 */1"]
)
def test_a_date_that_no_year_has_is_refused(expression: str) -> None:
    assert why_not(expression) == "no such date exists in any year"


@pytest.mark.parametrize("day", ["1", "*/2", "5#2", "L5", "sun-tue", "?", "*"])
@pytest.mark.parametrize("date", ["31 2", "30 feb", "30/5 2"])
def test_a_date_that_february_lacks_is_refused_with_a_weekday(date: str, day: str) -> None:
    """Dagster refuses such expressions, and the code location would not load."""
    assert why_not(f"0 3 {date} {day}") == "no such date exists in any year"
    assert not is_valid_cron_string(f"0 3 {date} {day}")


@pytest.mark.parametrize("expression", ["0 0 29 2 *", "0 0 31 4 1", "0 0 31 */2 *", "0 0 L 2 *", "0 0 30,1 2 *"])
def test_a_date_that_some_year_has_is_accepted(expression: str) -> None:
    assert why_not(expression) == ""
    assert is_valid_cron_string(expression)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("60 3 * * *", "'60' is not a valid minute: that is 0 to 59"),
        ("0 24 * * *", "'24' is not a valid hour: that is 0 to 23"),
        ("0 3 * * 8", "'8' is not a valid day of the week"),
        ("*/0 3 * * *", "its step must be 1 or more"),
        ("0 3 * *", "it has 4 fields"),
        ("", "it has 0 fields"),
        ("@reboot", "only @hourly"),
        ("@yearly", "only @hourly"),
        ("R 3 * * *", "'r' is not a valid minute"),  # Dagster returns another minute each time
    ],
)
def test_the_error_says_what_is_wrong(expression: str, words: str) -> None:
    assert words in why_not(expression)


def test_ordinary_expressions_are_accepted() -> None:
    for fields in product(("0", "*/20"), ("3", "1-5/2"), ("*", "1,15"), ("*", "jan-jun"), ("*", "mon-fri")):
        assert why_not("  " + "\t".join(fields)) == ""


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("30 1 * * 6", 7),
        ("0 3 * * *", 1),
        ("@weekly", 7),
        ("@monthly", 31),
        ("*/5 * * * *", 1),
        ("0 5 L * *", 31),
        ("0 5 1,L * *", 30),
        ("0 5 1,15 * *", 17),
        ("0 0 * * 5#2", 35),
        ("0 0 * * L5", 35),
        ("0 0 * * 1#1,3#1", 33),
        ("0 0 * * mon,thu", 4),
        ("0 0 * * 6-1", 5),
        ("0 0 * jan,jul sun", 161),
        ("0 0 13 * 5", 7),
        ("0 0 29 2 *", 1461),
    ],
)
def test_the_longest_pause_is_that_of_dagsters_ticks(expression: str, days: int) -> None:
    ticks = cron_string_iterator(datetime(2024, 1, 1, tzinfo=UTC).timestamp(), expression, "UTC")
    until = datetime(2028, 3, 1, tzinfo=UTC)
    dates = [tick.date() for tick in takewhile(lambda tick: tick < until, islice(ticks, 2_000))]
    assert max((later - earlier).days for earlier, later in pairwise(dates)) == longest_pause_days(expression) == days
