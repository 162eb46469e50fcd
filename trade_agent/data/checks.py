"""Vectorised checks of the bars of one asset, [n] float64 arrays in time order. Each returns a mask, True where it
finds something.

None of them looks at the order in which the policies are applied; see cleaning.py for that.
"""

import numpy as np

STALE_RUN = 5
OUTLIER_SIGMAS = 15.0
RANGE_MULTIPLE = 15.0
# Two prices that differ by rounding in a float64 sum are the same price.
TOLERANCE = 1e-9
SPLIT_RATIOS = np.array(sorted({float(n) for n in range(2, 51)} | {1.5, 4 / 3, 1.25, 2.5, 7 / 5, 5 / 3} | {100.0}))


def outside_range(value: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """value > high or value < low, beyond rounding."""
    return (value > high * (1 + TOLERANCE)) | (value < low * (1 - TOLERANCE))


def stale_bars(prices: np.ndarray) -> np.ndarray:
    """prices [n, 4]. True for bars equal to the one before, in runs of STALE_RUN or more such bars."""
    same = np.concatenate([[False], (np.diff(prices, axis=0) == 0).all(axis=1)])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])))
    out = np.zeros(len(prices), dtype=bool)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if stop - start >= STALE_RUN:
            out[start:stop] = True
    return out


def log_returns(close: np.ndarray) -> np.ndarray:
    """[n]; the first is 0."""
    return np.concatenate([[0.0], np.diff(np.log(close))])


def outlier_returns(close: np.ndarray) -> np.ndarray:
    """|log return - median| above OUTLIER_SIGMAS robust standard deviations (1.4826 * median absolute deviation)."""
    returns = log_returns(close)
    moving = returns[1:][returns[1:] != 0]
    if len(moving) < 20:
        return np.zeros(len(close), dtype=bool)
    centre = np.median(moving)
    sigma = 1.4826 * np.median(np.abs(moving - centre))
    return (np.abs(returns - centre) > OUTLIER_SIGMAS * sigma) & (returns != 0)


def outlier_ranges(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """log(high / low) above RANGE_MULTIPLE times its median over bars that moved."""
    spread = np.log(high / low)
    moving = spread[spread > 0]
    if len(moving) < 20:
        return np.zeros(len(high), dtype=bool)
    return spread > RANGE_MULTIPLE * np.median(moving)


def nearest_split(ratio: np.ndarray, tolerance: float) -> np.ndarray:
    """The split ratio (new shares for one old; below 1 for a reverse split) within ``tolerance`` in log, NaN where
    none is."""
    options = np.concatenate([1 / SPLIT_RATIOS, SPLIT_RATIOS])
    distance = np.abs(np.log(ratio)[:, None] - np.log(options)[None, :])
    best = distance.argmin(axis=1)
    return np.where(distance[np.arange(len(ratio)), best] < tolerance, options[best], np.nan)


def factor_jumps(factor: np.ndarray, close: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the adjustment factor (adjusted / raw close) by a fifth or more, in two kinds.

    Returns (splits [n]: the ratio at the first bar after a split, 1 elsewhere; broken [n] bool: the raw price does not
    make the jump that the factor undoes, so that adjusted and raw closes are mixed). A dividend, even a large one, is
    neither.
    """
    step = np.concatenate([[1.0], factor[1:] / factor[:-1]])
    large = np.abs(np.log(step)) > np.log(1.2)
    undone = np.abs(log_returns(close) + np.log(step)) < 0.5 * np.abs(np.log(step))
    splits = np.ones(len(factor))
    where = np.flatnonzero(large & undone)
    # A dividend on the same day moves the step a little away from the ratio.
    ratios = nearest_split(step[where], tolerance=0.03)
    splits[where] = np.where(np.isnan(ratios), 1.0, ratios)
    return splits, large & ~undone


def suspected_splits(open_: np.ndarray, close: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """A jump from close to open by a simple ratio, kept by the close, with a volume that changed by that ratio for 20
    bars.

    The volume test keeps real crashes and rallies out; without volume nothing is suspected.
    """
    out = np.zeros(len(close), dtype=bool)
    if len(close) < 3:
        return out
    gap = np.concatenate([[1.0], close[:-1] / open_[1:]])
    candidates = np.flatnonzero((np.abs(np.log(gap)) > np.log(1.2)) & (np.abs(np.log(close / open_)) < 0.1))
    if len(candidates) == 0:
        return out
    for i, ratio in zip(candidates, nearest_split(gap[candidates], tolerance=0.03), strict=True):
        if np.isnan(ratio):
            continue
        before, after = np.median(volume[max(0, i - 20) : i]), np.median(volume[i : i + 20])
        if before > 0 and after > 0:
            # Nearer to the volume of a split than to an unchanged one.
            out[i] = np.log(after / before) / np.log(ratio) > 0.5
    return out


def volume_mismatch(volume: np.ndarray, other: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """One of two volumes counts units and the other money: their ratio must be a price of the bar (1 % of slack).

    All False when neither ratio resembles the price, since then the columns count something else (trades, ticks).
    """
    valid = (volume > 0) & (other > 0)
    if valid.sum() < 5:
        return np.zeros(len(volume), dtype=bool)
    price = np.sqrt(high * low)
    ratio = np.divide(volume, other, out=np.ones_like(volume), where=valid)
    for candidate in (ratio, 1 / ratio):
        if abs(np.median(np.log(candidate[valid] / price[valid]))) < np.log(1.5):
            return valid & ((candidate > high * 1.01) | (candidate < low * 0.99))
    return np.zeros(len(volume), dtype=bool)
