"""The site builds without a warning, loads nothing from outside, and its titles and links lead to the right pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mkdocs.utils.yaml import yaml_load

from tools.pages import DOCS, REPOSITORY
from tools.site import TOP, site_target

PAGES = sorted([*DOCS.rglob("*.md"), *(REPOSITORY / name for name in TOP)])
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = (re.sub(r"[`*]|\]\(.*?\)|&lt;|[<>]", "", title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_into_the_repository_has_a_target(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(
    ("source", "link", "target"),
    [
        ("README.md", "docs/restoring.md#undo", "restoring.md#undo"),
        ("docs/security.md", "../SECURITY.md", "SECURITY.md"),
        ("docs/adr/0001.md", "../glossary.md", "../glossary.md"),
        ("docs/adr/0001.md", "../../README.md", "../index.md"),
        ("docs/drills.md", "#where", "#where"),
        ("docs/drills.md", "https://a.example/b", "https://a.example/b"),
        ("README.md", "LICENSE", None),
        ("docs/drills.md", "../deploy/stack.yml", None),
    ],
)
def test_a_link_becomes_that_of_its_page(source: str, link: str, target: str | None) -> None:
    assert site_target(source, link) == target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # Material announces its end of life on standard error; the plugin's version is locked.
    built = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_loads_nothing_from_outside(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']?(https?://[^"'\s>]+)""")
    found = {
        address
        for page in site.rglob("*.html")
        for address in fetched.findall(page.read_text("utf-8"))
        if "rel=canonical" not in address
    }

    assert len(list(site.rglob("*.html"))) > 30
    assert found == set()


def test_every_page_is_in_the_navigation() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r"([\w./-]+\.md)$", str(text), re.MULTILINE))

    assert named == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | set(TOP.values())


@pytest.mark.parametrize(
    ("asked", "page"),
    [
        ("restore one table", "restore-one-table.html"),
        ("rotate a password", "rotate-password.html"),
        ("add a check", "add-a-check.html"),
    ],
)
def test_common_questions_are_titles(asked: str, page: str, site: Path) -> None:
    """In the navigation and in the search index."""
    titles = re.findall(r"- ([\w ]+): ([\w/-]+)\.md$", (REPOSITORY / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))

    assert asked in {title.lower() for title, name in titles if f"{name}.html" == page}
    assert asked in {entry["title"].lower() for entry in index["docs"] if entry["location"] == page}


def test_links_are_checked_strictly() -> None:
    config = yaml_load((REPOSITORY / "mkdocs.yml").read_text("utf-8"))

    assert set(config["validation"]["links"].values()) == {"warn"}
    assert config["theme"]["font"] is False
