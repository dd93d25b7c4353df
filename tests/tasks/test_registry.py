"""Test Table I, task lookup, and tasks of other packages."""

import importlib
import pickle
import sys

import gymnasium as gym
import pytest

from rllib_hpo.errors import UnknownNameError, UserError
from rllib_hpo.tasks import Task, all_tasks, find_task, register_task, registry

# Table I as printed: alpha, std of the momentum in training and exploration, step size, K, h_n; flows of SAC-NF.
TABLE_ONE = {
    "halfcheetah": ("HalfCheetah-v4", 1e6, 0.2, 1.0, 0.5, 0.2, 3, 32, 3),
    "hopper": ("Hopper-v4", 1e6, 0.2, 0.1, 1.5, 0.15, 2, 32, 5),
    "walker2d": ("Walker2d-v4", 1e6, 0.2, 0.2, 1.5, 0.15, 3, 32, 5),
    "ant": ("Ant-v4", 1e6, 0.2, 0.1, 1.0, 0.1, 3, 32, 4),
    "humanoid": ("Humanoid-v4", 3e6, 0.05, 1.0, 1.0, 0.1, 3, 64, 4),
    "humanoid-pybullet": ("HumanoidPyBulletEnv-v0", 3e6, 0.05, 0.4, 1.5, 0.2, 3, 64, 4),
    "humanoid-flagrun-pybullet": ("HumanoidFlagrunPyBulletEnv-v0", 3e6, 0.05, 0.2, 1.0, 0.15, 3, 32, 4),
    "humanoid-flagrun-harder-pybullet": (
        *("HumanoidFlagrunHarderPyBulletEnv-v0", 3e6, 0.05, 0.2, 1.5, 0.15, 3, 64, 4),
    ),
}


@pytest.fixture
def own_registry(monkeypatch):
    """Restore the registry after the test, and start without loaded plugins."""
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    monkeypatch.setattr(registry, "_seen_entry_points", set())


def test_the_tasks_are_those_of_table_one():
    assert {task.name for task in all_tasks()} >= set(TABLE_ONE)


@pytest.mark.parametrize("name", TABLE_ONE)
def test_table_one(name):
    env_id, steps, alpha, std_train, std_explore, step_size, leapfrog_steps, units, flows = TABLE_ONE[name]
    task = find_task(name)
    assert (task.name, task.env_id, task.steps) == (name, env_id, steps)
    assert task.defaults == {
        "sac": {"alpha": alpha},
        "sac-nf": {"alpha": alpha, "num_flows": flows},
        "sac-hpo": {
            "alpha": alpha,
            "momentum_std_train": std_train,
            "momentum_std_explore": std_explore,
            "step_size": step_size,
            "leapfrog_steps": leapfrog_steps,
            "leapfrog_units": units,
        },
    }


@pytest.mark.parametrize("task", all_tasks(), ids=lambda task: task.name)
def test_values_have_the_types_of_their_settings(task):
    assert type(task.steps) is int
    for settings in task.defaults.values():
        for name, value in settings.items():
            whole = {
                "leapfrog_steps",
                "leapfrog_units",
                "num_flows",
                "warmup_steps",
                "evaluation_every",
                "evaluation_episodes",
            }
            assert type(value) is (int if name in whole else str if name == "lagrange_estimate" else float)


@pytest.mark.parametrize("task", all_tasks(), ids=lambda task: task.name)
def test_the_environment_of_every_task_is_registered(task):
    assert task.env_id in gym.registry
    found = find_task(task.env_id)
    assert found.env_id == task.env_id
    assert not found.constraint
    assert (found is task) == (not task.constraint)


def test_settings_for_is_a_copy_and_empty_for_other_algorithms():
    task = find_task("hopper")
    task.settings_for("sac")["alpha"] = 7.0
    assert task.settings_for("sac") == {"alpha": 0.2}
    assert task.settings_for("svgd") == {}


def test_a_task_can_be_pickled():
    assert pickle.loads(pickle.dumps(find_task("ant"))) == find_task("ant")


def test_another_version_gets_the_row_under_its_own_name():
    task = find_task("Humanoid-v5")
    assert (task.name, task.env_id, task.steps) == ("Humanoid-v5", "Humanoid-v5", 3_000_000)
    assert task.defaults == find_task("humanoid").defaults


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "gymnasium.envs.classic_control:Pendulum-v1"])
def test_any_other_id_gets_the_row_of_ant(env_id):
    task = find_task(env_id)
    assert (task.name, task.env_id, task.steps) == (env_id, env_id, 1_000_000)
    assert task.defaults == find_task("ant").defaults


@pytest.mark.parametrize(
    ("name", "expected"), [("hoper", "'hopper'"), ("Hopper", "'hopper'"), ("Pendulm-v1", "'Pendulum-v1'")]
)
def test_an_unknown_name_offers_the_nearest(name, expected):
    with pytest.raises(UnknownNameError, match=f"Unknown task '{name}'. Did you mean {expected}") as caught:
        find_task(name)
    assert "\n" not in str(caught.value)
    assert "humanoid-flagrun-pybullet" in str(caught.value)


def test_an_unknown_module_is_named():
    with pytest.raises(UnknownNameError, match="Cannot import 'no_such_module'"):
        find_task("no_such_module:Thing-v0")


def test_registering_twice_is_harmless_but_a_name_means_one_task(own_registry):
    register_task(Task("pendulum", "Pendulum-v1", steps=10))
    register_task(Task("pendulum", "Pendulum-v1", steps=10))
    assert find_task("pendulum").steps == 10
    with pytest.raises(UserError, match="task 'pendulum' already exists"):
        register_task(Task("pendulum", "Pendulum-v1", steps=20))


def install(folder, monkeypatch, *, entry_points, module):
    """Put a package on the path as pip would: a module, and beside it its metadata."""
    name = f"outside_{abs(hash(module)) % 10**9}"
    (folder / f"{name}.py").write_text(module)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"entry{index} = {name}{target}\n" for index, target in enumerate(entry_points)]
    (metadata / "entry_points.txt").write_text("[rllib_hpo.tasks]\n" + "".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    return name


OUTSIDE = """
import gymnasium
from rllib_hpo.tasks import Task, find_task, register_task

gymnasium.register("{env}-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv")
register_task(Task("{env}-registered", "{env}-v0", 1000, dict(sac=dict(alpha=0.1))))
constant = Task("{env}-constant", "{env}-v0")

def one():
    return Task("{env}-one", "{env}-v0", defaults=find_task("hopper").defaults)

def several():
    return [Task("{env}-first", "{env}-v0"), Task("{env}-second", "{env}-v0")]

def wrong():
    return ["hopper"]
"""


def test_tasks_of_an_installed_package(own_registry, tmp_path, monkeypatch):
    targets = ["", ":constant", ":one", ":several"]
    name = install(tmp_path, monkeypatch, entry_points=targets, module=OUTSIDE.format(env="Outside"))
    find_task("hopper")
    assert name not in sys.modules, "a built-in name must not load other packages"

    task = find_task("Outside-registered")
    assert (task.env_id, task.steps, task.settings_for("sac")) == ("Outside-v0", 1000, {"alpha": 0.1})
    names = [task.name for task in all_tasks()]
    assert names[:8] == list(TABLE_ONE)
    for suffix in ["registered", "constant", "one", "first", "second"]:
        assert names.count(f"Outside-{suffix}") == 1
    gym.registry.pop("Outside-v0")


def test_a_broken_package_does_not_take_the_other_tasks_away(own_registry, tmp_path, monkeypatch):
    targets = [":missing", ":wrong", ":one"]
    install(tmp_path, monkeypatch, entry_points=targets, module=OUTSIDE.format(env="Broken"))
    with pytest.warns(UserWarning, match="could not be loaded") as caught:
        names = [task.name for task in all_tasks()]
    assert len(caught) == 2
    assert "Broken-one" in names
    gym.registry.pop("Broken-v0")
