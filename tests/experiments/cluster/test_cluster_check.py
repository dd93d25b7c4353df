"""Test that the cluster files are right, that mistakes are named with line and remedy, and that the sweeps fit."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.check import check_file
from rllib_hpo.experiments.cluster.check.placement import read_machines
from rllib_hpo.experiments.cluster.driver import DRIVER, OLDER_CUDA, TORCH
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.sweeps.resources import resources
from rllib_hpo.rllib.machines import Machines, NodeType, Plan, trials_at_a_time

ROOT = Path(__file__).resolve().parents[3]
AWS, GCP, LOCAL = (f"cluster/{name}.yaml" for name in ("gpu", "gpu_gcp", "local"))
KUBERAY, JOB, SLURM = "cluster/kuberay/raycluster.yaml", "cluster/kuberay/rayjob.yaml", "cluster/slurm.sbatch"
FILES = (AWS, GCP, LOCAL, KUBERAY, JOB, SLURM)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use no network, the repository's root, and a home with a token."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("the check went to the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("dummy")
    token.chmod(0o600)


@pytest.mark.parametrize("file", FILES)
def test_the_committed_files_are_right(file: str) -> None:
    assert check_file(Path(file)) == []


def test_every_cluster_file_is_checked_here() -> None:
    there = {*(ROOT / "cluster").rglob("*.yaml"), *(ROOT / "cluster").glob("*.sbatch")}
    assert there == {ROOT / file for file in FILES}


MISTAKES = yaml.safe_load((Path(__file__).parent / "cluster_mistakes.yaml").read_text())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_line_and_remedy(mistake: str, tmp_path: Path) -> None:
    planted = MISTAKES[mistake]
    text = (ROOT / planted["file"]).read_text()
    assert planted["old"] in text
    text = text.replace(planted["old"], planted["new"], 1)
    path = tmp_path / Path(planted["file"]).name
    path.write_text(text)
    line = text[: text.index(planted["line"])].count("\n") + 1
    (problem,) = check_file(path)
    assert problem.startswith(f"{path}, line {line}: ")
    assert planted["says"] in problem
    assert planted["remedy"] in problem
    assert problem[-1] in ".?"


def test_the_needed_driver_stands_where_users_look() -> None:
    """It is that of the torch in constraints.txt; another torch may be built for another CUDA."""
    assert f"\ntorch=={TORCH}." in (ROOT / "constraints.txt").read_text()
    for file in ("README.md", "cluster/README.md", "cluster/Dockerfile", *FILES):
        assert f"driver {DRIVER} or later" in (ROOT / file).read_text(), file


def test_an_older_image_will_do_with_another_torch(tmp_path: Path) -> None:
    text = (ROOT / GCP).read_text().replace(f"nvidia-{DRIVER}", "nvidia-570")
    path = tmp_path / "gpu_gcp.yaml"
    path.write_text(
        text.replace("google-api-python-client", f"--extra-index-url {OLDER_CUDA} google-api-python-client")
    )
    assert check_file(path) == []


@pytest.fixture
def slurm_node(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the batch file up to Ray's start, on a node with a fake nvidia-smi."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)

    def run(says: str, fails: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        scripts = {
            "nvidia-smi": f"echo '{says}'; echo '{says}'; exit {fails}",
            "hostname": "echo 127.0.0.1",
            "python": "exit 0",
            "ray": "echo started; exit 7",
        }
        for name, script in scripts.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        return subprocess.run(
            ["bash", str(ROOT / SLURM)],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SLURM_JOB_ID": "1",
                 "SLURM_SUBMIT_DIR": str(tmp_path), **environment},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return run


def test_slurms_job_ends_at_once_where_the_driver_is_too_old(
    slurm_node: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = slurm_node("570.86.15")
    assert (done.returncode, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith(
        "error: NVIDIA's driver 570.86.15 on 127.0.0.1 is older than the 580 that torch needs;"
    )
    for fine in (
        slurm_node(f"{DRIVER}.95.05"),
        slurm_node("570.86.15", NVIDIA_DRIVER="525"),
        slurm_node("no GPU", 9),
    ):
        assert (fine.returncode, fine.stdout) == (7, "started\n"), fine.stderr


def test_a_bare_file_of_aws_is_told_what_ray_would_do(tmp_path: Path) -> None:
    """Ray's defaults are an open dashboard, no token, ssh and all rights for everybody, and a nightly build."""
    path = tmp_path / "bare.yaml"
    path.write_text(
        "cluster_name: bare\nprovider: {type: aws, region: us-west-2}\nhead_node_type: head\n"
        "available_node_types:\n  head:\n    resources: {}\n    node_config: {InstanceType: m6i.large}\n"
    )
    found = "\n".join(check_file(path))
    for part in (
        "default is 2", "idle_timeout_minutes is", "head_start_ray_commands is", "worker_start_ray_commands is",
        "setup_commands is missing", "ssh open to the world", "full access to EC2 and S3", "does not copy the token",
        "no version of Ray",
    ):  # fmt: skip
        assert part in found
    assert found.count("line 5: ") == 0  # a node type's mistakes are at its node_config
    assert found.count("line 7: ") == 2


def test_the_token_must_be_there_and_private(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.chmod(0o644)
    (problem,) = check_file(Path(AWS))
    assert "can be read by others" in problem
    assert "chmod 600 ~/.ray/auth_token" in problem
    token.unlink()
    (problem,) = check_file(Path(AWS))
    assert "ray get-auth-token --generate" in problem


def test_the_operators_own_definitions_can_be_used(tmp_path: Path) -> None:
    spec = {"type": "object", "properties": {"headGroupSpec": {"type": "object"}}}
    schema = {"type": "object", "properties": {"spec": spec, "kind": {}, "apiVersion": {}, "metadata": {}}}
    definition = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    (tmp_path / "ray.io_rayclusters.yaml").write_text(yaml.safe_dump(definition))
    found = check_file(Path(KUBERAY), tmp_path)
    assert any("'authOptions' is not a key of RayCluster.spec" in problem for problem in found)
    with pytest.raises(UserError, match=r"ray\.io_rayjobs\.yaml is missing"):
        check_file(Path(JOB), tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- 1\n", "must hold 'name: value' lines"),
        ("", "is not a cluster file"),
        ("a: 1\n---\nb: 2\n", "is not a cluster file"),
    ],
)
def test_other_files_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        check_file(path)


def test_what_is_not_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: [\n")
    (found,) = check_file(path)
    assert found.startswith(f"{path}, line 3: invalid YAML: ")


@pytest.mark.parametrize("name", [AWS, GCP, LOCAL, KUBERAY, JOB])
@pytest.mark.parametrize("value", ["3", "{a: {b: 1}}"])
def test_sections_of_another_type_are_findings(name: str, value: str, tmp_path: Path) -> None:
    values = next(iter(yaml.safe_load_all((ROOT / name).read_text())))
    for key in values:
        path = tmp_path / "x.yaml"
        path.write_text(yaml.safe_dump({**values, key: yaml.safe_load(value)}))
        assert all(sentence.startswith(f"{path}, line ") for sentence in check_file(path)), key


def test_the_command_prints_and_exits_with_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / LOCAL).read_text().replace("max_workers", "max_worker"))
    command = [sys.executable, "-m", "rllib_hpo.cli", "cluster", "check"]
    done = subprocess.run(
        [*command, KUBERAY, str(bad)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert f"{KUBERAY}: ok" in done.stdout
    assert "did you mean 'max_workers'?" in done.stdout
    assert "problems in cluster files" in done.stderr
    assert "Traceback" not in done.stderr


def bundles_of_the_eight_tasks(changes: dict[str, Any]) -> list[list[dict[str, float]]]:
    sweep = read_sweep(ROOT / "tune_configs" / "eight-tasks.yaml", changes=changes)
    assert len(sweep.trials) == 120
    distinct = {json.dumps(resources(trial.config, apart=True).bundles) for trial in sweep.trials}
    return [json.loads(bundles) for bundles in distinct]


@pytest.mark.parametrize(
    ("changes", "learners"),
    [
        ({"num_gpus_per_learner": 0.2, "num_env_runners": 2}, 1),
        ({"num_gpus_per_learner": 0.2, "num_env_runners": 2, "num_learners": 1}, 1),
        ({"num_gpus_per_learner": 1.0, "num_env_runners": 4, "num_learners": 1}, 1),
    ],
)
@pytest.mark.parametrize("file", FILES)
def test_the_eight_tasks_fit_each_cluster(file: str, changes: dict[str, Any], learners: int) -> None:
    machines = read_machines(Path(file))
    for bundles in bundles_of_the_eight_tasks(changes):
        placed = Plan(machines).place(bundles)
        assert placed is not None
        on_gpu = [kind.has_gpu for kind in placed]
        assert on_gpu == ["GPU" in bundle for bundle in bundles]
        assert sum(on_gpu) == learners
        gpus = sum(kind.most * kind.resources.get("GPU", 0) for kind in machines.types)
        share = changes["num_gpus_per_learner"]
        # As many trials as the GPUs have room for: there are CPUs enough for the runners of all.
        assert trials_at_a_time(bundles, machines) == int(gpus / share + 1e-9)


def test_a_plan_keeps_to_nodes_and_ceiling() -> None:
    gpu, cpu = NodeType("gpu", {"CPU": 4, "GPU": 1}, 2), NodeType("cpu", {"CPU": 2}, 3)
    trial = [{"CPU": 1.0, "GPU": 0.5}, {"CPU": 1.0}]
    assert trials_at_a_time(trial, Machines((gpu, cpu), 5)) == 4
    assert trials_at_a_time(trial, Machines((gpu, cpu), 1)) == 2  # both bundles on the GPU node
    assert trials_at_a_time([{"CPU": 5.0}], Machines((gpu, cpu), 5)) == 0  # on no node, whatever their sum
    assert trials_at_a_time([{"CPU": 1.0, "GPU": 0.6}], Machines((gpu, cpu), 5)) == 2
    plan = Plan(Machines((cpu,), 1))
    assert plan.place([{"CPU": 1.0}, {"CPU": 2.0}]) is None
    assert plan.place([{"CPU": 2.0}]) == [cpu]  # what did not fit took nothing


def test_the_policies_are_narrow() -> None:
    for name in ("head", "worker"):
        policy = json.loads((ROOT / "cluster" / "iam" / f"{name}-policy.json").read_text())
        for statement in policy["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not any("*" in action for action in actions)
            if statement["Resource"] == "*":
                assert all(action.startswith("ec2:Describe") for action in actions)


@pytest.mark.parametrize("script", ["aws_setup.sh", "gcp_setup.sh"])
def test_the_setup_scripts_refuse_the_world(script: str) -> None:
    path = ROOT / "cluster" / script
    assert path.stat().st_mode & stat.S_IXUSR
    bash = shutil.which("bash")
    assert bash is not None
    assert subprocess.run([bash, "-n", str(path)], check=False).returncode == 0
    for world in ("0.0.0.0/0", "::/0"):
        arguments = [world, "rllib-hpo-x"] if script == "aws_setup.sh" else ["project", world, "rllib-hpo-x"]
        done = subprocess.run([bash, str(path), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "no wider than /16" in done.stderr
