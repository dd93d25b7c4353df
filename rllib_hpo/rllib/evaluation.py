"""Evaluation: noise-free episodes in environments of their own, all at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from rllib_hpo.algorithms.base import Actor, EvaluationNoise, Memory
from rllib_hpo.errors import NonFiniteError
from rllib_hpo.results.schema import FRAMES, SUCCESS_RATE, cost_statistics
from rllib_hpo.rllib.episode_callbacks import EpisodeCallbacks
from rllib_hpo.settings import Settings
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, outcomes, wrappers
from rllib_hpo.tasks.costs import COST
from rllib_hpo.tasks.pixels.observation import frames_per_step

_logger = logging.getLogger(__name__)
Watch = Callable[[int], None]
"""Function called often with the number of steps an evaluation has played; an error that it raises ends it."""


class EpisodeCosts(NamedTuple):
    """Costs of the episodes of one evaluation."""

    sums: list[float]
    """Undiscounted, of each episode."""
    discounted: list[float]
    """Discounted cost of each episode: the sum of gamma^t c_t."""
    costly_steps: list[int]
    """Steps of each episode that cost more than 0."""


class Evaluation(NamedTuple):
    """Undiscounted returns and lengths of the episodes of one evaluation."""

    returns: list[float]
    lengths: list[int]
    episodes_cut: int = 0
    """Episodes that did not end by themselves within `evaluation_max_episode_steps`."""
    costs: EpisodeCosts | None = None
    """Costs of the episodes; None if the task defines no costs."""
    successes: Sequence[float] = ()
    """Whether each episode succeeded, 0.0 or 1.0; only of episodes whose environment reports `is_success`."""
    outcome: Mapping[str, float] = MappingProxyType({})
    """Outcomes, where the environment reports them (`rllib_hpo.tasks.outcomes.summary`), and discounted returns."""
    frames_per_step: int | None = None
    """Steps of the simulator in a step of the environment, where observations are images; otherwise None."""
    logged: Mapping[str, Any] = MappingProxyType({})
    """What callbacks have logged."""


class EvaluationCallbacks(Protocol):
    """Make what tells callbacks of the episodes of an evaluation."""

    def begin(
        self,
        envs: Sequence[gym.Env[Any, Any]],
        firsts: Sequence[tuple[npt.NDArray[np.float32], Any]],
    ) -> EpisodeCallbacks:
        """Begin the episodes of environments whose first observations and infos these are."""


class EvaluationStopped(Exception):
    """Raised when a stop was requested before the evaluation ended; the resumed run repeats it."""


def episode_seeds(seed: int, evaluation: int, num_episodes: int) -> list[int]:
    """Seeds of the episodes of evaluation number `evaluation`, the same for every algorithm."""
    states = seed_sequence(seed, "evaluation", evaluation).generate_state(num_episodes)
    return [int(state >> 1) for state in states]


def off_schedule_seeds(seed: int, env_steps: int, num_episodes: int) -> list[int]:
    """Seeds of the episodes of an evaluation at step `env_steps` of a run, between two scheduled ones."""
    states = seed_sequence(seed, "evaluation off schedule", env_steps).generate_state(num_episodes)
    return [int(state >> 1) for state in states]


def evaluate(
    actor: Actor,
    make: Callable[[], gym.Env[Any, Any]],
    seeds: list[int],
    wrapper_state: Sequence[Sequence[Any]] = (),
    *,
    max_episode_steps: int = 10_000,
    watch: Watch | None = None,
    cost_gamma: float | None = None,
    callbacks: EvaluationCallbacks | None = None,
) -> Evaluation:
    """Play one noise-free episode per seed, in lockstep, with one forward pass for all of them.

    Environments are made for this call and closed, so that no state reaches the next evaluation.

    Args:
        actor: What acts.
        make: Makes an environment.
        seeds: Of the episodes.
        wrapper_state: What the wrappers have gathered in training (`rllib_hpo.tasks.wrappers`); they gather no more.
        max_episode_steps: Steps at which an episode that has not ended is cut.
        watch: Called before each step of the episodes with the number of steps played; may raise to stop.
        cost_gamma: Discount of the costs that every step reports; None where costs are not asked for.
        callbacks: RLlib's episode callbacks, if there are any.

    Raises:
        NonFiniteError: If an observation or reward is not finite.
        UserCodeError: If the environment raises an error or does not keep to its interface.
    """
    envs: list[gym.Env[Any, Any]] = []
    try:
        for _ in seeds:
            envs.append(make())
            wrappers.set_state(envs[-1], wrapper_state, frozen=True)
        episodes = _Episodes(actor, envs, seeds, max_episode_steps, cost_gamma, callbacks)
        while episodes.running:
            if watch is not None:
                watch(episodes.num_steps)
            episodes.step()
        episodes.end()
    finally:
        for env in envs:
            boundary.close(env)
    return episodes.result()


class _Episodes:
    """The episodes of one evaluation, of which each step advances all that are running."""

    def __init__(
        self,
        actor: Actor,
        envs: Sequence[gym.Env[Any, Any]],
        seeds: list[int],
        max_episode_steps: int,
        cost_gamma: float | None,
        callbacks: EvaluationCallbacks | None,
    ) -> None:
        self._actor, self._envs = actor, envs
        self._max_steps, self._cost_gamma = max_episode_steps, cost_gamma
        self._scaling, self._checked = ActionScaling.of(envs[0].action_space), Boundary(envs[0])
        firsts = [_first(self._checked, env, seed) for env, seed in zip(envs, seeds, strict=True)]
        self._obs = np.stack([first for first, _ in firsts])
        self._heard = None if callbacks is None else callbacks.begin(envs, firsts)
        self._memory = actor.begin_episodes(torch.from_numpy(self._obs).to(actor.device), explores=False)
        self._noise, self._outcomes = EvaluationNoise(actor, seeds), _Outcomes(envs, actor.settings.gamma)
        self._returns, self._lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
        self._costs, self._discounted = np.zeros(len(seeds)), np.zeros(len(seeds))
        self._costly, self._num_cut = np.zeros(len(seeds), np.int64), 0
        self._successes: dict[int, float | None] = {}
        self.running = list(range(len(seeds)))
        """Numbers of the episodes that have not ended."""

    @property
    def num_steps(self) -> int:
        """Steps of all episodes so far."""
        return int(self._lengths.sum())

    def step(self) -> None:
        """Take one step in every running episode."""
        self._noise.draw(self._memory, self.running)
        unit = _noise_free(self._actor, self._obs[self.running], self._memory, self.running)
        actions = self._scaling.to_env(unit)
        ended = {
            i
            for i, action, own in zip(self.running, actions, unit, strict=True)
            if self._step_one(i, action, own)
        }
        self.running = [i for i in self.running if i not in ended]

    def end(self) -> None:
        """Tell callbacks that all episodes have ended."""
        if self._heard is not None:
            self._heard.sampled()

    def _step_one(self, i: int, action: npt.NDArray[np.float32], unit: npt.NDArray[np.float32]) -> bool:
        """Take one step in episode `i`, with an action and the same in [-1, 1]; return whether it ended or is cut."""
        self._lengths[i] += 1
        try:
            self._obs[i], reward, terminated, truncated, info = self._checked.step_with_info(
                self._envs[i], action
            )
            if self._cost_gamma is not None:
                self._add_cost(i, float(self._checked.column(info, COST, 1)[0]), self._cost_gamma)
        except NonFiniteError as error:
            raise _located(error, int(self._lengths[i])) from error
        is_cut = self._lengths[i] >= self._max_steps
        if self._heard is not None:
            self._heard.step(i, self._obs[i], unit, action, reward, terminated, truncated or is_cut, info)
        self._returns[i] += reward
        self._outcomes.step(i, reward, info)
        if terminated or truncated or is_cut:
            self._num_cut += int(not (terminated or truncated))
            self._successes[i] = self._checked.success(info)
        return bool(terminated or truncated or is_cut)

    def _add_cost(self, i: int, cost: float, gamma: float) -> None:
        self._costs[i] += cost
        self._discounted[i] += gamma ** (self._lengths[i] - 1) * cost
        self._costly[i] += cost > 0

    def result(self) -> Evaluation:
        """Return what the episodes yielded."""
        costs = EpisodeCosts(self._costs.tolist(), self._discounted.tolist(), self._costly.tolist())
        return Evaluation(
            self._returns.tolist(),
            self._lengths.tolist(),
            self._num_cut,
            None if self._cost_gamma is None else costs,
            [success for _, success in sorted(self._successes.items()) if success is not None],
            self._outcomes.summary(),
            frames_per_step(self._envs[0]),
        )


def cost_gamma(settings: Settings) -> float | None:
    """The discount of costs in evaluations; None where the task has none."""
    return None if settings.cost is None else settings.gamma


def cost_columns(played: Evaluation, settings: Settings) -> dict[str, Any]:
    """Columns of a result row that say what the episodes cost; none where the task says nothing of costs."""
    if played.costs is None:
        return {}
    return cost_statistics(*played.costs, played.lengths) | {"cost_limit": settings.cost_limit}


def success_columns(played: Evaluation) -> dict[str, float]:
    """The column of a result row with the share of successes; none where no episode reported any."""
    return {SUCCESS_RATE: float(np.mean(played.successes))} if played.successes else {}


class _Outcomes:
    """Record outcomes of episodes in environments that report them."""

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], gamma: float) -> None:
        self._reports, self._gamma = outcomes.reports_outcome(envs[0]), gamma
        self._num_goals = getattr(envs[0].unwrapped, "num_goals", 0)
        self._each: list[outcomes.Outcome] = [{} for _ in envs]
        self._discounted, self._weights = np.zeros(len(envs)), np.ones(len(envs))

    def step(self, i: int, reward: float, info: Any) -> None:
        if self._reports:
            outcomes.observe(self._each[i], info)
            self._discounted[i] += self._weights[i] * reward
            self._weights[i] *= self._gamma

    def summary(self) -> dict[str, float]:
        if not self._reports:
            return {}
        numbers = outcomes.summary(self._each, self._num_goals)
        return {**numbers, "discounted_return_mean": float(self._discounted.mean())}


def outcome_columns(played: Evaluation, env_steps: int) -> dict[str, float]:
    """Outcomes of an evaluation at step `env_steps` and, with images, the simulator's frames so far."""
    frames = {} if played.frames_per_step is None else {FRAMES: float(env_steps * played.frames_per_step)}
    return {**played.outcome, **frames}


def warn_truncated(played: Evaluation, env: str, max_episode_steps: int) -> bool:
    """Warn if episodes were cut, since their returns depend on the limit; returns whether it did."""
    if played.episodes_cut:
        _logger.warning(
            "%d of %d evaluation episodes of %s had not ended after evaluation_max_episode_steps=%d steps and were "
            "cut. Limit the length of episodes, for example with `--set 'env_config={max_episode_steps: 1000}'`.",
            played.episodes_cut,
            len(played.returns),
            env,
            max_episode_steps,
        )
    return played.episodes_cut > 0


def _first(checked: Boundary, env: gym.Env[Any, Any], seed: int) -> tuple[npt.NDArray[np.float32], Any]:
    try:
        return checked.reset_with_info(env, seed)
    except NonFiniteError as error:
        raise _located(error, 1) from error


def _located(error: NonFiniteError, step: int) -> NonFiniteError:
    return NonFiniteError(f"{error} at step {step} of an evaluation episode")


def _noise_free(
    actor: Actor, obs: npt.NDArray[np.float32], memory: Memory, running: list[int]
) -> npt.NDArray[np.float32]:
    """Noise-free actions (R, A) for obs (R, S) of the R running episodes; `memory` holds that of all episodes."""
    own = {name: value[running] for name, value in memory.items()}
    actions: npt.NDArray[np.float32] = (
        actor.act(torch.from_numpy(obs).to(actor.device), memory=own).cpu().numpy()
    )
    for name, value in own.items():
        memory[name][running] = value
    return actions
