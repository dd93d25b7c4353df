"""Sampling overlaps learning: rollouts arrive, wait in a queue, and are learned from in order.

    runners  --rollouts-->  queue of blocks  --block, updates-->  learner
       ^---------------------- numbered weights ---------------------'

Every runner is at work on a request, unless sampling leads learning by `max_lead_steps`: steps that were asked
for, or have arrived, and whose updates are not all made. (Those of runners that are late by `sample_timeout_s` do not
count.) The learner waits only when it owes no update. So the slower side never waits, and the faster one leads by no
more than that. The policy lag, updates made since those behind the weights that acted, has that bound with one runner;
with several, the quick overtake the slow, whose weights are as many updates older.

A step of the run counts when its block leaves the queue; updates are then due as `Schedule` says. A block that
crosses a stop (an evaluation, a checkpoint, the end of an iteration) is cut there: its rest stays queued for after
the stop, at which counted steps and updates made are exactly the schedule's, while runners work on. Exactly the
warm-up's steps are random: nobody is asked to act with the policy before the last of them has arrived, or its
runner is late and others have made up for it. Late runners are given up at the next checkpoint.

With `max_lead_steps=0`, and with wrappers that gather statistics, sampling and learning take turns instead: a
fragment of every runner, in their order, then its updates. Such runs repeat themselves exactly.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from rllib_hpo.rllib.feeding import Feeding
from rllib_hpo.rllib.remote import SampleRequest, share_out
from rllib_hpo.rllib.sampling import Block, Sampling

_LONGEST_WAIT_S = 0.5


class Pipeline:
    """Brings steps from where they are sampled to where they are learned from.

    Args:
        algorithm: Counts the steps and knows the schedule.
        sampling: Where rollouts come from.
        feeding: Makes what they are fed to; is given what to call between updates made in this process.
        fragment: Steps asked for at a time.
        max_lead_steps: The most that sampling leads learning by; 0 for turns.
    """

    def __init__(
        self,
        algorithm: Any,
        sampling: Sampling,
        feeding: Callable[[Callable[[], None]], Feeding],
        *,
        fragment: int,
        max_lead_steps: int,
    ) -> None:
        self._algorithm, self._sampling = algorithm, sampling
        self._fragment, self.max_lead_steps = fragment, max_lead_steps
        self.feeding = feeding(self._keep_sampling)
        self._queue: deque[Block] = deque()
        self._lags: list[int] = []
        self._most_lead = self._arrived_while_learning = 0

    @property
    def takes_turns(self) -> bool:
        """Whether sampling and learning alternate."""
        return self.max_lead_steps == 0

    def lead(self) -> int:
        """Steps asked for or arrived whose updates are not all made, without those that late runners owe."""
        return self._sampling.steps_in_flight(late=False) + self._num_queued + self.feeding.num_steps

    @property
    def _num_queued(self) -> int:
        return sum(block.num_steps for block in self._queue)

    def advance(self, stop: int) -> None:
        """Counts steps up to step `stop` of the run, and makes their updates; ends early if a stop is requested.

        Raises:
            UserError: If runners hand on nothing for five minutes, or the learner is gone.
        """
        self._sampling.begin_waiting()
        while self.feeding.num_steps or (
            self._algorithm.env_steps < stop and not self._algorithm.stop_requested
        ):
            self._take_in()
            if self._algorithm.stop_requested:
                self._wait()
                continue
            if self.takes_turns:
                self._ask_for_a_round(stop)
            else:
                self._ask_the_idle()
            block = self._next_block(stop) if self.feeding.has_room else None
            if block is None:
                self._wait()
                self._check_patience()
            else:
                self._learn_from(block)

    def _keep_sampling(self) -> None:
        """Sees to it that runners are at work, while the learner in this process is."""
        if not self.takes_turns:
            self._take_in()
            self._ask_the_idle()

    def _take_in(self) -> None:
        self.feeding.look_after()
        for block in self._sampling.arrived():
            self._queue.append(block)
            self._arrived_while_learning += self.feeding.num_steps > 0

    def _ask_the_idle(self) -> None:
        """A fragment of each idle runner, as long as sampling may lead by that much."""
        for runner in self._sampling.idle():
            num_steps, random_actions = self._fragment, self._random_steps_left() > 0
            if random_actions:
                num_steps = min(num_steps, self._random_steps_left())
            elif self._sampling.steps_in_flight(random_only=True, late=False):
                break
            if self.lead() + num_steps > self.max_lead_steps:
                break
            self._ask(runner, num_steps, random_actions)
            self._most_lead = max(self._most_lead, self.lead())

    def _random_steps_left(self) -> int:
        """Random steps of the warm-up that nobody has been asked for, or only those who are late."""
        if self._algorithm.settings.warmup_policy == "policy":
            return 0
        asked_for = self._num_queued + self._sampling.steps_in_flight(random_only=True, late=False)
        return int(self._algorithm.settings.warmup_steps - self._algorithm.env_steps - asked_for)

    def _ask_for_a_round(self, stop: int) -> None:
        """A fragment of every runner when the last round has been learned from; together they end at `stop`."""
        steps, runners = self._algorithm.env_steps, sorted(self._sampling.idle())
        if steps >= stop or self.lead() or not runners:
            return
        random_actions = self._algorithm.schedule.acts_at_random(steps)
        quotas = share_out(min(stop - steps, self._fragment * len(runners)), len(runners))
        for runner, quota in zip(runners, quotas, strict=True):
            if quota:
                self._ask(runner, quota, random_actions)

    def _ask(self, runner: int, num_steps: int, random_actions: bool) -> None:
        algorithm = self._algorithm
        # Where a replacement joins: it must not repeat the draws of one before it whose steps are kept.
        joins_at = algorithm.env_steps + self._num_queued
        request = SampleRequest(
            self.feeding.weights(), num_steps, random_actions, joins_at, algorithm.run_seed
        )
        block = self._sampling.ask(runner, request)
        if block is not None:
            self._queue.append(block)

    def _next_block(self, stop: int) -> Block | None:
        """What is to be learned from now, cut at `stop`."""
        room = stop - self._algorithm.env_steps
        if room == 0 or not self._queue:
            return None
        if self.takes_turns:
            if self._sampling.steps_in_flight(late=False):
                return None
            # The order of the runners, whoever was the first; what a stop has cut comes before.
            self._queue = deque(sorted(self._queue, key=lambda block: block.runner))
        block, rest = self._queue.popleft().cut(room)
        if rest is not None:
            self._queue.appendleft(rest)
        return block

    def _learn_from(self, block: Block) -> None:
        algorithm = self._algorithm
        due = algorithm.count(block.num_steps, block.episodes)
        if not block.is_random:
            self._lags.append(algorithm.num_updates - block.weights_seq_no)
        self.feeding.feed(block, due)
        self._sampling.begin_waiting()

    def _wait(self) -> None:
        """As `_wait_for_a_change`; the learner has nothing else to do meanwhile."""
        began = time.monotonic()
        self._wait_for_a_change()
        self.feeding.idled(time.monotonic() - began)

    def _wait_for_a_change(self) -> None:
        """Until something has arrived or been learned, or runners need looking after."""
        if refs := self._sampling.refs() + self.feeding.refs():
            ray.wait(refs, num_returns=1, timeout=_LONGEST_WAIT_S, fetch_local=True)
        else:
            time.sleep(0.1)

    def _check_patience(self) -> None:
        """Patience is with runners, not with a learner that owes updates."""
        if self.feeding.num_steps:
            self._sampling.begin_waiting()
        else:
            self._sampling.check_patience()

    def learn_from_the_queue(self, stop: int) -> None:
        """Counts what a checkpoint brought, up to step `stop`, without asking anyone for more."""
        while (block := self._next_block(stop)) is not None:
            self._learn_from(block)

    def settle(self) -> None:
        """Waits until nothing is in flight; what arrives stays queued, and late runners are given up.

        Raises:
            UserError: If the config does not tolerate that.
        """
        self._take_in()
        while self._sampling.steps_in_flight():
            self._sampling.give_up_the_late()
            self._wait_for_a_change()  # it is a checkpoint that waits, and not the learner
            self._take_in()

    def on_remote_runners(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """What each remote runner answers to a call, once nothing is in flight any more."""
        self.settle()
        return self._sampling.ask_all(call)

    def stop(self) -> None:
        """Nothing is waited for any more."""
        self._sampling.stop()

    def flush_metrics(self) -> dict[str, float]:
        """What was measured since the last call."""
        traffic, lags = self._sampling.take_traffic(), self._lags
        metrics = {
            "learner_waited_s": self.feeding.waited_s,
            "runners_waited_s": traffic.runners_waited_s,
            "most_lead_steps": float(self._most_lead),
            "queued_steps": float(self._num_queued),
            "arrived_while_learning": float(self._arrived_while_learning),
            "weights_fetched": float(traffic.weights_fetched),
        }
        if lags:
            metrics |= {"policy_lag_mean": sum(lags) / len(lags), "policy_lag_max": float(max(lags))}
        if traffic.num_steps:
            metrics["wire_bytes_per_transition"] = traffic.num_bytes / traffic.num_steps
            metrics["weights_bytes_per_transition"] = traffic.weights_bytes / traffic.num_steps
        self._lags, self._most_lead, self._arrived_while_learning = [], 0, 0
        self.feeding.waited_s = 0.0
        return metrics

    def get_state(self) -> list[dict[str, Any]]:
        """The blocks that are not counted yet, rows and all, once nothing is in flight any more."""
        self.settle()
        return [block.at_hand()._asdict() for block in self._queue]

    def set_state(self, blocks: list[dict[str, Any]]) -> None:
        """Goes on with these blocks; what was in flight or queued here before is forgotten."""
        self._sampling.forget()
        self.feeding.forget()
        self._queue = deque(Block(**values) for values in blocks)
