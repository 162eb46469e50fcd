import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import ConfigError, TrainingDivergedError
from trade_agent.evaluation import backtest
from trade_agent.evaluation.backtest import cost_sensitivity, costs_modelled, run_policy, simulate

FREE = MarketRules(
    initial_equity=1e6,
    commission_bps=0.0,
    half_spread_bps=0.0,
    slippage_bps=0.0,
    borrow_rate=0.0,
    financing_rate=0.0,
)


def series(open_: np.ndarray, close: np.ndarray) -> MarketSeries:
    tradable = torch.ones(close.shape, dtype=torch.bool)
    return MarketSeries(
        open=torch.tensor(open_, dtype=torch.float64), close=torch.tensor(close, dtype=torch.float64), tradable=tradable
    )


def random_series(num_bars: int = 60, num_assets: int = 2, seed: int = 0) -> MarketSeries:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (num_bars, num_assets)), axis=0))
    open_ = np.vstack([close[:1], close[:-1]]) * np.exp(rng.normal(0, 0.005, (num_bars, num_assets)))
    return series(open_, close)


def test_time_of_a_decision_by_hand():
    """Decided at the close of bar 1, filled at the open of bar 2, marked at the closes from bar 2 on."""
    open_, close = np.array([10.0, 10.0, 20.0, 20.0, 30.0]), np.array([10.0, 10.0, 25.0, 20.0, 40.0])
    market = series(open_[:, None], close[:, None])
    weights = np.array([[[1.0]], [[np.nan]], [[0.0]]])
    result = simulate(market, FREE, weights, start=1)[0]
    assert result.start == 1
    assert result.equity == pytest.approx([1e6, 1.25e6, 1e6, 1.5e6])
    assert result.weights[:, 0] == pytest.approx([1.0, 1.0, 0.0])
    assert result.turnover == pytest.approx([1.0, 0.0, 1.0])
    assert result.returns == pytest.approx([0.25, -0.2, 0.5])
    assert np.isnan(result.targets[1, 0])


@pytest.mark.parametrize("allow_short", [True, False])
def test_agrees_with_a_ledger(allow_short):
    """Independent accounting in units and cash, with commission and financing switched on."""
    market = random_series()
    rules = replace(FREE, commission_bps=10.0, half_spread_bps=5.0, allow_short=allow_short, max_leverage=2.0)
    low = -1.0 if allow_short else 0.0
    weights = np.random.default_rng(1).uniform(low, 1.0, (50, 1, 2))
    result = simulate(market, rules, weights, start=3)[0]

    cash, units = 1e6, np.zeros(2)
    open_, close = market.open.numpy(), market.close.numpy()
    for s in range(50):
        price = open_[3 + s + 1]
        wanted = weights[s, 0] * (cash + units @ price) / price
        paid = 15e-4 * np.abs((wanted - units) * price).sum()
        cash -= (wanted - units) @ price + paid
        units = wanted
        assert result.cost[s] == pytest.approx(paid, rel=1e-9)
        assert result.equity[s + 1] == pytest.approx(cash + units @ close[3 + s + 1], rel=1e-9)


def test_paths_of_a_batch_do_not_touch_each_other():
    market, rules = random_series(), MarketRules(max_leverage=2.0)
    weights = np.random.default_rng(2).uniform(-1, 1, (40, 7, 2))
    together = simulate(market, rules, weights, start=5)
    for n in range(7):
        alone = simulate(market, rules, weights[:, n : n + 1], start=5)[0]
        assert np.array_equal(alone.equity, together[n].equity)


def test_policy_and_its_recorded_targets_give_the_same_account():
    market, rules = random_series(), MarketRules(max_leverage=1.0, latency_bars=1)
    seen = []

    def policy(t: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        seen.append(int(t))
        # depends on time and on the account, and breaks the gross limit on purpose
        return torch.tanh(torch.stack([torch.sin(t.double()), torch.cos(t.double())], -1) - account[:, :2].double())

    result = run_policy(market, rules, policy, start=10, end=55)
    assert seen == list(range(10, 55))
    assert np.abs(result.targets).sum(axis=1).max() <= 1.0 + 1e-9
    replay = simulate(market, rules, result.targets[:, None], start=10)[0]
    assert result.equity == pytest.approx(replay.equity, rel=1e-12)
    again = run_policy(market, rules, policy, start=10, end=55)
    assert np.array_equal(result.equity, again.equity)


def test_future_prices_do_not_reach_the_past():
    market = random_series()
    weights = np.random.default_rng(3).uniform(-0.5, 0.5, (50, 1, 2))
    before = simulate(market, MarketRules(), weights, start=3)[0]
    changed = series(market.open.numpy().copy(), market.close.numpy().copy())
    changed.open[31:] *= 2
    changed.close[31:] *= 2
    after = simulate(changed, MarketRules(), weights, start=3)[0]
    assert np.array_equal(before.equity[: 31 - 3], after.equity[: 31 - 3])
    assert before.equity[31 - 3] != after.equity[31 - 3]


@pytest.mark.parametrize("steps", [1, 7, 59])
def test_a_replay_does_not_depend_on_the_blocks_that_it_is_kept_in(monkeypatch, steps):
    def policy(t, account):
        return torch.cos(t.double() * torch.tensor([0.7, 1.3]))[None]

    whole = run_policy(random_series(), FREE, policy, start=0, end=59)
    monkeypatch.setattr(backtest, "BLOCK_STEPS", steps)
    parts = run_policy(random_series(), FREE, policy, start=0, end=59)
    assert len(parts.equity) == 60
    assert len(set(parts.equity)) == 60
    for name in ("equity", "weights", "targets", "turnover", "cost"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_what_was_taken_out_of_the_steps_is_let_go(monkeypatch):
    monkeypatch.setattr(backtest, "BLOCK_STEPS", 2)
    rows = backtest._Rows()
    for number in range(4):
        rows.append(torch.full((3,), float(number)), torch.full((3, 2), -float(number)))
    first, second = ([weakref.ref(block[field]) for block in rows._blocks] for field in range(2))
    fields = rows.taken_out()
    np.testing.assert_array_equal(next(fields)[:, 0], [0.0, 1.0, 2.0, 3.0])
    assert [ref() for ref in first] == [None, None]
    np.testing.assert_array_equal(next(fields)[:, 0, 1], [0.0, -1.0, -2.0, -3.0])
    assert [ref() for ref in second] == [None, None]
    assert list(fields) == []


def test_the_steps_of_many_paths_are_held_once(monkeypatch):
    monkeypatch.setattr(backtest, "BLOCK_STEPS", 100)
    steps, paths = 1000, 200
    close = 100.0 * np.exp(np.random.default_rng(4).normal(0.0, 0.01, (steps + 1, 1)).cumsum(axis=0))
    weights = np.random.default_rng(5).uniform(-0.5, 0.5, (steps, paths, 1))
    tracemalloc.start()
    runs = simulate(series(close, close), FREE, weights, start=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(runs) == paths
    assert peak < 8 * 8 * steps * paths  # five numbers a step stay


def test_nan_from_a_policy_is_divergence_not_a_pause():
    market = random_series()

    def policy(t: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        return torch.full((1, 2), float("nan") if int(t) == 17 else 0.1)

    with pytest.raises(TrainingDivergedError, match="at bar 17"):
        run_policy(market, MarketRules(), policy, start=10, end=30)


def test_ruin_is_marked_and_stands_still():
    close = np.array([[100.0], [100.0], [5.0], [50.0], [100.0]])
    result = simulate(series(close, close), FREE, np.ones((3, 1, 1)), start=1)[0]
    # bought at the open of bar 2, which is 5; so start one bar earlier to own it through the fall
    assert not result.ruined
    result = simulate(series(close, close), FREE, np.ones((4, 1, 1)), start=0)[0]
    assert result.ruined
    assert result.equity == pytest.approx([1e6, 1e6, 5e4, 5e4, 5e4])
    assert np.isfinite(list(result.metrics().values())).all()


def test_costs_only_ever_hurt():
    market, rules = random_series(), MarketRules()
    weights = np.random.default_rng(4).uniform(-0.5, 0.5, (50, 2))
    runs = cost_sensitivity(market, rules, weights, start=3)
    assert list(runs) == [0.0, 5.0, 10.0, 20.0, 50.0]
    finals = [run.equity[-1] for run in runs.values()]
    assert finals == sorted(finals, reverse=True)
    # 10 bp of every traded notional, on top of borrowing, which alone is left at 0 bp
    trading = runs[10.0].cost.sum() - runs[0.0].cost.sum()
    assert trading == pytest.approx(1e-3 * (runs[10.0].turnover * runs[10.0].equity[:-1]).sum(), rel=0.02)


def test_costs_modelled():
    assert costs_modelled(MarketRules())
    assert not costs_modelled(FREE)
    assert costs_modelled(replace(FREE, impact=0.1))
    assert costs_modelled(replace(FREE, commission_min=1.0))


@pytest.mark.parametrize(
    ("rules", "weight", "message"),
    [
        (MarketRules(max_weight=0.5), 0.6, "above env.max_weight 0.5"),
        (MarketRules(), 0.6, "add to 1.2"),
        (MarketRules(allow_short=False), -0.3, "env.allow_short=true"),
    ],
)
def test_targets_beyond_the_limits_are_refused(rules, weight, message):
    with pytest.raises(ConfigError, match=message):
        simulate(random_series(), rules, np.full((5, 1, 2), weight), start=0)


@pytest.mark.parametrize(("start", "steps"), [(-1, 5), (58, 2), (0, 60)])
def test_bars_outside_the_series_are_refused(start, steps):
    with pytest.raises(ValueError, match="not inside a series of 60 bars"):
        simulate(random_series(), MarketRules(), np.zeros((steps, 1, 2)), start=start)
