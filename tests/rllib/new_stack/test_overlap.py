"""Test that sampling overlaps learning: exact counts and stops, a bounded lead, nothing lost or repeated."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rllib_hpo.errors import SettingsError, UserError
from rllib_hpo.replay.layout import RowLayout
from rllib_hpo.results import read_rows
from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm
from rllib_hpo.rllib.config import ActorCriticConfig
from rllib_hpo.streams import numpy_generator
from tests.rllib.environments import CountingEnv, UnhurriedEnv
from tests.rllib.test_distributed import on_learner, on_runners, take_them_back, wait_for_the_replacement
from tests.rllib.tiny import assert_equal, learner_facts, loaded, running, tiny_config, train_to

pytestmark = pytest.mark.usefixtures("ray_session")

EPISODE = 25
"""Steps of an episode of Pendulum in these tests."""


def overlapping(
    env: Any = "Pendulum-v1", num_env_runners: int = 2, num_learners: int = 0, **settings: Any
) -> ActorCriticConfig:
    """Make a tiny config whose runners deliver eight steps at a time, with a lead of at most 32 in total."""
    config = tiny_config("sac", env, **settings).learners(num_learners=num_learners)
    return config.env_runners(num_env_runners=num_env_runners, rollout_fragment_length=8, max_lead_steps=32)


def rows_of(algorithm: ActorCriticAlgorithm) -> np.ndarray:
    """Return the replay's rows, in the order in which they were counted."""
    rows: np.ndarray = on_learner(algorithm, learner_facts)["rows"]
    return rows


def chains(rows: np.ndarray, layout: RowLayout = RowLayout(3, 1)) -> list[int]:  # noqa: B008  (a tuple)
    """Return the lengths of the sequences in which each next observation is the following row's observation."""
    obs = [row[: layout.obs_dim].tobytes() for row in rows]
    next_obs = [row[layout.obs_dim + layout.action_dim + 2 :].tobytes() for row in rows]
    successor = dict(zip(obs, next_obs, strict=True))
    assert len(successor) == len(rows), "a transition was counted twice"
    lengths = []
    for first in set(obs) - set(next_obs):
        length, at = 0, first
        while at in successor:
            length, at = length + 1, successor[at]
        lengths.append(length)
    assert sum(lengths) == len(rows)
    return sorted(lengths)


def measured(algorithm: ActorCriticAlgorithm, env_steps: int) -> list[dict[str, float]]:
    """Return the pipeline's measurements in each iteration up to `env_steps`."""
    found = []
    while algorithm.env_steps < env_steps:
        found.append(algorithm.train()["pipeline"])
    return found


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners"),
    [(2, 0), pytest.param(2, 1, marks=pytest.mark.slow), pytest.param(0, 1, marks=pytest.mark.exhaustive)],
)
def test_counts_are_exact_at_every_stop(num_env_runners: int, num_learners: int, tmp_path: Path) -> None:
    """No runner's step is lost or repeated where a stop cuts a delivery."""
    settings = {"warmup_steps": 27, "evaluation_every": 35, "steps_per_iteration": 50}
    config = overlapping(num_env_runners=num_env_runners, num_learners=num_learners, **settings)
    with running(config.results(results_dir=str(tmp_path))) as algorithm:
        while algorithm.env_steps < 200:
            result = algorithm.train()
            learner = on_learner(algorithm, learner_facts)
            assert algorithm.num_updates == learner["num_updates"] == max(0, algorithm.env_steps - 27)
            assert learner["total_rows"] == result["num_env_steps_sampled_lifetime"] == algorithm.env_steps
        assert algorithm.env_steps == 200
        rows = rows_of(algorithm)
    unfinished = [length for length in chains(rows) if length < EPISODE]
    assert len(unfinished) <= max(1, num_env_runners)
    table = read_rows(tmp_path)
    assert table["env_steps"].to_pylist() == table["weights_env_steps"].to_pylist() == list(range(0, 200, 35))
    assert table["updates"].to_pylist() == [max(0, steps - 27) for steps in range(0, 200, 35)]
    # Exactly the warm-up's steps are random: those of the runners' own streams.
    names = range(1, 3) if num_env_runners else [0]
    drawn = [numpy_generator(3, "runner", i, 0, "warmup").uniform(-1, 1, (100, 1)) for i in names]
    is_random = np.isin(rows[:, 3], np.concatenate(drawn).astype(np.float32))
    assert is_random.tolist() == [True] * 27 + [False] * 173


class Watch:
    """Watch a run with a local learner, from outside of its pipeline.

    Args:
        algorithm: The run.
        before_an_update: Function to call before each update.
    """

    def __init__(
        self, algorithm: ActorCriticAlgorithm, before_an_update: Callable[[], None] = lambda: None
    ) -> None:
        self.algorithm, self.leads, self.asked = algorithm, list[int](), 0
        sampling, core = algorithm.stack.pipeline._sampling, algorithm.stack.core
        ask, update = sampling.ask, core.update_from_replay

        def watched_ask(runner: int, request: Any) -> Any:
            self.asked += request.num_steps
            self.leads.append(self.asked - self.learned)
            return ask(runner, request)

        def watched_update(num_updates: int) -> None:
            before_an_update()
            update(num_updates)

        sampling.ask, core.update_from_replay = watched_ask, watched_update

    @property
    def learned(self) -> int:
        """Steps whose updates are made, with one update per step."""
        warmup = self.algorithm.settings.warmup_steps
        made = self.algorithm.stack.core.trainer.num_updates
        return warmup + made if made else min(self.algorithm.env_steps, warmup)


def test_a_slow_learner_is_led_by_so_much_and_no_more() -> None:
    """Runners stop only at that lead: they deliver rollouts while it learns."""
    with running(overlapping(steps_per_iteration=20)) as algorithm:
        # An update ends only when the runners have done all that they were asked for.
        sampling = algorithm.stack.pipeline._sampling

        def learn_slowly() -> None:
            if refs := sampling.refs():
                ray.wait(refs, num_returns=len(refs), timeout=60)

        watch = Watch(algorithm, learn_slowly)
        found = measured(algorithm, 160)
    assert 24 <= max(watch.leads) <= 32
    assert max(iteration["most_lead_steps"] for iteration in found) <= 32
    assert sum(iteration["arrived_while_learning"] for iteration in found) > 0
    # When the warm-up is over it is always owed something.
    assert sum(iteration["learner_waited_s"] for iteration in found[2:]) == 0


@pytest.mark.slow
def test_a_learner_waits_for_slow_runners_only_when_it_owes_nothing() -> None:
    config = overlapping(UnhurriedEnv, evaluation_every=10_000, checkpoint_every=10_000)
    config.environment(env_config={"length": 10, "step_s": 0.05})
    with running(config.training(steps_per_iteration=20)) as algorithm:
        algorithm.latest_evaluation = {}  # no evaluation at step 0
        owed: list[int] = []
        pipeline, wait = algorithm.stack.pipeline, algorithm.stack.pipeline._wait

        def watched_wait() -> None:
            made = algorithm.stack.core.trainer.num_updates
            owed.append(algorithm.schedule.updates_due(algorithm.env_steps) - made)
            # And every runner is at work meanwhile.
            assert len(pipeline._sampling.refs()) == 2 or algorithm.env_steps < 20
            wait()

        pipeline._wait = watched_wait
        watch = Watch(algorithm)
        found = measured(algorithm, 60)
        pipeline.settle()
        assert pipeline.flush_metrics()["learner_waited_s"] == 0  # a checkpoint waits, and not the learner
    assert set(owed) == {0}
    # Of 60 steps of 0.05 s at 2 runners.
    assert sum(iteration["learner_waited_s"] for iteration in found) > 0.5
    assert max(watch.leads) <= 32


def kill(pids: list[int]) -> None:
    """Send SIGKILL, as the kernel does when memory is short."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("how_many", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_runners_that_are_killed_are_replaced(how_many: int) -> None:
    """Delivered steps count, pending requests are dropped, and nothing is repeated."""
    seen: list[int] = []
    config = overlapping(steps_per_iteration=20, evaluation_every=1000, checkpoint_every=1000).callbacks(
        on_env_runners_recreated=lambda env_runner_indices, **_: seen.extend(env_runner_indices)
    )
    with running(config) as algorithm:
        train_to(algorithm, 40)
        kill(on_runners(algorithm, lambda runner: os.getpid())[:how_many])
        train_to(algorithm, 60)
        for runner in range(1, how_many + 1):
            wait_for_the_replacement(algorithm, runner)
        deadline = time.monotonic() + 120
        while (
            len(seen) < how_many
        ):  # also where nobody has noticed yet that they died: what was queued is enough
            assert time.monotonic() < deadline, seen
            algorithm.stack.pipeline._keep_sampling()
            time.sleep(0.05)
        train_to(algorithm, algorithm.env_steps + 80)
        assert sorted(seen) == [1, 2][:how_many]
        learner = on_learner(algorithm, learner_facts)
        assert learner["total_rows"] == algorithm.env_steps
        assert learner["num_updates"] == algorithm.num_updates == algorithm.env_steps - 20
        unfinished = [length for length in chains(learner["rows"]) if length < EPISODE]
        assert len(unfinished) <= 2 + how_many
        assert len({row[3:4].tobytes() for row in learner["rows"]}) == algorithm.env_steps


@pytest.mark.slow
def test_a_late_runner_is_told_of_once_and_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pending steps are kept. The runner pauses during the warm-up, which the other one completes."""
    env_config = {"length": 1000, "gate": str(tmp_path / "gate"), "gated_runner": 1}
    config = overlapping(UnhurriedEnv, evaluation_every=10_000, checkpoint_every=10_000)
    config.environment(env_config=env_config)
    with running(config.env_runners(sample_timeout_s=1.0)) as algorithm:
        algorithm.latest_evaluation = {}  # no evaluation, in the driver, of so long an episode
        with caplog.at_level(logging.WARNING, "rllib_hpo.rllib.new_stack.sampling"):
            train_to(algorithm, 80)
            in_flight = algorithm.stack.pipeline._sampling._in_flight
            assert in_flight[1].request.random_actions  # still
            (tmp_path / "gate").touch()
            ray.wait([in_flight[1].rows], timeout=60)
            train_to(algorithm, 160)
        rows = rows_of(algorithm)
    told = [record.getMessage() for record in caplog.records if "runner 1 takes" in record.getMessage()]
    assert len(told) == 1
    assert "sample_timeout_s=1.0 for 8 steps" in told[0]
    # A step of an episode has a number. Those of the late runner are there from its first on.
    assert rows[:, 1].tolist().count(0.0) == 2


def hanging(directory: Path, bad_step: int, **settings: Any) -> ActorCriticConfig:
    """Make a config whose runner 1 hangs once, in step `bad_step`; its environments cannot be saved."""
    hung = {"bad": "hung", "bad_step": bad_step, "hung": str(directory / "hung"), "hung_runner": 1}
    config = overlapping(CountingEnv, steps_per_iteration=20, **settings)
    return config.environment(env_config={"length": 7, **hung}).env_runners(sample_timeout_s=5.0)


# Leads: turns; a fragment, which the one that hangs could use up; and the default.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad_step", "lead"),
    [
        pytest.param(*case, marks=[] if case == (15, "auto") else pytest.mark.exhaustive)
        for case in itertools.product((3, 15), (0, 8, "auto"))
    ],
)
def test_a_runner_that_hangs_is_given_up_before_a_checkpoint(
    lead: Any,
    bad_step: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is replaced; the run continues before and after, and so does its resumption."""
    config = hanging(tmp_path, bad_step).env_runners(max_lead_steps=lead)
    with running(config) as algorithm, caplog.at_level(logging.WARNING, "rllib_hpo.rllib.new_stack.sampling"):
        deadline = time.monotonic() + 120
        while not (tmp_path / "hung").exists() or algorithm.env_steps % 40:
            algorithm.train()
            assert time.monotonic() < deadline
        saved, sampling = algorithm.env_steps, algorithm.stack.pipeline._sampling
        monkeypatch.setattr("rllib_hpo.rllib.new_stack.sampling._KILL_GRACE_S", 600.0)
        algorithm.save_to_path(tmp_path / "checkpoint")
        assert "runner 1 took longer than sample_timeout_s=5.0; it was killed" in caplog.text
        sampling._next_ping = 0.0
        sampling.arrived()
        assert not sampling._pings  # which the old process might answer yet
        monkeypatch.undo()
        wait_for_the_replacement(algorithm)
        take_them_back(algorithm)
        train_to(algorithm, algorithm.env_steps + 40)
        learner = on_learner(algorithm, learner_facts)
        assert learner["total_rows"] == algorithm.env_steps
        assert learner["num_updates"] == algorithm.num_updates == algorithm.env_steps - 20
    with loaded(tmp_path / "checkpoint") as resumed:
        assert resumed.env_steps == on_learner(resumed, learner_facts)["total_rows"] == saved
        train_to(resumed, saved + 40)


@pytest.mark.slow
def test_a_runner_that_hangs_is_given_up_before_a_checkpoint_off_schedule(tmp_path: Path) -> None:
    with running(hanging(tmp_path, 3, checkpoint_every=10_000)) as algorithm:
        train_to(algorithm, 80)
        assert not algorithm.is_savable()  # of the other runner's
        assert algorithm.env_runner_group.healthy_env_runner_ids() == [2]
        algorithm.save_to_path(tmp_path / "checkpoint")
        train_to(algorithm, 120)


@pytest.mark.slow
def test_a_runner_that_hangs_ends_a_run_that_may_lose_none(tmp_path: Path) -> None:
    """The run ends with a sentence, at the checkpoint, and can be stopped."""
    config = hanging(tmp_path, 3).fault_tolerance(restart_failed_env_runners=False)
    with (
        running(config) as algorithm,
        pytest.raises(
            UserError, match=r"runner 1 took longer than sample_timeout_s=5\.0, and restart_failed"
        ),
    ):
        train_to(algorithm, 40)


@pytest.mark.slow
def test_a_run_can_be_stopped_while_a_runner_hangs(tmp_path: Path) -> None:
    """This holds also before the runner counts as late."""
    config = hanging(tmp_path, 15, checkpoint_every=10_000).env_runners(sample_timeout_s=60.0)
    with running(config) as algorithm:
        while not (tmp_path / "hung").exists():
            algorithm.train()
        began = time.monotonic()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_resumed_run_neither_loses_nor_repeats_a_step(num_learners: int, tmp_path: Path) -> None:
    """This holds for scheduled and other checkpoints, which hold the queue."""
    config = overlapping(num_learners=num_learners, steps_per_iteration=20)
    with running(config) as algorithm:
        train_to(algorithm, 100)
        algorithm.save_to_path(tmp_path / "checkpoint")
        queued = algorithm.stack.pipeline.get_state()
        assert sum(block["end"] for block in queued) > 0
        train_to(algorithm, 160)  # and the saved run goes on
        assert len([length for length in chains(rows_of(algorithm)) if length < EPISODE]) <= 2
    with loaded(tmp_path / "checkpoint") as resumed:
        assert_equal(queued, resumed.stack.pipeline.get_state())
        assert resumed.env_steps == on_learner(resumed, learner_facts)["total_rows"] == 100
        train_to(resumed, 240)
        learner = on_learner(resumed, learner_facts)
    assert learner["num_updates"] == 220
    assert len([length for length in chains(learner["rows"]) if length < EPISODE]) <= 2


@pytest.mark.slow
def test_a_checkpoint_can_be_gone_on_with_in_one_process(tmp_path: Path) -> None:
    """The checkpoint's queue is counted first."""
    with running(overlapping()) as algorithm:
        train_to(algorithm, 80)
        algorithm.save_to_path(tmp_path / "checkpoint")
        queued = np.concatenate([block["rows"] for block in algorithm.stack.pipeline.get_state()])
        assert len(queued) > 0
    with running(tiny_config()) as resumed:
        resumed.restore_from_path(tmp_path / "checkpoint")
        train_to(resumed, 160)
        assert np.array_equal(rows_of(resumed)[80 : 80 + len(queued)], queued)
        assert resumed.local_learner.trainer.num_updates == 140


@pytest.mark.slow
def test_going_back_to_a_checkpoint_forgets_what_was_in_flight(tmp_path: Path) -> None:
    """So are the weights: their number alone does not prove that a runner has them."""
    with running(overlapping()) as algorithm:
        train_to(algorithm, 80)
        algorithm.save_to_path(tmp_path / "checkpoint")
        queued = algorithm.stack.pipeline.get_state()
        train_to(algorithm, 120)
        algorithm.restore_from_path(tmp_path / "checkpoint")
        assert_equal(queued, algorithm.stack.pipeline.get_state())
        train_to(algorithm, 240)
        assert len([length for length in chains(rows_of(algorithm)) if length < EPISODE]) <= 2


def test_weights_are_numbered_and_one_runners_lag_is_bounded_by_the_lead() -> None:
    """Its rollouts are learned in the order of the requests."""
    with running(overlapping(num_env_runners=1)) as algorithm:
        found = measured(algorithm, 160)
        assert algorithm.stack.frozen_weights().number == algorithm.num_updates == 140
    assert "policy_lag_max" in found[-1]
    for iteration in found[2:]:
        assert 0 < iteration["policy_lag_mean"] <= iteration["policy_lag_max"] <= 32


@pytest.mark.slow
def test_a_slow_runner_acts_with_old_weights_and_nobody_waits_for_it() -> None:
    """Other runners' steps are learned first: no lead bounds its lag, which the metric reports."""
    with running(overlapping(evaluation_every=100_000, checkpoint_every=100_000)) as algorithm:
        measured(algorithm, 40)
        slow = on_runners(algorithm, lambda runner: os.getpid())[0]
        os.kill(slow, signal.SIGSTOP)
        try:
            meanwhile = measured(algorithm, 120)
        finally:
            os.kill(slow, signal.SIGCONT)
        assert max(iteration["most_lead_steps"] for iteration in meanwhile) <= 32
        lag = 0.0
        while lag <= 60:
            assert algorithm.env_steps < 20_000
            lag = max(
                lag, *(each.get("policy_lag_max", 0) for each in measured(algorithm, algorithm.env_steps + 1))
            )


@pytest.mark.parametrize(
    "num_learners", [pytest.param(0, marks=pytest.mark.exhaustive), pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_transition_crosses_the_wire_once_and_little_with_it(num_learners: int) -> None:
    config = overlapping("Hopper-v4", num_learners=num_learners).env_runners(
        rollout_fragment_length=20, max_lead_steps="auto"
    )
    with running(config) as algorithm:
        assert algorithm.stack.pipeline.max_lead_steps == 4 * 2 * 20
        found = measured(algorithm, 120)
    row = 4 * RowLayout(11, 3).width
    for iteration in found:
        assert 1 < iteration.get("wire_bytes_per_transition", 1.1 * row) / row <= 1.2


@pytest.mark.parametrize(
    ("num_env_runners", "num_learners"),
    [(2, 0), *(pytest.param(n, 1, marks=pytest.mark.exhaustive) for n in (2, 0))],
)
def test_weights_on_the_wire_are_counted_where_they_are_fetched(
    num_env_runners: int, num_learners: int
) -> None:
    """In turns, with an update every 32 steps, each runner fetches new weights once, and none for the warm-up."""
    settings = {
        "warmup_steps": 48,
        "steps_per_iteration": 48,
        "evaluation_every": 480,
        "checkpoint_every": 480,
    }
    config = overlapping(num_env_runners=num_env_runners, num_learners=num_learners, **settings)
    config.training(update_to_data=1 / 32)
    with running(config.env_runners(max_lead_steps=0)) as algorithm:
        found = measured(algorithm, 144)
        context = ray._private.worker.global_worker.get_serialization_context()
        as_sent = context.serialize(algorithm.stack.learners.acting_state()).total_bytes
    # At steps 48 (the first ones), 80 and 112; a runner in this process has the first since the evaluation at step 0.
    fetched = [times * num_env_runners for times in (0, 2, 1)] if num_env_runners else [0, 1, 1]
    assert [iteration["weights_fetched"] for iteration in found] == fetched
    # And turns do not overlap: a round is all that is asked for.
    assert {iteration["arrived_while_learning"] for iteration in found} == {0}
    assert {iteration["queued_steps"] for iteration in found} == {0}
    assert max(iteration["most_lead_steps"] for iteration in found) <= 16
    for iteration, times in zip(found, fetched, strict=True):
        # Ray adds what says where each buffer lies.
        assert iteration["weights_bytes_per_transition"] * 48 == pytest.approx(times * as_sent, rel=0.15)


@pytest.mark.parametrize("lead", [-1, 7, 8.5, "many", True])
def test_an_impossible_lead_is_refused(lead: Any) -> None:
    with pytest.raises(SettingsError, match=rf"max_lead_steps={lead!r} must be 'auto', 0 .* of at least 8"):
        overlapping().env_runners(max_lead_steps=lead).build_algo()


def test_the_old_api_stack_takes_turns_only() -> None:
    config = tiny_config().api_stack(False, False).env_runners(max_lead_steps=16)
    with pytest.raises(SettingsError, match=r"max_lead_steps=16 would have no effect.*new API stack"):
        config.build_algo()


@pytest.mark.slow
def test_statistics_of_wrappers_are_those_of_the_counted_steps() -> None:
    """An evaluation then uses exactly these; with a remote learner such a run takes turns."""
    config = overlapping(num_env_runners=0, num_learners=1).environment(
        env_config={"max_episode_steps": 25, "wrappers": ["normalize-observation"]}
    )
    with running(config) as algorithm:
        train_to(algorithm, 40)
        assert algorithm.stack.pipeline.takes_turns
        (_, state), *_ = algorithm.stack.wrapper_state()
        episodes = 40 // 25 + 1
        assert state["count"] == pytest.approx(40 + episodes, abs=0.01)


@pytest.mark.slow
def test_an_environment_that_cannot_be_saved_is_rebuilt_with_rollouts_in_flight(tmp_path: Path) -> None:
    config = overlapping(CountingEnv).environment(env_config={"length": 7})
    with running(config) as algorithm:
        train_to(algorithm, 80)
        assert algorithm.is_savable()
        algorithm.save_to_path(tmp_path / "checkpoint")
        train_to(algorithm, 120)
    with loaded(tmp_path / "checkpoint") as resumed:
        train_to(resumed, 120)
        assert on_learner(resumed, learner_facts)["total_rows"] == 120
