"""Write a cluster's files for a provider, adapted to this installation, with the code that the nodes install."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import rllib_hpo
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.config.shipped import (
    CLUSTERS,
    PACKAGE,
    PROJECT_FILES,
    SWEEPS,
    project_file,
    shipped_folder,
)

Provider = Literal["aws", "gcp", "local", "kuberay", "slurm"]
CODE = "package"
"""Folder, beside a cluster's files, of the code that its nodes install."""


class Template(NamedTuple):
    """Files of a provider, below `cluster/`."""

    files: tuple[str, ...]
    """The first one is the file to start with."""
    has_code: bool = True
    """Whether nodes install the package from the folder `package`; else they share this installation."""
    next_steps: tuple[str, ...] = ()
    """Commands to run next; `{out}` is the directory."""


_CHECK = "rllib-hpo cluster check {out}/"
TEMPLATES: dict[Provider, Template] = {
    "aws": Template(
        ("gpu.yaml", "aws_setup.sh", "iam"),
        next_steps=("{out}/aws_setup.sh RANGE BUCKET", _CHECK + "gpu.yaml", "ray up -y {out}/gpu.yaml"),
    ),
    "gcp": Template(
        ("gpu_gcp.yaml", "gcp_setup.sh"),
        next_steps=(
            "{out}/gcp_setup.sh PROJECT RANGE BUCKET",
            _CHECK + "gpu_gcp.yaml",
            "ray up -y {out}/gpu_gcp.yaml",
        ),
    ),
    "local": Template(
        ("local.yaml",),
        next_steps=(_CHECK + "local.yaml", "RAY_UP_enable_autoscaler_v2=0 ray up -y {out}/local.yaml"),
    ),
    "kuberay": Template(
        ("kuberay/rayjob.yaml", "kuberay/raycluster.yaml", "Dockerfile"),
        next_steps=(
            f"docker build -f {{out}}/Dockerfile -t rllib-hpo:{rllib_hpo.__version__} {{out}}/{CODE}",
            _CHECK + "kuberay/rayjob.yaml",
            "kubectl apply -f {out}/kuberay/rayjob.yaml",
        ),
    ),
    "slurm": Template(
        ("slurm.sbatch",),
        has_code=False,
        next_steps=(_CHECK + "slurm.sbatch", "sbatch {out}/slurm.sbatch"),
    ),
}
COMMON = ("README.md", "grafana")
"""Files for every provider."""
assert set(TEMPLATES) == set(get_args(Provider))


def write_templates(provider: Provider, out: Path) -> Template:
    """Write the files of a provider into a new directory.

    Commands and paths in the files are adapted to `out`. `ray up` copies `out/package` to the nodes, so that they run
    the code of this installation.

    Raises:
        UserError: If the directory is not empty or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} must be a new or empty directory.")
    template = TEMPLATES[provider]
    source, shown = shipped_folder(CLUSTERS), shown_path(out)
    try:
        for name in (*template.files, *COMMON):
            _copy(source / name, out / name, lambda text: adapted(text, shown))
        if template.has_code:
            write_code(out / CODE)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}.") from error
    return template


def shown_path(out: Path) -> str:
    """Return how commands name a directory: relative to the working directory if it is inside."""
    try:
        return str(out.relative_to(Path.cwd()))
    except ValueError:
        return str(out)


def adapted(text: str, out: str) -> str:
    """Return a file's text with its paths changed to those of directory `out` and of this installation."""
    text = re.sub(r"(?<![\w/-])cluster/(?=[\w.])", f"{out}/", text)
    text = re.sub(r"^(\s+~/rllib-hpo/(\S+): )\2$", rf"\1{out}/{CODE}/\2", text, flags=re.MULTILINE)
    text = re.sub(r"(-t rllib-hpo:\S+) \.", rf"\1 {out}/{CODE}", text)
    text = text.replace("the root of the repository", "the directory where `rllib-hpo cluster init` was run")
    return text.replace("$PWD/.venv", sys.prefix).replace(".venv/bin/", f"{sys.prefix}/bin/")


def write_code(folder: Path) -> None:
    """Write what `pip install FOLDER` needs to install this package: code, sweep files, constraints."""
    ignored = shutil.ignore_patterns("__pycache__", "shipped")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)
    shutil.copytree(shipped_folder(SWEEPS), folder / SWEEPS, ignore=ignored)
    for name in PROJECT_FILES:
        (folder / name).write_text(project_file(name))


def _copy(source: Path, target: Path, change: Callable[[str], str]) -> None:
    """Copy a file or folder with changed texts; permissions are kept."""
    if source.is_dir():
        for child in sorted(source.iterdir()):
            _copy(child, target / child.name, change)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(change(source.read_text()))
    shutil.copymode(source, target)
