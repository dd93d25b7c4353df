"""A Ray cluster of one node on this machine that lets nobody in without its token, and whatever joins it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.experiments.lives import CLI, REPOSITORY

RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class TokenCluster:
    """One that is running."""

    root: Path
    ray: Path
    """Its temporary directory: sessions, logs, packages."""
    token: str
    address: str
    gcs: str

    def environment(self, token: str | None = "", **more: str) -> dict[str, str]:
        """Of a client: with this cluster's token, another, or none."""
        home = Path(tempfile.mkdtemp(dir=self.root, prefix="home"))
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "WANDB_", "XDG_"))
        }
        own |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HOME": str(home)}
        own |= {"RAY_TMPDIR": str(self.ray), "RAY_USAGE_STATS_ENABLED": "0"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        if token is not None:
            (home / ".ray").mkdir(mode=0o700)
            path = home / ".ray" / "auth_token"
            path.touch(mode=0o600)
            path.write_text(token or self.token)
            own["RAY_AUTH_MODE"] = "token"
        return {**own, **more}

    def start(self, *words: str, token: str | None = "", **more: str) -> subprocess.Popen[str]:
        """`rllib-hpo WORDS`, in a session of its own."""
        return subprocess.Popen(
            [*CLI, *words],
            cwd=self.root,
            env=self.environment(token, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, code: int | None = 0, token: str | None = "") -> tuple[str, str]:
        """The same to its end, with any exit code if that is None; stdout and stderr."""
        process = self.start(*words, token=token)
        out, err = process.communicate(timeout=240)
        assert code in (None, process.returncode), (process.returncode, out, err)
        return out, err


def free_ports(number: int) -> list[int]:
    """Ports that nobody uses at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def ended_with_all_it_started(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """`ray stop` would end other people's Ray too: what this process started is ended, and nothing else."""
    try:
        yield
    finally:
        started = _descendants(process.pid)
        process.send_signal(signal.SIGTERM)  # ends its own children in order
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for each in {*started, *(child for one in started if one.is_running() for child in _children(one))}:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(started, timeout=10)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return _children(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


@contextmanager
def token_cluster(
    root: Path,
    num_cpus: int = 2,
    num_gpus: int = 0,
    autoscaling: Mapping[str, Any] | None = None,
    **variables: str,
) -> Iterator[TokenCluster]:
    """Starts one, and ends it; GPUs are pretended, and so are machines that its autoscaler starts."""
    ray = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))  # sockets want short paths
    gcs, dashboard, agent, client = free_ports(4)
    cluster = TokenCluster(
        root, ray, secrets.token_hex(32), f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
    )
    command = [
        *(RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}"),
        *(f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *(f"--temp-dir={ray}", "--object-store-memory=200000000", f"--num-gpus={num_gpus}"),
    ]
    if autoscaling is not None:
        path = root / "autoscaling.json"
        path.write_text(
            json.dumps(autoscaling | {"provider": autoscaling["provider"] | {"gcs_address": cluster.gcs}})
        )
        command.append(f"--autoscaling-config={path}")
    try:
        with node(command, cluster, root / "head.log", **variables):
            _wait_for_dashboard(cluster)
            yield cluster
    finally:
        shutil.rmtree(ray, ignore_errors=True)


@contextmanager
def node(
    command: Sequence[str], cluster: TokenCluster, log: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A node that runs as long as the context lasts; the process that all of its others descend from."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command),
            cwd=cluster.root,
            env=cluster.environment(**variables),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with ended_with_all_it_started(process):
            yield process


def joining(cluster: TokenCluster, num_cpus: int = 1, more: Sequence[str] = ()) -> list[str]:
    """The command of another node on this machine; `more` words go to `ray start`."""
    (agent,) = free_ports(1)
    return [
        *(RAY, "start", "--block", f"--address={cluster.gcs}", "--node-ip-address=127.0.0.1"),
        *(f"--num-cpus={num_cpus}", f"--dashboard-agent-listen-port={agent}", "--num-gpus=0"),
        *("--object-store-memory=100000000", *more),
    ]


def _wait_for_dashboard(cluster: TokenCluster) -> None:
    host, port = cluster.address.removeprefix("http://").split(":")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError((cluster.root / "head.log").read_text())
