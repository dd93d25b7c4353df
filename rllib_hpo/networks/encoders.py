"""Encode images into latent vectors and reconstruct them (Yarats et al. 2021, arXiv 1910.01741).

Images are flat rows of C * H * W values from 0 to 255, bytes or floats, channels first. Height equals width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_hpo.errors import SettingsError

_RELU_GAIN = math.sqrt(2)
_BITS = 5
"""Bits per value of a reconstruction's target, as in Glow (Kingma & Dhariwal 2018, arXiv 1807.03039)."""


def feature_size(image_size: int, num_layers: int) -> int:
    """Return the height of what the convolutions make of an image: 35 for 84 pixels and 4 layers.

    Raises:
        SettingsError: If nothing is left; it names the size and the smallest that would do.
    """
    size = (image_size - 3) // 2 + 1 - 2 * (num_layers - 1)
    if size < 1:
        least = 4 * num_layers - 1
        raise SettingsError(
            f"Images of {image_size} x {image_size} pixels are too small for conv_layers={num_layers}: use images of "
            f"at least {least} x {least} pixels, or fewer layers."
        )
    return size


class Convolutions(nn.Module):
    """Compute features of images by 3x3 convolutions with ReLU; the first has stride 2.

    Args:
        channels: Channels C, those of all stacked frames.
        image_size: Height H, equal to the width W.
        filters: Output channels of each layer.
        num_layers: Number of layers.
        generator: Generator of the initial weights.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        filters: int = 32,
        num_layers: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = channels, image_size, image_size
        size = feature_size(image_size, num_layers)
        self.feature_shape = filters, size, size
        """Shape of an image's features before they are flattened."""
        layers: list[nn.Module] = []
        for k in range(num_layers):
            layer = nn.Conv2d(channels if k == 0 else filters, filters, 3, stride=2 if k == 0 else 1)
            layers += [_delta_orthogonal(layer, generator), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    @property
    def num_features(self) -> int:
        """Number of features F of an image."""
        return math.prod(self.feature_shape)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and features."""
        return next(self.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, F) of images (B, C * H * W)."""
        scaled = images.reshape(-1, *self.image_shape).to(self.dtype) / 255.0
        features: Tensor = self.layers(scaled)
        return features.flatten(1)


class LatentHead(nn.Module):
    """Map features to a latent vector: a linear layer, layer normalisation and tanh, (B, F) -> (B, L).

    Args:
        num_features: Number of features F.
        latent_dim: Latent dimension L.
        generator: Generator of the initial weights.
    """

    def __init__(self, num_features: int, latent_dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.linear = orthogonal(nn.Linear(num_features, latent_dim), generator)
        self.norm = nn.LayerNorm(latent_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Return latent vectors (B, L), within (-1, 1), for features (B, F)."""
        return torch.tanh(self.norm(self.linear(features)))


class Decoder(nn.Module):
    """Reconstruct images from latent vectors: a linear layer and transposed convolutions that mirror `Convolutions`.

    Args:
        latent_dim: Latent dimension L.
        mirrored: The convolutions whose images are reconstructed.
        generator: Generator of the initial weights.
    """

    def __init__(
        self, latent_dim: int, mirrored: Convolutions, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self._feature_shape = mirrored.feature_shape
        filters, channels = mirrored.feature_shape[0], mirrored.image_shape[0]
        num_layers = len(mirrored.layers) // 2
        self.linear = orthogonal(nn.Linear(latent_dim, mirrored.num_features), generator)
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [_delta_orthogonal(nn.ConvTranspose2d(filters, filters, 3), generator), nn.ReLU()]
        # Stride 2 makes the same of an even size and of the odd one below it.
        padding = (mirrored.image_shape[1] - 3) % 2
        last = nn.ConvTranspose2d(filters, channels, 3, stride=2, output_padding=padding)
        self.layers = nn.Sequential(*layers, _delta_orthogonal(last, generator))

    def forward(self, latent: Tensor) -> Tensor:
        """Return reconstructions (B, C * H * W), about -0.5 to 0.5, for latent vectors (B, L)."""
        features = F.relu(self.linear(latent)).reshape(-1, *self._feature_shape)
        images: Tensor = self.layers(features)
        return images.flatten(1)


def reconstruction_target(images: Tensor, dither: Tensor) -> Tensor:
    """Return what a decoder should make of images: 5 bits of each value, dithered, within [-0.5, 0.5).

    Args:
        images: Images, (B, C * H * W), of values from 0 to 255.
        dither: Uniform numbers in [0, 1), (B, C * H * W).
    """
    bins = 2**_BITS
    levels = torch.floor(images.float() / 2 ** (8 - _BITS))
    return (levels + dither) / bins - 0.5


def shifted(images: Tensor, offsets: Tensor, image_size: int) -> Tensor:
    """Shift each image by some pixels and repeat its border (Kostrikov et al. 2021, arXiv 2004.13649).

    Args:
        images: Images, (B, C * H * W); all channels of an image are shifted alike.
        offsets: Offsets down and right, (B, 2), integers.
        image_size: Height H, equal to the width W.
    """
    places = torch.arange(image_size, device=images.device)
    rows, columns = (
        (places + offsets[:, axis, None]).clamp(0, image_size - 1) for axis in (0, 1)
    )  # (B, H) each
    pixels = (rows[:, :, None] * image_size + columns[:, None, :]).flatten(1)
    by_channel = images.reshape(len(images), -1, image_size**2)
    return by_channel.gather(2, pixels[:, None].expand_as(by_channel)).flatten(1)


def orthogonal(layer: nn.Linear, generator: torch.Generator | None) -> nn.Linear:
    """Give a linear layer orthogonal weights and no bias; returns it."""
    nn.init.orthogonal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _delta_orthogonal(layer: nn.Module, generator: torch.Generator | None) -> nn.Module:
    """Make a convolution orthogonal at its centre and zero elsewhere (Xiao et al. 2018, arXiv 1806.05393)."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    centre = layer.weight.shape[-1] // 2
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight[:, :, centre, centre], _RELU_GAIN, generator)
    return layer
