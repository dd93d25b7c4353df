"""Define the interface of an algorithm: its networks, the random numbers of one update, and the update.

A `Method` holds settings and no state. Three rules make every method work with bulk updates, CUDA graphs, several
learners, checkpoints, clones, both API stacks and exports, without code of its own:

1. What it learns or counts is a parameter or a buffer of its model.
2. When something happens is a function of the update's number (`Method.kind`).
3. Random numbers come in as an argument (`noise`); an update draws none.

An update changes its model through `rllib_hpo.optim.steps.Steps` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rllib_hpo.algorithms.footprint import Part, refuse_too_large
from rllib_hpo.optim.adam import make_adam
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.frames import FrameLayout
from rllib_hpo.replay.layout import Batch, Column, RowLayout
from rllib_hpo.replay.normalization import ObservationNormalizer, RewardScaler
from rllib_hpo.settings import Settings
from rllib_hpo.streams import Draw, TorchStreams

Noise = dict[str, Tensor]
Metrics = dict[str, Tensor]
Memory = dict[str, Tensor]
"""Tensors that acting carries from step to step, by name, each (B, ...) for B episodes."""

SettingsT = TypeVar("SettingsT", bound=Settings)
ModelT = TypeVar("ModelT", bound="Actor")


_NOTHING: Mapping[str, tuple[float, ...]] = {}
DISCOUNTED_RETURN = Column("discounted_return")
"""Column that runners compute for `normalize_rewards`: G_t = gamma G_{t-1} + r_t of an episode so far."""


class Episode(NamedTuple):
    """A finished training episode."""

    episode_return: float
    length: int
    seconds: float = 0.0
    """Wall-clock seconds from its reset to its end."""
    cost: float = 0.0
    """Sum of its costs, where the task or a column "cost" defines the cost of a step."""
    failed: bool = False
    """Whether an error of the environment cut it short; the environment was then rebuilt."""
    cost_discounted: float = 0.0
    """Discounted sum of its costs: the cost of step t times gamma^t."""
    ended_at: int = 0
    """Environment steps of the run when it ended. In a runner's reply: steps of the rollout."""
    recorded: Mapping[str, tuple[float, ...]] = _NOTHING
    """Last value of each memory tensor that sets `Remembered.recorded`, by name."""
    success: float | None = None
    """Whether it succeeded, 0.0 or 1.0, where the environment reports `is_success`."""
    outcome: Mapping[str, float] | None = None
    """Distances covered and goals reached, where the environment reports them; see `rllib_hpo.tasks.outcomes`."""


class Remembered(NamedTuple):
    """One tensor that acting carries through an episode."""

    shape: tuple[int, ...]
    only_exploring: bool = False
    """Whether only exploration uses it; evaluations and exported policies then do not hold it."""
    recorded: bool = False
    """Whether finished training episodes carry its last value, of at most one dimension (`Episode.recorded`)."""
    drawn: bool = False
    """Whether it is standard normal noise of evaluations, which the caller of `act` redraws before each action."""

    def is_held(self, *, explores: bool) -> bool:
        """Whether training episodes (`explores`) or evaluation episodes hold it."""
        return not (self.drawn if explores else self.only_exploring)


class Actor(nn.Module, ABC):
    """Hold what acting needs, and nothing else: for runners, evaluations and exported policies.

    `act` and `begin_episodes` take observations of the environment. All other methods, and the updates of a `Method`,
    take those that `normalized` returns.

    Subclasses are constructed with (obs_dim, action_dim, settings, seed), where `seed` is that of the initial weights.

    Args:
        obs_dim: Observation dimension S.
        action_dim: Action dimension A.
        settings: The algorithm's hyperparameters.
    """

    settings: Any

    def __init__(self, obs_dim: int, action_dim: int, settings: Any) -> None:
        super().__init__()
        self.obs_dim, self.action_dim, self.settings = obs_dim, action_dim, settings
        self.observation_normalizer: ObservationNormalizer | None = None
        """Statistics of observations, with `normalize_observations`."""
        if settings.normalize_observations:
            self.observation_normalizer = ObservationNormalizer(obs_dim)
        self.reward_scaler: RewardScaler | None = None
        """Scale of rewards, which a model that learns has with `normalize_rewards`."""

    def normalized(self, obs: Tensor) -> Tensor:
        """Return observations (..., S) as the networks take them: normalised, where the settings say so."""
        return obs if self.observation_normalizer is None else self.observation_normalizer(obs)

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.parameters()).device

    @property
    def acting(self) -> nn.Module:
        """The networks that draw actions. The base policy's networks are its submodule `policy`."""
        return self

    @property
    def memory(self) -> Mapping[str, Remembered]:
        """The tensors that `act` carries through an episode, by name; none by default."""
        return {}

    def begin_episodes(self, obs: Tensor, *, explores: bool = True) -> Memory:
        """Return the memory at the start of B episodes; see `begin`.

        Args:
            obs: First observations of the environment, (B, S).
            explores: Whether these are training episodes.
        """
        return self.begin(self.normalized(obs), explores=explores)

    def begin(self, obs: Tensor, *, explores: bool = True) -> Memory:
        """Return the memory at the start of B episodes: zeros, unless a subclass overrides this.

        Args:
            obs: First observations as `normalized` returns them, (B, S).
            explores: Whether these are training episodes.
        """
        return {
            name: torch.zeros((len(obs), *remembered.shape), device=obs.device)
            for name, remembered in self.memory.items()
            if remembered.is_held(explores=explores)
        }

    @abstractmethod
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """Return noise-free actions (B, A) in [-1, 1] for obs (B, S).

        Export traces this method, so it must not branch on values. It writes new values into the dict `memory`; without
        one, each observation is the first of its episode.
        """

    @abstractmethod
    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        """Return actions (B, A) in [-1, 1] with noise of `streams`; write new values into the dict `memory`."""

    @torch.no_grad()
    def act(self, obs: Tensor, streams: TorchStreams | None = None, memory: Memory | None = None) -> Tensor:
        """Return actions (B, A) in [-1, 1] for obs (B, S).

        Args:
            obs: Observations of the environment, (B, S).
            streams: Streams of the exploration noise; None for noise-free actions.
            memory: Memory of these episodes, from `begin_episodes`; new values are written into the dict. None for
                episodes that begin with `obs`.
        """
        obs = self.normalized(obs)
        if streams is None:
            return self(obs, memory)
        return self.explore(obs, streams, self.begin(obs) if memory is None else memory)


class EvaluationNoise:
    """Draw the noise that an actor's evaluations need, with one stream per episode.

    Most actors need none.

    Args:
        actor: The actor; its `memory` names the tensors.
        seeds: Seeds of the episodes.
    """

    def __init__(self, actor: Actor, seeds: Sequence[int]) -> None:
        self._shapes = {name: kept.shape for name, kept in actor.memory.items() if kept.drawn}
        self._streams = [TorchStreams(seed, "evaluation") for seed in seeds] if self._shapes else []

    def draw(self, memory: Memory, which: Sequence[int]) -> None:
        """Write the noise of the next action of the episodes `which` into the memory of all episodes."""
        for name, shape in self._shapes.items():
            for i in which:
                drawn = torch.randn(shape, generator=self._streams[i][name])
                memory[name][i] = drawn.to(memory[name].device)


class Method(ABC, Generic[SettingsT, ModelT]):
    """A learning algorithm.

    Args:
        settings: Its hyperparameters.
    """

    actor_class: ClassVar[type[Any]]
    """Subclass of `Actor`."""
    model_class: ClassVar[type[Any]]
    """Subclass of `actor_class` with the same constructor, plus what only the learner needs."""
    columns: ClassVar[tuple[Column, ...]] = ()
    """Columns of a transition beyond the usual five; environments report each in `info` under its name."""
    takes_images: ClassVar[bool] = False
    """Whether observations are images; otherwise they are vectors."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    def make_actor(self, obs_dim: int, action_dim: int, seed: int) -> Actor:
        """Make the actor; its weights equal those of `make_model` with the same seed.

        Raises:
            SettingsError: If it would take more than all memory of this machine.
        """
        refuse_too_large(self.actor_parts(obs_dim, action_dim))
        actor: Actor = self.actor_class(obs_dim, action_dim, self.settings, seed)
        return actor

    def make_model(self, obs_dim: int, action_dim: int, seed: int) -> ModelT:
        """Make the model: the actor and everything else that is learned.

        Raises:
            SettingsError: If it would take more than all memory of this machine.
        """
        refuse_too_large(self.learner_parts(obs_dim, action_dim))
        model: ModelT = self.model_class(obs_dim, action_dim, self.settings, seed)
        if self.settings.normalize_rewards:
            model.reward_scaler = RewardScaler()
        return model

    @property
    def row_columns(self) -> tuple[Column, ...]:
        """The columns of a transition beyond the usual five: `columns`, then those that runners compute."""
        return (*self.columns, *((DISCOUNTED_RETURN,) if self.settings.normalize_rewards else ()))

    def layout(self, obs_dim: int, action_dim: int) -> RowLayout | FrameLayout:
        """Return what the replay stores for a transition: vectors, unless a subclass learns from frames."""
        return RowLayout(obs_dim, action_dim, self.row_columns)

    def normalized(self, model: ModelT, batch: Batch) -> Batch:
        """Return the batch with observations and rewards normalised, where the settings say so."""
        if model.observation_normalizer is not None:
            obs, next_obs = model.normalized(batch.obs), model.normalized(batch.next_obs)
            batch = batch._replace(obs=obs, next_obs=next_obs)
        if model.reward_scaler is not None:
            batch = batch._replace(reward=model.reward_scaler(batch.reward))
        return batch

    @abstractmethod
    def trained(self, model: ModelT) -> Mapping[str, Sequence[Tensor]]:
        """Return the parameters that each loss trains, by the name of the loss."""

    def learning_rate(self, loss: str) -> float:
        """Return the learning rate of the parameters that a loss trains."""
        return self.settings.lr

    def make_optimizers(self, model: ModelT) -> dict[str, torch.optim.Optimizer]:
        """Make one Adam optimizer per loss."""
        parts = self.trained(model)
        return {name: make_adam(list(parts[name]), self.learning_rate(name)) for name in parts}

    @abstractmethod
    def draws(self, model: ModelT) -> Mapping[str, Draw]:
        """Declare the random numbers of one update; each name has its own stream."""

    def kind(self, update: int) -> str:
        """Return the kind of update number `update` (from 1). Each kind is one CUDA graph; have at most 4."""
        return "update"

    @abstractmethod
    def update(self, model: ModelT, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        """Make one update.

        Args:
            model: The model, changed in place by `steps`.
            batch: B transitions, as `normalized` returns them.
            noise: Random numbers as `draws` declares them.
            steps: Takes gradient steps and writes buffers.
            kind: Kind of this update.

        Returns:
            Scalar metrics without gradient.

        Raises:
            NonFiniteError: If a loss is not finite.
            WorkerDiedError: If another replica has died.
        """

    def rows_arrived(self, model: ModelT, rows: npt.NDArray[np.float32]) -> None:
        """Update the statistics of normalisation with transitions (N, width), and call `rows_added`.

        Statistics are of observations that were acted on, so each counts once.
        """
        if model.observation_normalizer is not None:
            model.observation_normalizer.update(rows[:, : model.obs_dim])
        if model.reward_scaler is not None:
            model.reward_scaler.update(rows[:, -DISCOUNTED_RETURN.size :])
        self.rows_added(model, rows)

    def rows_added(self, model: ModelT, rows: npt.NDArray[np.float32]) -> None:
        """Process transitions (N, width) as they arrive. Every learner calls this, in the order of learning."""

    @property
    def watches_rows(self) -> bool:
        """Whether anything depends on the rows that arrive, so that they must reach every learner."""
        is_overridden = type(self).rows_added is not Method.rows_added
        return is_overridden or self.settings.normalize_observations or self.settings.normalize_rewards

    def episodes_ended(self, model: ModelT, episodes: Sequence[Episode]) -> None:
        """Process training episodes that ended. Every learner calls this, in the order of learning."""

    @property
    def watches_episodes(self) -> bool:
        """Whether `episodes_ended` is overridden."""
        return type(self).episodes_ended is not Method.episodes_ended

    def diagnose(self, model: ModelT, batch: Batch, noise: Noise) -> Metrics:
        """Return scalar diagnostics that cost too much for every update."""
        return {}

    def concerns(self, diagnostics: Mapping[str, float]) -> Mapping[str, str]:
        """Return warnings about diagnostics, by name; each name is reported once."""
        return {}

    def restored(self, model: ModelT) -> None:
        """Reapply settings that loaded weights may have overwritten."""

    def networks(self, model: ModelT) -> list[str]:
        """Return the names in the model's state dict that a run may take over from another: those of submodules.

        Make a counter or a tuned value a direct parameter or buffer of the model; it then restarts. So does the scale
        of rewards, which may be those of another task.
        """
        return [name for name in model.state_dict() if "." in name and not name.startswith("reward_scaler.")]

    def check(self, actor: Actor) -> None:
        """Reject settings that cannot work with these networks.

        Raises:
            SettingsError: If a setting cannot work; it names the setting and a remedy.
        """

    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return lower bounds on the memory of an actor."""
        return []

    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """Return lower bounds on the memory of a learner without its replay."""
        return self.actor_parts(obs_dim, action_dim)
