"""Test seeds that share a process: how trials are grouped, what a group requests, and that each seed is its own run.

Runs are trained here in this process; test_sweep.py has whole sweeps. On a CPU a test asks for stacked updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_hpo.errors import SettingsError, WorkerDiedError
from rllib_hpo.experiments.config.run_config import RunConfig, resolve
from rllib_hpo.experiments.config.sweep_config import read_sweep
from rllib_hpo.experiments.sweeps.plan import SweepFiles
from rllib_hpo.experiments.sweeps.resources import resources
from rllib_hpo.experiments.sweeps.seeds import SeedRuns, group_seeds, notices
from rllib_hpo.experiments.sweeps.sweep import plan_trials
from rllib_hpo.experiments.sweeps.trial_run import TrialRun
from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from rllib_hpo.experiments.tracking.wandb_logger import WandbOptions
from rllib_hpo.learning.replay_learner import ReplayLearner
from rllib_hpo.learning.seeds import SeedGroup
from rllib_hpo.learning.shared_updates import SharedUpdates
from rllib_hpo.results import read_rows, without_volatile
from tests.experiments.lives import checkpoints, last_state
from tests.rllib.tiny import assert_equal

SWEEP = """\
sweep: seeds
algorithms: [sac]
tasks: [Pendulum-v1]
seeds: 0-1
settings:
  steps: 120
  hidden_units: 16
  train_batch_size_per_learner: 16
  replay_capacity: 700
  warmup_steps: 20
  evaluation_every: 40
  evaluation_episodes: 1
  checkpoint_every: 40
  steps_per_iteration: 20
  diagnostics_interval: 30
  env_config: {max_episode_steps: 25}
"""
PARAMETERS = "learner_group/learner/rl_module/default_policy/module_state.pkl"
NAMES = ("sac-Pendulum-v1-seed0", "sac-Pendulum-v1-seed1")


def planned(directory: Path, text: str = SWEEP) -> SweepFiles:
    """Make the directory of a sweep."""
    directory.mkdir()
    files = SweepFiles(directory)
    files.sweep_file.write_text(text)
    plan_trials(read_sweep(files.sweep_file), files)
    return files


def run_of(files: SweepFiles, name: str) -> TrialRun:
    return TrialRun(
        name,
        {
            "directory": str(files.directory),
            "sweep": "seeds",
            "imports": [],
            "variants": dict.fromkeys(NAMES, "default"),
            "origins": {},
            "identities": {},
            "waits_for_evaluations": False,
            "wandb": WandbOptions("disabled"),
            "keep_checkpoints": 2,
            "storage": None,
        },
    )


@contextmanager
def seed_runs(
    files: SweepFiles, names: Sequence[str] = NAMES, shared: SharedUpdates | None = None
) -> Iterator[SeedRuns]:
    """Begin runs in this process, and save and close them at the end."""
    runs = SeedRuns([run_of(files, name) for name in names], shared=shared)
    try:
        runs.begin()
        yield runs
    finally:
        runs.close()


def trained(runs: SeedRuns) -> list[dict[str, Any]]:
    """Train to the end; return all results."""
    results = []
    while not results or not results[-1]["done"]:
        results.append(runs.step())
    return results


def train_alone(files: SweepFiles, name: str, steps: int) -> None:
    """Train one seed up to a step, as a trial of its own would, and kill it there."""
    run = run_of(files, name)
    run.begin()
    assert run._run is not None
    while run.env_steps < steps:
        run.step()
    run._run.__exit__(None, None, None)  # without the checkpoint of a stop


def rows(files: SweepFiles) -> Any:
    return without_volatile(read_rows(files.results))


def assert_same_runs(ours: SweepFiles, theirs: SweepFiles, names: Sequence[str] = NAMES) -> None:
    """Check that last checkpoints, replays and rows are bitwise equal."""
    for name in names:
        assert_equal(last_state(ours.trial(name).directory), last_state(theirs.trial(name).directory))
    assert rows(ours).equals(rows(theirs))


def stacking() -> SharedUpdates:
    """Make updates as one function of stacked tensors."""

    def make_group(learners: Sequence[ReplayLearner]) -> SeedGroup:
        group = SeedGroup(learners)
        group.stack(None)
        return group

    return SharedUpdates(make_group)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> SweepFiles:
    """Train each seed as a trial of its own."""
    files = planned(tmp_path_factory.mktemp("alone") / "sweep")
    for name in NAMES:
        run = run_of(files, name)
        run.begin()
        while not run.step()["done"]:
            pass
        run.close()
    return files


def configs(**changes: Any) -> dict[str, RunConfig]:
    """Configurations of two algorithms and five seeds, in a sweep's order."""
    return {
        f"{algorithm}-hopper-seed{seed}": resolve(
            {"algorithm": algorithm, "task": "hopper", "seed": seed, **changes}
        )
        for seed in (0, 1, 2, 5, 11)
        for algorithm in ("sac", "td3")
    }


def test_trials_that_differ_in_their_seed_are_grouped() -> None:
    assert group_seeds(configs(), 2) == {
        "sac-hopper-seeds0-1": ["sac-hopper-seed0", "sac-hopper-seed1"],
        "td3-hopper-seeds0-1": ["td3-hopper-seed0", "td3-hopper-seed1"],
        "sac-hopper-seeds2-5": ["sac-hopper-seed2", "sac-hopper-seed5"],
        "td3-hopper-seeds2-5": ["td3-hopper-seed2", "td3-hopper-seed5"],
        "sac-hopper-seed11": ["sac-hopper-seed11"],
        "td3-hopper-seed11": ["td3-hopper-seed11"],
    }
    assert [len(group) for group in group_seeds(configs(), 100).values()] == [5, 5]
    assert [len(group) for group in group_seeds(configs(), 1).values()] == [1] * 10


@pytest.mark.parametrize("change", [{"steps": 5_000}, {"lr": 1e-5}, {"variant": "other"}])
def test_what_differs_in_more_is_not(change: dict[str, Any]) -> None:
    """A variant with equal settings is a variant all the same."""
    given = configs()
    if "variant" in change:
        other = "sac-other-hopper-seed1"
        given[other] = given["sac-hopper-seed1"]
    else:
        other = "sac-hopper-seed1"
        given[other] = configs(**change)[other]
    groups = group_seeds(given, 100)
    assert [other] in groups.values()
    assert len(groups) == 3


def test_origins_with_the_seed_in_their_path_are_grouped() -> None:
    given = configs(initialize_from="/runs/{algorithm}-{seed}")
    assert len({config.run.initialize_from for config in given.values()}) == 10
    assert len(group_seeds(given, 100)) == 2


def test_runners_that_would_wait_keep_seeds_apart_and_that_is_said() -> None:
    """On a CPU seeds take turns; those of a GPU wait for each other only while updates are made."""
    for runners in ({"num_env_runners": 2}, {"evaluation_num_env_runners": 1}):
        assert len(group_seeds(configs(**runners), 5)) == 10
        assert "are trained apart" in notices(configs(**runners)["sac-hopper-seed0"], 5)[-1]
        assert notices(configs(**runners)["sac-hopper-seed0"], 1) == []
        on_a_gpu = configs(**runners, num_gpus_per_learner=0.5)
        assert len(group_seeds(on_a_gpu, 5)) == 2
        assert notices(on_a_gpu["sac-hopper-seed0"], 5) == []


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2", None])
def test_what_is_no_number_of_seeds(number: Any) -> None:
    with pytest.raises(SettingsError, match=r"^seeds_per_trial=.* must be an integer of at least 1\.$"):
        group_seeds(configs(), number)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [({"api_stack": "old"}, "api_stack=new"), ({"num_learners": 1}, "num_learners=0")],
)
def test_what_cannot_share_a_process_is_refused(changes: dict[str, Any], needed: str) -> None:
    with pytest.raises(SettingsError, match=f"^seeds_per_trial=2 needs {needed}, but the trial sac-hopper-"):
        group_seeds(configs(**changes), 2)
    assert len(group_seeds(configs(**changes), 1)) == 10


def test_a_group_requests_one_gpu_and_the_runners_of_all() -> None:
    in_turns, *_ = configs().values()
    assert resources(in_turns, num_seeds=4).bundles == [{"CPU": 1}]
    with_gpu, *_ = configs(num_gpus_per_learner=0.5, num_env_runners=2, evaluation_num_env_runners=1).values()
    assert resources(with_gpu, num_seeds=4).bundles == [{"CPU": 1, "GPU": 0.5}, *[{"CPU": 1}] * 12]


def test_seeds_in_turns_are_bitwise_those_of_separate_runs(alone: SweepFiles, tmp_path: Path) -> None:
    files = planned(tmp_path / "sweep")
    with seed_runs(files) as runs:
        results = trained(runs)
    assert_same_runs(files, alone)
    assert all(set(result["runs"]) == {*NAMES} for result in results)  # neither waits for the other's end
    assert results[-1]["errors"] == dict.fromkeys(NAMES, "")
    for name in NAMES:
        events = [event["event"] for event in read_events(files.trial(name).directory / EVENTS_FILE)]
        assert (events[0], events[-1]) == ("started", "finished")


@pytest.mark.parametrize("shared", [None, stacking], ids=["in turns", "stacked"])
def test_a_seed_that_is_behind_catches_up(
    shared: Callable[[], SharedUpdates] | None, alone: SweepFiles, tmp_path: Path
) -> None:
    """As after a kill between two checkpoints; once both have made the same steps, both go on."""
    files = planned(tmp_path / "sweep")
    for name, steps in zip(NAMES, (80, 40), strict=True):
        train_alone(files, name, steps)
    assert [checkpoints(files.trial(name).directory)[-1] for name in NAMES] == [80, 40]
    with seed_runs(files, shared=shared and shared()) as runs:
        results = trained(runs)
    steps = [{name: run["env_steps"] for name, run in result["runs"].items()} for result in results]
    ahead, behind = NAMES
    assert steps == [{behind: 60}, {behind: 80}, {ahead: 100, behind: 100}, {ahead: 120, behind: 120}]
    if shared is None:
        assert_same_runs(files, alone)
    else:
        assert rows(files)["env_steps"].equals(rows(alone)["env_steps"])


def test_stacked_seeds_are_close_to_separate_runs(tmp_path: Path) -> None:
    """Rows of the same steps, random streams and environments; rounding differs as batched products round."""
    text = SWEEP.replace("steps: 120", "steps: 40")
    files, others = planned(tmp_path / "stacked", text), planned(tmp_path / "alone", text)
    with seed_runs(files, shared=stacking()) as runs:
        trained(runs)
    with seed_runs(others) as runs:
        trained(runs)
    for name in NAMES:
        ours, theirs = (last_state(each.trial(name).directory) for each in (files, others))
        assert ours["manifest"]["config"] == theirs["manifest"]["config"]
        returns = [
            each["manifest"]["evaluation"]["env_runners"]["episode_return_mean"] for each in (ours, theirs)
        ]
        assert returns[0] == pytest.approx(returns[1], rel=1e-4)
        for ring, transitions in theirs["replay"].items():
            np.testing.assert_allclose(ours["replay"][ring], transitions, rtol=1e-4, atol=1e-4)
        learner, other = (state["state"]["learner_group/learner/state.pkl"] for state in (ours, theirs))
        assert learner["progress"]["num_updates"] == other["progress"]["num_updates"] == 20
        mine, its = (state["state"][PARAMETERS] for state in (ours, theirs))
        assert mine.keys() == its.keys()
        for parameter, value in its.items():
            distance = np.linalg.norm(mine[parameter] - value)
            assert distance <= 1e-4 * np.linalg.norm(value) + 1e-6, (parameter, distance)
    sizes = [
        sum(path.stat().st_size for path in each.directory.rglob("checkpoints/step-*/**/*.pkl"))
        for each in (files, others)
    ]
    assert sizes[0] < 1.1 * sizes[1]  # and not N times as large, with the tensors of all seeds


@pytest.mark.parametrize("shared", [None, stacking], ids=["in turns", "stacked"])
def test_a_seed_whose_loss_is_not_finite_stops_alone(
    shared: Callable[[], SharedUpdates] | None, alone: SweepFiles, tmp_path: Path
) -> None:
    files = planned(tmp_path / "sweep")
    good, bad = NAMES
    with seed_runs(files, shared=shared and shared()) as runs:
        for _ in range(2):
            runs.step()
        run = runs._active[1]
        assert run.name == bad
        assert run.learner is not None
        run.learner.replay.rows[:] = float("nan")
        results = trained(runs)
    failed = results[0]["runs"][bad]
    assert (failed["failed"], failed["diverged"], failed["done"]) == (True, True, True)
    assert "critic loss" in files.error(bad).read_text()
    assert results[-1]["errors"] == {bad: files.error(bad).read_text(), good: ""}
    assert all(bad not in result["runs"] for result in results[1:])
    events = {name: read_events(files.trial(name).directory / EVENTS_FILE)[-1] for name in NAMES}
    assert (events[good]["event"], events[bad]["event"]) == ("finished", "failed")
    assert not files.error(good).exists()
    assert checkpoints(files.trial(bad).directory)[-1] == 40
    if shared is None:
        ours, theirs = (last_state(each.trial(good).directory) for each in (files, alone))
        assert_equal(ours, theirs)


def test_what_a_restart_may_fix_is_raised_after_the_others(alone: SweepFiles, tmp_path: Path) -> None:
    """A restart trains the dead seed alone, from its last checkpoint."""
    files = planned(tmp_path / "sweep")
    good, dead = NAMES
    with seed_runs(files) as runs:
        for _ in range(3):
            runs.step()
        run = runs._active[1]._run
        assert run is not None

        def die() -> None:
            raise WorkerDiedError("All runners have died.")

        run.iterate = die  # type: ignore[method-assign,assignment]
        results = [runs.step() for _ in range(3)]
        assert [list(result["runs"]) for result in results] == [[good]] * 3
        assert [result["done"] for result in results] == [False] * 3
        assert files.error(dead).read_text() == "All runners have died.\n"
        with pytest.raises(WorkerDiedError, match="All runners"):
            runs.step()
    with seed_runs(files, [dead]) as runs:
        assert not files.error(dead).exists()
        trained(runs)
    assert_same_runs(files, alone)


def test_a_stop_saves_every_seed_wherever_it_is(alone: SweepFiles, tmp_path: Path) -> None:
    files = planned(tmp_path / "sweep")
    train_alone(files, NAMES[0], 40)
    with seed_runs(files) as runs:
        runs.step()
        runs.stop()
        result = runs.step()
    assert result["done"]
    assert {name: (run["stopped"], run["env_steps"]) for name, run in result["runs"].items()} == {
        NAMES[0]: (True, 40),
        NAMES[1]: (True, 20),
    }
    assert [checkpoints(files.trial(name).directory)[-1] for name in NAMES] == [40, 20]
    assert result["errors"] == {}
    with seed_runs(files) as runs:
        trained(runs)
    assert_same_runs(files, alone)
