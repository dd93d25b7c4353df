"""What a step costs, as a setting of the task: `cost`, beside `cost_limit` and `cost_discounting`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Cost(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SpeedCost(_Cost):
    """1 in steps whose speed is above a limit, else 0."""

    kind: Literal["speed"] = "speed"
    limit: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """In the units of `info["x_velocity"]`."""
    axis: Literal["x", "xy"] = "x"
    """Along x, or the Euclidean norm of both components."""
    absolute: bool = True
    """Whether moving backwards counts too; "xy" has no sign."""


class TorqueCost(_Cost):
    """Mean over the motors of |a| in [0, 1], of actions scaled to [-1, 1]."""

    kind: Literal["torque"] = "torque"


class InfoCost(_Cost):
    """What the environment reports in `info`."""

    kind: Literal["info"] = "info"
    key: Annotated[str, Field(min_length=1)] = "cost"


Cost = SpeedCost | TorqueCost | InfoCost
CostSetting = Annotated[Cost, Field(discriminator="kind")]
CostDiscounting = Literal["discounted", "undiscounted"]


def largest_step_cost(cost: Cost) -> float | None:
    """The most that one step of the environment can cost; None where that is not known."""
    return None if isinstance(cost, InfoCost) else 1.0
