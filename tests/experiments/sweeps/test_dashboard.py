"""Test the W&B workspace of a sweep: read back from its file, rejected in one sentence, saved on a fake server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.cli import main
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.sweeps.dashboard import DIAGNOSTICS, LOSSES, SAFETY
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.experiments.sweeps.sweep import start_sweep
from rllib_hpo.experiments.tracking.training_metrics import flat_metrics, meaning
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import read_rows, write_row
from tests.experiments.fake_wandb import fake_server
from tests.experiments.lives import CLI, REPOSITORY
from tests.experiments.wandb_file import read_wandb_file
from tests.results.rows import make_row

pytest.importorskip("wandb_workspaces")

KEY = "5eed5a1adc0ffee5a1ad0ddba115eed5a1adbead"
SWEEP = """\
sweep: little
algorithms: [sac, sac-nf, sac-hpo]
tasks: [hopper, Pendulum-v1]
seeds: 0-1
variants:
  default: {}
"""
ABLATION = SWEEP.replace("[sac, sac-nf, sac-hpo]", "[sac-hpo]") + "  k-1: {settings: {leapfrog_steps: 1}}\n"
GOALS = """\
sweep: goals
algorithms: [sac]
tasks: [PointReach-v0]
seeds: 0-1
settings: {replay: her}
"""
MIXED = SWEEP + "  k-1: {settings: {leapfrog_steps: 1}, algorithms: [sac-hpo]}\n"


def planned(tmp_path: Path, text: str = SWEEP) -> Path:
    """Make the directory of a sweep that has not run yet."""
    file = tmp_path / "little.yaml"
    file.write_text(text)
    start_sweep(read_sweep(file), file, SweepFiles(tmp_path / "sweep"))
    return tmp_path / "sweep"


def run(*words: str) -> int:
    """Run `rllib-hpo dashboard WORDS` in this process; return its exit code."""
    sys.argv = ["rllib-hpo", "dashboard", *words]
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def section_of(view: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = view["spec"]["section"]
    return section


def panels(view: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the settings of each section's panels."""
    sections = section_of(view)["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def written(tmp_path: Path, text: str = SWEEP) -> dict[str, Any]:
    directory = planned(tmp_path, text)
    assert run(str(directory)) == 0
    view: dict[str, Any] = json.loads((directory / "dashboard.json").read_text())
    return view


def sections_of(directory: Path) -> dict[str, list[list[str]]]:
    """Return the metrics of each section's panels, of the workspace of a sweep."""
    assert run(str(directory)) == 0
    found = panels(json.loads((directory / "dashboard.json").read_text()))
    return {name: [panel["metrics"] for panel in of_section] for name, of_section in found.items()}


def test_sections_metrics_and_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = written(tmp_path)
    assert str(tmp_path / "sweep" / "dashboard.json") in capsys.readouterr().out
    found = panels(view)
    assert list(found) == ["hopper", "Pendulum-v1", "Sampler diagnostics", "Losses"]
    metrics = {name: [panel["metrics"] for panel in of_section] for name, of_section in found.items()}
    assert metrics["hopper"] == [["tasks/hopper/return_mean"]]
    assert metrics["Pendulum-v1"] == [["tasks/Pendulum-v1/return_mean"]]
    assert metrics["Sampler diagnostics"] == [[f"learner/{name}"] for name in DIAGNOSTICS]
    assert metrics["Losses"] == [[f"learner/{name}"] for name in LOSSES]
    section = section_of(view)
    assert section["settings"]["xAxis"] == "env_steps"
    for one in section["panelBankConfig"]["sections"]:
        assert one["localPanelSettings"]["xAxis"] == "env_steps"
        for panel in one["panels"]:
            assert panel["viewType"] == "Run History Line Plot"
            assert panel["config"]["xAxis"] == "env_steps"


def test_costs_stand_beside_returns_with_the_limit(tmp_path: Path) -> None:
    """Tasks without costs have none; a section shows multiplier and shield if an algorithm has them."""
    text = SWEEP.replace("[sac, sac-nf, sac-hpo]", "[sac, sac-hpo-lagrangian]").replace(
        "Pendulum-v1", "halfcheetah-speed1"
    )
    directory = planned(tmp_path, text.replace("hopper", "ant-torque25"))
    assert run(str(directory)) == 0
    found = panels(json.loads((directory / "dashboard.json").read_text()))
    task = "tasks/halfcheetah-speed1"
    assert [panel["metrics"] for panel in found["halfcheetah-speed1"]] == [
        [f"{task}/return_mean"],
        [f"{task}/cost_mean", f"{task}/cost_limit"],
        [f"{task}/cost_discounted_mean", f"{task}/cost_limit"],
    ]
    assert [panel["metrics"] for panel in found["Safety"]] == [[f"learner/{name}"] for name in SAFETY]


def test_success_rates_stand_beside_returns(tmp_path: Path) -> None:
    """Of goal tasks from the start; of others once an evaluation has reported any."""
    text = SWEEP.replace("hopper, Pendulum-v1", "PointReach-v0, Pendulum-v1, hopper").replace(
        "[sac, sac-nf,", "["
    )
    directory = planned(tmp_path, text)
    write_row(directory / "results", make_row(task="Pendulum-v1", success_rate=0.5))
    write_row(directory / "results", make_row(task="hopper"))
    uniform = sections_of(directory)
    assert uniform["Pendulum-v1"] == [["tasks/Pendulum-v1/return_mean"], ["tasks/Pendulum-v1/success_rate"]]
    assert uniform["hopper"] == [["tasks/hopper/return_mean"]]
    assert uniform["PointReach-v0"] == [["tasks/PointReach-v0/return_mean"]]
    (tmp_path / "other").mkdir()
    assert sections_of(planned(tmp_path / "other", GOALS))["PointReach-v0"] == [
        ["tasks/PointReach-v0/return_mean"],
        ["tasks/PointReach-v0/success_rate"],
    ]


def test_the_success_rate_of_its_panel_is_what_a_run_logs(tmp_path: Path) -> None:
    """In W&B's own file of a real run, at every evaluation, and equal to the rows."""
    tiny = {"hidden_units": 8, "train_batch_size_per_learner": 8, "warmup_steps": 20, "steps": 60}
    tiny |= {"evaluation_every": 30, "evaluation_episodes": 2, "checkpoint_every": 60, "replay": "her"}
    config = resolve({"algorithm": "sac", "task": "PointReach-v0", **tiny})
    files = RunFiles(tmp_path / "run")
    with TrainingRun(config, files, wandb=WandbOptions("offline")) as training:
        while not training.is_complete:
            training.iterate()
    (path,) = files.directory.glob("wandb/offline-run-*/*.wandb")
    (metric,) = sections_of(planned(tmp_path, GOALS))["PointReach-v0"][1]
    history = read_wandb_file(path).history
    logged = {int(record["env_steps"]): record[metric] for record in history if metric in record}
    rows = read_rows(files.results).to_pylist()
    assert logged == {row["env_steps"]: row["success_rate"] for row in rows}
    assert list(logged) == [0, 30, 60]
    named = {name for record in history for name in record if name.startswith(("train/", "evaluation/"))}
    assert {"train/success_rate", "evaluation/success_rate"} <= named
    assert [name for name in named if meaning(name) is None] == []


def test_seeds_are_bands_of_groups_of_the_sweep_only(tmp_path: Path) -> None:
    view = written(tmp_path)
    (runs,) = section_of(view)["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("run", "group"),
        ("run", "jobType"),
        ("config", "variant.value"),
    ]
    (condition,) = runs["filters"]["filters"]
    assert condition["key"] == {"section": "run", "name": "group"}
    assert (condition["op"], condition["value"]) == ("IN", ["little/hopper", "little/Pendulum-v1"])
    assert section_of(view)["settings"]["useRunsTableGroupingInPanels"]
    for panel in (panel for of_section in panels(view).values() for panel in of_section):
        assert (panel["groupAgg"], panel["groupArea"]) == ("mean", "stddev")
        assert panel["limit"] == section_of(view)["settings"]["maxRuns"] == 100


def test_variants_get_a_section_for_each_task(tmp_path: Path) -> None:
    found = panels(written(tmp_path, ABLATION))
    assert list(found)[:4] == ["hopper", "Pendulum-v1", "Ablation: hopper", "Ablation: Pendulum-v1"]
    for task in ("hopper", "Pendulum-v1"):
        (panel,) = found[f"Ablation: {task}"]
        assert panel["metrics"] == [f"tasks/{task}/return_mean"]
        assert (panel["groupBy"], panel["aggregate"]) == ("variant.value", True)
        assert (panel["groupAgg"], panel["groupArea"]) == ("mean", "stddev")


def test_variants_of_one_algorithm_are_not_averaged_with_other_algorithms(tmp_path: Path) -> None:
    (panel,) = panels(written(tmp_path, MIXED))["Ablation: hopper"]
    assert "groupBy" not in panel  # so the runs' grouping holds: task, algorithm, variant


def test_where_it_goes(tmp_path: Path) -> None:
    directory, out = planned(tmp_path), tmp_path / "elsewhere.json"
    assert run(str(directory), "--entity", "team", "--project", "hmc", "--out", str(out)) == 0
    view = json.loads(out.read_text())
    assert (view["entity"], view["project"]) == ("team", "hmc")
    assert view["displayName"] == "little: sac, sac-nf, sac-hpo"
    assert not (directory / "dashboard.json").exists()


def test_the_metrics_are_those_that_runs_log(tmp_path: Path) -> None:
    """All except counters appear, so that a new diagnostic or loss gets its panel."""
    tiny = {
        "hidden_units": 8,
        "train_batch_size_per_learner": 8,
        "warmup_steps": 20,
        "diagnostics_interval": 10,
    }
    tiny |= {"evaluation_every": 60, "evaluation_episodes": 1, "checkpoint_every": 60, "steps": 60}
    config = resolve({"algorithm": "sac-hpo", "task": "Pendulum-v1", **tiny})
    with TrainingRun(config, RunFiles(tmp_path / "run"), wandb=WandbOptions("disabled")) as training:
        while not training.is_complete:
            metrics = flat_metrics(training.iterate())
    logged = {name for name in metrics if name.startswith("learner/")}
    counters = {"learner/num_updates", "learner/replay_rows"}
    assert logged - counters == {f"learner/{name}" for name in (*DIAGNOSTICS, *LOSSES)}


def test_not_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not a sweep directory" in line


def test_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = planned(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert run(str(directory)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'rllib-hpo[dashboard]'" in line


def child(directory: Path, home: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process with its own home folder."""
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**inherited, "PYTHONPATH": str(REPOSITORY), "HOME": str(home), **variables}
    command = [*CLI, "dashboard", str(directory), "--save", *words]
    return subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )


def test_saving_without_an_account_is_one_sentence(tmp_path: Path) -> None:
    result = child(planned(tmp_path), tmp_path / "home")
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert "could not be saved online" in line
    assert "`wandb login`" in line
    assert (tmp_path / "sweep" / "dashboard.json").exists()


@pytest.mark.slow
def test_saving_prints_the_address(tmp_path: Path) -> None:
    directory = planned(tmp_path)
    with fake_server("team") as server:
        result = child(directory, tmp_path / "home", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert "/team/rllib-hpo?nw=" in result.stdout
    (sent,) = [request["variables"] for request in server.requests if "upsertView" in request["query"]]
    assert (sent["entityName"], sent["projectName"]) == ("team", "rllib-hpo")
    saved, file = json.loads(sent["spec"]), json.loads((directory / "dashboard.json").read_text())
    assert saved == file["spec"]
    assert KEY not in result.stdout + result.stderr
