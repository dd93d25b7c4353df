"""Write the amortization gap of policies: rows of every state and stage, a table of means, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from rllib_hpo.analysis.amortization_gap import NUM_DRAWS, Measured, amortization_gap, check_subject
from rllib_hpo.analysis.figures import to_bytes
from rllib_hpo.analysis.gap_tables import NUMBERS, ROWS, gap_figure, gap_table
from rllib_hpo.analysis.policy_shape import policy_names
from rllib_hpo.analysis.tables import Table
from rllib_hpo.deployment import DeployedPolicy
from rllib_hpo.errors import SettingsError
from rllib_hpo.results.atomic import write_atomically
from rllib_hpo.results.provenance import provenance
from rllib_hpo.streams import TorchStreams
from rllib_hpo.tasks import ActionScaling, Boundary, boundary, make_env

STRIDE = 20
"""Environment steps between the states that are measured."""


class Subject(NamedTuple):
    """A policy and what was measured of it."""

    name: str
    policy: DeployedPolicy
    measured: Measured


@torch.no_grad()
def visited_states(policy: DeployedPolicy, num_states: int, seed: int) -> Tensor:
    """Return every twentieth state (S, obs_dim) of episodes that are played as in training, normalised."""
    actor, about = policy.actor, policy.metadata
    streams = TorchStreams(seed, "states of the amortization gap")
    env, states, steps, episode = make_env(about.env, **about.env_config), list[Tensor](), 0, 0
    try:
        checked, scaling = Boundary(env), ActionScaling.of(env.action_space)
        while len(states) < num_states:
            obs = torch.from_numpy(checked.reset(env, seed + episode)[None].copy())
            memory, is_over = actor.begin_episodes(obs, explores=True), False
            while not is_over and len(states) < num_states:
                if steps % STRIDE == 0:
                    states.append(actor.normalized(obs)[0].clone())
                action = scaling.to_env(actor.act(obs, streams, memory).numpy())[0]
                following, _, terminated, truncated = checked.step(env, action.astype(env.action_space.dtype))
                obs, is_over, steps = (
                    torch.from_numpy(following[None].copy()),
                    terminated or truncated,
                    steps + 1,
                )
            episode += 1
    finally:
        boundary.close(env)
    return torch.stack(states)


def write_gap(
    policies: Sequence[DeployedPolicy],
    out: Path,
    *,
    num_states: int = 64,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> Table:
    """Measure policies, and write `gap.parquet`, `gap.csv`, `gap.md` and `gap.png` into a folder.

    Args:
        policies: Policies with their target critics.
        out: Folder; made if it is not there.
        num_states: States of each policy's own episodes, S.
        num_draws: Draws of policy and reference in each state, N.
        seed: Seed of episodes and draws.
        tell: Called with a line for each policy that is measured.

    Raises:
        UserError: If an algorithm defines no density of actions, or an environment cannot be made.
    """
    if not policies:
        raise SettingsError("Give at least one policy whose amortization gap to measure.")
    actors = [check_subject(policy.actor, policy.metadata.algorithm) for policy in policies]
    subjects = []
    for name, policy, actor in zip(policy_names(policies), policies, actors, strict=True):
        states = visited_states(policy, num_states, seed)
        measured = amortization_gap(actor, states, num_draws=num_draws, seed=seed)
        tell(f"{name}: the reference is trusted in {int(measured.trusted.sum())} of {num_states} states")
        subjects.append(Subject(name, policy, measured))
    rows = gap_rows(subjects, num_draws, seed)
    table = gap_table(rows)
    out.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    write_atomically(out / ROWS, sink.getvalue().to_pybytes())
    write_atomically(out / "gap.csv", table.to_csv().encode())
    write_atomically(out / "gap.md", table.to_markdown().encode())
    write_atomically(out / "gap.png", to_bytes(gap_figure(rows), "png"))
    return table


def gap_rows(subjects: Sequence[Subject], num_draws: int, seed: int) -> pa.Table:
    """Return a row for each policy, stage and state, with how far its reference is to be trusted."""
    rows: list[dict[str, Any]] = []
    for name, policy, measured in subjects:
        about = policy.metadata
        own = {
            "policy": name,
            "algorithm": about.algorithm,
            "task": about.task,
            "env_steps": about.env_steps,
            "alpha": _alpha(policy),
            "leapfrog_steps": about.settings.get("leapfrog_steps"),
            "num_draws": num_draws,
            "seed": seed,
            **provenance("cpu"),
        }
        of_state = {
            "floor": measured.floor,
            "trusted": measured.trusted,
            "reference_ess": measured.ess,
            "reference_acceptance": measured.acceptance,
            "reference_disagreement": measured.disagreement,
        }
        for gap in measured.gaps:
            values = {name: getattr(gap, name) for name in NUMBERS} | of_state
            rows += [
                {**own, **gap.stage._asdict(), "state": k}
                | {key: _or_none(value[k].item()) for key, value in values.items()}
                for k in range(len(measured.trusted))
            ]
    return pa.Table.from_pylist(rows)


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


def _alpha(policy: DeployedPolicy) -> float:
    actor = check_subject(policy.actor, policy.metadata.algorithm)
    return float(actor.alpha)
