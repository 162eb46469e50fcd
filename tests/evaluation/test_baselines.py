import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from trade_agent.errors import DataError
from trade_agent.evaluation.baselines import (
    BASELINES,
    FORECAST_BASELINES,
    MOMENTUM_BARS,
    REVERSION_BARS,
    BaselineInputs,
    ForecastInputs,
)


def prices(num_bars: int = 400, num_assets: int = 3, seed: int = 0) -> np.ndarray:
    return 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, (num_bars, num_assets)), axis=0))


def inputs(close: np.ndarray, rows: range = range(100, 300), **changes) -> BaselineInputs:
    values = {
        "close": close,
        "tradable": np.isfinite(close),
        "rows": rows,
        "max_weight": 1.0,
        "max_leverage": 1.0,
        "allow_short": True,
        "turnover": 0.1,
        "rng": np.random.default_rng(1),
    }
    return BaselineInputs(**{**values, **changes})


def test_the_promised_baselines_are_there():
    assert list(BASELINES) == ["flat", "buy_and_hold", "equal_weight", "momentum", "mean_reversion", "random"]
    assert list(FORECAST_BASELINES) == ["last_value", "historical_mean", "ar1", "ridge"]


@pytest.mark.parametrize("name", BASELINES)
def test_causal(name):
    close, rows = prices(), range(100, 300)
    before = BASELINES[name](inputs(close, rows))
    for t in (120, 200, 298):
        future = close.copy()
        future[t + 1 :] = prices(seed=9)[t + 1 :] * 3
        after = BASELINES[name](inputs(future, rows))
        assert np.array_equal(before[: t - 99], after[: t - 99], equal_nan=True)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize(
    ("max_weight", "max_leverage", "allow_short"), [(1.0, 1.0, True), (0.2, 0.5, False), (1.0, 3.0, True)]
)
def test_within_limits(name, max_weight, max_leverage, allow_short):
    close = prices()
    close[:150, 2] = np.nan  # listed later
    limits = {"max_weight": max_weight, "max_leverage": max_leverage, "allow_short": allow_short}
    weights = np.nan_to_num(BASELINES[name](inputs(close, **limits)))
    assert weights.shape == (200, 3)
    assert np.abs(weights).max() <= max_weight
    assert np.abs(weights).sum(axis=1).max() <= min(1.0, max_leverage) + 1e-12
    assert allow_short or weights.min() >= 0.0
    assert (weights[:50, 2] == 0.0).all()


def test_positions_by_hand():
    rising = np.linspace(100, 200, 200)[:, None]
    rows = range(100, 110)
    assert (BASELINES["momentum"](inputs(rising, rows)) == 1.0).all()
    assert (BASELINES["mean_reversion"](inputs(rising, rows)) == -1.0).all()
    assert (BASELINES["momentum"](inputs(rising[::-1].copy(), rows)) == -1.0).all()
    held = BASELINES["buy_and_hold"](inputs(rising, rows))
    assert held[0, 0] == 1.0
    assert np.isnan(held[1:]).all()
    early = BASELINES["momentum"](inputs(rising, range(100)))
    assert (early[:MOMENTUM_BARS] == 0.0).all()
    assert (early[MOMENTUM_BARS:] == 1.0).all()
    assert (BASELINES["mean_reversion"](inputs(rising, range(9)))[:REVERSION_BARS] == 0.0).all()


@pytest.mark.parametrize("allow_short", [True, False])
@pytest.mark.parametrize("turnover", [0.01, 0.1, 0.4])
def test_random_trades_as_much_as_it_should(turnover, allow_short):
    close = prices(40_000, 2)
    weights = BASELINES["random"](inputs(close, range(40_000), turnover=turnover, allow_short=allow_short))
    assert np.abs(np.diff(weights, axis=0)).sum(axis=1).mean() == pytest.approx(turnover, rel=0.15)


def series(num_bars: int = 3000, rho: float = 0.4, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.01, num_bars)
    returns = np.zeros(num_bars)
    for i in range(1, num_bars):
        returns[i] = 0.001 + rho * returns[i - 1] + noise[i]
    return returns


def forecast_inputs(past: np.ndarray) -> ForecastInputs:
    return ForecastInputs(
        past_return=past, target=np.append(past[1:], np.nan), train=range(2000), rows=range(2100, 3000)
    )


def test_ar1_is_least_squares_on_the_train_rows():
    past = series()
    forecast = FORECAST_BASELINES["ar1"](forecast_inputs(past))
    line = LinearRegression().fit(past[:2000, None], past[1:2001])
    assert forecast.expected_return == pytest.approx(line.predict(past[2100:3000, None]), abs=1e-12)
    assert ((forecast.probability_up > 0.5) == (forecast.expected_return > 0)).all()


@pytest.mark.parametrize("name", FORECAST_BASELINES)
def test_forecasts_are_causal_and_fitted_on_train_only(name):
    past = series()
    before = FORECAST_BASELINES[name](forecast_inputs(past))
    changed = past.copy()
    changed[2500:] = 1.0
    after = FORECAST_BASELINES[name](forecast_inputs(changed))
    assert np.array_equal(before.expected_return[:400], after.expected_return[:400])
    assert np.array_equal(before.probability_up[:400], after.probability_up[:400])


def test_forecasts_by_hand():
    past = series()
    last = FORECAST_BASELINES["last_value"](forecast_inputs(past))
    assert (last.expected_return == 0.0).all()
    assert (last.probability_up == 0.5).all()
    mean = FORECAST_BASELINES["historical_mean"](forecast_inputs(past))
    assert mean.expected_return == pytest.approx(past[1:2001].mean())
    assert mean.probability_up == pytest.approx((past[1:2001] > 0).mean())


def test_linear_baselines_find_the_signal():
    past = series()
    realised = np.append(past[1:], np.nan)[2100:2999]
    for name in ("ar1", "ridge"):
        expected = FORECAST_BASELINES[name](forecast_inputs(past)).expected_return[:-1]
        assert np.corrcoef(expected, realised)[0, 1] > 0.3


def test_missing_returns_fall_back_to_the_mean():
    past = series()
    past[2500] = np.nan
    for name in ("ar1", "ridge"):
        assert np.isfinite(FORECAST_BASELINES[name](forecast_inputs(past)).expected_return).all()


@pytest.mark.parametrize(("num_train", "numbers"), [(90_000, 17), (50_000, 13), (10_000, 19)])
def test_the_lags_of_a_long_series_are_held_once(num_train, numbers):
    num_bars = 100_000
    past = np.random.default_rng(4).normal(0, 0.01, num_bars)
    inputs = ForecastInputs(
        past_return=past,
        target=np.append(past[1:], np.nan),
        train=range(num_train),
        rows=range(num_train + 1, num_bars),
    )
    FORECAST_BASELINES["ridge"](forecast_inputs(past[:3000]))  # what is imported at the first call does not count
    tracemalloc.start()
    FORECAST_BASELINES["ridge"](inputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < numbers * 8 * num_bars  # RIDGE_LAGS of each row that is fitted or forecast are the lags


def test_no_train_targets():
    with pytest.raises(DataError, match="no train row has a target"):
        FORECAST_BASELINES["historical_mean"](
            ForecastInputs(past_return=np.zeros(10), target=np.full(10, np.nan), train=range(5), rows=range(5, 10))
        )


def test_buy_and_hold_repeats_its_order_until_it_can_be_filled():
    close = prices(num_assets=2)
    tradable = np.ones(close.shape, dtype=bool)
    tradable[101, 1] = False  # decided at bar 100, the second asset rests on the day of the fill
    weights = BASELINES["buy_and_hold"](inputs(close, tradable=tradable))
    assert weights[:2, 0].tolist()[0] == 0.5
    assert np.isnan(weights[1:, 0]).all()
    assert weights[:3, 1].tolist() == [0.5, 0.5, 0.5]  # at bar 102 it is tradable again, and so it is at bar 103
    assert np.isnan(weights[3:, 1]).all()


def test_lags_pass_over_the_days_on_which_an_asset_rests():
    past = np.random.default_rng(3).normal(0, 0.01, 700)
    resting = np.arange(700) % 7 >= 5  # a stock beside an asset that trades every day
    past[resting] = np.nan
    target = np.append(past[1:], np.nan)
    rows = range(500, 690)
    forecast = FORECAST_BASELINES["ridge"](ForecastInputs(past_return=past, target=target, train=range(490), rows=rows))
    assert np.isfinite(forecast.expected_return).all()
    # On a resting day the newest known returns are those of Friday: the forecast is Friday's.
    friday = next(t for t in rows if resting[t + 1] and not resting[t])
    expected = forecast.expected_return[friday - rows.start : friday - rows.start + 3]
    assert expected[0] == expected[1] == expected[2]


def test_buy_and_hold_buys_what_rests_on_the_first_day():
    close = prices(num_assets=2)
    tradable = np.ones(close.shape, dtype=bool)
    tradable[100:102, 0] = False
    weights = BASELINES["buy_and_hold"](inputs(close, tradable=tradable))
    assert weights[0].tolist() == [0.5, 0.5]
    assert weights[:3, 0].tolist() == [0.5, 0.5, 0.5]  # decided at bar 102, filled at bar 103
    assert np.isnan(weights[3:, 0]).all()
    late = BASELINES["buy_and_hold"](inputs(close, tradable=tradable, fill_delay_bars=3))
    assert late[:3, 0].tolist() == [0.5, 0.5, 0.5]  # decided at bar 102, filled at bar 105
