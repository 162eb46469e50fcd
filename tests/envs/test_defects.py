"""Defects seen in other trading environments that no other test here is about.

Inverted shorts, caps that make foresight worthless, gains of idle cash and float32 money are in test_market and
test_rewards; hindsight in test_causality; ignored seeds in the test of each face; scalers, back-filling and dropped
tickers belong to the tests of preprocessing and data. Bars are not made coarser here, so none can be stamped too early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from trade_agent.config.load import compose_config, load_config
from trade_agent.config.schema import MarketConfig
from trade_agent.data.synthetic import MARKETS
from trade_agent.envs.batched import TrainingMarket
from trade_agent.envs.episodes import observation_size, observe
from trade_agent.envs.market import account_fields, reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.training.dataset import market_rules

Rules = Callable[..., MarketRules]
SeriesFactory = Callable[..., MarketSeries]


def default_rules() -> MarketRules:
    config = load_config(compose_config(["stage=rl"]), "train")
    assert isinstance(config.env, MarketConfig)
    return market_rules(config.env, 252.0)


@pytest.mark.parametrize("default", [MarketRules, default_rules])
def test_by_default_orders_fill_at_the_next_open_and_cost_something(default: Rules) -> None:
    rules = default()
    prices = torch.tensor([[10.0], [20.0], [20.0]], dtype=torch.float64)
    series = MarketSeries(prices, torch.tensor([[15.0], [20.0], [20.0]]).double(), torch.ones(3, 1, dtype=torch.bool))
    state = reset(series, rules, torch.tensor([0]), torch.tensor([2]))
    after, result = step(series, rules, state, torch.tensor([[0.5]]))
    # Neither the close that was seen (15) nor the open of the bar that was seen (10).
    assert float(after.units) * 20.0 == pytest.approx(0.5 * rules.initial_equity)
    assert float(result.cost) >= 1e-4 * 0.5 * rules.initial_equity
    assert rules.borrow_rate > 0.0
    assert rules.financing_rate > 0.0


def test_the_market_has_one_set_of_defaults() -> None:
    assert default_rules() == MarketRules()


# What each setting of the market is changed to; the play below must come out differently.
CHANGED: dict[str, Any] = {
    "fill": "next_close",
    "sizing": "fixed_notional",
    "latency_bars": 1,
    "max_leverage": 1.2,
    "max_weight": 1.5,
    "allow_short": False,
    "commission_bps": 20.0,
    "commission_min": 50.0,
    "half_spread_bps": 20.0,
    "slippage_bps": 20.0,
    "impact": 0.01,
    "borrow_rate": 0.5,
    "financing_rate": 0.5,
    "periods_per_year": 12.0,
    "no_trade_band": 0.3,
    "reward": "drawdown_penalised",
    "sharpe_decay": 0.5,
    "sharpe_volatility_floor": 0.1,
    "risk_aversion": 9.0,
    "drawdown_penalty": 9.0,
    "reward_floor": -1e-3,
    "maintenance": 0.999,
    "initial_equity": 2e4,
}
PLAYED = MarketRules(max_weight=1.0, max_leverage=1.8, maintenance=0.2, initial_equity=1e4, reward="mean_variance")


def play(series: MarketSeries, rules: MarketRules) -> torch.Tensor:
    """Rewards and equity of 30 bars, [30, 2]."""
    state = reset(series, rules, torch.tensor([0]), torch.tensor([series.num_bars - 1]))
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(30):
        state, result = step(series, rules, state, torch.rand(1, 2, generator=generator).mul(2).sub(1))
        rows.append(torch.stack((result.reward.double(), result.equity), dim=-1))
    return torch.cat(rows)


@pytest.mark.parametrize("name", list(CHANGED))
def test_no_setting_is_stored_and_then_forgotten(name: str, random_series: SeriesFactory) -> None:
    reward = {"sharpe_decay": "differential_sharpe", "sharpe_volatility_floor": "differential_sharpe"}
    reward["drawdown_penalty"] = "drawdown_penalised"
    rules = replace(PLAYED, reward=reward.get(name, PLAYED.reward))
    series = random_series(40, 2, seed=1)
    before, after = play(series, rules), play(series, replace(rules, **{name: CHANGED[name]}))
    assert not torch.allclose(before, after, rtol=1e-9, atol=0.0)


def test_every_setting_is_tried_and_every_option_of_the_config_reaches_the_market() -> None:
    assert set(CHANGED) == {item.name for item in fields(MarketRules)}
    config = load_config(compose_config(["stage=rl"]), "train").env
    options = {item.name for item in fields(config)} - {"episode_bars", "positions"}  # of the episode, of the faces
    for name in options:
        value = "mean_variance" if name == "reward" else CHANGED[name]
        changed = replace(config, **({"reward": "mean_variance"} | {name: value}))  # type: ignore[type-var]
        assert getattr(market_rules(changed, 252.0), name) == value  # type: ignore[arg-type]


def test_the_rewards_of_an_episode_add_up_to_its_gain_across_restarts(random_series: SeriesFactory) -> None:
    """A terminal reward that is paid again after the restart, or a restart that is paid as a gain, would show."""
    series = random_series(60, 1, seed=2, volatility=0.03)
    rules = MarketRules(max_weight=4.0, max_leverage=4.0, maintenance=0.6, reward_floor=-20.0)
    market = TrainingMarket(
        series=series,
        rules=rules,
        rows=range(60),
        num_envs=32,
        episode_bars=15,
        reward_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    generator = torch.Generator().manual_seed(1)
    paid, ruined, ended = torch.zeros(32, dtype=torch.float64), 0, 0
    for _ in range(80):
        before = market.state
        action = torch.rand(32, 1, generator=generator).mul(2).sub(1)
        _, result = step(series, rules, before, action)
        experience = market.step(action)
        paid += experience.reward.double()
        done = experience.terminated | experience.truncated
        gain = torch.log(result.equity / rules.initial_equity)
        solvent = done & (result.equity > 0.0)
        torch.testing.assert_close(paid[solvent], gain[solvent], rtol=0.0, atol=1e-5)
        paid = torch.where(done, 0.0, paid)
        ruined, ended = ruined + int(experience.terminated.sum()), ended + int(experience.truncated.sum())
    assert ruined > 10
    assert ended > 10


def test_an_account_sees_its_own_position_and_nothing_of_the_market_but_the_features(
    random_series: SeriesFactory,
) -> None:
    series, rules = random_series(20, 2), MarketRules(latency_bars=1)
    features = torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    start = torch.full((3,), 4)
    state = reset(series, rules, start, start + 10)
    for _ in range(2):
        state, _ = step(series, rules, state, torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.0]]))
    seen = observe(series, rules, features, state, 2)
    market, account = seen[:, :12], seen[:, 12:]
    assert torch.equal(market, features[5:7].flatten().expand(3, -1))
    assert seen.shape[1] == observation_size(rules, features, 2) == 12 + len(account_fields(rules, 2))
    weights = account[:, 0]
    assert weights.tolist() == pytest.approx([0.5, -0.5, 0.0], abs=0.05)
    assert weights[0] > 0.4 > -0.4 > weights[1]
    # Prices that the features do not tell are not seen: a flat account sees the same on any path.
    other = random_series(20, 2, seed=9)
    elsewhere = reset(other, rules, start, start + 10)
    for _ in range(2):
        elsewhere, _ = step(other, rules, elsewhere, torch.zeros(3, 2))
    assert torch.equal(observe(other, rules, features, elsewhere, 2)[2], seen[2])


@pytest.mark.parametrize("name", ["noise", "ar", "regimes", "seasonal"])
def test_a_synthetic_market_does_not_show_what_it_is_made_of(name: str) -> None:
    assert MARKETS[name](50, np.random.default_rng(0)).signals == {}


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
def test_money_is_float64_and_what_a_network_sees_is_float32(fill: str, random_series: SeriesFactory) -> None:
    series, rules = random_series(20, 2), MarketRules(fill=fill, latency_bars=1, reward="differential_sharpe")
    state = reset(series, rules, torch.tensor([0, 3]), torch.tensor([10, 13]))
    for _ in range(3):
        state, result = step(series, rules, state, torch.full((2, 2), 0.3))
        money = (state.units, state.basis, state.weights, state.cash, state.equity, state.peak, state.pending)
        costs = (result.cost, result.financing, result.turnover, result.equity, result.weights)
        assert {values.dtype for values in (*money, *costs)} == {torch.float64}
        assert result.reward.dtype == torch.float32
    assert observe(series, rules, torch.zeros(20, 2, 1), state).dtype == torch.float32


def test_the_limit_of_each_asset_binds_at_the_fill(random_series: SeriesFactory, free_rules: Rules) -> None:
    series = random_series(10, 3)
    rules = free_rules(max_weight=0.4, max_leverage=5.0)
    state = reset(series, rules, torch.tensor([0]), torch.tensor([9]))
    after, _ = step(series, rules, state, torch.tensor([[1.0, -1.0, 0.5]]))
    assert (after.units * series.open[1])[0].tolist() == pytest.approx([40.0, -40.0, 20.0])
