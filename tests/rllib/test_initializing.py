"""Test a run initialised with another run's networks: what it takes over, what it rejects, what rows record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import CheckpointError
from rllib_hpo.experiments.config.run_config import read_config_file, resolve
from rllib_hpo.experiments.runs.files import RunFiles, start_run
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import read_rows
from tests.rllib.tiny import EVERY_ALGORITHM_IN_TIME, TINY, loaded, running, tiny_config, train_to, tuned


def _weights(algorithm: Any) -> dict[str, np.ndarray]:
    (arrays,) = algorithm.get_weights().values()
    return arrays


def _saved(path: Path, name: str, **settings: Any) -> dict[str, np.ndarray]:
    with running(tiny_config(name, **settings)) as algorithm:
        train_to(algorithm, 40)
        algorithm.save_to_path(path)
        return _weights(algorithm)


@EVERY_ALGORITHM_IN_TIME
def test_networks_are_taken_over_and_nothing_else(algorithm: str, tmp_path: Path) -> None:
    """It takes online and target networks; all other state starts fresh, and a resume needs no origin."""
    settings = tuned(algorithm)
    origin = _saved(tmp_path / "origin", algorithm, **settings)
    config = tiny_config(algorithm, seed=4, **settings).checkpointing(
        initialize_from=str(tmp_path / "origin")
    )
    with running(config) as built:
        found, trainer = _weights(built), built.local_learner.trainer
        networks = {f"model.{name}" for name in make_method(built.settings).networks(trainer.model)}
        assert any("target" in name for name in networks)
        with running(tiny_config(algorithm, seed=4, **settings)) as fresh:
            own = _weights(fresh)
        for name, value in found.items():
            np.testing.assert_array_equal(value, (origin if name in networks else own)[name], name)
        assert networks < found.keys() or algorithm == "td3"
        assert (trainer.num_updates, built.local_learner.replay.total_rows) == (0, 0)
        assert all(not optimizer.state or _is_new(optimizer) for optimizer in trainer.optimizers.values())
        record = built.run_config()
        assert record["initialize_from"] == str(tmp_path / "origin")
        assert len(record["initialize_digest"]) == 16
        train_to(built, 40)
        built.save_to_path(tmp_path / "own")
    (tmp_path / "origin").rename(tmp_path / "gone")
    with loaded(tmp_path / "own") as resumed:
        train_to(resumed, 80)
        assert resumed.run_config() == record


def _is_new(optimizer: Any) -> bool:
    return all(float(state["step"]) == 0 for state in optimizer.state.values())


def test_the_old_stack_begins_alike(tmp_path: Path) -> None:
    origin = _saved(tmp_path / "origin", "td3")
    config = tiny_config("td3", seed=4).api_stack(False, False)
    with running(config.checkpointing(initialize_from=str(tmp_path / "origin"))) as built:
        np.testing.assert_array_equal(
            _weights(built)["model.policy.0.weight"], origin["model.policy.0.weight"]
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_units": 8}, r"do not fit: .* has the shape \(.*16.*\), not \(.*8.*\)"),
        ({"policy_layers": 3}, "do not fit: (they lack policy|policy)"),
    ],
)
def test_another_layout_is_a_sentence(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    _saved(tmp_path / "origin", "td3")
    config = tiny_config("td3", **settings).checkpointing(initialize_from=str(tmp_path / "origin"))
    with running(config) as built, pytest.raises(CheckpointError, match=message):
        built.train()


def test_a_path_without_a_checkpoint_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    config = resolve(
        {"algorithm": "td3", "task": "Pendulum-v1", "initialize_from": str(tmp_path), "steps": 40, **TINY}
    )
    files = start_run(config, tmp_path / "run")
    with (
        pytest.raises(CheckpointError, match="is not a finished checkpoint, nor a run directory"),
        TrainingRun(config, files, wandb=WandbOptions("disabled")),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_another_runs_last_checkpoint(tmp_path: Path) -> None:
    """The setting names it with the new run's seed; rows record the origin, and reproduce the run."""

    def trained(name: str, **values: Any) -> RunFiles:
        config = resolve(
            {"algorithm": "soft-q", "task": "multi-goal", "steps": 40, "seed": 3, **TINY, **values}
        )
        files = start_run(config, tmp_path / name)
        with TrainingRun(config, files, wandb=WandbOptions("disabled")) as run:
            while not run.is_complete:
                run.iterate()
        return files

    trained("first-3")
    files = trained("second", initialize_from=str(tmp_path / "first-{seed}"), warmup_policy="policy")
    (row, *_) = sorted((files.results).rglob("*.parquet"))
    found = read_config_file(row)
    assert found["initialize_from"] == str(tmp_path / "first-3")
    assert "initialize_digest" not in found
    assert "initialize_digest" in read_rows(files.results).to_pylist()[0]["config_json"]


def test_a_policy_can_act_in_the_warm_up() -> None:
    """It acts with its own noise; nothing is learned then."""
    with running(tiny_config("td3", warmup_policy="policy", exploration_noise=0.0, warmup_steps=40)) as built:
        train_to(built, 40)
        replay = built.local_learner.replay
        columns = replay.layout.unpack(torch.from_numpy(np.concatenate(replay.read(0, 40))))
        assert built.local_learner.trainer.num_updates == 0
        torch.testing.assert_close(columns.action, built.actor.act(columns.obs), rtol=0, atol=1e-6)
