"""Test the files that a repository has beside its code: hooks, images, templates, workflow, changelog."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import rllib_hpo

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGES = [ROOT / "Dockerfile", ROOT / "cluster" / "Dockerfile"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


# --- pre-commit ---------------------------------------------------------------------------------------------------


def test_hooks_run_what_make_lint_runs() -> None:
    hooks = [hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    recipe = (ROOT / "Makefile").read_text().split("\nlint: setup")[1].split("\n\n")[0].splitlines()[1:]
    commands = {line.strip().replace("$(BIN)", ".venv/bin").replace("$$", "$") for line in recipe}
    entries = {re.sub(r"^bash -c '(.*)'$", r"\1", hook["entry"]) for hook in hooks}
    assert entries == commands
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


# --- images -------------------------------------------------------------------------------------------------------


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, as (keyword, rest); comments and line ends are resolved."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word.upper(), rest)
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.parent.name)
def test_image_keeps_the_rules_of_hadolint(path: Path) -> None:
    steps = instructions(path)
    assert {word for word, _ in steps} <= {
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "FROM",
        "RUN",
        "USER",
        "WORKDIR",
    }
    for word, rest in steps:
        if word == "FROM":
            assert re.fullmatch(r"[a-z/]+:(?!latest)\S+", rest), "DL3006, DL3007: a tag"
        if word == "WORKDIR":
            assert rest.startswith("/"), "DL3000: an absolute path"
        if word in ("CMD", "ENTRYPOINT"):
            assert isinstance(yaml.safe_load(rest), list), "DL3025: a JSON list"
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest, "DL3015"
                assert "rm -rf /var/lib/apt/lists/*" in rest, "DL3009"
            for install in re.findall(r"pip install[^&]*", rest):
                assert "--no-cache-dir" in install, "DL3042"
    users = [rest for word, rest in steps if word == "USER"]
    assert users, "DL3002: a user"
    assert users[-1] not in ("root", "0"), "DL3002: not root"


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.parent.name)
def test_image_copies_what_the_context_has(path: Path) -> None:
    """Test COPY against .dockerignore, which leaves everything out but what it names."""
    ignored, *named = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    kept = {line.removeprefix("!") for line in named if line.startswith("!")}
    for word, rest in instructions(path):
        if word == "COPY":
            sources = [part for part in shlex.split(rest) if not part.startswith("--")][:-1]
            assert set(sources) <= kept
            assert all((ROOT / source).exists() for source in sources)


# --- releases -----------------------------------------------------------------------------------------------------


def test_changelog_keeps_its_format() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    found = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d\d-\d\d)", heading) for heading in headings
    ]
    assert all(found), headings
    versions = [match[1] for match in found if match]
    assert versions == sorted(versions, key=lambda version: tuple(map(int, version.split("."))), reverse=True)
    release, _, development = VERSION.partition(".dev")
    assert release in versions
    assert bool(development) == (f"[{release}] - unreleased" in headings)
    assert [match[2] for match in found if match][1:].count("unreleased") == 0
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_all_files_name_the_same_version() -> None:
    assert load(ROOT / "CITATION.cff")["version"] == VERSION
    assert rllib_hpo.__version__ == VERSION


def test_release_is_published_without_a_token_after_its_wheel_has_trained() -> None:
    workflow = load(ROOT / ".github" / "workflows" / "release.yml")
    assert workflow[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    scripts = [step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step]
    for script in scripts:
        subprocess.run(["bash", "-n", "-c", script], check=True)
    assert any("rllib-hpo train" in script for script in scripts)
    assert not re.search(r"secrets\.|password:", (ROOT / ".github/workflows/release.yml").read_text())


# --- templates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [path for path in TEMPLATES if path.name != "config.yml"], ids=lambda path: path.stem
)
def test_issue_template_has_what_github_wants(path: Path) -> None:
    form = load(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["type"] in ("input", "textarea") and part["attributes"]["label"] for part in fields)
