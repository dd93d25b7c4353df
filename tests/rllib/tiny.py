"""Build small runs, from which all tests in this folder build their algorithms."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.algorithms.sac_lagrangian import ConstraintSettings
from rllib_hpo.replay.frames import FrameReplay
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.settings import ActorCriticSettings
from tests.kinds import OF_VECTORS

REPEATS = ("sac-nf", "ddpg", "sac-lagrangian")
"""Algorithms whose parts are in others: samplers in SAC-HPO, DDPG in TD3, SAC-Lagrangian in SAC-HPO-Lagrangian."""

EVERY_ALGORITHM = pytest.mark.parametrize(
    "algorithm",
    [pytest.param(name, marks=[pytest.mark.exhaustive] if name in REPEATS else []) for name in OF_VECTORS],
)
"""For tests that a new algorithm inherits by being registered; `make test-all` adds those that repeat others."""

SOFT_ALGORITHMS = pytest.mark.parametrize(
    "algorithm", [name for name in OF_VECTORS if issubclass(find_settings(name), ActorCriticSettings)]
)
"""For tests of temperatures and samplers."""

IN_TIME = ("sac-hpo", "td3")
"""One algorithm per update: SAC-HPO has all the parts of the other samplers, and DDPG is TD3 with other settings."""

SAFE_ALGORITHMS = tuple(name for name in OF_VECTORS if issubclass(find_settings(name), ConstraintSettings))
"""Algorithms that need costs, which RLlib's old API stack cannot report."""

OF_BOTH_STACKS = tuple(name for name in OF_VECTORS if name not in SAFE_ALGORITHMS)

EVERY_ALGORITHM_OF_BOTH_STACKS = pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] if name in REPEATS else [])
        for name in OF_BOTH_STACKS
    ],
)
"""`EVERY_ALGORITHM` on the old API stack."""


def _in_time(names: Sequence[str], by_default: Sequence[str] = IN_TIME) -> Any:
    """Return `EVERY_ALGORITHM` of some names, of which `make test-all` adds all but a few."""
    marks = [[] if name in by_default else [pytest.mark.exhaustive] for name in names]
    cases = [pytest.param(name, marks=each) for name, each in zip(names, marks, strict=True)]
    return pytest.mark.parametrize("algorithm", cases)


EVERY_ALGORITHM_IN_TIME = _in_time(OF_VECTORS)
"""`EVERY_ALGORITHM` for cases of many seconds."""

EVERY_ALGORITHM_OF_BOTH_STACKS_IN_TIME = _in_time(OF_BOTH_STACKS)
"""`EVERY_ALGORITHM_IN_TIME` on the old API stack."""

SAC_HPO_IN_TIME = _in_time(OF_VECTORS, ["sac-hpo"])
"""`EVERY_ALGORITHM` for cases that start many processes."""

SAC_HPO_OF_BOTH_STACKS_IN_TIME = _in_time(OF_BOTH_STACKS, ["sac-hpo"])
"""`SAC_HPO_IN_TIME` on the old API stack."""

TINY: dict[str, Any] = {
    "hidden_units": 16,
    "train_batch_size_per_learner": 16,
    "replay_capacity": 10_000,
    "warmup_steps": 20,
    "evaluation_every": 40,
    "evaluation_episodes": 2,
    "checkpoint_every": 40,
    "steps_per_iteration": 40,
    "diagnostics_interval": 10,
}
OWN: dict[str, dict[str, Any]] = {"soft-q": {"copy_every": 10}}
"""Intervals of single algorithms."""
SHORT_EPISODES = {"max_episode_steps": 25}


def tiny_config(
    algorithm: str = "sac", env: Any = "Pendulum-v1", seed: int | None = 3, **settings: Any
) -> ActorCriticConfig:
    """Make a config with networks, batches and intervals of a few tens; Pendulum's episodes have 25 steps."""
    settings = constraint(algorithm) | settings
    env_config = SHORT_EPISODES if isinstance(env, str) else {}
    config = make_config(algorithm).environment(env, env_config=env_config)
    return config.training(**TINY | OWN.get(algorithm, {}) | settings).debugging(
        seed=seed, log_level="ERROR", log_sys_usage=False
    )


def constraint(algorithm: str) -> dict[str, Any]:
    """Return the settings of costs, if the algorithm needs them."""
    return {"cost": {"kind": "torque"}, "cost_limit": 5.0} if algorithm in SAFE_ALGORITHMS else {}


def tuned(algorithm: str) -> dict[str, Any]:
    """Return the settings of a learned temperature, if the algorithm has one."""
    return {"alpha": "auto"} if "initial_alpha" in find_settings(algorithm).model_fields else {}


@contextmanager
def running(config: ActorCriticConfig) -> Iterator[ActorCriticAlgorithm]:
    """Build the algorithm of `config`, and stop it at the end."""
    algorithm: ActorCriticAlgorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


@contextmanager
def loaded(path: Any) -> Iterator[ActorCriticAlgorithm]:
    """Load the algorithm of a checkpoint, and stop it at the end."""
    algorithm: ActorCriticAlgorithm = ActorCriticAlgorithm.from_checkpoint(path)
    try:
        yield algorithm
    finally:
        algorithm.stop()


def train_to(algorithm: ActorCriticAlgorithm, env_steps: int) -> dict[str, Any]:
    """Train up to `env_steps`, which must be the end of an iteration; return the last result."""
    result: dict[str, Any] = {}
    while algorithm.env_steps < env_steps:
        result = algorithm.train()
    assert algorithm.env_steps == env_steps
    return result


def learner_facts(learner: Any) -> dict[str, Any]:
    """Return everything that determines a learner's next steps, as plain values (runs at the learner)."""
    trainer, replay = learner.core.trainer, learner.core.replay
    return {
        "parameters": {name: value.numpy().copy() for name, value in trainer.model.state_dict().items()},
        "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers.values()],
        "streams": trainer.streams.get_state(),
        "num_updates": trainer.num_updates,
        "total_rows": replay.total_rows,
        "rows": transitions_of(replay),
    }


def transitions_of(replay: Any) -> Any:
    """Return the transitions of a replay, oldest first: rows, or numbers and observations if these are images."""
    pieces = replay.read(replay.total_rows - replay.num_rows, replay.total_rows)
    if isinstance(replay, FrameReplay):
        return {
            "numbers": [piece.numbers for piece in pieces],
            "observations": np.concatenate([piece.observations for piece in pieces]) if pieces else [],
        }
    return np.concatenate([np.empty((0, replay.layout.width), np.float32), *pieces])


def facts(algorithm: ActorCriticAlgorithm) -> dict[str, Any]:
    """Return everything that determines a run's continuation: learner, counters, and the runners' next requests."""
    group = algorithm.env_runner_group
    return {
        "learner": next(
            iter(algorithm.learner_group.foreach_learner(lambda learner, **_: learner_facts(learner)))
        ).get(),
        "env_steps": algorithm.env_steps,
        "updates": algorithm._num_updates,
        "evaluation": algorithm.latest_evaluation,
        "runners": group.foreach_env_runner(
            lambda runner: runner.get_state(not_components="rl_module") if runner.envs else None
        ),
    }


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Check bitwise equality of nested dicts, lists, arrays and tensors; the message names the first difference."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            # A wrapper's clock, and MuJoCo's work space, parts of which it does not initialise.
            if key not in {"episode_start_time", "derived"}:
                assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            assert_equal(mine, theirs, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other, err_msg=where)
    else:
        assert one == other, where
