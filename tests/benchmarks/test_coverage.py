"""Test the measure of exploration against closed forms, and that it plays policies as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage

ZOO = Path(__file__).resolve().parents[2] / "zoo"


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_entropy_of_known_densities(dim: int) -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(20_000, dim))
    exact = dim / 2 * np.log(2 * np.pi * np.e)
    assert coverage.entropy(normal) == pytest.approx(exact, abs=0.05 * dim)
    uniform = rng.uniform(0, 3, size=(20_000, dim))
    assert coverage.entropy(uniform) == pytest.approx(dim * np.log(3), abs=0.05 * dim)
    assert coverage.entropy(2 * normal) == pytest.approx(coverage.entropy(normal) + dim * np.log(2))


def test_policies_explore_with_their_steps_and_without() -> None:
    paths = [ZOO / "sac-pendulum.safetensors", ZOO / "sac-hpo-pendulum.safetensors"]
    explored = list(coverage.explore(paths, num_batches=2, num_steps=300))
    assert [(one.task, one.name, one.leapfrog_steps) for one in explored] == [
        ("Pendulum-v1", "sac-pendulum", 0),
        ("Pendulum-v1", "sac-hpo-pendulum", 3),
        ("Pendulum-v1", "sac-hpo-pendulum", 0),
    ]
    for one in explored:
        assert [batch.shape for batch in one.batches] == [(300, 3)] * 2
        assert not np.array_equal(*one.batches)
    assert not np.array_equal(explored[1].batches[0], explored[2].batches[0])
    again = coverage.visited(coverage.load_policy_file(paths[0]), 300, seed=1)
    assert np.array_equal(again, explored[0].batches[1])
    # Together they are standardized, so scales do not matter.
    measured = coverage.entropies(explored)
    scaled = [one._replace(batches=[7 * batch for batch in one.batches]) for one in explored]
    assert coverage.entropies(scaled)[2]["entropies"] == pytest.approx(measured[2]["entropies"])


def test_what_is_not_measured_is_none() -> None:
    rows = [
        {"policy": "sac-hpo-hopper-seed0", "leapfrog_steps": 2, "entropies": [1.0]},
        {"policy": "sac-hopper-seed0", "leapfrog_steps": 0, "entropies": [2.0]},
    ]
    assert coverage.find(rows, "hopper", "sac") == [2.0]
    assert coverage.find(rows, "hopper", "sac-hpo", steps=True) == [1.0]
    assert coverage.find(rows, "hopper", "sac-hpo") is None
