"""Evaluating a checkpoint, and filming it. Needs no Ray cluster: the policy is loaded into this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.checkpoints import find_checkpoint
from rllib_hpo.learning.actor_critic import Actor
from rllib_hpo.rllib.evaluation import Evaluation, evaluate
from rllib_hpo.rllib.trained_policy import load_policy
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling, make_env, wrappers


def evaluate_checkpoint(path: Path, num_episodes: int, seed: int = 0) -> tuple[Evaluation, dict[str, Any]]:
    """Plays noise-free episodes, seeded by `seed` independently of the run's own evaluations.

    Raises:
        UserError: If the checkpoint or its environment is not to be had.
    """
    policy = load_policy(find_checkpoint(path))
    manifest = policy.manifest
    torch.set_num_threads(1)
    config = manifest["config"]
    states = seed_sequence(seed, "evaluate command").generate_state(num_episodes)
    played = evaluate(
        policy.actor,
        lambda: make_env(config["env"], training=False, **config["env_config"]),
        [int(state >> 1) for state in states],
        manifest.get("wrappers", ()),
    )
    return played, manifest


def film(path: Path, video: Path, seed: int = 0) -> float:
    """Plays one noise-free episode and writes it as a film (.mp4 or .gif); returns its return.

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
        frames, episode_return = _play_frames(policy.actor, env, seed)
    finally:
        env.close()
    try:
        import imageio.v2 as imageio

        imageio.mimsave(video, frames, fps=int(env.metadata.get("render_fps", 30)))
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"Could not write {video}: {reason}; `pip install 'rllib-hpo[video]'` has what it needs."
        ) from error
    return episode_return


def _play_frames(actor: Actor, env: gym.Env[Any, Any], seed: int) -> tuple[list[Any], float]:
    scaling = ActionScaling.of(env.action_space)
    obs, _ = env.reset(seed=seed)
    frames, total, over = [_frame(env)], 0.0, False
    while not over:
        action = actor.act(torch.as_tensor(np.asarray(obs, np.float32)[None])).numpy()
        obs, reward, terminated, truncated, _ = env.step(scaling.to_env(action)[0])
        frames.append(_frame(env))
        total, over = total + float(reward), terminated or truncated
    return frames, total


def _frame(env: gym.Env[Any, Any]) -> Any:
    try:
        return np.asarray(env.render())
    except Exception as error:
        raise UserError(
            f"Frames cannot be rendered here ({' '.join(str(error).split())}); on a machine without a display "
            "install EGL (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri) or set MUJOCO_GL."
        ) from error
