"""Request blocks of transitions from remote runners, or from the runner in this process."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, UnserializableException
from ray.rllib.utils.annotations import override

from rllib_hpo.errors import UserError, WorkerDiedError
from rllib_hpo.rllib import stack
from rllib_hpo.rllib._private import actor_manager
from rllib_hpo.rllib.new_stack.messages import Block, SampleRequest, pickled_bytes
from rllib_hpo.rllib.remote import check_any_alive, check_tolerated, fetch

_logger = logging.getLogger(__name__)
_PING_INTERVAL_S = 1.0
_KILL_GRACE_S = 5.0
"""Seconds after a kill before the runner is pinged again: a dying actor may still answer."""
GRACE_S = 5.0
"""Seconds that runners get to finish their requests when the run ends; then they are killed."""


@dataclass
class Traffic:
    """Counters of what runners have done since they were last read."""

    num_steps: int = 0
    num_bytes: int = 0
    runners_waited_s: float = 0.0
    weights_fetched: int = 0
    """How often a runner began to act with other weights than before."""
    weights_bytes: int = 0
    """That were fetched so, pickled; runners of one node share what has come there."""

    def fetched(self, num_bytes: int) -> None:
        """Count weights that a runner fetched; 0 bytes if it had them."""
        self.weights_fetched += num_bytes > 0
        self.weights_bytes += num_bytes


class Sampling(ABC):
    """Send requests for blocks to runners, and return the blocks in the order of arrival."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    @abstractmethod
    def idle(self) -> list[int]:
        """Indices of runners without a request, least recently asked first."""

    @abstractmethod
    def ask(self, runner: int, request: SampleRequest) -> Block | None:
        """Send `request` to a runner; returns its block if there is one at once, or else None."""

    def arrived(self) -> list[Block]:
        """Blocks that have arrived since the last call."""
        return []

    def pop_traffic(self) -> Traffic:
        """Counters since the last call."""
        traffic, self.traffic = self.traffic, Traffic()
        return traffic

    def steps_in_flight(self, *, random_only: bool = False, late: bool = True) -> int:
        """Number of steps that were requested and have not arrived.

        Args:
            random_only: Count random steps (the warm-up) only.
            late: Count steps of overdue runners, too.
        """
        return 0

    def refs(self) -> list[ray.ObjectRef]:
        """References to pass to `ray.wait`."""
        return []

    @abstractmethod
    def abandon_overdue(self) -> None:
        """Kill overdue runners; Ray replaces them like those that died."""

    @abstractmethod
    def ask_all(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """Results of a call by runner; those that exceed the timeout are killed. No request may be in flight."""

    @abstractmethod
    def begin_waiting(self) -> None:
        """Restart the timeout of `check_timeout`."""

    @abstractmethod
    def check_timeout(self) -> None:
        """Raise a UserError if no block has arrived within the timeout."""

    @abstractmethod
    def forget(self) -> None:
        """Discard all requests in flight, since the state of the run was replaced."""

    @abstractmethod
    def stop(self) -> None:
        """Kill runners that do not finish in time, at the end of the run."""


class LocalSampling(Sampling):
    """Sample with the runner in this process, for a remote learner."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self._runner = runner

    @override(Sampling)
    def idle(self) -> list[int]:
        """The index of the only runner."""
        return [0]

    @override(Sampling)
    def ask(self, runner: int, request: SampleRequest) -> Block:
        """Sample at once."""
        if not request.random_actions:
            self.traffic.fetched(request.weights.give_to(self._runner))
        block: Block = self._runner.sample(num_steps=request.num_steps, random_actions=request.random_actions)
        self.traffic.num_steps += block.num_steps
        self.traffic.num_bytes += pickled_bytes(block.rows)
        return block

    @override(Sampling)
    def abandon_overdue(self) -> None:
        """Do nothing: no request is ever in flight."""

    @override(Sampling)
    def ask_all(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """Return nothing: there are no remote runners."""
        return {}

    @override(Sampling)
    def begin_waiting(self) -> None:
        """Do nothing: no request is ever in flight."""

    @override(Sampling)
    def check_timeout(self) -> None:
        """Do nothing: no request is ever in flight."""

    @override(Sampling)
    def forget(self) -> None:
        """Do nothing: no request is ever in flight."""

    @override(Sampling)
    def stop(self) -> None:
        """Do nothing: no request is ever in flight."""


@dataclass
class _InFlight:
    """A request that a runner has not answered yet."""

    request: SampleRequest
    sampled: ray.ObjectRef
    rows: ray.ObjectRef
    since: float = field(default_factory=time.monotonic)


class RemoteSampling(Sampling):
    """Sample with remote runners. Dead ones are abandoned at once, and restored when Ray has replaced them.

    Calls the actors of RLlib's EnvRunnerGroup directly: the group's own calls return one object each, swallow errors,
    and wait for dead actors.

    Args:
        algorithm: The algorithm that owns the runners.
        fetches_rows: Whether blocks hold the rows themselves; otherwise they hold references.
    """

    def __init__(self, algorithm: Any, *, fetches_rows: bool) -> None:
        super().__init__()
        self._algorithm, self._config, self._fetches_rows = algorithm, algorithm.config, fetches_rows
        self._manager = actor_manager(algorithm.env_runner_group)
        self._in_flight: dict[int, _InFlight] = {}
        self._pings: dict[int, ray.ObjectRef] = {}
        self._killed_at: dict[int, float] = {}
        self._last_asked: dict[int, int] = {}
        self._num_requests, self._late = 0, set[int]()
        self._next_ping = self._waiting_since = time.monotonic()

    @override(Sampling)
    def idle(self) -> list[int]:
        healthy = self._manager.healthy_actor_ids()
        return sorted(
            (runner for runner in healthy if runner not in self._in_flight),
            key=lambda runner: (self._last_asked.get(runner, 0), runner),
        )

    @override(Sampling)
    def ask(self, runner: int, request: SampleRequest) -> None:
        actor = self._manager.actors()[runner]
        sampled, rows = actor.apply.options(num_returns=2).remote(request)
        self._in_flight[runner] = _InFlight(request, sampled, rows)
        self._num_requests += 1
        self._last_asked[runner] = self._num_requests

    @override(Sampling)
    def arrived(self) -> list[Block]:
        """Blocks that have arrived since the last call. Also mark overdue runners and restore dead ones.

        Raises:
            Exception: What a runner raised.
            UserError: If one died and the config does not tolerate it.
        """
        waited_for = {flight.rows: runner for runner, flight in self._in_flight.items()}
        blocks = []
        # A block has arrived when its rows are on this machine: the runner's machine may fail later.
        for ref in _ready(list(waited_for)):
            runner = waited_for[ref]
            flight = self._in_flight.pop(runner)
            try:
                blocks.append(self._received(runner, flight))
            except UnserializableException:  # the user's error, which cannot travel
                raise
            except RayError as error:
                self._has_died(runner, error)
        self._mark_overdue()
        self._restore_dead()
        if blocks:
            self.begin_waiting()
        return blocks

    def _received(self, runner: int, flight: _InFlight) -> Block:
        sampled = fetch(flight.sampled)
        rows = fetch(flight.rows) if self._fetches_rows else flight.rows
        is_random, traffic = flight.request.random_actions, self.traffic
        traffic.num_steps += sampled.num_rows
        traffic.num_bytes += sampled.num_bytes
        traffic.runners_waited_s += sampled.waited_s
        traffic.fetched(sampled.weights_bytes)
        return Block(
            rows,
            0,
            sampled.num_rows,
            sampled.episodes,
            sampled.weights_seq_no,
            is_random,
            runner,
            sampled.num_relabelled,
            sampled.metrics,
        )

    def _has_died(self, runner: int, error: RayError) -> None:
        self._is_gone(runner)
        check_tolerated(self._config, error=error)
        _logger.warning("Environment runner %d died; its requested samples are discarded.", runner)

    def _is_gone(self, runner: int) -> None:
        self._manager.set_actor_state(runner, healthy=False)
        self._in_flight.pop(runner, None)
        self._late.discard(runner)

    def _mark_overdue(self) -> None:
        for runner in self._overdue():
            if runner not in self._late:
                self._late.add(runner)
                _logger.warning(
                    "Environment runner %d takes longer than %s for %d steps; training continues without it, and "
                    "replaces it if it is not done by the next checkpoint.",
                    runner,
                    self._limit,
                    self._in_flight[runner].request.num_steps,
                )

    @property
    def _allowed_s(self) -> float:
        """Timeout of a request in seconds: `sample_timeout_s`, and never more than `RUNNER_TIMEOUT_S`."""
        allowed = self._config.sample_timeout_s
        return min(self._timeout_s, stack.RUNNER_TIMEOUT_S if allowed is None else float(allowed))

    @property
    def _timeout_s(self) -> float:
        return stack.STOP_TIMEOUT_S if self._algorithm.stop_requested else stack.RUNNER_TIMEOUT_S

    @property
    def _limit(self) -> str:
        allowed = self._config.sample_timeout_s
        return f"{self._allowed_s:.0f} s" if allowed is None else f"sample_timeout_s={allowed}"

    def _overdue(self) -> list[int]:
        allowed, now = self._allowed_s, time.monotonic()
        return [runner for runner, flight in self._in_flight.items() if now - flight.since > allowed]

    @override(Sampling)
    def abandon_overdue(self) -> None:
        """See `Sampling`.

        Raises:
            UserError: If the config does not tolerate that runners die.
        """
        for runner in self._overdue():
            self._abandon(runner, f"took longer than {self._limit}")

    def _abandon(self, runner: int, why: str) -> None:
        """Kill a runner that hangs; `_restore_dead` adopts its replacement."""
        self._is_gone(runner)
        ray.kill(self._manager.actors()[runner], no_restart=False)
        self._killed_at[runner] = time.monotonic()
        if self._algorithm.stop_requested:  # the blocks of the other runners are still to be saved
            _logger.warning(
                "Environment runner %d did not respond in time; its requested samples are discarded.", runner
            )
            return
        check_tolerated(self._config, f"Environment runner {runner} {why}")
        _logger.warning(
            "Environment runner %d %s; it was killed, and its requested samples are discarded.", runner, why
        )

    @override(Sampling)
    def ask_all(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """See `Sampling`.

        Raises:
            Exception: What a runner raised.
            UserError: If one is given up and the config does not tolerate it.
        """
        actors, healthy = self._manager.actors(), self._manager.healthy_actor_ids()
        asked = {runner: actors[runner].apply.remote(call) for runner in healthy}
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=self._timeout_s)
        answers, over = {}, set(_ready(list(asked.values())))
        for runner, ref in asked.items():
            try:
                if ref in over:
                    answers[runner] = fetch(ref)
                else:
                    self._abandon(runner, f"did not respond for {self._timeout_s:.0f} s")
            except UnserializableException:  # the user's error, which cannot travel
                raise
            except RayError as error:
                self._has_died(runner, error)
        return answers

    def _restore_dead(self) -> None:
        """Ping dead runners without waiting, and restore those that answer."""
        waited_for = {ref: runner for runner, ref in self._pings.items()}
        restored = []
        for ref in _ready(list(waited_for)):
            runner = waited_for[ref]
            del self._pings[runner]
            try:
                ray.get(ref)
            except RayError:
                continue
            self._manager.set_actor_state(runner, healthy=True)
            restored.append(runner)
        if restored:
            self._algorithm.announce_restored_runners(restored)
        if time.monotonic() < self._next_ping:
            return
        now = time.monotonic()
        self._next_ping = now + _PING_INTERVAL_S
        for runner, actor in self._manager.actors().items():
            if now - self._killed_at.get(runner, -math.inf) < _KILL_GRACE_S:
                continue
            if not self._manager.is_actor_healthy(runner) and runner not in self._pings:
                self._pings[runner] = actor.ping.remote()

    @override(Sampling)
    def steps_in_flight(self, *, random_only: bool = False, late: bool = True) -> int:
        overdue = set() if late else set(self._overdue())
        return sum(
            flight.request.num_steps
            for runner, flight in self._in_flight.items()
            if runner not in overdue and (flight.request.random_actions or not random_only)
        )

    @override(Sampling)
    def refs(self) -> list[ray.ObjectRef]:
        return [flight.rows for flight in self._in_flight.values()] + list(self._pings.values())

    @override(Sampling)
    def begin_waiting(self) -> None:
        self._waiting_since = time.monotonic()

    @override(Sampling)
    def check_timeout(self) -> None:
        """See `Sampling`.

        Raises:
            WorkerDiedError: If all are dead for good, or none has been there for `stack.RUNNER_TIMEOUT_S`.
            UserError: If those that are there have handed on nothing for as long.
        """
        check_any_alive(self._manager, self._config)
        if time.monotonic() - self._waiting_since > stack.RUNNER_TIMEOUT_S:
            failure = UserError if self._manager.num_healthy_actors() else WorkerDiedError
            raise failure(
                f"None of {self._config.num_env_runners} environment runners returned samples for "
                f"{stack.RUNNER_TIMEOUT_S:.0f} seconds: they died and were not restarted, or they take longer than "
                f"{self._limit} for a fragment."
            )

    @override(Sampling)
    def forget(self) -> None:
        self.abandon_overdue()  # a new request would wait behind the discarded one
        self._in_flight.clear()

    @override(Sampling)
    def stop(self) -> None:
        """See `Sampling`; RLlib would wait for them without a limit."""
        if self._in_flight:
            refs = {flight.sampled: runner for runner, flight in self._in_flight.items()}
            for ref in ray.wait(list(refs), num_returns=len(refs), timeout=GRACE_S)[1]:
                ray.kill(self._manager.actors()[refs[ref]])
            self._in_flight.clear()


def _ready(refs: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """References whose objects are in this process's object store, in the order of `refs`."""
    if not refs:
        return []
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=True)
    arrived = set(ready)
    return [ref for ref in refs if ref in arrived]
