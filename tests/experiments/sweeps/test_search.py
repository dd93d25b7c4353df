"""Test the search scripts of tune_configs/search, run as a user runs them, and their command line."""

from __future__ import annotations

import json
import runpy
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune

from rllib_hpo.experiments.sweeps import search
from rllib_hpo.results import read_rows

SCRIPTS = Path(__file__).resolve().parents[3] / "tune_configs" / "search"
SPACE = {"step_size": tune.loguniform(0.02, 0.5), "leapfrog_steps": tune.randint(1, 5)}
TINY = {
    "hidden_units": 16,
    "train_batch_size_per_learner": 16,
    "replay_capacity": 10_000,
    "warmup_steps": 40,
    "evaluation_every": 100,
    "evaluation_episodes": 1,
    "checkpoint_every": 100,
    "steps_per_iteration": 100,
}


# --- the command line ---


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    return search.options("A search.", SPACE, steps=100, num_samples=3)


def test_what_is_set_is_not_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    given = parsed(monkeypatch, "--out", out, "--set", "leapfrog_steps=2", "--set", "lr=1e-3")
    assert list(given.space) == ["step_size"]
    config = search.configure(given)
    assert (config.leapfrog_steps, config.lr, config.seed) == (2, 1e-3, None)
    assert (given.steps, given.num_samples, config.env) == (100, 3, "Hopper-v4")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "stepsize=1"], "did you mean 'step_size'"),
        (["--set", "lr=-1"], "lr=-1 must be"),
        (["--set", "lr"], "lr must be NAME=VALUE"),
        (["--task", "hoper"], "hopper"),
        (["--set", "step_size=0.1", "--set", "leapfrog_steps=1"], "nothing is left to search"),
    ],
)
def test_mistakes_are_a_sentence(
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(monkeypatch, "--out", str(tmp_path / "out"), *arguments)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


# --- the scripts ---


def run(name: str, out: Path, steps: int, num_samples: int) -> list[str]:
    """Return the lines that the script prints."""
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    sizes = ["--steps", str(steps), "--num-samples", str(num_samples)]
    command = [sys.executable, SCRIPTS / name, "--task", "Pendulum-v1", *sizes, "--out", out, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def histories(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each trial, in order, with their configurations."""
    trials = defaultdict(list)
    for row in read_rows(out / "results").to_pylist():
        trials[row["trial_id"]].append({**row, **json.loads(row["config_json"])})
    return {name: sorted(rows, key=lambda row: row["env_steps"]) for name, rows in trials.items()}


def assert_reports(lines: list[str], best: dict[str, Any], space: list[str]) -> list[str]:
    """Check that the table begins with the best trial, and return the command, which has its settings."""
    title = next(i for i, line in enumerate(lines) if line.startswith("The best of"))
    first = next(line for line in lines[title:] if line.startswith("│"))
    assert f"{best['return_mean']:.1f}" in first
    command = shlex.split(lines[-1])
    assert command[:6] == ["rllib-hpo", "train", "--algorithm", "sac-hpo", "--task", "Pendulum-v1"]
    flags = dict(word.split("=", 1) for word in command if "=" in word)
    assert {name: yaml.safe_load(flags[name]) for name in space} == {name: best[name] for name in space}
    assert flags.keys() == TINY.keys() | set(space)
    return command


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(script: Path) -> None:
    if "optuna" in script.stem:
        pytest.importorskip("optuna")
    assert "SPACE" in runpy.run_path(str(script))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_asha_stops_what_is_worse(tmp_path: Path) -> None:
    lines = run("asha.py", tmp_path / "out", steps=900, num_samples=6)
    trials = histories(tmp_path / "out")
    ends = sorted(rows[-1]["env_steps"] for rows in trials.values())
    assert len(ends) == 6
    assert ends[0] in (100, 300)
    assert ends[-1] == 900
    best = max((rows[-1] for rows in trials.values()), key=lambda row: row["return_mean"])
    assert_reports(lines, best, ["momentum_std_explore", "step_size"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pbt_clones_and_reseeds(tmp_path: Path) -> None:
    """After the exploit, the clone has its own settings, rows and draws."""
    lines = run("pbt.py", tmp_path / "out", steps=300, num_samples=4)
    trials = histories(tmp_path / "out")
    assert len(trials) == 4
    searched = ["momentum_std_explore", "step_size"]
    exploits = list((tmp_path / "out" / "tune").glob("pbt_policy_*.txt"))
    assert exploits
    for file in exploits:
        trial = file.stem.removeprefix("pbt_policy_")
        *_, donors, mine = json.loads(file.read_text().splitlines()[-1])
        # A trial's last exploit was at 100 or at 200 steps; the row at 300 is after it.
        first, last = trials[trial][0], trials[trial][-1]
        assert {name: last[name] for name in searched} == {name: mine[name] for name in searched}
        assert all(mine[name] != donors[name] and last[name] != first[name] for name in searched)
    for rows in trials.values():
        assert [row["env_steps"] for row in rows] == [0, 100, 200, 300]
        assert len({row["seed"] for row in rows}) == 1
    assert len({rows[0]["seed"] for rows in trials.values()}) == 4
    for at_step in zip(*trials.values(), strict=True):
        assert len({row["return_mean"] for row in at_step}) == 4
    best = max((rows[-1] for rows in trials.values()), key=lambda row: row["return_mean"])
    assert_reports(lines, best, searched)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_optuna_suggests_within_the_space(tmp_path: Path) -> None:
    """Its best configuration is a working command."""
    pytest.importorskip("optuna")
    lines = run("optuna_search.py", tmp_path / "out", steps=100, num_samples=4)
    space = runpy.run_path(str(SCRIPTS / "optuna_search.py"))["SPACE"]
    trials = histories(tmp_path / "out")
    assert len(trials) == 4
    for rows in trials.values():
        for name, domain in space.items():
            assert domain.lower <= rows[0][name] <= domain.upper
    assert len({rows[0]["alpha"] for rows in trials.values()}) == 4
    best = max((rows[-1] for rows in trials.values()), key=lambda row: row["return_mean"])
    command = assert_reports(lines, best, list(space))
    command[:1] = [sys.executable, "-m", "rllib_hpo.cli"]
    subprocess.run([*command, "--steps", "100", "--wandb", "disabled"], check=True, timeout=300)
    config = yaml.safe_load((tmp_path / "out" / "best" / "config.yaml").read_text())
    assert {name: config[name] for name in space} == {name: best[name] for name in space}
