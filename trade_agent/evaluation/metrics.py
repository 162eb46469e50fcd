"""Figures of merit of an equity curve and of a forecast.

Conventions: simple returns per bar, annualised with the periods per year of the bars' own calendar; losses are negative
numbers, so that more is better for every figure that a grade may look at. Where a ratio has no denominator (constant
returns, no losing bar, no drawdown) it is 0: no evidence, never NaN and never infinite.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trade_agent.errors import DataError

Floats = NDArray[np.float64]

# Below these a standard deviation is rounding noise of float64, not risk: absolute, and relative to the mean.
NO_RISK_ABSOLUTE = 1e-13
NO_RISK_RELATIVE = 1e-9
# A year's growth of exp(100) is "off the scale" and still finite when it is multiplied on.
MAX_LOG_GROWTH = 100.0
MIN_TRADE = 0.01  # of the equity


def equity_returns(equity: Floats) -> Floats:
    """Simple returns [S] of an equity curve [S+1]; 0 once the equity is 0 or below, where nothing is left to earn."""
    previous = equity[:-1]
    alive = previous > 0.0
    return np.where(alive, equity[1:] / np.where(alive, previous, 1.0) - 1.0, 0.0)


def is_riskless(returns: Floats) -> bool:
    """True when the returns [S] are constant up to rounding, or fewer than two."""
    if len(returns) < 2:
        return True
    return bool(np.std(returns, ddof=1) <= max(NO_RISK_ABSOLUTE, NO_RISK_RELATIVE * abs(float(np.mean(returns)))))


def sharpe_ratio(returns: Floats, periods_per_year: float) -> float:
    """Annual Sharpe ratio with a risk-free rate of 0: mean / sample deviation * sqrt(periods); 0 when constant."""
    if is_riskless(returns):
        return 0.0
    return float(np.mean(returns) / np.std(returns, ddof=1) * math.sqrt(periods_per_year))


def sortino_ratio(returns: Floats, periods_per_year: float) -> float:
    """Annual Sortino ratio with target 0 (Sortino and Price, 1994); 0 without a loss.

    The downside deviation is taken over all bars, winning ones counting as 0.
    """
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0.0) ** 2)))
    if downside <= NO_RISK_ABSOLUTE:
        return 0.0
    return float(np.mean(returns)) / downside * math.sqrt(periods_per_year)


def drawdowns(equity: Floats) -> Floats:
    """Distance [S+1] of the equity below its running peak as a fraction of that peak, 0 or negative."""
    return equity / np.maximum.accumulate(equity) - 1.0


def max_drawdown_bars(equity: Floats) -> int:
    """Bars from the peak before the deepest drawdown until that peak is reached again, or until the end."""
    below = drawdowns(equity)
    trough = int(np.argmin(below))
    if below[trough] >= 0.0:
        return 0
    peak = int(np.flatnonzero(below[: trough + 1] >= 0.0)[-1])
    recovered = np.flatnonzero(below[trough:] >= 0.0)
    return (trough + int(recovered[0]) if recovered.size else len(equity) - 1) - peak


def annual_return(equity: Floats, periods_per_year: float) -> float:
    """Compound growth rate per year; -1 when the equity ended at 0 or below."""
    growth = float(equity[-1] / equity[0])
    if growth <= 0.0:
        return -1.0
    return math.expm1(min(math.log(growth) * periods_per_year / (len(equity) - 1), MAX_LOG_GROWTH))


def trading_metrics(
    equity: Floats, weights: Floats, turnover: Floats, cost: Floats, periods_per_year: float
) -> dict[str, float]:
    """Everything a report says about one equity curve.

    Args:
        equity: [S+1] account value in money at each close; ``equity[0]`` is the capital before the first decision.
        weights: [S, A] fraction of equity held in each asset at the end of each bar, negative when short.
        turnover: [S] notional traded in each bar as a fraction of equity.
        cost: [S] money paid for trading and holding in each bar.
        periods_per_year: bars in a year by the bars' own calendar.

    Returns:
        Finite floats. ``max_drawdown`` is 0 or negative; ``turnover`` is per year (1 = the account is traded once);
        ``exposure`` is the mean gross weight; ``hit_rate`` is the share of winning bars among those with a position;
        ``cost_paid`` is a fraction of the initial equity; ``num_trades`` counts bars in which at least MIN_TRADE of the
        equity was traded: what an agent corrects in every bar is no trade.

    Raises:
        DataError: the curve is shorter than one bar, holds NaN or infinity, or starts at 0 or below.
    """
    num_bars = len(equity) - 1
    if num_bars < 1:
        raise DataError("an equity curve needs at least one bar after its start", "make the test period longer")
    for name, values in (("equity", equity), ("weights", weights), ("turnover", turnover), ("cost", cost)):
        if not np.isfinite(values).all():
            raise DataError(f"{name} holds NaN or infinity", "the policy gave no numbers: lower the learning rate")
    if equity[0] <= 0.0:
        raise DataError(f"the equity starts at {equity[0]:g}", "initial_equity must be above 0")

    returns = equity_returns(equity)
    gross = np.abs(weights).sum(axis=1)
    # A fill at the next open closes a position inside the bar, so that bar still belongs to the position it began with.
    held = (gross > 0.0) | (np.concatenate(([0.0], gross[:-1])) > 0.0)
    growth = annual_return(equity, periods_per_year)
    deepest = float(drawdowns(equity).min())
    return {
        "total_return": float(equity[-1] / equity[0] - 1.0),
        "annual_return": growth,
        "annual_volatility": float(np.std(returns, ddof=1) * math.sqrt(periods_per_year)) if num_bars > 1 else 0.0,
        "sharpe": sharpe_ratio(returns, periods_per_year),
        "sortino": sortino_ratio(returns, periods_per_year),
        "calmar": growth / -deepest if deepest < -NO_RISK_ABSOLUTE else 0.0,
        "max_drawdown": deepest,
        "max_drawdown_bars": float(max_drawdown_bars(equity)),
        "turnover": float(np.mean(turnover) * periods_per_year),
        "exposure": float(np.mean(gross)),
        "hit_rate": float(np.mean(returns[held] > 0.0)) if held.any() else 0.0,
        "cost_paid": float(np.sum(cost) / equity[0]),
        "num_trades": float(np.count_nonzero(turnover >= MIN_TRADE)),
    }


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion (Wilson, 1927); (0, 1) without trials. Assumes independent trials."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def average_ranks(values: Floats) -> Floats:
    """Ranks [S] from 1, ties share their mean rank."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return (last - (size - 1) / 2.0)[group]


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's correlation of two series [S]; 0 when one of them is constant."""
    a = average_ranks(first) - (len(first) + 1) / 2.0
    b = average_ranks(second) - (len(second) + 1) / 2.0
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0.0 else 0.0


def reliability_curve(
    probability_up: Floats, up: NDArray[np.bool_], num_bins: int = 10
) -> tuple[Floats, Floats, Floats]:
    """Mean forecast, observed share and count of each occupied bin of equal width on [0, 1]."""
    bins = np.minimum((probability_up * num_bins).astype(np.int64), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins).astype(np.float64)
    occupied = count > 0
    count = count[occupied]
    forecast = np.bincount(bins, weights=probability_up, minlength=num_bins)[occupied] / count
    observed = np.bincount(bins, weights=up.astype(np.float64), minlength=num_bins)[occupied] / count
    return forecast, observed, count


def forecast_metrics(probability_up: Floats, expected_return: Floats, realised_return: Floats) -> dict[str, float]:
    """Everything a report says about the forecasts of one asset at one horizon.

    Args:
        probability_up: [S] in [0, 1], forecast at the close of bar t that the return over the horizon is above 0.
        expected_return: [S] forecast of that return.
        realised_return: [S] the return that followed. 0 counts as "not up".

    Returns:
        Finite floats. The naive forecast is "no change", the last value: ``skill_score`` = 1 - MSE / MSE of naive
        (Murphy, 1988). ``base_rate`` is the accuracy of always naming the commoner direction of these very bars, the
        hardest constant to beat; ``direction_edge`` is the accuracy above it. ``rank_ic`` is Spearman's correlation of
        forecast and outcome. ``calibration_error`` is the expected calibration error over 10 bins of equal width
        (Naeini et al., 2015).

    Raises:
        DataError: no rows, or NaN or infinity among them, or a probability outside [0, 1].
    """
    num_rows = len(realised_return)
    if num_rows == 0:
        raise DataError("there is no forecast to score", "make the test period longer than window plus horizon")
    for name, values in (
        ("probability_up", probability_up),
        ("expected_return", expected_return),
        ("realised_return", realised_return),
    ):
        if not np.isfinite(values).all():
            raise DataError(f"{name} holds NaN or infinity", "score only rows whose horizon lies inside the data")
    if probability_up.min() < 0.0 or probability_up.max() > 1.0:
        raise DataError("probability_up leaves [0, 1]", "pass the sigmoid of the direction logit")

    error = expected_return - realised_return
    mse, naive_mse = float(np.mean(error**2)), float(np.mean(realised_return**2))
    up = realised_return > 0.0
    hits = int(np.count_nonzero((probability_up > 0.5) == up))
    low, high = wilson_interval(hits, num_rows)
    base_rate = max(float(up.mean()), 1.0 - float(up.mean()))
    forecast, observed, count = reliability_curve(probability_up, up)
    return {
        "rmse": math.sqrt(mse),
        "mae": float(np.mean(np.abs(error))),
        "naive_rmse": math.sqrt(naive_mse),
        "skill_score": 1.0 - mse / naive_mse if naive_mse > 0.0 else 0.0,
        "directional_accuracy": hits / num_rows,
        "directional_accuracy_low": low,
        "directional_accuracy_high": high,
        "base_rate": base_rate,
        "direction_edge": hits / num_rows - base_rate,
        "rank_ic": rank_correlation(expected_return, realised_return),
        "calibration_error": float(np.sum(count / num_rows * np.abs(forecast - observed))),
        "brier": float(np.mean((probability_up - up) ** 2)),
    }
