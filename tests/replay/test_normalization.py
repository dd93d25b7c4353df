"""Test running statistics against those of all samples at once, and normalisation against its formula."""

from __future__ import annotations

import numpy as np
import torch

from rllib_hpo.replay.normalization import ObservationNormalizer, RewardScaler


def test_moments_are_those_of_all_samples() -> None:
    values = np.random.default_rng(0).normal([3.0, -1e4], [0.5, 100.0], (1000, 2)).astype(np.float32)
    normalizer = ObservationNormalizer(2)
    for piece in np.split(values, [1, 8, 8, 500]):
        normalizer.update(piece)
    wide = values.astype(np.float64)
    np.testing.assert_allclose(normalizer.mean.numpy(), wide.mean(0), rtol=1e-6)
    # The initial mean 0 counts as 1e-4 of a sample.
    np.testing.assert_allclose(normalizer.var.numpy(), wide.var(0) + 1e-7 * wide.mean(0) ** 2, rtol=1e-5)
    assert float(normalizer.count) == 1000 + 1e-4


def test_values_are_normalised_and_clipped() -> None:
    normalizer, scaler = ObservationNormalizer(2), RewardScaler()
    with torch.no_grad():
        normalizer.mean.copy_(torch.tensor([1e6, 0.0]))
        normalizer.var.copy_(torch.tensor([4.0, 0.0]))
        scaler.var.fill_(25.0)
    obs = torch.tensor([[1e6 + 3.0, 0.0], [1e6 - 100.0, 1.0]])
    assert normalizer(obs).tolist() == [[1.5, 0.0], [-10.0, 10.0]]
    assert normalizer(obs).dtype == torch.float32
    torch.testing.assert_close(scaler(torch.tensor([-10.0, 60.0])), torch.tensor([-2.0, 10.0]))


def test_updates_happen_in_place() -> None:
    normalizer = ObservationNormalizer(3)
    before = [buffer.data_ptr() for buffer in normalizer.buffers()]
    normalizer.update(np.ones((4, 3), np.float32))
    assert [buffer.data_ptr() for buffer in normalizer.buffers()] == before
    assert list(normalizer.parameters()) == []
