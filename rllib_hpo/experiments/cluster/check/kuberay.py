"""Check files of the KubeRay operator: its API's schema, access, and spending."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rllib_hpo.documents import Place, YamlLines, parse_json, read_text
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.check.findings import LOCALHOST, Findings, check_schema, mapping

KINDS = ("RayCluster", "RayJob")
CRD_FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
_OPEN_SERVICES = ("LoadBalancer", "NodePort")
_SAME_IN_JSON_SCHEMA = frozenset(
    {"type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}
)


def check(documents: Sequence[YamlLines], findings: Findings, crds: Path | None = None) -> None:
    """Check a file of Kubernetes resources.

    Args:
        documents: All resources of the file.
        findings: Where it is noted.
        crds: Directory of the operator's own CustomResourceDefinitions, to check against those.
    """
    kinds = [document.values.get("kind") for document in documents]
    if not any(kind in KINDS for kind in kinds):
        findings.add(1, "the file defines no RayCluster or RayJob", "check the `kind`")
    for document, kind in zip(documents, kinds, strict=True):
        if kind in KINDS:
            wanted = operators_schema(str(kind), crds) if crds else schema(str(kind))
            check_schema(document, document.values, wanted, str(kind), findings)
            _check_cluster(document, "NetworkPolicy" in kinds, findings)
            if kind == "RayJob":
                _check_job(document, findings)
        else:
            _check_other(document, findings)
        _check_env(document, findings)


def cluster_place(document: YamlLines) -> Place:
    """Path of the cluster's specification."""
    return ("spec",) if document.values.get("kind") == "RayCluster" else ("spec", "rayClusterSpec")


def find(values: Any, place: Place) -> Any:
    """The value at a path; None if there is none."""
    for part in place:
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return None
    return values


def groups(document: YamlLines) -> Iterator[Place]:
    """Paths of the head's group and of every group of workers."""
    spec = cluster_place(document)
    if find(document.values, (*spec, "headGroupSpec")) is not None:
        yield (*spec, "headGroupSpec")
    workers = find(document.values, (*spec, "workerGroupSpecs"))
    for i in range(len(workers) if isinstance(workers, list) else 0):
        yield (*spec, "workerGroupSpecs", i)


def custom_resources(group: Mapping[str, Any]) -> dict[str, float]:
    """Resources of a group beside CPUs and GPUs, read as Ray's autoscaler reads them.

    Raises:
        ValueError: If Ray could not read it.
    """
    quoted = str(mapping(mapping(group).get("rayStartParams")).get("resources", '"{}"'))
    try:
        declared = parse_json(quoted[1:-1].replace("\\", ""), "the value")
    except UserError as error:
        raise ValueError(str(error)) from None
    if not all(isinstance(amount, int) for amount in declared.values()):
        raise ValueError("the value must map names to integers")
    return declared


@cache
def schema(kind: str) -> dict[str, Any]:
    """Schema of a RayCluster or a RayJob, including the types of Kubernetes."""
    files = resources.files(__package__)
    schemas: dict[str, Any] = yaml.safe_load((files / "kuberay_schema.yaml").read_text())
    kubernetes = json.loads((files / "kubernetes_types.json").read_text())
    return {"$defs": kubernetes["$defs"] | schemas["$defs"], **schemas[kind]}


def operators_schema(kind: str, crds: Path) -> dict[str, Any]:
    """Schema of the operator's own definition, in which keys that Kubernetes would drop are mistakes.

    Raises:
        UserError: If there is none, or not of this version of the API.
    """
    path = crds / CRD_FILES[kind]
    try:
        # Too long for the strict reader, which is not written in C.
        text = read_text(path, "definition", max_bytes=2**24)
        definition = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        versions = {version["name"]: version["schema"] for version in definition["spec"]["versions"]}
        found: dict[str, Any] = versions["v1"]["openAPIV3Schema"]
        strict = _strict(found)
    except (
        UserError,
        yaml.YAMLError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(
            f"--crds {crds}: {path.name} is missing or does not define version v1 ({error})."
        ) from None
    strict["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, and not spelt out there
    return strict


def _strict(node: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a structural schema of Kubernetes into a JSON schema that refuses keys which Kubernetes would drop."""
    strict = {key: value for key, value in node.items() if key in _SAME_IN_JSON_SCHEMA}
    if node.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    elif node.get("nullable"):
        strict["type"] = [node["type"], "null"]
    properties = {key: _strict(value) for key, value in node.get("properties", {}).items()}
    if isinstance(node.get("items"), Mapping):
        strict["items"] = _strict(node["items"])
    # Defaults are filled in before Kubernetes looks for what is required.
    strict["required"] = [key for key in node.get("required", []) if "default" not in node["properties"][key]]
    more = node.get("additionalProperties")
    if isinstance(more, Mapping):
        strict["additionalProperties"] = _strict(more)
    elif node.get("type") == "object" and not (more or node.get("x-kubernetes-preserve-unknown-fields")):
        strict["additionalProperties"] = False
    return strict | {"properties": properties}


def _check_cluster(document: YamlLines, has_policy: bool, findings: Findings) -> None:
    values, spec = document.values, cluster_place(document)
    if find(values, (*spec, "authOptions", "mode")) in (None, "disabled"):
        findings.add(
            document.line((*spec, "authOptions", "mode")),
            "the cluster accepts commands without a token, so anyone who can reach it can run code on it",
            "write `authOptions: {mode: token}` under the cluster's spec",
        )
    if find(values, (*spec, "rayVersion")) is None:
        findings.add(document.line(spec), "rayVersion is missing", "set it to the Ray version of the image")
    _check_dashboard(document, (*spec, "headGroupSpec"), has_policy, findings)
    for place in groups(document):
        try:
            custom_resources(find(values, place))
        except ValueError as error:
            findings.add(
                document.line((*place, "rayStartParams", "resources")),
                f"Ray cannot read these resources ({error})",
                """write `resources: '"{\\"rollouts\\": 1}"'`""",
            )
    _check_spending(document, findings)
    for place in groups(document):
        _check_pod(document, (*place, "template", "spec"), findings)


def _check_dashboard(document: YamlLines, head: Place, has_policy: bool, findings: Findings) -> None:
    """Check that the dashboard is reachable from within the cluster only."""
    values = document.values
    host = find(values, (*head, "rayStartParams", "dashboard-host")) or "0.0.0.0 (KubeRay's default)"
    if host not in LOCALHOST and not has_policy:
        findings.add(
            document.line((*head, "rayStartParams", "dashboard-host")),
            f"the dashboard listens on {host}",
            "write `dashboard-host: 127.0.0.1`, or add a NetworkPolicy to this file",
        )
    for place in ((*head, "serviceType"), (*head, "headService", "spec", "type")):
        if str(find(values, place)) in _OPEN_SERVICES:
            findings.add(
                document.line(place),
                f"a {find(values, place)} exposes the dashboard outside the cluster",
                "write ClusterIP, and use `kubectl port-forward`",
            )
    if find(values, (*head, "enableIngress")):
        findings.add(
            document.line((*head, "enableIngress")),
            "enableIngress exposes the dashboard outside the cluster",
            "leave it out, and use `kubectl port-forward`",
        )


def _check_spending(document: YamlLines, findings: Findings) -> None:
    values, spec = document.values, cluster_place(document)
    if (
        find(values, (*spec, "enableInTreeAutoscaling"))
        and find(values, (*spec, "autoscalerOptions", "idleTimeoutSeconds")) is None
    ):
        findings.add(
            document.line((*spec, "autoscalerOptions")),
            "idleTimeoutSeconds is missing",
            "set it under autoscalerOptions, for example to 600",
        )
    for place in list(groups(document))[1:]:
        group = mapping(find(values, place))
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if most is None:
            findings.add(
                document.line(place),
                f"{group.get('groupName')} has no maxReplicas, whose default in KubeRay is about two billion",
                "set it to the most workers you want to pay for",
            )
        for key in ("minReplicas", "replicas"):
            if isinstance(most, int) and isinstance(group.get(key), int) and group[key] > most:
                findings.add(
                    document.line((*place, key)),
                    f"{key} {group[key]} of {group.get('groupName')} is above its maxReplicas {most}",
                    "raise one or lower the other",
                )
        if isinstance(least, int) and isinstance(group.get("replicas"), int) and group["replicas"] < least:
            findings.add(
                document.line((*place, "replicas")),
                f"replicas {group['replicas']} of {group.get('groupName')} is below its minReplicas {least}",
                f"write at least {least}",
            )


def _check_pod(document: YamlLines, pod: Place, findings: Findings) -> None:
    if find(document.values, (*pod, "hostNetwork")):
        findings.add(
            document.line((*pod, "hostNetwork")),
            "hostNetwork exposes Ray's ports on the machine's own network, where no NetworkPolicy applies",
            "leave it out",
        )
    containers = find(document.values, (*pod, "containers"))
    for i in range(len(containers) if isinstance(containers, list) else 0):
        place = (*pod, "containers", i, "securityContext", "privileged")
        if find(document.values, place):
            findings.add(
                document.line(place),
                "a privileged container has root access to the machine",
                "leave `privileged` out",
            )


def _check_job(document: YamlLines, findings: Findings) -> None:
    if not find(document.values, ("spec", "shutdownAfterJobFinishes")):
        findings.add(
            document.line(("spec", "shutdownAfterJobFinishes")),
            "the cluster keeps running, at a cost, after the job has ended",
            "write `shutdownAfterJobFinishes: true`",
        )
    if not find(document.values, ("spec", "entrypoint")):
        findings.add(document.line(("spec",)), "entrypoint is missing", "set it to the command of the sweep")


def _check_other(document: YamlLines, findings: Findings) -> None:
    kind = document.values.get("kind")
    if kind == "Secret" and (document.values.get("data") or document.values.get("stringData")):
        findings.add(
            document.line(("stringData",) if "stringData" in document.values else ("data",)),
            "a Secret is written here in plain text",
            "create it with `kubectl create secret generic NAME --from-file=...`",
        )
    if kind == "Ingress":
        findings.add(
            document.line(("kind",)),
            "an Ingress exposes the dashboard outside the cluster",
            "leave it out, and use `kubectl port-forward`",
        )
    if kind == "Service" and str(find(document.values, ("spec", "type"))) in _OPEN_SERVICES:
        findings.add(
            document.line(("spec", "type")),
            f"a {find(document.values, ('spec', 'type'))} exposes the dashboard outside the cluster",
            "write ClusterIP, and use `kubectl port-forward`",
        )


def _check_env(document: YamlLines, findings: Findings) -> None:
    """Check environment variables for secrets, since `name` and `value` are on different lines."""
    for place, entry in _walk(document.values, ()):
        name = str(entry.get("name", ""))
        literal = entry.get("value")
        if literal and any(word in name.upper() for word in ("KEY", "TOKEN", "SECRET", "PASSWORD")):
            findings.add(
                document.line((*place, "value")),
                f"the value of {name} is a secret",
                "take it from a Secret with `valueFrom: {secretKeyRef: ...}`",
            )


def _walk(values: Any, place: Place) -> Iterator[tuple[Place, Mapping[Any, Any]]]:
    if isinstance(values, Mapping):
        yield place, values
        for key, value in values.items():
            yield from _walk(value, (*place, key))
    elif isinstance(values, list):
        for i, value in enumerate(values):
            yield from _walk(value, (*place, i))
