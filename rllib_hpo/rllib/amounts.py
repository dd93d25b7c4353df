"""Validate numeric options of RLlib, which itself accepts any number for them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from rllib_hpo.errors import SettingsError

_COUNTS = {
    "num_envs_per_env_runner": 1,
    "metrics_num_episodes_for_smoothing": 1,
    "max_num_env_runner_restarts": 0,
    "local_gpu_idx": 0,
}
"""Integer options by their least value."""

_AMOUNTS = (
    "num_cpus_for_main_process num_cpus_per_env_runner num_cpus_per_learner num_gpus_per_learner sample_timeout_s "
    "env_runner_health_probe_timeout_s".split()
)
"""Options from 0 on, and the other values that RLlib accepts, such as "auto" and None."""


def validate_amounts(config: Any) -> None:
    """Check that counts and amounts are not too small.

    Raises:
        SettingsError: Naming option, value and what is allowed.
    """
    for name, least in _COUNTS.items():
        value = getattr(config, name)
        if not (isinstance(value, Integral) and int(value) >= least):
            raise SettingsError(f"{name}={value!r} must be an integer: {least} or more.")
    for name in _AMOUNTS:
        value = getattr(config, name)
        if isinstance(value, Real) and value < 0:
            raise SettingsError(f"{name}={value!r} must be 0 or more.")
    fragment = config.rollout_fragment_length
    if fragment != "auto" and not (isinstance(fragment, Integral) and int(fragment) >= 1):
        raise SettingsError(f"rollout_fragment_length={fragment!r} must be 'auto' or an integer from 1 on.")
