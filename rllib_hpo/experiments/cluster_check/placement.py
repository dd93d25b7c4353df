"""Whether the trials of a sweep fit the machines of a cluster file: learners on GPU nodes, runners on CPU nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster_check import kuberay, slurm
from rllib_hpo.experiments.yaml_lines import YamlLines, read_documents

Bundle = Mapping[str, float]


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


def read_machines(path: Path) -> Machines:
    """The machines of a cluster file that `check_file` finds right.

    Raises:
        UserError: If the file does not say what its machines have.
    """
    text = path.read_text()
    if text.startswith("#!"):
        return _of_slurm(text)
    documents = read_documents(path, "cluster file")
    for document in documents:
        if document.values.get("kind") in kuberay.KINDS:
            return _of_kuberay(document)
    (document,) = documents
    return _of_ray_up(document)


def _of_ray_up(document: YamlLines) -> Machines:
    values = document.values
    most = int(values["max_workers"])
    if values["provider"]["type"] == "local":
        given = values.get("metadata") or {}
        if not {"head", "workers"} <= set(given):
            raise document.error(
                ("metadata",),
                "`metadata: {head: {CPU: 16, GPU: 1}, workers: {CPU: 16}}` would say what there is",
            )
        head = NodeType("head", given["head"], 1)
        return Machines((head, NodeType("workers", given["workers"], most)), most + 1)
    types = [
        NodeType(
            name, node_type["resources"],
            1 if name == values["head_node_type"] else min(most, int(node_type.get("max_workers", most))),
        )
        for name, node_type in values["available_node_types"].items()
    ]  # fmt: skip
    return Machines(tuple(types), most + 1)


def _of_kuberay(document: YamlLines) -> Machines:
    types = []
    for place in kuberay.groups(document):
        group = kuberay.find(document.values, place)
        limits = kuberay.find(group, ("template", "spec", "containers", 0, "resources", "limits")) or {}
        parameters = group.get("rayStartParams") or {}
        has = {
            "CPU": float(parameters.get("num-cpus", _quantity(limits.get("cpu", 0)))),
            "GPU": float(parameters.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        }
        types.append(NodeType(group.get("groupName", "head"), has, int(group.get("maxReplicas", 1))))
    return Machines(tuple(types), sum(kind.most for kind in types))


def _quantity(value: Any) -> float:
    """Kubernetes' CPUs: 8, "8" or "500m"."""
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _of_slurm(text: str) -> Machines:
    components: list[dict[str, str]] = [{}]
    for _, name, value in slurm.directives(text):
        if name == "hetjob":
            components.append({})
        else:
            components[-1][name] = value
    types = []
    for i, options in enumerate(components):
        if "nodes" not in options or "cpus-per-task" not in options:
            raise UserError(f"Component {i} of the batch file does not say --nodes and --cpus-per-task.")
        gpus = options.get("gpus-per-node", "0").rpartition(":")[2]
        has = {"CPU": float(options["cpus-per-task"]), "GPU": float(gpus)}
        types.append(NodeType(f"component {i}", has, int(options["nodes"])))
    return Machines(tuple(types), sum(kind.most for kind in types))
