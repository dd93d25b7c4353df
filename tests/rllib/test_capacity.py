"""Test that what could never start is rejected in a sentence, before any actor waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.rllib import capacity
from rllib_hpo.rllib.cluster_address import check_cluster_address
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.rllib.machines import Machines, NodeType
from tests.rllib.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]


def asking(
    stack: str = "new", *, runners: int = 0, learners: int = 0, evaluating: int = 0, gpus: float = 0
) -> Any:
    config: ActorCriticConfig = tiny_config().env_runners(num_env_runners=runners)
    if stack == "old":
        return config.api_stack(False, False)
    config.learners(num_learners=learners, num_gpus_per_learner=gpus)
    return config.evaluation(evaluation_num_env_runners=evaluating)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            asking(runners=5),
            r"num_env_runners=5 request 5 CPUs, but this machine has 4 CPUs.*num_env_runners=4\)",
        ),
        (asking("old", runners=9), r"num_env_runners=9 request 9 CPUs"),
        (
            asking(runners=3, evaluating=2),
            r"num_env_runners=3 and evaluation_num_env_runners=2 request 5 CPUs",
        ),
        (
            asking(runners=3, learners=1, gpus=1),
            r"num_learners=1 and num_gpus_per_learner=1 request 3 CPUs and 1 GPU.*\.learners\(num_gpus_per_learner=0\)",
        ),
    ],
)
def test_more_than_there_is_is_refused(config: Any, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        config.build_algo()
    assert ray.available_resources()["CPU"] == 4


@pytest.mark.usefixtures("ray_session")
def test_what_an_autoscaler_can_add_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = asking(runners=9)
    workers = Machines((NodeType("worker", {"CPU": 4}, 3),), 4)
    monkeypatch.setattr(capacity, "cluster_machines", lambda: workers)
    capacity.check_capacity(config, capacity.actors_of(config))
    with pytest.raises(SettingsError, match="has 12 CPUs"):
        capacity.check_capacity(asking(runners=13), capacity.actors_of(asking(runners=13)))


@pytest.mark.usefixtures("ray_session")
def test_a_trial_has_its_placement_group_and_no_more() -> None:
    group = placement_group([{"CPU": 1}] * 3)
    inside = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)

    @ray.remote(num_cpus=1, scheduling_strategy=inside)
    def refusal(runners: int) -> str:
        config = asking(runners=runners)
        try:
            capacity.check_capacity(config, capacity.actors_of(config))
        except SettingsError as error:
            return str(error)
        return ""

    try:
        assert ray.get(refusal.remote(2)) == ""
        assert "but the placement group of this Tune trial has 2 CPUs" in ray.get(refusal.remote(3))
    finally:
        remove_placement_group(group)


ON_A_LAPTOP = """
from rllib_hpo import SACHPOConfig
import os, ray
config = SACHPOConfig().environment("Pendulum-v1").env_runners(num_env_runners=(os.cpu_count() or 1) + 1)
try:
    config.build_algo()
except ValueError as error:
    print(error)
print(ray.is_initialized())
"""


@pytest.mark.slow
def test_without_ray_the_machine_is_what_there_is() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_LAPTOP],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refusal, is_left = done.stdout.splitlines()[-2:]
    assert "so the build would wait forever" in refusal
    assert is_left == "False"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "no-such-host.invalid:6379"]
)
def test_a_dead_address_is_a_sentence_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=r"that RAY_ADDRESS names: .*unset RAY_ADDRESS"):
        check_cluster_address()


def test_an_address_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://127.0.0.1:8265", "127.0.0.1", "127.0.0.1:99999", "ray://"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match="must be HOST:PORT"):
            check_cluster_address()
    for address in ("auto", "local", ""):
        monkeypatch.setenv("RAY_ADDRESS", address)
        check_cluster_address()
