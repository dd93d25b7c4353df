"""Run a Ray cluster of one node on this machine that requires its token, and let nodes join it."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.experiments.lives import CLI, REPOSITORY

RAY = str(Path(sys.executable).parent / "ray")
START_ATTEMPTS, START_PATIENCE_S = 3, 120.0


@dataclass
class TokenCluster:
    """Run commands against a running cluster."""

    root: Path
    ray: Path
    """Ray's temporary directory: sessions, logs, packages."""
    token: str
    address: str
    gcs: str

    def environment(self, token: str | None = "", **more: str) -> dict[str, str]:
        """Return the environment of a client: with this cluster's token, another, or none."""
        home = Path(tempfile.mkdtemp(dir=self.root, prefix="home"))
        own = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "WANDB_", "XDG_"))
        }
        own |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HOME": str(home)}
        own |= {"RAY_TMPDIR": str(self.ray), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        if token is not None:
            (home / ".ray").mkdir(mode=0o700)
            path = home / ".ray" / "auth_token"
            path.touch(mode=0o600)
            path.write_text(token or self.token)
            own["RAY_AUTH_MODE"] = "token"
        return {**own, **more}

    def start(self, *words: str, token: str | None = "", **more: str) -> subprocess.Popen[str]:
        """Start `rllib-hpo WORDS` in a session of its own."""
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
        """Run it to the end, with any exit code if that is None; return stdout and stderr."""
        process = self.start(*words, token=token)
        out, err = process.communicate(timeout=540)
        assert code in (None, process.returncode), (process.returncode, out, err)
        return out, err


def free_ports(number: int) -> list[int]:
    """Return free ports below those that the kernel assigns to connections."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_768), 1_000):
        with suppress(OSError):
            socket.create_server(("", port)).close()
            found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no port is free")


@contextmanager
def ended_with_all_it_started(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End what this process started and nothing else; `ray stop` would end other users' Ray too."""
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
    """Run a cluster; GPUs and the machines that its autoscaler starts are pretended."""
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
        with ExitStack() as stack:
            started(stack, lambda: command, cluster, root / "head.log", **variables)
            _wait_for_dashboard(cluster)
            yield cluster
    finally:
        shutil.rmtree(ray, ignore_errors=True)


@contextmanager
def node(
    command: Sequence[str], cluster: TokenCluster, log: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a node while the context lasts; yield the ancestor of all its processes."""
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


def started(
    stack: ExitStack, command: Callable[[], Sequence[str]], cluster: TokenCluster, log: Path, **variables: str
) -> subprocess.Popen[bytes]:
    """Start a node; on a busy machine Ray's limit of 30 s may need one or two retries."""
    for _ in range(START_ATTEMPTS):
        with ExitStack() as attempt:
            process = attempt.enter_context(node(command(), cluster, log, **variables))
            deadline = time.monotonic() + START_PATIENCE_S
            while process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in log.read_text():
                    stack.enter_context(attempt.pop_all())
                    return process
                time.sleep(0.1)
    raise AssertionError(log.read_text())


def joining(cluster: TokenCluster, num_cpus: int = 1, more: Sequence[str] = ()) -> list[str]:
    """Return the command of another node on this machine; `more` words go to `ray start`."""
    (agent,) = free_ports(1)
    return [
        *(RAY, "start", "--block", f"--address={cluster.gcs}", "--node-ip-address=127.0.0.1"),
        *(f"--num-cpus={num_cpus}", f"--dashboard-agent-listen-port={agent}", "--num-gpus=0"),
        *("--object-store-memory=100000000", *more),
    ]


def _wait_for_dashboard(cluster: TokenCluster) -> None:
    host, port = cluster.address.removeprefix("http://").split(":")
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError((cluster.root / "head.log").read_text())
