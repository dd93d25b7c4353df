"""Evaluate or film a checkpoint in this process, without a Ray cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_hpo.algorithms.base import Actor, EvaluationNoise
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.storage.checkpoints import find_checkpoint
from rllib_hpo.rllib.evaluation import Evaluation, Watch, cost_gamma, evaluate, warn_truncated
from rllib_hpo.rllib.trained_policy import load_policy
from rllib_hpo.settings import Settings
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, make_env, wrappers


def evaluate_checkpoint(
    path: Path, num_episodes: int, seed: int = 0, watch: Watch | None = None
) -> tuple[Evaluation, dict[str, Any]]:
    """Play noise-free episodes, with seeds independent of those of the run's evaluations.

    Args:
        path: A checkpoint or a run directory.
        num_episodes: How many to play.
        seed: Of the episodes.
        watch: Hears of the steps made so far.

    Raises:
        UserError: If the checkpoint or its environment is not to be had.
    """
    policy = load_policy(find_checkpoint(path))
    manifest = policy.manifest
    torch.set_num_threads(1)
    config, settings = manifest["config"], policy.actor.settings
    states = seed_sequence(seed, "evaluate command").generate_state(num_episodes)
    played = evaluate(
        policy.actor,
        lambda: make_env(config["env"], training=False, step_cost=settings.cost, **config["env_config"]),
        [int(state >> 1) for state in states],
        manifest.get("wrappers", ()),
        max_episode_steps=_max_episode_steps(config),
        watch=watch,
        cost_gamma=cost_gamma(settings),
    )
    warn_truncated(played, config["env"], _max_episode_steps(config))
    return played, manifest


def _max_episode_steps(config: dict[str, Any]) -> int:
    default = Settings.model_fields["evaluation_max_episode_steps"].default
    return int(config.get("evaluation_max_episode_steps", default))


def film(path: Path, video: Path, seed: int = 0, watch: Watch | None = None) -> float:
    """Play one noise-free episode, and write it as a film (.mp4 or .gif); returns the episode's return.

    Raises:
        UserError: If frames cannot be rendered or written here, saying what is missing.
    """
    policy = load_policy(find_checkpoint(path))
    config = policy.manifest["config"]
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    env = make_env(config["env"], training=False, **{**config["env_config"], "render_mode": "rgb_array"})
    wrappers.set_state(env, policy.manifest.get("wrappers", ()), frozen=True)
    try:
        frames, played = _play_frames(policy.actor, env, seed, _max_episode_steps(config), watch)
    finally:
        boundary.close(env)
    warn_truncated(played, config["env"], _max_episode_steps(config))
    try:
        import imageio.v2 as imageio

        imageio.mimsave(video, frames, fps=int(env.metadata.get("render_fps", 30)))
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"Could not write {video}: {reason}; `pip install 'rllib-hpo[video]'` has what it needs."
        ) from error
    return played.returns[0]


def _play_frames(
    actor: Actor, env: gym.Env[Any, Any], seed: int, max_episode_steps: int, watch: Watch | None
) -> tuple[list[Any], Evaluation]:
    scaling, checked = ActionScaling.of(env.action_space), Boundary(env)
    obs = checked.reset(env, seed)
    frames, total, over = [_frame(env)], 0.0, False
    memory = actor.begin_episodes(torch.as_tensor(obs[None]), explores=False)
    noise = EvaluationNoise(actor, [seed])
    while not over and len(frames) <= max_episode_steps:
        noise.draw(memory, [0])
        action = actor.act(torch.as_tensor(obs[None]), memory=memory).numpy()
        obs, reward, terminated, truncated = checked.step(env, scaling.to_env(action)[0])
        frames.append(_frame(env))
        total, over = total + reward, terminated or truncated
        if watch is not None:
            watch(len(frames) - 1)
    return frames, Evaluation([total], [len(frames) - 1], int(not over))


def _frame(env: gym.Env[Any, Any]) -> Any:
    try:
        return np.asarray(env.render())
    except Exception as error:
        raise UserError(
            f"Frames cannot be rendered here ({' '.join(str(error).split())}); on a machine without a display "
            "install EGL (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri) or set MUJOCO_GL."
        ) from error
