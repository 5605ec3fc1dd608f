"""Takes the pictures of the docs in the real UI: ``python -m tools.pictures``.

``make pictures`` runs it. No picture may show this machine's name.
"""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from ovia_backup_dagster_tests.conftest import REPOSITORY
from ovia_backup_dagster_tests.defs.support import ALERT, CHAIN, DAILY_JOB, DRILL
from ovia_backup_dagster_tests.ui.browser import Site, browsing, visiting
from ovia_backup_dagster_tests.ui.deployment import deployed, until

FOLDER = REPOSITORY / "docs" / "pictures"


def take(folder: Path) -> None:
    """Take all pictures, with a database of 300,000 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with browsing() as browser, deployed(scale=1) as deployment:
        until(lambda: deployment.people.messages, 120, "no alert was sent")
        with visiting(browser, deployment.url) as site:
            assert site.launch_job(DAILY_JOB) == "Success"
            assert site.materialize(DRILL) == "Success"
            # The sensor's alert was of an old backup; materialize it again now that all is well.
            assert site.materialize(ALERT) == "Success"
        _graph(browser, deployment.url, folder / "graph.png")
        _verification(browser, deployment.url, folder / "verification.png")


def _graph(browser: Browser, url: str, path: Path) -> None:
    with visiting(browser, url, height=1000) as site:
        site.open_graph()
        for asset in (*CHAIN, ALERT, DRILL):
            expect(site.node(asset).get_by_text("Materialized", exact=True)).to_be_in_viewport()
        _still(site)
        site.page.screenshot(path=path, animations="disabled")


def _verification(browser: Browser, url: str, path: Path) -> None:
    # Higher than the whole page, so that nothing scrolls; the picture ends below the table's rows.
    with visiting(browser, url, width=1280, height=1800) as site:
        page = site.page
        page.get_by_role("button", name="Hide navigation").click()
        site.open_asset("dump_verification")
        assert site.table("tables")
        until(lambda: _shows_freshness(site), 120, "the daemon did not look at freshness")
        page.get_by_role("button", name="Description").click()
        expect(page.get_by_text("read back to the last byte")).to_be_hidden()
        _still(site)
        last = page.get_by_role("row").filter(has=page.get_by_role("cell", name="rows", exact=True)).bounding_box()
        assert last is not None
        height = round(last["y"] + last["height"])
        page.screenshot(path=path, animations="disabled", clip={"x": 0, "y": 0, "width": 1280, "height": height})


def _shows_freshness(site: Site) -> bool:
    """Whether the page, reloaded, shows freshness, which the daemon evaluates from time to time."""
    site.page.reload()
    assert site.table("tables")
    return site.page.get_by_text("Passing").count() == 2


def _still(site: Site) -> None:
    """Wait until the page loads nothing and shows no notification, with the mouse away from all buttons."""
    site.page.mouse.move(0, 0)
    expect(site.page.get_by_text("Loading")).to_have_count(0)
    expect(site.page.get_by_role("region", name="Notifications").get_by_role("listitem")).to_have_count(0)
    site.page.wait_for_load_state("networkidle")


if __name__ == "__main__":
    take(FOLDER)
