"""Kill searches at random instants, without Ray: what is decided and what is trained stand on disk at each of them."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rllib_hpo.experiments.config.run_config import resolve_saved
from rllib_hpo.experiments.runs.train import TrainingRun
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.experiments.tracking.training_metrics import evaluation_metrics
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.experiments.tuning.directory import SearchDirectory, open_search, start_search
from rllib_hpo.experiments.tuning.generations import Generations
from rllib_hpo.experiments.tuning.search import Ledger, tried
from rllib_hpo.experiments.tuning.study import STUDY_FILE, Study
from rllib_hpo.results import write_atomically
from tests.experiments.tuning.test_search import ASHA, PBT, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def train(
    directory: SearchDirectory, name: str, heard: Callable[..., bool], number: int, origin: Path | None = None
) -> None:
    """Train a trial in this process as its actor on Tune does; `heard` takes its evaluations and may stop it."""
    files = directory.files.trial(name)
    write_atomically(files.directory / "trial_id", f"{directory.identity(number)}\n".encode())
    with TrainingRun(
        resolve_saved(files.config, {}),
        files,
        sweep="x",
        variant="search",
        wandb=WandbOptions("disabled"),
        origin=origin,
    ) as run:
        evaluations: list[Any] = []

        def note(evaluation: Any) -> None:
            evaluations.append((int(evaluation["env_steps"]), evaluation_metrics(evaluation)))

        if run.algorithm.latest_evaluation is not None:
            note(run.algorithm.latest_evaluation)
        run.on_evaluation = note
        while not run.is_complete:
            run.iterate()
            if heard(name, evaluations):
                break
            evaluations.clear()
        run.save()


def drive_ledger(directory: SearchDirectory) -> None:
    """Run the trials of a search with Optuna, one at a time."""
    ledger = Ledger(directory)
    while (name := ledger.next()) is not None:
        train(directory, name, ledger.heard, int(name.rpartition("-")[2]))
        ledger.ended(name, diverged=False)


def drive_generations(directory: SearchDirectory) -> None:
    """Run the generations of a population, one member at a time."""
    generations = Generations(directory)
    while (generation := generations.begin()) is not None:
        for number, (name, member) in enumerate(generations.trials(generation).items()):
            directory.add_trial(
                name, directory.search.config(number, member.values, generations.ends[generation])
            )
            origin = None
            if member.origin is not None:
                origin = directory.files.trial(generations.name(generation - 1, member.origin)).directory
            train(directory, name, lambda *_: False, number, origin)
        assert generations.finish(generation)


DRIVERS = {"asha": (ASHA, drive_ledger), "pbt": (PBT, drive_generations)}


def live(drive: Callable[[SearchDirectory], None], path: Path, kill_after_s: float) -> bool:
    """Drive a search in a process of its own; return whether it ended before it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            drive(open_search(SweepFiles(path)))
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + kill_after_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return True
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status == 0


@pytest.mark.parametrize("name", DRIVERS)
def test_killed_at_any_instant_nothing_is_lost(name: str, tmp_path: Path) -> None:
    """The trials, their settings, the decisions and every row are those of a search that was never killed."""
    pytest.importorskip("optuna")
    text, drive = DRIVERS[name]
    for long, short in (
        ("steps: 300", "steps: 200"),
        ("trials: 4", "trials: 2"),
        ("quantile: 0.25", "quantile: 0.5"),
    ):
        text = text.replace(long, short)
    (tmp_path / "file.yaml").write_text(text)
    for place in ("alone", "killed"):
        start_search(tmp_path / "file.yaml", {}, SweepFiles(tmp_path / place))
    began = time.monotonic()
    assert live(drive, tmp_path / "alone", kill_after_s=1200)
    alone_s = time.monotonic() - began
    rng, kills, share = random.Random(0), 0, 0.3
    while not live(drive, tmp_path / "killed", kill_after_s=alone_s * rng.uniform(share / 2, share)):
        kills += 1
        share *= 1.25  # a life that is too short for anything must not be repeated forever
    assert kills >= 2
    alone, killed = (open_search(SweepFiles(tmp_path / place)) for place in ("alone", "killed"))
    assert rows(tmp_path / "killed") == rows(tmp_path / "alone")
    assert tried(killed) == tried(alone)
    if name == "asha":
        records = [Study(one.files.directory / STUDY_FILE, one.search).records() for one in (alone, killed)]
        assert records[0] == records[1]
        assert {record.state for record in records[0]} == {"COMPLETE", "PRUNED"}
    else:
        found = [
            json.loads((tmp_path / place / "population.json").read_text()) for place in ("alone", "killed")
        ]
        assert found[0] == found[1]
