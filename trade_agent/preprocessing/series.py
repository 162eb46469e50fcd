"""The bars of one asset as the feature functions see them, and trailing-window sums over them.

All arrays are float64 of shape [T], where T counts only the rows in which the asset was tradable: a suspended day is no
bar of that asset, and TA-Lib would never recover from the NaN it carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trade_agent.errors import PreprocessingError

PRICE_COLUMNS = ("open", "high", "low", "close")
COLUMNS = (*PRICE_COLUMNS, "volume")


@dataclass(frozen=True, slots=True)
class AssetSeries:
    """One asset's tradable bars.

    ``timestamps`` [T] datetime64[ns] UTC, the moment each bar opens; prices [T] in units of the first close, so that
    the absolute thresholds inside TA-Lib (1e-14) mean the same for a price of 0.0001 and one of 50,000; ``volume`` [T]
    in the unit of the source, 0 where there is none; ``signals`` [T] each, as they came. Nothing is NaN.
    """

    timestamps: np.ndarray
    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    bar_seconds: int
    signals: Mapping[str, np.ndarray] = field(default_factory=dict)


def asset_series(
    *,
    symbol: str,
    timestamps: np.ndarray,
    open: np.ndarray,
    high: np.ndarray,
    low: np.ndarray,
    close: np.ndarray,
    volume: np.ndarray,
    bar_seconds: int,
    signals: Mapping[str, np.ndarray] | None = None,
) -> AssetSeries:
    """Build an AssetSeries from float64 columns [T] of one symbol; the prices are divided by the first close.

    A NaN volume means that the source has none and becomes 0. Raises PreprocessingError, naming column, symbol and
    time, for a price that is NaN, infinite, zero or negative and for a volume that is infinite or negative.
    """
    volume = np.where(np.isnan(volume), 0.0, volume)
    for name, values in zip(PRICE_COLUMNS, (open, high, low, close), strict=True):
        _refuse(~(np.isfinite(values) & (values > 0.0)), name, values, "a finite price above 0", symbol, timestamps)
    _refuse(~(np.isfinite(volume) & (volume >= 0.0)), "volume", volume, "finite and not negative", symbol, timestamps)
    unit = close[0] if len(close) else 1.0
    prices = (open / unit, high / unit, low / unit, close / unit)
    return AssetSeries(timestamps, *prices, volume, bar_seconds, signals or {})


def _refuse(bad: np.ndarray, column: str, values: np.ndarray, wanted: str, symbol: str, timestamps: np.ndarray) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise PreprocessingError(
            f"column '{column}' of {symbol} is {values[row]} at {timestamps[row]}, expected {wanted}",
            "correct the data or mark the bar as not tradable",
        )


def signal(series: AssetSeries, *, name: str) -> np.ndarray:
    """A column of the source as it is, [T, 1]. Raises PreprocessingError where the bars have none of that name."""
    if name not in series.signals:
        known = ", ".join(series.signals) or "none"
        raise PreprocessingError(f"the bars have no signal '{name}'", f"they have: {known}")
    return series.signals[name][:, None]


def lagged(values: np.ndarray, lag: int) -> np.ndarray:
    """``values`` [T] moved ``lag`` bars into the future: row t holds the value of t - lag, NaN before there is one."""
    out = np.full(len(values), np.nan)
    out[lag:] = values[: len(values) - lag]
    return out


def rolling_sum(values: np.ndarray, window: int) -> np.ndarray:
    """Sum over the last ``window`` bars, [T] -> [T]; NaN in the first ``window - 1`` rows.

    Adds ``window`` shifted copies. A cumulative sum would be shorter and would carry the rounding of the whole past
    into each row; here row t is a function of its own window alone, to the last bit.
    """
    length = len(values) - window + 1
    out = np.full(len(values), np.nan)
    if length > 0:
        total = np.zeros(length)
        for start in range(window):
            total += values[start : start + length]
        out[window - 1 :] = total
    return out


def rolling_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last ``window`` bars, [T] -> [T]; NaN in the first ``window - 1`` rows."""
    return rolling_sum(values, window) / window


def rolling_variance(values: np.ndarray, window: int, *, ddof: int) -> np.ndarray:
    """Variance over the last ``window`` bars in two passes (no cancellation), [T] -> [T]; NaN while incomplete."""
    length = len(values) - window + 1
    out = np.full(len(values), np.nan)
    if length > 0:
        mean = rolling_mean(values, window)[window - 1 :]
        total = np.zeros(length)
        for start in range(window):
            total += np.square(values[start : start + length] - mean)
        out[window - 1 :] = total / (window - ddof)
    return out


def ratio_or(numerator: np.ndarray, denominator: np.ndarray, *, default: float) -> np.ndarray:
    """``numerator / denominator``, and ``default`` where the denominator is 0. NaN stays NaN."""
    out = np.full(len(numerator), default)
    return np.divide(numerator, denominator, out=out, where=denominator != 0.0)
