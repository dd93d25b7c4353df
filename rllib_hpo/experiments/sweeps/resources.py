"""Compute a trial's resources, and check that a cluster can provide them.

Learners sit on GPU nodes and rollouts on CPU nodes, where a cluster has nodes for rollouts (`machines.ROLLOUTS`): a GPU
node's few CPUs then go to as many learners as its GPU has shares for. A trial's own process, which evaluates, keeps the
counts and writes checkpoints, is always on its learner's node, so both see the same disk. Several learners come as near
to each other as there is room: on other nodes than the first they need a disk that all share.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.tune import PlacementGroupFactory

from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.config.run_config import RunConfig
from rllib_hpo.rllib.machines import ROLLOUTS, Machines, Plan

_ROLLOUTS_PER_RUNNER = 0.001
"""Amount of the resource ROLLOUTS per runner; tiny, since only CPUs limit placement."""


def resources(config: RunConfig, apart: bool = False, num_seeds: int = 1) -> PlacementGroupFactory:
    """Resources of a trial: its own process with its learners, and a CPU for each runner.

    Those that evaluate beside training are runners, too.

    Args:
        config: The trial.
        apart: Whether the cluster has nodes for rollouts; the runners of a trial with a GPU then go there only.
        num_seeds: Number of seeds that share the process and its GPU; each has runners of its own.
    """
    run = config.run
    share = run.num_gpus_per_learner
    runner = {"CPU": 1.0, ROLLOUTS: _ROLLOUTS_PER_RUNNER} if apart and share else {"CPU": 1.0}
    if not share:
        own: list[dict[str, float]] = [{"CPU": 1.0}] * (1 + run.num_learners)
    elif run.num_learners == 0:
        own = [{"CPU": 1.0, "GPU": share}]
    else:
        # Tune puts a process that asks for nothing into the first bundle, and RLlib's learner takes the GPU there.
        # The two take turns; half a CPU, so that no runner finds room beside them or beside another learner.
        own = [{}, *[{"CPU": 0.5, "GPU": share}] * run.num_learners]
    num_runners = num_seeds * (run.num_env_runners + run.evaluation_num_env_runners)
    return PlacementGroupFactory([*own, *[runner] * num_runners])


def describe(request: PlacementGroupFactory) -> str:
    """A request in words, as "3 CPUs, 0.2 GPU"."""
    total = request.required_resources
    parts = [f"{total['CPU']:g} CPU{'s' if total['CPU'] > 1 else ''}"]
    if total.get("GPU"):
        parts.append(f"{total['GPU']:g} GPU")
    return ", ".join(parts)


def check_placeable(requests: Mapping[str, PlacementGroupFactory], machines: Machines) -> None:
    """Check that these machines can run all trials.

    Raises:
        SettingsError: Naming the trial, what it asks for and what there is.
    """
    for name, request in requests.items():
        if Plan(machines).place(request.bundles) is None:
            raise SettingsError(
                f"The trial {name} requests {_missing(request, machines)}, so it would wait forever. Request fewer "
                "with --num-env-runners or --gpus-per-learner, or use a larger cluster."
            )


def _missing(request: PlacementGroupFactory, machines: Machines) -> str:
    """Resources that are insufficient."""
    total = request.required_resources
    for kind in ("CPU", "GPU"):
        wanted, there = total.get(kind, 0), machines.total(kind)
        largest = max(bundle.get(kind, 0) for bundle in request.bundles)
        if wanted > there or largest > machines.largest(kind):
            return f"{wanted:g} {kind}s, but there are {there:g} in total"
    runners = sum(ROLLOUTS in bundle for bundle in request.bundles)
    there = machines.total("CPU", where=ROLLOUTS)
    if runners > there:
        return f"{runners} CPUs for rollouts, but the nodes that declare '{ROLLOUTS}' have {there:g}"
    return f"{describe(request)}, a combination that no set of these nodes can provide"
