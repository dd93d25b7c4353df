"""Test what a cluster can grow to, what a trial requests, and what could never be placed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config

from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.cluster.check.placement import read_machines
from rllib_hpo.experiments.config.run_config import RunConfig
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.sweeps.resources import check_placeable, resources
from rllib_hpo.rllib.machines import (
    Machines,
    NodeType,
    autoscaler_machines,
    cluster_machines,
    trials_at_a_time,
)

ROOT = Path(__file__).resolve().parents[2]
GPU, CPU = NodeType("gpu", {"CPU": 8, "GPU": 1}, 1), NodeType("cpu", {"CPU": 4, "rollouts": 1}, 2)


def trial(**changes: Any) -> RunConfig:
    return read_sweep(ROOT / "tune_configs" / "smoke.yaml", changes=changes).trials[0].config


def test_only_runners_of_trials_with_a_gpu_are_sent_away() -> None:
    with_gpu = trial(num_gpus_per_learner=0.2, num_env_runners=2)
    own, *runners = resources(with_gpu, apart=True).bundles
    assert own == {"CPU": 1, "GPU": 0.2}
    assert [set(runner) for runner in runners] == [{"CPU", "rollouts"}] * 2
    assert resources(with_gpu).bundles == [own, {"CPU": 1}, {"CPU": 1}]
    without = trial(num_env_runners=2)
    assert resources(without, apart=True).bundles == resources(without).bundles == [{"CPU": 1}] * 3


def test_a_remote_learner_with_a_gpu_shares_its_process_s_bundle() -> None:
    request = resources(trial(num_gpus_per_learner=0.2, num_env_runners=2, num_learners=1), apart=True)
    assert request.head_bundle_is_empty  # Tune then puts the process into the first of the others
    assert request.bundles[0]["GPU"] == 0.2
    assert request.bundles[0]["CPU"] < 1  # no runner fits beside them
    assert len(request.bundles) == 3


def test_a_gpu_node_carries_as_many_trials_as_it_has_shares() -> None:
    one = resources(trial(num_gpus_per_learner=0.2, num_env_runners=4), apart=True)
    assert (
        trials_at_a_time(one.bundles, Machines((GPU, NodeType("cpu", {"CPU": 16, "rollouts": 1}, 2)), 3)) == 5
    )
    assert trials_at_a_time(one.bundles, Machines((GPU, CPU), 3)) == 2  # eight CPUs for runners


@pytest.mark.parametrize(
    ("changes", "machines", "says"),
    [
        ({"num_env_runners": 500}, Machines((GPU, CPU), 3), "501 CPUs, but there are 16 in total"),
        ({"num_gpus_per_learner": 1.0}, Machines((CPU,), 2), "1 GPUs, but there are 0 in total"),
        (
            {"num_gpus_per_learner": 0.5, "num_env_runners": 9}, Machines((GPU, CPU), 3),
            "9 CPUs for rollouts, but the nodes that declare 'rollouts' have 8",
        ),
        ({"num_gpus_per_learner": 0.5, "num_env_runners": 8}, Machines((GPU, CPU), 2), "a combination that no set"),
    ],
)  # fmt: skip
def test_what_could_never_be_placed_is_refused(
    changes: dict[str, Any], machines: Machines, says: str
) -> None:
    request = resources(trial(**changes), machines.keep_rollouts_apart)
    with pytest.raises(SettingsError, match=says) as caught:
        check_placeable({"mine": request}, machines)
    assert str(caught.value).startswith("The trial mine requests ")
    assert "it would wait forever" in str(caught.value)


def test_this_machine_keeps_nothing_apart() -> None:
    machines = cluster_machines()
    assert machines.ceiling == 1
    assert not machines.keep_rollouts_apart


@pytest.mark.parametrize(
    "file", ["cluster/kuberay/raycluster.yaml", "cluster/gpu.yaml", "cluster/local.yaml"]
)
def test_what_rays_autoscaler_works_from_says_the_same_as_the_file(file: str) -> None:
    (first, *_) = yaml.safe_load_all((ROOT / file).read_text())
    if "kuberay" in file:
        first["metadata"]["namespace"] = "default"
        config = _derive_autoscaling_config_from_ray_cr(first)
    else:
        config = prepare_config(first)
    grown, planned = autoscaler_machines(config), read_machines(ROOT / file)
    assert grown is not None
    assert grown.keep_rollouts_apart
    assert planned.keep_rollouts_apart
    for resource in ("CPU", "GPU", "rollouts"):
        assert grown.total(resource) == planned.total(resource)
    assert grown.total("CPU", where="rollouts") == planned.total("CPU", where="rollouts") > 0
