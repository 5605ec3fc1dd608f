"""The hooks of the site (mkdocs.yml): pages from the top folder of the repository, and the links to and from them.

``make site`` builds the site. README.md is its first page. Links to code become plain code, because the site has only
pages.
"""

from __future__ import annotations

import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.pages import DOCS, REPOSITORY

#: File in the top folder -> its page.
TOP = {"README.md": "index.md"} | {
    name: name for name in ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_PICTURE = re.compile(r"(!\[[^\]]*\]\()docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top folder."""
    for name, page in TOP.items():
        content = _PICTURE.sub(r"\1", (REPOSITORY / name).read_text("utf-8"))
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace links to files of the repository by links to their pages on the site."""
    uri = page.file.src_uri
    source = next((name for name, at in TOP.items() if at == uri), f"docs/{uri}")

    def replaced(match: re.Match[str]) -> str:
        return f"[{match[1]}]({target})" if (target := site_target(source, match[2])) else match[1]

    return _LINK.sub(replaced, markdown)


def site_target(source: str, link: str) -> str | None:
    """The target on the site of a link in the file ``source``; ``None`` if the site has no page for it.

    Args:
        source: path in the repository.
        link: as written in the file.
    """
    path, hash_, anchor = link.partition("#")
    if "://" in link or link.startswith("mailto:") or not path:
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = TOP.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
    if page is None or (page.endswith("/") or (DOCS / page).is_dir()):
        return None
    here = TOP.get(source) or source.removeprefix("docs/")
    return posixpath.relpath(page, posixpath.dirname(here) or ".") + hash_ + anchor
