"""Test RLlib's calls to read, set and load weights and states, and the errors where they do not work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_hpo.errors import CheckpointError, UserError
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import SACHPOConfig
from rllib_hpo.rllib.config import ActorCriticConfig
from tests.rllib.old_stack.test_policy_stack import old_config
from tests.rllib.tiny import (
    EVERY_ALGORITHM,
    SAFE_ALGORITHMS,
    assert_equal,
    facts,
    running,
    tiny_config,
    train_to,
    tuned,
)

MODULES = "learner_group/learner/rl_module"
MODULE = f"{MODULES}/default_policy"
STACKS = pytest.mark.parametrize("make", [tiny_config, old_config], ids=["new", "old"])


def state_of(algorithm: ActorCriticAlgorithm) -> dict[str, Any]:
    """Return the state by the call of its stack."""
    return algorithm.__getstate__() if algorithm.config.is_old_stack else algorithm.get_state()


def set_state(algorithm: ActorCriticAlgorithm, state: dict[str, Any]) -> None:
    """Set a state by the call of the algorithm's stack."""
    (algorithm.__setstate__ if algorithm.config.is_old_stack else algorithm.set_state)(state)


@STACKS
@EVERY_ALGORITHM
def test_weights_are_read_and_set(make: Any, algorithm: str) -> None:
    """They take effect at once; the receiver's settings apply; other networks' weights are rejected."""
    if algorithm in SAFE_ALGORITHMS and make is not tiny_config:
        pytest.skip("RLlib's old API stack hands on no costs")
    alphas: tuple[dict[str, float], dict[str, float]] = ({"alpha": 0.3}, {"alpha": 0.1})
    alphas = alphas if tuned(algorithm) else ({}, {})  # those of TD3 have no temperature
    with running(make(algorithm, **alphas[0])) as donor, running(make(algorithm, **alphas[1])) as taker:
        train_to(donor, 80)
        train_to(taker, 40)
        weights = donor.get_weights()
        taker.set_weights(weights)
        for name, value in taker.get_weights()["default_policy"].items():
            if "log_alpha" in name:
                assert float(np.exp(value)) == pytest.approx(0.1)
            else:
                np.testing.assert_array_equal(value, weights["default_policy"][name])
        assert taker.env_steps == 40
        best = taker.get_weights()
        train_to(taker, 80)
        later = taker.get_weights()
        assert any(
            not np.array_equal(later["default_policy"][n], v) for n, v in best["default_policy"].items()
        )
        taker.set_weights(best)
        assert_equal(best, taker.get_weights())
        own = taker.get_weights()
        acting = {
            n: value for n, value in own["default_policy"].items() if not n.startswith("model.critics.")
        }
        name = next(name for name in own["default_policy"] if name.endswith("critics.weights.0"))
        for change, phrase in (
            (
                {"default_policy": {**own["default_policy"], name: np.zeros(3)}},
                rf"{name} has the shape \(3,\)",
            ),
            ({"default_policy": acting}, r"they lack model\.critics.*: use the learner's"),
            ({"default_policy": {**own["default_policy"], "more": np.zeros(3)}}, "more is not a weight of"),
            ({"policy": own["default_policy"]}, r"they belong to \['policy'\], not to \['default_policy'\]"),
            (own["default_policy"], r"not to \['default_policy'\]"),
            (None, "they belong to NoneType"),
        ):
            with pytest.raises(UserError, match=rf"These weights do not fit: .*{phrase}"):
                taker.set_weights(change)  # type: ignore[arg-type]
        assert_equal(own, taker.get_weights())


@STACKS
def test_a_state_without_its_replay_does_not_train(make: Any, tmp_path: Path) -> None:
    """Updates would otherwise draw from the first few rows again and again."""
    with running(make()) as donor, running(make()) as taker:
        train_to(donor, 40)
        donor.save_to_path(tmp_path / "checkpoint")
        state = state_of(donor)
        set_state(donor, state)
        train_to(donor, 80)
        set_state(taker, state)
        taker.evaluate()
        with pytest.raises(CheckpointError, match=r"The replay of step 40 was not loaded, .*from_check"):
            taker.train()
        assert taker.env_steps == 40
        taker.restore_from_path(tmp_path / "checkpoint")
        train_to(taker, 80)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Make a checkpoint at step 80, and return its weights."""
    path = tmp_path_factory.mktemp("pretrained") / "checkpoint"
    with running(tiny_config("sac-hpo", alpha=0.3)) as algorithm:
        train_to(algorithm, 80)
        algorithm.save_to_path(path)
        return path, algorithm.get_weights()["default_policy"]


def test_a_component_begins_a_run(pretrained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Fine-tuning works with other settings than the checkpoint's, and with networks saved by themselves."""
    checkpoint, weights = pretrained
    with running(tiny_config("sac-hpo", lr=1e-3, seed=5)) as algorithm:
        alone = tmp_path / "alone"
        for path, component in (
            (checkpoint / MODULES, MODULES),
            (checkpoint / MODULE, MODULE),
            (alone, MODULE),
        ):
            algorithm.restore_from_path(path, component=component)
            for name, value in algorithm.get_weights()["default_policy"].items():
                assert "log_alpha" in name or np.array_equal(value, weights[name]), name
            algorithm.learner_group._learner.module["default_policy"].unwrapped().save_to_path(alone)
            train_to(algorithm, algorithm.env_steps + 40)
        assert algorithm.num_updates == 100


def test_components_that_do_not_fit_are_refused(
    pretrained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    checkpoint, _ = pretrained
    (tmp_path / "empty").mkdir()
    with running(tiny_config("sac-hpo", hidden_units=8)) as algorithm:
        before = facts(algorithm)
        for path, component, phrase in (
            (checkpoint / MODULE, MODULE, r"do not fit this configuration: .* has the shape"),
            (
                checkpoint,
                MODULE,
                f"is a whole checkpoint: to restore only its {MODULE}, give {checkpoint / MODULE}",
            ),
            (tmp_path / "nothing", MODULE, "There is no component of a checkpoint in"),
            (tmp_path / "empty", MODULE, "cannot be used"),
            (checkpoint, "learner_group", r"component='learner_group' cannot be restored by itself"),
        ):
            with pytest.raises(UserError, match=phrase):
                algorithm.restore_from_path(path, component=component)
        assert_equal(before, facts(algorithm))
    with running(old_config()) as old:
        with pytest.raises(
            UserError, match=r"component= is available on RLlib's new API stack only; .*set_weights"
        ):
            old.restore_from_path(checkpoint / MODULE, component=MODULE)
        with pytest.raises(
            UserError, match=r"get_module\(\) is available on RLlib's new API stack only.*get_policy"
        ):
            old.get_module()


def test_calls_of_rllib_that_do_not_work_here_say_what_does() -> None:
    with running(tiny_config()) as algorithm:
        train_to(algorithm, 40)
        for options in ({"num_timesteps": 8}, {"num_episodes": 1}, {}, {"num_steps": 3, "explore": False}):
            with pytest.raises(UserError, match=r"call sample\(num_steps=N, random_actions=False\)"):
                algorithm.env_runner.sample(**options)
        assert len(algorithm.env_runner.sample(num_steps=3).rows) == 3
        with pytest.raises(
            UserError, match=r"save\(\) writes to a local directory; use save_to_path\('s3://bucket"
        ):
            algorithm.save("s3://bucket/checkpoint")
    with pytest.raises(
        UserError, match=r"was stopped and cannot continue training: build it again .*from_checkpoint"
    ):
        algorithm.train()


@STACKS
def test_a_config_is_made_of_its_dict(make: Any) -> None:
    """Its own class or that of any algorithm accepts it; RLlib's AlgorithmConfig rejects that of its own SAC, too."""
    options = make("sac-hpo", leapfrog_steps=2, train_batch_size_per_learner=24).to_dict()
    for cls in (SACHPOConfig, ActorCriticConfig):
        config = cls.from_dict(dict(options))
        with running(config) as algorithm:
            assert algorithm.settings.leapfrog_steps == 2
            assert algorithm.settings.train_batch_size_per_learner == 24
            assert algorithm.config.is_old_stack == (make is old_config)
