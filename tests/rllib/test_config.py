"""Test the configs: RLlib's calls, the papers' defaults, and that no setting is accepted without effect."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune.utils import flatten_dict
from ray.tune.utils.util import unflatten_dict

import rllib_hpo
from rllib_hpo import (
    DDPG,
    MCMCPO,
    SACHPO,
    SACNF,
    TD3,
    DDPGConfig,
    LangevinPO,
    LangevinPOConfig,
    MCMCPOConfig,
    SACGaussian,
    SACGaussianConfig,
    SACHPOConfig,
    SACHPOLagrangian,
    SACHPOLagrangianConfig,
    SACLagrangian,
    SACLagrangianConfig,
    SACNFConfig,
    SoftQ,
    SoftQConfig,
    TD3Config,
)
from rllib_hpo.algorithms.langevin_po import LangevinPOSettings
from rllib_hpo.algorithms.mcmc_po import MCMCPOSettings
from rllib_hpo.algorithms.registry import find_settings
from rllib_hpo.algorithms.sac_lagrangian import SACHPOLagrangianSettings, SACLagrangianSettings
from rllib_hpo.algorithms.soft_q import SoftQSettings
from rllib_hpo.algorithms.td3 import DDPGSettings, TD3Settings
from rllib_hpo.errors import SettingsError, UnknownNameError
from rllib_hpo.experiments.config.run_config import resolve, resolve_saved
from rllib_hpo.experiments.runs.files import RunFiles, to_rllib
from rllib_hpo.rllib.algorithms import make_config
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.validation import EFFECTIVE_OPTIONS, RUN_OPTIONS
from rllib_hpo.settings import SACHPOSettings, SACNFSettings, SACSettings, Settings
from rllib_hpo.tasks import all_tasks
from tests.rllib.environments import NoisyEnv
from tests.rllib.tiny import EVERY_ALGORITHM, TINY, running, tiny_config, tuned

OTHER_VALUES: dict[str, Any] = {
    "alpha": "auto",
    "critic_lr": 1e-3,
    "exploration_process": "ou",
    "target_noise": 0.3,
    "target_entropy": -1.5,
    "step_size": [0.1, 0.2],
    "critic_activation": "relu",  # there is no other
    "objective_critic": "target",
    "explore_sampler": "gaussian",
    "train_sampler": "gaussian",
    "force_scale": "inverse_temperature",
    "force_gate": "none",
    "multiplier": "fixed",
    "target_distance": 0.2,
    "prior": "snapshot",
    "form": "paper",
    "mass_matrix": "consistent",
    "clip_gradient": "straight_through",
    "value_proposal": "uniform",  # the other needs noise_set=None
    "svgd_space": "action",
    "kernel": "none",
    "warmup_policy": "policy",
    "kernel_width": "paper",
    "noise_set": 4,
    "evaluation_action": "best_of_particles",
    "gamma": 0.9,
    "policy_layers": 3,
    "critic_layers": 3,
    "replay": "her",
    "her_strategy": "final",
    "policy_activation": "elu",
    "compile_update": True,
    "cost": {"kind": "torque"},
    "cost_limit": 3.0,
    "cost_discounting": "undiscounted",
    "cost_initial": 1.0,
    "cost_critics": 2,
    "cost_max": 2.0,
    "terminated_cost": 1.0,
    "lagrange": "pid",
    "lagrange_estimate": "mean",
    "shield": "none",
    "momentum_refresh": "replace",
    "fallback": "safest",
}


NO_OTHER = {("policy_activation", "SoftQSettings")}
ALONG: dict[str, dict[str, Any]] = {
    "her_ratio": {"replay": "her"},
    "her_strategy": {"replay": "her"},
    "tempering": {"tempering_allow_heating": True},
    "cost": {"cost_limit": 3.0},
    "cost_limit": {"cost": {"kind": "torque"}},
}
"""Settings that a changed setting needs beside it."""
WITHOUT_SHIELD = ("tempering", "explore_sampler", "train_sampler")


def other_value(name: str, default: Any) -> Any:
    """Return a valid value of the setting `name` that is not its default."""
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default / 2


def others(model: type[Settings]) -> dict[str, Any]:
    """Return another value for every setting of an algorithm."""
    special = {
        "tempering": {"tempering_allow_heating": True},
        "noise_set": {"alpha": {"from": 1.0, "to": 0.1, "steps": 100}},
    }
    values = {name: other_value(name, field.default) for name, field in model.model_fields.items()}
    for name in values:  # where there is no other
        if (name, model.__name__) in NO_OTHER or (name == "critic_layer_norm" and model.follows_gradient):
            values[name] = model.model_fields[name].default
    for name, changes in special.items():
        values |= changes if name in values else {}
    return values


@pytest.mark.parametrize(
    ("config_class", "algorithm_class", "settings_class"),
    [
        (SACGaussianConfig, SACGaussian, SACSettings),
        (SACNFConfig, SACNF, SACNFSettings),
        (SACHPOConfig, SACHPO, SACHPOSettings),
        (TD3Config, TD3, TD3Settings),
        (DDPGConfig, DDPG, DDPGSettings),
        (LangevinPOConfig, LangevinPO, LangevinPOSettings),
        (MCMCPOConfig, MCMCPO, MCMCPOSettings),
        (SACLagrangianConfig, SACLagrangian, SACLagrangianSettings),
        (SACHPOLagrangianConfig, SACHPOLagrangian, SACHPOLagrangianSettings),
        (SoftQConfig, SoftQ, SoftQSettings),
    ],
)
def test_classes_belong_together(config_class: Any, algorithm_class: Any, settings_class: Any) -> None:
    config = config_class()
    assert config.algo_class is algorithm_class
    assert isinstance(algorithm_class.get_default_config(), config_class)
    assert config.settings_class is settings_class
    assert type(config.settings()) is settings_class
    assert type(make_config(config.algorithm)) is config_class


@EVERY_ALGORITHM
def test_every_setting_is_an_attribute_with_the_models_default(algorithm: str) -> None:
    config, model = make_config(algorithm), find_settings(algorithm)
    for name, field in model.model_fields.items():
        assert getattr(config, name) == field.default, name
    assert config.settings() == model()


@EVERY_ALGORITHM
@pytest.mark.parametrize("way", ["training", "update_from_dict"])
def test_every_setting_can_be_set(algorithm: str, way: str) -> None:
    config, values = make_config(algorithm), others(find_settings(algorithm))
    if way == "training":
        assert config.training(**values) is config
    else:
        config.update_from_dict(values)
    for name, value in values.items():
        assert getattr(config, name) == value, name
    assert config.settings().model_dump() == values
    assert config.copy().settings() == config.settings()
    assert config.to_dict()["update_to_data"] == values["update_to_data"]


@EVERY_ALGORITHM
def test_a_config_survives_being_a_dict(algorithm: str) -> None:
    """Tune passes all options of a config as one dict."""
    config = tiny_config(algorithm).env_runners(num_envs_per_env_runner=2).results(sweep="s", variant="v")
    again = make_config(algorithm).update_from_dict(config.to_dict())
    again.validate()
    assert again.settings() == config.settings()
    assert (again.env, again.seed, again.num_envs_per_env_runner) == ("Pendulum-v1", 3, 2)
    assert (again.sweep, again.variant) == ("s", "v")


@EVERY_ALGORITHM
def test_for_task_is_table_one(algorithm: str) -> None:
    config_class = type(make_config(algorithm))
    for task in all_tasks():
        config = config_class.for_task(task.name)
        assert config.env == task.env_id
        assert config.task == task.name
        expected = find_settings(algorithm)().model_dump() | dict(task.settings_for(algorithm))
        assert config.settings().model_dump() == expected


def test_for_task_is_table_one_to_the_letter() -> None:
    """The expected row of the table is typed here once more."""
    settings = SACHPOConfig.for_task("hopper").settings()
    assert isinstance(settings, SACHPOSettings)
    assert (settings.alpha, settings.momentum_std_train, settings.momentum_std_explore) == (0.2, 0.1, 1.5)
    assert (settings.step_size, settings.leapfrog_steps, settings.leapfrog_units) == (0.15, 2, 32)
    assert SACNFConfig.for_task("Hopper-v4").num_flows == 5
    assert SACGaussianConfig.for_task("humanoid").alpha == 0.05
    pendulum = SACHPOConfig.for_task("Pendulum-v1")
    assert (pendulum.task, pendulum.momentum_std_explore) == ("Pendulum-v1", 1.0)
    with pytest.raises(UnknownNameError, match="Did you mean 'hopper'"):
        SACHPOConfig.for_task("hoper")


def test_the_chain_of_calls_that_the_readme_shows() -> None:
    config = (
        SACHPOConfig()
        .environment("Hopper-v4")
        .training(leapfrog_steps=2, momentum_std_explore=1.5, momentum_std_train=0.1)
        .env_runners(num_env_runners=4)
        .learners(num_learners=1, num_gpus_per_learner=1)
    )
    config.validate()
    bundles = SACHPO.default_resource_request(config).bundles
    assert sum(bundle.get("GPU", 0) for bundle in bundles) == 1
    assert sum(bundle.get("CPU", 0) for bundle in bundles) >= 5
    assert config.learner_class.__name__ == "ActorCriticLearner"


REFUSED: dict[str, Callable[[ActorCriticConfig], Any]] = {
    "evaluation_interval": lambda c: c.evaluation(evaluation_interval=1),
    "evaluation_duration": lambda c: c.evaluation(evaluation_duration=20),
    "evaluation_config": lambda c: c.evaluation(evaluation_config={"explore": False}),
    "explore": lambda c: c.env_runners(explore=False),
    "batch_mode": lambda c: c.env_runners(batch_mode="complete_episodes"),
    "env_to_module_connector": lambda c: c.env_runners(env_to_module_connector=lambda *a, **k: []),
    "num_gpus_per_env_runner": lambda c: c.env_runners(num_gpus_per_env_runner=0.5),
    "gym_env_vectorize_mode": lambda c: c.env_runners(gym_env_vectorize_mode="ASYNC"),
    "is_atari": lambda c: c.environment(is_atari=True),
    "render_env": lambda c: c.environment(render_env=True),
    "clip_actions": lambda c: c.environment(clip_actions=True),
    "clip_rewards": lambda c: c.environment(clip_rewards=True),
    "normalize_actions": lambda c: c.environment(normalize_actions=False),
    "min_time_s_per_iteration": lambda c: c.reporting(min_time_s_per_iteration=5),
    "min_sample_timesteps_per_iteration": lambda c: c.reporting(min_sample_timesteps_per_iteration=10),
    "keep_per_episode_custom_metrics": lambda c: c.reporting(keep_per_episode_custom_metrics=True),
    "torch_compile_learner": lambda c: c.framework(torch_compile_learner=True),
    "framework": lambda c: c.framework("tf2"),
    "num_consecutive_env_runner_failures_tolerance": lambda c: c.fault_tolerance(
        num_consecutive_env_runner_failures_tolerance=3
    ),
    "delay_between_env_runner_restarts_s": lambda c: c.fault_tolerance(delay_between_env_runner_restarts_s=9),
    "env_runner_restore_timeout_s": lambda c: c.fault_tolerance(env_runner_restore_timeout_s=9),
    "extra_python_environs_for_driver": lambda c: c.python_environment(
        extra_python_environs_for_driver={"A": "1"}
    ),
    "_model_config": lambda c: c.rl_module(model_config={"fcnet_hiddens": [32]}),
    "input_": lambda c: c.offline_data(input_="somewhere"),
    "output": lambda c: c.offline_data(output="somewhere"),
    "policies": lambda c: c.multi_agent(policies={"one", "two"}),
    "policies_to_train": lambda c: c.multi_agent(policies_to_train=["one"]),
    "algorithm_config_overrides_per_module": lambda c: c.multi_agent(
        algorithm_config_overrides_per_module={"default_policy": {"lr": 1.0}}
    ),
    "num_aggregator_actors_per_learner": lambda c: c.learners(num_aggregator_actors_per_learner=1),
    "grad_clip": lambda c: setattr(c, "grad_clip", 1.0),
    "num_epochs": lambda c: setattr(c, "num_epochs", 3),
    "train_batch_size": lambda c: setattr(c, "train_batch_size", 100),
    "replay_buffer_config": lambda c: setattr(c, "replay_buffer_config", {}),
}


@pytest.mark.parametrize("option", REFUSED)
def test_options_without_effect_are_refused(option: str) -> None:
    config = SACGaussianConfig().environment("Pendulum-v1")
    REFUSED[option](config)
    with pytest.raises(SettingsError, match=option):
        config.validate()


@pytest.mark.parametrize(
    ("option", "instead"), [("evaluation_interval", "evaluation_every"), ("grad_clip", "as in the papers")]
)
def test_a_refusal_says_what_to_use_instead(option: str, instead: str) -> None:
    config = SACGaussianConfig().environment("Pendulum-v1")
    REFUSED[option](config)
    with pytest.raises(SettingsError, match=instead):
        config.validate()


def test_an_unknown_attribute_gets_the_nearest_name() -> None:
    config = SACHPOConfig().environment("Pendulum-v1")
    config.leapfrog_step = 3
    with pytest.raises(
        SettingsError, match=r"'leapfrog_step' is not an option .* Did you mean 'leapfrog_steps'\?"
    ):
        config.validate()


def test_an_unknown_hyperparameter_gets_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match="did you mean 'momentum_std_train'"):
        SACHPOConfig().training(momentum_std_trian=0.1)


@pytest.mark.parametrize("algorithm", ["sac", "sac-nf"])
def test_only_the_hamiltonian_has_leapfrog_steps(algorithm: str) -> None:
    with pytest.raises(SettingsError, match="'leapfrog_steps' is not a setting of SAC"):
        make_config(algorithm).training(leapfrog_steps=2)


def test_a_wrong_value_is_told_before_anything_starts() -> None:
    with pytest.raises(SettingsError, match="leapfrog_steps=-1 must be"):
        SACHPOConfig().environment("Pendulum-v1").training(leapfrog_steps=-1).build_algo()


@pytest.mark.parametrize(("name", "value"), [("initial_alpha", 0.5), ("target_entropy", -1.0)])
def test_settings_of_a_tuned_temperature_are_refused_for_a_fixed_one(
    name: str, value: float, tmp_path: Path
) -> None:
    message = rf"^{name}={value} would have no effect, since alpha=0\.2 is not tuned\. Set alpha to 'auto'"
    config = SACHPOConfig().environment("Pendulum-v1").training(**{name: value})
    with pytest.raises(SettingsError, match=message):
        config.copy().validate()
    with pytest.raises(SettingsError, match=message):
        resolve({"alpha": 0.2, name: value})
    config.copy().training(alpha="auto").validate()
    saved = tmp_path / "config.yaml"  # of a version that accepted it
    saved.write_text(f"alpha: 0.2  # task\n{name}: {value}  # flag\n")
    resumed = resolve_saved(saved, {})
    assert getattr(resumed.settings, name) == value
    to_rllib(resumed, RunFiles(tmp_path)).validate()
    old = vars(config).copy()
    del old["_accepts_idle_settings"]
    loaded = SACHPOConfig.__new__(SACHPOConfig)
    loaded.__setstate__(old)
    loaded.validate()


def test_minus_one_is_a_number() -> None:
    """RLlib marks deprecated options with -1, and drops them from the state of a config."""
    with running(tiny_config(alpha="auto", target_entropy=-1.0, env=NoisyEnv)) as algorithm:
        assert algorithm.settings.target_entropy == -1.0


@EVERY_ALGORITHM
def test_every_setting_reaches_the_algorithm(algorithm: str) -> None:
    # Hindsight needs a goal environment (tests/rllib/test_hindsight.py).
    without_goals = {"replay": "uniform", "her_ratio": 4, "her_strategy": "future"}
    values = others(find_settings(algorithm)) | without_goals | TINY
    with running(tiny_config(algorithm, NoisyEnv, **values)) as built:
        assert built.settings.model_dump() == values
        assert built.local_learner.trainer.settings == built.settings
        assert built.env_runner.module.model.settings == built.settings


IMPOSSIBLE: list[tuple[str, Callable[[ActorCriticConfig, Any], Any], Any]] = [
    *(("num_learners", lambda c, n: c.learners(num_learners=n), n) for n in (-1, 0.5, "1")),
    *(("num_env_runners", lambda c, n: c.env_runners(num_env_runners=n), n) for n in (-1, 1.5, None)),
    *(("seed", lambda c, n: c.debugging(seed=n), n) for n in (-1, 2**31, 1.0, "0")),
]


@pytest.mark.parametrize(("option", "set_option", "number"), IMPOSSIBLE)
def test_impossible_numbers_are_refused(option: str, set_option: Any, number: Any) -> None:
    config = SACGaussianConfig().environment("Pendulum-v1")
    set_option(config, number)
    with pytest.raises(SettingsError, match=f"^{option}={number!r} must be an integer: "):
        config.validate()


def test_learners_that_could_not_work_together_are_refused() -> None:
    config = SACGaussianConfig().environment("Pendulum-v1").learners(num_learners=3)
    config.copy().validate()
    with pytest.raises(SettingsError, match=r"^num_learners=3 must be at most replay_capacity=2: "):
        config.copy().training(replay_capacity=2).validate()
    with pytest.raises(
        SettingsError, match=r"^num_gpus_per_learner=0\.5 must be 0 or 1 with num_learners=3: "
    ):
        config.copy().learners(num_gpus_per_learner=0.5).validate()
    with pytest.raises(SettingsError, match=r"^num_gpus_per_learner=2 must be 0 or 1 with num_learners=3: "):
        config.copy().learners(num_gpus_per_learner=2).validate()
    with pytest.raises(SettingsError, match=r"^limit_gpu_memory='no' must be True or False\."):
        config.copy().learners(limit_gpu_memory="no").validate()


def test_what_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="No environment is set: set one"):
        SACHPOConfig().build_algo()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        SettingsError, match="num_gpus_per_learner=1, but torch finds no CUDA device on this machine"
    ):
        tiny_config().learners(num_gpus_per_learner=1).build_algo()


def test_an_unknown_algorithm_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'sac-nf'"):
        make_config("sacnf")


@EVERY_ALGORITHM
@pytest.mark.parametrize("way", ["dict", "flattened", "private name"])
def test_a_change_to_the_dict_of_a_config_takes_effect(algorithm: str, way: str) -> None:
    """PBT makes such changes, and PB2, which flattens the dict and loses empty ones inside."""
    for name, value in others(find_settings(algorithm)).items():
        options = tiny_config(algorithm, **tuned(algorithm)).to_dict()
        if way == "private name":  # as RLlib's own configs write it
            options["_train_batch_size_per_learner"] = 123
        options = options | ALONG.get(name, {}) | {name: value}
        if name in WITHOUT_SHIELD and "shield" in options:
            options["shield"] = "none"
        if way == "flattened":
            options = unflatten_dict(flatten_dict(options))
        again = make_config(algorithm).update_from_dict(options)
        again.validate()
        assert again.settings().model_dump()[name] == value


@EVERY_ALGORITHM
def test_numpys_numbers_are_numbers(algorithm: str) -> None:
    config = tiny_config(algorithm, NoisyEnv).training(
        train_batch_size_per_learner=np.int64(8), lr=np.float32(0.5), cuda_graph=np.bool_(False)
    )
    config.debugging(seed=np.int64(7)).env_runners(num_envs_per_env_runner=np.int32(2))
    if algorithm == "sac-hpo":
        config.training(step_size=[np.float64(0.1), np.float64(0.2)], leapfrog_steps=np.int64(2))
        assert config.step_size == [0.1, 0.2]
        assert config.copy().training(step_size=np.array([0.25, 0.5])).step_size == [0.25, 0.5]
    with running(config) as built:
        built.train()
        assert type(built.config.seed) is type(built.config.num_envs_per_env_runner) is int
        assert json.loads(json.dumps(built.run_config())) == built.run_config()


def test_a_config_of_another_algorithm_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"is for 'sac-hpo', but SACNFConfig and its trainable SACNF are for"
    ):
        SACNF(SACHPOConfig().environment("Pendulum-v1").to_dict())


def test_an_algorithm_without_a_config_has_a_name() -> None:
    """Tune prints what it could not build; without a name RLlib's own error would hide the reason."""
    assert repr(SACHPO.__new__(SACHPO)) == "SACHPO"


class CountsEpisodes(RLlibCallback):
    """Define a callback as RLlib's users write it."""

    def on_episode_created(self, **kwargs: Any) -> None:
        """Do nothing: this test never calls it."""


class SeesResults(RLlibCallback):
    """Define a callback that is called."""

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        """Add a mark to the result."""
        result["seen"] = algorithm.env_steps


def test_callbacks_that_would_never_be_called_are_refused() -> None:
    config = SACGaussianConfig().environment("Pendulum-v1").callbacks(CountsEpisodes)
    with pytest.raises(SettingsError, match=r"CountsEpisodes\.on_episode_created would never be called"):
        config.validate()
    for method in ("on_learn_on_batch", "on_create_policy", "on_evaluate_offline_end"):
        never_called = type("Never", (RLlibCallback,), {method: lambda self, **_: None})
        config = SACGaussianConfig().environment("Pendulum-v1").callbacks(never_called)
        with pytest.raises(SettingsError, match=rf"Never\.{method} would never be called"):
            config.validate()
    config = SACGaussianConfig().environment("Pendulum-v1")
    config.callbacks(on_episode_created=lambda **_: None)
    with pytest.raises(SettingsError, match="callbacks_on_episode_created"):
        config.validate()


def test_callbacks_that_are_called() -> None:
    calls: list[str] = []
    config = tiny_config().callbacks(
        SeesResults,
        on_evaluate_start=lambda **_: calls.append("start"),
        on_evaluate_end=lambda **_: calls.append("end"),
        on_environment_created=lambda **_: calls.append("environment"),
        on_algorithm_init=lambda **_: calls.append("algorithm"),
    )
    with running(config) as algorithm:
        assert algorithm.train()["seen"] == 40
    evaluation = ["start", "environment", "environment", "end"]
    assert calls == ["environment", "algorithm", *evaluation, *evaluation]


def test_a_run_without_a_seed_gets_one_that_is_recorded() -> None:
    config = tiny_config(seed=None)
    with running(config) as one, running(config.copy(copy_frozen=False)) as other:
        assert isinstance(one.config.seed, int)
        assert one.run_config()["seed"] == one.config.seed
        assert isinstance(other.config.seed, int)


def test_two_runs_of_one_config_without_a_seed_differ() -> None:
    config = tiny_config(seed=None)
    with running(config) as one, running(config) as other:
        assert one.config.seed != other.config.seed
    assert config.seed is None


def test_rllibs_own_names_stay_rllibs() -> None:
    from ray.rllib.algorithms.sac import SAC
    from ray.tune.registry import get_trainable_cls

    assert issubclass(SACGaussian, rllib_hpo.ActorCriticAlgorithm)
    assert get_trainable_cls("SAC") is SAC
    for name in (SACGaussian.__name__, SACNF.__name__, SACHPO.__name__):
        assert name not in {"SAC", "PPO", "DQN"}


def test_every_option_that_is_said_to_be_effective_exists() -> None:
    config = SACGaussianConfig()
    missing = [name for name in EFFECTIVE_OPTIONS | RUN_OPTIONS if not hasattr(config, name)]
    assert missing == []


@EVERY_ALGORITHM
def test_methods_document_every_setting(algorithm: str) -> None:
    """`training()` takes the fields of the settings class, whose descriptions are the documentation."""
    config = make_config(algorithm)
    assert "settings_class" in (inspect.getdoc(type(config).training) or "")
    assert all(field.description for field in config.settings_class.model_fields.values())


def _pickled(config: ActorCriticConfig) -> Any:
    return pickle.loads(pickle.dumps(config))


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled, ActorCriticConfig.copy])
def test_a_copy_hands_on_changed_settings(copied: Callable[[ActorCriticConfig], ActorCriticConfig]) -> None:
    """The form in which the old API stack's checkpoints keep it is copied too."""
    config = SACHPOConfig().training(train_batch_size_per_learner=8, lr=1e-2, leapfrog_steps=2)
    again = copied(copied(config))
    assert vars(again).keys() == vars(config).keys()
    state = again.get_state()
    for other in (again, SACHPOConfig().update_from_dict(state), SACHPOConfig.from_state(state)):
        assert other.settings() == config.settings()
