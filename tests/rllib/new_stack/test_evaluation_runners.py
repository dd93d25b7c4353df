"""Test evaluations beside training: the same numbers as without, one row each, despite deaths."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune import PlacementGroupFactory
from ray.util.placement_group import placement_group, remove_placement_group

from rllib_hpo.errors import NonFiniteError, SettingsError, StorageError, UserError
from rllib_hpo.results import read_rows, without_volatile
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig
from tests.rllib.environments import CountingEnv, GatedEnv
from tests.rllib.tiny import SHORT_EPISODES, running, tiny_config, train_to, tuned

pytestmark = pytest.mark.usefixtures("ray_session")


def gated(directory: Path, number: int = 1, **settings: Any) -> ActorCriticConfig:
    """Make a run in this process whose evaluation runners wait until `directory`/gate exists."""
    env_config = {"driver": os.getpid(), "gate": str(directory / "gate")}
    config = tiny_config("sac", GatedEnv, steps_per_iteration=20, **settings)
    config.environment(env_config=env_config).evaluation(evaluation_num_env_runners=number)
    return config.results(results_dir=str(directory / "rows"), trial_id="t")


def steps_in(directory: Path) -> list[int]:
    """Return the steps of the existing rows."""
    if not (directory / "rows").exists():
        return []
    steps: list[int] = read_rows(directory / "rows")["env_steps"].to_pylist()
    return steps


def until(condition: Any) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def rows_without_runners(directory: Path, steps: int) -> Any:
    """Return the rows of the same run with evaluations in the driver."""
    config = gated(directory, 0).results(results_dir=str(directory / "others"))
    with running(config) as algorithm:
        train_to(algorithm, steps)
    return without_volatile(read_rows(directory / "others"))


@pytest.mark.parametrize(
    ("wrapper", "algorithm"),
    [
        pytest.param([], "sac-hpo", id="plain-sac-hpo", marks=pytest.mark.exhaustive),
        pytest.param([], "td3", id="plain-td3", marks=pytest.mark.exhaustive),
        pytest.param(["normalize-observation"], "sac-hpo", id="normalized-sac-hpo"),
        pytest.param(["normalize-observation"], "td3", id="normalized-td3", marks=pytest.mark.exhaustive),
    ],
)
def test_numbers_are_those_of_an_evaluation_in_the_driver(
    algorithm: str, wrapper: list[str], tmp_path: Path
) -> None:
    """They agree bitwise, with weights and statistics frozen at exactly their step."""
    tables = []
    for number in (0, 1):
        config = tiny_config(algorithm, "Hopper-v4", **tuned(algorithm)).results(
            results_dir=str(tmp_path / str(number))
        )
        config.environment(env_config={**SHORT_EPISODES, "wrappers": wrapper})
        with running(config.evaluation(evaluation_num_env_runners=number)) as built:
            built.max_env_steps = 80
            result = train_to(built, 80)
            assert result["evaluation"]["env_steps"] == 80
        tables.append(without_volatile(read_rows(tmp_path / str(number))))
    assert tables[1]["env_steps"].to_pylist() == tables[1]["weights_env_steps"].to_pylist() == [0, 40, 80]
    assert tables[0].equals(tables[1])


def test_training_goes_on_meanwhile_and_waits_for_the_one_before(tmp_path: Path) -> None:
    config = gated(tmp_path, evaluation_every=60)
    with running(config) as algorithm:
        algorithm.latest_evaluation = {"env_steps": -1}  # else the first iteration waits for the first one
        train_to(algorithm, 40)
        assert steps_in(tmp_path) == []  # none was due yet: the one at step 0 is skipped by the line above
        train_to(algorithm, 100)
        assert algorithm.evaluation_runners.num_pending == 1
        assert steps_in(tmp_path) == []
        updates = algorithm.num_updates
        (tmp_path / "gate").touch()
        result = train_to(algorithm, 120)  # where the next is due
        assert steps_in(tmp_path) in ([60], [60, 120])  # the next may be over already
        assert result["evaluation"]["env_steps"] in (60, 120)
        assert result["pipeline"]["evaluations_waited_s"] > 0
        algorithm.max_env_steps = 140
        train_to(algorithm, 140)
        assert steps_in(tmp_path) == [60, 120, 140]
    assert updates == 80
    row = read_rows(tmp_path / "rows").to_pylist()[0]
    assert (row["weights_env_steps"], row["updates"]) == (60, 40)


@pytest.mark.slow
def test_two_runners_hold_two_evaluations(tmp_path: Path) -> None:
    with running(gated(tmp_path, 2)) as algorithm:
        algorithm.latest_evaluation = {"env_steps": -1}
        train_to(algorithm, 80)
        assert algorithm.evaluation_runners.num_pending == 2
        (tmp_path / "gate").touch()
        algorithm.max_env_steps = 100
        train_to(algorithm, 100)
        assert steps_in(tmp_path) == [40, 80, 100]


@pytest.mark.slow
def test_a_runner_that_is_killed_is_replaced_and_its_evaluation_repeated(tmp_path: Path) -> None:
    with running(gated(tmp_path)) as algorithm:
        algorithm.latest_evaluation = {"env_steps": -1}
        waiting = tmp_path / "gate.waiting"
        train_to(algorithm, 60)
        until(lambda: waiting.exists() and waiting.read_text() != "")
        first = int(waiting.read_text())
        os.kill(first, signal.SIGKILL)
        until(lambda: int(waiting.read_text() or first) != first)
        (tmp_path / "gate").touch()
        algorithm.max_env_steps = 80
        train_to(algorithm, 80)
        assert algorithm.evaluation_runners.num_pending == 0
    others = rows_without_runners(tmp_path, 80).slice(1)
    assert without_volatile(read_rows(tmp_path / "rows")).equals(others)
    assert steps_in(tmp_path) == [40, 80]


def killed_at(directory: Path, env_steps: int) -> None:
    """Make a checkpoint with a pending evaluation, of a run that then ends as if killed."""
    with suppress(KeyboardInterrupt), running(gated(directory)) as algorithm:
        algorithm.latest_evaluation = {"env_steps": -1}
        train_to(algorithm, env_steps)
        algorithm.save_to_path(directory / "checkpoint")
        assert algorithm.evaluation_runners.num_pending == 1
        raise KeyboardInterrupt
    assert steps_in(directory) == []


@pytest.mark.parametrize("number", [1, pytest.param(0, marks=pytest.mark.exhaustive)])
def test_a_pending_evaluation_is_in_the_checkpoint(number: int, tmp_path: Path) -> None:
    """A killed run, resumed with or without runners, has each row once."""
    killed_at(tmp_path, 60)
    (tmp_path / "gate").touch()
    with running(gated(tmp_path, number)) as resumed:
        resumed.restore_from_path(tmp_path / "checkpoint")
        assert resumed.env_steps == 60
        resumed.max_env_steps = 120
        train_to(resumed, 120)
    assert steps_in(tmp_path) == [40, 80, 120]
    # This environment cannot be saved in the middle: only the first row is of the same training.
    pending = without_volatile(read_rows(tmp_path / "rows")).slice(0, 1)
    assert pending.equals(rows_without_runners(tmp_path, 40).slice(1))


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param("to a path", marks=pytest.mark.slow),
        pytest.param("as a state", marks=pytest.mark.exhaustive),
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("not", "to a full disk")),
    ],
)
def test_what_is_pending_is_waited_for_in_the_end(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune, for example, stops a trial at its last step, with or without a checkpoint."""

    def full(directory: Path, data: bytes) -> None:
        raise StorageError("No space left on device")

    with running(gated(tmp_path)) as algorithm:
        algorithm.latest_evaluation = {"env_steps": -1}
        train_to(algorithm, 60)
        assert algorithm.evaluation_runners.num_pending == 1
        if saved == "to a path":
            algorithm.save_to_path(tmp_path / "checkpoint")
        elif saved == "as a state":
            algorithm.get_state()
        elif saved == "to a full disk":
            monkeypatch.setattr("rllib_hpo.rllib.checkpointing.write_atomically", full)
            with pytest.raises(StorageError):
                algorithm.save_to_path(tmp_path / "checkpoint")
        (tmp_path / "gate").touch()
    assert steps_in(tmp_path) == [40]
    if saved == "to a path":  # a run that goes on from there has the row once, too
        with running(gated(tmp_path)) as resumed:
            resumed.restore_from_path(tmp_path / "checkpoint")
            train_to(resumed, 80)
        assert steps_in(tmp_path) == [40, 80]


def test_what_is_pending_is_waited_for_where_a_run_goes_back(tmp_path: Path) -> None:
    """Its rows exist, equal to those of a run that evaluates in the driver."""
    with running(gated(tmp_path)) as algorithm:
        algorithm.latest_evaluation = {"env_steps": -1}
        train_to(algorithm, 20)
        algorithm.save_to_path(tmp_path / "checkpoint")
        train_to(algorithm, 60)
        assert algorithm.evaluation_runners.num_pending == 1
        (tmp_path / "gate").touch()
        algorithm.restore_from_path(tmp_path / "checkpoint")
        assert steps_in(tmp_path) == [40]
        assert algorithm.latest_evaluation == {"env_steps": -1}


def test_a_bad_evaluation_stops_the_run() -> None:
    """Training makes only 20 steps and does not meet the error."""
    env_config = {"length": 30, "bad": "reward", "bad_step": 21, "value": float("nan")}
    config = tiny_config(env=CountingEnv, steps_per_iteration=20).environment(env_config=env_config)
    message = (
        r"reward of CountingEnv is not finite at step 21 of an evaluation episode, with the weights of step 0"
    )
    with (
        running(config.evaluation(evaluation_num_env_runners=1)) as algorithm,
        pytest.raises(NonFiniteError, match=message),
    ):
        algorithm.train()


@pytest.mark.slow
def test_what_is_lacking_for_runners_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The error appears when the algorithm is built, and leaves no actor behind, not even one that waits for a CPU."""
    monkeypatch.setattr("rllib_hpo.rllib.stack.RUNNER_TIMEOUT_S", 5.0)
    others = placement_group([{"CPU": 1}] * 3)
    ray.get(others.ready())
    config = tiny_config().evaluation(evaluation_num_env_runners=4)
    message = r"Only [01] of evaluation_num_env_runners=4 evaluation runners started within 5 seconds: each needs a CPU"
    with pytest.raises(UserError, match=message), caplog.at_level(logging.WARNING, "rllib_hpo"):
        config.build_algo()
    assert "of 4 evaluation runners: each needs a CPU, and " in caplog.text
    remove_placement_group(others)
    monkeypatch.undo()
    with running(tiny_config().evaluation(evaluation_num_env_runners=4)) as algorithm:
        algorithm.train()


class BrokenAtRunners(CountingEnv):
    """Fail to construct outside of the process `driver`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        if os.getpid() != config["driver"]:
            raise RuntimeError("the licence of the user's simulator")


def test_why_a_runner_cannot_be_made_is_said() -> None:
    config = tiny_config(env=BrokenAtRunners).environment(env_config={"driver": os.getpid()})
    with pytest.raises(UserError, match="the licence of the user's simulator"):
        config.evaluation(evaluation_num_env_runners=1).build_algo()


def test_tune_is_asked_for_a_processor_for_each() -> None:
    def bundles(number: int) -> list[dict[str, float]]:
        config = tiny_config().evaluation(evaluation_num_env_runners=number).env_runners(num_env_runners=1)
        request = ActorCriticAlgorithm.default_resource_request(config.to_dict())
        assert isinstance(request, PlacementGroupFactory)
        found: list[dict[str, float]] = request.bundles
        return found

    assert bundles(2) == [*bundles(0), {"CPU": 1.0}, {"CPU": 1.0}]


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"evaluation_num_env_runners=1\.5 must be an integer: 0"):
        tiny_config().evaluation(evaluation_num_env_runners=1.5).build_algo()
    config = tiny_config().api_stack(False, False).evaluation(evaluation_num_env_runners=1)
    with pytest.raises(
        SettingsError, match=r"evaluation_num_env_runners=1 would have no effect.*new API stack"
    ):
        config.build_algo()
