"""Read the pages of the documentation, and import the modules of `docs/hooks`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "hooks"))

import links  # noqa: E402
import reference  # noqa: E402

__all__ = ["DOCS", "ROOT", "Block", "blocks", "links", "pages", "reference"]


class Block(NamedTuple):
    """A block of code."""

    language: str
    text: str
    is_runnable: bool


def pages() -> dict[str, str]:
    """Return Markdown by path on the site, but for the pages made from the code."""
    own = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
    return {**own, **links.included_pages()}


def blocks(markdown: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    for mark, language, text in re.findall(
        r"^(<!-- runnable -->\n)?```(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL
    ):
        yield Block(language, text, bool(mark))
