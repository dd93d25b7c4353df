"""Simulate a workstation and two machines with sshd in namespaces (lab.sh), to run `ray up` as a user does.

Everything is inside those namespaces, so nothing remains when their first process ends; the kernel kills it when this
process dies for any reason. Labs are isolated from each other, and all have the same addresses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.experiments.lives import REPOSITORY

HERE = Path(__file__).parent
HOME = Path("/home/ray")
SHARED = Path("/srv/rllib-hpo")
"""Directory shared by all machines."""
HEAD, WORKER, WORKSTATION = "10.77.0.11", "10.77.0.12", "10.77.0.1"
ADDRESS = "http://127.0.0.1:8265"
"""The head's dashboard on the workstation, through the tunnel of `ray dashboard`."""
NAMESPACES = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
PROGRAMS = ("ip", "mount", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
PROBE = (
    "mount -o remount,bind,ro / && mount -t tmpfs probe /mnt && "
    "ip link add probe type bridge && ip link add one type veth peer name other"
)
"""Capabilities that lab.sh needs."""
CODE = {"PYTHONPATH": f"{HOME}/rllib-hpo", "RAY_worker_niceness": "0"}
"""Environment in which the package copied by `ray up` precedes the installed one, and workers are not starved."""


def missing(*programs: str) -> str:
    """Return why a lab is impossible on this machine; empty if it is possible."""
    if os.geteuid() != 0:
        return "it needs root, to make network namespaces"
    absent = [program for program in (*PROGRAMS, *programs) if shutil.which(program, path=PATH) is None]
    if absent:
        return f"it needs {', '.join(absent)} (Debian: iproute2, openssh-server, rsync, util-linux; awscli for aws)"
    command = ["unshare", *NAMESPACES, "sh", "-c", PROBE]
    probe = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": PATH})
    if probe.returncode:
        return f"namespaces are not permitted here: {(probe.stderr.strip().splitlines() or ['?'])[-1]}"
    return ""


class Lab:
    """Run commands in a running lab."""

    def __init__(self, first: psutil.Process) -> None:
        self._first = first

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command on the workstation, in the root of the repository; it ends with the lab at the latest."""
        variables = options.pop("variables", {})
        environment = {
            "HOME": str(HOME),
            "PATH": f"{HOME}/venv/bin{os.pathsep}{PATH}",
            "PYTHONPATH": str(REPOSITORY),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "AUTOSCALER_NODE_START_WAIT_S": "120",
            **variables,
        }
        enter = ["nsenter", "--target", str(self._first.pid), "--all", f"--wdns={REPOSITORY}"]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(
            [*enter, *words], env=environment, stdin=subprocess.DEVNULL, **{**streams, **options}
        )

    def run(self, *words: str, code: int | None = 0, timeout_s: float = 400, **variables: str) -> str:
        """Run a command to its end and return its output; the exit code must be `code`, unless that is None."""
        process = self.start(*words, variables=variables)
        try:
            printed, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise AssertionError(f"{words} goes on for {timeout_s} s: {error.output}") from error
        assert code in (None, process.returncode), f"{words}: {process.returncode}\n{printed[-4000:]}"
        return printed

    def ssh(self, machine: str, command: str, code: int | None = 0) -> str:
        """Run a command on a machine."""
        return self.run("ssh", "-o", "LogLevel=ERROR", f"ray@{machine}", command, code=code)

    def root(self, machine: str = "workstation") -> Path:
        """Return the path of a machine's files, as seen by this process."""
        return Path(f"/proc/{self._pid(machine)}/root")

    def home(self, machine: str = "workstation") -> Path:
        """Return the user's home directory on a machine."""
        return self.root(machine) / HOME.relative_to("/")

    def _pid(self, machine: str) -> int:
        if machine == "workstation":
            return self._first.pid
        (unshare,) = [each for each in self._first.children() if machine in each.cmdline()]
        return unshare.children()[0].pid

    def ray_processes(self, machine: str) -> list[str]:
        """Return the command lines of Ray's processes on a machine."""
        printed = self.ssh(machine, "ps -eo args=").splitlines()
        return [line for line in printed if "ray" in line and not line.startswith("sshd:")]

    def wait_for_port(self, address: str, port: int) -> None:
        """Wait until something listens on a port, as seen by the workstation."""
        connect = ["bash", "-c", f"</dev/tcp/{address}/{port}"]
        wait_until(lambda: "/dev/tcp" not in self.run(*connect, code=None))

    def make_token(self) -> str:
        """Make a cluster's token, as cluster/README.md says."""
        self.run("bash", "-c", "ray get-auth-token --generate >/dev/null 2>&1 && chmod 600 ~/.ray/auth_token")
        return (self.home() / ".ray" / "auth_token").read_text()


@contextmanager
def running_lab(log: Path, needs: Sequence[str] = (), **machines: str) -> Iterator[Lab]:
    """Run a lab, and end it with all its processes; skip the test where a lab is impossible.

    Args:
        log: File of the machines' sshd logs.
        needs: Further programs that the tests need.
        machines: Environment variables of every command on the machines.
    """
    if reason := missing(*needs):
        pytest.skip(reason)
    visible = sorted({str(REPOSITORY), os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)})
    variables = {
        "PATH": PATH,
        "VENV": os.path.realpath(sys.prefix),
        "MACHINE_ENVIRONMENT": "\n".join(f"{name}={value}" for name, value in {**CODE, **machines}.items()),
    }
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, str(HERE / "lab.sh"), *visible]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "\nready\n" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        (first,) = psutil.Process(process.pid).children()
        yield Lab(first)
    finally:
        process.kill()  # takes the first process of the lab along, and that everything else
        process.wait()


def brought_up(lab: Lab, text: str, offline: str, **variables: str) -> Path:
    """Run `ray up` with a file on the workstation, without its setup commands that need the Internet.

    Args:
        lab: The lab.
        text: Text of the file.
        offline: Pattern that matches those commands.
        variables: Environment variables of `ray up`.

    Returns:
        The file's path on the workstation.
    """
    name = f"{yaml.safe_load(text)['cluster_name']}.yaml"
    text, number = re.subn(rf"(?m)^  - .*({offline}).*", '  - ":"', text)
    assert number
    (lab.home() / name).write_text(text)
    lab.run("timeout", "400", "ray", "up", "-y", "--no-config-cache", str(HOME / name), **variables)
    return HOME / name


def wait_until(condition: Callable[[], bool], timeout_s: float = 400, poll_s: float = 0.3) -> None:
    """Wait until a condition holds, and fail after a time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(poll_s)
