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

PAGES = {"README.md": (ROOT / "README.md").read_text(), **pages()}
RUNNABLE = {
    page: found for page, text in PAGES.items() if (found := [b for b in blocks(text) if b.is_runnable])
}
SHORTER = {
    "--steps 100000": "--steps 400",
    "--steps 200000": "--steps 600",
    "sweep smoke --out": "sweep smoke --steps 300 --out",
}
"""What README's commands are run with instead, since they are those of real runs."""
_AS_SHELL = 'set -euo pipefail\nrllib-hpo() { "$PYTHON" -m rllib_hpo.cli "$@"; }\n'


def test_a_mark_stands_before_a_block_that_can_run() -> None:
    for page, text in PAGES.items():
        marks = len(re.findall(r"^<!-- runnable -->$", text, re.MULTILINE))
        assert marks == len(RUNNABLE.get(page, [])), page
    assert {block.language for found in RUNNABLE.values() for block in found} == {"bash", "python"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", RUNNABLE)
def test_blocks_of_a_page_run_in_order(page: str, tmp_path: Path) -> None:
    for block in RUNNABLE[page]:
        text = block.text
        if page == "README.md":
            for real, short in SHORTER.items():
                text = text.replace(real, short)
        run(block._replace(text=text), tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "command", re.findall(r"`(rllib-hpo train --algorithm [a-z0-9-]+ --task [^`]+)`", PAGES["README.md"])
)
def test_commands_of_readme_train(command: str, tmp_path: Path) -> None:
    """Each trains for a few steps, all else as it says."""
    few = "warmup_steps=20 evaluation_every=40 evaluation_episodes=1 evaluation_max_episode_steps=20"
    options = " ".join(f"--set {setting}" for setting in few.split())
    run(Block("bash", f"{command} --steps 40 --out run {options}", True), tmp_path)


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
