"""Compute soft values of multi-goal by value iteration on a grid, in float64, as reference of soft Q-learning.

Q(s, a) <- r(s, a) + gamma (1 - terminated) V(s'), V(s) = alpha log of the integral of exp(Q(s, a) / alpha) over actions
(Haarnoja et al. 2017, arXiv 1702.08165, eqs. 3 and 5).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
GOALS = ((5.0, 0.0), (-5.0, 0.0), (0.0, 5.0), (0.0, -5.0))
HALF_WIDTH = 7.0


class GridValues:
    """Hold V on a grid of states, and compute Q of any state and action by one step of lookahead.

    Args:
        alpha: Temperature.
        gamma: Discount.
        states: Number of grid points in each direction.
        actions: Number of quadrature points in each direction.
    """

    def __init__(self, alpha: float, gamma: float = 0.99, states: int = 57, actions: int = 20) -> None:
        self.alpha, self.gamma = alpha, gamma
        self.axis = np.linspace(-HALF_WIDTH, HALF_WIDTH, states)
        nodes, weights = np.polynomial.legendre.leggauss(actions)
        self.actions = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
        self._log_weights = np.log(np.outer(weights, weights).reshape(-1))
        self._states = np.stack(np.meshgrid(self.axis, self.axis, indexing="ij"), -1).reshape(-1, 2)
        self.value = np.zeros((states, states))

    def iterate(self, times: int) -> float:
        """Run a number of iterations; return the last one's change of V."""
        moved = 0.0
        for _ in range(times):
            q = self.q(self._states[:, None], self.actions[None])
            value = self._soft_maximum(q).reshape(self.value.shape)
            moved = float(np.abs(value - self.value).max())
            self.value = value
        return moved

    def _soft_maximum(self, q: Array) -> Array:
        scaled = q / self.alpha + self._log_weights
        largest = scaled.max(-1, keepdims=True)
        result: Array = self.alpha * (largest[..., 0] + np.log(np.exp(scaled - largest).sum(-1)))
        return result

    def q(self, state: Array, action: Array) -> Array:
        """Return Q by one step of lookahead, for states and actions (..., 2) that broadcast."""
        position = np.clip(state + action, -HALF_WIDTH, HALF_WIDTH)
        squared = np.min([np.square(position - goal).sum(-1) for goal in np.array(GOALS)], 0)
        reached = squared < 1
        reward = -30 * np.square(action).sum(-1) - squared + 10 * reached
        result: Array = reward + self.gamma * ~reached * self._interpolated(position)
        return result

    def _interpolated(self, position: Array) -> Array:
        """Interpolate V between the grid's points, linearly in each direction."""
        step = self.axis[1] - self.axis[0]
        scaled = (position + HALF_WIDTH) / step
        low = np.minimum(scaled.astype(int), len(self.axis) - 2)
        x, y = np.moveaxis(scaled - low, -1, 0)
        i, j = np.moveaxis(low, -1, 0)
        v = self.value
        result: Array = (1 - x) * ((1 - y) * v[i, j] + y * v[i, j + 1]) + x * (
            (1 - y) * v[i + 1, j] + y * v[i + 1, j + 1]
        )
        return result
