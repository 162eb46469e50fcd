"""The best policy of the leak market, by dynamic programming over a grid of positions.

The leak shows the return r of the next bar and nothing of what follows; returns are independent. With w the weight that
is held and y the one traded to, a bar is worth log(1 + y r - c |y - w|), and leaves the weight
y (1 + r) / (1 + y r - c |y - w|). The policy that maximises the mean over time solves, with g the growth of a bar,

    g + h(w) = E_r max_y [ log(1 + y r - c |y - w|) + h(w') ],

found here by relative value iteration (White, 1963; Puterman, 1994, section 8.5.4). h is linear between grid points, r
takes the equally likely values in the middle of quantiles. Nothing here knows the agents or the environment.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SWEEPS = 1000
TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class LeakOptimum:
    """growth: mean log growth of a bar. weights: [W] grid of held weights. relative_value: [W] h, 0 when flat."""

    growth: float
    weights: Floats
    relative_value: Floats
    cost: float

    def targets(self, weight: Floats, log_return: Floats) -> Floats:
        """Best weight to trade to [N], from held weights [N] and the leaked log returns [N] of the next bar."""
        return best(self.weights, self.relative_value, weight[:, None], log_return[:, None], self.cost)[1][:, 0]


def best(grid: Floats, value: Floats, weight: Floats, log_return: Floats, cost: float) -> tuple[Floats, Floats]:
    """Largest one-bar growth plus ``value`` behind it, and the weight traded to; ``weight`` and ``log_return``
    broadcast.

    The candidates are the points of the grid within [-1, 1], and to stay.
    """
    weight, log_return = np.broadcast_arrays(weight, log_return)
    candidates = grid[np.abs(grid) <= 1.0]
    stay = np.clip(weight, -1.0, 1.0)[..., None]
    choices = np.concatenate((np.broadcast_to(candidates, (*weight.shape, len(candidates))), stay), axis=-1)
    simple = np.expm1(log_return)[..., None]
    after = 1.0 + choices * simple - cost * np.abs(choices - weight[..., None])
    total = np.log(after) + np.interp(choices * (1.0 + simple) / after, grid, value)
    chosen = total.argmax(axis=-1)[..., None]
    return np.take_along_axis(total, chosen, -1)[..., 0], np.take_along_axis(choices, chosen, -1)[..., 0]


def position_grid(num_points: int, margin: float) -> Floats:
    """Evenly spaced weights from -1 to 1 and one beyond each, where a drifting short position may lie."""
    return np.concatenate(([-1.0 - margin], np.linspace(-1.0, 1.0, num_points), [1.0 + margin]))


def quantile_points(num_points: int) -> Floats:
    """Equally likely values of a standard normal: the medians of equal parts, scaled to variance 1."""
    normal = NormalDist()
    points = np.array([normal.inv_cdf((k + 0.5) / num_points) for k in range(num_points)])
    return points / points.std()


def solve(*, volatility: float, cost: float, num_weights: int = 21, num_returns: int = 400) -> LeakOptimum:
    """The optimum for normal log returns of mean 0; ``cost`` is a fraction of the traded value.

    Raises RuntimeError when the iteration has not settled.
    """
    grid = position_grid(num_weights, margin=10.0 * volatility)
    returns = volatility * quantile_points(num_returns)
    flat = int(np.argmin(np.abs(grid)))
    value = np.zeros(len(grid))
    for _ in range(SWEEPS):
        updated = best(grid, value, grid[:, None], returns[None, :], cost)[0].mean(axis=1)
        growth = float(updated[flat] - value[flat])
        change = updated - value - growth
        value = updated - updated[flat]
        if np.abs(change).max() < TOLERANCE:
            return LeakOptimum(growth, grid, value, cost)
    raise RuntimeError(f"value iteration has not settled in {SWEEPS} sweeps")
