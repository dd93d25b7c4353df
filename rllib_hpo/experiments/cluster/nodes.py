"""Ask every node of the cluster: does it see a directory, what is installed, what is its clock?

`python -m rllib_hpo.experiments.cluster.nodes DIRECTORY` prints it as one line of JSON; `rllib-hpo doctor` sends that
as a job.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rllib_hpo.errors import StorageError, UserError, WorkerDiedError
from rllib_hpo.experiments.cluster.ray_session import ray_session
from rllib_hpo.optim.replicas import LEARNERS_DIED_MESSAGE
from rllib_hpo.rllib.remote import successes

if TYPE_CHECKING:
    from rllib_hpo.rllib.algorithm import ActorCriticAlgorithm

TIMEOUT_S = 60.0
"""Seconds that a node may take to answer; one that does not is busy or has just died."""
REPORT = "rllib-hpo nodes: "
"""Prefix of the line with the report in a job's output."""


def alive() -> dict[str, str]:
    """Names of the live nodes of the cluster, by id."""
    return {
        node["NodeID"]: f"{node['NodeName']} ({node['NodeID'][:8]})" for node in ray.nodes() if node["Alive"]
    }


def ask(
    question: Callable[[], Any], nodes: Iterable[str] | None = None, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Call a function on every node, or some, without taking a CPU from trials; results by id, None without one."""
    remote = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in (alive() if nodes is None else nodes)
    }
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    answers: dict[str, Any] = dict.fromkeys(asked.values())
    for reference in answered:
        try:
            answers[asked[reference]] = ray.get(reference)
        except RayError:  # it died meanwhile, or cannot unpickle the question
            continue
    return answers


def seeing(directory: Path) -> dict[str, bool | None]:
    """Whether each node sees, and may write, a directory of this process; None without an answer.

    Raises:
        StorageError: If the directory cannot be written here.
    """
    with _probe(directory) as sees:
        return ask(sees)


def check_learner_sees_storage(algorithm: ActorCriticAlgorithm, directory: Path) -> None:
    """Check that all remote learners see the directory of the run, where they write the replay.

    Raises:
        UserError: Naming the remedy.
        StorageError: If the directory cannot be written here.
        WorkerDiedError: If a learner's process is gone.
    """
    if algorithm.config.num_learners == 0:
        return
    with _probe(directory) as sees:
        answer = algorithm.learner_group.foreach_learner(lambda learner, **_: sees())
    answers = successes(answer)
    if len(answers) < algorithm.config.num_learners:
        raise WorkerDiedError(LEARNERS_DIED_MESSAGE)
    if not all(answers):
        raise UserError(
            f"A remote learner is on a node that cannot access {directory}, where its replay is stored: learn in "
            "the trial's own process (num_learners=0), or give an --out that all nodes share."
        )


@contextmanager
def _probe(directory: Path) -> Iterator[Callable[[], bool]]:
    """A function for other processes that tells whether they see, and may write, a directory of this one."""
    secret, probe = uuid.uuid4().hex, directory.absolute() / f".shared-{uuid.uuid4().hex[:8]}"

    def sees() -> bool:  # nested, so that it is pickled by value: a node may lack this package
        import time

        for _ in range(20):  # network file systems may show a new file a little late
            if probe.exists():
                return probe.read_text() == secret and os.access(probe.parent, os.W_OK)
            time.sleep(0.1)
        return False

    try:
        probe.write_text(secret)
    except OSError as error:
        raise StorageError(f"Cannot write {directory}: {error.strerror or error}.") from error
    try:
        yield sees
    finally:
        probe.unlink(missing_ok=True)


def check_shared(directory: Path) -> None:
    """Check that all nodes of the cluster see a sweep's directory.

    Raises:
        UserError: Naming the nodes, and the remedy.
    """
    names = alive()
    if len(names) < 2:
        return
    blind = [names[node] for node, sees in seeing(directory).items() if sees is False]
    if blind:
        raise UserError(
            f"The directory {directory} is not shared: {', '.join(blind)} of this cluster's {len(names)} nodes "
            "cannot read or write it, so their trials would fail. Give an --out that all nodes share, or a "
            "--storage that all of them can reach (s3://bucket/prefix, gs://, ...)."
        )


def report(directory: Path) -> list[dict[str, Any]]:
    """Resources and versions of each node, whether it sees the directory, and its clock offset in seconds."""

    def has() -> dict[str, Any]:
        import platform

        found: dict[str, Any] = {"python": platform.python_version()}
        try:
            from rllib_hpo import __version__
            from rllib_hpo.results.provenance import git_commit

            found |= {"version": __version__, "commit": git_commit()}
        except Exception as error:  # noqa: BLE001  (whatever keeps it from being imported is the finding)
            found |= {"version": None, "error": f"{type(error).__name__}: {error}"}
        return found

    names, answers, sees, clocks = alive(), ask(has), seeing(directory), _clocks()
    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    return [
        {
            "name": name,
            "resources": {kind: resources[node].get(kind, 0) for kind in ("CPU", "GPU")},
            "sees": sees.get(node),
            "ahead_s": clocks.get(node),
            **(answers.get(node) or {"version": None, "error": "it does not respond"}),
        }
        for node, name in names.items()
    ]


def _clocks() -> dict[str, float | None]:
    """Clock offset of each node in seconds, accurate to half a round trip."""

    def now() -> float:
        import time

        return time.time()

    # The first question starts a worker on every node: further answers come in milliseconds. One by one, so that a
    # slow node does not shift what another says.
    return {
        node: None if answer is None else _clock_offset_s(partial(_answer, now, node))
        for node, answer in ask(now).items()
    }


def _answer(question: Callable[[], float], node: str) -> float | None:
    answer: float | None = ask(question, [node])[node]
    return answer


def _clock_offset_s(tell: Callable[[], float | None]) -> float | None:
    """Clock offset in seconds: of three round trips the shortest, assuming that the reply was stamped half-way."""
    best: tuple[float, float] | None = None
    for _ in range(3):
        before = time.time()
        there = tell()
        after = time.time()
        if there is None:
            break
        if best is None or after - before < best[0]:
            best = after - before, there - (before + after) / 2
    return None if best is None else best[1]


def main() -> None:
    """Print the report of the cluster of RAY_ADDRESS; an error is one sentence and exit code 2."""
    directory = Path(sys.argv[1]).expanduser()
    while not directory.is_dir():
        directory = directory.parent
    try:
        with ray_session(log_to_driver=False):
            line = json.dumps({"directory": str(directory), "nodes": report(directory)})
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.stdout.write(f"{REPORT}{line}\n")


if __name__ == "__main__":
    main()
