"""Test remote runners and a remote learner that take turns: exact counts, fresh weights, dying processes.

`test_overlap.py` tests what differs when sampling overlaps learning.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError

from rllib_hpo.errors import NonFiniteError, SettingsError, UserCodeError, UserError, WorkerDiedError
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig
from tests.rllib.environments import CountingEnv, NoisyEnv
from tests.rllib.tiny import (
    assert_equal,
    facts,
    learner_facts,
    loaded,
    running,
    tiny_config,
    train_to,
    tuned,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def remote_config(
    algorithm: str = "sac",
    env: Any = NoisyEnv,
    num_envs: int = 1,
    num_learners: int = 0,
    num_env_runners: int = 2,
    **settings: Any,
) -> ActorCriticConfig:
    """Make a tiny config with two runners that deliver four steps of each environment at a time, in turns."""
    config = tiny_config(algorithm, env, **settings).learners(num_learners=num_learners)
    return config.env_runners(
        num_env_runners=num_env_runners,
        num_envs_per_env_runner=num_envs,
        rollout_fragment_length=4,
        max_lead_steps=0,
    )


def on_runners(algorithm: ActorCriticAlgorithm, function: Any) -> list[Any]:
    """Return the result of `function` at each remote runner."""
    return list(algorithm.env_runner_group.foreach_env_runner(function, local_env_runner=False))


def on_learner(algorithm: ActorCriticAlgorithm, function: Any) -> Any:
    """Return the result of `function` at the learner, local or remote."""
    return next(iter(algorithm.learner_group.foreach_learner(lambda learner, **_: function(learner)))).get()


def acting_parameters(runner: Any) -> dict[str, Any]:
    """Return the weights a runner acts with."""
    return {name: value.numpy().copy() for name, value in runner.module.model.state_dict().items()}


BOTH_WAYS = pytest.mark.parametrize(
    "lead",
    [pytest.param(0, marks=pytest.mark.exhaustive), pytest.param("auto", marks=pytest.mark.slow)],
    ids=["turns", "overlapping"],
)
"""For properties that do not depend on how far sampling may lead learning."""
COUNTED = list(itertools.product((1, 3), (0.25, 1.0, 2.0), (0, 1)))
COUNTED_FIRST = {(3, 0.25, 0): pytest.mark.slow}


@pytest.mark.parametrize(
    ("num_envs", "rate", "num_learners"),
    [pytest.param(*c, marks=COUNTED_FIRST.get(c, pytest.mark.exhaustive)) for c in COUNTED],
)
def test_counts_are_exact(num_envs: int, rate: float, num_learners: int, tmp_path: Path) -> None:
    settings = {"update_to_data": rate, "warmup_steps": 25, "evaluation_every": 35, "steps_per_iteration": 50}
    config = remote_config(num_envs=num_envs, num_learners=num_learners, **settings)
    with running(config.results(results_dir=str(tmp_path))) as algorithm:
        while algorithm.env_steps < 150:
            result = algorithm.train()
            learner = on_learner(algorithm, learner_facts)
            due = int(rate * max(0, algorithm.env_steps - 25))
            assert algorithm._num_updates == learner["num_updates"] == due
            assert learner["total_rows"] == algorithm.env_steps
            assert result["num_env_steps_sampled_lifetime"] == algorithm.env_steps
        assert algorithm.env_steps == 150
        assert sum(on_runners(algorithm, lambda runner: runner.num_env_steps_sampled_lifetime)) == 150
        rows = learner["rows"]  # no two environments are alike
    assert len({row[:2].tobytes() for row in rows}) == len({row[2:4].tobytes() for row in rows}) == 150
    table = read_rows(tmp_path)
    assert table["env_steps"].to_pylist() == table["weights_env_steps"].to_pylist() == [0, 35, 70, 105, 140]
    assert table["updates"].to_pylist() == [int(rate * max(0, steps - 25)) for steps in (0, 35, 70, 105, 140)]


@pytest.mark.parametrize("algorithm", ["sac-hpo", pytest.param("td3", marks=pytest.mark.exhaustive)])
def test_runners_act_with_the_learners_newest_weights(algorithm: str) -> None:
    """Target critics, leapfrog networks, flows and temperature are included, or the policy alone; evaluations too."""
    with running(
        remote_config(algorithm, **tuned(algorithm), num_learners=int(algorithm == "sac-hpo"))
    ) as built:
        train_to(built, 40)
        asked_before = built.get_module()
        train_to(built, 80)
        newest = on_learner(built, lambda learner: learner.acting_state())
        assert_equal(
            {name: np.asarray(value) for name, value in newest.items()},
            {name: value.numpy() for name, value in built.get_module().state_dict().items()},
        )
        assert built.get_module() is asked_before
        # The next request for samples brings the weights.
        pipeline = built.stack.pipeline
        pipeline._request_round(built.env_steps + 8)
        pipeline.settle()
        assert [block.num_steps for block in pipeline._queue] == [4, 4]
        assert {block.weights_seq_no for block in pipeline._queue} == {built.num_updates}
        assert built.num_updates > 3
        for parameters in on_runners(built, acting_parameters):
            state = {name.removeprefix("model."): np.asarray(value) for name, value in newest.items()}
            assert_equal(state, parameters)
        names = set(state)
        if tuned(algorithm):
            assert {"log_alpha", "target_critics.weights.0", "sampler.policy.network.0.weight"} <= names
        else:
            assert names == {f"policy.{k}.{what}" for k in (0, 2, 4) for what in ("weight", "bias")}
        assert not any(name.startswith("critics.") for name in names)
        assert any("flow" in name for name in names) == (algorithm == "sac-nf")
        assert any("gated_force" in name for name in names) == (algorithm == "sac-hpo")
        built.evaluate()
        assert_equal(state, acting_parameters(built.env_runner))
        # What is set is what acts, from the next request on.
        weights = built.get_weights()["default_policy"]
        built.set_weights({"default_policy": {name: 0 * value for name, value in weights.items()}})
        assert not any(value.any() for value in built.get_module().state_dict().values())


def test_policy_lag_counts_updates_since_the_weights_that_acted(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(remote_config(steps_per_iteration=8)) as algorithm:
        lags = []
        for _ in range(4):
            algorithm.train()
            lags.append(algorithm.stack.policy_lag)
        assert lags == [0, 0, 4, 8]  # a round of eight steps each, and a warm-up of twenty
        sampling = algorithm.stack.pipeline._sampling
        arrived = sampling.arrived
        monkeypatch.setattr(
            sampling,
            "arrived",
            lambda: [
                block._replace(weights_seq_no=block.weights_seq_no - 8 * (block.runner == 2))
                for block in arrived()
            ],
        )
        algorithm.train()
        assert algorithm.stack.policy_lag == 16  # of the second runner, which acted with older weights


def test_a_remote_learner_alone_equals_a_local_one() -> None:
    """With a fragment of one step the learner sees the same rows in the same order, so parameters are equal."""
    found = []
    for num_learners in (0, 1):
        config = tiny_config("sac-hpo", "Hopper-v4").learners(num_learners=num_learners)
        with running(config.env_runners(rollout_fragment_length=1, max_lead_steps=0)) as algorithm:
            train_to(algorithm, 80)
            found.append(on_learner(algorithm, learner_facts))
    assert_equal(found[0], found[1])


@pytest.mark.slow
def test_runs_with_runners_repeat() -> None:
    """Requests name how many steps each runner takes, and blocks are stored in the runners' order."""
    found = []
    for _ in range(2):
        with running(remote_config("sac-hpo", num_envs=2)) as algorithm:
            train_to(algorithm, 80)
            found.append(facts(algorithm))
    assert_equal(found[0], found[1])


def kill_a_runner(algorithm: ActorCriticAlgorithm) -> None:
    """Send SIGKILL to the first runner, as the kernel does when memory is short; return when it is gone."""
    pid = on_runners(algorithm, lambda runner: os.getpid())[0]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while runs(pid):
        assert time.monotonic() < deadline, "SIGKILL did not end it"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Return whether such a process exists and is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it went before it was looked at, or while it was read
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_for_the_replacement(algorithm: ActorCriticAlgorithm, runner: int = 1) -> None:
    """Wait by asking Ray, not the algorithm, whose bookkeeping is under test."""
    actor = algorithm.env_runner_group._worker_manager.actors()[runner]
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        try:
            ray.get(actor.ping.remote())
            return
        except RayActorError:
            time.sleep(0.1)
    raise AssertionError("Ray did not start the actor anew")


def take_them_back(algorithm: ActorCriticAlgorithm) -> None:
    """Let the algorithm poll its runners, once a second, until all of them are in service."""
    deadline = time.monotonic() + 120
    while len(algorithm.env_runner_group.healthy_env_runner_ids()) < algorithm.config.num_env_runners:
        assert time.monotonic() < deadline, "a runner that is back stays out of service"
        algorithm.stack.pipeline._receive_blocks()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("noticed", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_a_runner_that_dies_is_replaced(noticed: bool, tmp_path: Path) -> None:
    """Counts stay exact, the replacement draws from streams of its own, and a checkpoint holds them.

    This holds also if Ray starts the replacement before the next request to the dead one.
    """
    seen: list[list[int]] = []
    config = remote_config(env="Pendulum-v1", steps_per_iteration=20, warmup_steps=60).callbacks(
        on_env_runners_recreated=lambda env_runner_indices, **_: seen.append(env_runner_indices)
    )
    with running(config) as algorithm:
        train_to(algorithm, 40)
        assert on_runners(algorithm, lambda runner: runner._owner) == [("runner", 1, 0), ("runner", 2, 0)]
        kill_a_runner(algorithm)
        if noticed:
            train_to(algorithm, 60)
        wait_for_the_replacement(algorithm)
        take_them_back(algorithm)
        earliest, latest = (44, 60) if noticed else (40, 40)
        train_to(algorithm, 80)
        assert seen == ([[1]] if noticed else [])
        assert len(algorithm.env_runner_group.healthy_env_runner_ids()) == 2
        learner = on_learner(algorithm, learner_facts)
        assert learner["total_rows"] == 80
        assert learner["num_updates"] == algorithm._num_updates == 20
        owners = on_runners(algorithm, lambda runner: runner._owner)
        assert owners[0][:2] == ("runner", 1)
        assert earliest <= owners[0][2] <= latest
        assert owners[1] == ("runner", 2, 0)
        # Nothing it hands on was handed on before, in the warm-up either.
        assert len({row[:3].tobytes() for row in learner["rows"]}) == 80
        assert len({row[3:4].tobytes() for row in learner["rows"]}) == 80
        algorithm.save_to_path(tmp_path / "checkpoint")
    with loaded(tmp_path / "checkpoint") as resumed:
        assert on_runners(resumed, lambda runner: runner._owner) == owners


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_checkpoint_without_one_runners_state_repeats_nothing(tmp_path: Path) -> None:
    """One was dead when it was taken, for example, or there are more runners than before."""
    with running(remote_config(env="Pendulum-v1")) as algorithm:
        train_to(algorithm, 40)
        kill_a_runner(algorithm)
        algorithm.save_to_path(tmp_path / "checkpoint")
        assert list(algorithm.stack.get_state()["runners"]) == [2]
    with loaded(tmp_path / "checkpoint") as resumed:
        train_to(resumed, 80)
        assert on_runners(resumed, lambda runner: runner._owner) == [("runner", 1, 40), ("runner", 2, 0)]


@BOTH_WAYS
def test_a_runner_that_dies_may_end_the_run(lead: Any) -> None:
    config = remote_config().env_runners(max_lead_steps=lead)
    with running(config.fault_tolerance(restart_failed_env_runners=False)) as algorithm:
        algorithm.train()
        kill_a_runner(algorithm)
        with pytest.raises(UserError, match=r"An environment runner died, and restart_failed_env_runners is"):
            algorithm.train()


@pytest.mark.slow
@pytest.mark.parametrize("lead", [pytest.param(0, marks=pytest.mark.exhaustive), "auto"])
def test_a_runner_that_dies_may_be_missed(lead: Any) -> None:
    config = remote_config().env_runners(max_lead_steps=lead)
    config.fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=True)
    with running(config) as algorithm:
        algorithm.train()
        kill_a_runner(algorithm)
        train_to(algorithm, 80)
        assert algorithm.env_runner_group.healthy_env_runner_ids() == [2]
        assert on_learner(algorithm, learner_facts)["total_rows"] == 80


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [pytest.param("slow", marks=pytest.mark.exhaustive), "dead"])
def test_runners_that_hand_on_nothing_end_the_run(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They die at every request, or answer too late; training does not wait forever."""
    monkeypatch.setattr("rllib_hpo.rllib.stack.RUNNER_TIMEOUT_S", 2.0)
    env_config = {"length": 1000, "bad_step": 2, "bad": trouble}
    config = remote_config(env=CountingEnv, num_env_runners=1).environment(env_config=env_config)
    with running(config.env_runners(sample_timeout_s=0.5)) as algorithm:
        algorithm.latest_evaluation = {}  # evaluations, in the driver, would fail first
        with pytest.raises(UserError, match=r"None of 1 environment runners .* for 2 seconds: .*=0\.5 for a"):
            algorithm.train()
        assert algorithm.env_steps == 0


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["new", pytest.param("old", marks=pytest.mark.exhaustive)])
def test_runners_that_are_dead_for_good_end_the_run(stack: str) -> None:
    """The run ends at once, without waiting for what Ray will not restart. A runner with restarts left is replaced."""
    config = remote_config(num_env_runners=1)
    if stack == "old":
        config = tiny_config().api_stack(False, False).env_runners(num_env_runners=1)
    with running(config.fault_tolerance(max_num_env_runner_restarts=1)) as algorithm:
        algorithm.train()
        kill_a_runner(algorithm)
        wait_for_the_replacement(algorithm)
        algorithm.train()
        kill_a_runner(algorithm)
        began = time.monotonic()
        with pytest.raises(
            WorkerDiedError,
            match=r"All 1 environment runners died, and max_num_env_runner_restarts=1 is exhausted",
        ):
            algorithm.train()
        assert time.monotonic() - began < 60


@BOTH_WAYS
def test_a_learner_that_dies_ends_the_run_with_a_sentence(lead: Any) -> None:
    config = remote_config(num_env_runners=0, num_learners=1).env_runners(max_lead_steps=lead)
    with running(config) as algorithm:
        algorithm.train()
        pid = on_learner(algorithm, lambda learner: os.getpid())
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(
            UserError, match="The remote learner died; resume the run from its last checkpoint"
        ):
            algorithm.train()


@pytest.mark.parametrize(
    ("bad", "error", "phrase"),
    [
        pytest.param(
            "observation",
            NonFiniteError,
            r"The observation of .* at step 10 of an episode of environment 0 of runner",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "reward",
            NonFiniteError,
            r"The reward of .* at step 10 of an episode of environment 0 of runner",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            "error",
            UserCodeError,
            r"'CountingEnv' raised RuntimeError in step\(\): the user's own mistake",
            marks=pytest.mark.exhaustive,
        ),
        ("stubborn error", UserCodeError, "the user's own, which no other process can unpickle"),
    ],
)
def test_an_error_at_a_runner_stops_the_run(bad: str, error: type[Exception], phrase: str) -> None:
    """RLlib would log it and continue without the runner. The runner's traceback is shown as the cause."""
    env_config = {"length": 1000, "bad": bad, "bad_step": 10, "value": np.nan}
    config = remote_config(env=CountingEnv, num_env_runners=1).environment(env_config=env_config)
    with running(config) as algorithm:
        algorithm.latest_evaluation = {}  # evaluations, in the driver, would fail first
        with pytest.raises(error, match=phrase) as caught:
            algorithm.train()
    causes = []
    cause: BaseException | None = caught.value
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    assert any("environments.py" in text or "env_runner.py" in text for text in causes)


class BrokenAtRunners(CountingEnv):
    """Raise in the remote runners `at` from `where` on: "constructor", "reset"."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._break("constructor")

    def _break(self, where: str) -> None:
        if self.config["where"] == where and self.runner == self.config["at"]:
            raise OSError(f"no licence for the {where}")

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Raise, or start the next episode."""
        self._break("reset")
        return super().reset(**options)


@pytest.mark.parametrize("where", [pytest.param("reset", marks=pytest.mark.exhaustive), "constructor"])
@pytest.mark.parametrize("stack", ["new", pytest.param("old", marks=pytest.mark.exhaustive)])
def test_what_breaks_at_runners_only_is_said(where: str, stack: str) -> None:
    """The message is the cause, not an index out of range."""
    config = remote_config(env=BrokenAtRunners, num_env_runners=2)
    if stack == "old":
        config = tiny_config(env=BrokenAtRunners).api_stack(False, False).env_runners(num_env_runners=2)
    config.environment(env_config={"length": 4, "where": where, "at": 1})
    message = f"'BrokenAtRunners' .*OSError.*no licence for the {where}"
    with pytest.raises(UserCodeError, match=message) as caught, running(config) as algorithm:
        algorithm.train()
    assert caught.value.traceback.count("Traceback") == 1


def test_a_bad_loss_at_a_remote_learner_stops_the_run() -> None:
    def poison(learner: Any) -> None:
        replay = learner.core.replay
        replay._rows[: replay.num_rows, replay.layout.obs_dim + replay.layout.action_dim] = float("nan")

    with running(remote_config(num_env_runners=0, num_learners=1)) as algorithm:
        train_to(algorithm, 40)
        before = on_learner(algorithm, learner_facts)["parameters"]
        on_learner(algorithm, poison)
        with pytest.raises(NonFiniteError, match="The critic loss is nan at update 21"):
            algorithm.train()
        # RLlib takes the learner out of service, but it lives.
        group = algorithm.learner_group
        results = group.foreach_learner(lambda learner, **_: learner_facts(learner), healthy_only=False)
        assert_equal(before, next(iter(results)).get()["parameters"])


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners"),
    [pytest.param(2, n, marks=pytest.mark.exhaustive) for n in (0, 1)],
)
def test_resuming_loses_no_transition(num_env_runners: int, num_learners: int, tmp_path: Path) -> None:
    """There is no second warm-up either, and since these simulators can be saved, the run is bitwise equal."""
    config = remote_config(
        "sac-hpo", "Hopper-v4", 2, num_learners, num_env_runners, alpha="auto"
    ).checkpointing(replay_dir=str(tmp_path / "replay"))
    with running(config) as whole:
        train_to(whole, 80)
        whole.save_to_path(tmp_path / "checkpoint")
        at_checkpoint = facts(whole)
        train_to(whole, 120)
        expected = facts(whole)
    with loaded(tmp_path / "checkpoint") as resumed:
        assert_equal(at_checkpoint, facts(resumed))
        train_to(resumed, 120)
        assert_equal(expected, facts(resumed))
        assert expected["learner"]["total_rows"] == 120


def test_an_environment_that_cannot_be_handled_is_refused_at_once() -> None:
    """It does not surface as an actor's death with the reason in a log."""
    with pytest.raises(UserError, match="'CartPole-v1' has Discrete actions"):
        remote_config(env="CartPole-v1").environment(env_config={}).build_algo()
    with pytest.raises(SettingsError, match="step_size has 2 numbers, but actions have 1 dimensions"):
        remote_config("sac-hpo", "Pendulum-v1", step_size=[0.1, 0.2]).build_algo()
    with pytest.raises(UserError, match="Did you mean 'Hopper-v4'"):
        remote_config(env="Hoper-v4").build_algo()
