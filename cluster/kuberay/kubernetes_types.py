"""Writes the types of Kubernetes in KubeRay's resources: rllib_hpo/experiments/cluster/check/kubernetes_types.json.

From the root of the repository, with the client for the Kubernetes that KubeRay is built with (1.7.0: 36.x):

    python3.11 -m venv build/kubernetes && build/kubernetes/bin/pip install kubernetes==36.0.3
    build/kubernetes/bin/python cluster/kuberay/kubernetes_types.py

The client's classes are made from Kubernetes' own OpenAPI document, and know of every field what it is.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import re
from pathlib import Path
from typing import Any

from kubernetes.client import models

TARGET = Path(__file__).parents[2] / "rllib_hpo" / "experiments" / "cluster_check" / "kubernetes_types.json"
ROOTS = (
    "V1Container", "V1EnvFromSource", "V1EnvVar", "V1EnvVarSource", "V1IngressTLS", "V1NetworkPolicyEgressRule",
    "V1NetworkPolicyIngressRule", "V1PodTemplateSpec", "V1ResourceRequirements", "V1SecurityContext", "V1Service",
    "V1VolumeMount",
)  # fmt: skip
PLAIN = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "datetime": "string"}
QUANTITIES = {"limits", "requests", "overhead", "capacity", "allocatedResources"}
"""Fields that are maps of quantities; to the client all are maps of strings."""
QUANTITY = {"divisor", "sizeLimit"}
ALLOWED = {
    ("V1Container", "imagePullPolicy"): ["Always", "IfNotPresent", "Never"],
    ("V1ContainerPort", "protocol"): ["TCP", "UDP", "SCTP"],
    ("V1PodSpec", "restartPolicy"): ["Always", "OnFailure", "Never"],
    ("V1Toleration", "effect"): ["NoSchedule", "PreferNoSchedule", "NoExecute"],
    ("V1Toleration", "operator"): ["Exists", "Equal", "Lt", "Gt"],
}
"""Values of strings that Kubernetes takes, which neither its types nor KubeRay's definitions say."""


def main() -> None:
    """Writes the file."""
    found: dict[str, Any] = {}
    for name in ROOTS:
        _add(name, found)
    version = importlib.metadata.version("kubernetes")
    comment = f"Of kubernetes {version} (PyPI, Apache License 2.0), by cluster/kuberay/kubernetes_types.py"
    text = json.dumps({"$comment": comment, "$defs": dict(sorted(found.items()))}, separators=(",", ":"))
    TARGET.write_text(text.replace('"V1', '\n"V1') + "\n")


def _add(name: str, found: dict[str, Any]) -> None:
    """A type, and those of its fields."""
    if name in found:
        return
    model = getattr(models, name)
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    found[name] = schema
    keys = model.attribute_map
    schema["properties"] = {
        keys[field]: _schema(keys[field], kind, found)
        for field, kind in model.openapi_types.items()
        if keys[field] != "status"  # which only Kubernetes writes
    }
    for (owner, key), values in ALLOWED.items():
        if owner == name:
            schema["properties"][key]["enum"] = values
    required = sorted(keys[field] for field in keys if _is_required(model, field))
    if required:
        schema["required"] = required


def _is_required(model: type, field: str) -> bool:
    return "must not be `None`" in inspect.getsource(getattr(model, field).fset)


def _schema(key: str, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    if kind in PLAIN:
        return {"$ref": "#/$defs/quantity"} if key in QUANTITY else {"type": PLAIN[kind]}
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        return {"type": "array", "items": _schema(key, match[1], found)}
    if match := re.fullmatch(r"dict\[str, (.*)\]", kind):
        if key in QUANTITIES:
            return {"$ref": "#/$defs/quantities"}
        return {"type": "object", "additionalProperties": _schema(key, match[1], found)}
    if kind == "object":  # a number or a name, as of a port
        return {"type": ["integer", "string"]}
    if kind == "V1ObjectMeta":
        return {"$ref": "#/$defs/madeMetadata"}
    _add(kind, found)
    return {"$ref": f"#/$defs/{kind}"}


if __name__ == "__main__":
    main()
