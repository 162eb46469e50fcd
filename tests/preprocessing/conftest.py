"""Synthetic bars: random walks with overnight gaps, intraday ranges, volume and, on request, untradable rows."""

from collections.abc import Callable

import numpy as np
import pytest

from trade_agent.data.bars import Bars


@pytest.fixture
def make_bars() -> Callable[..., Bars]:
    def make(
        num_bars: int = 600, num_assets: int = 1, *, seed: int = 0, gaps: bool = False, bar_seconds: int = 86_400
    ) -> Bars:
        rng = np.random.default_rng(seed)
        shape = (num_bars, num_assets)
        close = 100.0 * np.exp(np.cumsum(0.01 * rng.standard_normal(shape), axis=0))
        open_ = close * np.exp(0.005 * rng.standard_normal(shape))
        columns = {
            "open": open_,
            "high": np.maximum(open_, close) * np.exp(0.003 * rng.random(shape)),
            "low": np.minimum(open_, close) * np.exp(-0.003 * rng.random(shape)),
            "close": close,
            "volume": rng.lognormal(10.0, 0.5, shape),
        }
        tradable = rng.random(shape) > 0.02 if gaps else np.ones(shape, dtype=bool)
        if gaps and num_assets > 1:
            tradable[: num_bars // 3, -1] = False  # the last asset is listed later
        return Bars(
            timestamps=np.datetime64("2015-01-05", "ns") + np.arange(num_bars) * np.timedelta64(bar_seconds, "s"),
            symbols=tuple(f"S{i}" for i in range(num_assets)),
            tradable=tradable,
            calendar="24/7",
            bar_seconds=bar_seconds,
            **{name: np.where(tradable, values, np.nan) for name, values in columns.items()},
        )

    return make
