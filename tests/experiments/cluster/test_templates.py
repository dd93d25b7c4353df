"""Test `rllib-hpo cluster init`: what it writes passes the checks, and its nodes could install it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import rllib_hpo
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.check import check_file
from rllib_hpo.experiments.cluster.templates import CODE, TEMPLATES, Provider, write_templates

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a working directory elsewhere, and a home with a token."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text("dummy")
    token.chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("provider", get_args(Provider))
def test_what_is_written_passes_the_check(provider: Provider, tmp_path: Path) -> None:
    template = write_templates(provider, tmp_path / "here" / "mine")
    out = tmp_path / "here" / "mine"
    for file in [out / name for name in template.files if name.endswith((".yaml", ".sbatch"))]:
        assert check_file(file) == []
    texts = [path for path in out.rglob("*") if path.is_file() and CODE not in path.parts]
    for path in texts:
        named = re.findall(r"(?<![\w/-])(?:cluster|here/mine)/[\w./-]*\w", path.read_text())
        assert all(name.startswith("here/mine/") for name in named), path
        assert "root of the repository" not in path.read_text()
    for step in template.next_steps:
        for name in re.findall(r"\{out\}/(\S+)", step):
            assert (out / name).exists()


def test_scripts_stay_executable(tmp_path: Path) -> None:
    write_templates("aws", tmp_path / "aws")
    script = tmp_path / "aws" / "aws_setup.sh"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_slurm_uses_this_installation(tmp_path: Path) -> None:
    write_templates("slurm", tmp_path / "slurm")
    text = (tmp_path / "slurm" / "slurm.sbatch").read_text()
    assert f"export PATH={sys.prefix}/bin:$PATH" in text
    assert not (tmp_path / "slurm" / CODE).exists()


def test_code_for_the_nodes_is_complete(tmp_path: Path) -> None:
    """It builds as the checkout does, with the sweep files."""
    write_templates("local", tmp_path / "local")
    code = tmp_path / "local" / CODE
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(code),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"rllib_hpo-{rllib_hpo.__version__}-py3-none-any.whl"
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], check=True, capture_output=True
    )
    assert b"rllib_hpo/shipped/tune_configs/eight-tasks.yaml" in listed.stdout
    assert b"rllib_hpo/rllib/_private.py" in listed.stdout


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "gpu.yaml").touch()
    with pytest.raises(UserError, match="must be a new or empty directory"):
        write_templates("aws", tmp_path / "used")


def test_images_are_of_this_version() -> None:
    named = re.findall(
        r"rllib-hpo:(\d\S+)", "".join(path.read_text() for path in (ROOT / "cluster").rglob("*.*aml"))
    )
    assert {*named} == {rllib_hpo.__version__}
    assert set(TEMPLATES) == set(get_args(Provider))
