"""Diagnose an installation or a cluster: small checks, each with a remedy."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import rllib_hpo
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.driver import DRIVERS, OLDER_CUDA, kernel_driver, needed_driver
from rllib_hpo.experiments.storage.file_system import LACKS, lacking, nearest_folder
from rllib_hpo.results.paths import absolute, is_writable
from rllib_hpo.rllib.cluster_address import check_cluster_address
from rllib_hpo.tasks.mujoco_version import MUJOCO_BELOW, is_papers

_ROOT = Path(rllib_hpo.__file__).parents[1]
_GIB = 1 << 30
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "gpfs", "beegfs"})
MUJOCO = "import gymnasium; e = gymnasium.make('Hopper-v5'); e.reset(seed=0); e.step(e.action_space.sample())"
PYBULLET = "import pybullet as p; c = p.connect(p.DIRECT); p.stepSimulation(c); p.disconnect(c)"
EGL = (
    "import mujoco; m = mujoco.MjModel.from_xml_string('<mujoco/>'); d = mujoco.MjData(m); "
    "mujoco.mj_forward(m, d); r = mujoco.Renderer(m, 32, 32); r.update_scene(d); r.render()"
)


class Check(NamedTuple):
    """Result of one check."""

    subject: str
    state: Literal["ok", "note", "problem"]
    found: str
    remedy: str = ""


def line(check: Check) -> str:
    """Format a check as a line."""
    remedy = f": {check.remedy}" if check.remedy else ""
    return f"{check.state:<8}{check.subject:<16}{check.found}{remedy}"


def all_checks(
    files: Sequence[Path] = (),
    address: str | None = None,
    shared: str = "~/runs",
    out: Path = Path("runs"),
) -> Iterator[Check]:
    """Check this machine, the directory of runs, files and a cluster, in turn."""
    yield from local_checks(out)
    for file in files:
        yield file_check(file)
    if address is not None:
        yield from cluster_checks(address, shared)


def local_checks(out: Path = Path("runs")) -> Iterator[Check]:
    """Check this machine and the directory of runs."""
    yield python_check(sys.version_info[:3])
    yield from version_checks(installed(), _ROOT / "constraints.txt")
    yield torch_check()
    yield process_check("MuJoCo", MUJOCO, "pip install 'gymnasium[mujoco]'")
    if (version := installed().get("mujoco")) is not None:
        yield physics_check(version)
    if sys.version_info < (3, 12):
        yield process_check("PyBullet", PYBULLET, "pip install pybullet pybullet-envs-gymnasium==0.6.0")
    yield egl_check()
    home = absolute("~") if home_is_known() else Path("/nonexistent")
    yield from folder_checks(home)
    yield wandb_check(os.environ, home / ".netrc")
    yield token_check(home / ".ray" / "auth_token")
    yield address_check()
    yield disk_check(out)
    yield file_system_check(out)
    yield open_files_check(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield shared_memory_check(Path("/dev/shm"))
    yield ray_results_check(home / "ray_results")


def home_is_known() -> bool:
    """Check that the user has a home folder, which a user with only a number may lack."""
    try:
        absolute("~")
    except UserError:
        return False
    return True


def folder_checks(home: Path) -> Iterator[Check]:
    """Check that the folders can be written that a run, a sweep or Tune uses besides the run's own."""
    temporary = Path(os.environ.get("TMPDIR") or "/tmp")
    if is_writable(temporary):
        yield Check("temporary", "ok", f"{temporary} is writable")
    else:
        yield Check(
            "temporary", "problem", f"{temporary} is not writable", "set TMPDIR to a writable directory"
        )
    if is_writable(home):
        yield Check("home", "ok", f"{home} is writable")
    else:
        remedy = (
            "runs do not need it; for a Ray token, `wandb login` and Tune's default directory set HOME to a "
            "writable one"
        )
        yield Check("home", "note", f"{home} is not writable", remedy)


def python_check(version: tuple[int, int, int]) -> Check:
    """Check the version of Python."""
    text = ".".join(map(str, version))
    if not (3, 11) <= version[:2] < (3, 14):
        return Check("Python", "problem", text, "recreate .venv with Python 3.11")
    if version[:2] > (3, 11):
        return Check("Python", "note", f"{text}, for which PyBullet has no wheels: its tasks are unavailable")
    return Check("Python", "ok", text)


def physics_check(version: str) -> Check:
    """Check whether MuJoCo simulates the papers' tasks as the papers had them."""
    below = ".".join(map(str, MUJOCO_BELOW))
    if not is_papers(version):
        found = f"MuJoCo {version} has other contacts than the papers' tasks had, which are refused"
        return Check("physics", "note", found, f"pip install 'mujoco<{below}' for those")
    return Check("physics", "ok", f"MuJoCo {version} is that of the papers' tasks")


def installed() -> dict[str, str]:
    """Versions of all installed packages, by normalised name."""
    return {
        _normal(name): each.version
        for each in importlib.metadata.distributions()
        if (name := each.metadata["Name"])
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def version_checks(versions: dict[str, str], constraints: Path) -> Iterator[Check]:
    """Compare installed versions with requirements, and with the versions that the tests pass with."""
    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in importlib.metadata.requires("rllib-hpo") or []]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    bad = [
        f"{each.name} {versions.get(_normal(each.name), 'missing')} (requires {each.specifier or 'any'})"
        for each in needed
        if not each.specifier.contains(versions.get(_normal(each.name), "0"), prereleases=True)
        or _normal(each.name) not in versions
    ]
    if bad:
        yield Check("packages", "problem", ", ".join(bad), "pip install -c constraints.txt -e .")
        return
    if not constraints.exists():
        yield Check(
            "packages", "ok", f"rllib-hpo {rllib_hpo.__version__}, all {len(needed)} requirements met"
        )
        return
    pinned = dict(text.split("==") for text in constraints.read_text().split() if "==" in text)
    names = [_normal(each.name) for each in needed]
    other = [
        f"{name} {versions[name]}, not {pinned[name]}"
        for name in names
        if name in pinned and versions[name].partition("+")[0] != pinned[name]
    ]
    if other:
        yield Check(
            "packages",
            "note",
            f"untested versions: {'; '.join(other)}",
            "pip install -c constraints.txt -e .",
        )
    else:
        yield Check("packages", "ok", f"rllib-hpo {rllib_hpo.__version__}, versions of constraints.txt")


def torch_check(driver: Path = Path("/proc/driver/nvidia/version")) -> Check:
    """Check that torch can use a GPU if there is one."""
    import torch

    built = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        return Check("GPU", "ok", f"{built}, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    if not driver.exists():
        return Check("GPU", "ok", f"{built}, no NVIDIA driver: training uses the CPU")
    if torch.version.cuda is None:
        return Check(
            "GPU",
            "problem",
            f"{built} has no CUDA, but an NVIDIA driver is installed",
            "install torch from PyPI",
        )
    return driver_check(built, torch.version.cuda, driver.read_text())


def driver_check(built: str, cuda: str, driver: str) -> Check:
    """Explain why torch finds no GPU although there is a driver: it is too old, or the GPU is hidden."""
    found = f"{built} (CUDA {cuda}) cannot use the driver {driver.splitlines()[0][:80]}"
    needed, there = needed_driver(cuda), kernel_driver(driver)
    hidden = "check whether CUDA_VISIBLE_DEVICES or the container hides the GPU"
    if there is not None and there >= needed:
        return Check("GPU", "problem", found, hidden)
    remedy = f"update the driver to {needed} or later"
    if needed > min(DRIVERS.values()):
        remedy += f", or install torch from {OLDER_CUDA}"
    return Check("GPU", "problem", found, remedy if there else f"{remedy}; otherwise {hidden}")


def process_check(subject: str, code: str, remedy: str) -> Check:
    """Check that code runs, in a process of its own, since a C library may crash it."""
    failed = _fails(code)
    return Check(subject, "problem", failed, remedy) if failed else Check(subject, "ok", "imports and steps")


def egl_check() -> Check:
    """Check that MuJoCo can render without a display."""
    failed = _fails(EGL, MUJOCO_GL="egl")
    if failed:
        remedy = "apt-get install libegl1 libgl1 for --video and --wandb-video; training does not need it"
        return Check("EGL", "note", f"no rendering ({failed})", remedy)
    return Check("EGL", "ok", "renders")


def _fails(code: str, **environment: str) -> str:
    """Run code in a process; returns the last line of its errors, or ""."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no response within two minutes"
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]


def wandb_check(environment: Any, netrc: Path) -> Check:
    """Check for a W&B login, without reading it out."""
    if environment.get("WANDB_API_KEY"):
        return Check(
            "W&B",
            "note",
            "a key in WANDB_API_KEY",
            "on the head node of a cluster prefer `wandb login`, which uses ~/.netrc",
        )
    try:
        logged_in = "api.wandb.ai" in netrc.read_text()
    except OSError:
        logged_in = False
    if not logged_in:
        return Check("W&B", "note", "no login: runs stay offline", "`wandb login` for --wandb online")
    if stat.S_IMODE(netrc.stat().st_mode) & 0o077:
        return Check("W&B", "problem", f"other users can read {netrc}", f"chmod 600 {netrc}")
    return Check("W&B", "ok", f"logged in through {netrc}")


def token_check(token: Path) -> Check:
    """Check that nobody else can read the token of a cluster."""
    if not token.exists():
        return Check(
            "Ray's token", "note", "none", "run `ray get-auth-token --generate` before starting a cluster"
        )
    if stat.S_IMODE(token.stat().st_mode) & 0o077:
        return Check("Ray's token", "problem", f"other users can read {token}", f"chmod 600 {token}")
    return Check("Ray's token", "ok", f"{token}, mode 0600")


def address_check() -> Check:
    """Check that the cluster of RAY_ADDRESS answers."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("RAY_ADDRESS", "ok", "not set: Ray runs on this machine")
    try:
        check_cluster_address()
    except UserError as error:
        return Check("RAY_ADDRESS", "problem", str(error))
    return Check("RAY_ADDRESS", "ok", address)


def disk_check(directory: Path, mounts: Path = Path("/proc/mounts")) -> Check:
    """Check space and kind of the file system of results."""
    place = nearest_folder(directory)
    free, kind = shutil.disk_usage(place).free, file_system(place, mounts)
    found = f"{directory}: {free / _GIB:.0f} GiB free, {kind}"
    if free < 2 * _GIB:
        return Check(
            "disk", "problem", found, "free some space, or use another --out: a replay of Humanoid takes 3 GB"
        )
    if kind == "tmpfs":
        return Check("disk", "note", found, "it is in memory and lost at a reboot; use another --out")
    if kind in _NETWORK or kind.startswith("fuse"):
        return Check("disk", "note", found, "network file system: a local --out with --storage is faster")
    return Check("disk", "ok", found)


def file_system_check(directory: Path) -> Check:
    """Check the features of the file system of runs; runs work without those that it lacks."""
    try:
        lacks = lacking(directory)
    except OSError as error:
        found = f"{directory} is not writable: {error.strerror or error}"
        return Check("file system", "problem", found, "use another --out, or get write permission")
    if lacks:
        remedy = "; ".join(dict.fromkeys(LACKS[what] for what in lacks))
        return Check("file system", "note", f"{directory} has no {', no '.join(lacks)}", remedy)
    return Check("file system", "ok", f"{directory} has {', '.join(LACKS)}")


def file_system(path: Path, mounts: Path) -> str:
    """Kind of a file system, as the kernel names it."""
    try:
        entries = [text.split()[1:3] for text in mounts.read_text().splitlines()]
    except OSError:
        return "file system unknown"
    around = [
        (where, kind) for where, kind in entries if path.resolve().is_relative_to(where.replace("\\040", " "))
    ]
    # Of two that are mounted at one place the later hides the earlier.
    return max(enumerate(around), key=lambda each: (len(each[1][0]), each[0]))[1][1] if around else "unknown"


def open_files_check(limit: int) -> Check:
    """Check the limit of open files, since Ray keeps hundreds open for each process."""
    if limit < 4_096:
        return Check("open files", "problem", f"at most {limit}", "run `ulimit -n 65536` before Ray starts")
    return Check("open files", "ok", f"at most {limit:,}")


def shared_memory_check(directory: Path) -> Check:
    """Check the size of shared memory: if it is small, Ray's object store uses the disk."""
    if not directory.is_dir():
        return Check("shared memory", "note", f"no {directory}")
    size = shutil.disk_usage(directory).total
    found = f"{directory}: {size / _GIB:.1f} GiB"
    if size < _GIB:
        return Check(
            "shared memory",
            "problem",
            found,
            "start the container with --shm-size=4g (Kubernetes: a memory volume)",
        )
    return Check("shared memory", "ok", found)


def ray_results_check(directory: Path) -> Check:
    """Check Tune's default directory, which other programs write to."""
    size = sum(
        file.lstat().st_size for file in directory.rglob("*") if not file.is_symlink() and file.is_file()
    )
    if size > _GIB:
        return Check(
            "ray_results",
            "note",
            f"{size / _GIB:.1f} GiB in {directory}",
            "not used by rllib-hpo; remove what is no longer needed",
        )
    return Check("ray_results", "ok", f"{size / _GIB:.1f} GiB in {directory}")


def file_check(file: Path) -> Check:
    """Check a sweep file, a search file or a cluster file."""
    from rllib_hpo.experiments.cluster.check import check_file
    from rllib_hpo.experiments.config.search_config import is_search, read_search
    from rllib_hpo.experiments.config.sweep_config import read_sweep

    try:
        if is_search(file):
            return Check(file.name, "ok", f"{read_search(file).file.trials} trials")
        if file.is_file() and re.search(r"^sweep:", file.read_text(), re.MULTILINE):
            return Check(file.name, "ok", f"{len(read_sweep(file).trials)} trials")
        problems = check_file(file)
    except UserError as error:
        problems = [str(error)]
    return Check(file.name, "problem", " ".join(problems)) if problems else Check(file.name, "ok", "")


def cluster_checks(address: str, shared: str) -> Iterator[Check]:
    """Check a cluster from this machine, and through a small job that asks each node."""
    from rllib_hpo.experiments.jobs import client as jobs

    try:
        client = jobs.connect(address)
    except UserError as error:
        yield Check("cluster", "problem", str(error))
        return
    yield Check(
        "cluster", "ok", f"{address} is reachable, accepts the token, and runs Ray {client.ray_version}"
    )
    try:
        asked = jobs.ask_nodes(client, shared)
    except UserError as error:
        yield Check("nodes", "problem", str(error))
        return
    from rllib_hpo.results.provenance import git_commit

    yield from node_checks(asked["nodes"], asked["directory"], rllib_hpo.__version__, git_commit())


def node_checks(
    nodes: Sequence[dict[str, Any]], directory: str, version: str, commit: str
) -> Iterator[Check]:
    """Check the reports of a cluster's nodes.

    Args:
        nodes: As `nodes.report` makes them.
        directory: Which they were asked to see.
        version: Of this package, here.
        commit: And its commit, or nothing.
    """
    for node in nodes:
        what = f"{node['name']}: {node['resources']['CPU']:g} CPUs, {node['resources']['GPU']:g} GPUs"
        if node["version"] is None:
            yield Check(
                "node", "problem", f"{what}, cannot import rllib_hpo ({node['error']})", "install it there"
            )
        elif node["version"] != version:
            yield Check(
                "node",
                "problem",
                f"{what}, rllib_hpo {node['version']}, this machine {version}",
                "install the same version",
            )
        elif node["commit"] and commit and node["commit"] != commit:
            found = f"{what}, commit {node['commit'][:12]}, this machine {commit[:12]}"
            yield Check("node", "note", found, "their rows would come from different commits")
        else:
            yield Check("node", "ok", f"{what}, rllib_hpo {node['version']}, Python {node['python']}")
    blind = [node["name"] for node in nodes if node["sees"] is False]
    if blind:
        remedy = "give sweeps --storage, or an --out that all nodes share"
        yield Check("shared storage", "problem", f"{', '.join(blind)} cannot access {directory}", remedy)
    else:
        yield Check("shared storage", "ok", f"all {len(nodes)} nodes can access {directory}")
    skewed = [f"{node['name']} {node['ahead_s']:+.1f} s" for node in nodes if abs(node["ahead_s"] or 0.0) > 2]
    if skewed:
        yield Check("clocks", "note", f"they differ: {', '.join(skewed)}", "run chrony or ntpd on all nodes")
    else:
        yield Check("clocks", "ok", "within 2 s")
