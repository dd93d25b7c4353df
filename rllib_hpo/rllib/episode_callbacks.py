"""Call RLlib's episode callbacks, with RLlib episodes that are kept for them beside the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

START, STEP, END, SAMPLED = "on_episode_start", "on_episode_step", "on_episode_end", "on_sample_end"
EVENTS = (START, STEP, END, SAMPLED)


def listens(config: Any, callbacks: Sequence[Any]) -> bool:
    """Return whether anything would be called at one of `EVENTS`."""
    return any(
        getattr(config, f"callbacks_{event}")
        or any(getattr(type(one), event) is not getattr(RLlibCallback, event) for one in callbacks)
        for event in EVENTS
    )


class EpisodeCallbacks:
    """Keep the current episode of each environment, and call callbacks as it goes on.

    `on_episode_start` is called before the first step. Observations of an episode are flat, actions are in [-1, 1], and
    the extra output `actions_for_env` has those that the environment got. Training does not read episodes, so changing
    them changes nothing.

    Args:
        owner: The runner: callbacks get it with its `config`, `metrics` and `worker_index`.
        callbacks: Instances of the config's callback classes.
        num_envs: Number of environments.
    """

    def __init__(self, owner: Any, callbacks: Sequence[Any], num_envs: int) -> None:
        self._owner, self._callbacks = owner, list(callbacks)
        self._episodes: list[SingleAgentEpisode | None] = [None] * num_envs
        self._infos: list[Any] = [{}] * num_envs
        self._sampled: list[SingleAgentEpisode] = []

    def reset(self, i: int, info: Any) -> None:
        """Forget the episode of environment `i`, which was reset with `info`."""
        self._episodes[i], self._infos[i] = None, info

    def begin(self, i: int, obs: npt.NDArray[Any]) -> None:
        """Begin the episode of environment `i` at its first observation (S,), unless it has begun."""
        if self._episodes[i] is not None:
            return
        env = self._owner.env
        episode = SingleAgentEpisode(
            observation_space=env.single_observation_space, action_space=env.single_action_space
        )
        episode.add_env_reset(obs.copy(), self._infos[i] or {})
        self._episodes[i] = episode
        self._call(START, i, episode)

    def step(
        self,
        i: int,
        obs: npt.NDArray[Any],
        action: npt.NDArray[Any],
        env_action: npt.NDArray[Any],
        reward: float,
        terminated: bool,
        truncated: bool,
        info: Any,
    ) -> None:
        """Add a step of environment `i`, and call the callbacks of steps and ends."""
        episode = self._episodes[i]
        assert episode is not None
        episode.add_env_step(
            obs.copy(),
            action.copy(),
            float(reward),
            dict(info or {}),
            terminated=bool(terminated),
            truncated=bool(truncated),
            extra_model_outputs={Columns.ACTIONS_FOR_ENV: env_action.copy()},
        )
        self._call(STEP, i, episode)
        if terminated or truncated:
            self._call(END, i, episode, prev_episode_chunks=[])
            self._sampled.append(episode)

    def sampled(self) -> None:
        """Call `on_sample_end` with the episodes that ended since the last call, and those that go on."""
        ongoing = [episode for episode in self._episodes if episode is not None and not episode.is_done]
        samples, self._sampled = [*self._sampled, *ongoing], []
        self._make(SAMPLED, env_runner=self._owner, metrics_logger=self._owner.metrics, samples=samples)

    def get_state(self, i: int) -> dict[str, Any] | None:
        """Return the episode of environment `i` as plain values; None if it has not begun."""
        episode = self._episodes[i]
        return None if episode is None else episode.get_state()

    def set_state(self, i: int, state: dict[str, Any] | None) -> None:
        """Go on with the episode of another process."""
        self._episodes[i] = None if state is None else SingleAgentEpisode.from_state(state)

    def _call(self, event: str, i: int, episode: SingleAgentEpisode, **more: Any) -> None:
        owner = self._owner
        self._make(
            event,
            episode=episode,
            env_runner=owner,
            metrics_logger=owner.metrics,
            env=owner.env.unwrapped,
            rl_module=owner.module,
            env_index=i,
            **more,
        )

    def _make(self, event: str, **arguments: Any) -> None:
        functions = getattr(self._owner.config, f"callbacks_{event}")
        make_callback(
            event, callbacks_objects=self._callbacks, callbacks_functions=functions, kwargs=arguments
        )
