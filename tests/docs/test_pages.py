"""Test that what the documentation names exists, and that the reference is complete."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from rllib_hpo.algorithms.registry import BUILT_IN, find_settings
from rllib_hpo.experiments.config.run_config import RunSettings
from tests.docs.pages import DOCS, ROOT, blocks, links, pages, reference

PAGES = {**pages(), "README.md": (ROOT / "README.md").read_text()}
COMMANDS = dict(reference.commands())
SETTINGS = {*RunSettings.model_fields}.union(*(find_settings(name).model_fields for name in BUILT_IN))
OF_PACKAGES = {"boldness"}
"""Settings of the algorithms that the pages show as other packages'."""


@functools.cache
def generated() -> dict[str, str]:
    """Return the pages of the reference, which take a second to make."""
    return reference.pages()


def calls(markdown: str) -> Iterator[str]:
    """Yield the calls of `rllib-hpo` in a page's blocks and in its inline code."""
    texts = [block.text for block in blocks(markdown)] + re.findall(r"`(rllib-hpo [^`]+)`", markdown)
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?:^|[\s(/])(rllib-hpo(?: [^#]*)?)", line):
                yield from re.split(r"\s(?:&&|\|\|?|;)\s|\)", call)[:1]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    for call in calls(PAGES[page]):
        words = call.split()[1:]
        name = next((f"rllib-hpo {' '.join(words[:n])}" for n in (2, 1) if _is_command(words[:n])), "")
        options = set(re.findall(r"(?<=\s)--[a-z-]+", call))
        if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            assert options <= {"--help", "--version", "--install-completion"}, call
            continue
        assert name, f"{call!r} names no command"
        assert options <= _options(name), f"{call!r} has an option that {name} has not"


def _is_command(words: list[str]) -> bool:
    return f"rllib-hpo {' '.join(words)}" in COMMANDS


def _options(name: str) -> set[str]:
    both = (
        [name, "rllib-hpo sweep"] if name == "rllib-hpo submit" else [name]
    )  # submit hands on those of sweep
    parameters = [parameter for command in both for parameter in COMMANDS[command].params]
    return {"--help", *(option for p in parameters for option in (*p.opts, *p.secondary_opts))}


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_commands_set_exist(page: str) -> None:
    named = {name for call in calls(PAGES[page]) for name in re.findall(r"--set '?(\w+)=", call)}
    assert named <= SETTINGS | OF_PACKAGES


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    """Test the quick part of what `make docs` checks: files and pages, without anchors."""
    site = {*PAGES, *generated()}
    for path in links.repository_links(PAGES[page], page):
        links.page_of(path)  # raises where there is no such file
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+\.md)", links.rewrite(PAGES[page], page)):
        uri = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        assert uri in site or uri.startswith("files/"), target


def test_navigation_has_every_page_once() -> None:
    def leaves(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for child in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(child)

    named = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    added = reference.settings_navigation()[1:]  # by the hook, as the pages of the Python interface
    made = [uri for uri in generated() if not uri.startswith("reference/api/")]
    assert sorted([*named, *added]) == sorted([*pages(), *made])


# --- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", BUILT_IN)
def test_every_setting_of_an_algorithm_is_explained_once(algorithm: str) -> None:
    rows = table_rows(reference.settings_page(algorithm))
    assert sorted(row[0] for row in rows) == sorted(
        f"`{name}`" for name in find_settings(algorithm).model_fields
    )
    assert all(values and meaning for _, values, _, meaning in rows)


@pytest.mark.parametrize(
    ("page", "columns"),
    [
        ("settings/index.md", 4),
        ("sweep-file.md", 4),
        ("search-file.md", 4),
        ("results.md", 5),
        ("metrics.md", 2),
        ("tasks.md", 5),
        ("zoo.md", 5),
    ],
)
def test_every_row_of_the_reference_says_what_it_means(page: str, columns: int) -> None:
    rows = [row for row in table_rows(generated()[f"reference/{page}"]) if len(row) == columns]
    assert rows
    meaning = 1 if page == "tasks.md" else -1
    assert [row[0] for row in rows if not row[meaning]] == []


def test_every_command_and_option_is_explained() -> None:
    text = reference.cli_page()
    assert all(f"\n## `{name}`\n" in text for name in COMMANDS)
    assert [row for row in table_rows(text) if not row[-1]] == []


def test_values_are_said_in_words() -> None:
    schema = find_settings("sac-hpo").model_json_schema()["properties"]
    assert reference.values(schema["gamma"], {}) == "number ≥ 0, ≤ 1"
    assert reference.values(schema["step_size"], {}) == "number > 0 or list of number > 0"
    assert reference.values(schema["force_gate"], {}) == "`gated` or `none`"
    assert reference.values(schema["tempering"], {}) == "true or false"


def table_rows(markdown: str) -> list[list[str]]:
    """Return the cells of the rows of all tables of a page, without their heads."""
    rows = []
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        cells = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:])
        rows += [[cell.strip() for cell in row] for row in cells]
    return rows


# --- links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "link", "expected"),
    [
        (
            "tutorials/tuning.md",
            "../../rllib_hpo/algorithms/td3.py",
            "../reference/api/rllib_hpo/algorithms/td3.md",
        ),
        ("soft-q-learning.md", "../rllib_hpo/tasks/soft_q", "reference/api/rllib_hpo/tasks/soft_q/index.md"),
        ("soft-q-learning.md", "../tune_configs/safe.yaml", "files/tune_configs/safe.yaml.md"),
        ("concepts/resume.md", "../../cluster/README.md#stop", "../tutorials/clusters.md#stop"),
        ("tutorials/clusters.md", "Dockerfile", "../files/cluster/Dockerfile.md"),
        ("maintainers/contributing.md", "docs/limits.md", "../limits.md"),
        (
            "maintainers/release.md",
            "../../.github/workflows/release.yml",
            "../files/github/workflows/release.yml.md",
        ),
        ("index.md", "concepts/resume.md", "concepts/resume.md"),
        ("index.md", "https://arxiv.org", "https://arxiv.org"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(uri: str, link: str, expected: str) -> None:
    assert links.rewrite(f"[x]({link})", uri) == f"[x]({expected})"


def test_links_in_code_are_left_alone() -> None:
    text = "````text\n```\n[x](../nowhere.py)\n```\n````\n"
    assert links.rewrite(text, "limits.md") == text


def test_a_link_to_nothing_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"rllib_hpo/nowhere\.py"):
        links.rewrite("[x](../rllib_hpo/nowhere.py)", "limits.md")


def test_reference_is_not_committed() -> None:
    assert not (DOCS / "reference").exists()


# --- README -------------------------------------------------------------------------------------------------------

README = PAGES["README.md"]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_links_of_readme_lead_somewhere() -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#\s]+)", README):
        assert (ROOT / path).exists(), path


def test_readme_has_every_algorithm() -> None:
    named = re.findall(r"`rllib-hpo train --algorithm ([a-z0-9-]+) --task", README)
    assert sorted(named) == sorted(BUILT_IN)


def test_readme_brings_a_cluster_up_as_its_page_does() -> None:
    """tests/cluster runs the commands of that page."""
    section = README.split("## A cluster in six commands")[1].split("\n## ")[0]
    commands = next(blocks(section)).text.splitlines()
    assert len(commands) == 6
    page = [
        line.split("  #")[0].rstrip()
        for block in blocks(PAGES["tutorials/clusters.md"])
        for line in block.text.splitlines()
    ]
    assert [command for command in commands if command not in page] == []
