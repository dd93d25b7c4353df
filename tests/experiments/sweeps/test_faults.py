"""Test every fault of a sweep, injected for real; this file holds the tests that are nowhere else.

| fault | where it is tested |
| --- | --- |
| environment runner killed | tests/rllib/test_distributed.py, test_a_runner_that_dies_is_replaced |
| remote learner killed | there for one run, test_a_learner_that_dies_ends_the_run_with_a_sentence; here for a sweep |
| trial killed, driver killed | test_sweep.py, test_what_is_interrupted_goes_on_as_if_nothing_had_happened |
| run killed at any instant | test_crash.py |
| node killed | here, with clocks that are twelve hours apart |
| disk full | test_checkpoints.py for one run, tests/results/test_storage.py for rows; here for a sweep |
| storage away | test_storage_mirror.py, test_nothing_is_lost_while_the_server_is_away_for_a_minute |
| newest checkpoint corrupt | test_checkpoints.py, test_a_damaged_one_is_passed_over_with_a_message; here for a sweep |

faults.py injects the faults, and `python -m benchmarks.faults` measures what each costs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from rllib_hpo.experiments.tracking.events import EVENTS_FILE, read_events
from tests.experiments import faults
from tests.experiments.faults import EVALUATIONS, SKEW_S, TRIAL, Broken, Cost
from tests.experiments.steps_log import Iteration


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Return the rows of the sweep without a fault."""
    rows = faults.undisturbed(tmp_path_factory.mktemp("reference"))
    assert rows["env_steps"].to_pylist() == list(EVALUATIONS)
    return rows


def assert_nothing_lost(broken: Broken) -> None:
    """Check that every evaluation exists once, training was interrupted, and no traceback was shown."""
    cost = broken.cost()
    assert (cost.rows_lost, cost.rows_doubled) == (0, 0)
    assert 0 < cost.steps_repeated < faults.STEPS
    assert "1 done, 0 failed, 0 unfinished" in broken.said
    assert "Traceback" not in broken.said


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_whose_learner_dies_goes_on_by_itself(tmp_path: Path) -> None:
    broken = faults.learner_killed(tmp_path)
    assert_nothing_lost(broken)
    assert f"again   {TRIAL}" in broken.said
    assert not list(tmp_path.glob("*/trials/*/error.txt"))  # Tune keeps one of its own


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_full_disk_ends_a_sweep_with_one_sentence(tmp_path: Path, reference: pa.Table) -> None:
    try:
        broken = faults.storage_full(tmp_path)
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(str(error))
    assert_nothing_lost(broken)
    assert broken.rows.equals(reference)
    (sentence,) = [line for line in broken.said.splitlines() if line.startswith("Error: ")]
    assert sentence.endswith("No space left on device.")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_passes_over_a_corrupt_checkpoint(tmp_path: Path, reference: pa.Table) -> None:
    broken = faults.checkpoint_corrupt(tmp_path)
    assert_nothing_lost(broken)
    assert broken.rows.equals(reference)
    assert broken.cost().steps_repeated > faults.CHECKPOINT_EVERY
    events = read_events(tmp_path / "sweep" / "trials" / TRIAL / EVENTS_FILE)
    (passed_over,) = [event for event in events if event["event"] == "checkpoint_passed_over"]
    assert passed_over["path"].endswith("step-0000001000")


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_node_dies_and_clocks_are_hours_apart(tmp_path: Path, reference: pa.Table) -> None:
    """One node is six hours ahead, the other six hours behind; `doctor` reports it, and rows are not affected."""
    broken = faults.clocks_apart(tmp_path)
    assert_nothing_lost(broken)
    assert broken.rows.equals(reference)
    assert broken.cost().steps_repeated < faults.CHECKPOINT_EVERY  # from the newest by steps, not by time
    first, last = broken.iterations[0], broken.iterations[-1]
    apart = (first.clock - first.time) - (last.clock - last.time)
    assert abs(apart) == pytest.approx(2 * SKEW_S, abs=60)  # so the clocks were off where the trial ran
    clocks = re.findall(r"note +clocks +they differ: (.*): run chrony", broken.said)
    assert sorted(re.findall(r"([+-])\d+\.\d s", clocks[0])) == ["+", "-"]


# How a cost is counted ---------------------------------------------------------------------------------


def iterations(pid: int, *steps: int, at: float) -> list[Iteration]:
    """Make the iterations of one process at ten steps per second."""
    return [Iteration(at + number, at + number, pid, step, step + 10) for number, step in enumerate(steps)]


def test_a_life_that_goes_on_loses_only_time() -> None:
    trained = iterations(1, 0, 10, at=1.0) + iterations(1, 20, 30, at=9.0)
    assert Cost.of(trained, 2.5, [0, 1, 2], range(3)) == Cost(6.5, 0, 0, 0)


def test_a_life_that_follows_repeats_and_catches_up() -> None:
    # The first goes on for a moment after its driver has died, to step 30.
    trained = iterations(1, 0, 10, 20, at=1.0) + iterations(2, 10, 20, 30, at=10.0)
    assert Cost.of(trained, 2.5, [0, 2, 2, 3], range(4)) == Cost(8.5, 20, 1, 1)
