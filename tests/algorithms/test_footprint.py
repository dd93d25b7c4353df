"""Test that memory estimates are lower bounds, and that they are checked before memory is allocated."""

from __future__ import annotations

from typing import Any

import pytest

from rllib_hpo.algorithms.footprint import machine_memory, refuse_replay, refuse_too_large
from rllib_hpo.algorithms.registry import BUILT_IN, find_settings, make_method
from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.settings import SACHPOSettings, SACSettings
from tests.kinds import OF_IMAGES, OF_VECTORS


@pytest.mark.parametrize("algorithm", OF_VECTORS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("obs_dim", "action_dim"), [(1, 1), (11, 3), (376, 17)])
def test_the_estimate_is_a_lower_bound(algorithm: str, layers: int, obs_dim: int, action_dim: int) -> None:
    settings = find_settings(algorithm)(critic_layers=layers, policy_layers=layers)
    method = make_method(settings)
    actor = method.make_actor(obs_dim, action_dim, seed=0)
    taken = sum(value.numel() * value.element_size() for value in actor.state_dict().values())
    estimated = sum(part.num_bytes for part in method.actor_parts(obs_dim, action_dim))
    assert 0.6 * taken <= estimated <= taken


@pytest.mark.parametrize("size", [21, 84])
@pytest.mark.parametrize("algorithm", OF_IMAGES)
def test_the_estimate_from_images_is_a_lower_bound(algorithm: str, size: int) -> None:
    method, obs_dim = make_method(find_settings(algorithm)(hidden_units=64)), 9 * size**2
    actor = method.make_actor(obs_dim, 6, seed=0)
    taken = sum(value.numel() * value.element_size() for value in actor.state_dict().values())
    estimated = sum(part.num_bytes for part in method.actor_parts(obs_dim, 6))
    assert 0.4 * taken <= estimated <= taken


@pytest.mark.parametrize(
    "values",
    [{"hidden_units": 10**7}, {"hidden_units": 2**52}, {"train_batch_size_per_learner": 10**12}, {"num_flows": 10**13},
     {"leapfrog_units": 10**13}],
)  # fmt: skip
def test_what_no_machine_can_hold_is_refused_by_its_name(values: dict[str, Any]) -> None:
    ((name, _),) = values.items()
    algorithm = "sac-nf" if name == "num_flows" else "sac-hpo"
    with pytest.raises(SettingsError, match=f"^{name} is too large: .* this machine has .* GB"):
        resolve({"algorithm": algorithm, **values})
    if name == "hidden_units":
        for made in BUILT_IN:
            method = make_method(find_settings(made)(**values))
            for make in (method.make_model, method.make_actor):
                with pytest.raises(SettingsError, match="hidden_units is too large"):
                    make(3, 1, seed=0)


def test_a_replay_is_refused_only_where_the_steps_would_fill_it() -> None:
    settings = SACHPOSettings(replay_capacity=10**14)
    row = make_method(settings).layout(11, 3).num_bytes
    refuse_replay(settings, row, steps=10**6, memory=10**9)
    with pytest.raises(SettingsError, match="replay_capacity=100000000000000 is too large"):
        refuse_replay(settings, row, steps=10**14, memory=10**9)
    with pytest.raises(SettingsError, match="replay_capacity"):
        resolve({"replay_capacity": 10**15, "steps": 10**15})
    resolve({"replay_capacity": 10**15})


def test_what_fits_is_not_refused() -> None:
    refuse_too_large(make_method(SACSettings()).learner_parts(376, 17), memory=2**26)
    assert machine_memory() > 2**28


@pytest.mark.parametrize("force_gate", ["gated", "none"])
@pytest.mark.parametrize("train_sampler", ["hamiltonian", "gaussian"])
@pytest.mark.parametrize("leapfrog_state_input", [True, False])
def test_no_actor_is_smaller_than_its_bound(
    force_gate: Any, train_sampler: Any, leapfrog_state_input: bool
) -> None:
    """A policy file smaller than its bound is rejected."""
    settings = SACHPOSettings(
        force_gate=force_gate, train_sampler=train_sampler, leapfrog_state_input=leapfrog_state_input
    )
    for dims in ((3, 1), (44, 17)):
        held = sum(
            v.numel() * v.element_size() for v in SamplerActor(*dims, settings, seed=0).state_dict().values()
        )
        assert sum(part.num_bytes for part in make_method(settings).actor_parts(*dims)) <= held
