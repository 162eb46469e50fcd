"""Markets whose best possible result is known: the proof that an agent can learn is made on them.

Each function of MARKETS maps (num_bars, random generator) to a Market; the numbers that describe a market stand beside
it, so that its optimum can be computed from them alone (benchmarks/optima). Bars are hourly and never closed. e, u are
standard normal throughout, and a signal at t is known at the close of bar t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import pandas as pd

from trade_agent.data.frames import SourceFrame, SourceRequest
from trade_agent.errors import DataError

SYMBOL = "SYN"
BAR_SECONDS = 3600
START = np.datetime64("2000-01-01", "ns")
FIRST_PRICE = 100.0
VOLUME = 1e6  # constant: it says nothing
MIN_BARS = 2

# Volatilities are standard deviations of the log return of a bar.
LEAK_VOLATILITY = 0.002
NOISE_VOLATILITY = 0.002
GP_VOLATILITY = 0.002  # of what the signal does not explain
GP_STRENGTH = 0.2  # standard deviation of the predictable part in units of GP_VOLATILITY
GP_REVERSION = 0.1  # phi: the signal loses this fraction a bar
AR_COEFFICIENT = 0.5
REGIME_DRIFT = 0.8  # in units of FORECAST_VOLATILITY
REGIME_STAY = 0.95
SEASONAL_AMPLITUDE = 0.8  # in units of FORECAST_VOLATILITY
SEASONAL_BARS = 24
FORECAST_VOLATILITY = 0.01
HYBRID_LAG = 4  # bars until the tradable part of the hybrid market shows
HYBRID_STRENGTH = 0.5  # of each predictable part, in units of FORECAST_VOLATILITY
ENSEMBLE_STRENGTH = 0.4  # in units of FORECAST_VOLATILITY
ENSEMBLE_STAY = 0.98


@dataclass(frozen=True, slots=True)
class Market:
    """Log returns of T bars from open to close, of the gap before each open (none where empty), and signals [T]."""

    bar_return: np.ndarray
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)
    gap: np.ndarray | None = None


def leak(num_bars: int, rng: np.random.Generator) -> Market:
    """The signal is the return of the next bar, the one that an order filled at the next open holds."""
    returns = LEAK_VOLATILITY * rng.standard_normal(num_bars + 1)
    return Market(returns[:-1], {"leak": returns[1:]})


def garleanu_pedersen(num_bars: int, rng: np.random.Generator) -> Market:
    """Simple return r_{t+1} = f_t + s u, f_{t+1} = (1 - phi) f_t + e' (Garleanu and Pedersen, 2013, eq. 1 and 2).

    The signal is f, in units of return, and starts in its stationary distribution.
    """
    factor = GP_STRENGTH * GP_VOLATILITY * autoregression(1.0 - GP_REVERSION, num_bars, rng)
    noise = GP_VOLATILITY * rng.standard_normal(num_bars)
    returns = np.concatenate(([0.0], factor[:-1])) + noise
    return Market(np.log1p(returns), {"factor": factor})


def noise(num_bars: int, rng: np.random.Generator) -> Market:
    """A driftless random walk: the expected simple return of every bar is 0, whatever is known."""
    return Market(NOISE_VOLATILITY * rng.standard_normal(num_bars) - 0.5 * NOISE_VOLATILITY**2)


def ar(num_bars: int, rng: np.random.Generator) -> Market:
    """Returns r_{t+1} = a r_t + e."""
    return Market(FORECAST_VOLATILITY * autoregression(AR_COEFFICIENT, num_bars, rng))


def regimes(num_bars: int, rng: np.random.Generator) -> Market:
    """Returns s_t d + e with a hidden regime s = +1 or -1 that stays the same with probability REGIME_STAY."""
    regime = alternating(REGIME_STAY, num_bars, rng)
    return Market(FORECAST_VOLATILITY * (REGIME_DRIFT * regime + rng.standard_normal(num_bars)))


def seasonal(num_bars: int, rng: np.random.Generator) -> Market:
    """Returns whose mean is a sine of the hour of the day, which is that of the bar's open."""
    drift = SEASONAL_AMPLITUDE * seasonal_phase(np.arange(num_bars))
    return Market(FORECAST_VOLATILITY * (drift + rng.standard_normal(num_bars)))


def hybrid(num_bars: int, rng: np.random.Generator) -> Market:
    """Only a part of what can be earned shows in the return from close to close, which the forecaster learns.

    Signal a_t moves bar t+1. Signal b_t moves the gap before bar t+2+LAG and is taken back within that bar: no return
    from close to close knows it, but an order that fills at the open of t+1 holds the gap before t+2.
    """
    a, b, rest = rng.standard_normal((3, num_bars))
    gap = HYBRID_STRENGTH * FORECAST_VOLATILITY * lagged(b, HYBRID_LAG + 2)
    drift = HYBRID_STRENGTH * FORECAST_VOLATILITY * lagged(a, 1)
    return Market(drift - gap + FORECAST_VOLATILITY * rest, {"a": a, "b": b}, gap)


def ensemble(num_bars: int, rng: np.random.Generator) -> Market:
    """A signal that is to be followed in one regime (+1) and faded in the other (-1); the regime is a signal too.

    The first quarter of the bars is regime +1, the second -1, in each of which a specialist can be trained; after that
    they alternate.
    """
    quarter = num_bars // 4
    later = alternating(ENSEMBLE_STAY, num_bars - 2 * quarter, rng)
    regime = np.concatenate((np.ones(quarter), -np.ones(quarter), later))
    signal, rest = rng.standard_normal((2, num_bars))
    drift = ENSEMBLE_STRENGTH * lagged(regime * signal, 1)
    return Market(FORECAST_VOLATILITY * (drift + rest), {"signal": signal, "regime": regime})


def autoregression(coefficient: float, num_bars: int, rng: np.random.Generator) -> np.ndarray:
    """Stationary x_{t+1} = a x_t + sqrt(1 - a^2) e of standard deviation 1, [T]."""
    first, *shocks = rng.standard_normal(num_bars).tolist()
    scale = math.sqrt(1.0 - coefficient**2)
    return np.array(list(accumulate(shocks, lambda value, shock: coefficient * value + scale * shock, initial=first)))


def alternating(stay: float, num_bars: int, rng: np.random.Generator) -> np.ndarray:
    """+1 or -1 [T], each with the same chance at first, that stays the same for another bar with probability stay."""
    turns = np.where(rng.random(num_bars) < stay, 1.0, -1.0)
    turns[0] = rng.choice([-1.0, 1.0])
    return np.cumprod(turns)


def seasonal_phase(bar: np.ndarray) -> np.ndarray:
    """sin(2 pi (h + 1/2) / 24), h the hour of the bar: nowhere zero."""
    return np.sin(2.0 * np.pi * (bar % SEASONAL_BARS + 0.5) / SEASONAL_BARS)


def lagged(values: np.ndarray, lag: int) -> np.ndarray:
    """The value of ``lag`` bars ago, 0 before there is one."""
    return np.concatenate((np.zeros(lag), values[: len(values) - lag]))


MARKETS: dict[str, Callable[[int, np.random.Generator], Market]] = {
    "leak": leak,
    "garleanu_pedersen": garleanu_pedersen,
    "noise": noise,
    "ar": ar,
    "regimes": regimes,
    "seasonal": seasonal,
    "hybrid": hybrid,
    "ensemble": ensemble,
}


def source(name: str) -> Callable[[SourceRequest], SourceFrame]:
    """The data source of a market: the same seed and length give the same bars."""

    def read(request: SourceRequest) -> SourceFrame:
        if request.num_bars is None or request.seed is None or request.num_bars < MIN_BARS:
            raise DataError(f"the market {name} has no length or no seed", "set data.num_bars and data.seed")
        # The name enters: two markets of one seed are not to share their noise.
        rng = np.random.default_rng([request.seed, *name.encode()])
        return frame_of(MARKETS[name](request.num_bars, rng))

    return read


def frame_of(market: Market) -> SourceFrame:
    """Bars whose open is the close before plus the gap; high and low are the larger and the smaller of open and
    close."""
    num_bars = len(market.bar_return)
    gap = np.zeros(num_bars) if market.gap is None else market.gap
    close = FIRST_PRICE * np.exp(np.cumsum(gap + market.bar_return))
    before = np.concatenate(([FIRST_PRICE], close[:-1]))
    open_ = before if market.gap is None else before * np.exp(gap)
    frame = pd.DataFrame(
        {
            "time": START + np.arange(num_bars) * np.timedelta64(BAR_SECONDS, "s"),
            "symbol": SYMBOL,
            "open": open_,
            "high": np.maximum(open_, close),
            "low": np.minimum(open_, close),
            "close": close,
            "volume": VOLUME,
            **market.signals,
        }
    )
    return SourceFrame(frame, calendar="24/7", signals=tuple(market.signals))
