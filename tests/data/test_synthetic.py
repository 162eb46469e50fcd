"""The synthetic markets are what their description says, and reach the user through the common door."""

from statistics import NormalDist

import numpy as np
import pytest

from trade_agent.config import schema
from trade_agent.data import synthetic
from trade_agent.data.synthetic import MARKETS
from trade_agent.errors import DataError

NUM_BARS = 4000


@pytest.fixture(scope="module")
def market():
    known = {}

    def build(name, seed=0, num_bars=200_000):
        key = (name, seed, num_bars)
        if key not in known:
            known[key] = MARKETS[name](num_bars, np.random.default_rng(seed))
        return known[key]

    return build


def test_the_config_knows_every_market():
    assert tuple(MARKETS) == schema.SYNTHETIC_MARKETS


@pytest.mark.parametrize("name", list(MARKETS))
def test_bars_pass_validation_without_a_finding_and_without_repair(load, name):
    bars, report = load(source=name, num_bars=NUM_BARS, seed=3)
    assert report.findings == ()
    assert (bars.num_bars, bars.num_assets, bars.bar_seconds, bars.calendar) == (NUM_BARS, 1, 3600, "24/7")
    assert bars.tradable.all()
    rng = np.random.default_rng([3, *name.encode()])
    assert set(bars.signals) == set(MARKETS[name](NUM_BARS, rng).signals)


@pytest.mark.parametrize("name", [name for name in MARKETS if name != "hybrid"])
def test_a_bar_opens_where_the_one_before_closed(load, name):
    bars, _ = load(source=name, num_bars=NUM_BARS, seed=3)
    np.testing.assert_array_equal(bars.open[1:], bars.close[:-1])


@pytest.mark.parametrize("name", list(MARKETS))
def test_seed_and_length_decide_about_every_number(load, name):
    first, again = (load(source=name, num_bars=500, seed=7)[0].fingerprint for _ in range(2))
    assert first == again
    assert load(source=name, num_bars=500, seed=8)[0].fingerprint != first


def test_markets_of_one_seed_share_no_noise(load):
    returns = [np.diff(np.log(load(source=name, num_bars=5000, seed=1)[0].close[:, 0])) for name in MARKETS]
    correlation = np.corrcoef(returns) - np.eye(len(returns))
    assert np.abs(correlation).max() < 0.08


@pytest.mark.parametrize(("num_bars", "seed"), [(None, 1), (100, None), (1, 1)])
def test_no_length_or_seed_is_refused(load, num_bars, seed):
    with pytest.raises(DataError, match=r"data\.num_bars"):
        load(source="leak", num_bars=num_bars, seed=seed)


def test_the_leak_is_the_log_return_of_the_bar_that_the_next_fill_opens(load):
    bars, _ = load(source="leak", num_bars=1000, seed=1)
    held = np.log(bars.open[2:, 0] / bars.open[1:-1, 0])  # open of t+1 to open of t+2
    np.testing.assert_allclose(bars.signals["leak"][:-2, 0], held, atol=1e-12)
    assert held.std() == pytest.approx(0.002, rel=0.1)


def test_the_factor_predicts_the_next_return_one_to_one_and_reverts(market):
    made = market("garleanu_pedersen")
    factor, returns = made.signals["factor"], np.expm1(made.bar_return)
    slope = np.polyfit(factor[:-1], returns[1:], 1)[0]
    assert slope == pytest.approx(1.0, abs=0.05)
    assert factor.std() == pytest.approx(synthetic.GP_STRENGTH * synthetic.GP_VOLATILITY, rel=0.05)
    assert np.corrcoef(factor[:-1], factor[1:])[0, 1] == pytest.approx(1.0 - synthetic.GP_REVERSION, abs=0.01)
    assert (returns[1:] - factor[:-1]).std() == pytest.approx(synthetic.GP_VOLATILITY, rel=0.01)


def test_noise_has_no_drift_and_no_memory(market):
    returns = np.expm1(market("noise").bar_return)
    assert abs(returns.mean()) < 3.0 * returns.std() / np.sqrt(len(returns))
    assert abs(np.corrcoef(returns[:-1], returns[1:])[0, 1]) < 0.007


def test_ar_has_the_stated_autocorrelation(market):
    returns = market("ar").bar_return
    assert np.corrcoef(returns[:-1], returns[1:])[0, 1] == pytest.approx(synthetic.AR_COEFFICIENT, abs=0.01)


def test_regimes_stay_as_long_as_stated():
    regime = synthetic.alternating(0.95, 100_000, np.random.default_rng(0))
    assert set(np.unique(regime)) == {-1.0, 1.0}
    assert (regime[1:] == regime[:-1]).mean() == pytest.approx(0.95, abs=0.003)


def test_the_season_is_that_of_the_hour_at_which_a_bar_opens(load):
    bars, _ = load(source="seasonal", num_bars=24 * 2000, seed=1)
    hour = bars.timestamps.astype("datetime64[h]").astype(int) % 24
    returns = np.log(bars.close[:, 0] / bars.open[:, 0])
    means = np.array([returns[hour == h].mean() for h in range(24)])
    expected = 0.8 * 0.01 * np.sin(2.0 * np.pi * (np.arange(24) + 0.5) / 24.0)
    np.testing.assert_allclose(means, expected, atol=0.001)


def test_in_the_hybrid_market_the_return_from_close_to_close_knows_nothing_of_the_gap(load):
    bars, _ = load(source="hybrid", num_bars=100_000, seed=1)
    close, open_ = np.log(bars.close[:, 0]), np.log(bars.open[:, 0])
    target = np.diff(close)  # [t]: close of t to close of t+1, what the forecaster learns at t
    earned = np.diff(open_)[1:]  # [t]: open of t+1 to open of t+2, what an order decided at t earns
    b = bars.signals["b"][:, 0]
    lags = range(10)
    in_target = [np.corrcoef(b[20 - lag : 90_000 - lag], target[20:90_000])[0, 1] for lag in lags]
    in_earned = [np.corrcoef(b[20 - lag : 90_000 - lag], earned[20:90_000])[0, 1] for lag in lags]
    assert np.abs(in_target).max() < 0.02
    # The gap before t+2 shows b of LAG bars ago, the take-back within t+1 that of LAG + 1.
    assert in_earned[synthetic.HYBRID_LAG] > 0.3
    assert in_earned[synthetic.HYBRID_LAG + 1] < -0.3


def test_in_the_ensemble_market_each_half_of_the_first_part_wants_the_opposite(market):
    made = market("ensemble", num_bars=40_000)
    signal, regime, following = made.signals["signal"][:-1], made.signals["regime"][:-1], made.bar_return[1:]
    assert np.all(regime[:10_000] == 1.0)
    assert np.all(regime[10_000:20_000] == -1.0)
    assert set(np.unique(regime[20_000:])) == {-1.0, 1.0}
    assert np.corrcoef(signal[:10_000], following[:10_000])[0, 1] > 0.3
    assert np.corrcoef(signal[10_000:20_000], following[10_000:20_000])[0, 1] < -0.3


def test_nobody_can_expect_anything_of_noise():
    """Its mean simple return is 0, which a sample would show only after a hundred million bars."""

    class Quantiles:
        def standard_normal(self, count):
            return np.array([NormalDist().inv_cdf((k + 0.5) / count) for k in range(count)])

    returns = np.expm1(MARKETS["noise"](100_000, Quantiles()).bar_return)
    assert returns.mean() == pytest.approx(0.0, abs=1e-9)
    assert returns.std() == pytest.approx(synthetic.NOISE_VOLATILITY, rel=1e-3)
