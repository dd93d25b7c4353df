"""Test the zoo: its files are what its rows and commands say, and its policies can be watched."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_hpo.algorithms.registry import BUILT_IN
from rllib_hpo.cli import main
from rllib_hpo.deployment import load_policy_file
from rllib_hpo.experiments.config.shipped import sweep_files
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.runs.zoo import FOLDER, INDEX, ROWS, residents
from rllib_hpo.results import check, read_rows
from rllib_hpo.rllib.evaluation import episode_seeds, evaluate
from rllib_hpo.tasks import make_env

ROOT = Path(__file__).resolve().parents[3]
ZOO = ROOT / FOLDER
ENTRIES: dict[str, dict[str, Any]] = json.loads((ZOO / INDEX).read_text())
ON_PENDULUM = [name for name, entry in ENTRIES.items() if entry["sweep"] == "zoo"]


@cache
def rows() -> list[dict[str, Any]]:
    return read_rows(ZOO / ROWS).to_pylist()


def test_each_algorithm_of_the_sweep_is_there() -> None:
    trials = read_sweep(sweep_files()["zoo"]).trials
    assert {trial.config.run.algorithm for trial in trials} <= set(BUILT_IN)
    assert {f"{trial.config.run.algorithm}-pendulum" for trial in trials} == set(ON_PENDULUM)
    files = sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file())
    assert files <= 8_000_000


def test_rows_are_complete() -> None:
    """Policies may be of several commits."""
    assert [problem for problem in check(read_rows(ZOO / ROWS)) if problem.kind != "mixed"] == []


@pytest.mark.parametrize("name", ENTRIES)
def test_a_policy_is_that_of_its_row_and_sweep(name: str) -> None:
    entry, policy = ENTRIES[name], load_policy_file(ZOO / f"{name}.safetensors").metadata
    assert (policy.algorithm, policy.task, policy.env_steps) == (
        entry["algorithm"],
        entry["task"],
        entry["env_steps"],
    )
    *command, sweep, only, chosen, seeds, seed = entry["command"].split()
    assert [*command, only, seeds, seed] == ["rllib-hpo", "sweep", "--only", "--seeds", "0"]
    assert chosen == f"task={policy.task},algorithm={policy.algorithm}"
    file = read_sweep(sweep_files().get(sweep, ROOT / sweep), seeds="0")
    assert file.name == entry["sweep"]
    (trial,) = file.only(task=policy.task, algorithm=policy.algorithm).trials
    assert trial.config.run.steps == policy.env_steps
    assert trial.config.settings == policy.parsed_settings()


@pytest.mark.parametrize(
    "name",
    [
        name if name == "sac-hpo-pendulum" else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in ON_PENDULUM
    ],
)
def test_a_policy_returns_what_its_row_says(name: str) -> None:
    """Pendulum's dynamics are smooth, so that another kind of CPU changes little."""
    entry, policy = ENTRIES[name], load_policy_file(ZOO / f"{name}.safetensors")
    keys = ("sweep", "algorithm", "task", "seed", "env_steps")
    (row,) = (row for row in rows() if all(row[key] == entry[key] for key in keys))
    settings = policy.actor.settings
    number = entry["env_steps"] // settings.evaluation_every
    seeds = episode_seeds(entry["seed"], number, settings.evaluation_episodes)
    played = evaluate(
        policy.actor, lambda: make_env(row["env_id"], training=False, step_cost=settings.cost), seeds
    )
    np.testing.assert_allclose(played.returns, row["returns"], rtol=0.02)


def run(*words: str) -> int:
    """Run `rllib-hpo WORDS` in this process; return its exit code."""
    sys.argv = ["rllib-hpo", *words]
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_policies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("zoo") == 0
    listed = capsys.readouterr().out
    assert all(one.name[:10] in listed for one in residents())


@pytest.mark.slow
def test_a_policy_is_filmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = tmp_path / "film.gif"
    assert run("enjoy", "sac-hpo-pendulum", "--video", str(film)) == 0
    assert "in 200 steps" in capsys.readouterr().out
    from PIL import Image

    with Image.open(film) as image:
        durations = []
        for frame in range(getattr(image, "n_frames", 1)):  # equal frames are merged
            image.seek(frame)
            durations.append(image.info["duration"])
    assert len(durations) > 20
    assert sum(durations) == pytest.approx(201 * 1000 / 30, rel=0.15)  # 30 steps a second; GIF has hundredths


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("sac-hpo-pendulm",), "Did you mean 'sac-hpo-pendulum'?"),
        (("sac-hpo-pendulum",), "There is no display for a window here"),
        (("pyproject.toml", "--video", "x.gif"), "cannot be read as safetensors"),
    ],
)
def test_mistakes_end_in_one_sentence(
    words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert run("enjoy", *words) == 2
    assert says in " ".join(capsys.readouterr().err.split())
