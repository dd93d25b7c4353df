"""Validate an algorithm's config: options with an effect, numbers, wrappers and callbacks."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils import force_list

from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import SettingsError, nearest
from rllib_hpo.rllib._private import INTERNAL_OPTIONS, is_atari
from rllib_hpo.rllib.environment import stateful_wrappers
from rllib_hpo.settings import check_learners

EFFECTIVE_OPTIONS = frozenset(
    """
    enable_rl_module_and_learner enable_env_runner_and_connector_v2
    algo_class placement_strategy num_cpus_for_main_process custom_resources_for_main_process
    env env_config
    num_env_runners num_envs_per_env_runner num_cpus_per_env_runner custom_resources_per_env_runner
    rollout_fragment_length sample_timeout_s validate_env_runners_after_construction
    callbacks_class callbacks_on_algorithm_init callbacks_on_env_runners_recreated
    callbacks_on_checkpoint_loaded callbacks_on_environment_created callbacks_on_evaluate_start
    callbacks_on_evaluate_end callbacks_on_train_result
    metrics_num_episodes_for_smoothing log_level log_sys_usage seed
    restart_failed_env_runners ignore_env_runner_failures max_num_env_runner_restarts
    env_runner_health_probe_timeout_s
    """.split()
)
"""Options of AlgorithmConfig that have an effect. Changing any other one is an error."""

NEW_STACK_OPTIONS = frozenset(
    """
    num_learners num_gpus_per_learner num_cpus_per_learner custom_resources_per_learner local_gpu_idx
    evaluation_num_env_runners max_lead_steps limit_gpu_memory restart_failed_sub_environments
    callbacks_on_episode_start callbacks_on_episode_step callbacks_on_episode_end callbacks_on_sample_end
    """.split()
)
"""Options that have an effect on RLlib's new API stack only."""

OLD_STACK_OPTIONS = frozenset(["num_gpus"])
"""Options that have an effect on RLlib's old API stack only."""

RUN_OPTIONS = frozenset(
    "results_dir replay_dir sweep variant task trial_id tune_trial imports initialize_from".split()
)
"""Options of this package that describe the run rather than the algorithm."""

_INTERNAL = frozenset(
    "algorithm _settings_class class policies simple_optimizer worker_index gamma lr"
    " _accepts_idle_settings _method _sampler".split()
)

REPLACED_OPTIONS = {
    "evaluation_interval": "evaluation_every, in environment steps",
    "evaluation_duration": "evaluation_episodes",
    "train_batch_size": "train_batch_size_per_learner",
    "min_sample_timesteps_per_iteration": "steps_per_iteration",
    "grad_clip": "no gradient clipping, as in the papers",
}
"""Replacements of options that RLlib users may try."""

_UNSUPPORTED_CALLBACKS = (
    "on_evaluate_offline_start on_evaluate_offline_end on_offline_eval_runners_recreated on_workers_recreated"
).split()
"""Methods of callbacks that are never called."""

_UNSUPPORTED_ON_NEW_STACK = (
    "on_episode_created on_learn_on_batch on_postprocess_trajectory on_create_policy on_sub_environment_created"
).split()
"""Methods of callbacks that the new API stack does not call."""


_NORMALIZED_BY = {
    "normalize_observations": "normalize-observation",
    "normalize_rewards": "normalize-reward",
}
"""Wrappers that do what a setting does."""

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


def validate_numbers(config: Any) -> None:
    """Check all numeric options.

    Raises:
        SettingsError: Naming option, value and what is allowed.
    """
    possible = {
        "num_learners": (range(2**31), "0 (in the driver) or more (remote)"),
        "num_env_runners": (range(2**31), "0 (in the driver) or more"),
        "evaluation_num_env_runners": (range(2**31), "0 (in the driver) or more"),
        "seed": (range(2**31), "from 0 to 2**31 - 1, or None"),
    }
    for name, (numbers, allowed) in possible.items():
        value = getattr(config, name)
        if not (isinstance(value, Integral) and value in numbers):
            raise SettingsError(f"{name}={value!r} must be an integer: {allowed}.")
    _validate_amounts(config)
    if not isinstance(config.limit_gpu_memory, bool):
        raise SettingsError(f"limit_gpu_memory={config.limit_gpu_memory!r} must be True or False.")
    _validate_max_lead_steps(config)
    check_learners(config.num_learners, config.num_gpus_per_learner, config.settings())
    if not 0 <= config.num_gpus <= 1:
        raise SettingsError(
            f"num_gpus={config.num_gpus!r} must be from 0 to 1: one GPU, or a fraction of one."
        )


def _validate_max_lead_steps(config: Any) -> None:
    lead, fragment = config.max_lead_steps, config.total_fragment_steps() // max(1, config.num_env_runners)
    if lead == "auto" or (isinstance(lead, Integral) and (lead == 0 or lead >= fragment)):
        return
    raise SettingsError(
        f"max_lead_steps={lead!r} must be 'auto', 0 (sampling and learning alternate) or an integer of at least "
        f"{fragment}, the steps that a runner returns at a time."
    )


def validate_wrapper_statistics(config: Any) -> None:
    """Check that wrappers with statistics see all experience: one environment, whose state is saved.

    Raises:
        SettingsError: Naming the wrapper, and what it needs.
    """
    stateful = stateful_wrappers(config)
    one_env = config.num_env_runners == 0 and config.num_envs_per_env_runner == 1
    if stateful and (config.is_old_stack or not one_env):
        raise SettingsError(
            f"The wrapper '{stateful[0]}' gathers statistics, so it needs num_env_runners=0, "
            "num_envs_per_env_runner=1 and RLlib's new API stack: several environments would each gather their own. "
            "Instead, normalize_observations and normalize_rewards gather statistics of any number."
        )
    for setting, wrapper in _NORMALIZED_BY.items():
        if getattr(config.settings(), setting) and wrapper in stateful:
            raise SettingsError(
                f"{setting}=true would normalise what the wrapper '{wrapper}' has normalised already; use one of them."
            )


def validate_for_old_stack(config: Any) -> None:
    """Reject what RLlib's old API stack does not pass on.

    Raises:
        SettingsError: Naming the setting or algorithm.
    """
    if not config.is_old_stack:
        return
    settings = config.settings()
    if settings.replay == "her":
        raise SettingsError(
            "replay='her' relabels whole episodes as they end, which RLlib's old API stack does not pass on; set "
            "api_stack to 'new'."
        )
    if make_method(settings).takes_images:
        raise SettingsError(
            f"{config.algorithm} stores images as bytes, each frame once, which RLlib's old API stack does not do; set "
            "api_stack to 'new'."
        )
    if settings.normalize_rewards:
        raise SettingsError(
            "normalize_rewards=true needs the discounted returns of single environments, which RLlib's old API stack "
            "does not pass on; set api_stack to 'new'."
        )


def reject_unused_options(config: Any, default: Any) -> None:
    """Refuse options that would have no effect.

    Args:
        config: The config.
        default: The default config of the same class and algorithm.

    Raises:
        SettingsError: Naming the option, and what to use instead.
    """
    stack, other = NEW_STACK_OPTIONS, OLD_STACK_OPTIONS
    if config.is_old_stack:
        stack, other = other, stack
    allowed = (
        EFFECTIVE_OPTIONS
        | stack
        | RUN_OPTIONS
        | _INTERNAL
        | INTERNAL_OPTIONS
        | set(config.settings_class.model_fields)
    )
    for name, value in vars(config).items():
        if name.startswith("__"):  # Tune's own notes
            continue
        if name not in vars(default) and name not in allowed:
            close = nearest(name, allowed)
            hint = f" Did you mean '{close}'?" if close else ""
            raise SettingsError(f"'{name}' is not an option of {type(config).__name__}.{hint}")
        if name not in allowed and not values_equal(value, vars(default).get(name)):
            instead = f" Use {REPLACED_OPTIONS[name]}." if name in REPLACED_OPTIONS else ""
            if name in other:
                instead = f" It is an option of RLlib's {'new' if config.is_old_stack else 'old'} API stack."
            raise SettingsError(f"The option {name}={value!r} would have no effect here.{instead}")
    if is_atari(config):
        raise SettingsError(
            "The option is_atari=True would have no effect here. Wrap the environment: "
            "env_config={'wrappers': [...]}."
        )
    if config.is_multi_agent:
        raise SettingsError(
            f"policies={sorted(config.policies)} must be the default, since multi-agent training is not "
            "supported."
        )


def validate_callbacks(config: Any) -> None:
    """Check that all methods of callbacks are called on the API stack.

    Raises:
        SettingsError: Naming the method, and what to use instead.
    """
    if config.is_old_stack and isinstance(config.callbacks_class, list):
        raise SettingsError("RLlib's old API stack accepts a single callbacks class, not a list.")
    _validate_environment_callback(config)
    uncalled = (
        _UNSUPPORTED_CALLBACKS
        if config.is_old_stack
        else [*_UNSUPPORTED_CALLBACKS, *_UNSUPPORTED_ON_NEW_STACK]
    )
    for callbacks in force_list(config.callbacks_class):
        for method in uncalled:
            default = getattr(RLlibCallback, method, None)
            if getattr(callbacks, method, default) is not default:
                raise SettingsError(
                    f"The callback {callbacks.__name__}.{method} would never be called: transitions are "
                    "collected in columns, and batches are drawn by the learner. Use on_environment_created, "
                    "on_episode_start, on_train_result or on_evaluate_end."
                )


def _validate_environment_callback(config: Any) -> None:
    name = "on_environment_created"
    is_method = any(
        getattr(callbacks, name) is not getattr(RLlibCallback, name)
        for callbacks in force_list(config.callbacks_class)
    )
    if config.is_old_stack and (is_method or config.callbacks_on_environment_created):
        raise SettingsError(
            f"The callback {name} would never be called on RLlib's old API stack. Use on_sub_environment_created."
        )


def _validate_amounts(config: Any) -> None:
    """Check that counts and amounts are not too small; RLlib accepts any number."""
    for name, least in _COUNTS.items():
        value = getattr(config, name)
        if not (isinstance(value, Integral) and int(value) >= least):
            raise SettingsError(f"{name}={value!r} must be an integer of at least {least}.")
    for name in _AMOUNTS:
        value = getattr(config, name)
        if isinstance(value, Real) and value < 0:
            raise SettingsError(f"{name}={value!r} must be at least 0.")
    fragment = config.rollout_fragment_length
    if fragment != "auto" and not (isinstance(fragment, Integral) and int(fragment) >= 1):
        raise SettingsError(
            f"rollout_fragment_length={fragment!r} must be 'auto' or an integer of at least 1."
        )


def values_equal(value: Any, default: Any) -> bool:
    """Whether two option values are equal, also objects of RLlib that define no equality."""
    try:
        return bool(_canonical(value) == _canonical(default)) or repr(value) == repr(default)
    except AttributeError:  # PolicySpec compares itself with PolicySpecs only
        return False


def _canonical(value: Any) -> Any:
    """`value` as Tune's searchers and PB2 return it: without empty dicts inside dicts, and lists as tuples."""
    if isinstance(value, dict):
        kept = {key: _canonical(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if not (isinstance(item, dict) and not item)}
    return tuple(map(_canonical, value)) if isinstance(value, (list, tuple)) else value
