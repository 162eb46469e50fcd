"""Sizing by a fixed notional: profits add up, and rewards and costs are fractions of the initial equity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_agent.envs.market import account_observation, reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import ConfigError

SeriesFactory = Callable[..., MarketSeries]
RulesFactory = Callable[..., MarketRules]


def run(series: MarketSeries, rules: MarketRules, actions: list[float]) -> tuple[list[float], list[float]]:
    """Equity and reward after each bar."""
    state = reset(series, rules, torch.tensor([0]), torch.tensor([series.num_bars - 1]))
    equity, reward = [], []
    for action in actions:
        state, result = step(series, rules, state, torch.tensor([[action]]))
        equity.append(float(result.equity))
        reward.append(float(result.reward))
    return equity, reward


def test_gains_add_up_and_do_not_compound(price_series: SeriesFactory, free_rules: RulesFactory) -> None:
    """Full weight over two bars of +10 %: 100 + 10 + 10, where sizing by equity gives 121."""
    series = price_series([100.0, 100.0, 110.0], [100.0, 110.0, 121.0])
    fixed = free_rules(sizing="fixed_notional", reward="mean_variance", risk_aversion=0.0)
    assert run(series, fixed, [1.0, 1.0])[0] == pytest.approx([110.0, 120.0])
    assert run(series, free_rules(max_leverage=2.0), [1.0, 1.0])[0] == pytest.approx([110.0, 121.0])


def test_cost_and_reward_are_of_the_initial_equity(price_series: SeriesFactory, free_rules: RulesFactory) -> None:
    """Half a notional of 100 bought at impact 0.04 costs 0.04 * 0.25 * 100 = 1; then +10 % of 50 gains 5.

    R = (5 - 1) / 100 = 0.04 and the reward 0.04 - 10 / 2 * 0.04^2 = 0.032. Short to half the notional: the 55 are
    brought to -50, which costs 0.04 * 1.05^2 * 100 = 4.41; the price stands still, R = -0.0441 of 100 although the
    equity is 104, and the reward is -0.0441 - 5 * 0.0441^2.
    """
    series = price_series([100.0, 100.0, 110.0], [100.0, 110.0, 110.0])
    rules = free_rules(sizing="fixed_notional", reward="mean_variance", risk_aversion=10.0, impact=0.04)
    equity, reward = run(series, rules, [0.5, -0.5])
    assert equity == pytest.approx([104.0, 99.59])
    assert reward == pytest.approx([0.032, -0.0441 - 5.0 * 0.0441**2])


def test_the_account_shows_fractions_of_the_notional(price_series: SeriesFactory, free_rules: RulesFactory) -> None:
    """Fully invested, +50 %: the position is worth 1.5 notionals, half of it profit, and no cash is left."""
    series = price_series([100.0, 100.0, 150.0], [100.0, 150.0, 150.0])
    rules = free_rules(sizing="fixed_notional", reward="mean_variance")
    state = reset(series, rules, torch.tensor([0]), torch.tensor([2]))
    state, result = step(series, rules, state, torch.tensor([[1.0]]))
    weight, unrealised, _, cash = account_observation(series, rules, state)[0, :4].tolist()
    assert (weight, unrealised, cash) == pytest.approx((1.5, 0.5, 0.0))
    assert float(result.turnover) == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["next_open", "next_close", "same_close"]),
    st.integers(0, 2),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.01, 0.05]),
    st.sampled_from([0.0, 5.0]),
    st.integers(1, 3),
)
def test_money_is_conserved(
    random_series: SeriesFactory, fill: str, latency: int, seed: int, impact: float, commission_min: float, assets: int
) -> None:
    series = random_series(20, assets, seed, 0.03)
    rules = MarketRules(
        sizing="fixed_notional",
        reward="mean_variance",
        fill=fill,
        latency_bars=latency,
        impact=impact,
        commission_min=commission_min,
        max_leverage=3.0,
        max_weight=2.0,
    )
    rng = np.random.default_rng(seed)
    state = reset(series, rules, torch.tensor([0]), torch.tensor([19]))
    for _ in range(19):
        after, result = step(series, rules, state, torch.tensor(rng.uniform(-1.2, 1.2, (1, assets))))
        if bool(result.terminated):
            break
        close, next_open, next_close = series.close[state.t], series.open[after.t], series.close[after.t]
        price = {"next_open": next_open, "next_close": next_close, "same_close": close}[fill]
        gain = (state.units * (price - close) + after.units * (next_close - price)).sum()
        residue = after.equity - state.equity - (gain - result.cost - result.financing)
        assert abs(float(residue)) <= 1e-9 * rules.initial_equity
        torch.testing.assert_close(result.weights, after.units * next_close / rules.initial_equity)
        returns = float(after.equity - state.equity) / rules.initial_equity
        assert float(result.reward) == pytest.approx(returns - 0.5 * returns**2, rel=1e-5, abs=1e-9)
        state = after


@pytest.mark.parametrize("reward", ["log_return", "drawdown_penalised"])
def test_a_compounding_reward_is_refused(reward: str) -> None:
    with pytest.raises(ConfigError, match="fixed_notional"):
        MarketRules(sizing="fixed_notional", reward=reward)


def test_an_unknown_sizing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.sizing"):
        MarketRules(sizing="units")
