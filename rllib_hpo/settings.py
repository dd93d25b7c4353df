"""Define hyperparameters: one typed, validated model per algorithm.

A setting has one name in `rllib-hpo train --set NAME=VALUE`, keys of a YAML file, keyword arguments of
`SACHPOConfig.training()`, attributes of the RLlib config and columns of `config_json` in the results.
Defaults are those of Table I of Xu & Fekri, "Improving Actor-Critic Reinforcement Learning via Hamiltonian
Monte Carlo Method" (arXiv 2103.12020), and Ant's where a value depends on the task.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rllib_hpo.costs import CostDiscounting, CostSetting
from rllib_hpo.errors import SettingsError, nearest, shown

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**53)]
MAX_LEAPFROG_STEPS = 10_000
COMPILED_FROM_STEPS = 200_000
"""Environment steps of a run from which on 'compile_update: auto' compiles updates: a compilation takes a minute."""

EARLIER_BEHAVIOUR: Mapping[str, Any] = {"compile_update": False}
"""Settings whose default is not what versions did that did not have them, and what those did."""
HiddenUnits = Annotated[
    PositiveInt | Annotated[list[PositiveInt], Field(min_length=1, max_length=4)],
    Field(
        description="Units of each hidden layer, policy and critics; a list, [400, 300], has one number per layer, and "
        "then says how many layers there are, in place of policy_layers and critic_layers."
    ),
]
Activation = Literal["relu", "elu", "gelu", "silu", "tanh"]
UnitInterval = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """Settings of every algorithm: discount, optimizer, replay, schedule, evaluation, processes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    sampler: ClassVar[str]
    """Name in results of what draws this algorithm's actions; for an actor-critic a registered sampler."""
    changeable: ClassVar[frozenset[str]] = frozenset(
        """
        gamma lr tau train_batch_size_per_learner
        evaluation_every evaluation_episodes evaluation_max_episode_steps checkpoint_every steps_per_iteration
        diagnostics_interval num_torch_threads cuda_graph compile_update tf32 cost_limit cost_discounting her_ratio
        her_strategy
        """.split()
    )
    """Settings that may change when a checkpoint is loaded into another configuration.

    A change of any other is rejected: shapes in the checkpoint (`hidden_units`, the numbers of layers,
    `replay_capacity`, ...), values used only at step 0 (`initial_alpha`), and values that the step counters assume
    (`warmup_steps`, `update_to_data`). Subclasses add their own settings on which no network, optimizer or buffer in
    the checkpoint depends. `may_change` handles exceptions. From the load on, the new value applies.
    """

    gamma: Annotated[float, Field(ge=0, le=1, description="Discount factor.")] = 0.99
    lr: Annotated[
        PositiveFloat,
        Field(description="Adam learning rate of all networks, and of a tuned temperature."),
    ] = 3e-4
    tau: Annotated[UnitInterval, Field(description="Polyak rate of the target networks.")] = 0.005
    train_batch_size_per_learner: Annotated[
        PositiveInt,
        Field(description="Batch size of each learner; an update with N learners uses N such batches."),
    ] = 256
    replay_capacity: Annotated[
        PositiveInt, Field(description="Capacity of the replay in transitions, over all learners' shards.")
    ] = 1_000_000
    update_to_data: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="Updates per environment step after the warm-up.")
    ] = 1.0
    warmup_steps: Annotated[
        PositiveInt,
        Field(description="Environment steps before the first update; warmup_policy chooses their actions."),
    ] = 10_000
    warmup_policy: Annotated[
        Literal["uniform", "policy"],
        Field(
            description="Actions during the warm-up: uniform random, or the policy's, for a policy that is "
            "already trained."
        ),
    ] = "uniform"
    evaluation_every: Annotated[
        PositiveInt, Field(description="Environment steps between evaluations; the first is at step 0.")
    ] = 10_000
    evaluation_episodes: Annotated[
        PositiveInt, Field(le=1_000_000, description="Noise-free episodes per evaluation.")
    ] = 10
    evaluation_max_episode_steps: Annotated[
        PositiveInt,
        Field(
            description="Maximum length of an evaluation episode; longer ones are cut and counted in the result "
            "rows."
        ),
    ] = 10_000
    checkpoint_every: Annotated[
        PositiveInt,
        Field(
            description="Environment steps between checkpoints. Environments whose simulator cannot be saved are "
            "rebuilt at these steps in every run, so that a resumed run equals an uninterrupted one. "
            "A checkpoint is also saved at the end of a run and when a signal stops it."
        ),
    ] = 10_000
    steps_per_iteration: Annotated[
        PositiveInt,
        Field(
            description="Maximum number of environment steps per Algorithm.train() call, which ends early at a "
            "checkpoint."
        ),
    ] = 1_000
    diagnostics_interval: Annotated[
        PositiveInt, Field(description="Updates between the more expensive diagnostics of the sampler.")
    ] = 100
    num_torch_threads: Annotated[
        PositiveInt,
        Field(
            le=4096,
            description="Torch threads per process; results are bitwise reproducible only with the same number.",
        ),
    ] = 1
    cuda_graph: Annotated[
        bool,
        Field(description="On a GPU, replay updates as CUDA graphs; false: launch each kernel separately."),
    ] = True
    compile_update: Annotated[
        Literal["auto"] | bool,
        Field(
            description="Compile whole updates, which takes a minute and, on a CPU, a C++ compiler; 'auto' does so on "
            f"CPUs for runs of at least {COMPILED_FROM_STEPS:,} steps. Compiled updates differ from others in rounding."
        ),
    ] = "auto"
    tf32: Annotated[
        bool,
        Field(
            description="On a GPU, round the inputs of matrix products to 10 bits (TensorFloat-32): faster for "
            "large networks. Applies to a whole process, so trials that share one must agree."
        ),
    ] = False
    replay: Annotated[
        Literal["uniform", "her"],
        Field(
            description="What the replay holds: transitions as they happened, or (her) also copies that wanted what "
            "their episode achieved later, for goal environments with compute_reward."
        ),
    ] = "uniform"
    her_ratio: Annotated[
        PositiveInt,
        Field(le=1000, description="Relabelled copies of each transition; they take room in the replay."),
    ] = 4
    her_strategy: Annotated[
        Literal["future", "episode", "final"],
        Field(
            description="Where goals of copies come from: a random step of the episode from theirs on, any step, or "
            "the last."
        ),
    ] = "future"
    normalize_observations: Annotated[
        bool,
        Field(
            description="Subtract the running mean of observations and divide by their standard deviation, clipped to "
            "[-10, 10]; the statistics are part of the model."
        ),
    ] = False
    normalize_rewards: Annotated[
        bool,
        Field(
            description="Divide rewards by the running standard deviation of the discounted return of each "
            "environment, clipped to [-10, 10]. Evaluations report the environment's own rewards."
        ),
    ] = False
    cost: Annotated[
        CostSetting | None,
        Field(
            description="Cost of a step; null: none. {kind: speed, limit, axis: x or xy, absolute}: 1 above the "
            "limit; {kind: torque}: mean absolute action component; {kind: info, key}: the value that "
            "the environment reports. Evaluations report costs, and a safe algorithm keeps them "
            "within cost_limit."
        ),
    ] = None
    cost_limit: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
        Field(description="Maximum mean cost of an episode; required with cost, and allowed only with it."),
    ] = None
    cost_discounting: Annotated[
        CostDiscounting,
        Field(
            description="Whether cost_limit bounds the sum of an episode's costs discounted by gamma, or the "
            "undiscounted sum."
        ),
    ] = "discounted"

    @model_validator(mode="after")
    def _check_cost(self) -> Self:
        if self.cost is not None and self.cost_limit is None:
            raise ValueError(
                f"cost={self.cost.model_dump()} requires cost_limit; set it to a number of at least 0"
            )
        if self.cost is None and self.cost_limit is not None:
            raise ValueError(
                f"cost_limit={self.cost_limit:g} requires cost, for example cost={{kind: speed, limit: 1.0}}; "
                "set both or neither"
            )
        return self

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Unpickle settings of any version; settings added later get their defaults."""
        complete = complete_settings(type(self), state["__dict__"])
        super().__setstate__({**state, "__dict__": complete})

    def may_change(self, name: str, saved: Any) -> bool:
        """Return whether the setting `name` may differ from `saved`, its value in a checkpoint."""
        return name in self.changeable

    def largest_cost(self) -> float | None:
        """Return the largest cost of a step, if learning depends on it; None for no such limit."""
        return None

    def refuse_idle(self) -> None:
        """Reject settings that have no effect beside others.

        Skip this for configurations that an earlier version saved, since it accepted them.

        Raises:
            SettingsError: If there is one; names it, and what gives it an effect.
        """
        for name in ("her_ratio", "her_strategy"):
            value = getattr(self, name)
            if self.replay != "her" and value != type(self).model_fields[name].default:
                raise SettingsError(
                    f"{name}={value!r} would have no effect, since replay={self.replay!r} relabels nothing. Set replay "
                    "to 'her', or leave it out."
                )

    def evaluation_sampler(self) -> str:
        """Return the name of what acts in evaluations: by default the trained sampler, without noise."""
        return self.sampler

    def notices(self) -> list[str]:
        """Return sentences on valid settings without effect, to show before a run starts."""
        return []


def layer_units(hidden_units: int | Sequence[int], num_layers: int) -> list[int]:
    """Return the units of each hidden layer: `num_layers` equal ones, or those of a list."""
    return [hidden_units] * num_layers if isinstance(hidden_units, int) else list(hidden_units)


class NetworkSettings(Settings):
    """Sizes and forms of the networks of an actor-critic."""

    follows_gradient: ClassVar[bool] = False
    """Whether actions follow the critics' gradient, which is taken for a constant when the policy learns."""

    policy_layers: Annotated[
        int, Field(ge=1, le=4, description="Hidden layers of the base policy network.")
    ] = 2
    critic_layers: Annotated[int, Field(ge=1, le=4, description="Hidden layers of each critic.")] = 2
    hidden_units: HiddenUnits = 256
    policy_activation: Annotated[
        Activation, Field(description="Activation between the layers of the policy's network.")
    ] = "relu"
    critic_layer_norm: Annotated[
        bool,
        Field(
            description="Layer normalisation before each ReLU of the critics; refused where actions follow the "
            "critics' gradient, which is then no constant."
        ),
    ] = False

    @model_validator(mode="after")
    def _check_layer_norm(self) -> Self:
        if self.critic_layer_norm and self.follows_gradient:
            raise ValueError(
                "critic_layer_norm=true would make the policy's gradient inexact: actions follow the critics' "
                "gradient, which is constant between the kinks of ReLU networks only; set it to false"
            )
        return self


class ActorCriticSettings(NetworkSettings):
    """Settings shared by maximum-entropy actor-critics; SAC, SAC-NF and SAC-HPO differ in their sampler."""

    changeable: ClassVar[frozenset[str]] = Settings.changeable | {
        "alpha",
        "target_entropy",
        "objective_critic",
    }

    alpha: Annotated[
        PositiveFloat | Literal["auto"], Field(description="Temperature: a fixed value, or 'auto' (tuned).")
    ] = 0.2
    initial_alpha: Annotated[
        PositiveFloat, Field(description="Initial temperature where alpha is 'auto'.")
    ] = 1.0
    target_entropy: Annotated[
        Annotated[float, Field(allow_inf_nan=False)] | Literal["auto"],
        Field(
            description="Target entropy in nats where alpha is 'auto'; 'auto': minus the action dimension."
        ),
    ] = "auto"
    critic_activation: Annotated[
        Literal["relu"],
        Field(
            description="Activation of the critics. Only 'relu': the force treats their action gradient as "
            "piecewise constant."
        ),
    ] = "relu"
    objective_critic: Annotated[
        Literal["online", "target"], Field(description="Critics whose minimum the policy maximises.")
    ] = "online"

    def may_change(self, name: str, saved: Any) -> bool:
        """Check as `Settings.may_change`; a learned temperature has an optimizer, a fixed one has none."""
        is_other_kind = name == "alpha" and "auto" in (self.alpha, saved)
        return super().may_change(name, saved) and not is_other_kind

    def refuse_idle(self) -> None:
        """Check as `Settings.refuse_idle`; reject settings of a tuned temperature if `alpha` is a number."""
        super().refuse_idle()
        if self.alpha == "auto":
            return
        for name in ("initial_alpha", "target_entropy"):
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise SettingsError(
                    f"{name}={value!r} would have no effect, since alpha={self.alpha!r} is not tuned. Set "
                    f"alpha to 'auto' (training(alpha='auto'), or `alpha: auto` in a file), or leave {name} "
                    "out."
                )


class SACSettings(ActorCriticSettings):
    """Soft actor-critic with a tanh-Gaussian policy (Haarnoja et al. 2018, arXiv 1801.01290)."""

    sampler: ClassVar[str] = "gaussian"


class SACNFSettings(ActorCriticSettings):
    """SAC with radial flows between the Gaussian and the tanh (Mazoure et al. 2019, arXiv 1905.06893)."""

    sampler: ClassVar[str] = "radial_flow"

    policy_layers: Annotated[int, Field(ge=1, le=4, description="Hidden layers of the policy network.")] = 1
    num_flows: Annotated[PositiveInt, Field(description="Radial flow layers.")] = 4


class SACHPOSettings(ActorCriticSettings):
    """SAC with a Hamiltonian policy (arXiv 2103.12020): actions evolved by leapfrog steps along grad Q."""

    sampler: ClassVar[str] = "hamiltonian"
    follows_gradient: ClassVar[bool] = True
    changeable: ClassVar[frozenset[str]] = ActorCriticSettings.changeable | frozenset(
        """
        leapfrog_steps step_size momentum_std_explore momentum_std_train momentum_noise momentum_penalty
        tempering tempering_allow_heating force_scale mass_matrix clip_gradient explore_sampler train_sampler
        """.split()
    )

    policy_layers: Annotated[
        int, Field(ge=1, le=4, description="Hidden layers of the base policy network.")
    ] = 1
    leapfrog_steps: Annotated[int, Field(ge=0, le=MAX_LEAPFROG_STEPS, description="Leapfrog steps K.")] = 3
    step_size: Annotated[
        PositiveFloat | Annotated[list[PositiveFloat], Field(min_length=1)],
        Field(description="Leapfrog step size epsilon: one number, or one per action dimension."),
    ] = 0.1
    learn_step_size: Annotated[
        bool, Field(description="Train epsilon (softplus, per action dimension) with the policy.")
    ] = False
    leapfrog_units: Annotated[
        PositiveInt, Field(description="Hidden units h_n of the networks T_h and sigma_h.")
    ] = 32
    leapfrog_state_input: Annotated[
        bool, Field(description="Whether the state is an input of T_h and sigma_h.")
    ] = True
    momentum_std_explore: Annotated[
        PositiveFloat, Field(description="Std 1/sqrt(beta_0) of the initial momentum while exploring.")
    ] = 1.0
    momentum_std_train: Annotated[
        PositiveFloat, Field(description="Std 1/sqrt(beta_0) of the initial momentum while training.")
    ] = 0.1
    momentum_noise: Annotated[
        bool, Field(description="Whether the initial momentum is random; false: it is always zero.")
    ] = True
    momentum_penalty: Annotated[
        bool, Field(description="Include the term alpha beta_0 |rho_K|^2 / 2 in the objective, eq. (12).")
    ] = False
    tempering: Annotated[
        bool, Field(description="Scale the momentum after each step (arXiv 2103.12020v1, eq. (17)).")
    ] = False
    tempering_allow_heating: Annotated[
        bool, Field(description="Allow tempering with a std below 1, which amplifies the momentum.")
    ] = False
    force_scale: Annotated[
        Literal["unit", "inverse_temperature"],
        Field(
            description="Scale of the gradient in the force: unit norm, eq. (13), or divided by alpha, eq. (9)."
        ),
    ] = "unit"
    force_gate: Annotated[
        Literal["gated", "none"],
        Field(description="'gated': networks T_h and sigma_h, eq. (13); 'none': eq. (9)."),
    ] = "gated"
    mass_matrix: Annotated[
        Literal["unit", "consistent"],
        Field(
            description="Drift by rho, or by beta_0 rho (the mass consistent with the momentum's variance)."
        ),
    ] = "unit"
    clip_gradient: Annotated[
        Literal["zero", "straight_through"], Field(description="Gradient of clipped action components.")
    ] = "zero"
    explore_sampler: Annotated[
        Literal["hamiltonian", "gaussian"], Field(description="Sampler during exploration (Table II).")
    ] = "hamiltonian"
    train_sampler: Annotated[
        Literal["hamiltonian", "gaussian"],
        Field(description="Sampler in losses and evaluations (Table II)."),
    ] = "hamiltonian"

    @model_validator(mode="after")
    def _check_tempering(self) -> SACHPOSettings:
        used = {
            "momentum_std_explore": self.explore_sampler == "hamiltonian" and self.momentum_std_explore < 1,
            "momentum_std_train": self.train_sampler == "hamiltonian" and self.momentum_std_train < 1,
        }
        heating = [name for name, amplifies in used.items() if amplifies]
        if self.tempering and heating and not self.tempering_allow_heating:
            raise ValueError(
                f"tempering=true would amplify the momentum, because {' and '.join(heating)} is below 1; "
                "raise it to 1 or more, or set tempering_allow_heating=true"
            )
        return self

    def may_change(self, name: str, saved: Any) -> bool:
        """Check as `ActorCriticSettings.may_change`; a checkpoint holds a learned step size."""
        return super().may_change(name, saved) and not (name == "step_size" and self.learn_step_size)

    def notices(self) -> list[str]:
        """Warn if every factor of the tempering is 1; eq. (17) leads from the momentum's std to 1."""
        idle = {
            f"in {what}": self._why_untempered(sampler, name)
            for what, sampler, name in (
                ("exploration", self.explore_sampler, "momentum_std_explore"),
                ("training", self.train_sampler, "momentum_std_train"),
            )
        }
        found = [f"{where} ({why})" for where, why in idle.items() if why]
        return [f"tempering=true has no effect {' and '.join(found)}."] if self.tempering and found else []

    def _why_untempered(self, sampler: str, std_name: str) -> str:
        """Explain why tempering would not change a chain; empty if it would."""
        if sampler != "hamiltonian":
            return "its sampler is the Gaussian"
        if self.leapfrog_steps == 0:
            return "leapfrog_steps is 0"
        return f"{std_name} is 1, so every factor is 1" if getattr(self, std_name) == 1 else ""

    def evaluation_sampler(self) -> str:
        """Return the sampler of the losses, which for the baselines of Table II may differ from the exploring one."""
        return self.train_sampler


SettingsT = TypeVar("SettingsT", bound=Settings)


def without_numpy(value: Any) -> Any:
    """Convert NumPy scalars and arrays, also inside a list or tuple, to Python numbers and lists."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(without_numpy(item) for item in value) if type(value) in (list, tuple) else value
    return value


def parse_settings(model: type[SettingsT], values: Mapping[str, Any], source: str = "") -> SettingsT:
    """Validate `values` against `model`.

    Args:
        model: The settings class of an algorithm.
        values: Hyperparameters by name; missing ones get their defaults.
        source: Source of the values, such as a file name, which begins the message.

    Raises:
        SettingsError: If one is invalid; names the key, the value, what is allowed and the nearest valid name.
    """
    try:
        plain = {key: without_numpy(value) for key, value in values.items()}
        return model.model_validate({k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()})
    except pydantic.ValidationError as error:
        prefix = f"{source}: " if source else ""
        raise SettingsError(prefix + "; ".join(_describe(model, values, error)) + ".") from None


def complete_settings(model: type[Settings], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Complete hyperparameters that an earlier version stored, by the defaults of newer settings.

    A setting that is newer than what was stored has its default or, where it is in it, its value in
    `EARLIER_BEHAVIOUR`. Every stored configuration passes through this
    function: pickled settings and configs, manifests of checkpoints, exported policies, and rows that are compared.

    Args:
        model: The settings class of an algorithm.
        saved: Hyperparameters by name, possibly with other values among them.

    Returns:
        Every hyperparameter of `model`, and nothing else.
    """
    found = {**EARLIER_BEHAVIOUR, **saved}
    return {
        name: found[name] if name in found else field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
    }


def _describe(
    model: type[BaseModel], values: Mapping[str, Any], error: pydantic.ValidationError
) -> list[str]:
    """Describe pydantic's errors in a user's words: one phrase per key."""
    allowed: dict[str, list[str]] = {}
    phrases = []
    for details in error.errors():
        if not details["loc"]:
            phrases.append(details["msg"].removeprefix("Value error, "))
        elif details["type"] == "extra_forbidden" and len(details["loc"]) == 1:
            phrases.append(_unknown_key(model, str(details["loc"][0])))
        else:
            key = str(details["loc"][0])
            allowed.setdefault(key, []).append(_reason(details, values[key]))
    for key, reasons in allowed.items():
        phrases.append(f"{key}={shown(values[key])} must be {' or '.join(dict.fromkeys(reasons))}")
    return phrases


def _reason(details: Any, value: Any) -> str:
    """Describe what a value must be; for a mapping, which of its keys is wrong."""
    reason: str = details["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    if details["type"].startswith("union_tag"):
        return "a mapping whose 'kind' is 'speed', 'torque' or 'info'"
    path = details["loc"][2:]  # path after the setting and the kind
    if not isinstance(value, Mapping) or not path:
        return reason
    instead = {"missing": "given", "extra_forbidden": "left out, since there is no such key"}
    return f"a mapping whose '{path[0]}' is {instead.get(details['type'], reason)}"


def _unknown_key(model: type[BaseModel], key: str) -> str:
    close = nearest(key, model.model_fields)
    hint = f" (did you mean '{close}'?)" if close else ""
    valid = ", ".join(sorted(model.model_fields))
    return f"'{key}' is not a setting of {model.__name__.removesuffix('Settings')}{hint}; valid: {valid}"


def check_learners(num_learners: int, num_gpus_per_learner: float, settings: Settings) -> None:
    """Reject several learners that could not work together.

    Raises:
        SettingsError: If they could not; names key, value and what is allowed.
    """
    if num_learners > settings.replay_capacity:
        raise SettingsError(
            f"num_learners={num_learners} must be at most replay_capacity={settings.replay_capacity}: "
            "each learner holds a share of the replay."
        )
    if num_learners > 1 and num_gpus_per_learner not in (0, 1):
        raise SettingsError(
            f"num_gpus_per_learner={num_gpus_per_learner!r} must be 0 or 1 with num_learners={num_learners}: "
            "each learner needs a GPU of its own, since NCCL, which averages their gradients, cannot share "
            "one."
        )


def __getattr__(name: str) -> Any:
    """Resolve names of the registry, which this module held in 0.1.0 and other packages import from it."""
    if name in ("register_algorithm", "find_settings"):
        return getattr(importlib.import_module("rllib_hpo.algorithms.registry"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
