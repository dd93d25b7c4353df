"""Check that the machine or cluster can start the actors of a config; otherwise Ray would wait forever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from rllib_hpo.errors import SettingsError
from rllib_hpo.rllib._private import captures_children, learner_bundles, runner_bundles
from rllib_hpo.rllib.cluster_address import check_cluster_address
from rllib_hpo.rllib.machines import Bundle, Machines, NodeType, Plan, cluster_machines

_NAMED = ("CPU", "GPU")


def actors_of(config: Any) -> list[dict[str, float]]:
    """Resources of each actor of an algorithm: learners, runners and evaluation runners."""
    learners = [] if config.is_old_stack else learner_bundles(config)
    evaluating = [{"CPU": 1.0}] * config.evaluation_num_env_runners
    bundles = [*learners, *runner_bundles(config), *evaluating]
    return [_without_zeros(bundle) for bundle in bundles]


@contextmanager
def ray_for_actors(config: Any) -> Iterator[None]:
    """Start Ray or connect to it if `config` has actors, and check that they have room.

    If the context fails, Ray is shut down again, unless it was running before.

    Raises:
        SettingsError: Naming what is asked for, what there is and what to change.
        UserError: The cluster that RAY_ADDRESS names does not answer.
    """
    if not (actors := actors_of(config)):
        yield
        return
    is_new = not ray.is_initialized()
    if is_new:
        check_cluster_address()
        ray.init()  # as RLlib would by itself, a little later
    try:
        check_capacity(config, actors)
        yield
    except BaseException:
        if is_new:
            ray.shutdown()
        raise


def check_capacity(config: Any, actors: Sequence[Bundle]) -> None:
    """Check that `actors` fit the placement group of the Tune trial, or else the nodes that exist or can be added.

    Raises:
        SettingsError: Naming what is asked for, what there is and what to change.
    """
    group = _placement_group()
    if group is not None:
        where, machines = "the placement group of this Tune trial", _remaining_resources(group)
    else:
        where, machines = _describe_cluster(), _live_nodes()
    if Plan(machines).place(actors) is not None:
        return
    if group is None:
        machines = cluster_machines()  # with nodes that an autoscaler can still add
        if Plan(machines).place(actors) is not None:
            return
    raise SettingsError(_capacity_message(config, actors, machines, where))


def _placement_group() -> Any:
    """Placement group of actors started in this process; None if they may go anywhere."""
    return ray.util.get_current_placement_group() if captures_children() else None


def _remaining_resources(group: Any) -> Machines:
    """Bundles of a placement group, less the resources of this process."""
    own = {kind: ray.get_runtime_context().get_assigned_resources().get(kind, 0.0) for kind in _NAMED}
    types = []
    for number, bundle in enumerate(group.bundle_specs):
        free = dict(bundle)
        for kind, taken in own.items():
            used = min(taken, free.get(kind, 0.0))
            own[kind], free[kind] = taken - used, free.get(kind, 0.0) - used
        types.append(NodeType(f"bundle {number}", free, 1))
    return Machines(tuple(types), len(types))


def _live_nodes() -> Machines:
    types = [NodeType(node["NodeName"], node["Resources"], 1) for node in ray.nodes() if node["Alive"]]
    return Machines(tuple(types), len(types))


def _describe_cluster() -> str:
    return "this machine" if sum(node["Alive"] for node in ray.nodes()) == 1 else "the Ray cluster"


def _capacity_message(config: Any, actors: Sequence[Bundle], machines: Machines, where: str) -> str:
    """Error message: the settings and what they need, what there is, and which line to change."""
    asked = {kind: sum(actor.get(kind, 0.0) for actor in actors) for kind in _NAMED}
    short = [kind for kind in _NAMED if asked[kind] > machines.total(kind)]
    there = " and ".join(_amount(machines.total(kind), kind) for kind in _NAMED)
    wanted = " and ".join(_amount(asked[kind], kind) for kind in _NAMED if asked[kind])
    fits = "" if short else ", which do not fit on its nodes"
    return (
        f"{_settings(config)} request {wanted}, but {where} has {there}{fits}, so the build would wait forever; "
        f"{_remedy(config, short, machines)}."
    )


def _settings(config: Any) -> str:
    """Settings that ask for actors, as "num_env_runners=4 and num_learners=1"."""
    names = ("num_env_runners", "evaluation_num_env_runners", "num_learners")
    given = {name: getattr(config, name) for name in names if getattr(config, name)}
    if config.num_learners and config.num_gpus_per_learner:
        given["num_gpus_per_learner"] = config.num_gpus_per_learner
    parts = [f"{name}={value}" for name, value in given.items()]
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _remedy(config: Any, short: Sequence[str], machines: Machines) -> str:
    if "GPU" in short:
        return "learn on the CPU with .learners(num_gpus_per_learner=0), or use a machine with enough GPUs"
    fewer = {
        "num_env_runners": f".env_runners(num_env_runners={_fewer_runners(config, machines)})",
        "evaluation_num_env_runners": ".evaluation(evaluation_num_env_runners=0)",
        "num_learners": ".learners(num_learners=0)",
    }
    lines = [line for name, line in fewer.items() if getattr(config, name)]
    return f"request fewer, for example with {' and '.join(lines)}, or start Ray with more: ray.init(num_cpus=...)"


def _fewer_runners(config: Any, machines: Machines) -> int:
    """Number of runners that have room if nothing else is remote."""
    runners = [_without_zeros(bundle) for bundle in runner_bundles(config)]
    return next((count for count in range(len(runners), 0, -1) if Plan(machines).place(runners[:count])), 0)


def _without_zeros(bundle: Mapping[str, Any]) -> dict[str, float]:
    return {kind: float(amount) for kind, amount in bundle.items() if amount}


def _amount(number: float, kind: str) -> str:
    return f"{number:g} {kind}{'' if number == 1 else 's'}" if number else f"no {kind}"
