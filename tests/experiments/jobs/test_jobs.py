"""Test sweeps as jobs, without a cluster: what is sent, how it ends, and how failures are reported."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import requests
from ray.exceptions import AuthenticationError

import rllib_hpo
from rllib_hpo.cli.jobs import sweep_request
from rllib_hpo.errors import StorageError, UserError
from rllib_hpo.experiments.jobs import client as jobs
from rllib_hpo.experiments.jobs import request as job_request
from rllib_hpo.experiments.jobs import results as job_results
from rllib_hpo.experiments.jobs.client import Job, Request

ADDRESS = "http://127.0.0.1:8265"
ROOT = Path(__file__).resolve().parents[3]
SWEEP = "sweep: little\nalgorithms: [sac]\ntasks: [Pendulum-v1]\nseeds: 0\n"
JOB = Job("little-1", "RUNNING", None, "", "little", "", "", None)


class FakeClient:
    """Answer as Ray's client does."""

    ray_version = ray.__version__

    def __init__(self, *details: Any, logs: tuple[Any, ...] = ()) -> None:
        self.details, self.logs, self.sent = list(details), list(logs), dict[str, Any]()

    def get_address(self) -> str:
        return ADDRESS

    def list_jobs(self) -> list[Any]:
        return self.details

    def get_job_info(self, job_id: str) -> Any:
        found = self.details.pop(0) if len(self.details) > 1 else self.details[0]
        if isinstance(found, Exception):
            raise found
        return found

    def submit_job(self, **sent: Any) -> None:
        folder = Path(sent["runtime_env"]["working_dir"])
        self.sent = {**sent, "shipped": sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))}

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for text in self.logs.pop(0):
            if isinstance(text, Exception):
                raise text
            yield text


def details(status: str, code: int | None = None, job_id: str = "little-1", message: str = "") -> Any:
    return SimpleNamespace(
        submission_id=job_id,
        status=status,
        driver_exit_code=code,
        message=message,
        start_time=1_000,
        metadata={"sweep": "little", "storage": "", "out": "/srv/little"},
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "my little.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def request_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *words, pip=False: sweep_request([str(word) for word in words], pip)


def test_what_is_sent(sweep: Path, request_of: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "ours" / "__pycache__").mkdir(parents=True)
    (tmp_path / "ours" / "__init__.py").write_text("")
    words = [
        "--seeds",
        "0-2",
        "--storage",
        "s3://bucket/a;b",
        "--import",
        "mine",
        "--import",
        "ours",
        "--import",
        "json",
    ]
    request = request_of(sweep, *words, "--wandb", "disabled", "--wandb-video", "--only", "task=Pendulum-v1")
    client = FakeClient()
    job_id = jobs.submit(client, request)
    name, digits = job_id.rsplit("-", 1)
    assert (name, len(digits)) == ("little", 8)
    assert client.sent["shipped"] == ["mine.py", "my little.yaml", "ours", "ours/__init__.py"]
    assert client.sent["metadata"]["storage"] == "s3://bucket/a;b/little"
    assert client.sent["metadata"]["out"] == f"~/runs/{job_id}"
    assert client.sent["metadata"]["rllib_hpo"] == rllib_hpo.__version__
    _, _, command = client.sent["entrypoint"].partition(" && ")
    assert command.endswith(f"--out ~/runs/{job_id}")
    sent = shlex.split(command)
    assert sent[:5] == ["python", "-m", "rllib_hpo.cli", "sweep", "my little.yaml"]
    pairs = {tuple(sent[i : i + 2]) for i in range(len(sent))}
    assert {("--seeds", "0-2"), ("--storage", "s3://bucket/a;b"), ("--import", "ours")} <= pairs
    assert "--wandb-video" in sent
    assert "pip" not in client.sent["runtime_env"]
    again = FakeClient()
    assert jobs.submit(again, request) == job_id
    assert jobs.submit(FakeClient(), request_of(sweep, "--seeds", "0")) != job_id


@pytest.mark.parametrize(
    ("there", "code"), [(rllib_hpo.__version__, 0), ("0.0.9", job_request.OTHER_VERSION)]
)
def test_the_job_looks_at_the_version_first(there: str, code: int) -> None:
    guard = job_request.entrypoint(Request("n", (), {}), "/srv/n").partition(" && ")[0]
    words = shlex.split(guard)
    done = subprocess.run([sys.executable, *words[1:-1], there], capture_output=True, check=False)
    assert words[-1] == rllib_hpo.__version__
    assert done.returncode == code


def test_pip_sends_the_package_and_pins_what_it_needs(sweep: Path, request_of: Any) -> None:
    client = FakeClient()
    jobs.submit(client, request_of(sweep, pip=True))
    assert "rllib_hpo/cli/__main__.py" in client.sent["shipped"]
    assert client.sent["entrypoint"].startswith("python -m rllib_hpo.cli sweep ")
    packages = client.sent["runtime_env"]["pip"]["packages"]
    assert all("==" in package and "+" not in package for package in packages)
    assert any(re.match(r"gymnasium\[.*mujoco.*\]==", package) for package in packages)
    assert not any(package.startswith("ray") for package in packages)


def test_a_search_file_is_sent_to_tune(request_of: Any) -> None:
    """With the options of `rllib-hpo tune`, and Optuna among what --pip installs."""
    client, file = FakeClient(), ROOT / "tune_configs" / "search" / "asha.yaml"
    words = [
        "--trials",
        "4",
        "--task",
        "Pendulum-v1",
        "--storage",
        "s3://bucket/x",
        "--gpus-per-learner",
        "0.5",
    ]
    jobs.submit(client, request_of(file, *words, pip=True))
    assert client.sent["entrypoint"].startswith(
        "python -m rllib_hpo.cli tune asha.yaml --storage s3://bucket/x "
    )
    assert "--task Pendulum-v1 --trials 4 --gpus-per-learner 0.5" in client.sent["entrypoint"]
    assert client.sent["metadata"]["storage"] == "s3://bucket/x/asha"
    assert any(one.startswith("optuna==") for one in client.sent["runtime_env"]["pip"]["packages"])
    jobs.submit(
        client, sweep_request(["--resume", "/srv/runs/asha", "--trials", "9"], pip=False, search=True)
    )
    assert client.sent["entrypoint"].endswith("tune --resume /srv/runs/asha --trials 9")
    with pytest.raises(UserError, match="first_rung=10000 must be below the 500 steps"):
        request_of(file, "--steps", "500")


def test_resuming_names_the_place_only(request_of: Any) -> None:
    client = FakeClient(details("SUCCEEDED"))
    job_id = jobs.submit(client, request_of("--resume", "/srv/runs/little", "--seeds", "0-4"))
    assert job_id.startswith("little-")
    assert client.sent["entrypoint"].endswith("sweep --resume /srv/runs/little --seeds 0-4")
    jobs.submit(client, request_of("--resume", "s3://bucket/x/little?region=eu-west-1"))
    assert client.sent["metadata"]["storage"] == "s3://bucket/x/little?region=eu-west-1"
    assert "'s3://bucket/x/little?region=eu-west-1' --out ~/runs/little-" in client.sent["entrypoint"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--seeds", "x"), "seeds"),
        (("--only", "task=Hopper"), "the sweep has no such task"),
        (("--out", "runs/here"), "must be an absolute path"),
        (("--storage", "here"), "must be an absolute path"),
        (("--storage", "s3://key:secret@bucket/x"), "contains a user name or password"),
        (("--dry-run",), "--dry-run cannot be submitted"),
        (("--resume", "/srv/x"), "Give either a sweep file or"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    words: tuple[str, ...], sentence: str, sweep: Path, request_of: Any
) -> None:
    with pytest.raises(UserError, match=sentence):
        request_of(sweep, *words)


def test_the_number_of_seeds_in_a_process_is_sent(sweep: Path, request_of: Any) -> None:
    """Trials whose seeds cannot share one are refused here, not on the cluster."""
    client = FakeClient()
    jobs.submit(client, request_of(sweep, "--seeds-per-trial", "4"))
    assert " --seeds-per-trial 4 " in client.sent["entrypoint"]
    sweep.write_text(SWEEP + "settings: {num_learners: 1}\n")
    with pytest.raises(UserError, match=r"^seeds_per_trial=4 needs num_learners=0, but the trial "):
        request_of(sweep, "--seeds-per-trial", "4")


def test_what_is_there_already_is_not_sent_again(sweep: Path, request_of: Any) -> None:
    request = request_of(sweep)
    first = jobs.submit(FakeClient(), request)
    for state, said in (("RUNNING", "--attach"), ("SUCCEEDED", "another --out")):
        with pytest.raises(UserError, match=said):
            jobs.submit(FakeClient(details(state, job_id=first)), request)
    second = jobs.submit(FakeClient(details("FAILED", 2, first)), request)
    assert second.startswith("little-")
    assert second != first


@pytest.mark.parametrize(
    ("state", "code", "ends"), [("SUCCEEDED", 0, 0), ("STOPPED", None, 130), ("FAILED", 130, 130)]
)
def test_exit_codes(state: str, code: int | None, ends: int) -> None:
    assert jobs.exit_code(JOB._replace(state=state, exit_code=code)) == ends


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (2, "trials failed"),
        (job_request.OTHER_VERSION, "does not have rllib_hpo "),
        (127, "no `python`"),
        (-9, "exit code -9"),
        (None, "the environment could not be made"),
    ],
)
def test_failures_are_one_sentence(code: int | None, sentence: str) -> None:
    job = JOB._replace(
        state="FAILED", exit_code=code, message="the environment could not be made.\nTraceback"
    )
    with pytest.raises(UserError, match=sentence) as caught:
        jobs.exit_code(job)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AuthenticationError("Authentication required: Unauthorized"), r"requires a token \(401\)"),
        (AuthenticationError("Authentication failed: Forbidden: Invalid"), r"rejects the token \(403\)"),
        (ConnectionError("x"), "Nothing responds"),
        (requests.ReadTimeout("x"), "Nothing responds"),
        (RuntimeError("Request failed with status code 404: Job x does not exist."), "has no job little-1"),
        (RuntimeError("Request failed with status code 500: Traceback\nmore"), "reports a server error"),
        (ValueError("no JSON"), "is not the dashboard"),
    ],
)
def test_what_requests_fail_with(error: Exception, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        jobs.get_job(FakeClient(error), "little-1")
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_address_that_is_none_or_where_nothing_answers() -> None:
    with pytest.raises(UserError, match="must be the address of a dashboard"):
        jobs.connect("localhost")
    with pytest.raises(UserError, match="Nothing responds at"):
        jobs.connect("http://127.0.0.1:9")


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "Client", lambda address: SimpleNamespace(ray_version="2.40.0"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match=r"runs Ray 2\.40\.0"):
        jobs.connect(ADDRESS)


def test_a_log_is_written_once_however_often_the_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    broken = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    running, ended = details("RUNNING"), details("FAILED", 2)
    states = [running, details("PENDING"), running, ConnectionError(), running, ended]
    client, said = FakeClient(*states, logs=(("one\n", "tw", broken), ("one\n", "two\nthree"))), list[str]()
    assert jobs.follow(client, "little-1", said.append).exit_code == 2
    assert "".join(said) == "one\ntwo\nthree"


def test_a_cluster_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.0)
    client = FakeClient(details("RUNNING"), ConnectionError())
    with pytest.raises(UserError, match="rllib-hpo submit --attach little-1 --address"):
        jobs.follow(client, "little-1", print, timeout_s=0.05)


def test_results_on_the_head_are_named(tmp_path: Path) -> None:
    job = JOB._replace(out="/not/here/little")
    assert job_results.reachable_rows(job) is None
    with pytest.raises(UserError, match="in /not/here/little on the head; copy them with `ray rsync-down"):
        job_results.fetch(job, tmp_path)
    assert job_results.reachable_rows(job._replace(storage="s3://bucket/little?region=x")) is not None
    with pytest.raises(StorageError):
        job_results.fetch(job._replace(storage=str(tmp_path)), tmp_path / "out")
