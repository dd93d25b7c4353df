"""AlgorithmConfig with typed hyperparameters, which refuses options without effect."""

from __future__ import annotations

import copy
import functools
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override
from ray.tune.result import TRIAL_INFO

from rllib_hpo.algorithms.registry import algorithm_names, find_settings, method_of_others, register_algorithm
from rllib_hpo.errors import SettingsError, WorkerDiedError
from rllib_hpo.moved import moved_names
from rllib_hpo.optim.replicas import LEARNERS_DIED_MESSAGE
from rllib_hpo.results.paths import absolute
from rllib_hpo.rllib._private import PRIVATE_OPTIONS, leave_runners_alone
from rllib_hpo.rllib.new_stack.env_runner import ColumnarEnvRunner
from rllib_hpo.rllib.new_stack.learner import ActorCriticLearner
from rllib_hpo.rllib.new_stack.rl_module import ActorCriticModule
from rllib_hpo.rllib.validation import (
    RUN_OPTIONS,
    reject_unused_options,
    validate_callbacks,
    validate_for_old_stack,
    validate_numbers,
    validate_wrapper_statistics,
    values_equal,
)
from rllib_hpo.samplers import SAMPLERS, SamplerFactory, register_sampler
from rllib_hpo.settings import Settings, complete_settings, parse_settings, without_numpy
from rllib_hpo.streams import derived_seed
from rllib_hpo.tasks import find_task

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

_PATHS = frozenset(["results_dir", "replay_dir", "initialize_from"])

DEFAULT_LEAD_FRAGMENTS = 4
"""Default of `max_lead_steps`, in fragments of every runner."""

_DROPPED = -1
"""RLlib's marker of a deprecated option; RLlib drops options of this value when it copies a config."""
_DEPRECATED = frozenset(
    name
    for name, value in vars(AlgorithmConfig()).items()
    if isinstance(value, int | float) and value == _DROPPED
)
"""Deprecated options of RLlib."""


class ActorCriticConfig(AlgorithmConfig):
    """Config of any algorithm of this package.

    Hyperparameters are the fields of the algorithm's settings class (`rllib_hpo.settings`), set with
    `training()` and readable as attributes. Building the algorithm validates them, and so does `settings()`.

    Args:
        algorithm: Name of a registered algorithm, such as "sac-hpo", or of one of another package.
        algo_class: The Algorithm class to build.
    """

    default_algo_class: ClassVar[type[Algorithm] | None] = None
    """The Algorithm class unless another is given; `algorithm`, which defines it, sets this."""

    def __init__(self, algorithm: str = "sac", algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or self.default_algo_class)
        self._set_algorithm(algorithm)
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
        """Tune's id of the trial with this config; Tune sets it."""
        # Every request for samples carries weights, and there are no connectors to synchronise.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._accepts_idle_settings = False
        """Whether to accept settings without effect: from an earlier version, or checked by `resolve`."""
        leave_runners_alone(self)
        self._choose_env_runner()

    @classmethod
    def for_task(cls, task: str) -> Self:
        """The paper's hyperparameters for a task (Table I), or Ant's for any other gymnasium id.

        Raises:
            UnknownNameError: Naming the nearest known task or id.
        """
        found = find_task(task)
        config = cls()
        defaults = found.settings_for(config.algorithm)
        return config.environment(found.env_id).training(**defaults).results(task=found.name)

    def _set_algorithm(self, algorithm: str) -> None:
        """Set the algorithm and its default hyperparameters."""
        self.algorithm = algorithm
        # Unpickling a config imports the package that registers class, method and sampler, or
        # registers them by value if they come from a notebook or a script.
        self._settings_class = find_settings(algorithm)
        self._method = method_of_others(self._settings_class)
        self._sampler = _external_sampler(self._settings_class)
        for name, field in self._settings_class.model_fields.items():
            setattr(self, name, field.default)

    @override(AlgorithmConfig)
    def api_stack(
        self,
        enable_rl_module_and_learner: bool = NotProvided,
        enable_env_runner_and_connector_v2: bool = NotProvided,
    ) -> Self:
        """Choose RLlib's new API stack (both True, the default) or its old one (both False).

        The sampler explores on both, so there is no exploration config to change.
        """
        if enable_rl_module_and_learner is not NotProvided:
            self.enable_rl_module_and_learner = enable_rl_module_and_learner
        if enable_env_runner_and_connector_v2 is not NotProvided:
            self.enable_env_runner_and_connector_v2 = enable_env_runner_and_connector_v2
        return self

    @property
    def is_old_stack(self) -> bool:
        """Whether it builds a TorchPolicy and RolloutWorkers rather than an RLModule, Learner and EnvRunners."""
        return not self.enable_rl_module_and_learner

    @property
    def settings_class(self) -> type[Settings]:
        """The pydantic model of this algorithm's hyperparameters."""
        return self._settings_class

    def settings(self) -> Settings:
        """The validated hyperparameters.

        Raises:
            SettingsError: Naming key, value, what is allowed and the nearest valid name.
        """
        # Parsed here although a file was parsed before: between the two, hyperparameters are attributes, one by one, as
        # RLlib has them. Tune searches them and PBT mutates them by name, also after a run has begun, and rules that
        # join several (alpha and target_entropy) hold only once all are set.
        values = {name: getattr(self, name) for name in self.settings_class.model_fields}
        return parse_settings(self.settings_class, values)

    @override(AlgorithmConfig)
    def training(self, **hyperparameters: Any) -> Self:
        """Set hyperparameters: fields of `settings_class`.

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
        """All options under their public names, since a change of a public name beside a private one would be lost."""
        options: dict[str, Any] = super().to_dict()
        for name in PRIVATE_OPTIONS:
            options[PRIVATE_OPTIONS[name]] = options.pop(name)
        return options

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Update what differs; Tune passes all of RLlib's options, those without effect included."""
        _register_external(config_dict)
        # A dictionary made by RLlib has private names only; a public name beside them is a change.
        public = {PRIVATE_OPTIONS[name]: config_dict[name] for name in PRIVATE_OPTIONS if name in config_dict}
        config_dict = public | {k: v for k, v in config_dict.items() if k not in PRIVATE_OPTIONS}
        if (algorithm := config_dict.get("algorithm", self.algorithm)) != self.algorithm:
            if type(self) is not ActorCriticConfig:  # which is the config of any algorithm
                raise SettingsError(
                    f"The configuration is for '{algorithm}', but {type(self).__name__} and its trainable "
                    f"{self.algo_class.__name__} are for '{self.algorithm}'; use the config and trainable of the "
                    "same algorithm."
                )
            self._set_algorithm(algorithm)
        ours = set(self.settings_class.model_fields) | RUN_OPTIONS | {"algorithm"}
        others = {}
        for name, value in config_dict.items():
            if name in ours:
                setattr(self, name, value)
            elif name != TRIAL_INFO and not (
                hasattr(self, name) and values_equal(value, getattr(self, name))
            ):
                others[name] = value
        super().update_from_dict(others)
        if TRIAL_INFO in config_dict:  # RLlib would drop it, and with it the trial's identity
            self.tune_trial = config_dict[TRIAL_INFO].trial_id
            self.trial_id = self.trial_id or self.tune_trial
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle a config of any version; options and settings that it lacks have their defaults."""
        later = {name: value for name, value in _default_options().items() if name not in state}
        if "_accepts_idle_settings" in later:
            later["_accepts_idle_settings"] = True
        public = {name: state[private] for private, name in PRIVATE_OPTIONS.items() if private in state}
        settings = complete_settings(state["_settings_class"], state | public)
        options = {**copy.deepcopy(later), **state, **settings}
        # The public name is a property: in __dict__ it would pass for a changed setting.
        for private, name in PRIVATE_OPTIONS.items():
            options[private] = options.pop(name)
        self.__dict__.update(options)
        _register_external(self.__dict__)

    @override(AlgorithmConfig)
    def get_state(self) -> dict[str, Any]:
        """Keep options of -1, which RLlib would drop as deprecated, so that they became defaults."""
        kept = {
            name: value
            for name, value in vars(self).items()
            if name in self.settings_class.model_fields
            or (isinstance(value, int | float) and value == _DROPPED and name not in _DEPRECATED)
        }
        return {**super().get_state(), **kept}

    def __setattr__(self, name: str, value: Any) -> None:
        """Convert NumPy's numbers to Python's, for JSON and the settings' types, and make paths absolute."""
        value = without_numpy(value)
        if name in _PATHS and value is not None:
            value = str(absolute(value))
        super().__setattr__(name, value)

    @override(AlgorithmConfig)
    def environment(
        self, env: Any = NotProvided, *, imports: Sequence[str] = NotProvided, **options: Any
    ) -> Self:
        """Set the environment, `imports` and RLlib's options.

        Args:
            env: A gymnasium id, a class, or a name registered with Tune.
            imports: Modules that register the id, imported by runners, trials of Tune and programs that load a
                checkpoint.
            options: RLlib's own.
        """
        if imports is not NotProvided:
            self.imports = list(imports)
        super().environment(env, **options)
        return self

    @override(AlgorithmConfig)
    def evaluation(self, **options: Any) -> Self:
        """Set `evaluation_every`, `evaluation_episodes`, `evaluation_max_episode_steps` and RLlib's options.

        `evaluation_every` counts environment steps; `evaluation_max_episode_steps` cuts episodes that do not end.

        With `evaluation_num_env_runners` of 1 or more, evaluations run beside training on that many CPU actors, one
        on each at a time, with weights frozen at their step; with 0, the default, training waits for each.
        """
        ours = {name: options.pop(name) for name in list(options) if name in self.settings_class.model_fields}
        super().evaluation(**options)
        return self.training(**ours)

    @override(AlgorithmConfig)
    def env_runners(self, *, max_lead_steps: int | Literal["auto"] = NotProvided, **options: Any) -> Self:
        """Set `max_lead_steps` and RLlib's options.

        Args:
            max_lead_steps: Greatest lead of sampling over learning if one of them is remote: steps requested or
                arrived whose updates are not all made. "auto" is four fragments of every runner; 0 makes them
                alternate, so that the run is exactly repeatable. A runner slower than others acts with weights older
                than that, since nobody waits for it.
            options: RLlib's own.
        """
        if max_lead_steps is not NotProvided:
            self.max_lead_steps = max_lead_steps
        super().env_runners(**options)
        return self

    @override(AlgorithmConfig)
    def learners(self, *, limit_gpu_memory: bool = NotProvided, **options: Any) -> Self:
        """Set `limit_gpu_memory` and RLlib's options.

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
        """Set the directory of evaluation rows (None writes none) and their columns that describe the run.

        `trial_id` identifies a run: a row replaces one of the same `trial_id` and step. Unless given, it is the id of
        Tune's trial, or else a hash of the configuration, so that equal runs replace each other's rows.
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
        return RLModuleSpec(
            module_class=ActorCriticModule,
            model_config={"algorithm": self.algorithm, "settings": self.settings(), "seed": self.seed},
        )

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        return ActorCriticLearner

    @override(AlgorithmConfig)
    def build_learner_group(self, **options: Any) -> LearnerGroup:
        """Build RLlib's learner group; a learner that dies while it starts raises the error of one that dies later.

        Raises:
            WorkerDiedError: If a learner's process is gone.
        """
        try:
            return super().build_learner_group(**options)
        except (
            RayActorError,
            WorkerDiedError,
        ) as error:  # from the dead learner, or from one that waited for it
            raise WorkerDiedError(LEARNERS_DIED_MESSAGE) from error

    @override(AlgorithmConfig)
    def get_rollout_fragment_length(self, worker_index: int = 0) -> int:
        """Steps of each environment between two updates of the runners' weights."""
        if self.rollout_fragment_length == "auto":
            return 16 if self.num_env_runners > 0 or self.num_learners > 0 else 1
        return int(self.rollout_fragment_length)

    def total_fragment_steps(self) -> int:
        """Steps of one fragment of every runner."""
        steps = self.get_rollout_fragment_length() * self.num_envs_per_env_runner
        return steps * max(1, self.num_env_runners)

    def get_max_lead_steps(self) -> int:
        """Greatest lead of sampling over learning in steps; 0 makes them alternate."""
        if self.max_lead_steps == "auto":
            return DEFAULT_LEAD_FRAGMENTS * self.total_fragment_steps()
        return int(self.max_lead_steps)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Validate all options before any actor starts.

        Raises:
            SettingsError: One sentence, naming what is wrong and what is allowed.
        """
        self._choose_env_runner()
        if not self.in_evaluation:
            reject_unused_options(self, self._default())
            validate_callbacks(self)
            self._sampler = _external_sampler(self._settings_class)  # it may have been registered meanwhile
            if not self._accepts_idle_settings:
                self.settings().refuse_idle()
            if self.seed is None:
                self.seed = self._default_seed()
            validate_numbers(self)
            validate_wrapper_statistics(self)
            validate_for_old_stack(self)
        # RLlib would warn that nothing is evaluated without its own evaluation_interval.
        num_evaluation_runners, self.evaluation_num_env_runners = self.evaluation_num_env_runners, 0
        super().validate()
        self.evaluation_num_env_runners = num_evaluation_runners

    def _default(self) -> Self:
        """The default config of this class, algorithm and API stack."""
        default = type(self).__new__(type(self))
        ActorCriticConfig.__init__(default, self.algorithm, self.algo_class)
        default.env_runner_cls = None if self.is_old_stack else default.env_runner_cls
        return default

    def _default_seed(self) -> int:
        """Seed of a run without one; that of a Tune trial follows from its id, so that a resumed trial has the same."""
        if self.tune_trial is None:
            return secrets.randbelow(2**31)
        return derived_seed(0, "trial", self.tune_trial)

    def _choose_env_runner(self) -> None:
        """Set the runner class of the chosen API stack; None is RLlib's RolloutWorker."""
        if self.enable_rl_module_and_learner != self.enable_env_runner_and_connector_v2:
            raise SettingsError(
                "enable_rl_module_and_learner and enable_env_runner_and_connector_v2 must both be True (RLlib's "
                "new API stack) or both be False (its old one)."
            )
        if self.env_runner_cls in (None, ColumnarEnvRunner):
            self.env_runner_cls = None if self.is_old_stack else ColumnarEnvRunner


def _external_sampler(settings: type[Settings]) -> SamplerFactory | None:
    """A sampler that other processes must register; None for one of this package, or one that is not registered."""
    sampler = SAMPLERS.get(getattr(settings, "sampler", ""))
    is_ours = getattr(sampler, "__module__", "").startswith("rllib_hpo.")
    return None if is_ours else sampler


def _register_external(options: Mapping[str, Any]) -> None:
    """Register the algorithm and the sampler of a config in this process, if another package defines them."""
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
    """Default options, RLlib's included, without hyperparameters."""
    config = ActorCriticConfig()
    return {name: v for name, v in vars(config).items() if name not in config.settings_class.model_fields}


__getattr__ = moved_names(__name__)
