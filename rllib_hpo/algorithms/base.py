"""What an algorithm is: its networks, the random numbers of one update, and the update.

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

from rllib_hpo.algorithms.footprint import Part
from rllib_hpo.optim.adam import make_adam
from rllib_hpo.optim.steps import Steps
from rllib_hpo.replay.layout import Batch, Column
from rllib_hpo.settings import Settings
from rllib_hpo.streams import Draw, TorchStreams

Noise = dict[str, Tensor]
Metrics = dict[str, Tensor]
Memory = dict[str, Tensor]
"""What acting remembers of B episodes, by name, each (B, ...)."""

SettingsT = TypeVar("SettingsT", bound=Settings)
ModelT = TypeVar("ModelT", bound="Actor")


_NOTHING: Mapping[str, tuple[float, ...]] = {}


class Episode(NamedTuple):
    """A finished training episode."""

    episode_return: float
    length: int
    seconds: float = 0.0
    """From its reset to its end, by the clock."""
    cost: float = 0.0
    """Sum of its costs, where the task or a column "cost" says what steps cost."""
    failed: bool = False
    """Whether an error of the environment cut it; the environment was built anew."""
    cost_discounted: float = 0.0
    """The same sum, the cost of step t times gamma^t."""
    ended_at: int = 0
    """Environment steps of the run when it ended; as a runner hands it on, steps of the rollout."""
    recorded: Mapping[str, tuple[float, ...]] = _NOTHING
    """What acting remembered at its end, by name: where `Remembered.recorded` says so."""
    outcome: Mapping[str, float] | None = None
    """How far it went and what it reached, where the environment says; see `rllib_hpo.tasks.outcomes`."""


class Remembered(NamedTuple):
    """One tensor that acting remembers of each episode."""

    shape: tuple[int, ...]
    only_exploring: bool = False
    """Whether noise-free actions do without it: evaluations and exported policies then have none."""
    recorded: bool = False
    """Whether finished training episodes carry its last value, of one dimension at most (`Episode.recorded`)."""
    drawn: bool = False
    """Whether it is noise of evaluations: whoever acts draws it anew before each action, standard normal."""

    def is_held(self, *, explores: bool) -> bool:
        """Whether episodes of training (`explores`), or of evaluations, have it."""
        return not (self.drawn if explores else self.only_exploring)


class Actor(nn.Module, ABC):
    """What acting needs: runners, evaluations and exported policies hold it, and nothing else.

    A subclass is made with (obs_dim, action_dim, settings, seed).
    """

    obs_dim: int
    action_dim: int
    settings: Any

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def acting(self) -> nn.Module:
        """The networks that draw actions; those of the base policy are its submodule `policy`."""
        return self

    @property
    def memory(self) -> Mapping[str, Remembered]:
        """What `act` remembers of each episode; nothing by default."""
        return {}

    def begin(self, obs: Tensor, *, explores: bool = True) -> Memory:
        """The memory at the start of B episodes: zeros, unless a subclass knows better.

        Args:
            obs: First observations, (B, S).
            explores: Whether the episodes are of training.
        """
        return {
            name: torch.zeros((len(obs), *remembered.shape), device=obs.device)
            for name, remembered in self.memory.items()
            if remembered.is_held(explores=explores)
        }

    @abstractmethod
    def forward(self, obs: Tensor, memory: Memory | None = None) -> Tensor:
        """Noise-free actions (B, A) in [-1, 1] for obs (B, S).

        It is traced for export, so it must not branch on values. New values of `memory` are put into that dict;
        without one, each observation is the first of its episode.
        """

    @abstractmethod
    def explore(self, obs: Tensor, streams: TorchStreams, memory: Memory) -> Tensor:
        """Actions (B, A) in [-1, 1] with noise of `streams`; new values of `memory` are put into that dict."""

    @torch.no_grad()
    def act(self, obs: Tensor, streams: TorchStreams | None = None, memory: Memory | None = None) -> Tensor:
        """Actions (B, A) in [-1, 1] for obs (B, S).

        Args:
            obs: (B, S).
            streams: Where the noise of exploration is drawn; None for noise-free actions.
            memory: Of these episodes, from `begin`; new values are put into the dict. None for episodes that
                begin with `obs`.
        """
        if streams is None:
            return self(obs, memory)
        return self.explore(obs, streams, self.begin(obs) if memory is None else memory)


class EvaluationNoise:
    """Noise that an actor's evaluations draw, each episode from a stream of its own.

    Most actors draw none.

    Args:
        actor: Whose memory names it.
        seeds: Of the episodes.
    """

    def __init__(self, actor: Actor, seeds: Sequence[int]) -> None:
        self._shapes = {name: kept.shape for name, kept in actor.memory.items() if kept.drawn}
        self._streams = [TorchStreams(seed, "evaluation") for seed in seeds] if self._shapes else []

    def draw(self, memory: Memory, which: Sequence[int]) -> None:
        """Writes the noise of the next action of the episodes `which` into the memory of all."""
        for name, shape in self._shapes.items():
            for i in which:
                drawn = torch.randn(shape, generator=self._streams[i][name])
                memory[name][i] = drawn.to(memory[name].device)


class Method(ABC, Generic[SettingsT, ModelT]):
    """A learning algorithm.

    Args:
        settings: Its hyperparameters.
    """

    actor_class: ClassVar[type[Actor]]
    model_class: ClassVar[type[Any]]
    """A subclass of `actor_class`, made in the same way, with what only the learner needs."""
    columns: ClassVar[tuple[Column, ...]] = ()
    """What a transition holds beyond the usual five columns; environments report it in `info` by that name."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    def make_actor(self, obs_dim: int, action_dim: int, seed: int) -> Actor:
        """What acts; its weights are those of `make_model` with the same seed."""
        return self.actor_class(obs_dim, action_dim, self.settings, seed)

    def make_model(self, obs_dim: int, action_dim: int, seed: int) -> ModelT:
        """All that is learned."""
        model: ModelT = self.model_class(obs_dim, action_dim, self.settings, seed)
        return model

    @abstractmethod
    def trained(self, model: ModelT) -> Mapping[str, Sequence[Tensor]]:
        """Parameters by the name of the loss that drives them."""

    def learning_rate(self, loss: str) -> float:
        """The learning rate of the parameters that a loss drives."""
        return self.settings.lr

    def make_optimizers(self, model: ModelT) -> dict[str, torch.optim.Optimizer]:
        """One Adam for each loss."""
        parts = self.trained(model)
        return {name: make_adam(list(parts[name]), self.learning_rate(name)) for name in parts}

    @abstractmethod
    def draws(self, model: ModelT) -> Mapping[str, Draw]:
        """The random numbers of one update, each name with a stream of its own."""

    def kind(self, update: int) -> str:
        """The kind of update number `update` (from 1). Each kind is captured as a CUDA graph: have at most 4."""
        return "update"

    @abstractmethod
    def update(self, model: ModelT, batch: Batch, noise: Noise, steps: Steps, kind: str) -> Metrics:
        """Makes one update.

        Args:
            model: Changed in place, by `steps`.
            batch: B transitions.
            noise: As `draws` declares.
            steps: What takes gradient steps and writes buffers.
            kind: Of this update.

        Returns:
            Scalars without gradient that describe it.

        Raises:
            NonFiniteError: If a loss is not finite.
            WorkerDiedError: If another replica is gone.
        """

    def rows_added(self, model: ModelT, rows: npt.NDArray[np.float32]) -> None:
        """Takes note of transitions (N, width) that arrive, in the order of learning, on every learner alike."""

    @property
    def watches_rows(self) -> bool:
        """Whether `rows_added` does anything, so that rows must reach every learner."""
        return type(self).rows_added is not Method.rows_added

    def episodes_ended(self, model: ModelT, episodes: Sequence[Episode]) -> None:
        """Takes note of training episodes that ended, in the order of learning, on every learner alike."""

    @property
    def watches_episodes(self) -> bool:
        """Whether `episodes_ended` does anything."""
        return type(self).episodes_ended is not Method.episodes_ended

    def diagnose(self, model: ModelT, batch: Batch, noise: Noise) -> Metrics:
        """Scalars that are too costly for every update."""
        return {}

    def concerns(self, diagnostics: Mapping[str, float]) -> Mapping[str, str]:
        """Sentences by name on diagnostics that deserve a warning; each name is warned of once."""
        return {}

    def restored(self, model: ModelT) -> None:
        """Makes settings hold again that loaded weights may have overwritten."""

    def networks(self, model: ModelT) -> list[str]:
        """Names in the model's state dict of what a run may take over from another: all that submodules hold.

        What a method counts or tunes is best a parameter or buffer of the model itself, and then begins anew.
        """
        return [name for name in model.state_dict() if "." in name]

    def check(self, actor: Actor) -> None:
        """Refuses settings that cannot work with these networks.

        Raises:
            SettingsError: Naming the setting and what to set.
        """

    def actor_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """The least memory that an actor takes."""
        return []

    def learner_parts(self, obs_dim: int, action_dim: int) -> list[Part]:
        """The least memory that a learner takes without its replay."""
        return self.actor_parts(obs_dim, action_dim)
