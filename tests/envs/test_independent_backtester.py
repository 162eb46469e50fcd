"""Another library's equity curve on the same orders: vectorbt, which shares no code with the market.

Its fee is taken of the price after slippage, ours of the price before: the rate handed to it undoes that, which is
the only thing translated. Its accounts cannot borrow, so leverage is replayed with a loan of cash that both sides of
the comparison know of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trade_agent.envs.market import reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

SeriesFactory = Callable[..., MarketSeries]
Array = np.ndarray[Any, Any]

# vectorbt compiles its loop the first time it is called on a machine: half a minute.
pytestmark = pytest.mark.slow

NUM_BARS = 120
COMMISSION_BPS, HALF_SPREAD_BPS, SLIPPAGE_BPS = 12.0, 3.0, 7.0


def rules_for(fill: str, latency_bars: int = 0, **changes: Any) -> MarketRules:
    costs = {"commission_bps": COMMISSION_BPS, "half_spread_bps": HALF_SPREAD_BPS, "slippage_bps": SLIPPAGE_BPS}
    free = {"borrow_rate": 0.0, "financing_rate": 0.0, "maintenance": 0.0, "initial_equity": 1000.0}
    return MarketRules(fill=fill, latency_bars=latency_bars, **(costs | free | changes))


def decisions(num_assets: int, seed: int) -> Array:
    """Actions [S, A]: entries, exits, flips, partial changes and holds, long and short."""
    rng = np.random.default_rng(seed)
    actions = np.round(rng.uniform(-1.0, 1.0, (NUM_BARS - 1, num_assets)), 2)
    kind = rng.random(actions.shape)
    actions = np.where(kind < 0.15, 0.0, np.where(kind < 0.3, np.sign(actions), actions))
    for s in range(1, len(actions)):
        actions[s] = np.where(rng.random(num_assets) < 0.2, -actions[s - 1], actions[s])
    return actions


def trade(series: MarketSeries, rules: MarketRules, actions: Array) -> tuple[Array, Array]:
    """Equity [T] and units [T, A] at each close, with the fills of that bar done."""
    state = reset(series, rules, torch.tensor([0]), torch.tensor([NUM_BARS - 1]))
    equity, units, cost = [state.equity], [state.units], []
    for action in torch.as_tensor(actions).unsqueeze(1):
        state, result = step(series, rules, state, action)
        assert not bool(result.terminated)
        equity.append(state.equity)
        units.append(state.units)
        cost.append(result.cost)
    curve, held = torch.cat(equity).numpy(), torch.cat(units).numpy()
    if rules.fill == "same_close":  # filled after the state of that bar was seen, and not any more at the last close
        curve = curve - np.append(torch.cat(cost).numpy(), 0.0)
        held = np.concatenate((held[1:], held[-1:]))
    return curve, held


def orders_by_bar(rules: MarketRules, weights: Array) -> Array:
    """Target weights [T, A] on the bar at which each fills; NaN for no order."""
    late = rules.latency_bars + (rules.fill != "same_close")
    orders = np.full((NUM_BARS, weights.shape[1]), np.nan)
    orders[late : late + len(weights)] = weights[: NUM_BARS - late]
    if rules.fill == "same_close":
        orders[-1] = np.nan
    return orders


def fill_prices(series: MarketSeries, rules: MarketRules) -> Array:
    return (series.open if rules.fill == "next_open" else series.close).numpy()


def replay(
    series: MarketSeries, price: Array, orders: Array, held: Array, *, size_type: str, cash: float
) -> tuple[Array, int]:
    """vectorbt's equity [T] and its number of trades; the sign of a trade is that of the change of ``held``."""
    import vectorbt

    slippage = 1e-4 * (HALF_SPREAD_BPS + SLIPPAGE_BPS)
    portfolio = vectorbt.Portfolio.from_orders(
        close=series.close.numpy(),
        size=orders,
        size_type=size_type,
        price=price,
        val_price=price,
        slippage=slippage,
        fees=1e-4 * COMMISSION_BPS / (1.0 + slippage * np.sign(np.diff(held, axis=0, prepend=0.0))),
        init_cash=cash,
        cash_sharing=True,
        group_by=True,
        raise_reject=True,
    )
    return np.asarray(portfolio.value()), len(portfolio.orders.records)


@pytest.mark.parametrize("num_assets", [1, 3])
@pytest.mark.parametrize(
    ("fill", "latency_bars"),
    [("next_open", 0), ("next_open", 2), ("next_close", 0), ("same_close", 0), ("same_close", 1)],
)
def test_the_same_target_weights_give_the_same_equity(
    fill: str, latency_bars: int, num_assets: int, random_series: SeriesFactory
) -> None:
    series = random_series(NUM_BARS, num_assets, seed=7)
    limit = 0.95 / num_assets  # leaves cash for costs, because vectorbt lends none
    rules = rules_for(fill, latency_bars, max_weight=limit)
    actions = decisions(num_assets, seed=3)
    equity, held = trade(series, rules, actions)
    orders = orders_by_bar(rules, limit * actions)
    price = fill_prices(series, rules)
    theirs, num_trades = replay(series, price, orders, held, size_type="targetpercent", cash=1000.0)
    np.testing.assert_allclose(equity, theirs, rtol=1e-9, atol=0.0)
    assert num_trades > 80 * num_assets
    assert equity.min() < 0.97 * equity.max()


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
def test_the_same_leveraged_units_give_the_same_equity(fill: str, random_series: SeriesFactory) -> None:
    series = random_series(NUM_BARS, 2, seed=11, volatility=0.004)
    rules = rules_for(fill, max_weight=3.0, max_leverage=4.0)
    equity, held = trade(series, rules, decisions(2, seed=5))
    loan = 100_000.0
    price = fill_prices(series, rules)
    theirs, _ = replay(series, price, held, held, size_type="targetamount", cash=1000.0 + loan)
    np.testing.assert_allclose(equity, theirs - loan, rtol=1e-9, atol=0.0)
    assert (np.abs(held * series.close.numpy()).sum(axis=1) / equity).max() > 3.0
