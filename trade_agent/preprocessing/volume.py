"""Volume features of one asset. A source without volume (FX) has volume 0 and every feature here is then 0."""

from __future__ import annotations

import numpy as np

from trade_agent.preprocessing.series import (
    AssetSeries,
    lagged,
    ratio_or,
    rolling_mean,
    rolling_sum,
    rolling_variance,
)

# Below this share of the mean a standard deviation is rounding, not information.
FLAT = 1e-12


def log_volume_change(series: AssetSeries) -> np.ndarray:
    """ln(volume_t / volume_{t-1}), [T, 1]; 0 where either is 0, NaN in row 0."""
    return _log_ratio(series.volume, lagged(series.volume, 1))[:, None]


def volume_zscore(series: AssetSeries, *, window: int) -> np.ndarray:
    """(volume_t - mean) / std over the last ``window`` bars, bar t among them, [T, 1]; at most sqrt(window - 1).

    0 where the volume does not vary within the window; NaN in the first ``window - 1`` rows.
    """
    mean = rolling_mean(series.volume, window)
    std = np.sqrt(rolling_variance(series.volume, window, ddof=0))
    std[std <= FLAT * mean] = 0.0
    return ratio_or(series.volume - mean, std, default=0.0)[:, None]


def dollar_volume(series: AssetSeries, *, window: int) -> np.ndarray:
    """ln(d_t / mean of d over the last ``window`` bars), d = close * volume, [T, 1].

    0 where there is no volume; NaN in the first ``window - 1`` rows.
    """
    traded = series.close * series.volume
    return _log_ratio(traded, rolling_mean(traded, window))[:, None]


def obv_slope(series: AssetSeries, *, window: int) -> np.ndarray:
    """Change of on-balance volume over ``window`` bars as a share of the volume of those bars, [T, 1], in [-1, 1].

    On-balance volume adds the volume of a bar that closed higher and subtracts that of one that closed lower. 0 where
    nothing was traded; NaN in the first ``window`` rows.
    """
    signed = np.sign(series.close - lagged(series.close, 1)) * series.volume
    volume = rolling_sum(series.volume, window)
    return ratio_or(rolling_sum(signed, window), volume, default=0.0)[:, None]


def _log_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """ln(numerator / denominator), 0 where either is 0, NaN where the denominator is NaN."""
    missing = (numerator == 0.0) | (denominator == 0.0)
    return np.where(missing, 0.0, np.log(np.where(missing, 1.0, numerator) / np.where(missing, 1.0, denominator)))
