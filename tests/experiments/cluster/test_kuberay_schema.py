"""Test that the schema of KubeRay's files equals the operator's in every key, and can be replaced by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from rllib_hpo.experiments.cluster.check import check_file
from rllib_hpo.experiments.cluster.check.kuberay import KINDS, operators_schema, schema
from tests.experiments.kuberay_places import fingerprint, places

ROOT = Path(__file__).resolve().parents[3]
RELEASE = "1.7.0"
OPERATORS = {
    "RayCluster": (3005, "c0d00f2615d4a283a0bea8aa77cbbeb034cfb1b19287e6cb738c80cefcc8426c"),
    "RayJob": (4301, "8ad576199f2b2d8430ce59d7b3aaa7db18047771bd76202c68fd509fae6fcc30"),
}
"""Fingerprints of that release's definitions, by `python -m tests.experiments.kuberay_places kuberay-operator/crds`."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_its_type_and_what_is_required_are_the_operators(kind: str) -> None:
    lines = places(schema(kind))
    assert (len(lines), fingerprint(lines)) == OPERATORS[kind]


def test_that_release_is_the_one_to_install() -> None:
    assert f"--version {RELEASE}\n" in (ROOT / "cluster" / "README.md").read_text()
    for name in ("raycluster", "rayjob"):
        text = (ROOT / "cluster" / "kuberay" / f"{name}.yaml").read_text()
        assert f"KubeRay operator {RELEASE.rpartition('.')[0]}" in text
    comment = yaml.safe_load(
        (ROOT / "rllib_hpo/experiments/cluster/check/kubernetes_types.json").read_text()
    )["$comment"]
    made_by = (ROOT / "cluster" / "kuberay" / "kubernetes_types.py").read_text()
    assert comment.split(" (")[0].replace("Of kubernetes ", "kubernetes==") in made_by


SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["port", "policy"],
    "properties": {
        "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "policy": {"type": "string", "default": "Always", "enum": ["Always", "Never"]},
        "grace": {"type": "integer", "minimum": 0, "nullable": True},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "closed": {"type": "object"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "many": {"type": "array", "items": {"type": "object", "properties": {"type": {"type": "string"}}}},
    },
}


@pytest.mark.parametrize(
    ("spec", "mistakes"),
    [
        ({"port": 1}, 0),
        ({"port": "http", "grace": None, "free": {"a": {"b": 1}}, "labels": {"a": "b"}}, 0),
        ({"port": 1, "many": [{"type": "x"}]}, 0),
        ({"port": 1.5}, 1),
        ({}, 1),
        ({"port": 1, "policy": "Allways"}, 1),
        ({"port": 1, "grace": -1}, 1),
        ({"port": 1, "policy": None}, 2),
        ({"port": 1, "closed": {"a": 1}}, 1),
        ({"port": 1, "many": [{"typ": "x"}]}, 1),
        ({"port": 1, "labels": {"a": 1}}, 1),
        ({"port": 1, "prot": 1}, 1),
    ],
)
def test_a_definition_is_read_as_kubernetes_reads_it(
    spec: dict[str, Any], mistakes: int, tmp_path: Path
) -> None:
    whole = {"type": "object", "properties": {"metadata": {"type": "object"}, "spec": SPEC}}
    versions = [{"name": "v1alpha1", "schema": {}}, {"name": "v1", "schema": {"openAPIV3Schema": whole}}]
    (tmp_path / "ray.io_rayjobs.yaml").write_text(yaml.safe_dump({"spec": {"versions": versions}}))
    validator = Draft202012Validator(operators_schema("RayJob", tmp_path))
    found = [*validator.iter_errors({"metadata": {"name": "x"}, "spec": spec})]
    assert len(found) == mistakes


def test_one_mistake_in_what_groups_share_is_named_in_each(tmp_path: Path) -> None:
    """YAML's anchors share one line; the message names it once for each pod that it affects."""
    path = tmp_path / "raycluster.yaml"
    text = (ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text()
    path.write_text(text.replace("runAsNonRoot: true", "runAsNonRoot: 'yes'"))
    found = check_file(path)
    assert len(found) == 3
    assert all("runAsNonRoot is 'yes'; it must be of type boolean." in problem for problem in found)
    line = 1 + text[: text.index("runAsNonRoot")].count("\n")
    assert f"line {line}: " in found[0]
