"""Compute statistics of interleaved measurements: ratios of medians, and the spread of per-round ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Ratio of one contestant's measurements to another's, taken in the same rounds.

    Attributes:
        value: Ratio of the two medians.
        low: 10th percentile of the ratios of the rounds.
        high: 90th percentile of the ratios of the rounds.
        rounds: Number of rounds.
    """

    value: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
        """Return the ratio of measurements; entry i of both was taken in round i.

        Raises:
            ValueError: If the two do not have the same number of rounds, or none.
        """
        above, below = np.asarray(numerator, float), np.asarray(denominator, float)
        if above.shape != below.shape or above.ndim != 1 or not above.size:
            raise ValueError(f"the rounds do not match: {above.shape} and {below.shape}")
        low, high = np.quantile(above / below, [0.1, 0.9])
        return cls(float(np.median(above) / np.median(below)), float(low), float(high), above.size)

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} - {self.high:.2f})"
