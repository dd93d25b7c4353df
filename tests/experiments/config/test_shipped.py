"""Test the files that come with the package: found by name, listed with their cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rllib_hpo.cli import main
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.config.shipped import (
    PROJECT_FILES,
    find_sweep_file,
    project_file,
    shipped_folder,
    sweep_costs,
    sweep_files,
)
from rllib_hpo.experiments.config.sweep_config import read_sweep

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("given", ["smoke", "smoke.yaml"])
def test_a_sweep_is_found_by_name(given: str) -> None:
    assert find_sweep_file(given) == ROOT / "tune_configs" / "smoke.yaml"


def test_a_file_goes_before_a_name(tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").touch()
    assert find_sweep_file("smoke.yaml") == tmp_path / "smoke.yaml"
    assert find_sweep_file("./other/mine.yaml") == tmp_path / "other" / "mine.yaml"


def test_a_name_goes_before_a_folder(tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()  # which a checkout has
    assert find_sweep_file("zoo") == ROOT / "tune_configs" / "zoo.yaml"
    assert find_sweep_file("./zoo") == tmp_path / "zoo"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("eight-task", "Unknown sweep 'eight-task'. Did you mean 'eight-tasks'?"),
        ("tune_configs/smoke.yaml", "a sweep of that name comes with the package: `rllib-hpo sweep smoke`"),
    ],
)
def test_a_mistake_names_the_nearest(given: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        find_sweep_file(given)
    assert says in str(error.value)


def run(*words: str) -> int:
    """Run `rllib-hpo WORDS` in this process; return its exit code."""
    sys.argv = ["rllib-hpo", *words]
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_sweeps_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweeps") == 0
    listed = capsys.readouterr().out
    assert all(name[:12] in listed for name in sweep_files())
    assert run("sweeps", "smoke") == 0
    assert capsys.readouterr().out == (ROOT / "tune_configs" / "smoke.yaml").read_text()
    assert run("sweep", "smok") == 2
    assert "Did you mean 'smoke'?" in " ".join(capsys.readouterr().err.split())


def test_costs_are_of_the_files_as_they_are() -> None:
    """`python -m benchmarks.sweep_costs` measures those that are new or have changed."""
    costs = sweep_costs()
    assert costs.keys() <= sweep_files().keys()
    for name, cost in costs.items():
        trials = read_sweep(sweep_files()[name]).trials
        assert (cost.trials, cost.env_steps) == (
            len(trials),
            sum(trial.config.run.steps for trial in trials),
        ), name
        assert cost.core_hours > 0


def test_an_installation_without_the_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllib_hpo.experiments.config.shipped.PACKAGE", tmp_path / "rllib_hpo")
    with pytest.raises(UserError, match="has no folder tune_configs"):
        shipped_folder("tune_configs")


def test_files_of_the_checkout_are_taken_as_they_are() -> None:
    for name in PROJECT_FILES:
        assert project_file(name) == (ROOT / name).read_text()
