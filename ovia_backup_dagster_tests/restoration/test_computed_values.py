"""Values that a restore computes again: it reports differences, and the command for each view that stayed empty."""

from __future__ import annotations

import pytest

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster_tests.conftest import execute
from ovia_backup_dagster_tests.faults.harness import a_day_passes
from ovia_backup_dagster_tests.support.drilling import one
from ovia_backup_dagster_tests.support.restoring import Site


@pytest.mark.exhaustive
def test_a_view_that_cannot_be_refreshed_has_its_command(site: Site) -> None:
    """All other views are refreshed in the end: also those that depend on a search path, and the views on these."""
    execute(
        site.live,
        "CREATE SCHEMA app",
        "CREATE TABLE app.rates AS SELECT 7 AS n",
        "SET search_path = app, public",
        "CREATE FUNCTION rate() RETURNS int LANGUAGE sql AS 'SELECT n FROM rates'",
        "CREATE MATERIALIZED VIEW app.leans AS SELECT rate() AS n",
        "CREATE MATERIALIZED VIEW app.on_it AS SELECT n + 1 AS n FROM app.leans",
        f"ALTER DATABASE {site.live.database} SET search_path = app, public",
        'CREATE MATERIALIZED VIEW "Div ided" AS SELECT 1 / (n - 8) AS n FROM app.rates',
        'CREATE MATERIALIZED VIEW "on ""that" AS SELECT n FROM "Div ided"',
        "UPDATE app.rates SET n = 8",
    )
    a_day_passes(site.place)
    site.backup = site.place.chain()

    ended = site.restore()

    assert ended.code == 0, ended.output
    record = site.records[0]
    name = site.live.database
    for view, said in (
        ('app."Div ided"', "division by zero"),
        ('app."on ""that"', 'materialized view "Div ided" has not been populated'),
    ):
        note = f"to be refreshed by hand, in database {name}: REFRESH MATERIALIZED VIEW {view}; "
        note += f"It could not be refreshed: {said}"
        assert note in record.notes
        assert note in ended.output
    assert (one(site.live, "SELECT n FROM app.leans"), one(site.live, "SELECT n FROM app.on_it")) == (8, 9)
    assert record.proven is not None
    line = next(line for line in record.proven.lines if line.check is Check.MATERIALIZED_VIEWS)
    assert "REFRESH MATERIALIZED VIEW app.leans;" in line.text


def test_values_that_differ_from_the_source_do_not_go_live(site: Site) -> None:
    execute(
        site.live,
        "CREATE FUNCTION rate(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN $1 * current_setting('ovia.rate', true)::int; END $$",
        "CREATE TABLE prices (id int PRIMARY KEY, net int, gross int GENERATED ALWAYS AS (rate(net)) STORED)",
        "SET ovia.rate = 3",
        "INSERT INTO prices SELECT i, i FROM generate_series(1, 9) i",
    )
    a_day_passes(site.place)
    site.backup = site.place.chain()
    site.now = site.content()

    ended = site.restore()

    assert ended.code == 1, ended.output
    assert "table public.prices has other values in generated column gross than the source had" in ended.output
    assert "--mode new --even-if-damaged" in ended.output
    assert site.content() == site.now
    # The command that the error names restores every row.
    ended = site.restore("--mode", "new", "--even-if-damaged", confirm=False)
    assert ended.code == 0, ended.output
    record = site.records[0]
    assert one(site.live.to(record.order.becomes), "SELECT count(net) FROM prices") == 9
    assert record.proven is not None
    assert record.proven.lost == ("table public.prices has other values in generated column gross than the source had",)
    results = {line.check: line.result for line in record.proven.lines}
    assert results[Check.COMPUTED] is Result.FAILED
