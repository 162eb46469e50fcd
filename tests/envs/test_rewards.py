from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from trade_agent.envs.market import reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

Rules = Callable[..., MarketRules]
Series = Callable[..., MarketSeries]


def rewards_of(series: MarketSeries, rules: MarketRules, actions: list[float]) -> list[float]:
    state = reset(series, rules, torch.tensor([0]), torch.tensor([series.num_bars - 1]))
    rewards = []
    for action in actions:
        state, result = step(series, rules, state, torch.tensor([[action]]))
        rewards.append(float(result.reward))
    return rewards


@pytest.fixture
def up_down(price_series: Series) -> MarketSeries:
    """Long throughout makes +10 %, -20 %, +25 % of equity."""
    return price_series([100.0, 100.0, 110.0, 88.0], [100.0, 110.0, 88.0, 110.0])


def test_log_return(up_down: MarketSeries, free_rules: Rules) -> None:
    rewards = rewards_of(up_down, free_rules(), [1.0, 1.0, 1.0])
    assert rewards == pytest.approx([math.log(1.1), math.log(0.8), math.log(1.25)], rel=1e-6)


def test_mean_variance(up_down: MarketSeries, free_rules: Rules) -> None:
    rewards = rewards_of(up_down, free_rules(reward="mean_variance", risk_aversion=4.0), [1.0, 1.0, 1.0])
    # 0.1 - 2 * 0.01, -0.2 - 2 * 0.04, 0.25 - 2 * 0.0625
    assert rewards == pytest.approx([0.08, -0.28, 0.125], rel=1e-6)


def test_drawdown_penalised(up_down: MarketSeries, free_rules: Rules) -> None:
    rewards = rewards_of(up_down, free_rules(reward="drawdown_penalised", drawdown_penalty=2.0), [1.0, 1.0, 1.0])
    # The peak is 110: the drawdown goes 0, 0, 0.2, 0. Only its deepening from 0 to 0.2 is paid for.
    assert rewards == pytest.approx([math.log(1.1), math.log(0.8) - 0.4, math.log(1.25)], rel=1e-6)


def test_differential_sharpe(up_down: MarketSeries, free_rules: Rules) -> None:
    rules = free_rules(reward="differential_sharpe", sharpe_decay=0.1, sharpe_volatility_floor=0.1)
    rewards = rewards_of(up_down, rules, [1.0, 1.0, 1.0])
    # A0 = 0, B0 = 0.01. R = 0.1: dA = 0.1, dB = 0, D = 0.01 * 0.1 / 0.01**1.5 = 1. A = 0.01, B = 0.01.
    # R = -0.2: dA = -0.21, dB = 0.03; variance 0.0099, floored at 0.01; D = (-0.0021 - 0.00015) / 0.001 = -2.25;
    # A = -0.011, B = 0.013.
    # R = 0.25: dA = 0.261, dB = 0.0495; variance 0.012879;
    # D = (0.003393 + 0.00027225) / (0.012879 * 0.11348568) = 2.5077...
    third = 0.00366525 / (0.012879 * math.sqrt(0.012879))
    assert rewards == pytest.approx([1.0, -2.25, third], rel=1e-5)


def test_differential_sharpe_stays_finite_after_a_long_flat_time(price_series: Series, free_rules: Rules) -> None:
    prices = [100.0] * 400 + [100.2]
    series = price_series(prices, prices)
    rules = free_rules(reward="differential_sharpe", fill="same_close", sharpe_volatility_floor=1e-3)
    rewards = rewards_of(series, rules, [0.0] * 399 + [1.0])
    assert rewards[:399] == [0.0] * 399
    assert rewards[399] == pytest.approx(2.0, rel=1e-5)  # 0.2 % at a floor of 0.1 %


@pytest.mark.parametrize("name", ["log_return", "differential_sharpe", "mean_variance", "drawdown_penalised"])
def test_ruin_is_paid_the_floor_and_only_once(name: str, price_series: Series, free_rules: Rules) -> None:
    # Leverage 4 long, the price halves: equity 100 -> -100.
    series = price_series([100.0, 100.0, 50.0, 50.0], [100.0, 100.0, 50.0, 50.0])
    rules = free_rules(
        reward=name, max_weight=4.0, max_leverage=4.0, reward_floor=-1.5, risk_aversion=2.0, sharpe_volatility_floor=0.1
    )
    rewards = rewards_of(series, rules, [1.0, 1.0, 1.0])
    assert rewards[0] == 0.0
    assert rewards[1] == -1.5
    assert math.isfinite(rewards[2])
    if name != "differential_sharpe":  # whose reward of a zero return is not zero
        assert rewards[2] == 0.0


def test_log_rewards_add_up_to_the_whole_gain(random_series: Series) -> None:
    series, rules = random_series(num_bars=40, num_assets=1), MarketRules()
    actions = torch.rand(39, generator=torch.Generator().manual_seed(1)).mul(2).sub(1).tolist()
    state = reset(series, rules, torch.tensor([0]), torch.tensor([39]))
    rewards = []
    for action in actions:
        state, result = step(series, rules, state, torch.tensor([[action]]))
        rewards.append(float(result.reward))
    assert sum(rewards) == pytest.approx(math.log(float(state.equity) / rules.initial_equity), rel=1e-5)
    assert float(state.equity) != rules.initial_equity


def test_cash_in_a_falling_market_earns_nothing(price_series: Series) -> None:
    series = price_series([100.0, 90.0, 80.0], [95.0, 85.0, 75.0])
    assert rewards_of(series, MarketRules(), [0.0, 0.0]) == [0.0, 0.0]
