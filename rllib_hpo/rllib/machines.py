"""Machines of a cluster: their resources, their greatest number, and the trials that fit on them."""

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
"""Custom resource of nodes that are reserved for runners: `ray start --resources='{"rollouts": 1}'`.

A resource and not a label, because the scheduler and both autoscalers understand it. Autoscaler v1, which on-premises
clusters need, ignores labels: it counts a runner as placed on any free CPU of a GPU node, starts no CPU node, and the
trial waits forever. The resource belongs to a kind of machine, so a replacement has it too; a node that does not
declare it is used as before.
"""
LOCAL = "local"
"""The provider of `ray up` for on-premises machines."""
_KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class NodeType:
    """Machines of one kind."""

    name: str
    resources: Bundle
    """Resources of one machine that Ray may use."""
    most: int
    """Greatest number of machines of this kind."""

    @property
    def has_gpu(self) -> bool:
        """Whether it has GPUs, so that learners may run there."""
        return self.resources.get("GPU", 0) > 0


@dataclass(frozen=True)
class Machines:
    """The machines that a cluster has when it has grown as far as it may."""

    types: tuple[NodeType, ...]
    ceiling: int
    """Greatest number of machines of all kinds."""

    @property
    def keep_rollouts_apart(self) -> bool:
        """Whether nodes that are reserved for runners exist or can be added."""
        return any(kind.resources.get(ROLLOUTS, 0) > 0 and kind.most > 0 for kind in self.types)

    def total(self, resource: str, where: str | None = None) -> float:
        """Greatest amount of a resource, on all nodes or on those that declare `where`."""
        return sum(
            kind.most * kind.resources.get(resource, 0)
            for kind in self.types
            if where is None or kind.resources.get(where, 0) > 0
        )

    def largest(self, resource: str) -> float:
        """Greatest amount of a resource on one node."""
        return max((kind.resources.get(resource, 0) for kind in self.types if kind.most > 0), default=0)


@dataclass
class Plan:
    """A placement of trials: each bundle goes to a node with room, or to a new one."""

    machines: Machines
    _nodes: list[tuple[NodeType, dict[str, float]]] = field(default_factory=list)

    def place(self, bundles: Sequence[Bundle]) -> list[NodeType] | None:
        """Place all bundles of a trial, and return the node type of each; None (placing nothing) if one has no room."""
        before = [(kind, dict(free)) for kind, free in self._nodes]
        where: dict[int, NodeType] = {}
        # Bundles with a GPU first: they fit on fewer nodes.
        for i in sorted(range(len(bundles)), key=lambda i: -bundles[i].get("GPU", 0)):
            found = self._room(bundles[i])
            if found is None:
                self._nodes = before
                return None
            where[i] = found
        return [where[i] for i in range(len(bundles))]

    def _room(self, bundle: Bundle) -> NodeType | None:
        wants_gpu = bundle.get("GPU", 0) > 0
        # Like Ray's autoscaler, prefer GPU nodes only for bundles with a GPU.
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
    """Number of equal trials that run at a time when the cluster has grown as far as it may."""
    plan, count = Plan(machines), 0
    while plan.place(bundles) is not None:
        count += 1
    return count


def cluster_machines() -> Machines:
    """Machines that the connected cluster can grow to; this machine if there is no cluster."""
    if not ray.is_initialized():
        has = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
        return Machines((NodeType("this machine", has, 1),), 1)
    alive = [node for node in ray.nodes() if node["Alive"]]
    types = [NodeType(node["NodeName"], node["Resources"], 1) for node in alive]
    config = _ask_head(alive) or {}
    grown = autoscaler_machines(config)
    if grown is None:
        return Machines(tuple(types), len(types))
    if config["provider"]["type"] == LOCAL:
        # Ray has measured the nodes that run; the rest are still to join.
        workers = grown.types[-1]
        types.append(replace(workers, most=max(0, grown.ceiling - len(alive))))
        return Machines(tuple(types), grown.ceiling)
    return grown


def autoscaler_machines(config: Mapping[str, Any]) -> Machines | None:
    """Machines that a cluster can grow to, from the configuration of its autoscaler (a `ray up` file).

    Returns:
        None if the configuration does not declare the resources of its machines.
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


def _ask_head(alive: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Run `autoscaler_config` on the head, where the autoscaler is, without taking a CPU from a trial."""
    head = next(node["NodeID"] for node in alive if "node:__internal_head__" in node["Resources"])
    here = ray.get_runtime_context()
    if here.get_node_id() == head:  # a process for it would take seconds to start
        return autoscaler_config(here.gcs_address)
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    asked = ray.remote(num_cpus=0)(autoscaler_config).options(scheduling_strategy=there)
    config: dict[str, Any] | None = ray.get(asked.remote(here.gcs_address))
    return config


def autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """Read the configuration of a cluster's autoscaler on its head; None if it has no autoscaler.

    `ray.nodes()` lists only nodes that already run.

    Args:
        gcs_address: Address of the cluster, since a machine may have several.
    """
    if "RAY_CLUSTER_NAME" in os.environ and _KUBERNETES.exists():
        return _of_kuberay(os.environ["RAY_CLUSTER_NAME"], _KUBERNETES.read_text().strip())
    if (file := autoscaler_file(gcs_address)) is None:
        return None
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    return config


def _of_kuberay(cluster: str, namespace: str) -> dict[str, Any] | None:
    """Configuration that KubeRay's autoscaler derives from the RayCluster of this pod."""
    import requests

    try:
        found = kuberay_resource(cluster, namespace)
    except requests.RequestException:  # without an autoscaler this pod may not ask
        return None
    if not found["spec"].get("enableInTreeAutoscaling"):
        return None
    return kuberay_autoscaler_config(found)
