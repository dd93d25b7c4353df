"""Measure how long an exported policy takes for one observation, on one CPU thread.

    python -m benchmarks.serving_latency

Networks have the settings' default sizes (256 units) and random weights, on which the cost does not
depend. The ways to serve a policy take turns, with several calls each per round. The results are the median and the
99th percentile over all calls.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

ENVIRONMENTS = ("Hopper-v4", "Humanoid-v4")
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("sac", {}),
    "sac-nf": ("sac-nf", {}),
    "sac-hpo, K = 2": ("sac-hpo", {"leapfrog_steps": 2}),
    "sac-hpo, K = 3": ("sac-hpo", {"leapfrog_steps": 3}),
}
WAYS = {"live": "in this package, eager", "torch-export": "torch-export", "onnx": "ONNX Runtime"}
CHUNK = 50
"""Consecutive calls of one way to serve."""


def servers(env_id: str, policy: str, directory: Path) -> dict[str, Callable[[], Any]]:
    """Return functions that serve one fixed observation, by way to serve."""
    import numpy as np
    import onnxruntime
    import torch
    from gymnasium.spaces import Box

    from rllib_hpo.algorithms.registry import find_settings
    from rllib_hpo.algorithms.sac import SamplerActor
    from rllib_hpo.deployment import DeployedPolicy, PolicyMetadata, write_policy
    from rllib_hpo.deployment.metadata import BoxMetadata
    from rllib_hpo.settings import ActorCriticSettings, parse_settings
    from rllib_hpo.tasks import make_env

    algorithm, changes = POLICIES[policy]
    settings, env = parse_settings(find_settings(algorithm), changes), make_env(env_id)
    assert isinstance(settings, ActorCriticSettings)
    assert isinstance(env.observation_space, Box)
    assert isinstance(env.action_space, Box)
    metadata = PolicyMetadata(
        algorithm=algorithm,
        task=env_id,
        env=env_id,
        env_config={},
        env_steps=0,
        observation_space=BoxMetadata.of(env.observation_space),
        action_space=BoxMetadata.of(env.action_space),
        settings=settings.model_dump(),
        versions={},
    )
    dims = metadata.observation_space.shape[0], metadata.action_space.shape[0]
    live = DeployedPolicy(SamplerActor(*dims, settings, seed=0), metadata)
    write_policy(live, "torch-export", directory / "policy.pt2")
    write_policy(live, "onnx", directory / "policy.onnx")
    program = torch.export.load(directory / "policy.pt2").module()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(directory / "policy.onnx"), options)
    obs = np.random.default_rng(0).normal(size=(1, dims[0])).astype(np.float32)
    tensor = torch.from_numpy(obs)
    return {
        "live": lambda: live(tensor),
        "torch-export": lambda: program(tensor),
        "onnx": lambda: session.run(None, {"obs": obs}),
    }


def measure(serve: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of each call, by way to serve."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in serve}
    with torch.no_grad():
        for round_ in range(-1, rounds):  # one more, to warm up
            for name, call in serve.items():
                for _ in range(CHUNK):
                    start = time.perf_counter()
                    call()
                    if round_ >= 0:
                        times[name].append((time.perf_counter() - start) * 1e3)
    return times


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which the given share of values lies."""
    return sorted(values)[int(share * (len(values) - 1))]


def summarise(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median and 99th percentile (ms), by way to serve."""
    return {
        name: {"median_ms": quantile(values, 0.5), "p99_ms": quantile(values, 0.99)}
        for name, values in times.items()
    }


def table(summary: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format the summary in Markdown: median, and in parentheses the 99th percentile, in milliseconds."""
    lines = [f"| policy | {' | '.join(WAYS.values())} |", "| --- |" + " ---: |" * len(WAYS)]
    for name, ways in summary.items():
        cells = [f"{ways[way]['median_ms']:.3f} ({ways[way]['p99_ms']:.3f})" for way in WAYS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_latency", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "serving_latency.json")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    summary = {}
    for env_id in ENVIRONMENTS:
        for policy in POLICIES:
            with tempfile.TemporaryDirectory() as directory:
                served = servers(env_id, policy, Path(directory))
                summary[f"{policy}, {env_id}"] = summarise(measure(served, options.rounds))
    print(table(summary))
    machine.write_json(
        options.out, {"machine": machine.facts(), "rounds": options.rounds, "chunk": CHUNK, "ms": summary}
    )


if __name__ == "__main__":
    main()
