"""How often the direction of the next bar can be told at best, on the markets made for forecasters.

A Bayes filter knows how the market is made (the constants of trade_agent.data.synthetic) and sees the same returns as
the forecaster. Each function maps log returns [T] of bars in their order to the probability [T], at the close of bar t,
that the return of bar t+1 is above 0. Naming the likelier direction is then right as often as anybody can be.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trade_agent.data import synthetic

Floats = NDArray[np.float64]
NORMAL = NormalDist()


def normal_cdf(values: Floats) -> Floats:
    return np.vectorize(NORMAL.cdf, otypes=[np.float64])(values)


def ar(returns: Floats, *, coefficient: float = synthetic.AR_COEFFICIENT) -> Floats:
    """r_{t+1} given r_t is normal with mean a r_t and variance 1 - a^2, in units of the volatility."""
    scaled = returns / synthetic.FORECAST_VOLATILITY
    return normal_cdf(coefficient * scaled / math.sqrt(1.0 - coefficient**2))


def regimes(returns: Floats, *, drift: float = synthetic.REGIME_DRIFT, stay: float = synthetic.REGIME_STAY) -> Floats:
    """The forward filter of a two-state hidden Markov model (Hamilton, 1989)."""
    # log of p(r | up) / p(r | down) of each bar: the normal densities differ only in their mean.
    evidence = 2.0 * drift * returns / synthetic.FORECAST_VOLATILITY
    up = np.empty(len(returns))
    before = 0.5
    for t, log_ratio in enumerate(evidence):
        now = before / (before + (1.0 - before) * math.exp(-log_ratio))
        before = up[t] = now * stay + (1.0 - now) * (1.0 - stay)
    return up * NORMAL.cdf(drift) + (1.0 - up) * NORMAL.cdf(-drift)


def seasonal(returns: Floats, *, amplitude: float = synthetic.SEASONAL_AMPLITUDE) -> Floats:
    """The next hour of the day is known, and with it the mean; the returns say nothing. Bar 0 is that of midnight."""
    return normal_cdf(amplitude * synthetic.seasonal_phase(np.arange(1, len(returns) + 1)))


FILTERS: dict[str, Callable[[Floats], Floats]] = {"ar": ar, "regimes": regimes, "seasonal": seasonal}


def ar_accuracy(coefficient: float) -> float:
    """P(sign r_{t+1} = sign r_t) = 1/2 + arctan(a / sqrt(1 - a^2)) / pi (Sheppard, 1899)."""
    return 0.5 + math.atan(coefficient / math.sqrt(1.0 - coefficient**2)) / math.pi


def seasonal_accuracy(amplitude: float) -> float:
    """Mean of Phi(|drift|) over the hours of a day."""
    phases = synthetic.seasonal_phase(np.arange(synthetic.SEASONAL_BARS))
    return float(normal_cdf(np.abs(amplitude * phases)).mean())


def accuracy(probability_up: Floats, returns: Floats) -> float:
    """Share of bars whose direction was named right: forecast at t against the return of t+1."""
    return float(((probability_up[:-1] > 0.5) == (returns[1:] > 0.0)).mean())
