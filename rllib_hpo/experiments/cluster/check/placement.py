"""Read the machines of a cluster file: their resources and their greatest number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rllib_hpo.documents import YamlLines, read_documents, read_text, reading
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.check import kuberay, slurm
from rllib_hpo.rllib.machines import ROLLOUTS, Machines, NodeType, autoscaler_machines


def read_machines(path: Path) -> Machines:
    """Read the machines of a cluster file without mistakes.

    Raises:
        UserError: If the file does not say what its machines have.
    """
    with reading(f"The cluster file {path}"):
        return _read_machines(path)


def _read_machines(path: Path) -> Machines:
    text = read_text(path, "cluster file")
    if text.startswith("#!"):
        return _of_slurm(text)
    documents = read_documents(path, "cluster file", dialect="1.1")
    for document in documents:
        if document.values.get("kind") in kuberay.KINDS:
            return _of_kuberay(document)
    (document,) = documents
    return _of_ray_up(document)


def _of_ray_up(document: YamlLines) -> Machines:
    machines = autoscaler_machines(document.values)
    if machines is None:
        raise document.error(
            ("metadata",),
            "add what they have, for example `metadata: {head: {CPU: 16, GPU: 1}, workers: {CPU: 16, "
            f"{ROLLOUTS}: 1}}}}`",
        )
    return machines


def _of_kuberay(document: YamlLines) -> Machines:
    types = []
    for place in kuberay.groups(document):
        group = kuberay.find(document.values, place)
        limits = kuberay.find(group, ("template", "spec", "containers", 0, "resources", "limits")) or {}
        parameters = group.get("rayStartParams") or {}
        has = {
            "CPU": float(parameters.get("num-cpus", _quantity(limits.get("cpu", 0)))),
            "GPU": float(parameters.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
            **kuberay.custom_resources(group),
        }
        types.append(NodeType(group.get("groupName", "head"), has, int(group.get("maxReplicas", 1))))
    return Machines(tuple(types), sum(kind.most for kind in types))


def _quantity(value: Any) -> float:
    """Parse Kubernetes' CPUs: 8, "8" or "500m"."""
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _of_slurm(text: str) -> Machines:
    components: list[dict[str, str]] = [{}]
    for _, name, value in slurm.directives(text):
        if name == "hetjob":
            components.append({})
        else:
            components[-1][name] = value
    # Only a command line says what Ray is to call a node, and for which component it is.
    starts = [line for line in text.splitlines() if "ray start" in line and ROLLOUTS in line]
    for_rollouts = {int(group) for line in starts for group in re.findall(r"--het-group[= ](\d+)", line)}
    types = []
    for i, options in enumerate(components):
        if "nodes" not in options or "cpus-per-task" not in options:
            raise UserError(f"Component {i} of the batch file lacks --nodes or --cpus-per-task.")
        gpus = options.get("gpus-per-node", "0").rpartition(":")[2]
        has = {"CPU": float(options["cpus-per-task"]), "GPU": float(gpus), ROLLOUTS: float(i in for_rollouts)}
        types.append(NodeType(f"component {i}", has, int(options["nodes"])))
    return Machines(tuple(types), sum(kind.most for kind in types))


def misplaced(machines: Machines) -> Iterator[tuple[str, str, str]]:
    """Kinds of machines that would run runners in the wrong place: name, mistake, remedy."""
    if not any(kind.has_gpu for kind in machines.types):
        return
    for kind in machines.types:
        declares, has_cpus = kind.resources.get(ROLLOUTS, 0) > 0, kind.resources.get("CPU", 0) > 0
        if declares and kind.has_gpu:
            yield (
                kind.name,
                f"{kind.name} has a GPU and declares '{ROLLOUTS}': runners take its CPUs from learners",
                f"leave '{ROLLOUTS}' to nodes without a GPU",
            )
        if has_cpus and not declares and not kind.has_gpu:
            yield (
                kind.name,
                f"{kind.name} does not declare '{ROLLOUTS}': runners go to GPU nodes while those have free CPUs",
                f"add `{ROLLOUTS}: 1` to its resources, as the files in cluster/ do",
            )
