"""Does a transformation of bars look ahead? Replace the future, and demand the past unchanged to the last bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trade_agent.data.bars import Bars
from trade_agent.errors import DataError

Transform = Callable[[Bars], np.ndarray]


@dataclass(frozen=True, slots=True)
class Leak:
    """Replacing the bars after ``t`` changed the value at ``index`` = (row, ...), row <= t, by ``difference``."""

    t: int
    index: tuple[int, ...]
    difference: float


@dataclass(frozen=True, slots=True)
class CausalityReport:
    """``points`` are the t that were tried, ``leaks`` one entry (the earliest value that changed) per t that failed."""

    points: tuple[int, ...]
    leaks: tuple[Leak, ...]

    @property
    def ok(self) -> bool:
        return not self.leaks


def check_causal(transform: Transform, bars: Bars, *, num_points: int, seed: int, first: int = 0) -> CausalityReport:
    """Replace everything after t for ``num_points`` random t >= ``first`` and compare rows <= t bit by bit.

    ``transform`` maps bars to an array [T, ...] whose row t is said to be known once bar t has closed. Whatever it fits
    must be frozen beforehand, or be part of it with ``first`` after the rows it fits on. Half of the points lie next to
    gaps where there are any: a back-fill shows only there. The timestamps after t move by a week as well. Raises
    DataError where there is no t to try, or when ``transform`` does not give one row per bar.
    """
    rng = np.random.default_rng(seed)
    points = _points(bars, num_points, first, rng)
    base = _rows(transform(bars), bars.num_bars)
    leaks = []
    for number, t in enumerate(points):
        # Every second future has gaps of its own, every other keeps the gaps as they are.
        future = replace_future(bars, t, rng=rng, move_gaps=number % 2 == 1)
        change = _first_difference(base[: t + 1], _rows(transform(future), bars.num_bars)[: t + 1])
        if change is not None:
            leaks.append(Leak(t, *change))
    return CausalityReport(tuple(points), tuple(leaks))


def check_isolated(transform: Transform, bars: Bars, *, seed: int) -> CausalityReport:
    """Replace all bars of every asset but one, in turn, and demand that one's values [T, a, ...] bit-identical.

    For transformations that are to treat each asset on its own; ``t`` of a leak is then the asset. A fill from one
    ticker into the next fails here even where it takes nothing from the future.
    """
    rng = np.random.default_rng(seed)
    base = _rows(transform(bars), bars.num_bars)
    leaks = []
    for asset in range(bars.num_assets):
        others = np.arange(bars.num_assets) != asset
        changed = _rows(transform(_replace(bars, 0, others, rng, move_gaps=True)), bars.num_bars)
        leak = _first_difference(base[:, asset], changed[:, asset])
        if leak is not None:
            (row, *rest), difference = leak
            leaks.append(Leak(asset, (row, asset, *rest), difference))
    return CausalityReport(tuple(range(bars.num_assets)), tuple(leaks))


def replace_future(bars: Bars, t: int, *, rng: np.random.Generator, move_gaps: bool) -> Bars:
    """Bars equal up to and including t; other prices, volumes and times after it, with ``move_gaps`` other gaps too."""
    future = _replace(bars, t + 1, np.ones(bars.num_assets, dtype=bool), rng, move_gaps=move_gaps)
    timestamps = bars.timestamps.copy()
    timestamps[t + 1 :] += np.timedelta64(7, "D")  # keeps weekdays and hours, and the order
    return dataclasses.replace(future, timestamps=timestamps)


def _replace(bars: Bars, start: int, assets: np.ndarray, rng: np.random.Generator, *, move_gaps: bool) -> Bars:
    """Random walks with a tenth of volatility per bar for the chosen assets from ``start`` on, never what was there."""
    length = bars.num_bars - start
    shape = (length, int(assets.sum()))
    closes = 50.0 * np.exp(np.cumsum(0.1 * rng.standard_normal(shape), axis=0))
    opens = closes * np.exp(0.05 * rng.standard_normal(shape))
    spread = np.exp(0.05 * np.abs(rng.standard_normal(shape)))
    columns = {
        "open": opens,
        "high": np.maximum(opens, closes) * spread,
        "low": np.minimum(opens, closes) / spread,
        "close": closes,
        "volume": 1.0 + 1e6 * rng.random(shape),
    }
    tradable = bars.tradable.copy()
    if move_gaps:
        tradable[start:, assets] = rng.random(shape) < 0.9
    signals = {}
    for name, values in bars.signals.items():
        signal = values.copy()
        signal[start:, assets] = rng.standard_normal(shape)
        signals[name] = np.where(tradable, signal, np.nan)
    changed: dict[str, Any] = {"tradable": tradable, "signals": signals}
    for name, values in columns.items():
        column = getattr(bars, name).copy()
        column[start:, assets] = values
        changed[name] = np.where(tradable, column, np.nan)
    return dataclasses.replace(bars, **changed)


def _points(bars: Bars, num_points: int, first: int, rng: np.random.Generator) -> list[int]:
    """Distinct t in [first, T - 2], ascending, up to half of them in or right before a gap."""
    candidates = np.arange(first, bars.num_bars - 1)
    if num_points < 1 or len(candidates) == 0:
        raise DataError(f"no bar to try between {first} and {bars.num_bars - 2}", "give more bars")
    gap = np.any(~bars.tradable, axis=1)
    beside = candidates[gap[candidates] | gap[candidates + 1]]
    chosen = rng.choice(beside, size=min(num_points // 2, len(beside)), replace=False)
    rest = np.setdiff1d(candidates, chosen)
    chosen = np.concatenate([chosen, rng.choice(rest, size=min(num_points - len(chosen), len(rest)), replace=False)])
    return sorted(int(t) for t in chosen)


def _rows(values: np.ndarray, num_bars: int) -> np.ndarray:
    values = np.ascontiguousarray(values)
    if values.shape[:1] != (num_bars,):
        raise DataError(f"the transform gave shape {values.shape} for {num_bars} bars", "give one row per bar")
    return values


def _first_difference(before: np.ndarray, after: np.ndarray) -> tuple[tuple[int, ...], float] | None:
    """Index and size of the first value whose bits differ; None when all bits agree. Two NaN count as equal."""
    if before.shape != after.shape:
        return (0,) * before.ndim, float("inf")
    if before.tobytes() == after.tobytes():
        return None
    same = (before == after) & (np.signbit(before) == np.signbit(after)) | (np.isnan(before) & np.isnan(after))
    if same.all():
        return None
    index = tuple(int(i) for i in np.argwhere(~same)[0])
    return index, float(abs(float(after[index]) - float(before[index])))
