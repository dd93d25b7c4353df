"""The environment runner: steps environments and returns blocks of transitions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_hpo.algorithms.base import DISCOUNTED_RETURN, Actor, Episode, Memory
from rllib_hpo.algorithms.registry import make_method
from rllib_hpo.errors import NonFiniteError, SettingsError, UserCodeError, UserError
from rllib_hpo.replay.frames import FrameWriter, joined
from rllib_hpo.replay.hindsight import GoalPlaces, Hindsight
from rllib_hpo.replay.layout import RowLayout, RowWriter
from rllib_hpo.rllib._private import wants_component
from rllib_hpo.rllib.environment import Environments, announce_created, environment_maker, label, task_of
from rllib_hpo.rllib.episode_callbacks import EpisodeCallbacks, listens
from rllib_hpo.rllib.new_stack.messages import Block
from rllib_hpo.rllib.new_stack.rl_module import ActorCriticModule
from rllib_hpo.rllib.torch_options import set_torch_options
from rllib_hpo.streams import TorchStreams, derived_seed, numpy_generator
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, outcomes, wrappers
from rllib_hpo.tasks.costs import COST
from rllib_hpo.tasks.goals import ACHIEVED, DESIRED, check_goals, outcome_of, part_of
from rllib_hpo.tasks.simulator_state import capture, restore

_logger = logging.getLogger(__name__)
_FAILURE = "failure"
"""The key of `get_spaces` under which a remote runner reports why it could not be made."""


_MAX_CONSECUTIVE_FAILURES = 10
"""How often an environment may fail in a row, and be rebuilt, without making a step."""


class ColumnarEnvRunner(EnvRunner, Checkpointable):
    """Step environments and write transitions into rows, in place of RLlib's episode-based runner.

    Every sampled step is a transition: an environment is reset as soon as its episode ends, so the
    autoreset row of a gymnasium vector environment does not arise, and `next_obs` is always the true
    successor. Stored actions are in [-1, 1]. Any number of steps can be asked for: environments act in
    turn, so that N environments can stop after exactly n steps.

    Of AlgorithmConfig it uses env, env_config, num_envs_per_env_runner, seed, callbacks and, to build an environment
    anew that raises an error, restart_failed_sub_environments and ignore_env_runner_failures.
    """

    @override(EnvRunner)
    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.worker_index = self.worker_index or 0
        set_torch_options(self.config.num_torch_threads)
        self.spaces = kwargs.get("spaces") or {}
        self._callbacks = [callbacks() for callbacks in force_list(self.config.callbacks_class)]
        self.envs: list[gym.Env[Any, Any]] = []
        self._num_builds: list[int] = []
        self._capturable: list[bool] = []
        self._weights_seq_no = 0
        self.weights_id = ""
        """Id of the object that holds the newest weights received with a request."""
        self.idle_since: float | None = None
        """End of the last request, by `time.perf_counter`."""
        self._set_streams(self.config.seed, joined_at=0)
        self._has_joined = False
        if isinstance(self.spaces.get(_FAILURE), UserError):
            raise self.spaces[_FAILURE]
        self._failure: UserError | None = None
        try:
            if self.worker_index > 0 or self.config.num_env_runners == 0:
                self.make_env()
            self.make_module()
        except UserError as error:
            if self.worker_index == 0:
                raise
            # RLlib loses the error of a remote constructor; get_spaces or sample report it instead.
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _set_streams(self, seed: int, joined_at: int) -> None:
        """Set streams that belong to this runner; a replacement of a dead runner repeats no draws."""
        self._run_seed, self._owner = seed, ("runner", self.worker_index, joined_at)
        self.streams = TorchStreams(seed, *self._owner, "explore")
        self._warmup = numpy_generator(seed, *self._owner, "warmup")
        self._relabelling = numpy_generator(seed, *self._owner, "hindsight")

    @override(EnvRunner)
    def make_env(self) -> None:
        """Make and reset the environments; close earlier ones and forget their task.

        With another `config.env_config` before it is how RLlib's curricula change an environment.
        """
        self.stop()
        self._make = environment_maker(self.config, self.worker_index)
        num_envs = self.config.num_envs_per_env_runner
        self.envs = [self._make() for _ in range(num_envs)]
        self.env = Environments(self.envs)
        first = self.envs[0]
        self._boundary = Boundary(first, label(self.config.env))
        self._scaling = ActionScaling.of(first.action_space)
        obs_dim, action_dim = map(gym.spaces.flatdim, (first.observation_space, first.action_space))
        settings = self.config.settings()
        method = make_method(settings)
        self.layout, self._reported = method.layout(obs_dim, action_dim), method.columns
        self._largest_cost = settings.largest_cost()
        has_column = any(column.name == COST for column in self._reported)
        self._hindsight = self._make_hindsight(first) if settings.replay == "her" else None
        self._episode_rows: list[list[npt.NDArray[np.float32]]] = [[] for _ in range(num_envs)]
        self._scales_rewards = settings.normalize_rewards
        self._discounted_returns = np.zeros(num_envs)
        self._gamma, self._counts_costs = settings.gamma, settings.cost is not None and not has_column
        self._obs = np.zeros((num_envs, self.layout.obs_dim), np.float32)
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, np.int64)
        self._costs, self._discounted_costs = np.zeros(num_envs), np.zeros(num_envs)
        self._reports = outcomes.reports_outcome(first)
        self._outcomes: list[outcomes.Outcome] = [{} for _ in range(num_envs)]
        self._successes: list[float | None] = [None] * num_envs
        self._memory: Memory = {}
        self._remembers = [False] * num_envs
        self._began = [time.perf_counter()] * num_envs
        self._turn, self._stepped = 0, [False] * num_envs
        hears = listens(self.config, self._callbacks)
        self._heard = EpisodeCallbacks(self, self._callbacks, num_envs) if hears else None
        self._num_builds = [number + 1 for number in self._num_builds] or [0] * num_envs
        for i, env in enumerate(self.envs):
            announce_created(env, self, self._callbacks, i)
        self._built_with = [wrappers.get_state(env) for env in self.envs]
        self._reset_all()
        self._capturable = [capture(env) is not None for env in self.envs]

    def _make_hindsight(self, env: gym.Env[Any, Any]) -> Hindsight:
        """Make what relabels the transitions of finished episodes.

        Raises:
            UserError: If the environment has no goals, or cannot say what a step is worth for another goal.
        """
        check_goals(env)
        settings = self.config.settings()
        assert isinstance(self.layout, RowLayout)
        places = GoalPlaces(*(part_of(env, goal).place for goal in (ACHIEVED, DESIRED)))
        outcome = outcome_of(env, self._boundary)
        return Hindsight(self.layout, places, outcome, settings.her_ratio, settings.her_strategy)

    def _reset_all(self) -> None:
        for i in range(len(self.envs)):
            self._begin_episode(i, seed=self._environment_seed(i))

    def _environment_seed(self, i: int) -> int:
        return derived_seed(self._run_seed, *self._owner, "environment", i, self._num_builds[i])

    def _begin_episode(self, i: int, seed: int | None = None) -> None:
        self._began[i] = time.perf_counter()
        self._episode_rows[i] = []
        self._returns[i], self._lengths[i] = 0.0, 0
        self._costs[i] = self._discounted_costs[i] = 0.0
        self._remembers[i], self._outcomes[i], self._discounted_returns[i] = False, {}, 0.0
        try:
            self._obs[i], info = self._boundary.reset_with_info(self.envs[i], seed)
            if self._heard is not None:
                self._heard.reset(i, info)
        except NonFiniteError as error:
            raise self._located(error, i) from error

    @override(EnvRunner)
    def make_module(self) -> None:
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module: ActorCriticModule = spec.build()

    @property
    def _actor(self) -> Actor:
        return self.module.model

    def _remember(self, which: list[int]) -> None:
        """Begin the memory of those environments of `which` whose episode has just begun."""
        fresh = [i for i in which if not self._remembers[i]]
        if not self._actor.memory or not fresh:
            return
        begun = self._actor.begin_episodes(torch.from_numpy(self._obs[fresh]).to(self._actor.device))
        for name, value in begun.items():
            if name not in self._memory:
                self._memory[name] = value.new_zeros((len(self.envs), *value.shape[1:]))
            self._memory[name][fresh] = value
        for i in fresh:
            self._remembers[i] = True

    @override(EnvRunner)
    def sample(self, *, num_steps: int | None = None, random_actions: bool = False, **of_rllib: Any) -> Block:
        """Take exactly `num_steps` environment steps.

        Args:
            num_steps: Steps over all environments of this runner, which act in turn.
            random_actions: Act uniformly at random in [-1, 1] (the warm-up).
            of_rllib: Options of RLlib's runners, such as `num_timesteps`, `num_episodes` or `explore`; all are refused.

        Raises:
            UserError: If it is called as RLlib's runners are.
            NonFiniteError: If an observation or reward is NaN or infinite.
            UserCodeError: If an environment raises an error or does not keep to its interface.
        """
        self._raise_failure()
        if num_steps is None or of_rllib:
            given = f"sample({', '.join(f'{name}=' for name in of_rllib)})"
            raise UserError(
                f"{given} is not supported, since this runner does not return RLlib episodes: call "
                "sample(num_steps=N, random_actions=False), which returns N transitions as rows."
            )
        writer = self.layout.writer(num_steps)
        episodes: list[Episode] = []
        relabelled: list[npt.NDArray[np.float32]] = []
        done = 0
        while done < num_steps:
            turn = min(len(self.envs), num_steps - done)
            which = [(self._turn + k) % len(self.envs) for k in range(turn)]
            over = self._step(which, writer, episodes, random_actions, done)
            if self._hindsight is not None:
                assert isinstance(writer, RowWriter)
                relabelled += self._relabel(which, writer.rows[done : done + turn], over)
            self._turn = (self._turn + turn) % len(self.envs)
            done += turn
        rows = writer.finished()
        block = Block(rows, 0, num_steps, episodes, self._weights_seq_no, random_actions)
        block = block._replace(metrics=self._callback_metrics())
        if not relabelled:
            return block
        rows = joined([rows, *relabelled])
        return block._replace(rows=rows, num_relabelled=len(rows) - num_steps)

    def _callback_metrics(self) -> dict[str, Any] | None:
        """End a request for callbacks, and return what they have logged; None if nothing."""
        if self._heard is not None:
            self._heard.sampled()
        logged: dict[str, Any] | None = self.metrics.reduce() if self.metrics.stats else None
        self.metrics.reset()  # the algorithm's logger keeps windows and sums
        return logged

    def _step(
        self,
        which: list[int],
        writer: RowWriter | FrameWriter,
        episodes: list[Episode],
        random_actions: bool,
        done: int,
    ) -> dict[int, list[npt.NDArray[np.float32]]]:
        """Step the environments `which` once and write one transition of each; `done` transitions precede these.

        Returns:
            Earlier rows of the episodes that ended, by environment.
        """
        over = {}
        obs = self._obs[which]
        self._begin_heard(which)
        self._remember(which)
        actions = self._actions(obs, which, random_actions)
        extras = self._empty_extras(len(which))
        rewards, terminateds = np.empty(len(which), np.float32), np.empty(len(which), np.bool_)
        next_obs = np.empty_like(obs)
        for k, (i, action) in enumerate(zip(which, self._scaling.to_env(actions), strict=True)):
            try:
                observation, reward, terminated, truncated, reported = self._step_one(i, action, actions[k])
            except UserCodeError as error:
                again = self._step_another(i, error, episodes, random_actions)
                obs[k], actions[k], (observation, reward, terminated, truncated, reported) = again
            if extras is not None:
                extras[k] = reported
            self._obs[i] = next_obs[k] = observation
            rewards[k], terminateds[k], self._stepped[i] = reward, terminated, True
            self._returns[i] += reward
            self._lengths[i] += 1
            if terminated or truncated:
                episodes.append(self._episode(i)._replace(ended_at=done + k + 1, success=self._successes[i]))
                over[i] = self._episode_rows[i]
                try:
                    self._begin_episode(i)
                except UserCodeError as error:
                    self._replace_failed(i, error, episodes)
        writer.write(done, obs, actions, rewards, terminateds, next_obs, extras)
        self.num_env_steps_sampled_lifetime += len(which)
        return over

    def _relabel(
        self,
        which: list[int],
        rows: npt.NDArray[np.float32],
        over: dict[int, list[npt.NDArray[np.float32]]],
    ) -> list[npt.NDArray[np.float32]]:
        """Keep a new row of each environment; return relabelled copies of the episodes that ended with it."""
        assert self._hindsight is not None
        copies = []
        for i, row in zip(which, rows, strict=True):
            if i in over:
                copies.append(self._hindsight.relabel(np.stack([*over[i], row]), self._relabelling))
            else:
                self._episode_rows[i].append(row.copy())
        return copies

    def _episode(self, i: int, *, failed: bool = False) -> Episode:
        seconds = time.perf_counter() - self._began[i]
        total, length, cost = float(self._returns[i]), int(self._lengths[i]), float(self._costs[i])
        discounted, recorded = float(self._discounted_costs[i]), self._recorded(i)
        outcome = self._outcomes[i] or None
        return Episode(total, length, seconds, cost, failed, discounted, recorded=recorded, outcome=outcome)

    def _recorded(self, i: int) -> dict[str, tuple[float, ...]]:
        """Return the memory of environment `i`'s episode that sets `Remembered.recorded`."""
        names = [name for name, remembered in self._actor.memory.items() if remembered.recorded]
        if not self._remembers[i]:
            return {}
        return {name: tuple(self._memory[name][i].reshape(-1).tolist()) for name in names}

    def _begin_heard(self, which: list[int]) -> None:
        """Tell callbacks of the episodes of `which` that begin with the next step."""
        if self._heard is not None:
            for i in which:
                self._heard.begin(i, self._obs[i])

    def _step_one(
        self, i: int, action: npt.NDArray[np.float32], unit_action: npt.NDArray[np.float32]
    ) -> tuple[Any, float, bool, bool, Any]:
        """Step environment i; returns observation, reward, flags and the values of additional columns.

        `unit_action` is the action before its rescaling to the environment's bounds.

        Raises:
            NonFiniteError: Naming environment, runner and step.
            UserCodeError: If it fails.
        """
        try:
            obs, reward, terminated, truncated, info = self._boundary.step_with_info(self.envs[i], action)
            if self._counts_costs:
                self._count_cost(self._boundary.column(info, COST, 1), i)
            if self._reports:
                outcomes.observe(self._outcomes[i], info)
            if terminated or truncated:
                self._successes[i] = self._boundary.success(info)
            extras = self._extras(info, i, reward) if self.layout.columns else None
            if self._heard is not None:
                self._heard.step(i, obs, unit_action, action, reward, terminated, truncated, info)
            return obs, reward, terminated, truncated, extras
        except NonFiniteError as error:
            raise self._located(error, i) from error

    def _step_another(
        self, i: int, error: UserCodeError, episodes: list[Episode], random_actions: bool
    ) -> tuple[Any, Any, Any]:
        """Rebuild environment i and step it; returns its observation, the action and the result of the step.

        Raises:
            UserCodeError: If failures are not tolerated, or it fails again and again.
        """
        for _ in range(_MAX_CONSECUTIVE_FAILURES):
            self._replace_failed(i, error, episodes)
            obs = self._obs[[i]]
            self._begin_heard([i])
            self._remember([i])
            actions = self._actions(obs, [i], random_actions)
            try:
                taken = self._step_one(i, self._scaling.to_env(actions)[0], actions[0])
                return obs[0], actions[0], taken
            except UserCodeError as another:
                error = another
        raise error

    def _replace_failed(self, i: int, error: UserCodeError, episodes: list[Episode]) -> None:
        """Replace an environment that has raised an error, and end its episode."""
        if not (self.config.restart_failed_sub_environments or self.config.ignore_env_runner_failures):
            raise error
        _logger.warning("Rebuilding environment %d of runner %d. %s", i, self.worker_index, error)
        episodes.append(self._episode(i, failed=True))
        for attempt in range(_MAX_CONSECUTIVE_FAILURES):
            try:
                return self._rebuild(
                    i, self._num_builds[i] + 1, wrappers.get_state(self.envs[i]), task_of(self.envs[i])
                )
            except UserCodeError:
                if attempt == _MAX_CONSECUTIVE_FAILURES - 1:
                    raise
        return None

    def _empty_extras(self, num_rows: int) -> npt.NDArray[np.float32] | None:
        """Uninitialised values (N, total size) of the columns beyond the usual five; None without any."""
        sizes = [column.size for column in self.layout.columns]
        return np.empty((num_rows, sum(sizes)), np.float32) if sizes else None

    def _extras(self, info: Any, i: int, reward: float) -> npt.NDArray[np.float32]:
        """Values of a step of environment i in the columns beyond the usual five, concatenated."""
        parts = {name: self._boundary.column(info, name, size) for name, size in self._reported}
        if COST in parts:
            self._count_cost(parts[COST], i)
        if self._scales_rewards:
            self._discounted_returns[i] = self._gamma * self._discounted_returns[i] + reward
            parts[DISCOUNTED_RETURN.name] = self._discounted_returns[[i]].astype(np.float32)
        return np.concatenate(list(parts.values()))

    def _count_cost(self, cost: npt.NDArray[np.float32], i: int) -> None:
        """Adds the cost of a step to those of the episode of environment `i`.

        Raises:
            SettingsError: If it is more than learning takes for possible.
        """
        if self._largest_cost is not None and cost.sum() > self._largest_cost * (1 + 1e-6):
            raise SettingsError(
                f"cost_max={self._largest_cost:g} is less than the cost {cost.sum():g} of a step of "
                f"{self._boundary.name}: set cost_max to the largest possible cost of a step (an action repeat "
                "adds up the costs)."
            )
        self._costs[i] += cost.sum()
        self._discounted_costs[i] += self._gamma ** self._lengths[i] * cost.sum()

    def _actions(
        self, obs: npt.NDArray[np.float32], which: list[int], random: bool
    ) -> npt.NDArray[np.float32]:
        if random:
            return self._warmup.uniform(-1, 1, (len(obs), self.layout.action_dim)).astype(np.float32)
        memory = {name: value[which] for name, value in self._memory.items()}
        actions = self._actor.act(torch.from_numpy(obs).to(self._actor.device), self.streams, memory)
        for name, value in memory.items():
            self._memory[name][which] = value
        result: npt.NDArray[np.float32] = actions.cpu().numpy()
        return result

    def _located(self, error: NonFiniteError, i: int) -> NonFiniteError:
        return NonFiniteError(
            f"{error} at step {int(self._lengths[i]) + 1} of an episode of environment {i} of runner "
            f"{self.worker_index}"
        )

    def wrapper_state(self) -> list[tuple[str, Any]]:
        """State of the wrappers of the first environment, for evaluations."""
        return wrappers.get_state(self.envs[0]) if self.envs else []

    def is_savable(self) -> bool:
        """Whether the exact state of every environment can be saved now."""
        return all(self._capturable[i] or not self._stepped[i] for i in range(len(self.envs)))

    def rebuild_unsavable_envs(self) -> None:
        """Rebuild the environments whose simulator cannot be saved.

        Every run does so at scheduled checkpoints, so that a resumed run sees the same as an uninterrupted one.
        """
        for i in range(len(self.envs)):
            if not self._capturable[i]:
                self._rebuild(
                    i, self._num_builds[i] + 1, wrappers.get_state(self.envs[i]), task_of(self.envs[i])
                )

    def _rebuild(self, i: int, num_builds: int, gathered: list[tuple[str, Any]], task: Any) -> None:
        """Rebuild environment i with the same `task` and the state `gathered` by its wrappers."""
        boundary.close(self.envs[i], self._boundary.name)
        self.envs[i], self._num_builds[i], self._stepped[i] = self._make(), num_builds, False
        announce_created(self.envs[i], self, self._callbacks, i)
        if task is not None:
            self.envs[i].unwrapped.set_task(task)  # type: ignore[attr-defined]
        self._built_with[i] = gathered
        wrappers.set_state(self.envs[i], gathered)
        self._begin_episode(i, seed=self._environment_seed(i))

    def reseed(self, seed: int, joined_at: int) -> None:
        """Continue with new episodes and with streams of `seed` that repeat no earlier draws."""
        self._set_streams(seed, joined_at)
        self._reset_all()
        self._has_joined = True

    def join(self, env_steps: int, seed: int | None = None) -> None:
        """Join a run at `env_steps`; only the first call in a process has an effect.

        The run's seed is the config's unless given. Ray may restart a dead runner unnoticed: a runner that joins later
        than at step 0 uses new streams and begins new episodes.
        """
        self._raise_failure()
        seed = self._run_seed if seed is None else seed
        if not self._has_joined and (env_steps > 0 or seed != self._run_seed):
            self.reseed(seed, env_steps)
        self._has_joined = True

    @override(EnvRunner)
    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func` and pass its error on to the driver; RLlib's method would end this process instead."""
        return func(self, *args, **kwargs)

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, Any]:
        if self._failure is not None:
            return {_FAILURE: self._failure}
        if not self.envs:
            return dict(self.spaces)
        spaces = (self.envs[0].observation_space, self.envs[0].action_space)
        return {INPUT_ENV_SPACES: spaces, INPUT_ENV_SINGLE_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    @override(EnvRunner)
    def get_metrics(self) -> dict[str, Any]:
        """RLlib's counters of this runner; blocks carry the episodes."""
        metrics: dict[str, Any] = self.metrics.reduce()
        return metrics

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        if not self.envs and self._failure is None:
            raise RuntimeError(f"runner {self.worker_index} has no environment")

    @override(EnvRunner)
    def stop(self) -> None:
        for env in self.envs:
            boundary.close(env, label(self.config.env))
        self.envs = []

    @override(Checkpointable)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Streams, simulators, current episodes and, unless excluded, the module's weights."""
        state: dict[str, Any] = {
            "streams": self.streams.get_state(),
            "owner": self._owner,
            "seed": self._run_seed,
            "has_joined": self._has_joined,
        }
        if wants_component(self, COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(inference_only=True)
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        if self.envs:
            state["warmup"] = self._warmup.bit_generator.state
            state["relabelling"] = self._relabelling.bit_generator.state
            state["environments"] = [self._environment_state(i) for i in range(len(self.envs))]
            state["turn"] = self._turn
        return state

    def _environment_state(self, i: int) -> dict[str, Any]:
        simulator = capture(self.envs[i]) if self._capturable[i] else None
        # An environment that was stepped since it was built is lost: a restore rebuilds it.
        lost = simulator is None and self._stepped[i]
        return {
            "simulator": simulator,
            "task": task_of(self.envs[i]),
            "num_builds": self._num_builds[i] + int(lost),
            # The first reset adds to it, and does so again where the environment is rebuilt.
            "wrappers": wrappers.get_state(self.envs[i]) if self._stepped[i] else self._built_with[i],
            "obs": self._obs[i].copy(),
            "return": float(self._returns[i]),
            "length": int(self._lengths[i]),
            "cost": float(self._costs[i]),
            "cost_discounted": float(self._discounted_costs[i]),
            "discounted_return": float(self._discounted_returns[i]),
            "outcome": dict(self._outcomes[i]),
            "episode": None if self._heard is None else self._heard.get_state(i),
            "episode_rows": np.stack(self._episode_rows[i]) if self._episode_rows[i] else None,
            "memory": {name: value[i].cpu().numpy().copy() for name, value in self._memory.items()}
            if self._remembers[i]
            else None,
        }

    @override(Checkpointable)
    def set_state(self, state: dict[str, Any]) -> None:
        if self._failure is not None:  # the next request for samples raises it
            return
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            weights = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
            self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, self._weights_seq_no)
        if "streams" in state:
            self._set_streams(state.get("seed", self._run_seed), state["owner"][-1])
            self._has_joined = state["has_joined"]
            self.streams.set_state(state["streams"])
        if "environments" in state and len(state["environments"]) == len(self.envs):
            self._warmup.bit_generator.state = state["warmup"]
            if "relabelling" in state:
                self._relabelling.bit_generator.state = state["relabelling"]
            self._turn = state["turn"]
            for i, saved in enumerate(state["environments"]):
                self._set_environment(i, saved)

    def _set_environment(self, i: int, saved: dict[str, Any]) -> None:
        if saved["simulator"] is None:
            self._rebuild(i, saved["num_builds"], saved.get("wrappers", []), saved.get("task"))
            return
        self._num_builds[i] = saved["num_builds"]
        restore(self.envs[i], saved["simulator"])
        self._obs[i], self._returns[i], self._lengths[i] = saved["obs"], saved["return"], saved["length"]
        self._costs[i], self._remembers[i] = saved.get("cost", 0.0), False
        self._discounted_costs[i] = saved.get("cost_discounted", 0.0)
        self._discounted_returns[i] = saved.get("discounted_return", 0.0)
        if self._heard is not None:
            self._heard.set_state(i, saved.get("episode"))
        rows = saved.get("episode_rows")
        self._episode_rows[i] = [] if rows is None else list(rows)
        self._outcomes[i] = dict(saved.get("outcome", {}))
        if saved.get("memory") is not None:
            self._remember([i])
            for name, value in saved["memory"].items():
                self._memory[name][i] = torch.from_numpy(value)

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"config": self.config}

    @override(Checkpointable)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Return nothing: the learner saves the weights."""
        return []
