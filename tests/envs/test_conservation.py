"""Money is neither made nor lost, and an independent ledger agrees.

The ledger is written from the description of the market in plain loops and shares no code with the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent.envs.market import reset, step
from trade_agent.envs.rules import MarketRules, target_weights
from trade_agent.envs.series import MarketSeries

SeriesFactory = Callable[..., MarketSeries]
NUM_BARS = 24

settings_of_rules = st.fixed_dictionaries(
    {
        "fill": st.sampled_from(["next_open", "next_close", "same_close"]),
        "latency_bars": st.integers(0, 2),
        "max_leverage": st.floats(0.5, 5.0),
        "max_weight": st.floats(0.5, 4.0),
        "allow_short": st.booleans(),
        "commission_bps": st.floats(0.0, 50.0),
        "commission_min": st.sampled_from([0.0, 0.01, 3.0]),
        "half_spread_bps": st.floats(0.0, 30.0),
        "slippage_bps": st.floats(0.0, 30.0),
        "impact": st.sampled_from([0.0, 0.001, 0.02]),
        "borrow_rate": st.floats(0.0, 2.0),
        "financing_rate": st.floats(0.0, 2.0),
        "no_trade_band": st.sampled_from([0.0, 0.05, 0.3]),
        "maintenance": st.sampled_from([0.0, 0.2, 0.6]),
        "initial_equity": st.sampled_from([1e3, 1e6]),
        "sizing": st.sampled_from(["equity", "fixed_notional"]),
        "reward": st.just("mean_variance"),  # both sizings have it; money does not depend on the reward
    }
)


def ledger(series: MarketSeries, rules: MarketRules, weights: np.ndarray) -> list[float]:
    """Equity after each bar for target weights [S, A] decided at the closes of bars 0 .. S-1, until ruin."""
    opens, closes, tradable = series.open.numpy(), series.close.numpy(), series.tradable.numpy()
    level, cash, shares = rules.maintenance * rules.initial_equity, rules.initial_equity, np.zeros(closes.shape[1])
    curve = [cash]

    def trade(decided: int, price: np.ndarray, open_for: np.ndarray) -> None:
        nonlocal cash
        worth = cash + shares @ price
        unit = worth if rules.sizing == "equity" else rules.initial_equity
        if decided < 0 or worth <= level:
            return
        smallest = max(rules.no_trade_band, 1e-9) * unit
        wishes = {}
        for a in range(len(shares)):
            order = weights[decided, a] * unit
            if tradable[decided, a] and open_for[a] and abs(order - shares[a] * price[a]) > smallest:
                wishes[a] = order
        idle = sum(abs(shares[a] * price[a]) for a in range(len(shares)) if a not in wishes)
        asked = sum(abs(wish) for wish in wishes.values())
        room = max(rules.max_leverage * unit - idle, 0.0)
        share = room / asked if asked > room else 1.0
        for a, order in wishes.items():
            wish = share * order
            amount = abs(wish - shares[a] * price[a])
            if amount > 1e-9 * unit:
                fee = max(rules.commission_bps * amount / 1e4, rules.commission_min)
                fee += (rules.half_spread_bps + rules.slippage_bps) * amount / 1e4 + rules.impact * amount**2 / unit
                cash, shares[a] = cash - (wish - shares[a] * price[a]) - fee, wish / price[a]

    for t in range(len(weights)):
        if rules.fill == "same_close":
            trade(t - rules.latency_bars, closes[t], tradable[t])
        lent = sum(max(-shares[a] * closes[t, a], 0.0) for a in range(len(shares)))
        # A fill whose cost exceeds the equity leaves debt that nothing stands against: it is no loan any more.
        loan = max(min(-cash, float(shares @ closes[t])), 0.0)
        cash -= (rules.borrow_rate * lent + rules.financing_rate * loan) / rules.periods_per_year
        if cash + shares @ opens[t + 1] <= level:
            return [*curve, cash + shares @ opens[t + 1]]
        if rules.fill == "next_open":
            trade(t - rules.latency_bars, opens[t + 1], tradable[t + 1])
        if rules.fill == "next_close":
            trade(t - rules.latency_bars, closes[t + 1], tradable[t + 1])
        curve.append(cash + shares @ closes[t + 1])
        if curve[-1] <= level:
            break
    return curve


def drawn_actions(seed: int, num_assets: int) -> torch.Tensor:
    """Random actions with repeats, full flips and missing orders (NaN) among them, [S, 1, A]."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1.3, 1.3, size=(NUM_BARS - 1, num_assets))
    actions = np.where(rng.random(actions.shape) < 0.3, np.sign(actions), actions)
    for s in range(1, len(actions)):
        if rng.random() < 0.3:
            actions[s] = actions[s - 1]
    actions[rng.random(actions.shape) < 0.1] = np.nan
    return torch.tensor(actions).unsqueeze(1)


@settings(max_examples=80, deadline=None)
@given(settings_of_rules, st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([0.01, 0.08]), st.booleans())
def test_equity_follows_the_ledger(
    random_series: SeriesFactory,
    values: dict[str, Any],
    seed: int,
    num_assets: int,
    volatility: float,
    suspensions: bool,
) -> None:
    series = random_series(NUM_BARS, num_assets, seed, volatility, suspensions)
    rules = MarketRules(**values)
    actions = drawn_actions(seed, num_assets)
    expected = ledger(series, rules, target_weights(rules, actions.squeeze(1)).numpy())
    state = reset(series, rules, torch.tensor([0]), torch.tensor([NUM_BARS - 1]))
    curve, terminated = [float(state.equity)], False
    for action in actions:
        state, result = step(series, rules, state, action)
        curve.append(float(state.equity))
        terminated = bool(result.terminated)
        if terminated:
            break
    assert len(curve) == len(expected)
    assert terminated == (expected[-1] <= rules.ruin_equity)
    # Relative to the gross exposure that a ruined account can leave behind, which is where cancellation happens.
    np.testing.assert_allclose(curve, expected, rtol=1e-9, atol=1e-9 * rules.initial_equity)


@settings(max_examples=80, deadline=None)
@given(settings_of_rules, st.integers(0, 10_000), st.integers(1, 3), st.booleans())
def test_gain_is_price_change_less_costs_less_financing(
    random_series: SeriesFactory, values: dict[str, Any], seed: int, num_assets: int, suspensions: bool
) -> None:
    series = random_series(NUM_BARS, num_assets, seed, 0.03, suspensions)
    rules = MarketRules(**values)
    state = reset(series, rules, torch.tensor([0]), torch.tensor([NUM_BARS - 1]))
    for action in drawn_actions(seed, num_assets):
        after, result = step(series, rules, state, action)
        if bool(result.terminated):
            break  # units are booked out; the ledger covers ruin
        close, next_open, next_close = (series.close[state.t], series.open[after.t], series.close[after.t])
        fill_price = {"next_open": next_open, "next_close": next_close, "same_close": close}[rules.fill]
        gain = (state.units * (fill_price - close) + after.units * (next_close - fill_price)).sum()
        residue = after.equity - state.equity - (gain - result.cost - result.financing)
        assert abs(float(residue)) <= 1e-9 * float(state.equity)
        assert float(result.cost) >= 0.0
        assert float(result.financing) >= 0.0
        assert float(after.cash + (after.units * next_close).sum()) == pytest.approx(float(after.equity), rel=1e-12)
        base = after.equity if rules.sizing == "equity" else rules.initial_equity
        torch.testing.assert_close(result.weights, after.units * next_close / base)
        state = after


def test_the_ledger_itself_by_hand(price_pair: MarketSeries) -> None:
    rules = MarketRules(
        initial_equity=100.0,
        commission_bps=100.0,
        half_spread_bps=0.0,
        slippage_bps=0.0,
        borrow_rate=0.0,
        financing_rate=0.0,
    )
    # One unit at 100 costs 1. At 110 the equity of 109 goes short: 219 of value are sold, which costs 2.19.
    assert ledger(price_pair, rules, np.array([[1.0], [-1.0]])) == pytest.approx([100.0, 109.0, 106.81])


@pytest.fixture
def price_pair() -> MarketSeries:
    prices = torch.tensor([[100.0], [100.0], [110.0]], dtype=torch.float64)
    closes = torch.tensor([[100.0], [110.0], [110.0]], dtype=torch.float64)
    return MarketSeries(prices, closes, torch.ones(3, 1, dtype=torch.bool))
