"""Test that moved modules import under their old names, and that pickles with old names load."""

from __future__ import annotations

import importlib
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import rllib_hpo
from rllib_hpo.moved import MOVED

RELEASE = Path(__file__).parent / "data" / "0.1.0" / "release.tar.xz"


def test_old_names_are_the_new_modules() -> None:
    """A process of its own imports the old names first."""
    program = (
        "import importlib, sys, rllib_hpo; from rllib_hpo.moved import MOVED\n"
        "for old, new in MOVED.items():\n"
        "    assert importlib.import_module(old) is importlib.import_module(new), old\n"
        "import rllib_hpo.experiments.cluster_check.files as files\n"
        "assert files.__name__ == files.__spec__.name == 'rllib_hpo.experiments.cluster.check.files'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_old_names_are_free() -> None:
    """A module under an old name would never be imported."""
    root = Path(rllib_hpo.__file__).parents[1]
    taken = [old for old in MOVED if root.joinpath(*old.split(".")).with_suffix(".py").exists()]
    assert taken == []


@pytest.mark.parametrize(
    ("package", "name"),
    [("storage", "Storage"), ("storage", "is_uri"), ("jobs", "Job"), ("jobs", "submit")],
)
def test_packages_have_the_names_of_the_modules_they_were(package: str, name: str) -> None:
    found = getattr(importlib.import_module(f"rllib_hpo.experiments.{package}"), name)
    assert found.__module__.startswith(f"rllib_hpo.experiments.{package}.")
    with pytest.raises(ImportError, match="nothing"):
        exec(f"from rllib_hpo.experiments.{package} import nothing")


def test_a_pickle_with_an_old_name_loads() -> None:
    from rllib_hpo.rllib.new_stack.env_runner import ColumnarEnvRunner

    assert pickle.loads(b"crllib_hpo.rllib.env_runner\nColumnarEnvRunner\n.") is ColumnarEnvRunner


def test_modules_that_a_release_has_pickled_import() -> None:
    """These are all names in the pickles of its checkpoints and of Tune."""
    named: set[str] = set()
    with tarfile.open(RELEASE) as archive:
        for member in archive:
            if member.isfile() and not member.name.endswith((".json", ".jsonl", ".parquet", ".yaml")):
                file = archive.extractfile(member)
                assert file is not None
                named |= set(re.findall(rb"rllib_hpo(?:\.[a-z_0-9]+)+", file.read()))
    modules = {name.decode() for name in named}
    assert "rllib_hpo.rllib.env_runner" in modules
    for module in modules:
        importlib.import_module(module)
