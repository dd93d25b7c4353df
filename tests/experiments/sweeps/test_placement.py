"""Test placement of learners on GPU nodes and rollouts on CPU nodes, on real clusters with a pretended GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from rllib_hpo.rllib.checkpointing import read_manifest
from tests.experiments.lives import CLI
from tests.experiments.sweeps.test_sweep import rows
from tests.experiments.token_cluster import TokenCluster, joining, started, token_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

STEPS, WARMUP = 20_000, 60
SWEEP = f"""\
sweep: placed
algorithms: [sac]
tasks: [Pendulum-v1]
seeds: 0
settings:
  steps: {STEPS}
  hidden_units: 16
  train_batch_size_per_learner: 16
  warmup_steps: {WARMUP}
  evaluation_every: 500
  evaluation_episodes: 1
  checkpoint_every: 1000
  steps_per_iteration: 100
"""
TIMEOUT_S = 400.0
TRIAL = "sac-Pendulum-v1-seed0"
REMOTE = SWEEP.replace("settings:\n", "settings:\n  num_learners: 1\n")
FOR_ROLLOUTS = ("--resources", json.dumps({"rollouts": 1}))
PRETENDED = (
    "--gpus-per-learner",
    "0.5",
    "--num-env-runners",
    "2",
    "--import",
    "tests.experiments.pretended_gpu",
)
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
STATE = """
import json, ray
from ray.util.state import list_actors
ray.init(logging_level="ERROR")
nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
actors = list_actors(detail=True, limit=1000)
print(json.dumps({"nodes": nodes, "actors": [vars(actor) for actor in actors]}, default=str))
"""


@contextmanager
def swept(cluster: TokenCluster, *words: str, sweep: str = SWEEP) -> Iterator[subprocess.Popen[bytes]]:
    """Run the sweep from the head; output goes to a file, since workers' logs may exceed a pipe's buffer."""
    (cluster.root / "placed.yaml").write_text(sweep)
    with (cluster.root / "printed").open("wb") as printed:
        process = subprocess.Popen(
            [*CLI, "sweep", "placed.yaml", "--out", "out", "--wandb", "disabled", *words],
            cwd=cluster.root, env=cluster.environment(RAY_ADDRESS=cluster.gcs), stdout=printed, stderr=printed,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(condition: Callable[[], Any], cluster: TokenCluster, process: subprocess.Popen[bytes]) -> Any:
    """Poll until a condition holds, while the process lives."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert process.poll() is None, (cluster.root / "printed").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def wait_for_nodes(cluster: TokenCluster, number: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(state(cluster)["nodes"]) < number:
        assert time.monotonic() < deadline


def events(cluster: TokenCluster) -> list[str]:
    path = cluster.root / "out" / "trials" / TRIAL / EVENTS_FILE
    return [event["event"] for event in read_events(path)] if path.exists() else []


def state(cluster: TokenCluster) -> dict[str, Any]:
    """Return living nodes with their resources, and actors, from Ray's state API."""
    done = subprocess.run(
        [sys.executable, "-c", STATE],
        env=cluster.environment(RAY_ADDRESS=cluster.gcs), capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def actors(cluster: TokenCluster, *kinds: str) -> list[list[dict[str, Any]]]:
    """Return living actors of each class, at one moment, each with the resources of its node."""
    found = state(cluster)
    alive = [
        {**actor, "node": found["nodes"][actor["node_id"]]}
        for actor in found["actors"]
        if actor["state"] == "ALIVE" and actor["node_id"] in found["nodes"]
    ]
    return [[actor for actor in alive if kind in actor["class_name"]] for kind in kinds]


def runners_of(cluster: TokenCluster) -> list[dict[str, Any]]:
    """Return living environment runners."""
    (runners,) = actors(cluster, "EnvRunner")
    return runners


def assert_apart(cluster: TokenCluster) -> list[dict[str, Any]]:
    """Check that the trial's process, with its learner, is on a GPU node and both runners on others; return those."""
    (trial,), runners = actors(cluster, "Trainable", "EnvRunner")
    assert trial["node"].get("GPU") == 1
    assert len(runners) == 2
    assert all("rollouts" in runner["node"] and "GPU" not in runner["node"] for runner in runners)
    return runners


def assert_whole(cluster: TokenCluster, process: subprocess.Popen[bytes]) -> None:
    """Check the result: every row once, updates as scheduled, every counted transition in the replay."""
    assert process.wait(1200) == 0, (cluster.root / "printed").read_text()
    table = rows(cluster.root / "out").to_pylist()
    assert [row["env_steps"] for row in table] == list(range(0, STEPS + 1, 500))
    assert [row["updates"] for row in table] == [max(0, row["env_steps"] - WARMUP) for row in table]
    checkpoint = (cluster.root / "out" / "trials" / TRIAL / "checkpoints" / "last").resolve()
    manifest = read_manifest(checkpoint)
    assert manifest["env_steps"] == STEPS
    segments = manifest["replay"]["segments"]
    assert [segment["start"] for segment in segments] == [0, *(segment["end"] for segment in segments[:-1])]
    assert segments[-1]["end"] == STEPS


def test_learner_and_runners_are_apart_and_all_runners_may_die(tmp_path: Path) -> None:
    with ExitStack() as opened:
        cluster = opened.enter_context(token_cluster(tmp_path, num_cpus=4, num_gpus=1))
        started(opened, partial(joining, cluster, 2, FOR_ROLLOUTS), cluster, tmp_path / "cpu.log")
        wait_for_nodes(cluster, 2)
        process = opened.enter_context(swept(cluster, *PRETENDED))
        wait_until(lambda: "evaluated" in events(cluster), cluster, process)
        runners = assert_apart(cluster)
        for runner in runners:
            os.kill(runner["pid"], signal.SIGKILL)
        replaced = wait_until(
            lambda: [each for each in runners_of(cluster) if int(each["num_restarts"]) == 1],
            cluster,
            process,
        )
        assert all("rollouts" in runner["node"] for runner in replaced)
        assert_whole(cluster, process)
        assert events(cluster).count("started") == 1
        assert not {"resumed", "failed"} & set(events(cluster))


@pytest.mark.exhaustive
def test_a_lost_node_of_runners_is_replaced_by_another(tmp_path: Path) -> None:
    with ExitStack() as opened:
        cluster = opened.enter_context(token_cluster(tmp_path, num_cpus=4, num_gpus=1))
        lost = opened.enter_context(ExitStack())
        started(lost, partial(joining, cluster, 2, FOR_ROLLOUTS), cluster, tmp_path / "lost.log")
        wait_for_nodes(cluster, 2)
        process = opened.enter_context(swept(cluster, *PRETENDED))
        wait_until(lambda: "evaluated" in events(cluster), cluster, process)
        before = assert_apart(cluster)
        raylet = psutil.Process(before[0]["pid"]).parent()
        assert raylet is not None
        for each in [raylet, *raylet.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # the raylet's end is that of its children
                each.kill()
        lost.close()
        started(opened, partial(joining, cluster, 2, FOR_ROLLOUTS), cluster, tmp_path / "other.log")
        nodes_before = {runner["node_id"] for runner in before}
        # The lost node may count as alive for a little.
        after = wait_until(
            lambda: [each for each in runners_of(cluster) if each["node_id"] not in nodes_before],
            cluster,
            process,
        )
        assert all("rollouts" in runner["node"] for runner in after)
        assert_whole(cluster, process)
        assert events(cluster).count("started") == 1


@pytest.mark.exhaustive
def test_a_remote_learner_on_another_node_s_disk_is_refused(tmp_path: Path) -> None:
    """A file system in a private namespace hides the second node's directory."""
    (tmp_path / "out").mkdir()
    hidden = f'mount -t tmpfs none {tmp_path}/out && exec "$@"'
    with ExitStack() as opened:
        cluster = opened.enter_context(token_cluster(tmp_path, num_cpus=1))
        unshared = ["unshare", "--mount", "sh", "-c", hidden, "sh"]
        started(opened, lambda: [*unshared, *joining(cluster)], cluster, tmp_path / "second.log")
        wait_for_nodes(cluster, 2)
        process = opened.enter_context(swept(cluster, "--storage", str(tmp_path / "store"), sweep=REMOTE))
        assert process.wait(TIMEOUT_S) == 2
        error = tmp_path / "out" / "trials" / TRIAL / "error.txt"
        assert "A remote learner is on a node that cannot access" in error.read_text()


@pytest.mark.parametrize("version", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_nodes_of_both_kinds_are_started_on_demand(version: int, tmp_path: Path) -> None:
    """There are none at first; Ray's own autoscaler starts them, on this machine."""
    cpus, head = {"CPU": 2, "rollouts": 1}, "f" * 51 + "00000"
    node_types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        "cpu": {"resources": cpus, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    provider: dict[str, Any] = {"type": "external", "module": PROVIDER}
    provider |= {"disable_node_updaters": True, "foreground_node_launch": True}
    provider |= {
        "disable_launch_config_check": True,
        "worker_liveness_check": False,
        "use_node_id_as_ip": True,
    }
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    variables["RAY_enable_autoscaler_v2"] = str(version - 1)
    if version == 2:
        provider |= {"launch_multiple": True, "head_node_id": head}
        variables |= {"RAY_CLOUD_INSTANCE_ID": head, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head}
    lists = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
    lists += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude"]
    config = {
        "cluster_name": "zero",
        "max_workers": 2,
        "idle_timeout_minutes": 10,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": node_types,
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }
    with ExitStack() as opened:
        cluster = opened.enter_context(token_cluster(tmp_path, 0, autoscaling=config, **variables))
        with swept(cluster, *PRETENDED[:2], "--num-env-runners", "3") as process:
            assert process.wait(TIMEOUT_S) == 2
        said = "requests 3 CPUs for rollouts, but the nodes that declare 'rollouts' have 2"
        assert said in " ".join((tmp_path / "printed").read_text().split())
        assert not (tmp_path / "out").exists()  # a refused start leaves none
        process = opened.enter_context(swept(cluster, *PRETENDED))
        wait_until(lambda: "evaluated" in events(cluster), cluster, process)
        assert_apart(cluster)
