"""Observe an environment by its rendered frames, stacked, as Yarats et al. 2021 (arXiv 1910.01741) do."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rllib_hpo.errors import UserCodeError, UserError
from rllib_hpo.tasks.boundary import as_array, described, env_name
from rllib_hpo.tasks.observations import image_shape
from rllib_hpo.tasks.pixels.rendering import choose_renderer
from rllib_hpo.tasks.wrappers import ActionRepeat

Env = gym.Env[Any, Any]
Frame = NDArray[np.uint8]


class PixelObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Replace observations by the newest frames, (3 K, H, H) bytes, and repeat actions between frames.

    A frame is rendered after each decision, not after each repeat. At an episode's start its first frame stands K
    times. Frames of another size are resized by averaging.

    Args:
        env: An environment with render_mode='rgb_array', which `make_env` sets for this wrapper.
        size: Height H of frames, equal to their width.
        num_frames: Frames K of an observation.
        num_repeats: Repeats of each action; rewards and costs are summed.
    """

    needs_frames = True

    def __init__(self, env: Env, size: int = 84, num_frames: int = 3, num_repeats: int = 1) -> None:
        for name, value in (("size", size), ("num_frames", num_frames)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if env.render_mode != "rgb_array":
            modes = ", ".join(map(str, env.metadata.get("render_modes") or ())) or "none"
            raise ValueError(
                f"it needs render_mode='rgb_array', and the environment has {env.render_mode!r}; its modes are {modes}"
            )
        if hasattr(env.unwrapped, "mujoco_renderer"):
            choose_renderer()
        super().__init__(ActionRepeat(env, num_repeats))
        self.size, self.num_repeats = size, num_repeats
        self.observation_space = gym.spaces.Box(0, 255, (3 * num_frames, size, size), np.uint8)
        self._frames: deque[Frame] = deque(maxlen=num_frames)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Frame, dict[str, Any]]:
        """Reset the environment, and fill the stack with its first frame."""
        _, info = self.env.reset(seed=seed, options=options)
        frame = self._rendered()
        self._frames.extend([frame] * (self._frames.maxlen or 1))
        return self._observation(), info

    def step(self, action: Any) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Repeat the action, render once, and push the frame."""
        _, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(self._rendered())
        return self._observation(), float(reward), terminated, truncated, info

    def _observation(self) -> Frame:
        return np.concatenate(self._frames)

    def _make_context_current(self) -> None:
        """Select the graphics context of this environment, if it is one of gymnasium's with MuJoCo.

        With several environments in a process gymnasium would render in the context that was made last.
        """
        viewer = getattr(getattr(self.unwrapped, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            viewer.make_context_current()

    def _rendered(self) -> Frame:
        """Return the current frame, (3, H, H).

        Raises:
            UserCodeError: If the environment renders something else than an RGB image.
            UserError: If it cannot render on this machine.
        """
        try:
            self._make_context_current()
            rendered: Any = self.env.render()
        except UserError:
            raise
        except Exception as error:  # of a simulator's graphics library
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(f"Environment '{env_name(self)}' cannot be rendered: {reason}.") from error
        image = as_array(rendered)
        if image is None or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserCodeError(
                f"Environment '{env_name(self)}' returned {described(rendered)} from render(), where an RGB image of "
                "bytes, (height, width, 3), was expected."
            )
        if image.shape[:2] != (self.size, self.size):
            box = Image.Resampling.BOX
            image = np.asarray(Image.fromarray(image).resize((self.size, self.size), box))
        frame: Frame = np.ascontiguousarray(np.moveaxis(image, 2, 0))
        return frame


def frames_per_step(env: Env) -> int | None:
    """Return the steps of the simulator in a step of an environment with images; None without images.

    It is the product of the repeats of all wrappers.
    """
    if image_shape(env.observation_space) is None:
        return None
    repeats = 1
    while isinstance(env, gym.Wrapper):
        repeats *= env.num_repeats if isinstance(env, ActionRepeat) else 1
        env = env.env
    return repeats
