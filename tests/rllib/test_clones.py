"""Test a checkpoint in another configuration: which settings may change, their effect, and a clone's reseeding."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.tune.result import TRIAL_INFO

from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.errors import CheckpointError
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.checkpointing import read_manifest
from rllib_hpo.rllib.trained_policy import load_policy
from rllib_hpo.streams import TorchStreams, numpy_generator
from tests.rllib.tiny import EVERY_ALGORITHM, assert_equal, facts, loaded, running, tiny_config, train_to

STACKS = pytest.mark.parametrize("stack", ["new", "old"])
CHANGED: dict[str, Any] = {
    "momentum_std_explore": 2.5,
    "momentum_std_train": 0.7,
    "step_size": 0.3,
    "leapfrog_steps": 2,
    "alpha": 0.05,
    "lr": 1e-2,
    "gamma": 0.9,
    "tau": 0.1,
    "train_batch_size_per_learner": 8,
    "evaluation_every": 20,
}


def config_of(stack: str = "new", seed: int | None = 3, algorithm: str = "sac-hpo", **settings: Any) -> Any:
    config = tiny_config(algorithm, seed=seed, **settings)
    return config.api_stack(stack == "new", stack == "new")


def in_trial(config: Any, trial: str) -> Any:
    """Return the config as Tune passes it to the trial of that id."""
    return config.update_from_dict({TRIAL_INFO: SimpleNamespace(trial_id=trial)})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make one checkpoint per stack, at 80 steps, with seed 3."""
    paths = {}
    for stack in ("new", "old"):
        paths[stack] = tmp_path_factory.mktemp("donor") / stack
        with running(config_of(stack)) as donor:
            train_to(donor, 80)
            donor.save_to_path(paths[stack])
    return paths


# --- settings ---


def assert_acts_by(settings: Any, actor: SamplerActor) -> None:
    """Check that the actor explores as one made with these settings and its weights."""
    fresh = SamplerActor(actor.obs_dim, actor.action_dim, settings, seed=0)
    settled = {"log_alpha", "sampler.fixed_step_size"}  # tensors that are settings
    weights = {name: value for name, value in actor.state_dict().items() if name not in settled}
    fresh.load_state_dict({name: weights.get(name, value) for name, value in fresh.state_dict().items()})
    obs = torch.from_numpy(np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32))
    assert torch.equal(fresh.log_alpha, actor.log_alpha)
    assert torch.equal(fresh.act(obs, TorchStreams(1, "a")), actor.act(obs, TorchStreams(1, "a")))
    assert torch.equal(fresh.act(obs), actor.act(obs))


@STACKS
def test_changed_settings_take_effect(stack: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """They affect acting, learning, evaluations, rows, and later checkpoints."""
    config = config_of(stack, **CHANGED).results(results_dir=str(tmp_path / "rows"))
    with running(config) as clone:
        clone.restore_from_path(checkpoints[stack])
        assert_acts_by(config.settings(), clone.actor)
        trainer = clone.local_learner.trainer
        assert trainer.model.sampler.step_size == 0.3
        assert trainer.model.sampler.chains["explore"].momentum_std == 2.5
        rates = {g["lr"] for o in trainer.optimizers.values() for g in o.param_groups}
        assert rates == {1e-2}
        assert trainer.settings == config.settings()
        train_to(clone, 120)
        assert trainer.num_updates == 100
        assert trainer.model.alpha.item() == pytest.approx(0.05)
        clone.save_to_path(tmp_path / "later")
        weights = clone.actor.state_dict()
    rows = read_rows(tmp_path / "rows")
    assert rows["env_steps"].to_pylist() == [100, 120]
    assert all(
        '"momentum_std_explore":2.5' in text.replace(" ", "") for text in rows["config_json"].to_pylist()
    )
    policy = load_policy(tmp_path / "later")
    assert policy.actor.settings == config.settings()
    assert policy.manifest["config"]["step_size"] == 0.3
    with loaded(tmp_path / "later") as resumed:
        assert resumed.settings == config.settings()
        assert_equal(weights, resumed.actor.state_dict())
        assert_acts_by(config.settings(), resumed.actor)


@pytest.mark.parametrize(("before", "after"), [(0.1, [0.3]), ([0.1], [0.3]), ([0.3], 0.1)])
def test_a_step_size_per_dimension_changes(before: Any, after: Any, tmp_path: Path) -> None:
    """Lists are tensors in the sampler, which the checkpoint's weights must not overwrite."""
    with running(config_of(step_size=before)) as donor:
        train_to(donor, 40)
        donor.save_to_path(tmp_path / "checkpoint")
    config = config_of(step_size=after)
    with running(config) as clone:
        clone.restore_from_path(tmp_path / "checkpoint")
        assert_acts_by(config.settings(), clone.actor)
        assert_acts_by(config.settings(), clone.local_learner.trainer.model)
        clone.train()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_remote_workers_take_the_change(checkpoints: dict[str, Path]) -> None:
    def acts(runner: Any) -> Any:
        model = runner.module.model
        chain = model.sampler.chains["explore"]
        return (
            chain.momentum_std,
            chain.num_steps,
            model.sampler.step_size,
            model.alpha.item(),
            runner._run_seed,
        )

    config = config_of(seed=4, **CHANGED).env_runners(num_env_runners=1).learners(num_learners=1)
    with running(config) as clone:
        clone.restore_from_path(checkpoints["new"])
        clone.train()
        found = clone.env_runner_group.foreach_env_runner(acts, local_env_runner=False)
        assert found == [(2.5, 2, 0.3, pytest.approx(0.05), 4)]
        streams = clone.env_runner_group.foreach_env_runner(
            lambda runner: runner._owner, local_env_runner=False
        )
        assert streams == [("runner", 1, 80)]


REFUSED: dict[str, Any] = {
    "hidden_units": 32,
    "policy_layers": 2,
    "critic_layers": 1,
    "leapfrog_units": 8,
    "leapfrog_state_input": False,
    "force_gate": "none",
    "learn_step_size": True,
    "replay_capacity": 500,
    "warmup_steps": 30,
    "update_to_data": 2.0,
    "alpha": "auto",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_changes_are_refused(name: str, checkpoints: dict[str, Path]) -> None:
    saved = getattr(config_of(), name)
    with running(config_of(**{name: REFUSED[name]})) as clone:
        before = clone.actor.state_dict()
        sentence = (
            rf"made with {name}={saved!r}, but this run has {REFUSED[name]!r}, and {name} cannot change"
        )
        with pytest.raises(CheckpointError, match=sentence):
            clone.restore_from_path(checkpoints["new"])
        assert clone.env_steps == 0
        assert_equal(before, clone.actor.state_dict())


def test_another_environment_is_refused(checkpoints: dict[str, Path]) -> None:
    config = config_of().environment(env_config={"max_episode_steps": 30})
    with running(config) as clone, pytest.raises(CheckpointError, match=r"env_config=.* 25.* 30"):
        clone.restore_from_path(checkpoints["new"])


def test_a_learned_step_size_stays_the_checkpoints(tmp_path: Path) -> None:
    with running(config_of(learn_step_size=True)) as donor:
        donor.train()
        donor.save_to_path(tmp_path / "checkpoint")
    with (
        running(config_of(learn_step_size=True, step_size=0.3)) as clone,
        pytest.raises(CheckpointError, match=r"step_size=0\.1, but this run has 0\.3"),
    ):
        clone.restore_from_path(tmp_path / "checkpoint")


@EVERY_ALGORITHM
def test_what_may_change_is_a_setting(algorithm: str) -> None:
    assert find_settings(algorithm).changeable <= set(find_settings(algorithm).model_fields)


# --- seeds ---


def test_another_seed_is_another_future(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """It has the donor's networks and replay, but its own streams and episodes, which are the same each time."""
    seen = {}
    for name, seed in (("donor", 3), ("one", 4), ("again", 4), ("other", 5)):
        with running(config_of(seed=seed).results(results_dir=str(tmp_path / name))) as algorithm:
            algorithm.restore_from_path(checkpoints["new"])
            begun = facts(algorithm)
            train_to(algorithm, 120)
            seen[name] = begun, facts(algorithm)
            algorithm.save_to_path(tmp_path / f"{name} at 120")
    assert_equal(seen["one"], seen["again"])
    for name in ("one", "other"):
        begun, ended = seen[name]
        for key in ("parameters", "optimizers", "rows", "num_updates"):
            assert_equal(seen["donor"][0]["learner"][key], begun["learner"][key])
        assert begun["learner"]["streams"] == {}  # none is drawn from yet
        assert not np.array_equal(seen["donor"][1]["learner"]["rows"], ended["learner"]["rows"])
        runner = begun["runners"][0]
        assert (runner["seed"], runner["owner"]) == ({"one": 4, "other": 5}[name], ("runner", 0, 80))
        fresh = numpy_generator(runner["seed"], *runner["owner"], "warmup")
        assert runner["warmup"] == fresh.bit_generator.state
        assert runner["environments"][0]["length"] == 0
        learned, theirs = ended["learner"]["streams"], seen["donor"][1]["learner"]["streams"]
        for stream in ("replay", "base", "momentum"):
            assert not np.array_equal(learned[stream], theirs[stream])
        rows = read_rows(tmp_path / name)
        assert rows["seed"].to_pylist() == [runner["seed"]]
        assert read_manifest(tmp_path / f"{name} at 120")["config"]["seed"] == runner["seed"]
    assert not np.array_equal(seen["one"][1]["learner"]["rows"], seen["other"][1]["learner"]["rows"])


def test_a_clone_resumes_exactly(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """This holds also for a checkpoint taken before it drew anything."""
    with running(config_of(seed=4, **CHANGED)) as clone:
        clone.restore_from_path(checkpoints["new"])
        clone.save_to_path(tmp_path / "at once")
        train_to(clone, 120)
        clone.save_to_path(tmp_path / "later")
        train_to(clone, 160)
        expected = facts(clone)
    for name in ("at once", "later"):
        with loaded(tmp_path / name) as resumed:
            train_to(resumed, 160)
            assert_equal(expected, facts(resumed))


def test_a_trial_without_a_seed_has_its_own() -> None:
    """It keeps its seed on resume, and every other trial has another one."""
    configs = [in_trial(config_of(seed=None), trial) for trial in ("a", "a", "b")]
    for config in configs:
        config.validate()
    first, again, other = (config.seed for config in configs)
    assert first == again != other


def trained(config: Any, checkpoint: Path | None, out: Path) -> tuple[int, Any]:
    """Train 40 steps from `checkpoint` and save; return the run's seed and its final state."""
    with running(config) as algorithm:
        if checkpoint is not None:
            algorithm.restore_from_path(checkpoint)
        algorithm.train()
        algorithm.save_to_path(out)
        return algorithm.run_seed, facts(algorithm)


@pytest.mark.parametrize("seed", [3, None])
def test_a_clone_of_a_trial_is_not_its_donor(seed: int | None, tmp_path: Path) -> None:
    """PBT copies the donor's whole configuration, including the seed; a resumed trial keeps its own streams."""

    def config(trial: str) -> Any:
        return in_trial(config_of(seed=seed), trial).results(results_dir=str(tmp_path / "rows"))

    donors_seed, _ = trained(config("a"), None, tmp_path / "a 40")
    resumed_seed, resumed = trained(config("a"), tmp_path / "a 40", tmp_path / "a 80")
    clones_seed, clone = trained(config("b"), tmp_path / "a 40", tmp_path / "b 80")
    assert donors_seed == resumed_seed != clones_seed
    assert seed in (None, donors_seed)
    assert not np.array_equal(resumed["learner"]["rows"], clone["learner"]["rows"])
    with running(config("b")) as whole:
        whole.restore_from_path(tmp_path / "a 40")
        train_to(whole, 120)
        expected = facts(whole)
    again_seed, again = trained(config("b"), tmp_path / "b 80", tmp_path / "b 120")
    assert again_seed == clones_seed
    assert_equal(expected, again)
    with loaded(tmp_path / "b 80") as outside_tune:
        assert outside_tune.run_seed == clones_seed
    of_clone = [row for row in read_rows(tmp_path / "rows").to_pylist() if row["trial_id"] == "b"]
    assert [(row["env_steps"], row["seed"]) for row in of_clone] == [(80, clones_seed), (120, clones_seed)]


def test_the_old_stack_reseeds(checkpoints: dict[str, Path]) -> None:
    """Exploration, learning and the environment's generator are reseeded, the same way each time."""
    seen = []
    for seed in (3, 4, 4):
        with running(config_of("old", seed=seed)) as algorithm:
            algorithm.restore_from_path(checkpoints["old"])
            policy = algorithm.get_policy()
            owner = policy._seed, policy._owner[-1]
            assert owner == ((3, 0) if seed == 3 else (4, 80))
            trainer = algorithm.local_learner.trainer
            assert (trainer._seed, trainer._joined_at) == owner
            if seed == 4:
                assert trainer.streams.get_state() == {}  # none is drawn from yet
                fresh = numpy_generator(4, "worker", 0, 80, "environment", 0)
                (state,) = algorithm.env_runner.foreach_env(lambda env: env.unwrapped.np_random)
                assert state.bit_generator.state == fresh.bit_generator.state
            train_to(algorithm, 120)
            replay = algorithm.local_learner.replay
            seen.append(np.concatenate(replay.read(80, 120)))
    assert np.array_equal(seen[1], seen[2])
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_old_workers_reseed(checkpoints: dict[str, Path]) -> None:
    config = config_of("old", seed=4, **CHANGED).env_runners(num_env_runners=2)
    with running(config) as clone:
        clone.restore_from_path(checkpoints["old"])

        def about(worker: Any) -> Any:
            policy = worker.get_policy()
            return policy._seed, policy._owner, policy.model.model.alpha.item()

        found = clone.env_runner_group.foreach_env_runner(about, local_env_runner=False)
        assert found == [(4, ("policy", i, 80), pytest.approx(0.05)) for i in (1, 2)]
        train_to(clone, 120)


def test_rllibs_way_in_reseeds_too(checkpoints: dict[str, Path]) -> None:
    clone = ActorCriticAlgorithm.from_checkpoint(checkpoints["new"], config=config_of(seed=4))
    try:
        assert (clone.run_seed, clone.env_runner._run_seed, clone.env_steps) == (4, 4, 80)
    finally:
        clone.stop()
