"""MkDocs hook that checks the built pages for unrendered Markdown and dead local links."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

log = logging.getLogger("mkdocs.hooks.rendered_pages")

# Bold text, code, links, mkdocstrings' directives and table rows that were not rendered.
STRAY = re.compile(r"\*\*|`|\]\(|\]\[|^:::|^\|.*\|$", re.MULTILINE)
VERBATIM = {"code", "pre", "script", "style", "svg", "title"}


class Page(HTMLParser):
    """The ids, links and text of one HTML page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.text: list[str] = []
        self._verbatim: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the ids and links of an element."""
        if tag in VERBATIM:
            self._verbatim.append(tag)
        for name, value in attrs:
            if value and name == "id":
                self.ids.add(value)
            elif value and (name == "href" or (tag == "img" and name == "src")):
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        """Leave an element whose text stands as it is."""
        if self._verbatim and self._verbatim[-1] == tag:
            self._verbatim.pop()

    def handle_data(self, data: str) -> None:
        """Collect text outside code."""
        if not self._verbatim:
            self.text.append(data)


def complaints(site: Path) -> list[str]:
    """Return one line for every piece of stray Markdown and every dead local link under `site`."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.resolve().rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: stray Markdown in {text.strip()!r}" for text in page.text if STRAY.search(text.strip())]
        found += [f"{name}: dead link {link}" for link in page.links if not _leads_somewhere(link, path, pages)]
    return found


def on_post_build(config: Any) -> None:
    """Warn about each complaint, which fails a strict build."""
    for complaint in complaints(Path(config.site_dir)):
        log.warning(complaint)


def _leads_somewhere(link: str, path: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    # The page for missing addresses has absolute links, because it is served at any depth.
    if parts.scheme or parts.netloc or parts.path.startswith("/"):
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if target in pages and parts.fragment:
        return unquote(parts.fragment) in pages[target].ids
    return target.exists()
