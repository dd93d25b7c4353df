"""Make environments of the DeepMind Control Suite (Tassa et al. 2018, arXiv 1801.00690) that render their frames.

An id is "dm_control/DOMAIN-TASK-pixels", for example "dm_control/cheetah-run-pixels". Episodes never terminate: they
are truncated at the suite's time limit.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rllib_hpo.errors import SettingsError, UnknownNameError, UserError, nearest
from rllib_hpo.tasks.pixels.observation import PixelObservation
from rllib_hpo.tasks.pixels.rendering import choose_renderer

NAMESPACE, SUFFIX = "dm_control", "-pixels"
OF_THE_PAPER = (("cheetah", "run"), ("finger", "spin"), ("walker", "walk"))
"""Domains and tasks of Xu & Fekri, arXiv 2103.12020v1, section 5.1.3."""
ACTION_REPEATS = {
    "ball_in_cup": 4,
    "cartpole": 8,
    "cheetah": 4,
    "finger": 2,
    "reacher": 4,
    "walker": 2,
}
"""Repeats of an action by domain, those of SAC-AE's and CURL's experiments (arXiv 2004.04136)."""
_DEFAULT_REPEATS = 2
Visuals = Literal["suite", "fast"]


def parse_id(env_id: str) -> tuple[str, str] | None:
    """Return domain and task of an id of this module, or None."""
    namespace, _, name = env_id.partition("/")
    domain, dash, task = name.removesuffix(SUFFIX).partition("-")
    return (domain, task) if namespace == NAMESPACE and dash and name.endswith(SUFFIX) else None


def env_id_of(domain: str, task: str) -> str:
    """Return the id of a domain's task."""
    return f"{NAMESPACE}/{domain}-{task}{SUFFIX}"


def register(env_id: str) -> None:
    """Register an id of this module with gymnasium; dm_control is imported when an environment is made."""
    if (found := parse_id(env_id)) is None or env_id in gym.registry:
        return
    domain, task = found
    gym.register(
        env_id,
        entry_point=f"{__name__}:make_pixels",
        kwargs={"domain": domain, "task": task},
        order_enforce=False,
        disable_env_checker=True,
    )


def make_pixels(
    domain: str,
    task: str,
    size: int = 84,
    num_frames: int = 3,
    num_repeats: int | None = None,
    visuals: Visuals = "suite",
    camera_id: int = 0,
    render_mode: str | None = None,
) -> PixelObservation:
    """Make an environment with images for observations.

    Args:
        domain: Domain of the suite.
        task: Task of the domain.
        size: Height of a frame, equal to its width.
        num_frames: Frames of an observation.
        num_repeats: Repeats of each action; None for those of the domain.
        visuals: The suite's own, or (fast) without shadows and reflections: other images, four times as fast on a CPU.
        camera_id: The suite's number of the camera.
        render_mode: Ignored; frames are rendered in any case.
    """
    env = ControlSuite(domain, task, size, visuals, camera_id)
    repeats = ACTION_REPEATS.get(domain, _DEFAULT_REPEATS) if num_repeats is None else num_repeats
    return PixelObservation(env, size, num_frames, repeats)


class ControlSuite(gym.Env[NDArray[np.float64], NDArray[np.float64]]):
    """Step a task of the suite; `render` returns a frame. Observations are empty, since images replace them.

    Args:
        domain: Domain of the suite.
        task: Task of the domain.
        size: Height of a frame, equal to its width.
        visuals: See `make_pixels`.
        camera_id: The suite's number of the camera.
    """

    def __init__(self, domain: str, task: str, size: int, visuals: Visuals, camera_id: int) -> None:
        if visuals not in ("suite", "fast"):
            raise SettingsError(f"env_config: visuals={visuals!r} must be 'suite' or 'fast'.")
        self._names, self._size, self._visuals, self._camera_id = (domain, task), size, visuals, camera_id
        self.metadata, self.render_mode = {"render_modes": ["rgb_array"]}, "rgb_array"
        self._suite = _import_suite()
        _check_names(self._suite, domain, task)
        self._env = self._loaded(seed=0)
        spec = self._env.action_spec()
        self.action_space = gym.spaces.Box(
            np.broadcast_to(spec.minimum, spec.shape).astype(np.float64),
            np.broadcast_to(spec.maximum, spec.shape).astype(np.float64),
            dtype=np.float64,
        )
        self.observation_space = gym.spaces.Box(0, 0, (0,), np.float64)

    def _loaded(self, seed: int) -> Any:
        domain, task = self._names
        env = self._suite.load(domain, task, task_kwargs={"random": seed})
        if self._visuals == "fast":
            env.physics.model.light_castshadow[:] = 0
            env.physics.model.mat_reflectance[:] = 0
        return env

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; a seed restarts the suite's random generator."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        self._env.reset()
        return np.empty(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Advance by the suite's control step."""
        step = self._env.step(action)
        is_over = bool(step.last())
        terminated = is_over and step.discount == 0
        return np.empty(0), float(step.reward or 0), terminated, is_over and not terminated, {}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Return a frame, (H, H, 3)."""
        frame: NDArray[np.uint8] = self._env.physics.render(self._size, self._size, camera_id=self._camera_id)
        return frame

    def close(self) -> None:
        """Free the simulator and its graphics context."""
        self._env.close()


def _import_suite() -> Any:
    """Import the suite, after the choice of a graphics library, which it reads when it is imported.

    Raises:
        UserError: If dm_control is not installed, or nothing renders here.
    """
    choose_renderer()
    try:
        from dm_control import suite
    except ImportError as error:
        raise UserError(
            f"Tasks of the DeepMind Control Suite need dm_control: `pip install 'rllib-hpo[pixels]'` ({error})."
        ) from error
    return suite


def _check_names(suite: Any, domain: str, task: str) -> None:
    """Reject names that the suite does not have.

    Raises:
        UnknownNameError: If there is no such task; it names the nearest.
    """
    known = [f"{each[0]}-{each[1]}" for each in suite.ALL_TASKS]
    if (domain, task) in suite.ALL_TASKS:
        return
    close = nearest(f"{domain}-{task}", known)
    hint = f" Did you mean 'dm-{close}'?" if close else ""
    raise UnknownNameError(
        f"The DeepMind Control Suite has no task '{domain}-{task}'.{hint} Valid: {', '.join(known)}."
    )
