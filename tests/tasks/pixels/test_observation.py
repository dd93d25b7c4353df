"""Test observations of rendered frames: stacking, repeats, sizes, saving, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_hpo.errors import SettingsError, UnknownNameError, UserCodeError, UserError
from rllib_hpo.tasks import Boundary, check_spaces, find_task, make_env
from rllib_hpo.tasks.observations import flattened, order_of
from rllib_hpo.tasks.pixels import PixelObservation, dm_control, rendering
from rllib_hpo.tasks.pixels.observation import frames_per_step
from rllib_hpo.tasks.simulator_state import capture, restore
from tests.tasks.pixels.dot import Dot, make_dot


class Counter(gym.Env[np.ndarray, np.ndarray]):
    """Show the number of the step in every pixel; reward and cost are the number, and step 7 ends the episode."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, shape: tuple[int, ...] = (4, 4, 3), render_mode: str | None = "rgb_array") -> None:
        self.shape, self.render_mode, self.number, self.num_rendered = shape, render_mode, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.number += 1
        info = {"cost": self.number}
        return np.zeros(1, np.float32), float(self.number), self.number == 7, False, info

    def render(self) -> np.ndarray:
        self.num_rendered += 1
        return np.full(self.shape, 10 * self.number, np.uint8)


def test_frames_are_stacked_and_actions_repeated() -> None:
    """The first frame stands three times; rewards and costs add up; an episode stops within a repeat."""
    inner = Counter()
    env = PixelObservation(inner, size=4, num_repeats=3)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert obs.shape == (9, 4, 4)
    assert obs[:, 0, 0].tolist() == [0] * 9
    found = [env.step(np.zeros(1)) for _ in range(3)]
    assert [step[0][::3, 2, 3].tolist() for step in found] == [[0, 0, 30], [0, 30, 60], [30, 60, 70]]
    assert [step[1] for step in found] == [1 + 2 + 3, 4 + 5 + 6, 7]
    assert [step[2] for step in found] == [False, False, True]
    assert [step[4]["cost"] for step in found] == [6, 15, 7]
    assert inner.num_rendered == 4
    assert env.reset()[0][::3, 0, 0].tolist() == [0, 0, 0]
    assert frames_per_step(env) == 3


def test_large_frames_are_averaged() -> None:
    env = Dot(size=42)
    frame = PixelObservation(env, size=21, num_frames=1).reset(seed=1)[0]
    whole = env.render().astype(float)
    expected = whole.reshape(21, 2, 21, 2, 3).mean((1, 3))
    assert np.abs(np.moveaxis(frame, 0, 2) - expected).max() <= 1


def test_an_environment_of_gymnasium_shows_itself() -> None:
    """The wrapper is named, and sets the render mode; observations are flattened for runners and policies."""
    pytest.importorskip("pygame")
    env = make_env("Pendulum-v1", wrappers=[{"pixels": {"size": 32, "num_frames": 2, "num_repeats": 2}}])
    check_spaces(env, takes_images=True)
    obs = Boundary(env).reset(env, seed=0)
    assert order_of(env.observation_space) == "Observations are images of shape (6, 32, 32)."
    assert obs.shape == (2 * 3 * 32 * 32,)
    assert obs.dtype == np.float32
    assert len(np.unique(obs)) > 2
    assert np.array_equal(obs, obs.astype(np.uint8))
    saved = capture(env)
    assert saved is not None
    moved = [env.step(np.ones(1))[0] for _ in range(3)]
    restore(env, saved)
    again = [env.step(np.ones(1))[0] for _ in range(3)]
    assert all(np.array_equal(*pair) for pair in zip(moved, again, strict=True))
    env.close()


def test_images_need_an_algorithm_that_takes_them() -> None:
    with pytest.raises(
        UserError, match=r"image observations need sac-ae or sac-ae-hpo\. Or learn from features"
    ):
        check_spaces(flattened(make_dot()))
    check_spaces(flattened(make_dot()), takes_images=True)
    with pytest.raises(UserError, match=r"has observations of 2 numbers, .*wrappers: \[pixels\]"):
        check_spaces(Dot(), takes_images=True)


class Tall(gym.ObservationWrapper[Any, Any, Any]):
    """Observations with channels last."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (21, 21, 3), np.uint8)

    def observation(self, observation: Any) -> Any:
        return observation


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(21, 21, 3\): square RGB frames, channels first"):
        check_spaces(flattened(Tall(Dot())), takes_images=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 0}, "size=0 must be at least 1"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"num_repeats": 0}, "num_repeats=0 must be at least 1"),
    ],
)
def test_impossible_arguments_are_refused(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=rf"'pixels' does not fit the environment: {message}"):
        make_env("Pendulum-v1", wrappers=[{"pixels": kwargs}])


def test_an_environment_that_does_not_render_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"needs render_mode='rgb_array', .* has None; its modes are rgb_array"
    ):
        PixelObservation(Dot(render_mode=None))
    env = PixelObservation(Counter(shape=(4, 4)), size=4)
    with pytest.raises(UserCodeError, match=r"shape \(4, 4\) .* from render\(\), where an RGB image"):
        env.reset()

    class Blind(Counter):
        def render(self) -> Any:
            raise OSError("no display")

    with pytest.raises(UserError, match="cannot be rendered: no display"):
        PixelObservation(Blind()).reset()


# --- graphics ---


@pytest.mark.parametrize(
    ("there", "chosen"),
    [({"libEGL.so.1", "libOSMesa.so.8"}, "egl"), ({"libOSMesa.so.8"}, "osmesa")],
)
def test_a_library_is_chosen_that_is_there(
    there: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rendering.GL_VARIABLE, "")
    monkeypatch.setattr(rendering, "_loads", there.__contains__)
    assert rendering.choose_renderer() == chosen
    monkeypatch.setattr(rendering, "_loads", lambda _: True)
    assert rendering.choose_renderer() == chosen  # chosen once
    monkeypatch.setenv(rendering.GL_VARIABLE, "glfw")
    assert rendering.choose_renderer() == "glfw"


def test_triton_is_loaded_before_a_graphics_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that loads them the other way round ends in a segmentation fault."""
    (tmp_path / "triton.py").write_text("import os\nSAW = os.environ['MUJOCO_GL']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setenv(rendering.GL_VARIABLE, "")
    monkeypatch.setattr(rendering, "_loads", lambda library: "triton" in sys.modules)
    try:
        assert rendering.choose_renderer() == "egl"
        assert sys.modules["triton"].SAW == ""
    finally:  # not by `monkeypatch`, which would put it back for all later tests
        sys.modules.pop("triton", None)


def test_without_a_library_one_sentence_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.GL_VARIABLE, "")
    monkeypatch.setattr(rendering, "_loads", lambda _: False)
    with pytest.raises(UserError, match=r"has neither: .*libegl1 libgl1` or `apt-get install libosmesa6`\.$"):
        rendering.choose_renderer()


@pytest.mark.parametrize(("name", "library"), [("osmesa", "libOSMesa.so.8"), ("EGL", "libEGL.so.1")])
def test_a_named_library_that_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setenv(rendering.GL_VARIABLE, name)
    monkeypatch.setattr(rendering, "_loads", lambda _: False)
    with pytest.raises(UserError, match=rf"^MUJOCO_GL={name} needs {library}, .*or unset MUJOCO_GL\.$"):
        rendering.choose_renderer()
    monkeypatch.setattr(rendering.importlib.util, "find_spec", lambda _: None)
    rendering.choose_renderer_for_rllib()  # what nobody imports does not matter
    monkeypatch.setattr(rendering.importlib.util, "find_spec", lambda _: object())
    with pytest.raises(UserError, match=name):
        rendering.choose_renderer_for_rllib()


@pytest.fixture
def renderer() -> str:
    """Return what MuJoCo renders with; skip where there is nothing."""
    try:
        return rendering.choose_renderer()
    except UserError as error:
        pytest.skip(str(error))


def assert_independent(make: Callable[[], Any]) -> None:
    """Check that an environment's frames stay the same beside others that render and close in between."""
    actions = np.random.default_rng(0).uniform(-1, 1, (4, *make().action_space.shape))
    alone = make()
    expected = [alone.reset(seed=0)[0], *(alone.step(action)[0] for action in actions)]
    assert len({each.tobytes() for each in expected}) == 5
    alone.close()
    envs = [make() for _ in range(3)]
    first = [env.reset(seed=k)[0] for k, env in enumerate(envs)]
    found = [first[0]]
    for action in actions:
        shown = [env.step(action)[0] for env in envs]
        found.append(shown[0])
        if len(envs) > 1:
            envs.pop().close()  # which leaves no context current
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    envs[0].close()


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5"])
def test_mujoco_renders_in_the_context_of_each_environment(renderer: str, env_id: str) -> None:
    size = {"width": 48, "height": 48}
    assert_independent(lambda: make_env(env_id, wrappers=[{"pixels": {"size": 24}}], **size))


@pytest.mark.slow
def test_pygame_and_rllib_find_no_display_to_complain_of() -> None:
    """RLlib imports dm_control, where it is installed."""
    code = """
import rllib_hpo.rllib.config
from rllib_hpo.tasks import make_env
env = make_env("Pendulum-v1", wrappers=[{"pixels": {"size": 15}}])
env.reset(seed=0)
env.close()
"""
    hidden = {rendering.GL_VARIABLE, "DISPLAY", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER", "XDG_RUNTIME_DIR"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, check=True, text=True
    )
    assert (done.stdout, done.stderr) == ("", "")


# --- DeepMind Control Suite ---


def test_tasks_of_the_suite_are_found_by_name() -> None:
    assert find_task("dm-cheetah-run").env_id == "dm_control/cheetah-run-pixels"
    assert find_task("dm_control/finger-spin-pixels").name == "dm-finger-spin"
    assert find_task("dm-ball_in_cup-catch").env_id == "dm_control/ball_in_cup-catch-pixels"
    for name in ("dm", "dm-cheetah", "dm-"):
        with pytest.raises(UnknownNameError):
            find_task(name)


def test_without_dm_control_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendering.GL_VARIABLE, "egl")
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(UserError, match=r"need dm_control: `pip install 'rllib-hpo\[pixels\]'`"):
        make_env("dm_control/cheetah-run-pixels")


@pytest.fixture
def suite(renderer: str) -> Any:
    """Return the suite; skip where it or a graphics library is missing."""
    pytest.importorskip("dm_control")
    return dm_control


def test_the_suite_renders_in_the_context_of_each_environment(suite: Any) -> None:
    assert_independent(lambda: make_env("dm_control/cheetah-run-pixels", size=24))


@pytest.mark.parametrize(("name", "repeats"), [("cheetah-run", 4), ("finger-spin", 2), ("walker-walk", 2)])
def test_a_task_of_the_suite(suite: Any, name: str, repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames are the suite's own; its rewards are those of repeated steps; its end is a time limit."""
    env = make_env(f"dm_control/{name}-pixels", size=24)
    assert frames_per_step(env) == repeats
    check_spaces(env, takes_images=True)
    reference = dm_control._import_suite().load(*name.split("-"), task_kwargs={"random": 3})
    reference.task.random.seed(3)
    reference.reset()
    rng, frames = np.random.default_rng(0), [np.moveaxis(reference.physics.render(24, 24, camera_id=0), 2, 0)]
    obs, _ = env.reset(seed=3)
    assert np.array_equal(obs.reshape(3, 3, 24, 24), frames * 3)
    steps, over = 0, False
    while not over:
        action = rng.uniform(-1, 1, env.action_space.shape)
        obs, reward, terminated, over, _ = env.step(action)
        assert not terminated
        expected = sum(reference.step(action).reward for _ in range(repeats))
        assert reward == pytest.approx(expected)
        steps += 1
        if steps <= 3:
            frames.append(np.moveaxis(reference.physics.render(24, 24, camera_id=0), 2, 0))
            assert np.array_equal(obs.reshape(3, 3, 24, 24)[-1], frames[-1])
            assert not np.array_equal(*frames[-2:])
        if steps == 3:  # rendering a whole episode would take most of a minute
            monkeypatch.setattr(env.unwrapped, "render", lambda: np.zeros((24, 24, 3), np.uint8))
    assert steps == 1000 // repeats
    env.close()


def test_fast_visuals_are_other_images(suite: Any) -> None:
    frames = [
        make_env("dm_control/cheetah-run-pixels", visuals=visuals).reset(seed=0)[0]
        for visuals in ("suite", "fast")
    ]
    assert not np.array_equal(*frames)
    with pytest.raises(SettingsError, match="visuals='own' must be 'suite' or 'fast'"):
        make_env("dm_control/cheetah-run-pixels", visuals="own")


def test_a_task_that_the_suite_does_not_have_is_refused(suite: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"no task 'cheetah-walk'.* Did you mean 'dm-"):
        make_env("dm_control/cheetah-walk-pixels")
