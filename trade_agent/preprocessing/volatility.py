"""Volatility estimators over a trailing window: standard deviation of the log return of one bar, not annualised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trade_agent.preprocessing.series import AssetSeries, lagged, rolling_mean, rolling_variance


def realised_volatility(series: AssetSeries, *, windows: Sequence[int]) -> np.ndarray:
    """sqrt(mean of r^2) of the close-to-close log returns r, [T, len(windows)]; NaN in the first ``window`` rows."""
    log_close = np.log(series.close)
    squared = np.square(log_close - lagged(log_close, 1))
    return np.column_stack([np.sqrt(rolling_mean(squared, window)) for window in windows])


def parkinson_volatility(series: AssetSeries, *, windows: Sequence[int]) -> np.ndarray:
    """sqrt(mean of ln(H/L)^2 / (4 ln 2)), [T, len(windows)] (Parkinson 1980); NaN in the first ``window - 1`` rows."""
    squared = np.square(np.log(series.high) - np.log(series.low)) / (4.0 * np.log(2.0))
    return np.column_stack([np.sqrt(rolling_mean(squared, window)) for window in windows])


def garman_klass_volatility(series: AssetSeries, *, windows: Sequence[int]) -> np.ndarray:
    """sqrt(mean of ln(H/L)^2 / 2 - (2 ln 2 - 1) ln(C/O)^2), [T, len(windows)] (Garman and Klass 1980, eq. 20).

    NaN in the first ``window - 1`` rows. Bars that close outside their range can make the mean negative: that is 0.
    """
    high_low = np.square(np.log(series.high) - np.log(series.low))
    close_open = np.square(np.log(series.close) - np.log(series.open))
    variance = 0.5 * high_low - (2.0 * np.log(2.0) - 1.0) * close_open
    return np.column_stack([np.sqrt(np.maximum(rolling_mean(variance, window), 0.0)) for window in windows])


def yang_zhang_volatility(series: AssetSeries, *, windows: Sequence[int]) -> np.ndarray:
    """sqrt(V_overnight + k V_open_close + (1 - k) V_rogers_satchell), [T, len(windows)] (Yang and Zhang 2000, eq. 7).

    k = 0.34 / (1.34 + (n + 1) / (n - 1)); the first two are sample variances. NaN in the first ``window`` rows; a
    negative sum (closes outside the range) counts as 0.
    """
    log_open, log_high, log_low, log_close = (
        np.log(price) for price in (series.open, series.high, series.low, series.close)
    )
    overnight = log_open - lagged(log_close, 1)
    up, down, change = log_high - log_open, log_low - log_open, log_close - log_open
    rogers_satchell = up * (up - change) + down * (down - change)
    columns = []
    for window in windows:
        k = 0.34 / (1.34 + (window + 1.0) / (window - 1.0))
        variance = (
            rolling_variance(overnight, window, ddof=1)
            + k * rolling_variance(change, window, ddof=1)
            + (1.0 - k) * rolling_mean(rogers_satchell, window)
        )
        columns.append(np.sqrt(np.maximum(variance, 0.0)))
    return np.column_stack(columns)
