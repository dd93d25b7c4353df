"""Hold a distance at its target by a multiplier under PID control.

Johnson, "Markov Chain Monte Carlo Policy Optimization", 4.1: the multiplier beta of the distance D between the policy
and the previous one follows the error of D. The paper adds errors and gains without units. Here, except in the
literal rule, the error is relative to the target, and beta is in units of the force that it balances,

    delta = clip(D / target - 1, -1, 3)
    I     = clip(I + K_I delta, 0, kappa_max)
    kappa = max(K_P delta + I + K_D (delta - delta_before), kappa_min)
    beta  = kappa S

with S a running mean of the norm of the value's gradient. Rewards of another scale then give the same kappa, the same
distances and the same actions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rllib_hpo.optim.steps import Steps
from rllib_hpo.settings import PositiveFloat, Settings

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

DELTA_MIN, DELTA_MAX = -1.0, 3.0
SCALE_DECAY = 0.99
"""Decay of the running mean S, per update."""
SMALLEST_BETA = 1e-6
"""Lower bound of beta, by which the force is divided."""


class MultiplierSettings(Settings):
    """Settings of the multiplier of the distance to the previous policy."""

    pid_settings: ClassVar[tuple[str, ...]] = tuple(
        "proportional_gain integral_gain derivative_gain initial_kappa min_kappa max_kappa".split()
    )
    multiplier_changeable: ClassVar[frozenset[str]] = frozenset(
        "beta target_distance proportional_gain integral_gain derivative_gain min_kappa max_kappa".split()
    )

    multiplier: Annotated[
        Literal["pid", "fixed"],
        Field(description="Multiplier beta of the distance: PID-controlled, or fixed at beta."),
    ] = "pid"
    beta: Annotated[
        PositiveFloat, Field(description="Value of the multiplier where it is 'fixed', in units of Q.")
    ] = 0.2
    target_distance: Annotated[
        PositiveFloat | Literal["auto"],
        Field(
            description="Target distance to the previous policy of the PID control; 'auto': derived from the "
            "action dimension."
        ),
    ] = "auto"
    proportional_gain: Annotated[
        NonNegative, Field(description="Proportional gain K_P of the PID control.")
    ] = 0.5
    integral_gain: Annotated[NonNegative, Field(description="Integral gain K_I of the PID control.")] = 0.05
    derivative_gain: Annotated[NonNegative, Field(description="Derivative gain K_D of the PID control.")] = (
        0.0
    )
    initial_kappa: Annotated[
        NonNegative,
        Field(description="Initial output and integral of the PID control, in units of the force."),
    ] = 2.0
    min_kappa: Annotated[
        NonNegative, Field(description="Minimum output of the PID control, in units of the force.")
    ] = 0.5
    max_kappa: Annotated[
        PositiveFloat, Field(description="Upper bound of the PID control's integral, in units of the force.")
    ] = 100.0

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        for name in ("min_kappa", "initial_kappa"):
            if getattr(self, name) > self.max_kappa:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be at most max_kappa={self.max_kappa!r}"
                )
        return self

    def notices(self) -> list[str]:
        """List settings of the multiplier that is not chosen."""
        idle = ("beta",) if self.multiplier == "pid" else self.pid_settings
        found = [f"{name} has no effect with multiplier={self.multiplier!r}." for name in given(self, idle)]
        return [*super().notices(), *found]


def given(settings: Settings, names: Iterable[str]) -> list[str]:
    """Return the settings whose values are not their defaults."""
    fields = type(settings).model_fields
    return [name for name in names if getattr(settings, name) != fields[name].default]


class Multiplier(nn.Module):
    """Hold beta and the state of its control, in buffers.

    Args:
        settings: Gains, bounds and the choice of the rule.
        target: Target of the distance.
        literal: Whether to use the paper's rule, in absolute units:
            Delta = D - target, I = (I + Delta)_+, beta = (K_P Delta + K_I I + K_D (D - D_before))_+.
    """

    kappa: Tensor
    integral: Tensor
    error: Tensor
    scale: Tensor

    def __init__(self, settings: MultiplierSettings, target: float, *, literal: bool = False) -> None:
        super().__init__()
        self.settings, self.target, self.literal = settings, target, literal
        start = settings.initial_kappa
        gain = settings.integral_gain if literal else 1.0
        self.register_buffer("kappa", torch.tensor(start))
        # Both rules then start from `initial_kappa`.
        self.register_buffer("integral", torch.tensor(start / gain if gain else 0.0))
        self.register_buffer("error", torch.zeros(()))
        self.register_buffer("scale", torch.zeros(()))

    def beta(self, scale: Tensor | None = None) -> Tensor:
        """Return the multiplier, a scalar without gradient; `scale` replaces the stored S.

        An S of 0, as before the first update or where Q is flat, counts as 1.
        """
        if self.settings.multiplier == "fixed":
            return torch.full_like(self.kappa, self.settings.beta)
        if self.literal:
            return self.kappa.clamp(min=SMALLEST_BETA)
        scale = self.scale if scale is None else scale
        return (self.kappa * torch.where(scale > 0, scale, torch.ones_like(scale))).clamp(min=SMALLEST_BETA)

    @torch.no_grad()
    def next_scale(self, norm: Tensor) -> Tensor:
        """Return S after an update whose value gradients have mean norm `norm`; the first norm is S itself."""
        mean = torch.lerp(norm, self.scale, SCALE_DECAY)
        return torch.where(self.scale > 0, mean, norm)

    def store_scale(self, steps: Steps, scale: Tensor) -> None:
        """Store S."""
        steps.assign(self.scale, scale)

    @torch.no_grad()
    def control(self, steps: Steps, distance: Tensor) -> None:
        """Update the control by the distance D of one update.

        Args:
            steps: Writes buffers.
            distance: Distance D, a scalar, equal in all replicas.
        """
        if self.settings.multiplier == "fixed":
            return
        error, integral, kappa = self._literal(distance) if self.literal else self._relative(distance)
        steps.assign(self.kappa, kappa)
        steps.assign(self.integral, integral)
        steps.assign(self.error, error)

    def _relative(self, distance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        error = (distance / self.target - 1).clamp(DELTA_MIN, DELTA_MAX)
        integral = (self.integral + settings.integral_gain * error).clamp(0, settings.max_kappa)
        change = error - self.error
        kappa = settings.proportional_gain * error + integral + settings.derivative_gain * change
        return error, integral, kappa.clamp(min=settings.min_kappa)

    def _literal(self, distance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        settings = self.settings
        error = distance - self.target
        integral = (self.integral + error).clamp(min=0)
        change = error - self.error
        terms = settings.proportional_gain * error + settings.integral_gain * integral
        return error, integral, (terms + settings.derivative_gain * change).clamp(min=0)

    def described(self) -> dict[str, Tensor]:
        """Return beta, the controller's terms and S, scalars."""
        return {
            "beta": self.beta(),
            "kappa": self.kappa.clone(),
            "pid_error": self.error.clone(),
            "pid_integral": self.integral.clone(),
            "force_norm_ema": self.scale.clone(),
        }
