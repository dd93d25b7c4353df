"""What a sampler is: state in, (action, log-density) out. All algorithms here differ in nothing else.

To add one from another package: subclass `Sampler`, subclass
`rllib_hpo.settings.ActorCriticSettings` for its hyperparameters, and register both
(`rllib_hpo.samplers.register_sampler`). README.md has a complete example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rllib_hpo.errors import UserCodeError
from rllib_hpo.networks.critics import ActionValue
from rllib_hpo.streams import TorchStreams

Mode = Literal["explore", "train"]
"""Which of its two sets of constants a sampler uses; evaluation is "train" with zero noise."""

Noise = dict[str, Tensor]
"""Standard normal draws by name, each (B, ...)."""


class Sample(NamedTuple):
    """What a sampler draws for a batch of B states."""

    action: Tensor
    """(B, A), within [-1, 1]."""
    log_prob: Tensor | None
    """(B,), the log-density that enters the entropy; None where a sampler has no tractable one."""
    penalty: Tensor | None = None
    """(B,), subtracted from the policy's objective; None for none."""

    def rows(self, rows: slice) -> Sample:
        """The sample of some of the states."""
        log_prob = None if self.log_prob is None else self.log_prob[rows]
        penalty = None if self.penalty is None else self.penalty[rows]
        return Sample(self.action[rows], log_prob, penalty)


class Sampler(nn.Module, ABC):
    """Draws actions for states; owns the policy and whatever networks the sampling needs."""

    noise_shapes: dict[str, tuple[int, ...]]
    """Standard normal noise that one draw consumes, by name, without the batch dimension."""

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
        """Draws one action per state.

        Args:
            obs: (B, S).
            noise: Standard normals named and shaped as in `noise_shapes`; zeros make it noise-free.
            mode: "explore" when acting in training, "train" in losses and evaluations.
            critic: The target critics at `obs`; their parameters never receive gradients from here.
            alpha: Temperature, a scalar tensor without gradient.
            detached_rows: The first so many rows need no gradient, which saves their backward pass.
        """

    def diagnose(
        self, obs: Tensor, noise: Noise, *, mode: Mode, critic: ActionValue, alpha: Tensor
    ) -> dict[str, Tensor]:
        """Scalars that describe how actions come about; costlier than a draw, so asked for now and then."""
        return {}


def check_sample(sample: Sample, name: str, num_states: int, action_dim: int) -> None:
    """Refuses a draw that is not what `Sample` says.

    Args:
        sample: For `num_states` states, with actions of `action_dim` components.
        name: Of the sampler.
        num_states: B.
        action_dim: A.

    Raises:
        UserCodeError: Naming the sampler, and what it returned.
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
            f"{whose} an action component of absolute value {largest:g}: all must be within [-1, 1], which is scaled "
            "to the environment's bounds later. Squash with tanh, or clamp."
        )
    for what, value in (("log_prob", sample.log_prob), ("penalty", sample.penalty)):
        if value is not None and tuple(value.shape) != (num_states,):
            raise UserCodeError(
                f"{whose} {what} of shape {tuple(value.shape)} for {num_states} states: it must have shape "
                f"({num_states},), one number for each state, as after .sum(-1) over the action's components."
            )


def draw_noise(
    sampler: Sampler, num_rows: int, streams: TorchStreams, device: torch.device | None = None
) -> Noise:
    """Standard normals for `num_rows` draws, each kind from its own stream, where that draws, and then on `device`."""
    noise = {}
    for name, shape in sampler.noise_shapes.items():
        generator = streams[name]  # torch refuses to draw anywhere but on the generator's device
        drawn = torch.randn((num_rows, *shape), generator=generator, device=generator.device)
        noise[name] = drawn if device is None else drawn.to(device)
    return noise


def zero_noise(sampler: Sampler, num_rows: int, device: torch.device | None = None) -> Noise:
    """The noise of an evaluation: none."""
    return {
        name: torch.zeros((num_rows, *shape), device=device) for name, shape in sampler.noise_shapes.items()
    }
