"""Recognise the kind of a cluster file, and check it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rllib_hpo.documents import YamlLines, read_documents, read_text, reading
from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.experiments.cluster.check import kuberay, ray_up, slurm
from rllib_hpo.experiments.cluster.check.findings import Findings, check_text, mapping
from rllib_hpo.experiments.cluster.check.placement import misplaced, read_machines


def check_file(path: Path, crds: Path | None = None) -> list[str]:
    """Check a cluster file; returns a sentence with line and remedy for each mistake.

    Args:
        path: A file of `ray up`, of KubeRay, or of Slurm.
        crds: Directory of KubeRay's own definitions, instead of the schema of this package.

    Raises:
        UserError: If it cannot be read, or is none of these.
    """
    with reading(f"The cluster file {path}"):
        return _check(path, crds)


def _check(path: Path, crds: Path | None) -> list[str]:
    text = read_text(path, "cluster file")
    findings = Findings(path)
    documents: list[YamlLines] = []
    if text.startswith("#!") or path.suffix in {".sbatch", ".slurm", ".sh"}:
        slurm.check(path, text, findings)
    else:
        try:
            documents = read_documents(path, "cluster file", dialect="1.1")
        except SettingsError as error:  # it has a line already
            return [str(error)]
        if any("apiVersion" in document.values for document in documents):
            kuberay.check(documents, findings, crds)
        elif len(documents) == 1:
            ray_up.check(documents[0], findings)
        else:
            raise UserError(f"{path} is not a cluster file of `ray up`, KubeRay or Slurm.")
    check_text(text, findings)
    if not len(findings):
        try:
            machines = read_machines(path)
        except SettingsError as error:  # it has a line already
            return [str(error)]
        for name, what, remedy in misplaced(machines):
            findings.add(_line_of(name, documents), what, remedy)
    return findings.sentences()


def _line_of(name: str, documents: Sequence[YamlLines]) -> int:
    """The line that declares the resources of a kind of machine."""
    for document in documents:
        for place in kuberay.groups(document):
            if kuberay.find(document.values, (*place, "groupName")) == name:
                return document.line((*place, "rayStartParams"))
        for key in ("available_node_types", "metadata"):
            if name in mapping(document.values.get(key)):
                return document.line((key, name, "resources"))
    return 1
