"""The machines of a cluster: what they have, how many there can be, and what fits on them at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rllib_hpo.rllib._private import autoscaler_file, kuberay_autoscaler_config, kuberay_resource

Bundle = Mapping[str, float]

ROLLOUTS = "rollouts"
"""The resource by which a node says that it is there for rollouts: `ray start --resources='{"rollouts": 1}'`.

A custom resource and not a label, because all who place a bundle understand it. Ray's labels would do for the
scheduler and for autoscaler v2; autoscaler v1, which clusters of one's own machines need, ignores them: it takes a
runner for placed on any free CPU of a GPU node, starts no CPU node, and the trial waits for ever. It belongs to a
kind of machine, not to one, so a replacement has it too; and a node that does not declare it changes nothing.
"""
LOCAL = "local"
"""The provider of `ray up` for machines of one's own."""
_KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class NodeType:
    """Machines of one kind."""

    name: str
    resources: Bundle
    """What Ray may use of one of them."""
    most: int
    """How many there can be."""

    @property
    def has_gpu(self) -> bool:
        """Whether learners may go there."""
        return self.resources.get("GPU", 0) > 0


@dataclass(frozen=True)
class Machines:
    """What a cluster can grow to."""

    types: tuple[NodeType, ...]
    ceiling: int
    """How many there can be of all kinds."""

    @property
    def keep_rollouts_apart(self) -> bool:
        """Whether there are nodes, or may come some, that are there for rollouts."""
        return any(kind.resources.get(ROLLOUTS, 0) > 0 and kind.most > 0 for kind in self.types)

    def total(self, resource: str, where: str | None = None) -> float:
        """How much there can be of a resource, on all nodes or on those that declare `where`."""
        return sum(
            kind.most * kind.resources.get(resource, 0)
            for kind in self.types
            if where is None or kind.resources.get(where, 0) > 0
        )

    def largest(self, resource: str) -> float:
        """How much of it one node can have."""
        return max((kind.resources.get(resource, 0) for kind in self.types if kind.most > 0), default=0)


@dataclass
class Plan:
    """Trials placed so far; each bundle on a node with room, or on a new one."""

    machines: Machines
    _nodes: list[tuple[NodeType, dict[str, float]]] = field(default_factory=list)

    def place(self, bundles: Sequence[Bundle]) -> list[NodeType] | None:
        """Where each bundle of a trial goes; None, and nothing is placed, where one has no room."""
        before = [(kind, dict(free)) for kind, free in self._nodes]
        where: dict[int, NodeType] = {}
        # Bundles with a GPU first: they have the smaller choice.
        for i in sorted(range(len(bundles)), key=lambda i: -bundles[i].get("GPU", 0)):
            found = self._room(bundles[i])
            if found is None:
                self._nodes = before
                return None
            where[i] = found
        return [where[i] for i in range(len(bundles))]

    def _room(self, bundle: Bundle) -> NodeType | None:
        wants_gpu = bundle.get("GPU", 0) > 0
        # Ray's autoscaler, too, keeps GPU nodes for what asks for GPUs while there are others.
        kinds = sorted(self.machines.types, key=lambda kind: kind.has_gpu != wants_gpu)
        for kind in kinds:
            for other, free in self._nodes:
                if other is kind and _fits(bundle, free):
                    _take(bundle, free)
                    return kind
            there = sum(other is kind for other, _ in self._nodes)
            if (
                there < kind.most
                and len(self._nodes) < self.machines.ceiling
                and _fits(bundle, kind.resources)
            ):
                free = dict(kind.resources)
                _take(bundle, free)
                self._nodes.append((kind, free))
                return kind
        return None


def _fits(bundle: Bundle, free: Bundle) -> bool:
    return all(wanted <= free.get(kind, 0) + 1e-9 for kind, wanted in bundle.items())


def _take(bundle: Bundle, free: dict[str, float]) -> None:
    for kind, wanted in bundle.items():
        free[kind] -= wanted


def trials_at_a_time(bundles: Sequence[Bundle], machines: Machines) -> int:
    """How many trials of one kind run at a time when the cluster has grown as far as it may."""
    plan, count = Plan(machines), 0
    while plan.place(bundles) is not None:
        count += 1
    return count


def machines_here() -> Machines:
    """What the cluster that this process is connected to can grow to; this machine, where there is none."""
    if not ray.is_initialized():
        has = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        return Machines((NodeType("this machine", has, 1),), 1)
    alive = [node for node in ray.nodes() if node["Alive"]]
    types = [NodeType(node["NodeName"], node["Resources"], 1) for node in alive]
    config = _asked_of_the_head(alive) or {}
    grown = of_autoscaler(config)
    if grown is None:
        return Machines(tuple(types), len(types))
    if config["provider"]["type"] == LOCAL:
        # What is there, Ray has found out itself; the rest is still to join.
        workers = grown.types[-1]
        types.append(replace(workers, most=max(0, grown.ceiling - len(alive))))
        return Machines(tuple(types), grown.ceiling)
    return grown


def of_autoscaler(config: Mapping[str, Any]) -> Machines | None:
    """What a cluster can grow to by the configuration of its autoscaler: that of a `ray up` file.

    Returns:
        None where it does not say what its machines have.
    """
    if config.get("provider", {}).get("type") == LOCAL:
        given, most = config.get("metadata") or {}, int(config["max_workers"])
        if not {"head", "workers"} <= set(given):
            return None
        head, workers = NodeType("head", given["head"], 1), NodeType("workers", given["workers"], most)
        return Machines((head, workers), most + 1)
    node_types = config.get("available_node_types") or {}
    if not node_types:
        return None
    most = int(config["max_workers"])
    types = [
        NodeType(
            name, node_type.get("resources") or {},
            1 if name == config["head_node_type"] else min(most, int(node_type.get("max_workers", most))),
        )
        for name, node_type in node_types.items()
    ]  # fmt: skip
    return Machines(tuple(types), most + 1)


def _asked_of_the_head(alive: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The `autoscaler_config` of the head, where the autoscaler is; it takes no CPU from a trial."""
    head = next(node["NodeID"] for node in alive if "node:__internal_head__" in node["Resources"])
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    asked = ray.remote(num_cpus=0)(autoscaler_config).options(scheduling_strategy=there)
    config: dict[str, Any] | None = ray.get(asked.remote(ray.get_runtime_context().gcs_address))
    return config


def autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """What the autoscaler of a cluster works from, read on its head; None where nothing is started on demand.

    Ray tells nobody else what it could start: `ray.nodes()` has only what is there.

    Args:
        gcs_address: Which cluster's: there may be others on the same machine.
    """
    if "RAY_CLUSTER_NAME" in os.environ and _KUBERNETES.exists():
        return _of_kuberay(os.environ["RAY_CLUSTER_NAME"], _KUBERNETES.read_text().strip())
    if (file := autoscaler_file(gcs_address)) is None:
        return None
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


def _of_kuberay(cluster: str, namespace: str) -> dict[str, Any] | None:
    """What the autoscaler beside this head makes of the RayCluster, asked of Kubernetes as it asks."""
    import requests

    try:
        found = kuberay_resource(cluster, namespace)
    except requests.RequestException:  # without an autoscaler this pod may not ask
        return None
    if not found["spec"].get("enableInTreeAutoscaling"):
        return None
    return kuberay_autoscaler_config(found)
