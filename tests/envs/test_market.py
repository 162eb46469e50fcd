"""Cases worked out by hand. Accounts start with 100 unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from trade_agent.envs.market import (
    MarketState,
    StepResult,
    account_fields,
    account_observation,
    auto_reset,
    reset,
    step,
)
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

Rules = Callable[..., MarketRules]
Series = Callable[..., MarketSeries]


def play(
    series: MarketSeries, rules: MarketRules, actions: Sequence[float | list[float]], start: int = 0
) -> tuple[list[MarketState], list[StepResult]]:
    """States (the first is the reset) and results of one account."""
    states = [reset(series, rules, torch.tensor([start]), torch.tensor([series.num_bars - 1]))]
    results = []
    for action in actions:
        row = torch.tensor(action, dtype=torch.float64).reshape(1, -1)
        state, result = step(series, rules, states[-1], row)
        states.append(state)
        results.append(result)
    return states, results


def equity(states: list[MarketState]) -> list[float]:
    return [float(state.equity) for state in states]


def test_short_at_100_covered_at_80_gains_20(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 80.0, 80.0], [100.0, 95.0, 80.0, 300.0])
    states, _ = play(series, free_rules(), [-1.0, 0.0, 0.0])
    assert equity(states) == [100.0, 105.0, 120.0, 120.0]


def test_short_at_100_covered_at_120_loses_20(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 120.0, 120.0], [100.0, 110.0, 120.0, 10.0])
    states, _ = play(series, free_rules(), [-1.0, 0.0, 0.0])
    assert equity(states) == [100.0, 90.0, 80.0, 80.0]


def test_a_flip_pays_both_legs(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0] * 3, [100.0] * 3)
    states, results = play(series, free_rules(commission_bps=100.0), [1.0, -1.0])
    # Buying 1 unit costs 1. Flipping with equity 99: sell the unit and 0.99 more, 199 of value, 1.99 of cost.
    assert [float(result.cost) for result in results] == pytest.approx([1.0, 1.99])
    assert equity(states) == pytest.approx([100.0, 99.0, 97.01])
    assert float(states[-1].units) == pytest.approx(-0.99)
    assert float(results[1].turnover) == pytest.approx(199 / 99)


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
def test_a_gap_through_the_maintenance_level_is_booked_at_the_gap_price(
    fill: str, price_series: Series, free_rules: Rules
) -> None:
    # 3 times long at 100, level 50: the open at 60 is a loss of 120, far beyond it; the close at 200 is never enjoyed.
    series = price_series([100.0, 100.0, 60.0, 300.0], [100.0, 100.0, 200.0, 300.0])
    rules = free_rules(fill=fill, max_weight=3.0, max_leverage=3.0, maintenance=0.5)
    states, results = play(series, rules, [1.0, 1.0, 1.0])
    assert equity(states) == [100.0, 100.0, -20.0, -20.0]
    assert [bool(result.terminated) for result in results] == [False, True, True]
    assert not bool(results[2].truncated)
    assert float(states[2].units) == 0.0
    assert float(results[1].cost) == 0.0
    drawdown = account_fields(rules, 1).index("drawdown")
    assert float(account_observation(series, rules, states[2])[0, drawdown]) == 1.0  # of 1.2, kept in [0, 1]


def test_an_order_at_the_close_does_not_fill_when_that_close_is_ruin(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 100.0], [100.0, 100.0, 60.0])
    rules = free_rules(fill="next_close", max_weight=3.0, max_leverage=3.0, commission_bps=100.0)
    states, results = play(series, rules, [1.0, 0.0])
    assert equity(states) == [100.0, 97.0, -23.0]
    assert [float(result.cost) for result in results] == [3.0, 0.0]


def test_a_gap_after_a_fill_at_the_same_close_is_booked_at_the_gap_price(
    price_series: Series, free_rules: Rules
) -> None:
    series = price_series([100.0, 60.0, 300.0], [100.0, 200.0, 300.0])
    rules = free_rules(fill="same_close", max_weight=3.0, max_leverage=3.0, maintenance=0.5)
    states, results = play(series, rules, [1.0, 1.0])
    assert equity(states) == [100.0, -20.0, -20.0]
    assert bool(results[0].terminated)


def test_the_maintenance_level_itself_is_ruin(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 100.0], [100.0, 50.0, 100.0])
    for maintenance, ruined in ((0.5, True), (0.49, False)):
        _, results = play(series, free_rules(maintenance=maintenance), [1.0])
        assert bool(results[0].terminated) is ruined


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
def test_the_maintenance_level_itself_is_ruin_at_the_open(fill: str, price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 50.0], [100.0, 100.0, 100.0])
    for maintenance, ends_with in ((0.5, 50.0), (0.49, 100.0)):
        states, _ = play(series, free_rules(fill=fill, maintenance=maintenance), [1.0, float("nan")])
        assert equity(states)[-1] == ends_with


def test_debt_of_a_ruined_account_does_not_grow(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 40.0, 40.0, 40.0], [100.0, 100.0, 40.0, 40.0, 40.0])
    rules = free_rules(max_weight=3.0, max_leverage=3.0, financing_rate=0.5, periods_per_year=1.0)
    states, results = play(series, rules, [1.0, 0.0, 1.0, 1.0])
    # Loan of 200 over one bar costs 100, then 3 units lose 60 each.
    assert equity(states) == [100.0, 100.0, -180.0, -180.0, -180.0]
    assert float(results[1].financing) == 100.0


def test_a_position_held_to_the_end_is_marked_and_truncated(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 100.0], [100.0, 110.0, 130.0])
    states, results = play(series, free_rules(), [1.0, 1.0])
    assert equity(states)[-1] == 130.0
    assert [bool(result.truncated) for result in results] == [False, True]
    assert not any(bool(result.terminated) for result in results)
    # Ruin on the last bar is ruin, not a time limit that would be bootstrapped.
    _, crash = play(price_series([100.0, 100.0], [100.0, 5.0]), free_rules(), [1.0])
    assert (bool(crash[0].terminated), bool(crash[0].truncated)) == (True, False)


@pytest.mark.parametrize(
    ("fill", "latency_bars", "fill_price", "filled_after"),
    [
        ("next_open", 0, 11.0, 1),
        ("next_close", 0, 21.0, 1),
        ("same_close", 0, 20.0, 1),
        ("next_open", 1, 12.0, 2),
        ("next_close", 1, 22.0, 2),
        ("same_close", 1, 21.0, 2),
        ("next_open", 2, 13.0, 3),
        ("next_close", 2, 23.0, 3),
        ("same_close", 2, 22.0, 3),
    ],
)
def test_an_order_fills_at_the_stated_price_and_bar(
    fill: str, latency_bars: int, fill_price: float, filled_after: int, price_series: Series, free_rules: Rules
) -> None:
    series = price_series([10.0 + t for t in range(6)], [20.0 + t for t in range(6)])
    rules = free_rules(fill=fill, latency_bars=latency_bars, maintenance=0.0)
    states, results = play(series, rules, [1.0, 1.0, 1.0, 1.0])
    for state in states[:filled_after]:
        assert float(state.units) == 0.0
    assert float(results[filled_after - 1].turnover) == pytest.approx(1.0)
    assert float(states[filled_after].units) == pytest.approx(100.0 / fill_price)
    assert float(states[filled_after].equity) == pytest.approx(100.0 / fill_price * (20.0 + filled_after))


def test_an_order_on_its_way_is_observed(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0] * 6, [100.0] * 6)
    rules = free_rules(latency_bars=2)
    states, _ = play(series, rules, [0.5, -1.0, 0.0])
    fields = account_fields(rules, 1)
    first, second = fields.index("pending_0_0"), fields.index("pending_1_0")
    rows = torch.cat([account_observation(series, rules, state) for state in states])
    assert rows[:, first].tolist() == [0.0, 0.0, 0.5, -1.0]
    assert rows[:, second].tolist() == [0.0, 0.5, -1.0, 0.0]


def test_perfect_foresight_earns_every_move(price_series: Series, free_rules: Rules) -> None:
    opens = [100.0, 100.0, 110.0, 99.0, 108.9]  # +10 %, -10 %, +10 %: 1.1 * 1.1 * 1.1 when always right
    series = price_series(opens, [*opens[1:], 108.9])
    states, _ = play(series, free_rules(), [1.0, -1.0, 1.0, 0.0])
    assert equity(states)[-1] == pytest.approx(100.0 * 1.1**3)


def test_a_partial_change_trades_the_difference_only(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0] * 4, [100.0] * 4)
    states, results = play(series, free_rules(), [0.5, 0.75, 0.25])
    assert [float(state.units) for state in states] == [0.0, 0.5, 0.75, 0.25]
    assert [float(result.turnover) for result in results] == [0.5, 0.25, 0.5]


def test_the_no_trade_band_leaves_small_differences_alone(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0] * 5, [100.0] * 5)
    states, results = play(series, free_rules(no_trade_band=0.2), [0.5, 0.65, 0.35, 0.25])
    assert [float(state.units) for state in states] == [0.0, 0.5, 0.5, 0.5, 0.25]
    assert [int(state.bars_since_trade) for state in states] == [0, 0, 1, 2, 0]
    assert [float(result.turnover) for result in results] == [0.5, 0.0, 0.0, 0.25]


@pytest.mark.parametrize(
    ("setting", "cost"),
    [
        ({"commission_bps": 10.0}, 0.05),
        ({"half_spread_bps": 20.0}, 0.1),
        ({"slippage_bps": 30.0}, 0.15),
        ({"impact": 0.02}, 0.5),  # 0.02 * 0.5**2 * 100
        ({"commission_bps": 10.0, "commission_min": 2.0}, 2.0),
        ({"commission_bps": 500.0, "commission_min": 2.0}, 2.5),
        ({"commission_bps": 10.0, "commission_min": 2.0, "half_spread_bps": 20.0}, 2.1),
    ],
)
def test_each_cost_is_charged(setting: dict[str, float], cost: float, price_series: Series, free_rules: Rules) -> None:
    # Half of an equity of 100 is bought: 50 of value.
    series = price_series([100.0] * 3, [100.0] * 3)
    states, results = play(series, free_rules(**setting), [0.5, 0.5])
    assert float(results[0].cost) == pytest.approx(cost)
    assert float(states[1].equity) == pytest.approx(100.0 - cost)


def test_rounding_is_no_order(price_series: Series, random_series: Series, free_rules: Rules) -> None:
    # Prices at which units * price / equity is not exactly the target again.
    series = price_series([70.3, 70.3, 71.7, 73.1, 77.9], [70.3, 70.9, 72.3, 75.3, 78.7])
    _, results = play(series, free_rules(commission_min=1.0, maintenance=0.0), [1.0, 0.0, 0.0, 0.0])
    assert [float(result.cost) for result in results] == [1.0, 1.0, 0.0, 0.0]
    _, held = play(random_series(num_bars=60, num_assets=1), free_rules(), [1.0] * 59)
    assert [float(result.turnover) > 0.0 for result in held] == [True] + [False] * 58


def test_borrow_cost_and_interest(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 100.0, 100.0], [100.0, 100.0, 100.0, 100.0])
    rates = {"borrow_rate": 0.1, "financing_rate": 0.2, "periods_per_year": 10.0}
    short = free_rules(**rates)
    _, results = play(series, short, [-1.0, -1.0])
    # Filled at the open of bar 1, so held over its close: 1 % of 100 a bar from then on.
    assert [float(result.financing) for result in results] == [0.0, 1.0]
    levered = free_rules(max_weight=3.0, max_leverage=3.0, **rates)
    _, results = play(series, levered, [1.0, 0.0])
    assert [float(result.financing) for result in results] == [0.0, 4.0]  # a loan of 200 at 2 %
    _, unlevered = play(series, free_rules(**rates), [1.0, 1.0])
    assert [float(result.financing) for result in unlevered] == [0.0, 0.0]
    at_once = free_rules(fill="same_close", **rates)
    _, results = play(series, at_once, [-1.0])
    assert [float(result.financing) for result in results] == [1.0]


def test_the_gross_limit_binds_at_the_fill(free_rules: Rules, random_series: Series) -> None:
    series = random_series(num_assets=3)
    rules = free_rules(max_weight=1.0, max_leverage=1.5)
    states, _ = play(series, rules, [[1.0, -1.0, 1.0]])
    gross = (states[1].units * series.open[1]).abs().sum()
    assert float(gross) == pytest.approx(150.0)


NAN = float("nan")


def two_assets(*rows: tuple[float, float], tradable: Sequence[Sequence[bool]] | None = None) -> MarketSeries:
    """Bars whose open is the close before and whose close is the price given."""
    close = torch.tensor(rows, dtype=torch.float64)
    mask = torch.ones_like(close, dtype=torch.bool) if tradable is None else torch.tensor(tradable)
    return MarketSeries(torch.cat((close[:1], close[:-1])), close, mask)


def test_an_asset_without_an_order_leaves_the_orders_of_the_others_alone(free_rules: Rules) -> None:
    series = two_assets((10.0, 20.0), (10.0, 20.0), (20.0, 20.0), (20.0, 20.0))
    # Buy 5 of the first (weight 1/2). It doubles: equity 150, of which 100 are in it. Then the second is ordered alone.
    states, results = play(series, free_rules(), [[0.5, 0.0], [NAN, NAN], [NAN, -0.2]])
    assert [state.units[0].tolist() for state in states[1:]] == [[5.0, 0.0], [5.0, 0.0], [5.0, -1.5]]
    assert [float(result.turnover) for result in results] == pytest.approx([0.5, 0.0, 0.2])


def test_what_does_not_trade_counts_within_the_gross_limit(free_rules: Rules) -> None:
    series = two_assets((10.0, 20.0), (10.0, 20.0), (20.0, 20.0), (20.0, 20.0))
    # As above, 100 of 150 are held: an order for 0.9 of 150 = 135 finds room for 50, which is 2.5 at 20.
    states, _ = play(series, free_rules(), [[0.5, 0.0], [NAN, NAN], [NAN, -0.9]])
    assert states[-1].units[0].tolist() == pytest.approx([5.0, -2.5])
    # A position inside the no-trade band does not trade either: 0.6 is ordered where 2/3 is held.
    states, _ = play(series, free_rules(no_trade_band=0.1), [[0.5, 0.0], [NAN, NAN], [0.6, -0.4]])
    assert states[-1].units[0].tolist() == pytest.approx([5.0, -2.5])


def test_a_suspended_position_counts_within_the_gross_limit(free_rules: Rules) -> None:
    series = two_assets((10.0, 20.0), (10.0, 20.0), (10.0, 20.0), tradable=[[True, True], [True, True], [False, True]])
    states, _ = play(series, free_rules(), [[0.8, 0.0], [0.0, 1.0]])
    assert states[-1].units[0].tolist() == pytest.approx([8.0, 1.0])


def test_an_order_without_room_pays_no_fee(free_rules: Rules) -> None:
    series = two_assets((10.0, 20.0), (10.0, 20.0), (30.0, 20.0), (30.0, 20.0))
    # All of it in the first asset; the second finds no room, and a commission of 3 is due for the one purchase alone.
    states, results = play(series, free_rules(commission_min=3.0), [[1.0, 0.0], [NAN, NAN], [NAN, 0.5]])
    assert [float(result.cost) for result in results] == [3.0, 0.0, 0.0]
    assert states[-1].units[0].tolist() == [10.0, 0.0]
    assert [int(state.bars_since_trade) for state in states] == [0, 0, 1, 2]


def test_a_late_order_that_is_none_shows_the_weight_held(free_rules: Rules) -> None:
    series = two_assets(*[(10.0, 20.0)] * 5)
    rules = free_rules(latency_bars=1)
    states, _ = play(series, rules, [[0.5, 0.25], [0.5, 0.25], [NAN, 0.0]])
    fields = account_fields(rules, 2)
    row = dict(zip(fields, account_observation(series, rules, states[-1])[0].tolist(), strict=True))
    assert (row["pending_0_0"], row["pending_0_1"]) == (0.5, 0.0)


def test_a_suspended_asset_keeps_its_position_at_the_last_price(price_series: Series, free_rules: Rules) -> None:
    series = price_series(
        [100.0, 100.0, 110.0, 110.0, 90.0, 90.0],
        [100.0, 110.0, 110.0, 110.0, 90.0, 90.0],
        tradable=[True, True, False, False, True, True],
    )
    states, results = play(series, free_rules(), [1.0, -1.0, -1.0, -1.0, 0.0])
    # The order decided on bar 3, while suspended, is dropped too; the one decided on bar 4 closes the position.
    assert [float(state.units) for state in states] == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert equity(states) == [100.0, 110.0, 110.0, 110.0, 90.0, 90.0]
    assert [float(result.turnover) > 0 for result in results] == [True, False, False, False, True]
    fields = account_fields(free_rules(), 1)
    flags = [float(account_observation(series, free_rules(), s)[0, fields.index("tradable_0")]) for s in states]
    assert flags == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


def test_a_late_order_decided_while_suspended_is_dropped(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0] * 6, [100.0] * 6, tradable=[True, False, True, True, True, True])
    states, _ = play(series, free_rules(latency_bars=1), [0.5, 1.0, 0.25, 0.25, 0.25])
    # Decided on bar 0, fills on bar 2; decided on bar 1, dropped; decided on bar 2, fills on bar 4.
    assert [float(state.units) for state in states] == [0.0, 0.0, 0.5, 0.5, 0.25, 0.25]


def test_account_observation_by_hand(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 120.0, 90.0, 90.0], [100.0, 120.0, 120.0, 90.0, 90.0])
    rules = free_rules(no_trade_band=0.05)
    states, _ = play(series, rules, [0.5, 0.25, -0.5, -0.5])
    fields = account_fields(rules, 1)
    rows = [dict(zip(fields, account_observation(series, rules, s)[0].tolist(), strict=True)) for s in states]
    assert fields == ("weight_0", "unrealised_0", "tradable_0", "cash", "drawdown", "log_bars_since_trade")
    # Bar 1: half a unit bought at 100, now 120: equity 110, weight 60/110, profit 10/110.
    assert rows[1]["weight_0"] == pytest.approx(60 / 110)
    assert rows[1]["unrealised_0"] == pytest.approx(10 / 110)
    assert rows[1]["cash"] == pytest.approx(50 / 110)
    # Bar 2: cut to 27.5 at 120; the rest, 27.5/120 units, still cost 100 each.
    assert rows[2]["weight_0"] == pytest.approx(0.25)
    assert rows[2]["unrealised_0"] == pytest.approx(27.5 / 120 * 20 / 110)
    # Bar 3: at the open of 90 equity is 110 - 30 * 27.5/120 = 103.125; flipped short there, marked at 90.
    assert rows[3]["weight_0"] == pytest.approx(-0.5)
    assert rows[3]["unrealised_0"] == pytest.approx(0.0, abs=1e-7)
    assert rows[3]["cash"] == pytest.approx(1.5)
    assert rows[3]["drawdown"] == pytest.approx(1 - 103.125 / 110)
    assert rows[3]["log_bars_since_trade"] == 0.0
    assert rows[4]["log_bars_since_trade"] == pytest.approx(0.0693147, rel=1e-5)  # log(2) / 10


def test_observation_has_no_scale_of_money_or_price(random_series: Series) -> None:
    series = random_series(num_bars=30, num_assets=2, seed=3)
    larger = MarketSeries(series.open * 1000.0, series.close * 1000.0, series.tradable)
    actions = torch.rand(20, 1, 2, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    small, rich = MarketRules(initial_equity=1e3), MarketRules(initial_equity=1e8)
    first = reset(series, small, torch.tensor([0]), torch.tensor([29]))
    second = reset(larger, rich, torch.tensor([0]), torch.tensor([29]))
    for action in actions:
        first, one = step(series, small, first, action)
        second, two = step(larger, rich, second, action)
        torch.testing.assert_close(
            account_observation(series, small, first), account_observation(larger, rich, second), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(one.reward, two.reward, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fill", ["next_open", "next_close", "same_close"])
def test_observations_stay_finite_through_ruin(fill: str, price_series: Series, free_rules: Rules) -> None:
    # Equity is exactly 0 after the halving.
    series = price_series([100.0, 100.0, 50.0, 50.0, 50.0], [100.0, 100.0, 50.0, 50.0, 50.0])
    rules = free_rules(fill=fill, max_weight=2.0, max_leverage=2.0, impact=0.0, commission_min=0.0, latency_bars=0)
    states, results = play(series, rules, [1.0, 1.0, 1.0, 1.0])
    assert equity(states)[2:] == [0.0, 0.0, 0.0]
    for state, result in zip(states[1:], results, strict=True):
        assert torch.isfinite(account_observation(series, rules, state)).all()
        assert torch.isfinite(result.reward).all()
        assert torch.isfinite(result.turnover).all()


def test_step_is_pure_and_a_state_says_everything(random_series: Series) -> None:
    series = random_series(num_bars=40, num_assets=2, suspensions=True)
    rules = MarketRules(latency_bars=2, reward="differential_sharpe", max_leverage=2.0)
    generator = torch.Generator().manual_seed(0)
    state = reset(series, rules, torch.tensor([0, 3, 5]), torch.tensor([39, 39, 39]))
    for _ in range(12):
        state, _ = step(series, rules, state, torch.rand(3, 2, generator=generator).mul(2).sub(1))
    action = torch.rand(3, 2, generator=generator)
    before = MarketState(*(values.clone() for values in state))
    prices = series.close.clone()
    first = step(series, rules, state, action)
    for values, copy in zip(state, before, strict=True):
        assert torch.equal(values, copy)
    assert torch.equal(series.close, prices)
    second = step(series, rules, before, action.clone())
    for one, two in zip((*first[0], *first[1]), (*second[0], *second[1]), strict=True):
        assert torch.equal(one, two)


def test_a_batch_equals_single_accounts(random_series: Series) -> None:
    series = random_series(num_bars=40, num_assets=2, seed=1, suspensions=True)
    rules = MarketRules(latency_bars=1, max_leverage=3.0, max_weight=3.0, commission_min=1.0, impact=0.01)
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, 4, 9, 9, 2])
    actions = torch.rand(20, 5, 2, generator=generator).mul(2).sub(1)
    batch = reset(series, rules, starts, starts + 20)
    singles = [reset(series, rules, starts[i : i + 1], starts[i : i + 1] + 20) for i in range(5)]
    for action in actions:
        batch, result = step(series, rules, batch, action)
        for i in range(5):
            singles[i], single = step(series, rules, singles[i], action[i : i + 1])
            for whole, alone in zip((*batch, *result), (*singles[i], *single), strict=True):
                torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_a_portfolio_with_one_asset_in_use_equals_the_single_asset(random_series: Series) -> None:
    pair = random_series(num_bars=40, num_assets=2, seed=2)
    one = MarketSeries(pair.open[:, :1].contiguous(), pair.close[:, :1].contiguous(), pair.tradable[:, :1].contiguous())
    rules = MarketRules(commission_min=5.0, impact=0.01, max_leverage=2.0, max_weight=2.0)
    generator = torch.Generator().manual_seed(0)
    first = reset(pair, rules, torch.tensor([0]), torch.tensor([39]))
    second = reset(one, rules, torch.tensor([0]), torch.tensor([39]))
    for _ in range(39):
        action = torch.rand(1, 1, generator=generator).mul(2).sub(1)
        first, wide = step(pair, rules, first, torch.cat((action, torch.zeros(1, 1)), dim=1))
        second, narrow = step(one, rules, second, action)
        torch.testing.assert_close(first.equity, second.equity, rtol=1e-13, atol=0.0)
        torch.testing.assert_close(wide.cost, narrow.cost, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(wide.reward, narrow.reward)
    assert torch.equal(first.units[:, 1], torch.zeros(1, dtype=torch.float64))


def test_auto_reset_restarts_only_what_is_done(random_series: Series) -> None:
    series = random_series(num_bars=40, num_assets=2)
    rules = MarketRules(latency_bars=2, reward="differential_sharpe")
    state = reset(series, rules, torch.tensor([0, 1, 2]), torch.tensor([30, 30, 30]))
    for _ in range(5):
        state, _ = step(series, rules, state, torch.full((3, 2), 0.4))
    start, end = torch.tensor([10, 11, 12]), torch.tensor([20, 21, 22])
    mixed = auto_reset(series, rules, state, torch.tensor([False, True, False]), start, end)
    fresh = reset(series, rules, start, end)
    for new, old, first in zip(mixed, state, fresh, strict=True):
        assert torch.equal(new[[0, 2]], old[[0, 2]])
        assert torch.equal(new[1], first[1])
        assert new.dtype == old.dtype


def test_money_is_exact_enough_under_leverage(price_series: Series, free_rules: Rules) -> None:
    # One basis point of a basis point on 5e9 of exposure: 50 units of money, below what float32 resolves at 1e9.
    series = price_series([100.0, 100.0], [100.0, 100.000001])
    rules = free_rules(initial_equity=1e9, max_weight=5.0, max_leverage=5.0)
    states, _ = play(series, rules, [1.0])
    assert float(states[1].equity) - 1e9 == pytest.approx(50.0, abs=1e-4)


def test_an_action_of_nan_is_no_order(price_series: Series, free_rules: Rules) -> None:
    series = price_series([100.0, 100.0, 100.0, 110.0], [100.0, 100.0, 110.0, 110.0])
    states, _ = play(series, free_rules(), [1.0, float("nan"), 0.0])
    assert equity(states) == [100.0, 100.0, 110.0, 110.0]
