"""Drives Dagster's UI in a real browser, as a person does. The tests say what must be visible.

Elements are found by words, roles and links wherever the UI has them. Every wait is for something on the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
_SECONDS = 30
#: A run starts its own process, on a machine that may be busy.
_RUN_SECONDS = 120
_OPTIONS = (
    "--no-sandbox",  # needed under root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    expect.set_options(timeout=_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Browser, url: str, width: int = 1440, height: int = 800) -> Iterator[Site]:
    """The UI in a new browser context, as a person sees it the first time."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height},
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
    )
    context.set_default_timeout(_SECONDS * 1000)
    try:
        site = Site(context.new_page())
        site.page.goto("/")
        yield site
    finally:
        context.close()


@dataclass(frozen=True)
class Site:
    """The UI in one browser tab."""

    page: Page

    def choose(self, entry: str) -> None:
        """Choose from the navigation."""
        self.page.get_by_role("navigation").get_by_text(entry, exact=True).click()

    # ---------------------------------------------------------------- runs

    def launch_job(self, name: str) -> str:
        """Launch a job from its page, follow its run, and say how it ended."""
        self.choose("Jobs")
        self.page.get_by_role("link", name=name).click()
        return self._launch("Materialize all")

    def launch_from_launchpad(self, name: str, config: str) -> tuple[str, str]:
        """Launch a job with this config, follow the run; return the config that was there, and how the run ended."""
        self.choose("Jobs")
        self.page.get_by_role("link", name=name).click()
        self._button("arrow_drop_down").last.click()
        self.page.get_by_role("menuitem", name="Open launchpad").click()
        editor = self.page.locator(".CodeMirror").last
        expect(editor).to_contain_text("config:")
        before = editor.inner_text()
        editor.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(config)
        self.page.get_by_role("button", name="Materialize").last.click()
        return before, self.outcome()

    def launch_as_it_stands(self, name: str) -> str:
        """Launch a job without assets from its launchpad, follow the run, and say how it ended."""
        self.choose("Jobs")
        self.page.get_by_role("link", name=name).click()
        self.page.get_by_role("tab", name="Launchpad").click()
        self.page.get_by_role("button", name="Launch Run").click()
        return self.outcome()

    def materialize(self, asset: str) -> str:
        """Materialize one asset from its page, follow the run, and say how it ended."""
        self.open_asset(asset)
        return self._launch("Materialize")

    def _launch(self, button: str) -> str:
        self.page.get_by_role("button", name=button).click()
        notification = self.page.get_by_role("listitem").filter(has_text="Launched run")
        notification.get_by_role("link", name="View").click()
        return self.outcome()

    def outcome(self) -> str:
        """Wait for the end of the run on this page; return how it ended."""
        expect(self.page).to_have_url(re.compile("/runs/"))
        ended = self.page.get_by_text(re.compile("^(Success|Failure|Canceled)$"))
        expect(ended).to_be_visible(timeout=_RUN_SECONDS * 1000)
        return ended.inner_text()

    @contextmanager
    def new_tab(self, link: Locator) -> Iterator[Site]:
        """The page that a link opens in a new tab."""
        with self.page.expect_popup() as opened:
            link.click()
        yield Site(opened.value)
        opened.value.close()

    # ---------------------------------------------------------------- the graph

    def open_graph(self) -> None:
        """Open the graph of all assets, with nothing beside it; expanding its groups brings all of it into view."""
        self.choose("Lineage")
        self.page.get_by_role("button", name="Hide navigation").click()
        self._button("panel_show_right").click()
        self._button("settings").last.click()
        self.page.get_by_role("menuitem", name="Expand all groups").click()
        self.page.keyboard.press("Escape")
        expect(self.page.get_by_role("menu")).to_have_count(0)
        self.page.mouse.move(0, 0)  # the arrows of a hovered asset are drawn twice
        expect(self.nodes.first).to_be_visible()

    @property
    def nodes(self) -> Locator:
        """The assets in the graph."""
        return self.page.locator("foreignObject").filter(has_text="Latest event")

    @property
    def edges(self) -> Locator:
        """The arrows in the graph."""
        return self.page.locator("path[marker-end]")

    def node(self, asset: str) -> Locator:
        """One asset in the graph."""
        return self.nodes.filter(has=self.page.get_by_text(asset, exact=True))

    def connected(self, assets: tuple[str, ...]) -> set[tuple[str, str]]:
        """For each arrow, the asset whose right side it leaves and the asset whose left side it points to."""
        boxes = {asset: _box(self.node(asset)) for asset in assets}
        ends = [_ends(edge.get_attribute("d") or "") for edge in self.edges.all()]
        return {
            (
                next(asset for asset, box in boxes.items() if box.touched(start, box.right)),
                next(asset for asset, box in boxes.items() if box.touched(end, box.left)),
            )
            for start, end in ends
        }

    def _button(self, icon: str) -> Locator:
        """A button that has only an icon."""
        return self.page.get_by_role("button").filter(has=self.page.get_by_role("img", name=icon, exact=True))

    # ---------------------------------------------------------------- an asset

    def open_asset(self, name: str) -> None:
        self.page.goto(f"/assets/{name}")

    def metadata(self, key: str) -> Locator:
        """A value on an asset's page."""
        row = self.page.get_by_role("row").filter(has=self.page.get_by_role("cell", name=key, exact=True))
        return row.get_by_role("cell").nth(2)

    def table(self, key: str) -> list[tuple[str, ...]]:
        """A table among the metadata on an asset's page."""
        table = self.metadata(key).get_by_role("table")
        expect(table).to_be_visible()
        rows = table.get_by_role("row").filter(has=self.page.get_by_role("cell")).all()
        return [tuple(" ".join(cell.split()) for cell in row.get_by_role("cell").all_inner_texts()) for row in rows]

    def cut_off(self) -> list[str]:
        """The keys of the metadata on an asset's page whose values are cut off."""
        rows = self.page.get_by_role("row").filter(has=self.page.get_by_role("cell"))
        expect(rows.first).to_be_visible()
        cells = [row.get_by_role("cell") for row in rows.all() if row.get_by_role("cell").count() == 3]
        return [cell.first.inner_text() for cell in cells if self.reaches_out(cell.nth(2))]

    def reaches_out(self, what: Locator) -> bool:
        """Whether a part of the element extends to the right beyond it, a clipping ancestor or the window."""
        reaches: bool = what.evaluate(
            """what => {
                const inside = (part, whole) => part.getBoundingClientRect().right <= whole + 1;
                for (let box = what; box; box = box.parentElement)
                    if (box === what || getComputedStyle(box).overflowX !== "visible") {
                        const edge = Math.min(box.getBoundingClientRect().right, innerWidth);
                        if (![what, ...what.querySelectorAll("*")].every(part => inside(part, edge))) return true;
                    }
                return false;
            }"""
        )
        return reaches

    @contextmanager
    def markdown(self, key: str) -> Iterator[Locator]:
        """The dialog with Markdown that is too long for the metadata on an asset's page."""
        self.metadata(key).get_by_text("[Show Markdown]").click()
        dialog = self.page.get_by_role("dialog")
        yield dialog
        self.page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)

    def plot(self, key: str) -> Locator:
        """The plot of a number among the metadata on an asset's page."""
        self.page.get_by_text("Plots", exact=True).first.click()
        title, canvas = self.page.get_by_text(key, exact=True), self.page.locator("canvas")
        return self.page.locator("div").filter(has=title).filter(has=canvas).last.locator("canvas")

    def open_check(self, name: str) -> None:
        """Open a check's page, from its asset's page."""
        self.page.get_by_role("tab", name="Checks", exact=True).click()
        self.page.get_by_text(name, exact=True).first.click()

    def verdict(self, word: str) -> Locator:
        """The result on the open page of a check, if it is ``word``."""
        return self.page.get_by_text("Evaluation result").locator("..").get_by_text(word, exact=True)


def colour(words: Locator) -> str:
    """The colour of a text: red, green or other."""
    computed: str = words.evaluate("words => getComputedStyle(words).color")
    red, green, blue = (float(number) for number in re.findall(r"[\d.]+", computed)[:3])
    if max(green, blue) < red:
        return "red"
    return "green" if max(red, blue) < green else "other"


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def touched(self, point: tuple[float, float], side: float) -> bool:
        # An arrow ends before the side that it points to, to leave room for its head.
        return abs(point[0] - side) < 10 and self.top < point[1] < self.bottom


def _box(node: Locator) -> _Box:
    x, y, width, height = (float(node.get_attribute(name) or "nan") for name in ("x", "y", "width", "height"))
    return _Box(x, x + width, y, y + height)


def _ends(path: str) -> tuple[tuple[float, float], tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return (numbers[0], numbers[1]), (numbers[-2], numbers[-1])
