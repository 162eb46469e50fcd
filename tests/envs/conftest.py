from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

FREE: dict[str, Any] = {
    "commission_bps": 0.0,
    "half_spread_bps": 0.0,
    "slippage_bps": 0.0,
    "borrow_rate": 0.0,
    "financing_rate": 0.0,
    "initial_equity": 100.0,
}


@pytest.fixture(scope="session")
def free_rules() -> Callable[..., MarketRules]:
    """Rules without any cost, an account of 100, and what the test changes."""
    return lambda **changes: MarketRules(**(FREE | changes))


@pytest.fixture(scope="session")
def price_series() -> Callable[..., MarketSeries]:
    """Series from lists of opens and closes of one asset."""

    def build(opens: list[float], closes: list[float], tradable: list[bool] | None = None) -> MarketSeries:
        mask = torch.ones(len(opens), 1, dtype=torch.bool) if tradable is None else torch.tensor(tradable).unsqueeze(-1)
        return MarketSeries(
            open=torch.tensor(opens, dtype=torch.float64).unsqueeze(-1),
            close=torch.tensor(closes, dtype=torch.float64).unsqueeze(-1),
            tradable=mask,
        )

    return build


@pytest.fixture(scope="session")
def random_series() -> Callable[..., MarketSeries]:
    """Random walks with overnight gaps; with ``suspensions`` a fifth of the rows cannot be traded."""

    def build(
        num_bars: int = 60, num_assets: int = 2, seed: int = 0, volatility: float = 0.02, suspensions: bool = False
    ) -> MarketSeries:
        rng = np.random.default_rng(seed)
        moves = np.cumsum(volatility * rng.standard_normal((2 * num_bars, num_assets)), axis=0)
        path = 50.0 * np.exp(moves)
        opens, closes = path[0::2].copy(), path[1::2].copy()
        tradable = np.ones((num_bars, num_assets), dtype=bool)
        if suspensions:
            tradable = rng.random((num_bars, num_assets)) > 0.2
            for t in range(num_bars):
                opens[t] = np.where(tradable[t], opens[t], closes[t - 1] if t else 1.0)
                closes[t] = np.where(tradable[t], closes[t], closes[t - 1] if t else 1.0)
        return MarketSeries(torch.tensor(opens), torch.tensor(closes), torch.tensor(tradable))

    return build
