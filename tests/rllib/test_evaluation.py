"""Test evaluations: their schedule, that they are noise-free and right, and their results."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.results import config_hash, read_rows, row_config, without_volatile
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.environment import environment_maker
from rllib_hpo.rllib.evaluation import episode_seeds, evaluate
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks import make_env
from tests.rllib.environments import CountingEnv
from tests.rllib.tiny import (
    EVERY_ALGORITHM,
    SHORT_EPISODES,
    assert_equal,
    facts,
    running,
    tiny_config,
    train_to,
)


def by_hand(algorithm: ActorCriticAlgorithm, seed: int) -> tuple[float, int]:
    """Return return and length of an episode played with a plain loop and the policy's mode, or its draws."""
    env = make_env("Hopper-v4", **SHORT_EPISODES)
    obs, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    draws = TorchStreams(seed, "evaluation")["latent"]
    while not over:
        state = torch.from_numpy(obs.astype(np.float32))[None]
        with torch.no_grad():
            action = noise_free(algorithm, state, draws)
        obs, reward, terminated, truncated, _ = env.step(action.clamp(-1, 1)[0].numpy())
        total, length, over = total + float(reward), length + 1, terminated or truncated
    env.close()
    return total, length


def noise_free(algorithm: ActorCriticAlgorithm, state: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Return the policy's mode, through flow or leapfrog, or soft Q-learning's draw."""
    model = algorithm.local_learner.trainer.model
    if algorithm.config.algorithm in ("mcmc-po", "langevin-po"):
        action: torch.Tensor = model(state)  # their own tests have transcriptions of it
        return action
    acting = model.acting
    if algorithm.config.algorithm == "soft-q":
        state = torch.cat([state, torch.randn(3, generator=draws)[None]], -1)
    output = acting.policy(state)
    mean = output[0] if isinstance(output, tuple) else output  # of a density, or the action itself
    if hasattr(acting, "flow"):
        mean, _ = acting.flow(mean)
    action = torch.tanh(mean)
    return drifted(algorithm, state, action) if hasattr(acting, "chains") else action


def drifted(algorithm: ActorCriticAlgorithm, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Run Algorithm 2 of arXiv 2103.12020 with rho_0 = 0: kick, drift, kick."""
    settings, model = algorithm.settings, algorithm.local_learner.trainer.model
    momentum = torch.zeros_like(action)
    gate = model.sampler.gated_force.condition(state)
    for _ in range(settings.leapfrog_steps):
        for half in (0, 1):
            with torch.enable_grad():
                here = action.clone().requires_grad_()
                q = model.target_critics(state, here).amin(0).sum()
                gradient = torch.autograd.grad(q, here)[0]
            direction = -gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-8)
            momentum = momentum - settings.step_size / 2 * gate(action, direction)[0]
            if half == 0:
                action = action + settings.step_size * momentum
    return action


@EVERY_ALGORITHM
def test_returns_are_those_of_a_plain_loop(algorithm: str) -> None:
    """Noise-free: a_0 = tanh(mean), through flow or leapfrog, with training's constants; without a shield."""
    changes = {"shield": "none"} if "shield" in find_settings(algorithm).model_fields else {}
    config = tiny_config(algorithm, "Hopper-v4", evaluation_episodes=3, **changes)
    with running(config) as built:
        result = train_to(built, 80)
        played = [by_hand(built, seed) for seed in episode_seeds(3, 2, 3)]
    evaluation = result["evaluation"]
    assert evaluation["env_steps"] == 80
    returns, lengths = zip(*played, strict=True)
    runners = evaluation["env_runners"]
    assert runners["episode_return_mean"] == pytest.approx(np.mean(returns), rel=1e-4)
    assert runners["episode_return_std"] == pytest.approx(np.std(returns), rel=1e-3, abs=1e-3)
    assert runners["episode_len_mean"] == np.mean(lengths)


@EVERY_ALGORITHM
def test_evaluating_changes_nothing(algorithm: str, tmp_path: Path) -> None:
    """It makes no draw, no step and no row, so a watched run stays the same."""
    with running(tiny_config(algorithm).results(results_dir=str(tmp_path))) as built:
        train_to(built, 40)
        before = facts(built)
        one, other = built.evaluate(), built.evaluate()
        assert one == other == built.latest_evaluation
        assert_equal(before, facts(built))
    assert read_rows(tmp_path)["env_steps"].to_pylist() == [0, 40]


def test_every_evaluation_starts_elsewhere_and_every_algorithm_there() -> None:
    """Seeds depend only on the run's seed and the evaluation's number."""
    numbers = [episode_seeds(3, k, 10) for k in range(50)] + [episode_seeds(4, 0, 10)]
    flat = [seed for seeds in numbers for seed in seeds]
    assert len(set(flat)) == len(flat)
    assert all(0 <= seed < 2**31 for seed in flat)
    assert episode_seeds(3, 7, 4) == episode_seeds(3, 7, 10)[:4]


@EVERY_ALGORITHM
def test_the_first_observations_are_the_same_for_every_algorithm(algorithm: str) -> None:
    seen: list[np.ndarray] = []
    with running(tiny_config(algorithm)) as built:

        class Spy:
            """Wrap the actor and record its states."""

            device, begin_episodes = built.actor.device, built.actor.begin_episodes
            memory, settings = built.actor.memory, built.actor.settings

            def act(self, obs: torch.Tensor, memory: Any) -> torch.Tensor:
                """Record the states."""
                seen.append(obs.numpy().copy())
                return built.actor.act(obs)

        evaluate(Spy(), lambda: make_env("Pendulum-v1", **SHORT_EPISODES), episode_seeds(3, 0, 2))
    np.testing.assert_allclose(
        seen[0], [make_env("Pendulum-v1").reset(seed=seed)[0] for seed in episode_seeds(3, 0, 2)], rtol=1e-6
    )


def test_a_result_carries_the_latest_evaluation() -> None:
    """Tune's schedulers read every result, and evaluations are rarer."""
    with running(tiny_config(steps_per_iteration=10, checkpoint_every=1000)) as algorithm:
        seen = [
            (r["evaluation"]["env_steps"], r["evaluation"]) for r in (algorithm.train() for _ in range(9))
        ]
    assert [steps for steps, _ in seen] == [0, 0, 0, 40, 40, 40, 40, 80, 80]
    assert seen[3][1] == seen[6][1] != seen[7][1]


def test_an_evaluation_is_recorded_once(tmp_path: Path) -> None:
    config = tiny_config("sac-hpo", "Hopper-v4").results(
        results_dir=str(tmp_path), sweep="s", variant="v", task="hopper", trial_id="t"
    )
    with running(config) as algorithm:
        train_to(algorithm, 80)
        configuration, evaluation = algorithm.run_config(), algorithm.latest_evaluation
    table = read_rows(tmp_path)
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    assert table["env_steps"].to_pylist() == table["weights_env_steps"].to_pylist() == [0, 40, 80]
    assert table["updates"].to_pylist() == [0, 20, 60]
    row = table.to_pylist()[-1]
    expected = {
        "sweep": "s", "algorithm": "sac-hpo", "variant": "v", "task": "hopper", "env_id": "Hopper-v4",
        "seed": 3, "eval_sampler": "hamiltonian", "trial_id": "t", "device": "cpu",
        "config_hash": config_hash(configuration),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row_config(row) == configuration
    assert evaluation is not None
    assert row["return_mean"] == evaluation["env_runners"]["episode_return_mean"] == np.mean(row["returns"])
    assert len(row["returns"]) == 2
    assert {"ray", "torch", "rllib_hpo", "python"} <= json.loads(row["versions"]).keys()


def test_runs_in_one_folder_do_not_replace_each_other(tmp_path: Path) -> None:
    """If they are the same run, their rows are equal."""
    for seed, rate in ((0, 1.0), (1, 1.0), (0, 2.0), (0, 1.0)):
        config = tiny_config(seed=seed, update_to_data=rate).results(results_dir=str(tmp_path))
        with running(config) as algorithm:
            algorithm.train()
    table = read_rows(tmp_path)
    assert table.num_rows == 6
    assert len(set(table["trial_id"].to_pylist())) == 3


@EVERY_ALGORITHM
def test_equal_runs_give_equal_rows(algorithm: str, tmp_path: Path) -> None:
    tables = []
    for name in ("one", "other"):
        config = tiny_config(algorithm).results(results_dir=str(tmp_path / name))
        with running(config) as built:
            train_to(built, 80)
        tables.append(without_volatile(read_rows(tmp_path / name)))
    assert tables[0].equals(tables[1])


@EVERY_ALGORITHM
def test_a_row_can_be_run_again_from_its_configuration(algorithm: str, tmp_path: Path) -> None:
    """The row stores plain values that determine the run."""
    config = tiny_config(algorithm, update_to_data=0.5).env_runners(num_envs_per_env_runner=2)
    with running(config.results(results_dir=str(tmp_path / "first"))) as built:
        train_to(built, 40)
    stored = row_config(read_rows(tmp_path / "first").to_pylist()[-1])
    settings = {name: stored[name] for name in find_settings(algorithm).model_fields}
    again = (
        make_config(stored["algorithm"])
        .environment(stored["env"], env_config=stored["env_config"])
        .training(**settings)
        .env_runners(num_envs_per_env_runner=stored["num_envs_per_env_runner"])
        .debugging(seed=stored["seed"])
        .results(results_dir=str(tmp_path / "second"))
    )
    with running(again) as built:
        train_to(built, 40)
    first, second = (without_volatile(read_rows(tmp_path / name)) for name in ("first", "second"))
    assert first.equals(second)


@pytest.mark.parametrize(
    ("explore", "train"),
    [("hamiltonian", "gaussian"), ("gaussian", "hamiltonian")],
    ids=["baseline-2", "baseline-3"],
)
def test_table_two_is_evaluated_with_what_it_trains(explore: str, train: str, tmp_path: Path) -> None:
    config = tiny_config("sac-hpo", explore_sampler=explore, train_sampler=train, step_size=0.5)
    with running(config.results(results_dir=str(tmp_path))) as algorithm:
        train_to(algorithm, 40)
        obs = torch.randn((5, 3), generator=torch.Generator().manual_seed(0))
        action = algorithm.actor.act(obs)
        with torch.no_grad():
            mode = torch.tanh(algorithm.local_learner.trainer.model.sampler.policy(obs)[0])
        assert torch.equal(action, mode) == (train == "gaussian")
    assert set(read_rows(tmp_path)["eval_sampler"].to_pylist()) == {train}


@pytest.mark.parametrize("bad", ["observation", "reward"])
def test_a_bad_evaluation_stops_the_run(bad: str) -> None:
    env_config = {"length": 30, "bad": bad, "bad_step": 3, "value": np.nan}
    config = tiny_config(env=CountingEnv).environment(env_config=env_config)
    with (
        running(config) as algorithm,
        pytest.raises(
            NonFiniteError,
            match=rf"The {bad} of CountingEnv is not finite at step 3 of .* evaluation.* after 0 environment steps",
        ),
    ):
        algorithm.train()


def test_weights_that_stopped_are_not_evaluated(tmp_path: Path) -> None:
    """Where updates do not wait for the device, the evaluation finds a non-finite loss."""
    with running(tiny_config(steps_per_iteration=80).results(results_dir=str(tmp_path))) as algorithm:
        core = algorithm.local_learner
        core.trainer.update_in_bulk(None)
        core.add_transitions(np.full((100, core.replay.layout.width), np.inf, np.float32))
        with pytest.raises(NonFiniteError, match=r"The critic loss is not finite at update 1, after 40 env"):
            algorithm.train()
    assert read_rows(tmp_path)["env_steps"].to_pylist() == [0]


class EndlessEnv(CountingEnv):
    """Never end an episode."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Pay 1 at each step."""
        observation, *_ = super().step(action)
        return observation, 1.0, False, False, {}


@pytest.mark.parametrize("stack", [True, False])
def test_episodes_without_an_end_are_cut(
    stack: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows count them, and one warning per run says what to do."""
    config = tiny_config(
        env=EndlessEnv, evaluation_every=40, evaluation_episodes=3, evaluation_max_episode_steps=7
    )
    config.api_stack(stack, stack).environment(env_config={}).results(results_dir=str(tmp_path))
    with running(config) as algorithm, caplog.at_level(logging.WARNING, "rllib_hpo"):
        result = train_to(algorithm, 40)
    assert result["evaluation"]["env_runners"]["episodes_cut"] == 3
    rows = read_rows(tmp_path)
    assert rows["episodes_cut"].to_pylist() == [3, 3]
    assert rows["returns"].to_pylist() == [[7.0] * 3] * 2
    (warning,) = [record.getMessage() for record in caplog.records if "cut" in record.getMessage()]
    assert (
        "3 of 3 evaluation episodes of EndlessEnv had not ended after evaluation_max_episode_steps=7"
        in warning
    )
    assert "--set 'env_config={max_episode_steps: 1000}'" in warning


def test_episodes_that_end_at_the_limit_are_not_cut() -> None:
    with running(tiny_config(env=CountingEnv).environment(env_config={"length": 4})) as built:

        def cut(limit: int) -> int:
            make = lambda: CountingEnv({"length": 4})  # noqa: E731
            return evaluate(built.actor, make, [1, 2], max_episode_steps=limit).episodes_cut

        assert [cut(3), cut(4)] == [2, 0]


def test_an_evaluation_can_be_watched_and_ended() -> None:
    seen: list[int] = []

    def watch(steps: int) -> None:
        seen.append(steps)
        if steps >= 12:
            raise KeyboardInterrupt

    config = tiny_config(env=EndlessEnv).environment(env_config={})
    with running(config) as algorithm, pytest.raises(KeyboardInterrupt):
        evaluate(algorithm.actor, environment_maker(config, training=False), [1, 2, 3], watch=watch)
    assert seen == [0, 3, 6, 9, 12]
