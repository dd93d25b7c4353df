"""Define the messages of runners, learners and driver: blocks of transitions, weights, requests and calls."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.utils.actor_manager import RemoteCallResults
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_hpo.algorithms.base import Episode
from rllib_hpo.errors import WorkerDiedError
from rllib_hpo.optim.replicas import LEARNER_DIED_MESSAGE
from rllib_hpo.replay.frames import Transitions
from rllib_hpo.rllib.remote import Call, successes

if TYPE_CHECKING:
    from rllib_hpo.rllib.new_stack.env_runner import ColumnarEnvRunner


class Block(NamedTuple):
    """Transitions in the order they happened: what one request for samples yields, or what is left of that."""

    rows: Any
    """`Transitions`, or a reference to them."""
    start: int
    end: int
    """Rows from `start` to `end` (exclusive) belong to the block."""
    episodes: list[Episode]
    """Episodes that ended in it; a block that is cut leaves them to its last part."""
    weights_seq_no: int
    """Number of updates made before the weights that acted."""
    is_random: bool
    """Whether actions were random (the warm-up)."""
    runner: int = 0
    num_relabelled: int = 0
    """Relabelled transitions that follow row `end`; see `rllib_hpo.replay.hindsight`."""
    metrics: dict[str, Any] | None = None
    """What callbacks have logged (`MetricsLogger.reduce`)."""

    @property
    def place(self) -> slice:
        """Where its rows stand, relabelled transitions included."""
        return slice(self.start, self.end + self.num_relabelled)

    @property
    def num_steps(self) -> int:
        """Number of transitions."""
        return self.end - self.start

    def cut(self, num_steps: int) -> tuple[Block, Block | None]:
        """Split off at most the first `num_steps`; the second part is None if nothing is left.

        Relabelled transitions and metrics stay with the last part, as do episodes.
        """
        if num_steps >= self.num_steps:
            return self, None
        middle = self.start + num_steps
        first = self._replace(end=middle, episodes=[], num_relabelled=0, metrics=None)
        return first, self._replace(start=middle)

    def fetched_block(self) -> Block:
        """This block with exactly its own rows, copied into this process."""
        rows = ray.get(self.rows) if isinstance(self.rows, ray.ObjectRef) else self.rows
        episodes = [episode._replace(ended_at=episode.ended_at - self.start) for episode in self.episodes]
        own = rows[self.place].copy()
        return self._replace(rows=own, start=0, end=self.num_steps, episodes=episodes)


class CoreCall(Call):
    """A call of a method of a Learner's `core`."""

    def __call__(self, target: Any, **_: Any) -> Any:
        """Call the method in the learner's process."""
        return super().__call__(target.core)


class Weights(NamedTuple):
    """Numbered weights of an actor."""

    number: int
    """Updates that were made before."""
    state: ray.ObjectRef
    """Reference to a result of `ActorCriticLearner.acting_state`."""
    num_bytes: int
    """Size of the pickled state, measured once by the process that made it."""

    def give_to(self, runner: ColumnarEnvRunner) -> int:
        """Load the weights into a runner of this process, unless it has them; returns the bytes fetched."""
        if runner.weights_id == self.state.hex():
            return 0
        runner.set_state({COMPONENT_RL_MODULE: self.state, WEIGHTS_SEQ_NO: self.number})
        runner.weights_id = self.state.hex()
        return self.num_bytes


class Sampled(NamedTuple):
    """Metadata of a sampled block for the driver. The rows are an object of their own, which it need not fetch."""

    num_rows: int
    episodes: list[Episode]
    weights_seq_no: int
    """Number of the weights that acted."""
    waited_s: float
    """Seconds that the runner was idle before."""
    weights_bytes: int
    """Size of the weights that it fetched for this request; 0 if it had them."""
    num_bytes: int
    """Size of the pickled rows and metadata."""
    num_relabelled: int = 0
    """Relabelled transitions after the rows."""
    metrics: dict[str, Any] | None = None
    """What callbacks have logged."""


class SampleRequest(NamedTuple):
    """A request for samples, executed in the process of a runner."""

    weights: Weights
    num_steps: int
    random_actions: bool
    joins_at: int
    """Environment step of the run, for a runner that joins it: see `ColumnarEnvRunner.join`."""
    seed: int

    def __call__(self, runner: ColumnarEnvRunner) -> tuple[Sampled, Transitions]:
        """Sample in the runner's process."""
        waited_s = seconds_since(runner.idle_since)
        runner.join(self.joins_at, self.seed)
        weights_bytes = 0 if self.random_actions else self.weights.give_to(runner)
        block = runner.sample(num_steps=self.num_steps, random_actions=self.random_actions)
        sampled = Sampled(
            block.num_steps,
            block.episodes,
            block.weights_seq_no,
            waited_s,
            weights_bytes,
            num_bytes=0,
            num_relabelled=block.num_relabelled,
            metrics=block.metrics,
        )
        num_bytes = pickled_bytes(block.rows) + pickled_bytes(sampled)
        runner.idle_since = time.perf_counter()
        return sampled._replace(num_bytes=num_bytes), block.rows


class Learned(NamedTuple):
    """Metadata of a block that a learner has finished; new weights are an object of their own."""

    waited_s: float
    """Seconds that the learner was idle before."""
    weights_bytes: int
    """Size of the pickled weights; 0 without any."""


class TrainCall(NamedTuple):
    """Rows to add and updates to make, executed in the process of a remote learner."""

    rows: slice
    num_updates: int
    gives_weights: bool = True
    """Whether to return new weights; with several learners, one returns them."""
    episodes: Sequence[Episode] = ()
    """Episodes that ended in the rows; every learner gets them."""
    num_relabelled: int = 0
    """Relabelled transitions at the end of the rows."""
    keeps_rows: bool = True
    """Whether the learner's replay stores the rows; otherwise only the method sees them."""

    def __call__(
        self, learner: Any, rows: Transitions | None = None
    ) -> tuple[Learned, dict[str, Any] | None]:
        """Add the rows (None if this learner does not need them) and make the updates.

        Returns:
            Metadata for the driver, and the new weights if they are asked for and have changed.
        """
        waited_s = seconds_since(learner.idle_since)
        own = None if rows is None else rows[self.rows]
        learner.core.add_transitions(
            own, self.episodes, keep=self.keeps_rows, num_relabelled=self.num_relabelled
        )
        learner.core.update_from_replay(self.num_updates)
        learner.idle_since = time.perf_counter()
        gives = self.gives_weights and (self.num_updates > 0 or learner.core.trainer.method.watches_rows)
        weights = learner.acting_state() if gives else None
        return Learned(waited_s, 0 if weights is None else pickled_bytes(weights)), weights


def seconds_since(moment: float | None) -> float:
    """Seconds from `moment`, a value of `time.perf_counter()`, to now; 0 for None."""
    return 0.0 if moment is None else time.perf_counter() - moment


def pickled_bytes(value: Any) -> int:
    """Size of `value` as Ray sends it: the pickle and its out-of-band buffers."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(pickled) + sum(buffer.raw().nbytes for buffer in buffers)


def single_success(results: RemoteCallResults) -> Any:
    """The result of the only learner.

    Raises:
        WorkerDiedError: If the learner's process is gone.
    """
    arrived = successes(results)
    if not arrived:
        raise WorkerDiedError(LEARNER_DIED_MESSAGE)
    return arrived[0]


def split_evenly(total: int, num: int) -> list[int]:
    """Split `total` into `num` integers that differ by at most one."""
    return [int(part) for part in np.diff(np.linspace(0, total, num + 1).astype(int))]
