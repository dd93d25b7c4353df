"""AlgorithmConfig of the actor-critics: RLlib's own methods, our typed hyperparameters, nothing without effect."""

from __future__ import annotations

import copy
import functools
import secrets
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, Self

from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.tune.result import TRIAL_INFO

from rllib_hpo.algorithms.registry import algorithm_names, find_settings, method_of_others, register_algorithm
from rllib_hpo.errors import SettingsError, WorkerDiedError, nearest
from rllib_hpo.optim.replicas import LOST
from rllib_hpo.results.paths import absolute
from rllib_hpo.rllib.amounts import refuse_impossible_amounts
from rllib_hpo.rllib.environment import stateful_wrappers
from rllib_hpo.samplers import SAMPLERS, SamplerFactory, register_sampler
from rllib_hpo.settings import Settings, check_learners, complete_settings, parse_settings, without_numpy
from rllib_hpo.streams import derived_seed
from rllib_hpo.tasks import find_task

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
"""Options of AlgorithmConfig that do something here. Changing any other one is an error."""

NEW_STACK_OPTIONS = frozenset(
    """
    num_learners num_gpus_per_learner num_cpus_per_learner custom_resources_per_learner local_gpu_idx
    evaluation_num_env_runners max_lead_steps limit_gpu_memory restart_failed_sub_environments
    """.split()
)
"""Options that do something on RLlib's new API stack only."""

OLD_STACK_OPTIONS = frozenset(["num_gpus"])
"""Options that do something on RLlib's old API stack only."""

RUN_OPTIONS = frozenset(
    "results_dir replay_dir sweep variant task trial_id tune_trial imports initialize_from".split()
)
"""Our own options that describe the run rather than the algorithm."""

_PATHS = frozenset(["results_dir", "replay_dir", "initialize_from"])

FRAGMENTS_OF_LEAD = 4
"""Fragments of every runner by which sampling may lead learning unless `max_lead_steps` says otherwise."""

_INTERNAL = frozenset(
    "algorithm _settings_class class policies simple_optimizer worker_index gamma lr _train_batch_size_per_learner"
    " _is_frozen _per_module_overrides _is_atari _accepts_idle_settings _method _sampler".split()
)

_PRIVATE_NAMES = {"_train_batch_size_per_learner": "train_batch_size_per_learner"}
"""Where RLlib keeps settings of ours, and their public names."""

REPLACED_OPTIONS = {
    "evaluation_interval": "evaluation_every, in environment steps",
    "evaluation_duration": "evaluation_episodes",
    "train_batch_size": "train_batch_size_per_learner",
    "min_sample_timesteps_per_iteration": "steps_per_iteration",
    "grad_clip": "no gradient clipping, as in the papers",
}
"""What to use instead of options that RLlib users may reach for."""

_DROPPED = -1
"""RLlib's mark of a deprecated option; it drops whatever is equal to it where a config is copied."""
_DEPRECATED = frozenset(
    name
    for name, value in vars(AlgorithmConfig()).items()
    if isinstance(value, int | float) and value == _DROPPED
)
"""Options of RLlib that no longer exist."""

_UNCALLED = (
    "on_evaluate_offline_start on_evaluate_offline_end on_offline_eval_runners_recreated on_workers_recreated"
).split()
"""Methods of callbacks that nothing here calls."""

_UNCALLED_ON_NEW_STACK = (
    "on_episode_created on_episode_start on_episode_step on_episode_end on_sample_end "
    "on_learn_on_batch on_postprocess_trajectory on_create_policy on_sub_environment_created"
).split()
"""Methods of callbacks that are not called on RLlib's new API stack: it has no such events, or no episodes here."""


class ActorCriticConfig(AlgorithmConfig):
    """Config of one of the actor-critics.

    Hyperparameters are the fields of the algorithm's settings class (`rllib_hpo.settings`), set with
    `training()` and readable as attributes. They are validated when the algorithm is built, or at once by
    `settings()`.

    Args:
        algorithm: Name of a registered algorithm, such as "sac-hpo", or of one of another package.
        algo_class: The Algorithm class to build.
    """

    def __init__(self, algorithm: str = "sac", algo_class: type | None = None) -> None:
        if algo_class is None:
            from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

            algo_class = ActorCriticAlgorithm
        super().__init__(algo_class=algo_class)
        self._choose(algorithm)
        self.rollout_fragment_length = "auto"
        self.max_lead_steps: int | Literal["auto"] = "auto"
        self.limit_gpu_memory = True
        self.results_dir: str | None = None
        self.replay_dir: str | None = None
        self.initialize_from: str | None = None
        self.sweep, self.variant = "", ""
        self.task: str | None = None
        self.trial_id: str | None = None
        self.imports: list[str] = []
        self.tune_trial: str | None = None
        """Tune's id of the trial that this is the config of; Tune sets it."""
        # Weights travel with every request for samples, and there are no connectors to synchronise.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._dont_auto_sync_env_runner_states = True
        self._accepts_idle_settings = False
        """Whether settings that do nothing are no error: an earlier version saved it, or `resolve` has checked them."""
        self._is_atari = False  # RLlib would make an environment to find out
        self._choose_env_runner()

    @classmethod
    def for_task(cls, task: str) -> Self:
        """The paper's hyperparameters for a task (Table I), or Ant's for any other gymnasium id.

        Raises:
            UnknownNameError: Naming the nearest known task or id.
        """
        found = find_task(task)
        config = cls()
        defaults = found.defaults.get(config.algorithm, {})
        return config.environment(found.env_id).training(**defaults).results(task=found.name)

    def _choose(self, algorithm: str) -> None:
        """Makes this the config of `algorithm`, with its default hyperparameters."""
        self.algorithm = algorithm
        # Class, method and sampler travel along: unpickling a config imports the package that registers them, or
        # makes them known by value where they are of a notebook or a script.
        self._settings_class = find_settings(algorithm)
        self._method = method_of_others(self._settings_class)
        self._sampler = _sampler_of_others(self._settings_class)
        for name, field in self._settings_class.model_fields.items():
            setattr(self, name, field.default)

    @override(AlgorithmConfig)
    def api_stack(
        self,
        enable_rl_module_and_learner: bool = NotProvided,
        enable_env_runner_and_connector_v2: bool = NotProvided,
    ) -> Self:
        """Chooses RLlib's new API stack (both True, the default) or its old one (both False).

        Exploring is the sampler's on both, so there is no exploration config to exchange.
        """
        if enable_rl_module_and_learner is not NotProvided:
            self.enable_rl_module_and_learner = enable_rl_module_and_learner
        if enable_env_runner_and_connector_v2 is not NotProvided:
            self.enable_env_runner_and_connector_v2 = enable_env_runner_and_connector_v2
        return self

    @property
    def is_old_stack(self) -> bool:
        """Whether this builds a TorchPolicy and RolloutWorkers rather than an RLModule, Learner and EnvRunners."""
        return not self.enable_rl_module_and_learner

    @property
    def settings_class(self) -> type[Settings]:
        """The model that holds this algorithm's hyperparameters."""
        return self._settings_class

    def settings(self) -> Settings:
        """The validated hyperparameters.

        Raises:
            SettingsError: Naming key, value, what is allowed and the nearest valid name.
        """
        values = {name: getattr(self, name) for name in self.settings_class.model_fields}
        return parse_settings(self.settings_class, values)

    @override(AlgorithmConfig)
    def training(self, **hyperparameters: Any) -> Self:
        """Sets hyperparameters: the fields of `settings_class`.

        Raises:
            SettingsError: For a name the algorithm does not have.
        """
        unknown = [name for name in hyperparameters if name not in self.settings_class.model_fields]
        if unknown:
            parse_settings(self.settings_class, {name: hyperparameters[name] for name in unknown})
        for name, value in hyperparameters.items():
            setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def to_dict(self) -> dict[str, Any]:
        """All options under their public names: under a private one, a change to the other would be lost."""
        options: dict[str, Any] = super().to_dict()
        for name in _PRIVATE_NAMES:
            options[_PRIVATE_NAMES[name]] = options.pop(name)
        return options

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Takes over what differs: Tune hands over all of RLlib's options, those without effect included."""
        _make_known(config_dict)
        # A dictionary that RLlib made has private names only; a public one beside them is what was changed.
        public = {_PRIVATE_NAMES[name]: config_dict[name] for name in _PRIVATE_NAMES if name in config_dict}
        config_dict = public | {k: v for k, v in config_dict.items() if k not in _PRIVATE_NAMES}
        if (algorithm := config_dict.get("algorithm", self.algorithm)) != self.algorithm:
            if type(self) is not ActorCriticConfig:  # which is the config of any algorithm
                raise SettingsError(
                    f"The configuration is of '{algorithm}', but {type(self).__name__} and its trainable "
                    f"{self.algo_class.__name__} are of '{self.algorithm}'; use the two of one algorithm."
                )
            self._choose(algorithm)
        ours = set(self.settings_class.model_fields) | RUN_OPTIONS | {"algorithm"}
        others = {}
        for name, value in config_dict.items():
            if name in ours:
                setattr(self, name, value)
            elif name != TRIAL_INFO and not (hasattr(self, name) and _same(value, getattr(self, name))):
                others[name] = value
        super().update_from_dict(others)
        if TRIAL_INFO in config_dict:  # which RLlib would drop, and with it the trial's identity
            self.tune_trial = config_dict[TRIAL_INFO].trial_id
            self.trial_id = self.trial_id or self.tune_trial
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickles a config of any version: options and settings that came later have their defaults."""
        later = {name: value for name, value in _default_options().items() if name not in state}
        if "_accepts_idle_settings" in later:
            later["_accepts_idle_settings"] = True
        public = {name: state[private] for private, name in _PRIVATE_NAMES.items() if private in state}
        settings = complete_settings(state["_settings_class"], state | public)
        options = {**copy.deepcopy(later), **state, **settings}
        # The public name is a property: in __dict__ it would pass for a changed setting.
        for private, name in _PRIVATE_NAMES.items():
            options[private] = options.pop(name)
        self.__dict__.update(options)
        _make_known(self.__dict__)

    @override(AlgorithmConfig)
    def get_state(self) -> dict[str, Any]:
        """Keeps options of -1, which RLlib takes for its mark of a deprecated one and drops: they would be defaults."""
        kept = {
            name: value
            for name, value in vars(self).items()
            if name in self.settings_class.model_fields
            or (isinstance(value, int | float) and value == _DROPPED and name not in _DEPRECATED)
        }
        return {**super().get_state(), **kept}

    def __setattr__(self, name: str, value: Any) -> None:
        """Takes NumPy's numbers as Python's, which JSON and the settings' types know, and makes paths absolute."""
        value = without_numpy(value)
        if name in _PATHS and value is not None:
            value = str(absolute(value))
        super().__setattr__(name, value)

    @override(AlgorithmConfig)
    def environment(
        self, env: Any = NotProvided, *, imports: Sequence[str] = NotProvided, **options: Any
    ) -> Self:
        """Sets the environment, `imports` and RLlib's options.

        Args:
            env: A gymnasium id, a class, or a name registered with Tune.
            imports: Modules that register the id. Runners, trials of Tune and whoever loads a checkpoint import them.
            options: RLlib's own.
        """
        if imports is not NotProvided:
            self.imports = list(imports)
        super().environment(env, **options)
        return self

    @override(AlgorithmConfig)
    def evaluation(self, **options: Any) -> Self:
        """Sets `evaluation_every`, `evaluation_episodes` and `evaluation_max_episode_steps`; RLlib's go to RLlib.

        `evaluation_every` counts environment steps; `evaluation_max_episode_steps` cuts episodes that do not end.

        With `evaluation_num_env_runners` of 1 or more, evaluations run beside training on so many CPU actors, one
        on each at a time, with weights frozen at their step; with 0, the default, training waits for each.
        """
        ours = {name: options.pop(name) for name in list(options) if name in self.settings_class.model_fields}
        super().evaluation(**options)
        return self.training(**ours)

    @override(AlgorithmConfig)
    def env_runners(self, *, max_lead_steps: int | Literal["auto"] = NotProvided, **options: Any) -> Self:
        """Sets `max_lead_steps` and RLlib's options.

        Args:
            max_lead_steps: The most that sampling may lead learning by, where one of them is remote: steps asked
                for or arrived whose updates are not all made. "auto" is four fragments of every runner; 0 lets
                them take turns, so that the run repeats itself exactly. A runner slower than others acts with
                weights older than that: nobody waits for it.
            options: RLlib's own.
        """
        if max_lead_steps is not NotProvided:
            self.max_lead_steps = max_lead_steps
        super().env_runners(**options)
        return self

    @override(AlgorithmConfig)
    def learners(self, *, limit_gpu_memory: bool = NotProvided, **options: Any) -> Self:
        """Sets `limit_gpu_memory` and RLlib's options.

        Args:
            limit_gpu_memory: Whether a learner with a fraction of a GPU (`num_gpus_per_learner`) may hold no more
                than that share of its memory, so that trials that share a GPU cannot starve each other.
            options: RLlib's own.
        """
        if limit_gpu_memory is not NotProvided:
            self.limit_gpu_memory = limit_gpu_memory
        super().learners(**options)
        return self

    def results(
        self,
        *,
        results_dir: str | None = NotProvided,
        sweep: str = NotProvided,
        variant: str = NotProvided,
        task: str | None = NotProvided,
        trial_id: str | None = NotProvided,
    ) -> Self:
        """Where evaluation rows go (nowhere, if None), and what they say of the run.

        `trial_id` tells runs apart: a row replaces one of the same `trial_id` and step. Unless given, it is
        that of Tune's trial, or else made from the configuration, so that equal runs replace each other.
        """
        given = {
            "results_dir": results_dir,
            "sweep": sweep,
            "variant": variant,
            "task": task,
            "trial_id": trial_id,
        }
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def checkpointing(
        self, *, replay_dir: str | None = NotProvided, initialize_from: str | None = NotProvided
    ) -> Self:
        """What a run keeps, and what it begins with. RLlib's own options of this method are refused.

        Args:
            replay_dir: Where segments of the replay are kept between checkpoints, so that each writes new rows only.
                With None every checkpoint holds the whole replay.
            initialize_from: A run directory or checkpoint whose networks a new run begins with; all else is new.
        """
        if initialize_from is not NotProvided:
            self.initialize_from = initialize_from
        if replay_dir is not NotProvided:
            self.replay_dir = replay_dir
        return self

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from rllib_hpo.rllib.rl_module import ActorCriticModule

        return RLModuleSpec(
            module_class=ActorCriticModule,
            model_config={"algorithm": self.algorithm, "settings": self.settings(), "seed": self.seed},
        )

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        from rllib_hpo.rllib.learner import ActorCriticLearner

        return ActorCriticLearner

    @override(AlgorithmConfig)
    def build_learner_group(self, **options: Any) -> LearnerGroup:
        """RLlib's; of a learner that dies while it starts it is told as of one that dies later.

        Raises:
            WorkerDiedError: If a learner's process is gone.
        """
        try:
            return super().build_learner_group(**options)
        except (RayActorError, WorkerDiedError) as error:  # of the dead one, or of one that waited for it
            raise WorkerDiedError(LOST) from error

    @override(AlgorithmConfig)
    def get_rollout_fragment_length(self, worker_index: int = 0) -> int:
        """Steps of each environment between two updates of the runners' weights."""
        if self.rollout_fragment_length == "auto":
            return 16 if self.num_env_runners > 0 or self.num_learners > 0 else 1
        return int(self.rollout_fragment_length)

    def fragment_of_all(self) -> int:
        """Steps of one fragment of every runner."""
        steps = self.get_rollout_fragment_length() * self.num_envs_per_env_runner
        return steps * max(1, self.num_env_runners)

    def get_max_lead_steps(self) -> int:
        """The most that sampling may lead learning by; 0 for turns."""
        if self.max_lead_steps == "auto":
            return FRAGMENTS_OF_LEAD * self.fragment_of_all()
        return int(self.max_lead_steps)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Validates everything before any actor starts.

        Raises:
            SettingsError: One sentence, naming what is wrong and what is allowed.
        """
        self._choose_env_runner()
        if not self.in_evaluation:
            self._refuse_options_without_effect()
            self._refuse_callbacks()
            self._sampler = _sampler_of_others(self._settings_class)  # it may have been registered since
            if not self._accepts_idle_settings:
                self.settings().refuse_idle()
            if self.seed is None:
                self.seed = self._own_seed()
            self._refuse_impossible_numbers()
            self._refuse_scattered_statistics()
        # RLlib would warn that nothing is evaluated without its own evaluation_interval.
        num_evaluation_runners, self.evaluation_num_env_runners = self.evaluation_num_env_runners, 0
        super().validate()
        self.evaluation_num_env_runners = num_evaluation_runners

    def _own_seed(self) -> int:
        """A seed for a run that was given none; a trial of Tune finds its own again when it is resumed."""
        if self.tune_trial is None:
            return secrets.randbelow(2**31)
        return derived_seed(0, "trial", self.tune_trial)

    def _choose_env_runner(self) -> None:
        """The class of the API stack that is asked for; None is RLlib's RolloutWorker there."""
        from rllib_hpo.rllib.env_runner import ColumnarEnvRunner

        if self.enable_rl_module_and_learner != self.enable_env_runner_and_connector_v2:
            raise SettingsError(
                "enable_rl_module_and_learner and enable_env_runner_and_connector_v2 must both be True (RLlib's "
                "new API stack) or both be False (its old one)."
            )
        if self.env_runner_cls in (None, ColumnarEnvRunner):
            self.env_runner_cls = None if self.is_old_stack else ColumnarEnvRunner

    def _refuse_impossible_numbers(self) -> None:
        possible = {
            "num_learners": (range(2**31), "0 (in the driver) or more (remote)"),
            "num_env_runners": (range(2**31), "0 (in the driver) or more"),
            "evaluation_num_env_runners": (range(2**31), "0 (in the driver) or more"),
            "seed": (range(2**31), "from 0 to 2**31 - 1, or None"),
        }
        for name, (numbers, allowed) in possible.items():
            value = getattr(self, name)
            if not (isinstance(value, Integral) and value in numbers):
                raise SettingsError(f"{name}={value!r} must be an integer: {allowed}.")
        refuse_impossible_amounts(self)
        if not isinstance(self.limit_gpu_memory, bool):
            raise SettingsError(f"limit_gpu_memory={self.limit_gpu_memory!r} must be True or False.")
        self._refuse_impossible_lead()
        check_learners(self.num_learners, self.num_gpus_per_learner, self.settings())
        if not 0 <= self.num_gpus <= 1:
            raise SettingsError(
                f"num_gpus={self.num_gpus!r} must be from 0 to 1: one GPU, or a share of one."
            )

    def _refuse_impossible_lead(self) -> None:
        lead, fragment = self.max_lead_steps, self.fragment_of_all() // max(1, self.num_env_runners)
        if lead == "auto" or (isinstance(lead, Integral) and (lead == 0 or lead >= fragment)):
            return
        raise SettingsError(
            f"max_lead_steps={lead!r} must be 'auto', 0 (sampling and learning take turns) or an integer from "
            f"{fragment} on, the steps that a runner hands on at a time."
        )

    def _refuse_scattered_statistics(self) -> None:
        """A wrapper's statistics must be of all the experience, so of one environment, whose state is saved."""
        stateful = stateful_wrappers(self)
        one_env = self.num_env_runners == 0 and self.num_envs_per_env_runner == 1
        if stateful and (self.is_old_stack or not one_env):
            raise SettingsError(
                f"The wrapper '{stateful[0]}' gathers statistics, so it needs num_env_runners=0, "
                "num_envs_per_env_runner=1 and RLlib's new API stack: several environments would each have their own."
            )

    def _refuse_options_without_effect(self) -> None:
        default = type(self).__new__(type(self))
        ActorCriticConfig.__init__(default, self.algorithm, self.algo_class)
        default.env_runner_cls = None if self.is_old_stack else default.env_runner_cls
        stack, other = NEW_STACK_OPTIONS, OLD_STACK_OPTIONS
        if self.is_old_stack:
            stack, other = other, stack
        allowed = EFFECTIVE_OPTIONS | stack | RUN_OPTIONS | _INTERNAL | set(self.settings_class.model_fields)
        for name, value in vars(self).items():
            if name.startswith("__"):  # Tune's own notes
                continue
            if name not in vars(default) and name not in allowed:
                close = nearest(name, allowed)
                hint = f" Did you mean '{close}'?" if close else ""
                raise SettingsError(f"'{name}' is not an option of {type(self).__name__}.{hint}")
            if name not in allowed and not _same(value, vars(default).get(name)):
                instead = f" Use {REPLACED_OPTIONS[name]}." if name in REPLACED_OPTIONS else ""
                if name in other:
                    instead = f" It belongs to RLlib's {'new' if self.is_old_stack else 'old'} API stack."
                raise SettingsError(f"The option {name}={value!r} would have no effect here.{instead}")
        if self._is_atari:
            raise SettingsError(
                "The option is_atari=True would have no effect here. Wrap the environment: "
                "env_config={'wrappers': [...]}."
            )
        if self.is_multi_agent:
            raise SettingsError(f"policies={sorted(self.policies)} must be the default: there is one agent.")

    def _refuse_callbacks(self) -> None:
        if self.is_old_stack and isinstance(self.callbacks_class, list):
            raise SettingsError("RLlib's old API stack takes one callbacks class, not a list of them.")
        self._refuse_the_new_stacks_environment_callback()
        uncalled = _UNCALLED if self.is_old_stack else [*_UNCALLED, *_UNCALLED_ON_NEW_STACK]
        for callbacks in force_list(self.callbacks_class):
            for method in uncalled:
                default = getattr(RLlibCallback, method, None)
                if getattr(callbacks, method, default) is not default:
                    raise SettingsError(
                        f"The callback {callbacks.__name__}.{method} would never be called: transitions are "
                        "collected in columns, not as RLlib episodes, and batches are drawn by the learner. Use "
                        "on_train_result or on_evaluate_end."
                    )

    def _refuse_the_new_stacks_environment_callback(self) -> None:
        name = "on_environment_created"
        is_method = any(
            getattr(callbacks, name) is not getattr(RLlibCallback, name)
            for callbacks in force_list(self.callbacks_class)
        )
        if self.is_old_stack and (is_method or self.callbacks_on_environment_created):
            raise SettingsError(
                f"The callback {name} would never be called on RLlib's old API stack. Use on_sub_environment_created."
            )


def _sampler_of_others(settings: type[Settings]) -> SamplerFactory | None:
    """The sampler that another process may have to be told of; None for one of this package, or none yet."""
    sampler = SAMPLERS.get(getattr(settings, "sampler", ""))
    is_ours = getattr(sampler, "__module__", "").startswith("rllib_hpo.")
    return None if is_ours else sampler


def _make_known(options: Mapping[str, Any]) -> None:
    """Registers the algorithm and the sampler of a config here, if its classes came from elsewhere."""
    algorithm, settings = options.get("algorithm"), options.get("_settings_class")
    if algorithm is None or settings is None:
        return
    if algorithm not in algorithm_names():
        register_algorithm(algorithm, settings, options.get("_method"))
    sampler = options.get("_sampler")
    if sampler is not None and settings.sampler not in SAMPLERS:
        register_sampler(settings.sampler, sampler)


@functools.cache
def _default_options() -> dict[str, Any]:
    """All options, RLlib's among them, but no hyperparameters."""
    config = ActorCriticConfig()
    return {name: v for name, v in vars(config).items() if name not in config.settings_class.model_fields}


def _same(value: Any, default: Any) -> bool:
    """Equality that also holds for RLlib's defaults that are objects without one."""
    try:
        return bool(_canonical(value) == _canonical(default)) or repr(value) == repr(default)
    except AttributeError:  # PolicySpec compares itself with PolicySpecs only
        return False


def _canonical(value: Any) -> Any:
    """`value` as Tune's searchers and PB2 leave it: they drop empty dicts inside a dict, and make lists tuples."""
    if isinstance(value, dict):
        kept = {key: _canonical(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if not (isinstance(item, dict) and not item)}
    return tuple(map(_canonical, value)) if isinstance(value, (list, tuple)) else value


class SACGaussianConfig(ActorCriticConfig):
    """SAC as published: a tanh-Gaussian policy. RLlib's own SAC keeps that name in Tune's registry."""

    def __init__(self, algo_class: type | None = None) -> None:
        from rllib_hpo.rllib.algorithm import SACGaussian

        super().__init__("sac", algo_class or SACGaussian)


class SACNFConfig(ActorCriticConfig):
    """SAC with radial flows between the Gaussian and the tanh."""

    def __init__(self, algo_class: type | None = None) -> None:
        from rllib_hpo.rllib.algorithm import SACNF

        super().__init__("sac-nf", algo_class or SACNF)


class SACHPOConfig(ActorCriticConfig):
    """SAC with a Hamiltonian policy (arXiv 2103.12020)."""

    def __init__(self, algo_class: type | None = None) -> None:
        from rllib_hpo.rllib.algorithm import SACHPO

        super().__init__("sac-hpo", algo_class or SACHPO)


class TD3Config(ActorCriticConfig):
    """TD3 (arXiv 1802.09477); RLlib's own has left it."""

    def __init__(self, algo_class: type | None = None) -> None:
        from rllib_hpo.rllib.algorithm import TD3

        super().__init__("td3", algo_class or TD3)


class DDPGConfig(ActorCriticConfig):
    """DDPG (arXiv 1509.02971)."""

    def __init__(self, algo_class: type | None = None) -> None:
        from rllib_hpo.rllib.algorithm import DDPG

        super().__init__("ddpg", algo_class or DDPG)


class SoftQConfig(ActorCriticConfig):
    """Soft Q-learning (arXiv 1702.08165)."""

    def __init__(self, algo_class: type | None = None) -> None:
        from rllib_hpo.rllib.algorithm import SoftQ

        super().__init__("soft-q", algo_class or SoftQ)


CONFIGS: dict[str, type[ActorCriticConfig]] = {
    "sac": SACGaussianConfig,
    "sac-nf": SACNFConfig,
    "sac-hpo": SACHPOConfig,
    "td3": TD3Config,
    "ddpg": DDPGConfig,
    "soft-q": SoftQConfig,
}
"""Config class of each built-in algorithm; others are an `ActorCriticConfig` with their name."""


def make_config(algorithm: str) -> ActorCriticConfig:
    """A config of any registered algorithm.

    Raises:
        UnknownNameError: Naming the nearest algorithm.
    """
    find_settings(algorithm)
    return CONFIGS[algorithm]() if algorithm in CONFIGS else ActorCriticConfig(algorithm)
