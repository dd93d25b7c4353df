"""Test that the papers' tasks are refused with a MuJoCo of other physics, and nothing else is."""

from __future__ import annotations

import importlib.metadata

import pytest

from rllib_hpo.errors import UserError
from rllib_hpo.tasks import all_tasks, make_env
from rllib_hpo.tasks.mujoco_version import check_mujoco

MUJOCO_TASKS = {
    task.env_id for task in all_tasks() if "Bullet" not in task.env_id and not task.name.startswith("dm-")
} - {"MultiGoal-v0"}


def install(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that MuJoCo has this version."""
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == "mujoco" else real(name)
    )


@pytest.mark.parametrize("version", ["3.5.0", "3.10.1", "4.0.0"])
def test_a_papers_task_says_which_mujoco_it_needs(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(version, monkeypatch)
    with pytest.raises(UserError, match=rf"below 3\.5.*; {version} is installed: .*or train in Hopper-v5\.$"):
        make_env("Hopper-v4")
    for env_id in MUJOCO_TASKS:
        with pytest.raises(UserError, match="is a paper's task"):
            check_mujoco(env_id)


def test_other_environments_take_any_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    install("3.6.0", monkeypatch)
    for env_id in ("Hopper-v5", "Pendulum-v1", "MultiGoal-v0", "HumanoidPyBulletEnv-v0", "Reacher-v4"):
        check_mujoco(env_id)
    make_env("Hopper-v5").close()
    install("3.4.0", monkeypatch)
    for env_id in MUJOCO_TASKS:
        check_mujoco(env_id)
