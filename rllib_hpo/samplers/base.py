"""Define samplers, which map states to actions and log-densities.

SAC, SAC-NF and SAC-HPO differ only in their samplers.

To add one from another package, subclass `Sampler`, subclass `rllib_hpo.settings.ActorCriticSettings` for its
hyperparameters, and register both (`rllib_hpo.samplers.register_sampler`). README.md has a complete example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rllib_hpo.errors import UserCodeError
from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.streams import TorchStreams

Mode = Literal["explore", "train"]
"""Selects one of a sampler's two sets of constants; evaluations use "train" with zero noise."""

Noise = dict[str, Tensor]
"""Standard normal draws by name, each (B, ...)."""

Given = Callable[[], tuple[ActionValue, Tensor]]
"""Returns the critic and the temperature that a draw may depend on."""


class Sample(NamedTuple):
    """Actions for a batch of B states, with their log-densities."""

    action: Tensor
    """(B, A), within [-1, 1]."""
    log_prob: Tensor | None
    """(B,), the log-density in the entropy; None if the sampler has no tractable one."""
    penalty: Tensor | None = None
    """(B,), subtracted from the policy's objective; or None."""

    def rows(self, rows: slice) -> Sample:
        """Return the sample at some of the states."""
        log_prob = None if self.log_prob is None else self.log_prob[rows]
        penalty = None if self.penalty is None else self.penalty[rows]
        return Sample(self.action[rows], log_prob, penalty)


class Sampler(nn.Module, ABC):
    """Draw actions for states; own the policy and all other networks that sampling needs."""

    noise_shapes: dict[str, tuple[int, ...]]
    """Shapes of the standard normal noise of one draw, by name, without the batch dimension."""

    @abstractmethod
    def forward(
        self,
        obs: Tensor,
        noise: Noise,
        *,
        mode: Mode,
        critic: ActionValue,
        alpha: Tensor,
        detached_rows: int = 0,
    ) -> Sample:
        """Draw one action per state.

        Args:
            obs: States, (B, S).
            noise: Standard normals with the names and shapes of `noise_shapes`; zeros for a noise-free draw.
            mode: "explore" to act in training, "train" for losses and evaluations.
            critic: The target critics at `obs`; the draw gives their parameters no gradients.
            alpha: Temperature, a scalar tensor without gradient.
            detached_rows: Number of leading rows that need no gradient; their backward pass is skipped.
        """

    def action(self, obs: Tensor, noise: Noise, *, mode: Mode, given: Given) -> Tensor:
        """Return the actions of `forward`, (B, A), for acting. Subclasses leave out what only losses need.

        Args:
            obs: See `forward`.
            noise: See `forward`.
            mode: See `forward`.
            given: Returns `critic` and `alpha` of `forward`; samplers that use neither do not call it.
        """
        critic, alpha = given()
        sample: Sample = self(obs, noise, mode=mode, critic=critic, alpha=alpha)
        return sample.action

    def diagnose(
        self, obs: Tensor, noise: Noise, *, mode: Mode, critic: ActionValue, alpha: Tensor
    ) -> dict[str, Tensor]:
        """Return scalars that describe how actions arise; costlier than a draw, so called only at intervals."""
        return {}


def check_sample(sample: Sample, name: str, num_states: int, action_dim: int) -> None:
    """Reject a draw that does not match `Sample`.

    Args:
        sample: The draw.
        name: Name of the sampler.
        num_states: Expected number of states B.
        action_dim: Expected action dimension A.

    Raises:
        UserCodeError: If it does not match; names the sampler and what it returned.
    """
    whose = f"The sampler '{name}' returned"
    if tuple(sample.action.shape) != (num_states, action_dim):
        raise UserCodeError(
            f"{whose} actions of shape {tuple(sample.action.shape)} for {num_states} states with {action_dim} action "
            f"components: they must have shape ({num_states}, {action_dim})."
        )
    largest = float(sample.action.abs().max())
    if not largest <= 1 + 1e-6:
        raise UserCodeError(
            f"{whose} an action component of absolute value {largest:g}: all must be within [-1, 1], which is "
            "later scaled to the bounds of the environment. Squash with tanh, or clamp."
        )
    for what, value in (("log_prob", sample.log_prob), ("penalty", sample.penalty)):
        if value is not None and tuple(value.shape) != (num_states,):
            raise UserCodeError(
                f"{whose} {what} of shape {tuple(value.shape)} for {num_states} states: it must have shape "
                f"({num_states},), one number for each state, for example by .sum(-1) over the action components."
            )


def draw_noise(
    sampler: Sampler, num_rows: int, streams: TorchStreams, device: torch.device | None = None
) -> Noise:
    """Draw standard normals for `num_rows` draws, each name from its own stream, and move them to `device`."""
    noise = {}
    for name, shape in sampler.noise_shapes.items():
        generator = streams[name]  # torch draws only on the generator's own device
        drawn = torch.randn((num_rows, *shape), generator=generator, device=generator.device)
        noise[name] = drawn if device is None else drawn.to(device)
    return noise


def zero_noise(sampler: Sampler, num_rows: int, device: torch.device | None = None) -> Noise:
    """Return zeros as noise, for evaluations."""
    return {
        name: torch.zeros((num_rows, *shape), device=device) for name, shape in sampler.noise_shapes.items()
    }
