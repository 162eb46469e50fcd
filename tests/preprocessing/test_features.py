import dataclasses

import numpy as np
import pytest
import talib

from trade_agent.errors import PreprocessingError
from trade_agent.preprocessing.features import FEATURES
from trade_agent.preprocessing.pipeline import PreprocessingPipeline, StepSpec
from trade_agent.preprocessing.series import asset_series, rolling_sum, rolling_variance

NAMES = sorted(FEATURES.keys() - {"signal"})  # which needs bars that carry one: below


def make_series(*, close, open=None, high=None, low=None, volume=None, start="2024-01-01", bar_seconds=86_400):
    close = np.asarray(close, dtype=float)
    opens = close if open is None else np.asarray(open, dtype=float)
    return asset_series(
        symbol="X",
        timestamps=np.datetime64(start, "ns") + np.arange(len(close)) * np.timedelta64(bar_seconds, "s"),
        open=opens,
        high=np.maximum(opens, close) if high is None else np.asarray(high, dtype=float),
        low=np.minimum(opens, close) if low is None else np.asarray(low, dtype=float),
        close=close,
        volume=np.zeros(len(close)) if volume is None else np.asarray(volume, dtype=float),
        bar_seconds=bar_seconds,
    )


def compute(name, series, **params):
    return FEATURES[name].compute(series, **(dict(FEATURES[name].defaults) | params))


def from_bars(bars, *, scale=1.0, volume_scale=1.0, start=0):
    columns = {c: scale * getattr(bars, c)[start:, 0] for c in ("open", "high", "low", "close")}
    return asset_series(
        symbol="X",
        timestamps=bars.timestamps[start:],
        volume=volume_scale * bars.volume[start:, 0],
        bar_seconds=bars.bar_seconds,
        **columns,
    )


def test_returns_by_hand():
    series = make_series(open=[100, 105, 104], close=[100, 110, 99], high=[100, 110, 104], low=[100, 100, 99])
    np.testing.assert_allclose(
        compute("log_return", series, lags=[1, 2]),
        [[np.nan, np.nan], [0.0953101798043249, np.nan], [-0.1053605156578263, -0.01005033585350145]],
        rtol=1e-12,
    )
    # ln(105/100), ln(104/110)
    np.testing.assert_allclose(
        compute("overnight_gap", series)[1:, 0], [0.04879016416943205, -0.05608946665104262], rtol=1e-12
    )
    # ln(110/105), ln(99/104)
    np.testing.assert_allclose(
        compute("intraday_return", series)[1:, 0], [0.04652001563489291, -0.04927104900678367], rtol=1e-10
    )
    assert compute("bar_range", series)[1, 0] == pytest.approx(0.09531017980432493, rel=1e-12)


def test_volatilities_by_hand():
    # Close-to-close returns ln 2, -ln 2, so the root mean square of both is ln 2 = 0.693147...
    series = make_series(close=[1, 2, 1], open=[1, 1, 2])
    assert compute("realised_volatility", series, windows=[2])[2, 0] == pytest.approx(0.6931471805599453, rel=1e-12)
    # Every bar has ln(H/L) = ln 2 (but the first): sqrt(ln(2)^2 / (4 ln 2)) = sqrt(ln 2) / 2.
    assert compute("parkinson_volatility", series, windows=[2])[2, 0] == pytest.approx(0.41627730557884884, rel=1e-12)
    # ln(2)^2 * (0.5 - 0.3862943611) = 0.4804530139 * 0.1137056389 = 0.05463022, its root 0.2337311.
    assert compute("garman_klass_volatility", series, windows=[2])[2, 0] == pytest.approx(0.2337311, rel=1e-6)
    # Overnight returns 0, 0; open-to-close ln 2, -ln 2 with sample variance 2 ln(2)^2 = 0.960906; Rogers-Satchell 0:
    # high is an end of the bar. k = 0.34 / (1.34 + 3) = 0.0783410: root of 0.0752783 is 0.274369.
    assert compute("yang_zhang_volatility", series, windows=[2])[2, 0] == pytest.approx(0.274369, rel=1e-5)


def test_volume_features_by_hand():
    series = make_series(close=[10, 20, 10, 10], volume=[1, 3, 0, 4])
    np.testing.assert_allclose(compute("log_volume_change", series)[1:, 0], [np.log(3.0), 0.0, 0.0], rtol=1e-12)
    # Window (3, 0, 4): mean 7/3, variance (4/9 + 49/9 + 25/9) / 3 = 26/9; z = (5/3) / 1.699673 = 0.980581.
    assert compute("volume_zscore", series, window=3)[3, 0] == pytest.approx(0.9805806756909202, rel=1e-12)
    # Dollars 10, 60, 0, 40; the last over mean (60, 0, 40) = 33.33 is 1.2; none on the third bar.
    np.testing.assert_allclose(compute("dollar_volume", series, window=3)[2:, 0], [0.0, 0.1823215567939546], rtol=1e-12)
    # Up on 3, down on 0, unchanged on 4: 3 / 7.
    assert compute("obv_slope", series, window=3)[3, 0] == pytest.approx(3 / 7, rel=1e-12)


@pytest.mark.parametrize("name", ["log_volume_change", "volume_zscore", "dollar_volume", "obv_slope"])
@pytest.mark.parametrize("missing", [0.0, np.nan])
def test_a_market_without_volume_yields_zero(make_bars, name, missing):
    bars = make_bars(60)
    values = compute(name, make_series(close=bars.close[:, 0], volume=np.full(60, missing)))
    assert (values[FEATURES[name].warmup(FEATURES[name].defaults) :] == 0.0).all()


def test_constant_volume_is_no_deviation():
    assert (compute("volume_zscore", make_series(close=np.ones(50), volume=np.full(50, 0.1)))[19:] == 0.0).all()


def test_indicators_agree_with_talib_on_the_raw_prices(make_bars):
    bars = make_bars(400)
    series = from_bars(bars)
    high, low, close = bars.high[:, 0], bars.low[:, 0], bars.close[:, 0]
    upper, middle, lower = talib.BBANDS(close, timeperiod=20, nbdevup=2.0, nbdevdn=2.0, matype=0)
    fast_k, fast_d = talib.STOCHF(high, low, close, fastk_period=14, fastd_period=3, fastd_matype=0)
    line, _, histogram = talib.MACD(close, fastperiod=12, slowperiod=26, signalperiod=9)
    obv = talib.OBV(close, bars.volume[:, 0])
    volume_20 = np.convolve(bars.volume[:, 0], np.ones(20), "valid")
    expected = {
        "rsi": [talib.RSI(close, timeperiod=14) / 100],
        "macd": [line / close, histogram / close],
        "bollinger": [(close - lower) / (upper - lower), (upper - lower) / middle],
        "atr": [talib.ATR(high, low, close, timeperiod=14) / close],
        "stochastic": [fast_k / 100, fast_d / 100],
    }
    for name, columns in expected.items():
        np.testing.assert_allclose(compute(name, series)[250:], np.column_stack(columns)[250:], rtol=1e-7, err_msg=name)
    slope = (obv[250:] - obv[230:-20]) / volume_20[231:]
    np.testing.assert_allclose(compute("obv_slope", series)[250:, 0], slope, rtol=1e-7)


def test_a_price_that_never_moves_is_neutral():
    series = make_series(close=np.full(300, 7.0))
    assert compute("rsi", series)[-1, 0] == 0.5
    assert compute("stochastic", series)[-1].tolist() == [0.5, 0.5]
    assert compute("bollinger", series)[-1].tolist() == [0.5, 0.0]
    for name in NAMES:
        assert np.isfinite(compute(name, series)[FEATURES[name].warmup(FEATURES[name].defaults) :]).all(), name


def test_calendar_follows_the_bar_size():
    # 2024-04-01 was a Monday; noon is half a day, April a quarter of the year.
    hourly = make_series(close=np.ones(2), start="2024-04-01T12:00", bar_seconds=3600)
    np.testing.assert_allclose(compute("calendar", hourly)[0], [0, -1, 0, 1, 1, 0], atol=1e-12)
    names = [name for name, _ in FEATURES["calendar"].outputs({}, 3600)]
    assert names == ["hour_sin", "hour_cos", "weekday_sin", "weekday_cos", "month_sin", "month_cos"]
    daily = make_series(close=np.ones(8), start="2024-04-01")
    values = compute("calendar", daily)
    assert values.shape == (8, 4)
    np.testing.assert_array_equal(values[0, :2], values[7, :2])
    assert len({tuple(row) for row in values[:7, :2].round(9)}) == 7
    assert compute("calendar", make_series(close=np.ones(2), bar_seconds=7 * 86_400)).shape == (2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_shape_names_and_warmup_agree(make_bars, name):
    series, feature = from_bars(make_bars(400)), FEATURES[name]
    values = compute(name, series)
    assert values.shape == (400, len(feature.outputs(feature.defaults, 86_400)))
    assert values.dtype == np.float64
    assert np.isfinite(values[feature.warmup(feature.defaults) :]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("price", [0.0001, 50_000.0])
def test_scale_free(make_bars, name, price):
    bars, warmup = make_bars(400), FEATURES[name].warmup(FEATURES[name].defaults)
    plain = compute(name, from_bars(bars))
    scaled = compute(name, from_bars(bars, scale=price / bars.close[0, 0], volume_scale=1e-3))
    np.testing.assert_allclose(scaled[warmup:], plain[warmup:], rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_warmup_is_long_enough_to_forget_the_start(make_bars, name):
    """A live window that begins late gives what the whole history gives, from its warm-up on."""
    bars, warmup = make_bars(900), FEATURES[name].warmup(FEATURES[name].defaults)
    late = compute(name, from_bars(bars, start=300))[warmup:]
    np.testing.assert_allclose(late, compute(name, from_bars(bars))[300 + warmup :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_bar_at_a_time_equals_the_whole(make_bars, name):
    bars = make_bars(420)
    whole = compute(name, from_bars(bars))
    for stop in range(400, 421):
        row = compute(name, from_bars(bars.rows(0, stop)))[-1]
        assert row.tobytes() == whole[stop - 1].tobytes()


@pytest.mark.parametrize("column", ["open", "high", "low", "close"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_a_bad_price_is_refused_by_name(column, value):
    columns = {name: np.ones(5) for name in ("open", "high", "low", "close")}
    columns[column][3] = value
    with pytest.raises(PreprocessingError, match=rf"column '{column}' of X is .* at 2024-01-04"):
        make_series(**columns)


def test_rolling_sums_are_exact_per_window():
    """A huge value that has left the window leaves no trace, which a running sum cannot say."""
    values = np.array([1e16, 1.0, 2.0, 3.0])
    assert rolling_sum(values, 2)[1:].tolist() == [1e16, 3.0, 5.0]
    assert rolling_variance(values, 2, ddof=1)[2:].tolist() == [0.5, 0.5]
    assert np.isnan(rolling_sum(values, 5)).all()


def test_a_signal_is_passed_through_and_a_missing_one_is_named(make_bars):
    bars = make_bars(50, 2)
    values = np.random.default_rng(3).standard_normal((50, 2))
    with_signal = dataclasses.replace(bars, signals={"edge": values})
    pipeline = PreprocessingPipeline([StepSpec("signal", {"name": "edge"})])
    table = pipeline.fit(with_signal, range(40)).transform(with_signal)
    np.testing.assert_array_equal(table.values[..., 0], values.astype(table.values.dtype))
    assert with_signal.fingerprint != bars.fingerprint
    with pytest.raises(PreprocessingError, match="no signal 'edge'"):
        pipeline.fit(bars, range(40))
