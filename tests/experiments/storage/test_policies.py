"""Test the policies that a run keeps: which, their content, and the effect of a kill or a mirror."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.deployment import load_policy_file, write_policy
from rllib_hpo.errors import SettingsError
from rllib_hpo.experiments.config.run_config import resolve
from rllib_hpo.experiments.runs.files import RunFiles
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.storage.export import load_deployed
from rllib_hpo.experiments.storage.folder import Storage
from rllib_hpo.experiments.storage.mirror import Mirror
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.results import read_rows, without_volatile

pytest.importorskip("safetensors")

SMALL = {
    "task": "Pendulum-v1",
    "steps": 60,
    "warmup_steps": 10,
    "hidden_units": 8,
    "train_batch_size_per_learner": 8,
    "evaluation_every": 60,
    "evaluation_episodes": 1,
    "checkpoint_every": 20,
    "steps_per_iteration": 20,
    "keep_policies_every": 20,
}


def train(directory: Path, iterations: int = 3, mirror: Mirror | None = None, **changes: Any) -> RunFiles:
    """Run some iterations of a small run, or its remaining ones."""
    files = RunFiles(directory)
    with TrainingRun(
        resolve(SMALL | changes), files, wandb=WandbOptions("disabled"), mirror=mirror, keep_checkpoints=9
    ) as run:
        for _ in range(iterations):
            run.iterate()
        if mirror is not None:
            mirror.finish()
    return files


def kept(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "policies").iterdir()}


@pytest.mark.parametrize("stack", ["new", "old"])
def test_a_kept_policy_is_what_export_writes(stack: str, tmp_path: Path) -> None:
    """There is one file per interval, with the same bytes as an export of that step's checkpoint."""
    files = train(tmp_path / "run", algorithm="sac-hpo", api_stack=stack, keep_policies_every=40, steps=80)
    policies = kept(files.directory)
    assert list(policies) == ["step-0000000040.safetensors"]
    exported = tmp_path / "exported.safetensors"
    write_policy(load_deployed(files.directory / "checkpoints" / "step-0000000040"), "safetensors", exported)
    assert policies["step-0000000040.safetensors"] == exported.read_bytes()
    events = [json.loads(line) for line in (files.directory / "events.jsonl").read_text().splitlines()]
    assert [event["env_steps"] for event in events if event["event"] == "policy"] == [40]


def test_keeping_policies_changes_no_number(tmp_path: Path) -> None:
    """Rows and policies of a run that keeps them are bitwise those of one that does not."""
    with_them, without = train(tmp_path / "with"), train(tmp_path / "without", keep_policies_every=0)
    assert not (without.directory / "policies").exists()
    one, other = (without_volatile(read_rows(files.results)) for files in (with_them, without))
    assert one.equals(other)
    last = load_policy_file(with_them.directory / "policies" / "step-0000000060.safetensors").state_dict()
    for name, value in load_deployed(without.directory).state_dict().items():
        assert (value == last[name]).all(), name


def test_a_resumed_run_keeps_the_same_policies(tmp_path: Path) -> None:
    """A policy newer than the resumed checkpoint is made again, with the same bytes."""
    whole = kept(train(tmp_path / "whole").directory)
    train(tmp_path / "run", iterations=2)
    (tmp_path / "run" / "policies" / "step-0000000040.safetensors").write_bytes(b"half")
    (tmp_path / "run" / "checkpoints" / "step-0000000040" / "manifest.json").unlink()
    assert kept(train(tmp_path / "run", iterations=2).directory) == whole
    assert len(whole) == 3


def test_storage_gets_every_policy(tmp_path: Path) -> None:
    """Policies of an earlier session without storage are uploaded too."""
    train(tmp_path / "trials" / "one", iterations=1)
    storage = Storage.open(str(tmp_path / "there"))
    mirror = Mirror(storage, tmp_path / "trials" / "one", tmp_path / "trials" / "one" / "results")
    mirror.identify()
    files = train(tmp_path / "trials" / "one", iterations=2, mirror=mirror)
    assert kept(tmp_path / "there" / "trials" / "one") == kept(files.directory)
    assert len(kept(files.directory)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"keep_policies_every": 30},
            "keep_policies_every=30 must be a multiple of steps_per_iteration=20 or",
        ),
        ({"keep_policies_every": -1}, "keep_policies_every=-1 must be greater than or equal to 0"),
        (
            {"env_config": {"wrappers": ["normalize-observation"]}},
            "keep_policies_every=20 cannot keep policies that act on what the wrapper 'normalize-observation'",
        ),
    ],
)
def test_policies_that_cannot_be_kept(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve(SMALL | changes)
