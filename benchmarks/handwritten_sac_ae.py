"""Update SAC-AE by hand-written torch, as baseline of `benchmarks.pixels`.

Networks, losses, optimizers and frequencies are those of the authors' code (Yarats et al. 2021, arXiv 1910.01741) and
of `rllib_hpo` with default settings. The replay is theirs as well: observation and next observation of each transition
as bytes, whole. It imports nothing from the package.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAMMA, TAU, ENCODER_TAU, LATENT, UNITS, FILTERS, LAYERS = 0.99, 0.01, 0.05, 50, 1_024, 32, 4
LEARNING_RATE, TEMPERATURE_RATE, LATENT_PENALTY, WEIGHT_DECAY = 1e-3, 1e-4, 1e-6, 1e-7


class Batch(NamedTuple):
    """Transitions: images (B, C, H, H) of bytes, action (B, A), reward and terminated (B, 1)."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    next_obs: Tensor


class WholeReplay:
    """Hold both images of each transition; `channels` is C and `size` H."""

    def __init__(self, channels: int, size: int, action_dim: int, capacity: int, device: str = "cpu") -> None:
        shape = capacity, channels, size, size
        self.obs, self.next_obs = (np.empty(shape, np.uint8) for _ in range(2))
        self.numbers = np.zeros((capacity, action_dim + 2), np.float32)
        self.count, self.device = 0, device

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.obs.nbytes + self.next_obs.nbytes + self.numbers.nbytes

    def add(self, obs: np.ndarray, action: np.ndarray, reward: float, next_obs: np.ndarray) -> None:
        """Store a transition that does not terminate."""
        place = self.count % len(self.obs)
        self.obs[place], self.next_obs[place] = obs, next_obs
        self.numbers[place, :-2], self.numbers[place, -2] = action, reward
        self.count += 1

    def sample(self, size: int, rng: np.random.Generator) -> Batch:
        """Draw a uniform batch."""
        places = rng.integers(min(self.count, len(self.obs)), size=size)
        images = [torch.from_numpy(each[places]).to(self.device) for each in (self.obs, self.next_obs)]
        numbers = torch.from_numpy(self.numbers[places]).to(self.device)
        return Batch(images[0], numbers[:, :-2], numbers[:, -2:-1], numbers[:, -1:], images[1])


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Make two hidden ReLU layers, (B, inputs) -> (B, outputs)."""
    hidden = nn.Linear(inputs, UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(UNITS, outputs))


def convolutions(channels: int) -> nn.Sequential:
    """Make the encoder's convolutions, of which the first has stride 2."""
    layers: list[nn.Module] = []
    for k in range(LAYERS):
        layers += [nn.Conv2d(channels if k == 0 else FILTERS, FILTERS, 3, 2 if k == 0 else 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def head(num_features: int) -> nn.Sequential:
    """Make the layers from features to a latent vector."""
    return nn.Sequential(nn.Linear(num_features, LATENT), nn.LayerNorm(LATENT), nn.Tanh())


class Decoder(nn.Module):
    """Reconstruct images of `size` pixels from latent vectors."""

    def __init__(self, channels: int, size: int, height: int) -> None:
        super().__init__()
        self.linear = nn.Linear(LATENT, FILTERS * height**2)
        inner = [[nn.ConvTranspose2d(FILTERS, FILTERS, 3), nn.ReLU()] for _ in range(LAYERS - 1)]
        last = nn.ConvTranspose2d(FILTERS, channels, 3, stride=2, output_padding=(size - 3) % 2)
        self.layers = nn.Sequential(*itertools.chain(*inner), last)
        self.height = height

    def forward(self, latent: Tensor) -> Tensor:
        """Return images (B, C, H, H) of latent vectors (B, L)."""
        features = F.relu(self.linear(latent)).view(-1, FILTERS, self.height, self.height)
        images: Tensor = self.layers(features)
        return images


class HandwrittenSACAE:
    """Make updates of SAC-AE from images of `channels` x `size` x `size` bytes."""

    def __init__(self, channels: int, size: int, action_dim: int, seed: int = 0, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        height = (size - 3) // 2 + 1 - 2 * (LAYERS - 1)
        num_features = FILTERS * height**2
        self.convolutions, self.policy = convolutions(channels), mlp(LATENT, 2 * action_dim)
        self.policy_head, self.critic_head = head(num_features), head(num_features)
        self.critics = nn.ModuleList(mlp(LATENT + action_dim, 1) for _ in range(2))
        self.decoder = Decoder(channels, size, height)
        for network in (self.convolutions, self.policy_head, self.policy, self.critic_head, self.critics):
            network.to(device)
        self.decoder.to(device)
        self.online = nn.ModuleList([self.convolutions, self.critic_head, self.critics])
        self.targets = copy.deepcopy(self.online).requires_grad_(False)
        self.log_alpha = torch.tensor(math.log(0.1), device=device, requires_grad=True)
        self.entropy, self.updates = -float(action_dim), 0

        encoder = [*self.convolutions.parameters(), *self.critic_head.parameters()]
        decoder = {"params": [*self.decoder.parameters()], "weight_decay": WEIGHT_DECAY}
        groups: list[dict[str, Any]] = [{"params": encoder}, decoder]
        adam = torch.optim.Adam
        self.critic_optimizer = adam([*encoder, *self.critics.parameters()], LEARNING_RATE, fused=True)
        own = [*self.policy_head.parameters(), *self.policy.parameters()]
        self.policy_optimizer = adam(own, LEARNING_RATE, fused=True)
        self.alpha_optimizer = adam([self.log_alpha], TEMPERATURE_RATE, (0.5, 0.999), fused=True)
        self.autoencoder_optimizer = adam(groups, LEARNING_RATE, fused=True)

    def sample(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions (B, A) and their log-densities (B, 1); features get no gradient."""
        mean, raw = self.policy(self.policy_head(features.detach())).chunk(2, dim=1)
        log_std, noise = -10 + 6 * (torch.tanh(raw) + 1), torch.randn_like(mean)
        u = mean + log_std.exp() * noise
        density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = density - 2 * (math.log(2) - u - F.softplus(-2 * u))
        return torch.tanh(u), log_prob.sum(1, keepdim=True)

    def value(self, critics: nn.Module, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of both critics, (B, 1) each."""
        inputs = torch.cat([latent, action], 1)
        first, second = (critic(inputs) for critic in critics.children())
        return first, second

    def update(self, batch: Batch) -> None:
        """Update critics and autoencoder; every second time also policy, temperature and targets."""
        obs, next_obs = batch.obs.float() / 255, batch.next_obs.float() / 255
        alpha = self.log_alpha.detach().exp()
        target_convolutions, target_head, target_critics = self.targets
        with torch.no_grad():
            action, log_prob = self.sample(self.convolutions(next_obs))
            latent = target_head(target_convolutions(next_obs))
            next_value = torch.min(*self.value(target_critics, latent, action)) - alpha * log_prob
            target = batch.reward + GAMMA * (1 - batch.terminated) * next_value
        values = self.value(self.critics, self.critic_head(self.convolutions(obs)), batch.action)
        _step(self.critic_optimizer, F.mse_loss(values[0], target) + F.mse_loss(values[1], target))
        if self.updates % 2 == 0:
            self._update_policy(obs, alpha)
            self._follow()
        self._update_autoencoder(batch.obs, obs)
        self.updates += 1

    def _update_policy(self, obs: Tensor, alpha: Tensor) -> None:
        with torch.no_grad():
            features = self.convolutions(obs)
            latent = self.critic_head(features)
        action, log_prob = self.sample(features)
        self.critics.requires_grad_(False)
        value = torch.min(*self.value(self.critics, latent, action))
        _step(self.policy_optimizer, (alpha * log_prob - value).mean())
        self.critics.requires_grad_(True)
        _step(self.alpha_optimizer, -(self.log_alpha.exp() * (log_prob + self.entropy).detach()).mean())

    def _update_autoencoder(self, images: Tensor, obs: Tensor) -> None:
        latent = self.critic_head(self.convolutions(obs))
        levels = torch.floor(images.float() / 8) / 32
        target = levels + torch.rand_like(levels) / 32 - 0.5
        error = F.mse_loss(self.decoder(latent), target)
        loss = error + LATENT_PENALTY * 0.5 * latent.pow(2).sum(1).mean()
        _step(self.autoencoder_optimizer, loss)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the targets towards the online networks."""
        for part, slow, tau in zip(self.online, self.targets, (ENCODER_TAU, ENCODER_TAU, TAU), strict=True):
            torch._foreach_lerp_(list(slow.parameters()), list(part.parameters()), tau)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
