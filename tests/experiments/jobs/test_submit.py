"""Test sweeps on a real cluster with a token: rejected, followed, left, found again, fetched, stopped."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from rllib_hpo.results import read_rows
from tests.experiments.lives import REPOSITORY
from tests.experiments.sweeps.test_sweep import EVALUATIONS
from tests.experiments.sweeps.test_sweep import SWEEP as FOUR
from tests.experiments.token_cluster import TokenCluster, joining, started, token_cluster
from tests.experiments.tuning.test_search import SEARCH

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KEY = "5eed5a1adc0ffee5a1ad0ddba115eed5a1adbead"  # of nobody; W&B wants 40 digits
SWEEP = FOUR.replace("seeds: 0-1", "seeds: 0")
TRIALS = ("sac-Pendulum-v1-seed0", "sac-hpo-Pendulum-v1-seed0")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenCluster]:
    root = tmp_path_factory.mktemp("cluster")
    (root / "little.yaml").write_text(SWEEP)
    with token_cluster(root, WANDB_API_KEY=KEY) as running:
        yield running


def options(cluster: TokenCluster, storage: str) -> list[str]:
    return ["--address", cluster.address, "--storage", str(cluster.root / storage), "--wandb", "disabled"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def job_of(printed: str) -> str:
    found = re.search(r"job: +(\S+)", printed)
    assert found, printed
    return found[1]


def holding(secret: str, *places: Path) -> list[Path]:
    """Return files that hold a secret; pipes and sockets hold nothing."""
    found = []
    for path in [path for place in places for path in place.rglob("*")]:
        with suppress(FileNotFoundError):  # a cluster that runs removes some
            if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes():
                found.append(path)
    return found


@pytest.mark.parametrize(
    ("token", "said"), [(None, "(401)"), pytest.param("f" * 64, "(403)", marks=pytest.mark.exhaustive)]
)
def test_nobody_gets_in_without_the_token(token: str | None, said: str, cluster: TokenCluster) -> None:
    for words in (["submit", "little.yaml"], ["status"]):
        out, err = cluster.run(*words, "--address", cluster.address, code=2, token=token)
        assert said in err
        assert len(err.strip().splitlines()) == 1
        assert cluster.token not in out + err
    out, err = cluster.run("doctor", "--address", cluster.address, code=2, token=token)
    assert said in out


@pytest.fixture(scope="module")
def done(cluster: TokenCluster) -> str:
    """Run the job of a successful sweep, and return its name."""
    out, err = cluster.run("submit", "little.yaml", *options(cluster, "done"))
    assert err == ""
    assert "trials:         2 done, 0 failed, 0 unfinished" in out
    assert all(out.count(f"done   {name}") == 1 for name in TRIALS)
    return job_of(out)


def test_a_sweep_is_followed_and_its_results_are_fetched(
    done: str, cluster: TokenCluster, tmp_path: Path
) -> None:
    out, _ = cluster.run("status", done, "--address", cluster.address)
    assert "SUCCEEDED" in out
    assert "sac-hpo" in out.lower()
    out, _ = cluster.run("fetch", done, "--out", str(tmp_path / "got"), "--address", cluster.address)
    rows = read_rows(tmp_path / "got" / "results")
    assert sorted(rows["env_steps"].to_pylist()) == sorted(EVALUATIONS * 2)
    assert f"{rows.num_rows} rows" in out
    words = ["fetch", done, "--out", str(tmp_path / "got"), "--checkpoints", "--address", cluster.address]
    assert "14 rows, 2 checkpoints" in cluster.run(*words)[0]
    for name in TRIALS:
        printed, _ = cluster.run("evaluate", str(tmp_path / "got" / "trials" / name), "--episodes", "1")
        assert "after 600 steps" in printed
    assert read_rows(tmp_path / "got" / "results").equals(rows)


def test_the_same_sweep_is_not_sent_twice(done: str, cluster: TokenCluster) -> None:
    _, err = cluster.run("submit", "little.yaml", *options(cluster, "done"), code=2)
    assert f"has already run on the cluster as {done}" in err
    out, _ = cluster.run("submit", "--attach", done, "--address", cluster.address)
    assert "2 done, 0 failed" in out
    _, err = cluster.run("status", "no-such-job", "--address", cluster.address, code=2)
    assert "has no job no-such-job" in err


def test_trials_that_fail_give_exit_code_2(cluster: TokenCluster) -> None:
    """The module of their environment is beside the sweep file, and nowhere on the cluster."""
    folder = cluster.root / "bad"
    folder.mkdir()
    shutil.copy(REPOSITORY / "tests" / "bad_environments.py", folder)
    (folder / "bad.yaml").write_text(
        SWEEP.replace("[Pendulum-v1]", "[NaNReward-v0]").replace("[sac, sac-hpo]", "[sac]")
    )
    words = [*options(cluster, "bad/storage"), "--import", "bad_environments"]
    out, err = cluster.run("submit", "bad/bad.yaml", *words, code=2)
    assert "Trials failed: sac-NaNReward-v0-seed0" in out
    assert err.strip().splitlines() == [
        f"Error: The job {job_of(out)} failed: trials failed, or the sweep was rejected; see its log."
    ]


def test_it_can_be_left_and_found_again_and_stopped_and_resumed(
    cluster: TokenCluster, tmp_path: Path
) -> None:
    words = ["submit", "little.yaml", *options(cluster, "left"), "--seeds", "7", "--steps", "12000"]
    process = cluster.start(*words)
    storage = cluster.root / "left" / "little"
    wait_until(lambda: any(storage.glob("trials/*/checkpoints/step-*/manifest.json")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    job = job_of(out)
    assert f"Detached; the job keeps running. Follow it again with: rllib-hpo submit --attach {job}" in out
    assert err == ""
    out, _ = cluster.run("status", job, "--address", cluster.address)
    assert "RUNNING" in out
    assert "is already on the cluster" in cluster.run(*words, code=2)[1]
    out, _ = cluster.run("fetch", job, "--out", str(tmp_path), "--checkpoints", "--address", cluster.address)
    assert read_rows(tmp_path / "results").num_rows > 0  # while it runs
    cluster.run("stop", job, "--address", cluster.address)
    out, _ = cluster.run("submit", "--attach", job, "--address", cluster.address, code=130)
    assert re.search(r"0 failed, [12] unfinished", out)
    assert "Resume with: " in out  # they have saved: a stop is a Ctrl-C
    words = ["submit", "--resume", f"file://{storage}", "--wandb", "disabled", "--address", cluster.address]
    out, _ = cluster.run(*words)
    assert "2 done, 0 failed, 0 unfinished" in out
    rows = read_rows(storage / "results")
    assert sorted(rows["env_steps"].to_pylist()) == sorted([*range(0, 12001, 100)] * 2)


def test_neither_token_nor_key_is_in_any_file(done: str, cluster: TokenCluster) -> None:
    places, own = (cluster.ray, cluster.root), {*cluster.root.glob("home*/.ray/auth_token")}
    assert list(cluster.ray.rglob("job-driver-*.log"))
    assert set(holding(cluster.token, *places)) == {path for path in own if path.read_text() == cluster.token}
    assert holding(KEY, *places) == []
    planted = [next(cluster.ray.glob("session_2*/logs")) / "leak.log", cluster.root / "done" / "leak.txt"]
    for path in planted:
        path.write_text(f"Authorization: Bearer {cluster.token} {KEY}\n")
    try:
        assert {*planted} == {*holding(KEY, *places)}
        assert {*planted} <= {*holding(cluster.token, *places)}
    finally:
        for path in planted:
            path.unlink()


def test_a_directory_that_a_node_does_not_see_is_refused(cluster: TokenCluster) -> None:
    """A file system in a private namespace hides the second node's directory."""
    (cluster.root / "shared").mkdir()
    (cluster.root / "alone").mkdir()
    hidden = f'mount -t tmpfs none {cluster.root}/alone && exec "$@"'

    def command() -> list[str]:
        return ["unshare", "--mount", "sh", "-c", hidden, "sh", *joining(cluster)]

    with ExitStack() as stack:
        started(stack, command, cluster, cluster.root / "second.log")
        wait_until(lambda: doctor(cluster, "shared").count("\nok      node ") == 2, 300)
        assert f"all 2 nodes can access {cluster.root / 'shared'}" in doctor(cluster, "shared")
        alone = re.escape(str(cluster.root / "alone"))
        assert re.search(rf"problem +shared storage .* cannot access {alone}", doctor(cluster, "alone"))
        words = ["submit", "little.yaml", "--address", cluster.address, "--wandb", "disabled"]
        out, _ = cluster.run(*words, "--out", str(cluster.root / "alone" / "sweep"), code=2)
        assert re.search(
            r"alone/sweep is not shared: \S+ \(\w{8}\) of this cluster's 2 nodes cannot read", out
        )
        assert "--storage" in out
        out, _ = cluster.run(*words, "--out", str(cluster.root / "shared" / "sweep"), "--steps", "200")
        assert "2 done, 0 failed" in out


def doctor(cluster: TokenCluster, shared: str) -> str:
    process = cluster.start("doctor", "--address", cluster.address, "--shared", str(cluster.root / shared))
    return process.communicate(timeout=300)[0]


@pytest.mark.exhaustive
def test_a_search_runs_on_a_cluster(cluster: TokenCluster, tmp_path: Path) -> None:
    """Its study is on storage, so any machine goes on with it; its rows are fetched as those of a sweep."""
    pytest.importorskip("optuna")
    (cluster.root / "search.yaml").write_text(SEARCH)
    words = ["search.yaml", "--trials", "1", *options(cluster, "searched")]
    out, err = cluster.run("submit", *words)
    assert err == ""
    assert "trials:         1 done, 0 failed, 0 unfinished" in out
    assert "rllib-hpo sweep" in out.strip().splitlines()[-1]
    place = cluster.root / "searched" / "little"
    resume = ["--resume", f"file://{place}", "--trials", "2", "--address", cluster.address]
    out, err = cluster.run("submit", "--search", *resume, "--wandb", "disabled")
    assert "trials:         2 done, 0 failed, 0 unfinished" in out
    job = job_of(out)
    out, _ = cluster.run("fetch", job, "--out", str(tmp_path / "got"), "--address", cluster.address)
    rows = read_rows(tmp_path / "got" / "results")
    assert sorted(rows["env_steps"].to_pylist()) == [0, 0, 100, 100, 200, 200, 300, 300]
    assert len(set(rows["trial_id"].to_pylist())) == 2
