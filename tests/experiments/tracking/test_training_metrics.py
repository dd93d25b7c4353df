"""Test that every metric that a run logs is described."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.runs.files import RunFiles, to_rllib
from rllib_hpo.experiments.sweeps.dashboard import DIAGNOSTICS, LOSSES, SAFETY
from rllib_hpo.experiments.tracking.training_metrics import flat_metrics, meaning
from tests.kinds import OF_VECTORS

TINY = {
    "steps": 200,
    "warmup_steps": 50,
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "steps_per_iteration": 200,
    "evaluation_every": 200,
    "evaluation_episodes": 1,
    "diagnostics_interval": 10,
}
COSTLY = {"cost": {"kind": "torque"}, "cost_limit": 30.0}


@pytest.mark.parametrize(
    "algorithm",
    [name if name == "sac-hpo" else pytest.param(name, marks=pytest.mark.exhaustive) for name in OF_VECTORS],
)
def test_every_metric_has_a_meaning(algorithm: str, tmp_path: Path) -> None:
    costs = COSTLY if "lagrangian" in algorithm else {}
    task = "multi-goal" if algorithm == "soft-q" else "Pendulum-v1"
    config = resolve({"algorithm": algorithm, "task": task, "seed": 0, **TINY, **costs})
    built = to_rllib(config, RunFiles(tmp_path)).build_algo()
    logged = flat_metrics(built.train())
    built.stop()
    assert len(logged) > 10
    assert [name for name in logged if meaning(name) is None] == []


def test_metrics_of_the_dashboard_have_a_meaning() -> None:
    assert [name for name in {**DIAGNOSTICS, **LOSSES, **SAFETY} if meaning(f"learner/{name}") is None] == []
