"""Where rollouts come from: remote runners, each with a request in flight, or the runner in this process."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayError, UnserializableException
from ray.rllib.utils.annotations import override

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.errors import UserError, WorkerDiedError
from rllib_hpo.rllib import stack
from rllib_hpo.rllib._private import actor_manager
from rllib_hpo.rllib.remote import SampleRequest, check_tolerated, fetch, pickled_bytes, refuse_all_dead

_logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_PINGS = 1.0
_SECONDS_TO_DIE = 5.0
"""How long one that was killed is not asked for signs of life: it might still give one."""
GRACE_S = 5.0
"""How long runners get to hand on what they are at work on when the run ends."""


class Block(NamedTuple):
    """Transitions in the order they happened, that wait to be learned from: a rollout, or what is left of one."""

    rows: npt.NDArray[np.float32] | ray.ObjectRef
    """(N, width), or where the rows are."""
    start: int
    end: int
    """Those of `rows` from `start` to `end` (exclusive) are the block's."""
    episodes: list[Episode]
    """That ended in it; those of a block that is cut are counted with its last part."""
    weights_seq_no: int
    """Updates behind the weights that acted."""
    is_random: bool
    """Whether actions were random (the warm-up)."""
    runner: int = 0

    @property
    def num_steps(self) -> int:
        """Transitions in it."""
        return self.end - self.start

    def cut(self, num_steps: int) -> tuple[Block, Block | None]:
        """Its first `num_steps`, at most, and what is left, if anything is."""
        if num_steps >= self.num_steps:
            return self, None
        middle = self.start + num_steps
        return self._replace(end=middle, episodes=[]), self._replace(start=middle)

    def at_hand(self) -> Block:
        """The same with its rows here, and no others."""
        rows = ray.get(self.rows) if isinstance(self.rows, ray.ObjectRef) else self.rows
        episodes = [episode._replace(ended_at=episode.ended_at - self.start) for episode in self.episodes]
        own = rows[self.start : self.end].copy()
        return self._replace(rows=own, start=0, end=self.num_steps, episodes=episodes)


@dataclass
class Traffic:
    """What runners measured since it was last asked for."""

    num_steps: int = 0
    num_bytes: int = 0
    runners_waited_s: float = 0.0
    weights_fetched: int = 0
    """How often a runner began to act with other weights than before."""
    weights_bytes: int = 0
    """That were fetched so, pickled; runners of one node share what has come there."""

    def fetched(self, num_bytes: int) -> None:
        """Counts weights that a runner fetched; 0 bytes where it had them."""
        self.weights_fetched += num_bytes > 0
        self.weights_bytes += num_bytes


class Sampling(ABC):
    """Takes requests for rollouts and hands on what arrives, in the order of arrival."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    @abstractmethod
    def idle(self) -> list[int]:
        """Runners that could be asked now; those that were asked longest ago first."""

    @abstractmethod
    def ask(self, runner: int, request: SampleRequest) -> Block | None:
        """Hands `request` to a runner; what it yields, if that is known at once."""

    def arrived(self) -> list[Block]:
        """What has arrived since the last call."""
        return []

    def take_traffic(self) -> Traffic:
        """What was measured since the last call."""
        traffic, self.traffic = self.traffic, Traffic()
        return traffic

    def steps_in_flight(self, *, random_only: bool = False, late: bool = True) -> int:
        """Steps that were asked for and have not arrived, with or without those of runners that are `late`."""
        return 0

    def refs(self) -> list[ray.ObjectRef]:
        """What can be waited for with `ray.wait`."""
        return []

    @abstractmethod
    def give_up_the_late(self) -> None:
        """Ends runners that are `late`; Ray replaces them as those that died."""

    @abstractmethod
    def ask_all(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """What remote runners, none of them at work, answer to a call; whoever does not in time is given up."""

    @abstractmethod
    def begin_waiting(self) -> None:
        """Patience with runners begins anew."""

    @abstractmethod
    def check_patience(self) -> None:
        """Raises a UserError if none of the runners has handed on anything for too long."""

    @abstractmethod
    def forget(self) -> None:
        """Gives up all that is in flight: the run goes on from elsewhere."""

    @abstractmethod
    def stop(self) -> None:
        """Ends runners that could not be stopped without waiting for them: the run ends."""


class SamplingHere(Sampling):
    """The runner in this process, for a remote learner; a request is fulfilled at once."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self._runner = runner

    @override(Sampling)
    def idle(self) -> list[int]:
        """The one runner there is."""
        return [0]

    @override(Sampling)
    def ask(self, runner: int, request: SampleRequest) -> Block:
        """Samples."""
        if not request.random_actions:
            self.traffic.fetched(request.weights.give_to(self._runner))
        rollout = self._runner.sample(num_steps=request.num_steps, random_actions=request.random_actions)
        self.traffic.num_steps += len(rollout.rows)
        self.traffic.num_bytes += pickled_bytes(rollout.rows)
        return Block(
            rollout.rows,
            0,
            len(rollout.rows),
            rollout.episodes,
            rollout.weights_seq_no,
            request.random_actions,
        )

    @override(Sampling)
    def give_up_the_late(self) -> None:
        """Nothing: it answers at once."""

    @override(Sampling)
    def ask_all(self, call: Callable[[Any], Any]) -> dict[int, Any]:
        """Nothing: there are none."""
        return {}

    @override(Sampling)
    def begin_waiting(self) -> None:
        """Nothing: it answers at once."""

    @override(Sampling)
    def check_patience(self) -> None:
        """Nothing: it needs none."""

    @override(Sampling)
    def forget(self) -> None:
        """Nothing: nothing is ever in flight."""

    @override(Sampling)
    def stop(self) -> None:
        """Nothing: nothing is ever in flight."""


@dataclass
class _InFlight:
    """A request that a runner is at work on."""

    request: SampleRequest
    sampled: ray.ObjectRef
    rows: ray.ObjectRef
    since: float = field(default_factory=time.monotonic)


class RemoteSampling(Sampling):
    """Remote runners. Those that die are given up at once and taken back once Ray has replaced them.

    Speaks to the actors of RLlib's EnvRunnerGroup itself: RLlib's own calls return one object each, swallow
    errors, and wait for the dead.

    Args:
        algorithm: Whose runners these are.
        rows_here: Whether rows are for this process; else blocks hold references to them.
    """

    def __init__(self, algorithm: Any, *, rows_here: bool) -> None:
        super().__init__()
        self._algorithm, self._config, self._rows_here = algorithm, algorithm.config, rows_here
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
        """What has arrived since the last call; also looks after the dead and the late.

        Raises:
            Exception: What a runner raised.
            UserError: If one died and the config does not tolerate it.
        """
        waited_for = {flight.rows: runner for runner, flight in self._in_flight.items()}
        blocks = []
        # A rollout counts as arrived when its rows are on this machine: its runner's may be gone tomorrow.
        for ref in _ready(list(waited_for)):
            runner = waited_for[ref]
            flight = self._in_flight.pop(runner)
            try:
                blocks.append(self._received(runner, flight))
            except UnserializableException:  # the user's error, which cannot travel
                raise
            except RayError as error:
                self._has_died(runner, error)
        self._note_the_late()
        self._look_after_the_dead()
        if blocks:
            self.begin_waiting()
        return blocks

    def _received(self, runner: int, flight: _InFlight) -> Block:
        sampled = fetch(flight.sampled)
        rows = fetch(flight.rows) if self._rows_here else flight.rows
        is_random, traffic = flight.request.random_actions, self.traffic
        traffic.num_steps += sampled.num_rows
        traffic.num_bytes += sampled.num_bytes
        traffic.runners_waited_s += sampled.waited_s
        traffic.fetched(sampled.weights_bytes)
        return Block(rows, 0, sampled.num_rows, sampled.episodes, sampled.weights_seq_no, is_random, runner)

    def _has_died(self, runner: int, error: RayError) -> None:
        self._is_gone(runner)
        check_tolerated(self._config, error=error)
        _logger.warning("Environment runner %d died; what it was asked for is given up.", runner)

    def _is_gone(self, runner: int) -> None:
        self._manager.set_actor_state(runner, healthy=False)
        self._in_flight.pop(runner, None)
        self._late.discard(runner)

    def _note_the_late(self) -> None:
        for runner in self._overdue():
            if runner not in self._late:
                self._late.add(runner)
                _logger.warning(
                    "Environment runner %d takes longer than %s for %d steps; training goes on without waiting for "
                    "it, and gives it up if it is not done by the next checkpoint.",
                    runner,
                    self._limit,
                    self._in_flight[runner].request.num_steps,
                )

    @property
    def _allowed_s(self) -> float:
        """How long a request may take; where there is no limit, our patience is one."""
        allowed = self._config.sample_timeout_s
        return min(self._patience_s, stack.RUNNER_PATIENCE_S if allowed is None else float(allowed))

    @property
    def _patience_s(self) -> float:
        return stack.STOP_PATIENCE_S if self._algorithm.stop_requested else stack.RUNNER_PATIENCE_S

    @property
    def _limit(self) -> str:
        allowed = self._config.sample_timeout_s
        return f"{self._allowed_s:.0f} s" if allowed is None else f"sample_timeout_s={allowed}"

    def _overdue(self) -> list[int]:
        allowed, now = self._allowed_s, time.monotonic()
        return [runner for runner, flight in self._in_flight.items() if now - flight.since > allowed]

    @override(Sampling)
    def give_up_the_late(self) -> None:
        """See `Sampling`.

        Raises:
            UserError: If the config does not tolerate that runners die.
        """
        for runner in self._overdue():
            self._give_up(runner, f"took longer than {self._limit}")

    def _give_up(self, runner: int, why: str) -> None:
        """Kills one that hangs; `_look_after_the_dead` takes its replacement into service."""
        self._is_gone(runner)
        ray.kill(self._manager.actors()[runner], no_restart=False)
        self._killed_at[runner] = time.monotonic()
        if self._algorithm.stop_requested:  # what the others have done is to be saved
            _logger.warning("Environment runner %d did not answer in time; what it owes is given up.", runner)
            return
        check_tolerated(self._config, f"Environment runner {runner} {why}")
        _logger.warning("Environment runner %d %s; it was killed, and what it owes is given up.", runner, why)

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
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=self._patience_s)
        answers, over = {}, set(_ready(list(asked.values())))
        for runner, ref in asked.items():
            try:
                if ref in over:
                    answers[runner] = fetch(ref)
                else:
                    self._give_up(runner, f"did not answer for {self._patience_s:.0f} s")
            except UnserializableException:  # the user's error, which cannot travel
                raise
            except RayError as error:
                self._has_died(runner, error)
        return answers

    def _look_after_the_dead(self) -> None:
        """Asks for signs of life, without waiting, and takes those who give any back into service."""
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
            self._algorithm.runners_are_back(restored)
        if time.monotonic() < self._next_ping:
            return
        now = time.monotonic()
        self._next_ping = now + _SECONDS_BETWEEN_PINGS
        for runner, actor in self._manager.actors().items():
            if now - self._killed_at.get(runner, -math.inf) < _SECONDS_TO_DIE:
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
    def check_patience(self) -> None:
        """See `Sampling`.

        Raises:
            WorkerDiedError: If all are dead for good, or none has been there for `stack.RUNNER_PATIENCE_S`.
            UserError: If those that are there have handed on nothing for as long.
        """
        refuse_all_dead(self._manager, self._config)
        if time.monotonic() - self._waiting_since > stack.RUNNER_PATIENCE_S:
            failure = UserError if self._manager.num_healthy_actors() else WorkerDiedError
            raise failure(
                f"None of {self._config.num_env_runners} environment runners handed on samples for "
                f"{stack.RUNNER_PATIENCE_S:.0f} seconds: they died and did not come back, or they take longer "
                f"than {self._limit} for a fragment."
            )

    @override(Sampling)
    def forget(self) -> None:
        self.give_up_the_late()  # what is asked of them next would wait behind what is forgotten
        self._in_flight.clear()

    @override(Sampling)
    def stop(self) -> None:
        """See `Sampling`: RLlib would wait for them for ever."""
        if self._in_flight:
            refs = {flight.sampled: runner for runner, flight in self._in_flight.items()}
            for ref in ray.wait(list(refs), num_returns=len(refs), timeout=GRACE_S)[1]:
                ray.kill(self._manager.actors()[refs[ref]])
            self._in_flight.clear()


def _ready(refs: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Those of `refs` that are here, in their order."""
    if not refs:
        return []
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=True)
    arrived = set(ready)
    return [ref for ref in refs if ref in arrived]
