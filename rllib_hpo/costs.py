"""Define the cost of a step, a setting of the task: `cost`, with `cost_limit` and `cost_discounting`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Cost(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SpeedCost(_Cost):
    """Cost 1 in steps whose speed exceeds a limit, else 0."""

    kind: Literal["speed"] = "speed"
    limit: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Largest speed without a cost, in the units of `info["x_velocity"]`."""
    axis: Literal["x", "xy"] = "x"
    """Speed along x, or the Euclidean norm of both components."""
    absolute: bool = True
    """Whether backward motion counts too; "xy" has no sign."""


class TorqueCost(_Cost):
    """Cost of |a|, averaged over the motors, in [0, 1], for actions scaled to [-1, 1]."""

    kind: Literal["torque"] = "torque"


class InfoCost(_Cost):
    """Cost that the environment reports in `info`."""

    kind: Literal["info"] = "info"
    key: Annotated[str, Field(min_length=1)] = "cost"


Cost = SpeedCost | TorqueCost | InfoCost
CostSetting = Annotated[Cost, Field(discriminator="kind")]
CostDiscounting = Literal["discounted", "undiscounted"]


def largest_step_cost(cost: Cost) -> float | None:
    """Return the largest possible cost of one environment step; None if it is unknown."""
    return None if isinstance(cost, InfoCost) else 1.0
