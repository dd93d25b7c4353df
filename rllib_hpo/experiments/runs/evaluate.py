"""Evaluate or film a checkpoint in this process, without a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_hpo.algorithms.base import Actor, EvaluationNoise
from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.deployment import load_policy_file
from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.experiments.storage.checkpoints import find_checkpoint
from rllib_hpo.rllib.evaluation import Evaluation, Watch, cost_gamma, evaluate, warn_truncated
from rllib_hpo.rllib.trained_policy import load_policy
from rllib_hpo.samplers.hamiltonian import HamiltonianSampler
from rllib_hpo.settings import Settings
from rllib_hpo.streams import seed_sequence
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, make_env, wrappers
from rllib_hpo.tasks.pixels.rendering import choose_renderer_if_any, load_compiler_first, quiet_pygame

MAX_FPS = 30
"""Frames a second of a film, about; Hopper makes 125 steps a second, which no screen shows."""


def evaluate_checkpoint(
    path: Path,
    num_episodes: int,
    seed: int = 0,
    watch: Watch | None = None,
    *,
    leapfrog_steps: int | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Play noise-free episodes, with seeds independent of those of the run's evaluations.

    Args:
        path: A checkpoint, a run directory or an exported policy (.safetensors).
        num_episodes: How many to play.
        seed: Of the episodes.
        watch: Hears of the steps made so far.
        leapfrog_steps: Leapfrog steps of a Hamiltonian policy; None for those that it was trained with.

    Returns:
        The episodes, and the policy's manifest.

    Raises:
        UserError: If the checkpoint or its environment is not to be had, or the policy takes no leapfrog steps.
    """
    actor, manifest = _loaded(path)
    torch.set_num_threads(1)
    config, settings = manifest["config"], actor.settings
    if leapfrog_steps is not None:
        _take_steps(actor, leapfrog_steps, manifest["algorithm"])
    states = seed_sequence(seed, "evaluate command").generate_state(num_episodes)
    played = evaluate(
        actor,
        lambda: make_env(config["env"], training=False, step_cost=settings.cost, **config["env_config"]),
        [int(state >> 1) for state in states],
        manifest.get("wrappers", ()),
        max_episode_steps=_max_episode_steps(config),
        watch=watch,
        cost_gamma=cost_gamma(settings),
    )
    warn_truncated(played, config["env"], _max_episode_steps(config))
    return played, manifest


def _loaded(path: Path) -> tuple[Actor, dict[str, Any]]:
    """Load an actor and its manifest from a checkpoint, a run directory or an exported policy."""
    if path.suffix != ".safetensors":
        stored = load_policy(find_checkpoint(path))
        return stored.actor, stored.manifest
    policy = load_policy_file(path)
    about = policy.metadata
    config = {**about.settings, "env": about.env, "env_config": about.env_config}
    told = {"algorithm": about.algorithm, "task": about.task, "env": about.env, "env_steps": about.env_steps}
    return policy.actor, {**told, "config": config}


def _take_steps(actor: Actor, num_steps: int, algorithm: str) -> None:
    """Let a Hamiltonian policy take another number of leapfrog steps in its evaluations."""
    sampler = actor.sampler if isinstance(actor, SamplerActor) else None
    if getattr(actor.settings, "shield", "none") != "none":
        raise SettingsError(
            f"--leapfrog-steps: the shield of this policy of '{algorithm}' decides on its steps."
        )
    if not isinstance(sampler, HamiltonianSampler) or sampler.settings.train_sampler != "hamiltonian":
        raise SettingsError(
            f"--leapfrog-steps: evaluations of this policy of '{algorithm}' take no leapfrog steps."
        )
    sampler.take_steps(num_steps)


def _max_episode_steps(config: dict[str, Any]) -> int:
    default = Settings.model_fields["evaluation_max_episode_steps"].default
    return int(config.get("evaluation_max_episode_steps", default))


def film(path: Path, video: Path, seed: int = 0, watch: Watch | None = None) -> float:
    """Play one noise-free episode of a policy as `evaluate_checkpoint` takes it; write a film, and return the return.

    Raises:
        UserError: If frames cannot be rendered or written here, saying what is missing.
    """
    actor, manifest = _loaded(path)
    config = manifest["config"]
    env = make_filmed(config["env"], config["env_config"])
    wrappers.set_state(env, manifest.get("wrappers", ()), frozen=True)
    try:
        played = film_episode(actor, env, video, seed, _max_episode_steps(config), watch)
    finally:
        boundary.close(env)
    warn_truncated(played, config["env"], _max_episode_steps(config))
    return played.returns[0]


def make_filmed(env_id: str, env_config: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Make an environment that renders frames, through EGL or OSMesa where there is no display."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        choose_renderer_if_any()
    load_compiler_first()
    quiet_pygame()
    return make_env(env_id, training=False, **{**env_config, "render_mode": "rgb_array"})


def film_episode(
    actor: Actor,
    env: gym.Env[Any, Any],
    video: Path,
    seed: int,
    max_episode_steps: int,
    watch: Watch | None = None,
) -> Evaluation:
    """Play one noise-free episode, and write it as a film (.mp4 or .gif) in real time, about 30 frames a second.

    Raises:
        UserError: If frames cannot be rendered or written here, saying what is missing.
    """
    frames: list[Any] = []
    steps_per_s = int(env.metadata.get("render_fps", MAX_FPS))
    steps_per_frame = max(1, round(steps_per_s / MAX_FPS))

    def add_frame(step: int) -> None:
        if step % steps_per_frame == 0:
            frames.append(_frame(env))
        if watch is not None and step:
            watch(step)

    played = play_episode(actor, env, seed, max_episode_steps, add_frame)
    try:
        import imageio.v2 as imageio

        fps = steps_per_s / steps_per_frame
        # Pillow, which writes .gif, wants milliseconds a frame.
        timing: dict[str, Any] = {"fps": fps}
        if video.suffix == ".gif":
            timing = {"duration": 1000 / fps, "loop": 0}
        imageio.mimsave(video, frames, **timing)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"Could not write {video}: {reason}; videos need `pip install 'rllib-hpo[video]'`."
        ) from error
    return played


def play_episode(
    actor: Actor, env: gym.Env[Any, Any], seed: int, max_episode_steps: int, watch: Watch
) -> Evaluation:
    """Play one noise-free episode.

    Args:
        actor: Whose actions are taken.
        env: The environment, in which `seed` is the episode's.
        seed: Of the episode and of the policy's noise, where an evaluation has any.
        max_episode_steps: Where the episode is cut.
        watch: Called with the number of steps made so far, 0 first.
    """
    scaling, checked = ActionScaling.of(env.action_space), Boundary(env)
    obs = checked.reset(env, seed)
    total, steps, over = 0.0, 0, False
    memory = actor.begin_episodes(torch.as_tensor(obs[None]), explores=False)
    noise = EvaluationNoise(actor, [seed])
    watch(steps)
    while not over and steps < max_episode_steps:
        noise.draw(memory, [0])
        action = actor.act(torch.as_tensor(obs[None]), memory=memory).numpy()
        obs, reward, terminated, truncated = checked.step(env, scaling.to_env(action)[0])
        total, steps, over = total + reward, steps + 1, terminated or truncated
        watch(steps)
    return Evaluation([total], [steps], int(not over))


def _frame(env: gym.Env[Any, Any]) -> Any:
    try:
        return np.asarray(env.render())
    except Exception as error:
        raise UserError(
            f"Frames cannot be rendered on this machine ({' '.join(str(error).split())}); on a machine without a "
            "display install EGL (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri) or set MUJOCO_GL."
        ) from error
