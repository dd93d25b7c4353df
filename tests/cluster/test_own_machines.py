"""Test cluster/local.yaml on two machines: bring it up, run a sweep through node and driver deaths, take it down."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from rllib_hpo.results import read_rows
from tests.cluster.lab import ADDRESS, HEAD, HOME, SHARED, WORKER, Lab, brought_up, running_lab, wait_until
from tests.experiments.jobs.test_submit import KEY, holding, job_of
from tests.experiments.lives import REPOSITORY, checkpoints

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

INTERNET = "astral.sh|uv pip"
STEPS, EVERY = 4000, 200
SWEEP = f"""\
sweep: little
algorithms: [sac-hpo]
tasks: [Pendulum-v1]
seeds: 0-3
settings:
  steps: {STEPS}
  hidden_units: 16
  train_batch_size_per_learner: 16
  warmup_steps: 60
  evaluation_every: {EVERY}
  evaluation_episodes: 1
  checkpoint_every: 400
  steps_per_iteration: 50
"""
ALIVE = (
    'import ray; ray.init("auto", logging_level="ERROR"); print(sum(node["Alive"] for node in ray.nodes()))'
)
"""Script that counts the nodes on the head, in a quarter of the time of an `rllib-hpo doctor` job."""
TRIALS = [f"sac-hpo-Pendulum-v1-seed{seed}" for seed in range(4)]
OUT = SHARED / "little"


def local_yaml() -> str:
    """Return the file as an owner of these two machines fills it in."""
    text = (REPOSITORY / "cluster" / "local.yaml").read_text()
    for pattern, value in (
        (r"head_ip: .*", f"head_ip: {HEAD}"),
        (r"worker_ips: .*", f"worker_ips: [{WORKER}]"),
        (r"(?m)^max_workers: .*", "max_workers: 1"),
    ):
        text, number = re.subn(pattern, value, text)
        assert number == 1
    return text


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Run machines of four CPUs; one alone has room for all trials."""
    log = tmp_path_factory.mktemp("lab") / "sshd.log"
    variables = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 4}', "OMP_NUM_THREADS": "1"}
    # The memory that Ray watches is that of all tests under way.
    variables["RAY_memory_monitor_refresh_ms"] = "0"
    with running_lab(log, **variables) as running:
        running.make_token()
        yield running


@pytest.fixture(scope="module")
def cluster(lab: Lab) -> Path:
    """Bring up a cluster of both machines with a tunnel to its dashboard, and return its file."""
    (lab.home() / "filled_in.yaml").write_text(local_yaml())
    lab.run("rllib-hpo", "cluster", "check", str(HOME / "filled_in.yaml"))
    netrc = lab.home("head") / ".netrc"
    netrc.touch(mode=0o600)
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    file = brought_up(lab, local_yaml(), INTERNET, RAY_UP_enable_autoscaler_v2="0")
    lab.start("ray", "dashboard", str(file), stdout=subprocess.DEVNULL)
    lab.wait_for_port("127.0.0.1", 8265)
    wait_for_the_worker(lab)
    return file


def wait_for_the_worker(lab: Lab) -> None:
    """Wait until the head has started Ray on the worker, and it has joined."""
    wait_until(lambda: any("raylet/raylet" in line for line in lab.ray_processes("worker")))
    wait_until(lambda: lab.ssh("head", f"python -c '{ALIVE}' 2>/dev/null", code=None) == "2\n")


def hosts(root: Path, trial: str) -> list[str]:
    """Return the hosts of a trial, one per session."""
    events = read_events(root / "trials" / trial / EVENTS_FILE)
    return [event["host"] for event in events if event["event"] in ("started", "resumed")]


def newest(root: Path, trial: str) -> int:
    """Return the step of a trial's newest checkpoint, or 0."""
    return max(checkpoints(root / "trials" / trial), default=0)


def test_only_who_has_the_token_is_served(cluster: Path, lab: Lab) -> None:
    said = lab.run("rllib-hpo", "status", code=2, RAY_AUTH_MODE="disabled")
    assert said.startswith("Error: ")
    assert "requires a token (401)" in said
    assert len(said.splitlines()) == 1
    said = lab.run("rllib-hpo", "doctor", "--address", ADDRESS, "--shared", str(SHARED), code=None)
    assert said.count("\nok      node ") == 2
    assert f"all 2 nodes can access {SHARED.parent}" in said


@pytest.mark.exhaustive
def test_a_sweep_outlives_its_node_and_its_driver(cluster: Path, lab: Lab, tmp_path: Path) -> None:
    (lab.home() / "little.yaml").write_text(SWEEP)
    root = lab.root() / OUT.relative_to("/")
    words = ["rllib-hpo", "submit", str(HOME / "little.yaml"), "--out", str(OUT), "--wandb", "offline"]
    first = lab.start(*words)

    wait_until(lambda: all(newest(root, trial) > 0 for trial in TRIALS))
    moved = [trial for trial in TRIALS if hosts(root, trial) == ["worker"]]
    stayed = [trial for trial in TRIALS if hosts(root, trial) == ["head"]]
    assert len(moved) + len(stayed) == 4
    assert moved, "no trial runs on the worker"
    lab.ssh("worker", "pkill -9 -x raylet")
    before = {trial: newest(root, trial) for trial in moved}
    wait_until(lambda: all(newest(root, trial) > before[trial] for trial in moved))
    assert all(hosts(root, trial) == ["worker", "head"] for trial in moved)
    assert all(hosts(root, trial) == ["head"] for trial in stayed)

    lab.ssh("head", "pkill -9 -f '^python -m rllib_hpo.cli sweep'")
    out, _ = first.communicate(timeout=400)
    assert first.returncode == 2, out
    assert f"Error: The job {job_of(out)} failed: its process ended with exit code 137." in out
    wait_for_the_worker(lab)

    out = lab.run("rllib-hpo", "submit", "--resume", str(OUT), "--wandb", "offline")
    assert "4 done, 0 failed, 0 unfinished" in out
    assert {"head", "worker"} == {hosts(root, trial)[-1] for trial in TRIALS}
    shutil.copytree(root / "results", tmp_path / "results")  # the way there is no path that can be resolved
    steps = read_rows(tmp_path / "results")["env_steps"].to_pylist()
    assert sorted(steps) == sorted([*range(0, STEPS + 1, EVERY)] * 4)
    lab.run("rllib-hpo", "results", "check", str(OUT))


@pytest.mark.exhaustive
def test_with_storage_machines_need_share_no_disk(cluster: Path, lab: Lab) -> None:
    """Every machine works in its own home; the storage is a path instead of a bucket."""
    sweep = SWEEP.replace(f"steps: {STEPS}", "steps: 600").replace("sweep: little", "sweep: apart")
    (lab.home() / "apart.yaml").write_text(sweep)
    stored, out = f"file://{SHARED}/stored", HOME / "apart"
    words = ["--storage", stored, "--out", str(out), "--wandb", "disabled"]
    assert "4 done, 0 failed, 0 unfinished" in lab.run(
        "rllib-hpo", "submit", str(HOME / "apart.yaml"), *words
    )
    ran = {machine: list(lab.home(machine).glob("apart/trials/*/replay")) for machine in ("head", "worker")}
    assert all(ran.values())
    assert sum(map(len, ran.values())) == len(TRIALS)
    lab.run("rllib-hpo", "results", "check", f"{stored}/apart")


def test_neither_token_nor_key_is_in_any_file(cluster: Path, lab: Lab) -> None:
    token = (lab.home() / ".ray" / "auth_token").read_text()
    shared = lab.root() / SHARED.relative_to("/")
    for machine in ("head", "worker"):
        home, temporary = lab.home(machine), lab.root(machine) / "tmp" / "ray"
        assert holding(token, home, temporary, shared) == [home / ".ray" / "auth_token"]
        assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
        assert holding(KEY, home, temporary, shared) == [home / ".netrc"] * (machine == "head")
        leak = next(temporary.glob("session_2*/logs")) / "leak.log"
        leak.write_text(f"{token} {KEY}")
        assert [path.name for path in holding(KEY, temporary)] == ["leak.log"]
        leak.unlink()


def test_down_leaves_nothing_running(cluster: Path, lab: Lab) -> None:
    assert lab.ray_processes("head")
    assert lab.ray_processes("worker")
    lab.run("timeout", "400", "ray", "down", "-y", str(cluster), RAY_UP_enable_autoscaler_v2="0")
    for machine in ("head", "worker"):
        wait_until(lambda machine=machine: not lab.ray_processes(machine))
