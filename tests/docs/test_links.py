"""What README and docs point at exists."""

from __future__ import annotations

import re

import pytest
from blocks import PAGES, ROOT

# Where a path in backticks may begin, beside the page's own folder.
BASES = ("", "zcode_plugin")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|sh|md|yaml|svg|png)|[\w-]+/(?:[\w-]+/)*)`")


def anchors(text: str) -> set[str]:
    """Those that a forge gives the headings of a page."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    path = ROOT / page
    for link in _LINK.findall(path.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES)
def test_paths(page: str) -> None:
    for name in _PATH.findall((ROOT / page).read_text()):
        bases = [(ROOT / page).parent, *(ROOT / base for base in BASES)]
        found = [base for base in bases if (base / name).exists()]
        assert found or name.split("/")[0] in MADE_BY_USERS, f"{page} names {name}"


MADE_BY_USERS = {"runs", "text", "data", "checkpoints", "cache", "raw", "report_figures"}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"]({page.removeprefix('docs/')})" in index, f"docs/README.md lacks {page}"
