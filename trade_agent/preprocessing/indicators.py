"""Technical indicators of one asset, brought to a scale-free form.

TA-Lib computes what is recursive or needs a moving extreme. Its inputs are free of NaN by construction of AssetSeries,
and every period is passed explicitly because TA-Lib's defaults have changed between versions. Bands and averages over a
plain window are our own sums: TA-Lib's keep a running sum of squares and call a variance below 1e-14 zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import talib

from trade_agent.preprocessing.series import (
    AssetSeries,
    lagged,
    ratio_or,
    rolling_mean,
    rolling_sum,
    rolling_variance,
)

# A standard deviation below this share of the price is rounding, not movement.
FLAT = 1e-12


def recursive_warmup(period: int) -> int:
    """Bars after which the start of Wilder's average over ``period`` weighs less than 1e-6: exp(-14) = 8e-7."""
    return max(200, 14 * period)


def rsi(series: AssetSeries, *, period: int) -> np.ndarray:
    """Wilder's relative strength index as a fraction, [T, 1]; 0.5 where the close has not moved for ``period`` bars."""
    value = talib.RSI(series.close, timeperiod=period) / 100.0
    moved = rolling_sum(np.abs(series.close - lagged(series.close, 1)), period)
    # TA-Lib says 0, "only losses", for a price that never moved.
    return np.where(moved == 0.0, 0.5, value)[:, None]


def macd(series: AssetSeries, *, fast: int, slow: int, signal: int) -> np.ndarray:
    """MACD line and histogram (line minus its signal) as shares of the close, [T, 2]."""
    line, _, histogram = talib.MACD(series.close, fastperiod=fast, slowperiod=slow, signalperiod=signal)
    return np.column_stack([line / series.close, histogram / series.close])


def bollinger(series: AssetSeries, *, window: int, deviations: float) -> np.ndarray:
    """Bollinger's %b and band width, [T, 2]; NaN in the first ``window - 1`` rows.

    %b = (close - lower) / (upper - lower), 0.5 where the bands coincide; width = (upper - lower) / middle, with
    the population standard deviation.
    """
    middle = rolling_mean(series.close, window)
    half = deviations * np.sqrt(rolling_variance(series.close, window, ddof=0))
    half[half <= FLAT * middle] = 0.0
    percent_b = 0.5 + 0.5 * ratio_or(series.close - middle, half, default=0.0)
    return np.column_stack([percent_b, 2.0 * half / middle])


def atr(series: AssetSeries, *, period: int) -> np.ndarray:
    """Wilder's average true range as a share of the close, [T, 1]."""
    return (talib.ATR(series.high, series.low, series.close, timeperiod=period) / series.close)[:, None]


def adx(series: AssetSeries, *, period: int) -> np.ndarray:
    """Wilder's average directional index and (+DI - -DI), both as fractions, [T, 2]: strength and sign of a trend."""
    prices = (series.high, series.low, series.close)
    direction = talib.PLUS_DI(*prices, timeperiod=period) - talib.MINUS_DI(*prices, timeperiod=period)
    return np.column_stack([talib.ADX(*prices, timeperiod=period), direction]) / 100.0


def stochastic(series: AssetSeries, *, window: int, smooth: int) -> np.ndarray:
    """%K and its ``smooth``-bar mean %D as fractions, [T, 2]; 0.5 where the window has no range.

    %K = (close - lowest low) / (highest high - lowest low) over the last ``window`` bars.
    """
    highest = talib.MAX(series.high, timeperiod=window)
    lowest = talib.MIN(series.low, timeperiod=window)
    percent_k = ratio_or(series.close - lowest, highest - lowest, default=0.5)
    return np.column_stack([percent_k, rolling_mean(percent_k, smooth)])


def ema_distance(series: AssetSeries, *, spans: Sequence[int]) -> np.ndarray:
    """ln(close / exponential moving average) for each span, [T, len(spans)]."""
    return np.column_stack([np.log(series.close / talib.EMA(series.close, timeperiod=span)) for span in spans])
