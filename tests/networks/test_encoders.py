"""Test encoder and decoder: shapes, initial weights, reconstruction targets and shifts against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from rllib_hpo.errors import SettingsError
from rllib_hpo.networks.encoders import (
    Convolutions,
    Decoder,
    LatentHead,
    feature_size,
    reconstruction_target,
    shifted,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def test_an_image_of_84_pixels_has_39200_features() -> None:
    convolutions = Convolutions(9, 84, generator=generator())
    assert convolutions.num_features == 35 * 35 * 32 == 39_200
    assert convolutions(torch.zeros(1, 9 * 84 * 84, dtype=torch.uint8)).shape == (1, 39_200)


@given(size=st.integers(7, 40), layers=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_features_are_as_large_as_said_and_decoding_restores_the_size(size: int, layers: int) -> None:
    if size < 4 * layers - 1:
        with pytest.raises(SettingsError, match=f"at least {4 * layers - 1} x {4 * layers - 1} pixels"):
            feature_size(size, layers)
        return
    convolutions = Convolutions(2, size, filters=3, num_layers=layers, generator=generator())
    images = torch.from_numpy(images_of(np.random.default_rng(size), 2, 2 * size * size))
    features = convolutions(images)
    assert features.shape == (2, convolutions.num_features) == (2, 3 * feature_size(size, layers) ** 2)
    assert Decoder(4, convolutions, generator())(torch.zeros(5, 4)).shape == (5, 2 * size * size)


def plain_convolution(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """Correlate (B, C, H, W) with (O, C, 3, 3), without padding."""
    windows = sliding_window_view(images, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight) + bias[:, None, None]


def test_encoding_equals_a_plain_one() -> None:
    convolutions = Convolutions(2, 12, filters=3, num_layers=3, generator=generator()).double()
    head = LatentHead(convolutions.num_features, 4, generator(1)).double()
    rng = np.random.default_rng(0)
    with torch.no_grad():  # initial weights are zero but for the centre
        for parameter in [*convolutions.parameters(), *head.parameters()]:
            parameter.copy_(torch.from_numpy(rng.normal(size=tuple(parameter.shape), scale=0.3)))
    images = images_of(rng, 3, 2, 12, 12)
    values = images.astype(np.float64) / 255
    for k, layer in enumerate(convolutions.layers[::2]):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        values = np.maximum(plain_convolution(values, weight, bias, stride=2 if k == 0 else 1), 0)
    linear = values.reshape(3, -1) @ head.linear.weight.detach().numpy().T + head.linear.bias.detach().numpy()
    centred = linear - linear.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + head.norm.eps)
    expected = np.tanh(normal * head.norm.weight.detach().numpy() + head.norm.bias.detach().numpy())

    flat = torch.from_numpy(images.reshape(3, -1))
    for given_images in (flat, flat.float(), flat.double()):
        found = head(convolutions(given_images)).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_initial_weights_are_orthogonal() -> None:
    """As in the authors' code: at the centre of each filter with gain sqrt 2, zero elsewhere, no bias."""
    convolutions = Convolutions(2, 12, filters=5, num_layers=2, generator=generator())
    decoder = Decoder(4, convolutions, generator(1))
    for layer in [*convolutions.layers[::2], *decoder.layers[::2]]:
        centre = layer.weight.detach()[:, :, 1, 1]
        outside = layer.weight.detach().clone()
        outside[:, :, 1, 1] = 0
        assert not outside.any()
        assert not layer.bias.any()
        small = centre if centre.shape[0] <= centre.shape[1] else centre.T
        torch.testing.assert_close(small @ small.T, 2 * torch.eye(len(small)), rtol=0, atol=1e-5)
    head = LatentHead(convolutions.num_features, 4, generator(2))
    torch.testing.assert_close(head.linear.weight @ head.linear.weight.T, torch.eye(4), rtol=0, atol=1e-5)
    again = Convolutions(2, 12, filters=5, num_layers=2, generator=generator())
    assert torch.equal(again.layers[0].weight, convolutions.layers[0].weight)


def test_targets_have_five_bits() -> None:
    images = torch.arange(256, dtype=torch.uint8)[None]
    lower = reconstruction_target(images, torch.zeros(1, 256))[0]
    assert lower.unique().tolist() == [k / 32 - 0.5 for k in range(32)]
    assert lower[7] == lower[0] != lower[8]
    upper = reconstruction_target(images, torch.full((1, 256), 0.999))[0]
    assert torch.all(upper - lower < 1 / 32)
    assert upper.max() < 0.5


@given(seed=st.integers(0, 1000), size=st.integers(3, 9))
@settings(max_examples=30, deadline=None)
def test_shifts_are_crops_of_a_padded_image(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    images, offsets = images_of(rng, 4, 3, size, size), rng.integers(-4, 5, (4, 2))
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="edge")
    expected = [
        padded[b, :, 4 + down : 4 + down + size, 4 + right : 4 + right + size]
        for b, (down, right) in enumerate(offsets)
    ]
    found = shifted(torch.from_numpy(images.reshape(4, -1)), torch.from_numpy(offsets), size)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy().reshape(4, 3, size, size), np.stack(expected))
