import empyrical
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import brier_score_loss

from trade_agent.errors import DataError
from trade_agent.evaluation.metrics import (
    average_ranks,
    forecast_metrics,
    max_drawdown_bars,
    trading_metrics,
    wilson_interval,
)


def curve(returns: np.ndarray, initial: float = 1e6) -> np.ndarray:
    return initial * np.concatenate([[1.0], np.cumprod(1.0 + returns)])


def metrics_of(returns: np.ndarray, periods_per_year: float = 252.0) -> dict[str, float]:
    bars = len(returns)
    return trading_metrics(curve(returns), np.ones((bars, 1)), np.zeros(bars), np.zeros(bars), periods_per_year)


@pytest.mark.parametrize("periods_per_year", [252.0, 365.0, 8766.0])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_empyrical(seed, periods_per_year):
    returns = np.random.default_rng(seed).standard_t(4, 700) * 0.003 + 0.0001
    ours = metrics_of(returns, periods_per_year)
    annual = {"annualization": periods_per_year}
    theirs = {
        "total_return": empyrical.cum_returns_final(returns),
        "annual_return": empyrical.annual_return(returns, **annual),
        "annual_volatility": empyrical.annual_volatility(returns, **annual),
        "sharpe": empyrical.sharpe_ratio(returns, **annual),
        "sortino": empyrical.sortino_ratio(returns, **annual),
        "calmar": empyrical.calmar_ratio(returns, **annual),
        "max_drawdown": empyrical.max_drawdown(returns),
    }
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_by_hand():
    metrics = trading_metrics(
        equity=np.array([100.0, 110.0, 99.0, 99.0, 121.0]),
        weights=np.array([[0.5], [-1.0], [0.0], [0.0]]),
        turnover=np.array([0.5, 1.5, 1.0, 0.0]),
        cost=np.array([1.0, 2.0, 1.0, 0.0]),
        periods_per_year=4.0,
    )
    assert metrics["total_return"] == pytest.approx(0.21)
    assert metrics["annual_return"] == pytest.approx(0.21)  # four bars are one year here
    assert metrics["max_drawdown"] == pytest.approx(-0.1)
    assert metrics["max_drawdown_bars"] == 3  # peak at bar 1, back above it at bar 4
    assert metrics["turnover"] == pytest.approx(3.0)
    assert metrics["exposure"] == pytest.approx(0.375)
    assert metrics["hit_rate"] == pytest.approx(1 / 3)  # bar 2 still began short, bar 3 had nothing
    assert metrics["cost_paid"] == pytest.approx(0.04)
    assert metrics["num_trades"] == 3


def test_what_is_corrected_in_every_bar_is_no_trade():
    metrics = trading_metrics(
        equity=np.full(6, 100.0),
        weights=np.zeros((5, 1)),
        turnover=np.array([0.0, 0.009, 0.0099, 0.01, 0.5]),
        cost=np.zeros(5),
        periods_per_year=4.0,
    )
    assert metrics["num_trades"] == 2


@pytest.mark.parametrize("constant", [0.0, 0.001, -0.001, 1e-9])
def test_constant_returns_have_no_sharpe(constant):
    metrics = metrics_of(np.full(500, constant))
    assert metrics["sharpe"] == 0.0
    assert np.isfinite(list(metrics.values())).all()


def test_drawdown_that_never_recovers_lasts_to_the_end():
    assert max_drawdown_bars(np.array([1.0, 3.0, 2.0, 1.0, 2.0])) == 3
    assert max_drawdown_bars(np.array([1.0, 2.0, 3.0])) == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-0.999, 5.0, allow_nan=False), min_size=1, max_size=40),
    st.sampled_from([1.0, 252.0, 525_600.0]),
)
def test_never_nan(returns, periods_per_year):
    assert np.isfinite(list(metrics_of(np.array(returns), periods_per_year).values())).all()


def test_equity_below_zero_is_a_total_loss():
    metrics = trading_metrics(np.array([100.0, -20.0, -20.0]), np.ones((2, 1)), np.zeros(2), np.zeros(2), 252.0)
    assert metrics["total_return"] == pytest.approx(-1.2)
    assert metrics["annual_return"] == -1.0
    assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize(
    ("equity", "message"),
    [([1.0, np.nan], "equity holds NaN"), ([1.0], "at least one bar"), ([0.0, 1.0], "starts at 0")],
)
def test_broken_equity_is_refused(equity, message):
    bars = len(equity) - 1
    with pytest.raises(DataError, match=message):
        trading_metrics(np.array(equity), np.ones((bars, 1)), np.zeros(bars), np.zeros(bars), 252.0)


def test_wilson_interval_agrees_with_scipy():
    for hits, trials in [(0, 10), (5, 10), (520, 1000), (10, 10)]:
        theirs = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
        assert wilson_interval(hits, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_ranks_agree_with_scipy(values):
    array = np.array(values, dtype=float)
    assert np.array_equal(average_ranks(array), stats.rankdata(array))


def test_forecast_metrics_agree_with_libraries():
    rng = np.random.default_rng(0)
    realised = rng.normal(0, 0.01, 500)
    expected = 0.3 * realised + rng.normal(0, 0.005, 500)
    probability = 1 / (1 + np.exp(-200 * expected))
    ours = forecast_metrics(probability, expected, realised)
    assert ours["rank_ic"] == pytest.approx(stats.spearmanr(expected, realised).statistic, abs=1e-12)
    assert ours["brier"] == pytest.approx(brier_score_loss(realised > 0, probability), abs=1e-12)


def test_forecast_metrics_by_hand():
    metrics = forecast_metrics(
        probability_up=np.array([0.9, 0.9, 0.1, 0.6]),
        expected_return=np.array([1.0, 1.0, -1.0, 1.0]),
        realised_return=np.array([1.0, -1.0, -1.0, 0.0]),
    )
    assert metrics["rmse"] == pytest.approx(np.sqrt(5 / 4))
    assert metrics["mae"] == pytest.approx(0.75)
    assert metrics["skill_score"] == pytest.approx(1 - 5 / 3)
    assert metrics["directional_accuracy"] == 0.5  # an unchanged price is not a rise
    assert metrics["base_rate"] == 0.75
    assert metrics["direction_edge"] == -0.25
    assert metrics["brier"] == pytest.approx((0.01 + 0.81 + 0.01 + 0.36) / 4)
    # bins 0.9 (2 rows, half rose), 0.1 (1 row, none), 0.6 (1 row, none)
    assert metrics["calibration_error"] == pytest.approx((2 * 0.4 + 0.1 + 0.6) / 4)


def test_naive_forecast_has_no_skill():
    realised = np.random.default_rng(1).normal(0, 0.01, 300)
    metrics = forecast_metrics(np.full(300, 0.5), np.zeros(300), realised)
    assert metrics["skill_score"] == 0.0
    assert metrics["rank_ic"] == 0.0
    assert metrics["direction_edge"] <= 0.0


@pytest.mark.parametrize(("probability", "message"), [(np.nan, "NaN"), (1.5, "leaves")])
def test_broken_forecasts_are_refused(probability, message):
    with pytest.raises(DataError, match=message):
        forecast_metrics(np.array([probability]), np.zeros(1), np.zeros(1))
