"""Test hyperparameters: defaults, rejected values and messages, and the registry of algorithms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from rllib_hpo.algorithms import registry
from rllib_hpo.algorithms.registry import BUILT_IN, find_settings, register_algorithm
from rllib_hpo.algorithms.td3 import TD3Settings
from rllib_hpo.errors import SettingsError, UnknownNameError
from rllib_hpo.samplers import SAMPLERS
from rllib_hpo.samplers.tempering import tempering_scales
from rllib_hpo.settings import (
    ActorCriticSettings,
    SACHPOSettings,
    SACNFSettings,
    SACSettings,
    parse_settings,
)
from tests.kinds import OF_VECTORS

EVERY = pytest.mark.parametrize("algorithm", OF_VECTORS)


def refusal(model: type[ActorCriticSettings], **values: Any) -> str:
    """Return the message that rejects `values`."""
    with pytest.raises(SettingsError) as caught:
        parse_settings(model, values)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("algorithm", BUILT_IN)
def test_defaults_are_valid_and_documented(algorithm: str) -> None:
    model = find_settings(algorithm)
    parse_settings(model, {name: field.default for name, field in model.model_fields.items()})
    assert all(field.description for field in model.model_fields.values())
    assert (model.sampler in SAMPLERS) == issubclass(model, ActorCriticSettings)
    assert model.__doc__


@EVERY
def test_what_is_common_has_the_papers_values(algorithm: str) -> None:
    """Values are those of arXiv 2103.12020, V-A, and the field's conventions."""
    settings = find_settings(algorithm)()
    is_soft_q = algorithm == "soft-q"  # by its authors' later code
    batch, units, tau = (128, 128, 1.0) if is_soft_q else (256, 256, 0.005)
    assert (settings.lr, settings.train_batch_size_per_learner, settings.replay_capacity) == (
        3e-4,
        batch,
        10**6,
    )
    assert (settings.gamma, settings.tau, settings.update_to_data) == (0.99, tau, 1.0)
    is_delayed = isinstance(settings, TD3Settings)
    assert settings.warmup_steps == (25_000 if is_delayed else 10_000)  # the former by TD3's authors
    assert (settings.hidden_units, settings.critic_layers) == (units, 2)
    assert (settings.evaluation_every, settings.evaluation_episodes) == (10_000, 10)
    assert settings.policy_layers == (1 if algorithm.startswith(("sac-nf", "sac-hpo")) else 2)


def test_defaults_that_depend_on_the_task_are_those_of_ant() -> None:
    from rllib_hpo.tasks import find_task

    for algorithm, values in find_task("ant").defaults.items():
        defaults = find_settings(algorithm)().model_dump()
        assert {name: defaults[name] for name in values} == dict(values)


@EVERY
def test_settings_survive_json(algorithm: str) -> None:
    model = find_settings(algorithm)
    changed: dict[str, Any] = {"update_to_data": 0.25}
    if issubclass(model, ActorCriticSettings):
        changed |= {"alpha": "auto", "target_entropy": -2.5}
    settings = parse_settings(model, changed)
    assert parse_settings(model, json.loads(json.dumps(settings.model_dump()))) == settings


@EVERY
@pytest.mark.parametrize(
    ("name", "value", "phrase"),
    [
        ("gamma", 1.5, "less than or equal to 1"),
        ("lr", 0.0, "greater than 0"),
        ("lr", float("nan"), "finite"),
        ("tau", 0.0, "greater than 0"),
        ("train_batch_size_per_learner", 0, "greater than or equal to 1"),
        ("train_batch_size_per_learner", 12.5, "integer"),
        ("update_to_data", -1.0, "greater than or equal to 0"),
        ("update_to_data", float("inf"), "finite"),
        ("warmup_steps", 0, "greater than or equal to 1"),
        ("warmup_steps", "many", "integer"),
        ("alpha", -0.1, "greater than 0"),
        ("alpha", "automatic", "number"),
        ("policy_layers", 0, "greater than or equal to 1"),
        ("critic_activation", "gelu", "'relu'"),
        ("objective_critic", "both", "'online' or 'target'"),
        ("evaluation_every", 0, "greater than or equal to 1"),
        ("checkpoint_every", True, "integer"),
        ("replay_capacity", None, "integer"),
    ],
)
def test_impossible_values_are_refused(algorithm: str, name: str, value: Any, phrase: str) -> None:
    if name not in find_settings(algorithm).model_fields:
        assert f"'{name}' is not a setting of" in refusal(find_settings(algorithm), **{name: value})
        return
    message = refusal(find_settings(algorithm), **{name: value})
    assert f"{name}={value!r} must be" in message
    assert phrase in message


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        ({"leapfrog_steps": -1}, "leapfrog_steps=-1 must be greater than or equal to 0"),
        ({"step_size": 0.0}, "step_size=0.0 must be greater than 0"),
        ({"step_size": [0.1, -0.1]}, "step_size=[0.1, -0.1] must be"),
        ({"step_size": []}, "step_size=[] must be"),
        ({"momentum_std_explore": 0.0}, "momentum_std_explore=0.0 must be greater than 0"),
        ({"momentum_std_train": -1.0}, "momentum_std_train=-1.0 must be greater than 0"),
        ({"force_scale": "two"}, "'unit' or 'inverse_temperature'"),
        ({"explore_sampler": "radial_flow"}, "'hamiltonian' or 'gaussian'"),
    ],
)
def test_impossible_hamiltonians_are_refused(values: dict[str, Any], phrase: str) -> None:
    assert phrase in refusal(SACHPOSettings, **values)


def test_several_mistakes_are_told_at_once() -> None:
    message = refusal(SACSettings, lr=-1.0, gama=0.9)
    assert "lr=-1.0" in message
    assert "'gamma'" in message


def test_an_unknown_name_gets_the_nearest_one() -> None:
    assert "'leapfrog_step' is not a setting of SACHPO (did you mean 'leapfrog_steps'?)" in refusal(
        SACHPOSettings, leapfrog_step=3
    )
    message = refusal(SACSettings, leapfrog_steps=3)
    assert "'leapfrog_steps' is not a setting of SAC" in message
    assert "valid: alpha, " in message
    assert "num_flows" not in message


def test_the_source_begins_the_message() -> None:
    with pytest.raises(SettingsError, match=r"^run\.yaml: lr="):
        parse_settings(SACSettings, {"lr": -1.0}, source="run.yaml")


def test_tempering_must_not_amplify_unless_allowed() -> None:
    """Schedule (17) of the first version of the paper ends at beta_K = 1: a std below 1 is scaled up."""
    message = refusal(SACHPOSettings, tempering=True, momentum_std_explore=0.5, momentum_std_train=0.1)
    assert "momentum_std_explore and momentum_std_train" in message
    assert "tempering_allow_heating" in message
    calm = {"tempering": True, "momentum_std_explore": 1.5, "momentum_std_train": 1.0}
    parse_settings(SACHPOSettings, calm)
    parse_settings(SACHPOSettings, calm | {"momentum_std_train": 0.1, "tempering_allow_heating": True})
    # What never runs a chain cannot amplify.
    parse_settings(SACHPOSettings, calm | {"momentum_std_train": 0.1, "train_sampler": "gaussian"})


NO_STEPS = "leapfrog_steps is 0"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # HalfCheetah's row of Table I: training has std 1, exploration heats.
        (
            {"momentum_std_train": 1.0, "momentum_std_explore": 0.5, "tempering_allow_heating": True},
            ["tempering=true has no effect in training (momentum_std_train is 1, so every factor is 1)."],
        ),
        (
            {"momentum_std_train": 1.5, "momentum_std_explore": 1.5, "leapfrog_steps": 0},
            [f"tempering=true has no effect in exploration ({NO_STEPS}) and in training ({NO_STEPS})."],
        ),
        (
            {"momentum_std_train": 1.5, "momentum_std_explore": 1.5, "explore_sampler": "gaussian"},
            ["tempering=true has no effect in exploration (its sampler is the Gaussian)."],
        ),
        ({"momentum_std_train": 1.5, "momentum_std_explore": 1.5}, []),
        ({"momentum_std_train": 1.0, "tempering": False}, []),
    ],
)
def test_tempering_that_changes_nothing_is_said(values: dict[str, Any], expected: list[str]) -> None:
    assert parse_settings(SACHPOSettings, {"tempering": True} | values).notices() == expected


def test_a_notice_is_given_where_the_factors_are_one() -> None:
    """The factors are the schedule's."""
    for std in (0.5, 1.0, 1.5):
        values = {"momentum_std_train": std, "momentum_std_explore": 2.0, "tempering_allow_heating": True}
        settings = parse_settings(SACHPOSettings, {"tempering": True} | values)
        factors = tempering_scales(settings.momentum_std_train, settings.leapfrog_steps)
        assert bool(settings.notices()) == all(factor == 1 for factor in factors)


def test_evaluations_use_the_sampler_that_is_trained() -> None:
    assert SACSettings().evaluation_sampler() == "gaussian"
    assert SACNFSettings().evaluation_sampler() == "radial_flow"
    assert SACHPOSettings().evaluation_sampler() == "hamiltonian"
    assert SACHPOSettings(train_sampler="gaussian").evaluation_sampler() == "gaussian"
    assert SACHPOSettings(explore_sampler="gaussian").evaluation_sampler() == "hamiltonian"


def test_a_tuple_is_a_list() -> None:
    assert parse_settings(SACHPOSettings, {"step_size": (0.1, 0.2)}).step_size == [0.1, 0.2]


def test_settings_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SACSettings().lr = 0.1


@pytest.fixture
def entries() -> Iterator[None]:
    """Restore the registry after the test."""
    before = dict(registry._ENTRIES)
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)


class UniformSettings(ActorCriticSettings):
    """Define settings of another package."""

    sampler: ClassVar[str] = "uniform"


@pytest.mark.usefixtures("entries")
def test_algorithms_can_be_added() -> None:
    register_algorithm("uniform", UniformSettings)
    assert find_settings("uniform") is UniformSettings


def test_an_unknown_algorithm_gets_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown algorithm 'sac-hop'\. Did you mean 'sac-hpo'\?"):
        find_settings("sac-hop")


def test_the_registry_is_found_where_it_was_in_the_first_release() -> None:
    from rllib_hpo.settings import find_settings as find
    from rllib_hpo.settings import register_algorithm as register

    assert (find, register) == (find_settings, register_algorithm)
