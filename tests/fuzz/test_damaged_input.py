"""Test damaged input in hundreds of cases: it is read, or rejected in one sentence.

A failing case prints its seed; `Random(seed)` reproduces it. Cases that failed once are named examples in the tests of
their subject.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rllib_hpo.algorithms.sac import SamplerActor
from rllib_hpo.cli import main
from rllib_hpo.cli.runs import _settings
from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata, load_policy_file, write_policy
from rllib_hpo.deployment.metadata import BoxMetadata
from rllib_hpo.errors import UserError
from rllib_hpo.experiments.cluster.check import check_file
from rllib_hpo.experiments.cluster.check.placement import read_machines
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.config.search_config import read_search
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.runs.files import open_run
from rllib_hpo.experiments.storage.checkpoints import CheckpointStore, find_checkpoint
from rllib_hpo.experiments.sweeps.plan import SweepFiles, read_plan
from rllib_hpo.experiments.tracking.events import read_events
from rllib_hpo.experiments.tuning.directory import SearchDirectory, open_search
from rllib_hpo.experiments.tuning.generations import Generations
from rllib_hpo.results import check, read_rows
from rllib_hpo.rllib.checkpointing import MANIFEST
from rllib_hpo.settings import SACHPOSettings
from tests.experiments.config.test_search_config import GOOD as SEARCH
from tests.experiments.config.test_sweep_config import GOOD
from tests.fuzz.damage import TOKENS, damaged_bytes, damaged_json, damaged_text, damaged_values
from tests.results.rows import make_row

ROOT = Path(__file__).resolve().parents[2]
CASES = pytest.mark.parametrize(
    "cases", [50, pytest.param(150, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.exhaustive)]
)
"""The first cases run by default, more in the slow suite, all of them in `make test-all`."""


def survive(read: Callable[[random.Random], object], cases: int) -> None:
    """Call `read` with a generator for each case; allow no error except a UserError of one printable line."""
    said = []
    for seed in range(cases):
        try:
            read(random.Random(seed))
        except UserError as error:
            said.append(str(error))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    for sentence in said:
        assert "\n" not in sentence
        assert len(sentence.encode()) < 4_000
    assert len(said) > cases // 10  # else nothing was damaged


@CASES
def test_sweep_files(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "sweep.yaml"

    def read(rng: random.Random) -> None:
        path.write_bytes(damaged_text(GOOD.replace("seeds: 0-1", "seeds: 0"), rng))
        read_sweep(path)

    survive(read, cases)


@CASES
def test_search_files(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "search.yaml"

    def read(rng: random.Random) -> None:
        path.write_bytes(damaged_text(SEARCH, rng))
        read_search(path)

    survive(read, cases)


@CASES
def test_settings_on_the_command_line(cases: int) -> None:
    names = [
        "lr",
        "alpha",
        "step_size",
        "hidden_units",
        "env_config",
        "replay_capacity",
        "steps",
        "task",
        "seed",
        "tau",
    ]

    def read(rng: random.Random) -> None:
        value = rng.choice(
            (
                rng.choice(TOKENS),
                damaged_text("{a: [1, 2.5], max_episode_steps: 3}", rng).decode(errors="replace"),
            )
        )
        resolve(_settings([f"{rng.choice(names)}={value}"]))

    survive(read, cases)


@CASES
def test_configuration_files(tmp_path: Path, cases: int) -> None:
    good = resolve({"env_config": {"max_episode_steps": 5, "wrappers": ["normalize-reward"]}})
    path = tmp_path / "config.yaml"

    def read(rng: random.Random) -> None:
        as_json = rng.random() < 0.4
        path.write_bytes(damaged_json(good.values(), rng) if as_json else damaged_text(good.to_yaml(), rng))
        resolve({}, path)

    survive(read, cases)


@CASES
def test_arguments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cases: int
) -> None:
    """The words name no file of the commands that read files."""
    monkeypatch.chdir(tmp_path)
    commands = """results show,results check,cluster check,sweep --dry-run,settings,evaluate,policy-shape,
        export --format onnx --out x,train --resume,tune --dry-run,tune --resume,
        train --out x --config,train --out x --task,train --out x --import,
        train --out x --set,train --out x --algorithm,train --out x --seed""".split(",")

    def read(rng: random.Random) -> None:
        word = rng.choice(TOKENS).replace("\x00", "") or "x"
        words = [
            *rng.choice(commands).split(),
            "x" if word == "/" else word,
        ]  # all rows of a disk take their time
        if words[0] == "train":
            words += ["--set", "tau=2"]  # nothing is to be trained, whatever the word means
        monkeypatch.setattr(sys, "argv", ["rllib-hpo", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        assert ended.value.code in (0, 2), (sys.argv, said)
        if ended.value.code == 2:
            raise UserError("refused")

    survive(read, cases)


@CASES
@pytest.mark.parametrize("name", ["local.yaml", "gpu.yaml", "kuberay/rayjob.yaml", "slurm.sbatch"])
def test_cluster_files(name: str, tmp_path: Path, cases: int) -> None:
    text = (ROOT / "cluster" / name).read_text()
    if name.endswith("yaml"):
        text = "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))
    path = tmp_path / Path(name).name

    def read(rng: random.Random) -> None:
        path.write_bytes(damaged_text(text, rng))
        found = check_file(path)
        read_machines(path)
        if found:
            raise UserError(found[0])

    survive(read, cases // 4)


@CASES
def test_result_files(tmp_path: Path, cases: int) -> None:
    table = pa.concat_tables([make_row(env_steps=steps).to_arrow() for steps in (0, 10_000)])
    path = tmp_path / "task=x" / "rows.parquet"
    path.parent.mkdir()
    pq.write_table(table, path)
    good = path.read_bytes()
    foreign = [
        pa.array(column)
        for column in (
            ["a", "b"],
            [1, 2],
            [None, None],
            [[1.0], []],
            [b"\xff", b""],
            [1.5, -1.0],
            ["{}", "[1]"],
            ["{", "9" * 5_000],
        )
    ]

    def read(rng: random.Random) -> None:
        if rng.random() < 0.5:
            path.write_bytes(damaged_bytes(good, rng))
        else:
            names, columns = list(table.column_names), list(table.columns)
            for place in rng.sample(range(len(names)), rng.randint(1, 3)):
                columns[place] = rng.choice(foreign)
            pq.write_table(pa.table(columns, names=names), path)
        check(read_rows(tmp_path))
        resolve({}, path)

    survive(read, cases)


def policy_file(path: Path) -> tuple[bytes, dict[str, Any]]:
    """Make a safetensors policy, and return its metadata."""
    settings = SACHPOSettings(hidden_units=4, leapfrog_units=3, leapfrog_steps=1)
    box = BoxMetadata(shape=(3,), dtype="float32", low=[-1.0] * 3, high=[1.0] * 3)
    metadata = PolicyMetadata(
        algorithm="sac-hpo", task="x", env="x", env_config={}, env_steps=3, observation_space=box, action_space=box,
        settings=settings.model_dump(), versions={},
    )  # fmt: skip
    torch.manual_seed(0)
    write_policy(DeployedPolicy(SamplerActor(3, 3, settings, seed=0), metadata), "safetensors", path)
    return path.read_bytes(), json.loads(metadata.to_json())


@CASES
def test_exported_policies(tmp_path: Path, cases: int) -> None:
    path = tmp_path / "policy.safetensors"
    good, metadata = policy_file(path)
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])

    def read(rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.4:
            path.write_bytes(damaged_bytes(good, rng))
        else:
            changed = damaged_values(header, rng) if kind < 0.6 else header
            text = damaged_json(metadata, rng).decode(errors="replace")
            about = {"rllib_hpo": text} if kind >= 0.6 else changed.get("__metadata__")
            new = json.dumps({**changed, "__metadata__": about}).encode()
            path.write_bytes(struct.pack("<Q", len(new)) + new + good[8 + length :])
        load_policy_file(path)

    survive(read, cases)


def checkpoint(run: Path) -> dict[str, Any]:
    """Make a run's directory with a fake checkpoint; return its manifest."""
    folder = run / "checkpoints" / "step-0000000040"
    folder.mkdir(parents=True)
    (folder / "a.pkl").write_bytes(b"abc")
    (run / "replay").mkdir()
    (run / "replay" / "rows.npy").write_bytes(b"")
    return {
        "format": 1, "algorithm": "sac", "env": "Pendulum-v1", "task": "Pendulum-v1", "env_steps": 40, "wrappers": [],
        "config": {**resolve({"algorithm": "sac", "task": "Pendulum-v1"}).values(), "env": "Pendulum-v1"},
        "trial": {"id": None, "seed": 0}, "versions": {"ray": "2.60"},
        "evaluation": {"env_steps": 40, "env_runners": {"episode_return_mean": -3.5}},
        "replay": {"directory": "../../replay", "total_rows": 40,
                   "segments": [{"file": "rows.npy", "start": 0, "end": 40, "crc32": 0}]},
        "files": {"a.pkl": {"bytes": 3, "crc32": 891568578}},
    }  # fmt: skip


@CASES
def test_checkpoints(tmp_path: Path, cases: int) -> None:
    manifest = checkpoint(tmp_path)
    folder = tmp_path / "checkpoints" / "step-0000000040"
    for name in ("step-abc", "step-", "step-1.tmp", "step-" + "9" * 40):
        (folder.parent / name).mkdir()

    def read(rng: random.Random) -> None:
        (folder / MANIFEST).write_bytes(damaged_json(manifest, rng))
        (folder.parent / "returns.json").write_bytes(damaged_json({"40": 1.5}, rng))
        store = CheckpointStore(tmp_path)
        store.returns()
        found = find_checkpoint(tmp_path)
        assert found == folder
        store._prune()
        assert (folder.parent / "step-abc").exists()

    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert CheckpointStore(tmp_path).newest_valid() == folder
    survive(read, cases)


@CASES
def test_directories_of_runs_and_sweeps(tmp_path: Path, cases: int) -> None:
    config = resolve({"algorithm": "sac"})
    plan = {
        "sweep": "x",
        "description": "",
        "imports": [],
        "trials": {"sac-hopper-seed0": "default"},
        "storage": None,
        "search": {"changes": {"trials": 4, "settings": {"gamma": 0.9}}, "token": "0a1b2c3d"},
    }
    (tmp_path / "pbt.yaml").write_text(
        f"{SEARCH.replace('asha', 'pbt').replace('[auto, 0.2]', '[0.1, 0.2]')}"
    )
    searched = SearchDirectory(read_search(tmp_path / "pbt.yaml"), SweepFiles(tmp_path / "run"), "0a1b2c3d")
    members = [[{"step_size": 0.1, "leapfrog_steps": 2, "alpha": 0.2}, None]] * 4
    population = {"generations": [{"members": members, "scores": [1.0, None, 2.0, 3.0]}]}
    event = {"time": "2026-01-01", "event": "started", "env_steps": 0}

    def read(rng: random.Random) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_bytes(damaged_text(config.to_yaml(), rng))
        (tmp_path / "run" / "plan.json").write_bytes(damaged_json(plan, rng))
        (tmp_path / "run" / "search.yaml").write_text(SEARCH)
        (tmp_path / "run" / "population.json").write_bytes(damaged_json(population, rng))
        (tmp_path / "run" / "events.jsonl").write_bytes(damaged_json(event, rng))
        read_events(tmp_path / "run" / "events.jsonl")
        files = SweepFiles(tmp_path / "run")
        rng.choice(
            (
                lambda: open_run(tmp_path / "run", None, {}),
                lambda: read_plan(files),
                lambda: open_search(files),
                lambda: Generations(searched).standing(),
            )
        )()

    survive(read, cases)
