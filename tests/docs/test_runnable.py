"""Run the blocks that are marked as runnable, build the site, and read it from disk."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, Block, blocks, pages

RUNNABLE = {
    page: found for page, text in pages().items() if (found := [b for b in blocks(text) if b.is_runnable])
}
_AS_SHELL = 'set -euo pipefail\nrllib-hpo() { "$PYTHON" -m rllib_hpo.cli "$@"; }\n'


def test_a_mark_stands_before_a_block_that_can_run() -> None:
    for page, text in pages().items():
        marks = len(re.findall(r"^<!-- runnable -->$", text, re.MULTILINE))
        assert marks == len(RUNNABLE.get(page, [])), page
    assert {block.language for found in RUNNABLE.values() for block in found} == {"bash", "python"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", RUNNABLE)
def test_blocks_of_a_page_run_in_order(page: str, tmp_path: Path) -> None:
    for block in RUNNABLE[page]:
        run(block, tmp_path)


def run(block: Block, folder: Path) -> None:
    """Run a block in a folder, with this checkout."""
    command = {"bash": ["bash", "-c", _AS_SHELL + block.text], "python": [sys.executable, "-c", block.text]}
    done = subprocess.run(
        command[block.language],
        cwd=folder,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site."""
    pytest.importorskip("mkdocs", reason="make docs installs mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.exhaustive
def test_site_loads_nothing_from_a_network(site: Path) -> None:
    built = list(site.rglob("*.html"))
    assert len(built) > len(pages())
    for page in built:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?([^">\s]+)', text)
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|preload|icon)"?[^>]*href="?([^">\s]+)', text)
        assert [address for address in loaded if address.startswith(("http:", "https:", "//"))] == []


@pytest.mark.exhaustive
def test_site_is_searched_from_disk(browser: Any, site: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{(site / 'index.html').as_uri()}?q=leapfrog")
    found = WebDriverWait(browser, 60).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__item a")
    )
    assert "sac-hpo" in " ".join(link.get_attribute("href") for link in found)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
