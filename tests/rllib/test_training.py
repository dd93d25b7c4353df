"""Test training in one process: exact counts, the content of a result, and what stops a run."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.learner.torch.torch_learner import TorchLearner

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.errors import NonFiniteError, SettingsError
from rllib_hpo.replay.layout import RowLayout
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from tests.kinds import OF_VECTORS
from tests.rllib.environments import CountingEnv, NoisyEnv
from tests.rllib.tiny import (
    EVERY_ALGORITHM,
    EVERY_ALGORITHM_IN_TIME,
    IN_TIME,
    REPEATS,
    SOFT_ALGORITHMS,
    assert_equal,
    facts,
    loaded,
    running,
    tiny_config,
    train_to,
)

RATES = (0.25, 1.0, 2.0)


@EVERY_ALGORITHM_IN_TIME
def test_ray_is_not_needed(algorithm: str, tmp_path: Any) -> None:
    """A local run starts no cluster: nothing listens on the network, however long it lives."""
    import ray

    with running(tiny_config(algorithm)) as built:
        train_to(built, 80)
        built.evaluate()
        built.save_to_path(tmp_path / "checkpoint")
        built.restore_from_path(tmp_path / "checkpoint")
        built.train()
    with loaded(tmp_path / "checkpoint") as resumed:
        resumed.train()
    assert not ray.is_initialized()


@pytest.fixture
def pretended_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Let torch find two GPUs, and put what a learner would place on one on the CPU; return the intended devices."""
    placed: list[torch.device] = []

    def stay(learner: Any, module: Any) -> None:
        placed.append(learner._device)
        learner._device = torch.device("cpu")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(TorchLearner, "_map_module_to_device", stay)
    return placed


@pytest.mark.parametrize("index", [0, 1])
def test_ray_is_not_needed_for_a_gpu(index: int, pretended_gpus: list[torch.device], tmp_path: Path) -> None:
    """RLlib asks Ray for a learner's devices, even for a local learner, which starts a cluster."""
    import ray

    with running(tiny_config().learners(num_gpus_per_learner=1, local_gpu_idx=index)) as built:
        train_to(built, 80)
        built.evaluate()
        built.save_to_path(tmp_path)
        built.restore_from_path(tmp_path)
        built.train()
    with loaded(tmp_path) as resumed:
        resumed.train()
    assert not ray.is_initialized()
    assert pretended_gpus == [torch.device("cuda", index)] * 2


@pytest.mark.usefixtures("pretended_gpus")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    config = tiny_config().learners(num_gpus_per_learner=1, local_gpu_idx=2)
    with pytest.raises(SettingsError, match="local_gpu_idx=2, but torch finds 2 GPUs here, numbered from 0"):
        config.build_algo()


def test_ray_is_not_needed_to_go_on_without_runners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint holds states of remote runners, which a run without runners cannot send anywhere."""
    import ray

    with running(tiny_config()) as built:
        train_to(built, 40)
        monkeypatch.setattr(
            built.stack.pipeline, "call_remote_runners", lambda call: {1: call(built.env_runner)}
        )
        built.save_to_path(tmp_path)
    with running(tiny_config()) as other:
        other.restore_from_path(tmp_path)
        train_to(other, 80)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        pytest.param(name, env, marks=[] if name in few else pytest.mark.exhaustive)
        for env, few in (("Hopper-v4", {*OF_VECTORS} - {*REPEATS}), (NoisyEnv, IN_TIME))
        for name in OF_VECTORS
    ],
)
def test_every_algorithm_trains(algorithm: str, env: Any) -> None:
    """All learned tensors have changed, all values are finite, and the result reports the return."""
    with running(tiny_config(algorithm, env)) as built:
        before = {name: value.clone() for name, value in built.local_learner.trainer.model.named_parameters()}
        result = train_to(built, 80)
        for name, value in built.local_learner.trainer.model.named_parameters():
            assert torch.isfinite(value).all(), name
            fixed = not value.requires_grad and not name.startswith(("target_", "previous"))
            assert torch.equal(value, before[name]) == fixed, name
    learner = result["learners"]["default_policy"]
    assert (learner["num_updates"], learner["replay_rows"]) == (60, 80)
    assert result["num_env_steps_sampled_lifetime"] == 80
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 80
    assert np.isfinite(result["env_runners"]["episode_return_mean"])
    assert {"critic_loss", "policy_loss", "q_mean"} <= learner.keys()
    assert ({"alpha", "log_prob_mean"} <= learner.keys()) == algorithm.startswith("sac")
    if algorithm == "sac-hpo":
        assert {
            "gate_mean",
            "action_gradient_norm",
            "q_gain",
            "clipped_share",
            "momentum_norm",
        } <= learner.keys()
        assert {"displacement", "displacement_drift", "displacement_noise"} <= learner.keys()


@SOFT_ALGORITHMS
def test_an_automatic_temperature_moves(algorithm: str) -> None:
    with running(tiny_config(algorithm, alpha="auto", initial_alpha=0.5)) as built:
        result = train_to(built, 80)
        alpha = float(built.local_learner.trainer.model.alpha)
    assert alpha != pytest.approx(0.5, abs=1e-4)
    assert result["learners"]["default_policy"]["alpha"] == pytest.approx(alpha, abs=0.02)


@pytest.mark.parametrize(("num_envs", "rate"), list(itertools.product((1, 3), RATES)))
def test_counts_are_exact(num_envs: int, rate: float) -> None:
    """Warm-up, updates, evaluations, iterations: none drifts with the number of environments."""
    config = tiny_config(
        env=NoisyEnv, update_to_data=rate, warmup_steps=25, evaluation_every=35, steps_per_iteration=50
    )
    evaluated: list[int] = []
    config.env_runners(num_envs_per_env_runner=num_envs)
    config.callbacks(on_evaluate_end=lambda algorithm, **_: evaluated.append(algorithm.env_steps))
    ends = []
    with running(config) as algorithm:
        while algorithm.env_steps < 150:
            algorithm.train()
            ends.append(algorithm.env_steps)
            due = int(rate * max(0, algorithm.env_steps - 25))
            assert algorithm._num_updates == algorithm.local_learner.trainer.num_updates == due
            assert algorithm.local_learner.replay.total_rows == algorithm.env_steps
    assert ends == [40, 50, 80, 100, 120, 150]
    assert evaluated == [0, 35, 70, 105, 140]


def test_the_warm_up_ends_on_its_step() -> None:
    """Its actions come from a stream of their own, so they are known in advance; the next one is the policy's."""
    from rllib_hpo.streams import numpy_generator

    with running(
        tiny_config(env=NoisyEnv, warmup_steps=21).env_runners(num_envs_per_env_runner=4)
    ) as algorithm:
        algorithm.train()
        actions = algorithm.local_learner.replay.gather(torch.arange(40)).action.numpy()
    uniform = numpy_generator(3, "runner", 0, 0, "warmup").uniform(-1, 1, (40, 2)).astype(np.float32)
    assert np.array_equal(actions[:21], uniform[:21])
    assert not (actions[21:] == uniform[21:]).any()


def test_a_run_can_be_told_to_end_early() -> None:
    with running(tiny_config()) as algorithm:
        algorithm.max_env_steps = 53
        algorithm.train()
        algorithm.train()
        assert algorithm.env_steps == 53
        assert algorithm._num_updates == 33


def test_the_replay_may_be_smaller_than_the_run() -> None:
    with running(tiny_config(replay_capacity=30)) as algorithm:
        result = train_to(algorithm, 80)
    assert result["learners"]["default_policy"]["replay_rows"] == 30


def resident_mb() -> float:
    """Return the resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1e3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_replay_takes_memory_as_rows_arrive() -> None:
    """RLlib's seeding makes torch fill what it allocates, unless that is switched off."""
    before = resident_mb()
    with running(tiny_config("sac", "Pendulum-v1", replay_capacity=20_000_000)) as algorithm:
        train_to(algorithm, 80)
        assert algorithm.local_learner.replay.rows.nbytes > 700e6
        assert resident_mb() - before < 300


@EVERY_ALGORITHM
def test_two_runs_of_one_seed_are_identical(algorithm: str) -> None:
    """Global generators have no influence."""
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        with running(tiny_config(algorithm, "Hopper-v4").env_runners(num_envs_per_env_runner=2)) as built:
            torch.manual_seed(noise)
            np.random.seed(noise)  # noqa: NPY002
            train_to(built, 80)
            found.append(facts(built))
    assert_equal(*found)


def test_runs_of_two_seeds_differ() -> None:
    found = []
    for seed in (3, 4):
        with running(tiny_config(seed=seed)) as built:
            train_to(built, 40)
            found.append(facts(built)["learner"])
    assert not (found[0]["rows"] == found[1]["rows"]).all(-1).any()
    assert not np.array_equal(
        found[0]["parameters"]["critics.weights.0"], found[1]["parameters"]["critics.weights.0"]
    )


def test_algorithms_of_one_seed_start_alike() -> None:
    """Comparisons are fair: critics and warm-up are equal. Costs are a separate column, after the others."""
    found, usual = [], RowLayout(3, 1).width
    for algorithm in OF_VECTORS:
        changes = {"num_critics": 2} if "num_critics" in find_settings(algorithm).model_fields else {}
        with running(tiny_config(algorithm, **changes)) as built:
            critics = {
                name: value.clone()
                for name, value in built.local_learner.trainer.model.critics.state_dict().items()
            }
            rows = built.env_runner.sample(num_steps=20, random_actions=True).rows
            found.append({"critics": critics, "rows": rows[:, :usual]})
    for other in found[1:]:
        assert_equal(found[0], other)


@pytest.mark.parametrize(("bad", "value"), [("observation", np.nan), ("reward", np.inf)])
@pytest.mark.parametrize("bad_step", [7, 33], ids=["warm-up", "training"])
def test_a_bad_environment_stops_the_run(bad: str, value: float, bad_step: int) -> None:
    env_config = {"length": 1000, "bad": bad, "bad_step": bad_step, "value": value}
    # Evaluations have environments of their own, which must not fail first.
    config = tiny_config(env=CountingEnv, evaluation_episodes=1).environment(env_config=env_config)
    with running(config) as algorithm:
        algorithm.latest_evaluation = {}
        pattern = (
            rf"The {bad} of .* step {bad_step} of an episode .* after {bad_step - 1} environment steps\."
        )
        with pytest.raises(NonFiniteError, match=pattern):
            algorithm.train()
        assert algorithm.local_learner.replay.total_rows == bad_step - 1


def poison(algorithm: ActorCriticAlgorithm) -> None:
    """Make every reward in the replay NaN."""
    replay = algorithm.local_learner.replay
    replay._rows[: replay.num_rows, replay.layout.obs_dim + replay.layout.action_dim] = torch.nan


@EVERY_ALGORITHM
def test_a_bad_loss_stops_the_run_and_spares_the_parameters(algorithm: str, tmp_path: Any) -> None:
    with running(tiny_config(algorithm)) as built:
        train_to(built, 40)
        poison(built)
        before = facts(built)["learner"]
        with pytest.raises(
            NonFiniteError, match=r"The critic loss is nan at update 21, after 41 environment steps"
        ):
            built.train()
        after = facts(built)["learner"]
        assert_equal(before["parameters"], after["parameters"])
        assert_equal(before["optimizers"], after["optimizers"])
        assert built.local_learner.trainer.num_updates == 20


@EVERY_ALGORITHM
def test_bad_parameters_are_never_saved(algorithm: str, tmp_path: Any) -> None:
    with running(tiny_config(algorithm)) as built:
        train_to(built, 40)
        built.save_to_path(tmp_path / "good")
        with torch.no_grad():
            built.local_learner.trainer.model.critics.weights[1][0, 0, 0] = torch.inf
        with pytest.raises(NonFiniteError, match=r"The parameter critics\.weights\.1 is not finite"):
            built.save_to_path(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_transitions_of_a_wrong_kind_have_no_way_in() -> None:
    with running(tiny_config()) as algorithm, pytest.raises(TypeError, match="update_from_replay"):
        algorithm.learner_group._learner.compute_loss_for_module(
            module_id="default_policy", batch={}, fwd_out={}
        )
