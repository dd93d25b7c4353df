"""Overlap sampling with learning: blocks arrive, wait in a queue, and are learned from in order.

    runners  --blocks-->    queue of blocks  --block, updates-->  learner
       ^---------------------- numbered weights ---------------------'

Every runner has a request in flight, unless the lead reaches `max_lead_steps`. The lead is the number of steps that
were requested or have arrived and whose updates are not all made (runners that exceed `sample_timeout_s` do not
count). The learner waits only when no update is due. So the slower side never waits, and the faster one leads by at
most `max_lead_steps`. The policy lag is the number of updates made since the weights that acted. One runner's lag has
the same bound; with several, fast runners overtake slow ones, whose weights are older by as many updates.

A step counts when its block leaves the queue; `Schedule` then says which updates are due. A block that crosses a
stop (an evaluation, a checkpoint, the end of an iteration) is cut there, and its rest stays queued. At the stop,
counted steps and updates are exactly those of the schedule, while runners continue. Exactly the steps of the warm-up
are random: no runner acts with the policy before all of them have arrived (other runners replace the steps of an
overdue one). Overdue runners are killed at the next checkpoint.

With `max_lead_steps=0`, or with wrappers that gather statistics, sampling and learning alternate: one fragment of
every runner, in the order of runners, then its updates. Such runs are exactly repeatable.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from rllib_hpo.rllib.new_stack.feeding import Feeding
from rllib_hpo.rllib.new_stack.messages import Block, SampleRequest, split_evenly
from rllib_hpo.rllib.new_stack.sampling import Sampling

_MAX_WAIT_S = 0.5


class Pipeline:
    """Move blocks from sampling to learning.

    Args:
        algorithm: The algorithm, which counts steps and holds the schedule.
        sampling: The source of blocks.
        feeding: Function that makes the sink of blocks from the function to call between local updates.
        fragment: Steps of one request.
        max_lead_steps: The greatest lead of sampling over learning; 0 makes them alternate.
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
        self._max_lead = self._arrived_while_learning = 0

    @property
    def takes_turns(self) -> bool:
        """Whether sampling and learning alternate."""
        return self.max_lead_steps == 0

    def lead(self) -> int:
        """Number of steps requested or arrived whose updates are not all made, without those of overdue runners."""
        return self._sampling.steps_in_flight(late=False) + self._num_queued + self.feeding.num_steps

    @property
    def _num_queued(self) -> int:
        return sum(block.num_steps for block in self._queue)

    def advance(self, stop: int) -> None:
        """Count steps up to step `stop` of the run and make their updates; return early if a stop is requested.

        Raises:
            UserError: If no block arrives for five minutes, or the learner has died.
        """
        self._sampling.begin_waiting()
        while self.feeding.num_steps or (
            self._algorithm.env_steps < stop and not self._algorithm.stop_requested
        ):
            self._receive_blocks()
            if self._algorithm.stop_requested:
                self._wait()
                continue
            if self.takes_turns:
                self._request_round(stop)
            else:
                self._request_from_idle()
            block = self._next_block(stop) if self.feeding.has_room else None
            if block is None:
                self._wait()
                self._check_timeout()
            else:
                self._learn_from(block)

    def _keep_sampling(self) -> None:
        """Keep runners busy while the local learner updates."""
        if not self.takes_turns:
            self._receive_blocks()
            self._request_from_idle()

    def _receive_blocks(self) -> None:
        self.feeding.poll()
        for block in self._sampling.arrived():
            self._queue.append(block)
            self._arrived_while_learning += self.feeding.num_steps > 0

    def _request_from_idle(self) -> None:
        """Request a fragment from each idle runner, as far as `max_lead_steps` allows."""
        for runner in self._sampling.idle():
            num_steps, random_actions = self._fragment, self._random_steps_left() > 0
            if random_actions:
                num_steps = min(num_steps, self._random_steps_left())
            elif self._sampling.steps_in_flight(random_only=True, late=False):
                break
            if self.lead() + num_steps > self.max_lead_steps:
                break
            self._ask(runner, num_steps, random_actions)
            self._max_lead = max(self._max_lead, self.lead())

    def _random_steps_left(self) -> int:
        """Number of random warm-up steps that were not requested, or only from overdue runners."""
        if self._algorithm.settings.warmup_policy == "policy":
            return 0
        asked_for = self._num_queued + self._sampling.steps_in_flight(random_only=True, late=False)
        return int(self._algorithm.settings.warmup_steps - self._algorithm.env_steps - asked_for)

    def _request_round(self, stop: int) -> None:
        """Request a fragment from every runner once the last round is learned from; together they end at `stop`."""
        steps, runners = self._algorithm.env_steps, sorted(self._sampling.idle())
        if steps >= stop or self.lead() or not runners:
            return
        random_actions = self._algorithm.schedule.acts_at_random(steps)
        quotas = split_evenly(min(stop - steps, self._fragment * len(runners)), len(runners))
        for runner, quota in zip(runners, quotas, strict=True):
            if quota:
                self._ask(runner, quota, random_actions)

    def _ask(self, runner: int, num_steps: int, random_actions: bool) -> None:
        algorithm = self._algorithm
        # A replacement joins at this step, and must not repeat draws whose steps are kept.
        joins_at = algorithm.env_steps + self._num_queued
        request = SampleRequest(
            self.feeding.weights(), num_steps, random_actions, joins_at, algorithm.run_seed
        )
        block = self._sampling.ask(runner, request)
        if block is not None:
            self._queue.append(block)

    def _next_block(self, stop: int) -> Block | None:
        """The next block to learn from, cut at `stop`; None if there is none."""
        room = stop - self._algorithm.env_steps
        if room == 0 or not self._queue:
            return None
        if self.takes_turns:
            if self._sampling.steps_in_flight(late=False):
                return None
            # In the order of runners, not of arrival; the rest of a block that was cut comes first.
            self._queue = deque(sorted(self._queue, key=lambda block: block.runner))
        block, rest = self._queue.popleft().cut(room)
        if rest is not None:
            self._queue.appendleft(rest)
        return block

    def _learn_from(self, block: Block) -> None:
        algorithm = self._algorithm
        block = block._replace(episodes=algorithm.dated(block.episodes, block.start))
        due = algorithm.count(block.num_steps, block.episodes)
        algorithm.log_callbacks(block.metrics)
        if not block.is_random:
            self._lags.append(algorithm.num_updates - block.weights_seq_no)
        self.feeding.feed(block, due)
        self._sampling.begin_waiting()

    def _wait(self) -> None:
        """Wait for an event, and count the time as idle time of the learner."""
        began = time.monotonic()
        self._wait_for_event()
        self.feeding.idled(time.monotonic() - began)

    def _wait_for_event(self) -> None:
        """Wait until a block arrives or is learned from, at most `_MAX_WAIT_S`."""
        if refs := self._sampling.refs() + self.feeding.refs():
            ray.wait(refs, num_returns=1, timeout=_MAX_WAIT_S, fetch_local=True)
        else:
            time.sleep(0.1)

    def _check_timeout(self) -> None:
        """Check the timeout of runners, unless the learner still has updates to make."""
        if self.feeding.num_steps:
            self._sampling.begin_waiting()
        else:
            self._sampling.check_timeout()

    def learn_from_queue(self, stop: int) -> None:
        """Learn from the blocks that a checkpoint restored, up to step `stop`, without requesting more."""
        while (block := self._next_block(stop)) is not None:
            self._learn_from(block)

    def settle(self) -> None:
        """Wait until no request is in flight. Blocks that arrive stay queued; overdue runners are killed.

        Raises:
            UserError: If the config does not tolerate the loss of a runner.
        """
        self._receive_blocks()
        while self._sampling.steps_in_flight():
            self._sampling.abandon_overdue()
            self._wait_for_event()  # not counted as idle time: a checkpoint waits, not the learner
            self._receive_blocks()

    def call_remote_runners(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """Results of a call by remote runner, made once no request is in flight."""
        self.settle()
        return self._sampling.ask_all(call)

    def stop(self) -> None:
        """Discard all requests at the end of the run."""
        self._sampling.stop()

    def flush_metrics(self) -> dict[str, float]:
        """Metrics since the last call: idle times, lead, policy lag, bytes sent."""
        traffic, lags = self._sampling.pop_traffic(), self._lags
        metrics = {
            "learner_waited_s": self.feeding.waited_s,
            "runners_waited_s": traffic.runners_waited_s,
            "most_lead_steps": float(self._max_lead),
            "queued_steps": float(self._num_queued),
            "arrived_while_learning": float(self._arrived_while_learning),
            "weights_fetched": float(traffic.weights_fetched),
        }
        if lags:
            metrics |= {"policy_lag_mean": sum(lags) / len(lags), "policy_lag_max": float(max(lags))}
        if traffic.num_steps:
            metrics["wire_bytes_per_transition"] = traffic.num_bytes / traffic.num_steps
            metrics["weights_bytes_per_transition"] = traffic.weights_bytes / traffic.num_steps
        self._lags, self._max_lead, self._arrived_while_learning = [], 0, 0
        self.feeding.waited_s = 0.0
        return metrics

    def get_state(self) -> list[dict[str, Any]]:
        """The queued blocks with their rows, once no request is in flight."""
        self.settle()
        return [block.fetched_block()._asdict() for block in self._queue]

    def set_state(self, blocks: list[dict[str, Any]]) -> None:
        """Replace the queue by these blocks, and discard all requests in flight."""
        self._sampling.forget()
        self.feeding.forget()
        self._queue = deque(Block(**values) for values in blocks)
