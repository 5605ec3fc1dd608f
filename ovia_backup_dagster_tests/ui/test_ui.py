"""Dagster's UI as people use it: a real browser, the real webserver and daemon, a real database.

The deployment is started once for the module, or once per worker if the tests are distributed. Fixtures do what a test
needs done before it. The last test leaves a damaged backup behind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from playwright.sync_api import Browser, expect

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.doctor.report import Area
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import (
    ALERT,
    ALERT_JOB,
    CHAIN,
    DAILY_JOB,
    DOCTOR,
    DRILL,
    DRILL_JOB,
    flip_byte,
)
from ovia_backup_dagster_tests.ui.browser import CHROMIUM, Site, browsing, colour, visiting
from ovia_backup_dagster_tests.ui.deployment import CHANGES, Deployment, deployed, until


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        message = f"{CHROMIUM} is missing: apt-get install --no-install-recommends chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def deployment(browser: Browser) -> Iterator[Deployment]:
    with deployed(scale=0.02) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def told(deployment: Deployment) -> Receiver:
    """The receiver, after the daemon's first tick alerted the old backup. Until then, no test may touch the volume.

    The sensor is stopped then: on a slow machine, its second tick could send an all-clear between two tests.
    """
    until(lambda: deployment.people.messages, 120, "no alert arrived")
    deployment.stop_sensor()
    return deployment.people


@pytest.fixture(scope="module")
def launched(browser: Browser, deployment: Deployment, told: Receiver) -> str:
    """The status of the daily job after a launch from its page."""
    with visiting(browser, deployment.url) as site:
        return site.launch_job(DAILY_JOB)


@pytest.fixture
def site(browser: Browser, deployment: Deployment) -> Iterator[Site]:
    with visiting(browser, deployment.url) as site:
        yield site


@pytest.mark.exhaustive
def test_the_graph_shows_the_assets_and_their_order(site: Site) -> None:
    site.open_graph()

    expect(site.nodes).to_have_count(7)
    expect(site.edges).to_have_count(4)
    for asset in (*CHAIN, DRILL, ALERT, DOCTOR):
        expect(site.node(asset).get_by_text(asset, exact=True)).to_be_in_viewport()
    assert site.connected((*CHAIN, DRILL, ALERT, DOCTOR)) == {*pairwise(CHAIN), ("dump_verification", DRILL)}


@pytest.mark.exhaustive
def test_an_old_backup_makes_the_sensor_launch_an_alert(site: Site, told: Receiver) -> None:
    site.choose("Automation")
    site.page.get_by_role("link", name="backup_freshness_sensor").click()
    tick = site.page.get_by_role("row").filter(has_text="1 run requested").last
    with site.new_tab(tick.locator("a[href^='/runs/']")) as run:
        assert run.outcome() == "Success"
        expect(run.page.get_by_role("link", name=ALERT_JOB)).to_be_visible()

    site.open_asset(ALERT)
    [message] = told.messages
    assert message["title"] == "[ovia] the newest backup is too old"
    assert re.search(r"1 d 6 h old, 4 h( \d min)? too old", message["message"])
    expect(site.metadata("title")).to_have_text(message["title"])
    expect(site.metadata("message")).to_have_text(message["message"])
    site.open_check("backups_fresh")
    expect(site.page.get_by_role("paragraph").filter(has_text="1 d 6 h old, 4 h")).to_be_visible()
    assert colour(site.verdict("Failed")) == "red"


@pytest.mark.exhaustive
def test_the_alert_asset_is_red_in_trouble_and_else_green(
    browser: Browser, site: Site, deployment: Deployment, launched: str
) -> None:
    """The daily job ran after the alert, and the sensor has not ticked since."""
    assert launched == "Success"
    with visiting(browser, deployment.url) as before:
        before.open_graph()
        expect(before.node(ALERT)).to_contain_text("9 / 10 Passed")
        assert colour(before.node(ALERT).get_by_text("Materialized", exact=True)) == "red"

    told = len(deployment.people.messages)
    assert site.materialize(ALERT) == "Success"
    assert len(deployment.people.messages) == told
    site.open_asset(ALERT)
    expect(site.metadata("message")).to_have_text("nothing is wrong; no message was sent")
    site.open_graph()
    expect(site.node(ALERT)).to_contain_text("10 / 10 Passed")
    assert colour(site.node(ALERT).get_by_text("Materialized", exact=True)) == "green"


@pytest.mark.exhaustive
def test_a_job_launched_from_its_page_turns_the_assets_green(site: Site, launched: str) -> None:
    assert launched == "Success"
    site.open_graph()

    for asset in CHAIN:
        state = site.node(asset).get_by_text("Materialized", exact=True)
        expect(state).to_be_visible()
        assert colour(state) == "green"
    expect(site.node("dump_verification")).to_contain_text("7 / 7 Passed")


@pytest.mark.exhaustive
def test_a_verification_shows_the_rows_of_every_table(site: Site, deployment: Deployment, launched: str) -> None:
    assert launched == "Success"
    site.open_asset("dump_verification")

    rows = {" ".join(table.split()): count for table, count in deployment.rows().items()}
    assert site.table("tables") == [
        (table, str(count), CHANGES.get(table, "0")) for table, count in sorted(rows.items())
    ]
    expect(site.metadata("rows")).to_have_text(str(sum(rows.values())))


@pytest.mark.exhaustive
def test_a_drill_from_the_launchpad_shows_what_it_proved(site: Site, deployment: Deployment, told: Receiver) -> None:
    config = "ops: {restore_drill: {config: {backup: latest, where: throwaway, jobs: 3}}}"
    offered, outcome = site.launch_from_launchpad(DRILL_JOB, config)
    assert outcome == "Success"
    for line in ("backup: latest", "jobs: 0", "keep_copy: false", "where: setting"):
        assert line in offered

    site.open_asset(DRILL)
    evidence = next(deployment.system.drills.newest_first())
    assert evidence.jobs == 3
    assert evidence.recovery_seconds
    # The summary in words, and beside it the number that is plotted.
    summary = site.metadata("summary")
    expect(summary).to_contain_text(f"Recovery time to expect: {evidence.recovery_seconds:.1f} s")
    expect(summary).to_contain_text(f"Rows: {evidence.rows:,} in {len(evidence.tables)} tables")
    expect(summary).to_contain_text(f"Size: {human_bytes(evidence.backup_bytes)} as a backup")
    expect(site.metadata("recovery_seconds")).to_have_text(f"{evidence.recovery_seconds}")
    expect(site.metadata("backup")).to_have_text(evidence.backup)
    expect(site.metadata("restored_into")).to_have_text("throwaway cluster")
    assert site.cut_off() == []
    with site.markdown("evidence") as page:
        for made in evidence.lines:
            expect(page.get_by_role("cell", name=made.check.value, exact=True)).to_be_visible()
        assert not site.reaches_out(page)
    expect(site.plot("recovery_seconds")).to_be_visible()
    site.open_check(Check.CONTROL)
    expect(site.page.get_by_role("paragraph").filter(has_text=" was noticed")).to_be_visible()
    assert colour(site.verdict("Passed")) == "green"


@pytest.mark.exhaustive
def test_a_default_restore_shows_a_plan_in_the_uis_words(site: Site, launched: str) -> None:
    assert launched == "Success"
    assert site.launch_as_it_stands("restore_job") == "Success"

    said = site.page.get_by_text("nothing was changed; to do it, within an hour: launch restore_job again, ")
    expect(said).to_contain_text(re.compile(r"action: restore and confirm: ovia-\d{8}T\d{6}Z"))
    for text in ("launch restore_job with action: plan_undo", "2. swap names: ovia becomes ovia_before_"):
        expect(site.page.get_by_text(text)).to_be_visible()
    expect(site.page.get_by_text("ovia-backup ")).to_have_count(0)


@pytest.mark.exhaustive
def test_the_doctor_has_a_check_for_each_area(site: Site, launched: str) -> None:
    """The report also exists when the run fails, as it does for programs with known vulnerabilities."""
    assert launched == "Success"
    outcome = site.materialize(DOCTOR)

    site.open_asset(DOCTOR)
    expect(site.metadata("summary")).to_contain_text(re.compile(r"\d+ warn, \d+ ok"))
    assert site.cut_off() == []
    with site.markdown("report") as page:
        expect(page.get_by_text("the daemon is alive")).to_be_visible()
        assert not site.reaches_out(page)
    site.open_check(Area.ALERTS)
    assert colour(site.verdict("Passed")) == "green"
    site.open_graph()
    assert colour(site.node(DOCTOR).get_by_text("Materialized", exact=True)) == (
        "green" if outcome == "Success" else "red"
    )


@pytest.mark.exhaustive
def test_a_damaged_backup_shows_a_red_check_and_why(site: Site, deployment: Deployment, launched: str) -> None:
    assert launched == "Success"
    damaged = deployment.newest
    flip_byte(damaged.path)

    assert site.materialize("dump_verification") == "Failure"

    site.open_asset("dump_verification")
    site.open_check("archive_matches_manifest")
    words = f"{damaged.path.name} was altered: its SHA-256 is "
    expect(site.page.get_by_role("paragraph").filter(has_text=words)).to_be_visible()
    assert colour(site.verdict("Failed")) == "red"
    site.open_graph()
    state = site.node("dump_verification").get_by_text("Failed", exact=True)
    expect(state).to_be_visible()
    assert colour(state) == "red"
