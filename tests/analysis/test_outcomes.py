"""Test outcomes in reports: shares past a threshold with their intervals, the table, and figures of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.algorithms.soft_q import SoftQSettings
from rllib_hpo.algorithms.td3 import DDPGSettings
from rllib_hpo.analysis.outcomes import is_past, outcomes_table, success_figure, threshold_figure, wilson
from rllib_hpo.analysis.runs import Run, TaskId
from rllib_hpo.analysis.trajectories import roll_out, write_trajectories
from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata
from rllib_hpo.errors import SettingsError
from rllib_hpo.settings import Settings
from rllib_hpo.tasks import make_env

STEPS = np.array([0, 100, 200])
NAN = np.nan


def _run(seed: int, forward: list[float], task: TaskId = TaskId("snake-finish", "SnakeFinish-v0")) -> Run:  # noqa: B008
    numbers = {name: np.zeros(3) for name in ("return_mean", "return_std", "updates", "wall_time_s")}
    name = "forward_max" if task.name == "snake-finish" else "goal_distance_min"
    return Run(
        "DDPG",
        "ddpg",
        "default",
        "s",
        task,
        seed,
        f"t{seed}",
        {},
        "c",
        STEPS,
        numbers,
        {name: np.array(forward)},
    )


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (6, 10), (10, 10), (1, 3)])
def test_the_interval_is_wilsons(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    found = wilson(successes, trials)
    assert found.estimate == successes / trials
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_runs_past_the_threshold_are_counted() -> None:
    runs = [_run(0, [NAN, 1.0, 3.1]), _run(1, [NAN, 1.0, 2.9]), _run(2, [NAN, 2.0, 4.0])]
    assert [is_past(run) for run in runs] == [True, False, True]
    maze = TaskId("quad-maze", "QuadMaze-v0")
    assert [is_past(_run(0, [NAN, 9.0, d], maze)) for d in (3.4, 3.6)] == [True, False]
    assert is_past(replace(runs[0], task=TaskId("hopper", "Hopper-v4"))) is None
    table = outcomes_table(runs)
    assert table is not None
    ((task, label, forward, past),) = table.rows
    assert (task, label) == ("snake-finish", "DDPG")
    assert forward == f"{np.mean([3.1, 2.9, 4.0]):.2f} ± {np.std([3.1, 2.9, 4.0], ddof=1):.2f}"
    assert past.startswith("2 of 3: 0.67 [")
    figure = threshold_figure(runs)
    assert figure is not None
    (axis,) = figure.axes
    assert len(axis.get_lines()) == 4
    assert axis.get_lines()[-1].get_ydata()[0] == 3.0


def _succeeding(label: str, seed: int, rates: list[float], task: str = "reach") -> Run:
    run = replace(_run(seed, [NAN] * 3, TaskId(task, "Reach-v0")), label=label)
    return replace(run, diagnostics={"success_rate": np.array(rates)})


def test_success_rates_are_drawn_as_measured() -> None:
    """Means over seeds at the steps that all have, on exact values; intervals against SciPy's bootstrap."""
    rates = [[NAN, 0.25, 1.0], [0.5, 0.5, 0.75], [0.0, 0.0, 0.5]]
    runs = [_succeeding("SAC", seed, own) for seed, own in enumerate(rates)]
    runs += [_succeeding("SAC-HPO", 0, [0.0, 0.5, 1.0]), _run(0, [NAN, 1.0, 3.1])]
    figure = success_figure(runs, np.random.default_rng(0))
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "reach"
    many, single = axis.get_lines()
    assert (many.get_label(), many.get_xdata().tolist()) == ("SAC", [100, 200])
    assert many.get_ydata() == pytest.approx([0.25, 0.75])
    assert (single.get_label(), single.get_ydata().tolist()) == ("SAC-HPO", [0.0, 0.5, 1.0])
    (shade,) = axis.collections  # of several seeds only
    corners = shade.get_paths()[0].vertices
    for step, place in ((100, 1), (200, 2)):
        drawn = corners[corners[:, 0] == step, 1]
        theirs = bootstrap(
            ([own[place] for own in rates],), np.mean, method="percentile", n_resamples=20_000, rng=1
        )
        assert (drawn.min(), drawn.max()) == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert success_figure([_run(0, [NAN, 1.0, 3.1])], np.random.default_rng(0)) is None


def test_without_outcomes_there_is_no_table() -> None:
    run = replace(_run(0, [0.0, 0.0, 0.0], TaskId("hopper", "Hopper-v4")), diagnostics={})
    assert outcomes_table([run]) is None
    assert threshold_figure([run]) is None


def _policy(settings: Settings, algorithm: str, env_id: str = "MultiGoal-v0") -> DeployedPolicy:
    env = make_env(env_id)
    actor = make_method(settings).make_actor(
        env.observation_space.shape[0], env.action_space.shape[0], seed=0
    )
    manifest = {"algorithm": algorithm, "task": env_id, "env": env_id, "env_steps": 0, "versions": {}}
    config = {**settings.model_dump(), "algorithm": algorithm, "env_config": {}}
    return DeployedPolicy(
        actor,
        PolicyMetadata.of_manifest({**manifest, "config": config}, env.observation_space, env.action_space),
    )


def test_trajectories_of_any_algorithm_are_drawn(tmp_path: Path) -> None:
    policies = [
        _policy(SoftQSettings(hidden_units=8), "soft-q"),
        _policy(DDPGSettings(hidden_units=8, exploration_process="ou"), "ddpg"),
    ]
    path, table = write_trajectories(policies, tmp_path / "t.png", num=5)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [row[0] for row in table.rows] == ["soft-q after 0 steps", "ddpg after 0 steps"]
    assert (tmp_path / "t.csv").read_text().splitlines()[0].startswith("policy,net_displacement_mean")
    for explores in (True, False):
        one, other = (roll_out(policies[0], 3, explores=explores) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one.paths, other.paths, strict=True))
        assert all(2 <= len(path) <= 31 for path in one.paths)
        assert one.numbers()["goal_reached"] == pytest.approx(
            sum(one.numbers()[f"goal_reached_{k}"] for k in range(4))
        )
    maze = _policy(SoftQSettings(hidden_units=8), "soft-q", "QuadMaze-v0")
    write_trajectories([maze], tmp_path / "maze.svg", num=1)
    assert b"<svg" in (tmp_path / "maze.svg").read_bytes()
    with pytest.raises(SettingsError, match="cannot be drawn together"):
        write_trajectories([*policies, maze], tmp_path / "t.png")
    with pytest.raises(SettingsError, match=r"must end in \.png"):
        write_trajectories(policies, tmp_path / "t.gif")


def test_an_environment_without_positions_is_a_sentence() -> None:
    policy = _policy(DDPGSettings(hidden_units=8), "ddpg", "Pendulum-v1")
    with pytest.raises(SettingsError, match="'Pendulum-v1' reports no positions"):
        roll_out(policy, 1)
