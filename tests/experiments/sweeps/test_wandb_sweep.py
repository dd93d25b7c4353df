"""Test a real sweep with Weights & Biases offline: what its files hold, and that none holds the account's key."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rllib_hpo.experiments.runs.evaluate import evaluate_checkpoint
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore
from rllib_hpo.experiments.sweeps.dashboard import DIAGNOSTICS, LOSSES
from rllib_hpo.results import read_rows, trial_id
from tests.experiments.fake_wandb import fake_server
from tests.experiments.lives import CLI, REPOSITORY
from tests.experiments.wandb_file import WandbFile, read_wandb_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "5eed5a1adc0ffee5a1ad0ddba115eed5a1adbead"  # of nobody; W&B wants 40 digits
SWEEP = """\
sweep: little
algorithms: [sac, sac-hpo]
tasks: [Pendulum-v1]
seeds: 0
settings:
  steps: 400
  hidden_units: 16
  train_batch_size_per_learner: 16
  warmup_steps: 60
  evaluation_every: 100
  evaluation_episodes: 1
  checkpoint_every: 200
  steps_per_iteration: 50
  diagnostics_interval: 30
variants:
  default: {}
  k-1: {settings: {leapfrog_steps: 1}, algorithms: [sac-hpo]}
"""
ALL = ("sac-Pendulum-v1-seed0", "sac-hpo-Pendulum-v1-seed0", "sac-hpo-k-1-Pendulum-v1-seed0")


@dataclass
class Lived:
    """Files and processes of one sweep."""

    root: Path
    ray: Path
    code: int = 0
    printed: str = ""
    arguments_with_key: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set, repr=False)
    """Arguments of all processes while it ran."""

    @property
    def sweep(self) -> Path:
        return self.root / "sweep"

    @property
    def places(self) -> tuple[Path, ...]:
        return (self.root, self.ray)

    def trial(self, name: str) -> Path:
        return self.sweep / "trials" / name

    def wandb(self, name: str) -> WandbFile:
        (path,) = self.trial(name).glob("wandb/offline-run-*/*.wandb")
        return read_wandb_file(path)


def run_sweep(lived: Lived, *options: str, **environment: str) -> Lived:
    """Run the sweep with its key in the environment and in ~/.netrc, and watch it all the time."""
    home, file = lived.root / "home", lived.root / "little.yaml"
    (lived.root / "cwd").mkdir()
    home.mkdir()
    file.write_text(SWEEP)
    netrc = home / ".netrc"
    netrc.touch(mode=0o600)
    hosts = ("api.wandb.ai", environment.get("WANDB_BASE_URL", "").removeprefix("http://"))
    netrc.write_text("".join(f"machine {host}\n  login user\n  password {KEY}\n" for host in hosts if host))
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    own |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HOME": str(home)}
    own |= {"RAY_TMPDIR": str(lived.ray), "WANDB_API_KEY": KEY, **environment}
    process = subprocess.Popen(
        [*CLI, "sweep", str(file), "--out", str(lived.sweep), *options],
        cwd=lived.root / "cwd",
        env={name: value for name, value in own.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(lived, ended))
    watcher.start()
    try:
        lived.printed, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        ended.set()
        watcher.join()
    lived.code = process.returncode
    return lived


def _watch(lived: Lived, ended: threading.Event) -> None:
    while not ended.is_set():
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            lived.seen.add(arguments)
            if KEY in arguments:
                lived.arguments_with_key.add(arguments)
        time.sleep(0.05)


def holding_key(*places: Path) -> list[Path]:
    """Return files whose name or content holds the key, plain or HTTP-encoded; pipes and sockets hold nothing."""
    secrets = (KEY.encode(), base64.b64encode(f"api:{KEY}".encode()))
    found = []
    for place in places:
        for path in place.rglob("*"):
            if KEY in path.name:
                found.append(path)
            elif path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                if any(secret in content for secret in secrets):
                    found.append(path)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Make folders for Ray's sessions, with short paths, since they hold sockets; remove them at the end."""
    made: list[Path] = []
    yield made
    for path in made:
        shutil.rmtree(path, ignore_errors=True)


def new(root: Path, folders: list[Path]) -> Lived:
    folders.append(Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")))
    return Lived(root, folders[-1])


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, folders: list[Path]) -> Lived:
    lived = run_sweep(new(tmp_path_factory.mktemp("offline"), folders), "--wandb-artifacts", "--wandb-video")
    assert lived.code == 0, lived.printed
    return lived


def test_the_key_is_in_no_file_and_no_argument(offline: Lived) -> None:
    assert any("raylet" in arguments for arguments in offline.seen)
    assert any("wandb-core" in arguments for arguments in offline.seen)
    assert list(offline.ray.rglob("raylet.out"))
    assert offline.arguments_with_key == set()
    assert KEY not in offline.printed
    assert holding_key(*offline.places) == [offline.root / "home" / ".netrc"]


@pytest.mark.parametrize("planted", [KEY, base64.b64encode(f"api:{KEY}".encode()).decode()])
def test_a_key_that_leaks_would_be_found(offline: Lived, planted: str) -> None:
    leaks = [place / "leak.log" for place in (offline.ray, offline.sweep, offline.trial(ALL[0]) / "wandb")]
    try:
        for leak in leaks:
            leak.write_text(f"Authorization: {planted}\n")
        assert {*leaks} <= {*holding_key(*offline.places)}
    finally:
        for leak in leaks:
            leak.unlink()


def test_a_key_among_arguments_would_be_seen(tmp_path: Path) -> None:
    lived, ended = Lived(tmp_path, tmp_path), threading.Event()
    watcher = threading.Thread(target=_watch, args=(lived, ended))
    watcher.start()
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1)", KEY], check=True)
    ended.set()
    watcher.join()
    assert len(lived.arguments_with_key) == 1


@pytest.mark.parametrize("name", ALL)
def test_each_trial_is_a_run(name: str, offline: Lived) -> None:
    run = offline.wandb(name)
    algorithm = "sac-hpo" if "hpo" in name else "sac"
    variants = ["k-1"] if "k-1" in name else []
    assert run.run_id == trial_id(offline.trial(name))
    assert run.name == "-".join([algorithm, *variants, "Pendulum-v1", "0"])
    assert (run.group, run.job_type) == ("little/Pendulum-v1", algorithm)
    assert run.tags == ["little", "Pendulum-v1", algorithm, *variants]  # here task and env_id are one
    assert run.step_metrics == {"*": "env_steps"}
    assert run.exit_code == 0
    wanted = {"sweep": "little", "variant": (*variants, "default")[0], "env_id": "Pendulum-v1"}
    wanted |= {"algorithm": algorithm, "task": "Pendulum-v1", "seed": 0, "steps": 400, "hidden_units": 16}
    wanted |= {"gamma": 0.99, "warmup_steps": 60}
    assert {key: run.config[key] for key in wanted} == wanted
    if variants:
        assert run.config["leapfrog_steps"] == 1


@pytest.mark.parametrize("name", ALL)
def test_history_holds_the_rows_and_the_diagnostics(name: str, offline: Lived) -> None:
    run = offline.wandb(name)
    rows = [row for row in read_rows(offline.sweep / "results").to_pylist() if row["trial_id"] == run.run_id]
    history = [row for row in run.history if "tasks/Pendulum-v1/return_mean" in row]
    points = [(row["env_steps"], row["tasks/Pendulum-v1/return_mean"]) for row in history]
    assert points == [(row["env_steps"], pytest.approx(row["return_mean"])) for row in rows]
    assert [step for step, _ in points] == [0, 100, 200, 300, 400]
    assert all("env_steps" in row for row in run.history)
    logged = {metric for row in run.history for metric in row}
    diagnostics = {f"learner/{metric}" for metric in DIAGNOSTICS}
    assert {f"learner/{metric}" for metric in LOSSES} <= logged
    assert diagnostics & logged == (diagnostics if "hpo" in name else set())
    assert {"train/return_mean", "evaluation/return_mean", "evaluation/return_std"} <= logged


@pytest.mark.parametrize("name", ALL)
def test_checkpoints_are_models_without_replay(name: str, offline: Lived, tmp_path: Path) -> None:
    models = offline.wandb(name).models
    assert [model.metadata["env_steps"] for model in models] == [200, 400]
    assert {(model.name, model.type) for model in models} == {
        (f"model-{trial_id(offline.trial(name))}", "model")
    }
    assert all("latest" in model.aliases for model in models)
    best = (offline.trial(name) / "checkpoints" / "best").resolve()
    marked = [model.metadata["env_steps"] for model in models if "best" in model.aliases]
    assert best.name == f"step-{marked[-1]:010d}"
    for model in models:
        assert "manifest.json" in model.files
        assert not [file for file in model.files if file.endswith(".npy")]
        # They outlive the checkpoints, and lie where `wandb sync` finds them later.
        assert all(copy.is_relative_to(offline.trial(name) / "wandb") for copy in model.files.values())
        assert sum(copy.stat().st_size for copy in model.files.values()) < 1_000_000
    for file, copy in models[-1].files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(copy, tmp_path / file)
    last = CheckpointStore(offline.trial(name)).directory / "last"
    assert evaluate_checkpoint(tmp_path, 1)[0].returns == evaluate_checkpoint(last, 1)[0].returns


@pytest.mark.parametrize("where", ["environment", pytest.param("netrc", marks=pytest.mark.exhaustive)])
def test_an_online_trial_finds_the_key_and_tells_it_the_server_only(
    where: str, tmp_path: Path, folders: list[Path]
) -> None:
    """The server rejects it, and the trial's error gives the reason without the key."""
    with fake_server() as server:
        lived = run_sweep(
            new(tmp_path, folders),
            *("--wandb", "online", "--only", "algorithm=sac"),
            WANDB_BASE_URL=server.url,
            **({} if where == "environment" else {"WANDB_API_KEY": ""}),
        )
    assert lived.code == 2, lived.printed
    (error,) = (lived.trial(ALL[0]) / "error.txt").read_text().splitlines()
    assert error.startswith("Weights & Biases could not start in mode 'online'")
    assert base64.b64encode(f"api:{KEY}".encode()).decode() in server.authorizations
    assert lived.arguments_with_key == set()
    assert KEY not in lived.printed
    assert holding_key(*lived.places) == [lived.root / "home" / ".netrc"]


def test_disabled_imports_no_wandb_anywhere(tmp_path: Path, folders: list[Path]) -> None:
    """A module that cannot be imported replaces it, with all other options on.

    Ray itself looks for wandb in the driver, where it counts the kinds of Tune's callbacks; trials never do.
    """
    trap = tmp_path / "trap"
    (trap / "wandb").mkdir(parents=True)
    (trap / "wandb" / "__init__.py").write_text(
        f"import os, traceback\n"
        f"open({str(tmp_path / 'imported')!r} + str(os.getpid()), 'a').write(''.join(traceback.format_stack()))\n"
        f"raise ImportError('wandb is not for this run')\n"
    )
    options = ("--wandb", "disabled", "--wandb-artifacts", "--wandb-video", "--only", "algorithm=sac")
    lived = run_sweep(new(tmp_path, folders), *options, PYTHONPATH=f"{trap}{os.pathsep}{REPOSITORY}")
    assert lived.code == 0, lived.printed
    imports = [path.read_text() for path in tmp_path.glob("imported*")]
    assert all("_count_callbacks" in stack and "wandb_logger" not in stack for stack in imports), imports
    assert len(imports) <= 1
    assert not (lived.trial(ALL[0]) / "wandb").exists()
    assert read_rows(lived.sweep / "results").num_rows == 5
