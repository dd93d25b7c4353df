"""Test the table of the papers' claims: its files load, and cost what it says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from rllib_hpo.experiments.config.sweep_config import read_sweep

ROOT = Path(__file__).resolve().parents[3]
NOT_OF_A_PAPER = {"evidence", "smoke", "zoo"}


def rows() -> list[list[str]]:
    """Return the cells of each line of the table."""
    text = (ROOT / "docs" / "benchmarks" / "papers.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@cache
def cost(file: str) -> tuple[str, str]:
    """Return trials and steps of a sweep file, as `rllib-hpo sweep FILE --dry-run` counts them."""
    sweep = read_sweep(ROOT / file)
    steps = sum(trial.config.run.steps for trial in sweep.trials)
    return str(len(sweep.trials)), f"{steps / 1_000_000:g} M"


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[1]}"[:40])
def test_a_claim_costs_what_the_table_says(row: list[str]) -> None:
    paper, what, command, trials, steps = row
    assert paper in {"ICASSP", "arXiv", "v1", "MCMC-PO", "SQL", "ours"}
    assert what
    if command == "not there yet":
        assert (trials, steps) == ("-", "-")
        return
    named = re.fullmatch(r"`rllib-hpo sweep (tune_configs/[a-z-]+\.yaml)`", command)
    assert named, command
    assert (trials, steps) == cost(named[1])


def test_every_sweep_file_tests_a_claim() -> None:
    named = {Path(name).stem for row in rows() for name in re.findall(r"tune_configs/\S+?\.yaml", row[2])}
    assert named == {path.stem for path in (ROOT / "tune_configs").glob("*.yaml")} - NOT_OF_A_PAPER
