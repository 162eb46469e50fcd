"""Return features of one asset. All are logarithms of price ratios, hence free of the price's scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trade_agent.preprocessing.series import AssetSeries, lagged


def log_return(series: AssetSeries, *, lags: Sequence[int]) -> np.ndarray:
    """ln(close_t / close_{t-lag}) for each lag, [T, len(lags)]; NaN in the first ``lag`` rows."""
    log_close = np.log(series.close)
    return np.column_stack([log_close - lagged(log_close, lag) for lag in lags])


def overnight_gap(series: AssetSeries) -> np.ndarray:
    """ln(open_t / close_{t-1}), [T, 1]: what happened between two bars; NaN in row 0."""
    return (np.log(series.open) - lagged(np.log(series.close), 1))[:, None]


def intraday_return(series: AssetSeries) -> np.ndarray:
    """ln(close_t / open_t), [T, 1]: what happened inside the bar."""
    return (np.log(series.close) - np.log(series.open))[:, None]


def bar_range(series: AssetSeries) -> np.ndarray:
    """ln(high_t / low_t), [T, 1]: how far the bar reached."""
    return (np.log(series.high) - np.log(series.low))[:, None]
