"""What a model has to beat: simple positions on the same bars, and simple forecasts of the same target.

Every rule is causal: the row for bar t uses prices up to the close of t. Weights are targets for the next fill, NaN for
no order, so they pass through the same market with the same costs as those of a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from trade_agent.errors import DataError

Floats = NDArray[np.float64]

MOMENTUM_BARS = 60
REVERSION_BARS = 5
RIDGE_LAGS = 10


@dataclass(frozen=True, slots=True)
class BaselineInputs:
    """What a trading baseline may look at.

    Attributes:
        close: [T, A] closes, NaN where an asset is not listed.
        tradable: [T, A] bool.
        rows: the S bars at whose close a decision is made.
        max_weight: largest absolute weight of one asset.
        max_leverage: largest sum of absolute weights.
        allow_short: negative weights are allowed.
        turnover: mean notional per bar, as a fraction of equity, that ``random`` shall match.
        rng: used by ``random`` only.
        fill_delay_bars: bars from the decision to the bar whose open or close fills it.
    """

    close: Floats
    tradable: NDArray[np.bool_]
    rows: range
    max_weight: float
    max_leverage: float
    allow_short: bool
    turnover: float
    rng: np.random.Generator
    fill_delay_bars: int = 1


Baseline = Callable[[BaselineInputs], Floats]


def _listed(inputs: BaselineInputs) -> NDArray[np.bool_]:
    """[S, A] assets with a price that can be traded at each decision."""
    rows = slice(inputs.rows.start, inputs.rows.stop)
    return inputs.tradable[rows] & np.isfinite(inputs.close[rows])


def _full_weight(inputs: BaselineInputs, count: NDArray[np.int64] | int) -> Floats:
    """Equal share of one unit of equity for each of ``count`` assets, within the limits; never leveraged."""
    share = min(1.0, inputs.max_leverage) / np.maximum(count, 1)
    return np.minimum(share, inputs.max_weight)


def _signed(inputs: BaselineInputs, signal: Floats) -> Floats:
    """Equal absolute weights with the sign of a signal [S, A]; NaN and 0 mean no position."""
    listed = _listed(inputs)
    sign = np.where(listed & np.isfinite(signal), np.sign(signal), 0.0)
    if not inputs.allow_short:
        sign = np.maximum(sign, 0.0)
    return sign * _full_weight(inputs, listed.sum(axis=1, keepdims=True))


def _trailing_return(inputs: BaselineInputs, bars: int) -> Floats:
    """Return [S, A] over the last ``bars`` bars at each decision; NaN without that much history."""
    rows = np.arange(inputs.rows.start, inputs.rows.stop)
    past = rows - bars
    result = inputs.close[rows] / inputs.close[np.maximum(past, 0)] - 1.0
    result[past < 0] = np.nan
    return result


def flat(inputs: BaselineInputs) -> Floats:
    """No position."""
    return np.zeros((len(inputs.rows), inputs.close.shape[1]))


def buy_and_hold(inputs: BaselineInputs) -> Floats:
    """Equal weights of the assets listed by the first decision, bought once; NaN, which is no order, ever after.

    The order for an asset is repeated until one can be filled: an asset that rests on the first day is bought when it
    is back.
    """
    start, stop = inputs.rows.start, inputs.rows.stop
    listed = inputs.tradable[: start + 1].any(axis=0)
    wanted = listed * _full_weight(inputs, int(listed.sum()))
    weights = np.full((len(inputs.rows), inputs.close.shape[1]), np.nan)
    fills = np.minimum(np.arange(start, stop) + inputs.fill_delay_bars, len(inputs.tradable) - 1)
    for asset in np.flatnonzero(wanted):
        fillable = np.flatnonzero(inputs.tradable[start:stop, asset] & inputs.tradable[fills, asset])
        orders = int(fillable[0]) + 1 if len(fillable) else len(inputs.rows)
        weights[:orders, asset] = wanted[asset]
    return weights


def equal_weight(inputs: BaselineInputs) -> Floats:
    """Equal weights of all listed assets, restored at every bar."""
    return _signed(inputs, np.ones((len(inputs.rows), inputs.close.shape[1])))


def momentum(inputs: BaselineInputs) -> Floats:
    """Time-series momentum: the sign of the return over ``MOMENTUM_BARS`` (Moskowitz, Ooi and Pedersen, 2012)."""
    return _signed(inputs, _trailing_return(inputs, MOMENTUM_BARS))


def mean_reversion(inputs: BaselineInputs) -> Floats:
    """Short-term reversal: against the sign of the return over ``REVERSION_BARS`` (Lehmann, 1990)."""
    return _signed(inputs, -_trailing_return(inputs, REVERSION_BARS))


def random_positions(inputs: BaselineInputs) -> Floats:
    """Random long, flat or short positions, redrawn so often that their mean turnover is ``inputs.turnover``."""
    num_rows, num_assets = len(inputs.rows), inputs.close.shape[1]
    choices = np.array([-1.0, 0.0, 1.0]) if inputs.allow_short else np.array([0.0, 1.0])
    size = float(_full_weight(inputs, num_assets))
    # E|new - old| of two independent uniform draws, for all assets together.
    per_redraw = num_assets * size * float(np.abs(choices[:, None] - choices).mean())
    redraw = inputs.rng.random((num_rows, num_assets)) < inputs.turnover / per_redraw
    redraw[0] = True
    drawn = inputs.rng.choice(choices, size=(num_rows, num_assets))
    last = np.maximum.accumulate(np.where(redraw, np.arange(num_rows)[:, None], 0), axis=0)
    return _signed(inputs, np.take_along_axis(drawn, last, axis=0))


BASELINES: dict[str, Baseline] = {
    "flat": flat,
    "buy_and_hold": buy_and_hold,
    "equal_weight": equal_weight,
    "momentum": momentum,
    "mean_reversion": mean_reversion,
    "random": random_positions,
}


@dataclass(frozen=True, slots=True)
class ForecastInputs:
    """What a forecasting baseline may look at.

    Attributes:
        past_return: [T] return of the bar that ended at the close of t; NaN where there is none.
        target: [T] the return to forecast at t; NaN where its horizon leaves the data. Only ``train`` rows are read.
        train: rows whose targets end before the first of ``rows``.
        rows: the S rows to forecast.
    """

    past_return: Floats
    target: Floats
    train: range
    rows: range


@dataclass(frozen=True, slots=True)
class ForecastSeries:
    """Forecasts for S rows: ``probability_up`` in [0, 1] and ``expected_return``, both [S]."""

    probability_up: Floats
    expected_return: Floats


ForecastBaseline = Callable[[ForecastInputs], ForecastSeries]


def _train_target(inputs: ForecastInputs) -> Floats:
    target = inputs.target[inputs.train.start : inputs.train.stop]
    target = target[np.isfinite(target)]
    if target.size == 0:
        raise DataError("no train row has a target", "make the train period longer than the horizon")
    return target


def last_value(inputs: ForecastInputs) -> ForecastSeries:
    """The price stays where it is: a return of 0, either direction equally likely."""
    num_rows = len(inputs.rows)
    return ForecastSeries(np.full(num_rows, 0.5), np.zeros(num_rows))


def historical_mean(inputs: ForecastInputs) -> ForecastSeries:
    """The mean return and the share of rises of the train rows."""
    target, num_rows = _train_target(inputs), len(inputs.rows)
    return ForecastSeries(np.full(num_rows, float((target > 0).mean())), np.full(num_rows, float(target.mean())))


def _lags(returns: Floats, newest: NDArray[np.int64], count: int) -> Floats:
    """[N, count] ``returns`` [R] from the places ``newest`` [N] backwards; NaN where there are not as many yet."""
    lags = np.full((count, len(newest)), np.nan)
    for lag, values in enumerate(lags):
        reached = newest >= lag
        values[reached] = returns[newest[reached] - lag]
    return lags.T


def _linear(inputs: ForecastInputs, lags: int, penalty: float) -> ForecastSeries:
    """Ridge regression of the target on the last ``lags`` standardised returns, fitted on the train rows.

    The lags of a long series are the largest thing in a verdict: there is one copy of them, changed in place.
    """
    _train_target(inputs)
    # Bars without a return are passed over: beside an asset that trades every day, a stock's lags skip its weekends.
    has_return = np.isfinite(inputs.past_return)
    returns, newest = inputs.past_return[has_return], np.cumsum(has_return) - 1
    train_y = inputs.target[inputs.train.start : inputs.train.stop]
    train_newest = newest[inputs.train.start : inputs.train.stop]
    known = np.isfinite(train_y) & (train_newest >= lags - 1)
    if known.sum() <= lags + 1:
        raise DataError(f"{int(known.sum())} train rows are too few for {lags} lags", "make the train period longer")
    train_y, train_x = train_y[known], _lags(returns, train_newest[known], lags)
    centre, deviation = train_x.mean(axis=0), np.array([column.std() for column in train_x.T])
    scale = np.where(deviation > 0.0, deviation, 1.0)
    train_x -= centre
    train_x /= scale
    model = Ridge(alpha=penalty * len(train_y), copy_X=False).fit(train_x, train_y)
    residual = float(np.std(train_y - model.predict(train_x)))
    del train_x
    x = _lags(returns, newest[inputs.rows.start : inputs.rows.stop], lags)
    x -= centre
    x /= scale
    x[np.isnan(x)] = 0.0  # a missing lag is set to its mean, so the forecast falls back towards the historical mean
    expected = model.predict(x).astype(np.float64)
    normal = NormalDist(sigma=max(residual, 1e-300))
    return ForecastSeries(np.array([normal.cdf(value) for value in expected]), expected)


def ar1(inputs: ForecastInputs) -> ForecastSeries:
    """Least squares of the target on the last return; the direction from normal residuals."""
    return _linear(inputs, lags=1, penalty=0.0)


def ridge(inputs: ForecastInputs) -> ForecastSeries:
    """Ridge regression of the target on the last ``RIDGE_LAGS`` standardised returns."""
    return _linear(inputs, lags=RIDGE_LAGS, penalty=0.1)


FORECAST_BASELINES: dict[str, ForecastBaseline] = {
    "last_value": last_value,
    "historical_mean": historical_mean,
    "ar1": ar1,
    "ridge": ridge,
}
